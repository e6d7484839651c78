//! Every join type against the naive join over rows.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{Int32Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::JoinType;
use proptest::prelude::*;

use super::NestedLoopJoin;
use crate::data::{Batch, EngineError};
use crate::operator::harness::Harness;
use crate::operator::hash_join::naive::{JOIN_TYPES, cells, full_schema, less_filter, naive, texts};
use crate::operator::{Operator, ReadNext};
use crate::plan::NestedLoopJoinSpec;

fn schema(prefix: &str) -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new(format!("{prefix}_v"), DataType::Int32, true),
        Field::new(format!("{prefix}_text"), DataType::Utf8, true),
    ]))
}

fn batches(prefix: &str, values: &[Option<i32>], batch_rows: usize) -> Vec<Batch> {
    let batch = |values: &[Option<i32>]| {
        let text: StringArray = values.iter().map(|v| v.map(|v| format!("{prefix}{v}"))).collect();
        Batch::try_new(
            schema(prefix),
            vec![Arc::new(Int32Array::from(values.to_vec())), Arc::new(text)],
        )
        .unwrap()
    };
    values.chunks(batch_rows).map(batch).collect()
}

fn spec(join_type: JoinType, filtered: bool, projection: Option<Vec<usize>>) -> NestedLoopJoinSpec {
    let (build_schema, probe_schema) = (schema("b"), schema("p"));
    let full = full_schema(join_type, &build_schema, &probe_schema);
    let schema = projection
        .as_ref()
        .map_or(full.clone(), |columns| full.project(columns).unwrap());
    NestedLoopJoinSpec {
        join_type,
        filter: filtered.then(|| less_filter(&build_schema, &probe_schema)),
        projection,
        build_schema: build_schema.into(),
        probe_schema: probe_schema.into(),
        schema: Arc::new(schema).into(),
    }
}

