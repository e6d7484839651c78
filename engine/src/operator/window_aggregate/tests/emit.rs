//! Early and late results.

use std::collections::BTreeMap;
use std::time::Duration;

use proptest::prelude::*;

use super::model::{Keys, Model, Row, Step, all, assign, batch, kinds, lines, operator, row, specs, steps, sums};
use super::slices::{assert_nothing_is_held, drained};
use crate::data::Batch;
use crate::operator::harness::Harness;
use crate::plan::{EmitSpec, WindowKind};

/// Keeps the table that a changelog describes.
#[derive(Default)]
pub(super) struct Folded {
    rows: BTreeMap<String, usize>,
}

impl Folded {
    pub(super) fn take(&mut self, batches: &[Batch]) {
        for line in lines(batches) {
            let (row, kind) = line.rsplit_once('|').unwrap();
            if kind == "0" || kind == "2" {
                *self.rows.entry(row.to_string()).or_default() += 1;
            } else {
                let count = self.rows.get_mut(row).expect("what is taken back was there");
                *count -= 1;
                if *count == 0 {
                    self.rows.remove(row);
                }
            }
        }
    }

    pub(super) fn lines(&self) -> Vec<String> {
        assert!(self.rows.values().all(|count| *count == 1), "{:?}", self.rows);
        self.rows.keys().cloned().collect()
    }
}

#[test]
fn early_on_time_and_late_results_are_changes() {
    let tumble = WindowKind::Tumble {
        size_ms: 10,
        offset_ms: 0,
    };
    let emit = EmitSpec {
        early_ms: Some(100),
        late_ms: Some(50),
        allowed_lateness_ms: 20,
    };
    let spec = specs(assign(tumble), &["k"], &sums()[..1], Some(emit)).single;
    let mut harness = Harness::new(operator(&spec));
    let ms = Duration::from_millis;
    harness.push(0, batch(&[row(1, 1, 0), row(2, 1, 0)])).unwrap();
    harness.advance(ms(99)).unwrap();
    assert!(harness.output.batches.is_empty());
    harness.advance(ms(1)).unwrap();
    assert_eq!(lines(&drained(&mut harness)), ["1|1|0|10|9|0", "2|1|0|10|9|0"]);
    harness.advance(ms(1000)).unwrap();
    assert!(harness.output.batches.is_empty(), "nothing has changed");
    harness.push(0, batch(&[row(2, 2, 0), row(3, 2, 0)])).unwrap();
    harness.watermark(9).unwrap();
    let on_time = ["2|1|0|10|9|1", "2|2|0|10|9|2", "3|1|0|10|9|0"];
    assert_eq!(lines(&drained(&mut harness)), on_time);
    harness.push(0, batch(&[row(1, 9, 0)])).unwrap();
    harness.push(0, batch(&[row(1, 9, 0)])).unwrap();
    assert!(harness.output.batches.is_empty());
    harness.advance(ms(50)).unwrap();
    assert_eq!(lines(&drained(&mut harness)), ["1|1|0|10|9|1", "1|3|0|10|9|2"]);
    harness.watermark(28).unwrap();
    harness.push(0, batch(&[row(3, 9, 0)])).unwrap();
    harness.advance(ms(50)).unwrap();
    assert_eq!(lines(&drained(&mut harness)), ["3|1|0|10|9|1", "3|2|0|10|9|2"]);
    harness.watermark(29).unwrap();
    assert_nothing_is_held(&harness);
    harness.push(0, batch(&[row(3, 9, 0)])).unwrap();
    assert_eq!(
        harness
            .context
            .metrics
            .late_rows
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );
    harness.watermark(i64::MAX).unwrap();
    assert!(harness.output.batches.is_empty());
}

/// The model of a stream whose watermarks are later by the allowed lateness.
fn folded_model(kind: WindowKind, functions: usize, steps: &[Step], lateness: i64) -> Vec<String> {
    let mut model = Model::new(kind, Keys::One, functions);
    let mut expected = Vec::new();
    for step in steps {
        match step {
            Step::Rows(rows) => model.rows(rows),
            Step::Watermark(i64::MAX) => expected.extend(model.watermark(i64::MAX)),
            Step::Watermark(watermark) => expected.extend(model.watermark(watermark - lateness)),
        }
    }
    expected.sort();
    expected
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn changes_add_up(
        kind in kinds(),
        steps in steps(150, 200),
        early_ms in prop::option::of(0u64..40),
        late_ms in prop::option::of(0u64..40),
        lateness in 0i64..120,
        wide in any::<bool>(),
        in_two in any::<bool>(),
    ) {
        let functions = if wide { all() } else { sums() };
        let emit = EmitSpec { early_ms, late_ms, allowed_lateness_ms: lateness };
        let specs = specs(assign(kind), &["k"], &functions, Some(emit));
        let mut partial = in_two.then(|| Harness::new(operator(&specs.partial)));
        let mut harness = Harness::new(operator(if in_two { &specs.last } else { &specs.single }));
        let mut folded = Folded::default();
        for step in &steps {
            match (step, &mut partial) {
                (Step::Rows(rows), None) => harness.push(0, batch(rows)).unwrap(),
                (Step::Rows(rows), Some(partial)) => {
                    partial.push(0, batch(rows)).unwrap();
                    for states in drained(partial) {
                        harness.push(0, states).unwrap();
                    }
                }
                (Step::Watermark(watermark), partial) => {
                    if let Some(partial) = partial {
                        partial.watermark(*watermark).unwrap();
                        prop_assert!(partial.output.batches.is_empty(), "it holds nothing back");
                    }
                    // What waits for its time is told at the latest when it cannot change any more.
                    harness.advance(Duration::from_millis(13)).unwrap();
                    harness.watermark(*watermark).unwrap();
                }
            }
            folded.take(&drained(&mut harness));
        }
        prop_assert_eq!(folded.lines(), folded_model(kind, functions.len(), &steps, lateness));
        assert_nothing_is_held(&harness);
    }
}

#[test]
fn rows_of_no_group_change_nothing() {
    let hop = WindowKind::Hop {
        size_ms: 20,
        slide_ms: 10,
        offset_ms: 0,
    };
    let emit = EmitSpec {
        early_ms: Some(0),
        late_ms: None,
        allowed_lateness_ms: 5,
    };
    let spec = specs(assign(hop), &["k"], &[], Some(emit)).single;
    let mut harness = Harness::new(operator(&spec));
    harness.push(0, batch(&[row(1, 1, 0)])).unwrap();
    harness.push(0, batch(&[row(1, 2, 0)])).unwrap();
    let rows: [Row; 1] = [row(1, 3, 0)];
    harness.watermark(9).unwrap();
    harness.push(0, batch(&rows)).unwrap();
    assert_eq!(lines(&drained(&mut harness)), ["1|-10|10|9|0", "1|0|20|19|0"]);
}
