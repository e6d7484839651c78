//! Any other function: one accumulator of DataFusion's per group.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, UInt32Array};
use arrow::buffer::NullBuffer;
use arrow::compute::take;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Accumulator;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::counts::known;
use super::rolling::{Rolling, Rows, cannot_take_back, keep};
use crate::data::{EngineError, Result};
use crate::operator::aggregate::Input;

/// What a group has.
#[derive(Default)]
struct State {
    accumulator: Option<Box<dyn Accumulator>>,
    /// The result; `None` is that of no rows.
    result: Option<ScalarValue>,
    /// Rows that made a difference and have not been taken back.
    rows: u64,
    bytes: usize,
}

/// One accumulator per group.
pub(super) struct Boxed {
    function: Arc<AggregateFunctionExpr>,
    sliding: bool,
    /// Rows with NULL arguments make a difference.
    keeps_nulls: bool,
    /// The result of no rows.
    empty: ScalarValue,
    groups: Vec<State>,
    bytes: usize,
}

/// A row in the order in which rows are handed to accumulators: group by group, first those that come.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    group: usize,
    taken_back: bool,
    row: u32,
}

impl Boxed {
    /// The function, which must be able to take rows back from a changelog.
    ///
    /// # Errors
    /// When it is not, or refuses its arguments.
    pub(super) fn new(function: Arc<AggregateFunctionExpr>, changelog: bool) -> Result<Self> {
        let mut accumulator = function.create_accumulator()?;
        let mut sliding = false;
        if changelog {
            // Those take back what came first, whatever the row says: right for windows that slide, wrong here.
            let by_place = matches!(function.fun().name(), "array_agg" | "nth_value" | "string_agg")
                && !(function.is_distinct() && function.fun().name() == "array_agg");
            if by_place || !function.order_bys().is_empty() {
                return Err(cannot_take_back(&function));
            }
            if !accumulator.supports_retract_batch() {
                accumulator = function
                    .create_sliding_accumulator()
                    .map_err(|_| cannot_take_back(&function))?;
                sliding = true;
            }
        }
        let empty = accumulator.evaluate()?;
        Ok(Self {
            keeps_nulls: function.fun().name() == "array_agg",
            function,
            sliding,
            empty,
            groups: Vec::new(),
            bytes: 0,
        })
    }

    fn create(&self) -> Result<Box<dyn Accumulator>> {
        Ok(if self.sliding {
            self.function.create_sliding_accumulator()?
        } else {
            self.function.create_accumulator()?
        })
    }

    /// Hands a group its rows: those from `start` to `middle` come, those up to `end` are taken back.
    fn update_group(
        &mut self,
        group: usize,
        values: &[ArrayRef],
        known: Option<&NullBuffer>,
        [start, middle, end]: [usize; 3],
    ) -> Result<()> {
        let slice = |from: usize, to: usize| -> Vec<ArrayRef> {
            values.iter().map(|column| column.slice(from, to - from)).collect()
        };
        let counted = |from: usize, to: usize| match known {
            Some(known) if !self.keeps_nulls => (to - from - known.slice(from, to - from).null_count()) as u64,
            _ => (to - from) as u64,
        };
        let (come, go) = (counted(start, middle), counted(middle, end));
        let mut state = std::mem::take(&mut self.groups[group]);
        self.bytes -= state.bytes;
        let mut accumulator = match state.accumulator.take() {
            Some(accumulator) => accumulator,
            None => self.create()?,
        };
        if middle > start {
            accumulator.update_batch(&slice(start, middle))?;
        }
        if end > middle {
            accumulator.retract_batch(&slice(middle, end))?;
        }
        state.rows = (state.rows + come).saturating_sub(go);
        // Without rows there is nothing to round, and some functions would not say NULL.
        if state.rows == 0 && go > 0 {
            state = State::default();
        } else {
            let result = accumulator.evaluate()?;
            state.bytes = accumulator.size() + result.size();
            state.result = Some(result);
            state.accumulator = Some(accumulator);
        }
        self.bytes += state.bytes;
        self.groups[group] = state;
        Ok(())
    }
}

impl Rolling for Boxed {
    fn grow(&mut self, groups: usize) -> Result<()> {
        self.groups.resize_with(groups, State::default);
        Ok(())
    }

    fn update(&mut self, input: &Input, rows: &Rows<'_>) -> Result<()> {
        let mut places = Vec::with_capacity(rows.groups.len());
        rows.each(input.filter.as_ref(), None, |row, group, sign| {
            places.push(Place {
                group,
                taken_back: sign < 0,
                row: row as u32,
            });
        });
        places.sort_unstable();
        let order: UInt32Array = places.iter().map(|place| place.row).collect();
        let values = input.values.iter().map(|column| Ok(take(column, &order, None)?));
        let values: Vec<ArrayRef> = values.collect::<Result<_>>()?;
        let known = known(&values);
        let mut start = 0;
        for part in places.chunk_by(|a, b| a.group == b.group) {
            let middle = start + part.partition_point(|place| !place.taken_back);
            let end = start + part.len();
            self.update_group(part[0].group, &values, known.as_ref(), [start, middle, end])?;
            start = end;
        }
        Ok(())
    }

    fn gather(&self, groups: &[usize]) -> Result<ArrayRef> {
        let results = groups
            .iter()
            .map(|group| self.groups[*group].result.as_ref().unwrap_or(&self.empty).clone());
        ScalarValue::iter_to_array(results).map_err(EngineError::from)
    }

    fn forget(&mut self, groups: &[usize]) {
        for group in groups {
            let old = std::mem::take(&mut self.groups[*group]);
            self.bytes -= old.bytes;
        }
    }

    fn compact(&mut self, kept: &[usize]) -> Result<()> {
        keep(&mut self.groups, kept);
        Ok(())
    }

    fn size(&self) -> usize {
        self.groups.capacity() * size_of::<State>() + self.bytes
    }
}
