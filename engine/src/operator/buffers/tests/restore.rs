//! Cut at any point and restored into any number of subtasks, windows of all kinds go on as if nothing had been.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use arrow::compute::{cast, concat_batches, sort_to_indices, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::logical_expr::Operator as BinaryOperator;
use datafusion::physical_expr::expressions::{BinaryExpr, lit};
use proptest::prelude::*;

use super::*;
use crate::operator::harness::{StoredTable, parts_of, rescaled};

type Event = (Option<i64>, i64, i64);

fn batch(rows: &[Event]) -> Batch {
    let key: Int64Array = rows.iter().map(|row| row.0).collect();
    let value: Int64Array = rows.iter().map(|row| (row.1 % 7 != 0).then_some(row.1)).collect();
    let time = TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.2));
    Batch::try_new(input(), vec![Arc::new(key), Arc::new(value), Arc::new(time)]).unwrap()
}

/// A function that depends on the order of its rows; one row for each parity of the values.
fn ordered() -> WindowFunction {
    WindowFunction::Apply(Arc::new(|cx: &WindowContext<'_>, rows: &Batch| {
        let values = rows.column(1).as_primitive::<Int64Type>();
        let mut folds: BTreeMap<i64, (i64, i64)> = BTreeMap::new();
        for value in values.iter().map(|value| value.unwrap_or(1000)) {
            let (fold, count) = folds.entry(value.rem_euclid(2)).or_default();
            (*fold, *count) = (fold.wrapping_mul(31).wrapping_add(value), *count + 1);
        }
        let rows = folds.len();
        let key = cx.key.column(0).as_primitive::<Int64Type>().iter().next().flatten();
        let time = |at: i64| Arc::new(TimestampMillisecondArray::from(vec![at; rows]));
        Ok(Batch::try_new(
            output(),
            vec![
                Arc::new(Int64Array::from(vec![key; rows])),
                Arc::new(folds.values().map(|fold| Some(fold.0)).collect::<Int64Array>()),
                Arc::new(folds.values().map(|fold| Some(fold.1)).collect::<Int64Array>()),
                time(cx.window.start_ms),
                time(cx.window.end_ms),
            ],
        )?)
    }))
}

/// How many kinds of windows there are.
const KINDS: usize = 20;

fn value() -> ScalarExpr {
    ScalarExpr::column(1, &input())
}

fn spec_of(kind: usize) -> WindowBufferSpec {
    let (tumbling, sliding) = (Tumbling::new(20, 3).unwrap(), Sliding::new(30, 10, 0).unwrap());
    let session = Session::new(15).unwrap();
    let early_late = EarlyLate {
        early_ms: Some(7),
        late_count: 2,
    };
    let punctuation = Punctuation {
        condition: ScalarExpr::new(
            Arc::new(BinaryExpr::new(value().expr, BinaryOperator::Gt, lit(6i64))),
            input(),
        ),
    };
    let delta = |threshold| (value(), threshold);
    let mut spec = match kind {
        0 => spec(tumbling, EventTime),
        1 => spec(sliding, EventTime),
        2 => spec(Cumulate::new(10, 40, 0).unwrap(), EventTime),
        3 => spec(session, EventTime),
        4 => spec(session, early_late),
        5 => spec(session, Purging(Arc::new(Count(3)))),
        6 => spec(session, ContinuousEventTime { interval_ms: 7 }),
        7 => spec(sliding, early_late),
        8 => spec(tumbling, ContinuousEventTime { interval_ms: 6 }),
        9 => spec(tumbling, ContinuousProcessingTime { interval_ms: 9 }),
        10 => spec(Global, Count(3)),
        11 => spec(Global, Purging(Arc::new(Count(4)))),
        12 => spec(
            Global,
            CountOrTimeout {
                count: 4,
                timeout_ms: 21,
            },
        ),
        13 => {
            let (value, threshold) = delta(4.0);
            spec(Global, Delta { value, threshold })
        }
        14 => {
            let (value, threshold) = delta(5.0);
            spec(Global, DeltaClose { value, threshold })
        }
        15 => spec(Global, punctuation),
        16 => spec(Landmark { start_ms: 20 }, LandmarkSteps { step_ms: 25 }),
        17 => spec(tumbling, ProcessingTime),
        18 => spec(session, ProcessingTime),
        _ => spec(Global, Never),
    };
    if matches!(kind, 9 | 12 | 17 | 18) {
        spec.time = WindowTime::Processing;
    }
    spec
}

fn evictor_of(kind: usize) -> Option<Arc<dyn Evictor>> {
    match kind {
        0 => Some(Arc::new(KeepLast(3))),
        1 => Some(Arc::new(KeepRecent(12))),
        2 => Some(Arc::new(KeepNear {
            value: value(),
            threshold: 5.0,
        })),
        _ => None,
    }
}

