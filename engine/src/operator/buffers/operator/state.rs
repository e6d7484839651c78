//! The state of windows that keep their rows.
//!
//! - `windows`: a row per window: key, bounds, flags, the times asked for, what the trigger remembers.
//! - `rows`: a row per row that some window holds: key, its place in the order of arrival, its time, the bounds of its windows
//!   (start and end after each other), what functions and evictor read of it. A row in many windows is stored once.
//! - `results`, where results are taken back: key, bounds, a row of the window's last result.
//! - `progress`: how far event time has come.
//!
//! All is written whole: rows come and go one by one, and to tell which have gone would cost as much as to store them. At a
//! barrier columns are shared and places copied; the rest is done by the thread that writes.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Int64Array, ListArray, RecordBatchOptions, UInt32Array, UInt64Array,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{concat_batches, sort_to_indices, take, take_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, UInt64Type};

use super::super::assigner::Bounds;
use super::super::function::{Evaluator, stored_field};
use super::super::rows::{Place, RowStore};
use super::super::timers::{Timers, Waiting};
use super::WindowBuffer;
use crate::data::{Batch, EngineError, Result, batch_bytes, without_row_kind};
use crate::operator::Context;
use crate::operator::buffers::WindowBufferSpec;
use crate::operator::progress::{self, Progress};
use crate::state::{Restored, Snapshot, TableSpec, distinct_names};

/// Rows of a batch.
const BATCH_ROWS: usize = 1 << 14;

/// The tables of a spec.
pub(super) struct Tables {
    keys: usize,
    windows: TableSpec,
    rows: TableSpec,
    results: TableSpec,
}

fn times_field(name: &str) -> Field {
    Field::new(name, DataType::List(item()), false)
}

fn item() -> Arc<Field> {
    Arc::new(Field::new_list_field(DataType::Int64, false))
}

impl Tables {
    /// # Errors
    /// When an expression has no type.
    pub(super) fn new(spec: &WindowBufferSpec, key_schema: &SchemaRef, evaluator: &Evaluator) -> Result<Self> {
        let keys = key_schema.fields().len();
        let table = |name: &str, unique: usize, fields: Vec<Field>| {
            let of_keys = key_schema.fields().iter().map(|field| field.as_ref().clone());
            let schema = distinct_names(&Schema::new(of_keys.chain(fields).collect::<Vec<_>>()));
            let mut table = TableSpec::by_key(name, schema, keys);
            table.unique = unique;
            table
        };
        let number = |name: &str| Field::new(name, DataType::Int64, false);
        let flag = |name: &str| Field::new(name, DataType::Boolean, false);
        let bounds = ["window_start", "window_end"].map(number);
        let mut windows = bounds.to_vec();
        windows.extend([flag("is_dirty"), flag("is_merged")]);
        windows.extend([times_field("event_timers"), times_field("processing_timers")]);
        let words = 0..spec.trigger.traits().words;
        windows.extend(words.map(|word| Field::new(format!("trigger_{word}"), DataType::Int64, true)));
        let mut rows = vec![
            Field::new("place", DataType::UInt64, false),
            number("time"),
            times_field("windows"),
        ];
        rows.extend(evaluator.stored_fields()?);
        if let Some(evictor) = &spec.evictor {
            for input in evictor.inputs() {
                let field = stored_field(&input.expr, &spec.input)?;
                let name = format!("evictor {}", field.name());
                rows.push(field.with_name(name));
            }
        }
        let mut results = bounds.to_vec();
        let result_schema = without_row_kind(&spec.schema);
        results.extend(result_schema.fields().iter().map(|field| field.as_ref().clone()));
        Ok(Self {
            keys,
            windows: table("windows", keys + 2, windows),
            rows: table("rows", keys + 1, rows),
            results: table("results", 0, results),
        })
    }
}

/// Lists of these lengths, one after the other.
fn lists(lengths: &[usize], values: Vec<i64>) -> ArrayRef {
    let offsets = OffsetBuffer::from_lengths(lengths.iter().copied());
    Arc::new(ListArray::new(
        item(),
        offsets,
        Arc::new(Int64Array::from(values)),
        None,
    ))
}

/// The numbers of each list.
fn each_list(lists: &ListArray) -> impl Iterator<Item = &[i64]> {
    let values = lists.values().as_primitive::<Int64Type>().values();
    let ranges = lists.value_offsets().windows(2);
    ranges.map(move |ends| &values[ends[0] as usize..ends[1] as usize])
}

