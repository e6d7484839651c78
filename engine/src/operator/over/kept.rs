//! What functions over frames keep, as columns of the tables of a checkpoint: how it leaves a function and comes back.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array, PrimitiveArray, UInt32Array};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Field, Int64Type, UInt32Type};

use super::fold::{Count, Fold, Folded, Native, OverFunction};
use super::keep::{Additive, Keep, Running, TwoStacks};
use crate::data::{EngineError, Result};

/// The columns of a function: one value per partition, and one per row in a frame that rows leave.
#[derive(Default)]
pub(super) struct KeptFields {
    pub(super) groups: Vec<Field>,
    pub(super) slots: Vec<Field>,
}

/// The values of a function at a barrier.
pub(super) trait FrozenFunction: Send + Sync {
    /// Of these partitions.
    ///
    /// # Errors
    /// When values do not make a column.
    fn groups(&self, groups: &[u32]) -> Result<Vec<ArrayRef>>;

    /// Of these slots.
    ///
    /// # Errors
    /// As for `groups`.
    fn slots(&self, slots: &[u32]) -> Result<Vec<ArrayRef>>;
}

/// How large the columns of a function are.
#[derive(Clone, Copy)]
pub(super) struct Room {
    pub(super) groups: usize,
    pub(super) slots: usize,
}

/// Rows that are in frames again, the older of a partition before the younger.
pub(super) struct Entered<'a> {
    pub(super) groups: &'a [usize],
    pub(super) slots: &'a [u32],
    /// Whether the row is the oldest of its partition.
    pub(super) is_first: &'a [bool],
}

/// A function whose values can leave it and come back.
pub(super) trait Kept {
    /// The columns.
    ///
    /// # Errors
    /// When the function cannot say what it keeps.
    fn fields(&self) -> Result<KeptFields>;

    /// The values now.
    ///
    /// # Errors
    /// When the function cannot hand them over.
    fn freeze(&mut self) -> Result<Arc<dyn FrozenFunction>>;

    /// Takes back the columns of these partitions.
    ///
    /// # Errors
    /// When the columns are not those of `fields`.
    fn restore_groups(&mut self, groups: &[usize], columns: &[ArrayRef], room: Room) -> Result<()>;

    /// Takes back the columns of these rows, after those of their partitions.
    ///
    /// # Errors
    /// As for `restore_groups`.
    fn restore_slots(&mut self, rows: &Entered, columns: &[ArrayRef], room: Room) -> Result<()>;
}

/// A function and its state.
pub(super) trait Function: OverFunction + Kept {}

impl<T: OverFunction + Kept> Function for T {}

/// How the totals of a [`Keep`] leave it and come back.
pub(super) trait KeptTotals<F: Fold>: Sized {
    /// Whether rows leave.
    const LEAVES: bool;
    /// The same values.
    fn copy(&self) -> Self;
    /// The total, and what else there is of a partition.
    fn group(&self, group: usize) -> (Native<F>, u32);
    /// The value of a slot.
    fn slot(&self, slot: usize) -> Native<F>;
    /// The reverse of `group`.
    fn restore_group(&mut self, group: usize, total: Native<F>, older: u32);
    /// The reverse of `slot`, from a partition's oldest on.
    fn restore_slot(&mut self, group: usize, slot: u32, is_first: bool, value: Native<F>);
}

impl<F: Fold> KeptTotals<F> for Running<F> {
    const LEAVES: bool = false;

    fn copy(&self) -> Self {
        Self(self.0.clone())
    }

    fn group(&self, group: usize) -> (Native<F>, u32) {
        (self.0.get(group).copied().unwrap_or(F::NEUTRAL), 0)
    }

    fn slot(&self, _slot: usize) -> Native<F> {
        F::NEUTRAL
    }

    fn restore_group(&mut self, group: usize, total: Native<F>, _older: u32) {
        self.0[group] = total;
    }

    fn restore_slot(&mut self, _group: usize, _slot: u32, _is_first: bool, _value: Native<F>) {}
}

impl<F: Fold> KeptTotals<F> for Additive<F> {
    const LEAVES: bool = true;

