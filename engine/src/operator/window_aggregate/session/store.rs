//! The open sessions: where they lie, whose they are, and which may be over.
//!
//! A session has a *slot*: a row of these vectors and of those of the functions. Slots are used again. Sessions of one key
//! form a chain, of mostly one. Which sessions are over is found by buckets of ends: a session is entered into the bucket
//! of the end that it has at first, and looked at when that bucket comes up; its end may have moved on by then, which
//! enters it anew. So a row costs nothing here, and a session about one entry for each gap that it lasts.

use std::collections::BTreeMap;

/// No session, no slot.
pub(super) const NONE: u32 = u32::MAX;
/// Buckets in a gap.
const BUCKETS_PER_GAP: i64 = 64;

/// What has become of a row.
pub(super) enum Joined {
    /// It is in this session.
    Session(u32),
    /// It is in the first session, which the second has become part of.
    Merged(u32, u32),
    /// Too late.
    Late,
}

/// The open sessions.
pub(super) struct Store {
    gap_ms: i64,
    bucket_ms: i64,
    pub(super) starts: Vec<i64>,
    /// The last row's time plus the gap.
    pub(super) ends: Vec<i64>,
    /// [`NONE`] when the session has become part of another, or left.
    pub(super) keys: Vec<u32>,
    next: Vec<u32>,
    /// The first session of each key.
    heads: Vec<u32>,
    buckets: BTreeMap<i64, Vec<u32>>,
    free: Vec<u32>,
    open: usize,
    live_keys: usize,
    due: Option<i64>,
}

impl Store {
    /// For sessions that so much silence ends.
    pub(super) fn new(gap_ms: i64) -> Self {
        Self {
            gap_ms,
            bucket_ms: (gap_ms / BUCKETS_PER_GAP).max(1),
            starts: Vec::new(),
            ends: Vec::new(),
            keys: Vec::new(),
            next: Vec::new(),
            heads: Vec::new(),
            buckets: BTreeMap::new(),
            free: Vec::new(),
            open: 0,
            live_keys: 0,
            due: None,
        }
    }

    /// How many slots there are.
    pub(super) fn slots(&self) -> usize {
        self.ends.len()
    }

    /// Whether there is no session.
    pub(super) fn is_empty(&self) -> bool {
        self.open == 0
    }

    /// Makes room for so many keys.
    pub(super) fn grow_keys(&mut self, keys: usize) {
        self.heads.resize(keys, NONE);
    }

    /// Forgets all keys: there is no session.
    pub(super) fn forget_keys(&mut self) {
        self.heads = Vec::new();
    }

    /// How many keys have a session, and how many there are.
    pub(super) fn key_counts(&self) -> (usize, usize) {
        (self.live_keys, self.heads.len())
    }

    /// Puts a row of a key into its session. What ended at `done` or before is closed.
    #[inline]
    pub(super) fn join(&mut self, key: usize, time: i64, done: i64) -> Joined {
        let head = self.heads[key];
        if head != NONE && self.next[head as usize] == NONE && self.touches(head, time) {
            self.extend(head, time);
            return Joined::Session(head);
        }
        self.join_any(key, time, done)
    }

    #[inline]
    fn touches(&self, slot: u32, time: i64) -> bool {
        time < self.ends[slot as usize] && time + self.gap_ms > self.starts[slot as usize]
    }

    #[inline]
    fn extend(&mut self, slot: u32, time: i64) {
        let slot = slot as usize;
        self.starts[slot] = self.starts[slot].min(time);
        self.ends[slot] = self.ends[slot].max(time + self.gap_ms);
    }

    fn join_any(&mut self, key: usize, time: i64, done: i64) -> Joined {
        let mut touched = [NONE; 2];
        let mut count = 0;
        let mut slot = self.heads[key];
        while slot != NONE {
            // Sessions of a key lie a gap apart: a row touches the one before it and the one after it at most.
            if self.touches(slot, time) && count < 2 {
                touched[count] = slot;
                count += 1;
            }
            slot = self.next[slot as usize];
        }
        match touched {
            [NONE, _] if time.saturating_add(self.gap_ms) <= done => Joined::Late,
            [NONE, _] => Joined::Session(self.open(key, time)),
            [only, NONE] => {
                self.extend(only, time);
                Joined::Session(only)
            }
            [into, from] => {
                self.extend(into, time);
                let (to, of) = (into as usize, from as usize);
                self.starts[to] = self.starts[to].min(self.starts[of]);
                self.ends[to] = self.ends[to].max(self.ends[of]);
                self.unlink(from);
                Joined::Merged(into, from)
            }
        }
    }

    fn open(&mut self, key: usize, time: i64) -> u32 {
        self.open_with(key, time, time + self.gap_ms)
    }

