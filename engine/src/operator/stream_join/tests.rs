//! After each batch the folded output equals the join of the folded inputs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema};
use datafusion::common::JoinType;
use proptest::prelude::*;

use super::StreamJoin;
use crate::data::{EngineError, is_changelog};
use crate::operator::Operator;
use crate::operator::harness::{Harness, parts_of, rescaled};
use crate::operator::join_state::naive::{
    JOIN_TYPES, KEY_KINDS, KeyKind, Row, all_sorted, apply, batch, contents, expected, filter, input, key, keys_match,
    lines, output_schema, sorted,
};
use crate::operator::rescaling::{self, PARALLELISMS, Placed};
use crate::plan::{JoinInputSpec, ScalarExpr, SchemaSpec, StreamJoinSpec};

fn spec(join_type: JoinType, left: JoinInputSpec, right: JoinInputSpec, filtered: bool) -> StreamJoinSpec {
    let takes_back = is_changelog(&left.schema.0) || is_changelog(&right.schema.0);
    let changelog = takes_back || !matches!(join_type, JoinType::Inner | JoinType::LeftSemi);
    StreamJoinSpec {
        join_type,
        left,
        right,
        null_equals_null: false,
        null_aware: false,
        filter: filtered.then(filter),
        schema: output_schema(join_type, changelog),
    }
}

/// One change: an addition, or one of the rows there is goes.
#[derive(Clone, Debug)]
struct Change {
    goes: bool,
    which: usize,
    key: Option<u8>,
    value: i32,
    is_update: bool,
}

type Step = (usize, Vec<Change>);

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let change = (prop::bool::weighted(0.4), any::<usize>(), key(), 0..4i32, any::<bool>());
    let change = change.prop_map(|(goes, which, key, value, is_update)| Change {
        goes,
        which,
        key,
        value,
        is_update,
    });
    prop::collection::vec((0..2usize, prop::collection::vec(change, 1..40)), 1..14)
}

/// Rows and kinds of a batch; `table` becomes what it makes of it.
fn apply_step(
    table: &mut Vec<Row>,
    changes: &[Change],
    takes_back: bool,
    next_id: &mut Option<i64>,
) -> (Vec<Row>, Vec<u8>) {
    let (mut rows, mut kinds) = (Vec::new(), Vec::new());
    for change in changes {
        if change.goes && takes_back && !table.is_empty() {
            rows.push(table.swap_remove(change.which % table.len()));
            kinds.push(if change.is_update { 1 } else { 3 });
            continue;
        }
        let time = next_id.as_mut().map_or(0, |id| {
            *id += 1;
            *id
        });
        let row = Row {
            key: change.key,
            value: change.value,
            time,
        };
        rows.push(row);
        kinds.push(if change.is_update && takes_back { 2 } else { 0 });
        table.push(row);
    }
    (rows, kinds)
}

