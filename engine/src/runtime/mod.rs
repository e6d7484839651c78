//! The runtime of one process: a [`crate::plan::JobGraph`] is expanded into subtasks, each runs on a thread of its
//! own, and the result is pulled through a [`JobHandle`].

mod attempts;
mod chain;
mod checkpointing;
mod deployment;
mod environment;
mod execution_graph;
mod job;
mod latency;
mod memory_pool;
mod metrics;
mod recovery;
mod restart;
mod subtask;
#[cfg(test)]
mod tests;

pub use checkpointing::{
    CheckpointStats, CheckpointSummary, Checkpointing, JobControl, OpenStore, SavepointEnding, StartFrom, StartState,
};
pub use environment::{Environment, Notices, ScanDiagnosis};
pub use execution_graph::{ExecutionGraph, Stage};
pub use job::{JobHandle, submit};
pub use latency::{LatencyHistogram, LatencyHistograms};
pub use memory_pool::BudgetPool;
pub use metrics::{JobMetrics, OperatorSummary, Progress};
pub use restart::RestartStrategy;
