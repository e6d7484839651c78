//! Streaming mode: which queries run in it, how they are lowered, and how a result that changes is shown.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt8Type};
use datafusion::catalog::TableProvider;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::LogicalPlan;
use thalweg_engine::data::{RowKind, is_changelog, without_row_kind};
use thalweg_engine::plan::{JobGraph, OperatorSpec};
use thalweg_optimizer::StreamingOptions;
use thalweg_optimizer::logical::with_stable_names;

use crate::config::{RuntimeMode, SessionConfig};
use crate::error::{Error, Result};
use crate::result::QueryResult;
use crate::session::Session;

/// The first column of a result that changes: `+I`, `-U`, `+U`, `-D`.
const OP_COLUMN: &str = "op";

/// How long an exchange of a streaming job may hold rows back, in ms, unless set otherwise.
pub(crate) const STREAM_BUFFER_TIMEOUT_MS: i64 = 100;

impl Session {
    /// Whether a plan runs in streaming mode.
    pub(crate) fn is_streaming(&self, plan: &LogicalPlan) -> Result<bool> {
        match self.config().runtime_mode {
            RuntimeMode::Batch => {
                if self.is_unbounded(plan)? {
                    return Err(
                        Error::statement("a table of the query has no end, and batch mode waits for it")
                            .with_remedy("SET 'execution.runtime-mode' = 'streaming'"),
                    );
                }
                Ok(false)
            }
            RuntimeMode::Streaming => Ok(true),
            RuntimeMode::Automatic => self.is_unbounded(plan),
        }
    }

    /// Whether some table of the plan has no end.
    pub(crate) fn is_unbounded(&self, plan: &LogicalPlan) -> Result<bool> {
        let mut providers: Vec<Arc<dyn TableProvider>> = Vec::new();
        let mut plans = vec![plan.clone()];
        while let Some(plan) = plans.pop() {
            plan.apply_with_subqueries(|node| {
                if let LogicalPlan::TableScan(scan) = node
                    && let Ok(provider) = source_as_provider(&scan.source)
                {
                    match provider.get_logical_plan() {
                        Some(inner) => plans.push(inner.into_owned()),
                        None => providers.push(provider),
                    }
                }
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        let state = self.state();
        for provider in providers
            .iter()
            .filter(|provider| thalweg_connectors::may_be_unbounded(provider.as_ref()))
        {
            let plan = self.block_on(provider.scan(&state, None, &[], None))?;
            if plan.properties().boundedness.is_unbounded() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Optimizes a plan of streaming mode.
    pub(crate) fn optimize_streaming(&self, plan: &LogicalPlan) -> Result<LogicalPlan> {
        // Equal subtrees run once, and must therefore look the same.
        Ok(with_stable_names(self.state().optimize(plan)?)?)
    }

    /// Runs several INSERTs as one streaming job; the counts of their rows, in any order.
    pub(crate) fn run_streaming_set(&self, plans: &[LogicalPlan]) -> Result<QueryResult> {
        let mut resolved = Vec::with_capacity(plans.len());
        for plan in plans {
            resolved.push(self.resolve_scalar_subqueries(self.optimize_streaming(plan)?, true)?);
        }
        let graph = self.lower_streaming(&resolved)?;
        let schema = match resolved.first() {
            Some(plan) => Arc::new(plan.schema().as_arrow().clone()),
            None => Arc::new(Schema::empty()),
        };
        Ok(QueryResult::of_job(self.start(graph, true)?, schema))
    }

    /// Lowers plans without scalar subqueries to one streaming job.
    pub(crate) fn lower_streaming(&self, plans: &[LogicalPlan]) -> Result<JobGraph> {
        let state = self.state();
        let config = self.config();
        let mut options = self.lowering_options(&config);
        options.streaming = streaming_options(&config);
        Ok(self.block_on(thalweg_optimizer::lower_streaming(plans, &state, &options))?)
    }
}

fn streaming_options(config: &SessionConfig) -> StreamingOptions {
    let unless_zero = |ms: u64| Some(ms).filter(|ms| *ms > 0);
    StreamingOptions {
        state_ttl_ms: unless_zero(config.state_ttl_ms),
        watermark_interval_ms: config.watermark_interval_ms,
        idle_timeout_ms: unless_zero(config.idle_timeout_ms),
        max_drift_ms: config.max_drift_ms,
        checkpointed: config.checkpoints.directory.is_some(),
    }
}

/// The schema of a job's result as the client sees it: the row kind of a changelog becomes its first column, a text.
pub(crate) fn result_schema(graph: &JobGraph, logical: &SchemaRef) -> SchemaRef {
    let collected = graph
        .vertices
        .iter()
        .rev()
        .find_map(|vertex| match vertex.chain.last() {
            Some(OperatorSpec::Collect(collect)) => Some(&collect.schema.0),
            _ => None,
        });
    match collected {
        Some(schema) if is_changelog(schema) => {
            let op = Arc::new(Field::new(OP_COLUMN, DataType::Utf8, false));
            let columns = without_row_kind(schema);
            let named = columns
                .fields()
                .iter()
                .zip(logical.fields())
                .map(|(column, logical)| Arc::new(column.as_ref().clone().with_name(logical.name())));
            Arc::new(Schema::new([op].into_iter().chain(named).collect::<Vec<_>>()))
        }
        _ => Arc::clone(logical),
    }
}

/// A batch of a changelog as the client sees it; others as they are, and so are those of a program that wants the row kind
/// where its stream has it.
pub(crate) fn shown(batch: RecordBatch, schema: &SchemaRef) -> Result<RecordBatch> {
    if !is_changelog(batch.schema_ref()) || is_changelog(schema) {
        return Ok(batch);
    }
    let last = batch.num_columns() - 1;
    let kinds = batch.column(last).as_primitive::<UInt8Type>();
    let symbols: Vec<&str> = kinds
        .values()
        .iter()
        .map(|kind| Ok(RowKind::from_u8(*kind)?.symbol()))
        .collect::<Result<_>>()?;
    debug_assert_eq!(kinds.null_count(), 0);
    let op: ArrayRef = Arc::new(StringArray::from(symbols));
    let columns = [op].into_iter().chain(batch.columns()[..last].iter().cloned());
    Ok(RecordBatch::try_new(Arc::clone(schema), columns.collect())?)
}
