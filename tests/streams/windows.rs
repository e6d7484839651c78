//! Programs of windows against the model.
//!
//! What is compared is deterministic whatever the threads do. With one split, the source tells its watermark behind each
//! batch, the exchange keeps rows and watermarks of one producer in their order, and so every window subtask sees of its
//! keys exactly what the model sees: any assigner, trigger, evictor, lateness and mode may be compared, row by row. With
//! several splits, the order of rows of one key depends on timing; then only windows are compared that go by event time
//! alone, over rows none of which is late within its split, with functions that do not see the order.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{AsArray, RecordBatch, StringArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimestampMillisecondType, UInt8Type};
use datafusion::functions_aggregate::expr_fn::{count, min, sum};
use datafusion::prelude::{col, lit};
use proptest::prelude::*;
use thalweg::stream::{
    AccumulationMode, DataStream, OutputTag, StreamBuilder, WatermarkStrategy, WindowAssigner, WindowEvictor,
    WindowTrigger, WindowedStream,
};

use super::model::{Assigner, Evictor, Mode, Model, Program, Row, Told, Trigger};
use super::rows::{PARALLELISMS, batch, integers, schema, session, time};

fn ms(ms: i64) -> Duration {
    Duration::from_millis(ms.unsigned_abs())
}

fn assigner(assigner: Assigner) -> WindowAssigner {
    match assigner {
        Assigner::Tumbling { size, offset } => WindowAssigner::tumbling(ms(size)).offset_ms(offset),
        Assigner::Sliding { size, slide } => WindowAssigner::sliding(ms(size), ms(slide)),
        Assigner::Cumulate { step, steps } => WindowAssigner::cumulate(ms(step), ms(step * steps)),
        Assigner::Session { gap } => WindowAssigner::session(ms(gap)),
        Assigner::Global => WindowAssigner::global(),
        Assigner::Count { size } => WindowAssigner::count(size.unsigned_abs()),
        Assigner::SlidingCount { size, slide } => {
            WindowAssigner::sliding_count(size.unsigned_abs(), slide.unsigned_abs())
        }
        Assigner::Punctuation { below } => WindowAssigner::punctuation(col("value").lt(lit(below))),
        Assigner::Landmark { start, step } => WindowAssigner::landmark(start, ms(step)),
        Assigner::Delta { threshold } => WindowAssigner::delta(col("value"), threshold as f64),
    }
}

fn trigger(trigger: Trigger) -> Option<WindowTrigger> {
    let purging = |inner| Some(WindowTrigger::Purging(Box::new(inner)));
    match trigger {
        Trigger::Own => None,
        Trigger::EventTime => Some(WindowTrigger::EventTime),
        Trigger::Never => Some(WindowTrigger::Never),
        Trigger::Count(count) => Some(WindowTrigger::Count(count.unsigned_abs())),
        Trigger::Continuous(interval) => Some(WindowTrigger::ContinuousEventTime(ms(interval))),
        Trigger::Delta(threshold) => Some(WindowTrigger::Delta(Box::new(col("value")), threshold as f64)),
        Trigger::OnTimeAndLate(late) => Some(WindowTrigger::EarlyLate {
            early: None,
            late_count: late.unsigned_abs(),
        }),
        Trigger::PurgingCount(count) => purging(WindowTrigger::Count(count.unsigned_abs())),
        Trigger::PurgingEventTime => purging(WindowTrigger::EventTime),
    }
}

fn windowed(stream: &DataStream, program: Program) -> WindowedStream {
    let mut windowed = stream
        .key_by(&["key"])
        .unwrap()
        .window(assigner(program.assigner))
        .allowed_lateness(ms(program.lateness))
        .accumulation(match program.mode {
            Mode::Discarding => AccumulationMode::Discarding,
            Mode::Accumulating => AccumulationMode::Accumulating,
            Mode::Retracting => AccumulationMode::AccumulatingAndRetracting,
        });
    if let Some(trigger) = trigger(program.trigger) {
        windowed = windowed.trigger(trigger);
    }
    match program.evictor {
        Evictor::None => windowed,
        Evictor::Count(count) => windowed.evictor(WindowEvictor::Count(count as u64)),
        Evictor::Time(span) => windowed.evictor(WindowEvictor::Time(ms(span))),
        Evictor::Delta(threshold) => windowed.evictor(WindowEvictor::Delta(Box::new(col("value")), threshold as f64)),
    }
}

