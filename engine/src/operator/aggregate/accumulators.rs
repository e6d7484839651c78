//! The aggregate functions of one aggregation: their inputs evaluated from a batch, their accumulators over groups.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray};
use arrow::compute::prep_null_mask_filter;
use arrow::datatypes::FieldRef;
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use datafusion::physical_expr::{GroupsAccumulatorAdapter, PhysicalExpr};
use datafusion::physical_expr_common::physical_expr::is_volatile;

use super::distinct_count::DistinctCount;
use crate::data::{Batch, EngineError, Result};
use crate::operator::array_bytes::{is_flat, payload_bytes};
use crate::plan::{AggregateMode, AggregateSpec};

/// What a function reads of a batch.
pub(in crate::operator) struct Input {
    /// Arguments followed by ordering expressions, or the state columns.
    pub(in crate::operator) values: Vec<ArrayRef>,
    /// The rows that count, without NULLs.
    pub(in crate::operator) filter: Option<BooleanArray>,
}

/// How each function's input comes from a batch.
pub(in crate::operator) struct Inputs {
    /// The distinct expressions; functions refer to them by number, so that `sum(x), avg(x)` evaluates `x` once.
    expressions: Vec<Arc<dyn PhysicalExpr>>,
    functions: Vec<Source>,
}

struct Source {
    values: Vec<Column>,
    filter: Option<usize>,
}

#[derive(Clone, Copy)]
enum Column {
    Expression(usize),
    Batch(usize),
}

impl Inputs {
    /// Of the functions of `spec`, in its mode.
    ///
    /// # Errors
    /// When a function cannot name its states.
    pub(in crate::operator) fn new(spec: &AggregateSpec) -> Result<Self> {
        Self::of(spec, |_| true)
    }

    /// The same without what only filtered functions read: those evaluate it on the rows that count.
    ///
    /// # Errors
    /// As for `new`.
    pub(in crate::operator) fn unfiltered(spec: &AggregateSpec) -> Result<Self> {
        Self::of(spec, |filter| filter.is_none())
    }

    fn of(spec: &AggregateSpec, wanted: impl Fn(&Option<Arc<dyn PhysicalExpr>>) -> bool) -> Result<Self> {
        let mut inputs = Self {
            expressions: Vec::new(),
            functions: Vec::new(),
        };
        let mut next_state = spec.group_by.len();
        for (function, filter) in spec.aggregates.functions.iter().zip(&spec.aggregates.filters) {
            let source = if spec.mode == AggregateMode::Final {
                let first = next_state;
                next_state += function.state_fields()?.len();
                Source {
                    values: (first..next_state).map(Column::Batch).collect(),
                    filter: None,
                }
            } else if wanted(filter) {
                let values = raw_arguments(function);
                Source {
                    values: values
                        .iter()
                        .map(|expr| Column::Expression(inputs.number(expr)))
                        .collect(),
                    filter: filter.as_ref().map(|filter| inputs.number(filter)),
                }
            } else {
                Source {
                    values: Vec::new(),
                    filter: None,
                }
            };
            inputs.functions.push(source);
        }
        Ok(inputs)
    }

    fn number(&mut self, expr: &Arc<dyn PhysicalExpr>) -> usize {
        let known = self.expressions.iter().position(|known| known == expr);
        // Two calls of random() are two columns.
        known.filter(|_| !is_volatile(expr)).unwrap_or_else(|| {
            self.expressions.push(Arc::clone(expr));
            self.expressions.len() - 1
        })
    }

    /// One input per function.
    ///
    /// # Errors
    /// When an expression fails.
    pub(in crate::operator) fn evaluate(&self, batch: &Batch) -> Result<Vec<Input>> {
        let arrays = evaluate_all(&self.expressions, batch)?;
        let mut inputs = Vec::with_capacity(self.functions.len());
        for source in &self.functions {
            let column = |column: &Column| match *column {
                Column::Expression(index) => Arc::clone(&arrays[index]),
                Column::Batch(index) => Arc::clone(batch.column(index)),
            };
            let filter = source.filter.map(|index| as_mask(&arrays[index])).transpose()?;
            inputs.push(Input {
                values: source.values.iter().map(column).collect(),
                filter,
            });
        }
        Ok(inputs)
    }
}

/// What a function is fed with from raw rows: its arguments, then what it orders by.
pub(in crate::operator) fn raw_arguments(function: &AggregateFunctionExpr) -> Vec<Arc<dyn PhysicalExpr>> {
    let order = function.order_bys().iter().map(|key| Arc::clone(&key.expr));
    function.expressions().into_iter().chain(order).collect()
}

