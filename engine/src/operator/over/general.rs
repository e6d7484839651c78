//! Functions without code of their own here, through DataFusion's accumulators: one per partition. What leaves a frame
//! is retracted where the function can do that; otherwise the value is computed from the frame's rows each time.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, UInt32Array, new_empty_array};
use arrow::compute::{filter, take};
use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Accumulator;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::fold::{Input, OverFunction};
use super::steps::Steps;
use crate::data::Result;

/// How a function copes with what leaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Nothing leaves.
    Grow,
    /// It is retracted.
    Retract,
    /// All is computed anew.
    Recompute,
}

/// One partition.
#[derive(Default)]
pub(super) struct Partition {
    pub(super) accumulator: Option<Box<dyn Accumulator>>,
    /// The slots of the rows in the frame that count, to compute from.
    pub(super) rows: VecDeque<u32>,
    pub(super) bytes: usize,
}

/// A function of DataFusion over the frames of all partitions.
pub(super) struct General {
    pub(super) function: Arc<AggregateFunctionExpr>,
    pub(super) arguments: Vec<DataType>,
    result: DataType,
    pub(super) way: Way,
    pub(super) partitions: Vec<Partition>,
    /// Of each slot the arguments, if the row counts.
    pub(super) slots: Vec<Option<Box<[ScalarValue]>>>,
    /// Bytes of accumulators and arguments.
    pub(super) bytes: usize,
}

impl General {
    /// `function` of arguments of these types, its results cast to `result`, over frames that rows leave, or not.
    pub(super) fn new(
        function: Arc<AggregateFunctionExpr>,
        arguments: Vec<DataType>,
        result: DataType,
        rows_leave: bool,
    ) -> Self {
        let way = match rows_leave {
            false => Way::Grow,
            // There is no way to ask a function but to try.
            true if function.create_sliding_accumulator().is_ok() => Way::Retract,
            true => Way::Recompute,
        };
        Self {
            function,
            arguments,
            result,
            way,
            partitions: Vec::new(),
            slots: Vec::new(),
            bytes: 0,
        }
    }

    fn leave(&mut self, group: usize, slot: u32) -> Result<()> {
        let Some(arguments) = self.slots[slot as usize].take() else {
            return Ok(());
        };
        self.bytes -= arguments_bytes(&arguments);
        let partition = &mut self.partitions[group];
        match &mut partition.accumulator {
            Some(accumulator) if self.way == Way::Retract => {
                let arrays = arguments.iter().map(|argument| argument.to_array());
                accumulator.retract_batch(&arrays.collect::<datafusion::error::Result<Vec<_>>>()?)?;
            }
            _ => {
                partition.rows.pop_front();
            }
        }
        Ok(())
    }

    /// The rows `start..end` of the step come in.
    fn enter(
        &mut self,
        group: usize,
        values: &[ArrayRef],
        steps: &Steps,
        start: usize,
        end: usize,
        counted: Option<&[bool]>,
    ) -> Result<()> {
        let counts = |at: usize| counted.is_none_or(|counted| counted[at]);
        for at in start..end {
            let Some(slot) = steps.slots.get(at).map(|slot| *slot as usize) else {
                break;
            };
            self.slots[slot] = None;
            if counts(at) {
                let arguments = values.iter().map(|values| ScalarValue::try_from_array(values, at));
                let arguments = arguments.collect::<datafusion::error::Result<Box<[_]>>>()?;
                self.bytes += arguments_bytes(&arguments);
                self.slots[slot] = Some(arguments);
                if self.way == Way::Recompute {
                    self.partitions[group].rows.push_back(slot as u32);
                }
            }
        }
        if self.way == Way::Recompute || !(start..end).any(counts) {
            return Ok(());
        }
        let mut arrays: Vec<ArrayRef> = values.iter().map(|values| values.slice(start, end - start)).collect();
        if let Some(counted) = counted {
            let mask = BooleanArray::from(counted[start..end].to_vec());
            arrays = arrays
                .iter()
                .map(|array| filter(array, &mask))
                .collect::<std::result::Result<_, _>>()?;
        }
        self.accumulator(group)?.update_batch(&arrays)?;
        Ok(())
    }

