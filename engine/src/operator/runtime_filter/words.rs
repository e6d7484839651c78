//! Keys as words of 64 bits: equal keys have equal words; of strings and wide decimals, others may have them too.

use std::sync::Arc;

use arrow::array::{Array, ArrayAccessor, ArrayRef, ArrowPrimitiveType, AsArray};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Decimal32Type, Decimal64Type, Decimal128Type, Int8Type, Int16Type, Int32Type, Int64Type, UInt8Type,
    UInt16Type, UInt32Type, UInt64Type,
};
use xxhash_rust::xxh3::xxh3_64;

use crate::data::{EngineError, Result};

/// Replaces `words` by those of `array`, one per row; of no meaning where the NULLs that are given back say so.
///
/// # Errors
/// When [`crate::plan::RuntimeFilterSpec::supports`] does not name the type.
pub(super) fn words_of(array: &ArrayRef, words: &mut Vec<i64>) -> Result<Option<NullBuffer>> {
    words.clear();
    let array = plain(array)?;
    match array.data_type() {
        DataType::Int8 => primitive::<Int8Type>(&array, words, i64::from),
        DataType::Int16 => primitive::<Int16Type>(&array, words, i64::from),
        DataType::Int32 => primitive::<Int32Type>(&array, words, i64::from),
        DataType::Int64 => primitive::<Int64Type>(&array, words, |value| value),
        DataType::UInt8 => primitive::<UInt8Type>(&array, words, i64::from),
        DataType::UInt16 => primitive::<UInt16Type>(&array, words, i64::from),
        DataType::UInt32 => primitive::<UInt32Type>(&array, words, i64::from),
        DataType::UInt64 => primitive::<UInt64Type>(&array, words, |value| value as i64),
        DataType::Decimal32(_, _) => primitive::<Decimal32Type>(&array, words, i64::from),
        DataType::Decimal64(_, _) => primitive::<Decimal64Type>(&array, words, |value| value),
        DataType::Decimal128(_, _) => primitive::<Decimal128Type>(&array, words, |value| value as i64),
        DataType::Utf8 => hashed(array.as_string::<i32>(), words),
        DataType::LargeUtf8 => hashed(array.as_string::<i64>(), words),
        DataType::Utf8View => hashed(array.as_string_view(), words),
        DataType::Binary => hashed(array.as_binary::<i32>(), words),
        DataType::LargeBinary => hashed(array.as_binary::<i64>(), words),
        DataType::BinaryView => hashed(array.as_binary_view(), words),
        other => {
            return Err(EngineError::Internal(format!(
                "keys of type {other} have no runtime filter"
            )));
        }
    }
    Ok(array.nulls().cloned())
}

/// Times as integers, which copies nothing, and dictionaries as values.
fn plain(array: &ArrayRef) -> Result<ArrayRef> {
    Ok(match array.data_type() {
        DataType::Date32 | DataType::Time32(_) => cast(array, &DataType::Int32)?,
        DataType::Date64 | DataType::Time64(_) | DataType::Timestamp(_, _) | DataType::Duration(_) => {
            cast(array, &DataType::Int64)?
        }
        DataType::Dictionary(_, value) => plain(&cast(array, value)?)?,
        _ => Arc::clone(array),
    })
}

fn primitive<T: ArrowPrimitiveType>(array: &ArrayRef, words: &mut Vec<i64>, word: impl Fn(T::Native) -> i64) {
    words.extend(array.as_primitive::<T>().values().iter().map(|value| word(*value)));
}

fn hashed<A>(array: A, words: &mut Vec<i64>)
where
    A: ArrayAccessor,
    A::Item: AsRef<[u8]>,
{
    let word = |row| {
        if array.is_null(row) {
            0
        } else {
            xxh3_64(array.value(row).as_ref()) as i64
        }
    };
    words.extend((0..array.len()).map(word));
}
