//! The hash table: from a key to the run of build rows that have it.
//!
//! Each distinct key owns one entry, and the rows of a key are contiguous in `order`. So a probe row costs one access
//! to the directory however many duplicates its key has, semi joins never look at duplicates, and a run can be left
//! and resumed anywhere. Three directories: an array indexed by the key itself (integers that lie close together),
//! the same with one entry per key for unique keys, and open addressing with the key stored in the slot, where a miss
//! is seen without touching anything else.

use arrow::array::ArrayRef;
use arrow::buffer::NullBuffer;

use crate::operator::hash_join::columns::KeyColumns;
use crate::operator::hash_join::keys::{HashWord, Keys, Wide, Words, narrow_array, wide_arrays};
use crate::operator::hash_join::marks::Marks;
use crate::operator::hash_join::slots::{NO_MATCH, Run, Slots, Word};

/// No row: rows are counted in `u32` and this many are refused.
const NO_ROW: u32 = u32::MAX;

/// An array indexed by the key may have this many entries per build row: no more memory than slots would need.
const DENSE_ENTRIES_PER_ROW: u64 = 8;
const DENSE_ENTRIES_ALWAYS: u64 = 1024;

/// The table over the build side's keys.
#[derive(Debug)]
pub(super) struct Table {
    directory: Directory,
    /// Build rows, those of one key next to each other; `None` when position and row are the same.
    order: Option<Vec<u32>>,
    /// Key columns to verify hashes with.
    columns: KeyColumns,
    /// No two build rows have the same key.
    pub(super) is_unique: bool,
    /// Least and greatest key, when keys are integers.
    pub(super) bounds: Option<(i64, i64)>,
}

#[derive(Debug)]
enum Directory {
    /// No build row has a key that could match.
    Empty,
    /// `rows[key - min]` is the row of a unique key, [`NO_ROW`] for none.
    Direct {
        min: u64,
        rows: Vec<u32>,
    },
    /// The run of a key is `starts[key - min]..starts[key - min + 1]`.
    DirectRuns {
        min: u64,
        starts: Vec<u32>,
    },
    Narrow(Slots<u64>),
    Wide(Slots<Wide>),
    Hashed(Slots<HashWord>),
}

impl Table {
    /// Builds the table over `keys`; `integers` when they may index an array.
    pub(super) fn build(keys: Keys, integers: bool) -> Self {
        let Keys { words, nulls, columns } = keys;
        let mut table = Table {
            directory: Directory::Empty,
            order: None,
            columns,
            is_unique: true,
            bounds: None,
        };
        match words {
            Words::Narrow(words) => {
                if integers {
                    table.bounds = bounds(&words, nulls.as_ref());
                }
                if !table.build_direct(&words, nulls.as_ref()) {
                    let slots = table.build_slots(&words, nulls.as_ref(), |_, _, _| true);
                    table.directory = slots.map_or(Directory::Empty, Directory::Narrow);
                }
            }
            Words::Wide(words) => {
                let slots = table.build_slots(&words, nulls.as_ref(), |_, _, _| true);
                table.directory = slots.map_or(Directory::Empty, Directory::Wide);
            }
            Words::Hashed(words) => {
                let slots = table.build_slots(&words, nulls.as_ref(), |columns, a, b| columns.equal(a, columns, b));
                table.directory = slots.map_or(Directory::Empty, Directory::Hashed);
            }
        }
        table
    }

    /// Whether nothing can match.
    pub(super) fn is_empty(&self) -> bool {
        matches!(self.directory, Directory::Empty)
    }

    /// The build row at a position of a run.
    #[inline]
    pub(super) fn row(&self, position: u32) -> u32 {
        match &self.order {
            Some(order) => order[position as usize],
            None => position,
        }
    }

    /// The build rows at positions `start..start + len`, appended to `rows`.
    #[inline]
    pub(super) fn rows(&self, start: u32, len: u32, rows: &mut Vec<u32>) {
        match &self.order {
            Some(order) => rows.extend_from_slice(&order[start as usize..(start + len) as usize]),
            None => rows.extend(start..start + len),
        }
    }

    /// The run of each probe row.
    pub(super) fn lookup(&self, keys: &Keys) -> Vec<Run> {
        let mut runs = match (&self.directory, &keys.words) {
            (Directory::Direct { min, rows }, Words::Narrow(words)) => lookup_direct(*min, rows, words),
            (Directory::DirectRuns { min, starts }, Words::Narrow(words)) => lookup_direct_runs(*min, starts, words),
            (Directory::Narrow(slots), Words::Narrow(words)) => slots.lookup(words),
            (Directory::Wide(slots), Words::Wide(words)) => slots.lookup(words),
            (Directory::Hashed(slots), Words::Hashed(words)) => {
                let mut runs = slots.lookup(words);
                self.verify(slots, words, &keys.columns, &mut runs);
                runs
            }
            (_, Words::Narrow(words)) => vec![NO_MATCH; words.len()],
            (_, Words::Wide(words)) => vec![NO_MATCH; words.len()],
            (_, Words::Hashed(words)) => vec![NO_MATCH; words.len()],
        };
        if let Some(nulls) = &keys.nulls {
            for (i, run) in runs.iter_mut().enumerate() {
                if nulls.is_null(i) {
                    *run = NO_MATCH;
                }
            }
        }
        runs
    }

