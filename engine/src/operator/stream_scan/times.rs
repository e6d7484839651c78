//! What the rows of a batch say of event time.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, Literal};

use crate::data::{Batch, EngineError, Result};
use crate::plan::ScalarExpr;

/// The highest watermark that the rows of a batch lead to, in milliseconds.
///
/// # Errors
/// When the expression fails or gives no timestamp.
pub(in crate::operator) fn highest(expr: &ScalarExpr, batch: &Batch) -> Result<Option<i64>> {
    // A delay is the same for all rows: the latest of them decides, and the others need no arithmetic on calendars.
    if batch.num_rows() > 1
        && let Some(column) = delayed_column(&expr.expr)
    {
        let ticks = ticks(batch.column(column))?;
        let row = latest(&ticks);
        return row.map_or(Ok(None), |row| highest(expr, &batch.slice(row, 1)));
    }
    let values = expr.expr.evaluate(batch)?.into_array(batch.num_rows())?;
    let DataType::Timestamp(unit, _) = values.data_type() else {
        return Err(EngineError::Plan(format!(
            "the watermark {expr:?} is {}, not a timestamp",
            values.data_type()
        )));
    };
    let highest = arrow::compute::max(&ticks(&values)?);
    // Rounded down, as the times of rows are: before the epoch, too.
    Ok(highest.map(|highest| match unit {
        TimeUnit::Second => highest.saturating_mul(1000),
        TimeUnit::Millisecond => highest,
        TimeUnit::Microsecond => highest.div_euclid(1000),
        TimeUnit::Nanosecond => highest.div_euclid(1_000_000),
    }))
}

/// The column that `expr` is, or is a fixed length of time before or after.
pub(super) fn delayed_column(expr: &Arc<dyn PhysicalExpr>) -> Option<usize> {
    if let Some(column) = expr.downcast_ref::<Column>() {
        return Some(column.index());
    }
    let delayed = expr.downcast_ref::<BinaryExpr>()?;
    let column = delayed.left().downcast_ref::<Column>()?;
    let delay = delayed.right().downcast_ref::<Literal>()?;
    let fixed = match delay.value() {
        // Months are of several lengths.
        ScalarValue::IntervalMonthDayNano(Some(delay)) => delay.months == 0,
        ScalarValue::IntervalDayTime(Some(_)) => true,
        other => matches!(other.data_type(), DataType::Duration(_)),
    };
    (fixed && matches!(delayed.op(), Operator::Minus | Operator::Plus)).then(|| column.index())
}

fn ticks(times: &ArrayRef) -> Result<Int64Array> {
    if !matches!(times.data_type(), DataType::Timestamp(_, _)) {
        return Err(EngineError::Plan(format!(
            "a watermark is {}, not a timestamp",
            times.data_type()
        )));
    }
    Ok(cast(times, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}

/// The row with the greatest number.
fn latest(ticks: &Int64Array) -> Option<usize> {
    let highest = arrow::compute::max(ticks)?;
    // From behind: time goes forward.
    (0..ticks.len())
        .rev()
        .find(|row| ticks.value(*row) == highest && ticks.is_valid(*row))
}
