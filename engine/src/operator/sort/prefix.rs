//! Normalized prefixes: a key column becomes one `u64` a row, whose order is the column's order as far as eight bytes
//! can tell. Comparing two of them is one instruction, so most comparisons never look at the values themselves.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::compute::SortOptions;
use arrow::datatypes::{ArrowNativeType, DataType, Float16Type, Float32Type, Float64Type, IntervalUnit};

/// How much of a column's order its prefixes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::operator) enum Precision {
    /// Equal prefixes mean equal values.
    Exact,
    /// Equal prefixes may hide different values.
    Partial,
    /// The type has no prefixes.
    None,
}

impl Precision {
    /// What prefixes can tell about values of `data_type`.
    pub(in crate::operator) fn of(data_type: &DataType) -> Self {
        use DataType::*;
        match data_type {
            Boolean
            | Int8
            | Int16
            | Int32
            | Int64
            | UInt8
            | UInt16
            | UInt32
            | UInt64
            | Float16
            | Float32
            | Float64
            | Date32
            | Date64
            | Time32(_)
            | Time64(_)
            | Timestamp(_, _)
            | Duration(_)
            | Decimal32(_, _)
            | Decimal64(_, _)
            | Interval(IntervalUnit::YearMonth) => Precision::Exact,
            Decimal128(_, _) | Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView | FixedSizeBinary(_) => {
                Precision::Partial
            }
            Dictionary(_, values) => Precision::of(values),
            _ => Precision::None,
        }
    }
}

/// The prefixes of one key column: NULLs have the prefix 0 and are told apart by `nulls`.
pub(in crate::operator) struct Prefixes {
    /// One per row, in the key's direction.
    pub(in crate::operator) values: Vec<u64>,
    /// Which rows are NULL, when some are.
    pub(in crate::operator) nulls: Option<NullBuffer>,
}

impl Prefixes {
    /// The prefixes of `array`; `None` when its type has none ([`Precision::None`]).
    pub(in crate::operator) fn of(array: &ArrayRef, options: SortOptions) -> Option<Self> {
        let mut values = ascending(array)?;
        if options.descending {
            values.iter_mut().for_each(|value| *value = !*value);
        }
        let nulls = array.logical_nulls().filter(|nulls| nulls.null_count() > 0);
        if let Some(nulls) = &nulls {
            // The slot of a NULL holds anything; two NULLs must compare as equal.
            for (value, valid) in values.iter_mut().zip(nulls.iter()) {
                *value = if valid { *value } else { 0 };
            }
        }
        Some(Self { values, nulls })
    }
}

fn ascending(array: &ArrayRef) -> Option<Vec<u64>> {
    use DataType::*;
    Some(match array.data_type() {
        Boolean => array.as_boolean().values().iter().map(u64::from).collect(),
        Int8 => map(&native::<i8>(array), |v| signed(i64::from(v))),
        Int16 => map(&native::<i16>(array), |v| signed(i64::from(v))),
        Int32 | Date32 | Time32(_) | Decimal32(_, _) | Interval(IntervalUnit::YearMonth) => {
            map(&native::<i32>(array), |v| signed(i64::from(v)))
        }
        Int64 | Date64 | Time64(_) | Timestamp(_, _) | Duration(_) | Decimal64(_, _) => {
            map(&native::<i64>(array), signed)
        }
        UInt8 => map(&native::<u8>(array), u64::from),
        UInt16 => map(&native::<u16>(array), u64::from),
        UInt32 => map(&native::<u32>(array), u64::from),
        UInt64 => map(&native::<u64>(array), |v| v),
        Float16 => map(array.as_primitive::<Float16Type>().values(), |v| {
            total_order(u64::from(v.to_bits()) << 48)
        }),
        Float32 => map(array.as_primitive::<Float32Type>().values(), |v| {
            total_order(u64::from(v.to_bits()) << 32)
        }),
        Float64 => map(array.as_primitive::<Float64Type>().values(), |v| {
            total_order(v.to_bits())
        }),
        Decimal128(_, _) => map(&native::<i128>(array), |v| {
            signed(i64::try_from(v).unwrap_or(if v < 0 { i64::MIN } else { i64::MAX }))
        }),
        Utf8 => bytes((0..array.len()).map(|row| array.as_string::<i32>().value(row))),
        LargeUtf8 => bytes((0..array.len()).map(|row| array.as_string::<i64>().value(row))),
        Utf8View => bytes((0..array.len()).map(|row| array.as_string_view().value(row))),
        Binary => bytes((0..array.len()).map(|row| array.as_binary::<i32>().value(row))),
        LargeBinary => bytes((0..array.len()).map(|row| array.as_binary::<i64>().value(row))),
        BinaryView => bytes((0..array.len()).map(|row| array.as_binary_view().value(row))),
        FixedSizeBinary(_) => bytes((0..array.len()).map(|row| array.as_fixed_size_binary().value(row))),
        Dictionary(_, _) => {
            let dictionary = array.as_any_dictionary();
            let values = ascending(dictionary.values())?;
            if values.is_empty() {
                return Some(vec![0; array.len()]); // nothing but NULLs
            }
            dictionary
                .normalized_keys()
                .into_iter()
                .map(|key| values[key])
                .collect()
        }
        _ => return None,
    })
}

fn native<T: ArrowNativeType>(array: &ArrayRef) -> ScalarBuffer<T> {
    let data = array.to_data();
    ScalarBuffer::new(data.buffers()[0].clone(), data.offset(), data.len())
}

fn map<T: Copy>(values: &[T], prefix: impl Fn(T) -> u64) -> Vec<u64> {
    values.iter().map(|value| prefix(*value)).collect()
}

fn bytes<T: AsRef<[u8]>>(values: impl Iterator<Item = T>) -> Vec<u64> {
    values.map(|value| bytes_at(value.as_ref(), 0)).collect()
}

/// The eight bytes of `bytes` from `offset`, as a number that compares as they do; zeros stand for what is missing.
pub(super) fn bytes_at(bytes: &[u8], offset: usize) -> u64 {
    let tail = bytes.get(offset..).unwrap_or_default();
    match tail.first_chunk::<8>() {
        Some(chunk) => u64::from_be_bytes(*chunk),
        None => {
            let mut chunk = [0; 8];
            chunk[..tail.len()].copy_from_slice(tail);
            u64::from_be_bytes(chunk)
        }
    }
}

fn signed(value: i64) -> u64 {
    value.cast_unsigned() ^ (1 << 63)
}

/// IEEE 754 totalOrder: negative numbers with all bits flipped, positive ones with the sign flipped.
fn total_order(bits: u64) -> u64 {
    if bits >> 63 == 1 { !bits } else { bits | (1 << 63) }
}