    /// Checks that equal hashes mean equal keys. All rows of a run have one key, so one comparison a probe row does.
    fn verify(&self, slots: &Slots<HashWord>, words: &[HashWord], probe: &KeyColumns, runs: &mut [Run]) {
        let mut pairs = Vec::with_capacity(runs.len());
        for (i, run) in runs.iter().enumerate() {
            if run.len != 0 {
                pairs.push((self.row(run.start), i as u32));
            }
        }
        let mut bad = Vec::new();
        self.columns.unequal(probe, &pairs, &mut bad);
        for position in bad {
            let i = pairs[position].1;
            let equal = |run: Run| self.columns.equal(self.row(run.start), probe, i);
            runs[i as usize] = slots.find(words[i as usize], equal);
        }
    }

    /// The keys of `rows` build rows in the form of [`Keys::arrays`].
    pub(super) fn into_key_arrays(self, rows: usize) -> Vec<ArrayRef> {
        let mut is_valid = Marks::new(rows);
        if let Directory::Hashed(_) = self.directory {
            return self.columns.into_arrays();
        }
        if let Directory::Wide(slots) = &self.directory {
            let mut words = vec![Wide::default(); rows];
            slots.each(|key, run| self.set_keys(key, run, &mut words, &mut is_valid));
            return wide_arrays(&words, Some(NullBuffer::new(is_valid.finish())));
        }
        let mut words = vec![0u64; rows];
        let mut set = |key, run| self.set_keys(key, run, &mut words, &mut is_valid);
        match &self.directory {
            Directory::Direct { min, rows } => {
                for (entry, row) in rows.iter().enumerate().filter(|(_, row)| **row != NO_ROW) {
                    set(min.wrapping_add(entry as u64), Run { start: *row, len: 1 });
                }
            }
            Directory::DirectRuns { min, starts } => {
                for (entry, range) in starts.windows(2).enumerate() {
                    let (start, len) = (range[0], range[1] - range[0]);
                    set(min.wrapping_add(entry as u64), Run { start, len });
                }
            }
            Directory::Narrow(slots) => slots.each(set),
            Directory::Wide(_) | Directory::Hashed(_) | Directory::Empty => {}
        }
        vec![narrow_array(words, Some(NullBuffer::new(is_valid.finish())))]
    }

    fn set_keys<W: Copy>(&self, key: W, run: Run, words: &mut [W], is_valid: &mut Marks) {
        for position in run.start..run.start + run.len {
            let row = self.row(position) as usize;
            words[row] = key;
            is_valid.set(row);
        }
    }

    /// Bytes kept.
    pub(super) fn memory_bytes(&self) -> usize {
        let directory = match &self.directory {
            Directory::Empty => 0,
            Directory::Direct { rows, .. } => rows.capacity() * size_of::<u32>(),
            Directory::DirectRuns { starts, .. } => starts.capacity() * size_of::<u32>(),
            Directory::Narrow(slots) => slots.memory_bytes(),
            Directory::Wide(slots) => slots.memory_bytes(),
            Directory::Hashed(slots) => slots.memory_bytes(),
        };
        let order = self
            .order
            .as_ref()
            .map_or(0, |order| order.capacity() * size_of::<u32>());
        directory + order + self.columns.memory_bytes()
    }

