//! Join keys in the form in which the table compares them.
//!
//! Keys of up to 128 bits in all are packed into one or two machine words that *are* the key: equal words, equal keys,
//! nothing to verify. Everything else (strings, many columns, nested values, NULLs that match) is hashed to one word,
//! and the columns are kept for verification. Both forms make all NaNs one value and both zeros one value.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, UInt64Array, new_empty_array};
use arrow::buffer::NullBuffer;
use arrow::compute::{cast, concat};
use arrow::datatypes::{
    DataType, Decimal32Type, Decimal64Type, Decimal128Type, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, IntervalDayTimeType, IntervalMonthDayNanoType, IntervalUnit, IntervalYearMonthType,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};

use crate::data::{Batch, Result};
use crate::operator::hash_join::columns::KeyColumns;
use crate::operator::hash_join::marks::Marks;
use crate::operator::hash_join::slots::Slots;
use crate::plan::{HashJoinSpec, ScalarExpr};

/// A key of two words.
pub(super) type Wide = [u64; 2];

/// The hash of a key that does not fit into words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HashWord(pub(super) u64);

/// What the table compares: one entry per row, of no meaning where [`Keys::nulls`] says null.
#[derive(Debug)]
pub(super) enum Words {
    /// The keys themselves.
    Narrow(Vec<u64>),
    /// The keys themselves.
    Wide(Vec<Wide>),
    /// Hashes; equal ones must be verified.
    Hashed(Vec<HashWord>),
}

/// The keys of one batch, or of the whole build side.
#[derive(Debug)]
pub(super) struct Keys {
    /// What is compared.
    pub(super) words: Words,
    /// Rows that match nothing because a key is NULL. `None` when there are none, or when NULL equals NULL.
    pub(super) nulls: Option<NullBuffer>,
    /// The columns, when `words` are hashes.
    pub(super) columns: KeyColumns,
}

impl Keys {
    /// The compared form as arrays: equal where the keys are equal, NULL where a key is.
    pub(super) fn arrays(self) -> Vec<ArrayRef> {
        match self.words {
            Words::Narrow(words) => vec![narrow_array(words, self.nulls)],
            Words::Wide(words) => wide_arrays(&words, self.nulls),
            Words::Hashed(_) => self.columns.into_arrays(),
        }
    }
}

/// Words as an array.
pub(super) fn narrow_array(words: Vec<u64>, nulls: Option<NullBuffer>) -> ArrayRef {
    Arc::new(UInt64Array::new(words.into(), nulls))
}

/// Pairs of words as two arrays.
pub(super) fn wide_arrays(words: &[Wide], nulls: Option<NullBuffer>) -> Vec<ArrayRef> {
    let part = |part: usize| words.iter().map(|word| word[part]).collect();
    vec![narrow_array(part(0), nulls.clone()), narrow_array(part(1), nulls)]
}

/// How keys of certain types are brought into their form.
#[derive(Debug)]
pub(super) struct KeyShape {
    types: Vec<DataType>,
    form: Form,
    null_equals_null: bool,
}

#[derive(Debug)]
enum Form {
    /// One column that fills the word, sign-extended.
    One,
    /// Each column's bits, shifted into word 0 (`words == 1`) or words 0 and 1; `first` columns go to word 0.
    Packed {
        widths: Vec<u32>,
        first: usize,
        words: usize,
    },
    /// One column of 128 bits.
    OneWide,
    /// Hashes.
    Hashed,
}

impl KeyShape {
    /// For keys of these types.
    pub(super) fn new(types: Vec<DataType>, null_equals_null: bool) -> Self {
        let types: Vec<_> = types.into_iter().map(plain_type).collect();
        // NULL has no bit pattern of its own in a packed key, so NULLs that match go the way of the hashes.
        let form = if null_equals_null {
            Form::Hashed
        } else {
            Form::of(&types)
        };
        Self {
            types,
            form,
            null_equals_null,
        }
    }

