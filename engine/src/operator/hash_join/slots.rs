//! Open addressing with the key in the slot: a hit and a miss both cost one cache line.

use crate::operator::hash_join::columns::{SEED_A, SEED_B, mix};
use crate::operator::hash_join::keys::{HashWord, Wide};

/// A run of positions in the table's row order; empty for "no match".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Run {
    /// Where it begins; in a table of unique keys, the build row itself.
    pub(super) start: u32,
    /// How many rows.
    pub(super) len: u32,
}

/// The empty run.
pub(super) const NO_MATCH: Run = Run { start: 0, len: 0 };

/// What a slot compares.
pub(super) trait Word: Copy + Eq + Default {
    /// Its hash; the top bits count.
    fn hash(self) -> u64;
}

impl Word for u64 {
    #[inline]
    fn hash(self) -> u64 {
        mix(self ^ SEED_A, SEED_B)
    }
}

impl Word for Wide {
    #[inline]
    fn hash(self) -> u64 {
        mix(mix(self[0] ^ SEED_A, SEED_B) ^ self[1], SEED_A)
    }
}

impl Word for HashWord {
    #[inline]
    fn hash(self) -> u64 {
        self.0
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Slot<W> {
    key: W,
    run: Run,
}

/// Open addressing, linear probing, at most 5/8 full.
#[derive(Debug)]
pub(super) struct Slots<W> {
    slots: Vec<Slot<W>>,
    /// The top bits of a hash choose the slot.
    shift: u32,
    /// Keys held.
    pub(super) distinct: usize,
}

impl<W: Word> Slots<W> {
    /// For up to `rows` rows; starts small, as most of them may share keys.
    pub(super) fn new(rows: usize) -> Self {
        Self::with_keys(rows.min(16 * 1024))
    }

    /// Bytes of the slots for `keys` keys.
    pub(super) fn bytes_for(keys: usize) -> usize {
        Self::slots_for(keys) * size_of::<Slot<W>>()
    }

    fn slots_for(keys: usize) -> usize {
        (keys * 8 / 5 + 1).next_power_of_two().max(4)
    }

    fn with_keys(keys: usize) -> Self {
        let slots = Self::slots_for(keys);
        Self {
            slots: vec![Slot::default(); slots],
            shift: 64 - slots.trailing_zeros(),
            distinct: 0,
        }
    }

    #[inline]
    fn home(&self, key: W) -> usize {
        (key.hash() >> self.shift) as usize
    }

    /// Makes room for one more key, `seen` of `total` rows having been inserted.
    #[inline]
    pub(super) fn reserve_one(&mut self, seen: usize, total: usize) {
        if (self.distinct + 1) * 8 > self.slots.len() * 5 {
            self.grow(seen, total);
        }
    }

    fn grow(&mut self, seen: usize, total: usize) {
        // If the rest of the rows has new keys as often as the rows so far, this is the last time.
        let expected = (self.distinct as u128 * total as u128 / seen.max(1) as u128) as usize;
        let mut larger = Self::with_keys(expected.clamp(self.distinct * 2, total.max(self.distinct * 2)));
        let mask = larger.slots.len() - 1;
        for slot in self.slots.iter().filter(|slot| slot.run.len != 0) {
            let mut at = larger.home(slot.key);
            while larger.slots[at].run.len != 0 {
                at = (at + 1) & mask;
            }
            larger.slots[at] = *slot;
        }
        larger.distinct = self.distinct;
        *self = larger;
    }

    /// Inserts `row`, or finds the first row of its key; gives back that one.
    #[inline]
    pub(super) fn insert(&mut self, key: W, row: u32, same: impl Fn(u32) -> bool) -> u32 {
        let mask = self.slots.len() - 1;
        let mut at = self.home(key);
        loop {
            let slot = &mut self.slots[at];
            if slot.run.len == 0 {
                *slot = Slot {
                    key,
                    run: Run { start: row, len: 1 },
                };
                self.distinct += 1;
                return row;
            }
            if slot.key == key && same(slot.run.start) {
                return slot.run.start;
            }
            at = (at + 1) & mask;
        }
    }

    /// The run of each key. The first pass looks at each key's first slot only and does not branch on what it finds,
    /// so that the processor has many cache misses under way at once.
    pub(super) fn lookup(&self, keys: &[W]) -> Vec<Run> {
        let slots = self.slots.as_slice();
        let mask = slots.len() - 1;
        let mut runs = vec![NO_MATCH; keys.len()];
        let mut pending = vec![0u32; keys.len()];
        let mut count = 0;
        for (i, (key, run)) in keys.iter().zip(&mut runs).enumerate() {
            let slot = &slots[self.home(*key) & mask];
            let hit = slot.key == *key;
            // An empty slot holds an empty run: right both when its default key equals `key` and when it does not.
            *run = if hit { slot.run } else { NO_MATCH };
            pending[count] = i as u32;
            count += usize::from(!hit & (slot.run.len != 0));
        }
        for i in &pending[..count] {
            let key = keys[*i as usize];
            runs[*i as usize] = self.scan(self.home(key) + 1, key, |_| true);
        }
        runs
    }

    /// The run of `key` for which `equal` is true.
    pub(super) fn find(&self, key: W, equal: impl Fn(Run) -> bool) -> Run {
        self.scan(self.home(key), key, equal)
    }

    #[inline]
    fn scan(&self, from: usize, key: W, equal: impl Fn(Run) -> bool) -> Run {
        let mask = self.slots.len() - 1;
        let mut at = from & mask;
        loop {
            let slot = &self.slots[at];
            if slot.run.len == 0 {
                return NO_MATCH;
            }
            if slot.key == key && equal(slot.run) {
                return slot.run;
            }
            at = (at + 1) & mask;
        }
    }

    /// Visits each key with its run.
    pub(super) fn each(&self, mut visit: impl FnMut(W, Run)) {
        for slot in self.slots.iter().filter(|slot| slot.run.len != 0) {
            visit(slot.key, slot.run);
        }
    }

    /// Replaces the first row of each key by the run of its rows.
    pub(super) fn set_runs(&mut self, run: impl Fn(u32) -> Run) {
        for slot in self.slots.iter_mut().filter(|slot| slot.run.len != 0) {
            slot.run = run(slot.run.start);
        }
    }

    /// Bytes kept.
    pub(super) fn memory_bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot<W>>()
    }
}
