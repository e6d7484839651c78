//! Under a small budget, and when grouping does not pay.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema};

use super::reference::{Specs, cut, expect_usual, lines, run, specs, usual};
use crate::data::Batch;
use crate::operator::aggregate::Aggregate;
use crate::operator::harness::Harness;

const ROWS: i64 = 200_000;

fn input(groups: i64) -> (Batch, Vec<String>) {
    let keys: ArrayRef = Arc::new(StringArray::from_iter_values(
        (0..ROWS).map(|n| format!("key {}", n % groups)),
    ));
    let schema = Schema::new(vec![
        Field::new("k", DataType::Utf8, true),
        Field::new("v", DataType::Int64, true),
    ]);
    let values = Arc::new(Int64Array::from_iter_values(0..ROWS));
    let expected = expect_usual(&[Arc::clone(&keys)], &(0..ROWS).map(Some).collect::<Vec<_>>());
    (Batch::try_new(Arc::new(schema), vec![keys, values]).unwrap(), expected)
}

fn usual_specs(batch: &Batch) -> Specs {
    specs(&["k"], &usual(&batch.schema()), &batch.schema())
}

#[test]
fn a_partial_aggregation_lets_go_of_its_groups_when_memory_runs_out() {
    let (batch, expected) = input(20_000);
    let specs = usual_specs(&batch);
    let mut harness = Harness::with_memory(Aggregate::new(specs.partial.clone()).unwrap(), 600_000);
    for part in cut(&batch, 2000) {
        harness.push(0, part).unwrap();
        assert!(harness.memory.reserved_bytes() <= 600_000);
    }
    harness.end(0).unwrap();
    assert_eq!(harness.memory.reserved_bytes(), 0);
    let states: usize = harness.output.batches.iter().map(Batch::num_rows).sum();
    assert!(states > 20_000, "{states} states");
    assert_eq!(lines(&run(&specs.last, harness.output.batches).unwrap()), expected);
}

#[test]
fn rows_pass_as_states_when_grouping_does_not_shrink_them() {
    let (batch, expected) = input(190_000);
    let specs = usual_specs(&batch);
    let mut harness = Harness::new(Aggregate::new(specs.partial.clone()).unwrap());
    let parts = cut(&batch, 10_000);
    for part in &parts[..12] {
        harness.push(0, part.clone()).unwrap();
    }
    assert_eq!(harness.context.memory.bytes(), 0, "nothing is held any more");
    let before = harness.output.batches.len();
    harness.push(0, parts[12].clone()).unwrap();
    assert_eq!(harness.output.batches.len(), before + 1);
    for part in &parts[13..] {
        harness.push(0, part.clone()).unwrap();
    }
    harness.end(0).unwrap();
    let states = harness.output.batches;
    assert_eq!(states.iter().map(Batch::num_rows).sum::<usize>(), ROWS as usize);
    assert_eq!(lines(&run(&specs.last, states).unwrap()), expected);
}