    /// For the keys of `spec`.
    pub(super) fn of(spec: &HashJoinSpec) -> Result<Self> {
        let schema = &spec.build_schema.0;
        let types = spec.build_keys.iter().map(|key| Ok(key.expr.data_type(schema)?));
        Ok(Self::new(types.collect::<Result<_>>()?, spec.null_equals_null))
    }

    /// What a table over `rows` keys takes at most while it is built, without copies of the keys themselves: slots,
    /// words, first rows, counts, starts, order, and a mark per row.
    pub(super) fn table_bytes(&self, rows: usize) -> usize {
        let (slots, word) = match self.form {
            Form::One | Form::Packed { words: 1, .. } => (Slots::<u64>::bytes_for(rows), size_of::<u64>()),
            Form::OneWide | Form::Packed { .. } => (Slots::<Wide>::bytes_for(rows), size_of::<Wide>()),
            Form::Hashed => (Slots::<HashWord>::bytes_for(rows), size_of::<HashWord>()),
        };
        slots + rows * (word + 5 * size_of::<u32>()) + Marks::memory_bytes(rows)
    }

    /// The types of [`Keys::arrays`].
    pub(super) fn array_types(&self) -> Result<Vec<DataType>> {
        let empty: Vec<_> = self.types.iter().map(new_empty_array).collect();
        let arrays = self.digest(&empty, 0)?.arrays();
        Ok(arrays.iter().map(|array| array.data_type().clone()).collect())
    }

    /// The types of the keys, without their encodings.
    pub(super) fn types(&self) -> &[DataType] {
        &self.types
    }

    /// Whether the words are integers in their own order, so that they may index an array.
    pub(super) fn is_integer(&self) -> bool {
        matches!(self.form, Form::One)
            && !matches!(
                self.types[0],
                DataType::Float16 | DataType::Float32 | DataType::Float64 | DataType::Interval(_) | DataType::Null
            )
    }

    /// The key's type when there is one key.
    pub(super) fn only_type(&self) -> Option<&DataType> {
        if let [only] = self.types.as_slice() {
            Some(only)
        } else {
            None
        }
    }

    /// Evaluates key expressions to plain columns of the shape's types.
    pub(super) fn evaluate(&self, exprs: &[ScalarExpr], batch: &Batch) -> Result<Vec<ArrayRef>> {
        let mut columns = Vec::with_capacity(exprs.len());
        for (expr, data_type) in exprs.iter().zip(&self.types) {
            let array = expr.expr.evaluate(batch)?.into_array(batch.num_rows())?;
            // Dictionaries become values; a planner that let a cast slip is forgiven.
            columns.push(if array.data_type() == data_type {
                array
            } else {
                cast(&array, data_type)?
            });
        }
        Ok(columns)
    }

    /// Brings evaluated columns into the form.
    pub(super) fn digest(&self, arrays: &[ArrayRef], rows: usize) -> Result<Keys> {
        let nulls = if self.null_equals_null {
            None
        } else {
            let all: Vec<_> = arrays.iter().map(|array| array.logical_nulls()).collect();
            NullBuffer::union_many(all.iter().map(Option::as_ref)).filter(|nulls| nulls.null_count() > 0)
        };
        let mut columns = KeyColumns::none();
        let words = match &self.form {
            Form::One => Words::Narrow(narrow(&arrays[0])?.unwrap_or_default()),
            Form::OneWide => Words::Wide(wide(&arrays[0]).unwrap_or_default()),
            Form::Packed {
                widths,
                first,
                words: 1,
            } => {
                debug_assert_eq!(*first, widths.len());
                Words::Narrow(pack(arrays, widths, rows)?)
            }
            Form::Packed { widths, first, .. } => {
                let low = pack(&arrays[..*first], &widths[..*first], rows)?;
                let high = pack(&arrays[*first..], &widths[*first..], rows)?;
                Words::Wide(low.into_iter().zip(high).map(|(low, high)| [low, high]).collect())
            }
            Form::Hashed => {
                columns = KeyColumns::new(arrays, self.null_equals_null)?;
                Words::Hashed(columns.hash(rows))
            }
        };
        Ok(Keys { words, nulls, columns })
    }

