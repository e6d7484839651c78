//! COUNT, SUM, AVG, MIN and MAX over frames, value by value, without a call per row.
//!
//! A [`Fold`] says how two values make one. How the total of a frame is kept follows from it and from the frame:
//! - [`Running`]: nothing ever leaves;
//! - [`Additive`]: what leaves is subtracted: integers and decimals, whose arithmetic is exact;
//! - [`TwoStacks`]: everything else, e.g. MIN and sums of floats, where subtraction does not exist or leaves errors
//!   behind. The queue of a partition is seen as two stacks: of the older part every slot holds the total from itself to
//!   the end of that part, of the younger part there is one total. When the older part is used up, the younger becomes
//!   it. Two combinations a row (Tangwongsan, Hirzel, Schneider: Low-Latency Sliding-Window Aggregation in Worst-Case
//!   Constant Time, 2017, "Two-Stacks Lite").
//!
//! Rows that do not count (NULL, FILTER) are in the queue with the neutral value; how many count is kept beside, so that
//! a frame without any is NULL.

use std::marker::PhantomData;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowNativeTypeOp, ArrowPrimitiveType, AsArray, Int64Array, PrimitiveArray};
use arrow::buffer::{BooleanBuffer, NullBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Decimal128Type, DecimalType, Float64Type, i256};

use super::keep::Keep;
use super::kept::Room;
use super::steps::Steps;
use crate::data::{EngineError, Result};

/// What a function reads of a batch.
pub(super) struct Input {
    /// Its arguments.
    pub(super) values: Vec<ArrayRef>,
    /// The rows that its FILTER lets through; all when `None`.
    pub(super) filter: Option<BooleanBuffer>,
}

/// A function over the frames of all partitions.
pub(super) trait OverFunction: Send {
    /// Replays `steps`, whose rows `input` has; `next` are the queue's slots after each other. Gives a value per row.
    ///
    /// # Errors
    /// When the function fails (overflow).
    fn run(&mut self, input: &Input, steps: &Steps, next: &[u32]) -> Result<ArrayRef>;

    /// Forgets all of these partitions. Their queues are empty already.
    fn forget(&mut self, groups: &[usize]);

    /// Keeps these partitions only; they are numbered anew.
    fn retain(&mut self, kept: &[usize]);

    /// Bytes held.
    fn bytes(&self) -> usize;
}

/// Resizes a column of slots; the queue's shrink only when they are empty.
pub(super) fn fit<T: Copy>(column: &mut Vec<T>, len: usize, value: T) {
    let shrinks = len < column.len();
    column.resize(len, value);
    if shrinks {
        column.shrink_to(2 * len);
    }
}

pub(super) fn keep<T: Copy>(column: &mut Vec<T>, kept: &[usize]) {
    if !column.is_empty() {
        // Partitions that came after the last batch of this function have no place yet.
        *column = kept.iter().filter_map(|group| column.get(*group).copied()).collect();
    }
}

pub(super) fn vec_bytes<T>(column: &Vec<T>) -> usize {
    column.capacity() * size_of::<T>()
}

/// The rows whose arguments are there and whose filter lets them through; all when `None`.
fn counted(input: &Input) -> Option<BooleanBuffer> {
    let nulls = input.values.iter().filter_map(|values| values.logical_nulls());
    let valid = nulls
        .filter(|nulls| nulls.null_count() > 0)
        .map(|nulls| nulls.inner().clone());
    valid.chain(input.filter.clone()).reduce(|one, other| &one & &other)
}

/// COUNT.
#[derive(Default)]
pub(super) struct Count {
    pub(super) totals: Vec<i64>,
    pub(super) slots: Vec<bool>,
}

impl Count {
    pub(super) fn fit(&mut self, room: Room) {
        fit(&mut self.totals, room.groups, 0);
        fit(&mut self.slots, room.slots, false);
    }
}

impl OverFunction for Count {
    fn run(&mut self, input: &Input, steps: &Steps, _next: &[u32]) -> Result<ArrayRef> {
        let counted = counted(input);
        self.fit(steps.room());
        let mut results = vec![0; steps.rows()];
        let mut start = 0;
        for (step, group) in steps.groups.iter().enumerate() {
            let total = &mut self.totals[*group as usize];
            for slot in steps.left_in(step) {
                *total -= i64::from(self.slots[*slot as usize]);
            }
            let end = steps.row_ends[step] as usize;
            for at in start..end {
                let counts = counted.as_ref().is_none_or(|counted| counted.value(steps.row(at)));
                *total += i64::from(counts);
                if let Some(slot) = steps.slots.get(at) {
                    self.slots[*slot as usize] = counts;
                }
            }
            for at in start..end {
                results[steps.row(at)] = *total;
            }
            start = end;
        }
        Ok(Arc::new(Int64Array::from(results)))
    }

