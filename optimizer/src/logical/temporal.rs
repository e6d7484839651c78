//! [`TemporalTable`]: `t FOR SYSTEM_TIME AS OF l.ts`, the right side of a temporal join.

use std::cmp::Ordering;
use std::fmt;
use std::sync::{Arc, OnceLock};

use arrow::datatypes::DataType;
use datafusion::common::tree_node::{Transformed, TreeNodeRecursion};
use datafusion::common::{Column, DFSchemaRef, ExprSchema, JoinType, internal_err, plan_err};
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{
    ColumnarValue, Expr, Filter, Join, LogicalPlan, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
    UserDefinedLogicalNodeCore, Volatility,
};

use super::{Result, as_node, only_column, only_input, rowtime_of};

/// The rows of a table as they were at a time that the left side of the join tells.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TemporalTable {
    input: Arc<LogicalPlan>,
    time: Column,
    version_time: Option<Column>,
}

impl TemporalTable {
    /// The table `input` as of the left side's column `time`.
    pub fn new(input: Arc<LogicalPlan>, time: Column) -> Self {
        let version_time = rowtime_of(&input);
        Self {
            input,
            time,
            version_time,
        }
    }

    /// The table.
    pub fn input(&self) -> &LogicalPlan {
        &self.input
    }

    /// The left side's column as it was written. In an optimized plan look at the join's condition instead:
    /// [`split_temporal`].
    pub fn time(&self) -> &Column {
        &self.time
    }

    /// The table's own event time, when it has one: from when on a version of a row counts.
    pub fn version_time(&self) -> Option<&Column> {
        self.version_time.as_ref()
    }
}

impl PartialOrd for TemporalTable {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        let order = self.input.partial_cmp(&other.input);
        order.filter(|order| *order != Ordering::Equal || self == other)
    }
}

/// No predicate may go below it: a version that a filter drops would let the one before it live on.
impl UserDefinedLogicalNodeCore for TemporalTable {
    fn name(&self) -> &str {
        "TemporalTable"
    }

    fn inputs(&self) -> Vec<&LogicalPlan> {
        vec![&self.input]
    }

    fn schema(&self) -> &DFSchemaRef {
        self.input.schema()
    }

    fn expressions(&self) -> Vec<Expr> {
        self.version_time.iter().cloned().map(Expr::Column).collect()
    }

    fn fmt_for_explain(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TemporalTable: as of {}", self.time)
    }

    fn with_exprs_and_inputs(&self, exprs: Vec<Expr>, inputs: Vec<LogicalPlan>) -> Result<Self> {
        let version_time = exprs.into_iter().next();
        let version_time = version_time.map(|expr| only_column(Some(expr), "TemporalTable"));
        Ok(Self {
            input: only_input(inputs, "TemporalTable")?,
            time: self.time.clone(),
            version_time: version_time.transpose()?,
        })
    }

    fn necessary_children_exprs(&self, output_columns: &[usize]) -> Option<Vec<Vec<usize>>> {
        Some(vec![output_columns.to_vec()])
    }
}

/// Ties each [`TemporalTable`] of a plan that comes straight from the SQL planner to its join: the join's condition gets
/// the conjunct `temporal_at(left time, a column of the right side)`. It keeps both columns alive and in place whatever the
/// optimizer does; [`split_temporal`] takes it out again.
///
/// # Errors
/// When a temporal table is not the right side of an inner or left join, or the left side lacks the time.
pub fn bind_temporal_joins(plan: LogicalPlan) -> Result<LogicalPlan> {
    let mut tables = 0;
    plan.apply_with_subqueries(|node| {
        tables += usize::from(as_node::<TemporalTable>(node).is_some());
        Ok(TreeNodeRecursion::Continue)
    })?;
    if tables == 0 {
        return Ok(plan);
    }
    let mut bound = 0;
    let plan = plan.transform_up_with_subqueries(|node| {
        let LogicalPlan::Join(join) = node else {
            return Ok(Transformed::no(node));
        };
        let Some(time) = temporal_right(&join.right).map(|table| table.time.clone()) else {
            return Ok(Transformed::no(LogicalPlan::Join(join)));
        };
        bound += 1;
        // The plan of a view is bound already.
        if join.filter.as_ref().and_then(split_temporal).is_some() {
            return Ok(Transformed::no(LogicalPlan::Join(join)));
        }
        Ok(Transformed::yes(bind(join, &time)?))
    })?;
    if bound < tables {
        return plan_err!(
            "FOR SYSTEM_TIME AS OF stands elsewhere than at the right side of a join; write l JOIN t FOR SYSTEM_TIME AS OF l.ts ON .."
        );
    }
    Ok(plan.data)
}

