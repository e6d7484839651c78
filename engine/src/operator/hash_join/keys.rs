//! Join keys in the form in which the table compares them.
//!
//! Keys of up to 128 bits in all are packed into one or two machine words that *are* the key: equal words, equal keys,
//! nothing to verify. Everything else (strings, many columns, nested values, NULLs that match) is hashed to one word,
//! and the columns are kept for verification. Both forms make all NaNs one value and both zeros one value.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, ArrowPrimitiveType, AsArray, BinaryArray, BinaryViewArray, FixedSizeListArray, GenericListArray,
    LargeBinaryArray, OffsetSizeTrait, StructArray,
};
use arrow::buffer::NullBuffer;
use arrow::compute::{cast, concat};
use arrow::datatypes::{
    DataType, Decimal32Type, Decimal64Type, Decimal128Type, Float16Type, Float32Type, Float64Type, Int8Type, Int16Type,
    Int32Type, Int64Type, IntervalDayTimeType, IntervalMonthDayNanoType, IntervalUnit, IntervalYearMonthType,
    UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::row::{RowConverter, SortField};

use crate::data::{Batch, Result};
use crate::plan::ScalarExpr;

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
        let mut columns = KeyColumns {
            columns: Vec::new(),
            nulls_match: self.null_equals_null,
        };
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
                for array in arrays {
                    columns.columns.push(KeyColumn::new(array)?);
                }
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
        let bytes: usize = chunks.iter().map(|chunk| value_bytes(chunk)).sum();
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
fn narrow(array: &ArrayRef) -> Result<Option<Vec<u64>>> {
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
fn wide(array: &ArrayRef) -> Option<Vec<Wide>> {
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

fn canonical(value: f32) -> f32 {
    if value.is_nan() { f32::NAN } else { value + 0.0 }
}

fn canonical64(value: f64) -> f64 {
    if value.is_nan() { f64::NAN } else { value + 0.0 }
}

/// Key columns kept to verify what their hashes claim.
#[derive(Debug)]
pub(super) struct KeyColumns {
    columns: Vec<KeyColumn>,
    nulls_match: bool,
}

#[derive(Debug)]
struct KeyColumn {
    values: Values,
    nulls: Option<NullBuffer>,
}

#[derive(Debug)]
enum Values {
    Narrow(Vec<u64>),
    Wide(Vec<Wide>),
    Bytes(BinaryArray),
    LargeBytes(LargeBinaryArray),
    Views(BinaryViewArray),
}

impl KeyColumns {
    /// Whether row `row` here equals row `other_row` there.
    pub(super) fn equal(&self, row: u32, other: &KeyColumns, other_row: u32) -> bool {
        let mut bad = Vec::new();
        self.unequal(other, &[(row, other_row)], &mut bad);
        bad.is_empty()
    }

    /// Appends the positions of the pairs (row here, row there) that are not equal; one may appear more than once.
    pub(super) fn unequal(&self, other: &KeyColumns, pairs: &[(u32, u32)], bad: &mut Vec<usize>) {
        for (left, right) in self.columns.iter().zip(&other.columns) {
            match (&left.values, &right.values) {
                (Values::Narrow(l), Values::Narrow(r)) => {
                    self.check(left, right, pairs, bad, |i, j| l[i] == r[j]);
                }
                (Values::Wide(l), Values::Wide(r)) => self.check(left, right, pairs, bad, |i, j| l[i] == r[j]),
                (Values::Bytes(l), Values::Bytes(r)) => {
                    self.check(left, right, pairs, bad, |i, j| l.value(i) == r.value(j));
                }
                (Values::Views(l), Values::Views(r)) => {
                    self.check(left, right, pairs, bad, |i, j| l.value(i) == r.value(j));
                }
                // A build side of more than 2 GB of strings is widened, its probe side is not.
                (l, r) => self.check(left, right, pairs, bad, |i, j| l.bytes(i) == r.bytes(j)),
            }
        }
    }

    #[inline]
    fn check(
        &self,
        left: &KeyColumn,
        right: &KeyColumn,
        pairs: &[(u32, u32)],
        bad: &mut Vec<usize>,
        equal: impl Fn(usize, usize) -> bool,
    ) {
        let nullable = self.nulls_match && (left.nulls.is_some() || right.nulls.is_some());
        for (position, (i, j)) in pairs.iter().enumerate() {
            let (i, j) = (*i as usize, *j as usize);
            let same = match nullable {
                false => equal(i, j),
                true => match (left.is_null(i), right.is_null(j)) {
                    (false, false) => equal(i, j),
                    (l, r) => l == r,
                },
            };
            if !same {
                bad.push(position);
            }
        }
    }

    fn hash(&self, rows: usize) -> Vec<HashWord> {
        let mut hashes = vec![HashWord(0); rows];
        for column in &self.columns {
            match &column.values {
                Values::Narrow(v) => column.fold(&mut hashes, |i| v[i]),
                Values::Wide(v) => column.fold(&mut hashes, |i| mix(v[i][0] ^ SEED_A, v[i][1] ^ SEED_B)),
                Values::Bytes(v) => column.fold(&mut hashes, |i| hash_bytes(v.value(i))),
                Values::LargeBytes(v) => column.fold(&mut hashes, |i| hash_bytes(v.value(i))),
                Values::Views(v) => column.fold(&mut hashes, |i| hash_bytes(v.value(i))),
            }
        }
        hashes
    }

    /// Bytes kept.
    pub(super) fn memory_bytes(&self) -> usize {
        let bytes = |column: &KeyColumn| match &column.values {
            Values::Narrow(v) => v.capacity() * size_of::<u64>(),
            Values::Wide(v) => v.capacity() * size_of::<Wide>(),
            Values::Bytes(v) => v.get_buffer_memory_size(),
            Values::LargeBytes(v) => v.get_buffer_memory_size(),
            Values::Views(v) => v.get_buffer_memory_size(),
        };
        self.columns.iter().map(bytes).sum()
    }
}

impl KeyColumn {
    fn new(array: &ArrayRef) -> Result<Self> {
        let nulls = array.logical_nulls();
        let values = if let Some(values) = narrow(array)? {
            Values::Narrow(values)
        } else if let Some(values) = wide(array) {
            Values::Wide(values)
        } else {
            match array.data_type() {
                DataType::Utf8 => Values::Bytes(array.as_string::<i32>().clone().into()),
                DataType::LargeUtf8 => Values::LargeBytes(array.as_string::<i64>().clone().into()),
                DataType::Utf8View => Values::Views(array.as_string_view().clone().to_binary_view()),
                DataType::Binary => Values::Bytes(array.as_binary::<i32>().clone()),
                DataType::LargeBinary => Values::LargeBytes(array.as_binary::<i64>().clone()),
                DataType::BinaryView => Values::Views(array.as_binary_view().clone()),
                // The rest (nested, decimal256, fixed size binary) is compared in arrow's row format.
                other => {
                    let converter = RowConverter::new(vec![SortField::new(other.clone())])?;
                    let rows = converter.convert_columns(&[canonical_nested(array)?])?;
                    Values::Bytes(rows.try_into_binary()?)
                }
            }
        };
        Ok(Self { values, nulls })
    }

    fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    #[inline]
    fn fold(&self, hashes: &mut [HashWord], value: impl Fn(usize) -> u64) {
        match &self.nulls {
            None => {
                for (i, hash) in hashes.iter_mut().enumerate() {
                    hash.0 = mix(hash.0 ^ value(i) ^ SEED_A, SEED_B);
                }
            }
            Some(nulls) => {
                for (i, hash) in hashes.iter_mut().enumerate() {
                    let bits = if nulls.is_null(i) { SEED_C } else { value(i) };
                    hash.0 = mix(hash.0 ^ bits ^ SEED_A, SEED_B);
                }
            }
        }
    }
}

impl Values {
    fn bytes(&self, row: usize) -> Option<&[u8]> {
        match self {
            Values::Bytes(v) => Some(v.value(row)),
            Values::LargeBytes(v) => Some(v.value(row)),
            Values::Views(v) => Some(v.value(row)),
            Values::Narrow(_) | Values::Wide(_) => None,
        }
    }
}

/// Makes the floats inside nested values canonical, as the row format tells zeros and NaNs apart.
fn canonical_nested(array: &ArrayRef) -> Result<ArrayRef> {
    fn list<O: OffsetSizeTrait>(array: &ArrayRef, field: &arrow::datatypes::FieldRef) -> Result<ArrayRef> {
        let list: &GenericListArray<O> = array.as_list::<O>();
        let values = canonical_nested(list.values())?;
        let nulls = list.nulls().cloned();
        Ok(Arc::new(GenericListArray::<O>::try_new(
            Arc::clone(field),
            list.offsets().clone(),
            values,
            nulls,
        )?))
    }
    Ok(match array.data_type() {
        DataType::Float32 => Arc::new(array.as_primitive::<Float32Type>().unary::<_, Float32Type>(canonical)),
        DataType::Float64 => Arc::new(array.as_primitive::<Float64Type>().unary::<_, Float64Type>(canonical64)),
        DataType::List(field) => list::<i32>(array, field)?,
        DataType::LargeList(field) => list::<i64>(array, field)?,
        DataType::FixedSizeList(field, size) => {
            let list = array.as_fixed_size_list();
            let values = canonical_nested(list.values())?;
            Arc::new(FixedSizeListArray::try_new(
                Arc::clone(field),
                *size,
                values,
                list.nulls().cloned(),
            )?)
        }
        DataType::Struct(fields) => {
            let parts = array.as_struct();
            let columns = parts
                .columns()
                .iter()
                .map(canonical_nested)
                .collect::<Result<Vec<_>>>()?;
            let nulls = parts.nulls().cloned();
            Arc::new(StructArray::try_new_with_length(
                fields.clone(),
                columns,
                nulls,
                array.len(),
            )?)
        }
        _ => Arc::clone(array),
    })
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

pub(super) const SEED_A: u64 = 0x9e37_79b9_7f4a_7c15;
pub(super) const SEED_B: u64 = 0xd6e8_feb8_6659_fd93;
const SEED_C: u64 = 0xa076_1d64_78bd_642f;

/// Folded multiplication: every bit of the result depends on every bit of both factors, for one multiplication.
#[inline]
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Hashes a string: eight bytes a step, the last step overlapping. Only ever compared within one process.
#[inline]
fn hash_bytes(bytes: &[u8]) -> u64 {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let len = bytes.len();
    if len >= 8 {
        let mut hash = SEED_C ^ len as u64;
        let mut at = 0;
        while at + 16 < len {
            hash = mix(word(at) ^ hash, word(at + 8) ^ SEED_B);
            at += 16;
        }
        if at + 8 < len {
            hash = mix(word(at) ^ hash, SEED_B);
        }
        return mix(hash ^ word(len - 8), SEED_A);
    }
    let mut last = [0; 8];
    last[..len].copy_from_slice(bytes);
    mix(u64::from_le_bytes(last) ^ SEED_C, SEED_B ^ len as u64)
}
