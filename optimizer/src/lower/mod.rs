//! The lowering: an iterative walk over the logical plan, children first, so that deep plans need no deep stack. Each
//! node takes its children's streams and yields one; row-wise operators are chained to the open vertex, an exchange
//! starts a new one.

mod aggregate;
mod exchange;
mod grouping;
mod join;
mod origin;
mod project;
mod runtime_filter;
mod scan;
mod set_ops;
mod sort;
mod stream;
mod window;
mod window_tvf;
mod write;

use std::collections::HashMap;

use datafusion::common::DFSchema;
use datafusion::execution::SessionState;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_expr::create_physical_expr;
use thalweg_engine::data::is_changelog;
use thalweg_engine::plan::{CollectSpec, JobGraph, OperatorSpec, RuntimeFilterId, SchemaSpec, VertexId};
use thalweg_engine::{EngineError, Result};

use crate::LoweringOptions;
use crate::estimate::Estimate;
use crate::logical::is_streaming_node;
use crate::properties::{Physical, Stream};

/// One lowering under way.
pub(crate) struct Lowering<'s> {
    graph: JobGraph,
    session: &'s SessionState,
    options: &'s LoweringOptions,
    planning: PhysicalPlanningContext,
    /// What each scan yields, by its vertex.
    scans: HashMap<VertexId, Estimate>,
    next_runtime_filter: RuntimeFilterId,
    /// What the lowering of a streaming query remembers.
    streaming: stream::Streaming,
}

/// A node on its way through the walk.
enum Step<'p> {
    Enter(&'p LogicalPlan),
    Leave(&'p LogicalPlan),
}

impl<'s> Lowering<'s> {
    pub(crate) fn new(session: &'s SessionState, options: &'s LoweringOptions) -> Self {
        Self {
            graph: JobGraph::new("query"),
            session,
            options,
            planning: PhysicalPlanningContext::default(),
            scans: HashMap::new(),
            next_runtime_filter: 0,
            streaming: stream::Streaming::default(),
        }
    }

    pub(crate) async fn run(mut self, plan: &LogicalPlan) -> Result<JobGraph> {
        let stream = self.lower_tree(plan).await?;
        self.collect(stream)?;
        self.name_vertices();
        self.graph
            .validate()
            .map_err(|e| EngineError::Internal(format!("the lowering built a wrong graph: {e}")))?;
        Ok(self.graph)
    }

    async fn lower_tree(&mut self, plan: &LogicalPlan) -> Result<Stream> {
        let mut steps = vec![Step::Enter(plan)];
        let mut done: Vec<Stream> = Vec::new();
        while let Some(step) = steps.pop() {
            match step {
                Step::Enter(node) => {
                    steps.push(Step::Leave(node));
                    if !is_leaf(node) {
                        steps.extend(node.inputs().into_iter().rev().map(Step::Enter));
                    }
                }
                Step::Leave(node) => {
                    let arity = if is_leaf(node) { 0 } else { node.inputs().len() };
                    let inputs = done.split_off(done.len() - arity);
                    let stream = self.lower_node(node, inputs).await?;
                    done.push(stream);
                }
            }
        }
        one(done)
    }

    async fn lower_node(&mut self, node: &LogicalPlan, mut inputs: Vec<Stream>) -> Result<Stream> {
        match node {
            LogicalPlan::TableScan(scan) => {
                let stream = self.table_scan(scan).await?;
                if is_changelog(&stream.schema) {
                    return Err(EngineError::Plan(format!(
                        "the table '{}' is a changelog, which only streaming mode can read; SET 'execution.runtime-mode' = 'streaming'",
                        scan.table_name
                    )));
                }
                Ok(stream)
            }
            LogicalPlan::Values(values) => self.values(values),
            LogicalPlan::EmptyRelation(empty) => self.empty_relation(empty),
            LogicalPlan::DescribeTable(describe) => self.describe_table(describe),
            LogicalPlan::RecursiveQuery(recursive) => self.recursive_query(node, recursive).await,
            LogicalPlan::SubqueryAlias(_) => one(inputs),
            LogicalPlan::Filter(filter) => self.filter(filter, one(inputs)?),
            LogicalPlan::Projection(projection) => self.projection(projection, one(inputs)?),
            LogicalPlan::Unnest(unnest) => self.unnest(unnest, one(inputs)?),
            LogicalPlan::Aggregate(aggregate) => self.aggregate(aggregate, one(inputs)?),
            LogicalPlan::Distinct(distinct) => self.distinct(distinct, one(inputs)?),
            LogicalPlan::Join(join) => {
                let right = inputs.pop();
                let left = inputs.pop();
                let (Some(left), Some(right)) = (left, right) else {
                    return Err(EngineError::Internal("a join has two inputs".into()));
                };
                self.join(join, left, right)
            }
            LogicalPlan::Sort(sort) => self.sort(sort, one(inputs)?),
            LogicalPlan::Limit(limit) => self.limit(limit, one(inputs)?),
            LogicalPlan::Window(window) => self.window(window, one(inputs)?),
            LogicalPlan::Union(union) => self.union(union, inputs),
            LogicalPlan::Repartition(repartition) => self.repartition(repartition, one(inputs)?),
            LogicalPlan::Copy(copy) => self.copy_to(copy, one(inputs)?),
            LogicalPlan::Extension(extension) => self.streaming_node(extension, inputs),
            LogicalPlan::Dml(dml) => self.dml(dml, one(inputs)?).await,
            other => Err(not_a_query(other)),
        }
    }

    /// Ends the plan: everything to one subtask, from there to the client.
    fn collect(&mut self, stream: Stream) -> Result<()> {
        let schema = stream.schema.clone();
        let collect = OperatorSpec::Collect(CollectSpec {
            schema: SchemaSpec(schema.clone()),
        });
        self.gather(stream, collect, schema);
        Ok(())
    }

    /// The physical form of `expr` over the schema of a node's input.
    fn physical(&self, expr: &Expr, schema: &DFSchema) -> Result<Physical> {
        self.check_resolved(expr)?;
        Ok(create_physical_expr(
            expr,
            schema,
            self.session.execution_props(),
            &self.planning,
        )?)
    }

    /// Scalar subqueries are jobs of their own: by now their values must be in the plan.
    fn check_resolved(&self, expr: &Expr) -> Result<()> {
        if expr.contains_scalar_subquery() {
            return Err(EngineError::Plan(format!(
                "the scalar subquery in '{expr}' could not be turned into a join; correlate it by equality, or write it as a join"
            )));
        }
        Ok(())
    }

    fn physical_all<'e>(&self, exprs: impl IntoIterator<Item = &'e Expr>, schema: &DFSchema) -> Result<Vec<Physical>> {
        exprs.into_iter().map(|expr| self.physical(expr, schema)).collect()
    }
}

