//! Windows as DataFusion plans them, fed to our operator within small budgets and to DataFusion's own with all memory.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use arrow::array::{AsArray, Int64Array, StringViewArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use datafusion::common::tree_node::{Transformed, TreeNode};
use datafusion::datasource::MemTable;
use datafusion::logical_expr::Operator as BinaryOperator;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, lit};
use datafusion::physical_expr::window::PlainAggregateWindowExpr;
use datafusion::prelude::{SessionConfig, SessionContext};
use proptest::prelude::*;

use super::*;
use crate::operator::harness::Harness;
use crate::operator::wrapped::Wrapped;
use crate::plan::{
    JobGraph, OperatorSpec, PhysicalPlan, ScalarExpr, SortKey, Vertex, WrappedSpec, decode_job_graph, encode_job_graph,
    input_placeholder,
};

const KB: usize = 1 << 10;
const SLACK: usize = 3 * LITTLE_BYTES;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("g", DataType::Int64, true),
        Field::new("v", DataType::Int64, true),
        Field::new("s", DataType::Utf8View, true),
    ]))
}

type Row = (Option<i64>, Option<i64>);

/// Rows sorted by `g`, then `v`, NULLs last, each with a string of `width` bytes.
fn batches(rows: &[Row], size: usize, width: usize) -> Vec<Batch> {
    let mut rows = rows.to_vec();
    rows.sort_by_key(|(g, v)| (g.is_none(), *g, v.is_none(), *v));
    let batch = |rows: &[Row]| {
        let texts = rows.iter().map(|(g, _)| g.map(|g| format!("{g}{}", "x".repeat(width))));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.0))),
            Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.1))),
            Arc::new(StringViewArray::from_iter(texts)),
        ];
        Batch::try_new(schema(), columns).unwrap()
    };
    rows.chunks(size).map(batch).collect()
}

/// The window functions of `SELECT g, v, s, {sql} FROM t`, over a placeholder.
fn spec_of(sql: &str) -> WindowSpec {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let session = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    let table = MemTable::try_new(schema(), vec![vec![]]).unwrap();
    session.register_table("t", Arc::new(table)).unwrap();
    let sql = format!("SELECT g, v, s, {sql} FROM t");
    let plan = runtime.block_on(async { session.sql(&sql).await.unwrap().create_physical_plan().await.unwrap() });
    let mut functions = Vec::new();
    plan.transform_down(|node| {
        if let Some(window) = node.downcast_ref::<WindowAggExec>() {
            functions = window.window_expr().to_vec();
        }
        Ok(Transformed::no(node))
    })
    .unwrap();
    let key = |index| SortKey {
        expr: ScalarExpr::column(index, &schema()),
        descending: false,
        nulls_first: false,
    };
    let placeholder = input_placeholder(schema(), &[key(0), key(1)]).unwrap();
    let plain = functions
        .iter()
        .map(|function| {
            let plain = function.as_any().downcast_ref::<PlainAggregateWindowExpr>()?;
            let frame = plain.get_window_frame();
            let whole = plain.order_by().is_empty() || frame.end_bound.is_unbounded();
            whole.then(|| Arc::new(plain.get_aggregate_expr().clone()))
        })
        .collect::<Option<Vec<_>>>();
    let positive = Arc::new(BinaryExpr::new(
        Arc::new(Column::new("v", 1)),
        BinaryOperator::Gt,
        lit(0i64),
    ));
    let filter = sql.contains("FILTER").then_some(positive as _);
    WindowSpec {
        label: "Window under test".into(),
        whole: plain.map(|functions| Aggregates {
            filters: vec![filter; functions.len()],
            functions,
            input: schema(),
        }),
        plan: PhysicalPlan(Arc::new(WindowAggExec::try_new(functions, placeholder, true).unwrap())),
    }
}

/// What DataFusion's operator makes of it.
fn wrapped(spec: &WindowSpec, batches: &[Batch]) -> Batch {
    let (label, plan) = (spec.label.clone(), spec.plan.clone());
    let output = Harness::new(Wrapped::new(WrappedSpec { label, plan }).unwrap()).run(vec![batches.to_vec()]);
    let schema = spec.plan.0.schema();
    concat_batches(&schema, &output.unwrap()).unwrap()
}

struct Outcome {
    rows: Batch,
    spilled: bool,
    largest: usize,
}

fn within(budget: usize, spec: &WindowSpec, batches: &[Batch]) -> Result<Outcome> {
    let mut harness = Harness::with_memory(Window::new(spec.clone()).unwrap(), budget);
    for batch in batches {
        harness.push(0, batch.clone())?;
        assert!(harness.memory.reserved_bytes() <= budget.saturating_add(SLACK));
    }
    harness.end(0)?;
    assert_eq!(harness.memory.reserved_bytes(), 0);
    assert!(harness.memory.peak_bytes() <= budget.saturating_add(SLACK + budget / 4));
    if let Some(path) = harness.context.spill.path() {
        assert_eq!(std::fs::read_dir(path).unwrap().count(), 0, "a file is left");
    }
    Ok(Outcome {
        rows: harness.rows(&spec.plan.0.schema()),
        spilled: harness.context.metrics.spilled_bytes.load(Ordering::Relaxed) > 0,
        largest: harness.output.batches.iter().map(batch_bytes).max().unwrap_or(0),
    })
}

