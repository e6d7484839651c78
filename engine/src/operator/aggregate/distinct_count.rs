//! COUNT(DISTINCT) of strings and binaries over groups: all pairs of group and value in one table.
//!
//! DataFusion's way is a hash set for each group, of 30 KB even for one value, of which it reports next to nothing.

use std::mem::size_of;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, ListArray, UInt32Array};
use arrow::buffer::{NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::compute::{and, filter, prep_null_mask_filter, take};
use arrow::datatypes::{DataType, Field, FieldRef};
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::logical_expr::{EmitTo, GroupsAccumulator};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::group_table::GroupTable;
use crate::data::{EngineError, Result};

/// Counts the distinct values of each group.
pub(super) struct DistinctCount {
    value_type: DataType,
    /// Keys are pairs of group and value.
    pairs: GroupTable,
    /// The group of each pair.
    pair_groups: Vec<u32>,
    counts: Vec<i64>,
    /// Groups that have been emitted: the table's groups are numbered from the first of all.
    gone: usize,
    numbers: Vec<usize>,
    leaving: Option<Leaving>,
}

/// The values in the order of their groups, once the first states are asked for.
struct Leaving {
    values: ArrayRef,
    next: usize,
}

impl DistinctCount {
    /// For this function, if it is one of those.
    ///
    /// # Errors
    /// When the function cannot name its states.
    pub(super) fn for_function(function: &AggregateFunctionExpr) -> Result<Option<Self>> {
        if !function.is_distinct() || function.fun().name() != "count" || function.expressions().len() != 1 {
            return Ok(None);
        }
        match function.state_fields()?.first().map(|state| state.data_type()) {
            Some(DataType::List(item)) if is_bytes(item.data_type()) => Self::new(item.data_type().clone()).map(Some),
            _ => Ok(None),
        }
    }

    fn new(value_type: DataType) -> Result<Self> {
        Ok(Self {
            pairs: GroupTable::new(vec![DataType::UInt32, value_type.clone()])?,
            value_type,
            pair_groups: Vec::new(),
            counts: Vec::new(),
            gone: 0,
            numbers: Vec::new(),
            leaving: None,
        })
    }

    /// Takes values, none of them NULL, with the groups that they belong to.
    fn add(&mut self, groups: Vec<u32>, values: ArrayRef, total: usize) -> Result<()> {
        if self.leaving.is_some() {
            return Err(EngineError::Internal(
                "values come for states that have been taken".into(),
            ));
        }
        self.counts.resize(total, 0);
        if groups.is_empty() {
            return Ok(());
        }
        let groups: ArrayRef = Arc::new(UInt32Array::from(groups));
        let keys = [groups, values];
        if !self.pairs.intern(&keys, &mut self.numbers)? {
            self.pairs.intern_wider(&keys, &mut self.numbers)?;
        }
        let groups = keys[0].as_primitive::<arrow::datatypes::UInt32Type>().values();
        for (number, group) in self.numbers.iter().zip(groups) {
            // Pairs are numbered in the order of their first appearance.
            if *number == self.pair_groups.len() {
                self.pair_groups.push(*group);
                self.counts[*group as usize - self.gone] += 1;
            }
        }
        Ok(())
    }

    fn absolute(&self, group: usize) -> u32 {
        (group + self.gone) as u32
    }

    fn take_counts(&mut self, emit: EmitTo) -> Vec<i64> {
        let counts = emit.take_needed(&mut self.counts);
        self.gone += counts.len();
        counts
    }

    fn leaving(&mut self) -> Result<&mut Leaving> {
        let leaving = match self.leaving.take() {
            Some(leaving) => leaving,
            None => self.begin_to_leave()?,
        };
        Ok(self.leaving.insert(leaving))
    }

    /// Sorts the values by group and lets go of the table.
    fn begin_to_leave(&mut self) -> Result<Leaving> {
        let mut places = Vec::with_capacity(self.counts.len());
        let mut place = 0_u32;
        for count in &self.counts {
            places.push(place);
            place += *count as u32;
        }
        let mut order = vec![u32::MAX; place as usize];
        for (pair, group) in (0_u32..).zip(&self.pair_groups) {
            // Pairs of groups that have gone before stay in the table.
            if let Some(place) = (*group as usize).checked_sub(self.gone).map(|group| &mut places[group]) {
                order[*place as usize] = pair;
                *place += 1;
            }
        }
        let keys = self.pairs.emit_keys(0..self.pairs.len())?;
        self.pairs.clear()?;
        self.pair_groups = Vec::new();
        Ok(Leaving {
            values: take(&keys[1], &UInt32Array::from(order), None)?,
            next: 0,
        })
    }

    fn item(&self) -> FieldRef {
        Arc::new(Field::new_list_field(self.value_type.clone(), true))
    }

    fn update(
        &mut self,
        values: &ArrayRef,
        groups: &[usize],
        counted: Option<&BooleanArray>,
        total: usize,
    ) -> Result<()> {
        let mask = known(values, counted)?;
        let members = groups.iter().zip(mask.values().iter());
        let members = members
            .filter(|(_, counts)| *counts)
            .map(|(group, _)| self.absolute(*group));
        self.add(members.collect(), filter(values, &mask)?, total)
    }

    fn merge(&mut self, states: &ArrayRef, groups: &[usize], total: usize) -> Result<()> {
        let lists = states.as_list::<i32>();
        let mut members = Vec::new();
        for (group, length) in groups.iter().zip(lists.offsets().lengths()) {
            members.extend(std::iter::repeat_n(self.absolute(*group), length));
        }
        let start = lists.offsets().first().map_or(0, |start| *start as usize);
        self.add(members, lists.values().slice(start, groups_len(lists)), total)
    }

    fn take_state(&mut self, emit: EmitTo) -> Result<ArrayRef> {
        let start = self.leaving()?.next;
        let counts = self.take_counts(emit);
        let item = self.item();
        let leaving = self.leaving()?;
        let offsets = OffsetBuffer::from_lengths(counts.iter().map(|count| *count as usize));
        let length = counts.iter().sum::<i64>() as usize;
        leaving.next = start + length;
        let values = leaving.values.slice(start, length);
        if self.counts.is_empty() {
            *self = Self::new(self.value_type.clone())?;
        }
        Ok(Arc::new(ListArray::try_new(item, offsets, values, None)?))
    }
}

/// How many values the rows of `lists` have.
fn groups_len(lists: &ListArray) -> usize {
    lists.offsets().lengths().sum()
}

/// The rows that count: not NULL, and not filtered out.
fn known(values: &ArrayRef, counted: Option<&BooleanArray>) -> Result<BooleanArray> {
    // NULLs may be among the values of a dictionary.
    let nulls = values.logical_nulls();
    let valid = nulls.map_or_else(
        || BooleanArray::from(vec![true; values.len()]),
        |nulls: NullBuffer| BooleanArray::new(nulls.into_inner(), None),
    );
    Ok(match counted {
        Some(counted) if counted.null_count() > 0 => and(&valid, &prep_null_mask_filter(counted))?,
        Some(counted) => and(&valid, counted)?,
        None => valid,
    })
}

fn is_bytes(data_type: &DataType) -> bool {
    matches!(
        data_type,
        DataType::Utf8
            | DataType::LargeUtf8
            | DataType::Utf8View
            | DataType::Binary
            | DataType::LargeBinary
            | DataType::BinaryView
    )
}

fn external(error: EngineError) -> DataFusionError {
    match error {
        EngineError::DataFusion(error) => error,
        other => DataFusionError::External(Box::new(other)),
    }
}

impl GroupsAccumulator for DistinctCount {
    fn update_batch(
        &mut self,
        values: &[ArrayRef],
        groups: &[usize],
        counted: Option<&BooleanArray>,
        total: usize,
    ) -> DataFusionResult<()> {
        self.update(&values[0], groups, counted, total).map_err(external)
    }

    fn merge_batch(&mut self, states: &[ArrayRef], groups: &[usize], total: usize) -> DataFusionResult<()> {
        self.merge(&states[0], groups, total).map_err(external)
    }

    fn evaluate(&mut self, emit: EmitTo) -> DataFusionResult<ArrayRef> {
        let counts = self.take_counts(emit);
        if self.counts.is_empty() {
            *self = Self::new(self.value_type.clone()).map_err(external)?;
        }
        Ok(Arc::new(Int64Array::new(ScalarBuffer::from(counts), None)))
    }

    fn state(&mut self, emit: EmitTo) -> DataFusionResult<Vec<ArrayRef>> {
        Ok(vec![self.take_state(emit).map_err(external)?])
    }

    fn convert_to_state(&self, values: &[ArrayRef], counted: Option<&BooleanArray>) -> DataFusionResult<Vec<ArrayRef>> {
        let mask = known(&values[0], counted).map_err(external)?;
        let offsets = OffsetBuffer::from_lengths(mask.values().iter().map(usize::from));
        let kept = arrow::compute::cast(&filter(&values[0], &mask)?, &self.value_type)?;
        Ok(vec![Arc::new(ListArray::try_new(self.item(), offsets, kept, None)?)])
    }

    fn size(&self) -> usize {
        let leaving = self
            .leaving
            .as_ref()
            .map_or(0, |leaving| leaving.values.get_array_memory_size());
        // The values leave as a copy.
        self.pairs.size()
            + self.pairs.bytes_in(0..self.pairs.len())
            + self.pair_groups.capacity() * size_of::<u32>()
            + self.counts.capacity() * size_of::<i64>()
            + self.numbers.capacity() * size_of::<usize>()
            + leaving
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{StringArray, StringViewArray};
    use arrow::datatypes::Int64Type;

    use super::*;

    fn counts(array: ArrayRef) -> Vec<i64> {
        array.as_primitive::<Int64Type>().values().to_vec()
    }

    fn filled() -> DistinctCount {
        let mut accumulator = DistinctCount::new(DataType::Utf8View).unwrap();
        let long = "a string that does not fit into a view";
        let values: ArrayRef = Arc::new(StringViewArray::from(vec![
            Some("a"),
            None,
            Some(long),
            Some("a"),
            Some("b"),
        ]));
        accumulator
            .update_batch(&[Arc::clone(&values)], &[0, 0, 2, 0, 3], None, 4)
            .unwrap();
        let none = BooleanArray::from(vec![false; 5]);
        accumulator
            .update_batch(&[Arc::clone(&values)], &[4; 5], Some(&none), 5)
            .unwrap();
        let but_last = BooleanArray::from(vec![Some(true), Some(true), Some(true), None, Some(false)]);
        accumulator
            .update_batch(&[values], &[0, 1, 0, 2, 0], Some(&but_last), 5)
            .unwrap();
        accumulator
    }

    #[test]
    fn nulls_and_what_is_filtered_out_do_not_count() {
        assert_eq!(counts(filled().evaluate(EmitTo::All).unwrap()), [2, 0, 1, 1, 0]);
    }

    #[test]
    fn groups_leave_in_any_slices() {
        for slice in 1..=5 {
            let mut left = filled();
            let mut merged = DistinctCount::new(DataType::Utf8View).unwrap();
            let mut results = filled();
            let mut evaluated = Vec::new();
            for start in (0..5).step_by(slice) {
                let count = slice.min(5 - start);
                let emit = if start + count == 5 {
                    EmitTo::All
                } else {
                    EmitTo::First(count)
                };
                let groups: Vec<usize> = (start..start + count).collect();
                let states = left.state(emit).unwrap();
                merged.merge_batch(&states, &groups, 5).unwrap();
                merged.merge_batch(&states, &groups, 5).unwrap();
                evaluated.extend(counts(results.evaluate(emit).unwrap()));
            }
            assert_eq!(evaluated, [2, 0, 1, 1, 0]);
            assert_eq!(counts(merged.evaluate(EmitTo::All).unwrap()), evaluated);
        }
    }

    #[test]
    fn results_leave_while_values_still_come() {
        let mut accumulator = filled();
        assert_eq!(counts(accumulator.evaluate(EmitTo::First(2)).unwrap()), [2, 0]);
        let values: ArrayRef = Arc::new(StringArray::from(vec!["a", "b", "a"]));
        accumulator.update_batch(&[values], &[0, 1, 3], None, 4).unwrap();
        assert_eq!(counts(accumulator.evaluate(EmitTo::All).unwrap()), [2, 1, 0, 1]);
    }

    #[test]
    fn rows_become_states_of_their_own() {
        let empty = DistinctCount::new(DataType::Utf8).unwrap();
        let values: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), None, Some("b")]));
        let states = empty.convert_to_state(&[values], None).unwrap();
        let mut accumulator = DistinctCount::new(DataType::Utf8).unwrap();
        accumulator.merge_batch(&[states[0].slice(1, 2)], &[0, 1], 2).unwrap();
        assert_eq!(counts(accumulator.evaluate(EmitTo::All).unwrap()), [0, 1]);
    }
}
