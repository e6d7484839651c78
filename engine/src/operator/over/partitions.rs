//! The partitions of an OVER: their keys numbered, and which of them still matter. Those that do not are dropped when
//! they are more than half, and the others numbered anew.

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::DataType;

use crate::data::{Batch, EngineError, Result};
use crate::operator::aggregate::GroupTable;
use crate::plan::ScalarExpr;

/// So few are never worth numbering anew.
const FEW: usize = 1024;

/// Keys that are copied at once.
const COPIED_KEYS: usize = if cfg!(test) { 2 } else { 1 << 16 };

/// The partitions that matter, at a barrier.
pub(super) struct FrozenPartitions {
    /// Their numbers and keys.
    pub(super) chunks: Vec<(Vec<u32>, Vec<ArrayRef>)>,
    /// By number.
    pub(super) last_seen: Vec<Option<i64>>,
}

/// Partition keys to numbers.
pub(super) struct Partitions {
    keys: Vec<ScalarExpr>,
    /// None without keys: there is one partition.
    table: Option<GroupTable>,
    groups: Vec<usize>,
    /// Of each partition, when a row of it last came, in processing time; `None` for one that does not matter.
    last_seen: Vec<Option<i64>>,
    alive: usize,
}

impl Partitions {
    /// By these keys.
    ///
    /// # Errors
    /// When a key's type cannot be grouped by.
    pub(super) fn new(keys: &[ScalarExpr]) -> Result<Self> {
        let types = keys.iter().map(|key| Ok(key.expr.data_type(&key.input)?));
        let types = types.collect::<Result<Vec<_>>>()?;
        let table = match types.is_empty() {
            true => None,
            false => Some(GroupTable::new(types)?),
        };
        Ok(Self {
            keys: keys.to_vec(),
            table,
            groups: Vec::new(),
            last_seen: Vec::new(),
            alive: 0,
        })
    }

    /// The partition of each row, which came at `now`. `expired` gets those that have been silent for `ttl` before that.
    ///
    /// # Errors
    /// When there are too many partitions.
    pub(super) fn number(
        &mut self,
        rows: &Batch,
        now: i64,
        ttl: Option<i64>,
        expired: &mut Vec<usize>,
    ) -> Result<Vec<u32>> {
        match &mut self.table {
            None => {
                self.groups.clear();
                self.groups.resize(rows.num_rows(), 0);
                self.last_seen.resize(1, None);
            }
            Some(table) => {
                let columns = self
                    .keys
                    .iter()
                    .map(|key| Ok(key.expr.evaluate(rows)?.into_array(rows.num_rows())?));
                let columns: Vec<ArrayRef> = columns.collect::<Result<_>>()?;
                if !table.intern(&columns, &mut self.groups)? {
                    table.intern_wider(&columns, &mut self.groups)?;
                }
                self.last_seen.resize(table.len(), None);
            }
        }
        u32::try_from(self.last_seen.len())
            .map_err(|_| EngineError::Plan("an OVER has more than 4 billion partitions".into()))?;
        for group in &self.groups {
            let last = self.last_seen[*group].replace(now);
            match last {
                None => self.alive += 1,
                Some(last) if ttl.is_some_and(|ttl| last.saturating_add(ttl) <= now) => expired.push(*group),
                Some(_) => {}
            }
        }
        Ok(self.groups.iter().map(|group| *group as u32).collect())
    }

    /// The types of the keys as they are kept.
    pub(super) fn key_types(&self) -> &[DataType] {
        self.table.as_ref().map_or(&[], GroupTable::key_types)
    }

    /// The keys of those that matter.
    ///
    /// # Errors
    /// When keys cannot be copied.
    pub(super) fn freeze(&self) -> Result<FrozenPartitions> {
        let mut chunks = Vec::new();
        for start in (0..self.len()).step_by(COPIED_KEYS) {
            let end = (start + COPIED_KEYS).min(self.len());
            let groups: Vec<u32> = (start..end)
                .filter(|group| self.last_seen[*group].is_some())
                .map(|group| group as u32)
                .collect();
            if groups.is_empty() {
                continue;
            }
            let mut keys = match &self.table {
                Some(table) => table.emit_keys(start..end)?,
                None => Vec::new(),
            };
            if groups.len() < end - start {
                let places: UInt32Array = groups.iter().map(|group| group - start as u32).collect();
                let kept = keys.iter().map(|key| Ok(take(key, &places, None)?));
                keys = kept.collect::<Result<Vec<_>>>()?;
            }
            chunks.push((groups, keys));
        }
        Ok(FrozenPartitions {
            chunks,
            last_seen: self.last_seen.clone(),
        })
    }

