//! Hand-computed cases on the operator itself: processing time, timeouts, merging, taking back, cleaning up. Programs of
//! all kinds against a naive model are in the end-to-end tests of streams.

mod restore;

use std::time::Duration;

use arrow::array::{AsArray, Int64Array, TimestampMicrosecondArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMillisecondType, UInt8Type};
use datafusion::functions_aggregate::count::count_udaf;
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::physical_expr::expressions::col;

use super::*;
use crate::data::{Batch, with_row_kind};
use crate::operator::harness::Harness;
use crate::plan::{Aggregates, WindowProperty};

fn millisecond() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, None)
}

fn input() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Int64, true),
        Field::new("value", DataType::Int64, true),
        Field::new("time", millisecond(), true),
    ]))
}

/// Rows of key, value and time.
fn rows(rows: &[(i64, i64, i64)]) -> Batch {
    let column = |pick: fn(&(i64, i64, i64)) -> i64| rows.iter().map(pick);
    let key = Int64Array::from_iter_values(column(|row| row.0));
    let value = Int64Array::from_iter_values(column(|row| row.1));
    let time = TimestampMillisecondArray::from_iter_values(column(|row| row.2));
    Batch::try_new(input(), vec![Arc::new(key), Arc::new(value), Arc::new(time)]).unwrap()
}

/// Key, sum and count of the values, start and end of the window.
fn output() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Int64, true),
        Field::new("sum", DataType::Int64, true),
        Field::new("count", DataType::Int64, false),
        Field::new("window_start", millisecond(), true),
        Field::new("window_end", millisecond(), true),
    ]))
}

fn sum_and_count() -> WindowFunction {
    let value = col("value", &input()).unwrap();
    let build = |function, name: &str| {
        let builder = AggregateExprBuilder::new(function, vec![Arc::clone(&value)]);
        Arc::new(builder.schema(input()).alias(name).build().unwrap())
    };
    WindowFunction::Aggregate {
        aggregates: Aggregates {
            functions: vec![build(sum_udaf(), "sum"), build(count_udaf(), "count")],
            filters: vec![None, None],
            input: input(),
        },
        properties: vec![WindowProperty::Start, WindowProperty::End],
    }
}

fn spec(assigner: impl Assigner + 'static, trigger: impl Trigger + 'static) -> WindowBufferSpec {
    WindowBufferSpec {
        assigner: Arc::new(assigner),
        trigger: Arc::new(trigger),
        evictor: None,
        time: WindowTime::Event(2),
        keys: vec![ScalarExpr::column(0, &input())],
        function: sum_and_count(),
        allowed_lateness_ms: 0,
        late_output: None,
        mode: AccumulationMode::Accumulating,
        input: input(),
        schema: output(),
    }
}

fn harness(spec: WindowBufferSpec) -> Harness<WindowBuffer> {
    spec.check().unwrap();
    Harness::new(WindowBuffer::new(spec).unwrap())
}

/// Key, sum, count, start and end, in order.
type Row = (i64, i64, i64, i64, i64);

fn unordered(batch: &Batch) -> Vec<Row> {
    let integer = |column: usize, row: usize| batch.column(column).as_primitive::<Int64Type>().value(row);
    let time = |column: usize, row: usize| {
        let times = batch.column(column).as_primitive::<TimestampMillisecondType>();
        times.value(row)
    };
    (0..batch.num_rows())
        .map(|row| {
            (
                integer(0, row),
                integer(1, row),
                integer(2, row),
                time(3, row),
                time(4, row),
            )
        })
        .collect()
}

fn taken(harness: &mut Harness<WindowBuffer>) -> Vec<Row> {
    let mut rows = unordered(&harness.take(&output()));
    rows.sort_unstable();
    rows
}

fn assert_empty(harness: &Harness<WindowBuffer>) {
    assert_eq!(harness.operator.held(), (0, true), "windows or rows are left");
}

#[test]
fn results_leave_when_the_watermark_reaches_the_last_millisecond_and_before_it_does() {
    let mut harness = harness(spec(Tumbling::new(10, 0).unwrap(), EventTime));
    harness
        .push(0, rows(&[(1, 5, 0), (2, 7, 9), (1, 6, 3), (1, 1, 10), (1, 2, -1)]))
        .unwrap();
    harness.watermark(8).unwrap();
    assert_eq!(taken(&mut harness), [(1, 2, 1, -10, 0)]);
    harness.watermark(9).unwrap();
    assert_eq!(taken(&mut harness), [(1, 11, 2, 0, 10), (2, 7, 1, 0, 10)]);
    harness.push(0, rows(&[(1, 100, 9)])).unwrap();
    assert_eq!(
        harness
            .context
            .metrics
            .late_rows
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );
    harness.watermark(i64::MAX).unwrap();
    harness.end(0).unwrap();
    assert_eq!(taken(&mut harness), [(1, 1, 1, 10, 20)]);
    assert_empty(&harness);
}

