//! The best rows of each partition of a changelog. A row that is taken back makes room for one that was not shown: all
//! rows of a partition are kept, in order.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use arrow::array::UInt8Array;
use arrow::row::Rows;

use super::places::{Places, Shown};
use super::{OrderKey, OrderKeys, Partitions, has_ttl, keep_rows};
use crate::data::{Batch, Result, RowKind, hash_rows, split_row_kind, without_row_kind};
use crate::operator::keyed::RowTable;
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::RankSpec;
use crate::state::{Restored, Snapshot};
use crate::time::Timer;

/// The rows of a partition by their keys and the order in which they came. Rows of equal hash are equal.
type Ordered<K> = BTreeMap<(K, u64), Shown>;

/// See the module.
pub(super) struct Retract<K> {
    table: RowTable,
    partitions: Partitions,
    order: OrderKeys,
    places: Places,
    rows: Vec<Ordered<K>>,
    entries: usize,
    heap_bytes: usize,
    next: u64,
    hashes: Vec<u64>,
    /// Rows that were taken back.
    dropped: Vec<u32>,
    /// What the touched partitions showed before the batch, one after the other.
    before: Vec<Shown>,
    before_ends: Vec<usize>,
    after: Vec<Shown>,
    counts: HashMap<u64, usize, foldhash::fast::RandomState>,
}

impl<K: OrderKey> Retract<K> {
    /// A rank of this spec.
    ///
    /// # Errors
    /// When a type cannot be partitioned by.
    pub(super) fn new(spec: &RankSpec, order: OrderKeys) -> Result<Self> {
        let rows = without_row_kind(&spec.input_schema.0);
        let keys: Vec<_> = spec.partition_by.iter().map(|key| Arc::clone(&key.expr)).collect();
        Ok(Self {
            table: RowTable::new("rows", rows, &keys, &["$arrival"], has_ttl(spec)),
            partitions: Partitions::new(spec, &[])?,
            order,
            places: Places {
                first: spec.first,
                last: spec.last,
                number: spec.number,
                update_before: spec.update_before,
            },
            rows: Vec::new(),
            entries: 0,
            heap_bytes: 0,
            next: 0,
            hashes: Vec::new(),
            dropped: Vec::new(),
            before: Vec::new(),
            before_ends: Vec::new(),
            after: Vec::new(),
            counts: HashMap::default(),
        })
    }

    fn forget(&mut self, group: usize) {
        let old = std::mem::take(&mut self.rows[group]);
        self.entries -= old.len();
        self.heap_bytes -= old.keys().map(|(key, _)| key.heap_bytes()).sum::<usize>();
        self.dropped.extend(old.values().map(|row| row.slot));
    }

    /// The rows that a partition shows.
    fn show(places: &Places, rows: &Ordered<K>, shown: &mut Vec<Shown>) {
        let count = places.last - (places.first - 1);
        shown.extend(rows.values().skip(places.first - 1).take(count));
    }

    fn take_rows(&mut self, rows: &Batch, kinds: Option<&UInt8Array>, now_ms: i64) -> Result<()> {
        let keys = self.order.encode(rows)?;
        hash_rows(rows.columns(), rows.num_rows(), &mut self.hashes)?;
        let kind = |row| kinds.map_or(Ok(RowKind::Insert), |kinds| RowKind::from_u8(kinds.value(row)));
        let mut added = Vec::with_capacity(rows.num_rows());
        for row in 0..rows.num_rows() {
            if kind(row)?.is_addition() {
                added.push(row as u32);
            }
        }
        let mut slots = keep_rows(&mut self.partitions.store, rows, added)?.into_iter();
        self.rows.resize_with(self.partitions.index.len(), BTreeMap::new);
        self.before.clear();
        self.before_ends.clear();
        let groups = std::mem::take(&mut self.partitions.groups);
        for (row, group) in groups.iter().enumerate() {
            if self.partitions.index.is_expired(*group, now_ms) {
                self.forget(*group);
                self.partitions.index.note(*group, false, now_ms);
            }
            if self.partitions.touched.touch(*group, row) {
                Self::show(&self.places, &self.rows[*group], &mut self.before);
                self.before_ends.push(self.before.len());
            }
            let slot = if kind(row)?.is_addition() { slots.next() } else { None };
            self.apply(*group, &keys, row, slot);
        }
        self.partitions.groups = groups;
        for group in &self.partitions.touched.groups {
            self.partitions
                .index
                .note(*group, !self.rows[*group].is_empty(), now_ms);
        }
        Ok(())
    }

