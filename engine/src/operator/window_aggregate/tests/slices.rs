//! Windows of slices, in one step and in two, whatever the disorder.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::datatypes::Schema;
use proptest::prelude::*;

use super::model::{
    Filtered, Keys, Model, Row, Specs, Step, all, assign, batch, batch_of, decimals, keys, kinds, lines, operator, row,
    specs, steps, sums, windows_of,
};
use crate::data::Batch;
use crate::operator::Operator;
use crate::operator::harness::Harness;
use crate::operator::window_aggregate::WindowAggregate;
use crate::plan::{EmitSpec, SchemaSpec, WindowAggregateSpec, WindowKind, WindowSource, WindowTime};

fn sorted(batches: &[Batch]) -> Vec<String> {
    let mut lines = lines(batches);
    lines.sort();
    lines
}

/// Window ends never go back within what leaves at once.
fn assert_oldest_first(batches: &[Batch]) {
    let ends: Vec<i64> = lines(batches)
        .iter()
        .map(|line| line.rsplit('|').nth(1).unwrap().parse().unwrap())
        .collect();
    assert!(ends.is_sorted(), "{ends:?}");
}

pub(super) fn drained(harness: &mut Harness<WindowAggregate>) -> Vec<Batch> {
    std::mem::take(&mut harness.output.batches)
}

pub(super) fn assert_nothing_is_held(harness: &Harness<WindowAggregate>) {
    assert_eq!((harness.operator.held(), harness.memory.reserved_bytes()), (0, 0));
}

fn run_single(kind: WindowKind, keys: Keys, functions: &[Filtered], steps: &[Step]) {
    let spec = specs(assign(kind), keys.names(), functions, None).single;
    let mut harness = Harness::new(operator(&spec));
    let mut model = Model::new(kind, keys, functions.len());
    for step in steps {
        match step {
            Step::Rows(rows) => {
                harness.push(0, batch(rows)).unwrap();
                model.rows(rows);
                assert!(harness.output.batches.is_empty());
            }
            Step::Watermark(watermark) => {
                harness.watermark(*watermark).unwrap();
                let output = drained(&mut harness);
                assert_oldest_first(&output);
                assert_eq!(sorted(&output), model.watermark(*watermark));
                assert_eq!(harness.output.watermarks.last().map(|mark| mark.0), Some(*watermark));
            }
        }
    }
    harness.end(0).unwrap();
    assert!(harness.output.batches.is_empty());
    assert_eq!(harness.context.metrics.late_rows.load(Ordering::Relaxed), model.late);
    assert_nothing_is_held(&harness);
}

/// Batches go round robin to `instances` partial aggregations, whose states go to one final one.
fn run_in_two(kind: WindowKind, keys: Keys, functions: &[Filtered], steps: &[Step], instances: usize) {
    let Specs { partial, last, .. } = specs(assign(kind), keys.names(), functions, None);
    let mut partials: Vec<_> = (0..instances).map(|_| Harness::new(operator(&partial))).collect();
    let mut last = Harness::new(operator(&last));
    let mut model = Model::new(kind, keys, functions.len());
    let mut turn = 0;
    for step in steps {
        match step {
            Step::Rows(rows) => {
                partials[turn % instances].push(0, batch(rows)).unwrap();
                turn += 1;
                model.rows(rows);
            }
            Step::Watermark(watermark) => {
                for partial in &mut partials {
                    partial.watermark(*watermark).unwrap();
                    for states in drained(partial) {
                        last.push(0, states).unwrap();
                    }
                }
                last.watermark(*watermark).unwrap();
                assert_eq!(sorted(&drained(&mut last)), model.watermark(*watermark));
            }
        }
    }
    partials.iter().for_each(assert_nothing_is_held);
    assert_nothing_is_held(&last);
}

/// Rows once per window, with the window's bounds.
fn expanded(kind: WindowKind, rows: &[Row]) -> Batch {
    let mut expanded = Vec::new();
    for row in rows {
        expanded.extend(windows_of(kind, row.time).into_iter().map(|of| (row.clone(), of)));
    }
    batch_of(&expanded)
}

