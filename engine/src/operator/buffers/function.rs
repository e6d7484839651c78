//! What is computed of the rows of a window that fires: aggregates, for all firings of a micro-batch at once, or a
//! function of the program per firing.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, RecordBatchOptions, TimestampMillisecondArray};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Field, SchemaRef, TimeUnit};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr_common::physical_expr::fmt_sql;

use super::assigner::Bounds;
use super::firing::Firings;
use super::rows::RowStore;
use crate::data::{Batch, EngineError, Result};
use crate::operator::aggregate::{Accumulators, Input, Take, as_mask, evaluate_all, raw_arguments};
use crate::plan::{Aggregates, WindowProperty};

/// Rows that are gathered at once.
const GATHER_ROWS: usize = 1 << 16;

/// A window as a function of the program sees it.
pub struct WindowContext<'a> {
    /// The key, one row; without columns for a stream without keys.
    pub key: &'a Batch,
    /// The window.
    pub window: Bounds,
    /// How far event time has come.
    pub watermark_ms: i64,
    /// Processing time.
    pub now_ms: i64,
}

/// A function of the rows of one window.
pub type ApplyFunction = dyn Fn(&WindowContext<'_>, &Batch) -> Result<Batch> + Send + Sync;

/// What is computed of a window.
#[derive(Clone)]
pub enum WindowFunction {
    /// Aggregate functions. The result's columns are the keys, the functions and the properties.
    Aggregate {
        /// The functions.
        aggregates: Aggregates,
        /// What of the window follows the functions.
        properties: Vec<WindowProperty>,
    },
    /// A function of the program; what it gives is the result as it is.
    Apply(Arc<ApplyFunction>),
}

/// The rows that the firings of a micro-batch gave, and which are whose.
pub(super) struct Results {
    pub(super) rows: Batch,
    /// Where the rows of firing `i` begin; one more at the end.
    pub(super) starts: Vec<usize>,
}

/// A window function at work. Of each row it keeps the columns `0..width()`.
pub(super) enum Evaluator {
    Aggregate(AggregateEvaluator),
    Apply(Arc<ApplyFunction>, SchemaRef),
}

/// Stores what the functions read of a row.
pub(super) struct AggregateEvaluator {
    aggregates: Aggregates,
    properties: Vec<WindowProperty>,
    /// What is stored of a row.
    expressions: Vec<Arc<dyn PhysicalExpr>>,
    /// Which of those are each function's arguments and filter.
    sources: Vec<(Vec<usize>, Option<usize>)>,
}

impl AggregateEvaluator {
    fn new(aggregates: Aggregates, properties: Vec<WindowProperty>) -> Self {
        let mut expressions: Vec<Arc<dyn PhysicalExpr>> = Vec::new();
        let mut number = |expr: &Arc<dyn PhysicalExpr>| {
            let known = expressions.iter().position(|known| known == expr);
            known.unwrap_or_else(|| {
                expressions.push(Arc::clone(expr));
                expressions.len() - 1
            })
        };
        let functions = aggregates.functions.iter().zip(&aggregates.filters);
        let sources = functions
            .map(|(function, filter)| {
                let arguments = raw_arguments(function).iter().map(&mut number).collect();
                (arguments, filter.as_ref().map(&mut number))
            })
            .collect();
        Self {
            aggregates,
            properties,
            expressions,
            sources,
        }
    }

    fn evaluate(&self, store: &RowStore, firings: &Firings, keys: Vec<ArrayRef>, schema: &SchemaRef) -> Result<Batch> {
        let total = firings.panes.len();
        let mut accumulators = Accumulators::new(self.aggregates.functions.clone())?;
        let mut groups = Vec::with_capacity(firings.places.len());
        for index in 0..total {
            groups.resize(firings.range(index).end, index);
        }
        for (places, groups) in firings.places.chunks(GATHER_ROWS).zip(groups.chunks(GATHER_ROWS)) {
            let columns = store.gather(places, 0..self.expressions.len())?;
            let inputs: Vec<Input> = self
                .sources
                .iter()
                .map(|(arguments, filter)| {
                    Ok(Input {
                        values: arguments.iter().map(|index| Arc::clone(&columns[*index])).collect(),
                        filter: filter.map(|index| as_mask(&columns[index])).transpose()?,
                    })
                })
                .collect::<Result<_>>()?;
            accumulators.update(&inputs, groups, total)?;
        }
        let mut outflow = accumulators.begin(Take::Results, total, usize::MAX)?;
        let mut columns = keys;
        columns.extend(accumulators.next(&mut outflow, total)?);
        for property in &self.properties {
            let field = schema.field(columns.len());
            columns.push(property_column(*property, firings, field.data_type())?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(total));
        Ok(Batch::try_new_with_options(Arc::clone(schema), columns, &options)?)
    }
}

/// A bound of the window of each firing; NULL where the window has none.
fn property_column(property: WindowProperty, firings: &Firings, data_type: &DataType) -> Result<ArrayRef> {
    let of = |bounds: Bounds| match property {
        WindowProperty::Start => Some(bounds.start_ms).filter(|start| *start > i64::MIN),
        WindowProperty::End => Some(bounds.end_ms).filter(|end| *end < i64::MAX),
        WindowProperty::Time => Some(bounds.last_ms()).filter(|last| *last < i64::MAX),
    };
    let times: TimestampMillisecondArray = firings.panes.iter().map(|pane| of(pane.bounds)).collect();
    match data_type {
        DataType::Timestamp(TimeUnit::Millisecond, zone) => Ok(Arc::new(times.with_timezone_opt(zone.clone()))),
        other => Ok(cast(&times, other)?),
    }
}

impl Evaluator {
    pub(super) fn new(function: WindowFunction, input: &SchemaRef) -> Self {
        match function {
            WindowFunction::Aggregate { aggregates, properties } => {
                Evaluator::Aggregate(AggregateEvaluator::new(aggregates, properties))
            }
            WindowFunction::Apply(function) => Evaluator::Apply(function, Arc::clone(input)),
        }
    }

    /// How many columns are stored of each row.
    pub(super) fn width(&self) -> usize {
        match self {
            Evaluator::Aggregate(aggregate) => aggregate.expressions.len(),
            Evaluator::Apply(_, input) => input.fields().len(),
        }
    }

    /// The columns that are stored of each row.
    ///
    /// # Errors
    /// When an expression has no type.
    pub(super) fn stored_fields(&self) -> Result<Vec<Field>> {
        match self {
            Evaluator::Aggregate(aggregate) => {
                let input = &aggregate.aggregates.input;
                let fields = aggregate.expressions.iter().map(|expr| stored_field(expr, input));
                fields.collect()
            }
            Evaluator::Apply(_, input) => Ok(input.fields().iter().map(|field| field.as_ref().clone()).collect()),
        }
    }

    /// What is stored of the rows of a batch.
    ///
    /// # Errors
    /// When an expression fails.
    pub(super) fn stored(&self, batch: &Batch) -> Result<Vec<ArrayRef>> {
        match self {
            Evaluator::Aggregate(aggregate) => evaluate_all(&aggregate.expressions, batch),
            Evaluator::Apply(_, _) => Ok(batch.columns().to_vec()),
        }
    }

    /// The results of all firings, in their order; `keys` holds the key of each, `schema` is that of the results.
    ///
    /// # Errors
    /// When the function fails or gives rows of another schema.
    pub(super) fn evaluate(
        &self,
        store: &RowStore,
        firings: &Firings,
        keys: Batch,
        schema: &SchemaRef,
        (watermark_ms, now_ms): (i64, i64),
    ) -> Result<Results> {
        let count = firings.panes.len();
        let (function, input) = match self {
            Evaluator::Aggregate(aggregate) => {
                return Ok(Results {
                    rows: aggregate.evaluate(store, firings, keys.columns().to_vec(), schema)?,
                    starts: (0..=count).collect(),
                });
            }
            Evaluator::Apply(function, input) => (function, input),
        };
        let mut results = Vec::with_capacity(count);
        let mut starts = vec![0];
        let mut first = 0;
        while first < count {
            let begin = firings.range(first).start;
            // Small windows are gathered together, a large one alone.
            let mut last = first + 1;
            while last < count && firings.range(last).end - begin <= GATHER_ROWS {
                last += 1;
            }
            let places = &firings.places[begin..firings.range(last - 1).end];
            let columns = store.gather(places, 0..input.fields().len())?;
            let options = RecordBatchOptions::new().with_row_count(Some(places.len()));
            let rows = Batch::try_new_with_options(Arc::clone(input), columns, &options)?;
            for index in first..last {
                let range = firings.range(index);
                let context = WindowContext {
                    key: &keys.slice(index, 1),
                    window: firings.panes[index].bounds,
                    watermark_ms,
                    now_ms,
                };
                let result = function(&context, &rows.slice(range.start - begin, range.len()))?;
                check_schema(&result, schema)?;
                starts.push(starts.last().unwrap_or(&0) + result.num_rows());
                results.push(result);
            }
            first = last;
        }
        Ok(Results {
            rows: concat_batches(schema, &results)?,
            starts,
        })
    }
}

/// A column for what an expression over `input` gives, named after it.
///
/// # Errors
/// When the expression has no type.
pub(super) fn stored_field(expr: &Arc<dyn PhysicalExpr>, input: &SchemaRef) -> Result<Field> {
    Ok(Field::new(
        fmt_sql(expr.as_ref()).to_string(),
        expr.data_type(input)?,
        true,
    ))
}

fn check_schema(result: &Batch, wanted: &SchemaRef) -> Result<()> {
    let types = |schema: &SchemaRef| -> Vec<DataType> {
        let fields = schema.fields().iter();
        fields.map(|field| field.data_type().clone()).collect()
    };
    if types(result.schema_ref()) == types(wanted) {
        return Ok(());
    }
    Err(EngineError::Plan(format!(
        "a window function gave {}, not {wanted} as declared",
        result.schema_ref()
    )))
}

/// The milliseconds of a column of timestamps of any unit, rounded down.
///
/// # Errors
/// When the column holds no timestamps, or a NULL.
pub(in crate::operator) fn event_times(column: &ArrayRef, name: &str) -> Result<Vec<i64>> {
    use arrow::datatypes::{
        TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType,
    };
    let DataType::Timestamp(unit, _) = column.data_type() else {
        return Err(EngineError::Plan(format!(
            "the event time '{name}' is {}, not a timestamp",
            column.data_type()
        )));
    };
    if column.null_count() > 0 {
        return Err(EngineError::BadInput(format!(
            "the event time '{name}' is NULL in a row; filter such rows: {name} IS NOT NULL"
        )));
    }
    Ok(match unit {
        TimeUnit::Second => {
            let values = column.as_primitive::<TimestampSecondType>().values();
            values.iter().map(|value| value.saturating_mul(1000)).collect()
        }
        TimeUnit::Millisecond => column.as_primitive::<TimestampMillisecondType>().values().to_vec(),
        TimeUnit::Microsecond => {
            let values = column.as_primitive::<TimestampMicrosecondType>().values();
            values.iter().map(|value| value.div_euclid(1000)).collect()
        }
        TimeUnit::Nanosecond => {
            let values = column.as_primitive::<TimestampNanosecondType>().values();
            values.iter().map(|value| value.div_euclid(1_000_000)).collect()
        }
    })
}
