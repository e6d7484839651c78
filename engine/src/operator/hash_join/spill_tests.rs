//! Joins that do not fit, against the naive join: right, within the budget, and nothing left behind.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{ArrayRef, AsArray, Int32Array, Int64Array, StringArray, StringViewArray, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::JoinType;
use proptest::prelude::*;

use super::HashJoin;
use super::build::{held_bytes, row_bytes};
use super::naive::{JOIN_TYPES, cells, full_schema, less_filter, naive, texts};
use crate::data::{Batch, EngineError};
use crate::operator::Operator;
use crate::operator::harness::Harness;
use crate::plan::{HashJoinSpec, ScalarExpr};

/// One side: a key per row, and the bytes of the text beside it.
#[derive(Clone, Debug)]
struct SideRows {
    keys: Vec<Option<u32>>,
    pad: usize,
}

fn side(keys: impl IntoIterator<Item = Option<u32>>, pad: usize) -> SideRows {
    SideRows {
        keys: keys.into_iter().collect(),
        pad,
    }
}

#[derive(Clone, Debug)]
struct Case {
    build: SideRows,
    probe: SideRows,
    text_keys: bool,
    filtered: bool,
    null_equals_null: bool,
    columns: usize,
    batch_rows: usize,
    batch_size: usize,
    budget: usize,
}

impl Case {
    fn new(build: SideRows, probe: SideRows) -> Self {
        Self {
            build,
            probe,
            text_keys: false,
            filtered: false,
            null_equals_null: false,
            columns: 1,
            batch_rows: 50,
            batch_size: 64,
            budget: 64 * 1024,
        }
    }

    fn batch(&self, prefix: &str, side: &SideRows, rows: std::ops::Range<usize>) -> Batch {
        let keys = || side.keys[rows.clone()].iter();
        let key: ArrayRef = if self.text_keys {
            Arc::new(StringArray::from_iter(
                keys().map(|key| key.map(|key| format!("the key {key}"))),
            ))
        } else {
            Arc::new(Int64Array::from_iter(
                keys().map(|key| key.map(|key| i64::from(key) << 33)),
            ))
        };
        let mut columns: Vec<(String, ArrayRef)> = vec![
            (format!("{prefix}_k"), key),
            (
                format!("{prefix}_id"),
                Arc::new(UInt32Array::from_iter_values(rows.clone().map(|row| row as u32))),
            ),
            (
                format!("{prefix}_v"),
                Arc::new(Int32Array::from_iter(
                    rows.clone().map(|row| (row % 7 != 0).then_some(row as i32 % 5)),
                )),
            ),
        ];
        for column in 0..self.columns {
            let text = |row: usize| (!row.is_multiple_of(5)).then(|| format!("{row}{}", "x".repeat(side.pad)));
            let array: ArrayRef = if column % 2 == 0 {
                Arc::new(StringViewArray::from_iter(rows.clone().map(text)))
            } else {
                Arc::new(StringArray::from_iter(rows.clone().map(text)))
            };
            columns.push((format!("{prefix}_text{column}"), array));
        }
        let fields: Vec<Field> = columns
            .iter()
            .map(|(name, array)| Field::new(name, array.data_type().clone(), true))
            .collect();
        let arrays = columns.into_iter().map(|(_, array)| array).collect();
        Batch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
    }

    fn batches(&self, prefix: &str, side: &SideRows) -> Vec<Batch> {
        let rows = side.keys.len();
        (0..rows)
            .step_by(self.batch_rows)
            .map(|start| self.batch(prefix, side, start..rows.min(start + self.batch_rows)))
            .collect()
    }

    fn spec(&self, join_type: JoinType) -> HashJoinSpec {
        let build_schema = self.batch("b", &self.build, 0..0).schema();
        let probe_schema = self.batch("p", &self.probe, 0..0).schema();
        HashJoinSpec {
            join_type,
            build_keys: vec![ScalarExpr::column(0, &build_schema)],
            probe_keys: vec![ScalarExpr::column(0, &probe_schema)],
            null_equals_null: self.null_equals_null,
            null_aware: false,
            runtime_filters: Vec::new(),
            filter: self.filtered.then(|| less_filter(&build_schema, &probe_schema)),
            projection: None,
            schema: Arc::new(full_schema(join_type, &build_schema, &probe_schema)).into(),
            build_schema: build_schema.into(),
            probe_schema: probe_schema.into(),
        }
    }

