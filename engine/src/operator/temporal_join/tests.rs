//! Against a model that looks through all versions for each left row.

use std::sync::atomic::Ordering;

use arrow::compute::concat_batches;
use datafusion::common::JoinType;
use proptest::prelude::*;

use super::TemporalJoin;
use crate::operator::harness::Harness;
use crate::operator::join_state::naive::{
    KeyKind, Row, all_sorted, batch, filter, input, key, keys_match, lines, output_schema, rows, sorted,
};
use crate::operator::rescaling::{self, PARALLELISMS, Placed, Step};
use crate::operator::{Operator, ReadNext};
use crate::plan::{TemporalJoinSpec, TemporalTime};

const EVENT: TemporalTime = TemporalTime::Event { left: 3, right: 3 };

fn spec(join_type: JoinType, keys: KeyKind, changelog: bool, filtered: bool, time: TemporalTime) -> TemporalJoinSpec {
    TemporalJoinSpec {
        join_type,
        left: input(0, keys, false),
        right: input(1, keys, changelog),
        time,
        filter: filtered.then(filter),
        schema: output_schema(join_type, false),
    }
}

/// The version of the right side for `left`, of those in the order of arrival.
fn version(keys: KeyKind, versions: &[(Row, u8)], left: &Row, by_time: bool) -> Option<Row> {
    let candidates = versions
        .iter()
        .filter(|(row, kind)| *kind != 1 && keys_match(keys, left, row));
    let candidates = candidates.filter(|(row, _)| !by_time || row.time <= left.time);
    // Of equal ones the last.
    let last = candidates.max_by_key(|(row, _)| if by_time { row.time } else { 0 })?;
    (last.1 != 3).then_some(last.0)
}

/// The output line of a left row, if there is one.
fn line(join_type: JoinType, filtered: bool, left: &Row, version: Option<Row>) -> Option<String> {
    let version = version.filter(|right| !filtered || left.value < right.value);
    let left = lines(&batch(0, &[*left], None)).remove(0);
    match version {
        Some(right) => Some(format!("{left}|{}", lines(&batch(1, &[right], None)).remove(0))),
        None => (join_type == JoinType::Left).then(|| format!("{left}|NULL|NULL|NULL|NULL")),
    }
}

fn right_rows() -> impl Strategy<Value = Vec<(Row, u8)>> {
    let kind = prop_oneof![5 => Just(0u8), 1 => Just(1), 3 => Just(2), 2 => Just(3)];
    let row = (key(), 0..4i32, 1..30i64, kind).prop_map(|(key, value, time, kind)| (Row { key, value, time }, kind));
    prop::collection::vec(row, 1..40)
}

/// Sides, rows, watermarks and cuts of a run.
type Steps = Vec<(usize, Vec<Row>, Vec<(Row, u8)>, i64, usize)>;

fn steps(cuts: usize) -> impl Strategy<Value = Steps> {
    prop::collection::vec((0..4usize, rows(-3..30, 40), right_rows(), 1..20i64, 0..cuts), 1..20)
}

fn run_steps(steps: Steps, changelog: bool, by_clock: bool) -> Vec<Step> {
    let mut reached = 0;
    let steps = steps
        .into_iter()
        .map(|(step, mut left, mut right, by, cut)| match step {
            0 => {
                left.iter_mut().for_each(|row| row.time += reached);
                Step::Rows(0, batch(0, &left, None))
            }
            1 => {
                right.iter_mut().for_each(|(row, kind)| {
                    row.time += reached;
                    *kind = if changelog { *kind } else { 0 };
                });
                let (rows, kinds): (Vec<_>, Vec<_>) = right.into_iter().unzip();
                Step::Rows(1, batch(1, &rows, changelog.then_some(&kinds)))
            }
            2 if by_clock => Step::Wait(by as u64),
            2 => {
                reached += by;
                Step::Watermark(reached)
            }
            _ => Step::Cut(PARALLELISMS[cut]),
        });
    steps.collect()
}

