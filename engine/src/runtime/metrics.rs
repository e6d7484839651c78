//! What a job counts, and how it is shown.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

use crate::operator::{OperatorMetrics, Splits};
use crate::plan::JobGraph;
use crate::runtime::checkpointing::CheckpointStats;
use crate::runtime::latency::LatencyHistograms;

/// The counters of all operators of a job, by vertex and place in the chain.
#[derive(Debug)]
pub struct JobMetrics {
    names: Vec<Vec<&'static str>>,
    subtasks: RwLock<Vec<Vec<Vec<Arc<OperatorMetrics>>>>>,
    splits: RwLock<Vec<Arc<Splits>>>,
    /// Bytes that blocking exchanges wrote to disk.
    pub(crate) exchange_spilled_bytes: AtomicU64,
    /// What the latency markers measured.
    pub(crate) latencies: Arc<LatencyHistograms>,
    /// What the checkpoints have been.
    pub(crate) checkpoints: Arc<Mutex<CheckpointStats>>,
}

/// One operator over all its subtasks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OperatorSummary {
    /// Rows taken.
    pub rows_in: u64,
    /// Rows handed on.
    pub rows_out: u64,
    /// Batches handed on.
    pub batches_out: u64,
    /// Bytes handed on, by a scan only: to measure strings takes time.
    pub bytes_out: u64,
    /// Nanoseconds inside the operator, added over the subtasks.
    pub busy_ns: u64,
    /// The most bytes held at once, added over the subtasks.
    pub peak_memory_bytes: u64,
    /// Bytes spilled.
    pub spilled_bytes: u64,
    /// Rows that came too late and were dropped.
    pub late_rows: u64,
    /// Records that could not be read and were skipped.
    pub bad_records: u64,
}

/// How far a job has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Rows read by the sources.
    pub rows_read: u64,
    /// Bytes of those rows in memory.
    pub bytes_read: u64,
    /// Splits handed out.
    pub splits_taken: usize,
    /// Splits in all.
    pub splits_total: usize,
    /// Bytes that operators and blocking exchanges spilled.
    pub spilled_bytes: u64,
}

impl JobMetrics {
    pub(crate) fn new(graph: &JobGraph) -> Self {
        let names = graph
            .vertices
            .iter()
            .map(|vertex| vertex.chain.iter().map(|spec| spec.name()).collect());
        Self {
            names: names.collect(),
            subtasks: RwLock::new(vec![Vec::new(); graph.vertices.len()]),
            splits: RwLock::default(),
            exchange_spilled_bytes: AtomicU64::new(0),
            latencies: Arc::default(),
            checkpoints: Arc::default(),
        }
    }

    pub(crate) fn add_subtask(&self, vertex: usize, operators: Vec<Arc<OperatorMetrics>>) {
        self.subtasks.write()[vertex].push(operators);
    }

    pub(crate) fn add_splits(&self, splits: Arc<Splits>) {
        self.splits.write().push(splits);
    }

    /// The operator at `place` in the chain of `vertex`.
    pub fn operator(&self, vertex: usize, place: usize) -> OperatorSummary {
        let mut sum = OperatorSummary::default();
        for operators in &self.subtasks.read()[vertex] {
            let Some(metrics) = operators.get(place) else { continue };
            let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
            // The counter includes the operators after it, which are called from inside it (a scan calls nobody).
            let is_scan = self.names[vertex].get(place) == Some(&"Scan");
            let next = operators.get(place + 1).filter(|_| !is_scan);
            let nested = next.map_or(0, |next| get(&next.busy_ns));
            sum.rows_in += get(&metrics.rows_in);
            sum.rows_out += get(&metrics.rows_out);
            sum.batches_out += get(&metrics.batches_out);
            sum.bytes_out += get(&metrics.bytes_out);
            sum.busy_ns += get(&metrics.busy_ns).saturating_sub(nested);
            sum.peak_memory_bytes += get(&metrics.peak_memory_bytes);
            sum.spilled_bytes += get(&metrics.spilled_bytes);
            sum.late_rows += get(&metrics.late_rows);
            sum.bad_records += get(&metrics.bad_records);
        }
        sum
    }

    /// What the latency markers measured, from source to sink.
    pub fn latencies(&self) -> &LatencyHistograms {
        &self.latencies
    }

    /// What the job's checkpoints have been so far.
    pub fn checkpoints(&self) -> CheckpointStats {
        self.checkpoints.lock().clone()
    }

    /// Bytes that blocking exchanges wrote to disk.
    pub fn exchange_spilled_bytes(&self) -> u64 {
        self.exchange_spilled_bytes.load(Ordering::Relaxed)
    }

    /// How far the sources have come, and what was spilled.
    pub fn progress(&self) -> Progress {
        let mut progress = Progress {
            spilled_bytes: self.exchange_spilled_bytes(),
            ..Progress::default()
        };
        for (vertex, names) in self.names.iter().enumerate() {
            let spilled = (0..names.len()).map(|place| self.operator(vertex, place).spilled_bytes);
            progress.spilled_bytes += spilled.sum::<u64>();
            if names.first() == Some(&"Scan") {
                let scan = self.operator(vertex, 0);
                progress.rows_read += scan.rows_out;
                progress.bytes_read += scan.bytes_out;
            }
        }
        for splits in self.splits.read().iter() {
            progress.splits_taken += splits.taken();
            progress.splits_total += splits.count();
        }
        progress
    }
}
