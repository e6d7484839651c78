//! Deduplication: one row per partition, the first or the last in time. [`Dedup`] lets a better row replace it; [`First`]
//! keeps the row that came first and gives insertions only.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::UInt32Array;
use arrow::compute::take;
use arrow::row::Rows;
use datafusion::physical_expr::PhysicalExpr;

use super::{OrderKey, OrderKeys, Partitions, has_ttl, keep_rows, last_of_equals};
use crate::data::{Batch, Result, RowKind, without_row_kind};
use crate::operator::keyed::{Changes, KeyIndex, KeyTable, KeyedRows, Touched, evaluate_keys, key_fields};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::RankSpec;
use crate::state::{Restored, Snapshot};
use crate::time::Timer;

/// No row is kept.
const NO_SLOT: u32 = u32::MAX;

/// See the module.
pub(super) struct Dedup<K> {
    partitions: Partitions,
    order: OrderKeys,
    number: bool,
    /// Whether the rows are kept: without their old form nobody needs them again.
    update_before: bool,
    table: Table,
    /// Whether the last of equal rows stays.
    last_of_equals: bool,
    /// The key of the row of each partition.
    keys: Vec<Option<K>>,
    heap_bytes: usize,
    /// Its slot.
    slots: Vec<u32>,
    /// Which row of the batch takes its place.
    candidates: Vec<u32>,
}

/// The state as a table.
enum Table {
    /// The rows.
    Rows(KeyedRows),
    /// The order's keys of the rows.
    Orders(KeyTable),
}

impl Table {
    fn new(spec: &RankSpec, order: &OrderKeys) -> Result<Self> {
        let input = without_row_kind(&spec.input_schema.0);
        let keys: Vec<_> = spec.partition_by.iter().map(|key| Arc::clone(&key.expr)).collect();
        Ok(if spec.update_before {
            Table::Rows(KeyedRows::new("rows", input, &keys, has_ttl(spec))?)
        } else {
            let keys = key_fields(&keys, &input)?;
            Table::Orders(KeyTable::new("orders", keys, order.fields(), has_ttl(spec)))
        })
    }
}

impl<K: OrderKey> Dedup<K> {
    /// A deduplication of this spec.
    ///
    /// # Errors
    /// When a type cannot be partitioned by.
    pub(super) fn new(spec: &RankSpec, order: OrderKeys) -> Result<Self> {
        Ok(Self {
            partitions: Partitions::new(spec, &[])?,
            table: Table::new(spec, &order)?,
            order,
            number: spec.number,
            update_before: spec.update_before,
            last_of_equals: last_of_equals(&spec.order_by),
            keys: Vec::new(),
            heap_bytes: 0,
            slots: Vec::new(),
            candidates: Vec::new(),
        })
    }

    fn forget(&mut self, group: usize) {
        self.heap_bytes -= self.keys[group].take().map_or(0, |key| key.heap_bytes());
        let slot = std::mem::replace(&mut self.slots[group], NO_SLOT);
        if slot != NO_SLOT {
            self.partitions.store.release(slot);
        }
    }

    /// Finds the row of each partition of the batch that takes the place of the one that is kept.
    fn choose(&mut self, rows: &Batch, now_ms: i64) -> Result<()> {
        let keys = self.order.encode(rows)?;
        let total = self.partitions.index.len();
        self.keys.resize(total, None);
        self.slots.resize(total, NO_SLOT);
        self.candidates.resize(total, 0);
        let groups = std::mem::take(&mut self.partitions.groups);
        for (row, group) in groups.iter().enumerate() {
            if self.partitions.index.is_expired(*group, now_ms) {
                self.forget(*group);
                self.partitions.index.note(*group, false, now_ms);
            }
            let key = keys.row(row);
            let better = match &self.keys[*group] {
                None => true,
                Some(kept) => match kept.order_of(key.as_ref()) {
                    Ordering::Less => true,
                    Ordering::Equal => self.last_of_equals,
                    Ordering::Greater => false,
                },
            };
            if better {
                let key = K::of(key.as_ref());
                self.heap_bytes += key.heap_bytes();
                if let Some(old) = self.keys[*group].replace(key) {
                    self.heap_bytes -= old.heap_bytes();
                }
                self.candidates[*group] = row as u32;
                self.partitions.touched.touch(*group, row);
            }
        }
        self.partitions.groups = groups;
        Ok(())
    }

