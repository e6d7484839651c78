//! Thalweg's optimizer: DataFusion's optimized logical plan in, [`JobGraph`] out.
//!
//! [`lower`] chooses ship strategies (forward, hash, broadcast, global) and local strategies (build side, one or two
//! phases, sort or reuse of an order) from what is known of each intermediate stream: how it is partitioned, how it is
//! sorted, and how large it is. Scalar subqueries are jobs of their own that the session runs first:
//! [`uncorrelated_scalar_subqueries`] finds them, [`substitute`] puts their values in. First of all [`lower`] takes
//! the length of strings below a join when nothing else of them is wanted above it (`narrow.rs`).
//!
//! A plan becomes a tree of vertices: no vertex feeds two others. Reading a join's build side before its probe side can
//! therefore never wait on itself.

mod estimate;
mod explain;
pub mod logical;
mod lower;
mod narrow;
mod properties;
mod subquery;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::common::TableReference;
use datafusion::execution::SessionState;
use datafusion::logical_expr::LogicalPlan;
use datafusion::logical_expr::dml::CopyTo;
use thalweg_engine::Result;
use thalweg_engine::plan::{JobGraph, SinkSpec};

pub use explain::{explain, explain_with};
pub use subquery::{substitute, uncorrelated_scalar_subqueries};

/// Tells which connector writes what.
pub trait SinkResolver: fmt::Debug + Send + Sync {
    /// The sink of a `COPY .. TO`.
    ///
    /// # Errors
    /// When no connector writes this format or place.
    fn copy(&self, copy: &CopyTo) -> Result<SinkSpec>;

    /// The sink of an `INSERT INTO`; `None` when the table is not ours and inserts by itself.
    ///
    /// # Errors
    /// When the table cannot be written to.
    fn insert(
        &self,
        table: &TableReference,
        provider: &Arc<dyn TableProvider>,
        input_schema: &SchemaRef,
    ) -> Result<Option<SinkSpec>>;

    /// The most subtasks that may write to `sink` (a single file has one writer); any number when `None`.
    ///
    /// # Errors
    /// When the sink's options are wrong.
    fn max_writers(&self, sink: &SinkSpec) -> Result<Option<usize>>;

    /// The columns of `sink` whose rows take the place of those with the same values in them. None for a sink that only adds
    /// rows.
    ///
    /// # Errors
    /// When the sink's options are wrong.
    fn key(&self, _sink: &SinkSpec) -> Result<Vec<usize>> {
        Ok(Vec::new())
    }

    /// Which rows `sink` takes.
    ///
    /// # Errors
    /// When the sink's options are wrong.
    fn changelog(&self, sink: &SinkSpec) -> Result<SinkChangelog>;
}

/// Which rows a sink takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SinkChangelog {
    /// Insertions only.
    Insertions,
    /// Rows of every kind.
    All,
}

/// What streaming queries need beyond the plan.
#[derive(Clone, Debug, Default)]
pub struct StreamingOptions {
    /// State that has not changed for so long is forgotten; kept for ever when `None`.
    pub state_ttl_ms: Option<u64>,
    /// How often sources hand on a watermark; 0 = with each batch.
    pub watermark_interval_ms: u64,
    /// A split that has been silent for so long holds back no watermark.
    pub idle_timeout_ms: Option<u64>,
    /// How far a split may be ahead of the slowest.
    pub max_drift_ms: Option<u64>,
    /// Whether the job's state must survive it, also with another parallelism: rows are then where their keys' groups are, and a
    /// plan has the same operators with state whatever the parallelism.
    pub checkpointed: bool,
}

/// What [`lower`] needs to know beyond the plan.
#[derive(Clone, Debug)]
pub struct LoweringOptions {
    /// Subtasks of a vertex that has enough to do.
    pub parallelism: usize,
    /// A join's build side up to this size is sent to every subtask.
    pub broadcast_threshold_bytes: usize,
    /// Whether exchanges that redistribute rows are materialised, so that they can be replayed.
    pub blocking_exchanges: bool,
    /// Whether the build sides of joins tell the scans of the probe sides which keys can match.
    pub runtime_filters: bool,
    /// Only scans of so many rows look at such filters. With 0 every scan does that may, whatever the estimates say.
    pub runtime_filter_min_rows: usize,
    /// Who resolves the targets of writes.
    pub sink_resolver: Arc<dyn SinkResolver>,
    /// What only streaming queries look at.
    pub streaming: StreamingOptions,
}

impl LoweringOptions {
    /// The default of `broadcast_threshold_bytes`: a hash table of this size is built in a few milliseconds.
    pub const BROADCAST_THRESHOLD_BYTES: usize = 16 << 20;

    /// The default of `runtime_filter_min_rows`: fewer rows are shipped in less time than a filter takes.
    pub const RUNTIME_FILTER_MIN_ROWS: usize = 100_000;

    /// Pipelined exchanges, runtime filters where they pay, and the default broadcast threshold.
    pub fn new(parallelism: usize, sink_resolver: Arc<dyn SinkResolver>) -> Self {
        Self {
            parallelism: parallelism.max(1),
            broadcast_threshold_bytes: Self::BROADCAST_THRESHOLD_BYTES,
            blocking_exchanges: false,
            runtime_filters: true,
            runtime_filter_min_rows: Self::RUNTIME_FILTER_MIN_ROWS,
            sink_resolver,
            streaming: StreamingOptions::default(),
        }
    }
}

/// Lowers an optimized logical plan. The last vertex has parallelism 1 and ends in `Collect`; of a write it collects the
/// count of rows written.
///
/// # Errors
/// When the plan holds a node or an expression that has no lowering; the error names it.
pub async fn lower(plan: &LogicalPlan, session: &SessionState, options: &LoweringOptions) -> Result<JobGraph> {
    let narrowed = narrow::narrow(plan)?;
    let plan = narrowed.as_ref().unwrap_or(plan);
    lower::Lowering::new(session, options).run(plan).await
}

/// Lowers optimized logical plans to one streaming job: a query, or several INSERTs that share what they have in common.
/// The last vertex has parallelism 1 and ends in `Collect`; a result that changes has the row kind as its last column.
///
/// # Errors
/// When a plan has no form in which it can run on streams; the error says why.
pub async fn lower_streaming(
    plans: &[LogicalPlan],
    session: &SessionState,
    options: &LoweringOptions,
) -> Result<JobGraph> {
    lower::Lowering::new(session, options).run_streaming(plans).await
}
