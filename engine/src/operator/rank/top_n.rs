//! The best rows of each partition, of insertions only. Most rows of a long input are no better than the worst that is kept:
//! they cost one comparison.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::ArrayRef;

use super::places::{Places, Shown};
use super::{OrderKey, OrderKeys, Partitions, has_ttl, keep_rows};
use crate::data::{Batch, Result, without_row_kind};
use crate::operator::keyed::{RestoredBatch, RowTable};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::RankSpec;
use crate::state::{Restored, Snapshot};
use crate::time::Timer;

/// A row of the present batch, which is not in the store yet.
const OF_BATCH: u32 = 1 << 31;

/// A row that is kept.
#[derive(Clone)]
pub(super) struct Entry<K> {
    key: K,
    /// Its slot, or its row in the batch with [`OF_BATCH`].
    pub(super) slot: u32,
}

/// The best rows of each partition, in order.
pub(super) struct Lists<K> {
    pub(super) lists: Vec<Vec<Entry<K>>>,
    last: usize,
    entries: usize,
    heap_bytes: usize,
    /// Rows that were kept before this batch and are not any more.
    pub(super) dropped: Vec<u32>,
}

impl<K: OrderKey> Lists<K> {
    pub(super) fn new(last: usize) -> Self {
        Self {
            lists: Vec::new(),
            last,
            entries: 0,
            heap_bytes: 0,
            dropped: Vec::new(),
        }
    }

    /// Whether a row is among the best of its partition.
    #[inline]
    pub(super) fn wants(&self, group: usize, key: &[u8]) -> bool {
        let list = &self.lists[group];
        list.len() < self.last
            || list
                .last()
                .is_some_and(|worst| worst.key.order_of(key) == Ordering::Less)
    }

    /// Keeps a row of the batch that is wanted.
    pub(super) fn add(&mut self, group: usize, key: &[u8], row: usize) {
        let list = &mut self.lists[group];
        let at = list.partition_point(|entry| entry.key.order_of(key) != Ordering::Less);
        let entry = Entry {
            key: K::of(key),
            slot: row as u32 | OF_BATCH,
        };
        self.heap_bytes += entry.key.heap_bytes();
        if list.len() == self.last
            && let Some(worst) = list.pop()
        {
            self.heap_bytes -= worst.key.heap_bytes();
            self.entries -= 1;
            if worst.slot & OF_BATCH == 0 {
                self.dropped.push(worst.slot);
            }
        }
        list.insert(at, entry);
        self.entries += 1;
    }

    /// Moves the rows of the batch that are kept in these partitions into the store.
    pub(super) fn settle(
        &mut self,
        groups: &[usize],
        batch: &Batch,
        store: &mut crate::operator::keyed::RowStore,
    ) -> Result<()> {
        let mut rows = Vec::new();
        for group in groups {
            let of_batch = self.lists[*group].iter().filter(|entry| entry.slot & OF_BATCH != 0);
            rows.extend(of_batch.map(|entry| entry.slot & !OF_BATCH));
        }
        let slots = keep_rows(store, batch, rows)?;
        let mut slots = slots.into_iter();
        for group in groups {
            for entry in self.lists[*group].iter_mut().filter(|entry| entry.slot & OF_BATCH != 0) {
                entry.slot = slots.next().unwrap_or(0);
            }
        }
        Ok(())
    }

    /// The rows of these partitions: partition, slot and place of each.
    pub(super) fn kept(&self, groups: &[u32]) -> (Vec<u32>, Vec<u32>, Vec<u64>) {
        let (mut of_rows, mut slots, mut places) = (Vec::new(), Vec::new(), Vec::new());
        for group in groups {
            for (place, entry) in self.lists[*group as usize].iter().enumerate() {
                of_rows.push(*group);
                slots.push(entry.slot);
                places.push(place as u64);
            }
        }
        (of_rows, slots, places)
    }

    /// Forgets the rows of a partition; they leave the store with the dropped ones.
    pub(super) fn forget(&mut self, group: usize) {
        let list = std::mem::take(&mut self.lists[group]);
        self.entries -= list.len();
        self.heap_bytes -= list.iter().map(|entry| entry.key.heap_bytes()).sum::<usize>();
        self.dropped.extend(list.iter().map(|entry| entry.slot));
    }

    pub(super) fn compact(&mut self, kept: &[usize]) {
        self.lists = kept
            .iter()
            .map(|group| std::mem::take(&mut self.lists[*group]))
            .collect();
    }

    pub(super) fn size(&self) -> usize {
        // Lists double.
        self.lists.capacity() * size_of::<Vec<Entry<K>>>()
            + self.entries * size_of::<Entry<K>>() * 3 / 2
            + self.heap_bytes
    }
}

/// The table of the best rows.
pub(super) fn best_table(spec: &RankSpec) -> RowTable {
    let rows = without_row_kind(&spec.input_schema.0);
    let keys: Vec<_> = spec.partition_by.iter().map(|key| Arc::clone(&key.expr)).collect();
    let has_ttl = has_ttl(spec) && spec.window_end.is_none();
    // With another number of best rows it is another table: those beyond the old one are not there.
    let version = u32::try_from(spec.last).unwrap_or(u32::MAX);
    RowTable::new("best", rows, &keys, &["$place"], has_ttl).with_version(version)
}

/// Adds the best rows of all partitions to a snapshot.
pub(super) fn write_best<K: OrderKey>(
    table: &RowTable,
    state: &mut Snapshot,
    (partitions, lists): (&Partitions, &Lists<K>),
    cx: &Context,
) {
    let (groups, slots, places) = lists.kept(&partitions.index.living());
    let kept = (&partitions.index, &partitions.store);
    table.write(state, kept, (groups, &slots), vec![places], cx);
}

