//! An [`Over`] as tables: the rows that wait, the partitions with their totals, and per frame the rows that are in it, which
//! leave it in the order in which they came. Each snapshot is the whole of it.
//!
//! To freeze it is to gather the keys and to copy vectors; the chains of rows are followed by whoever draws the rows.
//! Columns bear the names of functions and frames: a function that was not there, whose past is not known, does not fit.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatchOptions, UInt32Array, UInt64Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, UInt64Type};

use super::kept::{Entered, FrozenFunction, Room};
use super::partitions::FrozenPartitions;
use super::steps::{Queue, Stopped};
use super::{Frame, Over};
use crate::data::{Batch, Result};
use crate::operator::Context;
use crate::state::{Restored, Snapshot, TableSpec, distinct_names};

/// Rows of frames that are drawn at once.
const DRAWN_ROWS: usize = if cfg!(test) { 5 } else { 8192 };

/// The tables' schemas begin with the keys.
fn table(name: String, keys: &[DataType], fields: Vec<Field>, unique: bool) -> TableSpec {
    let key = |(index, data_type): (usize, &DataType)| Field::new(format!("key {index}"), data_type.clone(), true);
    let fields = keys.iter().enumerate().map(key).chain(fields);
    let schema = distinct_names(&Schema::new(fields.collect::<Vec<_>>()));
    let mut spec = TableSpec::by_key(name, schema, keys.len());
    spec.unique = if unique { keys.len() } else { 0 };
    spec
}

fn named(function: &str, frame: &Frame, fields: Vec<Field>) -> impl Iterator<Item = Field> {
    let name = format!("{function} over {}", frame.name);
    fields.into_iter().map(move |field| {
        let name = format!("{name}: {}", field.name());
        field.with_name(name)
    })
}

/// What is drawn from.
struct Frozen {
    partitions: FrozenPartitions,
    numbers: Option<Vec<u64>>,
    /// By frame.
    functions: Vec<Vec<Arc<dyn FrozenFunction>>>,
    queues: Vec<Option<Queue>>,
}

impl Frozen {
    fn partitions(&self, chunk: usize, spec: &TableSpec) -> Result<Batch> {
        let (groups, keys) = &self.partitions.chunks[chunk];
        let seen = groups
            .iter()
            .map(|group| self.partitions.last_seen[*group as usize].unwrap_or(i64::MIN));
        let mut columns = keys.clone();
        columns.push(Arc::new(Int64Array::from_iter_values(seen)));
        if let Some(numbers) = &self.numbers {
            let numbers = groups
                .iter()
                .map(|group| numbers.get(*group as usize).copied().unwrap_or(0));
            columns.push(Arc::new(UInt64Array::from_iter_values(numbers)));
        }
        for function in self.functions.iter().flatten() {
            columns.extend(function.groups(groups)?);
        }
        batch(spec, columns, groups.len())
    }

    /// The next rows in a frame: as many as make a batch, of partitions of one chunk.
    fn frame(&self, frame: usize, place: &mut Place, spec: &TableSpec) -> Result<Batch> {
        let (groups, keys) = &self.partitions.chunks[place.chunk];
        let (mut places, mut slots, mut times) = (Vec::new(), Vec::new(), Vec::new());
        while let (Some(queue), Some(group)) = (&self.queues[frame], groups.get(place.group)) {
            place.stopped = queue.rows_of(*group as usize, place.stopped, DRAWN_ROWS, &mut slots, &mut times);
            places.resize(slots.len(), place.group as u32);
            if place.stopped.is_some() {
                break;
            }
            place.group += 1;
        }
        if place.group == groups.len() {
            (place.chunk, place.group) = (place.chunk + 1, 0);
        }
        let places = UInt32Array::from(places);
        let keys = keys.iter().map(|key| Ok(take(key, &places, None)?));
        let mut columns = keys.collect::<Result<Vec<ArrayRef>>>()?;
        columns.push(Arc::new(Int64Array::from(times)));
        for function in &self.functions[frame] {
            columns.extend(function.slots(&slots)?);
        }
        batch(spec, columns, slots.len())
    }
}

/// Where drawing the rows of a frame is: a chunk of partitions, one of them, a row of it.
#[derive(Default)]
struct Place {
    chunk: usize,
    group: usize,
    stopped: Option<Stopped>,
}

fn batch(spec: &TableSpec, columns: Vec<ArrayRef>, rows: usize) -> Result<Batch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(Batch::try_new_with_options(
        Arc::clone(&spec.schema),
        columns,
        &options,
    )?)
}

impl Over {
    fn partitions_table(&self) -> Result<TableSpec> {
        let mut fields = vec![Field::new("last seen", DataType::Int64, false)];
        if self.row_numbers > 0 {
            fields.push(Field::new("row number", DataType::UInt64, false));
        }
        for frame in &self.frames {
            for (index, function) in &frame.functions {
                let name = self.aggregates.functions[*index].name();
                fields.extend(named(name, frame, function.fields()?.groups));
            }
        }
        Ok(table("partitions".into(), self.partitions.key_types(), fields, true))
    }

