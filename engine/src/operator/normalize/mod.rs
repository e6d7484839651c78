//! Normalize: makes a full changelog of upserts. The last row of each key is remembered, so that its old form is known when
//! it changes, and a row that repeats it is dropped.
//!
//! A batch counts as one change per key: only its last row matters. A snapshot is the live keys with their access
//! times and one row for each.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::{UInt8Array, UInt32Array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::take;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;

use crate::data::{Batch, EngineError, Result, RowKind, is_changelog, split_row_kind, without_row_kind};
use crate::operator::keyed::{Changes, KeyIndex, KeyedRows, RowStore, Touched, same_rows};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::NormalizeSpec;
use crate::state::{Restored, Snapshot};
use crate::time::Timer;

/// No row is kept.
const NO_SLOT: u32 = u32::MAX;

/// See the module.
pub(super) struct Normalize {
    keys: Vec<usize>,
    index: KeyIndex,
    groups: Vec<usize>,
    touched: Touched,
    store: RowStore,
    /// The slot of each key's row.
    slots: Vec<u32>,
    /// The last row of each key in the batch.
    last_rows: Vec<u32>,
    changes: Changes,
    table: KeyedRows,
}

/// What a batch says of its keys, in the order of their first rows.
struct Wanted {
    /// The last row of each key, and whether it is an addition.
    rows: Vec<u32>,
    added: BooleanBuffer,
    /// Whether the row is the one that is known.
    same: Vec<bool>,
}

impl Normalize {
    /// A normalization of this spec.
    ///
    /// # Errors
    /// When the spec contradicts itself or a type cannot be a key.
    pub(super) fn new(spec: NormalizeSpec) -> Result<Self> {
        let schema = spec.schema.0;
        if !is_changelog(&schema) || spec.keys.is_empty() {
            return Err(EngineError::Internal(
                "upserts are normalized by a key, to a changelog".into(),
            ));
        }
        let types = spec.keys.iter().map(|key| schema.field(*key).data_type().clone());
        let key = |key: &usize| Arc::new(Column::new(schema.field(*key).name(), *key)) as Arc<dyn PhysicalExpr>;
        let key_exprs: Vec<_> = spec.keys.iter().map(key).collect();
        let rows = without_row_kind(&schema);
        let has_ttl = spec.ttl_ms.is_some_and(|ttl| ttl > 0);
        Ok(Self {
            table: KeyedRows::new("rows", Arc::clone(&rows), &key_exprs, has_ttl)?,
            index: KeyIndex::new(types.collect(), spec.ttl_ms)?,
            keys: spec.keys,
            groups: Vec::new(),
            touched: Touched::default(),
            store: RowStore::new(rows),
            slots: Vec::new(),
            last_rows: Vec::new(),
            changes: Changes::new(schema, false, true),
        })
    }

    fn forget(&mut self, group: usize) {
        let slot = std::mem::replace(&mut self.slots[group], NO_SLOT);
        if slot != NO_SLOT {
            self.store.release(slot);
        }
    }

    fn number_keys(&mut self, rows: &Batch, now_ms: i64) -> Result<()> {
        let keys: Vec<_> = self.keys.iter().map(|key| rows.column(*key).clone()).collect();
        self.index.intern(&keys, rows.num_rows(), &mut self.groups)?;
        self.slots.resize(self.index.len(), NO_SLOT);
        self.last_rows.resize(self.index.len(), 0);
        self.touched.begin(&self.groups, self.index.len());
        for (row, group) in self.groups.iter().enumerate() {
            self.last_rows[*group] = row as u32;
        }
        let expired = self.touched.groups.iter().copied();
        let expired: Vec<usize> = expired.filter(|group| self.index.is_expired(*group, now_ms)).collect();
        for group in expired {
            self.forget(group);
            self.index.note(group, false, now_ms);
        }
        Ok(())
    }