    pub(super) fn accumulator(&mut self, group: usize) -> Result<&mut Box<dyn Accumulator>> {
        let function = &self.function;
        let way = self.way;
        let slot = &mut self.partitions[group].accumulator;
        match slot {
            Some(accumulator) => Ok(accumulator),
            None => Ok(slot.insert(create(function, way)?)),
        }
    }

    fn value(&mut self, group: usize) -> Result<ScalarValue> {
        if self.way != Way::Recompute {
            let value = self.accumulator(group)?.evaluate()?;
            let partition = &mut self.partitions[group];
            let bytes = partition
                .accumulator
                .as_ref()
                .map_or(0, |accumulator| accumulator.size());
            self.bytes = self.bytes + bytes - std::mem::replace(&mut partition.bytes, bytes);
            return Ok(value);
        }
        let mut accumulator = create(&self.function, self.way)?;
        let rows: Vec<&[ScalarValue]> = self.partitions[group]
            .rows
            .iter()
            .filter_map(|slot| self.slots[*slot as usize].as_deref())
            .collect();
        if let Some(first) = rows.first() {
            let columns =
                (0..first.len()).map(|column| ScalarValue::iter_to_array(rows.iter().map(|row| row[column].clone())));
            accumulator.update_batch(&columns.collect::<datafusion::error::Result<Vec<_>>>()?)?;
        }
        Ok(accumulator.evaluate()?)
    }
}

pub(super) fn create(function: &AggregateFunctionExpr, way: Way) -> Result<Box<dyn Accumulator>> {
    Ok(match way {
        Way::Retract => function.create_sliding_accumulator()?,
        Way::Grow | Way::Recompute => function.create_accumulator()?,
    })
}

pub(super) fn arguments_bytes(arguments: &[ScalarValue]) -> usize {
    arguments.iter().map(ScalarValue::size).sum()
}

impl OverFunction for General {
    fn run(&mut self, input: &Input, steps: &Steps, _next: &[u32]) -> Result<ArrayRef> {
        // In the order of the steps, so that a step's rows are side by side.
        let order = steps.order.as_ref().map(|order| UInt32Array::from(order.clone()));
        let values = input.values.iter().map(|values| match &order {
            Some(order) => take(values, order, None),
            None => Ok(Arc::clone(values)),
        });
        let values = values.collect::<std::result::Result<Vec<_>, _>>()?;
        let counted: Option<Vec<bool>> = input
            .filter
            .as_ref()
            .map(|filter| (0..steps.rows()).map(|at| filter.value(steps.row(at))).collect());
        self.partitions.resize_with(steps.groups_total, Partition::default);
        self.slots.resize(steps.slots_total, None);
        let mut results = vec![ScalarValue::Null; steps.rows()];
        let mut start = 0;
        for (step, group) in steps.groups.iter().enumerate() {
            let (group, end) = (*group as usize, steps.row_ends[step] as usize);
            for slot in steps.left_in(step) {
                self.leave(group, *slot)?;
            }
            if end > start {
                self.enter(group, &values, steps, start, end, counted.as_deref())?;
                let value = self.value(group)?;
                (start..end).for_each(|at| results[steps.row(at)] = value.clone());
            }
            start = end;
        }
        if results.is_empty() {
            return Ok(new_empty_array(&self.result));
        }
        let results = ScalarValue::iter_to_array(results)?;
        Ok(match results.data_type() == &self.result {
            true => results,
            false => arrow::compute::cast(&results, &self.result)?,
        })
    }

    fn forget(&mut self, groups: &[usize]) {
        for group in groups {
            if let Some(partition) = self.partitions.get_mut(*group) {
                self.bytes -= std::mem::take(partition).bytes;
            }
        }
    }

    fn retain(&mut self, kept: &[usize]) {
        let mut all = std::mem::take(&mut self.partitions);
        self.partitions = kept
            .iter()
            .filter_map(|group| all.get_mut(*group).map(std::mem::take))
            .collect();
        self.bytes -= all.iter().map(|partition| partition.bytes).sum::<usize>();
    }

    fn bytes(&self) -> usize {
        self.bytes
            + self.partitions.capacity() * size_of::<Partition>()
            + self.slots.capacity() * size_of::<Option<Box<[ScalarValue]>>>()
    }
}
