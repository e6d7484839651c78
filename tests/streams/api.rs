//! The methods of streams: what they compute, how they are chained, and what is refused.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::compute::kernels::numeric::add;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::common::{JoinType, ScalarValue};
use datafusion::functions_aggregate::expr_fn::sum;
use datafusion::prelude::{col, lit};
use thalweg::engine::operator::process::ProcessContext;
use thalweg::engine::plan::{OperatorSpec, Partitioning};
use thalweg::stream::{
    BroadcastState, DataStream, OutputTag, ProcessFunction, RecordContext, RecordFunction, RowView, StateDeclarations,
    StreamBuilder, ValueState, WatermarkStrategy, WindowAssigner,
};

use super::rows::{PARALLELISMS, integers, rows, schema, session};

fn times() -> WatermarkStrategy {
    WatermarkStrategy::monotonous("time")
}

fn numbers(builder: &StreamBuilder) -> DataStream {
    let batches = vec![
        rows(&[(1, 10, 0), (2, 20, 1), (1, 30, 2)]),
        rows(&[(2, 40, 3), (3, 50, 4)]),
    ];
    builder.from_batches(schema(), batches, times()).unwrap()
}

fn pair(names: [&str; 2]) -> SchemaRef {
    let fields = names.map(|name| Field::new(name, DataType::Int64, true));
    Arc::new(Schema::new(fields.to_vec()))
}

fn run(stream: &DataStream) -> Vec<Vec<i64>> {
    integers(&stream.execute_and_collect().unwrap())
}

#[test]
fn rows_are_filtered_selected_mapped_and_made_more_or_fewer() {
    for parallelism in PARALLELISMS {
        let stream = numbers(&session(parallelism).stream());
        let selected = stream
            .filter(col("value").gt(lit(15)))
            .unwrap()
            .select(vec![col("key"), (col("value") * lit(2)).alias("twice")])
            .unwrap();
        assert_eq!(run(&selected), [[1, 60], [2, 40], [2, 80], [3, 100]]);
        let schema = selected.schema();
        let added = selected.map(pair(["key", "sum"]), move |batch| {
            let sum: ArrayRef = add(batch.column(0), batch.column(1))?;
            Ok(RecordBatch::try_new(
                pair(["key", "sum"]),
                vec![Arc::clone(batch.column(0)), sum],
            )?)
        });
        assert_eq!(run(&added), [[1, 61], [2, 42], [2, 82], [3, 103]]);
        let twice = added.flat_map(pair(["key", "sum"]), |batch| {
            Ok(vec![batch.clone(), batch.slice(0, 0), batch.slice(0, 1)])
        });
        assert!(run(&twice).len() > 4);
        assert_eq!(schema.field(1).name(), "twice");
    }
}

#[test]
fn a_map_that_changes_the_number_of_rows_or_the_columns_fails() {
    let stream = numbers(&session(1).stream());
    let fewer = stream.map(schema(), |batch| Ok(batch.slice(0, 1)));
    assert!(
        fewer
            .execute_and_collect()
            .unwrap_err()
            .to_string()
            .contains("flat_map")
    );
    let other = stream.map(pair(["a", "b"]), |batch| Ok(batch.clone()));
    assert!(
        other
            .execute_and_collect()
            .unwrap_err()
            .to_string()
            .contains("declared")
    );
}

#[test]
fn rolling_aggregates_follow_each_row() {
    for parallelism in PARALLELISMS {
        let keyed = numbers(&session(parallelism).stream()).key_by(&["key"]).unwrap();
        assert_eq!(
            run(&keyed.sum("value").unwrap()),
            [[1, 10], [1, 40], [2, 20], [2, 60], [3, 50]]
        );
        assert_eq!(
            run(&keyed.max("value").unwrap()),
            [[1, 10], [1, 30], [2, 20], [2, 40], [3, 50]]
        );
        assert_eq!(
            run(&keyed.min("value").unwrap()),
            [[1, 10], [1, 10], [2, 20], [2, 20], [3, 50]]
        );
        assert_eq!(run(&keyed.count().unwrap()), [[1, 1], [1, 2], [2, 1], [2, 2], [3, 1]]);
        let reduced = keyed
            .reduce(|so_far, row| Ok(vec![so_far[0].clone(), so_far[1].add(&row[1])?, row[2].clone()]))
            .unwrap();
        assert_eq!(
            run(&reduced),
            [[1, 10, 0], [1, 40, 2], [2, 20, 1], [2, 60, 3], [3, 50, 4]]
        );
    }
}