    /// Opens a session with these bounds, which touches no other.
    pub(super) fn open_with(&mut self, key: usize, start: i64, end: i64) -> u32 {
        let head = self.heads[key];
        self.live_keys += usize::from(head == NONE);
        let slot = match self.free.pop() {
            Some(slot) => {
                let at = slot as usize;
                (self.starts[at], self.ends[at]) = (start, end);
                (self.keys[at], self.next[at]) = (key as u32, head);
                slot
            }
            None => {
                self.starts.push(start);
                self.ends.push(end);
                self.keys.push(key as u32);
                self.next.push(head);
                (self.ends.len() - 1) as u32
            }
        };
        self.heads[key] = slot;
        self.open += 1;
        self.enter(slot);
        slot
    }

    fn enter(&mut self, slot: u32) {
        let end = self.ends[slot as usize];
        self.buckets
            .entry(end.div_euclid(self.bucket_ms))
            .or_default()
            .push(slot);
        self.due = Some(self.due.map_or(end, |due| due.min(end)));
    }

    /// Takes a session out of the chain of its key. Its slot is free once its bucket comes up, or by `free`.
    fn unlink(&mut self, slot: u32) {
        let key = self.keys[slot as usize] as usize;
        let after = self.next[slot as usize];
        let mut at = self.heads[key];
        if at == slot {
            self.heads[key] = after;
            self.live_keys -= usize::from(after == NONE);
        } else {
            while self.next[at as usize] != slot {
                at = self.next[at as usize];
            }
            self.next[at as usize] = after;
        }
        self.keys[slot as usize] = NONE;
        self.open -= 1;
    }

    /// The sessions whose end is not after `done`, the oldest first. They stay until they are let go of by `close`.
    pub(super) fn over(&mut self, done: i64) -> Vec<u32> {
        let mut over = Vec::new();
        let mut again = Vec::new();
        let limit = done.div_euclid(self.bucket_ms);
        while let Some(bucket) = self.buckets.first_entry().filter(|bucket| *bucket.key() <= limit) {
            for slot in bucket.remove() {
                if self.keys[slot as usize] == NONE {
                    self.free.push(slot);
                } else if self.ends[slot as usize] <= done {
                    over.push(slot);
                } else {
                    again.push(slot);
                }
            }
        }
        self.due = None;
        for slot in again {
            self.enter(slot);
        }
        self.due = self.first_due();
        over.sort_unstable_by_key(|slot| (self.ends[*slot as usize], *slot));
        over
    }

    /// The first moment at which a session can be over.
    fn first_due(&self) -> Option<i64> {
        let mut buckets = self.buckets.iter();
        let (_, first) = buckets.next()?;
        let ends = first.iter().map(|slot| self.ends[*slot as usize]).min();
        let second = buckets.next().map(|(number, _)| number.saturating_mul(self.bucket_ms));
        ends.into_iter().chain(second).min()
    }

    /// When to look for sessions that are over.
    pub(super) fn due(&self) -> Option<i64> {
        self.due
    }

    /// Lets go of sessions that `over` has told of.
    pub(super) fn close(&mut self, slots: &[u32]) {
        for slot in slots {
            self.unlink(*slot);
        }
        self.free.extend_from_slice(slots);
        if self.open == 0 && !self.ends.is_empty() {
            *self = Self::new(self.gap_ms);
        }
    }

    /// The slots of all sessions.
    pub(super) fn all(&self) -> Vec<u32> {
        let slots = (0..).zip(&self.keys).filter(|(_, key)| **key != NONE);
        slots.map(|(slot, _)| slot).collect()
    }

    /// The keys that have sessions.
    pub(super) fn live_keys(&self) -> Vec<u32> {
        let keys = (0..).zip(&self.heads).filter(|(_, head)| **head != NONE);
        keys.map(|(key, _)| key).collect()
    }

    /// Numbers keys anew: those in `live`, from 0 on; the others have no sessions.
    pub(super) fn renumber_keys(&mut self, live: &[u32]) {
        let mut numbers = vec![NONE; self.heads.len()];
        for (new, old) in (0..).zip(live) {
            numbers[*old as usize] = new;
        }
        self.heads = live.iter().map(|old| self.heads[*old as usize]).collect();
        for key in self.keys.iter_mut().filter(|key| **key != NONE) {
            *key = numbers[*key as usize];
        }
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        let words = self.keys.capacity() + self.next.capacity() + self.heads.capacity() + self.free.capacity();
        let times = self.starts.capacity() + self.ends.capacity();
        // Each session is in one bucket, whose vector has doubled.
        (words + 2 * self.open) * size_of::<u32>() + times * size_of::<i64>()
    }
}
