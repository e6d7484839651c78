//! The running table: the sum over the slices of the present window, of functions whose states can be subtracted.
//!
//! A window that slides takes in the new slice and takes out the one that it has left behind: two passes over the groups
//! of one slice each, however many slices a window has. States are whole numbers or decimals that wrap around, so that
//! what has been added can be taken out without a trace.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowNativeTypeOp, ArrowPrimitiveType, AsArray, PrimitiveArray};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, Int64Type, UInt64Type};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::part::Part;
use crate::data::{EngineError, Result};

/// Sums of states by slot.
pub(super) struct Running {
    columns: Vec<Box<dyn Sums>>,
    /// How many parts hold the slot.
    holders: Vec<u32>,
    /// How many slots some part holds.
    live: usize,
    /// The window that the table is of: slices that end after the first and not after the second.
    pub(super) window: Option<(i64, i64)>,
}

/// Whether all states of the function are sums that can be subtracted exactly.
pub(super) fn is_invertible(function: &AggregateFunctionExpr) -> bool {
    let simple = !function.is_distinct() && function.order_bys().is_empty();
    let known = matches!(function.fun().name(), "count" | "sum" | "avg");
    let states = function.state_fields().unwrap_or_default();
    simple
        && known
        && function.groups_accumulator_supported()
        && !states.is_empty()
        && states.iter().all(|state| sums_of(state.data_type()).is_some())
}

impl Running {
    /// For functions with these states.
    ///
    /// # Errors
    /// When a state cannot be subtracted.
    pub(super) fn new<'a>(states: impl Iterator<Item = &'a DataType>) -> Result<Self> {
        let columns = states.map(|state| {
            sums_of(state).ok_or_else(|| EngineError::Internal(format!("a state of {state} cannot be subtracted")))
        });
        Ok(Self {
            columns: columns.collect::<Result<_>>()?,
            holders: Vec::new(),
            live: 0,
            window: None,
        })
    }

    /// Counts a part in.
    pub(super) fn add(&mut self, part: &mut Part, slots_max: usize) {
        self.holders.resize(slots_max.max(self.holders.len()), 0);
        for slot in &part.slots {
            let holders = &mut self.holders[*slot as usize];
            self.live += usize::from(*holders == 0);
            *holders += 1;
        }
        for (sums, states) in self.columns.iter_mut().zip(&part.states) {
            sums.add(states, &part.slots, self.holders.len());
        }
        part.running = true;
    }

    /// Takes a part out.
    pub(super) fn subtract(&mut self, part: &mut Part) {
        for (sums, states) in self.columns.iter_mut().zip(&part.states) {
            sums.subtract(states, &part.slots);
        }
        for slot in &part.slots {
            let holders = &mut self.holders[*slot as usize];
            *holders -= 1;
            self.live -= usize::from(*holders == 0);
        }
        part.running = false;
        if self.live == 0 {
            self.clear();
        }
    }

    /// The slots that have rows, and their states.
    pub(super) fn states(&self) -> (Vec<u32>, Vec<ArrayRef>) {
        let slots: Vec<u32> = (0..)
            .zip(&self.holders)
            .filter(|(_, holders)| **holders > 0)
            .map(|(slot, _)| slot)
            .collect();
        let states = self.columns.iter().map(|sums| sums.gather(&slots, &self.holders));
        let states = states.collect();
        (slots, states)
    }

    /// Follows the keys to their new slots; those without are held by nobody.
    pub(super) fn renumber(&mut self, slots: &[u32]) {
        let kept: Vec<u32> = (0..self.holders.len() as u32)
            .filter(|slot| slots[*slot as usize] != u32::MAX)
            .collect();
        self.holders = kept.iter().map(|slot| self.holders[*slot as usize]).collect();
        for sums in &mut self.columns {
            sums.keep(&kept);
        }
    }

    fn clear(&mut self) {
        self.holders = Vec::new();
        for sums in &mut self.columns {
            sums.clear();
        }
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.holders.capacity() * size_of::<u32>() + self.columns.iter().map(|sums| sums.size()).sum::<usize>()
    }
}

/// One state column of all slots.
trait Sums: Send {
    fn add(&mut self, states: &ArrayRef, slots: &[u32], slots_max: usize);
    fn subtract(&mut self, states: &ArrayRef, slots: &[u32]);
    fn gather(&self, slots: &[u32], holders: &[u32]) -> ArrayRef;
    fn keep(&mut self, slots: &[u32]);
    fn clear(&mut self);
    fn size(&self) -> usize;
}