    fn matches(&self, b: usize, p: usize) -> bool {
        let equal = match (self.build.keys[b], self.probe.keys[p]) {
            (None, None) => self.null_equals_null,
            (b, p) => b == p && b.is_some(),
        };
        equal && (!self.filtered || !(b.is_multiple_of(7) || p.is_multiple_of(7)) && b % 5 < p % 5)
    }

    fn expected(&self, spec: &HashJoinSpec) -> Vec<String> {
        let (build, probe) = (self.batches("b", &self.build), self.batches("p", &self.probe));
        let widths = (spec.build_schema.0.fields().len(), spec.probe_schema.0.fields().len());
        let matches = |b, p| self.matches(b, p);
        naive(spec.join_type, &cells(&build), &cells(&probe), widths, None, matches)
    }

    /// Runs the join; gives back what was spilled.
    fn check(&self, join_type: JoinType) -> u64 {
        let spec = self.spec(join_type);
        let expected = self.expected(&spec);
        let (build, probe) = (self.batches("b", &self.build), self.batches("p", &self.probe));
        let mut harness = Harness::with_memory(HashJoin::new(spec.clone()).unwrap(), self.budget);
        harness.context.batch_size = self.batch_size;
        let (memory, metrics) = (harness.memory.clone(), Arc::clone(&harness.context.metrics));
        let spill = Arc::clone(&harness.context.spill);
        let output = harness.run(vec![build, probe]).unwrap();
        assert!(output.iter().all(|batch| batch.num_rows() <= self.batch_size));
        assert!(output.iter().all(|batch| batch.schema() == spec.schema.0));
        let label = || format!("{join_type} filtered {} text {}", self.filtered, self.text_keys);
        let found = texts(&output);
        assert_eq!(found.len(), expected.len(), "{}", label());
        assert!(found == expected, "{}", label());
        assert_eq!(memory.reserved_bytes(), 0, "{}", label());
        let peak = memory.peak_bytes();
        assert!(peak <= self.budget + self.slack(), "{}: peak {peak}", label());
        if let Some(directory) = spill.path() {
            let left = std::fs::read_dir(directory).unwrap().count();
            assert_eq!(left, 0, "{}", label());
        }
        metrics.spilled_bytes.load(Ordering::Relaxed)
    }

    /// A batch of each side, as the operator was handed it, twice; and the smallest staging.
    fn slack(&self) -> usize {
        let batch =
            |side: &SideRows| held_bytes(self.batch("s", side, 0..side.keys.len().min(self.batch_rows)).columns());
        2 * batch(&self.build).max(batch(&self.probe)) + 24 * 1024
    }

    fn check_all(&self) {
        for join_type in JOIN_TYPES {
            let spilled = self.check(join_type);
            // Of some build sides nothing is kept but the keys, which fit.
            let only_keys = matches!(
                join_type,
                JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark
            );
            assert!(spilled > 0 || only_keys, "{join_type} did not spill");
        }
    }
}

fn spread(rows: u32, distinct: u32) -> impl Iterator<Item = Option<u32>> {
    (0..rows).map(move |row| (row % 13 != 5).then_some(row.wrapping_mul(2_654_435_761) % distinct))
}

fn variants(case: Case) {
    for flags in 0..4 {
        let mut case = case.clone();
        (case.filtered, case.null_equals_null) = (flags & 1 == 1, flags & 2 == 2);
        case.check_all();
    }
}

#[test]
fn uniform_keys() {
    variants(Case::new(side(spread(900, 400), 200), side(spread(700, 500), 150)));
}

#[test]
fn text_keys_under_a_smaller_budget() {
    let mut case = Case::new(side(spread(900, 400), 100), side(spread(700, 500), 100));
    (case.text_keys, case.budget) = (true, 32 * 1024);
    variants(case);
}

#[test]
fn a_build_side_much_larger_than_the_probe_side_and_the_reverse() {
    variants(Case::new(side(spread(1500, 400), 200), side(spread(20, 400), 20)));
    variants(Case::new(side(spread(500, 400), 300), side(spread(3000, 800), 20)));
}

