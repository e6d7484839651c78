//! Rows that wait for the watermark, and leave in the order of their event time.
//!
//! Batches stay as they came; only an order over their rows is made, and only where their times do not rise already. A
//! watermark looks at those batches alone that have a row to let go (a heap knows which), so that what it costs depends
//! on the rows that leave and not on those that wait.
//!
//! Times are compared as the column has them, in its own unit; the watermark is brought to that unit. Of a snapshot this
//! is the rows that wait, batch by batch in the order of arrival.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::ops::Range;

use arrow::array::{Array, AsArray, BooleanArray, UInt32Array};
use arrow::buffer::ScalarBuffer;
use arrow::compute::{filter_record_batch, interleave_record_batch, take_record_batch};
use arrow::datatypes::{
    DataType, Schema, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType,
};

use crate::data::{Batch, EngineError, Result, Watermark, batch_bytes, compact_views};
use crate::operator::row_table::RowTable;
use crate::state::RestoredRows;

/// What a row that leaves takes beside itself: its time and place, twice while they are sorted. Booked while it waits.
const LEAVING_ROW_BYTES: usize = 32;
/// A batch of which so small a part waits still is copied, so that the rest of it goes.
const WAITING_PART_MIN: usize = 4;

/// The event time of batches: a column and its unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct TimeColumn {
    index: usize,
    unit: TimeUnit,
}

impl TimeColumn {
    /// Column `index` of batches of `schema`.
    ///
    /// # Errors
    /// When it is no timestamp.
    pub(super) fn try_new(index: usize, schema: &Schema) -> Result<Self> {
        let field = schema
            .fields()
            .get(index)
            .ok_or_else(|| EngineError::Internal(format!("there is no column {index} to be the event time")))?;
        match field.data_type() {
            DataType::Timestamp(unit, _) => Ok(Self { index, unit: *unit }),
            other => Err(EngineError::Plan(format!(
                "the event time '{}' is {other}, not a timestamp; cast it",
                field.name()
            ))),
        }
    }

    /// The times of a batch, in the column's unit.
    ///
    /// # Errors
    /// When one is NULL.
    pub(super) fn values(&self, batch: &Batch) -> Result<ScalarBuffer<i64>> {
        let column = batch.column(self.index);
        if column.null_count() > 0 {
            let name = batch.schema_ref().field(self.index).name().clone();
            return Err(EngineError::BadInput(format!(
                "the event time '{name}' of a row is NULL; leave such rows out with WHERE {name} IS NOT NULL"
            )));
        }
        Ok(match self.unit {
            TimeUnit::Second => column.as_primitive::<TimestampSecondType>().values().clone(),
            TimeUnit::Millisecond => column.as_primitive::<TimestampMillisecondType>().values().clone(),
            TimeUnit::Microsecond => column.as_primitive::<TimestampMicrosecondType>().values().clone(),
            TimeUnit::Nanosecond => column.as_primitive::<TimestampNanosecondType>().values().clone(),
        })
    }

    /// The last time, in the column's unit, that a watermark has reached.
    pub(super) fn reached(&self, watermark: Watermark) -> i64 {
        // A time belongs to the millisecond that it falls into.
        let end = |scale: i64| watermark.0.saturating_add(1).saturating_mul(scale).saturating_sub(1);
        match self.unit {
            _ if watermark == Watermark::MAX => i64::MAX,
            TimeUnit::Second => watermark.0.div_euclid(1000),
            TimeUnit::Millisecond => watermark.0,
            TimeUnit::Microsecond => end(1000),
            TimeUnit::Nanosecond => end(1_000_000),
        }
    }

    /// So many milliseconds in the column's unit.
    pub(super) fn span(&self, ms: i64) -> i64 {
        match self.unit {
            TimeUnit::Second => ms.div_euclid(1000),
            TimeUnit::Millisecond => ms,
            TimeUnit::Microsecond => ms.saturating_mul(1000),
            TimeUnit::Nanosecond => ms.saturating_mul(1_000_000),
        }
    }
}

/// A batch that waits.
#[derive(Clone)]
struct Held {
    batch: Batch,
    /// Its times, rising.
    times: ScalarBuffer<i64>,
    /// The rows in the order of `times`, when that is not their own.
    order: Option<Vec<u32>>,
    /// So many have left.
    left: usize,
    bytes: usize,
}

impl Held {
    fn new(batch: Batch, times: ScalarBuffer<i64>) -> Self {
        let (times, order) = in_order(times);
        let order_bytes = order.as_ref().map_or(0, |order| order.capacity() * size_of::<u32>());
        let bytes = batch_bytes(&batch) + times.len() * size_of::<i64>() + order_bytes;
        Self {
            batch,
            times,
            order,
            left: 0,
            bytes,
        }
    }

