//! [`Flow`]: what is known of an intermediate stream of a streaming job.

use std::sync::Arc;

use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::logical_expr::{Expr, LogicalPlan};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{CastExpr, Column as PhysicalColumn};
use thalweg_engine::data::{is_changelog, with_row_kind};

use crate::properties::{Physical, Stream, column_index};

/// A stream of a streaming job. Column numbers are those of the logical schema; a changelog has the row kind after them.
#[derive(Clone, Debug)]
pub(super) struct Flow {
    /// The producing vertices, the physical schema, the distribution.
    pub(super) stream: Stream,
    /// Columns that the watermark speaks of: no row whose value is at or before it is still to come.
    pub(super) rowtimes: Vec<usize>,
    /// Columns that hold the processing time.
    pub(super) proctimes: Vec<usize>,
    /// The bounds of the window that each row is the result, or a member, of; complete at its end.
    pub(super) window: Option<WindowColumns>,
    /// Each is a list of columns that tell a row from all others present at the same time.
    pub(super) keys: Vec<Vec<usize>>,
    /// Whether all sources below end.
    pub(super) bounded: bool,
}

/// Where a window's bounds are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WindowColumns {
    pub(super) start: Option<usize>,
    pub(super) end: usize,
}

impl Flow {
    /// A stream of insertions of which nothing else is known.
    pub(super) fn new(stream: Stream, bounded: bool) -> Self {
        Self {
            stream,
            rowtimes: Vec::new(),
            proctimes: Vec::new(),
            window: None,
            keys: Vec::new(),
            bounded,
        }
    }

    pub(super) fn is_changelog(&self) -> bool {
        is_changelog(&self.stream.schema)
    }

    /// Columns without the row kind.
    pub(super) fn width(&self) -> usize {
        self.stream.schema.fields().len() - usize::from(self.is_changelog())
    }

    /// `schema` with the row kind if this stream has it.
    pub(super) fn kinded(&self, schema: &Schema) -> SchemaRef {
        if self.is_changelog() {
            with_row_kind(schema)
        } else {
            Arc::new(schema.clone())
        }
    }

    /// The same stream behind a projection: `outputs` are what the columns of the output are made of.
    pub(super) fn moved(&self, stream: Stream, outputs: &[Expr], physical: &[Physical]) -> Self {
        let through = |column: usize| physical.iter().position(|output| column_index(output) == Some(column));
        let many = |column: usize| {
            physical
                .iter()
                .enumerate()
                .filter(move |(_, output)| column_index(output) == Some(column))
                .map(|(position, _)| position)
        };
        let told = |column: usize| {
            let schema = self.stream.schema.as_ref();
            through(column).or_else(|| {
                let same = |output: &Physical| distinct_column(output.as_ref(), schema) == Some(column);
                physical.iter().position(same)
            })
        };
        let mut proctimes: Vec<usize> = self.proctimes.iter().flat_map(|column| many(*column)).collect();
        proctimes.extend(
            outputs
                .iter()
                .enumerate()
                .filter(|(_, expr)| is_processing_time(expr))
                .map(|(position, _)| position),
        );
        Self {
            stream,
            rowtimes: self.rowtimes.iter().flat_map(|column| many(*column)).collect(),
            proctimes,
            window: self.window.and_then(|window| {
                Some(WindowColumns {
                    start: window.start.and_then(through),
                    end: through(window.end)?,
                })
            }),
            keys: self
                .keys
                .iter()
                .filter_map(|key| key.iter().map(|column| told(*column)).collect())
                .collect(),
            bounded: self.bounded,
        }
    }
}

/// The column that `expr` is, or a form of it in which different values still differ: an INSERT casts to the types of its table.
fn distinct_column(expr: &dyn PhysicalExpr, schema: &Schema) -> Option<usize> {
    if let Some(column) = expr.downcast_ref::<PhysicalColumn>() {
        return Some(column.index());
    }
    let cast = expr.downcast_ref::<CastExpr>()?;
    let from = cast.expr().data_type(schema).ok()?;
    // A safe cast makes NULL of what does not fit.
    (!cast.cast_options().safe && keeps_distinct(&from, cast.cast_type()))
        .then(|| distinct_column(cast.expr().as_ref(), schema))?
}

/// Whether no two values are the same after a cast that fails where a value does not fit.
fn keeps_distinct(from: &DataType, to: &DataType) -> bool {
    match (from, to) {
        (DataType::Dictionary(_, value), to) => keeps_distinct(value, to),
        (from, DataType::Dictionary(_, value)) => keeps_distinct(from, value),
        (from, to) if from == to => true,
        (from, to) if from.is_integer() => to.is_integer() || to.is_string(),
        (from, to) if from.is_string() => to.is_string(),
        (DataType::Boolean | DataType::Date32, to) => to.is_string(),
        (DataType::Timestamp(..), to) if to.is_string() => true,
        (DataType::Timestamp(from, zone), DataType::Timestamp(to, other)) => from <= to && zone == other,
        _ => false,
    }
}

/// `expr` over the output of `node` as an expression over its input; `None` when `node` does more than compute columns.
pub(super) fn pull(expr: &Expr, node: &LogicalPlan) -> Option<Expr> {
    use datafusion::common::tree_node::{Transformed, TreeNode};
    use datafusion::common::{Column, DataFusionError};
    let replace = |column: &Column| -> Option<Expr> {
        let index = node.schema().maybe_index_of_column(column)?;
        Some(match node {
            LogicalPlan::Projection(projection) => projection.expr.get(index)?.clone().unalias_nested().data,
            LogicalPlan::SubqueryAlias(alias) => {
                Expr::Column(Column::from(alias.input.schema().qualified_field(index)))
            }
            _ => return None,
        })
    };
    let pulled = expr.clone().transform(|part| match &part {
        Expr::Column(column) => match replace(column) {
            Some(new) => Ok(Transformed::new(
                new,
                true,
                datafusion::common::tree_node::TreeNodeRecursion::Jump,
            )),
            None => Err(DataFusionError::Internal("not a column of the input".into())),
        },
        _ => Ok(Transformed::no(part)),
    });
    pulled.ok().map(|transformed| transformed.data)
}

/// Whether `expr` is `PROCTIME()`.
fn is_processing_time(expr: &Expr) -> bool {
    match expr {
        Expr::Alias(alias) => is_processing_time(&alias.expr),
        Expr::ScalarFunction(call) => call.func.name().eq_ignore_ascii_case("proctime"),
        _ => false,
    }
}
