//! Aggregate functions over sessions: their states lie in vectors by slot, slots are used again, two sessions become one.
//!
//! DataFusion's grouped accumulators cannot give up single groups. Counts, sums, extremes and averages of numbers have
//! vectors of their own here; any other function is one accumulator per session ([`super::generic`]).

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowNativeTypeOp, ArrowPrimitiveType, AsArray, BooleanArray, PrimitiveArray};
use arrow::array::{Float64Array, Int64Array, UInt64Array, downcast_primitive};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Decimal128Type, Field, FieldRef, Float64Type, Int64Type, UInt64Type};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::generic::Generic;
use crate::data::Result;
use crate::operator::aggregate::accumulators::Input;
use crate::plan::Aggregates;

/// A function's states by slot.
pub(super) trait SlotFunction: Send {
    /// Makes room for so many slots.
    fn grow(&mut self, slots: usize);

    /// Takes rows, each with its slot.
    ///
    /// # Errors
    /// When the function fails.
    fn update(&mut self, input: &Input, slots: &[u32]) -> Result<()>;

    /// Adds the state of one slot to another; the slot is then as new.
    ///
    /// # Errors
    /// When the function fails.
    fn merge(&mut self, into: u32, from: u32) -> Result<()>;

    /// The results of these slots, which are then as new.
    ///
    /// # Errors
    /// When the function fails.
    fn take(&mut self, slots: &[u32]) -> Result<ArrayRef>;

    /// The columns that a state consists of.
    ///
    /// # Errors
    /// When the function cannot tell.
    fn state_fields(&self) -> Result<Vec<FieldRef>>;

    /// The states of these slots, which stay as they are.
    ///
    /// # Errors
    /// When the function fails.
    fn states(&mut self, slots: &[u32]) -> Result<Vec<ArrayRef>>;

    /// Gives these slots, which are as new, the states that `states` told.
    ///
    /// # Errors
    /// When the function fails.
    fn restore(&mut self, slots: &[u32], states: &[ArrayRef]) -> Result<()>;

    /// Forgets all.
    fn clear(&mut self);

    /// Bytes held.
    fn size(&self) -> usize;
}

/// The functions of an aggregation.
///
/// # Errors
/// When a function's arguments have no type.
pub(super) fn functions_of(aggregates: &Aggregates) -> Result<Vec<Box<dyn SlotFunction>>> {
    let of = |function: &Arc<AggregateFunctionExpr>| -> Result<Box<dyn SlotFunction>> {
        let expressions = function.expressions();
        let simple = !function.is_distinct() && function.order_bys().is_empty();
        if let ([argument], true) = (expressions.as_slice(), simple) {
            let argument = argument.data_type(&aggregates.input)?;
            if let Some(own) = own(function.fun().name(), &argument, function.field().data_type()) {
                return Ok(own);
            }
        }
        Ok(Box::new(Generic::new(Arc::clone(function))))
    };
    aggregates.functions.iter().map(of).collect()
}

fn own(name: &str, argument: &DataType, result: &DataType) -> Option<Box<dyn SlotFunction>> {
    match (name, argument, result) {
        ("count", _, DataType::Int64) => Some(Box::new(Count::default())),
        ("sum", DataType::Int64, DataType::Int64) => Some(Box::new(Sum::<Int64Type>::new(result))),
        ("sum", DataType::UInt64, DataType::UInt64) => Some(Box::new(Sum::<UInt64Type>::new(result))),
        ("sum", DataType::Float64, DataType::Float64) => Some(Box::new(Sum::<Float64Type>::new(result))),
        ("sum", DataType::Decimal128(_, of), DataType::Decimal128(_, scale)) if of == scale => {
            Some(Box::new(Sum::<Decimal128Type>::new(result)))
        }
        ("avg", DataType::Float64, DataType::Float64) => Some(Box::new(Average::default())),
        ("min" | "max", argument, result) if argument == result => extreme(name == "max", result),
        _ => None,
    }
}