const KEYS: [KeyKind; 3] = [KeyKind::Number, KeyKind::Text, KeyKind::Both];

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn in_event_time_each_row_gets_the_version_of_its_time(
        steps in prop::collection::vec((0..3usize, rows(-3..30, 40), right_rows(), 1..20i64), 1..20),
        outer in any::<bool>(),
        keys in 0..KEYS.len(),
        changelog in any::<bool>(),
        filtered in any::<bool>(),
        batch_size in 1..40usize,
    ) {
        let join_type = if outer { JoinType::Left } else { JoinType::Inner };
        let keys = KEYS[keys];
        let spec = spec(join_type, keys, changelog, filtered, EVENT);
        let schema = spec.schema.0.clone();
        let mut harness = Harness::new(TemporalJoin::new(spec).unwrap());
        harness.context.batch_size = batch_size;
        let (mut left, mut right, mut reached, mut late) = (vec![], vec![], 0, 0);
        harness.watermark(reached).unwrap();
        for (step, mut left_rows, mut right_rows, by) in steps {
            match step {
                0 => {
                    left_rows.iter_mut().for_each(|row| row.time += reached);
                    harness.push(0, batch(0, &left_rows, None)).unwrap();
                    late += left_rows.iter().filter(|row| row.time <= reached).count();
                    left.extend(left_rows.into_iter().filter(|row| row.time > reached));
                }
                1 => {
                    right_rows.iter_mut().for_each(|(row, kind)| {
                        row.time += reached;
                        *kind = if changelog { *kind } else { 0 };
                    });
                    let (rows, kinds): (Vec<_>, Vec<_>) = right_rows.iter().copied().unzip();
                    harness.push(1, batch(1, &rows, changelog.then_some(&kinds))).unwrap();
                    right.extend(right_rows);
                }
                _ => {
                    reached += by;
                    harness.watermark(reached).unwrap();
                }
            }
        }
        // The left side may end while its rows still wait for the right one.
        harness.end(0).unwrap();
        harness.watermark(i64::MAX).unwrap();
        harness.end(1).unwrap();
        prop_assert_eq!(harness.context.memory.bytes(), 0);
        let got = harness.rows(&schema);
        // A stable sort: rows of one time leave in the order of arrival, at whatever watermark.
        left.sort_by_key(|row| row.time);
        let want: Vec<_> = left
            .iter()
            .filter_map(|row| line(join_type, filtered, row, version(keys, &right, row, true)))
            .collect();
        prop_assert_eq!(lines(&got), want);
        prop_assert_eq!(harness.context.metrics.late_rows.load(Ordering::Relaxed), late as u64);
    }

    #[test]
    fn goes_on_after_a_cut_at_any_parallelism(
        steps in prop_oneof![steps(PARALLELISMS.len()), steps(1)],
        outer in any::<bool>(),
        keys in 0..KEYS.len(),
        changelog in any::<bool>(),
        filtered in any::<bool>(),
        by_clock in any::<bool>(),
        ttl in prop::option::of(1..30u64),
        batch_size in 1..40usize,
    ) {
        let (join_type, keys) = (if outer { JoinType::Left } else { JoinType::Inner }, KEYS[keys]);
        let time = if by_clock { TemporalTime::Processing { bounded: false } } else { EVENT };
        let mut spec = spec(join_type, keys, changelog, filtered, time);
        spec.right.ttl_ms = ttl.filter(|_| by_clock);
        let mut steps = run_steps(steps, changelog, by_clock);
        let placed = Placed { keys: &[Some(keys.columns()); 2], batch_size, ends_again: true };
        let make = || TemporalJoin::new(spec.clone()).unwrap();
        let disturbed = rescaling::run(make, &placed, 1, &steps);
        let in_order = steps.iter().all(|step| !matches!(step, Step::Cut(2..)));
        steps.retain(|step| !matches!(step, Step::Cut(_)));
        let undisturbed = rescaling::run(make, &placed, 1, &steps);
        prop_assert_eq!(all_sorted(&spec.schema.0, &disturbed), all_sorted(&spec.schema.0, &undisturbed));
        if in_order {
            let all = |batches: &[_]| lines(&concat_batches(&spec.schema.0, batches).unwrap());
            prop_assert_eq!(all(&disturbed), all(&undisturbed));
        }
    }

    #[test]
    fn a_table_that_is_looked_up_in_is_everywhere_again(
        right in prop::collection::vec((right_rows(), prop::option::of(0..PARALLELISMS.len())), 1..6),
        left in prop::collection::vec((rows(0..30, 40), prop::option::of(0..PARALLELISMS.len())), 1..6),
        parallelism in 0..PARALLELISMS.len(),
    ) {
        let spec = spec(JoinType::Left, KeyKind::Both, true, false, TemporalTime::Processing { bounded: true });
        let cut = |cut: Option<usize>| cut.map(|cut| Step::Cut(PARALLELISMS[cut]));
        let mut steps = Vec::new();
        for (rows, at) in right {
            let (rows, kinds): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
            steps.push(Step::Rows(1, batch(1, &rows, Some(&kinds))));
            steps.extend(cut(at));
        }
        steps.push(Step::End(1));
        for (rows, at) in left {
            steps.push(Step::Rows(0, batch(0, &rows, None)));
            steps.extend(cut(at));
        }
        let placed = Placed { keys: &[Some(&[2]), None], batch_size: 10, ends_again: true };
        let make = || TemporalJoin::new(spec.clone()).unwrap();
        let disturbed = rescaling::run(make, &placed, PARALLELISMS[parallelism], &steps);
        steps.retain(|step| !matches!(step, Step::Cut(_)));
        let undisturbed = rescaling::run(make, &placed, 1, &steps);
        prop_assert_eq!(all_sorted(&spec.schema.0, &disturbed), all_sorted(&spec.schema.0, &undisturbed));
    }

    #[test]
    fn in_processing_time_each_row_gets_the_version_that_is_there(
        steps in prop::collection::vec((any::<bool>(), rows(0..30, 40), right_rows()), 1..20),
        outer in any::<bool>(),
        keys in 0..KEYS.len(),
        changelog in any::<bool>(),
        filtered in any::<bool>(),
    ) {
        let join_type = if outer { JoinType::Left } else { JoinType::Inner };
        let keys = KEYS[keys];
        let spec = spec(join_type, keys, changelog, filtered, TemporalTime::Processing { bounded: false });
        let schema = spec.schema.0.clone();
        let mut harness = Harness::new(TemporalJoin::new(spec).unwrap());
        let mut right = vec![];
        for (is_left, left_rows, right_rows) in steps {
            if is_left {
                harness.push(0, batch(0, &left_rows, None)).unwrap();
                let want: Vec<_> = left_rows
                    .iter()
                    .filter_map(|row| line(join_type, filtered, row, version(keys, &right, row, false)))
                    .collect();
                prop_assert_eq!(lines(&harness.take(&schema)), want);
            } else {
                let (rows, kinds): (Vec<_>, Vec<_>) = right_rows.iter().copied().unzip();
                harness.push(1, batch(1, &rows, changelog.then_some(&kinds))).unwrap();
                let kind = |kind| if changelog { kind } else { 0 };
                right.extend(right_rows.into_iter().map(|(row, k)| (row, kind(k))));
            }
        }
        harness.end(0).unwrap();
        harness.end(1).unwrap();
        prop_assert_eq!(harness.context.memory.bytes(), 0);
    }
}