fn hot(rows: u32, of: u32) -> impl Iterator<Item = Option<u32>> {
    (0..rows).map(move |row| Some(if row % 10 < of { 7 } else { row }))
}

#[test]
fn half_of_the_build_rows_share_one_key() {
    variants(Case::new(side(hot(900, 5), 300), side(spread(300, 900), 150)));
}

#[test]
fn half_of_the_rows_of_both_sides_share_one_key() {
    let mut case = Case::new(side(hot(400, 5), 500), side(hot(300, 5), 500));
    case.filtered = true;
    case.check_all();
    case.filtered = false;
    case.check_all();
}

#[test]
fn half_of_the_probe_rows_share_one_key() {
    variants(Case::new(side(spread(900, 900), 200), side(hot(500, 5), 200)));
}

#[test]
fn all_keys_equal() {
    let equal = |rows, pad| side((0..rows).map(|_| Some(3)), pad);
    variants(Case::new(equal(200, 1000), equal(60, 1000)));
    variants(Case::new(equal(200, 1000), equal(60, 5000)));
}

#[test]
fn all_keys_null() {
    let nulls = |rows, pad| side((0..rows).map(|_| None), pad);
    let mut case = Case::new(nulls(200, 1000), nulls(120, 2000));
    for filtered in [false, true] {
        (case.filtered, case.null_equals_null) = (filtered, true);
        case.check_all();
        case.null_equals_null = false;
        JOIN_TYPES.iter().for_each(|join_type| {
            case.check(*join_type);
        });
    }
}

#[test]
fn empty_sides() {
    for case in [
        Case::new(side([], 0), side(spread(500, 100), 500)),
        Case::new(side(spread(500, 100), 500), side([], 0)),
        Case::new(side([], 0), side([], 0)),
    ] {
        JOIN_TYPES.iter().for_each(|join_type| {
            case.check(*join_type);
        });
    }
}

#[test]
fn wide_rows_come_in_small_batches() {
    let mut case = Case::new(side(spread(60, 9), 40_000), side(spread(40, 9), 10_000));
    (case.batch_rows, case.budget, case.columns) = (2, 1 << 20, 2);
    case.check_all();
}

/// One text of a megabyte, met by every probe row, does not make a batch of as many megabytes.
#[test]
fn a_wide_row_among_narrow_ones_comes_in_small_batches() {
    let schema = |prefix: &str| {
        Arc::new(Schema::new(vec![
            Field::new(format!("{prefix}_k"), DataType::Int64, true),
            Field::new(format!("{prefix}_text"), DataType::Utf8, true),
            Field::new(format!("{prefix}_v"), DataType::Int32, true),
        ]))
    };
    let batch = |prefix: &str, keys: Vec<i64>, wide: usize| {
        let texts = keys.iter().map(|key| "x".repeat(if *key == 0 { wide } else { 3 }));
        let columns: Vec<ArrayRef> = vec![
            Arc::new(Int64Array::from(keys.clone())),
            Arc::new(StringArray::from_iter_values(texts)),
            Arc::new(Int32Array::from(vec![i32::from(prefix == "p"); keys.len()])),
        ];
        Batch::try_new(schema(prefix), columns).unwrap()
    };
    for (join_type, filtered) in [
        (JoinType::Inner, false),
        (JoinType::Right, false),
        (JoinType::Full, true),
    ] {
        let spec = HashJoinSpec {
            join_type,
            build_keys: vec![ScalarExpr::column(0, &schema("b"))],
            probe_keys: vec![ScalarExpr::column(0, &schema("p"))],
            null_equals_null: false,
            null_aware: false,
            runtime_filters: Vec::new(),
            filter: filtered.then(|| less_filter(&schema("b"), &schema("p"))),
            projection: None,
            schema: Arc::new(full_schema(join_type, &schema("b"), &schema("p"))).into(),
            build_schema: schema("b").into(),
            probe_schema: schema("p").into(),
        };
        let build = batch("b", (0..20_000).collect(), 1 << 20);
        let probe = batch("p", (0..300).map(|row| row % 3).collect(), 3);
        let harness = Harness::with_memory(HashJoin::new(spec).unwrap(), 16 << 20);
        let output = harness.run(vec![vec![build], vec![probe]]).unwrap();
        let most = output.iter().map(|batch| row_bytes(batch.columns())).max().unwrap();
        assert!(most <= 3 << 20, "{join_type}: {most}");
        let rows: usize = output.iter().map(Batch::num_rows).sum();
        assert_eq!(rows, 300 + if join_type == JoinType::Full { 20_000 - 3 } else { 0 });
        let wide: usize = output
            .iter()
            .map(|batch| batch.column(1).as_string::<i32>().values().len())
            .sum();
        assert!(wide >= 100 << 20, "{join_type}: {wide}");
    }
}

