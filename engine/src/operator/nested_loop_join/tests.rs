//! Every join type against the naive join over rows.

use std::sync::Arc;

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

#[test]
fn an_exhausted_budget_is_an_error() {
    let values: Vec<_> = (0..1000).map(Some).collect();
    let harness = Harness::with_memory(NestedLoopJoin::new(spec(JoinType::Inner, true, None)), 2000);
    let result = harness.run(vec![batches("b", &values, 100), vec![]]);
    assert!(matches!(result, Err(EngineError::Memory(_))), "{result:?}");
}
