//! What a cell of a typed state holds: a value, a list or a map, each of which may expire.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicUsize, Ordering};

use arrow::array::{ArrayRef, Int64Array};
use arrow::datatypes::DataType;

use super::value::{StateValue, bytes_of};
use crate::data::Result;
use crate::state::Ttl;

/// When something happens to a state.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    pub(super) ttl: Option<Ttl>,
    pub(super) now_ms: i64,
    pub(super) epoch: u32,
}

impl Moment {
    pub(super) fn has_expired(&self, touched_ms: i64) -> bool {
        self.ttl.is_some_and(|ttl| ttl.has_expired(touched_ms, self.now_ms))
    }

    fn counts_reads(&self) -> bool {
        self.ttl.is_some_and(|ttl| ttl.counts_reads())
    }
}

/// When something was used last, and after which barrier. Reading counts too, so it changes behind shared references.
#[derive(Default)]
pub(super) struct Stamp {
    touched_ms: AtomicI64,
    epoch: AtomicU32,
}

impl Stamp {
    fn touch(&self, moment: &Moment) {
        self.touched_ms.store(moment.now_ms, Ordering::Relaxed);
        self.epoch.store(moment.epoch, Ordering::Relaxed);
    }

    fn of(touched_ms: i64) -> Self {
        Self {
            touched_ms: touched_ms.into(),
            epoch: AtomicU32::new(0),
        }
    }

    fn touched_ms(&self) -> i64 {
        self.touched_ms.load(Ordering::Relaxed)
    }

    fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Relaxed)
    }
}

impl Clone for Stamp {
    fn clone(&self) -> Self {
        Self {
            touched_ms: self.touched_ms().into(),
            epoch: self.epoch().into(),
        }
    }
}

/// Rows of cells: the number of each row's key, the columns after the keys, and when each row was used last.
pub(super) struct CellRows {
    pub(super) numbers: Vec<u32>,
    pub(super) columns: Vec<ArrayRef>,
    pub(super) touched_ms: Vec<i64>,
}

/// What a cell holds.
pub(super) trait Content: Default + Clone + Send + Sync + 'static {
    /// Begins the table's name.
    const KIND: &'static str;
    /// How many columns after the keys tell the rows of a key apart.
    const UNIQUE: usize;
    /// Whether a cell knows when it was written.
    const HAS_EPOCH: bool = false;

    /// The columns after the keys.
    fn fields() -> Vec<(&'static str, DataType)>;
    fn is_empty(&self) -> bool;
    /// After which barrier it was written; 0 before the first.
    fn epoch(&self) -> u32 {
        0
    }
    fn rows(cells: &[(u32, &Self)], moment: &Moment) -> Result<CellRows>;
    /// Takes back one row; gives the bytes that it holds.
    fn restore(&mut self, columns: &[ArrayRef], row: usize, touched_ms: i64) -> Result<usize>;
    /// Forgets what has expired; gives the bytes that it held.
    fn expire(&mut self, moment: &Moment) -> usize;
}

/// A value, or none.
#[derive(Clone)]
pub(super) struct Held<T> {
    value: Option<T>,
    stamp: Stamp,
}

impl<T> Default for Held<T> {
    fn default() -> Self {
        Self {
            value: None,
            stamp: Stamp::default(),
        }
    }
}

impl<T: StateValue> Held<T> {
    pub(super) fn get(&self, moment: &Moment) -> Option<&T> {
        let value = self.value.as_ref()?;
        if moment.has_expired(self.stamp.touched_ms()) {
            return None;
        }
        if moment.counts_reads() {
            self.stamp.touch(moment);
        }
        Some(value)
    }

    /// Sets or forgets the value; gives the bytes of the old one.
    pub(super) fn set(&mut self, value: Option<T>, moment: &Moment) -> usize {
        let old = std::mem::replace(&mut self.value, value);
        if old.is_some() || self.value.is_some() {
            self.stamp.touch(moment);
        }
        old.as_ref().map_or(0, bytes_of)
    }
}

impl<T: StateValue> Content for Held<T> {
    const KIND: &'static str = "value";
    const UNIQUE: usize = 0;
    const HAS_EPOCH: bool = true;

    fn fields() -> Vec<(&'static str, DataType)> {
        vec![("value", T::data_type())]
    }

    fn is_empty(&self) -> bool {
        self.value.is_none()
    }

    fn epoch(&self) -> u32 {
        self.stamp.epoch()
    }

