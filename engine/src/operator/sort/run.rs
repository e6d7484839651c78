//! Runs: sorted parts of a sort's input, in memory or in a spill file, that can be read from any key on.

use std::cmp::Ordering;

use arrow::datatypes::SchemaRef;
use thalweg_memory::{Reservation, SpillFile, SpillReader, SpillWriter};

use crate::data::{Batch, Result, compact_views};
use crate::operator::Context;
use crate::operator::sort::entries::{Entry, place};
use crate::operator::sort::gather::Gather;
use crate::operator::sort::keys::{BatchKeys, KeyEncoder, OwnedKey};

/// A block never has more rows than this, however narrow they are.
const BLOCK_ROWS_MAX: usize = 1 << 16;

/// How large the blocks of runs are: large enough to be read and written in one go, small enough for one of each run to
/// fit into memory at the merge.
#[derive(Clone, Copy, Debug)]
pub(super) struct BlockSize {
    bytes: usize,
}

impl BlockSize {
    /// For an operator whose fair share of the budget is `share_bytes`.
    pub(super) fn for_share(share_bytes: usize) -> Self {
        Self {
            bytes: (share_bytes / 128).clamp(16 << 10, 1 << 20),
        }
    }

    pub(super) fn bytes(self) -> usize {
        self.bytes
    }

    /// So many blocks as one.
    pub(super) fn times(self, count: usize) -> Self {
        Self {
            bytes: self.bytes * count,
        }
    }

    /// Rows of a block, where so many rows take so many bytes.
    pub(super) fn rows(self, rows: usize, bytes: usize) -> usize {
        let row_bytes = bytes.div_ceil(rows.max(1)).max(1);
        (self.bytes / row_bytes).clamp(1, BLOCK_ROWS_MAX)
    }
}

/// A sorted part of the input.
pub(super) enum Run {
    Memory(MemoryRun),
    Spilled(SpilledRun),
}

/// Sorted rows that are still where they came in; they are gathered as they are read.
pub(super) struct MemoryRun {
    pub(super) gather: Gather,
    pub(super) order: Vec<Entry>,
    pub(super) block_rows: usize,
    /// The first key of each block.
    pub(super) firsts: Vec<OwnedKey>,
    pub(super) _memory: Reservation,
}

impl MemoryRun {
    /// The rows at positions `start..end` of the order.
    pub(super) fn rows(&self, start: usize, end: usize) -> Result<Batch> {
        let places: Vec<(usize, usize)> = self.order[start..end].iter().map(|entry| place(*entry)).collect();
        self.gather.take(&places)
    }
}

/// Sorted rows in a file.
pub(super) struct SpilledRun {
    file: SpillFile,
    /// The first key of each block.
    firsts: Vec<OwnedKey>,
    /// Rows of each block.
    rows: Vec<usize>,
    largest_batch_bytes: usize,
}

/// Writes sorted batches as a run.
pub(super) struct RunWriter {
    writer: SpillWriter,
    firsts: Vec<OwnedKey>,
    rows: Vec<usize>,
    largest_batch_bytes: usize,
}

impl RunWriter {
    pub(super) fn new(writer: SpillWriter) -> Self {
        Self {
            writer,
            firsts: Vec::new(),
            rows: Vec::new(),
            largest_batch_bytes: 0,
        }
    }

    /// Appends the next rows in order as one block.
    pub(super) fn write(&mut self, batch: Batch, encoder: &KeyEncoder, cx: &Context) -> Result<()> {
        let batch = compact_views(batch)?;
        let before = self.writer.bytes();
        self.firsts.push(encoder.encode(&batch.slice(0, 1))?.owned(0));
        self.rows.push(batch.num_rows());
        self.writer.write(&batch)?;
        let written = self.writer.bytes() - before;
        self.largest_batch_bytes = self.largest_batch_bytes.max(written as usize);
        cx.note_spilled(written);
        Ok(())
    }

    pub(super) fn finish(self) -> Result<SpilledRun> {
        Ok(SpilledRun {
            file: self.writer.finish()?,
            firsts: self.firsts,
            rows: self.rows,
            largest_batch_bytes: self.largest_batch_bytes,
        })
    }
}

impl Run {
    /// Bytes that reading one block takes.
    pub(super) fn block_bytes(&self) -> usize {
        match self {
            Run::Memory(run) => run.gather.row_bytes() * run.block_rows,
            Run::Spilled(run) => run.largest_batch_bytes,
        }
    }

    /// The schema of its rows.
    pub(super) fn schema(&self) -> &SchemaRef {
        match self {
            Run::Memory(run) => run.gather.schema(),
            Run::Spilled(run) => run.file.schema(),
        }
    }

    /// How many rows it has.
    pub(super) fn len(&self) -> usize {
        match self {
            Run::Memory(run) => run.order.len(),
            Run::Spilled(run) => run.rows.iter().sum(),
        }
    }

