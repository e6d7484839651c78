//! Fields of rows: `SELECT bid.price` of a row `bid` gives a column `price`, as in Flink.

use arrow::datatypes::Field;
use datafusion::common::{Column, ScalarValue, TableReference};
use datafusion::error::Result;
use datafusion::functions::core::get_field;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::planner::{ExprPlanner, PlannerResult};
use datafusion::logical_expr::{Expr, lit};

/// Plans them. DataFusion's own planner would call the column `bid[price]`.
#[derive(Debug)]
pub(crate) struct RowFields;

impl ExprPlanner for RowFields {
    fn plan_compound_identifier(
        &self,
        field: &Field,
        qualifier: Option<&TableReference>,
        nested_names: &[String],
    ) -> Result<PlannerResult<Vec<Expr>>> {
        let mut expr = Expr::Column(Column::from((qualifier, field)));
        for name in nested_names {
            let arguments = vec![expr, lit(ScalarValue::from(name.as_str()))];
            expr = Expr::ScalarFunction(ScalarFunction::new_udf(get_field(), arguments));
        }
        Ok(PlannerResult::Planned(match nested_names.last() {
            Some(name) => expr.alias(name),
            None => expr,
        }))
    }
}