    fn rows(cells: &[(u32, &Self)], moment: &Moment) -> Result<CellRows> {
        let live = |cell: &Self| !moment.has_expired(cell.stamp.touched_ms());
        let cells = || cells.iter().filter(|(_, cell)| live(cell));
        let values: Vec<&T> = cells().filter_map(|(_, cell)| cell.value.as_ref()).collect();
        Ok(CellRows {
            numbers: cells().map(|(number, _)| *number).collect(),
            columns: vec![T::to_array(&values)?],
            touched_ms: cells().map(|(_, cell)| cell.stamp.touched_ms()).collect(),
        })
    }

    fn restore(&mut self, columns: &[ArrayRef], row: usize, touched_ms: i64) -> Result<usize> {
        let value = T::from_array(&columns[0], row)?;
        let bytes = bytes_of(&value);
        self.value = Some(value);
        self.stamp = Stamp::of(touched_ms);
        Ok(bytes)
    }

    fn expire(&mut self, moment: &Moment) -> usize {
        if self.value.is_none() || !moment.has_expired(self.stamp.touched_ms()) {
            return 0;
        }
        // A snapshot says when it was used: nobody need be told that it is gone.
        self.value.take().as_ref().map_or(0, bytes_of)
    }
}

/// A list: each item lives for itself, so that the oldest go first.
pub(super) struct Listed<T> {
    items: Vec<T>,
    /// When each was added, if they expire.
    times_ms: Vec<i64>,
    /// So many of the first have expired.
    gone: AtomicUsize,
    /// When the list was read last, if that counts.
    read_ms: AtomicI64,
}

impl<T> Default for Listed<T> {
    fn default() -> Self {
        Self {
            items: Vec::new(),
            times_ms: Vec::new(),
            gone: AtomicUsize::new(0),
            read_ms: AtomicI64::new(i64::MIN),
        }
    }
}

impl<T: Clone> Clone for Listed<T> {
    fn clone(&self) -> Self {
        Self {
            items: self.items.clone(),
            times_ms: self.times_ms.clone(),
            gone: self.gone.load(Ordering::Relaxed).into(),
            read_ms: self.read_ms.load(Ordering::Relaxed).into(),
        }
    }
}

impl<T: StateValue> Listed<T> {
    fn time_ms(&self, item: usize) -> i64 {
        let read_ms = self.read_ms.load(Ordering::Relaxed);
        self.times_ms.get(item).map_or(read_ms, |time| read_ms.max(*time))
    }

    /// The first item that lives.
    fn first(&self, moment: &Moment) -> usize {
        let mut first = self.gone.load(Ordering::Relaxed);
        while first < self.items.len() && moment.has_expired(self.time_ms(first)) {
            first += 1;
        }
        self.gone.store(first, Ordering::Relaxed);
        first
    }

    pub(super) fn get(&self, moment: &Moment) -> &[T] {
        let first = self.first(moment);
        if moment.counts_reads() {
            self.read_ms.store(moment.now_ms, Ordering::Relaxed);
        }
        &self.items[first..]
    }

    /// Gives the bytes of what went to make room.
    pub(super) fn push(&mut self, item: T, moment: &Moment) -> usize {
        let freed = match self.first(moment) * 2 > self.items.len() {
            true => self.expire(moment),
            false => 0,
        };
        self.items.push(item);
        if moment.ttl.is_some() {
            self.times_ms.push(moment.now_ms);
        }
        freed
    }

    /// Gives the items that live, and the bytes of all.
    pub(super) fn take(&mut self, moment: &Moment) -> (Vec<T>, usize) {
        let first = self.first(moment);
        let mut items = std::mem::take(self).items;
        let bytes = items.iter().map(bytes_of).sum();
        items.drain(..first);
        (items, bytes)
    }
}

impl<T: StateValue> Content for Listed<T> {
    const KIND: &'static str = "list";
    const UNIQUE: usize = 1;

    fn fields() -> Vec<(&'static str, DataType)> {
        vec![("position", DataType::Int64), ("value", T::data_type())]
    }

    fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    fn rows(cells: &[(u32, &Self)], moment: &Moment) -> Result<CellRows> {
        let (mut numbers, mut positions, mut values, mut touched_ms) = (vec![], vec![], vec![], vec![]);
        for (number, cell) in cells {
            for (item, value) in cell.items.iter().enumerate().skip(cell.first(moment)) {
                numbers.push(*number);
                positions.push(item as i64);
                values.push(value);
                touched_ms.push(cell.time_ms(item));
            }
        }
        Ok(CellRows {
            numbers,
            columns: vec![Arc::new(Int64Array::from(positions)), T::to_array(&values)?],
            touched_ms,
        })
    }

