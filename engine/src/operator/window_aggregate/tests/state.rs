//! State goes when windows do, and is booked.

use super::model::{Keys, Model, all, assign, batch, lines, operator, row, specs, sums};
use super::slices::{assert_nothing_is_held, drained};
use crate::operator::harness::Harness;
use crate::plan::WindowKind;

#[test]
fn nothing_is_left_of_a_million_keys() {
    many_keys(100);
}

#[test]
#[ignore = "ten million keys take their time"]
fn nothing_is_left_of_ten_million_keys() {
    many_keys(1000);
}

/// So many windows, each of ten thousand keys that no other has.
fn many_keys(windows: i64) {
    let tumble = WindowKind::Tumble {
        size_ms: 1000,
        offset_ms: 0,
    };
    let spec = specs(assign(tumble), &["k"], &sums()[..1], None).single;
    let mut harness = Harness::new(operator(&spec));
    let (mut groups, mut peak) = (0, 0);
    for window in 0..windows {
        let key = |n: i32| window as i32 * 10_000 + n;
        let rows: Vec<_> = (0..10_000)
            .map(|n| row(key(n), window * 1000 + i64::from(n % 1000), 1))
            .collect();
        harness.push(0, batch(&rows)).unwrap();
        peak = peak.max(harness.operator.held());
        harness.watermark(window * 1000 + 500).unwrap();
        groups += drained(&mut harness)
            .iter()
            .map(|batch| batch.num_rows())
            .sum::<usize>();
    }
    assert!(peak > 10_000 * 8 && peak < 4 << 20, "{peak} bytes");
    harness.watermark(i64::MAX).unwrap();
    harness.end(0).unwrap();
    groups += drained(&mut harness)
        .iter()
        .map(|batch| batch.num_rows())
        .sum::<usize>();
    assert_eq!(groups as i64, windows * 10_000);
    assert_nothing_is_held(&harness);
}

/// Thousands of keys, each for one slice, so that the directory is compacted again and again; in every step each slice
/// of the present window gets a late row, so that its parts are united.
#[test]
fn keys_that_come_and_go_do_not_pile_up_under_sliding_windows() {
    let hop = |slices| WindowKind::Hop {
        size_ms: slices,
        slide_ms: 1,
        offset_ms: 0,
    };
    let cumulate = WindowKind::Cumulate {
        max_ms: 12,
        step_ms: 1,
        offset_ms: 0,
    };
    // A running table, plain merges, a tree, growing windows.
    for (kind, functions) in [(hop(12), sums()), (hop(12), all()), (hop(20), all()), (cumulate, all())] {
        let spec = specs(assign(kind), &["k"], &functions, None).single;
        let mut harness = Harness::new(operator(&spec));
        let mut model = Model::new(kind, Keys::One, functions.len());
        let mut held = Vec::new();
        for slice in 0..80i64 {
            let fresh = (0..50).map(|n| row(slice as i32 * 50 + n, slice, 1));
            let late = (1..12).map(|back| row(slice as i32, slice - back, back));
            let rows: Vec<_> = fresh.chain(late).collect();
            harness.push(0, batch(&rows)).unwrap();
            model.rows(&rows);
            harness.watermark(slice).unwrap();
            let mut output = lines(&drained(&mut harness));
            output.sort();
            assert_eq!(output, model.watermark(slice), "{kind:?} after slice {slice}");
            held.push(harness.operator.held());
        }
        let (early, late) = (held[24..48].iter().max(), held[56..].iter().max());
        assert!(late.unwrap() < &(early.unwrap() * 2), "{early:?} {late:?}");
        harness.watermark(i64::MAX).unwrap();
        assert_nothing_is_held(&harness);
    }
}

#[test]
fn what_does_not_fit_the_budget_is_an_error() {
    for kind in [
        WindowKind::Tumble {
            size_ms: 1000,
            offset_ms: 0,
        },
        WindowKind::Session { gap_ms: 1000 },
    ] {
        let spec = specs(assign(kind), &["k"], &sums(), None).single;
        let mut harness = Harness::with_memory(operator(&spec), 1 << 20);
        let mut pushed = Ok(());
        for n in 0..100 {
            let rows: Vec<_> = (0..2000).map(|k| row(n * 2000 + k, 5, 1)).collect();
            pushed = harness.push(0, batch(&rows));
            if pushed.is_err() {
                break;
            }
        }
        assert!(matches!(pushed, Err(crate::data::EngineError::Memory(_))), "{pushed:?}");
    }
}
