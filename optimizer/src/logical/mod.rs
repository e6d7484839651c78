//! What streaming SQL adds to DataFusion's logical plans: watermarks, windows as tables, tables as of a time.

mod stable_names;
mod temporal;
#[cfg(test)]
mod tests;
mod watermark;
mod window_tvf;

use std::sync::Arc;

use datafusion::common::tree_node::Transformed;
use datafusion::common::{Column, DFSchema, DataFusionError};
use datafusion::logical_expr::{Expr, Extension, LogicalPlan, UserDefinedLogicalNode};

pub use stable_names::with_stable_names;
pub use temporal::{TemporalTable, bind_temporal_joins, split_temporal, temporal_at, tidy_temporal_joins};
pub use watermark::WatermarkNode;
pub use window_tvf::{WINDOW_END, WINDOW_START, WINDOW_TIME, WindowTvf};

type Result<T> = std::result::Result<T, DataFusionError>;

/// Whether the node is one of this module: it is planned after its inputs, like DataFusion's own nodes.
pub fn is_streaming_node(node: &dyn UserDefinedLogicalNode) -> bool {
    let any = node.as_any();
    any.is::<WatermarkNode>() || any.is::<WindowTvf>() || any.is::<TemporalTable>()
}

/// The extension node of this type that a plan's root is.
pub fn as_node<T: UserDefinedLogicalNode + 'static>(plan: &LogicalPlan) -> Option<&T> {
    match plan {
        LogicalPlan::Extension(extension) => extension.node.as_any().downcast_ref(),
        _ => None,
    }
}

/// `plan` without its watermarks, in subqueries too: what bounded input is planned from. Filters may then move into the
/// scans, which they must not when a watermark is taken of the rows.
///
/// # Errors
/// When a plan cannot be rebuilt.
pub fn without_watermarks(plan: LogicalPlan) -> Result<LogicalPlan> {
    let stripped = plan.transform_up_with_subqueries(|node| match as_node::<WatermarkNode>(&node) {
        Some(watermark) => Ok(Transformed::yes(watermark.input().clone())),
        None => Ok(Transformed::no(node)),
    })?;
    Ok(stripped.data)
}

/// The column with the event time that a plan's rows have watermarks of, followed up from the [`WatermarkNode`] through
/// nodes that pass rows on.
pub fn rowtime_of(plan: &LogicalPlan) -> Option<Column> {
    match plan {
        LogicalPlan::Extension(_) => match as_node::<WatermarkNode>(plan) {
            Some(node) => Some(node.rowtime().clone()),
            None => match as_node::<WindowTvf>(plan) {
                Some(window) => rowtime_of(window.input()),
                None => as_node::<TemporalTable>(plan)?.version_time().cloned(),
            },
        },
        LogicalPlan::SubqueryAlias(alias) => {
            let below = rowtime_of(&alias.input)?;
            let index = alias.input.schema().maybe_index_of_column(&below)?;
            Some(Column::from(alias.schema.qualified_field(index)))
        }
        LogicalPlan::Projection(projection) => {
            let below = rowtime_of(&projection.input)?;
            let index = projection.expr.iter().position(|expr| is_column(expr, &below))?;
            Some(Column::from(projection.schema.qualified_field(index)))
        }
        LogicalPlan::Filter(filter) => rowtime_of(&filter.input),
        _ => None,
    }
}

fn is_column(expr: &Expr, column: &Column) -> bool {
    match expr {
        Expr::Column(other) => other == column,
        Expr::Alias(alias) => is_column(&alias.expr, column),
        _ => false,
    }
}

/// `node` as a plan.
pub fn as_plan(node: impl UserDefinedLogicalNode + 'static) -> LogicalPlan {
    LogicalPlan::Extension(Extension { node: Arc::new(node) })
}

/// The one input of a node that has one.
fn only_input(mut inputs: Vec<LogicalPlan>, node: &str) -> Result<Arc<LogicalPlan>> {
    match (inputs.pop(), inputs.is_empty()) {
        (Some(input), true) => Ok(Arc::new(input)),
        _ => Err(DataFusionError::Internal(format!("{node} has one input"))),
    }
}

/// The column that an expression is.
fn only_column(expr: Option<Expr>, node: &str) -> Result<Column> {
    match expr {
        Some(Expr::Column(column)) => Ok(column),
        Some(Expr::Alias(alias)) => only_column(Some(*alias.expr), node),
        other => Err(DataFusionError::Internal(format!(
            "{node} wants a column, not {other:?}"
        ))),
    }
}

/// The names of all columns of a schema.
fn names_of(schema: &DFSchema) -> impl Iterator<Item = &String> {
    schema.fields().iter().map(|field| field.name())
}