/// `NOT IN` by its definition.
fn not_in(left: &[Row], right: &[Row]) -> Vec<String> {
    let is_told = |row: &&Row| match (row.key, right) {
        (_, []) => true,
        (None, _) => false,
        (key, right) => right.iter().all(|right| right.key.is_some() && right.key != key),
    };
    let told: Vec<Row> = left.iter().filter(is_told).copied().collect();
    sorted(&batch(0, &told, None))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn folded_output_is_the_join_of_folded_inputs(
        steps in steps(),
        join_type in 0..JOIN_TYPES.len(),
        keys in 0..KEY_KINDS.len(),
        filtered in any::<bool>(),
        nulls_match in any::<bool>(),
        changelog in (any::<bool>(), any::<bool>()),
        unique in any::<bool>(),
        ends_at in (0..20usize, 0..20usize),
        batch_size in 1..40usize,
    ) {
        let (join_type, keys) = (JOIN_TYPES[join_type], KEY_KINDS[keys]);
        let changelog = [changelog.0, changelog.1];
        let mut inputs = [0, 1].map(|side| input(side, keys, changelog[side]));
        if unique {
            inputs.iter_mut().for_each(|input| input.unique_key = Some(vec![3]));
        }
        let [left, right] = inputs;
        let mut spec = spec(join_type, left, right, filtered);
        spec.null_equals_null = nulls_match;
        let mut harness = Harness::new(StreamJoin::new(&spec).unwrap());
        harness.context.batch_size = batch_size;
        let (mut tables, mut table) = ([vec![], vec![]], BTreeMap::new());
        let (mut next_id, mut ended) = (unique.then_some(0), [false; 2]);
        for (number, (side, changes)) in steps.into_iter().enumerate() {
            for (side, at) in [ends_at.0, ends_at.1].into_iter().enumerate() {
                if at == number {
                    harness.end(side).unwrap();
                    ended[side] = true;
                }
            }
            if ended[side] {
                continue;
            }
            let (rows, kinds) = apply_step(&mut tables[side], &changes, changelog[side], &mut next_id);
            harness.push(side, batch(side, &rows, changelog[side].then_some(&kinds))).unwrap();
            for batch in harness.output.batches.drain(..) {
                prop_assert!(batch.num_rows() <= batch_size);
                apply(&mut table, &batch);
            }
            let matches = |l: &Row, r: &Row| {
                let same = keys_match(keys, l, r) || (nulls_match && l.key == r.key);
                same && (!filtered || l.value < r.value)
            };
            prop_assert_eq!(contents(&table), expected(join_type, &tables[0], &tables[1], matches));
        }
        for side in (0..2).filter(|side| !ended[*side]) {
            harness.end(side).unwrap();
        }
        prop_assert_eq!(harness.context.memory.bytes(), 0);
    }

    #[test]
    fn not_in_knows_nulls(
        steps in steps(),
        changelog in (any::<bool>(), any::<bool>()),
        batch_size in 1..40usize,
    ) {
        let changelog = [changelog.0, changelog.1];
        let [left, right] = [0, 1].map(|side| input(side, KeyKind::Number, changelog[side]));
        let mut spec = spec(JoinType::LeftAnti, left, right, false);
        spec.null_aware = true;
        let mut harness = Harness::new(StreamJoin::new(&spec).unwrap());
        harness.context.batch_size = batch_size;
        let (mut tables, mut table) = ([vec![], vec![]], BTreeMap::new());
        for (side, changes) in steps {
            let (rows, kinds) = apply_step(&mut tables[side], &changes, changelog[side], &mut None);
            harness.push(side, batch(side, &rows, changelog[side].then_some(&kinds))).unwrap();
            harness.output.batches.drain(..).for_each(|batch| apply(&mut table, &batch));
            prop_assert_eq!(contents(&table), not_in(&tables[0], &tables[1]));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn goes_on_after_a_cut_at_any_parallelism(
        changes in prop::collection::vec((steps(), 0..40u64, 0..PARALLELISMS.len()), 1..4),
        join_type in 0..JOIN_TYPES.len(),
        keys in 0..KEY_KINDS.len(),
        (filtered, nulls_match, unique, not_in) in any::<(bool, bool, bool, bool)>(),
        changelog in (any::<bool>(), any::<bool>()),
        ttl in prop::option::of(1..60u64),
        ends in prop::option::of((0..2usize, 0..20usize)),
        parallelism in 0..PARALLELISMS.len(),
    ) {
        let (mut join_type, mut keys) = (JOIN_TYPES[join_type], KEY_KINDS[keys]);
        if not_in {
            (join_type, keys) = (JoinType::LeftAnti, KeyKind::Number);
        }
        let changelog = [changelog.0, changelog.1];
        let [left, right] = [0, 1].map(|side| JoinInputSpec {
            unique_key: unique.then(|| vec![3]),
            ttl_ms: ttl,
            ..input(side, keys, changelog[side])
        });
        let mut spec = spec(join_type, left, right, filtered && !not_in);
        spec.null_equals_null = nulls_match && !not_in;
        spec.null_aware = not_in;
        let (mut todo, mut tables, mut next_id) = (Vec::new(), [vec![], vec![]], unique.then_some(0));
        let mut ended = None;
        for (part, wait, cut) in changes {
            for (side, changes) in part {
                if let Some((side, at)) = ends && at == todo.len() {
                    todo.push(rescaling::Step::End(side));
                    ended = Some(side);
                }
                if ended != Some(side) {
                    let (rows, kinds) = apply_step(&mut tables[side], &changes, changelog[side], &mut next_id);
                    todo.push(rescaling::Step::Rows(side, batch(side, &rows, changelog[side].then_some(&kinds))));
                }
            }
            todo.push(rescaling::Step::Wait(wait));
            todo.push(rescaling::Step::Cut(PARALLELISMS[cut]));
        }
        // Who must see all rows is alone.
        let columns = if not_in { &[] } else { keys.columns() };
        let placed = Placed { keys: &[Some(columns); 2], batch_size: 20, ends_again: false };
        let make = || StreamJoin::new(&spec).unwrap();
        let disturbed = rescaling::run(make, &placed, PARALLELISMS[parallelism], &todo);
        todo.retain(|step| !matches!(step, rescaling::Step::Cut(_)));
        let undisturbed = rescaling::run(make, &placed, 1, &todo);
        // Change by change.
        prop_assert_eq!(all_sorted(&spec.schema.0, &disturbed), all_sorted(&spec.schema.0, &undisturbed));
    }
}

fn row(key: u8, value: i32) -> Row {
    Row {
        key: Some(key),
        value,
        time: 0,
    }
}

fn plain(join_type: JoinType, ttl_ms: Option<u64>) -> StreamJoinSpec {
    let [left, right] = [0, 1].map(|side| JoinInputSpec {
        ttl_ms,
        ..input(side, KeyKind::Number, false)
    });
    spec(join_type, left, right, false)
}

#[test]
fn rows_are_forgotten_after_their_time_to_live() {
    let spec = plain(JoinType::Inner, Some(1000));
    let schema = spec.schema.0.clone();
    let mut harness = Harness::new(StreamJoin::new(&spec).unwrap());
    harness.push(0, batch(0, &[row(1, 1)], None)).unwrap();
    harness.advance(Duration::from_millis(400)).unwrap();
    harness.push(0, batch(0, &[row(1, 2)], None)).unwrap();
    harness.advance(Duration::from_millis(599)).unwrap();
    harness.push(1, batch(1, &[row(1, 7)], None)).unwrap();
    assert_eq!(harness.take(&schema).num_rows(), 2);
    harness.advance(Duration::from_millis(1)).unwrap();
    harness.push(1, batch(1, &[row(1, 8)], None)).unwrap();
    let lines = lines(&harness.take(&schema));
    assert_eq!(lines.len(), 1);
    assert!(lines[0].contains("|2|"), "{lines:?}");
    assert!(harness.context.memory.bytes() > 0);
    harness.advance(Duration::from_millis(2000)).unwrap();
    assert_eq!(harness.operator.next_timer(), None);
    assert_eq!(harness.context.memory.bytes(), 0);
}

#[test]
fn a_batch_that_adds_and_takes_back_a_row_says_nothing_of_it() {
    let [left, right] = [0, 1].map(|side| input(side, KeyKind::Number, true));
    let spec = spec(JoinType::Inner, left, right, false);
    let mut harness = Harness::new(StreamJoin::new(&spec).unwrap());
    harness.push(1, batch(1, &[row(1, 0)], Some(&[0]))).unwrap();
    let rows = [row(1, 1), row(1, 1), row(1, 2)];
    harness.push(0, batch(0, &rows, Some(&[0, 1, 2]))).unwrap();
    let out = harness.take(&spec.schema.0);
    assert_eq!(out.num_rows(), 1);
    assert!(lines(&out)[0].ends_with("|2"), "the pair has the kind of its row, +U");
}

#[test]
fn what_was_never_there_takes_nothing_back() {
    let [left, right] = [0, 1].map(|side| input(side, KeyKind::Number, true));
    let spec = spec(JoinType::Full, left, right, false);
    let mut harness = Harness::new(StreamJoin::new(&spec).unwrap());
    harness.push(1, batch(1, &[row(1, 0)], Some(&[0]))).unwrap();
    harness.take(&spec.schema.0);
    harness.push(0, batch(0, &[row(1, 1)], Some(&[3]))).unwrap();
    assert!(harness.output.batches.is_empty());
}

#[test]
fn the_memory_budget_is_kept() {
    let mut harness = Harness::with_memory(StreamJoin::new(&plain(JoinType::Inner, None)).unwrap(), 20_000);
    let rows: Vec<_> = (0..100).map(|value| row(1, value)).collect();
    let error = (0..100).find_map(|_| harness.push(0, batch(0, &rows, None)).err());
    assert!(matches!(error, Some(EngineError::Memory(_))), "{error:?}");
}

#[test]
fn contradictions_are_refused() {
    let mut spec = plain(JoinType::Left, None);
    spec.schema = output_schema(JoinType::Left, false);
    assert!(StreamJoin::new(&spec).is_err());
    let mut spec = plain(JoinType::Inner, None);
    spec.null_aware = true;
    assert!(StreamJoin::new(&spec).is_err());
    spec.null_aware = false;
    spec.right = input(1, KeyKind::Text, false);
    assert!(StreamJoin::new(&spec).is_err());
}

#[test]
fn what_is_booked_after_a_restore_is_what_is_held() {
    let spec = plain(JoinType::Full, Some(1000));
    let mut before = [Harness::new(StreamJoin::new(&spec).unwrap())];
    for side in 0..2 {
        let rows: Vec<_> = (0..5000).map(|value| row((value % 200) as u8, value)).collect();
        before[0].push(side, batch(side, &rows, None)).unwrap();
    }
    let bytes = before[0].context.memory.bytes();
    let after = rescaled(&mut before, 3, || StreamJoin::new(&spec).unwrap()).unwrap();
    let booked: Vec<_> = after.iter().map(|harness| harness.context.memory.bytes()).collect();
    let total: usize = booked.iter().sum();
    assert!(booked.iter().all(|booked| *booked > bytes / 10), "{bytes}: {booked:?}");
    // The index is made when somebody looks.
    assert!(total < bytes, "{bytes}: {booked:?}");
    assert!(total > bytes / 3);
}

#[test]
fn rows_of_several_subtasks_are_forgotten_each_in_its_time() {
    let spec = plain(JoinType::Inner, Some(1000));
    let make = || StreamJoin::new(&spec).unwrap();
    let rows = |value| -> Vec<_> { (0..40).map(|key| row(key, value)).collect() };
    let mut one = [Harness::new(make())];
    one[0].push(0, batch(0, &rows(0), None)).unwrap();
    let mut three = rescaled(&mut one, 3, make).unwrap();
    for (subtask, harness) in three.iter_mut().enumerate() {
        harness.advance(Duration::from_millis(400)).unwrap();
        let part = parts_of(&batch(0, &rows(1), None), &[0], 3).remove(subtask);
        harness.push(0, part).unwrap();
    }
    let mut one = rescaled(&mut three, 1, make).unwrap().remove(0);
    assert_eq!(one.operator.next_timer(), Some(1000));
    one.advance(Duration::from_millis(999)).unwrap();
    one.push(1, batch(1, &rows(7)[..4], None)).unwrap();
    assert_eq!(one.take(&spec.schema.0).num_rows(), 8);
    one.advance(Duration::from_millis(1)).unwrap();
    one.push(1, batch(1, &rows(8), None)).unwrap();
    assert_eq!(one.take(&spec.schema.0).num_rows(), 40);
    one.advance(Duration::from_millis(2000)).unwrap();
    assert_eq!(one.context.memory.bytes(), 0);
}

#[test]
fn a_side_that_has_got_a_column_keeps_its_rows() {
    let old = plain(JoinType::Left, None);
    let mut before = [Harness::new(StreamJoin::new(&old).unwrap())];
    let rows = [row(1, 1), row(2, 2), row(3, 3)];
    before[0].push(0, batch(0, &rows, None)).unwrap();
    before[0].push(1, batch(1, &rows[..1], None)).unwrap();
    let stored = [vec![before[0].snapshot(1, None).unwrap()]];
    // A new column before all others, and no columns of before in their places.
    let mut new = old.clone();
    let fields = old.left.schema.0.fields().iter().cloned();
    let added = [Arc::new(Field::new("new", DataType::Utf8, true))];
    let schema = Arc::new(Schema::new(added.into_iter().chain(fields).collect::<Vec<_>>()));
    new.left.keys = vec![ScalarExpr::column(1, &schema)];
    new.left.schema = schema.into();
    let fields = [Arc::new(Field::new("new", DataType::Utf8, true))];
    let fields = fields.into_iter().chain(old.schema.0.fields().iter().cloned());
    new.schema = SchemaSpec(Arc::new(Schema::new(fields.collect::<Vec<_>>())));
    let mut lines_of = Vec::new();
    for subtask in 0..2 {
        let mut harness = Harness::new(StreamJoin::new(&new).unwrap());
        harness.restore((subtask, 2), &stored).unwrap();
        let parts = parts_of(&batch(1, &[row(1, 7), row(2, 8)], None), &[0], 2);
        harness.push(1, parts[subtask].clone()).unwrap();
        lines_of.extend(lines(&harness.take(&new.schema.0)));
    }
    lines_of.sort();
    // Row 1 has a partner already, row 2 is padded no more.
    assert_eq!(lines_of.len(), 3, "{lines_of:?}");
    assert!(lines_of.iter().all(|line| line.starts_with("NULL|")), "{lines_of:?}");
    // A column that must be there cannot come.
    let mut strict = new.clone();
    let mut fields = strict.left.schema.0.fields().to_vec();
    fields[0] = Arc::new(Field::new("new", DataType::Utf8, false));
    strict.left.schema = SchemaSpec(Arc::new(Schema::new(fields)));
    let mut harness = Harness::new(StreamJoin::new(&strict).unwrap());
    let error = harness.restore((0, 1), &stored).unwrap_err().to_string();
    assert!(error.contains("column 'new' of table 'left'"), "{error}");
}