fn run_attached(kind: WindowKind, keys: Keys, functions: &[Filtered], steps: &[Step]) {
    let window = WindowSource::Attached { start: Some(4), end: 5 };
    let spec = specs(window, keys.names(), functions, None).single;
    let mut harness = Harness::new(operator(&spec));
    let mut model = Model::new(kind, keys, functions.len());
    for step in steps {
        match step {
            Step::Rows(rows) => {
                harness.push(0, expanded(kind, rows)).unwrap();
                model.rows(rows);
            }
            Step::Watermark(watermark) => {
                harness.watermark(*watermark).unwrap();
                assert_eq!(sorted(&drained(&mut harness)), model.watermark(*watermark));
            }
        }
    }
    assert_nothing_is_held(&harness);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn windows_are_as_by_definition(kind in kinds(), keys in keys(), steps in steps(150, 200)) {
        run_single(kind, keys, &sums(), &steps);
        run_single(kind, keys, &all(), &steps);
        run_single(kind, keys, &[], &steps);
    }

    #[test]
    fn two_steps_give_what_one_gives(
        kind in kinds(), keys in keys(), steps in steps(150, 200), instances in 1usize..4
    ) {
        run_in_two(kind, keys, &sums(), &steps, instances);
        run_in_two(kind, keys, &all(), &steps, instances);
        run_in_two(kind, keys, &[], &steps, instances);
    }

    #[test]
    fn decimals_slide_without_a_trace(kind in kinds(), keys in keys(), steps in steps(90, 120)) {
        let output = |window: WindowSource, attached: bool| {
            let spec = specs(window, keys.names(), &decimals(), None).single;
            let mut harness = Harness::new(operator(&spec));
            let mut outputs = Vec::new();
            for step in &steps {
                match step {
                    Step::Rows(rows) if attached => harness.push(0, expanded(kind, rows)).unwrap(),
                    Step::Rows(rows) => harness.push(0, batch(rows)).unwrap(),
                    Step::Watermark(watermark) => harness.watermark(*watermark).unwrap(),
                }
                outputs.push(sorted(&drained(&mut harness)));
            }
            outputs
        };
        let attached = WindowSource::Attached { start: Some(4), end: 5 };
        prop_assert_eq!(output(assign(kind), false), output(attached, true));
    }

    #[test]
    fn windows_that_come_with_the_rows(kind in kinds(), keys in keys(), steps in steps(60, 100)) {
        run_attached(kind, keys, &all(), &steps);
    }
}

#[test]
fn in_processing_time_windows_end_with_the_clock() {
    let window = WindowSource::Assign {
        window: WindowKind::Hop {
            size_ms: 10,
            slide_ms: 5,
            offset_ms: 0,
        },
        time: WindowTime::Processing,
    };
    let spec = specs(window, &["k"], &sums()[..1], None).single;
    let mut harness = Harness::new(operator(&spec));
    harness.advance(Duration::from_millis(3)).unwrap();
    harness.push(0, batch(&[row(1, 99, 0), row(1, -99, 0)])).unwrap();
    harness.advance(Duration::from_millis(1)).unwrap();
    assert!(harness.output.batches.is_empty());
    harness.watermark(1 << 40).unwrap();
    assert!(harness.output.batches.is_empty(), "watermarks say nothing here");
    harness.advance(Duration::from_millis(1)).unwrap();
    assert_eq!(lines(&drained(&mut harness)), ["1|2|-5|5|4"]);
    harness.push(0, batch(&[row(1, 0, 0)])).unwrap();
    harness.advance(Duration::from_millis(100)).unwrap();
    assert_eq!(lines(&drained(&mut harness)), ["1|3|0|10|9", "1|1|5|15|14"]);
    assert_eq!(harness.operator.next_timer(), None);
    harness.push(0, batch(&[row(1, 0, 0)])).unwrap();
    harness.watermark(i64::MAX).unwrap();
    harness.end(0).unwrap();
    assert_eq!(lines(&drained(&mut harness)), ["1|1|100|110|109", "1|1|105|115|114"]);
    assert_nothing_is_held(&harness);
}

