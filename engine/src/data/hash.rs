//! One hash of rows for every place where it must agree between subtasks and processes: hash partitioning
//! and key groups. Stable: it depends on the values alone, not on the process, the array's encoding
//! (a dictionary hashes as its values) or the sign of zero; all NaNs are one value.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, Decimal128Type, Decimal256Type, Float16Type, Float32Type, Float64Type, Int8Type,
    Int16Type, Int32Type, Int64Type, UInt8Type, UInt16Type, UInt32Type, UInt64Type,
};
use arrow::row::{RowConverter, SortField};
use xxhash_rust::xxh3::xxh3_64;

use crate::data::{Result, canonical_floats, has_nested_float};

const NULL_HASH: u64 = 0x9E37_79B9_7F4A_7C15;

/// A 64-bit finalizer (the constants of SplitMix64; Steele, Lea, Flood 2014).
#[inline]
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

#[inline]
fn combine(seed: u64, value: u64) -> u64 {
    mix(seed.rotate_left(23) ^ value.wrapping_add(NULL_HASH))
}

/// Hashes each row of `columns` (all of one length) into `hashes`, which is resized to that length.
///
/// # Errors
/// When a nested type cannot be brought into row format.
pub fn hash_rows(columns: &[ArrayRef], rows: usize, hashes: &mut Vec<u64>) -> Result<()> {
    hashes.clear();
    hashes.resize(rows, 0);
    columns.iter().try_for_each(|column| hash_column(column, hashes))
}

fn hash_column(column: &ArrayRef, hashes: &mut [u64]) -> Result<()> {
    match column.data_type() {
        DataType::Null => fold(column, hashes, |_| 0),
        DataType::Boolean => {
            let values = column.as_boolean();
            fold(column, hashes, |i| u64::from(values.value(i)));
        }
        DataType::Int8 => primitive::<Int8Type>(column, hashes, |v| v as u64),
        DataType::Int16 => primitive::<Int16Type>(column, hashes, |v| v as u64),
        DataType::Int32 => primitive::<Int32Type>(column, hashes, |v| v as u64),
        DataType::Int64 => primitive::<Int64Type>(column, hashes, |v| v as u64),
        DataType::UInt8 => primitive::<UInt8Type>(column, hashes, u64::from),
        DataType::UInt16 => primitive::<UInt16Type>(column, hashes, u64::from),
        DataType::UInt32 => primitive::<UInt32Type>(column, hashes, u64::from),
        DataType::UInt64 => primitive::<UInt64Type>(column, hashes, |v| v),
        DataType::Float16 => primitive::<Float16Type>(column, hashes, |v| float_bits(f64::from(v))),
        DataType::Float32 => primitive::<Float32Type>(column, hashes, |v| float_bits(f64::from(v))),
        DataType::Float64 => primitive::<Float64Type>(column, hashes, float_bits),
        DataType::Decimal128(_, _) => {
            primitive::<Decimal128Type>(column, hashes, |v| combine(v as u64, (v >> 64) as u64))
        }
        DataType::Decimal256(_, _) => primitive::<Decimal256Type>(column, hashes, |v| xxh3_64(&v.to_le_bytes())),
        DataType::Date32 | DataType::Time32(_) => {
            return hash_column(&cast(column, &DataType::Int32)?, hashes);
        }
        DataType::Date64 | DataType::Time64(_) | DataType::Timestamp(_, _) | DataType::Duration(_) => {
            return hash_column(&cast(column, &DataType::Int64)?, hashes);
        }
        DataType::Utf8 => {
            let values = column.as_string::<i32>();
            fold(column, hashes, |i| xxh3_64(values.value(i).as_bytes()));
        }
        DataType::LargeUtf8 => {
            let values = column.as_string::<i64>();
            fold(column, hashes, |i| xxh3_64(values.value(i).as_bytes()));
        }
        DataType::Utf8View => {
            let values = column.as_string_view();
            fold(column, hashes, |i| xxh3_64(values.value(i).as_bytes()));
        }
        DataType::Binary => {
            let values = column.as_binary::<i32>();
            fold(column, hashes, |i| xxh3_64(values.value(i)));
        }
        DataType::LargeBinary => {
            let values = column.as_binary::<i64>();
            fold(column, hashes, |i| xxh3_64(values.value(i)));
        }
        DataType::BinaryView => {
            let values = column.as_binary_view();
            fold(column, hashes, |i| xxh3_64(values.value(i)));
        }
        DataType::Dictionary(_, value_type) => {
            return hash_column(&cast(column, value_type)?, hashes);
        }
        other => {
            let canonical = if has_nested_float(other) {
                canonical_floats(column)?
            } else {
                Arc::clone(column)
            };
            let converter = RowConverter::new(vec![SortField::new(other.clone())])?;
            let rows = converter.convert_columns(&[canonical])?;
            fold(column, hashes, |i| xxh3_64(rows.row(i).as_ref()));
        }
    }
    Ok(())
}