#[test]
fn streams_are_united_and_partitioned_in_every_way() {
    for parallelism in PARALLELISMS {
        let stream = numbers(&session(parallelism).stream());
        let both = stream.union(&[&stream.filter(col("key").eq(lit(3))).unwrap()]).unwrap();
        assert_eq!(run(&both).len(), 6);
        let custom = stream.partition_custom(|batch, subtasks, targets| {
            let keys = batch.column(0).as_primitive::<Int64Type>().values();
            targets.extend(keys.iter().map(|key| (*key as usize % subtasks) as u32));
            Ok(())
        });
        for exchanged in [stream.rebalance(), stream.global(), custom] {
            let passed = exchanged.filter(lit(true)).unwrap();
            assert_eq!(run(&passed).len(), 5);
        }
        let everywhere = stream
            .broadcast()
            .filter(lit(true))
            .unwrap()
            .set_parallelism(3)
            .unwrap();
        assert_eq!(run(&everywhere).len(), 15);
        let ranged = stream
            .range_partition(
                vec![col("value").sort(true, false)],
                vec![vec![ScalarValue::from(25i64)]],
            )
            .unwrap();
        // Each of the two subtasks sees its range: what it keeps first tells which.
        let mut states = StateDeclarations::new();
        let first = states.value("first");
        let lowest = ranged
            .process_records(states, pair(["subtask", "value"]), move |subtask| First {
                subtask: subtask as i64,
                first,
            })
            .unwrap();
        assert_eq!(run(&lowest), [[0, 10], [1, 30]]);
        let wrong = stream.partition_custom(|_, subtasks, targets| {
            targets.push(subtasks as u32);
            Ok(())
        });
        let wrong = wrong.filter(lit(true)).unwrap().set_parallelism(2).unwrap();
        assert!(
            wrong
                .execute_and_collect()
                .unwrap_err()
                .to_string()
                .contains("partition function")
        );
    }
}

/// Hands on the first row of its subtask.
struct First {
    subtask: i64,
    first: ValueState<bool>,
}

impl RecordFunction for First {
    fn on_record(
        &mut self,
        _port: usize,
        row: RowView<'_>,
        cx: &mut RecordContext<'_, '_>,
    ) -> thalweg::engine::Result<()> {
        let key = cx.key();
        if self.first.get(cx.states(), key)?.is_some() {
            return Ok(());
        }
        self.first.set(cx.states(), key, true)?;
        cx.emit(vec![self.subtask.into(), row.scalar(1)?])
    }
}

/// Hands on what a rule allows; what has no rule goes aside.
struct Allowed {
    rules: BroadcastState<i64, i64>,
    aside: OutputTag,
}

impl ProcessFunction for Allowed {
    fn on_batch(
        &mut self,
        port: usize,
        batch: &RecordBatch,
        cx: &mut ProcessContext<'_>,
    ) -> thalweg::engine::Result<()> {
        let keys = batch.column(0).as_primitive::<Int64Type>();
        for row in 0..batch.num_rows() {
            if port == 1 {
                self.rules.put(cx.states, keys.value(row), 1)?;
            } else if self.rules.get(cx.states, &keys.value(row))?.is_some() {
                cx.emit(batch.slice(row, 1))?;
            } else {
                cx.emit_side(self.aside.id(), batch.slice(row, 1))?;
            }
        }
        Ok(())
    }
}

