//! The windows that are open, by key and bounds; of merging windows, those of each key.

use std::hash::BuildHasher;

use foldhash::fast::FixedState;
use hashbrown::HashTable;

use super::assigner::Bounds;
use super::rows::RowList;
use super::timers::Waiting;

pub(super) const NO_WINDOW: u32 = u32::MAX;

/// One window of one key.
#[derive(Clone, Copy)]
pub(super) struct Window {
    pub(super) key: u32,
    /// Rises when the number is used again, or the window's times change: older timers are then void.
    pub(super) generation: u32,
    pub(super) bounds: Bounds,
    pub(super) rows: RowList,
    /// The rows of the last result, where results are taken back.
    pub(super) previous: RowList,
    /// The last firing, when that is not evaluated yet.
    pub(super) pane: Option<u32>,
    /// The last times asked for.
    pub(super) asked_event_ms: Option<i64>,
    pub(super) asked_processing_ms: Option<i64>,
    pub(super) is_open: bool,
    /// Some row has not been in a firing.
    pub(super) is_dirty: bool,
    /// Its rows are not in the order of arrival.
    pub(super) is_merged: bool,
    next_of_key: u32,
}

/// The open windows. Numbers of closed ones are used again.
pub(super) struct WindowTable {
    windows: Vec<Window>,
    /// What the trigger remembers, `width` numbers per window.
    words: Vec<i64>,
    width: usize,
    free: Vec<u32>,
    by_bounds: HashTable<u32>,
    /// The first window of each key, when windows merge.
    of_key: Vec<u32>,
    merges: bool,
}

fn hash_of(key: u32, bounds: Bounds) -> u64 {
    FixedState::default().hash_one((key, bounds.start_ms, bounds.end_ms))
}

impl WindowTable {
    pub(super) fn new(width: usize, merges: bool) -> Self {
        Self {
            windows: Vec::new(),
            words: Vec::new(),
            width,
            free: Vec::new(),
            by_bounds: HashTable::new(),
            of_key: Vec::new(),
            merges,
        }
    }

    /// How many windows are open.
    pub(super) fn open(&self) -> usize {
        self.windows.len() - self.free.len()
    }

    pub(super) fn get(&self, window: u32) -> &Window {
        &self.windows[window as usize]
    }

    pub(super) fn get_mut(&mut self, window: u32) -> &mut Window {
        &mut self.windows[window as usize]
    }

    /// A window with what the trigger remembers of it.
    pub(super) fn with_words(&mut self, window: u32) -> (&mut Window, &mut [i64]) {
        let at = window as usize * self.width;
        (&mut self.windows[window as usize], &mut self.words[at..at + self.width])
    }

    pub(super) fn words(&self, window: u32) -> &[i64] {
        let at = window as usize * self.width;
        &self.words[at..at + self.width]
    }

    /// Whether a timer's window is still the one that asked.
    pub(super) fn is_alive(&self, waiting: Waiting) -> bool {
        self.windows
            .get(waiting.window as usize)
            .is_some_and(|window| window.is_open && window.generation == waiting.generation)
    }

    pub(super) fn find(&self, key: u32, bounds: Bounds) -> Option<u32> {
        let found = self.by_bounds.find(hash_of(key, bounds), |window| {
            let window = &self.windows[*window as usize];
            window.key == key && window.bounds == bounds
        });
        found.copied()
    }

    /// The windows of a key that overlap `bounds`, when windows merge.
    pub(super) fn overlapping(&self, key: u32, bounds: Bounds, found: &mut Vec<u32>) {
        found.clear();
        let mut at = self.of_key.get(key as usize).copied().unwrap_or(NO_WINDOW);
        while at != NO_WINDOW {
            let window = &self.windows[at as usize];
            if window.bounds.start_ms < bounds.end_ms && bounds.start_ms < window.bounds.end_ms {
                found.push(at);
            }
            at = window.next_of_key;
        }
    }

