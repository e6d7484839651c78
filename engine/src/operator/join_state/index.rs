//! From hashes to chains of row numbers: open addressing with the hash in the slot.

use super::pieces::NO_ROW;

/// A slot that holds a hash without rows.
const VACANT: u32 = NO_ROW - 1;

/// The rows of one hash: the newest, and whether there are others, which `next` leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) head: u32,
    pub(super) rows: u32,
}

/// No rows.
pub(super) const NO_CHAIN: Chain = Chain { head: NO_ROW, rows: 0 };

#[derive(Clone, Copy, Debug)]
struct Slot {
    hash: u64,
    chain: Chain,
}

const EMPTY: Slot = Slot {
    hash: 0,
    chain: NO_CHAIN,
};

/// Hash to chain. Linear probing, at most 5/8 full. The links from row to row are the caller's.
#[derive(Debug, Default)]
pub(super) struct HashIndex {
    slots: Vec<Slot>,
    used: usize,
    vacant: usize,
}

impl HashIndex {
    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.slots.capacity() * size_of::<Slot>()
    }

    #[inline]
    fn home(&self, hash: u64) -> usize {
        // The low bits choose the key group's part of the hash last, so all subtasks spread alike.
        (hash as usize) & (self.slots.len() - 1)
    }

    /// The slot of `hash`, or the empty one where it would go.
    #[inline]
    fn position(&self, hash: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut at = self.home(hash);
        while self.slots[at].hash != hash && self.slots[at].chain.head != NO_ROW {
            at = (at + 1) & mask;
        }
        at
    }

    /// The rows of `hash`.
    #[inline]
    pub(super) fn find(&self, hash: u64) -> Chain {
        if self.slots.is_empty() {
            return NO_CHAIN;
        }
        let chain = self.slots[self.position(hash)].chain;
        if chain.rows == 0 { NO_CHAIN } else { chain }
    }

    fn rebuild(&mut self, slots: usize) {
        let slots = slots.next_power_of_two().max(16);
        let old = std::mem::replace(&mut self.slots, vec![EMPTY; slots]);
        let live = old.into_iter().filter(|slot| slot.chain.rows > 0);
        let mut used = 0;
        for slot in live {
            let at = self.position(slot.hash);
            self.slots[at] = slot;
            used += 1;
        }
        (self.used, self.vacant) = (used, 0);
    }

    /// Makes `row` the newest of `hash`; gives back the one that was.
    #[inline]
    pub(super) fn push(&mut self, hash: u64, row: u32) -> u32 {
        if (self.used + 1) * 8 > self.slots.len() * 5 {
            let live = self.used - self.vacant;
            self.rebuild((live * 2).max(64) * 8 / 5 + 1);
        }
        let at = self.position(hash);
        let slot = &mut self.slots[at];
        let before = match slot.chain.head {
            NO_ROW => {
                self.used += 1;
                slot.hash = hash;
                NO_ROW
            }
            VACANT => {
                self.vacant -= 1;
                NO_ROW
            }
            row => row,
        };
        slot.chain = Chain {
            head: row,
            rows: slot.chain.rows + 1,
        };
        before
    }

    /// One row of `hash` goes; `head` is the newest one then, or `NO_ROW`.
    pub(super) fn drop_one(&mut self, hash: u64, head: Option<u32>) {
        let at = self.position(hash);
        let chain = &mut self.slots[at].chain;
        if chain.rows == 0 {
            return;
        }
        chain.rows -= 1;
        if let Some(head) = head {
            chain.head = head;
        }
        if chain.rows == 0 || chain.head == NO_ROW {
            *chain = Chain { head: VACANT, rows: 0 };
            self.vacant += 1;
        }
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}
