//! An open-addressing index from 32-bit key hashes to dense group numbers.
//!
//! A slot is one `u64`: the hash in the high half, the group number in the low half, all ones for a free slot. (Zero
//! would let the allocator hand out pages that are mapped on the first read and copied on the first write: two faults
//! and a flush of the other cores' translations for each, which stood out in a profile of TPC-H query 2.) The
//! home position of a hash is its leading bits, so the slots are roughly in hash order: growing reads the old slots and
//! writes the new ones in sequence and never looks at a key, and a range of hashes is a range of slots.

use crate::data::{EngineError, Result};

const FREE: u64 = u64::MAX;
const INITIAL_BITS: u32 = 10;

/// The index. Keys live elsewhere, numbered densely; the caller compares them.
pub(super) struct Slots {
    entries: Vec<u64>,
    bits: u32,
    used: usize,
}

/// What a probe met.
pub(super) enum Probed {
    /// A group whose hash is the one looked for, at this position; its key must be compared.
    Candidate(u32, usize),
    /// A free slot at this position: no group has this key.
    Free(usize),
}

impl Slots {
    pub(super) fn new() -> Self {
        Self {
            entries: vec![FREE; 1 << INITIAL_BITS],
            bits: INITIAL_BITS,
            used: 0,
        }
    }

    /// Bytes of the slots.
    pub(super) fn size(&self) -> usize {
        self.entries.capacity() * size_of::<u64>()
    }

    /// Bytes that `reserve(more)` would add, the old slots counted until they are copied.
    pub(super) fn growth(&self, more: usize) -> usize {
        let bits = self.bits_for(more);
        if bits == self.bits { 0 } else { size_of::<u64>() << bits }
    }

    /// Makes room for `more` groups, so that no insertion until then moves a slot.
    ///
    /// # Errors
    /// When group numbers would pass 32 bits.
    pub(super) fn reserve(&mut self, more: usize) -> Result<()> {
        if self.used + more >= u32::MAX as usize {
            return Err(EngineError::Plan(format!(
                "one aggregation subtask cannot hold more than {} groups; raise the parallelism",
                u32::MAX
            )));
        }
        let bits = self.bits_for(more);
        if bits != self.bits {
            self.grow(bits);
        }
        Ok(())
    }

    /// Where the search for `hash` begins.
    #[inline]
    pub(super) fn home(&self, hash: u32) -> usize {
        (u64::from(hash) >> (32 - self.bits)) as usize
    }

    /// The position after `position`.
    #[inline]
    pub(super) fn next(&self, position: usize) -> usize {
        (position + 1) & (self.entries.len() - 1)
    }

    /// Looks for `hash` from `position` on.
    #[inline]
    pub(super) fn probe(&self, hash: u32, mut position: usize) -> Probed {
        loop {
            let entry = self.entries[position];
            if entry == FREE {
                return Probed::Free(position);
            }
            if (entry >> 32) as u32 == hash {
                return Probed::Candidate(entry as u32, position);
            }
            position = self.next(position);
        }
    }

    /// Puts `group` into the free slot at `position`.
    #[inline]
    pub(super) fn occupy(&mut self, position: usize, hash: u32, group: u32) {
        self.entries[position] = (u64::from(hash) << 32) | u64::from(group);
        self.used += 1;
    }

    // At most 5/8 of the slots are in use: linear probing stays within a cache line or two.
    fn bits_for(&self, more: usize) -> u32 {
        let wanted = self.used + more;
        let mut bits = self.bits;
        while wanted > (1usize << bits) / 8 * 5 {
            bits += 1;
        }
        bits.min(32)
    }

    fn grow(&mut self, bits: u32) {
        let old = std::mem::replace(&mut self.entries, vec![FREE; 1 << bits]);
        self.bits = bits;
        for entry in old {
            if entry != FREE {
                let mut position = self.home((entry >> 32) as u32);
                while self.entries[position] != FREE {
                    position = self.next(position);
                }
                self.entries[position] = entry;
            }
        }
    }
}