    fn copy(&self) -> Self {
        Self {
            totals: self.totals.copy(),
            slots: self.slots.clone(),
        }
    }

    fn group(&self, group: usize) -> (Native<F>, u32) {
        self.totals.group(group)
    }

    fn slot(&self, slot: usize) -> Native<F> {
        self.slots[slot]
    }

    fn restore_group(&mut self, group: usize, total: Native<F>, older: u32) {
        self.totals.restore_group(group, total, older);
    }

    fn restore_slot(&mut self, _group: usize, slot: u32, _is_first: bool, value: Native<F>) {
        self.slots[slot as usize] = value;
    }
}

impl<F: Fold> KeptTotals<F> for TwoStacks<F> {
    const LEAVES: bool = true;

    fn copy(&self) -> Self {
        // The chains are those of the queue.
        Self {
            slots: self.slots.clone(),
            older: self.older.clone(),
            younger: self.younger.clone(),
            ..Self::default()
        }
    }

    fn group(&self, group: usize) -> (Native<F>, u32) {
        let younger = self.younger.get(group).copied().unwrap_or(F::NEUTRAL);
        (younger, self.older.get(group).copied().unwrap_or(0))
    }

    fn slot(&self, slot: usize) -> Native<F> {
        self.slots[slot]
    }

    fn restore_group(&mut self, group: usize, total: Native<F>, older: u32) {
        (self.younger[group], self.older[group]) = (total, older);
    }

    fn restore_slot(&mut self, group: usize, slot: u32, is_first: bool, value: Native<F>) {
        self.slots[slot as usize] = value;
        self.tails[group] = slot;
        if is_first {
            self.heads[group] = slot;
        }
    }
}

/// The values of a [`Folded`].
struct FrozenFold<F: Fold, K> {
    keep: K,
    counts: Vec<i64>,
    slots: Vec<bool>,
    state: DataType,
    fold: std::marker::PhantomData<fn() -> F>,
}

/// Totals may have more digits than values.
fn state_type(carrier: &DataType) -> DataType {
    match carrier {
        DataType::Decimal128(_, scale) => DataType::Decimal128(38, *scale),
        other => other.clone(),
    }
}

fn values_of<T: ArrowPrimitiveType>(values: impl Iterator<Item = T::Native>, state: &DataType) -> ArrayRef {
    Arc::new(PrimitiveArray::<T>::from_iter_values(values).with_data_type(state.clone()))
}

fn of_type<T: ArrowPrimitiveType>(columns: &[ArrayRef], index: usize) -> Result<&PrimitiveArray<T>> {
    let column = columns.get(index).and_then(|column| column.as_primitive_opt::<T>());
    column
        .filter(|column| column.null_count() == 0)
        .ok_or_else(|| EngineError::Internal("the state of an OVER function lacks a column".into()))
}

fn flags_of(columns: &[ArrayRef]) -> Result<&BooleanArray> {
    let column = columns.first().and_then(|column| column.as_boolean_opt());
    column.ok_or_else(|| EngineError::Internal("the state of an OVER function lacks a column".into()))
}

fn flags(slots: &[u32], values: &[bool]) -> ArrayRef {
    let flags = slots.iter().map(|slot| Some(values[*slot as usize]));
    Arc::new(flags.collect::<BooleanArray>())
}

fn counts(groups: &[u32], values: &[i64]) -> ArrayRef {
    let counts = groups
        .iter()
        .map(|group| values.get(*group as usize).copied().unwrap_or(0));
    Arc::new(Int64Array::from_iter_values(counts))
}

impl<F: Fold, K: Keep<F>> FrozenFunction for FrozenFold<F, K> {
    fn groups(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let totals = groups.iter().map(|group| self.keep.group(*group as usize).0);
        let older = groups.iter().map(|group| self.keep.group(*group as usize).1);
        Ok(vec![
            counts(groups, &self.counts),
            values_of::<F::Value>(totals, &self.state),
            Arc::new(UInt32Array::from_iter_values(older)),
        ])
    }

