//! Cut down and set up again.

use super::*;
use crate::operator::keyed::subtasks::{Disturbance, Subtasks, disturbances};

fn make(spec: &RankSpec) -> Any {
    Any(rank(spec).unwrap())
}

fn disturbed<T: std::fmt::Debug>(
    rows: impl Strategy<Value = Vec<T>>,
) -> impl Strategy<Value = Vec<(Vec<T>, Vec<Disturbance>)>> {
    prop::collection::vec((rows, prop::collection::vec(disturbances(), 0..3)), 1..12)
}

fn check(spec: &RankSpec, batches: &[(Vec<Row>, Vec<Disturbance>)]) {
    let mut subtasks = Subtasks::new(|| make(spec), &[0], &spec.schema.0);
    for (rows, disturbances) in batches {
        subtasks.push(&batch(rows));
        disturbances
            .iter()
            .for_each(|disturbance| subtasks.disturb(*disturbance));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn disturbed_insertions_have_the_same_best(
        batches in disturbed(prop::collection::vec(rows(), 1..15)),
        first in 1usize..3, more in 0usize..4, number: bool, ttl: bool,
    ) {
        for order in ORDERS {
            check(&RankSpec { ttl_ms: ttl.then_some(500), ..spec(order, first, first + more, number) }, &batches);
        }
    }

    #[test]
    fn disturbed_deduplications_keep_the_same(
        batches in disturbed(prop::collection::vec(rows(), 1..15)),
        number: bool, update_before: bool, ttl: bool,
    ) {
        // The order of the third has keys of more than 16 bytes, that of the fourth of any length.
        for order in &ORDERS[..4] {
            let ttl_ms = ttl.then_some(500);
            check(&RankSpec { by_time: true, update_before, ttl_ms, ..spec(order, 1, 1, number) }, &batches);
        }
        let first = RankSpec {
            by_time: true,
            ttl_ms: ttl.then_some(500),
            schema: SchemaSpec(output(number)),
            ..spec(ORDERS[0], 1, 1, number)
        };
        check(&first, &batches);
    }

    #[test]
    fn a_disturbed_changelog_has_the_same_best(
        batches in disturbed(prop::collection::vec(
            (rows(), prop::option::weighted(0.45, any::<prop::sample::Index>())), 1..15)),
        first in 1usize..3, more in 0usize..4, number: bool, ttl: bool,
    ) {
        for order in ORDERS {
            let mut spec = RankSpec { ttl_ms: ttl.then_some(500), ..spec(order, first, first + more, number) };
            spec.input_schema = SchemaSpec(with_row_kind(&super::input()));
            let mut subtasks = Subtasks::new(|| make(&spec), &[0], &spec.schema.0);
            let mut table: Vec<Row> = Vec::new();
            for (steps, disturbances) in &batches {
                let log: Vec<_> = steps
                    .iter()
                    .map(|(row, taken)| match taken {
                        Some(at) if !table.is_empty() => (RowKind::Delete, table.remove(at.index(table.len()))),
                        Some(_) => (RowKind::Delete, row.clone()),
                        None => {
                            table.push(row.clone());
                            (RowKind::Insert, row.clone())
                        }
                    })
                    .collect();
                subtasks.push(&changelog(&log));
                disturbances.iter().for_each(|disturbance| subtasks.disturb(*disturbance));
            }
        }
    }

    #[test]
    fn disturbed_windows_have_the_same_best(
        batches in disturbed(prop::collection::vec((rows(), -3i64..8), 1..15)),
        nexts in prop::collection::vec(-3i64..8, 12),
        first in 1usize..3, more in 0usize..4, number: bool,
    ) {
        for order in ORDERS {
            let spec = RankSpec {
                window_end: Some(4),
                schema: SchemaSpec(output(number)),
                ..spec(order, first, first + more, number)
            };
            let mut subtasks = Subtasks::new(|| make(&spec), &[0], &spec.schema.0);
            let mut watermark = i64::MIN;
            for ((rows, disturbances), next) in batches.iter().zip(&nexts) {
                let rows: Vec<Row> = rows
                    .iter()
                    .map(|(row, second)| Row { end_us: Some(second * 1_000_000), ..row.clone() })
                    .collect();
                subtasks.push(&batch(&rows));
                disturbances.iter().for_each(|disturbance| subtasks.disturb(*disturbance));
                watermark = watermark.max(next * 1000 - 1);
                subtasks.watermark(watermark);
            }
            subtasks.end();
        }
    }
}

#[test]
fn partitions_by_expressions_come_back() {
    use datafusion::logical_expr::Operator as Op;
    use datafusion::physical_expr::expressions::{BinaryExpr, lit};
    let sum: Arc<dyn PhysicalExpr> = Arc::new(BinaryExpr::new(
        Arc::clone(&ScalarExpr::column(0, &input()).expr),
        Op::Modulo,
        lit(4i64),
    ));
    for (by_time, last) in [(true, 1), (false, 2)] {
        let mut spec = RankSpec {
            by_time,
            ..spec(ORDERS[0], 1, last, false)
        };
        spec.partition_by = vec![ScalarExpr::new(Arc::clone(&sum), input())];
        // All rows go to one subtask, as there is one.
        let mut subtasks = Subtasks::new(|| make(&spec), &[0], &spec.schema.0);
        for round in 0..5i64 {
            let rows: Vec<Row> = (0..40)
                .map(|n| row(n, 100 - round * n, "a text, not inlined"))
                .collect();
            subtasks.push(&batch(&rows));
            subtasks.disturb(Disturbance::Restart(1));
        }
    }
}

#[test]
fn another_number_of_best_rows_is_refused() {
    let mut harness = harness(&spec(ORDERS[0], 1, 2, false));
    harness.push(0, batch(&[row(1, 1, "a")])).unwrap();
    let stored = [vec![harness.snapshot(1, None).unwrap()]];
    let error = super::harness(&spec(ORDERS[0], 1, 3, false))
        .restore((0, 1), &stored)
        .unwrap_err();
    assert!(error.to_string().contains("table 'best' has version 2"), "{error}");
}

#[test]
fn many_rows_come_back_booked() {
    for (by_time, last) in [(true, 1), (false, 3)] {
        let spec = RankSpec {
            by_time,
            ..spec(ORDERS[3], 1, last, false)
        };
        let mut subtasks = Subtasks::new(|| make(&spec), &[0], &spec.schema.0);
        for round in 0..4i64 {
            let rows = (0..6000).map(|n| row(n / 2, round - n, format!("a text, not inlined {n}").leak()));
            subtasks.push(&batch(&rows.collect::<Vec<_>>()));
            subtasks.disturb(Disturbance::Restart(1));
        }
        let (booked, alone) = subtasks.booked();
        assert!(booked * 2 > alone && booked < alone * 2, "{booked} and {alone} bytes");
        assert_eq!(subtasks.deltas > 0, by_time);
    }
}