    /// Takes partitions that were last seen at these times; gives their numbers.
    ///
    /// # Errors
    /// When there are too many partitions.
    pub(super) fn restore(&mut self, keys: &[ArrayRef], seen: &[i64]) -> Result<Vec<usize>> {
        match &mut self.table {
            None => self.groups = vec![0; seen.len()],
            Some(table) => table.intern_wider(keys, &mut self.groups)?,
        }
        let total = self.table.as_ref().map_or(1, GroupTable::len);
        self.last_seen.resize(total, None);
        for (group, seen) in self.groups.iter().zip(seen) {
            self.alive += usize::from(self.last_seen[*group].replace(*seen).is_none());
        }
        Ok(std::mem::take(&mut self.groups))
    }

    /// The numbers of partitions that are there.
    ///
    /// # Errors
    /// When one is not.
    pub(super) fn find(&mut self, keys: &[ArrayRef], rows: usize) -> Result<Vec<usize>> {
        match &mut self.table {
            None => self.groups = vec![0; rows],
            Some(table) => table.intern_wider(keys, &mut self.groups)?,
        }
        let groups = std::mem::take(&mut self.groups);
        match groups.iter().all(|group| *group < self.len()) {
            true => Ok(groups),
            false => Err(EngineError::Internal(
                "the state of an OVER has rows of a partition that is not there".into(),
            )),
        }
    }

    /// How many numbers are in use.
    pub(super) fn len(&self) -> usize {
        self.last_seen.len()
    }

    /// How many partitions matter.
    pub(super) fn alive(&self) -> usize {
        self.alive
    }

    /// Those that have been silent since `before` or longer, and when the last row of the most silent other one came.
    pub(super) fn silent(&self, before: i64) -> (Vec<usize>, Option<i64>) {
        let (mut silent, mut next) = (Vec::new(), None);
        for (group, last) in self.last_seen.iter().enumerate() {
            match last {
                Some(last) if *last <= before => silent.push(group),
                Some(last) => next = Some(next.map_or(*last, |next: i64| next.min(*last))),
                None => {}
            }
        }
        (silent, next)
    }

    /// These do not matter any more.
    pub(super) fn drop_where(&mut self, is_dropped: impl Fn(usize) -> bool) {
        for (group, last) in self.last_seen.iter_mut().enumerate() {
            if last.is_some() && is_dropped(group) {
                *last = None;
                self.alive -= 1;
            }
        }
    }

    /// When most do not matter: drops those, and gives the old numbers of the others.
    ///
    /// # Errors
    /// When keys cannot be copied.
    pub(super) fn compact(&mut self) -> Result<Option<Vec<usize>>> {
        let total = self.len();
        if self.alive == total || (self.alive > 0 && (total < FEW || self.alive > total / 2)) {
            return Ok(None);
        }
        let kept: Vec<usize> = (0..total).filter(|group| self.last_seen[*group].is_some()).collect();
        if let Some(table) = &mut self.table {
            let indices = UInt32Array::from_iter_values(kept.iter().map(|group| *group as u32));
            let keys = table.emit_keys(0..total)?;
            let keys = keys.iter().map(|key| take(key, &indices, None));
            let keys = keys.collect::<std::result::Result<Vec<_>, _>>()?;
            table.clear()?;
            self.groups = Vec::new();
            if !kept.is_empty() {
                table.intern_wider(&keys, &mut self.groups)?;
            }
            if table.len() != kept.len() {
                return Err(EngineError::Internal(
                    "partitions were lost when they were numbered anew".into(),
                ));
            }
        }
        self.last_seen = kept.iter().map(|group| self.last_seen[*group]).collect();
        Ok(Some(kept))
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.table.as_ref().map_or(0, GroupTable::size)
            + self.groups.capacity() * size_of::<usize>()
            + self.last_seen.capacity() * size_of::<Option<i64>>()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{BooleanArray, DictionaryArray, Float64Array};
    use arrow::datatypes::Int8Type;

    use super::*;
    use crate::data::hash_rows;

    #[test]
    fn keys_as_they_are_kept_belong_where_rows_go() {
        let texts: DictionaryArray<Int8Type> = vec![Some("a"), None, Some("a text of some length")]
            .into_iter()
            .collect();
        let columns: [ArrayRef; 3] = [
            Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)])),
            Arc::new(texts),
            Arc::new(Float64Array::from(vec![Some(-0.0), None, Some(-f64::NAN)])),
        ];
        for column in columns {
            let mut table = GroupTable::new(vec![column.data_type().clone()]).unwrap();
            table.intern_wider(&[Arc::clone(&column)], &mut Vec::new()).unwrap();
            let kept = table.emit_keys(0..3).unwrap();
            let (mut rows, mut keys) = (Vec::new(), Vec::new());
            hash_rows(&[column], 3, &mut rows).unwrap();
            hash_rows(&kept, 3, &mut keys).unwrap();
            assert_eq!(rows, keys, "{}", kept[0].data_type());
        }
    }
}
