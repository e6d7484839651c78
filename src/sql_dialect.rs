//! Where DataFusion's SQL planner differs from SQL: what can be mended is mended, the rest is refused, as a wrong answer
//! is worse than none.
//!
//! Refused: RIGHT and FULL JOIN with USING; subqueries under IN where NULL must be told from false; ANY and ALL over a
//! table of the outer query; IS DISTINCT FROM followed by AND or OR without parentheses.
//!
//! DataFusion plans both as a semi or anti join over all columns, which keeps or drops every copy of a row. SQL counts:
//! `INTERSECT ALL` keeps as many copies as the side with fewer has, `EXCEPT ALL` takes one copy away for each on the
//! right. Numbering the copies of each row on both sides and joining on the number too gives exactly that.

use std::ops::ControlFlow;
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, JoinType, NullEquality};
use datafusion::error::Result;
use datafusion::functions_window::row_number::row_number_udwf;
use datafusion::logical_expr::expr::{SetComparison, WindowFunction};
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{
    Expr, ExprFunctionExt, ExprSchemable, Join, JoinConstraint, LogicalPlan, LogicalPlanBuilder, Operator,
    WindowFunctionDefinition,
};
use datafusion::sql::sqlparser::ast::{BinaryOperator, Expr as SqlExpr, Statement as SqlStatement, visit_expressions};

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
fn refuse_outer_using(plan: &LogicalPlan) -> crate::Result<()> {
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

/// Refuses what the planner would answer wrongly; called on plans that come straight from it.
///
/// # Errors
/// When the plan holds such a thing.
pub(crate) fn refuse_wrong_answers(plan: &LogicalPlan) -> crate::Result<()> {
    refuse_outer_using(plan)?;
    let mut problem = None;
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::Filter(filter) = node {
            for conjunct in split_conjunction(&filter.predicate) {
                if !is_plain_in(conjunct) && problem.is_none() {
                    problem = two_valued_in(conjunct, node, false);
                }
            }
        }
        for expr in node.expressions() {
            expr.apply(|part| {
                if let Expr::SetComparison(comparison) = part
                    && captures(comparison)
                {
                    problem = Some(
                        Error::unsupported("ANY and ALL over a table of the outer query are not supported")
                            .with_remedy("give the table in the subquery an alias"),
                    );
                }
                Ok(TreeNodeRecursion::Continue)
            })?;
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    problem.map_or(Ok(()), Err)
}

/// `x IN (..)`, `x NOT IN (..)` or `NOT x IN (..)` as a condition of its own, which becomes a join that knows NULL.
fn is_plain_in(expr: &Expr) -> bool {
    match expr {
        Expr::InSubquery(_) => true,
        Expr::Not(inner) => matches!(inner.as_ref(), Expr::InSubquery(_)),
        _ => false,
    }
}

/// Elsewhere IN becomes a mark that is true or false. That is enough below AND and OR, where NULL counts as false, but
/// not below a negation or inside another expression.
fn two_valued_in(expr: &Expr, node: &LogicalPlan, null_matters: bool) -> Option<Error> {
    match expr {
        Expr::BinaryExpr(binary) if matches!(binary.op, Operator::And | Operator::Or) => {
            two_valued_in(&binary.left, node, null_matters).or_else(|| two_valued_in(&binary.right, node, null_matters))
        }
        Expr::InSubquery(subquery) => {
            let outer = node
                .inputs()
                .first()
                .and_then(|input| subquery.expr.nullable(input.schema()).ok());
            let inner = subquery.subquery.subquery.schema().field(0).is_nullable();
            let nullable = inner || outer.unwrap_or(true);
            ((null_matters || subquery.negated) && nullable).then(|| {
                Error::unsupported("IN over a subquery, negated below OR or inside another expression, is not supported where NULL may occur")
                    .with_remedy("use EXISTS or NOT EXISTS, or exclude NULL with IS NOT NULL in a subquery of its own")
            })
        }
        Expr::ScalarSubquery(_) | Expr::Exists(_) => None,
        other => {
            let mut found = None;
            // The children of anything but AND and OR: NULL and false may part ways there.
            let walked = other.apply_children(|child| {
                found = found.take().or_else(|| two_valued_in(child, node, true));
                Ok(TreeNodeRecursion::Continue)
            });
            walked.ok().and(found)
        }
    }
}

/// Whether a column of the outer side has the same qualified name as one of the subquery: the planner's rewriting would
/// take it for that.
fn captures(comparison: &SetComparison) -> bool {
    let mut inner = Vec::new();
    let walked = comparison.subquery.subquery.apply(|node| {
        inner.extend(node.schema().columns());
        // Below an alias the names are others.
        let below = if matches!(node, LogicalPlan::SubqueryAlias(_)) {
            TreeNodeRecursion::Jump
        } else {
            TreeNodeRecursion::Continue
        };
        Ok(below)
    });
    walked.is_err()
        || comparison
            .expr
            .column_refs()
            .into_iter()
            .any(|column| inner.contains(column))
}

/// Refuses `a IS [NOT] DISTINCT FROM b AND c`: the parser reads everything up to the end as the right side.
///
/// # Errors
/// When the statement holds one.
pub(crate) fn refuse_open_distinct_from(statement: &SqlStatement) -> crate::Result<()> {
    let found = visit_expressions(statement, |expr| match expr {
        SqlExpr::IsDistinctFrom(_, right) | SqlExpr::IsNotDistinctFrom(_, right)
            if matches!(
                right.as_ref(),
                SqlExpr::BinaryOp {
                    op: BinaryOperator::And | BinaryOperator::Or | BinaryOperator::Xor,
                    ..
                }
            ) =>
        {
            ControlFlow::Break(())
        }
        _ => ControlFlow::Continue(()),
    });
    match found {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::unsupported(
            "IS DISTINCT FROM followed by AND or OR without parentheses is not supported",
        )
        .with_remedy("write (a IS DISTINCT FROM b) AND ..")),
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