    fn restore(&mut self, columns: &[ArrayRef], row: usize, touched_ms: i64) -> Result<usize> {
        // The rows of a key come in the order in which they were written, which is that of the list.
        let value = T::from_array(&columns[1], row)?;
        let bytes = bytes_of(&value);
        self.items.push(value);
        self.times_ms.push(touched_ms);
        Ok(bytes)
    }

    fn expire(&mut self, moment: &Moment) -> usize {
        let first = self.first(moment);
        *self.gone.get_mut() = 0;
        self.times_ms.drain(..first.min(self.times_ms.len()));
        self.items.drain(..first).map(|item| bytes_of(&item)).sum()
    }
}

/// A map: each entry lives for itself.
#[derive(Clone)]
pub(super) struct Mapped<K, V> {
    entries: BTreeMap<K, (V, Stamp)>,
}

impl<K, V> Default for Mapped<K, V> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
        }
    }
}

impl<K: StateValue + Ord, V: StateValue> Mapped<K, V> {
    pub(super) fn get(&self, entry: &K, moment: &Moment) -> Option<&V> {
        self.entries
            .get(entry)
            .and_then(|(value, stamp)| Self::live(value, stamp, moment))
    }

    fn live<'a>(value: &'a V, stamp: &Stamp, moment: &Moment) -> Option<&'a V> {
        if moment.has_expired(stamp.touched_ms()) {
            return None;
        }
        if moment.counts_reads() {
            stamp.touch(moment);
        }
        Some(value)
    }

    pub(super) fn entries(&self, moment: Moment) -> impl Iterator<Item = (&K, &V)> {
        self.entries
            .iter()
            .filter_map(move |(entry, (value, stamp))| Some((entry, Self::live(value, stamp, &moment)?)))
    }

    /// Gives the bytes that came and those that went.
    pub(super) fn put(&mut self, entry: K, value: V, moment: &Moment) -> (usize, usize) {
        let (entry_bytes, value_bytes) = (bytes_of(&entry), bytes_of(&value));
        let stamp = Stamp::default();
        stamp.touch(moment);
        match self.entries.insert(entry, (value, stamp)) {
            Some((old, _)) => (value_bytes, bytes_of(&old)),
            None => (entry_bytes + value_bytes, 0),
        }
    }

    /// Gives what was there, if it had not expired, and the bytes that went.
    pub(super) fn remove(&mut self, entry: &K, moment: &Moment) -> (Option<V>, usize) {
        match self.entries.remove(entry) {
            Some((old, stamp)) => {
                let bytes = bytes_of(entry) + bytes_of(&old);
                (Some(old).filter(|_| !moment.has_expired(stamp.touched_ms())), bytes)
            }
            None => (None, 0),
        }
    }

    /// Gives the bytes that went.
    pub(super) fn clear(&mut self) -> usize {
        let old = std::mem::take(&mut self.entries);
        old.iter()
            .map(|(entry, (value, _))| bytes_of(entry) + bytes_of(value))
            .sum()
    }
}

impl<K: StateValue + Ord, V: StateValue> Content for Mapped<K, V> {
    const KIND: &'static str = "map";
    const UNIQUE: usize = 1;

    fn fields() -> Vec<(&'static str, DataType)> {
        vec![("entry", K::data_type()), ("value", V::data_type())]
    }

    fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn rows(cells: &[(u32, &Self)], moment: &Moment) -> Result<CellRows> {
        let (mut numbers, mut entries, mut values, mut touched_ms) = (vec![], vec![], vec![], vec![]);
        for (number, cell) in cells {
            for (entry, (value, stamp)) in &cell.entries {
                if !moment.has_expired(stamp.touched_ms()) {
                    numbers.push(*number);
                    entries.push(entry);
                    values.push(value);
                    touched_ms.push(stamp.touched_ms());
                }
            }
        }
        Ok(CellRows {
            numbers,
            columns: vec![K::to_array(&entries)?, V::to_array(&values)?],
            touched_ms,
        })
    }

    fn restore(&mut self, columns: &[ArrayRef], row: usize, touched_ms: i64) -> Result<usize> {
        let (entry, value) = (K::from_array(&columns[0], row)?, V::from_array(&columns[1], row)?);
        let bytes = bytes_of(&entry) + bytes_of(&value);
        self.entries.insert(entry, (value, Stamp::of(touched_ms)));
        Ok(bytes)
    }

    fn expire(&mut self, moment: &Moment) -> usize {
        let mut bytes = 0;
        self.entries.retain(|entry, (value, stamp)| {
            let has_expired = moment.has_expired(stamp.touched_ms());
            bytes += if has_expired {
                bytes_of(entry) + bytes_of(value)
            } else {
                0
            };
            !has_expired
        });
        bytes
    }
}
