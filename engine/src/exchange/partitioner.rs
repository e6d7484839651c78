//! [`Partitioner`]: which rows of a batch go to which channel, for all rows at once.

use std::sync::Arc;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::row::{OwnedRow, RowConverter, SortField};

use crate::data::{Batch, EngineError, Result, hash_rows, subtask_of_hash};
use crate::plan::{Partitioning, ScalarExpr, SortKey};

pub use crate::state::MAX_PARALLELISM;

/// Splits batches over the channels of one producing subtask.
pub enum Partitioner {
    /// Everything to one channel.
    One(usize),
    /// Everything to every channel.
    All,
    /// Whole batches in turn.
    Rotate {
        /// The channel of the next batch.
        next: usize,
    },
    /// Rows by the key group of the hash of their keys.
    Hash(HashPartitioner),
    /// Rows by their place between the bounds of an order.
    Range(RangePartitioner),
    /// Rows by a function of the program.
    Custom(CustomPartitioner),
}

/// A function that appends the channel of each row of a batch, of so many channels.
pub type PartitionFunction = dyn Fn(&Batch, usize, &mut Vec<u32>) -> Result<()> + Send + Sync;

/// What [`Partitioning::Custom`] holds.
pub struct CustomPartition(pub Arc<PartitionFunction>);

/// See [`Partitioner::Custom`].
pub struct CustomPartitioner {
    function: Arc<PartitionFunction>,
    split: Split,
}

/// See [`Partitioner::Hash`].
pub struct HashPartitioner {
    keys: Vec<ScalarExpr>,
    hashes: Vec<u64>,
    split: Split,
}

/// See [`Partitioner::Range`].
pub struct RangePartitioner {
    keys: Vec<SortKey>,
    converter: RowConverter,
    bounds: Vec<OwnedRow>,
    split: Split,
}

/// Rows sorted by target with a counting sort; the vectors are kept for the next batch.
#[derive(Default)]
struct Split {
    targets: Vec<u32>,
}

impl Split {
    fn apply(&self, batch: &Batch, channels: usize, emit: &mut dyn FnMut(usize, Batch) -> Result<()>) -> Result<()> {
        let mut ends = vec![0usize; channels + 1];
        for target in &self.targets {
            ends[*target as usize + 1] += 1;
        }
        if let Some(only) = (0..channels).find(|channel| ends[channel + 1] == batch.num_rows()) {
            return emit(only, batch.clone());
        }
        for channel in 0..channels {
            ends[channel + 1] += ends[channel];
        }
        let mut rows = vec![0u32; batch.num_rows()];
        let mut cursors = ends.clone();
        for (row, target) in self.targets.iter().enumerate() {
            let cursor = &mut cursors[*target as usize];
            rows[*cursor] = row as u32;
            *cursor += 1;
        }
        let rows = UInt32Array::from(rows);
        for channel in 0..channels {
            let (start, end) = (ends[channel], ends[channel + 1]);
            if start < end {
                emit(channel, take_record_batch(batch, &rows.slice(start, end - start))?)?;
            }
        }
        Ok(())
    }
}

impl Partitioner {
    /// For producing subtask `from` of an edge to `channels` subtasks.
    ///
    /// # Errors
    /// When the bounds of a range do not fit its keys.
    pub fn new(partitioning: &Partitioning, from: usize, channels: usize) -> Result<Self> {
        Ok(match partitioning {
            // A forward edge has one channel, to the subtask of the same number.
            Partitioning::Forward | Partitioning::Global => Partitioner::One(0),
            Partitioning::Broadcast => Partitioner::All,
            Partitioning::Rebalance => Partitioner::Rotate { next: from % channels },
            Partitioning::Hash(_) | Partitioning::Range { .. } if channels == 1 => Partitioner::One(0),
            Partitioning::Hash(keys) => Partitioner::Hash(HashPartitioner {
                keys: keys.clone(),
                hashes: Vec::new(),
                split: Split::default(),
            }),
            Partitioning::Custom(function) => {
                let function = function.0.downcast_ref::<CustomPartition>();
                let function = function.ok_or_else(|| EngineError::Internal("no partition function".into()))?;
                Partitioner::Custom(CustomPartitioner {
                    function: Arc::clone(&function.0),
                    split: Split::default(),
                })
            }
            Partitioning::Range { keys, bounds } => Partitioner::Range(RangePartitioner::new(keys, bounds)?),
        })
    }

