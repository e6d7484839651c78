//! Keys of fixed width, several columns packed into one `u64` or `u128`: equality is one comparison, the hash one or
//! two multiplications, and a key is stored once, inline in a vector.

use std::ops::{BitOrAssign, Range, Shl};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray, downcast_primitive};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{ArrowPrimitiveType, DataType};

use super::group_table::KeyStore;
use super::key_value::{KeyValue, combine, hash_word};
use super::slots::{Probed, Slots};
use crate::data::{EngineError, Result};

/// The word that a key is packed into.
pub(super) trait Word: Copy + Default + Eq + Send + BitOrAssign + Shl<u32, Output = Self> + 'static {
    /// Width in bits.
    const BITS: u32;
    /// The low bits.
    fn truncate(bits: u128) -> Self;
    /// All bits.
    fn extend(self) -> u128;
    /// 32 well-mixed bits.
    fn hash(self) -> u32;
}

impl Word for u64 {
    const BITS: u32 = 64;
    #[inline]
    fn truncate(bits: u128) -> Self {
        bits as u64
    }
    #[inline]
    fn extend(self) -> u128 {
        u128::from(self)
    }
    #[inline]
    fn hash(self) -> u32 {
        (hash_word(self) >> 32) as u32
    }
}

impl Word for u128 {
    const BITS: u32 = 128;
    #[inline]
    fn truncate(bits: u128) -> Self {
        bits
    }
    #[inline]
    fn extend(self) -> u128 {
        self
    }
    #[inline]
    fn hash(self) -> u32 {
        (combine(hash_word(self as u64), (self >> 64) as u64) >> 32) as u32
    }
}

/// The width in bits of a type whose values can be packed.
pub(super) fn packed_width(data_type: &DataType) -> Option<u32> {
    macro_rules! width {
        ($t:ty) => {
            Some(<<$t as ArrowPrimitiveType>::Native as KeyValue>::BITS)
        };
    }
    downcast_primitive! {
        data_type => (width),
        _ => None
    }
    .filter(|bits| *bits <= 128)
}

struct PackedColumn {
    data_type: DataType,
    shift: u32,
    /// The bit that says that the value is NULL, if the layout has one.
    null_bit: Option<u32>,
}

/// Packed keys and the index over them.
pub(super) struct PackedKeys<W: Word> {
    columns: Vec<PackedColumn>,
    keys: Vec<W>,
    index: Index,
    /// The group of NULL when the only column has no NULL bit.
    null_group: Option<u32>,
    batch: Vec<W>,
}

enum Index {
    /// By hash.
    Hashed(Slots),
    /// By the key itself, for keys of at most 16 bits: the group number plus one.
    Direct(Vec<u32>),
}

impl<W: Word> PackedKeys<W> {
    /// A layout for columns of these types; `None` when they do not fit. `with_null` says which columns have been seen
    /// to hold NULLs: a single column needs no bit for that.
    pub(super) fn try_new(types: &[DataType], with_null: &[bool]) -> Option<Self> {
        let mut columns = Vec::with_capacity(types.len());
        let mut used = 0;
        for (data_type, with_null) in types.iter().zip(with_null) {
            let width = packed_width(data_type)?;
            let null_bit = (*with_null && types.len() > 1).then_some(used + width);
            columns.push(PackedColumn {
                data_type: data_type.clone(),
                shift: used,
                null_bit,
            });
            used += width + u32::from(null_bit.is_some());
        }
        let index = match used {
            0..=16 => Index::Direct(vec![0; 1 << used]),
            _ => Index::Hashed(Slots::new()),
        };
        (used <= W::BITS).then(|| Self {
            columns,
            keys: Vec::new(),
            index,
            null_group: None,
            batch: Vec::new(),
        })
    }

    fn pack(&mut self, arrays: &[ArrayRef], rows: usize) -> Result<()> {
        self.batch.clear();
        self.batch.resize(rows, W::default());
        for (column, array) in self.columns.iter().zip(arrays) {
            macro_rules! pack {
                ($t:ty) => {
                    pack_column::<$t, W>(array.as_primitive(), column, &mut self.batch)
                };
            }
            downcast_primitive! {
                array.data_type() => (pack),
                other => return Err(EngineError::Internal(format!("a group key of type {other} cannot be packed")))
            }
        }
        Ok(())
    }

    fn find_or_insert(&mut self, nulls: Option<&NullBuffer>, groups: &mut Vec<usize>) {
        let Self {
            keys,
            index,
            null_group,
            batch,
            ..
        } = self;
        let mut of_null = |keys: &mut Vec<W>| {
            *null_group.get_or_insert_with(|| {
                keys.push(W::default());
                (keys.len() - 1) as u32
            }) as usize
        };
        match (index, nulls) {
            (Index::Hashed(slots), None) => groups.extend(batch.iter().map(|key| hashed(slots, keys, *key))),
            (Index::Hashed(slots), Some(nulls)) => groups.extend(batch.iter().zip(nulls).map(|(key, valid)| {
                if valid {
                    hashed(slots, keys, *key)
                } else {
                    of_null(keys)
                }
            })),
            (Index::Direct(table), None) => groups.extend(batch.iter().map(|key| direct(table, keys, *key))),
            (Index::Direct(table), Some(nulls)) => groups.extend(batch.iter().zip(nulls).map(|(key, valid)| {
                if valid {
                    direct(table, keys, *key)
                } else {
                    of_null(keys)
                }
            })),
        }
    }
}

