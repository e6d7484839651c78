//! Batches of made-up rows, and which split makes which rows.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::compute::concat;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};

use crate::datagen::column::Column;
use crate::generate::{Interleave, Rows};

const RANGE_ROWS_MIN: u64 = 65_536;
const RANGE_ROWS_MAX: u64 = 1 << 20;

/// Which split makes which rows.
#[derive(Clone, Copy, Debug)]
pub(super) enum Deal {
    /// Each a range of so many rows, of a table of `rows`.
    Ranges { rows: u64, length: u64 },
    /// By turns.
    Interleaved(Interleave),
}

impl Deal {
    pub(super) fn ranges(rows: u64) -> Self {
        Self::Ranges {
            rows,
            length: rows.div_ceil(64).clamp(RANGE_ROWS_MIN, RANGE_ROWS_MAX),
        }
    }

    pub(super) fn splits(self) -> usize {
        match self {
            Self::Ranges { rows, length } => rows.div_ceil(length).max(1) as usize,
            Self::Interleaved(deal) => deal.splits(),
        }
    }

    fn with_splits(self, splits: usize) -> Option<Self> {
        match self {
            Self::Ranges { .. } => (self.splits() == splits).then_some(self),
            Self::Interleaved(deal) => Some(Self::Interleaved(deal.with_splits(splits))),
        }
    }

    fn layout(self) -> String {
        match self {
            Self::Ranges { length, .. } => format!("ranges of {length}"),
            Self::Interleaved(deal) => deal.layout(),
        }
    }

    fn row(self, split: usize, local: u64) -> u64 {
        match self {
            Self::Ranges { length, .. } => split as u64 * length + local,
            Self::Interleaved(deal) => deal.event(split, local),
        }
    }

    fn below(self, split: usize, row: u64) -> u64 {
        match self {
            Self::Ranges { length, .. } => row.saturating_sub(split as u64 * length).min(length),
            Self::Interleaved(deal) => deal.below(split, row),
        }
    }

    /// How many rows follow one another from a split's `local`-th on.
    fn stretch(self, local: u64) -> u64 {
        match self {
            Self::Ranges { .. } => u64::MAX,
            Self::Interleaved(deal) => deal.left_in_block(local),
        }
    }
}

/// The rows of a scan.
#[derive(Debug)]
pub(super) struct DatagenRows {
    columns: Arc<Vec<Column>>,
    projection: Vec<usize>,
    schema: SchemaRef,
    deal: Deal,
}

impl DatagenRows {
    pub(super) fn try_new(
        schema: &SchemaRef,
        columns: Arc<Vec<Column>>,
        projection: Vec<usize>,
        deal: Deal,
    ) -> Result<Self, ArrowError> {
        Ok(Self {
            columns,
            schema: Arc::new(schema.project(&projection)?),
            projection,
            deal,
        })
    }

    /// The stretches of consecutive rows in a batch: the first row, and how many.
    fn stretches(&self, split: usize, first: u64, count: usize) -> Vec<(u64, usize)> {
        let mut stretches = Vec::new();
        let mut done = 0;
        while done < count {
            let local = first + done as u64;
            let length = self.deal.stretch(local).min((count - done) as u64) as usize;
            stretches.push((self.deal.row(split, local), length));
            done += length;
        }
        stretches
    }
}

impl Rows for DatagenRows {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn below(&self, split: usize, event: u64) -> u64 {
        self.deal.below(split, event)
    }

    fn event(&self, split: usize, row: u64) -> u64 {
        self.deal.row(split, row)
    }

    fn layout(&self) -> String {
        self.deal.layout()
    }

    fn with_splits(&self, splits: usize) -> Option<Arc<dyn Rows>> {
        Some(Arc::new(Self {
            columns: Arc::clone(&self.columns),
            projection: self.projection.clone(),
            schema: Arc::clone(&self.schema),
            deal: self.deal.with_splits(splits)?,
        }))
    }

    fn batch(&self, split: usize, first: u64, count: usize) -> Result<RecordBatch, ArrowError> {
        let stretches = self.stretches(split, first, count);
        let values = |column: &usize| -> Result<ArrayRef, ArrowError> {
            let column = &self.columns[*column];
            if let [(row, count)] = stretches[..] {
                return column.values(row, count);
            }
            let parts = stretches.iter().map(|(row, count)| column.values(*row, *count));
            let parts = parts.collect::<Result<Vec<_>, _>>()?;
            concat(&parts.iter().map(AsRef::as_ref).collect::<Vec<_>>())
        };
        let columns = self.projection.iter().map(values).collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        RecordBatch::try_new_with_options(Arc::clone(&self.schema), columns, &options)
    }
}