#[test]
fn windows_of_one_end_and_several_starts_are_refused() {
    let window = WindowSource::Attached { start: Some(4), end: 5 };
    let spec = specs(window, &[], &[], None).single;
    let mut harness = Harness::new(operator(&spec));
    let rows = [(row(1, 0, 0), (0, 10)), (row(1, 0, 0), (5, 10))];
    let error = harness.push(0, batch_of(&rows)).unwrap_err().to_string();
    assert!(error.contains("several starts"), "{error}");
    // Nobody asks for the start here.
    let mut spec = specs(window, &["w_start", "w_end"], &sums()[..1], None).single;
    spec.properties.clear();
    let fields = spec.schema.0.fields().iter().take(3).cloned();
    spec.schema = SchemaSpec(Arc::new(Schema::new(fields.collect::<Vec<_>>())));
    let mut harness = Harness::new(operator(&spec));
    harness.push(0, batch_of(&rows)).unwrap();
    harness.watermark(9).unwrap();
    assert_eq!(sorted(&drained(&mut harness)), ["0|10|1", "5|10|1"]);
}

#[test]
fn a_partial_aggregation_that_does_not_pay_passes_rows_on() {
    let tumble = WindowKind::Tumble {
        size_ms: 1000,
        offset_ms: 0,
    };
    for functions in [sums(), Vec::new()] {
        let Specs { partial, last, .. } = specs(assign(tumble), &["k"], &functions, None);
        let mut partial = Harness::new(operator(&partial));
        let mut last = Harness::new(operator(&last));
        let mut model = Model::new(tumble, Keys::One, functions.len());
        let mut passed = 0;
        for step in 0..30 {
            let rows: Vec<Row> = (0..5000)
                .map(|n| row(step * 5000 + n, i64::from(n % 3000), 1))
                .collect();
            partial.push(0, batch(&rows)).unwrap();
            model.rows(&rows);
            for states in drained(&mut partial) {
                passed += usize::from(states.num_rows() == rows.len());
                last.push(0, states).unwrap();
            }
        }
        assert!(passed > 5, "{passed} batches were passed on");
        partial.watermark(i64::MAX).unwrap();
        for states in drained(&mut partial) {
            last.push(0, states).unwrap();
        }
        last.watermark(i64::MAX).unwrap();
        assert_eq!(sorted(&drained(&mut last)), model.watermark(i64::MAX));
    }
}

#[test]
fn contradictions_are_refused_when_the_operator_is_made() {
    let refused = |spec: &WindowAggregateSpec| WindowAggregate::new(spec.clone()).err().map(|error| error.to_string());
    let uneven = WindowKind::Hop {
        size_ms: 10,
        slide_ms: 3,
        offset_ms: 0,
    };
    let uneven = refused(&specs(assign(uneven), &["k"], &sums(), None).single);
    assert!(uneven.is_some_and(|error| error.contains("multiple")));
    let no_start = WindowSource::Attached { start: None, end: 5 };
    let no_start = refused(&specs(no_start, &["k"], &sums(), None).single);
    assert!(no_start.is_some_and(|error| error.contains("window_start")));
    let session = WindowKind::Session { gap_ms: 1 };
    assert!(refused(&specs(assign(session), &["k"], &sums(), None).partial).is_some());
    let emit = Some(EmitSpec::default());
    let early = refused(&specs(assign(session), &["k"], &sums(), emit).single);
    assert!(early.is_some_and(|error| error.contains("session windows have no early")));
    let clock = WindowSource::Assign {
        window: WindowKind::Tumble {
            size_ms: 1,
            offset_ms: 0,
        },
        time: WindowTime::Processing,
    };
    assert!(refused(&specs(clock, &["k"], &sums(), None).partial).is_some());
}