/// Key, bounds, and the values in their order as a text.
fn listed(windowed: WindowedStream) -> DataStream {
    let output = Arc::new(Schema::new(vec![
        Field::new("key", DataType::Int64, false),
        Field::new("start", time(), false),
        Field::new("end", time(), false),
        Field::new("values", DataType::Utf8, false),
    ]));
    let declared = Arc::clone(&output);
    windowed
        .apply(declared, move |cx, rows| {
            let values = rows.column(1).as_primitive::<Int64Type>().values();
            let text: Vec<String> = values.iter().map(ToString::to_string).collect();
            let columns: Vec<arrow::array::ArrayRef> = vec![
                Arc::clone(cx.key.column(0)),
                Arc::new(TimestampMillisecondArray::from(vec![cx.window.start_ms])),
                Arc::new(TimestampMillisecondArray::from(vec![cx.window.end_ms])),
                Arc::new(StringArray::from(vec![text.join(",")])),
            ];
            Ok(RecordBatch::try_new(Arc::clone(&output), columns)?)
        })
        .unwrap()
}

fn told(batches: &[RecordBatch]) -> Vec<Told> {
    let mut all = Vec::new();
    for batch in batches {
        let at = |column: usize, row: usize| {
            batch
                .column(column)
                .as_primitive::<TimestampMillisecondType>()
                .value(row)
        };
        for row in 0..batch.num_rows() {
            let values = batch.column(3).as_string::<i32>().value(row).split(',');
            let kind = batch
                .columns()
                .get(4)
                .map_or(0, |kinds| kinds.as_primitive::<UInt8Type>().value(row));
            all.push(Told {
                added: matches!(kind, 0 | 2),
                key: batch.column(0).as_primitive::<Int64Type>().value(row),
                start: at(1, row),
                end: at(2, row),
                values: values.map(|value| value.parse().unwrap()).collect(),
            });
        }
    }
    all.sort();
    all
}

fn source(parallelism: usize, splits: &[Vec<Vec<Row>>], delay: i64) -> DataStream {
    source_in(&session(parallelism).stream(), splits, delay)
}

/// Batches in splits, with a watermark behind each batch that allows for so much disorder.
pub(super) fn source_in(builder: &StreamBuilder, splits: &[Vec<Vec<Row>>], delay: i64) -> DataStream {
    let splits = splits
        .iter()
        .map(|split| split.iter().map(|rows| batch(rows)).collect())
        .collect();
    let watermarks = WatermarkStrategy::bounded_out_of_orderness("time", ms(delay)).with_interval(Duration::ZERO);
    builder.from_splits(schema(), splits, watermarks).unwrap()
}

fn check(program: Program, batches: &[Vec<Row>], delay: i64) -> Result<(), TestCaseError> {
    let mut model = Model::run(program, batches, delay);
    model.told.sort();
    let split = [batches.to_vec()];
    for parallelism in PARALLELISMS {
        let stream = source(parallelism, &split, delay);
        let rows = listed(windowed(&stream, program)).execute_and_collect().unwrap();
        prop_assert_eq!(
            told(&rows),
            model.told.clone(),
            "{:?} at parallelism {}",
            program,
            parallelism
        );
    }
    let late = OutputTag::new("late");
    let stream = source(2, &split, delay);
    let side = listed(windowed(&stream, program).late_output(&late))
        .side_output(&late, schema())
        .unwrap();
    let mut expected: Vec<Vec<i64>> = model
        .late
        .iter()
        .map(|row| vec![row.key, row.value, row.time])
        .collect();
    expected.sort();
    prop_assert_eq!(
        integers(&side.execute_and_collect().unwrap()),
        expected,
        "late rows of {:?}",
        program
    );
    Ok(())
}

fn rows_at(times: std::ops::Range<i64>) -> impl Strategy<Value = Row> {
    (0..4i64, -20..20i64, times).prop_map(|(key, value, time)| Row { key, value, time })
}

/// Batches whose times rise on the whole, with disorder.
pub(super) fn batches() -> impl Strategy<Value = Vec<Vec<Row>>> {
    let batch = proptest::collection::vec(rows_at(-40..40), 1..25);
    (proptest::collection::vec(batch, 0..8), 0..40i64).prop_map(|(mut batches, pace)| {
        for (number, batch) in batches.iter_mut().enumerate() {
            batch.iter_mut().for_each(|row| row.time += number as i64 * pace);
        }
        batches
    })
}