    /// Hands on the chosen rows and keeps them, for the day when they are taken back.
    fn replace(&mut self, rows: &Batch, now_ms: i64, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        let partitions = &mut self.partitions;
        let touched = partitions.touched.groups.iter();
        let chosen = touched.map(|group| self.candidates[*group]).collect();
        let slots = keep_rows(&mut partitions.store, rows, chosen)?;
        let mut old_slots = Vec::with_capacity(slots.len());
        for (group, slot) in partitions.touched.groups.iter().zip(slots) {
            let old = std::mem::replace(&mut self.slots[*group], slot);
            if old == NO_SLOT {
                partitions.changes.add(slot, RowKind::Insert, 1);
            } else {
                partitions.changes.add(old, RowKind::UpdateBefore, 1);
                partitions.changes.add(slot, RowKind::UpdateAfter, 1);
                old_slots.push(old);
            }
            partitions.index.note(*group, true, now_ms);
        }
        partitions.changes.flush(&partitions.store, cx, out)?;
        old_slots.into_iter().for_each(|slot| partitions.store.release(slot));
        partitions.store.tidy()
    }

    /// Hands on the chosen rows.
    fn hand_on(&mut self, rows: &Batch, now_ms: i64, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        let partitions = &mut self.partitions;
        for groups in partitions.touched.groups.chunks(cx.batch_size.max(1)) {
            let chosen = groups.iter().map(|group| self.candidates[*group]);
            let kinds = groups.iter().map(|group| match partitions.index.is_live(*group) {
                true => RowKind::UpdateAfter as u8,
                false => RowKind::Insert as u8,
            });
            let places = self.number.then(|| vec![1; groups.len()]);
            emit_rows(
                &partitions.changes,
                rows,
                chosen.collect(),
                places,
                kinds.collect(),
                out,
            )?;
        }
        for group in &partitions.touched.groups {
            partitions.index.note(*group, true, now_ms);
        }
        Ok(())
    }

    fn tidy(&mut self, cx: &mut Context) -> Result<()> {
        let partitions = &mut self.partitions;
        if partitions.index.is_sparse() {
            let kept = partitions.index.compact()?;
            self.keys = kept.iter().map(|group| self.keys[*group].take()).collect();
            self.slots = kept.iter().map(|group| self.slots[*group]).collect();
            self.candidates.truncate(kept.len());
            partitions.touched.clear();
        }
        let keys = self.keys.capacity() * size_of::<Option<K>>() + self.heap_bytes;
        let slots = (self.slots.capacity() + self.candidates.capacity()) * size_of::<u32>();
        cx.hold(partitions.size() + keys + slots)
    }
}

/// Hands on these rows of a batch.
fn emit_rows(
    changes: &Changes,
    batch: &Batch,
    rows: Vec<u32>,
    places: Option<Vec<u64>>,
    kinds: Vec<u8>,
    out: &mut dyn Collector,
) -> Result<()> {
    let rows = UInt32Array::from(rows);
    let columns = batch.columns().iter().map(|column| Ok(take(column, &rows, None)?));
    changes.emit(columns.collect::<Result<_>>()?, places, kinds, out)
}

