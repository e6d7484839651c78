//! From hashes to slots: an open hash table per key group, so that none of them is ever large enough to stall when it grows.

use hashbrown::HashTable;

use super::NO_SLOT;
use crate::data::key_group;
use crate::state::MAX_PARALLELISM;

/// Set in an entry that was looked up since the last look for cold ones.
const USED: u32 = 1 << 31;
/// The most slots: one bit of their number says whether they were used.
pub(super) const MAX_SLOTS: u32 = USED - 1;

#[derive(Clone, Copy)]
struct Entry {
    slot: u32,
    /// The low half of the hash: the key group is made of the high bits.
    mark: u32,
}

/// The hash by which an entry lies in its table: its top bits, which hashbrown compares first, must depend on the mark.
#[inline]
fn spread(mark: u32) -> u64 {
    u64::from(mark).wrapping_mul(0x9E37_79B9_7F4A_7C15)
}

/// The slots of a table by hash.
pub(super) struct Index {
    groups: Vec<HashTable<Entry>>,
}

impl Index {
    pub(super) fn new() -> Self {
        Self {
            groups: (0..MAX_PARALLELISM).map(|_| HashTable::new()).collect(),
        }
    }

    #[inline]
    fn group(&self, hash: u64) -> &HashTable<Entry> {
        &self.groups[key_group(hash, MAX_PARALLELISM) as usize]
    }

    #[inline]
    fn group_mut(&mut self, hash: u64) -> &mut HashTable<Entry> {
        &mut self.groups[key_group(hash, MAX_PARALLELISM) as usize]
    }

    /// The first slot that each hash may have: the keys are not compared. All lookups of a batch are independent of one
    /// another, so that the processor waits for many of them at once.
    pub(super) fn candidates(&mut self, hashes: &[u64], marks_used: bool, slots: &mut Vec<u32>) {
        slots.clear();
        slots.extend(hashes.iter().map(|hash| {
            let mark = *hash as u32;
            let entry = self.group(*hash).find(spread(mark), |entry| entry.mark == mark);
            entry.map_or(NO_SLOT, |entry| entry.slot & !USED)
        }));
        if marks_used {
            for (hash, slot) in hashes.iter().zip(slots.iter()) {
                if *slot != NO_SLOT {
                    self.mark(*hash, *slot);
                }
            }
        }
    }

    fn mark(&mut self, hash: u64, slot: u32) {
        let mark = hash as u32;
        let is_it = |entry: &Entry| entry.mark == mark && entry.slot & !USED == slot;
        if let Some(entry) = self.group_mut(hash).find_mut(spread(mark), is_it) {
            entry.slot |= USED;
        }
    }

    /// The slot of a hash that `is_it`.
    pub(super) fn find(&self, hash: u64, mut is_it: impl FnMut(u32) -> bool) -> Option<u32> {
        let mark = hash as u32;
        let entry = self
            .group(hash)
            .find(spread(mark), |entry| entry.mark == mark && is_it(entry.slot & !USED));
        entry.map(|entry| entry.slot & !USED)
    }

    /// Adds a slot that is not there; new ones count as used.
    pub(super) fn insert(&mut self, hash: u64, slot: u32) {
        let entry = Entry {
            slot: slot | USED,
            mark: hash as u32,
        };
        self.group_mut(hash)
            .insert_unique(spread(entry.mark), entry, |entry| spread(entry.mark));
    }

    pub(super) fn remove(&mut self, hash: u64, slot: u32) {
        let mark = hash as u32;
        let is_it = |entry: &Entry| entry.mark == mark && entry.slot & !USED == slot;
        if let Ok(entry) = self.group_mut(hash).find_entry(spread(mark), is_it) {
            entry.remove();
        }
    }

    /// The slots of each key group with whether they were used, group by group.
    pub(super) fn by_group(&self) -> impl Iterator<Item = impl Iterator<Item = (u32, bool)>> {
        let slot = |entry: &Entry| (entry.slot & !USED, entry.slot & USED != 0);
        self.groups.iter().map(move |group| group.iter().map(slot))
    }

    /// Forgets all slots. They come back as others.
    pub(super) fn clear(&mut self) {
        self.groups.iter_mut().for_each(|group| *group = HashTable::new());
    }

    /// Makes all slots count as not used since.
    pub(super) fn forget_use(&mut self) {
        for group in &mut self.groups {
            group.iter_mut().for_each(|entry| entry.slot &= !USED);
        }
    }

    pub(super) fn bytes(&self) -> usize {
        self.groups.iter().map(HashTable::allocation_size).sum::<usize>()
    }
}