#[test]
fn windows_of_processing_time_end_when_their_last_millisecond_is_over() {
    let mut of_clock = spec(Tumbling::new(10, 0).unwrap(), ProcessingTime);
    of_clock.time = WindowTime::Processing;
    let mut harness = harness(of_clock);
    harness.push(0, rows(&[(1, 5, 0)])).unwrap();
    harness.advance(Duration::from_millis(9)).unwrap();
    harness.push(0, rows(&[(1, 6, 0)])).unwrap();
    assert_eq!(taken(&mut harness), []);
    harness.advance(Duration::from_millis(1)).unwrap();
    assert_eq!(taken(&mut harness), [(1, 11, 2, 0, 10)]);
    harness.push(0, rows(&[(1, 7, 0)])).unwrap();
    harness.end(0).unwrap();
    assert_eq!(
        taken(&mut harness),
        [(1, 7, 1, 10, 20)],
        "what is held leaves at the end"
    );
    assert_empty(&harness);
}

#[test]
fn a_timeout_closes_an_unfilled_count_window() {
    let trigger = CountOrTimeout {
        count: 3,
        timeout_ms: 5,
    };
    let mut of_clock = spec(Global, trigger);
    of_clock.time = WindowTime::Processing;
    let mut harness = harness(of_clock);
    harness
        .push(0, rows(&[(1, 1, 0), (1, 2, 0), (1, 3, 0), (1, 4, 0)]))
        .unwrap();
    assert_eq!(taken(&mut harness), [(1, 6, 3, 0, 1)]);
    harness.advance(Duration::from_millis(2)).unwrap();
    harness.push(0, rows(&[(2, 9, 0), (1, 5, 0)])).unwrap();
    harness.advance(Duration::from_millis(4)).unwrap();
    assert_eq!(
        taken(&mut harness),
        [(1, 9, 2, 0, 3)],
        "the first window's timeout is no longer that of the second"
    );
    harness.advance(Duration::from_millis(2)).unwrap();
    assert_eq!(taken(&mut harness), [(2, 9, 1, 2, 3)]);
    assert_empty(&harness);
}

#[test]
fn sessions_merge_and_a_gap_exactly_as_long_parts_them() {
    let mut harness = harness(spec(Session::new(10).unwrap(), EventTime));
    harness
        .push(0, rows(&[(1, 1, 0), (1, 2, 18), (2, 4, 5), (1, 8, 28)]))
        .unwrap();
    // Joins the first two; late by itself once the watermark is 19, but not in the session that it joins.
    harness.watermark(8).unwrap();
    harness.push(0, rows(&[(1, 16, 9)])).unwrap();
    harness.watermark(100).unwrap();
    assert_eq!(
        taken(&mut harness),
        [(1, 8, 1, 28, 38), (1, 19, 3, 0, 28), (2, 4, 1, 5, 15)]
    );
    assert_empty(&harness);
}

#[test]
fn an_early_result_is_taken_back_by_the_next_and_by_that_of_a_merged_session() {
    let mut retracting = spec(
        Session::new(10).unwrap(),
        EarlyLate {
            early_ms: Some(5),
            late_count: 1,
        },
    );
    retracting.mode = AccumulationMode::AccumulatingAndRetracting;
    retracting.schema = with_row_kind(&output());
    retracting.allowed_lateness_ms = 50;
    let mut harness = harness(retracting);
    let changes = |harness: &mut Harness<WindowBuffer>| {
        let batch = harness.take(&with_row_kind(&output()));
        let kinds = batch.column(5).as_primitive::<UInt8Type>().values().to_vec();
        let sums: Vec<i64> = unordered(&batch).iter().map(|row| row.1).collect();
        kinds.into_iter().zip(sums).collect::<Vec<_>>()
    };
    harness.push(0, rows(&[(1, 1, 0), (1, 2, 15)])).unwrap();
    harness.advance(Duration::from_millis(6)).unwrap();
    let mut early = changes(&mut harness);
    early.sort_unstable();
    assert_eq!(early, [(0, 1), (0, 2)]);
    harness.push(0, rows(&[(1, 4, 8)])).unwrap();
    harness.watermark(24).unwrap();
    // One of the two early results is updated, the other goes.
    let mut merged = changes(&mut harness);
    merged.sort_unstable();
    assert!(
        merged == [(1, 1), (2, 7), (3, 2)] || merged == [(1, 2), (2, 7), (3, 1)],
        "{merged:?}"
    );
    harness.push(0, rows(&[(1, 8, 3), (1, 16, 3)])).unwrap();
    assert_eq!(
        changes(&mut harness),
        [(1, 7), (2, 15), (1, 15), (2, 31)],
        "two late rows, one micro-batch"
    );
    harness.watermark(74).unwrap();
    harness.end(0).unwrap();
    assert_eq!(changes(&mut harness), []);
    assert_empty(&harness);
}