#[test]
fn a_broadcast_stream_and_a_side_output() {
    for parallelism in PARALLELISMS {
        let builder = session(parallelism).stream();
        let stream = numbers(&builder);
        let none = builder
            .from_batches(schema(), vec![], WatermarkStrategy::none())
            .unwrap();
        let aside = OutputTag::new("aside");
        let mut states = StateDeclarations::new();
        let rules = states.broadcast("rules");
        let tag = aside.clone();
        let allowed = stream
            .key_by(&["key"])
            .unwrap()
            .connect_broadcast(&none)
            .unwrap()
            .process(states, schema(), move |_| Allowed {
                rules,
                aside: tag.clone(),
            })
            .unwrap();
        assert_eq!(run(&allowed), Vec::<Vec<i64>>::new());
        let side = allowed.side_output(&aside, schema()).unwrap();
        assert_eq!(
            run(&side.filter(lit(true)).unwrap()).len(),
            5,
            "without rules all goes aside"
        );
    }
}

/// Adds up what both inputs say of a key.
struct Both {
    sum: ValueState<i64>,
}

impl RecordFunction for Both {
    fn on_record(
        &mut self,
        port: usize,
        row: RowView<'_>,
        cx: &mut RecordContext<'_, '_>,
    ) -> thalweg::engine::Result<()> {
        let key = cx.key();
        let sign = if port == 0 { 1 } else { -1 };
        let sum = self.sum.get(cx.states(), key)?.copied().unwrap_or(0) + sign * row.i64(1)?.unwrap_or(0);
        self.sum.set(cx.states(), key, sum)?;
        // The last row of the input: everything has been taken in.
        cx.register_event_timer(i64::MAX);
        Ok(())
    }

    fn on_timer(
        &mut self,
        _timer: thalweg::engine::time::Timer,
        cx: &mut RecordContext<'_, '_>,
    ) -> thalweg::engine::Result<()> {
        let key = cx.key();
        let sum = self.sum.get(cx.states(), key)?.copied();
        let row = cx.key_row()?;
        cx.emit(vec![ScalarValue::try_from_array(row.column(0), 0)?, sum.into()])
    }
}

#[test]
fn two_keyed_streams_share_the_state_of_a_key() {
    for parallelism in PARALLELISMS {
        let builder = session(parallelism).stream();
        let first = numbers(&builder).key_by(&["key"]).unwrap();
        let second = numbers(&builder)
            .filter(col("value").gt(lit(25)))
            .unwrap()
            .key_by(&["key"])
            .unwrap();
        let mut states = StateDeclarations::new();
        let sum = states.value("sum");
        let both = first
            .connect(&second)
            .unwrap()
            .process_records(states, pair(["key", "left"]), move |_| Both { sum })
            .unwrap();
        assert_eq!(run(&both), [[1, 10], [2, 20], [3, 0]]);
    }
}

#[test]
fn co_groups_see_both_sides_of_a_window() {
    for parallelism in PARALLELISMS {
        let builder = session(parallelism).stream();
        let left = numbers(&builder);
        let right = builder
            .from_batches(schema(), vec![rows(&[(1, 7, 1), (4, 8, 1), (1, 9, 12)])], times())
            .unwrap();
        let output = pair(["left", "right"]);
        let declared = Arc::clone(&output);
        let grouped = left
            .co_group(&right)
            .unwrap()
            .where_keys(&["key"])
            .equal_to(&["key"])
            .window_apply(
                WindowAssigner::tumbling(Duration::from_millis(10)),
                |windows| windows,
                declared,
                move |_, left, right| {
                    let total = |rows: &RecordBatch| {
                        let values = rows.column(1).as_primitive::<Int64Type>().values();
                        Arc::new(Int64Array::from(vec![values.iter().sum::<i64>()])) as ArrayRef
                    };
                    Ok(RecordBatch::try_new(
                        Arc::clone(&output),
                        vec![total(left), total(right)],
                    )?)
                },
            )
            .unwrap();
        assert_eq!(run(&grouped), [[0, 8], [0, 9], [40, 7], [50, 0], [60, 0]]);
    }
}