/// Partitions by row number.
fn rows_of(count: i64, partition: impl Fn(i64) -> Option<i64>) -> Vec<Row> {
    (0..count)
        .map(|n| (partition(n), (n % 7 != 0).then_some(n % 50 - 20)))
        .collect()
}

fn shapes() -> Vec<(&'static str, Vec<Row>)> {
    vec![
        ("uniform", rows_of(8000, |n| Some(n % 500))),
        ("all distinct", rows_of(8000, Some)),
        ("one hot key", rows_of(8000, |n| Some(if n % 2 == 0 { 7 } else { n }))),
        ("all equal", rows_of(8000, |_| Some(1))),
        ("all NULL", rows_of(8000, |_| None)),
        ("one row", rows_of(1, Some)),
        ("none", vec![]),
    ]
}

const WHOLE: &str = "sum(v) OVER (PARTITION BY g), count(v) OVER (PARTITION BY g), min(s) OVER (PARTITION BY g), \
     max(v) OVER (PARTITION BY g), avg(v) OVER (PARTITION BY g), count(*) OVER (PARTITION BY g)";

#[test]
fn aggregates_of_partitions_of_every_shape_within_every_budget() {
    for sql in [
        WHOLE,
        "sum(v) OVER (), min(s) OVER ()",
        "sum(v) FILTER (WHERE v > 0) OVER (PARTITION BY g)",
    ] {
        let spec = spec_of(sql);
        assert!(spec.whole.is_some());
        for (shape, rows) in shapes() {
            for size in [100, 3000] {
                let batches = batches(&rows, size, 20);
                let expected = wrapped(&spec, &batches);
                for budget in [64 * KB, 256 * KB, usize::MAX] {
                    let outcome = within(budget, &spec, &batches).unwrap();
                    assert!(outcome.rows == expected, "{shape} within {budget}");
                    let large = shape.starts_with("all ") && shape != "all distinct" || shape == "one hot key";
                    assert!(!outcome.spilled || budget < usize::MAX);
                    assert!(
                        outcome.spilled || !(large && budget == 64 * KB),
                        "{shape} within {budget}"
                    );
                }
            }
        }
    }
}

#[test]
fn sums_of_partitions_by_hand() {
    let rows = rows_of(5000, |n| (n % 13 != 0).then_some(n * n % 97));
    let mut sums: BTreeMap<Option<i64>, i64> = BTreeMap::new();
    for (g, v) in &rows {
        *sums.entry(*g).or_default() += v.unwrap_or(0);
    }
    let outcome = within(
        64 * KB,
        &spec_of("sum(v) OVER (PARTITION BY g)"),
        &batches(&rows, 700, 50),
    )
    .unwrap();
    assert_eq!(outcome.rows.num_rows(), 5000);
    let (g, sum) = (outcome.rows.column(0), outcome.rows.column(3));
    let pairs = g
        .as_primitive::<Int64Type>()
        .iter()
        .zip(sum.as_primitive::<Int64Type>());
    assert!(pairs.into_iter().all(|(g, sum)| sum == Some(sums[&g])));
}

#[test]
fn a_window_survives_serialization() {
    // Of two functions with one condition, DataFusion computes the condition below the window.
    let spec = spec_of("sum(v) FILTER (WHERE v > 0) OVER (PARTITION BY g)");
    let mut graph = JobGraph::new("test");
    graph.add_vertex(Vertex {
        name: "v".into(),
        parallelism: 1,
        output_schema: spec.plan.0.schema().into(),
        chain: vec![OperatorSpec::Window(spec.clone())],
        estimated_rows: None,
        uids: Vec::new(),
    });
    let task = SessionContext::new().task_ctx();
    let back = decode_job_graph(&encode_job_graph(&graph).unwrap(), task).unwrap();
    let OperatorSpec::Window(back) = &back.vertices[0].chain[0] else {
        panic!("{back:?}");
    };
    let batches = batches(&rows_of(3000, |n| Some(n % 2)), 500, 40);
    let outcome = within(64 * KB, back, &batches).unwrap();
    assert!(outcome.spilled && outcome.rows == wrapped(&spec, &batches));
}

const FRAMES: &str = "percent_rank() OVER (PARTITION BY g ORDER BY v), ntile(3) OVER (PARTITION BY g ORDER BY v), \
     last_value(v) OVER (PARTITION BY g ORDER BY v ROWS BETWEEN CURRENT ROW AND UNBOUNDED FOLLOWING), \
     sum(v) OVER (PARTITION BY g ORDER BY v ROWS BETWEEN 2 PRECEDING AND UNBOUNDED FOLLOWING)";

