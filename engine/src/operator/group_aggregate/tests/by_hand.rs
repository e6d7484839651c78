//! What must come out, row by row.

use std::time::Duration;

use super::*;
use crate::operator::keyed::folded::changes;

fn counts() -> Functions {
    plain(vec![
        function(aggregates::count::count_udaf(), vec![lit(1i64)]),
        function(aggregates::sum::sum_udaf(), vec![column("v")]),
    ])
}

fn pushed(harness: &mut Harness<GroupAggregate>, case: &Case, rows: &[(RowKind, Row)]) -> Vec<String> {
    harness.push(0, changelog(rows)).unwrap();
    changes(&harness.take(&case.schema()))
}

#[test]
fn a_group_leaves_once_per_batch_and_goes_with_its_last_row() {
    use RowKind::{Delete, Insert};
    let case = Case::new(&["k"], counts(), true);
    let mut harness = case.harness();
    let log = [(Insert, row(1, 5)), (Insert, row(2, 1)), (Insert, row(1, 7))];
    assert_eq!(pushed(&mut harness, &case, &log), ["+I 1|2|12", "+I 2|1|1"]);
    let log = [(Insert, row(1, 1)), (Delete, row(2, 1))];
    assert_eq!(
        pushed(&mut harness, &case, &log),
        ["-U 1|2|12", "+U 1|3|13", "-D 2|1|1"]
    );
    // A dead group comes back as a new one; what leaves no trace is not told.
    let log = [(Insert, row(2, 9)), (Insert, row(1, 4)), (Delete, row(1, 4))];
    assert_eq!(pushed(&mut harness, &case, &log), ["+I 2|1|9"]);
    let log = [(Insert, row(3, 9)), (Delete, row(3, 9))];
    assert_eq!(pushed(&mut harness, &case, &log), Vec::<String>::new());
    harness.end(0).unwrap();
    assert!(harness.output.batches.is_empty());
}

#[test]
fn without_any_row_the_end_gives_what_batch_gives() {
    let case = Case::new(&[], counts(), true);
    let mut harness = case.harness();
    assert_eq!(
        pushed(&mut harness, &case, &[(RowKind::Delete, row(1, 1))]),
        Vec::<String>::new()
    );
    harness.end(0).unwrap();
    assert_eq!(changes(&harness.take(&case.schema())), ["+I 0|NULL"]);
    let mut harness = case.harness();
    let log = [(RowKind::Insert, row(1, 1)), (RowKind::Delete, row(1, 1))];
    assert_eq!(pushed(&mut harness, &case, &log), ["+I 0|NULL"]);
    harness.end(0).unwrap();
    assert!(harness.output.batches.is_empty());
}

#[test]
fn a_group_is_forgotten_when_its_time_is_over() {
    use RowKind::{Delete, Insert};
    let case = Case {
        ttl_ms: Some(1000),
        ..Case::new(&["k"], counts(), true)
    };
    let mut harness = case.harness();
    pushed(&mut harness, &case, &[(Insert, row(1, 5)), (Insert, row(2, 5))]);
    harness.advance(Duration::from_millis(600)).unwrap();
    // An access counts even when it changes nothing, and is told so that others keep their state too.
    let log = [(Insert, row(1, 1)), (Delete, row(1, 1))];
    assert_eq!(pushed(&mut harness, &case, &log), ["-U 1|1|5", "+U 1|1|5"]);
    harness.advance(Duration::from_millis(600)).unwrap();
    assert_eq!(
        pushed(&mut harness, &case, &[(Delete, row(2, 5))]),
        Vec::<String>::new()
    );
    assert_eq!(pushed(&mut harness, &case, &[(Insert, row(2, 7))]), ["+I 2|1|7"]);
    assert_eq!(
        pushed(&mut harness, &case, &[(Insert, row(1, 1))]),
        ["-U 1|1|5", "+U 1|2|6"]
    );
    harness.advance(Duration::from_millis(5000)).unwrap();
    assert_eq!(harness.operator.next_timer(), None);
    assert_eq!(pushed(&mut harness, &case, &[(Insert, row(1, 3))]), ["+I 1|1|3"]);
}