    fn forget(&mut self, groups: &[usize]) {
        for group in groups {
            if let Some(total) = self.totals.get_mut(*group) {
                *total = 0;
            }
        }
    }

    fn retain(&mut self, kept: &[usize]) {
        keep(&mut self.totals, kept);
    }

    fn bytes(&self) -> usize {
        vec_bytes(&self.totals) + vec_bytes(&self.slots)
    }
}

pub(super) type Native<F> = <<F as Fold>::Value as ArrowPrimitiveType>::Native;

/// How values make a result.
pub(super) trait Fold: Send + 'static {
    /// Of the values and totals.
    type Value: ArrowPrimitiveType;
    /// Combined with any value it gives that value.
    const NEUTRAL: Native<Self>;
    /// The total of two totals, the older first.
    fn combine(one: Native<Self>, other: Native<Self>) -> Native<Self>;
    /// The result of a total of `count` values, of which there is at least one.
    ///
    /// # Errors
    /// When it cannot be represented.
    fn finish(&self, total: Native<Self>, count: i64) -> Result<Native<Self>>;
}

/// A fold that can be undone.
pub(super) trait Undo: Fold {
    /// The total without a value that is part of it.
    fn without(total: Native<Self>, value: Native<Self>) -> Native<Self>;
}

/// SUM. Overflow wraps, as it does in batch.
pub(super) struct Sum<T>(PhantomData<fn() -> T>);

impl<T: ArrowPrimitiveType> Default for Sum<T> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: ArrowPrimitiveType> Fold for Sum<T> {
    type Value = T;
    const NEUTRAL: T::Native = T::Native::ZERO;

    #[inline]
    fn combine(one: T::Native, other: T::Native) -> T::Native {
        one.add_wrapping(other)
    }

    fn finish(&self, total: T::Native, _count: i64) -> Result<T::Native> {
        Ok(total)
    }
}

impl<T: ArrowPrimitiveType> Undo for Sum<T> {
    #[inline]
    fn without(total: T::Native, value: T::Native) -> T::Native {
        total.sub_wrapping(value)
    }
}

/// AVG of floats.
#[derive(Default)]
pub(super) struct FloatAverage;

impl Fold for FloatAverage {
    type Value = Float64Type;
    const NEUTRAL: f64 = 0.0;

    #[inline]
    fn combine(one: f64, other: f64) -> f64 {
        one + other
    }

    #[inline]
    fn finish(&self, total: f64, count: i64) -> Result<f64> {
        Ok(total / count as f64)
    }
}

/// AVG of decimals: the sum has the arguments' scale, the result has `scale`.
pub(super) struct DecimalAverage {
    /// What brings the sum to the result's scale.
    factor: i256,
    precision: u8,
    scale: i8,
}

impl DecimalAverage {
    /// From arguments of scale `from` to results of `precision` and `scale`; `None` when these have fewer digits after
    /// the point.
    pub(super) fn try_new(from: i8, precision: u8, scale: i8) -> Option<Self> {
        let digits = u32::try_from(i32::from(scale) - i32::from(from)).ok()?;
        Some(Self {
            factor: i256::from_i128(10).pow_checked(digits).ok()?,
            precision,
            scale,
        })
    }
}

impl Fold for DecimalAverage {
    type Value = Decimal128Type;
    const NEUTRAL: i128 = 0;

    #[inline]
    fn combine(one: i128, other: i128) -> i128 {
        one.wrapping_add(other)
    }

    fn finish(&self, total: i128, count: i64) -> Result<i128> {
        let average = i256::from_i128(total)
            .wrapping_mul(self.factor)
            .wrapping_div(i256::from_i128(i128::from(count)));
        average
            .to_i128()
            .filter(|average| Decimal128Type::validate_decimal_precision(*average, self.precision, self.scale).is_ok())
            .ok_or_else(|| {
                EngineError::BadInput(format!(
                    "an average does not fit DECIMAL({}, {}); cast the argument to fewer digits",
                    self.precision, self.scale
                ))
            })
    }
}

impl Undo for DecimalAverage {
    #[inline]
    fn without(total: i128, value: i128) -> i128 {
        total.wrapping_sub(value)
    }
}

/// MIN or MAX; NaN is greater than everything else.
pub(super) struct Extreme<T, const MAX: bool>(PhantomData<fn() -> T>);

impl<T, const MAX: bool> Default for Extreme<T, MAX> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T: ArrowPrimitiveType, const MAX: bool> Fold for Extreme<T, MAX> {
    type Value = T;
    const NEUTRAL: T::Native = if MAX {
        T::Native::MIN_TOTAL_ORDER
    } else {
        T::Native::MAX_TOTAL_ORDER
    };

