//! Names that the optimizer counts up (`__datafusion_extracted_7`) after what they stand for.
//!
//! DataFusion computes cheap parts of expressions, such as the fields of a structure, near the sources, and numbers them.
//! The same subtree in two places of a plan then has different names and is not recognized as the same.

use std::collections::HashMap;
use std::sync::Arc;

use datafusion::common::Column;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::logical_expr::{Expr, LogicalPlan};

use super::Result;

const NUMBERED: &str = "__datafusion_extracted_";
const STABLE: &str = "__extracted ";

/// The plan with such names replaced.
///
/// # Errors
/// When a node does not take its new expressions.
pub fn with_stable_names(plan: LogicalPlan) -> Result<LogicalPlan> {
    let mut names: HashMap<String, String> = HashMap::new();
    plan.transform_up(|node| {
        let renamed = node.map_expressions(|expr| {
            let renamed = expr.transform_up(|part| match part {
                Expr::Column(column) => Ok(match names.get(&column.name) {
                    Some(name) => Transformed::yes(Expr::Column(Column::new(column.relation, name))),
                    None => Transformed::no(Expr::Column(column)),
                }),
                Expr::Alias(mut alias) => {
                    if alias.name.starts_with(NUMBERED) {
                        let name = match names.get(&alias.name) {
                            Some(known) => known.clone(),
                            None => format!("{STABLE}{}", alias.expr),
                        };
                        names.insert(std::mem::replace(&mut alias.name, name.clone()), name);
                        return Ok(Transformed::yes(Expr::Alias(alias)));
                    }
                    Ok(Transformed::no(Expr::Alias(alias)))
                }
                other => Ok(Transformed::no(other)),
            })?;
            Ok(renamed)
        })?;
        if names.is_empty() {
            return Ok(renamed);
        }
        let before = Arc::clone(renamed.data.schema());
        let plan = renamed.data.recompute_schema()?;
        // A column without an alias has the text of its expression for a name, and that text may just have changed.
        for (old, new) in before.fields().iter().zip(plan.schema().fields()) {
            if old.name() != new.name() {
                names.insert(old.name().clone(), new.name().clone());
            }
        }
        Ok(Transformed::new(plan, true, TreeNodeRecursion::Continue))
    })
    .map(|transformed| transformed.data)
}