#[test]
fn a_group_that_expires_between_sweeps_is_forgotten_on_access() {
    let case = Case {
        ttl_ms: Some(1000),
        ..Case::new(&["k"], retractable(), false)
    };
    let mut harness = case.harness();
    harness.push(0, batch(&[row(1, 5)])).unwrap();
    harness.take(&case.schema());
    harness.clock.advance(Duration::from_millis(1000));
    harness.push(0, batch(&[row(1, 6)])).unwrap();
    // It comes anew: the folded output would tell it from a change.
    let mut folded = Folded::default();
    folded.fold(&harness.take(&case.schema()));
    assert_eq!(folded, case.expected(&[row(1, 6)]));
}

#[test]
fn many_dead_groups_give_their_memory_back() {
    use RowKind::{Delete, Insert};
    let case = Case::new(&["k"], retractable(), true);
    let mut harness = case.harness();
    let mut folded = Folded::default();
    let (mut largest, mut last) = (0, 0);
    for round in 0..30 {
        let keys = round * 1000..(round + 1) * 1000;
        let log: Vec<_> = keys
            .clone()
            .map(|key| (Insert, row(key, 1 + i64::from(key % 7))))
            .collect();
        harness.push(0, changelog(&log)).unwrap();
        folded.fold(&harness.take(&case.schema()));
        // One in a hundred stays.
        let log = keys
            .filter(|key| key % 100 != 0)
            .map(|key| (Delete, row(key, 1 + i64::from(key % 7))));
        harness.push(0, changelog(&log.collect::<Vec<_>>())).unwrap();
        folded.fold(&harness.take(&case.schema()));
        last = harness.memory.reserved_bytes();
        if round < 5 {
            largest = largest.max(last);
        }
    }
    assert!(harness.operator.index.len() < 5000, "{}", harness.operator.index.len());
    assert!(last < largest * 2, "{last} bytes after {largest}");
    let rows: Vec<Row> = (0..300).map(|n| row(n * 100, 1 + i64::from(n * 100 % 7))).collect();
    assert_eq!(folded, case.expected(&rows));
    // Those that stayed are still known by their keys.
    let log: Vec<_> = rows.iter().map(|row| (Delete, row.clone())).collect();
    harness.push(0, changelog(&log)).unwrap();
    folded.fold(&harness.take(&case.schema()));
    assert_eq!(folded, Folded::default());
}

#[test]
fn floats_come_back_from_what_is_no_number() {
    use RowKind::{Delete, Insert};
    let of = |udf| function(udf, vec![column("f")]);
    let functions = plain(vec![
        of(aggregates::sum::sum_udaf()),
        of(aggregates::min_max::min_udaf()),
        of(aggregates::min_max::max_udaf()),
    ]);
    let case = Case::new(&[], functions, true);
    let mut harness = case.harness();
    let with = |f: f64| Row {
        f: Some(f),
        ..row(1, 1)
    };
    let mut last = |kind, f| {
        pushed(&mut harness, &case, &[(kind, with(f))])
            .pop()
            .unwrap_or_default()
    };
    assert_eq!(last(Insert, 0.1), "+I 0.1|0.1|0.1");
    assert_eq!(last(Insert, 1e17), "+U 1e17|0.1|1e17");
    assert_eq!(last(Insert, -f64::NAN), "+U NaN|0.1|NaN");
    assert_eq!(last(Insert, f64::INFINITY), "");
    assert_eq!(last(Delete, f64::NAN), "+U inf|0.1|inf");
    assert_eq!(last(Insert, f64::NEG_INFINITY), "+U NaN|-inf|inf");
    assert_eq!(last(Delete, f64::INFINITY), "+U -inf|-inf|1e17");
    assert_eq!(last(Delete, f64::NEG_INFINITY), "+U 1e17|0.1|1e17");
    assert_eq!(last(Delete, 1e17), "+U 0.1|0.1|0.1");
}