#[test]
fn operators_of_one_parallelism_are_one_vertex_unless_told_otherwise() {
    let builder = session(2).stream();
    builder.set_parallelism(1).unwrap();
    let stream = numbers(&builder).filter(lit(true)).unwrap().name("keep").unwrap();
    stream.print().unwrap().name("end").unwrap();
    let graph = builder.job_graph("chained").unwrap();
    assert_eq!(graph.vertices.len(), 1);
    assert_eq!(graph.vertices[0].name, "Source: batches -> keep -> end");

    let apart = session(1).stream();
    let stream = numbers(&apart).filter(lit(true)).unwrap().disable_chaining().unwrap();
    stream.select(vec![col("key")]).unwrap().print().unwrap();
    assert_eq!(apart.job_graph("apart").unwrap().vertices.len(), 3);

    let timed = session(1).stream();
    numbers(&timed)
        .set_buffer_timeout(5)
        .print()
        .unwrap()
        .start_new_chain()
        .unwrap();
    let graph = timed.job_graph("timed").unwrap();
    assert_eq!(graph.edges[0].buffer_timeout_ms, Some(5));

    let wider = session(1).stream();
    let stream = numbers(&wider).filter(lit(true)).unwrap().set_parallelism(4).unwrap();
    stream.print().unwrap();
    let graph = wider.job_graph("wider").unwrap();
    assert_eq!(
        graph
            .vertices
            .iter()
            .map(|vertex| vertex.parallelism)
            .collect::<Vec<_>>(),
        [1, 4, 1]
    );
    assert!(matches!(graph.edges[0].partitioning, Partitioning::Rebalance));
}

#[test]
fn joins_are_planned_with_their_specs() {
    let builder = session(2).stream();
    let (left, right) = (numbers(&builder), numbers(&builder));
    let interval = left
        .key_by(&["key"])
        .unwrap()
        .interval_join(&right.key_by(&["key"]).unwrap())
        .unwrap()
        .between(-5, 5)
        .unwrap();
    let joined = interval.join(JoinType::Left).unwrap();
    assert_eq!(joined.schema().field(3).name(), "right_key");
    assert!(joined.schema().field(3).is_nullable());
    joined.print().unwrap();
    let windows = left
        .join(&right)
        .unwrap()
        .where_keys(&["key"])
        .equal_to(&["key"])
        .window(WindowAssigner::tumbling(Duration::from_millis(10)))
        .unwrap();
    windows.join(JoinType::Inner).unwrap().print().unwrap();
    let graph = builder.job_graph("joins").unwrap();
    let operators = || graph.vertices.iter().flat_map(|vertex| &vertex.chain);
    assert!(operators().any(|operator| matches!(operator, OperatorSpec::IntervalJoin(spec) if spec.lower_ms == -5)));
    assert!(operators().any(|operator| matches!(operator, OperatorSpec::WindowJoin(spec) if spec.left_end == 4)));
    assert!(interval.join(JoinType::LeftMark).is_err());
}