#[test]
fn many_columns() {
    let mut case = Case::new(side(spread(400, 300), 30), side(spread(300, 300), 30));
    case.columns = 40;
    case.budget = 128 * 1024;
    case.check_all();
}

#[test]
fn a_budget_that_suffices_is_not_exceeded_by_a_byte_and_nothing_spills() {
    let mut case = Case::new(side(spread(900, 400), 200), side(spread(700, 500), 150));
    case.budget = 4 << 20;
    for join_type in JOIN_TYPES {
        assert_eq!(case.check(join_type), 0);
    }
}

fn not_in(build: SideRows, probe: SideRows) -> (Vec<String>, u64) {
    let mut case = Case::new(build, probe);
    (case.columns, case.budget) = (0, 32 * 1024);
    let mut spec = case.spec(JoinType::RightAnti);
    spec.null_aware = true;
    spec.projection = Some(vec![1]);
    spec.schema = Arc::new(spec.schema.0.project(&[1]).unwrap()).into();
    let mut harness = Harness::with_memory(HashJoin::new(spec).unwrap(), case.budget);
    for batch in case.batches("b", &case.build) {
        harness.push(0, batch).unwrap();
    }
    harness.end(0).unwrap();
    if !harness.operator.is_done() {
        for batch in case.batches("p", &case.probe) {
            harness.push(1, batch).unwrap();
        }
        harness.end(1).unwrap();
    }
    assert_eq!(harness.memory.reserved_bytes(), 0);
    let spilled = harness.context.metrics.spilled_bytes.load(Ordering::Relaxed);
    (texts(&harness.output.batches), spilled)
}

/// Keys only matter to NOT IN, so it takes many to overflow.
#[test]
fn not_in_knows_null_also_when_it_spills() {
    let probe = || side((0..3000).map(|row| (row % 3 != 0).then_some(row)), 100);
    let keys = || (0..6000).map(|row| Some(row * 2));
    let (rows, spilled) = not_in(side(keys(), 0), probe());
    assert!(spilled > 0);
    let mut expected: Vec<String> = (0..3000)
        .filter(|row| row % 3 != 0 && row % 2 == 1)
        .map(|row| row.to_string())
        .collect();
    expected.sort();
    assert_eq!(rows, expected);
    let (rows, spilled) = not_in(side(keys().chain([None]), 0), probe());
    assert!(spilled > 0);
    assert_eq!(rows, Vec::<String>::new());
    let (rows, _) = not_in(side([], 0), probe());
    assert_eq!(rows.len(), 3000);
}

#[test]
fn cancelling_ends_it_and_leaves_nothing() {
    let case = Case::new(side(spread(900, 400), 200), side(spread(700, 500), 150));
    for step in 0..4 {
        let mut harness = Harness::with_memory(HashJoin::new(case.spec(JoinType::Full)).unwrap(), case.budget);
        let (memory, spill) = (harness.memory.clone(), Arc::clone(&harness.context.spill));
        let (build, probe) = (case.batches("b", &case.build), case.batches("p", &case.probe));
        let mut result = Ok(());
        for (number, batch) in build.into_iter().enumerate() {
            if step == 0 && number == 12 {
                harness.context.cancel.cancel();
            }
            result = result.and_then(|()| harness.push(0, batch));
        }
        if step == 1 {
            harness.context.cancel.cancel();
        }
        result = result.and_then(|()| harness.end(0));
        for (number, batch) in probe.into_iter().enumerate() {
            if step == 2 && number == 3 {
                harness.context.cancel.cancel();
            }
            result = result.and_then(|()| harness.push(1, batch));
        }
        if step == 3 {
            harness.context.cancel.cancel();
        }
        result = result.and_then(|()| harness.end(1));
        assert!(matches!(result, Err(EngineError::Cancelled)), "step {step}: {result:?}");
        drop(harness);
        assert_eq!(memory.reserved_bytes(), 0);
        let directory = spill.path().unwrap();
        assert_eq!(std::fs::read_dir(directory).unwrap().count(), 0);
    }
}