#[test]
fn first_and_last_of_a_changelog() {
    use RowKind::{Delete, Insert};
    let of = |udf| function(udf, vec![column("v")]);
    let functions = plain(vec![
        of(aggregates::first_last::first_value_udaf()),
        of(aggregates::first_last::last_value_udaf()),
        of(aggregates::first_last::last_value_udaf())
            .ignore_nulls()
            .alias("last known"),
    ]);
    let case = Case::new(&["k"], functions, true);
    let mut harness = case.harness();
    let with = |v: Option<i64>| Row { v, ..row(1, 1) };
    let mut last = |kind, v| pushed(&mut harness, &case, &[(kind, with(v))]).pop();
    let line = |text: &str| Some(text.to_string());
    assert_eq!(last(Insert, Some(1)), line("+I 1|1|1|1"));
    assert_eq!(last(Insert, Some(2)), line("+U 1|1|2|2"));
    assert_eq!(last(Insert, Some(1)), line("+U 1|1|1|1"));
    assert_eq!(last(Insert, None), line("+U 1|1|NULL|1"));
    // The oldest of equal ones goes.
    assert_eq!(last(Delete, Some(1)), line("+U 1|2|NULL|1"));
    assert_eq!(last(Delete, None), line("+U 1|2|1|1"));
    assert_eq!(last(Delete, Some(1)), line("+U 1|2|2|2"));
    assert_eq!(last(Delete, Some(2)), line("-D 1|2|2|2"));
}

#[test]
fn what_cannot_take_rows_back_is_refused() {
    let udfs = [
        aggregates::array_agg::array_agg_udaf(),
        aggregates::bit_and_or_xor::bit_and_udaf(),
    ];
    for udf in udfs {
        let functions = plain(vec![function(udf, vec![column("v")])]);
        assert!(Case::new(&["k"], functions.clone(), false).build().is_ok());
        let Err(error) = Case::new(&["k"], functions, true).build() else {
            panic!("it is not refused");
        };
        assert!(matches!(error, EngineError::Plan(_)), "{error}");
        assert!(error.to_string().contains("cannot take rows back"), "{error}");
    }
}

#[test]
fn more_state_than_the_budget_is_an_error() {
    let case = Case::new(&["k"], counts(), false);
    let mut harness = Harness::with_memory(case.build().unwrap(), 200_000);
    let rows: Vec<Row> = (0..100_000).map(|key| row(key, 1)).collect();
    let results: Vec<_> = rows.chunks(1000).map(|rows| harness.push(0, batch(rows))).collect();
    assert!(results[0].is_ok());
    assert!(matches!(results.last(), Some(Err(EngineError::Memory(_)))));
}

#[test]
fn output_comes_in_batches_of_the_wanted_size() {
    let case = Case::new(&["k"], counts(), false);
    let mut harness = case.harness();
    harness.context.batch_size = 100;
    let rows: Vec<Row> = (0..1050).map(|key| row(key, 1)).collect();
    harness.push(0, batch(&rows)).unwrap();
    harness.push(0, batch(&rows)).unwrap();
    let sizes: Vec<usize> = harness.output.batches.iter().map(Batch::num_rows).collect();
    assert_eq!(sizes, [vec![100; 10], vec![50], vec![100; 21]].concat());
    let mut folded = Folded::default();
    folded.fold(&harness.take(&case.schema()));
    assert_eq!(folded, case.expected(&[rows.clone(), rows].concat()));
}

#[test]
fn distinct_values_of_forgotten_groups_give_their_memory_back() {
    let distinct = function(aggregates::count::count_udaf(), vec![column("v")]).distinct();
    let case = Case {
        ttl_ms: Some(1000),
        ..Case::new(&["k"], plain(vec![distinct]), false)
    };
    let mut harness = case.harness();
    let rows: Vec<Row> = (0..3000).map(|v| row((v % 2) as i32, v)).collect();
    let mut largest = 0;
    for round in 0..20 {
        for part in rows.chunks(500) {
            harness.push(0, batch(part)).unwrap();
        }
        harness.push(0, batch(&rows)).unwrap();
        let lines = changes(&harness.take(&case.schema()));
        // Nothing has changed, but others keep their state too.
        let expected = ["-U 0|1500", "+U 0|1500", "-U 1|1500", "+U 1|1500"];
        assert_eq!(lines[lines.len() - 4..], expected, "{round}");
        largest = largest.max(harness.memory.reserved_bytes());
        harness.clock.advance(Duration::from_millis(1000));
    }
    assert!(largest < 1 << 20, "{largest} bytes");
}
