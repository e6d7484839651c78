//! Every join type: after each watermark, the joins of the windows that are complete, by their definition.

use std::sync::atomic::Ordering;

use datafusion::common::JoinType;
use proptest::prelude::*;

use super::WindowJoin;
use crate::operator::harness::Harness;
use crate::operator::join_state::naive::{
    JOIN_TYPES, KEY_KINDS, KeyKind, Row, all_sorted, batch, expected, filter, input, keys_match, output_schema, rows,
    sorted,
};
use crate::operator::rescaling::{self, PARALLELISMS, Placed, Step};
use crate::plan::WindowJoinSpec;

fn spec(join_type: JoinType, keys: KeyKind, filtered: bool) -> WindowJoinSpec {
    WindowJoinSpec {
        join_type,
        left: input(0, keys, false),
        right: input(1, keys, false),
        left_end: 3,
        right_end: 3,
        filter: filtered.then(filter),
        schema: output_schema(join_type, false),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn joins_each_window_once_it_is_complete(
        steps in prop::collection::vec((0..3usize, rows(1..9, 60), 1..25i64), 1..20),
        join_type in 0..JOIN_TYPES.len(),
        keys in 0..KEY_KINDS.len(),
        filtered in any::<bool>(),
        batch_size in 1..40usize,
    ) {
        let (join_type, keys) = (JOIN_TYPES[join_type], KEY_KINDS[keys]);
        let spec = spec(join_type, keys, filtered);
        let schema = spec.schema.0.clone();
        let mut harness = Harness::new(WindowJoin::new(spec).unwrap());
        harness.context.batch_size = batch_size;
        let (mut kept, mut reached, mut late) = ([vec![], vec![]], 0, 0);
        harness.watermark(reached).unwrap();
        let steps = steps.into_iter().chain([(2, vec![], i64::MAX)]);
        for (step, mut rows, by) in steps {
            if step < 2 {
                // Ends are multiples of ten, many of one batch in many windows.
                rows.iter_mut().for_each(|row| row.time *= 10);
                harness.push(step, batch(step, &rows, None)).unwrap();
                late += rows.iter().filter(|row| row.time - 1 <= reached).count();
                kept[step].extend(rows.into_iter().filter(|row| row.time - 1 > reached));
                prop_assert!(harness.context.memory.bytes() > 0 || kept.iter().all(Vec::is_empty) || reached > 0);
                continue;
            }
            reached = if by == i64::MAX { by } else { reached + by };
            harness.watermark(reached).unwrap();
            let complete = |row: &&Row| row.time - 1 <= reached;
            let [left, right] = [0, 1].map(|side: usize| {
                kept[side].iter().filter(complete).copied().collect::<Vec<_>>()
            });
            let matches = |l: &Row, r: &Row| {
                l.time == r.time && keys_match(keys, l, r) && (!filtered || l.value < r.value)
            };
            let want = expected(join_type, &left, &right, matches);
            prop_assert_eq!(sorted(&harness.rows(&schema)), want);
        }
        prop_assert_eq!(harness.context.memory.bytes(), 0);
        prop_assert_eq!(harness.context.metrics.late_rows.load(Ordering::Relaxed), late as u64);
        harness.end(0).unwrap();
        harness.end(1).unwrap();
        prop_assert!(harness.output.batches.iter().all(|batch| batch.num_rows() <= batch_size));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn goes_on_after_a_cut_at_any_parallelism(
        steps in prop::collection::vec((0..4usize, rows(1..9, 60), 1..25i64, 0..PARALLELISMS.len()), 1..20),
        join_type in 0..JOIN_TYPES.len(),
        keys in 0..KEY_KINDS.len(),
        filtered in any::<bool>(),
        batch_size in 1..40usize,
    ) {
        let (join_type, keys) = (JOIN_TYPES[join_type], KEY_KINDS[keys]);
        let spec = spec(join_type, keys, filtered);
        let mut reached = 0;
        let steps = steps.into_iter().map(|(step, mut rows, by, cut)| match step {
            0 | 1 => {
                rows.iter_mut().for_each(|row| row.time *= 10);
                Step::Rows(step, batch(step, &rows, None))
            }
            2 => {
                reached += by;
                Step::Watermark(reached)
            }
            _ => Step::Cut(PARALLELISMS[cut]),
        });
        let mut steps: Vec<_> = steps.collect();
        let placed = Placed { keys: &[Some(keys.columns()); 2], batch_size, ends_again: true };
        let make = || WindowJoin::new(spec.clone()).unwrap();
        let disturbed = rescaling::run(make, &placed, 2, &steps);
        steps.retain(|step| !matches!(step, Step::Cut(_)));
        let undisturbed = rescaling::run(make, &placed, 1, &steps);
        prop_assert_eq!(all_sorted(&spec.schema.0, &disturbed), all_sorted(&spec.schema.0, &undisturbed));
    }
}

#[test]
fn many_small_windows_leave_in_full_batches() {
    let spec = spec(JoinType::Inner, KeyKind::Number, false);
    let mut harness = Harness::new(WindowJoin::new(spec).unwrap());
    for side in 0..2 {
        let rows: Vec<_> = (0..20_000)
            .map(|i| Row {
                key: Some((i % 7) as u8),
                value: 0,
                time: i + 1,
            })
            .collect();
        harness.push(side, batch(side, &rows, None)).unwrap();
    }
    harness.watermark(i64::MAX).unwrap();
    let rows: usize = harness.output.batches.iter().map(|batch| batch.num_rows()).sum();
    assert_eq!(rows, 20_000);
    assert!(
        harness.output.batches.len() <= 4,
        "{} batches",
        harness.output.batches.len()
    );
}

#[test]
fn without_a_last_watermark_the_end_completes_all_windows() {
    let spec = spec(JoinType::Full, KeyKind::Text, false);
    let mut harness = Harness::new(WindowJoin::new(spec).unwrap());
    harness
        .push(
            0,
            batch(
                0,
                &[Row {
                    key: None,
                    value: 0,
                    time: 5,
                }],
                None,
            ),
        )
        .unwrap();
    harness.end(0).unwrap();
    assert!(harness.output.batches.is_empty());
    harness.end(1).unwrap();
    assert_eq!(harness.output.batches.len(), 1);
    assert_eq!(harness.context.memory.bytes(), 0);
}
