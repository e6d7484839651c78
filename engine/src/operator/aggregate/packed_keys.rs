//! Keys of fixed width and short strings, several columns packed into one `u64` or `u128`: equality is one comparison, the hash one or
//! two multiplications, and a key is stored once, inline in a vector.

use std::ops::{BitOrAssign, Range, Shl};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, PrimitiveArray, downcast_primitive};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{ArrowPrimitiveType, DataType};

use super::group_table::{KeyStore, vec_growth};
use super::key_value::{KeyValue, combine, hash_word};
use super::packed_bytes;
use super::slots::{Probed, Slots};
use crate::data::Result;

/// The word that a key is packed into.
pub(super) trait Word:
    Copy + Default + Eq + Send + Sync + BitOrAssign + Shl<u32, Output = Self> + 'static
{
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

/// What has been seen of a key column, and hence a layout must have room for.
#[derive(Clone, Copy, Default)]
pub(super) struct Seen {
    /// There have been NULLs.
    pub(super) nulls: bool,
    /// The length of the longest string.
    pub(super) longest: usize,
}

#[derive(Clone)]
struct PackedColumn {
    data_type: DataType,
    shift: u32,
    width: u32,
    /// Whether the column is of strings, whose NULL is a length.
    strings: bool,
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
    /// By the key itself, for keys of at most 16 bits: the group number plus one. Empty until the first key.
    Direct { table: Vec<u32>, bits: u32 },
}

impl<W: Word> PackedKeys<W> {
    /// A layout for columns of these types; `None` when they do not fit. Only what has been `seen` gets room.
    pub(super) fn try_new(types: &[DataType], seen: &[Seen]) -> Option<Self> {
        let mut columns = Vec::with_capacity(types.len());
        let mut used = 0;
        for (data_type, seen) in types.iter().zip(seen) {
            let as_string = packed_bytes::field_width(data_type, seen.longest);
            let strings = as_string.is_some();
            let width = as_string.or_else(|| packed_width(data_type))?;
            // A single column keeps its NULL aside.
            let null_bit = (seen.nulls && !strings && types.len() > 1).then_some(used + width);
            columns.push(PackedColumn {
                data_type: data_type.clone(),
                shift: used,
                width,
                strings,
                null_bit,
            });
            used += width + u32::from(null_bit.is_some());
        }
        if used > W::BITS {
            return None;
        }
        let index = match used {
            0..=16 => Index::Direct {
                table: Vec::new(),
                bits: used,
            },
            _ => Index::Hashed(Slots::new()),
        };
        Some(Self {
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
                _ => packed_bytes::pack(array, column.shift, column.width, &mut self.batch)?
            }
        }
        Ok(())
    }

    /// The columns of `keys`. `without` tells which of them are not the group of the only column's NULL.
    fn unpack(&self, keys: &[W], without: impl Fn(u32) -> NullBuffer) -> Result<Vec<ArrayRef>> {
        let unpack = |column: &PackedColumn| {
            let nulls = match (column.null_bit, self.null_group) {
                (Some(bit), _) => Some(NullBuffer::from_iter(
                    keys.iter().map(|key| (key.extend() >> bit) & 1 == 0),
                )),
                (None, Some(null)) => Some(without(null)),
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
                _ => packed_bytes::unpack(keys, column.shift, column.width, &column.data_type)
            }
        };
        self.columns.iter().map(unpack).collect()
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
            (Index::Direct { table, .. }, None) => groups.extend(batch.iter().map(|key| direct(table, keys, *key))),
            (Index::Direct { table, .. }, Some(nulls)) => groups.extend(batch.iter().zip(nulls).map(|(key, valid)| {
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
        arrays.iter().zip(&self.columns).all(|(array, column)| {
            if column.strings {
                packed_bytes::longest(array) < column.width as usize / 8
            } else {
                arrays.len() == 1 || column.null_bit.is_some() || array.null_count() == 0
            }
        })
    }

    fn intern(&mut self, arrays: &[ArrayRef], groups: &mut Vec<usize>) -> Result<()> {
        let rows = arrays[0].len();
        match &mut self.index {
            Index::Hashed(slots) => slots.reserve(rows)?,
            Index::Direct { table, bits } if table.is_empty() => *table = vec![0; 1 << *bits],
            Index::Direct { .. } => {}
        }
        self.pack(arrays, rows)?;
        let only_nulls = match arrays {
            [only] if !self.columns[0].strings => only.nulls().filter(|nulls| nulls.null_count() > 0),
            _ => None,
        };
        self.find_or_insert(only_nulls, groups);
        Ok(())
    }

    fn len(&self) -> usize {
        self.keys.len()
    }

    fn emit(&self, range: Range<usize>) -> Result<Vec<ArrayRef>> {
        self.unpack(&self.keys[range.clone()], |null| {
            range.clone().map(|group| group != null as usize).collect()
        })
    }

    fn gather(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        let keys: Vec<W> = groups.iter().map(|group| self.keys[*group as usize]).collect();
        self.unpack(&keys, |null| groups.iter().map(|group| *group != null).collect())
    }

    fn size(&self) -> usize {
        let index = match &self.index {
            Index::Hashed(slots) => slots.size(),
            Index::Direct { table, .. } => table.capacity() * size_of::<u32>(),
        };
        index + (self.keys.capacity() + self.batch.capacity()) * size_of::<W>()
    }

    fn bytes_in(&self, range: Range<usize>) -> usize {
        let strings: usize = self.columns.iter().filter(|column| column.strings).count();
        range.len() * (size_of::<W>() + strings * size_of::<u128>())
    }

    fn growth(&self, columns: &[ArrayRef]) -> usize {
        let rows = columns.first().map_or(0, |column| column.len());
        let batch = rows.saturating_sub(self.batch.capacity()) * size_of::<W>();
        match &self.index {
            Index::Hashed(slots) => slots.growth(rows) + vec_growth(&self.keys, rows) + batch,
            // The table itself is not counted before it is there: the first strings tend to ask for a wider store.
            Index::Direct { bits, .. } => vec_growth(&self.keys, rows.min(1 << *bits)) + batch,
        }
    }

    fn frozen(&self) -> Result<Box<dyn KeyStore>> {
        Ok(Box::new(Self {
            columns: self.columns.clone(),
            keys: self.keys.clone(),
            index: Index::Direct {
                table: Vec::new(),
                bits: 0,
            },
            null_group: self.null_group,
            batch: Vec::new(),
        }))
    }
}
