//! SUM and AVG, with DataFusion's result types and values: integers wrap, averages of decimals are cut.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowNativeTypeOp, ArrowPrimitiveType, AsArray, Float64Array, Int64Array, PrimitiveArray,
};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::datatypes::{
    DataType, Decimal32Type, Decimal64Type, Decimal128Type, Decimal256Type, DecimalType, DurationMicrosecondType,
    DurationMillisecondType, DurationNanosecondType, DurationSecondType, Field, Float64Type, Int64Type,
    IntervalDayTimeType, IntervalMonthDayNanoType, IntervalUnit, IntervalYearMonthType, TimeUnit, UInt64Type, i256,
};
use datafusion::error::DataFusionError;

use super::rolling::{Rolling, Rows, field, keep};
use crate::data::Result;
use crate::operator::aggregate::Input;
use crate::operator::keyed::Frozen;

/// A sum that values are added to and taken from.
trait Total: Copy + Default + Send + 'static {
    type Value: Copy + Send + Sync + 'static;
    fn add(&mut self, value: Self::Value);
    fn take_back(&mut self, value: Self::Value);
    fn value(self) -> Self::Value;

    /// What is stored of a sum: its main part.
    fn stored(self) -> Self::Value;
    /// The further columns that are stored.
    fn further_fields() -> Vec<Field> {
        Vec::new()
    }
    /// The further columns of sums.
    fn further(_sums: &[Self]) -> Vec<ArrayRef> {
        Vec::new()
    }
    /// A sum of what was stored.
    fn restored(value: Self::Value, further: &[ArrayRef], row: usize) -> Self;
}

/// A sum as the machine adds.
#[derive(Clone, Copy, Default)]
struct Plain<N>(N);

impl<N: ArrowNativeTypeOp> Total for Plain<N> {
    type Value = N;
    #[inline]
    fn add(&mut self, value: N) {
        self.0 = self.0.add_wrapping(value);
    }
    #[inline]
    fn take_back(&mut self, value: N) {
        self.0 = self.0.sub_wrapping(value);
    }
    fn value(self) -> N {
        self.0
    }
    fn stored(self) -> N {
        self.0
    }
    fn restored(value: N, _further: &[ArrayRef], _row: usize) -> Self {
        Self(value)
    }
}

/// A sum of floats that forgets what is taken back: rounding errors are kept apart (Neumaier), and what is no finite number
/// is counted, as nothing brings a sum back from it.
#[derive(Clone, Copy, Default)]
struct Compensated {
    sum: f64,
    error: f64,
    nans: i64,
    infinities: [i64; 2],
}

impl Compensated {
    #[inline]
    fn add_finite(&mut self, value: f64) {
        let sum = self.sum + value;
        self.error += if self.sum.abs() >= value.abs() {
            (self.sum - sum) + value
        } else {
            (value - sum) + self.sum
        };
        self.sum = sum;
    }

    fn count(&mut self, value: f64, sign: i64) {
        if value.is_nan() {
            self.nans += sign;
        } else {
            self.infinities[usize::from(value > 0.0)] += sign;
        }
    }
}

impl Total for Compensated {
    type Value = f64;
    #[inline]
    fn add(&mut self, value: f64) {
        if value.is_finite() {
            self.add_finite(value);
        } else {
            self.count(value, 1);
        }
    }
    #[inline]
    fn take_back(&mut self, value: f64) {
        if value.is_finite() {
            self.add_finite(-value);
        } else {
            self.count(value, -1);
        }
    }
    fn value(self) -> f64 {
        match (self.nans, self.infinities) {
            (0, [0, 0]) if self.sum.is_finite() => self.sum + self.error,
            (0, [0, 0]) => self.sum,
            (0, [0, _]) => f64::INFINITY,
            (0, [_, 0]) => f64::NEG_INFINITY,
            _ => f64::NAN,
        }
    }
    fn stored(self) -> f64 {
        self.sum
    }
    fn further_fields() -> Vec<Field> {
        vec![
            field("error", DataType::Float64),
            field("nans", DataType::Int64),
            field("negative_infinities", DataType::Int64),
            field("positive_infinities", DataType::Int64),
        ]
    }
    fn further(sums: &[Self]) -> Vec<ArrayRef> {
        let counts = |of: fn(&Self) -> i64| Arc::new(Int64Array::from_iter_values(sums.iter().map(of)));
        let errors = sums.iter().map(|sum| sum.error);
        vec![
            Arc::new(Float64Array::from_iter_values(errors)),
            counts(|sum| sum.nans),
            counts(|sum| sum.infinities[0]),
            counts(|sum| sum.infinities[1]),
        ]
    }
    fn restored(sum: f64, further: &[ArrayRef], row: usize) -> Self {
        // NULL where the state is of sums without further columns.
        let count = |column: &ArrayRef| {
            let counts = column.as_primitive::<Int64Type>();
            if counts.is_valid(row) { counts.value(row) } else { 0 }
        };
        let errors = further[0].as_primitive::<Float64Type>();
        Self {
            sum,
            error: if errors.is_valid(row) { errors.value(row) } else { 0.0 },
            nans: count(&further[1]),
            infinities: [count(&further[2]), count(&further[3])],
        }
    }
}

