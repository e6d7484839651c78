//! From keys to slots, a batch at a time.

use arrow::array::ArrayRef;

use super::source::{Source, key_of_type};
use super::store::DEAD;
use super::{KeyedTable, NO_SLOT};
use crate::data::{Result, hash_rows};

/// The keys of a batch, in the table's types.
pub(super) struct KeyBatch {
    pub(super) columns: Vec<ArrayRef>,
    pub(super) hashes: Vec<u64>,
    sources: Vec<Source>,
}

impl KeyedTable {
    /// The slot of each row's key; a key that was not there is there now, with values that are NULL.
    ///
    /// # Errors
    /// When keys cannot be brought to their types, there are too many, or a run cannot be read.
    pub fn locate(&mut self, keys: &[ArrayRef], rows: usize, slots: &mut Vec<u32>) -> Result<()> {
        let batch = self.key_batch(keys, rows)?;
        for row in self.look_up(&batch, slots)? {
            // The row before may have had the same key.
            slots[row as usize] = match self.find_one(&batch, row as usize) {
                Some(slot) => slot,
                None => self.insert(&batch, row as usize)?,
            };
        }
        self.revive(slots);
        Ok(())
    }

    /// The slot of each row's key, [`NO_SLOT`] where there is none.
    ///
    /// # Errors
    /// As for `locate`.
    pub fn find(&mut self, keys: &[ArrayRef], rows: usize, slots: &mut Vec<u32>) -> Result<()> {
        let batch = self.key_batch(keys, rows)?;
        let missing = self.look_up(&batch, slots)?;
        if !self.runs.is_empty() {
            for row in missing {
                slots[row as usize] = self.find_one(&batch, row as usize).unwrap_or(NO_SLOT);
            }
        }
        self.hide(slots);
        Ok(())
    }

    fn key_batch(&self, keys: &[ArrayRef], rows: usize) -> Result<KeyBatch> {
        let columns = keys
            .iter()
            .zip(self.fields.fields())
            .map(|(key, field)| key_of_type(key, field.data_type()))
            .collect::<Result<Vec<_>>>()?;
        let mut hashes = Vec::new();
        hash_rows(&columns, rows, &mut hashes)?;
        let sources = self.layouts.iter().zip(&columns);
        let sources = sources.map(|(layout, column)| Source::new(layout, column));
        Ok(KeyBatch {
            sources: sources.collect::<Result<Vec<_>>>()?,
            columns,
            hashes,
        })
    }

    /// Finds what is in memory, and brings there what is on disk; gives the rows whose keys were not in memory before.
    fn look_up(&mut self, batch: &KeyBatch, slots: &mut Vec<u32>) -> Result<Vec<u32>> {
        let mut candidates = std::mem::take(&mut self.candidates);
        self.index
            .candidates(&batch.hashes, !self.runs.is_empty(), &mut candidates);
        slots.clear();
        slots.extend_from_slice(&candidates);
        for (column, source) in self.store.keys.iter().zip(&batch.sources) {
            column.compare(slots, source);
        }
        let mut missing = Vec::new();
        for (row, (slot, candidate)) in slots.iter_mut().zip(&candidates).enumerate() {
            if *slot != NO_SLOT {
                continue;
            }
            // Another key with the same mark came first: rare.
            if *candidate != NO_SLOT
                && let Some(found) = self.find_one(batch, row)
            {
                *slot = found;
                continue;
            }
            missing.push(row as u32);
        }
        self.candidates = candidates;
        if !self.runs.is_empty() && !missing.is_empty() {
            self.fetch(batch, &missing)?;
        }
        Ok(missing)
    }

    fn find_one(&self, batch: &KeyBatch, row: usize) -> Option<u32> {
        self.index.find(batch.hashes[row], |slot| {
            let mut keys = self.store.keys.iter().zip(&batch.sources);
            self.store.hashes.get(slot) == batch.hashes[row] && keys.all(|(key, source)| key.equals(slot, source, row))
        })
    }

    fn insert(&mut self, batch: &KeyBatch, row: usize) -> Result<u32> {
        let slot = self.allocate()?;
        for (column, source) in self.store.keys.iter_mut().zip(&batch.sources) {
            column.set(slot, source, row);
        }
        self.store.values.iter_mut().for_each(|column| column.clear(slot));
        self.enter(slot, batch.hashes[row], self.history.current(), self.now_ms);
        Ok(slot)
    }

    /// Makes a slot, whose columns are set, one that is found.
    pub(super) fn enter(&mut self, slot: u32, hash: u64, epoch: u32, touched_ms: i64) {
        self.store.hashes.set(slot, hash);
        self.store.epochs.set(slot, epoch);
        if let Some(touched) = &mut self.store.touched {
            touched.set(slot, touched_ms);
        }
        self.index.insert(hash, slot);
        self.live += 1;
    }

    /// Keys that are gone or have expired are there again, as new ones.
    fn revive(&mut self, slots: &[u32]) {
        if self.dead.is_empty() && self.ttl.is_none() {
            return;
        }
        for slot in slots.iter().copied() {
            let is_dead = self.store.epochs.get(slot) & DEAD != 0;
            if is_dead || self.is_expired(slot) {
                self.live += usize::from(is_dead);
                self.store.values.iter_mut().for_each(|column| column.clear(slot));
                self.store.epochs.set(slot, self.history.current());
                self.touch(slot);
            } else if self.ttl.is_some_and(|ttl| ttl.on_read) {
                self.touch(slot);
            }
        }
    }

    /// Keys that are gone or have expired are not to be seen.
    fn hide(&mut self, slots: &mut [u32]) {
        if self.dead.is_empty() && self.ttl.is_none() {
            return;
        }
        for slot in slots.iter_mut().filter(|slot| **slot != NO_SLOT) {
            if !self.is_live(*slot) || self.is_expired(*slot) {
                *slot = NO_SLOT;
            } else if self.ttl.is_some_and(|ttl| ttl.on_read) {
                self.touch(*slot);
            }
        }
    }
}
