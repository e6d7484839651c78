//! Cut down and set up again, at another parallelism, out of whole checkpoints and out of deltas: what comes out is the same.

use super::*;
use crate::operator::keyed::subtasks::{Disturbance, Subtasks, disturbances};
use crate::state::Scope;

/// Functions of insertions whose results tell more of their state than one value.
fn by_arrival() -> Functions {
    let of = |udf, name| function(udf, vec![column(name)]);
    let mut functions = plain(vec![
        of(aggregates::first_last::first_value_udaf(), "v"),
        of(aggregates::first_last::last_value_udaf(), "s"),
        of(aggregates::first_last::last_value_udaf(), "f").alias("last f"),
        of(aggregates::first_last::first_value_udaf(), "s")
            .ignore_nulls()
            .alias("first known"),
        of(aggregates::count::count_udaf(), "s").distinct(),
        of(aggregates::min_max::min_udaf(), "v"),
    ]);
    let positive: Arc<dyn PhysicalExpr> = Arc::new(BinaryExpr::new(column("v"), Op::Gt, lit(0i64)));
    let filtered = of(aggregates::first_last::last_value_udaf(), "v").alias("last positive");
    functions.push((Arc::new(filtered.build().unwrap()), Some(positive)));
    functions
}

/// Every kind of function that can take rows back; of DISTINCT ones also those that DataFusion computes.
fn of_changelogs() -> Functions {
    let of = |udf, name| function(udf, vec![column(name)]);
    let mut functions = retractable();
    functions.extend(plain(vec![
        function(
            aggregates::percentile_cont::percentile_cont_udaf(),
            vec![column("f"), lit(0.5f64)],
        )
        .distinct(),
        // The same name twice.
        of(aggregates::sum::sum_udaf(), "v"),
    ]));
    functions
}

fn key_columns(case: &Case) -> Vec<usize> {
    case.keys.iter().map(|key| input().index_of(key).unwrap()).collect()
}

type Disturbed<T> = Vec<(Vec<T>, Vec<Disturbance>)>;

fn disturbed<T: std::fmt::Debug>(batches: impl Strategy<Value = Vec<Vec<T>>>) -> impl Strategy<Value = Disturbed<T>> {
    let all = prop::collection::vec(prop::collection::vec(disturbances(), 0..3), 12);
    (batches, all).prop_map(|(batches, all)| batches.into_iter().zip(all).collect())
}

fn check_disturbed_changelog(case: &Case, steps: &Disturbed<Step>) {
    let mut subtasks = Subtasks::new(|| case.build().unwrap(), &key_columns(case), &case.schema());
    let mut table = Vec::new();
    for (steps, disturbances) in steps {
        let mut log = apply(steps, &mut table);
        log.retain(|(_, row)| case.keys.contains(&"k") || row.k != Some(99));
        if !log.is_empty() {
            subtasks.push(&changelog(&log));
        }
        disturbances
            .iter()
            .for_each(|disturbance| subtasks.disturb(*disturbance));
    }
    // What is left is still known.
    let log: Vec<_> = table.into_iter().map(|row| (RowKind::Delete, row)).collect();
    if !log.is_empty() {
        subtasks.push(&changelog(&log));
    }
    subtasks.end();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]

    #[test]
    fn a_disturbed_changelog_gives_the_same(steps in disturbed(steps()), update_before: bool, ttl: bool) {
        for keys in [&["k"][..], &["k", "s"], &["f"], &[]] {
            let case = Case {
                update_before: update_before || keys == ["f"],
                ttl_ms: ttl.then_some(500),
                ..Case::new(keys.to_vec().leak(), of_changelogs(), true)
            };
            check_disturbed_changelog(&case, &steps);
        }
    }

    #[test]
    fn disturbed_first_and_last_give_the_same(steps in disturbed(steps())) {
        let of = |udf, name| function(udf, vec![column(name)]);
        let functions = plain(vec![
            of(aggregates::first_last::first_value_udaf(), "v"),
            of(aggregates::first_last::last_value_udaf(), "s"),
            of(aggregates::first_last::last_value_udaf(), "f").ignore_nulls(),
        ]);
        check_disturbed_changelog(&Case::new(&["k"], functions, true), &steps);
    }

    #[test]
    fn disturbed_insertions_give_the_same(
        input in disturbed(prop::collection::vec(prop::collection::vec(rows(), 1..12), 1..10)), ttl: bool,
    ) {
        let mut insertions = of_insertions();
        insertions.extend(by_arrival());
        let cases = [(&["k"][..], insertions.clone()), (&[], insertions), (&["k", "s"], Vec::new())];
        for (keys, functions) in cases {
            let case = Case { ttl_ms: ttl.then_some(500), ..Case::new(keys.to_vec().leak(), functions, false) };
            let mut subtasks = Subtasks::new(|| case.build().unwrap(), &key_columns(&case), &case.schema());
            for (rows, disturbances) in &input {
                subtasks.push(&batch(rows));
                disturbances.iter().for_each(|disturbance| subtasks.disturb(*disturbance));
            }
            subtasks.end();
        }
    }
}