/// A sum and a count per group, and what they give.
struct Sums<I, S, P, R, W, F>
where
    I: ArrowPrimitiveType,
    S: Total,
    R: ArrowPrimitiveType,
{
    states: Vec<(S, i64)>,
    widen: W,
    finish: F,
    /// The type that sums are stored as.
    stored: DataType,
    result: DataType,
    types: std::marker::PhantomData<fn(I) -> (P, R)>,
}

/// Sums of columns of `I`, stored as `P`, with results of `R`.
fn boxed<I, S, P, R, W, F>(stored: DataType, result: &DataType, widen: W, finish: F) -> Box<dyn Rolling>
where
    I: ArrowPrimitiveType,
    S: Total,
    P: ArrowPrimitiveType<Native = S::Value>,
    R: ArrowPrimitiveType,
    W: Fn(I::Native) -> S::Value + Send + 'static,
    F: Fn(S::Value, i64) -> Result<R::Native> + Send + 'static,
{
    Box::new(Sums::<I, S, P, R, W, F> {
        states: Vec::new(),
        widen,
        finish,
        stored,
        result: result.clone(),
        types: std::marker::PhantomData,
    })
}

impl<I, S, P, R, W, F> Rolling for Sums<I, S, P, R, W, F>
where
    I: ArrowPrimitiveType,
    S: Total,
    P: ArrowPrimitiveType<Native = S::Value>,
    R: ArrowPrimitiveType,
    W: Fn(I::Native) -> S::Value + Send,
    F: Fn(S::Value, i64) -> Result<R::Native> + Send,
{
    fn grow(&mut self, groups: usize) -> Result<()> {
        self.states.resize(groups, (S::default(), 0));
        Ok(())
    }

    fn update(&mut self, input: &Input, rows: &Rows<'_>) -> Result<()> {
        let column = input.values[0].as_primitive::<I>();
        let values = column.values();
        let (states, widen) = (&mut self.states, &self.widen);
        rows.each(input.filter.as_ref(), column.nulls(), |row, group, sign| {
            let (sum, count) = &mut states[group];
            if sign > 0 {
                sum.add(widen(values[row]));
                *count += 1;
            } else if *count > 1 {
                sum.take_back(widen(values[row]));
                *count -= 1;
            } else {
                (*sum, *count) = (S::default(), 0);
            }
        });
        Ok(())
    }

    fn gather(&self, groups: &[usize]) -> Result<ArrayRef> {
        let mut values = Vec::with_capacity(groups.len());
        let mut known = Vec::with_capacity(groups.len());
        for group in groups {
            let (sum, count) = self.states[*group];
            known.push(count > 0);
            values.push(if count > 0 {
                (self.finish)(sum.value(), count)?
            } else {
                R::Native::default()
            });
        }
        let nulls = NullBuffer::from(known);
        let array = PrimitiveArray::<R>::new(ScalarBuffer::from(values), Some(nulls));
        Ok(Arc::new(array.with_data_type(self.result.clone())))
    }

    fn forget(&mut self, groups: &[usize]) {
        groups.iter().for_each(|group| self.states[*group] = (S::default(), 0));
    }

    fn compact(&mut self, kept: &[usize]) -> Result<()> {
        keep(&mut self.states, kept);
        Ok(())
    }

    fn size(&self) -> usize {
        self.states.capacity() * size_of::<(S, i64)>()
    }

    fn fields(&self) -> Result<Vec<Field>> {
        let mut fields = vec![field("sum", self.stored.clone()), field("values", DataType::Int64)];
        fields.extend(S::further_fields());
        Ok(fields)
    }

    fn freeze(&mut self, groups: &[u32]) -> Result<Frozen> {
        let states: Vec<(S, i64)> = groups.iter().map(|group| self.states[*group as usize]).collect();
        let stored = self.stored.clone();
        Ok(Frozen::new(
            states.capacity() * size_of::<(S, i64)>(),
            move |positions| {
                let sums: Vec<S> = positions.iter().map(|at| states[*at as usize].0).collect();
                let counts = positions.iter().map(|at| states[*at as usize].1);
                let values = sums.iter().map(|sum| sum.stored());
                let values = PrimitiveArray::<P>::from_iter_values(values).with_data_type(stored.clone());
                let mut columns: Vec<ArrayRef> = vec![Arc::new(values), Arc::new(Int64Array::from_iter_values(counts))];
                columns.extend(S::further(&sums));
                Ok(columns)
            },
        ))
    }

    fn thaw(&mut self, groups: &[usize], columns: &[ArrayRef]) -> Result<()> {
        let (sums, counts) = (columns[0].as_primitive::<P>(), columns[1].as_primitive::<Int64Type>());
        for (row, group) in groups.iter().enumerate() {
            if sums.is_valid(row) && counts.is_valid(row) {
                let sum = S::restored(sums.value(row), &columns[2..], row);
                self.states[*group] = (sum, counts.value(row));
            }
        }
        Ok(())
    }
}