#[test]
fn one_that_is_asked_to_spill_does() {
    let case = Case::new(side(spread(900, 400), 200), side(spread(100, 500), 50));
    let budget = 1 << 20;
    let mut harness = Harness::with_memory(HashJoin::new(case.spec(JoinType::Inner)).unwrap(), budget);
    let mut other = harness.context.memory.sibling();
    let mut batches = case.batches("b", &case.build).into_iter();
    for batch in batches.by_ref().take(12) {
        harness.push(0, batch).unwrap();
    }
    let before = harness.context.memory.bytes();
    // Somebody takes the rest and is short of a little more, below its share.
    other.try_grow(1000).unwrap();
    let mut rest = harness.context.memory.pinned_sibling();
    rest.grow(budget - harness.memory.reserved_bytes());
    assert!(other.try_grow(1000).is_err());
    assert!(harness.context.memory.must_spill());
    harness.push(0, batches.next().unwrap()).unwrap();
    assert!(harness.context.memory.bytes() < before);
    assert!(harness.context.metrics.spilled_bytes.load(Ordering::Relaxed) > 0);
}

/// Of a join that has spilled some partitions, the table of the others makes room.
#[test]
fn what_is_still_in_memory_makes_room_too() {
    for filtered in [false, true] {
        let mut case = Case::new(side(spread(900, 400), 200), side(spread(700, 500), 50));
        (case.filtered, case.budget) = (filtered, 160 * 1024);
        for join_type in JOIN_TYPES {
            let spec = case.spec(join_type);
            let mut harness = Harness::with_memory(HashJoin::new(spec.clone()).unwrap(), case.budget);
            for batch in case.batches("b", &case.build) {
                harness.push(0, batch).unwrap();
            }
            harness.end(0).unwrap();
            let held = harness.context.memory.bytes();
            for (number, batch) in case.batches("p", &case.probe).into_iter().enumerate() {
                let mut rest = harness.context.memory.pinned_sibling();
                let mut other = harness.context.memory.sibling();
                if number == 3 {
                    rest.grow(case.budget - harness.memory.reserved_bytes());
                    assert!(other.try_grow(1000).is_err());
                }
                harness.push(1, batch).unwrap();
            }
            let stays = matches!(join_type, JoinType::Left | JoinType::Full | JoinType::LeftMark);
            let left = harness.context.memory.bytes();
            assert!(stays || left < held, "{join_type} held {held} and holds {left}");
            harness.end(1).unwrap();
            assert_eq!(harness.memory.reserved_bytes(), 0);
            assert!(
                texts(&harness.output.batches) == case.expected(&spec),
                "{join_type} filtered {filtered}"
            );
        }
    }
}

fn keys() -> impl Strategy<Value = Vec<Option<u32>>> {
    let key = |distinct: u32, hot: u32| {
        prop_oneof![
            1 => Just(None),
            hot => Just(Some(0)),
            8 => (0..distinct).prop_map(Some)
        ]
    };
    (1..200u32, 1..20u32, prop_oneof![0..3usize, 0..300usize])
        .prop_flat_map(move |(distinct, hot, rows)| prop::collection::vec(key(distinct, hot), rows))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 120, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_naive_join_under_any_budget(
        build in (keys(), 0..400usize),
        probe in (keys(), 0..400usize),
        flags in 0..8u8,
        columns in 0..4usize,
        batch in (1..100usize, 1..100usize),
        budget in 1_000..80_000usize,
        join_type in 0..JOIN_TYPES.len(),
    ) {
        let case = Case {
            build: side(build.0, build.1),
            probe: side(probe.0, probe.1),
            text_keys: flags & 1 == 1,
            filtered: flags & 2 == 2,
            null_equals_null: flags & 4 == 4,
            columns,
            batch_rows: batch.0,
            batch_size: batch.1,
            budget,
        };
        case.check(JOIN_TYPES[join_type]);
    }
}
