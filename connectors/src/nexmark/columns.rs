//! Batches of events.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, StructArray};
use arrow::buffer::{BooleanBuffer, NullBuffer, ScalarBuffer};
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use parking_lot::Mutex;

use crate::generate::{Interleave, Rows, Spare};
use crate::nexmark::events::{EPOCH, Events, Run};
use crate::nexmark::schema::{Kind, Shape};

/// Rows for which types and NULLs, which repeat with each epoch, are laid out once; a batch takes slices.
const PATTERN_ROWS: usize = 16_384 + EPOCH as usize;

/// The rows of a scan.
#[derive(Debug)]
pub(super) struct NexmarkRows {
    events: Arc<Events>,
    shape: Shape,
    /// All columns of the shape.
    full: SchemaRef,
    /// The columns that the scan wants.
    projection: Vec<usize>,
    schema: SchemaRef,
    /// Make wanted columns only, or all and then choose.
    pushdown: bool,
    deal: Interleave,
    pattern: Arc<Pattern>,
    /// By split.
    spare: Vec<Mutex<Spare>>,
}

impl NexmarkRows {
    pub(super) fn try_new(
        events: Arc<Events>,
        shape: Shape,
        full: &SchemaRef,
        projection: &[usize],
        pushdown: bool,
        deal: Interleave,
    ) -> Result<Self, ArrowError> {
        Ok(Self {
            events,
            shape,
            schema: Arc::new(full.project(projection)?),
            full: Arc::clone(full),
            projection: projection.to_vec(),
            pushdown,
            deal,
            pattern: Arc::new(Pattern::new(PATTERN_ROWS)),
            spare: (0..deal.splits()).map(|_| Mutex::default()).collect(),
        })
    }

    /// Rows an epoch.
    fn width(&self) -> u64 {
        let offsets = self.shape.offsets();
        offsets.end - offsets.start
    }

    /// The row's epoch among all, and its place in the epoch. Splits are dealt whole epochs.
    fn place(&self, split: usize, row: u64) -> (u64, u64) {
        let event = self.deal.event(split, row / self.width() * EPOCH);
        (event / EPOCH, self.shape.offsets().start + row % self.width())
    }

    /// The runs that rows `first .. first + count` of a split are made of.
    fn runs(&self, split: usize, first: u64, count: usize) -> Vec<Run> {
        let offsets = self.shape.offsets();
        let width = self.width();
        let mut runs = Vec::with_capacity(count / width as usize + 2);
        let mut row = 0;
        while row < count {
            let (epoch, offset) = self.place(split, first + row as u64);
            let run = ((offsets.end - offset) as usize).min(count - row);
            runs.push(Run {
                epoch,
                offset,
                row,
                count: run,
            });
            row += run;
        }
        runs
    }

    fn columns(
        &self,
        wanted: &[usize],
        runs: &[Run],
        rows: usize,
        spare: &mut Spare,
    ) -> Result<Vec<ArrayRef>, ArrowError> {
        match self.shape {
            Shape::All => self.all(wanted, runs, rows, spare),
            Shape::Only(kind) => Ok(self.flat(kind, wanted, runs, rows, spare)),
        }
    }

    fn flat(&self, kind: Kind, wanted: &[usize], runs: &[Run], rows: usize, spare: &mut Spare) -> Vec<ArrayRef> {
        let ts = kind.columns().len();
        let own: Vec<usize> = wanted.iter().copied().filter(|column| *column < ts).collect();
        let mut made = match own.is_empty() {
            true => Vec::new(),
            false => self.events.columns(kind, own.into_iter(), runs, rows, None, spare),
        }
        .into_iter();
        let column = |column: &usize| match *column < ts {
            true => made.next(),
            false => Some(self.events.times(runs, rows, spare)),
        };
        wanted.iter().filter_map(column).collect()
    }

