//! [`KeyIndex`]: the keys of a keyed operator, numbered, with their life and their last access.
//!
//! A number stands until [`KeyIndex::compact`], which the operator asks for between batches when most keys are dead; it then
//! moves what it keeps per key to the new numbers. A snapshot is the key columns of the live keys and their access times; in
//! a delta those of the keys that have changed, and the columns of the dead ones, which are remembered so long.

use arrow::array::{Array, ArrayRef, Int64Array, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::DataType;

use super::frozen::FrozenKeys;
use super::tracked::Tracked;
use crate::data::{EngineError, Result};
use crate::operator::aggregate::GroupTable;
use crate::state::SnapshotRequest;

/// Dead keys that are never worth a new table.
const DEAD_MIN: usize = 1024;
/// Keys that are copied at once.
const COPIED_KEYS: usize = 1 << 16;
/// Dead keys that are remembered for a delta beside four times as many as live: then a checkpoint is long overdue.
const REMEMBERED_KEYS: usize = 1 << 20;

/// Keys to dense numbers.
pub(in crate::operator) struct KeyIndex {
    types: Vec<DataType>,
    /// `None` without key columns: all rows have number 0.
    table: Option<GroupTable>,
    live: Vec<bool>,
    live_count: usize,
    /// Processing time of the last access; empty without a time to live.
    accessed: Vec<i64>,
    ttl_ms: Option<i64>,
    sweep_at: Option<i64>,
    tracked: Tracked,
    /// Dead keys that the last compaction kept because a delta must tell of them.
    remembered: usize,
}

/// The keys that a snapshot writes.
pub(in crate::operator) struct Cut {
    /// The checkpoint since which they have changed; `None`: they are all that live.
    pub(in crate::operator) since: Option<u64>,
    /// Numbers of live keys.
    pub(in crate::operator) live: Vec<u32>,
    /// Numbers of keys that have died.
    pub(in crate::operator) dead: Vec<u32>,
}

impl KeyIndex {
    /// An index of keys of these types, which are forgotten after `ttl_ms`.
    ///
    /// # Errors
    /// When a type cannot be a key.
    pub(in crate::operator) fn new(types: Vec<DataType>, ttl_ms: Option<u64>) -> Result<Self> {
        let table = match types.is_empty() {
            true => None,
            false => Some(GroupTable::new(types.clone())?),
        };
        Ok(Self {
            types,
            table,
            live: Vec::new(),
            live_count: 0,
            accessed: Vec::new(),
            ttl_ms: ttl_ms
                .filter(|ttl| *ttl > 0)
                .map(|ttl| i64::try_from(ttl).unwrap_or(i64::MAX)),
            sweep_at: None,
            tracked: Tracked::default(),
            remembered: 0,
        })
    }

    /// Puts into `groups` the number of each row's key. New keys are not live yet.
    ///
    /// # Errors
    /// When there are too many keys or a type cannot be converted.
    pub(in crate::operator) fn intern(
        &mut self,
        columns: &[ArrayRef],
        rows: usize,
        groups: &mut Vec<usize>,
    ) -> Result<()> {
        match &mut self.table {
            Some(table) => table.intern_wider(columns, groups)?,
            None => {
                groups.clear();
                groups.resize(rows, 0);
            }
        }
        let len = self.table.as_ref().map_or(1, GroupTable::len);
        self.live.resize(len, false);
        if self.ttl_ms.is_some() {
            self.accessed.resize(len, 0);
        }
        self.tracked.grow(len);
        Ok(())
    }

    /// How many numbers there are.
    pub(in crate::operator) fn len(&self) -> usize {
        self.live.len()
    }

    /// Whether the operator keeps something for the key.
    #[inline]
    pub(in crate::operator) fn is_live(&self, group: usize) -> bool {
        self.live[group]
    }

    /// Whether the key lives but has not been accessed for too long.
    #[inline]
    pub(in crate::operator) fn is_expired(&self, group: usize, now_ms: i64) -> bool {
        self.ttl_ms
            .is_some_and(|ttl| self.live[group] && now_ms.saturating_sub(self.accessed[group]) >= ttl)
    }

    /// Notes an access, after which the key lives or does not.
    #[inline]
    pub(in crate::operator) fn note(&mut self, group: usize, live: bool, now_ms: i64) {
        if self.live[group] != live {
            self.live[group] = live;
            self.live_count = if live { self.live_count + 1 } else { self.live_count - 1 };
        }
        self.tracked.note(group);
        if let Some(ttl) = self.ttl_ms {
            self.accessed[group] = now_ms;
            if live && self.sweep_at.is_none() {
                self.sweep_at = Some(now_ms.saturating_add(ttl));
            }
        }
    }

    /// Whether keys are forgotten.
    pub(in crate::operator) fn has_ttl(&self) -> bool {
        self.ttl_ms.is_some()
    }

    /// When [`Self::sweep`] should be called.
    pub(in crate::operator) fn sweep_at(&self) -> Option<i64> {
        self.sweep_at
    }

    /// The keys that have not been accessed for too long; they are dead from now on.
    pub(in crate::operator) fn sweep(&mut self, now_ms: i64) -> Vec<usize> {
        let Some(ttl) = self.ttl_ms else {
            return Vec::new();
        };
        let mut expired = Vec::new();
        let mut oldest = i64::MAX;
        for (group, (live, accessed)) in self.live.iter_mut().zip(&self.accessed).enumerate() {
            if !*live {
                continue;
            }
            if now_ms.saturating_sub(*accessed) >= ttl {
                *live = false;
                self.tracked.note(group);
                expired.push(group);
            } else {
                oldest = oldest.min(*accessed);
            }
        }
        self.live_count -= expired.len();
        // A look at all keys is not worth one of them: what expires soon after the next waits a little.
        let soonest = now_ms.saturating_add((ttl / 4).max(1));
        self.sweep_at = (self.live_count > 0).then(|| oldest.saturating_add(ttl).max(soonest));
        expired
    }

    /// Whether most keys are dead, so that [`Self::compact`] pays.
    pub(in crate::operator) fn is_sparse(&self) -> bool {
        let dead = self.live.len() - self.live_count;
        let forgettable = dead.saturating_sub(self.remembered);
        self.table.is_some()
            && forgettable > DEAD_MIN
            && forgettable > self.live_count
            && forgettable > self.remembered / 2
    }

    /// Forgets dead keys. Gives back the old numbers of the others, in the order of the new ones; with those that live are the
    /// dead ones of which a delta must tell.
    ///
    /// # Errors
    /// When a key cannot be copied.
    pub(in crate::operator) fn compact(&mut self) -> Result<Vec<usize>> {
        let is_recent = |group: &usize| !self.live[*group] && self.tracked.is_recent(*group);
        self.remembered = (0..self.live.len()).filter(is_recent).count();
        if self.remembered > 4 * self.live_count + REMEMBERED_KEYS {
            self.tracked.clear();
            self.remembered = 0;
        }
        let kept = |group: &usize| self.live[*group] || self.tracked.is_recent(*group);
        let kept: Vec<usize> = (0..self.live.len()).filter(kept).collect();
        if let Some(old) = &self.table {
            let mut table = GroupTable::new(self.types.clone())?;
            let mut numbers = Vec::new();
            let mut rest = kept.as_slice();
            let mut start = 0;
            while !rest.is_empty() {
                let end = (start + COPIED_KEYS).min(old.len());
                let count = rest.partition_point(|group| *group < end);
                let (part, after) = rest.split_at(count);
                let rows: UInt32Array = part.iter().map(|group| (group - start) as u32).collect();
                let keys = old.emit_keys(start..end)?;
                let keys = keys
                    .iter()
                    .map(|key| Ok(take(key, &rows, None)?))
                    .collect::<Result<Vec<_>>>()?;
                if count > 0 {
                    table.intern_wider(&keys, &mut numbers)?;
                }
                rest = after;
                start = end;
            }
            self.table = Some(table);
        }
        if self.ttl_ms.is_some() {
            self.accessed = kept.iter().map(|group| self.accessed[*group]).collect();
        }
        self.live = kept.iter().map(|group| self.live[*group]).collect();
        self.tracked.compact(&kept);
        Ok(kept)
    }

    /// At a barrier: the keys to write. What changes from now on belongs to the next checkpoint.
    pub(in crate::operator) fn cut(&mut self, request: SnapshotRequest) -> Cut {
        self.remembered = 0;
        let changed = match self.table {
            Some(_) => self.tracked.barrier(request, self.live.len()),
            // One row is no delta.
            None => None,
        };
        match changed {
            Some(changed) => {
                let (live, dead) = changed.into_iter().partition(|group| self.live[*group as usize]);
                Cut {
                    since: request.since,
                    live,
                    dead,
                }
            }
            None => Cut {
                since: None,
                live: self.living(),
                dead: Vec::new(),
            },
        }
    }

    /// The numbers of all keys that live.
    pub(in crate::operator) fn living(&self) -> Vec<u32> {
        let live = self.live.iter().enumerate().filter(|(_, live)| **live);
        live.map(|(group, _)| group as u32).collect()
    }

    /// When each of these keys was accessed; `None` without a time to live.
    pub(in crate::operator) fn accessed(&self, groups: &[u32]) -> Option<Vec<i64>> {
        let accessed = || groups.iter().map(|group| self.accessed[*group as usize]).collect();
        self.ttl_ms.map(|_| accessed())
    }

    /// The key columns of these keys, without dictionaries.
    ///
    /// # Errors
    /// When they do not fit one array.
    pub(in crate::operator) fn gather(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        self.table
            .as_ref()
            .map_or(Ok(Vec::new()), |table| table.gather_plain(groups))
    }

    /// A copy of all keys, for another thread to read.
    ///
    /// # Errors
    /// When the keys cannot be copied.
    pub(in crate::operator) fn freeze(&self) -> Result<FrozenKeys> {
        Ok(FrozenKeys::new(
            self.table.as_ref().map(GroupTable::frozen).transpose()?,
        ))
    }

    /// Takes keys back, which live from now on, and puts into `groups` their numbers. With `is_unique` a key comes once.
    ///
    /// # Errors
    /// When a key is there twice although it must not be, or as for `intern`.
    pub(in crate::operator) fn restore(
        &mut self,
        columns: &[ArrayRef],
        accessed: Option<&Int64Array>,
        now_ms: i64,
        (rows, is_unique): (usize, bool),
        groups: &mut Vec<usize>,
    ) -> Result<()> {
        self.intern(columns, rows, groups)?;
        for (row, group) in groups.iter().enumerate() {
            if is_unique && self.live[*group] {
                return Err(EngineError::Plan(
                    "the state has a key twice: its key columns are not those of the program; give them their old names, or \
                     start without that state"
                        .into(),
                ));
            }
            // Without a time, because the program had no time to live, the access is now.
            let accessed = accessed.filter(|accessed| accessed.is_valid(row));
            self.note(*group, true, accessed.map_or(now_ms, |accessed| accessed.value(row)));
        }
        Ok(())
    }

    /// Ends the restoring: nothing has changed since this checkpoint. Without one, changes are not noted: the operator writes
    /// no deltas.
    pub(in crate::operator) fn restored(&mut self, checkpoint: Option<u64>) {
        if let Some(ttl) = self.ttl_ms {
            let live = self.live.iter().zip(&self.accessed).filter(|(live, _)| **live);
            let oldest = live.map(|(_, accessed)| *accessed).min();
            self.sweep_at = oldest.map(|oldest| oldest.saturating_add(ttl));
        }
        if let (Some(checkpoint), Some(_)) = (checkpoint, &self.table) {
            self.tracked.begin(checkpoint, self.live.len());
        }
    }

    /// Bytes held.
    pub(in crate::operator) fn size(&self) -> usize {
        self.table.as_ref().map_or(0, GroupTable::size)
            + self.live.capacity()
            + self.accessed.capacity() * size_of::<i64>()
            + self.tracked.size()
    }
}
