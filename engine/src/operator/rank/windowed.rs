//! The best rows of each partition within a window. They leave once, when the window is complete.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering as Atomic;

use arrow::array::{Array, ArrayRef, BooleanArray, Int64Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, TimeUnit};

use super::places::Places;
use super::top_n::{Lists, best_table, read_best, write_best};
use super::{OrderKey, OrderKeys, Partitions};
use crate::data::{Batch, EngineError, Result, RowKind, Watermark};
use crate::operator::keyed::{RowTable, evaluate_keys};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::RankSpec;
use crate::state::{Restored, Snapshot};

/// See the module.
pub(super) struct Windowed<K> {
    table: RowTable,
    partitions: Partitions,
    order: OrderKeys,
    places: Places,
    lists: Lists<K>,
    /// The column of the window's end.
    end: usize,
    /// The partitions of each window, by its end.
    windows: BTreeMap<i64, Vec<usize>>,
    watermark: i64,
}

impl<K: OrderKey> Windowed<K> {
    /// A rank of this spec, with the window's end in column `end`.
    ///
    /// # Errors
    /// When that is no timestamp, or a type cannot be partitioned by.
    pub(super) fn new(spec: &RankSpec, order: OrderKeys, end: usize) -> Result<Self> {
        let mut spec = spec.clone();
        // The watermark tells when a window is forgotten.
        spec.ttl_ms = None;
        let field = spec.input_schema.0.field(end);
        if !matches!(field.data_type(), DataType::Timestamp(_, _)) {
            return Err(EngineError::Plan(format!(
                "the window's end '{}' is {}, not a timestamp",
                field.name(),
                field.data_type()
            )));
        }
        Ok(Self {
            table: best_table(&spec),
            partitions: Partitions::new(&spec, &[DataType::Int64])?,
            order,
            places: Places {
                first: spec.first,
                last: spec.last,
                number: spec.number,
                update_before: false,
            },
            lists: Lists::new(spec.last),
            end,
            windows: BTreeMap::new(),
            watermark: i64::MIN,
        })
    }

    /// The end of each row's window, in milliseconds.
    fn ends(&self, batch: &Batch) -> Result<Int64Array> {
        ends_in(batch, self.end)
    }

    /// The rows that are not late, with the ends of their windows.
    fn in_time(&self, batch: Batch, cx: &Context) -> Result<(Batch, Int64Array)> {
        let ends = self.ends(&batch)?;
        let complete = |end: i64| end.saturating_sub(1) <= self.watermark;
        let late = ends.values().iter().filter(|end| complete(**end)).count();
        if late == 0 {
            return Ok((batch, ends));
        }
        cx.metrics.late_rows.fetch_add(late as u64, Atomic::Relaxed);
        let mask = BooleanArray::from_unary(&ends, |end| !complete(end));
        let batch = filter_record_batch(&batch, &mask)?;
        let ends = self.ends(&batch)?;
        Ok((batch, ends))
    }

    fn take_rows(&mut self, rows: &Batch, ends: &Int64Array, now_ms: i64) -> Result<()> {
        let partitions = &mut self.partitions;
        let mut keys: Vec<ArrayRef> = vec![Arc::new(ends.clone())];
        keys.extend(evaluate_keys(&partitions.partition_by, rows)?);
        partitions
            .index
            .intern(&keys, rows.num_rows(), &mut partitions.groups)?;
        partitions.touched.start(partitions.index.len());
        let order = self.order.encode(rows)?;
        self.lists.lists.resize_with(partitions.index.len(), Vec::new);
        for (row, group) in partitions.groups.iter().enumerate() {
            let key = order.row(row);
            if !self.lists.wants(*group, key.as_ref()) {
                continue;
            }
            if !partitions.index.is_live(*group) {
                self.windows.entry(ends.value(row)).or_default().push(*group);
                partitions.index.note(*group, true, now_ms);
            }
            partitions.touched.touch(*group, row);
            self.lists.add(*group, key.as_ref(), row);
        }
        self.lists
            .settle(&partitions.touched.groups, rows, &mut partitions.store)
    }