    /// Bytes of the index.
    pub(super) fn index_bytes(&self) -> usize {
        self.firsts().iter().map(OwnedKey::byte_size).sum()
    }

    /// The first key of each block with the block's rows: a sample of the run.
    pub(super) fn sample(&self) -> impl Iterator<Item = (&OwnedKey, usize)> {
        let rows = move |block: usize| match self {
            Run::Memory(run) => run.block_rows.min(run.order.len() - block * run.block_rows),
            Run::Spilled(run) => run.rows[block],
        };
        self.firsts()
            .iter()
            .enumerate()
            .map(move |(block, first)| (first, rows(block)))
    }

    fn firsts(&self) -> &[OwnedKey] {
        match self {
            Run::Memory(run) => &run.firsts,
            Run::Spilled(run) => &run.firsts,
        }
    }

    /// The first block that may hold keys from `low` on.
    fn block_of(&self, low: Option<&OwnedKey>, encoder: &KeyEncoder) -> usize {
        let Some(low) = low else { return 0 };
        // Kept keys are cut: what is less when cut is less, but what is equal may not be. So from the last block that
        // begins below `low` on.
        let after = |first: &OwnedKey| encoder.compare(first, low) == Ordering::Less;
        self.firsts().partition_point(after).saturating_sub(1)
    }
}

/// The keys from `low` (inclusive) to `high` (exclusive); open where `None`.
#[derive(Clone, Debug, Default)]
pub(super) struct KeyRange {
    pub(super) low: Option<OwnedKey>,
    pub(super) high: Option<OwnedKey>,
}

/// A piece of a run that is being merged.
pub(super) struct Cursor<R> {
    run: R,
    reader: Reader,
    range: KeyRange,
    /// The block at hand.
    pub(super) block: Option<Block>,
    pub(super) has_more: bool,
}

enum Reader {
    Memory { next: usize },
    Spilled(SpillReader),
}

/// Rows in order, those from `position` to `end` not merged yet.
pub(super) struct Block {
    pub(super) batch: Batch,
    pub(super) keys: BatchKeys,
    pub(super) position: usize,
    pub(super) end: usize,
}

impl<R: AsRef<Run>> Cursor<R> {
    pub(super) fn new(run: R, range: KeyRange, encoder: &KeyEncoder) -> Result<Self> {
        let start = run.as_ref().block_of(range.low.as_ref(), encoder);
        let reader = match run.as_ref() {
            Run::Memory(run) => Reader::Memory {
                next: start * run.block_rows,
            },
            Run::Spilled(run) => Reader::Spilled(run.file.open_at(start)?),
        };
        Ok(Self {
            run,
            reader,
            range,
            block: None,
            has_more: true,
        })
    }

    /// Makes sure that there are rows at hand, if there are any left.
    pub(super) fn fill(&mut self, encoder: &KeyEncoder) -> Result<()> {
        if self.block.as_ref().is_some_and(|block| block.position < block.end) {
            return Ok(());
        }
        self.block = None;
        while self.has_more && self.block.is_none() {
            let Some(batch) = self.next_batch()? else {
                self.has_more = false;
                return Ok(());
            };
            let keys = encoder.encode(&batch)?;
            let rows = batch.num_rows();
            let below = |key: &OwnedKey| partition_point(rows, |row| keys.compare_owned(row, key) == Ordering::Less);
            // The lower end has a say until the first row beyond it.
            let position = self.range.low.as_ref().map_or(0, below);
            let end = self.range.high.as_ref().map_or(rows, below);
            if position < rows {
                self.range.low = None;
            }
            self.has_more &= end == rows;
            if position < end {
                self.block = Some(Block {
                    batch,
                    keys,
                    position,
                    end,
                });
            }
        }
        Ok(())
    }

    fn next_batch(&mut self) -> Result<Option<Batch>> {
        match (&mut self.reader, self.run.as_ref()) {
            (Reader::Memory { next }, Run::Memory(run)) => {
                let (start, end) = (*next, (*next + run.block_rows).min(run.order.len()));
                *next = end;
                if end == run.order.len() {
                    self.has_more = false;
                }
                Ok(if start < end { Some(run.rows(start, end)?) } else { None })
            }
            (Reader::Spilled(reader), _) => {
                let batch = reader.next().transpose()?;
                self.has_more = reader.next_block_bytes() > 0;
                Ok(batch)
            }
            (Reader::Memory { .. }, Run::Spilled(_)) => Ok(None),
        }
    }
}

/// The first of `rows` rows for which `before` does not hold; it holds for all rows before that.
pub(super) fn partition_point(rows: usize, before: impl Fn(usize) -> bool) -> usize {
    let (mut low, mut high) = (0, rows);
    while low < high {
        let middle = low.midpoint(high);
        if before(middle) {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}