/// Evaluates expressions to columns.
///
/// # Errors
/// When one fails.
pub(in crate::operator) fn evaluate_all(expressions: &[Arc<dyn PhysicalExpr>], batch: &Batch) -> Result<Vec<ArrayRef>> {
    expressions
        .iter()
        .map(|expr| Ok(expr.evaluate(batch)?.into_array(batch.num_rows())?))
        .collect()
}

/// A condition's result with NULL as false.
///
/// # Errors
/// When it is not boolean.
pub(in crate::operator) fn as_mask(array: &ArrayRef) -> Result<BooleanArray> {
    let mask = array
        .as_boolean_opt()
        .ok_or_else(|| EngineError::Internal(format!("a FILTER is {}, not boolean", array.data_type())))?;
    Ok(if mask.nulls().is_some() {
        prep_null_mask_filter(mask)
    } else {
        mask.clone()
    })
}

impl Input {
    /// A range of the rows.
    pub(in crate::operator) fn slice(&self, start: usize, rows: usize) -> Self {
        Self {
            values: self.values.iter().map(|column| column.slice(start, rows)).collect(),
            filter: self.filter.as_ref().map(|filter| filter.slice(start, rows)),
        }
    }
}

/// One accumulator per function, over all groups.
pub(in crate::operator) struct Accumulators {
    functions: Vec<Arc<AggregateFunctionExpr>>,
    each: Vec<Box<dyn GroupsAccumulator>>,
    /// The state columns of each.
    states: Vec<Vec<FieldRef>>,
    /// Those whose states are plain vectors, handed over without a copy.
    flat: Vec<bool>,
}

/// What the state or result of one group takes on its way out of an accumulator that exists once for each group: scalars
/// of lists are arrays of their own.
const SCALAR_BYTES: usize = 2 << 10;

/// What to take from accumulators.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::operator) enum Take {
    /// What another aggregation merges.
    States,
    /// What the query asked for.
    Results,
}

/// The columns of all groups on their way out.
pub(in crate::operator) struct Outflow {
    take: Take,
    /// The columns of the functions that gave all at once.
    whole: Vec<Option<Vec<ArrayRef>>>,
    start: usize,
    total: usize,
}

impl Outflow {
    /// Whether some function gives its columns piece by piece, as they are large.
    pub(in crate::operator) fn is_wide(&self) -> bool {
        self.whole.iter().any(Option::is_none)
    }
}

impl Accumulators {
    /// Empty accumulators.
    ///
    /// # Errors
    /// When a function refuses its arguments' types.
    pub(in crate::operator) fn new(functions: Vec<Arc<AggregateFunctionExpr>>) -> Result<Self> {
        let each = functions.iter().map(create).collect::<Result<_>>()?;
        let states = functions.iter().map(|function| Ok(function.state_fields()?));
        let states = states.collect::<Result<Vec<_>>>()?;
        let flat = functions.iter().zip(&states).map(|(function, states)| {
            function.groups_accumulator_supported() && states.iter().all(|state| is_flat(state.data_type()))
        });
        let flat = flat.collect();
        Ok(Self {
            functions,
            each,
            states,
            flat,
        })
    }

    /// The state columns of all functions.
    pub(in crate::operator) fn state_fields(&self) -> impl Iterator<Item = &FieldRef> {
        self.states.iter().flatten()
    }

    /// What each function reads of a batch of states whose first column is `columns[0]`.
    pub(in crate::operator) fn state_inputs(&self, columns: &[ArrayRef]) -> Vec<Input> {
        let mut columns = columns.iter().cloned();
        let of_function = |states: &Vec<FieldRef>| Input {
            values: columns.by_ref().take(states.len()).collect(),
            filter: None,
        };
        self.states.iter().map(of_function).collect()
    }

    /// Bytes that these inputs may add to the functions that keep what they are fed with.
    pub(in crate::operator) fn growth(&self, inputs: &[Input]) -> usize {
        let deep = inputs.iter().zip(&self.flat).filter(|(_, flat)| !**flat);
        deep.flat_map(|(input, _)| &input.values).map(payload_bytes).sum()
    }

    /// Takes raw rows.
    ///
    /// # Errors
    /// When a function fails (overflow).
    pub(in crate::operator) fn update(&mut self, inputs: &[Input], groups: &[usize], total: usize) -> Result<()> {
        for (accumulator, input) in self.each.iter_mut().zip(inputs) {
            accumulator.update_batch(&input.values, groups, input.filter.as_ref(), total)?;
        }
        Ok(())
    }

    /// Takes rows of states.
    ///
    /// # Errors
    /// As for `update`.
    pub(in crate::operator) fn merge(&mut self, inputs: &[Input], groups: &[usize], total: usize) -> Result<()> {
        for (accumulator, input) in self.each.iter_mut().zip(inputs) {
            accumulator.merge_batch(&input.values, groups, total)?;
        }
        Ok(())
    }