fn sum_of<T: ArrowPrimitiveType>(result: &DataType) -> Box<dyn Rolling>
where
    T::Native: Send,
{
    boxed::<T, Plain<T::Native>, T, T, _, _>(result.clone(), result, |value| value, |sum, _| Ok(sum))
}

/// SUM; `None` when the types are not ours.
pub(super) fn sum(argument: &DataType, result: &DataType, changelog: bool) -> Option<Box<dyn Rolling>> {
    use DataType::{Decimal32, Decimal64, Decimal128, Decimal256, Duration, Float64, Int64, Interval, UInt64};
    let same = match (argument, result) {
        (Decimal32(_, a), Decimal32(_, b)) | (Decimal64(_, a), Decimal64(_, b)) => a == b,
        (Decimal128(_, a), Decimal128(_, b)) | (Decimal256(_, a), Decimal256(_, b)) => a == b,
        (a, b) => a == b,
    };
    if !same {
        return None;
    }
    Some(match result {
        Int64 => sum_of::<Int64Type>(result),
        UInt64 => sum_of::<UInt64Type>(result),
        Float64 if changelog => boxed::<Float64Type, Compensated, Float64Type, Float64Type, _, _>(
            Float64,
            result,
            |value| value,
            |sum, _| Ok(sum),
        ),
        Float64 => sum_of::<Float64Type>(result),
        Decimal32(..) => sum_of::<Decimal32Type>(result),
        Decimal64(..) => sum_of::<Decimal64Type>(result),
        Decimal128(..) => sum_of::<Decimal128Type>(result),
        Decimal256(..) => sum_of::<Decimal256Type>(result),
        Duration(TimeUnit::Second) => sum_of::<DurationSecondType>(result),
        Duration(TimeUnit::Millisecond) => sum_of::<DurationMillisecondType>(result),
        Duration(TimeUnit::Microsecond) => sum_of::<DurationMicrosecondType>(result),
        Duration(TimeUnit::Nanosecond) => sum_of::<DurationNanosecondType>(result),
        Interval(IntervalUnit::YearMonth) => sum_of::<IntervalYearMonthType>(result),
        Interval(IntervalUnit::DayTime) => sum_of::<IntervalDayTimeType>(result),
        Interval(IntervalUnit::MonthDayNano) => sum_of::<IntervalMonthDayNanoType>(result),
        _ => return None,
    })
}

fn overflow() -> DataFusionError {
    DataFusionError::Execution("Arithmetic Overflow in AvgAccumulator".into())
}

