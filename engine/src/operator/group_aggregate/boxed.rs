//! Any other function: one accumulator of DataFusion's per group.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, UInt32Array, UInt64Array, new_empty_array};
use arrow::buffer::NullBuffer;
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, UInt64Type};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Accumulator;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::counts::known;
use super::rolling::{Rolling, Rows, cannot_take_back, field, keep};
use crate::data::{EngineError, Result};
use crate::operator::aggregate::Input;
use crate::operator::keyed::{Frozen, to_type};

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
    /// The function says that a value which is taken back is not there after it has taken back those that are. So it is in a group
    /// that was forgotten and came anew.
    forgives: bool,
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
            forgives: matches!(function.fun().name(), "median" | "percentile_cont"),
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
        if end > middle
            && let Err(error) = accumulator.retract_batch(&slice(middle, end))
            && !self.forgives
        {
            return Err(error.into());
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

impl Boxed {
    /// The state of a group. It may take an accumulator apart to ask for it: one that is made of it takes its place.
    fn state_of(&mut self, group: usize, columns: usize) -> Result<Option<Vec<ScalarValue>>> {
        let Some(mut accumulator) = self.groups[group].accumulator.take() else {
            return Ok(None);
        };
        let values = accumulator.state()?;
        if values.len() != columns {
            return Err(EngineError::Plan(format!(
                "{} cannot be part of a checkpoint: its state has {} columns, but it says that it has {columns}; use \
                 another function, or run the program without checkpoints",
                self.function.name(),
                values.len()
            )));
        }
        let arrays = values.iter().map(|value| Ok(value.to_array_of_size(1)?));
        let mut same = self.create()?;
        same.merge_batch(&arrays.collect::<Result<Vec<_>>>()?)?;
        let state = &mut self.groups[group];
        let result = state.result.as_ref().map_or(0, ScalarValue::size);
        self.bytes -= state.bytes;
        state.bytes = same.size() + result;
        self.bytes += state.bytes;
        state.accumulator = Some(same);
        Ok(Some(values))
    }
}

/// A column of these values.
fn column_of(values: Vec<ScalarValue>, data_type: &DataType) -> Result<ArrayRef> {
    if values.is_empty() {
        return Ok(new_empty_array(data_type));
    }
    to_type(ScalarValue::iter_to_array(values)?, data_type)
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

    fn fields(&self) -> Result<Vec<Field>> {
        let of_state = self.function.state_fields()?.into_iter().enumerate();
        let of_state = of_state.map(|(at, of)| field(&format!("state_{}", at + 1), of.data_type().clone()));
        let own = [
            field("rows", DataType::UInt64),
            field("result", self.function.field().data_type().clone()),
        ];
        Ok(own.into_iter().chain(of_state).collect())
    }

    fn freeze(&mut self, groups: &[u32]) -> Result<Frozen> {
        let types: Vec<DataType> = self.fields()?.iter().map(|field| field.data_type().clone()).collect();
        let nulls = types[2..].iter().map(|of| Ok(ScalarValue::try_from(of)?));
        let nulls: Vec<ScalarValue> = nulls.collect::<Result<_>>()?;
        let mut rows = Vec::with_capacity(groups.len());
        let mut values: Vec<Vec<ScalarValue>> = vec![Vec::with_capacity(groups.len()); types.len() - 1];
        for group in groups {
            let group = *group as usize;
            let state = self.state_of(group, nulls.len())?;
            rows.push(state.as_ref().map(|_| self.groups[group].rows));
            values[0].push(self.groups[group].result.as_ref().unwrap_or(&self.empty).clone());
            for (column, value) in values[1..].iter_mut().zip(state.unwrap_or_else(|| nulls.clone())) {
                column.push(value);
            }
        }
        let mut columns: Vec<ArrayRef> = vec![Arc::new(UInt64Array::from(rows))];
        for (values, data_type) in values.into_iter().zip(&types[1..]) {
            columns.push(column_of(values, data_type)?);
        }
        let bytes = columns.iter().map(|column| column.get_array_memory_size()).sum();
        Ok(Frozen::new(bytes, move |positions| {
            let rows = UInt32Array::from(positions.to_vec());
            columns.iter().map(|column| Ok(take(column, &rows, None)?)).collect()
        }))
    }

    fn thaw(&mut self, groups: &[usize], columns: &[ArrayRef]) -> Result<()> {
        let rows = columns[0].as_primitive::<UInt64Type>();
        for ((row, group), rows) in groups.iter().enumerate().zip(rows) {
            let Some(rows) = rows else { continue };
            let mut accumulator = self.create()?;
            let state: Vec<ArrayRef> = columns[2..].iter().map(|column| column.slice(row, 1)).collect();
            accumulator.merge_batch(&state)?;
            let result = ScalarValue::try_from_array(&columns[1], row)?;
            let bytes = accumulator.size() + result.size();
            self.bytes += bytes;
            self.groups[*group] = State {
                accumulator: Some(accumulator),
                result: Some(result),
                rows,
                bytes,
            };
        }
        Ok(())
    }
}
