//! Uncorrelated scalar subqueries: found here, run by the session as jobs of their own, put back as literals.

use std::collections::HashMap;

use datafusion::common::ScalarValue;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::DataFusionError;
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan, Subquery};
use thalweg_engine::Result;

/// The uncorrelated scalar subqueries in the expressions of `plan`, each once. Those nested inside another subquery are
/// not reported: they belong to that subquery's own plan.
pub fn uncorrelated_scalar_subqueries(plan: &LogicalPlan) -> Vec<Subquery> {
    let mut found: Vec<Subquery> = Vec::new();
    let walked = plan.apply(|node| {
        node.apply_expressions(|expr| {
            expr.apply(|inner| {
                if let Expr::ScalarSubquery(subquery) = inner
                    && subquery.outer_ref_columns.is_empty()
                    && !found.contains(subquery)
                {
                    found.push(subquery.clone());
                }
                Ok(TreeNodeRecursion::Continue)
            })
        })
    });
    debug_assert!(walked.is_ok(), "the visitor never fails");
    found
}

/// `plan` with every subquery of `values` replaced by its value. Names of columns stay as they were.
///
/// # Errors
/// When a value does not have, and cannot be cast to, its subquery's type.
pub fn substitute(plan: LogicalPlan, values: &HashMap<Subquery, ScalarValue>) -> Result<LogicalPlan> {
    if values.is_empty() {
        return Ok(plan);
    }
    let replaced = plan.transform_up(|node| {
        let names = NamePreserver::new(&node);
        node.map_expressions(|expr| {
            let saved = names.save(&expr);
            Ok(expr
                .transform_up(|inner| replace(inner, values))?
                .update_data(|expr| saved.restore(expr)))
        })?
        .map_data(|node| node.recompute_schema())
    })?;
    Ok(replaced.data)
}

fn replace(
    expr: Expr,
    values: &HashMap<Subquery, ScalarValue>,
) -> std::result::Result<Transformed<Expr>, DataFusionError> {
    let Expr::ScalarSubquery(subquery) = &expr else {
        return Ok(Transformed::no(expr));
    };
    let Some(value) = values.get(subquery) else {
        return Ok(Transformed::no(expr));
    };
    let wanted = subquery.subquery.schema().field(0).data_type();
    let value = if value.data_type() == *wanted {
        value.clone()
    } else {
        value.cast_to(wanted)?
    };
    Ok(Transformed::yes(Expr::Literal(value, None)))
}