fn batch_of(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<Batch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(Batch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

impl WindowBuffer {
    pub(super) fn hand_over(&mut self, state: &mut Snapshot, cx: &Context) -> Result<()> {
        let open: Vec<u32> = self.table.numbers().collect();
        let of_keys: UInt32Array = open.iter().map(|window| self.table.get(*window).key).collect();
        let keys = match open.is_empty() {
            true => Vec::new(),
            false => self.keys.columns(&of_keys)?,
        };
        let windows = (!open.is_empty()).then(|| self.window_rows(&open, &keys));
        state.full(&self.tables.windows, windows);
        self.hand_over_rows(&open, state);
        if self.retracts {
            self.hand_over_results(&open, keys, state);
        }
        progress::snapshot(Some(self.watermark_ms).filter(|at| *at > i64::MIN), state, cx)
    }

    fn window_rows(&self, open: &[u32], keys: &[ArrayRef]) -> Result<Batch> {
        let windows = || open.iter().map(|window| self.table.get(*window));
        let mut columns = keys.to_vec();
        let number = |of: fn(&Bounds) -> i64| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(windows().map(|window| of(&window.bounds))))
        };
        columns.extend([number(|bounds| bounds.start_ms), number(|bounds| bounds.end_ms)]);
        let dirty: BooleanArray = windows().map(|window| Some(window.is_dirty)).collect();
        let merged: BooleanArray = windows().map(|window| Some(window.is_merged)).collect();
        columns.extend([Arc::new(dirty) as ArrayRef, Arc::new(merged)]);
        for timers in [&self.event_timers, &self.processing_timers] {
            let times = self.times_by_window(open, timers);
            let lengths: Vec<usize> = times.iter().map(Vec::len).collect();
            columns.push(lists(&lengths, times.concat()));
        }
        for word in 0..self.traits.words {
            let words = open.iter().map(|window| self.table.words(*window)[word]);
            columns.push(Arc::new(Int64Array::from_iter_values(words)));
        }
        batch_of(&self.tables.windows.schema, columns, open.len())
    }

    /// The times that each open window has asked for.
    fn times_by_window(&self, open: &[u32], timers: &Timers) -> Vec<Vec<i64>> {
        let count = open.last().map_or(0, |last| *last as usize + 1);
        let mut at = vec![0; count];
        for (index, window) in open.iter().enumerate() {
            at[*window as usize] = index;
        }
        let mut times: Vec<Vec<i64>> = vec![Vec::new(); open.len()];
        for (time, waiting) in timers.all().filter(|(_, waiting)| self.table.is_alive(*waiting)) {
            let of_window = &mut times[at[waiting.window as usize]];
            if of_window.last() != Some(&time) {
                of_window.push(time);
            }
        }
        times
    }

    fn hand_over_rows(&self, open: &[u32], state: &mut Snapshot) {
        let mut members: Vec<(Place, Bounds)> = Vec::new();
        for window in open {
            let window = self.table.get(*window);
            members.extend(self.rows.places(window.rows).map(|place| (place, window.bounds)));
        }
        let (store, schema) = (self.rows.shared(), Arc::clone(&self.tables.rows.schema));
        let width = self.evaluator.width();
        let keys = width..width + self.tables.keys;
        let evictor = keys.end..keys.end + self.evictor_exprs.len();
        let rows = MemberRows {
            store,
            members,
            next: None,
            stored: [keys, 0..width, evictor],
            schema,
        };
        state.full(&self.tables.rows, rows);
    }

    fn hand_over_results(&self, open: &[u32], keys: Vec<ArrayRef>, state: &mut Snapshot) {
        let mut places: Vec<(Place, u32, Bounds)> = Vec::new();
        for (index, window) in (0u32..).zip(open) {
            let window = self.table.get(*window);
            let of_window = self.results.places(window.previous);
            places.extend(of_window.map(|place| (place, index, window.bounds)));
        }
        let (store, schema) = (self.results.shared(), Arc::clone(&self.tables.results.schema));
        let width = self.result_schema.fields().len();
        let starts = (0..places.len()).step_by(BATCH_ROWS);
        let batches = starts.map(move |start| {
            let part = &places[start..places.len().min(start + BATCH_ROWS)];
            let index: UInt32Array = part.iter().map(|(_, index, _)| *index).collect();
            let mut columns = keys
                .iter()
                .map(|key| take(key, &index, None))
                .collect::<std::result::Result<Vec<_>, _>>()?;
            let bound = |of: fn(&Bounds) -> i64| -> ArrayRef {
                Arc::new(Int64Array::from_iter_values(part.iter().map(|(.., bounds)| of(bounds))))
            };
            columns.extend([bound(|bounds| bounds.start_ms), bound(|bounds| bounds.end_ms)]);
            let of_part: Vec<Place> = part.iter().map(|(place, ..)| *place).collect();
            columns.extend(store.gather(&of_part, 0..width)?);
            batch_of(&schema, columns, part.len())
        });
        state.full(&self.tables.results, batches);
    }

    pub(super) fn take_back(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        self.watermark_ms = Progress::restore(state, cx)?.least.unwrap_or(i64::MIN);
        for windows in state.take(&self.tables.windows)? {
            self.restore_windows(&windows?)?;
        }
        let mut batches = state.take(&self.tables.rows)?.collect::<Result<Vec<Batch>>>()?;
        if !self.is_in_order(&batches)? {
            let all = concat_batches(&self.tables.rows.schema, &batches)?;
            let order = sort_to_indices(all.column(self.tables.keys), None, None)?;
            batches = vec![take_record_batch(&all, &order)?];
        }
        for rows in batches {
            self.restore_rows(&rows, cx)?;
            cx.hold(self.size())?;
        }
        if self.retracts {
            for rows in state.take(&self.tables.results)? {
                self.restore_results(&rows?, cx)?;
            }
        } else if state.has("results") {
            return Err(EngineError::Plan(format!(
                "the state of operator '{}' does not fit: its results could be taken back, those of the program cannot; \
                 keep the accumulation mode, or start without that state",
                cx.operator
            )));
        }
        Ok(())
    }

    /// The key numbers of stored rows.
    fn numbers_of(&mut self, rows: &Batch) -> Result<Vec<usize>> {
        let mut numbers = Vec::new();
        let keys = &rows.columns()[..self.tables.keys];
        self.keys.intern(keys, rows.num_rows(), &mut numbers)?;
        Ok(numbers)
    }

    fn restore_windows(&mut self, rows: &Batch) -> Result<()> {
        let numbers = self.numbers_of(rows)?;
        let first = self.tables.keys;
        let number = |column: usize| rows.column(first + column).as_primitive::<Int64Type>();
        let flag = |column: usize| rows.column(first + column).as_boolean();
        let times = [4, 5].map(|column| {
            let lists = rows.column(first + column).as_list::<i32>();
            each_list(lists).collect::<Vec<_>>()
        });
        for (row, key) in numbers.iter().enumerate() {
            let bounds = Bounds {
                start_ms: number(0).value(row),
                end_ms: number(1).value(row),
            };
            let window = self.open(*key as u32, bounds);
            let (state, words) = self.table.with_words(window);
            state.is_dirty = flag(2).value(row);
            state.is_merged = flag(3).value(row);
            for (word, value) in words.iter_mut().enumerate() {
                let column = number(6 + word);
                *value = if column.is_valid(row) { column.value(row) } else { 0 };
            }
            let generation = state.generation;
            for (times, timers) in times.iter().zip([&mut self.event_timers, &mut self.processing_timers]) {
                for time in times[row] {
                    timers.register(*time, Waiting { window, generation });
                }
            }
        }
        Ok(())
    }

    /// Whether the rows of each key come in the order of their arrival.
    fn is_in_order(&mut self, batches: &[Batch]) -> Result<bool> {
        let mut last: Vec<Option<u64>> = Vec::new();
        for rows in batches {
            let places = rows.column(self.tables.keys).as_primitive::<UInt64Type>().values();
            let numbers = self.numbers_of(rows)?;
            last.resize(self.keys.len(), None);
            for (key, place) in numbers.into_iter().zip(places) {
                if last[key].replace(*place) > Some(*place) {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    fn restored_window(&mut self, key: usize, bounds: Bounds, cx: &Context) -> Result<u32> {
        let found = if self.merges {
            self.table.overlapping(key as u32, bounds, &mut self.overlapping);
            self.overlapping.first().copied()
        } else {
            self.table.find(key as u32, bounds)
        };
        found.ok_or_else(|| {
            EngineError::BadInput(format!(
                "the state of operator '{}' is damaged: a row is in a window from {} to {} that there is not; use another checkpoint",
                cx.operator, bounds.start_ms, bounds.end_ms
            ))
        })
    }

    fn restore_rows(&mut self, rows: &Batch, cx: &Context) -> Result<()> {
        let numbers = self.numbers_of(rows)?;
        let keys = self.tables.keys;
        let times = rows.column(keys + 1).as_primitive::<Int64Type>().values().to_vec();
        let width = self.evaluator.width();
        let mut columns = rows.columns()[keys + 3..keys + 3 + width].to_vec();
        columns.extend_from_slice(&rows.columns()[..keys]);
        columns.extend_from_slice(&rows.columns()[keys + 3 + width..]);
        let fields = columns.iter().zip(0u32..);
        let fields = fields.map(|(column, at)| Field::new(at.to_string(), column.data_type().clone(), true));
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let bytes = batch_bytes(&batch_of(&schema, columns.clone(), times.len())?);
        let first = self.rows.push(columns, times, bytes);
        let windows = rows.column(keys + 2).as_list::<i32>();
        for ((row, key), windows) in numbers.into_iter().enumerate().zip(each_list(windows)) {
            for pair in windows.chunks_exact(2) {
                let bounds = Bounds {
                    start_ms: pair[0],
                    end_ms: pair[1],
                };
                let window = self.restored_window(key, bounds, cx)?;
                let list = &mut self.table.get_mut(window).rows;
                self.rows.append(list, RowStore::place(first, row));
            }
        }
        Ok(())
    }

    fn restore_results(&mut self, rows: &Batch, cx: &Context) -> Result<()> {
        let numbers = self.numbers_of(rows)?;
        let keys = self.tables.keys;
        let bound = |column: usize| rows.column(keys + column).as_primitive::<Int64Type>();
        let results = rows.project(&(keys + 2..rows.num_columns()).collect::<Vec<_>>())?;
        let times = vec![0; rows.num_rows()];
        let first = self
            .results
            .push(results.columns().to_vec(), times, batch_bytes(&results));
        for (row, key) in numbers.into_iter().enumerate() {
            let bounds = Bounds {
                start_ms: bound(0).value(row),
                end_ms: bound(1).value(row),
            };
            let window = self.restored_window(key, bounds, cx)?;
            let list = &mut self.table.get_mut(window).previous;
            self.results.append(list, RowStore::place(first, row));
        }
        Ok(())
    }
}

/// The stored rows in the order of their arrival, each with its windows.
struct MemberRows {
    store: RowStore,
    /// Rows and the windows that they are in; in no order until the first batch is asked for.
    members: Vec<(Place, Bounds)>,
    next: Option<usize>,
    /// Which of the stored columns are the keys, and which follow the windows.
    stored: [Range<usize>; 3],
    schema: SchemaRef,
}

impl MemberRows {
    fn batch(&mut self) -> Result<Option<Batch>> {
        let start = match self.next {
            Some(start) => start,
            None => {
                self.members.sort_unstable();
                0
            }
        };
        let (mut places, mut windows, mut lengths): (Vec<Place>, Vec<i64>, Vec<usize>) = Default::default();
        let mut end = start;
        for (place, bounds) in &self.members[start..] {
            if places.last() != Some(place) {
                if places.len() == BATCH_ROWS {
                    break;
                }
                places.push(*place);
                lengths.push(0);
            }
            if let Some(length) = lengths.last_mut() {
                *length += 2;
            }
            windows.extend([bounds.start_ms, bounds.end_ms]);
            end += 1;
        }
        self.next = Some(end);
        if places.is_empty() {
            return Ok(None);
        }
        let [keys, functions, evictor] = self.stored.clone();
        let mut columns = self.store.gather(&places, keys)?;
        columns.push(Arc::new(UInt64Array::from_iter_values(
            places.iter().map(|place| place.id()),
        )));
        let times = places.iter().map(|place| self.store.time(*place));
        columns.push(Arc::new(Int64Array::from_iter_values(times)));
        columns.push(lists(&lengths, windows));
        columns.extend(self.store.gather(&places, functions)?);
        columns.extend(self.store.gather(&places, evictor)?);
        batch_of(&self.schema, columns, places.len()).map(Some)
    }
}

impl Iterator for MemberRows {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.batch().transpose()
    }
}
