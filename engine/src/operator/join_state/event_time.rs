//! Event times of rows.

use arrow::array::{Array, AsArray};
use arrow::datatypes::{
    DataType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType,
};

use crate::data::{Batch, EngineError, Result};
use crate::operator::Context;
use crate::plan::WindowTime;

/// The times of the rows by column `column`, in milliseconds since the epoch, rounded down.
///
/// # Errors
/// When the column is no timestamp or a time is NULL.
pub(in crate::operator) fn event_times(batch: &Batch, column: usize) -> Result<Vec<i64>> {
    let name = || batch.schema_ref().field(column).name().clone();
    let values = batch.column(column);
    if values.null_count() > 0 {
        return Err(EngineError::BadInput(format!(
            "event time column '{0}' holds NULL; filter such rows first: WHERE {0} IS NOT NULL",
            name()
        )));
    }
    let floor = |values: &[i64], per_ms: i64| values.iter().map(|v| v.div_euclid(per_ms)).collect();
    Ok(match values.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => {
            let values = values.as_primitive::<TimestampSecondType>().values();
            values.iter().map(|v| v.saturating_mul(1000)).collect()
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => {
            values.as_primitive::<TimestampMillisecondType>().values().to_vec()
        }
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            floor(values.as_primitive::<TimestampMicrosecondType>().values(), 1000)
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            floor(values.as_primitive::<TimestampNanosecondType>().values(), 1_000_000)
        }
        other => {
            return Err(EngineError::Plan(format!(
                "event time column '{}' is {other}, not a timestamp",
                name()
            )));
        }
    })
}

/// The times of the rows, by their column or by the clock.
///
/// # Errors
/// As for `event_times`.
pub(in crate::operator) fn times_of(batch: &Batch, time: WindowTime, cx: &Context) -> Result<Vec<i64>> {
    match time {
        WindowTime::Event(column) => event_times(batch, column),
        WindowTime::Processing => Ok(vec![cx.clock.now_ms(); batch.num_rows()]),
    }
}