fn assigners() -> impl Strategy<Value = Assigner> {
    prop_oneof![
        (1..40i64, -10..10i64).prop_map(|(size, offset)| Assigner::Tumbling { size, offset }),
        (1..40i64, 1..20i64).prop_map(|(size, slide)| Assigner::Sliding { size, slide }),
        (1..15i64, 1..5i64).prop_map(|(step, steps)| Assigner::Cumulate { step, steps }),
        (1..30i64).prop_map(|gap| Assigner::Session { gap }),
        Just(Assigner::Global),
        (1..8i64).prop_map(|size| Assigner::Count { size }),
        (1..8i64, 1..8i64).prop_map(|(size, slide)| Assigner::SlidingCount { size, slide }),
        (-15..10i64).prop_map(|below| Assigner::Punctuation { below }),
        (-60..60i64, 1..40i64).prop_map(|(start, step)| Assigner::Landmark { start, step }),
        (1..25i64).prop_map(|threshold| Assigner::Delta { threshold }),
    ]
}

fn programs() -> impl Strategy<Value = Program> {
    let triggers = prop_oneof![
        5 => Just(Trigger::Own),
        1 => Just(Trigger::EventTime),
        1 => Just(Trigger::Never),
        1 => (1..6i64).prop_map(Trigger::Count),
        1 => (1..25i64).prop_map(Trigger::Continuous),
        1 => (1..15i64).prop_map(Trigger::Delta),
        1 => (1..4i64).prop_map(Trigger::OnTimeAndLate),
        1 => (1..6i64).prop_map(Trigger::PurgingCount),
        1 => Just(Trigger::PurgingEventTime),
    ];
    let evictors = prop_oneof![
        3 => Just(Evictor::None),
        1 => (1..6usize).prop_map(Evictor::Count),
        1 => (1..30i64).prop_map(Evictor::Time),
        1 => (1..20i64).prop_map(Evictor::Delta),
    ];
    let modes = prop_oneof![Just(Mode::Discarding), Just(Mode::Accumulating), Just(Mode::Retracting)];
    (assigners(), triggers, evictors, 0..40i64, modes).prop_filter_map(
        "a delta trigger does not work with sessions",
        |(assigner, trigger, evictor, lateness, mode)| {
            let refused = matches!((assigner, trigger), (Assigner::Session { .. }, Trigger::Delta(_)));
            (!refused).then_some(Program {
                assigner,
                trigger,
                evictor,
                lateness,
                mode,
            })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_program_over_one_split_is_what_the_model_says(
        program in programs(),
        batches in batches(),
        delay in 0..40i64,
    ) {
        check(program, &batches, delay)?;
    }
}

fn aggregated(stream: &DataStream, program: Program) -> Vec<Vec<i64>> {
    let functions = vec![
        sum(col("value")).alias("s"),
        count(col("value")).alias("c"),
        min(col("value")).alias("m"),
    ];
    let rows = windowed(stream, program)
        .aggregate(functions)
        .unwrap()
        .execute_and_collect()
        .unwrap();
    integers(&rows)
}

/// Splits of which no row is late within its own, of `delay` disorder; some are empty, some end early.
pub(super) fn splits() -> impl Strategy<Value = (Vec<Vec<Vec<Row>>>, i64)> {
    let split = proptest::collection::vec(rows_at(-40..160), 0..60);
    (proptest::collection::vec(split, 1..5), 1..30i64, 1..9usize).prop_map(|(splits, delay, length)| {
        let ordered = splits.into_iter().map(|mut split| {
            // In order of a time that is off by less than the delay: any disorder, none of it late.
            split.sort_by_key(|row| row.time.div_euclid(delay));
            split.chunks(length).map(<[Row]>::to_vec).collect()
        });
        (ordered.collect(), delay)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn event_time_over_several_splits_is_what_the_model_says(
        assigner in assigners().prop_filter("of time", |assigner| matches!(
            assigner,
            Assigner::Tumbling { .. } | Assigner::Sliding { .. } | Assigner::Cumulate { .. } | Assigner::Session { .. }
        )),
        (splits, delay) in splits(),
    ) {
        let program = Program {
            assigner,
            trigger: Trigger::Own,
            evictor: Evictor::None,
            lateness: 0,
            mode: Mode::Accumulating,
        };
        let all: Vec<Row> = splits.iter().flatten().flatten().copied().collect();
        let model = Model::run(program, &[all], 1000);
        let mut expected: Vec<Vec<i64>> = model.told.iter().map(|told| vec![
            told.key,
            told.values.iter().sum(),
            told.values.len() as i64,
            *told.values.iter().min().unwrap(),
            told.start,
            told.end,
            told.end - 1,
        ]).collect();
        expected.sort();
        for parallelism in PARALLELISMS {
            let stream = source(parallelism, &splits, delay);
            prop_assert_eq!(aggregated(&stream, program), expected.clone(), "{:?} at {}", assigner, parallelism);
        }
    }
}

/// The paper's second listing: a global window, fired each 1,000 events, that keeps the last 100.
#[test]
fn the_second_listing() {
    let rows: Vec<Row> = (0..7300)
        .map(|n| Row {
            key: n % 3,
            value: n,
            time: n,
        })
        .collect();
    let batches: Vec<Vec<Row>> = rows.chunks(100).map(<[Row]>::to_vec).collect();
    let program = Program {
        assigner: Assigner::Global,
        trigger: Trigger::Count(1000),
        evictor: Evictor::Count(100),
        lateness: 0,
        mode: Mode::Accumulating,
    };
    check(program, &batches, 0).unwrap();
    let results = aggregated(&source(2, &[batches], 0), program);
    let mut per_key: HashMap<i64, Vec<&Vec<i64>>> = HashMap::new();
    results
        .iter()
        .for_each(|row| per_key.entry(row[0]).or_default().push(row));
    // 2,434, 2,433 and 2,433 rows: two firings each, and the rest at the end.
    assert!(
        per_key
            .values()
            .all(|rows| rows.len() == 3 && rows.iter().all(|row| row[2] == 100)),
        "{per_key:?}"
    );
}

/// The functions of an aggregation see the same rows as one of the program, where results are taken back.
#[test]
fn aggregates_take_back_what_they_said() {
    let program = Program {
        assigner: Assigner::Tumbling { size: 10, offset: 0 },
        trigger: Trigger::OnTimeAndLate(1),
        evictor: Evictor::None,
        lateness: 100,
        mode: Mode::Retracting,
    };
    let row = |value, time| Row { key: 1, value, time };
    let batches = vec![vec![row(1, 0), row(2, 5)], vec![row(0, 30)], vec![row(4, 9)]];
    for parallelism in PARALLELISMS {
        let stream = source(parallelism, std::slice::from_ref(&batches), 0);
        let expected = vec![
            vec![1, 0, 1, 0, 30, 40, 39, 0],
            vec![1, 3, 2, 1, 0, 10, 9, 0],
            vec![1, 3, 2, 1, 0, 10, 9, 1],
            vec![1, 7, 3, 1, 0, 10, 9, 2],
        ];
        assert_eq!(aggregated(&stream, program), expected);
    }
}

#[test]
fn a_window_over_all_rows_has_one_subtask() {
    for parallelism in PARALLELISMS {
        let row = |key, time| Row { key, value: 1, time };
        let splits = vec![vec![vec![row(1, 1), row(2, 2)]], vec![vec![row(3, 3), row(4, 14)]]];
        let rows = source(parallelism, &splits, 0)
            .window_all(WindowAssigner::tumbling(ms(10)))
            .aggregate(vec![sum(col("value")).alias("s")])
            .unwrap();
        assert_eq!(
            integers(&rows.execute_and_collect().unwrap()),
            [vec![1, 10, 20, 19], vec![3, 0, 10, 9]]
        );
        assert!(rows.set_parallelism(2).unwrap().execute_and_collect().is_err());
    }
}

#[test]
fn filters_and_many_functions_work_in_windows() {
    use datafusion::functions_aggregate::expr_fn::avg;
    use datafusion::logical_expr::ExprFunctionExt;
    let row = |value, time| Row { key: 1, value, time };
    let stream = source(2, &[vec![vec![row(1, 1), row(2, 2), row(3, 3)]]], 0);
    let large = sum(col("value")).filter(col("value").gt(lit(1))).build().unwrap();
    let rows = stream
        .key_by(&["key"])
        .unwrap()
        .window(WindowAssigner::tumbling(ms(10)))
        .aggregate(vec![large.alias("large"), avg(col("value")).alias("mean")])
        .unwrap();
    assert_eq!(
        integers(&rows.execute_and_collect().unwrap()),
        [vec![1, 5, 2, 0, 10, 9]]
    );
}