    /// Hands each part of `batch` to `emit` with its channel.
    ///
    /// # Errors
    /// When a key cannot be computed, or what `emit` fails with.
    pub fn partition(
        &mut self,
        batch: Batch,
        channels: usize,
        emit: &mut dyn FnMut(usize, Batch) -> Result<()>,
    ) -> Result<()> {
        match self {
            Partitioner::One(channel) => emit(*channel, batch),
            Partitioner::All => (0..channels).try_for_each(|channel| emit(channel, batch.clone())),
            Partitioner::Rotate { next } => {
                let channel = *next;
                *next = (channel + 1) % channels;
                emit(channel, batch)
            }
            Partitioner::Hash(hash) => hash.partition(&batch, channels, emit),
            Partitioner::Range(range) => range.partition(&batch, channels, emit),
            Partitioner::Custom(custom) => custom.partition(&batch, channels, emit),
        }
    }
}

impl HashPartitioner {
    fn partition(
        &mut self,
        batch: &Batch,
        channels: usize,
        emit: &mut dyn FnMut(usize, Batch) -> Result<()>,
    ) -> Result<()> {
        let keys = evaluate(self.keys.iter(), batch)?;
        hash_rows(&keys, batch.num_rows(), &mut self.hashes)?;
        self.split.targets.clear();
        let targets = self
            .hashes
            .iter()
            .map(|hash| subtask_of_hash(*hash, MAX_PARALLELISM, channels) as u32);
        self.split.targets.extend(targets);
        self.split.apply(batch, channels, emit)
    }
}

impl CustomPartitioner {
    fn partition(
        &mut self,
        batch: &Batch,
        channels: usize,
        emit: &mut dyn FnMut(usize, Batch) -> Result<()>,
    ) -> Result<()> {
        let targets = &mut self.split.targets;
        targets.clear();
        (self.function)(batch, channels, targets)?;
        let wrong = targets.iter().find(|target| **target as usize >= channels);
        if let Some(wrong) = wrong {
            return Err(EngineError::Plan(format!(
                "a partition function sent a row to subtask {wrong} of {channels}"
            )));
        }
        if targets.len() != batch.num_rows() {
            return Err(EngineError::Plan(format!(
                "a partition function gave {} subtasks for {} rows",
                targets.len(),
                batch.num_rows()
            )));
        }
        self.split.apply(batch, channels, emit)
    }
}

impl RangePartitioner {
    fn new(keys: &[SortKey], bounds: &[Vec<ScalarExpr>]) -> Result<Self> {
        let fields = keys
            .iter()
            .map(|key| {
                let data_type = key.expr.expr.data_type(&key.expr.input)?;
                Ok(SortField::new_with_options(data_type, key.options()))
            })
            .collect::<Result<Vec<_>>>()?;
        let converter = RowConverter::new(fields)?;
        let one_row = Batch::try_new_with_options(
            std::sync::Arc::new(arrow::datatypes::Schema::empty()),
            vec![],
            &arrow::array::RecordBatchOptions::new().with_row_count(Some(1)),
        )?;
        let bounds = bounds
            .iter()
            .map(|bound| {
                Ok(converter
                    .convert_columns(&evaluate(bound.iter(), &one_row)?)?
                    .row(0)
                    .owned())
            })
            .collect::<Result<Vec<_>>>()?;
        if !bounds.is_sorted() {
            return Err(EngineError::Plan(
                "the bounds of a range partitioning are not in its order".into(),
            ));
        }
        Ok(Self {
            keys: keys.to_vec(),
            converter,
            bounds,
            split: Split::default(),
        })
    }

    fn partition(
        &mut self,
        batch: &Batch,
        channels: usize,
        emit: &mut dyn FnMut(usize, Batch) -> Result<()>,
    ) -> Result<()> {
        let keys = evaluate(self.keys.iter().map(|key| &key.expr), batch)?;
        let rows = self.converter.convert_columns(&keys)?;
        self.split.targets.clear();
        let bounds = &self.bounds;
        let targets = rows
            .iter()
            .map(|row| bounds.partition_point(|bound| bound.row() < row) as u32);
        self.split.targets.extend(targets);
        self.split.apply(batch, channels, emit)
    }
}

fn evaluate<'a>(exprs: impl Iterator<Item = &'a ScalarExpr>, batch: &Batch) -> Result<Vec<ArrayRef>> {
    exprs
        .map(|key| Ok(key.expr.evaluate(batch)?.into_array(batch.num_rows())?))
        .collect()
}
