//! The lowering of streaming queries: a walk over the same logical plans, whose streams have time attributes, windows
//! and changelogs.
//!
//! A query runs over streams that may never end, so each node becomes an operator that keeps state and tells what has
//! changed. Where the plan shows that state is bounded by time (windows, intervals between times), the operator that
//! frees it by the watermark is chosen; everything else becomes a changelog. What has no such operator is refused here
//! with the reason. Subtrees that occur more than once are lowered once and feed all their consumers.

mod aggregate;
mod flow;
mod interval;
mod join;
mod over;
mod rank;
mod row_wise;
mod scan;
mod sink;
mod sort;

use std::collections::{HashMap, HashSet};

use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::LogicalPlan;
use thalweg_engine::plan::{JobGraph, OperatorSpec, VertexId};
use thalweg_engine::{EngineError, Result};

use super::{Lowering, not_a_query};
use crate::logical::{TemporalTable, WatermarkNode, WindowTvf, as_node};
use flow::Flow;

/// What the lowering of a streaming query remembers.
#[derive(Default)]
pub(crate) struct Streaming {
    /// Subtrees that occur more than once.
    repeated: HashSet<LogicalPlan>,
    /// What has become of them.
    lowered: HashMap<LogicalPlan, Flow>,
    /// Vertices that have several consumers, or will have: nothing is chained to them.
    pub(super) closed: HashSet<VertexId>,
}

impl Lowering<'_> {
    /// Lowers queries and inserts that run as one job.
    pub(crate) async fn run_streaming(mut self, plans: &[LogicalPlan]) -> Result<JobGraph> {
        self.streaming.repeated = repeated(plans)?;
        let mut flows = Vec::with_capacity(plans.len());
        for plan in plans {
            flows.push(self.flow(plan).await?);
        }
        let mut flows = flows.into_iter();
        let Some(first) = flows.next() else {
            return Err(EngineError::Plan("a statement set needs at least one INSERT".into()));
        };
        let all = flows.fold(first.stream, |mut all, flow| {
            all.tails.extend(flow.stream.tails);
            all
        });
        self.collect(all)?;
        self.drop_unused_watermarks();
        self.name_vertices();
        self.graph
            .validate()
            .map_err(|e| EngineError::Internal(format!("the lowering built a wrong graph: {e}")))?;
        Ok(self.graph)
    }

    /// Lowers a subtree, once if it occurs more than once.
    async fn flow(&mut self, node: &LogicalPlan) -> Result<Flow> {
        if !self.streaming.repeated.contains(node) {
            return Box::pin(self.lower_stream_node(node)).await;
        }
        if let Some(flow) = self.streaming.lowered.get(node) {
            return Ok(flow.clone());
        }
        let flow = Box::pin(self.lower_stream_node(node)).await?;
        self.streaming.closed.extend(flow.stream.tails.iter().copied());
        self.streaming.lowered.insert(node.clone(), flow.clone());
        Ok(flow)
    }

    /// Lowers a subtree for itself, even if it occurs elsewhere. A lookup table is read to its end before the other side of
    /// its join: a scan that fed both would wait for itself.
    async fn flow_apart(&mut self, node: &LogicalPlan) -> Result<Flow> {
        let repeated = std::mem::take(&mut self.streaming.repeated);
        let flow = self.flow(node).await;
        self.streaming.repeated = repeated;
        flow
    }

    async fn lower_stream_node(&mut self, node: &LogicalPlan) -> Result<Flow> {
        match node {
            LogicalPlan::TableScan(scan) => self.stream_scan(scan).await,
            LogicalPlan::Values(values) => Ok(Flow::new(self.values(values)?, true)),
            LogicalPlan::EmptyRelation(empty) => Ok(Flow::new(self.empty_relation(empty)?, true)),
            LogicalPlan::SubqueryAlias(alias) => self.flow(&alias.input).await,
            LogicalPlan::Filter(filter) => self.stream_filter(filter, true).await,
            LogicalPlan::Projection(projection) => self.stream_projection(projection).await,
            LogicalPlan::Unnest(unnest) => self.stream_unnest(unnest).await,
            LogicalPlan::Aggregate(aggregate) => self.stream_aggregate(aggregate).await,
            LogicalPlan::Join(join) => self.stream_join(join).await,
            LogicalPlan::Union(union) => self.stream_union(union).await,
            LogicalPlan::Window(window) => self.stream_over(window).await,
            LogicalPlan::Sort(sort) => self.stream_sort(sort).await,
            LogicalPlan::Limit(limit) => self.stream_limit(limit).await,
            LogicalPlan::Repartition(repartition) => self.flow(&repartition.input).await,
            LogicalPlan::Dml(dml) => self.stream_insert(dml).await,
            LogicalPlan::Copy(copy) => self.stream_copy(copy).await,
            LogicalPlan::Extension(_) => self.streaming_extension(node).await,
            LogicalPlan::RecursiveQuery(_) => Err(refused(
                "a recursive query",
                "it has no meaning before its input ends; SET 'execution.runtime-mode' = 'batch'",
            )),
            LogicalPlan::DescribeTable(describe) => Ok(Flow::new(self.describe_table(describe)?, true)),
            other => Err(not_a_query(other)),
        }
    }

    async fn streaming_extension(&mut self, node: &LogicalPlan) -> Result<Flow> {
        if let Some(watermark) = as_node::<WatermarkNode>(node) {
            return self.stream_watermark(watermark).await;
        }
        if let Some(window) = as_node::<WindowTvf>(node) {
            return self.stream_window_tvf(window).await;
        }
        if let Some(table) = as_node::<TemporalTable>(node) {
            return self.flow(table.input()).await;
        }
        Err(not_a_query(node))
    }

    /// A query that looks at no time needs no watermarks.
    fn drop_unused_watermarks(&mut self) {
        let used = self
            .graph
            .vertices
            .iter()
            .flat_map(|vertex| &vertex.chain)
            .any(|operator| {
                matches!(
                    operator,
                    OperatorSpec::WindowAggregate(_)
                        | OperatorSpec::IntervalJoin(_)
                        | OperatorSpec::WindowJoin(_)
                        | OperatorSpec::TemporalJoin(_)
                        | OperatorSpec::Over(_)
                        | OperatorSpec::StreamSort(_)
                ) || matches!(operator, OperatorSpec::Rank(rank) if rank.window_end.is_some())
            });
        if used {
            return;
        }
        for vertex in &mut self.graph.vertices {
            if let Some(OperatorSpec::Scan(scan)) = vertex.chain.first_mut()
                && let Some(stream) = &mut scan.stream
            {
                stream.watermark = None;
            }
        }
    }
}

/// The subtrees that occur more than once, leaves without input apart.
fn repeated(plans: &[LogicalPlan]) -> Result<HashSet<LogicalPlan>> {
    let mut seen = HashSet::new();
    let mut repeated = HashSet::new();
    for plan in plans {
        plan.apply(|node| {
            if matches!(node, LogicalPlan::Values(_) | LogicalPlan::EmptyRelation(_)) {
                return Ok(TreeNodeRecursion::Continue);
            }
            if !seen.insert(node.clone()) {
                repeated.insert(node.clone());
                // What is below is repeated with it.
                return Ok(TreeNodeRecursion::Jump);
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    Ok(repeated)
}

/// Why something has no streaming operator.
pub(super) fn refused(what: &str, why: &str) -> EngineError {
    EngineError::Plan(format!("{what} is not supported on streams: {why}"))
}
