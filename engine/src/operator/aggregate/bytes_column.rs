//! Keys of variable width (strings and binaries of all layouts): their bytes one after another in one buffer.

use std::hash::{BuildHasher, Hasher};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::builder::make_view;
use arrow::array::types::{ByteArrayType, ByteViewType};
use arrow::array::{Array, ArrayRef, FixedSizeBinaryArray, GenericByteArray, GenericByteViewArray, OffsetSizeTrait};
use arrow::buffer::{Buffer, NullBuffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{ArrowNativeType, DataType};
use foldhash::fast::FixedState;

use super::group_table::vec_growth;
use super::key_column::{KeyColumn, Nulls};
use super::key_value::{NULL_HASH, combine};
use crate::data::{EngineError, Result};
use crate::operator::array_bytes::payload_bytes;

/// Byte strings one after another.
#[derive(Clone)]
pub(super) struct ByteHeap {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl ByteHeap {
    pub(super) fn new() -> Self {
        Self {
            bytes: Vec::new(),
            ends: Vec::new(),
        }
    }

    /// How many strings there are.
    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    /// Appends a string.
    #[inline]
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.ends.push(self.bytes.len());
    }

    /// The string with this number.
    #[inline]
    pub(super) fn get(&self, index: usize) -> &[u8] {
        let start = if index == 0 { 0 } else { self.ends[index - 1] };
        &self.bytes[start..self.ends[index]]
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.bytes.capacity() + self.ends.capacity() * size_of::<usize>()
    }

    /// Bytes of an array of a range of strings.
    pub(super) fn bytes_in(&self, range: Range<usize>) -> usize {
        let start = range.start.checked_sub(1).map_or(0, |before| self.ends[before]);
        let end = range.end.checked_sub(1).map_or(0, |last| self.ends[last]);
        end.saturating_sub(start) + range.len() * size_of::<u128>()
    }

    /// Bytes that so many strings of so many bytes in all add.
    pub(super) fn growth(&self, strings: usize, bytes: usize) -> usize {
        vec_growth(&self.bytes, bytes) + vec_growth(&self.ends, strings)
    }
}

/// Hashes a byte string.
#[inline]
pub(super) fn hash_bytes(state: &FixedState, bytes: &[u8]) -> u64 {
    let mut hasher = state.build_hasher();
    hasher.write(bytes);
    // The hasher does not tell lengths apart when the bytes are zeros.
    hasher.finish() ^ (bytes.len() as u64)
}

/// An Arrow array of byte strings.
pub(super) trait ByteArray: Array + Clone + 'static {
    /// The bytes of a row.
    fn bytes(&self, row: usize) -> &[u8];

    /// An array of `strings`, which are bytes of rows of arrays of this type.
    ///
    /// # Errors
    /// When they do not fit one array.
    fn build(data_type: &DataType, heap: &ByteHeap, range: Range<usize>, nulls: Option<NullBuffer>)
    -> Result<ArrayRef>;
}

impl<T: ByteArrayType> ByteArray for GenericByteArray<T> {
    #[inline]
    fn bytes(&self, row: usize) -> &[u8] {
        self.value(row).as_ref()
    }

    fn build(
        data_type: &DataType,
        heap: &ByteHeap,
        range: Range<usize>,
        nulls: Option<NullBuffer>,
    ) -> Result<ArrayRef> {
        let start = if range.start == 0 {
            0
        } else {
            heap.ends[range.start - 1]
        };
        let end = range.end.checked_sub(1).map_or(start, |last| heap.ends[last]);
        if end - start > T::Offset::MAX_OFFSET {
            return Err(EngineError::Plan(format!(
                "the group keys of one batch take {} bytes, too many for {data_type}; cast the key to LargeUtf8 or lower the batch size",
                end - start
            )));
        }
        let ends = heap.ends[range].iter().map(|end| T::Offset::usize_as(end - start));
        let offsets: Vec<T::Offset> = std::iter::once(T::Offset::usize_as(0)).chain(ends).collect();
        let bytes = Buffer::from(&heap.bytes[start..end]);
        // SAFETY: the offsets start at 0, rise and end at the buffer's length; each string is a whole value of an array
        // of this type, hence valid for it (UTF-8 where it must be).
        let array =
            unsafe { Self::new_unchecked(OffsetBuffer::new_unchecked(ScalarBuffer::from(offsets)), bytes, nulls) };
        Ok(Arc::new(array))
    }
}

impl<T: ByteViewType> ByteArray for GenericByteViewArray<T> {
    #[inline]
    fn bytes(&self, row: usize) -> &[u8] {
        self.value(row).as_ref()
    }

    fn build(
        data_type: &DataType,
        heap: &ByteHeap,
        range: Range<usize>,
        nulls: Option<NullBuffer>,
    ) -> Result<ArrayRef> {
        let mut long = Vec::new();
        let mut views = Vec::with_capacity(range.len());
        for index in range {
            let bytes = heap.get(index);
            views.push(make_view(bytes, 0, long.len() as u32));
            if bytes.len() > 12 {
                long.extend_from_slice(bytes);
            }
        }
        if long.len() > u32::MAX as usize {
            return Err(EngineError::Plan(format!(
                "the group keys of one batch take {} bytes, too many for {data_type}; lower the batch size",
                long.len()
            )));
        }
        let buffers: Vec<Buffer> = if long.is_empty() {
            Vec::new()
        } else {
            vec![Buffer::from_vec(long)]
        };
        // SAFETY: every view longer than 12 bytes points at its bytes in the one buffer, with offsets that fit (checked
        // above); each string is a whole value of an array of this type, hence valid for it (UTF-8 where it must be).
        let array = unsafe { Self::new_unchecked(ScalarBuffer::from(views), buffers, nulls) };
        Ok(Arc::new(array))
    }
}

