//! Bounds of join keys as a condition of the scan itself: once a filter is published, the scan skips the files, row
//! groups and pages whose statistics say that no key lies within. Which rows come out is not promised, so that the
//! operator behind the scan looks at every row all the same.

use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion::datasource::source::DataSourceExec;
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::Operator as Op;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{DynamicFilterPhysicalExpr, binary, lit};

use crate::data::Result;
use crate::operator::runtime_filter::slot::RuntimeFilters;
use crate::plan::{PhysicalPlan, RuntimeCheckSpec, ScalarExpr, ScanSpec};

/// A condition that a running scan holds: true until the bounds of its key are known.
#[derive(Debug)]
pub(super) struct Condition {
    key: ScalarExpr,
    condition: Arc<DynamicFilterPhysicalExpr>,
}

impl RuntimeFilters {
    /// The scan of one job, which learns of the bounds of its keys while it runs. All subtasks must share it: the
    /// partitions of a scan of files take files from one another.
    ///
    /// # Errors
    /// When the source cannot work with conditions.
    pub fn bound(&self, mut scan: ScanSpec, task: &TaskContext) -> Result<ScanSpec> {
        let Some(exec) = scan.plan.0.downcast_ref::<DataSourceExec>() else {
            return Ok(scan);
        };
        let mut conditions = Vec::new();
        for check in &scan.bounded_by {
            if let Some(slot) = self.slot(check.id).filter(|_| is_ordered(check)) {
                let condition = Condition::new(check);
                conditions.push(Arc::clone(&condition.condition) as _);
                slot.tell(condition);
            }
        }
        if conditions.is_empty() {
            return Ok(scan);
        }
        let options = task.session_config().options();
        if let Some(source) = exec
            .data_source()
            .try_pushdown_filters(conditions, options)?
            .updated_node
        {
            scan.plan = PhysicalPlan(Arc::new(DataSourceExec::new(source)));
        }
        Ok(scan)
    }
}

/// Whether words of the key's type have the order of its values.
fn is_ordered(check: &RuntimeCheckSpec) -> bool {
    let data_type = check.key.expr.data_type(&check.key.input);
    data_type.is_ok_and(|data_type| {
        data_type.is_integer() || matches!(data_type, DataType::Date32 | DataType::Timestamp(_, _))
    })
}

impl Condition {
    fn new(check: &RuntimeCheckSpec) -> Self {
        let children = vec![Arc::clone(&check.key.expr)];
        Self {
            key: check.key.clone(),
            condition: Arc::new(DynamicFilterPhysicalExpr::new(children, lit(true))),
        }
    }

    /// Least and greatest key are known; `None`: there is no key at all.
    pub(super) fn publish(&self, range: Option<(i64, i64)>) {
        let update = self.between(range).and_then(|expr| match expr {
            Some(expr) => self.condition.update(expr),
            None => Ok(()),
        });
        if let Err(error) = update {
            // The scan reads more than it must, nothing else.
            tracing::debug!(key = %self.key, %error, "a scan does not learn of its bounds");
        }
        self.condition.mark_complete();
    }

    fn between(&self, range: Option<(i64, i64)>) -> DataFusionResult<Option<Arc<dyn PhysicalExpr>>> {
        let Some((least, greatest)) = range else {
            return Ok(Some(lit(false)));
        };
        let (key, schema) = (&self.key.expr, &self.key.input);
        let data_type = key.data_type(schema)?;
        // Unsigned words beyond the signed range are negative, and negative ones come first.
        if least < 0 && data_type == DataType::UInt64 {
            return Ok(None);
        }
        let scalar = |word: i64| match &data_type {
            DataType::Date32 => ScalarValue::Int64(Some(word))
                .cast_to(&DataType::Int32)?
                .cast_to(&DataType::Date32),
            other => ScalarValue::Int64(Some(word)).cast_to(other),
        };
        let from = binary(Arc::clone(key), Op::GtEq, lit(scalar(least)?), schema)?;
        let to = binary(Arc::clone(key), Op::LtEq, lit(scalar(greatest)?), schema)?;
        binary(from, Op::And, to, schema).map(Some)
    }
}
