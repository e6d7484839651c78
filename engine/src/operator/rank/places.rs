//! From the rows that a partition showed before a batch and those that it shows now to the rows that leave.

use std::collections::HashMap;

use crate::data::RowKind;
use crate::operator::keyed::Changes;

/// A row that a partition shows: its slot, and what tells it from rows of other content.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Shown {
    pub(super) slot: u32,
    pub(super) identity: u64,
}

/// How a rank shows its rows.
#[derive(Clone, Copy)]
pub(super) struct Places {
    /// The first place that is shown, from 1.
    pub(super) first: usize,
    /// The last.
    pub(super) last: usize,
    /// Whether the place is part of the row.
    pub(super) number: bool,
    pub(super) update_before: bool,
}

impl Places {
    /// Those of the best rows that are shown, and the place of the first of them.
    pub(super) fn shown<'a, T>(&self, best: &'a [T]) -> &'a [T] {
        best.get(self.first - 1..best.len().min(self.last)).unwrap_or(&[])
    }

    /// Adds what leaves when a partition showed `old` and now shows `new`.
    pub(super) fn compare(
        &self,
        old: &[Shown],
        new: &[Shown],
        counts: &mut HashMap<u64, usize, foldhash::fast::RandomState>,
        changes: &mut Changes,
    ) {
        // With one place the next row takes the place of the last: an update, as with places that are shown.
        if self.number || self.first == self.last {
            self.compare_places(old, new, changes);
        } else if old
            .iter()
            .map(|row| row.identity)
            .ne(new.iter().map(|row| row.identity))
        {
            compare_sets(old, new, counts, changes);
        }
    }

    fn compare_places(&self, old: &[Shown], new: &[Shown], changes: &mut Changes) {
        for at in 0..old.len().max(new.len()) {
            let place = self.first + at;
            match (old.get(at), new.get(at)) {
                (Some(old), Some(new)) if old.identity == new.identity => {}
                (Some(old), Some(new)) => {
                    if self.update_before {
                        changes.add(old.slot, RowKind::UpdateBefore, place);
                    }
                    changes.add(new.slot, RowKind::UpdateAfter, place);
                }
                (Some(old), None) => changes.add(old.slot, RowKind::Delete, place),
                (None, Some(new)) => changes.add(new.slot, RowKind::Insert, place),
                (None, None) => {}
            }
        }
    }
}

/// First the rows that leave the partition, then those that enter it.
fn compare_sets(
    old: &[Shown],
    new: &[Shown],
    counts: &mut HashMap<u64, usize, foldhash::fast::RandomState>,
    changes: &mut Changes,
) {
    counts.clear();
    for row in new {
        *counts.entry(row.identity).or_default() += 1;
    }
    let mut missing = |row: &&Shown| match counts.get_mut(&row.identity) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    };
    let leaving = old.iter().filter(&mut missing);
    leaving.for_each(|row| changes.add(row.slot, RowKind::Delete, 0));
    // What is left of the counts are the rows that enter.
    for row in new {
        if let Some(count) = counts.get_mut(&row.identity).filter(|count| **count > 0) {
            *count -= 1;
            changes.add(row.slot, RowKind::Insert, 0);
        }
    }
}