    /// Concatenates the chunks of one build key.
    pub(super) fn concat(chunks: &[ArrayRef]) -> Result<ArrayRef> {
        if let [only] = chunks {
            return Ok(Arc::clone(only));
        }
        let bytes: usize = chunks.iter().map(value_bytes).sum();
        let large = match chunks[0].data_type() {
            DataType::Utf8 if bytes > i32::MAX as usize => Some(DataType::LargeUtf8),
            DataType::Binary if bytes > i32::MAX as usize => Some(DataType::LargeBinary),
            _ => None,
        };
        let widened = match &large {
            Some(large) => chunks
                .iter()
                .map(|chunk| Ok(cast(chunk, large)?))
                .collect::<Result<Vec<_>>>()?,
            None => chunks.to_vec(),
        };
        let refs: Vec<&dyn Array> = widened.iter().map(AsRef::as_ref).collect();
        Ok(concat(&refs)?)
    }
}

impl Form {
    fn of(types: &[DataType]) -> Self {
        let Some(widths) = types.iter().map(bits).collect::<Option<Vec<u32>>>() else {
            return Form::Hashed;
        };
        match widths.as_slice() {
            [128] => return Form::OneWide,
            [_] => return Form::One,
            _ => {}
        }
        let mut sum = 0;
        let first = widths
            .iter()
            .take_while(|width| {
                sum += **width;
                sum <= 64
            })
            .count();
        let rest: u32 = widths[first..].iter().sum();
        match (first, rest) {
            (0, _) => Form::Hashed,
            (_, 0) => Form::Packed {
                widths,
                first,
                words: 1,
            },
            (_, 1..=64) => Form::Packed {
                widths,
                first,
                words: 2,
            },
            _ => Form::Hashed,
        }
    }
}

/// The type without its encoding.
fn plain_type(data_type: DataType) -> DataType {
    match data_type {
        DataType::Dictionary(_, value) => plain_type(*value),
        DataType::RunEndEncoded(_, value) => plain_type(value.data_type().clone()),
        other => other,
    }
}

/// How many bits a value has in words; `None` for what does not fit into 128.
fn bits(data_type: &DataType) -> Option<u32> {
    Some(match data_type {
        DataType::Null | DataType::Boolean | DataType::Int8 | DataType::UInt8 => 8,
        DataType::Int16 | DataType::UInt16 => 16,
        DataType::Int32 | DataType::UInt32 | DataType::Date32 | DataType::Time32(_) | DataType::Decimal32(_, _) => 32,
        DataType::Float16 | DataType::Float32 | DataType::Interval(IntervalUnit::YearMonth) => 32,
        DataType::Int64 | DataType::UInt64 | DataType::Float64 | DataType::Date64 | DataType::Time64(_) => 64,
        DataType::Timestamp(_, _) | DataType::Duration(_) | DataType::Decimal64(_, _) => 64,
        DataType::Interval(IntervalUnit::DayTime) => 64,
        DataType::Decimal128(_, _) | DataType::Interval(IntervalUnit::MonthDayNano) => 128,
        _ => return None,
    })
}

fn pack(arrays: &[ArrayRef], widths: &[u32], rows: usize) -> Result<Vec<u64>> {
    let mut packed = vec![0u64; rows];
    for (array, width) in arrays.iter().zip(widths) {
        let values = narrow(array)?.unwrap_or_default();
        // A width of 64 is alone in its word: shifting out all 64 bits is what a left shift by 64 would mean.
        let (shift, mask) = if *width == 64 {
            (0, u64::MAX)
        } else {
            (*width, (1u64 << *width) - 1)
        };
        for (packed, value) in packed.iter_mut().zip(values) {
            *packed = (*packed << shift) | (value & mask);
        }
    }
    Ok(packed)
}

