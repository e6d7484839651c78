//! What has changed since a barrier: which slices, and the keys of those that have gone. Checkpoints build on each other with it.

use std::collections::{BTreeMap, VecDeque};

use arrow::array::ArrayRef;

use crate::data::Result;
use crate::state::SnapshotRequest;

/// More keys of gone slices than this are not kept: the next checkpoint is then a whole one. What is gone is no longer written,
/// so that such a checkpoint is smaller than the one before.
const GONE_BYTES_MAX: usize = 32 << 20;

/// The barriers before a slice's first and last change.
struct Span {
    born: u64,
    touched: u64,
}

/// Keys of a slice that has gone after barrier `epoch`.
struct Gone {
    epoch: u64,
    end: i64,
    keys: Vec<ArrayRef>,
    rows: usize,
}

/// A slice that has gone, for a delta: its end, its keys and how many there are.
pub(super) type GoneKeys = (i64, Vec<ArrayRef>, usize);

/// Changes of slices (or windows), by their ends.
#[derive(Default)]
pub(super) struct Changes {
    /// The last barrier.
    epoch: u64,
    /// From which barrier on it is known what has gone.
    known_from: Option<u64>,
    spans: BTreeMap<i64, Span>,
    gone: VecDeque<Gone>,
    gone_bytes: usize,
}

impl Changes {
    /// The slice has changed.
    pub(super) fn touch(&mut self, end: i64) {
        let epoch = self.epoch;
        let span = self.spans.entry(end).or_insert(Span {
            born: epoch,
            touched: epoch,
        });
        span.touched = epoch;
    }

    /// The slice is about to go, with these keys.
    ///
    /// # Errors
    /// When the keys cannot be told.
    pub(super) fn go(&mut self, end: i64, keys: impl FnOnce() -> Result<(Vec<ArrayRef>, usize)>) -> Result<()> {
        let Some(span) = self.spans.remove(&end) else {
            return Ok(());
        };
        // What came and went between two barriers is in no checkpoint.
        if self.known_from.is_none() || span.born >= self.epoch {
            return Ok(());
        }
        let (keys, rows) = keys()?;
        self.gone_bytes += bytes_of(&keys);
        self.gone.push_back(Gone {
            epoch: self.epoch,
            end,
            keys,
            rows,
        });
        if self.gone_bytes > GONE_BYTES_MAX {
            self.known_from = None;
            self.gone = VecDeque::new();
            self.gone_bytes = 0;
        }
        Ok(())
    }

    /// Begins a checkpoint. Says on which one it builds; on none when too little is known.
    pub(super) fn begin(&mut self, request: SnapshotRequest) -> Option<u64> {
        let since = request
            .since
            .filter(|since| self.known_from.is_some_and(|from| from <= *since));
        if let Some(since) = request.since {
            // Checkpoints to come build on that one or on a later one.
            while let Some(old) = self.gone.front().filter(|gone| gone.epoch < since) {
                self.gone_bytes -= bytes_of(&old.keys);
                self.gone.pop_front();
            }
            self.known_from = self.known_from.map(|from| from.max(since));
        }
        self.known_from = self.known_from.or(Some(request.checkpoint));
        self.epoch = request.checkpoint;
        since
    }

    /// Whether the slice has changed since that checkpoint.
    pub(super) fn is_changed(&self, end: i64, since: Option<u64>) -> bool {
        let touched = self.spans.get(&end).map(|span| span.touched);
        since.is_none_or(|since| touched.is_none_or(|touched| touched >= since))
    }

    /// What has gone since that checkpoint.
    pub(super) fn gone_since(&self, since: u64) -> Vec<GoneKeys> {
        let gone = self.gone.iter().filter(|gone| gone.epoch >= since);
        gone.map(|gone| (gone.end, gone.keys.clone(), gone.rows)).collect()
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.gone_bytes
    }
}

fn bytes_of(keys: &[ArrayRef]) -> usize {
    keys.iter().map(|column| column.get_array_memory_size()).sum()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::Int64Array;

    use super::*;

    fn begin(changes: &mut Changes, checkpoint: u64, since: Option<u64>) -> Option<u64> {
        changes.begin(SnapshotRequest { checkpoint, since })
    }

    fn keys(rows: usize) -> Result<(Vec<ArrayRef>, usize)> {
        Ok((vec![Arc::new(Int64Array::from(vec![0; rows]))], rows))
    }

    #[test]
    fn what_changed_and_what_went_is_known_since_the_first_barrier() {
        let mut changes = Changes::default();
        changes.touch(10);
        changes.touch(20);
        assert_eq!(begin(&mut changes, 4, Some(3)), None, "nothing is known of before");
        assert!(changes.is_changed(10, None) && !changes.is_changed(10, Some(4)));
        changes.touch(20);
        changes.touch(30);
        changes.go(10, || keys(2)).unwrap();
        changes.go(30, || keys(1)).unwrap();
        assert_eq!(begin(&mut changes, 5, Some(4)), Some(4));
        assert!(changes.is_changed(20, Some(4)));
        let gone = |changes: &Changes, since| {
            let gone = changes.gone_since(since).into_iter();
            gone.map(|(end, _, rows)| (end, rows)).collect::<Vec<_>>()
        };
        assert_eq!(gone(&changes, 4), [(10, 2)], "30 was in no checkpoint");
        // Checkpoint 5 fails: 6 builds on 4 as well.
        changes.go(20, || keys(3)).unwrap();
        assert_eq!(begin(&mut changes, 6, Some(4)), Some(4));
        assert_eq!(gone(&changes, 4), [(10, 2), (20, 3)]);
        assert_eq!(begin(&mut changes, 7, Some(6)), Some(6));
        assert_eq!(gone(&changes, 6), []);
        assert_eq!(changes.size(), 0);
        assert_eq!(begin(&mut changes, 8, Some(4)), None, "that is forgotten");
    }

    #[test]
    fn too_many_keys_that_have_gone_make_the_next_checkpoint_a_whole_one() {
        let mut changes = Changes::default();
        changes.touch(1);
        begin(&mut changes, 1, None);
        changes.go(1, || keys((GONE_BYTES_MAX >> 3) + 1)).unwrap();
        assert_eq!(changes.size(), 0);
        assert_eq!(begin(&mut changes, 2, Some(1)), None);
        assert_eq!(begin(&mut changes, 3, Some(2)), Some(2));
    }
}