fn counts() -> Functions {
    plain(vec![
        function(aggregates::count::count_udaf(), vec![lit(1i64)]),
        function(aggregates::sum::sum_udaf(), vec![column("v")]),
    ])
}

#[test]
fn a_delta_has_what_changed_and_what_went() {
    use RowKind::{Delete, Insert};
    let case = Case::new(&["k"], counts(), true);
    let mut harness = case.harness();
    let log: Vec<_> = (0..10_000).map(|key| (Insert, row(key, 1))).collect();
    harness.push(0, changelog(&log)).unwrap();
    let counted = |tables: &[crate::operator::harness::StoredTable]| {
        assert_eq!(tables.len(), 1);
        let rows = |batches: &[Batch]| batches.iter().map(Batch::num_rows).sum::<usize>();
        (tables[0].since, rows(&tables[0].rows), rows(&tables[0].deleted))
    };
    assert_eq!(counted(&harness.snapshot(1, None).unwrap()), (None, 10_000, 0));
    assert_eq!(counted(&harness.snapshot(2, Some(1)).unwrap()), (Some(1), 0, 0));
    let log: Vec<_> = (0..30).map(|key| (Insert, row(key, 1))).collect();
    harness.push(0, changelog(&log)).unwrap();
    assert_eq!(counted(&harness.snapshot(3, Some(2)).unwrap()), (Some(2), 30, 0));
    let log = [(Delete, row(100, 1)), (Delete, row(101, 1)), (Insert, row(101, 5))];
    harness.push(0, changelog(&log)).unwrap();
    // It did not complete: the next one tells of its changes as well.
    assert_eq!(counted(&harness.snapshot(4, Some(3)).unwrap()), (Some(3), 1, 1));
    harness
        .push(0, changelog(&[(Insert, row(29, 1)), (Insert, row(102, 1))]))
        .unwrap();
    assert_eq!(counted(&harness.snapshot(5, Some(3)).unwrap()), (Some(3), 3, 1));
    // What nothing is known of is written whole.
    assert_eq!(counted(&harness.snapshot(6, Some(2)).unwrap()), (None, 9999, 0));
    assert_eq!(counted(&harness.snapshot(7, Some(6)).unwrap()), (Some(6), 0, 0));
}

#[test]
fn dead_groups_are_forgotten_when_they_have_been_told_of() {
    use RowKind::{Delete, Insert};
    let case = Case::new(&["k"], counts(), true);
    let mut subtasks = Subtasks::new(|| case.build().unwrap(), &[0], &case.schema());
    for round in 0..12 {
        let keys = round * 3000..(round + 1) * 3000;
        let log: Vec<_> = keys.clone().map(|key| (Insert, row(key, 1))).collect();
        subtasks.push(&changelog(&log));
        subtasks.disturb(Disturbance::Checkpoint);
        let log: Vec<_> = keys
            .filter(|key| key % 100 != 0)
            .map(|key| (Delete, row(key, 1)))
            .collect();
        subtasks.push(&changelog(&log));
        subtasks.disturb(match round {
            4 => Disturbance::Restart(3),
            8 => Disturbance::Restart(2),
            _ => Disturbance::Checkpoint,
        });
    }
    assert!(subtasks.deltas > 20, "{}", subtasks.deltas);
    let (booked, alone) = subtasks.booked();
    assert!(booked < alone * 4, "{booked} bytes, {alone} of one that is left alone");
    let kept: Vec<_> = (0..360).map(|key| (Delete, row(key * 100, 1))).collect();
    assert_eq!(subtasks.push(&changelog(&kept)).num_rows(), 360);
}

#[test]
fn restored_state_is_booked() {
    let case = Case::new(&["k"], of_changelogs(), true);
    let mut subtasks = Subtasks::new(|| case.build().unwrap(), &[0], &case.schema());
    for start in 0..4 {
        let rows = (0..2000).map(|key| (RowKind::Insert, row(key, i64::from(key % 7 + start))));
        subtasks.push(&changelog(&rows.collect::<Vec<_>>()));
    }
    subtasks.disturb(Disturbance::Restart(1));
    let (booked, alone) = subtasks.booked();
    assert!(
        booked * 3 > alone * 2 && booked * 2 < alone * 3,
        "{booked} and {alone} bytes"
    );
    subtasks.disturb(Disturbance::Restart(3));
    let (booked, _) = subtasks.booked();
    assert!(booked * 2 > alone && booked < alone * 3, "{booked} and {alone} bytes");
    assert_eq!(subtasks.parallelism(), 3);
}