fn values() -> impl Strategy<Value = Vec<Option<i32>>> {
    let value = prop_oneof![1 => Just(None), 5 => (-4..5i32).prop_map(Some)];
    prop_oneof![1 => Just(vec![]), 1 => prop::collection::vec(value.clone(), 1), 6 => prop::collection::vec(value, 0..40)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_naive_join(
        build in values(),
        probe in values(),
        join_type in 0..JOIN_TYPES.len(),
        filtered in any::<bool>(),
        project in 0..3u8,
        batch_size in 1..50usize,
        batch_rows in 1..30usize,
    ) {
        let join_type = JOIN_TYPES[join_type];
        let projection = [None, Some(vec![1, 0]), Some(vec![])][project as usize].clone();
        let spec = spec(join_type, filtered, projection.clone());
        let (build_batches, probe_batches) = (batches("b", &build, batch_rows), batches("p", &probe, batch_rows));
        let matches = |b: usize, p: usize| {
            !filtered || matches!((build[b], probe[p]), (Some(b), Some(p)) if b < p)
        };
        let (build_cells, probe_cells) = (cells(&build_batches), cells(&probe_batches));
        let expected = naive(join_type, &build_cells, &probe_cells, (2, 2), projection.as_deref(), matches);
        let mut harness = Harness::new(NestedLoopJoin::new(spec));
        harness.context.batch_size = batch_size;
        let output = harness.run(vec![build_batches, probe_batches]).unwrap();
        prop_assert!(output.iter().all(|batch| batch.num_rows() <= batch_size));
        prop_assert_eq!(texts(&output), expected);
    }
}

#[test]
fn reads_the_build_side_first_and_stops_when_nothing_can_come() {
    for join_type in JOIN_TYPES {
        let mut harness = Harness::new(NestedLoopJoin::new(spec(join_type, true, None)));
        assert_eq!(harness.operator.reads_next(), ReadNext::Only(0));
        harness.end(0).unwrap();
        assert_eq!(harness.operator.reads_next(), ReadNext::Only(1));
        let goes_on = matches!(
            join_type,
            JoinType::Right | JoinType::Full | JoinType::RightAnti | JoinType::RightMark
        );
        assert_eq!(harness.operator.is_done(), !goes_on, "{join_type}");
    }
}

/// Runs the join under a budget; gives back what was spilled.
fn check_within(
    budget: usize,
    build: &[Option<i32>],
    probe: &[Option<i32>],
    join_type: JoinType,
    filtered: bool,
    projection: Option<Vec<usize>>,
) -> u64 {
    let spec = spec(join_type, filtered, projection.clone());
    let (build_batches, probe_batches) = (batches("b", build, 20), batches("p", probe, 20));
    let matches = |b: usize, p: usize| !filtered || matches!((build[b], probe[p]), (Some(b), Some(p)) if b < p);
    let (build_cells, probe_cells) = (cells(&build_batches), cells(&probe_batches));
    let expected = naive(
        join_type,
        &build_cells,
        &probe_cells,
        (2, 2),
        projection.as_deref(),
        matches,
    );
    let mut harness = Harness::with_memory(NestedLoopJoin::new(spec), budget);
    harness.context.batch_size = 100;
    let (memory, metrics) = (harness.memory.clone(), Arc::clone(&harness.context.metrics));
    let spill = Arc::clone(&harness.context.spill);
    let output = harness.run(vec![build_batches, probe_batches]).unwrap();
    assert!(output.iter().all(|batch| batch.num_rows() <= 100));
    assert!(texts(&output) == expected, "{join_type} filtered {filtered}");
    assert_eq!(memory.reserved_bytes(), 0);
    assert!(memory.peak_bytes() <= budget + 32 * 1024, "{}", memory.peak_bytes());
    if let Some(directory) = spill.path() {
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
    }
    metrics.spilled_bytes.load(Ordering::Relaxed)
}

#[test]
fn a_build_side_that_does_not_fit_meets_the_probe_side_block_by_block() {
    let values = |rows: i32| -> Vec<_> { (0..rows).map(|i| (i % 7 != 3).then_some(i * 31 % 200)).collect() };
    for (build, probe) in [
        (values(800), values(90)),
        (values(300), values(300)),
        (values(400), vec![]),
    ] {
        for join_type in JOIN_TYPES {
            for filtered in [false, true] {
                let spilled = check_within(6000, &build, &probe, join_type, filtered, None);
                // Of some build sides next to nothing is kept, which fits.
                let little = matches!(
                    join_type,
                    JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark
                );
                assert!(spilled > 0 || little, "{join_type} filtered {filtered}");
            }
        }
    }
}

#[test]
fn cancelling_ends_it_and_leaves_nothing() {
    let values: Vec<_> = (0..1000).map(Some).collect();
    let mut harness = Harness::with_memory(NestedLoopJoin::new(spec(JoinType::Left, true, None)), 6000);
    for batch in batches("b", &values, 100) {
        harness.push(0, batch).unwrap();
    }
    harness.end(0).unwrap();
    for batch in batches("p", &values, 100) {
        harness.push(1, batch).unwrap();
    }
    harness.context.cancel.cancel();
    assert!(matches!(harness.end(1), Err(EngineError::Cancelled)));
    let (memory, spill) = (harness.memory.clone(), Arc::clone(&harness.context.spill));
    drop(harness);
    assert_eq!(memory.reserved_bytes(), 0);
    assert_eq!(std::fs::read_dir(spill.path().unwrap()).unwrap().count(), 0);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_naive_join_under_any_budget(
        build in prop::collection::vec(prop_oneof![1 => Just(None), 5 => (-30..30i32).prop_map(Some)], 0..300),
        probe in prop::collection::vec(prop_oneof![1 => Just(None), 5 => (-30..30i32).prop_map(Some)], 0..100),
        join_type in 0..JOIN_TYPES.len(),
        filtered in any::<bool>(),
        project in 0..3u8,
        budget in 500..10_000usize,
    ) {
        let projection = [None, Some(vec![1, 0]), Some(vec![])][project as usize].clone();
        check_within(budget, &build, &probe, JOIN_TYPES[join_type], filtered, projection);
    }
}
