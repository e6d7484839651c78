//! What the runtime lends an operator for the time of a call.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use datafusion::execution::TaskContext;
use thalweg_memory::{Reservation, SpillDirectory};

use crate::exchange::CancelToken;
use crate::operator::RuntimeFilters;
use crate::time::Clock;

/// What the runtime lends an operator.
pub struct Context {
    /// The operator's name, e.g. `HashJoin [3]`.
    pub operator: String,
    /// Which subtask this is, from 0.
    pub subtask: usize,
    /// How many subtasks the vertex has.
    pub parallelism: usize,
    /// Rows that an output batch should have.
    pub batch_size: usize,
    /// Bytes that an output batch should not pass by much, however few rows that are.
    pub batch_bytes: usize,
    /// For functions and scans of DataFusion.
    pub task: Arc<TaskContext>,
    /// Where I/O runs.
    pub io: tokio::runtime::Handle,
    /// Processing time.
    pub clock: Arc<dyn Clock>,
    /// The operator's share of the memory budget.
    pub memory: Reservation,
    /// Where the job's spill files go.
    pub spill: Arc<SpillDirectory>,
    /// Where joins tell the scans which keys can match.
    pub filters: Arc<RuntimeFilters>,
    /// Whether the job is a streaming one: rows are handed on at once rather than gathered until a batch is full, and never
    /// overtaken by a watermark.
    pub streaming: bool,
    /// What the operator counts.
    pub metrics: Arc<OperatorMetrics>,
    /// Set when the job is to end; long loops look at it.
    pub cancel: CancelToken,
}

impl Context {
    /// Books `bytes` in all (what the operator holds now) and keeps the metric.
    ///
    /// # Errors
    /// When the budget is exhausted.
    pub fn hold(&mut self, bytes: usize) -> crate::data::Result<()> {
        self.memory.try_resize(bytes)?;
        self.note_peak();
        Ok(())
    }

    /// Books `bytes` in all even beyond the budget: for the little without which the operator cannot go on.
    pub fn hold_anyway(&mut self, bytes: usize) {
        self.memory.resize(bytes);
        self.note_peak();
    }

    /// Notes that `bytes` went to a spill file.
    pub fn note_spilled(&self, bytes: u64) {
        self.metrics.spilled_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The same context with an empty reservation of its own: for a part of the operator that keeps its own account.
    pub fn part(&self) -> Context {
        Context {
            operator: self.operator.clone(),
            subtask: self.subtask,
            parallelism: self.parallelism,
            batch_size: self.batch_size,
            batch_bytes: self.batch_bytes,
            task: Arc::clone(&self.task),
            io: self.io.clone(),
            clock: Arc::clone(&self.clock),
            memory: self.memory.sibling(),
            spill: Arc::clone(&self.spill),
            filters: Arc::clone(&self.filters),
            streaming: self.streaming,
            metrics: Arc::clone(&self.metrics),
            cancel: self.cancel.clone(),
        }
    }

    fn note_peak(&self) {
        self.metrics
            .peak_memory_bytes
            .fetch_max(self.memory.peak_bytes() as u64, Ordering::Relaxed);
    }
}

/// Counters of one operator in one subtask.
#[derive(Debug, Default)]
pub struct OperatorMetrics {
    /// Rows taken.
    pub rows_in: AtomicU64,
    /// Rows handed on.
    pub rows_out: AtomicU64,
    /// Batches handed on.
    pub batches_out: AtomicU64,
    /// Bytes handed on, by a scan only: to measure strings takes time.
    pub bytes_out: AtomicU64,
    /// Nanoseconds inside the operator, without the operators after it.
    pub busy_ns: AtomicU64,
    /// The most bytes held at once.
    pub peak_memory_bytes: AtomicU64,
    /// Bytes written to spill files.
    pub spilled_bytes: AtomicU64,
    /// Rows that came too late and were dropped.
    pub late_rows: AtomicU64,
    /// Records that could not be read and were skipped.
    pub bad_records: AtomicU64,
}
