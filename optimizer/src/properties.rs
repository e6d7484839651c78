//! What is known of an intermediate stream, and how that knowledge survives an operator.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;
use datafusion::physical_expr::utils::collect_columns;
use thalweg_engine::Result;
use thalweg_engine::plan::{ScalarExpr, SortKey, VertexId};

use crate::estimate::Estimate;

/// A vectorized expression, as DataFusion shares it.
pub(crate) type Physical = Arc<dyn PhysicalExpr>;

/// A stream whose producing vertices are still open: operators may be chained to them.
#[derive(Clone, Debug)]
pub(crate) struct Stream {
    /// The producing vertices: one, or the branches of a union.
    pub(crate) tails: Vec<VertexId>,
    /// The physical schema of the batches.
    pub(crate) schema: SchemaRef,
    /// Subtasks of the widest tail.
    pub(crate) parallelism: usize,
    /// Each entry is a list of expressions such that rows equal in all of them are in the same subtask.
    pub(crate) hashed: Vec<Vec<Physical>>,
    /// The order of the rows within each subtask.
    pub(crate) ordering: Vec<SortKey>,
    /// Sizes.
    pub(crate) estimate: Estimate,
    /// Logical filters that the scan below has applied completely.
    pub(crate) handled_filters: Vec<Expr>,
}

impl Stream {
    /// Whether all rows are in one subtask of one vertex.
    pub(crate) fn is_single(&self) -> bool {
        self.tails.len() == 1 && self.parallelism == 1
    }

    /// Whether rows that agree in all of `keys` are in the same subtask already.
    pub(crate) fn is_grouped_by(&self, keys: &[Physical]) -> bool {
        self.is_single()
            || self
                .hashed
                .iter()
                .any(|hashed| hashed.iter().all(|expr| keys.iter().any(|key| same(key, expr))))
    }

    /// Whether the rows are hash partitioned by exactly `keys`, in that order.
    pub(crate) fn is_hashed_by(&self, keys: &[Physical]) -> bool {
        self.hashed
            .iter()
            .any(|hashed| hashed.len() == keys.len() && hashed.iter().zip(keys).all(|(a, b)| same(a, b)))
    }

    /// Whether every subtask's rows are sorted by `keys`.
    pub(crate) fn is_sorted_by(&self, keys: &[SortKey]) -> bool {
        keys.len() <= self.ordering.len()
            && keys
                .iter()
                .zip(&self.ordering)
                .all(|(wanted, have)| same(&wanted.expr.expr, &have.expr.expr) && wanted.options() == have.options())
    }

    /// The properties seen through a projection to `outputs` of schema `schema`.
    pub(crate) fn project_properties(&mut self, outputs: &[Physical], schema: &SchemaRef) {
        let through = |expr: &Physical| -> Option<Physical> {
            let position = outputs.iter().position(|output| same(output, expr))?;
            Some(Arc::new(Column::new(schema.field(position).name(), position)))
        };
        self.hashed = self
            .hashed
            .iter()
            .filter_map(|keys| keys.iter().map(through).collect())
            .collect();
        self.ordering = self
            .ordering
            .iter()
            .map_while(|key| {
                Some(SortKey {
                    expr: ScalarExpr::new(through(&key.expr.expr)?, Arc::clone(schema)),
                    ..key.clone()
                })
            })
            .collect();
    }
}

/// Whether two expressions over the same schema are the same; columns are told apart by position, not by name.
pub(crate) fn same(a: &Physical, b: &Physical) -> bool {
    match (a.downcast_ref::<Column>(), b.downcast_ref::<Column>()) {
        (Some(a), Some(b)) => a.index() == b.index(),
        _ => a == b,
    }
}

/// The position of a plain column.
pub(crate) fn column_index(expr: &Physical) -> Option<usize> {
    expr.downcast_ref::<Column>().map(Column::index)
}

/// Column `index` of `schema`.
pub(crate) fn column(index: usize, schema: &SchemaRef) -> Physical {
    Arc::new(Column::new(schema.field(index).name(), index))
}

/// The first `count` columns of `schema`.
pub(crate) fn leading_columns(count: usize, schema: &SchemaRef) -> Vec<Physical> {
    (0..count).map(|index| column(index, schema)).collect()
}

/// `exprs` over `schema`, as a job graph holds them.
pub(crate) fn scalar_exprs(exprs: &[Physical], schema: &SchemaRef) -> Vec<ScalarExpr> {
    exprs
        .iter()
        .map(|expr| ScalarExpr::new(Arc::clone(expr), Arc::clone(schema)))
        .collect()
}

/// The positions of the columns that `exprs` read, ascending.
pub(crate) fn columns_of(exprs: &[Physical]) -> Vec<usize> {
    let mut indices: Vec<usize> = exprs
        .iter()
        .flat_map(collect_columns)
        .map(|column| column.index())
        .collect();
    indices.sort_unstable();
    indices.dedup();
    indices
}

/// `expr` with every column at `kept[i]` moved to position `i` of `schema`.
pub(crate) fn move_columns(expr: Physical, kept: &[usize], schema: &SchemaRef) -> Result<Physical> {
    let moved = expr.transform_up(|node| {
        let new = node
            .downcast_ref::<Column>()
            .and_then(|old| kept.iter().position(|index| *index == old.index()))
            .map(|position| column(position, schema));
        Ok(match new {
            Some(new) => Transformed::yes(new),
            None => Transformed::no(node),
        })
    })?;
    Ok(moved.data)
}