    fn frame_table(&self, frame: &Frame) -> Result<TableSpec> {
        let mut fields = vec![Field::new("time", DataType::Int64, false)];
        for (index, function) in &frame.functions {
            let name = self.aggregates.functions[*index].name();
            fields.extend(named(name, frame, function.fields()?.slots));
        }
        let name = format!("rows of {}", frame.name);
        Ok(table(name, self.partitions.key_types(), fields, false))
    }

    pub(super) fn freeze(&mut self, state: &mut Snapshot) -> Result<()> {
        if let Some((buffer, _)) = &self.buffer {
            state.full(self.waiting.spec(), buffer.freeze(&self.waiting));
        }
        let frozen = Arc::new(Frozen {
            partitions: self.partitions.freeze()?,
            numbers: (self.row_numbers > 0).then(|| self.numbers.clone()),
            functions: self.frames.iter_mut().map(Frame::freeze).collect::<Result<_>>()?,
            queues: self.frames.iter().map(|frame| frame.queue.clone()).collect(),
        });
        let chunks = 0..frozen.partitions.chunks.len();
        let (spec, from) = (self.partitions_table()?, Arc::clone(&frozen));
        state.full(
            &spec.clone(),
            chunks.clone().map(move |chunk| from.partitions(chunk, &spec)),
        );
        for (number, frame) in self
            .frames
            .iter()
            .enumerate()
            .filter(|(_, frame)| frame.queue.is_some())
        {
            let (spec, from, mut place) = (self.frame_table(frame)?, Arc::clone(&frozen), Place::default());
            let declared = spec.clone();
            let rows = std::iter::from_fn(move || {
                let is_over = place.chunk >= from.partitions.chunks.len();
                (!is_over).then(|| from.frame(number, &mut place, &spec))
            });
            state.full(&declared, rows);
        }
        Ok(())
    }

    pub(super) fn thaw(&mut self, state: &mut Restored, cx: &Context) -> Result<()> {
        if let Some((buffer, _)) = &mut self.buffer {
            buffer.restore(&self.waiting, state.take(self.waiting.spec())?)?;
        }
        for rows in state.take(&self.partitions_table()?)? {
            self.thaw_partitions(&rows?)?;
        }
        for number in 0..self.frames.len() {
            if self.frames[number].queue.is_some() {
                for rows in state.take(&self.frame_table(&self.frames[number])?)? {
                    self.thaw_frame(number, &rows?)?;
                }
            }
        }
        if let Some(ttl) = self.ttl_ms {
            // The first one falls silent then.
            let (_, oldest) = self.partitions.silent(i64::MIN);
            self.check_at = oldest.map(|oldest| oldest.saturating_add(ttl).max(cx.clock.now_ms()));
        }
        Ok(())
    }

    fn thaw_partitions(&mut self, rows: &Batch) -> Result<()> {
        let mut columns = rows.columns();
        let keys = split(&mut columns, self.partitions.key_types().len());
        let seen = split(&mut columns, 1)[0].as_primitive::<Int64Type>().values();
        let groups = self.partitions.restore(keys, seen)?;
        let total = self.partitions.len();
        if self.row_numbers > 0 {
            self.numbers.resize(total, 0);
            let numbers = split(&mut columns, 1)[0].as_primitive::<UInt64Type>().values();
            for (group, number) in groups.iter().zip(numbers) {
                self.numbers[*group] = *number;
            }
        }
        for frame in &mut self.frames {
            if let Some(queue) = &mut frame.queue {
                queue.grow(total);
            }
            let room = frame.room(total);
            for (_, function) in &mut frame.functions {
                let own = split(&mut columns, function.fields()?.groups.len());
                function.restore_groups(&groups, own, room)?;
            }
        }
        Ok(())
    }

    fn thaw_frame(&mut self, number: usize, rows: &Batch) -> Result<()> {
        let mut columns = rows.columns();
        let keys = split(&mut columns, self.partitions.key_types().len());
        let times = split(&mut columns, 1)[0].as_primitive::<Int64Type>().values();
        let groups = self.partitions.find(keys, rows.num_rows())?;
        let total = self.partitions.len();
        let frame = &mut self.frames[number];
        let Some(queue) = &mut frame.queue else { return Ok(()) };
        queue.grow(total);
        let (slots, is_first) = queue.enter(&groups, times)?;
        let room = frame.room(total);
        let entered = Entered {
            groups: &groups,
            slots: &slots,
            is_first: &is_first,
        };
        for (_, function) in &mut frame.functions {
            let own = split(&mut columns, function.fields()?.slots.len());
            function.restore_slots(&entered, own, room)?;
        }
        Ok(())
    }
}

/// Takes the next columns.
fn split<'a>(columns: &mut &'a [ArrayRef], count: usize) -> &'a [ArrayRef] {
    let (first, rest) = columns.split_at(count);
    *columns = rest;
    first
}

impl Frame {
    fn freeze(&mut self) -> Result<Vec<Arc<dyn FrozenFunction>>> {
        self.functions
            .iter_mut()
            .map(|(_, function)| function.freeze())
            .collect()
    }

    fn room(&self, groups: usize) -> Room {
        Room {
            groups,
            slots: self.queue.as_ref().map_or(0, |queue| queue.next().len()),
        }
    }
}