    #[inline]
    fn combine(one: T::Native, other: T::Native) -> T::Native {
        if one.is_lt(other) == MAX { other } else { one }
    }

    fn finish(&self, total: T::Native, _count: i64) -> Result<T::Native> {
        Ok(total)
    }
}

/// A fold over frames.
pub(super) struct Folded<F, K> {
    fold: F,
    pub(super) keep: K,
    /// Of each partition, how many values count.
    pub(super) counts: Vec<i64>,
    /// Of each slot, whether its value does.
    pub(super) slots: Vec<bool>,
    /// The type that values are brought to, and that of the results.
    pub(super) carrier: DataType,
    pub(super) result: DataType,
}

impl<F: Fold, K: Keep<F>> Folded<F, K> {
    /// `fold` of values that are cast to `carrier`, its results cast to `result`.
    pub(super) fn new(fold: F, carrier: DataType, result: DataType) -> Self {
        Self {
            fold,
            keep: K::default(),
            counts: Vec::new(),
            slots: Vec::new(),
            carrier,
            result,
        }
    }

    pub(super) fn fit(&mut self, room: Room) {
        fit(&mut self.counts, room.groups, 0);
        fit(&mut self.slots, room.slots, false);
        self.keep.fit(room.groups, room.slots);
    }
}

impl<F: Fold, K: Keep<F>> OverFunction for Folded<F, K> {
    fn run(&mut self, input: &Input, steps: &Steps, next: &[u32]) -> Result<ArrayRef> {
        let counted = counted(input);
        let array = input
            .values
            .first()
            .ok_or_else(|| EngineError::Internal("an aggregate function has no argument".into()))?;
        let array = match array.data_type() == &self.carrier {
            true => Arc::clone(array),
            false => cast(array, &self.carrier)?,
        };
        let array = one_nan(array);
        let values = array.as_primitive::<F::Value>().values();
        self.fit(steps.room());
        let mut results = vec![F::NEUTRAL; steps.rows()];
        let mut valid = vec![true; steps.rows()];
        let mut all_valid = true;
        let mut start = 0;
        for (step, group) in steps.groups.iter().enumerate() {
            let group = *group as usize;
            for slot in steps.left_in(step) {
                self.counts[group] -= i64::from(self.slots[*slot as usize]);
                self.keep.pop(group, *slot, next);
            }
            let end = steps.row_ends[step] as usize;
            for at in start..end {
                let row = steps.row(at);
                let counts = counted.as_ref().is_none_or(|counted| counted.value(row));
                let value = if counts { values[row] } else { F::NEUTRAL };
                let slot = steps.slots.get(at).copied();
                if let Some(slot) = slot {
                    self.slots[slot as usize] = counts;
                }
                self.counts[group] += i64::from(counts);
                self.keep.push(group, slot, value);
            }
            if end > start {
                let count = self.counts[group];
                let result = match count {
                    0 => F::NEUTRAL,
                    _ => self.fold.finish(self.keep.total(group), count)?,
                };
                all_valid &= count > 0;
                for at in start..end {
                    results[steps.row(at)] = result;
                    valid[steps.row(at)] = count > 0;
                }
            }
            start = end;
        }
        let nulls = (!all_valid).then(|| NullBuffer::from(valid));
        let results = PrimitiveArray::<F::Value>::new(ScalarBuffer::from(results), nulls);
        // Decimals: the carrier says where the point is, which the bare array does not know; an average has its own.
        let results: ArrayRef = match (&self.carrier, &self.result) {
            (DataType::Decimal128(_, _), DataType::Decimal128(_, _)) => {
                Arc::new(results.with_data_type(self.result.clone()))
            }
            _ => Arc::new(results),
        };
        Ok(match results.data_type() == &self.result {
            true => results,
            false => cast(&results, &self.result)?,
        })
    }

    fn forget(&mut self, groups: &[usize]) {
        for group in groups {
            if let Some(count) = self.counts.get_mut(*group) {
                *count = 0;
            }
            self.keep.forget(*group);
        }
    }

    fn retain(&mut self, kept: &[usize]) {
        keep(&mut self.counts, kept);
        self.keep.retain(kept);
    }

    fn bytes(&self) -> usize {
        vec_bytes(&self.counts) + vec_bytes(&self.slots) + self.keep.bytes()
    }
}

/// Floats with the one NaN that is greater than all numbers.
fn one_nan(array: ArrayRef) -> ArrayRef {
    let Some(floats) = array.as_primitive_opt::<Float64Type>() else {
        return array;
    };
    if !floats.values().iter().any(|value| value.is_nan()) {
        return array;
    }
    Arc::new(floats.unary::<_, Float64Type>(|value| if value.is_nan() { f64::NAN } else { value }))
}