impl<K: OrderKey> Operator for Dedup<K> {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let now_ms = cx.clock.now_ms();
        self.partitions.intern(&batch)?;
        self.choose(&batch, now_ms)?;
        if self.update_before {
            self.replace(&batch, now_ms, cx, out)?;
        } else {
            self.hand_on(&batch, now_ms, cx, out)?;
        }
        self.tidy(cx)
    }

    fn on_timer(&mut self, _timer: Timer, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        let expired = self.partitions.index.sweep(cx.clock.now_ms());
        expired.iter().for_each(|group| self.forget(*group));
        self.partitions.store.tidy()?;
        self.tidy(cx)
    }

    fn next_timer(&self) -> Option<i64> {
        self.partitions.index.sweep_at()
    }

    fn on_end(&mut self, _port: Port, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }

    fn snapshot(&mut self, state: &mut Snapshot, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        let partitions = &mut self.partitions;
        let cut = partitions.index.cut(state.request());
        match &self.table {
            Table::Rows(table) => {
                let rows = (&partitions.store, self.slots.as_slice());
                table.write(state, (&partitions.index, &cut), rows, cx)
            }
            Table::Orders(table) => {
                let keys = cut.live.iter();
                let keys: Vec<K> = keys.filter_map(|group| self.keys[*group as usize].clone()).collect();
                let orders = vec![self.order.freeze(keys)];
                table.write(state, &partitions.index, &cut, (orders, None), cx)
            }
        }
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        let (keys, slots) = (&mut self.keys, &mut self.slots);
        let mut keep = |groups: &[usize], orders: &Rows, new_slots: Option<Vec<u32>>| {
            let total = groups.iter().max().map_or(0, |last| last + 1).max(keys.len());
            keys.resize(total, None);
            slots.resize(total, NO_SLOT);
            for (row, group) in groups.iter().enumerate() {
                let key = K::of(orders.row(row).as_ref());
                self.heap_bytes += key.heap_bytes();
                keys[*group] = Some(key);
                if let Some(new_slots) = &new_slots {
                    slots[*group] = new_slots[row];
                }
            }
        };
        let (partitions, order) = (&mut self.partitions, &self.order);
        match &self.table {
            Table::Rows(table) => {
                let kept = (&mut partitions.index, &mut partitions.store);
                table.read(state, kept, cx, |groups, rows, slots| {
                    keep(groups, &order.encode(rows)?, Some(slots));
                    Ok(())
                })?;
            }
            Table::Orders(table) => {
                let partition_keys = partitions.partition_by.len();
                table.read(state, &mut partitions.index, cx, |index, groups, columns, cx| {
                    keep(groups, &order.thaw(&columns[partition_keys..])?, None);
                    cx.hold(index.size())
                })?;
            }
        }
        self.candidates.resize(self.keys.len(), 0);
        self.tidy(cx)
    }
}

/// The row of each partition that came first.
pub(super) struct First {
    table: KeyTable,
    partition_by: Vec<Arc<dyn PhysicalExpr>>,
    index: KeyIndex,
    groups: Vec<usize>,
    touched: Touched,
    changes: Changes,
    number: bool,
}

impl First {
    /// A deduplication of this spec.
    ///
    /// # Errors
    /// When a type cannot be partitioned by.
    pub(super) fn new(spec: &RankSpec) -> Result<Self> {
        let Partitions {
            partition_by,
            index,
            groups,
            touched,
            changes,
            ..
        } = Partitions::new(spec, &[])?;
        let keys = key_fields(&partition_by, &without_row_kind(&spec.input_schema.0))?;
        Ok(Self {
            table: KeyTable::new("seen", keys, Vec::new(), has_ttl(spec)),
            partition_by,
            index,
            groups,
            touched,
            changes,
            number: spec.number,
        })
    }

    fn tidy(&mut self, cx: &mut Context) -> Result<()> {
        if self.index.is_sparse() {
            self.index.compact()?;
            self.touched.clear();
        }
        let groups = self.groups.capacity() * size_of::<usize>();
        cx.hold(self.index.size() + self.touched.size() + groups)
    }
}

impl Operator for First {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let now_ms = cx.clock.now_ms();
        let keys = evaluate_keys(&self.partition_by, &batch)?;
        self.index.intern(&keys, batch.num_rows(), &mut self.groups)?;
        self.touched.begin(&self.groups, self.index.len());
        let mut rows = Vec::new();
        for (group, row) in self.touched.groups.iter().zip(&self.touched.first_rows) {
            if !self.index.is_live(*group) || self.index.is_expired(*group, now_ms) {
                self.index.note(*group, true, now_ms);
                rows.push(*row);
            }
        }
        for rows in rows.chunks(cx.batch_size.max(1)) {
            let places = self.number.then(|| vec![1; rows.len()]);
            let kinds = vec![RowKind::Insert as u8; rows.len()];
            emit_rows(&self.changes, &batch, rows.to_vec(), places, kinds, out)?;
        }
        self.tidy(cx)
    }

    fn on_timer(&mut self, _timer: Timer, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        self.index.sweep(cx.clock.now_ms());
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
        self.table.write(state, &self.index, &cut, (Vec::new(), None), cx)
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        self.table
            .read(state, &mut self.index, cx, |index, _, _, cx| cx.hold(index.size()))?;
        self.tidy(cx)
    }
}
