//! [`KeyIndex`]: the keys of a keyed operator, numbered, with their life and their last access.
//!
//! A number stands until [`KeyIndex::compact`], which the operator asks for between batches when most keys are dead; it then
//! moves what it keeps per key to the new numbers. A snapshot is the key columns of the live keys and their access times.

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::DataType;

use crate::data::Result;
use crate::operator::aggregate::GroupTable;

/// Dead keys that are never worth a new table.
const DEAD_MIN: usize = 1024;
/// Keys that are copied at once.
const COPIED_KEYS: usize = 1 << 16;

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
        self.table.is_some() && dead > DEAD_MIN && dead > self.live_count
    }

    /// Forgets dead keys. Gives back the old numbers of the live ones, in the order of the new ones.
    ///
    /// # Errors
    /// When a key cannot be copied.
    pub(in crate::operator) fn compact(&mut self) -> Result<Vec<usize>> {
        let kept: Vec<usize> = (0..self.live.len()).filter(|group| self.live[*group]).collect();
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
        self.live = vec![true; kept.len()];
        self.live_count = kept.len();
        Ok(kept)
    }

    /// Bytes held.
    pub(in crate::operator) fn size(&self) -> usize {
        self.table.as_ref().map_or(0, GroupTable::size)
            + self.live.capacity()
            + self.accessed.capacity() * size_of::<i64>()
    }
}