#[test]
fn the_second_listing_fires_each_thousand_with_the_last_hundred() {
    let mut listing = spec(Global, Count(1000));
    listing.evictor = Some(Arc::new(KeepLast(100)));
    let mut harness = harness(listing);
    let all: Vec<(i64, i64, i64)> = (0..2500).map(|n| (1, n, n)).collect();
    for chunk in all.chunks(333) {
        harness.push(0, rows(chunk)).unwrap();
    }
    let sum = |range: std::ops::Range<i64>| range.sum::<i64>();
    assert_eq!(
        taken(&mut harness),
        [
            (1, sum(900..1000), 100, 900, 1000),
            (1, sum(1900..2000), 100, 1900, 2000)
        ]
    );
    harness.watermark(i64::MAX).unwrap();
    harness.end(0).unwrap();
    assert_eq!(taken(&mut harness), [(1, sum(2400..2500), 100, 2400, 2500)], "the rest");
    assert_empty(&harness);
}

#[test]
fn continuous_and_discarding_tell_each_row_once() {
    let mut discarding = spec(Tumbling::new(100, 0).unwrap(), ContinuousEventTime { interval_ms: 10 });
    discarding.mode = AccumulationMode::Discarding;
    let mut harness = harness(discarding);
    harness.push(0, rows(&[(1, 1, 5), (1, 2, 12)])).unwrap();
    harness.watermark(10).unwrap();
    assert_eq!(taken(&mut harness), [(1, 3, 2, 0, 100)]);
    harness.watermark(60).unwrap();
    assert_eq!(taken(&mut harness), [], "nothing new, no firing");
    harness.push(0, rows(&[(1, 4, 70)])).unwrap();
    harness.watermark(i64::MAX).unwrap();
    assert_eq!(taken(&mut harness), [(1, 4, 1, 0, 100)]);
    assert_empty(&harness);
}

#[test]
fn late_rows_go_to_their_side_output_when_all_their_windows_are_gone() {
    let mut sliding = spec(Sliding::new(20, 10, 0).unwrap(), EventTime);
    sliding.late_output = Some(7);
    let mut harness = harness(sliding);
    harness.watermark(20).unwrap();
    harness.push(0, rows(&[(1, 1, 9), (1, 2, 15), (1, 3, 25)])).unwrap();
    assert_eq!(harness.output.side.len(), 1);
    let (tag, late) = &harness.output.side[0];
    assert_eq!((*tag, late.num_rows()), (7, 1));
    harness.watermark(i64::MAX).unwrap();
    assert_eq!(
        taken(&mut harness),
        [(1, 3, 1, 20, 40), (1, 5, 2, 10, 30)],
        "a row counts where it is in time"
    );
    assert_empty(&harness);
}

#[test]
fn an_unknown_time_is_an_error_that_names_the_column() {
    let mut harness = harness(spec(Tumbling::new(10, 0).unwrap(), EventTime));
    let time = TimestampMillisecondArray::from(vec![Some(1), None]);
    let value = Int64Array::from(vec![1, 2]);
    let batch = Batch::try_new(input(), vec![Arc::new(value.clone()), Arc::new(value), Arc::new(time)]).unwrap();
    let error = harness.push(0, batch).unwrap_err().to_string();
    assert!(error.contains("'time' is NULL") && error.contains("filter"), "{error}");
}

#[test]
fn times_before_the_epoch_are_rounded_down() {
    let times: arrow::array::ArrayRef = Arc::new(TimestampMicrosecondArray::from(vec![-1, -1000, -1001, 999]));
    assert_eq!(event_times(&times, "t").unwrap(), [-1, -1, -2, 0]);
}

#[test]
fn a_budget_that_is_too_small_is_an_error() {
    let spec = spec(Global, Never);
    let mut harness = Harness::with_memory(WindowBuffer::new(spec).unwrap(), 100_000);
    let many: Vec<(i64, i64, i64)> = (0..8000).map(|n| (n, n, n)).collect();
    let outcome = (0..10).try_for_each(|_| harness.push(0, rows(&many)));
    assert!(outcome.is_err());
}