fn lines(batches: &[Batch]) -> Vec<String> {
    let options = FormatOptions::new().with_null("NULL");
    let mut lines = Vec::new();
    for batch in batches {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|column| match column.data_type() {
                DataType::Timestamp(..) => cast(column, &DataType::Int64).unwrap(),
                _ => Arc::clone(column),
            })
            .collect();
        let formatters = columns
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap())
            .collect::<Vec<_>>();
        for row in 0..batch.num_rows() {
            let line = formatters.iter().map(|formatter| formatter.value(row).to_string());
            lines.push(line.collect::<Vec<_>>().join("|"));
        }
    }
    lines
}

/// What the output amounts to: each row and how often it is there.
#[derive(Debug, Default, PartialEq)]
struct Sum(BTreeMap<String, i64>);

impl Sum {
    fn take(&mut self, batches: &[Batch], retracts: bool) {
        for line in lines(batches) {
            let (row, by) = match line.rsplit_once('|').filter(|_| retracts) {
                Some((row, kind)) => (row.to_string(), if kind == "0" || kind == "2" { 1 } else { -1 }),
                None => (line, 1),
            };
            let count = self.0.entry(row.clone()).or_default();
            *count += by;
            assert!(*count >= 0, "what is taken back was not there: {row}");
            if *count == 0 {
                self.0.remove(&row);
            }
        }
    }
}