#[test]
fn functions_of_all_rows_of_a_partition_hold_one_partition() {
    let spec = spec_of(FRAMES);
    assert!(spec.whole.is_none());
    for (shape, rows) in shapes() {
        let batches = batches(&rows, 1000, 20);
        let expected = wrapped(&spec, &batches);
        let outcome = within(usize::MAX, &spec, &batches).unwrap();
        assert!(outcome.rows == expected, "{shape}");
        let few = within(1024 * KB, &spec, &batches);
        match few {
            Ok(outcome) => assert!(outcome.rows == expected && !outcome.spilled, "{shape}"),
            Err(error) => {
                assert!(
                    ["one hot key", "all equal", "all NULL"].contains(&shape),
                    "{shape}: {error}"
                );
                let text = error.to_string();
                assert!(
                    text.contains("Window under test") && text.contains("largest partition takes"),
                    "{text}"
                );
            }
        }
    }
    // Far more than the budget, in partitions that are not.
    let many = batches(&rows_of(60_000, |n| Some(n % 600)), 1000, 20);
    assert!(within(1024 * KB, &spec, &many).unwrap().rows == wrapped(&spec, &many));
}

#[test]
fn wide_rows_leave_in_small_batches() {
    const MB: usize = 1 << 20;
    let spec = spec_of("count(v) OVER (PARTITION BY g), min(s) OVER (PARTITION BY g)");
    let rows = rows_of(40, |n| Some(i64::from(n > 30)));
    let batches = batches(&rows, 2, MB);
    let mut harness = Harness::with_memory(Window::new(spec.clone()).unwrap(), 8 * MB);
    for batch in &batches {
        harness.push(0, batch.clone()).unwrap();
    }
    harness.end(0).unwrap();
    assert!(harness.context.metrics.spilled_bytes.load(Ordering::Relaxed) > 30 << 20);
    assert!(
        harness.memory.peak_bytes() <= 12 * MB,
        "{}",
        harness.memory.peak_bytes()
    );
    assert!(harness.output.batches.iter().all(|batch| batch.num_rows() == 1));
    assert!(harness.rows(&spec.plan.0.schema()) == wrapped(&spec, &batches));
}

#[test]
fn output_batches_are_bounded() {
    let spec = spec_of(WHOLE);
    let batches = batches(&rows_of(40_000, |n| Some(n / 20_000)), 1000, 100);
    let outcome = within(1024 * KB, &spec, &batches).unwrap();
    assert!(
        outcome.spilled && outcome.largest <= 2 * 128 * KB,
        "{}",
        outcome.largest
    );
}

#[test]
fn an_open_partition_is_spilled_when_another_operator_needs_the_memory() {
    let spec = spec_of(WHOLE);
    let batches = batches(&rows_of(8000, |_| Some(1)), 1000, 100);
    let mut harness = Harness::with_memory(Window::new(spec.clone()).unwrap(), 4096 * KB);
    let mut other = harness.context.memory.sibling();
    for batch in &batches[..4] {
        harness.push(0, batch.clone()).unwrap();
    }
    harness.context.hold_anyway(3000 * KB);
    assert!(other.try_grow(2000 * KB).is_err() && harness.context.memory.must_spill());
    harness.push(0, batches[4].clone()).unwrap();
    assert!(!harness.context.memory.must_spill());
    other.try_grow(2000 * KB).unwrap();
    for batch in &batches[5..] {
        harness.push(0, batch.clone()).unwrap();
    }
    harness.end(0).unwrap();
    assert!(harness.rows(&spec.plan.0.schema()) == wrapped(&spec, &batches));
}

#[test]
fn a_cancelled_job_ends_in_the_middle_of_spilling() {
    let spec = spec_of(WHOLE);
    let batches = batches(&rows_of(8000, |_| Some(1)), 1000, 100);
    let mut harness = Harness::with_memory(Window::new(spec).unwrap(), 64 * KB);
    harness.push(0, batches[0].clone()).unwrap();
    harness.context.cancel.cancel();
    let error = batches[1..]
        .iter()
        .find_map(|batch| harness.push(0, batch.clone()).err());
    assert!(matches!(error, Some(EngineError::Cancelled)));
    let path = harness.context.spill.path().unwrap();
    drop(harness);
    assert!(!path.exists());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_partitions_in_any_pieces_within_any_budget(
        rows in prop::collection::vec((prop::option::weighted(0.9, 0i64..12), prop::option::of(-50i64..50)), 0..2500),
        size in 1usize..900, width in 0usize..80, budget in 32usize..500, whole in any::<bool>(),
    ) {
        let spec = spec_of(if whole { WHOLE } else { FRAMES });
        let batches = batches(&rows, size, width);
        let expected = wrapped(&spec, &batches);
        prop_assert!(within(usize::MAX, &spec, &batches).unwrap().rows == expected);
        match within(budget * KB, &spec, &batches) {
            Ok(outcome) => prop_assert!(outcome.rows == expected),
            Err(error) => prop_assert!(!whole, "{}", error),
        }
    }
}