    fn all(&self, wanted: &[usize], runs: &[Run], rows: usize, spare: &mut Spare) -> Result<Vec<ArrayRef>, ArrowError> {
        let start = runs.first().map_or(0, |run| run.offset as usize);
        let larger;
        let pattern = match start + rows <= PATTERN_ROWS {
            true => self.pattern.as_ref(),
            false => {
                larger = Pattern::new(start + rows);
                &larger
            }
        };
        let structure = |kind: Kind, spare: &mut Spare| -> Result<ArrayRef, ArrowError> {
            let nulls = pattern.nulls(kind, start, rows);
            // The fields are NULL with the structure, so that it does not matter how a reader takes them out of it.
            let columns = self
                .events
                .columns(kind, 0..kind.columns().len(), runs, rows, Some(&nulls), spare);
            let made = StructArray::try_new(kind.fields(true), columns, Some(nulls))?;
            Ok(Arc::new(made))
        };
        let column = |column: &usize| match *column {
            0 => Ok(pattern.types(start, rows)),
            1 => structure(Kind::Person, spare),
            2 => structure(Kind::Auction, spare),
            3 => structure(Kind::Bid, spare),
            _ => Ok(self.events.times(runs, rows, spare)),
        };
        wanted.iter().map(column).collect()
    }
}

impl Rows for NexmarkRows {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn below(&self, split: usize, event: u64) -> u64 {
        let events = self.deal.below(split, event);
        let begun = (events % EPOCH).saturating_sub(self.shape.offsets().start);
        events / EPOCH * self.width() + begun.min(self.width())
    }

    fn event(&self, split: usize, row: u64) -> u64 {
        let (epoch, offset) = self.place(split, row);
        epoch * EPOCH + offset
    }

    fn layout(&self) -> String {
        self.deal.layout()
    }

    fn with_splits(&self, splits: usize) -> Option<Arc<dyn Rows>> {
        Some(Arc::new(Self {
            events: Arc::clone(&self.events),
            shape: self.shape,
            full: Arc::clone(&self.full),
            projection: self.projection.clone(),
            schema: Arc::clone(&self.schema),
            pushdown: self.pushdown,
            deal: self.deal.with_splits(splits),
            pattern: Arc::clone(&self.pattern),
            spare: (0..splits).map(|_| Mutex::default()).collect(),
        }))
    }

    fn batch(&self, split: usize, first: u64, count: usize) -> Result<RecordBatch, ArrowError> {
        let runs = self.runs(split, first, count);
        let spare = &mut *self.spare[split].lock();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        if self.pushdown {
            let columns = self.columns(&self.projection, &runs, count, spare)?;
            return RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options);
        }
        let every: Vec<usize> = (0..self.full.fields().len()).collect();
        let columns = self.columns(&every, &runs, count, spare)?;
        RecordBatch::try_new_with_options(Arc::clone(&self.full), columns, &options)?.project(&self.projection)
    }
}

/// What repeats with each epoch in the table of all events.
#[derive(Debug)]
struct Pattern {
    types: ScalarBuffer<i32>,
    valid: [BooleanBuffer; 3],
}

impl Pattern {
    fn new(rows: usize) -> Self {
        let of = |kind: Kind, row: usize| kind.offsets().contains(&(row as u64 % EPOCH));
        let types = (0..rows).map(|row| Kind::ALL.iter().position(|kind| of(*kind, row)).unwrap_or(0) as i32);
        Self {
            types: types.collect::<Vec<_>>().into(),
            valid: Kind::ALL.map(|kind| BooleanBuffer::collect_bool(rows, |row| of(kind, row))),
        }
    }

    fn types(&self, start: usize, rows: usize) -> ArrayRef {
        Arc::new(Int32Array::new(self.types.slice(start, rows), None))
    }

    fn nulls(&self, kind: Kind, start: usize, rows: usize) -> NullBuffer {
        NullBuffer::new(self.valid[kind as usize].slice(start, rows))
    }
}
