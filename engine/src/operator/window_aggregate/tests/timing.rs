//! Timings, run by hand and optimized.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, PrimitiveArray, StringArray};
use arrow::datatypes::{TimestampMicrosecondType, TimestampMillisecondType};

use super::model::{assign, operator, schema, specs, sums};
use super::slices::drained;
use crate::data::Batch;
use crate::operator::harness::Harness;
use crate::plan::WindowKind;

const BATCH: i64 = 8192;

/// `BATCH` events, so many to a second, of keys in no order.
fn events(first: i64, per_second: i64, keys: i64) -> Batch {
    let numbers = first..first + BATCH;
    let time = |n: i64| n * 1_000_000 / per_second;
    let key = |n: i64| ((n as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20) as i64 % keys;
    let window = PrimitiveArray::<TimestampMillisecondType>::from_iter_values(numbers.clone().map(|_| 0));
    let window: ArrayRef = Arc::new(window.with_data_type(schema().field(4).data_type().clone()));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(
            PrimitiveArray::<TimestampMicrosecondType>::from_iter_values(numbers.clone().map(time))
                .with_timezone("UTC"),
        ),
        Arc::new(Int32Array::from_iter_values(numbers.clone().map(|n| key(n) as i32))),
        Arc::new(StringArray::from_iter_values(numbers.clone().map(|_| ""))),
        Arc::new(Int64Array::from_iter_values(numbers)),
        Arc::clone(&window),
        window,
    ];
    Batch::try_new(schema(), columns).unwrap()
}

#[expect(clippy::disallowed_methods, reason = "a timing is of the wall clock")]
fn rate(what: &str, kind: WindowKind, per_second: i64, keys: i64) {
    let functions = [sums().remove(0), sums().remove(2)];
    let spec = specs(assign(kind), &["k"], &functions, None).single;
    let mut harness = Harness::new(operator(&spec));
    let mut spent = std::time::Duration::ZERO;
    let (mut results, mut first) = (0, 0);
    while first < 20_000_000 {
        let batch = events(first, per_second, keys);
        first += BATCH;
        let start = std::time::Instant::now();
        harness.push(0, batch).unwrap();
        harness.watermark(first * 1000 / per_second - 1000).unwrap();
        spent += start.elapsed();
        results += drained(&mut harness).iter().map(Batch::num_rows).sum::<usize>();
    }
    let millions = first as f64 / spent.as_secs_f64() / 1e6;
    println!("{what}: {millions:.1} M events/s, {results} results");
}

#[test]
#[ignore = "a timing, not a check"]
fn rates() {
    let tumble = WindowKind::Tumble {
        size_ms: 10_000,
        offset_ms: 0,
    };
    let hour = WindowKind::Hop {
        size_ms: 3_600_000,
        slide_ms: 1000,
        offset_ms: 0,
    };
    let session = WindowKind::Session { gap_ms: 10_000 };
    rate("tumbling 10 s, 100 keys", tumble, 1_000_000, 100);
    rate("tumbling 10 s, 100 k keys", tumble, 1_000_000, 100_000);
    rate("tumbling 10 s, 1 M keys", tumble, 1_000_000, 1_000_000);
    rate("sliding 1 h by 1 s, 1000 keys", hour, 100_000, 1000);
    rate("sliding 1 h by 1 s, 10 k keys", hour, 100_000, 10_000);
    rate("sessions, 100 k keys", session, 100_000, 100_000);
}