fn extreme(largest: bool, data_type: &DataType) -> Option<Box<dyn SlotFunction>> {
    macro_rules! extreme_of {
        ($t:ty) => {
            Some(Box::new(Extreme::<$t> {
                data_type: data_type.clone(),
                largest,
                values: Vec::new(),
                known: Vec::new(),
            }))
        };
    }
    downcast_primitive! {
        data_type => (extreme_of),
        _ => None
    }
}

/// Calls `f` with the slot and value of each row that counts.
#[inline]
fn each<T: ArrowPrimitiveType>(input: &Input, slots: &[u32], mut f: impl FnMut(usize, T::Native)) {
    let array: &PrimitiveArray<T> = input.values[0].as_primitive();
    let rows = slots.iter().zip(array.values());
    match counted(array, input.filter.as_ref()) {
        None => rows.for_each(|(slot, value)| f(*slot as usize, *value)),
        Some(counted) => {
            for ((slot, value), counts) in rows.zip(&counted) {
                if counts {
                    f(*slot as usize, *value);
                }
            }
        }
    }
}

/// Which rows are neither NULL nor filtered out; `None` when that is all.
fn counted(array: &dyn Array, filter: Option<&BooleanArray>) -> Option<NullBuffer> {
    let nulls = array.logical_nulls().filter(|nulls| nulls.null_count() > 0);
    let filter = filter.map(|filter| NullBuffer::new(filter.values().clone()));
    NullBuffer::union(nulls.as_ref(), filter.as_ref())
}

fn nulls_of(known: impl Iterator<Item = bool>) -> Option<NullBuffer> {
    Some(NullBuffer::from_iter(known)).filter(|nulls| nulls.null_count() > 0)
}

fn state_field(name: &str, data_type: &DataType) -> FieldRef {
    Arc::new(Field::new(name, data_type.clone(), true))
}

/// The values of these slots; NULL where none is known.
fn values_at<T: ArrowPrimitiveType>(
    values: &[T::Native],
    known: &[bool],
    slots: &[u32],
    data_type: &DataType,
) -> ArrayRef {
    let nulls = nulls_of(slots.iter().map(|slot| known[*slot as usize]));
    let values: ScalarBuffer<T::Native> = slots.iter().map(|slot| values[*slot as usize]).collect();
    Arc::new(PrimitiveArray::<T>::new(values, nulls).with_data_type(data_type.clone()))
}

/// Gives slots the values that `values_at` told.
fn put_values<T: ArrowPrimitiveType>(values: &mut [T::Native], known: &mut [bool], slots: &[u32], states: &ArrayRef) {
    let states: &PrimitiveArray<T> = states.as_primitive();
    for (row, slot) in slots.iter().enumerate() {
        if states.is_valid(row) {
            values[*slot as usize] = states.value(row);
            known[*slot as usize] = true;
        }
    }
}

#[derive(Default)]
struct Count {
    counts: Vec<i64>,
}

impl SlotFunction for Count {
    fn grow(&mut self, slots: usize) {
        self.counts.resize(slots, 0);
    }

    fn update(&mut self, input: &Input, slots: &[u32]) -> Result<()> {
        match counted(&input.values[0], input.filter.as_ref()) {
            None => slots.iter().for_each(|slot| self.counts[*slot as usize] += 1),
            Some(counted) => {
                for (slot, counts) in slots.iter().zip(&counted) {
                    self.counts[*slot as usize] += i64::from(counts);
                }
            }
        }
        Ok(())
    }

    fn merge(&mut self, into: u32, from: u32) -> Result<()> {
        self.counts[into as usize] += std::mem::take(&mut self.counts[from as usize]);
        Ok(())
    }

    fn take(&mut self, slots: &[u32]) -> Result<ArrayRef> {
        let counts = slots
            .iter()
            .map(|slot| std::mem::take(&mut self.counts[*slot as usize]));
        Ok(Arc::new(Int64Array::from_iter_values(counts)))
    }

    fn state_fields(&self) -> Result<Vec<FieldRef>> {
        Ok(vec![state_field("count", &DataType::Int64)])
    }

    fn states(&mut self, slots: &[u32]) -> Result<Vec<ArrayRef>> {
        let counts = slots.iter().map(|slot| self.counts[*slot as usize]);
        Ok(vec![Arc::new(Int64Array::from_iter_values(counts))])
    }

