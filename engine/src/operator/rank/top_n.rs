//! The best rows of each partition, of insertions only. Most rows of a long input are no better than the worst that is kept:
//! they cost one comparison.

use std::cmp::Ordering;
use std::collections::HashMap;

use super::places::{Places, Shown};
use super::{OrderKey, OrderKeys, Partitions, keep_rows};
use crate::data::{Batch, Result};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::RankSpec;
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

/// See the module.
pub(super) struct TopN<K> {
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
}
