//! Aggregates under the default trigger go in slices: the same program in buffers says the same, at every parallelism.
//!
//! A trigger that the program brings along is one of which the planner knows nothing, so it forces buffers, even when it is
//! the default one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use datafusion::functions_aggregate::expr_fn::{array_agg, avg, count, count_distinct, max, min, sum};
use datafusion::logical_expr::{Expr, ExprFunctionExt, when};
use datafusion::prelude::{col, lit};
use proptest::prelude::*;
use thalweg::engine::operator::windows;
use thalweg::engine::plan::OperatorSpec;
use thalweg::stream::{
    AccumulationMode, DataStream, OutputTag, StreamBuilder, WatermarkStrategy, WindowAssigner, WindowEvictor,
    WindowTrigger, WindowedStream,
};

use super::model::Row;
use super::rows::{PARALLELISMS, integers, schema, session};
use super::windows::{batches, source_in};

fn ms(ms: i64) -> Duration {
    Duration::from_millis(ms.unsigned_abs())
}

fn in_buffers() -> WindowTrigger {
    WindowTrigger::Custom(Arc::new(windows::EventTime))
}

/// What the operators of a program are: aggregations in slices by their mode, buffers as `Window`.
fn operators(builder: &StreamBuilder, stream: &DataStream) -> Vec<String> {
    stream.print().unwrap();
    let graph = builder.job_graph("operators").unwrap();
    let operators = graph.vertices.iter().flat_map(|vertex| &vertex.chain);
    operators
        .filter_map(|operator| match operator {
            OperatorSpec::WindowAggregate(spec) => Some(format!("{:?}", spec.mode)),
            OperatorSpec::Custom(spec) => Some(spec.label.clone()),
            _ => None,
        })
        .collect()
}

#[derive(Clone, Copy, Debug)]
enum Functions {
    /// Which can be computed in two steps.
    Split,
    /// One of which cannot.
    Distinct,
}

fn functions(functions: Functions) -> Vec<Expr> {
    let value = || when(col("value").not_eq(lit(3i64)), col("value")).end().unwrap();
    let positive = sum(value()).filter(col("value").gt(lit(0i64))).build().unwrap();
    let mut all = vec![
        sum(value()).alias("s"),
        count(value()).alias("c"),
        min(value()).alias("least"),
        max(value()).alias("most"),
        avg(value()).alias("mean"),
        positive.alias("positive"),
    ];
    if let Functions::Distinct = functions {
        all.push(count_distinct(value()).alias("different"));
    }
    all
}

#[derive(Clone, Debug)]
struct Program {
    assigner: WindowAssigner,
    is_session: bool,
    keyed: bool,
    lateness: i64,
    mode: AccumulationMode,
    functions: Functions,
}

impl Program {
    fn windowed(&self, stream: &DataStream) -> WindowedStream {
        let windowed = if self.keyed {
            // One of the keys is NULL.
            let key = when(col("key").not_eq(lit(0i64)), col("key")).end().unwrap();
            stream
                .key_by_exprs(vec![key.alias("k")])
                .unwrap()
                .window(self.assigner.clone())
        } else {
            stream.window_all(self.assigner.clone())
        };
        windowed.allowed_lateness(ms(self.lateness)).accumulation(self.mode)
    }

    fn retracts(&self) -> bool {
        self.mode == AccumulationMode::AccumulatingAndRetracting
    }

    /// Whether slices can say it.
    fn is_sliced(&self) -> bool {
        match self.retracts() {
            true => !self.is_session,
            false => self.lateness == 0,
        }
    }

    fn check(&self, batches: &[Vec<Row>], delay: i64) -> Result<(), TestCaseError> {
        for parallelism in PARALLELISMS {
            let builder = session(parallelism).stream();
            let stream = source_in(&builder, &[batches.to_vec()], delay);
            let sliced = self.windowed(&stream).aggregate(functions(self.functions)).unwrap();
            let buffered = self.windowed(&stream).trigger(in_buffers());
            let buffered = buffered.aggregate(functions(self.functions)).unwrap();
            prop_assert_eq!(sliced.schema(), buffered.schema());
            let results = [&sliced, &buffered].map(|stream| {
                let rows = integers(&stream.execute_and_collect().unwrap());
                if self.retracts() { folded(rows) } else { rows }
            });
            prop_assert_eq!(&results[0], &results[1], "{:?} at parallelism {}", self, parallelism);
            let planned = operators(&builder, &sliced);
            prop_assert_eq!(planned.iter().any(|name| name == "Window"), !self.is_sliced());
        }
        Ok(())
    }
}

/// What is left of a changelog.
fn folded(rows: Vec<Vec<i64>>) -> Vec<Vec<i64>> {
    let mut counts: BTreeMap<Vec<i64>, i64> = BTreeMap::new();
    for mut row in rows {
        let added = matches!(row.pop(), Some(0 | 2));
        *counts.entry(row).or_default() += if added { 1 } else { -1 };
    }
    assert!(
        counts.values().all(|count| (0..=1).contains(count)),
        "a row is taken back that nobody has told of"
    );
    counts.retain(|_, count| *count > 0);
    counts.into_keys().collect()
}