/// Values of up to 64 bits, integers sign-extended, floats in canonical bits.
pub(super) fn narrow(array: &ArrayRef) -> Result<Option<Vec<u64>>> {
    Ok(Some(match array.data_type() {
        DataType::Null => vec![0; array.len()],
        DataType::Boolean => array.as_boolean().values().iter().map(u64::from).collect(),
        DataType::Int8 => words::<Int8Type>(array, |v| v as u64),
        DataType::Int16 => words::<Int16Type>(array, |v| v as u64),
        DataType::Int32 => words::<Int32Type>(array, |v| v as u64),
        DataType::Int64 => words::<Int64Type>(array, |v| v as u64),
        DataType::UInt8 => words::<UInt8Type>(array, u64::from),
        DataType::UInt16 => words::<UInt16Type>(array, u64::from),
        DataType::UInt32 => words::<UInt32Type>(array, u64::from),
        DataType::UInt64 => words::<UInt64Type>(array, |v| v),
        DataType::Float16 => words::<Float16Type>(array, |v| u64::from(canonical(f32::from(v)).to_bits())),
        DataType::Float32 => words::<Float32Type>(array, |v| u64::from(canonical(v).to_bits())),
        DataType::Float64 => words::<Float64Type>(array, |v| canonical64(v).to_bits()),
        DataType::Decimal32(_, _) => words::<Decimal32Type>(array, |v| v as u64),
        DataType::Decimal64(_, _) => words::<Decimal64Type>(array, |v| v as u64),
        DataType::Interval(IntervalUnit::YearMonth) => words::<IntervalYearMonthType>(array, |v| v as u64),
        DataType::Interval(IntervalUnit::DayTime) => words::<IntervalDayTimeType>(array, |v| {
            (u64::from(v.days as u32) << 32) | u64::from(v.milliseconds as u32)
        }),
        // These casts reinterpret, they do not copy.
        DataType::Date32 | DataType::Time32(_) => return narrow(&cast(array, &DataType::Int32)?),
        DataType::Date64 | DataType::Time64(_) | DataType::Timestamp(_, _) | DataType::Duration(_) => {
            return narrow(&cast(array, &DataType::Int64)?);
        }
        _ => return Ok(None),
    }))
}

/// Values of 128 bits.
pub(super) fn wide(array: &ArrayRef) -> Option<Vec<Wide>> {
    Some(match array.data_type() {
        DataType::Decimal128(_, _) => {
            let values = array.as_primitive::<Decimal128Type>().values();
            values.iter().map(|v| [*v as u64, (*v >> 64) as u64]).collect()
        }
        DataType::Interval(IntervalUnit::MonthDayNano) => {
            let values = array.as_primitive::<IntervalMonthDayNanoType>().values();
            let months_days = |months: i32, days: i32| (u64::from(months as u32) << 32) | u64::from(days as u32);
            values
                .iter()
                .map(|v| [months_days(v.months, v.days), v.nanoseconds as u64])
                .collect()
        }
        _ => return None,
    })
}

#[inline]
fn words<T: ArrowPrimitiveType>(array: &ArrayRef, word: impl Fn(T::Native) -> u64) -> Vec<u64> {
    array
        .as_primitive::<T>()
        .values()
        .iter()
        .map(|value| word(*value))
        .collect()
}

/// All NaNs one, both zeros one.
pub(super) fn canonical(value: f32) -> f32 {
    if value.is_nan() { f32::NAN } else { value + 0.0 }
}

/// All NaNs one, both zeros one.
pub(super) fn canonical64(value: f64) -> f64 {
    if value.is_nan() { f64::NAN } else { value + 0.0 }
}

/// Bytes of the values of a string or binary array, without its offsets.
fn value_bytes(array: &ArrayRef) -> usize {
    match array.data_type() {
        DataType::Utf8 => span(array.as_string::<i32>().value_offsets()),
        DataType::Binary => span(array.as_binary::<i32>().value_offsets()),
        _ => 0,
    }
}

fn span(offsets: &[i32]) -> usize {
    (offsets[offsets.len() - 1] - offsets[0]) as usize
}