    /// Adds a row that is in the store, or takes back one that is equal.
    fn apply(&mut self, group: usize, keys: &Rows, row: usize, slot: Option<u32>) {
        let (key, identity) = (K::of(keys.row(row).as_ref()), self.hashes[row]);
        let of_group = &mut self.rows[group];
        if let Some(slot) = slot {
            self.heap_bytes += key.heap_bytes();
            self.entries += 1;
            of_group.insert((key, self.next), Shown { slot, identity });
            self.next += 1;
            return;
        }
        let mut equal = of_group.range((key.clone(), 0)..=(key, u64::MAX));
        let found = equal.find(|(_, shown)| shown.identity == identity);
        if let Some(place) = found.map(|(place, _)| place.clone()) {
            self.heap_bytes -= place.0.heap_bytes();
            self.entries -= 1;
            self.dropped.extend(of_group.remove(&place).map(|shown| shown.slot));
        }
    }

    fn emit(&mut self, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        let partitions = &mut self.partitions;
        let mut start = 0;
        for (group, end) in partitions.touched.groups.iter().zip(&self.before_ends) {
            self.after.clear();
            Self::show(&self.places, &self.rows[*group], &mut self.after);
            let before = &self.before[start..*end];
            self.places
                .compare(before, &self.after, &mut self.counts, &mut partitions.changes);
            start = *end;
        }
        partitions.changes.flush(&partitions.store, cx, out)
    }

    fn tidy(&mut self, cx: &mut Context) -> Result<()> {
        let partitions = &mut self.partitions;
        self.dropped.drain(..).for_each(|slot| partitions.store.release(slot));
        partitions.store.tidy()?;
        if partitions.index.is_sparse() {
            let kept = partitions.index.compact()?;
            self.rows = kept
                .iter()
                .map(|group| std::mem::take(&mut self.rows[*group]))
                .collect();
            partitions.touched.clear();
        }
        // Nodes of a tree are two thirds full or so.
        let entries = self.entries * size_of::<((K, u64), Shown)>() * 3 / 2 + self.heap_bytes;
        let trees = self.rows.capacity() * size_of::<Ordered<K>>();
        cx.hold(partitions.size() + trees + entries + self.hashes.capacity() * size_of::<u64>())
    }
}

impl<K: OrderKey> Operator for Retract<K> {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let (rows, kinds) = split_row_kind(&batch)?;
        self.partitions.intern(&rows)?;
        self.take_rows(&rows, kinds.as_ref(), cx.clock.now_ms())?;
        self.emit(cx, out)?;
        self.tidy(cx)
    }

    fn on_timer(&mut self, _timer: Timer, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        let expired = self.partitions.index.sweep(cx.clock.now_ms());
        expired.iter().for_each(|group| self.forget(*group));
        self.tidy(cx)
    }

    fn next_timer(&self) -> Option<i64> {
        self.partitions.index.sweep_at()
    }

    fn on_end(&mut self, _port: Port, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }

    fn snapshot(&mut self, state: &mut Snapshot, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        let (mut groups, mut slots, mut arrivals) = (Vec::new(), Vec::new(), Vec::new());
        for (group, rows) in self.rows.iter().enumerate() {
            for ((_, arrival), shown) in rows {
                groups.push(group as u32);
                slots.push(shown.slot);
                arrivals.push(*arrival);
            }
        }
        let kept = (&self.partitions.index, &self.partitions.store);
        self.table.write(state, kept, (groups, &slots), vec![arrivals], cx);
        Ok(())
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        for batch in self.table.read(state)? {
            let batch = batch?;
            let orders = self.order.encode(&batch.rows)?;
            hash_rows(batch.rows.columns(), batch.rows.num_rows(), &mut self.hashes)?;
            let slots = self.partitions.restore(&batch, &batch.keys, cx)?;
            self.rows.resize_with(self.partitions.index.len(), BTreeMap::new);
            for (row, slot) in slots.into_iter().enumerate() {
                let (key, arrival) = (K::of(orders.row(row).as_ref()), batch.numbers[0][row]);
                self.heap_bytes += key.heap_bytes();
                self.entries += 1;
                self.next = self.next.max(arrival + 1);
                let identity = self.hashes[row];
                let group = self.partitions.groups[row];
                self.rows[group].insert((key, arrival), Shown { slot, identity });
            }
        }
        self.partitions.index.restored(None);
        self.tidy(cx)
    }
}