#[test]
fn parts_that_do_not_go_together_are_refused() {
    let merging = spec(Session::new(1).unwrap(), LandmarkSteps { step_ms: 1 });
    assert!(merging.check().unwrap_err().to_string().contains("merge"));
    let mut retracting = spec(Global, Never);
    retracting.mode = AccumulationMode::AccumulatingAndRetracting;
    assert!(retracting.check().is_err());
    assert!(Tumbling::new(0, 0).is_err() && Cumulate::new(3, 10, 0).is_err());
}

/// So many windows of so many keys each, one after the other; nothing stays.
fn many_keys(windows: i64, keys: i64) {
    let mut harness = harness(spec(Tumbling::new(1000, 0).unwrap(), EventTime));
    let mut most = 0;
    let mut results = 0;
    for window in 0..windows {
        let batch: Vec<(i64, i64, i64)> = (0..keys)
            .map(|key| (window * keys + key, 1, window * 1000 + key % 1000))
            .collect();
        for chunk in batch.chunks(8192) {
            harness.push(0, rows(chunk)).unwrap();
        }
        harness.watermark(window * 1000 + 500).unwrap();
        most = most.max(harness.context.memory.bytes());
        results += harness.take(&output()).num_rows();
    }
    harness.watermark(i64::MAX).unwrap();
    results += harness.take(&output()).num_rows();
    assert_eq!(results as i64, windows * keys);
    assert_empty(&harness);
    // Two windows are open at a time, and no key is known of those before.
    let per_key = most / usize::try_from(3 * keys).unwrap();
    assert!(per_key < 1000, "{most} bytes for {keys} keys a window");
    assert!(
        harness.context.memory.bytes() < 16 << 10,
        "{} bytes stay",
        harness.context.memory.bytes()
    );
}

#[test]
fn a_million_keys_leave_nothing_behind() {
    many_keys(100, 10_000);
}

#[test]
#[ignore = "ten million keys take their time"]
fn ten_million_keys_leave_nothing_behind() {
    many_keys(1000, 10_000);
}

#[test]
fn a_row_that_stays_does_not_keep_its_batch() {
    let mut harness = harness(spec(Tumbling::new(1000, 0).unwrap(), EventTime));
    const FAR: i64 = 1_000_000;
    let mut most = 0;
    for round in 0..40 {
        let mut batch: Vec<(i64, i64, i64)> = (0..4000).map(|n| (n % 7, 1, round * 1000)).collect();
        batch.push((3, round, FAR));
        harness.push(0, rows(&batch)).unwrap();
        harness.watermark(round * 1000 + 999).unwrap();
        assert_eq!(harness.take(&output()).num_rows(), 7);
        most = most.max(harness.context.memory.bytes());
    }
    // All rows would be near 4 MB: what is dead goes before it is that much.
    assert!(most < 2_500_000, "{most} bytes");
    harness.watermark(i64::MAX).unwrap();
    assert_eq!(taken(&mut harness), [(3, (0..40).sum(), 40, FAR, FAR + 1000)]);
    assert_empty(&harness);
}

#[test]
fn a_session_outlives_the_keys_around_it() {
    let mut harness = harness(spec(Session::new(100).unwrap(), EventTime));
    for round in 0..20 {
        let mut batch: Vec<(i64, i64, i64)> = (0..3000).map(|n| (round * 3000 + n, 1, round * 50)).collect();
        batch.push((-1, round, round * 50));
        batch.extend([(-2, 1, round * 200 + 10_000)]);
        harness.push(0, rows(&batch)).unwrap();
        harness.watermark(round * 50).unwrap();
    }
    harness.watermark(i64::MAX).unwrap();
    let results = taken(&mut harness);
    assert_eq!(results.len(), 20 * 3000 + 1 + 20);
    let long: Vec<&Row> = results.iter().filter(|row| row.0 == -1).collect();
    assert_eq!(long, [&(-1, (0..20).sum(), 20, 0, 19 * 50 + 100)]);
    assert_empty(&harness);
}

#[test]
fn without_keys_and_with_an_evictor_of_time() {
    let mut all = spec(Global, Count(3));
    all.keys = Vec::new();
    all.evictor = Some(Arc::new(KeepRecent(10)));
    all.schema = Arc::new(Schema::new(output().fields()[1..].to_vec()));
    let schema = Arc::clone(&all.schema);
    let mut harness = harness(all);
    harness
        .push(0, rows(&[(1, 1, 0), (2, 2, 20), (3, 4, 15), (4, 8, 11), (5, 16, 30)]))
        .unwrap();
    let fired = harness.take(&schema);
    assert_eq!(fired.column(0).as_primitive::<Int64Type>().values(), &[6]);
    harness.end(0).unwrap();
    let rest = harness.take(&schema);
    assert_eq!(
        rest.column(0).as_primitive::<Int64Type>().values(),
        &[16],
        "20 and all before are too old"
    );
}
