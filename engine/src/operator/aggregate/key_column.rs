//! One column of stored group keys, and the columns of fixed width.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::datatypes::DataType;

use super::group_table::vec_growth;
use super::key_value::{KeyValue, NULL_HASH, combine};
use crate::data::Result;

/// One column of stored keys. Called once per batch and round, never per row.
pub(super) trait KeyColumn: Send + Sync {
    /// Takes the batch's column; the other calls until `release` refer to its rows.
    ///
    /// # Errors
    /// When the column cannot be converted.
    fn bind(&mut self, array: &ArrayRef) -> Result<()>;

    /// Combines the hash of each row with that of the columns before.
    fn hash(&self, hashes: &mut [u64]);

    /// Clears `same[i]` where row `rows[i]` is not the key of group `groups[i]`.
    fn compare(&self, rows: &[u32], groups: &[u32], same: &mut [bool]);

    /// Stores the keys of these rows as the next groups.
    fn append(&mut self, rows: &[u32]);

    /// Lets go of the batch's column.
    fn release(&mut self);

    /// The keys of a range of groups.
    ///
    /// # Errors
    /// When the keys do not fit an array of the column's type.
    fn emit(&self, range: Range<usize>) -> Result<ArrayRef>;

    /// The keys of these groups, in this order.
    ///
    /// # Errors
    /// As for `emit`.
    fn gather(&self, groups: &[u32]) -> Result<ArrayRef>;

    /// Bytes held.
    fn size(&self) -> usize;

    /// Bytes that `emit` of this range takes.
    fn bytes_in(&self, range: Range<usize>) -> usize;

    /// Bytes that the rows of `array`, which may be a dictionary, add when all of them are new.
    fn growth(&self, array: &ArrayRef) -> usize;

    /// A copy that keys can be read from.
    ///
    /// # Errors
    /// When the type has no row format.
    fn frozen(&self) -> Result<Box<dyn KeyColumn>>;
}

/// Which groups have NULL in a column; no memory until the first.
#[derive(Clone, Default)]
pub(super) struct Nulls {
    flags: Vec<bool>,
}

impl Nulls {
    /// Whether the group has NULL.
    #[inline]
    pub(super) fn contains(&self, group: usize) -> bool {
        self.flags.get(group).copied().unwrap_or(false)
    }

    /// Marks a group; groups are marked in rising order.
    pub(super) fn mark(&mut self, group: usize) {
        self.flags.resize(group, false);
        self.flags.push(true);
    }

    /// Whether no group has NULL.
    pub(super) fn is_empty(&self) -> bool {
        self.flags.is_empty()
    }

    /// The validity of a range of groups.
    pub(super) fn emit(&self, range: Range<usize>) -> Option<NullBuffer> {
        if self.is_empty() {
            return None;
        }
        Some(NullBuffer::from_iter(range.map(|group| !self.contains(group)))).filter(|nulls| nulls.null_count() > 0)
    }

    /// The validity of these groups.
    pub(super) fn gather(&self, groups: &[u32]) -> Option<NullBuffer> {
        if self.is_empty() {
            return None;
        }
        let valid = groups.iter().map(|group| !self.contains(*group as usize));
        Some(NullBuffer::from_iter(valid)).filter(|nulls| nulls.null_count() > 0)
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.flags.capacity()
    }
}

/// Keys of a fixed width.
pub(super) struct PrimitiveColumn<T: ArrowPrimitiveType> {
    data_type: DataType,
    values: Vec<T::Native>,
    nulls: Nulls,
    bound: Option<PrimitiveArray<T>>,
}

impl<T: ArrowPrimitiveType> PrimitiveColumn<T> {
    /// An empty column.
    pub(super) fn new(data_type: DataType) -> Self {
        Self {
            data_type,
            values: Vec::new(),
            nulls: Nulls::default(),
            bound: None,
        }
    }
}

impl<T: ArrowPrimitiveType> KeyColumn for PrimitiveColumn<T>
where
    T::Native: KeyValue,
{
    fn bind(&mut self, array: &ArrayRef) -> Result<()> {
        self.bound = Some(array.as_primitive::<T>().clone());
        Ok(())
    }

    fn hash(&self, hashes: &mut [u64]) {
        let Some(array) = &self.bound else { return };
        match array.nulls().filter(|nulls| nulls.null_count() > 0) {
            None => {
                for (hash, value) in hashes.iter_mut().zip(array.values()) {
                    *hash = combine(*hash, value.canonical().hash());
                }
            }
            Some(nulls) => {
                for ((hash, value), valid) in hashes.iter_mut().zip(array.values()).zip(nulls) {
                    *hash = combine(*hash, if valid { value.canonical().hash() } else { NULL_HASH });
                }
            }
        }
    }

    fn compare(&self, rows: &[u32], groups: &[u32], same: &mut [bool]) {
        let Some(array) = &self.bound else { return };
        let values = array.values();
        let pairs = rows.iter().zip(groups).zip(same);
        if self.nulls.is_empty() && array.null_count() == 0 {
            for ((row, group), same) in pairs {
                *same &= values[*row as usize].canonical().same(self.values[*group as usize]);
            }
            return;
        }
        for ((row, group), same) in pairs {
            let (row, group) = (*row as usize, *group as usize);
            *same &= match (array.is_null(row), self.nulls.contains(group)) {
                (false, false) => values[row].canonical().same(self.values[group]),
                (row_is_null, group_is_null) => row_is_null && group_is_null,
            };
        }
    }

    fn append(&mut self, rows: &[u32]) {
        let Some(array) = &self.bound else { return };
        let values = array.values();
        if array.null_count() == 0 {
            self.values
                .extend(rows.iter().map(|row| values[*row as usize].canonical()));
            return;
        }
        for row in rows {
            if array.is_null(*row as usize) {
                self.nulls.mark(self.values.len());
                self.values.push(T::Native::default());
            } else {
                self.values.push(values[*row as usize].canonical());
            }
        }
    }

    fn release(&mut self) {
        self.bound = None;
    }

    fn emit(&self, range: Range<usize>) -> Result<ArrayRef> {
        let values = ScalarBuffer::from(self.values[range.clone()].to_vec());
        let array = PrimitiveArray::<T>::new(values, self.nulls.emit(range));
        Ok(Arc::new(array.with_data_type(self.data_type.clone())))
    }

    fn gather(&self, groups: &[u32]) -> Result<ArrayRef> {
        let values = groups.iter().map(|group| self.values[*group as usize]);
        let array = PrimitiveArray::<T>::new(values.collect(), self.nulls.gather(groups));
        Ok(Arc::new(array.with_data_type(self.data_type.clone())))
    }

    fn size(&self) -> usize {
        self.values.capacity() * size_of::<T::Native>() + self.nulls.size()
    }

    fn bytes_in(&self, range: Range<usize>) -> usize {
        range.len() * size_of::<T::Native>()
    }

    fn growth(&self, array: &ArrayRef) -> usize {
        vec_growth(&self.values, array.len())
    }

    fn frozen(&self) -> Result<Box<dyn KeyColumn>> {
        Ok(Box::new(Self {
            data_type: self.data_type.clone(),
            values: self.values.clone(),
            nulls: self.nulls.clone(),
            bound: None,
        }))
    }
}