    fn restore(&mut self, slots: &[u32], states: &[ArrayRef]) -> Result<()> {
        let counts: &Int64Array = states[0].as_primitive();
        for (slot, count) in slots.iter().zip(counts) {
            self.counts[*slot as usize] = count.unwrap_or(0);
        }
        Ok(())
    }

    fn clear(&mut self) {
        *self = Self::default();
    }

    fn size(&self) -> usize {
        self.counts.capacity() * size_of::<i64>()
    }
}

struct Sum<T: ArrowPrimitiveType> {
    data_type: DataType,
    sums: Vec<T::Native>,
    known: Vec<bool>,
}

impl<T: ArrowPrimitiveType> Sum<T> {
    fn new(data_type: &DataType) -> Self {
        Self {
            data_type: data_type.clone(),
            sums: Vec::new(),
            known: Vec::new(),
        }
    }
}

impl<T: ArrowPrimitiveType> SlotFunction for Sum<T>
where
    T::Native: ArrowNativeTypeOp,
{
    fn grow(&mut self, slots: usize) {
        self.sums.resize(slots, T::Native::default());
        self.known.resize(slots, false);
    }

    fn update(&mut self, input: &Input, slots: &[u32]) -> Result<()> {
        each::<T>(input, slots, |slot, value| {
            self.sums[slot] = self.sums[slot].add_wrapping(value);
            self.known[slot] = true;
        });
        Ok(())
    }

    fn merge(&mut self, into: u32, from: u32) -> Result<()> {
        let (into, from) = (into as usize, from as usize);
        self.sums[into] = self.sums[into].add_wrapping(std::mem::take(&mut self.sums[from]));
        self.known[into] |= std::mem::take(&mut self.known[from]);
        Ok(())
    }

    fn take(&mut self, slots: &[u32]) -> Result<ArrayRef> {
        let known = slots.iter().map(|slot| std::mem::take(&mut self.known[*slot as usize]));
        let nulls = nulls_of(known);
        let sums = slots.iter().map(|slot| std::mem::take(&mut self.sums[*slot as usize]));
        let sums: ScalarBuffer<T::Native> = sums.collect();
        let array = PrimitiveArray::<T>::new(sums, nulls);
        Ok(Arc::new(array.with_data_type(self.data_type.clone())))
    }

    fn state_fields(&self) -> Result<Vec<FieldRef>> {
        Ok(vec![state_field("sum", &self.data_type)])
    }

    fn states(&mut self, slots: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(vec![values_at::<T>(&self.sums, &self.known, slots, &self.data_type)])
    }

    fn restore(&mut self, slots: &[u32], states: &[ArrayRef]) -> Result<()> {
        put_values::<T>(&mut self.sums, &mut self.known, slots, &states[0]);
        Ok(())
    }

    fn clear(&mut self) {
        (self.sums, self.known) = (Vec::new(), Vec::new());
    }

    fn size(&self) -> usize {
        self.sums.capacity() * size_of::<T::Native>() + self.known.capacity()
    }
}

#[derive(Default)]
struct Average {
    sums: Vec<f64>,
    counts: Vec<u64>,
}

impl SlotFunction for Average {
    fn grow(&mut self, slots: usize) {
        self.sums.resize(slots, 0.0);
        self.counts.resize(slots, 0);
    }

    fn update(&mut self, input: &Input, slots: &[u32]) -> Result<()> {
        each::<Float64Type>(input, slots, |slot, value| {
            self.sums[slot] += value;
            self.counts[slot] += 1;
        });
        Ok(())
    }

    fn merge(&mut self, into: u32, from: u32) -> Result<()> {
        let (into, from) = (into as usize, from as usize);
        self.sums[into] += std::mem::take(&mut self.sums[from]);
        self.counts[into] += std::mem::take(&mut self.counts[from]);
        Ok(())
    }