impl ByteArray for FixedSizeBinaryArray {
    #[inline]
    fn bytes(&self, row: usize) -> &[u8] {
        self.value(row)
    }

    fn build(
        data_type: &DataType,
        heap: &ByteHeap,
        range: Range<usize>,
        nulls: Option<NullBuffer>,
    ) -> Result<ArrayRef> {
        let DataType::FixedSizeBinary(width) = data_type else {
            return Err(EngineError::Internal(format!("{data_type} is no fixed-size binary")));
        };
        let mut bytes = Vec::with_capacity(range.len() * *width as usize);
        for (row, index) in range.clone().enumerate() {
            bytes.extend_from_slice(heap.get(index));
            // NULL is stored as no bytes.
            bytes.resize((row + 1) * *width as usize, 0);
        }
        let array = FixedSizeBinaryArray::try_new_with_len(*width, Buffer::from_vec(bytes), nulls, range.len())?;
        Ok(Arc::new(array))
    }
}

/// Keys of variable width, from and to arrays of type `A`.
pub(super) struct BytesColumn<A: ByteArray> {
    data_type: DataType,
    state: FixedState,
    heap: ByteHeap,
    nulls: Nulls,
    bound: Option<A>,
}

impl<A: ByteArray> BytesColumn<A> {
    /// An empty column.
    pub(super) fn new(data_type: DataType) -> Self {
        Self {
            data_type,
            state: FixedState::default(),
            heap: ByteHeap::new(),
            nulls: Nulls::default(),
            bound: None,
        }
    }
}

impl<A: ByteArray> KeyColumn for BytesColumn<A> {
    fn bind(&mut self, array: &ArrayRef) -> Result<()> {
        let array = array.as_any().downcast_ref::<A>();
        self.bound = Some(
            array
                .cloned()
                .ok_or_else(|| EngineError::Internal(format!("a key is no {}", self.data_type)))?,
        );
        Ok(())
    }

    fn hash(&self, hashes: &mut [u64]) {
        let Some(array) = &self.bound else { return };
        if array.null_count() == 0 {
            for (row, hash) in hashes.iter_mut().enumerate() {
                *hash = combine(*hash, hash_bytes(&self.state, array.bytes(row)));
            }
            return;
        }
        for (row, hash) in hashes.iter_mut().enumerate() {
            let of_row = if array.is_null(row) {
                NULL_HASH
            } else {
                hash_bytes(&self.state, array.bytes(row))
            };
            *hash = combine(*hash, of_row);
        }
    }

    fn compare(&self, rows: &[u32], groups: &[u32], same: &mut [bool]) {
        let Some(array) = &self.bound else { return };
        let pairs = rows.iter().zip(groups).zip(same);
        if self.nulls.is_empty() && array.null_count() == 0 {
            for ((row, group), same) in pairs {
                *same = *same && array.bytes(*row as usize) == self.heap.get(*group as usize);
            }
            return;
        }
        for ((row, group), same) in pairs {
            let (row, group) = (*row as usize, *group as usize);
            *same = *same
                && match (array.is_null(row), self.nulls.contains(group)) {
                    (false, false) => array.bytes(row) == self.heap.get(group),
                    (row_is_null, group_is_null) => row_is_null && group_is_null,
                };
        }
    }

    fn append(&mut self, rows: &[u32]) {
        let Some(array) = &self.bound else { return };
        for row in rows {
            if array.is_null(*row as usize) {
                self.nulls.mark(self.heap.len());
                self.heap.push(&[]);
            } else {
                self.heap.push(array.bytes(*row as usize));
            }
        }
    }

    fn release(&mut self) {
        self.bound = None;
    }

    fn emit(&self, range: Range<usize>) -> Result<ArrayRef> {
        A::build(&self.data_type, &self.heap, range.clone(), self.nulls.emit(range))
    }

    fn gather(&self, groups: &[u32]) -> Result<ArrayRef> {
        let mut heap = ByteHeap::new();
        for group in groups {
            heap.push(self.heap.get(*group as usize));
        }
        A::build(&self.data_type, &heap, 0..heap.len(), self.nulls.gather(groups))
    }

    fn size(&self) -> usize {
        self.heap.size() + self.nulls.size()
    }

    fn bytes_in(&self, range: Range<usize>) -> usize {
        self.heap.bytes_in(range)
    }

    fn growth(&self, array: &ArrayRef) -> usize {
        self.heap.growth(array.len(), payload_bytes(array))
    }

    fn frozen(&self) -> Result<Box<dyn KeyColumn>> {
        Ok(Box::new(Self {
            data_type: self.data_type.clone(),
            state: self.state.clone(),
            heap: self.heap.clone(),
            nulls: self.nulls.clone(),
            bound: None,
        }))
    }
}