/// The bits of a float after making all NaNs one and both zeros one.
#[inline]
fn float_bits(value: f64) -> u64 {
    if value.is_nan() {
        f64::NAN.to_bits()
    } else {
        (value + 0.0).to_bits()
    }
}

#[inline]
fn primitive<T: ArrowPrimitiveType>(column: &ArrayRef, hashes: &mut [u64], to_bits: impl Fn(T::Native) -> u64) {
    let array = column.as_primitive::<T>();
    let values = array.values();
    match array.nulls() {
        None => {
            for (hash, value) in hashes.iter_mut().zip(values.iter()) {
                *hash = combine(*hash, to_bits(*value));
            }
        }
        Some(_) => fold(column, hashes, |i| to_bits(values[i])),
    }
}

#[inline]
fn fold(column: &ArrayRef, hashes: &mut [u64], value: impl Fn(usize) -> u64) {
    match column.logical_nulls() {
        None => {
            for (i, hash) in hashes.iter_mut().enumerate() {
                *hash = combine(*hash, value(i));
            }
        }
        Some(nulls) => {
            for (i, hash) in hashes.iter_mut().enumerate() {
                let bits = if nulls.is_null(i) { NULL_HASH } else { value(i) };
                *hash = combine(*hash, bits);
            }
        }
    }
}

/// The key group of a row hash: the unit in which keyed state is stored and rescaled.
#[inline]
pub fn key_group(hash: u64, max_parallelism: u32) -> u32 {
    // Multiply-shift instead of a remainder: the same for every parallelism, and a few cycles.
    ((u128::from(hash) * u128::from(max_parallelism)) >> 64) as u32
}

/// The subtask, of `parallelism`, that owns a row hash: contiguous ranges of key groups.
#[inline]
pub fn subtask_of_hash(hash: u64, max_parallelism: u32, parallelism: usize) -> usize {
    key_group(hash, max_parallelism) as usize * parallelism / max_parallelism as usize
}

#[cfg(test)]
mod tests {
    use arrow::array::{DictionaryArray, Float64Array, Int32Array, Int64Array, ListArray, StringArray};
    use arrow::datatypes::Int8Type;

    use super::*;

    fn hash(column: ArrayRef) -> Vec<u64> {
        let mut hashes = Vec::new();
        let rows = column.len();
        hash_rows(&[column], rows, &mut hashes).unwrap();
        hashes
    }

    #[test]
    fn zeros_and_nans_are_one_value_each() {
        let other_nan = f64::from_bits(f64::NAN.to_bits() ^ 1);
        let h = hash(Arc::new(Float64Array::from(vec![
            0.0,
            -0.0,
            f64::NAN,
            other_nan,
            -f64::NAN,
        ])));
        assert_eq!(h[0], h[1]);
        assert!(h[2] == h[3] && h[3] == h[4] && h[2] != h[0]);
    }

    #[test]
    fn zeros_and_nans_inside_lists_are_one_value_each() {
        let row = |value| Some(vec![Some(1.0), Some(value)]);
        let lists =
            ListArray::from_iter_primitive::<Float64Type, _, _>([row(0.0), row(-0.0), row(f64::NAN), row(-f64::NAN)]);
        let h = hash(Arc::new(lists));
        assert!(h[0] == h[1] && h[2] == h[3] && h[0] != h[2]);
    }

    #[test]
    fn a_dictionary_hashes_as_its_values_and_null_as_null() {
        let plain = hash(Arc::new(StringArray::from(vec![Some("a"), None, Some("b"), Some("a")])));
        let dictionary: DictionaryArray<Int8Type> = vec![Some("a"), None, Some("b"), Some("a")].into_iter().collect();
        assert_eq!(plain, hash(Arc::new(dictionary)));
        assert_eq!(plain[0], plain[3]);
        assert_ne!(plain[0], plain[1]);
    }

    #[test]
    fn the_hash_is_the_same_in_every_build() {
        // Exchange between processes and state in checkpoints depend on these.
        let h = hash(Arc::new(Int64Array::from(vec![1, 2])));
        assert_eq!(h, hash(Arc::new(Int32Array::from(vec![1, 2]))));
        assert_eq!(key_group(u64::MAX, 128), 127);
        assert_eq!(key_group(0, 128), 0);
    }

    #[test]
    fn key_groups_spread_over_every_parallelism() {
        let h = hash(Arc::new(Int64Array::from_iter_values(0..100_000)));
        for parallelism in [1, 2, 7, 128] {
            let mut counts = vec![0usize; parallelism];
            for hash in &h {
                counts[subtask_of_hash(*hash, 128, parallelism)] += 1;
            }
            let expected = h.len() / parallelism;
            assert!(
                counts.iter().all(|c| *c > expected / 2 && *c < expected * 2),
                "{counts:?}"
            );
        }
    }
}