/// Takes the best rows back; `keys` gives the keys of their partitions.
pub(super) fn read_best<K: OrderKey>(
    table: &RowTable,
    state: &mut Restored,
    (partitions, order, lists): (&mut Partitions, &OrderKeys, &mut Lists<K>),
    cx: &mut Context,
    keys: impl Fn(&RestoredBatch) -> Result<Vec<ArrayRef>>,
) -> Result<()> {
    let mut entries = Vec::new();
    for batch in table.read(state)? {
        let batch = batch?;
        let orders = order.encode(&batch.rows)?;
        let slots = partitions.restore(&batch, &keys(&batch)?, cx)?;
        for (row, slot) in slots.into_iter().enumerate() {
            let key = K::of(orders.row(row).as_ref());
            entries.push((partitions.groups[row], batch.numbers[0][row], Entry { key, slot }));
        }
    }
    partitions.index.restored(None);
    entries.sort_unstable_by_key(|(group, place, _)| (*group, *place));
    lists.lists.resize_with(partitions.index.len(), Vec::new);
    for (group, _, entry) in entries {
        lists.heap_bytes += entry.key.heap_bytes();
        lists.entries += 1;
        lists.lists[group].push(entry);
    }
    Ok(())
}

/// See the module.
pub(super) struct TopN<K> {
    table: RowTable,
    partitions: Partitions,
    order: OrderKeys,
    places: Places,
    lists: Lists<K>,
    /// What the touched partitions showed before the batch, one after the other.
    before: Vec<Shown>,
    before_ends: Vec<usize>,
    after: Vec<Shown>,
    counts: HashMap<u64, usize, foldhash::fast::RandomState>,
}

impl<K: OrderKey> TopN<K> {
    /// A rank of this spec.
    ///
    /// # Errors
    /// When a type cannot be partitioned by.
    pub(super) fn new(spec: &RankSpec, order: OrderKeys) -> Result<Self> {
        Ok(Self {
            table: best_table(spec),
            partitions: Partitions::new(spec, &[])?,
            order,
            places: Places {
                first: spec.first,
                last: spec.last,
                number: spec.number,
                update_before: spec.update_before,
            },
            lists: Lists::new(spec.last),
            before: Vec::new(),
            before_ends: Vec::new(),
            after: Vec::new(),
            counts: HashMap::default(),
        })
    }

    /// Keeps the best rows of the batch.
    fn take_rows(&mut self, rows: &Batch, now_ms: i64) -> Result<()> {
        let keys = self.order.encode(rows)?;
        let partitions = &mut self.partitions;
        self.lists.lists.resize_with(partitions.index.len(), Vec::new);
        self.before.clear();
        self.before_ends.clear();
        for (row, group) in partitions.groups.iter().enumerate() {
            if partitions.index.is_expired(*group, now_ms) {
                self.lists.forget(*group);
                partitions.index.note(*group, false, now_ms);
            }
            let key = keys.row(row);
            if !self.lists.wants(*group, key.as_ref()) {
                continue;
            }
            if partitions.touched.touch(*group, row) {
                let shown = self.places.shown(&self.lists.lists[*group]).iter();
                self.before.extend(shown.map(shown_row));
                self.before_ends.push(self.before.len());
                partitions.index.note(*group, true, now_ms);
            }
            self.lists.add(*group, key.as_ref(), row);
        }
        self.lists
            .settle(&partitions.touched.groups, rows, &mut partitions.store)
    }

    fn emit(&mut self, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        let partitions = &mut self.partitions;
        let mut start = 0;
        for (group, end) in partitions.touched.groups.iter().zip(&self.before_ends) {
            self.after.clear();
            let shown = self.places.shown(&self.lists.lists[*group]).iter();
            self.after.extend(shown.map(shown_row));
            let before = &self.before[start..*end];
            self.places
                .compare(before, &self.after, &mut self.counts, &mut partitions.changes);
            start = *end;
        }
        partitions.changes.flush(&partitions.store, cx, out)
    }

    fn tidy(&mut self, cx: &mut Context) -> Result<()> {
        let partitions = &mut self.partitions;
        self.lists
            .dropped
            .drain(..)
            .for_each(|slot| partitions.store.release(slot));
        partitions.store.tidy()?;
        if partitions.index.is_sparse() {
            let kept = partitions.index.compact()?;
            self.lists.compact(&kept);
            partitions.touched.clear();
        }
        cx.hold(partitions.size() + self.lists.size() + self.before.capacity() * size_of::<Shown>())
    }
}

fn shown_row<K>(entry: &Entry<K>) -> Shown {
    Shown {
        slot: entry.slot,
        identity: u64::from(entry.slot),
    }
}

impl<K: OrderKey> Operator for TopN<K> {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.partitions.intern(&batch)?;
        self.take_rows(&batch, cx.clock.now_ms())?;
        self.emit(cx, out)?;
        self.tidy(cx)
    }

    fn on_timer(&mut self, _timer: Timer, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        let expired = self.partitions.index.sweep(cx.clock.now_ms());
        expired.iter().for_each(|group| self.lists.forget(*group));
        self.tidy(cx)
    }

    fn next_timer(&self) -> Option<i64> {
        self.partitions.index.sweep_at()
    }

    fn on_end(&mut self, _port: Port, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }

    fn snapshot(&mut self, state: &mut Snapshot, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        write_best(&self.table, state, (&self.partitions, &self.lists), cx);
        Ok(())
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        let kept = (&mut self.partitions, &self.order, &mut self.lists);
        read_best(&self.table, state, kept, cx, |batch| Ok(batch.keys.clone()))?;
        self.tidy(cx)
    }
}