/// The average of decimals: the sum at the result's scale, divided and cut.
fn decimal_average<R, S>(
    result: &DataType,
    scale: i8,
    narrow: impl Fn(S) -> Option<R::Native> + Send + 'static,
) -> impl Fn(S, i64) -> Result<R::Native> + Send + 'static
where
    R: DecimalType + ArrowPrimitiveType,
    S: ArrowNativeTypeOp,
{
    let (precision, target) = match result {
        DataType::Decimal32(p, s) | DataType::Decimal64(p, s) => (*p, *s),
        DataType::Decimal128(p, s) | DataType::Decimal256(p, s) => (*p, *s),
        _ => (0, 0),
    };
    let ten = S::usize_as(10);
    let factor = u32::try_from(i16::from(target) - i16::from(scale))
        .ok()
        .and_then(|digits| ten.pow_checked(digits).ok());
    move |sum, count| {
        let scaled = factor
            .and_then(|factor| sum.mul_checked(factor).ok())
            .ok_or_else(overflow)?;
        let count = usize::try_from(count).map_err(|_| overflow())?;
        let average = narrow(scaled.div_wrapping(S::usize_as(count))).ok_or_else(overflow)?;
        R::validate_decimal_precision(average, precision, target).map_err(|_| overflow())?;
        Ok(average)
    }
}

/// Digits that an `i128` holds, less those of a sum of 10^9 rows at the result's scale.
const NARROW_PRECISION: u8 = 38 - 13;

/// AVG; `None` when the types are not ours.
pub(super) fn average(argument: &DataType, result: &DataType, changelog: bool) -> Option<Box<dyn Rolling>> {
    use DataType::{Decimal32, Decimal64, Decimal128, Decimal256, Duration, Float64};
    macro_rules! duration {
        ($t:ty) => {
            boxed::<$t, Plain<i64>, $t, $t, _, _>(
                result.clone(),
                result,
                |value| value,
                |sum, count| Ok(sum / count),
            )
        };
    }
    Some(match (argument, result) {
        (Float64, Float64) if changelog => boxed::<Float64Type, Compensated, Float64Type, Float64Type, _, _>(
            Float64,
            result,
            |value| value,
            |sum, count| Ok(sum / count as f64),
        ),
        (Float64, Float64) => boxed::<Float64Type, Plain<f64>, Float64Type, Float64Type, _, _>(
            Float64,
            result,
            |value| value,
            |sum, count| Ok(sum / count as f64),
        ),
        (Decimal32(_, scale), Decimal32(..)) => {
            boxed::<Decimal32Type, Plain<i128>, Decimal128Type, Decimal32Type, _, _>(
                Decimal128(38, *scale),
                result,
                i128::from,
                decimal_average::<Decimal32Type, i128>(result, *scale, |value| i32::try_from(value).ok()),
            )
        }
        (Decimal64(_, scale), Decimal64(..)) => {
            boxed::<Decimal64Type, Plain<i128>, Decimal128Type, Decimal64Type, _, _>(
                Decimal128(38, *scale),
                result,
                i128::from,
                decimal_average::<Decimal64Type, i128>(result, *scale, |value| i64::try_from(value).ok()),
            )
        }
        (Decimal128(precision, scale), Decimal128(..)) if *precision <= NARROW_PRECISION => {
            boxed::<Decimal128Type, Plain<i128>, Decimal128Type, Decimal128Type, _, _>(
                Decimal128(38, *scale),
                result,
                |value| value,
                decimal_average::<Decimal128Type, i128>(result, *scale, Some),
            )
        }
        (Decimal128(_, scale), Decimal128(..)) => {
            boxed::<Decimal128Type, Plain<i256>, Decimal256Type, Decimal128Type, _, _>(
                Decimal256(76, *scale),
                result,
                i256::from_i128,
                decimal_average::<Decimal128Type, i256>(result, *scale, i256::to_i128),
            )
        }
        (Decimal256(_, scale), Decimal256(..)) => {
            boxed::<Decimal256Type, Plain<i256>, Decimal256Type, Decimal256Type, _, _>(
                Decimal256(76, *scale),
                result,
                |value| value,
                decimal_average::<Decimal256Type, i256>(result, *scale, Some),
            )
        }
        (Duration(TimeUnit::Second), Duration(TimeUnit::Second)) => duration!(DurationSecondType),
        (Duration(TimeUnit::Millisecond), Duration(TimeUnit::Millisecond)) => duration!(DurationMillisecondType),
        (Duration(TimeUnit::Microsecond), Duration(TimeUnit::Microsecond)) => duration!(DurationMicrosecondType),
        (Duration(TimeUnit::Nanosecond), Duration(TimeUnit::Nanosecond)) => duration!(DurationNanosecondType),
        _ => return None,
    })
}