    /// The state columns of raw rows, each row a group of its own. Does not touch the accumulators.
    ///
    /// # Errors
    /// When a function fails or cannot do it.
    pub(in crate::operator) fn convert(&self, inputs: &[Input]) -> Result<Vec<ArrayRef>> {
        let mut columns = Vec::new();
        for (accumulator, input) in self.each.iter().zip(inputs) {
            columns.extend(accumulator.convert_to_state(&input.values, input.filter.as_ref())?);
        }
        Ok(columns)
    }

    /// How many groups may leave at once when that may take so many bytes.
    pub(in crate::operator) fn rows_within(&self, bytes: usize) -> usize {
        let single = self
            .functions
            .iter()
            .filter(|function| !function.groups_accumulator_supported());
        match single.count() {
            0 => usize::MAX,
            count => (bytes / (count * SCALAR_BYTES)).max(1),
        }
    }

    /// Takes the columns of all groups at once. The accumulators are spent by it.
    ///
    /// # Errors
    /// When a function fails.
    pub(in crate::operator) fn take_all(&mut self, take: Take) -> Result<Vec<ArrayRef>> {
        let mut columns = Vec::with_capacity(self.each.len());
        for accumulator in &mut self.each {
            columns.extend(take.from(accumulator, EmitTo::All)?);
        }
        Ok(columns)
    }

    /// Empty accumulators of the same functions.
    ///
    /// # Errors
    /// As for `new`.
    pub(in crate::operator) fn successor(&self) -> Result<Self> {
        Ok(Self {
            functions: self.functions.clone(),
            each: self.functions.iter().map(create).collect::<Result<_>>()?,
            states: self.states.clone(),
            flat: self.flat.clone(),
        })
    }

    /// Begins to take the columns of all `total` groups. Functions that hold more than `large_bytes` give them piece by
    /// piece, unless taking all costs no copy.
    ///
    /// # Errors
    /// When a function fails.
    pub(in crate::operator) fn begin(&mut self, take: Take, total: usize, large_bytes: usize) -> Result<Outflow> {
        let mut whole = Vec::with_capacity(self.each.len());
        for (index, accumulator) in self.each.iter_mut().enumerate() {
            let small = accumulator.size() <= large_bytes
                && (self.functions[index].groups_accumulator_supported() || total * SCALAR_BYTES <= large_bytes);
            let at_once = small || (self.flat[index] && take == Take::States);
            whole.push(if at_once {
                Some(take.from(accumulator, EmitTo::All)?)
            } else {
                None
            });
        }
        Ok(Outflow {
            take,
            whole,
            start: 0,
            total,
        })
    }

    /// The columns of the next `rows` groups.
    ///
    /// # Errors
    /// When a function fails.
    pub(in crate::operator) fn next(&mut self, outflow: &mut Outflow, rows: usize) -> Result<Vec<ArrayRef>> {
        let emit = if outflow.start + rows >= outflow.total {
            EmitTo::All
        } else {
            EmitTo::First(rows)
        };
        let mut columns = Vec::new();
        for (accumulator, whole) in self.each.iter_mut().zip(&outflow.whole) {
            match whole {
                Some(whole) => columns.extend(whole.iter().map(|column| column.slice(outflow.start, rows))),
                None => columns.extend(outflow.take.from(accumulator, emit)?),
            }
        }
        outflow.start += rows;
        Ok(columns)
    }

    /// Bytes held.
    pub(in crate::operator) fn size(&self) -> usize {
        self.each.iter().map(|accumulator| accumulator.size()).sum()
    }

    /// Forgets all groups.
    ///
    /// # Errors
    /// As for `new`.
    // Made anew rather than trusted to be as new: not every function of the world clears all it has on emission.
    pub(in crate::operator) fn reset(&mut self) -> Result<()> {
        self.each = self.functions.iter().map(create).collect::<Result<_>>()?;
        Ok(())
    }
}

impl Take {
    fn from(self, accumulator: &mut Box<dyn GroupsAccumulator>, groups: EmitTo) -> Result<Vec<ArrayRef>> {
        Ok(match self {
            Take::States => accumulator.state(groups)?,
            Take::Results => vec![accumulator.evaluate(groups)?],
        })
    }
}

fn create(function: &Arc<AggregateFunctionExpr>) -> Result<Box<dyn GroupsAccumulator>> {
    if function.groups_accumulator_supported() {
        return Ok(function.create_groups_accumulator()?);
    }
    if let Some(count) = DistinctCount::for_function(function)? {
        return Ok(Box::new(count));
    }
    let function = Arc::clone(function);
    Ok(Box::new(GroupsAccumulatorAdapter::new(move || {
        function.create_accumulator()
    })))
}