    fn row(&self, at: usize) -> u32 {
        self.order.as_ref().map_or(at as u32, |order| order[at])
    }

    fn waiting(&self) -> usize {
        self.times.len() - self.left
    }

    /// A copy of the rows that wait still, in their order of arrival.
    fn compacted(&self) -> Result<Self> {
        let mut rows: Vec<(u32, i64)> = (self.left..self.times.len())
            .map(|at| (self.row(at), self.times[at]))
            .collect();
        rows.sort_unstable();
        let indices = UInt32Array::from_iter_values(rows.iter().map(|(row, _)| *row));
        let batch = compact_views(take_record_batch(&self.batch, &indices)?)?;
        Ok(Self::new(batch, rows.into_iter().map(|(_, time)| time).collect()))
    }
}

/// Times in rising order, with the rows in that order (ties as they came) unless it is their own.
fn in_order(times: ScalarBuffer<i64>) -> (ScalarBuffer<i64>, Option<Vec<u32>>) {
    if times.is_sorted() {
        return (times, None);
    }
    let mut rows: Vec<(i64, u32)> = times.iter().copied().zip(0_u32..).collect();
    rows.sort_unstable();
    let times = rows.iter().map(|(time, _)| *time).collect();
    (times, Some(rows.into_iter().map(|(_, row)| row).collect()))
}

/// Rows that wait for the watermark.
pub(super) struct TimeBuffer {
    column: TimeColumn,
    held: Vec<Option<Held>>,
    free: Vec<usize>,
    /// The first time that waits in each batch, then the batch's number of arrival and place in `held`.
    due: BinaryHeap<Reverse<(i64, u64, usize)>>,
    arrived: u64,
    rows: usize,
    bytes: usize,
    /// What the watermark has reached, in the column's unit.
    reached: Option<i64>,
}

/// Rows that the watermark has reached, in order of time and then of arrival.
pub(super) struct Released {
    batches: Vec<Batch>,
    /// Batch and row of each.
    places: Vec<(u32, u32)>,
    times: Vec<i64>,
    /// Of the batches that wait no more.
    bytes: usize,
}

impl TimeBuffer {
    /// An empty one over rows whose time is `column`.
    pub(super) fn new(column: TimeColumn) -> Self {
        Self {
            column,
            held: Vec::new(),
            free: Vec::new(),
            due: BinaryHeap::new(),
            arrived: 0,
            rows: 0,
            bytes: 0,
            reached: None,
        }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        let places =
            self.held.capacity() * size_of::<Option<Held>>() + self.due.capacity() * size_of::<(i64, u64, usize)>();
        self.bytes + self.rows * LEAVING_ROW_BYTES + places + self.free.capacity() * size_of::<usize>()
    }

    /// What the watermark has reached, in the unit of the time's column.
    pub(super) fn reached(&self) -> Option<i64> {
        self.reached
    }

    /// Takes rows; drops those that the watermark has passed and says how many these were.
    ///
    /// # Errors
    /// When a time is NULL.
    pub(super) fn add(&mut self, batch: Batch) -> Result<usize> {
        let times = self.column.values(&batch)?;
        let late = match self.reached {
            Some(reached) => times.iter().filter(|time| **time <= reached).count(),
            None => 0,
        };
        if late == batch.num_rows() {
            return Ok(late);
        }
        let held = match self.reached {
            Some(reached) if late > 0 => {
                let kept: Vec<bool> = times.iter().map(|time| *time > reached).collect();
                let batch = filter_record_batch(&batch, &BooleanArray::from(kept))?;
                Held::new(batch, times.iter().copied().filter(|time| *time > reached).collect())
            }
            _ => Held::new(batch, times),
        };
        self.arrived += 1;
        self.put(held, self.arrived);
        Ok(late)
    }

    /// The rows that wait now, in the order of arrival.
    pub(super) fn freeze(&self, table: &RowTable) -> impl Iterator<Item = Result<Batch>> + Send + use<> {
        let mut due: Vec<(u64, usize)> = self.due.iter().map(|Reverse((_, at, place))| (*at, *place)).collect();
        due.sort_unstable();
        let held: Vec<Held> = due.iter().filter_map(|(_, place)| self.held[*place].clone()).collect();
        let table = table.clone();
        held.into_iter().map(move |held| {
            let rows = match held.left {
                0 => held.batch,
                _ => held.compacted()?.batch,
            };
            table.batch(rows.columns().to_vec(), rows.num_rows())
        })
    }

    /// Takes the rows of a snapshot.
    ///
    /// # Errors
    /// When a time is NULL.
    pub(super) fn restore(&mut self, table: &RowTable, rows: RestoredRows) -> Result<()> {
        for stored in rows {
            self.add(table.split(&stored?)?.0)?;
        }
        Ok(())
    }

