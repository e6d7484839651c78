//! What the examples read: departures at two airports, with the minutes of their delays.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, AsArray, Int64Array, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit};
use thalweg::stream::{DataStream, WatermarkStrategy};
use thalweg::{Session, SessionConfig};

/// Minute of departure, airport, delay. They come out of order by a few minutes.
const DEPARTURES: [(i64, &str, i64); 10] = [
    (1, "EWR", 4),
    (3, "JFK", 10),
    (2, "EWR", 6),
    (8, "EWR", 30),
    (7, "JFK", 0),
    (12, "EWR", 32),
    (11, "JFK", 20),
    (16, "EWR", 2),
    (31, "JFK", 5),
    (33, "EWR", 1),
];

/// A minute in milliseconds.
pub(super) const MINUTE_MS: i64 = 60_000;

/// So many minutes.
pub(super) fn minutes(minutes: u64) -> Duration {
    Duration::from_secs(60 * minutes)
}

/// The departures as a stream that may be out of order by five minutes.
pub(super) fn departures() -> thalweg::Result<DataStream> {
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    let schema = Arc::new(Schema::new(vec![
        Field::new("airport", DataType::Utf8, false),
        Field::new("delay", DataType::Int64, false),
        Field::new("departure", time, false),
    ]));
    let airport = StringArray::from_iter_values(DEPARTURES.iter().map(|row| row.1));
    let delay = Int64Array::from_iter_values(DEPARTURES.iter().map(|row| row.2));
    let departure = TimestampMillisecondArray::from_iter_values(DEPARTURES.iter().map(|row| row.0 * MINUTE_MS));
    let columns: Vec<Arc<dyn Array>> = vec![Arc::new(airport), Arc::new(delay), Arc::new(departure)];
    let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
    let watermarks = WatermarkStrategy::bounded_out_of_orderness("departure", minutes(5));
    let session = Session::new(SessionConfig::default())?;
    session.stream().from_batches(schema, vec![batch], watermarks)
}

/// Airport, number, first and last minute of the window, in order.
pub(super) type Line = (String, i64, i64, i64);

/// Runs a program whose columns are airport, a number and the window's bounds.
pub(super) fn lines(stream: &DataStream) -> thalweg::Result<Vec<Line>> {
    let mut lines = Vec::new();
    for batch in stream.execute_and_collect()? {
        let minute = |column: usize| -> thalweg::Result<Vec<i64>> {
            let millis = arrow::compute::cast(batch.column(column), &DataType::Int64)?;
            let millis = millis.as_primitive::<Int64Type>().values().to_vec();
            Ok(millis.into_iter().map(|ms| ms.div_euclid(MINUTE_MS)).collect())
        };
        let numbers = arrow::compute::cast(batch.column(1), &DataType::Int64)?;
        let numbers = numbers.as_primitive::<Int64Type>();
        let (starts, ends) = (minute(2)?, minute(3)?);
        for row in 0..batch.num_rows() {
            let airport = batch.column(0).as_string::<i32>().value(row).to_string();
            lines.push((airport, numbers.value(row), starts[row], ends[row]));
        }
    }
    lines.sort();
    Ok(lines)
}

/// What is expected, written shortly.
pub(super) fn expected(lines: &[(&str, i64, i64, i64)]) -> Vec<Line> {
    let owned = lines.iter().map(|line| (line.0.to_string(), line.1, line.2, line.3));
    owned.collect()
}
