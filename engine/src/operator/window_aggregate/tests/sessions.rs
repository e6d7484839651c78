//! Sessions.

use std::sync::atomic::Ordering;
use std::time::Duration;

use proptest::prelude::*;

use super::model::{Filtered, Keys, Model, Step, all, assign, batch, keys, lines, operator, row, specs, steps, sums};
use super::slices::{assert_nothing_is_held, drained};
use crate::operator::harness::Harness;
use crate::plan::{WindowKind, WindowSource, WindowTime};

fn run(gap_ms: i64, keys: Keys, functions: &[Filtered], steps: &[Step]) {
    let kind = WindowKind::Session { gap_ms };
    let spec = specs(assign(kind), keys.names(), functions, None).single;
    let mut harness = Harness::new(operator(&spec));
    let mut model = Model::new(kind, keys, functions.len());
    for step in steps {
        match step {
            Step::Rows(rows) => {
                harness.push(0, batch(rows)).unwrap();
                model.rows(rows);
            }
            Step::Watermark(watermark) => {
                harness.watermark(*watermark).unwrap();
                let mut output = lines(&drained(&mut harness));
                output.sort();
                assert_eq!(output, model.watermark(*watermark));
            }
        }
    }
    assert_eq!(harness.context.metrics.late_rows.load(Ordering::Relaxed), model.late);
    assert_nothing_is_held(&harness);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]

    #[test]
    fn sessions_are_as_by_definition(gap in 1i64..90, keys in keys(), steps in steps(100, 150)) {
        run(gap, keys, &sums(), &steps);
        run(gap, keys, &all(), &steps);
        run(gap, keys, &[], &steps);
    }
}

#[test]
fn a_row_between_two_sessions_makes_them_one_and_the_gap_itself_parts_them() {
    let spec = specs(assign(WindowKind::Session { gap_ms: 10 }), &["k"], &sums()[..3], None).single;
    let mut harness = Harness::new(operator(&spec));
    harness
        .push(0, batch(&[row(1, 0, 1), row(1, 18, 2), row(2, 0, 4), row(2, 10, 8)]))
        .unwrap();
    harness.push(0, batch(&[row(1, 9, 16), row(3, 5, 32)])).unwrap();
    harness.watermark(8).unwrap();
    assert!(harness.output.batches.is_empty());
    harness.watermark(9).unwrap();
    assert_eq!(lines(&drained(&mut harness)), ["2|1|1|4|0|10|9"]);
    // Late for a session of its own, but key 3 has one that it joins; key 4 has none.
    harness.push(0, batch(&[row(3, -1, 64), row(4, -1, 128)])).unwrap();
    harness.watermark(i64::MAX).unwrap();
    let expected = ["3|2|2|96|-1|15|14", "2|1|1|8|10|20|19", "1|3|3|19|0|28|27"];
    assert_eq!(lines(&drained(&mut harness)), expected);
    assert_eq!(harness.context.metrics.late_rows.load(Ordering::Relaxed), 1);
    assert_nothing_is_held(&harness);
}

#[test]
fn in_processing_time_sessions_end_after_silence() {
    let window = WindowSource::Assign {
        window: WindowKind::Session { gap_ms: 1000 },
        time: WindowTime::Processing,
    };
    let spec = specs(window, &["k"], &sums()[..1], None).single;
    let mut harness = Harness::new(operator(&spec));
    harness.push(0, batch(&[row(1, 0, 0), row(2, 0, 0)])).unwrap();
    harness.advance(Duration::from_millis(900)).unwrap();
    harness.push(0, batch(&[row(1, 0, 0)])).unwrap();
    harness.advance(Duration::from_millis(99)).unwrap();
    assert!(harness.output.batches.is_empty());
    harness.advance(Duration::from_millis(1)).unwrap();
    assert_eq!(lines(&drained(&mut harness)), ["2|1|0|1000|999"]);
    harness.advance(Duration::from_millis(900)).unwrap();
    assert_eq!(lines(&drained(&mut harness)), ["1|2|0|1900|1899"]);
    harness.push(0, batch(&[row(5, 0, 0)])).unwrap();
    harness.end(0).unwrap();
    assert_eq!(lines(&drained(&mut harness)), ["5|1|1900|2900|2899"]);
    assert_nothing_is_held(&harness);
}

#[test]
fn keys_and_slots_are_used_again() {
    let spec = specs(assign(WindowKind::Session { gap_ms: 10 }), &["k", "s"], &all(), None).single;
    let mut harness = Harness::new(operator(&spec));
    let mut peak = 0;
    for round in 0..40 {
        let rows: Vec<_> = (0..2000)
            .map(|n| row(round * 1000 + n, i64::from(round) * 10, 1))
            .collect();
        harness.push(0, batch(&rows)).unwrap();
        if round == 3 {
            peak = harness.operator.held();
        }
        harness.watermark(i64::from(round) * 10).unwrap();
    }
    assert!(
        harness.operator.held() <= 4 * peak,
        "{} after {peak}",
        harness.operator.held()
    );
    harness.watermark(i64::MAX).unwrap();
    // Every key comes twice, ten milliseconds apart, but for the first and the last thousand: two sessions.
    let mut sessions = lines(&harness.output.batches);
    sessions.sort();
    let session = |round: i32, n: i32| {
        let (key, start) = (round * 1000 + n, round * 10);
        let text = format!("key {key} of some length {}", key % 3);
        format!(
            "{key}|{text}|1|1|1|1|1|1|1.0|1|[1]|{start}|{}|{}",
            start + 10,
            start + 9
        )
    };
    let mut expected: Vec<_> = (0..40)
        .flat_map(|round| (0..2000).map(move |n| session(round, n)))
        .collect();
    expected.sort();
    assert!(sessions == expected, "{} sessions", sessions.len());
    assert_nothing_is_held(&harness);
}