fn temporal_right(plan: &LogicalPlan) -> Option<&TemporalTable> {
    match plan {
        LogicalPlan::SubqueryAlias(alias) => temporal_right(&alias.input),
        other => as_node(other),
    }
}

fn bind(mut join: Join, time: &Column) -> Result<LogicalPlan> {
    if !matches!(join.join_type, JoinType::Inner | JoinType::Left) {
        return plan_err!(
            "{} JOIN with FOR SYSTEM_TIME AS OF is not supported; use JOIN or LEFT JOIN",
            join.join_type.to_string().to_uppercase()
        );
    }
    let left = join.left.schema();
    let found = match &time.relation {
        Some(_) => left.qualified_field_from_column(time),
        None => left.qualified_field_with_unqualified_name(&time.name),
    };
    let time = match found {
        Ok(found) => Column::from(found),
        Err(_) => {
            return plan_err!(
                "FOR SYSTEM_TIME AS OF {time}: the left side of the join has no such column; name its time column"
            );
        }
    };
    let data_type = left.data_type(&time)?;
    if !matches!(data_type, DataType::Timestamp(_, _)) {
        return plan_err!(
            "FOR SYSTEM_TIME AS OF {time}: the column is {data_type}, not a TIMESTAMP; name the left side's time column"
        );
    }
    let right = match rowtime_of(&join.right) {
        Some(version_time) => version_time,
        None => Column::from(join.right.schema().qualified_field(0)),
    };
    let mark = temporal_at().call(vec![Expr::Column(time), Expr::Column(right)]);
    join.filter = conjunction(join.filter.into_iter().chain([mark]));
    Ok(LogicalPlan::Join(join))
}

/// Takes out of an optimized plan the marks that are in no join. The rule that pushes filters down takes one for a condition
/// that holds for the other side's keys, too.
///
/// # Errors
/// When a plan cannot be rebuilt.
pub fn tidy_temporal_joins(plan: LogicalPlan) -> Result<LogicalPlan> {
    let tidied = plan.transform_up_with_subqueries(|node| {
        let LogicalPlan::Filter(filter) = &node else {
            return Ok(Transformed::no(node));
        };
        match split_temporal(&filter.predicate) {
            None => Ok(Transformed::no(node)),
            Some((_, None)) => Ok(Transformed::yes(filter.input.as_ref().clone())),
            Some((_, Some(rest))) => {
                let filter = Filter::try_new(rest, Arc::clone(&filter.input))?;
                Ok(Transformed::yes(LogicalPlan::Filter(filter)))
            }
        }
    })?;
    Ok(tidied.data)
}

/// The time of the left side and the rest of the condition of a temporal join; `None` when `filter` is of no temporal
/// join.
pub fn split_temporal(filter: &Expr) -> Option<(Expr, Option<Expr>)> {
    let mut time = None;
    let mut rest = Vec::new();
    for conjunct in split_conjunction(filter) {
        match conjunct {
            Expr::ScalarFunction(call) if call.func.as_ref() == temporal_at().as_ref() => {
                time = call.args.first().cloned();
            }
            other => rest.push(other.clone()),
        }
    }
    time.map(|time| (time, conjunction(rest)))
}

/// The function that marks the condition of a temporal join. It is never evaluated.
pub fn temporal_at() -> Arc<ScalarUDF> {
    static FUNCTION: OnceLock<Arc<ScalarUDF>> = OnceLock::new();
    Arc::clone(FUNCTION.get_or_init(|| Arc::new(ScalarUDF::from(TemporalAt::new()))))
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct TemporalAt {
    signature: Signature,
}

impl TemporalAt {
    fn new() -> Self {
        Self {
            signature: Signature::any(2, Volatility::Volatile),
        }
    }
}

impl ScalarUDFImpl for TemporalAt {
    fn name(&self) -> &str {
        "temporal_at"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _arguments: &[DataType]) -> Result<DataType> {
        Ok(DataType::Boolean)
    }

    fn invoke_with_args(&self, _arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        internal_err!("a temporal join was planned as a plain one")
    }
}
