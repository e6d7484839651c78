//! Entries: one `u128` a row, key prefix above position, sorted as plain integers; only runs of equal prefixes look at
//! the rest of the keys.

use crate::operator::sort::keys::Rest;
use crate::operator::sort::prefix::bytes_at;

/// One row: prefix (upper 64 bits), batch (32), row (32). Ties fall to the position, which makes the order definite.
pub(super) type Entry = u128;

pub(super) fn entry(prefix: u64, batch: u32, row: u32) -> Entry {
    u128::from(prefix) << 64 | u128::from(batch) << 32 | u128::from(row)
}

fn prefix(entry: Entry) -> u64 {
    (entry >> 64) as u64
}

/// Batch and row.
pub(super) fn place(entry: Entry) -> (usize, usize) {
    ((entry as u64 >> 32) as usize, entry as u32 as usize)
}

/// Sorts entries in no order at all. `rests` are those of the batches, by number.
pub(super) fn sort_entries(entries: &mut [Entry], rests: &[&Rest]) {
    entries.sort_unstable();
    sort_ties(entries, rests);
}

/// Sorts entries that consist of a few runs in order: cheaper, as the runs are found and merged.
pub(super) fn merge_entries(entries: &mut [Entry], rests: &[&Rest]) {
    entries.sort();
    sort_ties(entries, rests);
}

fn sort_ties(entries: &mut [Entry], rests: &[&Rest]) {
    let Some(first) = rests.first().filter(|rest| !rest.is_nothing()) else {
        return;
    };
    let ties = Ties {
        rests,
        flip: if first.is_descending() { u64::MAX } else { 0 },
    };
    // The prefix of an only key is its first bytes.
    let known = if matches!(first, Rest::Values { .. }) {
        size_of::<u64>()
    } else {
        0
    };
    for run in entries.chunk_by_mut(|a, b| prefix(*a) == prefix(*b)) {
        ties.sort(run, known);
    }
}

/// Runs shorter than this are sorted by comparing whole rows.
const SHORT_RUN: usize = 24;
/// Bytes of common prefix after which a run is sorted by comparing whole rows: it bounds the recursion.
const DEEP: usize = 512;

struct Ties<'a> {
    rests: &'a [&'a Rest],
    /// All ones when greater bytes come first.
    flip: u64,
}

impl Ties<'_> {
    fn bytes(&self, entry: Entry) -> &[u8] {
        let (batch, row) = place(entry);
        self.rests[batch].bytes(row)
    }

    fn by_whole_rows(&self, run: &mut [Entry]) {
        run.sort_unstable_by(|a, b| {
            let ordering = self.bytes(*a).cmp(self.bytes(*b));
            let ordering = if self.flip == 0 { ordering } else { ordering.reverse() };
            ordering.then((*a as u64).cmp(&(*b as u64)))
        });
    }

    /// Sorts rows that agree up to byte `depth`: by the next eight bytes, and then the runs that still agree.
    fn sort(&self, run: &mut [Entry], mut depth: usize) {
        loop {
            if run.len() < 2 {
                return;
            }
            if run.len() < SHORT_RUN || depth > DEEP {
                return self.by_whole_rows(run);
            }
            let (mut longest, mut shortest) = (0, usize::MAX);
            for entry in run.iter_mut() {
                let bytes = self.bytes(*entry);
                longest = longest.max(bytes.len());
                shortest = shortest.min(bytes.len());
                *entry = u128::from(bytes_at(bytes, depth) ^ self.flip) << 64 | u128::from(*entry as u64);
            }
            run.sort_unstable();
            depth += size_of::<u64>();
            if depth >= longest {
                // Zeros stood for what is missing: values that end with zeros are still told apart by their lengths.
                if shortest < longest {
                    break;
                }
                return;
            }
            let all_agree = match (run.first(), run.last()) {
                (Some(first), Some(last)) => prefix(*first) == prefix(*last),
                _ => return,
            };
            if !all_agree {
                break;
            }
            // A prefix that all share costs a turn of the loop, not a call.
        }
        for run in run.chunk_by_mut(|a, b| prefix(*a) == prefix(*b)) {
            let ended = run.iter().all(|entry| self.bytes(*entry).len() <= depth);
            if ended && run.len() > 1 {
                self.by_length(run);
            } else {
                self.sort(run, depth);
            }
        }
    }

    /// Sorts values that differ in nothing but how many zeros they end with.
    fn by_length(&self, run: &mut [Entry]) {
        run.sort_unstable_by_key(|entry| {
            let length = self.bytes(*entry).len() as u64 ^ self.flip;
            (length, *entry as u64)
        });
    }
}