fn row(key: u8, value: i32, time: i64) -> Row {
    Row {
        key: Some(key),
        value,
        time,
    }
}

#[test]
fn a_lookup_table_is_read_to_its_end_first() {
    let spec = spec(
        JoinType::Inner,
        KeyKind::Number,
        false,
        false,
        TemporalTime::Processing { bounded: true },
    );
    let schema = spec.schema.0.clone();
    let mut harness = Harness::new(TemporalJoin::new(spec).unwrap());
    assert_eq!(harness.operator.reads_next(), ReadNext::Only(1));
    harness
        .push(1, batch(1, &[row(1, 1, 0), row(2, 2, 0), row(1, 3, 0)], None))
        .unwrap();
    harness.end(1).unwrap();
    assert_eq!(harness.operator.reads_next(), ReadNext::Any);
    harness.push(0, batch(0, &[row(1, 0, 0), row(3, 0, 0)], None)).unwrap();
    let got = lines(&harness.take(&schema));
    assert_eq!(got.len(), 1);
    assert!(got[0].contains("|3|"), "the later row replaces the earlier: {got:?}");
}

#[test]
fn of_each_key_one_version_is_kept_however_many_there_were() {
    let spec = spec(JoinType::Inner, KeyKind::Text, false, false, EVENT);
    let mut harness = Harness::new(TemporalJoin::new(spec).unwrap());
    let mut most = 0;
    for round in 0..200 {
        let rows: Vec<_> = (0..50u8).map(|key| row(key, 0, round)).collect();
        harness.push(1, batch(1, &rows, None)).unwrap();
        harness.watermark(round).unwrap();
        most = most.max(harness.context.memory.bytes());
    }
    assert!(most < 100_000, "{most}");
}

#[test]
fn a_late_version_counts_unless_there_is_a_younger_one() {
    let spec = spec(JoinType::Inner, KeyKind::Number, false, false, EVENT);
    let schema = spec.schema.0.clone();
    let mut harness = Harness::new(TemporalJoin::new(spec).unwrap());
    harness.push(1, batch(1, &[row(1, 7, 5)], None)).unwrap();
    harness.watermark(10).unwrap();
    harness.push(1, batch(1, &[row(1, 8, 3), row(2, 9, 3)], None)).unwrap();
    harness
        .push(0, batch(0, &[row(1, 0, 11), row(2, 0, 11)], None))
        .unwrap();
    harness.watermark(11).unwrap();
    let want = [(row(1, 0, 11), row(1, 7, 5)), (row(2, 0, 11), row(2, 9, 3))];
    let mut want: Vec<_> = want
        .iter()
        .map(|(l, r)| line(JoinType::Inner, false, l, Some(*r)).unwrap())
        .collect();
    want.sort();
    assert_eq!(sorted(&harness.take(&schema)), want);
}

#[test]
fn what_is_not_supported_is_refused() {
    assert!(TemporalJoin::new(spec(JoinType::Full, KeyKind::Number, false, false, EVENT)).is_err());
    assert!(TemporalJoin::new(spec(JoinType::Inner, KeyKind::None, false, false, EVENT)).is_err());
}