fn assigners() -> impl Strategy<Value = (WindowAssigner, bool)> {
    prop_oneof![
        (1..40i64, -90..90i64).prop_map(|(size, offset)| (WindowAssigner::tumbling(ms(size)).offset_ms(offset), false)),
        (1..15i64, 1..8i64, -90..90i64).prop_map(|(slide, slides, offset)| {
            let sliding = WindowAssigner::sliding(ms(slide * slides), ms(slide));
            (sliding.offset_ms(offset), false)
        }),
        (1..15i64, 1..8i64, -90..90i64).prop_map(|(step, steps, offset)| {
            let cumulate = WindowAssigner::cumulate(ms(step), ms(step * steps));
            (cumulate.offset_ms(offset), false)
        }),
        (1..30i64).prop_map(|gap| (WindowAssigner::session(ms(gap)), true)),
    ]
}

fn programs() -> impl Strategy<Value = Program> {
    let modes = prop_oneof![
        Just(AccumulationMode::Discarding),
        Just(AccumulationMode::Accumulating),
        Just(AccumulationMode::AccumulatingAndRetracting),
    ];
    let lateness = prop_oneof![2 => Just(0i64), 1 => 1..60i64];
    let functions = prop_oneof![2 => Just(Functions::Split), 1 => Just(Functions::Distinct)];
    (assigners(), prop::bool::weighted(0.8), lateness, modes, functions).prop_map(
        |((assigner, is_session), keyed, lateness, mode, functions)| Program {
            assigner,
            is_session,
            keyed,
            lateness,
            mode,
            functions,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn slices_say_what_buffers_say(program in programs(), batches in batches(), delay in 0..40i64) {
        program.check(&batches, delay)?;
    }
}

/// In processing time a window that does not end is enough: what is counted does not depend on the clock.
#[test]
fn slices_say_what_buffers_say_in_processing_time() {
    let row = |n: i64| Row {
        key: n % 3,
        value: n,
        time: -n,
    };
    let batches: Vec<Vec<Row>> = (0..10).map(|b| (b * 20..b * 20 + 20).map(row).collect()).collect();
    let century = Duration::from_secs(100 * 366 * 86_400);
    let hundredth = century / 100;
    for assigner in [
        WindowAssigner::tumbling(century),
        WindowAssigner::cumulate(century, century),
        WindowAssigner::sliding(century, century),
        WindowAssigner::session(hundredth),
    ] {
        for parallelism in PARALLELISMS {
            let builder = session(parallelism).stream();
            let stream = source_in(&builder, std::slice::from_ref(&batches), 0);
            let keyed = stream.key_by(&["key"]).unwrap();
            let windowed = || keyed.window(assigner.clone().processing_time());
            let told = |windowed: WindowedStream| {
                let stream = windowed.aggregate(functions(Functions::Split)).unwrap();
                let mut rows = integers(&stream.execute_and_collect().unwrap());
                rows.iter_mut().for_each(|row| row.truncate(7));
                rows.sort();
                (stream, rows)
            };
            let (sliced, rows) = told(windowed());
            let custom = WindowTrigger::Custom(Arc::new(windows::ProcessingTime));
            assert_eq!(rows, told(windowed().trigger(custom)).1, "{assigner:?}");
            assert_eq!(rows.len(), 3);
            assert_eq!(rows[0][..3], [0, (0..200).step_by(3).sum::<i64>() - 3, 66]);
            assert_eq!(operators(&builder, &sliced), ["Single"]);
        }
    }
}

#[test]
fn only_what_slices_say_exactly_is_planned_in_them() {
    let planned = |parallelism, window: &dyn Fn(WindowedStream) -> WindowedStream, function: Expr| {
        let builder = session(parallelism).stream();
        let stream = source_in(&builder, &[vec![]], 0);
        let windowed = stream
            .key_by(&["key"])
            .unwrap()
            .window(WindowAssigner::sliding(ms(20), ms(10)));
        operators(&builder, &window(windowed).aggregate(vec![function]).unwrap())
    };
    let plain = |windowed| windowed;
    let total = || sum(col("value"));
    assert_eq!(planned(1, &plain, total()), ["Single"]);
    assert_eq!(planned(2, &plain, total()), ["Partial", "Final"]);
    assert_eq!(planned(2, &plain, count_distinct(col("value"))), ["Single"]);
    assert_eq!(planned(2, &plain, array_agg(col("value"))), ["Window"], "order matters");
    let late = OutputTag::new("late");
    let others: [&dyn Fn(WindowedStream) -> WindowedStream; 5] = [
        &|windowed| windowed.late_output(&late),
        &|windowed| windowed.evictor(WindowEvictor::Count(3)),
        &|windowed| windowed.trigger(WindowTrigger::Count(3)),
        &|windowed| windowed.trigger(WindowTrigger::ProcessingTime),
        &|windowed| windowed.allowed_lateness(ms(1)),
    ];
    for other in others {
        assert_eq!(planned(2, other, total()), ["Window"]);
    }
    let named = |windowed: WindowedStream| windowed.trigger(WindowTrigger::EventTime);
    assert_eq!(planned(2, &named, total()), ["Partial", "Final"]);

    let builder = session(2).stream();
    let stream = source_in(&builder, &[vec![]], 0);
    let uneven = stream.window_all(WindowAssigner::sliding(ms(20), ms(7)));
    assert_eq!(
        operators(&builder, &uneven.aggregate(vec![total()]).unwrap()),
        ["Window"]
    );
}

/// Each input of a union is grouped where it comes from; names, ids and parallelism are those of the operator itself.
#[test]
fn several_producers_have_a_partial_aggregation_each() {
    let builder = session(2).stream();
    let row = |key, time| Row { key, value: 1, time };
    let wide = source_in(&builder, &[vec![vec![row(1, 1)]], vec![vec![row(2, 2), row(1, 3)]]], 0);
    let narrow = source_in(&builder, &[vec![vec![row(1, 4), row(3, 11)]]], 0);
    let counted = wide
        .union(&[&narrow])
        .unwrap()
        .key_by(&["key"])
        .unwrap()
        .window(WindowAssigner::tumbling(ms(10)))
        .aggregate(vec![count(col("value")).alias("c")])
        .unwrap()
        .name("per key")
        .unwrap()
        .uid("counts")
        .unwrap()
        .set_parallelism(3)
        .unwrap();
    assert_eq!(
        integers(&counted.execute_and_collect().unwrap()),
        [vec![1, 3, 0, 10, 9], vec![2, 1, 0, 10, 9], vec![3, 1, 10, 20, 19]]
    );
    counted.print().unwrap();
    let graph = builder.job_graph("union").unwrap();
    let chains = graph.vertices.iter().map(|vertex| {
        let uids = (0..vertex.chain.len()).map(|place| vertex.uid(place).unwrap_or("-"));
        (
            vertex.name.as_str(),
            vertex.parallelism,
            uids.collect::<Vec<_>>().join(" "),
        )
    });
    assert_eq!(
        chains.collect::<Vec<_>>(),
        [
            (
                "Source: batches -> Partial per key",
                2,
                "- counts/partial-0".to_string()
            ),
            (
                "Source: batches -> Partial per key",
                1,
                "- counts/partial-1".to_string()
            ),
            ("per key", 3, "counts".to_string()),
            ("Sink: print", 2, "-".to_string()),
        ]
    );
    let text = thalweg_optimizer::explain(&graph);
    assert!(
        text.contains("uid=counts") && text.contains("uid=counts/partial-1"),
        "{text}"
    );
}

/// Late rows of one key are counted one by one, though they would be one state.
#[test]
fn late_rows_are_counted_in_two_steps_too() {
    for parallelism in PARALLELISMS {
        let session = session(parallelism);
        session
            .execute("CREATE TABLE nowhere (k BIGINT, s BIGINT) WITH ('connector' = 'blackhole')")
            .unwrap();
        let builder = session.stream();
        let row = |value, time| Row { key: 1, value, time };
        let batches = vec![
            vec![row(1, 5), row(2, 100)],
            vec![row(3, 5), row(4, 6), row(5, 7), row(6, 99), row(7, 101)],
            vec![row(8, 5), row(9, 200)],
        ];
        source_in(&builder, &[batches], 0)
            .key_by(&["key"])
            .unwrap()
            .window(WindowAssigner::sliding(ms(20), ms(10)))
            .aggregate(vec![sum(col("value")).alias("s")])
            .unwrap()
            .select(vec![col("key"), col("s")])
            .unwrap()
            .sink_to_table("nowhere")
            .unwrap();
        let graph = builder.job_graph("late").unwrap();
        let job = builder.start("late").unwrap();
        let metrics = job.metrics();
        job.wait().unwrap();
        let places = graph.vertices.iter().enumerate();
        let places = places.flat_map(|(id, vertex)| (0..vertex.chain.len()).map(move |place| (id, place)));
        // 99 is late for one of its two windows only.
        let late: u64 = places.map(|(id, place)| metrics.operator(id, place).late_rows).sum();
        assert_eq!(late, 4, "at parallelism {parallelism}");
        session.execute("DROP TABLE nowhere").unwrap();
    }
}

#[test]
fn a_stream_without_times_has_no_slices_in_event_time() {
    let builder = session(1).stream();
    let stream = builder
        .from_batches(schema(), vec![], WatermarkStrategy::none())
        .unwrap();
    let windowed = stream.window_all(WindowAssigner::tumbling(ms(10)));
    assert!(windowed.aggregate(vec![sum(col("value"))]).is_err());
    let of_clock = stream.window_all(WindowAssigner::tumbling(ms(10)).processing_time());
    assert_eq!(
        operators(&builder, &of_clock.aggregate(vec![sum(col("value"))]).unwrap()),
        ["Single"]
    );
    let wrong = stream.window_all(WindowAssigner::session(ms(10)).processing_time().offset_ms(3));
    assert!(wrong.aggregate(vec![sum(col("value"))]).is_err());
}