/// Nodes whose inputs are planned as part of the node itself.
pub(crate) fn is_leaf(node: &LogicalPlan) -> bool {
    if let LogicalPlan::Extension(extension) = node {
        return !is_streaming_node(extension.node.as_ref());
    }
    matches!(
        node,
        LogicalPlan::RecursiveQuery(_)
            | LogicalPlan::Explain(_)
            | LogicalPlan::Analyze(_)
            | LogicalPlan::Ddl(_)
            | LogicalPlan::Statement(_)
            | LogicalPlan::Subquery(_)
    )
}

fn one(mut streams: Vec<Stream>) -> Result<Stream> {
    match (streams.pop(), streams.is_empty()) {
        (Some(stream), true) => Ok(stream),
        _ => Err(EngineError::Internal(
            "a plan node has another number of inputs than its kind".into(),
        )),
    }
}

/// Why a node has no lowering.
fn not_a_query(node: &LogicalPlan) -> EngineError {
    let detail = match node {
        LogicalPlan::Subquery(subquery) => format!(
            "the correlated subquery '{}' could not be turned into a join; rewrite it as a join",
            subquery.subquery.display()
        ),
        LogicalPlan::Explain(_) | LogicalPlan::Analyze(_) => {
            "EXPLAIN is answered by the session; lower the plan inside it".to_string()
        }
        LogicalPlan::Ddl(ddl) => format!("{} is executed by the session, it is no dataflow", ddl.name()),
        LogicalPlan::Statement(statement) => {
            format!("{} is executed by the session, it is no dataflow", statement.name())
        }
        other => format!("the plan node '{}' has no operator", other.display()),
    };
    EngineError::Plan(detail)
}
