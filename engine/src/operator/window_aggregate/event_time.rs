//! The event times of a batch, in milliseconds.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{
    DataType, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType, TimestampNanosecondType,
    TimestampSecondType,
};

use crate::data::{Batch, EngineError, Result};

/// Times beyond this, in either direction, are refused: 70 million years, and no sum below can overflow.
const TIME_MS_MAX: i64 = i64::MAX / 4;

/// The times of column `column` in milliseconds, rounded down. Does not copy a column of milliseconds.
///
/// # Errors
/// When a row has NULL, a time is out of range, or the column is no timestamp.
pub(super) fn event_times(batch: &Batch, column: usize) -> Result<ScalarBuffer<i64>> {
    let array = batch.column(column);
    let name = || batch.schema_ref().field(column).name().clone();
    if array.null_count() > 0 {
        return Err(EngineError::BadInput(format!(
            "the event time '{}' is NULL in {} of {} rows; filter such rows, e.g. WHERE \"{}\" IS NOT NULL",
            name(),
            array.null_count(),
            array.len(),
            name()
        )));
    }
    let times = millis(array, &name)?;
    // Two loops that the compiler vectorizes.
    let low = times.iter().copied().min().unwrap_or(0);
    let high = times.iter().copied().max().unwrap_or(0);
    if low < -TIME_MS_MAX || high > TIME_MS_MAX {
        return Err(EngineError::BadInput(format!(
            "the event time '{}' is out of range: {} ms since 1970",
            name(),
            if low < -TIME_MS_MAX { low } else { high }
        )));
    }
    Ok(times)
}

fn millis(array: &ArrayRef, name: &dyn Fn() -> String) -> Result<ScalarBuffer<i64>> {
    let DataType::Timestamp(unit, _) = array.data_type() else {
        return Err(EngineError::Plan(format!(
            "the event time '{}' is {}, not a timestamp",
            name(),
            array.data_type()
        )));
    };
    Ok(match unit {
        TimeUnit::Millisecond => array.as_primitive::<TimestampMillisecondType>().values().clone(),
        TimeUnit::Second => {
            let values = array.as_primitive::<TimestampSecondType>().values();
            values.iter().map(|value| value.saturating_mul(1000)).collect()
        }
        TimeUnit::Microsecond => {
            let values = array.as_primitive::<TimestampMicrosecondType>().values();
            values.iter().map(|value| value.div_euclid(1000)).collect()
        }
        TimeUnit::Nanosecond => {
            let values = array.as_primitive::<TimestampNanosecondType>().values();
            values.iter().map(|value| value.div_euclid(1_000_000)).collect()
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{TimestampMicrosecondArray, TimestampMillisecondArray, TimestampSecondArray};
    use arrow::datatypes::{Field, Schema};

    use super::*;

    fn batch(array: ArrayRef) -> Batch {
        let field = Field::new("ts", array.data_type().clone(), true);
        Batch::try_new(Arc::new(Schema::new(vec![field])), vec![array]).unwrap()
    }

    #[test]
    fn units_become_milliseconds_rounded_down() {
        let micros = batch(Arc::new(
            TimestampMicrosecondArray::from(vec![-1, 0, 1999]).with_timezone("UTC"),
        ));
        assert_eq!(event_times(&micros, 0).unwrap().to_vec(), [-1, 0, 1]);
        let seconds = batch(Arc::new(TimestampSecondArray::from(vec![-2, 3])));
        assert_eq!(event_times(&seconds, 0).unwrap().to_vec(), [-2000, 3000]);
    }

    #[test]
    fn null_and_absurd_times_are_refused_with_the_column() {
        let null = batch(Arc::new(TimestampMillisecondArray::from(vec![Some(1), None])));
        let error = event_times(&null, 0).unwrap_err().to_string();
        assert!(
            error.contains("'ts' is NULL in 1 of 2") && error.contains("IS NOT NULL"),
            "{error}"
        );
        let far = batch(Arc::new(TimestampSecondArray::from(vec![i64::MAX])));
        assert!(event_times(&far, 0).unwrap_err().to_string().contains("out of range"));
    }
}