#[test]
fn rows_of_state_are_where_the_exchange_sends_their_keys() {
    let case = Case::new(&["k", "s"], of_changelogs(), true);
    let mut subtasks = Subtasks::new(|| case.build().unwrap(), &key_columns(&case), &case.schema());
    let rows = (0..500).map(|key| (RowKind::Insert, row(key, 1))).collect::<Vec<_>>();
    subtasks.push(&changelog(&rows));
    subtasks.disturb(Disturbance::Restart(3));
    subtasks.disturb(Disturbance::Checkpoint);
    for (subtask, tables) in subtasks.last_stored().iter().enumerate() {
        for table in tables {
            let Scope::Keyed(keys) = &table.spec.scope else {
                panic!("{} is not keyed", table.spec.name);
            };
            for rows in &table.rows {
                let groups = crate::state::key_groups(keys, rows).unwrap();
                let own = crate::state::key_groups_of(subtask, 3);
                assert!(groups.iter().all(|group| own.contains(group)), "{}", table.spec.name);
            }
        }
    }
}

#[test]
fn state_of_another_aggregation_is_refused() {
    let case = Case::new(&["k"], counts(), true);
    let mut harness = case.harness();
    let log: Vec<_> = (0..10).map(|key| (RowKind::Insert, row(key, 1))).collect();
    harness.push(0, changelog(&log)).unwrap();
    let stored = [vec![harness.snapshot(1, None).unwrap()]];
    let refused = |case: Case| {
        let error = case.harness().restore((0, 1), &stored).unwrap_err();
        assert!(matches!(error, EngineError::Plan(_)), "{error}");
        error.to_string()
    };
    let insertions = refused(Case::new(&["k"], counts(), false));
    assert!(insertions.contains("table 'groups' has version"), "{insertions}");
    refused(Case::new(&["k", "s"], counts(), true));
    let renamed = refused(Case::new(&["v"], counts(), true));
    assert!(renamed.contains("key column 'key_v'"), "{renamed}");
}

#[test]
fn a_function_may_be_new_and_another_gone() {
    let case = Case::new(&["k"], counts(), true);
    let mut harness = case.harness();
    let log: Vec<_> = (0..3).map(|key| (RowKind::Insert, row(key, 7))).collect();
    harness.push(0, changelog(&log)).unwrap();
    let stored = [vec![harness.snapshot(1, None).unwrap()]];
    let functions = plain(vec![
        function(aggregates::sum::sum_udaf(), vec![column("f")]).alias("new"),
        function(aggregates::min_max::max_udaf(), vec![column("v")]),
        function(aggregates::median::median_udaf(), vec![column("v")]),
        function(aggregates::sum::sum_udaf(), vec![column("v")]),
    ]);
    let case = Case::new(&["k"], functions, true);
    let mut harness = case.harness();
    harness.restore((0, 1), &stored).unwrap();
    harness.push(0, changelog(&[(RowKind::Insert, row(1, 5))])).unwrap();
    let expected = ["-U 1|NULL|NULL|NULL|7", "+U 1|5.0|5|5|12"];
    let changes = crate::operator::keyed::folded::changes(&harness.take(&case.schema()));
    assert_eq!(changes, expected);
}

#[test]
fn a_value_of_a_forgotten_group_is_not_missed() {
    use RowKind::{Delete, Insert};
    let functions = plain(vec![function(aggregates::median::median_udaf(), vec![column("v")])]);
    let case = Case {
        ttl_ms: Some(1000),
        ..Case::new(&["k"], functions, true)
    };
    let mut harness = case.harness();
    harness.push(0, changelog(&[(Insert, row(1, 5))])).unwrap();
    harness.clock.advance(std::time::Duration::from_millis(1000));
    let log = [(Insert, row(1, 7)), (Insert, row(1, 9))];
    harness.push(0, changelog(&log)).unwrap();
    harness.take(&case.schema());
    harness
        .push(0, changelog(&[(Delete, row(1, 5)), (Insert, row(1, 9))]))
        .unwrap();
    let changes = crate::operator::keyed::folded::changes(&harness.take(&case.schema()));
    assert_eq!(changes, ["-U 1|8", "+U 1|9"]);
}

#[test]
fn groups_are_all_there_whatever_the_parallelism() {
    let case = Case::new(&["k"], of_changelogs(), true);
    let mut subtasks = vec![case.harness()];
    let log: Vec<_> = (0..1000).map(|key| (RowKind::Insert, row(key, 1))).collect();
    subtasks[0].push(0, changelog(&log)).unwrap();
    for parallelism in [2, 3, 7, 2, 1] {
        subtasks = crate::operator::harness::rescaled(&mut subtasks, parallelism, || case.build().unwrap()).unwrap();
        let counts: Vec<usize> = subtasks
            .iter()
            .map(|harness| harness.operator.index.living().len())
            .collect();
        assert_eq!(counts.iter().sum::<usize>(), 1000, "{counts:?}");
        assert!(counts.iter().all(|count| *count > 500 / parallelism), "{counts:?}");
    }
}