#[test]
fn wrong_programs_are_refused_before_they_run() {
    let builder = session(1).stream();
    let stream = numbers(&builder);
    let message = |error: thalweg::Error| format!("{error} {}", error.remedy().unwrap_or_default());
    let refused = [
        (stream.key_by(&["nothing"]).err(), "no column 'nothing'"),
        (stream.filter(col("nothing").gt(lit(1))).err(), "nothing"),
        (stream.filter(col("value")).err(), "Boolean"),
        (stream.window(WindowAssigner::global()).err(), "keyed"),
        (
            stream.union(&[&stream.select(vec![col("key")]).unwrap()]).err(),
            "different columns",
        ),
        (
            stream.connect(&numbers(&session(1).stream())).err(),
            "different programs",
        ),
        (stream.clone().set_parallelism(0).err(), "0 subtasks"),
        (stream.rebalance().uid("x").err(), "one operator"),
        (builder.execute("nothing").err(), "no sink"),
        (builder.from_table("no_such_table", times()).err(), "no_such_table"),
        (
            builder
                .from_batches(schema(), vec![], WatermarkStrategy::monotonous("value"))
                .err(),
            "timestamp",
        ),
        (stream.sink_to_table("no_such_table").err(), "no_such_table"),
    ];
    for (error, part) in refused {
        let text = message(error.unwrap());
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
    let texts = stream
        .select(vec![
            datafusion::logical_expr::cast(col("key"), DataType::Utf8).alias("key"),
        ])
        .unwrap();
    let mismatch = stream
        .key_by(&["key"])
        .unwrap()
        .connect(&texts.key_by(&["key"]).unwrap());
    assert!(mismatch.err().unwrap().to_string().contains("differ in type"));
    stream.filter(lit(true)).unwrap().uid("one").unwrap();
    assert!(
        stream
            .filter(lit(true))
            .unwrap()
            .uid("one")
            .err()
            .unwrap()
            .to_string()
            .contains("same uid 'one'")
    );
    let timeless = builder
        .from_batches(schema(), vec![], WatermarkStrategy::none())
        .unwrap();
    let window = timeless
        .key_by(&["key"])
        .unwrap()
        .window(WindowAssigner::tumbling(Duration::from_secs(1)));
    let error = window.aggregate(vec![sum(col("value"))]).err().unwrap();
    assert!(message(error).contains("processing_time"));
    let zero = stream
        .key_by(&["key"])
        .unwrap()
        .window(WindowAssigner::tumbling(Duration::ZERO));
    assert!(zero.aggregate(vec![sum(col("value"))]).is_err());
}

#[test]
fn a_generator_and_a_table_are_sources_and_a_job_can_be_waited_for() {
    let session = session(2);
    session
        .register_batches("streamed", schema(), vec![rows(&[(1, 1, 0), (2, 2, 0)])])
        .unwrap();
    let builder = session.stream();
    let table = builder.from_table("streamed", times()).unwrap();
    assert_eq!(run(&table).len(), 2);
    let generated = builder
        .from_generator(
            schema(),
            3,
            |split| (0..4).map(move |n| rows(&[(split as i64, n, n)])),
            WatermarkStrategy::bounded_out_of_orderness("time", Duration::from_millis(2))
                .with_idleness(Duration::from_secs(1))
                .with_alignment(Duration::from_secs(1)),
        )
        .unwrap();
    let counted = generated
        .key_by(&["key"])
        .unwrap()
        .window(WindowAssigner::tumbling(Duration::from_millis(2)))
        .aggregate(vec![sum(col("value")).alias("s")])
        .unwrap();
    let sums: Vec<i64> = run(&counted).iter().map(|row| row[1]).collect();
    assert_eq!(sums, [1, 5, 1, 5, 1, 5]);
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("out");
    let ddl = format!(
        "CREATE TABLE written (k BIGINT, s BIGINT) WITH ('connector' = 'filesystem', 'path' = '{}', 'format' = 'csv')",
        path.display()
    );
    session.execute(&ddl).unwrap();
    counted
        .select(vec![col("key"), col("s")])
        .unwrap()
        .sink_to_table("written")
        .unwrap();
    builder.start("write").unwrap().wait().unwrap();
    let written = session.sql("SELECT k, s FROM written").unwrap().collect().unwrap();
    assert_eq!(integers(&written).len(), 6);
}

#[test]
fn watermarks_are_made_in_the_middle_of_a_stream_and_by_functions() {
    let builder = session(2).stream();
    let stream = builder
        .from_batches(
            schema(),
            vec![rows(&[(1, 1, 0), (1, 2, 5)]), rows(&[(1, 4, 100)]), rows(&[(1, 8, 7)])],
            WatermarkStrategy::none(),
        )
        .unwrap();
    let strategies = [
        WatermarkStrategy::monotonous("time"),
        WatermarkStrategy::punctuated("time", col("time")),
        WatermarkStrategy::custom("time", |times| Ok(Arc::clone(times))),
    ];
    for strategy in strategies {
        let late = stream
            .assign_watermarks(strategy.with_interval(Duration::ZERO))
            .unwrap()
            // One subtask sees the batches in their order.
            .set_parallelism(1)
            .unwrap()
            .key_by(&["key"])
            .unwrap()
            .window(WindowAssigner::tumbling(Duration::from_millis(10)))
            .aggregate(vec![sum(col("value")).alias("s")])
            .unwrap();
        assert_eq!(
            run(&late),
            [[1, 3, 0, 10, 9], [1, 4, 100, 110, 109]],
            "the last row is late"
        );
    }
}