    fn slots(&self, slots: &[u32]) -> Result<Vec<ArrayRef>> {
        if !K::LEAVES {
            return Ok(Vec::new());
        }
        let values = slots.iter().map(|slot| self.keep.slot(*slot as usize));
        Ok(vec![
            flags(slots, &self.slots),
            values_of::<F::Value>(values, &self.state),
        ])
    }
}

impl<F: Fold, K: Keep<F>> Kept for Folded<F, K> {
    fn fields(&self) -> Result<KeptFields> {
        // Numbers stand for times: those of another unit are others.
        let unit = match self.result.is_temporal() && self.result != self.carrier {
            true => format!(" as {}", self.result),
            false => String::new(),
        };
        let state = state_type(&self.carrier);
        let slots = match K::LEAVES {
            true => vec![
                Field::new("counts", DataType::Boolean, false),
                Field::new(format!("value{unit}"), state.clone(), false),
            ],
            false => Vec::new(),
        };
        Ok(KeptFields {
            groups: vec![
                Field::new("count", DataType::Int64, false),
                Field::new(format!("total{unit}"), state, false),
                Field::new("older", DataType::UInt32, false),
            ],
            slots,
        })
    }

    fn freeze(&mut self) -> Result<Arc<dyn FrozenFunction>> {
        Ok(Arc::new(FrozenFold::<F, K> {
            keep: self.keep.copy(),
            counts: self.counts.clone(),
            slots: self.slots.clone(),
            state: state_type(&self.carrier),
            fold: std::marker::PhantomData,
        }))
    }

    fn restore_groups(&mut self, groups: &[usize], columns: &[ArrayRef], room: Room) -> Result<()> {
        self.fit(room);
        let counts = of_type::<Int64Type>(columns, 0)?;
        let totals = of_type::<F::Value>(columns, 1)?;
        let older = of_type::<UInt32Type>(columns, 2)?;
        for (row, group) in groups.iter().enumerate() {
            self.counts[*group] = counts.value(row);
            self.keep.restore_group(*group, totals.value(row), older.value(row));
        }
        Ok(())
    }

    fn restore_slots(&mut self, rows: &Entered, columns: &[ArrayRef], room: Room) -> Result<()> {
        self.fit(room);
        let (counts, values) = (flags_of(columns)?, of_type::<F::Value>(columns, 1)?);
        for (row, (group, slot)) in rows.groups.iter().zip(rows.slots).enumerate() {
            self.slots[*slot as usize] = counts.value(row);
            self.keep
                .restore_slot(*group, *slot, rows.is_first[row], values.value(row));
        }
        Ok(())
    }
}

/// The values of a [`Count`].
struct FrozenCount {
    totals: Vec<i64>,
    slots: Vec<bool>,
}

impl FrozenFunction for FrozenCount {
    fn groups(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(vec![counts(groups, &self.totals)])
    }

    fn slots(&self, slots: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(vec![flags(slots, &self.slots)])
    }
}

impl Kept for Count {
    fn fields(&self) -> Result<KeptFields> {
        Ok(KeptFields {
            groups: vec![Field::new("count", DataType::Int64, false)],
            slots: vec![Field::new("counts", DataType::Boolean, false)],
        })
    }

    fn freeze(&mut self) -> Result<Arc<dyn FrozenFunction>> {
        Ok(Arc::new(FrozenCount {
            totals: self.totals.clone(),
            slots: self.slots.clone(),
        }))
    }

    fn restore_groups(&mut self, groups: &[usize], columns: &[ArrayRef], room: Room) -> Result<()> {
        self.fit(room);
        let counts = of_type::<Int64Type>(columns, 0)?;
        for (group, count) in groups.iter().zip(counts.values()) {
            self.totals[*group] = *count;
        }
        Ok(())
    }

    fn restore_slots(&mut self, rows: &Entered, columns: &[ArrayRef], room: Room) -> Result<()> {
        self.fit(room);
        for (slot, counts) in rows.slots.iter().zip(flags_of(columns)?.values()) {
            self.slots[*slot as usize] = counts;
        }
        Ok(())
    }
}
