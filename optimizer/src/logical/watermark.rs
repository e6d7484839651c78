//! [`WatermarkNode`]: where rows get watermarks.

use std::cmp::Ordering;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{Column, DFSchemaRef, ExprSchema, plan_err};
use datafusion::logical_expr::{Expr, ExprSchemable, LogicalPlan, UserDefinedLogicalNodeCore};

use super::{Result, only_column, only_input};

/// `WATERMARK FOR rowtime AS expr`: hands on its input, and after rows whose `expr` is at most `w` (in event time) the
/// watermark `w`. Rows must not be filtered below it, as those that a filter drops move the watermark on, too.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WatermarkNode {
    input: Arc<LogicalPlan>,
    rowtime: Column,
    expr: Expr,
    idle_timeout_ms: Option<u64>,
}

impl WatermarkNode {
    /// # Errors
    /// When the column or the expression is no timestamp of the input.
    pub fn try_new(input: Arc<LogicalPlan>, rowtime: Column, expr: Expr, idle_timeout_ms: Option<u64>) -> Result<Self> {
        let schema = input.schema();
        let data_type = schema.data_type(&rowtime)?;
        if !matches!(data_type, DataType::Timestamp(_, _)) {
            return plan_err!(
                "WATERMARK FOR {}: the column is {data_type}, not a TIMESTAMP; declare it so, or compute one",
                rowtime.name
            );
        }
        let given = expr.get_type(schema)?;
        if !matches!(given, DataType::Timestamp(_, _)) {
            return plan_err!(
                "WATERMARK FOR {} AS {expr}: the expression is {given}, not a TIMESTAMP; cast it",
                rowtime.name
            );
        }
        Ok(Self {
            input,
            rowtime,
            expr,
            idle_timeout_ms,
        })
    }

    /// What gets watermarks.
    pub fn input(&self) -> &LogicalPlan {
        &self.input
    }

    /// The column with the event time.
    pub fn rowtime(&self) -> &Column {
        &self.rowtime
    }

    /// The watermark that a row brings, over the input.
    pub fn expr(&self) -> &Expr {
        &self.expr
    }

    /// After so long without rows, a source does not hold back the watermark of the others.
    pub fn idle_timeout_ms(&self) -> Option<u64> {
        self.idle_timeout_ms
    }
}

impl PartialOrd for WatermarkNode {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let order = self.input.partial_cmp(&other.input);
        order.filter(|order| *order != Ordering::Equal || self == other)
    }
}

impl UserDefinedLogicalNodeCore for WatermarkNode {
    fn name(&self) -> &str {
        "Watermark"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }

    fn expressions(&self) -> Vec<Expr> {
        vec![Expr::Column(self.rowtime.clone()), self.expr.clone()]
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Watermark: {} AS {}", self.rowtime, self.expr)
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let mut exprs = exprs.into_iter();
        let rowtime = only_column(exprs.next(), "Watermark")?;
        let expr = exprs.next().unwrap_or_else(|| self.expr.clone());
        Ok(Self {
            input: only_input(inputs, "Watermark")?,
            rowtime,
            expr,
            idle_timeout_ms: self.idle_timeout_ms,
        })
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        // What the expressions read is added by the rule that asks.
        Some(vec![output_columns.to_vec()])
    }
}