#[derive(Clone, Debug)]
enum Step {
    Rows(Vec<Event>),
    Watermark(i64),
    Advance(u64),
    Restore(usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let row = (prop::option::weighted(0.9, 0i64..6), -9i64..10, -40i64..60);
    let step = prop_oneof![
        4 => prop::collection::vec(row, 1..30).prop_map(Step::Rows),
        3 => (0i64..25).prop_map(Step::Watermark),
        2 => (1u64..15).prop_map(Step::Advance),
        3 => prop_oneof![Just(1usize), Just(2), Just(3), Just(7)].prop_map(Step::Restore),
    ];
    prop::collection::vec(step, 1..30).prop_map(|mut steps| {
        let mut watermark = 0;
        for step in &mut steps {
            match step {
                Step::Rows(rows) => rows.iter_mut().for_each(|row| row.2 += watermark),
                Step::Watermark(by) => {
                    watermark += *by;
                    *by = watermark;
                }
                Step::Advance(_) | Step::Restore(_) => {}
            }
        }
        steps
    })
}

fn sides(output: &mut crate::operator::harness::Collected) -> Vec<Batch> {
    std::mem::take(&mut output.side)
        .into_iter()
        .map(|(_, batch)| batch)
        .collect()
}

fn compare(spec: &WindowBufferSpec, key_columns: &[usize], steps: &[Step]) {
    let retracts = spec.mode == AccumulationMode::AccumulatingAndRetracting;
    let mut whole = harness(spec.clone());
    let mut cut = vec![harness(spec.clone())];
    let (mut expected, mut expected_late) = (Sum::default(), Sum::default());
    let (mut sum, mut late) = (Sum::default(), Sum::default());
    let mut now = Duration::ZERO;
    for step in steps {
        match step {
            Step::Rows(rows) => {
                whole.push(0, batch(rows)).unwrap();
                let parts = parts_of(&batch(rows), key_columns, cut.len());
                for (harness, part) in cut.iter_mut().zip(parts) {
                    harness.push(0, part).unwrap();
                }
            }
            Step::Watermark(at) => {
                whole.watermark(*at).unwrap();
                cut.iter_mut().for_each(|harness| harness.watermark(*at).unwrap());
            }
            Step::Advance(by) => {
                let by = Duration::from_millis(*by);
                now += by;
                whole.advance(by).unwrap();
                cut.iter_mut().for_each(|harness| harness.advance(by).unwrap());
            }
            Step::Restore(parallelism) => {
                cut = rescaled(&mut cut, *parallelism, || WindowBuffer::new(spec.clone()).unwrap()).unwrap();
                for harness in &mut cut {
                    harness.clock.advance(now);
                    assert_eq!(harness.context.memory.bytes(), harness.operator.booked());
                }
            }
        }
        expected.take(&std::mem::take(&mut whole.output.batches), retracts);
        expected_late.take(&sides(&mut whole.output), false);
        for harness in &mut cut {
            sum.take(&std::mem::take(&mut harness.output.batches), retracts);
            late.take(&sides(&mut harness.output), false);
        }
    }
    whole.watermark(i64::MAX).unwrap();
    whole.end(0).unwrap();
    expected.take(&whole.output.batches, retracts);
    for harness in &mut cut {
        harness.watermark(i64::MAX).unwrap();
        harness.end(0).unwrap();
        sum.take(&harness.output.batches, retracts);
        assert_empty(harness);
    }
    assert_eq!(sum, expected);
    assert_eq!(late, expected_late);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn cut_windows_are_as_whole_ones(
        kind in 0..KINDS,
        evictor in 0usize..6,
        mode in 0usize..3,
        is_ordered in any::<bool>(),
        lateness in prop_oneof![Just(0i64), 1i64..40],
        steps in steps(),
    ) {
        let mut spec = spec_of(kind);
        spec.evictor = evictor_of(evictor);
        spec.allowed_lateness_ms = lateness;
        spec.late_output = Some(3);
        if is_ordered {
            spec.function = ordered();
        }
        if mode == 1 {
            spec.mode = AccumulationMode::Discarding;
        } else if mode == 2 {
            spec.mode = AccumulationMode::AccumulatingAndRetracting;
            spec.schema = with_row_kind(&output());
        }
        compare(&spec, &[0], &steps);
    }

    #[test]
    fn without_keys_the_first_subtask_has_all(kind in 0..KINDS, steps in steps()) {
        let mut spec = spec_of(kind);
        spec.keys = Vec::new();
        spec.schema = Arc::new(Schema::new(output().fields()[1..].to_vec()));
        spec.late_output = Some(3);
        compare(&spec, &[], &steps);
    }
}

/// The tables of one subtask, row by row, in any order.
fn shuffled(stored: Vec<StoredTable>) -> Vec<StoredTable> {
    let reversed = |schema: &SchemaRef, rows: &[Batch]| {
        let rows = concat_batches(schema, rows).unwrap();
        let numbers = Int64Array::from_iter_values((0..rows.num_rows() as i64).rev());
        let order = sort_to_indices(&numbers, None, None).unwrap();
        let rows = take_record_batch(&rows, &order).unwrap();
        (0..rows.num_rows()).map(|row| rows.slice(row, 1)).collect::<Vec<_>>()
    };
    let tables = stored.into_iter().map(|mut table| {
        table.rows = reversed(&table.spec.schema, &table.rows);
        table
    });
    tables.collect()
}

#[test]
fn rows_that_come_back_in_another_order_are_put_in_order() {
    let mut spec = spec(Global, Count(5));
    spec.function = ordered();
    let rows: Vec<Event> = (0..23).map(|n| (Some(n % 3), n, n)).collect();
    let mut whole = harness(spec.clone());
    whole.push(0, batch(&rows)).unwrap();
    whole.end(0).unwrap();
    let mut before = harness(spec.clone());
    before.push(0, batch(&rows[..10])).unwrap();
    before.push(0, batch(&rows[10..13])).unwrap();
    let mut output = std::mem::take(&mut before.output.batches);
    let stored = vec![shuffled(before.snapshot(1, None).unwrap())];
    let mut after = harness(spec);
    after.restore((0, 1), &[stored]).unwrap();
    after.push(0, batch(&rows[13..])).unwrap();
    after.end(0).unwrap();
    output.append(&mut after.output.batches);
    let (mut cut, mut expected) = (lines(&output), lines(&whole.output.batches));
    cut.sort();
    expected.sort();
    assert_eq!(cut, expected);
    assert!(cut.len() > 3);
}

#[test]
fn a_row_in_many_windows_is_stored_once() {
    let mut harness = harness(spec(Sliding::new(100, 10, 0).unwrap(), EventTime));
    let rows: Vec<Event> = (0..40).map(|n| (Some(n % 4), n, n)).collect();
    harness.push(0, batch(&rows)).unwrap();
    let stored = harness.snapshot(1, None).unwrap();
    let count = |name: &str| {
        let tables = stored.iter().filter(|table| table.spec.name == name);
        tables.flat_map(|table| &table.rows).map(Batch::num_rows).sum::<usize>()
    };
    assert_eq!(count("rows"), 40);
    assert!(count("windows") > 40);
}

#[test]
fn late_rows_are_late_after_a_restore() {
    let spec = spec(Tumbling::new(10, 0).unwrap(), EventTime);
    let mut before = [harness(spec.clone())];
    before[0].push(0, batch(&[(Some(1), 1, 25)])).unwrap();
    before[0].watermark(19).unwrap();
    let mut after = rescaled(&mut before, 1, || WindowBuffer::new(spec.clone()).unwrap()).unwrap();
    after[0].push(0, batch(&[(Some(1), 1, 5), (Some(2), 1, 20)])).unwrap();
    assert_eq!(after[0].context.metrics.late_rows.load(Ordering::Relaxed), 1);
    // Event time starts anew, from before.
    after[0].watermark(7).unwrap();
    after[0].push(0, batch(&[(Some(1), 1, 9)])).unwrap();
    assert_eq!(after[0].context.metrics.late_rows.load(Ordering::Relaxed), 2);
}

#[test]
fn a_window_that_is_missing_is_damage() {
    let mut before = harness(spec(Tumbling::new(10, 0).unwrap(), EventTime));
    before.push(0, batch(&[(Some(1), 1, 5)])).unwrap();
    let mut stored = before.snapshot(1, None).unwrap();
    stored.retain(|table| table.spec.name != "windows");
    let mut after = harness(spec(Tumbling::new(10, 0).unwrap(), EventTime));
    let error = after.restore((0, 1), &[vec![stored]]).unwrap_err().to_string();
    assert!(
        error.contains("is damaged") && error.contains("from 0 to 10"),
        "{error}"
    );
}