    /// Builds an array indexed by the key, if the keys lie close enough together.
    fn build_direct(&mut self, words: &[u64], nulls: Option<&NullBuffer>) -> bool {
        let Some((min, max)) = self.bounds else { return false };
        let span = max.wrapping_sub(min) as u64;
        if span >= (words.len() as u64 * DENSE_ENTRIES_PER_ROW).max(DENSE_ENTRIES_ALWAYS) {
            return false;
        }
        let (min, entries) = (min as u64, span as usize + 1);
        // Not zeros: zeroed memory comes untouched from the operating system, and reading an entry before writing it
        // then costs two page faults and a flush of the other cores' translations.
        let mut rows = Vec::with_capacity(entries + 1);
        rows.resize(entries, NO_ROW);
        let mut is_unique = true;
        each_valid(words.len(), nulls, |row| {
            let entry = &mut rows[words[row].wrapping_sub(min) as usize];
            is_unique &= *entry == NO_ROW;
            *entry = row as u32;
        });
        self.is_unique = is_unique;
        if self.is_unique {
            self.directory = Directory::Direct { min, rows };
            return true;
        }
        // The same memory, touched already, now counts.
        let mut starts = rows;
        starts.push(0);
        starts.fill(0);
        each_valid(words.len(), nulls, |row| {
            starts[words[row].wrapping_sub(min) as usize + 1] += 1
        });
        for i in 1..starts.len() {
            starts[i] += starts[i - 1];
        }
        let mut order = vec![0u32; starts[entries] as usize];
        // Filling moves each start to its run's end, which is the next run's start: shifted back below.
        each_valid(words.len(), nulls, |row| {
            let next = &mut starts[words[row].wrapping_sub(min) as usize];
            order[*next as usize] = row as u32;
            *next += 1;
        });
        starts.copy_within(0..entries, 1);
        starts[0] = 0;
        self.set_order(order);
        self.directory = Directory::DirectRuns { min, starts };
        true
    }

    /// Builds slots; `None` when no row has a key that could match.
    fn build_slots<W: Word>(
        &mut self,
        words: &[W],
        nulls: Option<&NullBuffer>,
        same: impl Fn(&KeyColumns, u32, u32) -> bool,
    ) -> Option<Slots<W>> {
        let total = words.len() - nulls.map_or(0, NullBuffer::null_count);
        if total == 0 {
            return None;
        }
        let mut slots = Slots::<W>::new(total);
        // The first row of each row's key.
        let mut firsts = vec![NO_ROW; words.len()];
        let mut seen = 0;
        each_valid(words.len(), nulls, |row| {
            slots.reserve_one(seen, total);
            seen += 1;
            firsts[row] = slots.insert(words[row], row as u32, |first| same(&self.columns, first, row as u32));
        });
        self.is_unique = slots.distinct == total;
        if !self.is_unique {
            let (starts, counts, order) = group(&firsts, total);
            slots.set_runs(|first| Run {
                start: starts[first as usize],
                len: counts[first as usize],
            });
            self.set_order(order);
        }
        Some(slots)
    }

    fn set_order(&mut self, order: Vec<u32>) {
        let is_identity = order
            .iter()
            .enumerate()
            .all(|(position, row)| position == *row as usize);
        self.order = (!is_identity).then_some(order);
    }
}

/// Puts rows with the same first row next to each other, in the order of the first rows: start and count per first
/// row, and the rows.
fn group(firsts: &[u32], total: usize) -> (Vec<u32>, Vec<u32>, Vec<u32>) {
    let mut counts = vec![0u32; firsts.len()];
    for first in firsts.iter().filter(|first| **first != NO_ROW) {
        counts[*first as usize] += 1;
    }
    let mut starts = vec![0u32; firsts.len()];
    let mut next = 0;
    for (start, count) in starts.iter_mut().zip(&counts) {
        *start = next;
        next += count;
    }
    let mut order = vec![0u32; total];
    let mut fill = starts.clone();
    for (row, first) in firsts.iter().enumerate().filter(|(_, first)| **first != NO_ROW) {
        let next = &mut fill[*first as usize];
        order[*next as usize] = row as u32;
        *next += 1;
    }
    (starts, counts, order)
}

/// Visits the rows whose keys are not NULL.
#[inline]
fn each_valid(rows: usize, nulls: Option<&NullBuffer>, mut visit: impl FnMut(usize)) {
    match nulls {
        None => (0..rows).for_each(visit),
        Some(nulls) => nulls.valid_indices().for_each(&mut visit),
    }
}

fn bounds(words: &[u64], nulls: Option<&NullBuffer>) -> Option<(i64, i64)> {
    let (mut min, mut max) = (i64::MAX, i64::MIN);
    each_valid(words.len(), nulls, |row| {
        min = min.min(words[row] as i64);
        max = max.max(words[row] as i64);
    });
    (min <= max).then_some((min, max))
}

fn lookup_direct(min: u64, rows: &[u32], words: &[u64]) -> Vec<Run> {
    words
        .iter()
        .map(|word| {
            let start = rows.get(word.wrapping_sub(min) as usize).copied().unwrap_or(NO_ROW);
            Run {
                start,
                len: u32::from(start != NO_ROW),
            }
        })
        .collect()
}

fn lookup_direct_runs(min: u64, starts: &[u32], words: &[u64]) -> Vec<Run> {
    let entries = starts.len() - 1;
    words
        .iter()
        .map(|word| {
            let entry = word.wrapping_sub(min);
            if entry >= entries as u64 {
                return NO_MATCH;
            }
            let start = starts[entry as usize];
            Run {
                start,
                len: starts[entry as usize + 1] - start,
            }
        })
        .collect()
}