#[inline]
fn hashed<W: Word>(slots: &mut Slots, keys: &mut Vec<W>, key: W) -> usize {
    let hash = key.hash();
    let mut position = slots.home(hash);
    loop {
        match slots.probe(hash, position) {
            Probed::Candidate(group, at) => {
                if keys[group as usize] == key {
                    return group as usize;
                }
                position = slots.next(at);
            }
            Probed::Free(at) => {
                let group = keys.len();
                slots.occupy(at, hash, group as u32);
                keys.push(key);
                return group;
            }
        }
    }
}

#[inline]
fn direct<W: Word>(table: &mut [u32], keys: &mut Vec<W>, key: W) -> usize {
    let slot = &mut table[key.extend() as usize];
    if *slot == 0 {
        keys.push(key);
        *slot = keys.len() as u32;
    }
    *slot as usize - 1
}

fn pack_column<T: ArrowPrimitiveType, W: Word>(array: &PrimitiveArray<T>, column: &PackedColumn, batch: &mut [W])
where
    T::Native: KeyValue,
{
    let bits = |value: T::Native| W::truncate(value.canonical().bits());
    match (array.nulls().filter(|nulls| nulls.null_count() > 0), column.null_bit) {
        (Some(nulls), Some(null_bit)) => {
            let null = W::truncate(1) << null_bit;
            for ((key, value), valid) in batch.iter_mut().zip(array.values()).zip(nulls) {
                *key |= if valid { bits(*value) << column.shift } else { null };
            }
        }
        _ => {
            for (key, value) in batch.iter_mut().zip(array.values()) {
                *key |= bits(*value) << column.shift;
            }
        }
    }
}

fn unpack_column<T: ArrowPrimitiveType, W: Word>(
    keys: &[W],
    column: &PackedColumn,
    nulls: Option<NullBuffer>,
) -> ArrayRef
where
    T::Native: KeyValue,
{
    let values = keys
        .iter()
        .map(|key| T::Native::from_bits(key.extend() >> column.shift));
    let array = PrimitiveArray::<T>::new(values.collect(), nulls);
    Arc::new(array.with_data_type(column.data_type.clone()))
}

impl<W: Word> KeyStore for PackedKeys<W> {
    fn accepts(&self, arrays: &[ArrayRef]) -> bool {
        arrays.len() == 1
            || arrays
                .iter()
                .zip(&self.columns)
                .all(|(array, column)| column.null_bit.is_some() || array.null_count() == 0)
    }

    fn intern(&mut self, arrays: &[ArrayRef], groups: &mut Vec<usize>) -> Result<()> {
        let rows = arrays[0].len();
        if let Index::Hashed(slots) = &mut self.index {
            slots.reserve(rows)?;
        }
        self.pack(arrays, rows)?;
        let only_nulls = match arrays {
            [only] => only.nulls().filter(|nulls| nulls.null_count() > 0),
            _ => None,
        };
        self.find_or_insert(only_nulls, groups);
        Ok(())
    }

    fn len(&self) -> usize {
        self.keys.len()
    }

    fn emit(&self, range: Range<usize>) -> Result<Vec<ArrayRef>> {
        let keys = &self.keys[range.clone()];
        let emit = |column: &PackedColumn| {
            let nulls = match (column.null_bit, self.null_group) {
                (Some(bit), _) => Some(NullBuffer::from_iter(
                    keys.iter().map(|key| (key.extend() >> bit) & 1 == 0),
                )),
                (None, Some(null)) => Some(NullBuffer::from_iter(range.clone().map(|group| group != null as usize))),
                (None, None) => None,
            };
            let nulls = nulls.filter(|nulls| nulls.null_count() > 0);
            macro_rules! unpack {
                ($t:ty) => {
                    Ok(unpack_column::<$t, W>(keys, column, nulls))
                };
            }
            downcast_primitive! {
                &column.data_type => (unpack),
                other => Err(EngineError::Internal(format!("a group key of type {other} cannot be unpacked")))
            }
        };
        self.columns.iter().map(emit).collect()
    }

    fn size(&self) -> usize {
        let index = match &self.index {
            Index::Hashed(slots) => slots.size(),
            Index::Direct(table) => table.capacity() * size_of::<u32>(),
        };
        index + (self.keys.capacity() + self.batch.capacity()) * size_of::<W>()
    }

    fn growth(&self, rows: usize) -> usize {
        match &self.index {
            Index::Hashed(slots) => slots.growth(rows) + rows * size_of::<W>(),
            Index::Direct(_) => 0,
        }
    }
}