    /// Hands on the windows that end at or before `end`.
    fn complete(&mut self, end: i64, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let partitions = &mut self.partitions;
        while let Some(window) = self.windows.first_entry().filter(|window| *window.key() <= end) {
            for group in window.remove() {
                let shown = self.places.shown(&self.lists.lists[group]).iter();
                for (place, entry) in (self.places.first..).zip(shown) {
                    partitions.changes.add(entry.slot, RowKind::Insert, place);
                }
                self.lists.forget(group);
                partitions.index.note(group, false, 0);
            }
        }
        partitions.changes.flush(&partitions.store, cx, out)?;
        self.tidy(cx)
    }

    fn tidy(&mut self, cx: &mut Context) -> Result<()> {
        let partitions = &mut self.partitions;
        self.lists
            .dropped
            .drain(..)
            .for_each(|slot| partitions.store.release(slot));
        partitions.store.tidy()?;
        if partitions.index.is_sparse() {
            let total = partitions.index.len();
            let kept = partitions.index.compact()?;
            self.lists.compact(&kept);
            partitions.touched.clear();
            let mut numbers = vec![0; total];
            for (new, old) in kept.iter().enumerate() {
                numbers[*old] = new;
            }
            let groups = self.windows.values_mut().flatten();
            groups.for_each(|group| *group = numbers[*group]);
        }
        let windows = partitions.index.len() * size_of::<usize>();
        cx.hold(partitions.size() + self.lists.size() + windows)
    }
}

/// The window's end of each row, in milliseconds: column `at`.
fn ends_in(batch: &Batch, at: usize) -> Result<Int64Array> {
    let column = batch.column(at);
    if column.logical_null_count() > 0 {
        return Err(EngineError::BadInput(format!(
            "the window's end '{}' is NULL in some row; filter such rows out before they are ranked",
            batch.schema_ref().field(at).name()
        )));
    }
    let DataType::Timestamp(unit, _) = column.data_type() else {
        return Err(EngineError::Internal("the window's end is no timestamp".into()));
    };
    let values = arrow::compute::cast(column, &DataType::Int64)?;
    let values = arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(values.as_ref());
    Ok(match unit {
        TimeUnit::Second => values.unary(|value| value.saturating_mul(1000)),
        TimeUnit::Millisecond => values.clone(),
        TimeUnit::Microsecond => values.unary(|value: i64| value.div_euclid(1000)),
        TimeUnit::Nanosecond => values.unary(|value: i64| value.div_euclid(1_000_000)),
    })
}

impl<K: OrderKey> Operator for Windowed<K> {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        let (rows, ends) = self.in_time(batch, cx)?;
        if rows.num_rows() > 0 {
            self.take_rows(&rows, &ends, cx.clock.now_ms())?;
        }
        self.tidy(cx)
    }

    fn on_watermark(&mut self, watermark: Watermark, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if watermark.0 > self.watermark {
            self.watermark = watermark.0;
            self.complete(watermark.0.saturating_add(1), cx, out)?;
        }
        out.watermark(watermark)
    }

    fn on_end(&mut self, _port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.complete(i64::MAX, cx, out)
    }

    fn snapshot(&mut self, state: &mut Snapshot, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        write_best(&self.table, state, (&self.partitions, &self.lists), cx);
        Ok(())
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        let end = self.end;
        let kept = (&mut self.partitions, &self.order, &mut self.lists);
        read_best(&self.table, state, kept, cx, |batch| {
            let mut keys: Vec<ArrayRef> = vec![Arc::new(ends_in(&batch.rows, end)?)];
            keys.extend(batch.keys.iter().cloned());
            Ok(keys)
        })?;
        let groups = self.partitions.index.living();
        if let Some(ends) = self.partitions.index.gather(&groups)?.first() {
            let ends = arrow::array::AsArray::as_primitive::<arrow::datatypes::Int64Type>(ends.as_ref());
            for (end, group) in ends.values().iter().zip(groups) {
                self.windows.entry(*end).or_default().push(group as usize);
            }
        }
        self.tidy(cx)
    }
}