    /// Opens a window; there is none of this key and these bounds.
    pub(super) fn open_window(&mut self, key: u32, bounds: Bounds) -> u32 {
        let number = match self.free.pop() {
            Some(number) => number,
            None => {
                self.windows.push(Window {
                    key,
                    generation: 0,
                    bounds,
                    rows: RowList::default(),
                    previous: RowList::default(),
                    pane: None,
                    asked_event_ms: None,
                    asked_processing_ms: None,
                    is_open: false,
                    is_dirty: false,
                    is_merged: false,
                    next_of_key: NO_WINDOW,
                });
                self.words.resize(self.windows.len() * self.width, 0);
                self.windows.len() as u32 - 1
            }
        };
        let window = &mut self.windows[number as usize];
        *window = Window {
            key,
            bounds,
            is_open: true,
            rows: RowList::default(),
            previous: RowList::default(),
            generation: window.generation + 1,
            pane: None,
            asked_event_ms: None,
            asked_processing_ms: None,
            is_dirty: false,
            is_merged: false,
            next_of_key: NO_WINDOW,
        };
        self.index(number);
        number
    }

    fn index(&mut self, number: u32) {
        let Window { key, bounds, .. } = self.windows[number as usize];
        if self.merges {
            if self.of_key.len() <= key as usize {
                self.of_key.resize(key as usize + 1, NO_WINDOW);
            }
            self.windows[number as usize].next_of_key = std::mem::replace(&mut self.of_key[key as usize], number);
            return;
        }
        let windows = &self.windows;
        self.by_bounds.insert_unique(hash_of(key, bounds), number, |other| {
            let other = &windows[*other as usize];
            hash_of(other.key, other.bounds)
        });
    }

    /// Closes a window whose rows are given up.
    pub(super) fn close(&mut self, number: u32) {
        let Window {
            key,
            bounds,
            next_of_key,
            ..
        } = self.windows[number as usize];
        if self.merges {
            let mut at = self.of_key[key as usize];
            if at == number {
                self.of_key[key as usize] = next_of_key;
            } else {
                while self.windows[at as usize].next_of_key != number {
                    at = self.windows[at as usize].next_of_key;
                }
                self.windows[at as usize].next_of_key = next_of_key;
            }
        } else if let Ok(entry) = self
            .by_bounds
            .find_entry(hash_of(key, bounds), |other| *other == number)
        {
            entry.remove();
        }
        let (window, words) = self.with_words(number);
        window.is_open = false;
        window.pane = None;
        words.fill(0);
        self.free.push(number);
    }

    /// The numbers of the open windows.
    pub(super) fn numbers(&self) -> impl Iterator<Item = u32> + '_ {
        let open = self.windows.iter().zip(0u32..).filter(|(window, _)| window.is_open);
        open.map(|(_, number)| number)
    }

    /// Which of `keys` keys have a window.
    pub(super) fn used_keys(&self, keys: usize) -> Vec<bool> {
        let mut used = vec![false; keys];
        for window in self.windows.iter().filter(|window| window.is_open) {
            used[window.key as usize] = true;
        }
        used
    }

    /// Gives the keys of all windows new numbers.
    pub(super) fn renumber_keys(&mut self, new_number: &[u32]) {
        self.by_bounds.clear();
        self.of_key = Vec::new();
        let open: Vec<u32> = self.numbers().collect();
        for number in open {
            let window = &mut self.windows[number as usize];
            window.key = new_number[window.key as usize];
            window.next_of_key = NO_WINDOW;
            self.index(number);
        }
    }

    /// Gives back the memory when no window is open.
    pub(super) fn reset(&mut self) {
        *self = Self::new(self.width, self.merges);
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.windows.capacity() * size_of::<Window>()
            + (self.free.capacity() + self.of_key.capacity() + 2 * self.by_bounds.capacity()) * size_of::<u32>()
            + self.words.capacity() * size_of::<i64>()
    }
}
