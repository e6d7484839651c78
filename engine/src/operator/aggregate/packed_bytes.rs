//! Short strings as fields of packed keys: the bytes, and above them one byte of length (or of NULL).

use arrow::array::types::{
    BinaryType, BinaryViewType, ByteArrayType, ByteViewType, LargeBinaryType, LargeUtf8Type, StringViewType, Utf8Type,
};
use arrow::array::{Array, ArrayRef, AsArray, GenericByteArray, GenericByteViewArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{ArrowNativeType, DataType};

use super::bytes_column::{ByteArray, ByteHeap};
use super::packed_keys::Word;
use crate::data::{EngineError, Result};

/// The length that stands for NULL.
const NULL_LENGTH: u128 = 255;

/// An array of byte strings of which short ones are read as words.
trait ShortStrings: ByteArray {
    /// The length of the longest string.
    fn longest(&self) -> usize;

    /// A string of at most 15 bytes: its bytes from the lowest up, then zeros, and its length.
    fn word(&self, row: usize) -> (u128, u128);
}

impl<T: ByteArrayType> ShortStrings for GenericByteArray<T> {
    fn longest(&self) -> usize {
        self.value_offsets()
            .windows(2)
            .map(|ends| ends[1].as_usize() - ends[0].as_usize())
            .max()
            .unwrap_or(0)
    }

    #[inline]
    fn word(&self, row: usize) -> (u128, u128) {
        let offsets = self.value_offsets();
        let (start, end) = (offsets[row].as_usize(), offsets[row + 1].as_usize());
        let length = end - start;
        // One load, with what follows masked off, beats a copy of so few bytes; but the buffer may end before.
        let bytes = match self
            .value_data()
            .get(start..start + 16)
            .and_then(|bytes| <[u8; 16]>::try_from(bytes).ok())
        {
            Some(bytes) => u128::from_le_bytes(bytes) & ((1u128 << (8 * length)) - 1),
            None => self.value_data()[start..end]
                .iter()
                .rev()
                .fold(0, |word, byte| (word << 8) | u128::from(*byte)),
        };
        (bytes, length as u128)
    }
}

impl<T: ByteViewType> ShortStrings for GenericByteViewArray<T> {
    fn longest(&self) -> usize {
        self.views().iter().map(|view| *view as u32).max().unwrap_or(0) as usize
    }

    #[inline]
    fn word(&self, row: usize) -> (u128, u128) {
        let view = self.views()[row];
        let length = u128::from(view as u32);
        if length <= 12 {
            return (view >> 32, length);
        }
        let bytes: &[u8] = self.bytes(row);
        (
            bytes.iter().rev().fold(0, |word, byte| (word << 8) | u128::from(*byte)),
            length,
        )
    }
}

/// The length of the longest string of a column; 0 when it is of another type.
pub(super) fn longest(array: &ArrayRef) -> usize {
    match array.data_type() {
        DataType::Utf8 => array.as_bytes::<Utf8Type>().longest(),
        DataType::LargeUtf8 => array.as_bytes::<LargeUtf8Type>().longest(),
        DataType::Binary => array.as_bytes::<BinaryType>().longest(),
        DataType::LargeBinary => array.as_bytes::<LargeBinaryType>().longest(),
        DataType::Utf8View => array.as_byte_view::<StringViewType>().longest(),
        DataType::BinaryView => array.as_byte_view::<BinaryViewType>().longest(),
        _ => 0,
    }
}

/// The width in bits of a field for strings of at most `longest` bytes; `None` when they are too long or no strings.
pub(super) fn field_width(data_type: &DataType, longest: usize) -> Option<u32> {
    let bytes = match data_type {
        DataType::Utf8
        | DataType::LargeUtf8
        | DataType::Binary
        | DataType::LargeBinary
        | DataType::Utf8View
        | DataType::BinaryView => longest + 1,
        _ => return None,
    };
    (bytes <= 16).then(|| 8 * bytes.next_power_of_two().max(2) as u32)
}

/// Adds a column's strings, at `shift`, to the keys.
///
/// # Errors
/// When the column is of another type.
pub(super) fn pack<W: Word>(array: &ArrayRef, shift: u32, width: u32, batch: &mut [W]) -> Result<()> {
    match array.data_type() {
        DataType::Utf8 => pack_column(array.as_bytes::<Utf8Type>(), shift, width, batch),
        DataType::LargeUtf8 => pack_column(array.as_bytes::<LargeUtf8Type>(), shift, width, batch),
        DataType::Binary => pack_column(array.as_bytes::<BinaryType>(), shift, width, batch),
        DataType::LargeBinary => pack_column(array.as_bytes::<LargeBinaryType>(), shift, width, batch),
        DataType::Utf8View => pack_column(array.as_byte_view::<StringViewType>(), shift, width, batch),
        DataType::BinaryView => pack_column(array.as_byte_view::<BinaryViewType>(), shift, width, batch),
        other => {
            return Err(EngineError::Internal(format!(
                "a group key of type {other} cannot be packed"
            )));
        }
    }
    Ok(())
}

fn pack_column<A: ShortStrings, W: Word>(array: &A, shift: u32, width: u32, batch: &mut [W]) {
    let length_at = width - 8;
    let field = |row: usize| {
        let (bytes, length) = array.word(row);
        W::truncate(bytes | (length << length_at)) << shift
    };
    match array.nulls().filter(|nulls| nulls.null_count() > 0) {
        None => {
            for (row, key) in batch.iter_mut().enumerate() {
                *key |= field(row);
            }
        }
        Some(nulls) => {
            let null = W::truncate(NULL_LENGTH << length_at) << shift;
            for ((row, key), valid) in batch.iter_mut().enumerate().zip(nulls) {
                *key |= if valid { field(row) } else { null };
            }
        }
    }
}

/// The strings at `shift` of the keys, as an array.
///
/// # Errors
/// When the type is another.
pub(super) fn unpack<W: Word>(keys: &[W], shift: u32, width: u32, data_type: &DataType) -> Result<ArrayRef> {
    let mut heap = ByteHeap::new();
    let mut valid = Vec::with_capacity(keys.len());
    for key in keys {
        let field = key.extend() >> shift;
        let length = (field >> (width - 8)) & 0xFF;
        valid.push(length != NULL_LENGTH);
        let length = if length == NULL_LENGTH { 0 } else { length as usize };
        heap.push(&field.to_le_bytes()[..length]);
    }
    let nulls = Some(NullBuffer::from(valid)).filter(|nulls| nulls.null_count() > 0);
    let all = 0..keys.len();
    match data_type {
        DataType::Utf8 => GenericByteArray::<Utf8Type>::build(data_type, &heap, all, nulls),
        DataType::LargeUtf8 => GenericByteArray::<LargeUtf8Type>::build(data_type, &heap, all, nulls),
        DataType::Binary => GenericByteArray::<BinaryType>::build(data_type, &heap, all, nulls),
        DataType::LargeBinary => GenericByteArray::<LargeBinaryType>::build(data_type, &heap, all, nulls),
        DataType::Utf8View => GenericByteViewArray::<StringViewType>::build(data_type, &heap, all, nulls),
        DataType::BinaryView => GenericByteViewArray::<BinaryViewType>::build(data_type, &heap, all, nulls),
        other => Err(EngineError::Internal(format!(
            "a group key of type {other} cannot be unpacked"
        ))),
    }
}