    fn wanted(&self, rows: &Batch, kinds: Option<&UInt8Array>) -> Result<Wanted> {
        let touched = &self.touched.groups;
        let last: Vec<u32> = touched.iter().map(|group| self.last_rows[*group]).collect();
        let mut added = Vec::with_capacity(last.len());
        for row in &last {
            let kind = kinds.map_or(Ok(RowKind::Insert), |kinds| {
                RowKind::from_u8(kinds.value(*row as usize))
            })?;
            added.push(kind.is_addition());
        }
        let known = |at: &usize| added[*at] && self.slots[touched[*at]] != NO_SLOT;
        let known: Vec<usize> = (0..touched.len()).filter(known).collect();
        let mut same = vec![false; touched.len()];
        if !known.is_empty() {
            let slots: Vec<u32> = known.iter().map(|at| self.slots[touched[*at]]).collect();
            let new: UInt32Array = known.iter().map(|at| last[*at]).collect();
            let new = rows.columns().iter().map(|column| Ok(take(column, &new, None)?));
            let equal = same_rows(
                &self.store.gather(&slots)?,
                &new.collect::<Result<Vec<_>>>()?,
                known.len(),
            )?;
            for (position, at) in known.iter().enumerate() {
                same[*at] = equal.value(position);
            }
        }
        Ok(Wanted {
            rows: last,
            added: BooleanBuffer::from(added),
            same,
        })
    }

    /// Keeps the new rows and notes what leaves. Gives back the slots of the old ones.
    fn replace(&mut self, rows: &Batch, wanted: &Wanted, now_ms: i64) -> Result<Vec<u32>> {
        let count = wanted.rows.len();
        let new: Vec<u32> = (0..count)
            .filter(|at| wanted.added.value(*at) && !wanted.same[*at])
            .map(|at| wanted.rows[at])
            .collect();
        let kept = new.len();
        let new = UInt32Array::from(new);
        let columns = rows.columns().iter().map(|column| Ok(take(column, &new, None)?));
        let mut new_slots = self.store.push(columns.collect::<Result<_>>()?, kept)?.into_iter();
        let mut dropped = Vec::new();
        for (at, group) in self.touched.groups.iter().enumerate() {
            let old = self.slots[*group];
            let added = wanted.added.value(at);
            if old != NO_SLOT || added {
                self.index.note(*group, added, now_ms);
            }
            if wanted.same[at] {
                continue;
            }
            let new = if added {
                new_slots.next().unwrap_or(NO_SLOT)
            } else {
                NO_SLOT
            };
            match (old != NO_SLOT, added) {
                (false, true) => self.changes.add(new, RowKind::Insert, 0),
                (true, true) => {
                    self.changes.add(old, RowKind::UpdateBefore, 0);
                    self.changes.add(new, RowKind::UpdateAfter, 0);
                }
                (true, false) => self.changes.add(old, RowKind::Delete, 0),
                (false, false) => {}
            }
            if old != NO_SLOT {
                dropped.push(old);
            }
            self.slots[*group] = new;
        }
        Ok(dropped)
    }

    fn tidy(&mut self, cx: &mut Context) -> Result<()> {
        self.store.tidy()?;
        if self.index.is_sparse() {
            let kept = self.index.compact()?;
            self.slots = kept.iter().map(|group| self.slots[*group]).collect();
            self.last_rows.truncate(kept.len());
            self.touched.clear();
        }
        let vectors = (self.slots.capacity() + self.last_rows.capacity()) * size_of::<u32>()
            + self.groups.capacity() * size_of::<usize>();
        cx.hold(self.index.size() + self.store.size() + self.touched.size() + vectors)
    }
}

impl Operator for Normalize {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let now_ms = cx.clock.now_ms();
        let (rows, kinds) = split_row_kind(&batch)?;
        self.number_keys(&rows, now_ms)?;
        let wanted = self.wanted(&rows, kinds.as_ref())?;
        let dropped = self.replace(&rows, &wanted, now_ms)?;
        self.changes.flush(&self.store, cx, out)?;
        dropped.into_iter().for_each(|slot| self.store.release(slot));
        self.tidy(cx)
    }

    fn on_timer(&mut self, _timer: Timer, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        let expired = self.index.sweep(cx.clock.now_ms());
        expired.into_iter().for_each(|group| self.forget(group));
        self.tidy(cx)
    }

    fn next_timer(&self) -> Option<i64> {
        self.index.sweep_at()
    }

    fn on_end(&mut self, _port: Port, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }

    fn snapshot(&mut self, state: &mut Snapshot, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        let cut = self.index.cut(state.request());
        self.table
            .write(state, (&self.index, &cut), (&self.store, &self.slots), cx)
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        let slots = &mut self.slots;
        let kept = (&mut self.index, &mut self.store);
        self.table.read(state, kept, cx, |groups, _, new_slots| {
            let keys = groups.iter().max().map_or(0, |last| last + 1);
            slots.resize(slots.len().max(keys), NO_SLOT);
            for (group, slot) in groups.iter().zip(new_slots) {
                slots[*group] = slot;
            }
            Ok(())
        })?;
        self.last_rows.resize(self.slots.len(), 0);
        self.tidy(cx)
    }
}