    fn take(&mut self, slots: &[u32]) -> Result<ArrayRef> {
        let average = |slot: &u32| {
            let sum = std::mem::take(&mut self.sums[*slot as usize]);
            let count = std::mem::take(&mut self.counts[*slot as usize]);
            (count > 0).then(|| sum / count as f64)
        };
        Ok(Arc::new(slots.iter().map(average).collect::<Float64Array>()))
    }

    fn state_fields(&self) -> Result<Vec<FieldRef>> {
        Ok(vec![
            state_field("sum", &DataType::Float64),
            state_field("count", &DataType::UInt64),
        ])
    }

    fn states(&mut self, slots: &[u32]) -> Result<Vec<ArrayRef>> {
        let sums = slots.iter().map(|slot| self.sums[*slot as usize]);
        let counts = slots.iter().map(|slot| self.counts[*slot as usize]);
        Ok(vec![
            Arc::new(Float64Array::from_iter_values(sums)),
            Arc::new(UInt64Array::from_iter_values(counts)),
        ])
    }

    fn restore(&mut self, slots: &[u32], states: &[ArrayRef]) -> Result<()> {
        let (sums, counts): (&Float64Array, &UInt64Array) = (states[0].as_primitive(), states[1].as_primitive());
        for ((slot, sum), count) in slots.iter().zip(sums).zip(counts) {
            self.sums[*slot as usize] = sum.unwrap_or(0.0);
            self.counts[*slot as usize] = count.unwrap_or(0);
        }
        Ok(())
    }

    fn clear(&mut self) {
        *self = Self::default();
    }

    fn size(&self) -> usize {
        (self.sums.capacity() + self.counts.capacity()) * size_of::<f64>()
    }
}

/// The least or the largest value. NaN is larger than all numbers.
struct Extreme<T: ArrowPrimitiveType> {
    data_type: DataType,
    largest: bool,
    values: Vec<T::Native>,
    known: Vec<bool>,
}

impl<T: ArrowPrimitiveType> Extreme<T> {
    #[inline]
    fn take_in(&mut self, slot: usize, value: T::Native) {
        let present = self.values[slot];
        let better = if self.largest {
            value.is_gt(present)
        } else {
            value.is_lt(present)
        };
        if better || !self.known[slot] {
            self.values[slot] = value;
            self.known[slot] = true;
        }
    }
}

impl<T: ArrowPrimitiveType> SlotFunction for Extreme<T> {
    fn grow(&mut self, slots: usize) {
        self.values.resize(slots, T::Native::default());
        self.known.resize(slots, false);
    }

    fn update(&mut self, input: &Input, slots: &[u32]) -> Result<()> {
        each::<T>(input, slots, |slot, value| self.take_in(slot, value));
        Ok(())
    }

    fn merge(&mut self, into: u32, from: u32) -> Result<()> {
        if std::mem::take(&mut self.known[from as usize]) {
            self.take_in(into as usize, self.values[from as usize]);
        }
        Ok(())
    }

    fn take(&mut self, slots: &[u32]) -> Result<ArrayRef> {
        let known = slots.iter().map(|slot| std::mem::take(&mut self.known[*slot as usize]));
        let nulls = nulls_of(known);
        let values: ScalarBuffer<T::Native> = slots.iter().map(|slot| self.values[*slot as usize]).collect();
        let array = PrimitiveArray::<T>::new(values, nulls);
        Ok(Arc::new(array.with_data_type(self.data_type.clone())))
    }

    fn state_fields(&self) -> Result<Vec<FieldRef>> {
        Ok(vec![state_field("value", &self.data_type)])
    }

    fn states(&mut self, slots: &[u32]) -> Result<Vec<ArrayRef>> {
        Ok(vec![values_at::<T>(&self.values, &self.known, slots, &self.data_type)])
    }

    fn restore(&mut self, slots: &[u32], states: &[ArrayRef]) -> Result<()> {
        put_values::<T>(&mut self.values, &mut self.known, slots, &states[0]);
        Ok(())
    }

    fn clear(&mut self) {
        (self.values, self.known) = (Vec::new(), Vec::new());
    }

    fn size(&self) -> usize {
        self.values.capacity() * size_of::<T::Native>() + self.known.capacity()
    }
}

#[cfg(test)]
mod tests;
