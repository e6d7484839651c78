//! Any aggregate function over sessions: one accumulator per session.

use std::sync::Arc;

use arrow::array::{ArrayRef, UInt32Array, new_empty_array};
use arrow::compute::take;
use arrow::datatypes::FieldRef;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Accumulator;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::functions::SlotFunction;
use crate::data::Result;
use crate::operator::aggregate::accumulators::Input;

/// One accumulator per slot that has rows.
pub(super) struct Generic {
    function: Arc<AggregateFunctionExpr>,
    slots: Vec<Option<Box<dyn Accumulator>>>,
    bytes: usize,
}

impl Generic {
    /// Of this function.
    pub(super) fn new(function: Arc<AggregateFunctionExpr>) -> Self {
        Self {
            function,
            slots: Vec::new(),
            bytes: 0,
        }
    }

    fn with(&mut self, slot: u32, work: impl FnOnce(&mut dyn Accumulator) -> Result<()>) -> Result<()> {
        let mut accumulator = self.out_of(slot)?;
        work(accumulator.as_mut())?;
        self.bytes += accumulator.size();
        self.slots[slot as usize] = Some(accumulator);
        Ok(())
    }

    fn out_of(&mut self, slot: u32) -> Result<Box<dyn Accumulator>> {
        match self.slots[slot as usize].take() {
            Some(accumulator) => {
                self.bytes = self.bytes.saturating_sub(accumulator.size());
                Ok(accumulator)
            }
            None => Ok(self.function.create_accumulator()?),
        }
    }
}

impl SlotFunction for Generic {
    fn grow(&mut self, slots: usize) {
        self.slots.resize_with(slots, || None);
    }

    fn update(&mut self, input: &Input, slots: &[u32]) -> Result<()> {
        let counts = |row: usize| input.filter.as_ref().is_none_or(|filter| filter.value(row));
        let mut rows: Vec<u32> = (0..slots.len() as u32).filter(|row| counts(*row as usize)).collect();
        // Stable: functions may depend on the order of their rows.
        rows.sort_by_key(|row| slots[*row as usize]);
        let order = UInt32Array::from(rows);
        let sorted = input.values.iter().map(|column| take(column, &order, None));
        let sorted = sorted.collect::<std::result::Result<Vec<_>, _>>()?;
        let mut start = 0;
        for rows in order.values().chunk_by(|a, b| slots[*a as usize] == slots[*b as usize]) {
            let values: Vec<ArrayRef> = sorted.iter().map(|column| column.slice(start, rows.len())).collect();
            self.with(slots[rows[0] as usize], |accumulator| {
                Ok(accumulator.update_batch(&values)?)
            })?;
            start += rows.len();
        }
        Ok(())
    }

    fn merge(&mut self, into: u32, from: u32) -> Result<()> {
        if self.slots[from as usize].is_none() {
            return Ok(());
        }
        let mut gone = self.out_of(from)?;
        let state = gone.state()?;
        let state = state.iter().map(|value| value.to_array());
        let state = state.collect::<std::result::Result<Vec<_>, _>>()?;
        self.with(into, |accumulator| Ok(accumulator.merge_batch(&state)?))
    }

    fn take(&mut self, slots: &[u32]) -> Result<ArrayRef> {
        let mut results = Vec::with_capacity(slots.len());
        for slot in slots {
            results.push(self.out_of(*slot)?.evaluate()?);
        }
        Ok(ScalarValue::iter_to_array(results)?)
    }

    fn state_fields(&self) -> Result<Vec<FieldRef>> {
        Ok(self.function.state_fields()?)
    }

    fn states(&mut self, slots: &[u32]) -> Result<Vec<ArrayRef>> {
        let fields = self.function.state_fields()?;
        let mut columns: Vec<Vec<ScalarValue>> = fields.iter().map(|_| Vec::with_capacity(slots.len())).collect();
        for slot in slots {
            // An accumulator that has told its state is spent: another takes it up.
            let state = self.out_of(*slot)?.state()?;
            let arrays = state.iter().map(|value| value.to_array());
            let arrays = arrays.collect::<std::result::Result<Vec<_>, _>>()?;
            self.with(*slot, |accumulator| Ok(accumulator.merge_batch(&arrays)?))?;
            for (column, value) in columns.iter_mut().zip(state) {
                column.push(value);
            }
        }
        let columns = columns.into_iter().zip(&fields);
        columns
            .map(|(column, field)| match column.is_empty() {
                true => Ok(new_empty_array(field.data_type())),
                false => Ok(ScalarValue::iter_to_array(column)?),
            })
            .collect()
    }

    fn restore(&mut self, slots: &[u32], states: &[ArrayRef]) -> Result<()> {
        for (row, slot) in slots.iter().enumerate() {
            let state: Vec<ArrayRef> = states.iter().map(|column| column.slice(row, 1)).collect();
            self.with(*slot, |accumulator| Ok(accumulator.merge_batch(&state)?))?;
        }
        Ok(())
    }

    fn clear(&mut self) {
        (self.slots, self.bytes) = (Vec::new(), 0);
    }

    fn size(&self) -> usize {
        self.bytes + self.slots.capacity() * size_of::<Option<Box<dyn Accumulator>>>()
    }
}
