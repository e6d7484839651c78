//! Where DataFusion's SQL planner differs from SQL: INTERSECT ALL and EXCEPT ALL are mended, RIGHT and FULL JOIN with
//! USING are refused.
//!
//! DataFusion plans both as a semi or anti join over all columns, which keeps or drops every copy of a row. SQL counts:
//! `INTERSECT ALL` keeps as many copies as the side with fewer has, `EXCEPT ALL` takes one copy away for each on the
//! right. Numbering the copies of each row on both sides and joining on the number too gives exactly that.

use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::common::{Column, JoinType, NullEquality};
use datafusion::error::Result;
use datafusion::functions_window::row_number::row_number_udwf;
use datafusion::logical_expr::expr::WindowFunction;
use datafusion::logical_expr::{
    Expr, ExprFunctionExt, Join, JoinConstraint, LogicalPlan, LogicalPlanBuilder, WindowFunctionDefinition,
};

use crate::error::Error;

const COPY_NUMBER: &str = "__copy_number";

/// Rewrites every `INTERSECT ALL` and `EXCEPT ALL` of a plan that comes straight from the SQL planner.
///
/// # Errors
/// When a rewritten plan cannot be built.
pub(crate) fn count_copies(plan: LogicalPlan) -> Result<LogicalPlan> {
    plan.transform_up_with_subqueries(|node| match &node {
        LogicalPlan::Join(join) if is_counting(join) => Ok(Transformed::yes(rewrite(join)?)),
        _ => Ok(Transformed::no(node)),
    })
    .map(|transformed| transformed.data)
}

/// Refuses RIGHT and FULL JOIN with USING (or NATURAL): SQL's joined column is `coalesce(left, right)`, the planner takes
/// the left one, which is NULL where only the right side has a row.
///
/// # Errors
/// When the plan holds one.
pub(crate) fn refuse_outer_using(plan: &LogicalPlan) -> crate::Result<()> {
    let mut found = None;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Join(join) = node
            && join.join_constraint == JoinConstraint::Using
            && matches!(join.join_type, JoinType::Right | JoinType::Full)
        {
            found = Some(join.join_type);
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    match found {
        None => Ok(()),
        Some(join_type) => {
            let name = join_type.to_string().to_uppercase();
            Err(
                Error::unsupported(format!("{name} JOIN with USING or NATURAL is not supported"))
                    .with_remedy("write the condition with ON, and coalesce(l.k, r.k) for the joined column"),
            )
        }
    }
}

/// Only set operations are planned as joins in which NULL equals NULL; the ones that do not count copies have a left
/// side without copies.
fn is_counting(join: &Join) -> bool {
    matches!(join.join_type, JoinType::LeftSemi | JoinType::LeftAnti)
        && join.null_equality == NullEquality::NullEqualsNull
        && join.filter.is_none()
        && !matches!(join.left.as_ref(), LogicalPlan::Distinct(_))
        && join.on.len() == join.left.schema().fields().len()
        && join.on.len() == join.right.schema().fields().len()
}

fn rewrite(join: &Join) -> Result<LogicalPlan> {
    let left = number_copies(Arc::unwrap_or_clone(Arc::clone(&join.left)))?;
    let right = number_copies(Arc::unwrap_or_clone(Arc::clone(&join.right)))?;
    let joined = match join.join_type {
        JoinType::LeftSemi => LogicalPlanBuilder::intersect(left, right, true)?,
        _ => LogicalPlanBuilder::except(left, right, true)?,
    };
    // Others refer to the columns by the names that the original join gave them.
    let columns: Vec<Expr> = joined
        .schema()
        .columns()
        .into_iter()
        .zip(join.schema.iter())
        .map(|(column, (qualifier, field))| Expr::Column(column).alias_qualified(qualifier.cloned(), field.name()))
        .collect();
    LogicalPlanBuilder::from(joined).project(columns)?.build()
}

/// Adds the number of each copy of a row.
fn number_copies(plan: LogicalPlan) -> Result<LogicalPlan> {
    let columns: Vec<Column> = plan.schema().columns();
    let function = WindowFunctionDefinition::WindowUDF(row_number_udwf());
    let number = Expr::from(WindowFunction::new(function, vec![]))
        .partition_by(columns.iter().cloned().map(Expr::Column).collect())
        .build()?;
    let number_column = Column::new_unqualified(number.schema_name().to_string());
    let mut outputs: Vec<Expr> = columns.into_iter().map(Expr::Column).collect();
    outputs.push(Expr::Column(number_column).alias(COPY_NUMBER));
    LogicalPlanBuilder::from(plan)
        .window([number])?
        .project(outputs)?
        .build()
}
