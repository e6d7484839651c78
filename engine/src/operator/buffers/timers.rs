//! The timers of windows, by time.

use std::collections::BTreeMap;

/// A window that wants to be called: its number, and which of the windows that had this number it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Waiting {
    pub(super) window: u32,
    pub(super) generation: u32,
}

/// Windows by the time at which they are to be called. Those of windows that are gone stay until their time comes.
#[derive(Default)]
pub(super) struct Timers {
    by_time: BTreeMap<i64, Vec<Waiting>>,
    count: usize,
}

impl Timers {
    pub(super) fn register(&mut self, time: i64, waiting: Waiting) {
        self.by_time.entry(time).or_default().push(waiting);
        self.count += 1;
    }

    /// The earliest time.
    pub(super) fn next(&self) -> Option<i64> {
        self.by_time.first_key_value().map(|(time, _)| *time)
    }

    /// All that wait for the earliest time, if that is not after `until`; each once.
    pub(super) fn pop(&mut self, until: i64) -> Option<(i64, Vec<Waiting>)> {
        if self.next()? > until {
            return None;
        }
        let (time, mut waiting) = self.by_time.pop_first()?;
        self.count -= waiting.len();
        waiting.sort_unstable();
        waiting.dedup();
        Some((time, waiting))
    }

    /// All of them, by time.
    pub(super) fn all(&self) -> impl Iterator<Item = (i64, Waiting)> + '_ {
        let times = self.by_time.iter();
        times.flat_map(|(time, waiting)| waiting.iter().map(move |waiting| (*time, *waiting)))
    }

    /// Drops those that nobody waits for any more, from the earliest on.
    pub(super) fn drop_stale(&mut self, is_alive: impl Fn(Waiting) -> bool) {
        while let Some(first) = self.by_time.first_entry() {
            if first.get().iter().any(|waiting| is_alive(*waiting)) {
                return;
            }
            self.count -= first.get().len();
            first.remove();
        }
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        2 * self.count * size_of::<Waiting>() + self.by_time.len() * 64
    }
}