    fn put(&mut self, held: Held, arrived: u64) {
        let Some(first) = held.times.get(held.left).copied() else {
            return;
        };
        self.bytes += held.bytes;
        self.rows += held.waiting();
        let place = match self.free.pop() {
            Some(place) => {
                self.held[place] = Some(held);
                place
            }
            None => {
                self.held.push(Some(held));
                self.held.len() - 1
            }
        };
        self.due.push(Reverse((first, arrived, place)));
    }

    /// Lets go of the rows that `watermark` has reached; `None` when there are none.
    ///
    /// # Errors
    /// When rows cannot be copied.
    pub(super) fn release(&mut self, watermark: Watermark) -> Result<Option<Released>> {
        let reached = self.column.reached(watermark);
        self.reached = self.reached.max(Some(reached));
        let mut due = Vec::new();
        while let Some(Reverse((first, arrived, place))) = self.due.peek().copied() {
            if first > reached {
                break;
            }
            self.due.pop();
            due.push((arrived, place));
        }
        due.sort_unstable();
        let mut released = Released {
            batches: Vec::with_capacity(due.len()),
            places: Vec::new(),
            times: Vec::new(),
            bytes: 0,
        };
        for (arrived, place) in due {
            let Some(mut held) = self.held[place].take() else {
                continue;
            };
            self.free.push(place);
            self.bytes -= held.bytes;
            self.rows -= held.waiting();
            let end = held.left + held.times[held.left..].partition_point(|time| *time <= reached);
            released.add(&held, held.left..end);
            held.left = end;
            if held.waiting() == 0 {
                released.bytes += held.bytes;
            }
            if held.waiting() > 0 && held.waiting() < held.times.len() / WAITING_PART_MIN {
                held = held.compacted()?;
            }
            self.put(held, arrived);
        }
        if self.due.is_empty() {
            (self.held, self.free, self.due) = (Vec::new(), Vec::new(), BinaryHeap::new());
        }
        released.sort();
        Ok((!released.times.is_empty()).then_some(released))
    }
}

impl Released {
    fn add(&mut self, held: &Held, range: Range<usize>) {
        let batch = self.batches.len() as u32;
        self.batches.push(held.batch.clone());
        self.times.extend_from_slice(&held.times[range.clone()]);
        self.places.extend(range.map(|at| (batch, held.row(at))));
    }

    fn sort(&mut self) {
        if self.times.is_sorted() {
            return;
        }
        let mut rows: Vec<(i64, (u32, u32))> = self.times.iter().copied().zip(self.places.iter().copied()).collect();
        // Stable: ties stay in the order of arrival. It finds the runs, one per batch.
        rows.sort_by_key(|(time, _)| *time);
        (self.times, self.places) = rows.into_iter().unzip();
    }

    fn len(&self) -> usize {
        self.times.len()
    }

    /// Bytes held beside what the buffer still holds.
    pub(super) fn bytes(&self) -> usize {
        self.bytes + self.len() * LEAVING_ROW_BYTES
    }

    /// The times of all rows, rising, in the unit of their column.
    pub(super) fn times(&self) -> &[i64] {
        &self.times
    }

    /// The rows cut into pieces of `rows` or more: rows of one time are in one piece.
    pub(super) fn pieces(&self, rows: usize) -> Vec<Range<usize>> {
        let mut pieces = Vec::new();
        let mut start = 0;
        while start < self.len() {
            let last = self.times[(start + rows.max(1) - 1).min(self.len() - 1)];
            let end = start + self.times[start..].partition_point(|time| *time <= last);
            pieces.push(start..end);
            start = end;
        }
        pieces
    }

    /// A range of the rows as one batch.
    ///
    /// # Errors
    /// When the rows do not fit one batch.
    pub(super) fn gather(&self, range: Range<usize>) -> Result<Batch> {
        let places = &self.places[range];
        if let Some((batch, row)) = places.first().copied()
            && places.iter().zip(row..).all(|(place, row)| *place == (batch, row))
        {
            return Ok(self.batches[batch as usize].slice(row as usize, places.len()));
        }
        // Few of the batches have rows in a piece.
        let mut numbers: Vec<Option<usize>> = vec![None; self.batches.len()];
        let mut batches = Vec::new();
        let mut indices = Vec::with_capacity(places.len());
        for (batch, row) in places {
            let number = *numbers[*batch as usize].get_or_insert_with(|| {
                batches.push(&self.batches[*batch as usize]);
                batches.len() - 1
            });
            indices.push((number, *row as usize));
        }
        compact_views(interleave_record_batch(&batches, &indices)?)
    }
}

/// The rows of `batch` in another order.
///
/// # Errors
/// When a column cannot be taken from.
pub(super) fn reordered(batch: &Batch, order: &[u32]) -> Result<Batch> {
    Ok(take_record_batch(batch, &UInt32Array::from(order.to_vec()))?)
}