struct SumsOf<T: ArrowPrimitiveType> {
    data_type: DataType,
    values: Vec<T::Native>,
    /// How many parts hold the slot with NULL; no memory until the first. Where all do, the sum is NULL.
    nulls: Vec<u32>,
}

fn sums_of(data_type: &DataType) -> Option<Box<dyn Sums>> {
    fn of<T: ArrowPrimitiveType>(data_type: &DataType) -> Option<Box<dyn Sums>>
    where
        T::Native: ArrowNativeTypeOp,
    {
        Some(Box::new(SumsOf::<T> {
            data_type: data_type.clone(),
            values: Vec::new(),
            nulls: Vec::new(),
        }))
    }
    match data_type {
        DataType::Int64 => of::<Int64Type>(data_type),
        DataType::UInt64 => of::<UInt64Type>(data_type),
        DataType::Decimal32(..) => of::<Decimal32Type>(data_type),
        DataType::Decimal64(..) => of::<Decimal64Type>(data_type),
        DataType::Decimal128(..) => of::<Decimal128Type>(data_type),
        DataType::Decimal256(..) => of::<Decimal256Type>(data_type),
        _ => None,
    }
}

impl<T: ArrowPrimitiveType> Sums for SumsOf<T>
where
    T::Native: ArrowNativeTypeOp,
{
    fn add(&mut self, states: &ArrayRef, slots: &[u32], slots_max: usize) {
        self.values.resize(slots_max, T::Native::default());
        let states = states.as_primitive::<T>();
        match states.nulls().filter(|nulls| nulls.null_count() > 0) {
            None => {
                for (slot, value) in slots.iter().zip(states.values()) {
                    let sum = &mut self.values[*slot as usize];
                    *sum = sum.add_wrapping(*value);
                }
            }
            Some(nulls) => {
                self.nulls.resize(slots_max, 0);
                for ((slot, value), valid) in slots.iter().zip(states.values()).zip(nulls) {
                    if valid {
                        let sum = &mut self.values[*slot as usize];
                        *sum = sum.add_wrapping(*value);
                    } else {
                        self.nulls[*slot as usize] += 1;
                    }
                }
            }
        }
    }

    fn subtract(&mut self, states: &ArrayRef, slots: &[u32]) {
        let states = states.as_primitive::<T>();
        match states.nulls().filter(|nulls| nulls.null_count() > 0) {
            None => {
                for (slot, value) in slots.iter().zip(states.values()) {
                    let sum = &mut self.values[*slot as usize];
                    *sum = sum.sub_wrapping(*value);
                }
            }
            Some(nulls) => {
                for ((slot, value), valid) in slots.iter().zip(states.values()).zip(nulls) {
                    if valid {
                        let sum = &mut self.values[*slot as usize];
                        *sum = sum.sub_wrapping(*value);
                    } else {
                        self.nulls[*slot as usize] -= 1;
                    }
                }
            }
        }
    }

    fn gather(&self, slots: &[u32], holders: &[u32]) -> ArrayRef {
        let values: ScalarBuffer<T::Native> = slots.iter().map(|slot| self.values[*slot as usize]).collect();
        let known = |slot: &u32| {
            let nulls = self.nulls.get(*slot as usize).copied().unwrap_or(0);
            nulls < holders[*slot as usize]
        };
        let nulls = (!self.nulls.is_empty()).then(|| NullBuffer::from_iter(slots.iter().map(known)));
        let nulls = nulls.filter(|nulls| nulls.null_count() > 0);
        Arc::new(PrimitiveArray::<T>::new(values, nulls).with_data_type(self.data_type.clone()))
    }

    fn keep(&mut self, slots: &[u32]) {
        let value = |slot: &u32| self.values.get(*slot as usize).copied().unwrap_or_default();
        self.values = slots.iter().map(value).collect();
        if !self.nulls.is_empty() {
            let null = |slot: &u32| self.nulls.get(*slot as usize).copied().unwrap_or(0);
            self.nulls = slots.iter().map(null).collect();
        }
    }

    fn clear(&mut self) {
        self.values = Vec::new();
        self.nulls = Vec::new();
    }

    fn size(&self) -> usize {
        self.values.capacity() * size_of::<T::Native>() + self.nulls.capacity() * size_of::<u32>()
    }
}
