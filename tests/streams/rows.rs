//! Sessions and rows for the tests.

use std::sync::{Arc, OnceLock};

use arrow::array::{AsArray, Int64Array, RecordBatch, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, TimeUnit};
use thalweg::{Session, SessionConfig};

use super::model::Row;

/// The parallelisms that everything runs at.
pub(super) const PARALLELISMS: [usize; 3] = [1, 2, 5];

/// The session of a parallelism, the same in all tests.
pub(super) fn session(parallelism: usize) -> &'static Session {
    static SESSIONS: OnceLock<Vec<(usize, Session)>> = OnceLock::new();
    let sessions = SESSIONS.get_or_init(|| {
        let config = |parallelism| SessionConfig {
            parallelism,
            memory_bytes: 512 << 20,
            // A batch leaves at once: what is tested is not how long it may wait.
            buffer_timeout_ms: Some(0),
            watermark_interval_ms: 0,
            ..SessionConfig::default()
        };
        PARALLELISMS
            .map(|parallelism| (parallelism, Session::new(config(parallelism)).unwrap()))
            .into()
    });
    &sessions.iter().find(|(of, _)| *of == parallelism).unwrap().1
}

pub(super) fn time() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, None)
}

/// `key`, `value` and `time`.
pub(super) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Int64, false),
        Field::new("value", DataType::Int64, false),
        Field::new("time", time(), false),
    ]))
}

pub(super) fn batch(rows: &[Row]) -> RecordBatch {
    let key = Int64Array::from_iter_values(rows.iter().map(|row| row.key));
    let value = Int64Array::from_iter_values(rows.iter().map(|row| row.value));
    let time = TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.time));
    RecordBatch::try_new(schema(), vec![Arc::new(key), Arc::new(value), Arc::new(time)]).unwrap()
}

/// Rows of key, value and time.
pub(super) fn rows(rows: &[(i64, i64, i64)]) -> RecordBatch {
    let rows = rows.iter().map(|(key, value, time)| Row {
        key: *key,
        value: *value,
        time: *time,
    });
    batch(&rows.collect::<Vec<_>>())
}

/// All columns as integers, times in milliseconds, the rows in order; NULL is the least.
pub(super) fn integers(batches: &[RecordBatch]) -> Vec<Vec<i64>> {
    let mut all = Vec::new();
    for batch in batches {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|column| arrow::compute::cast(column, &DataType::Int64).unwrap())
            .collect();
        for row in 0..batch.num_rows() {
            let value = |column: &arrow::array::ArrayRef| {
                use arrow::array::Array;
                if column.is_null(row) {
                    i64::MIN
                } else {
                    column.as_primitive::<Int64Type>().value(row)
                }
            };
            all.push(columns.iter().map(value).collect());
        }
    }
    all.sort();
    all
}
