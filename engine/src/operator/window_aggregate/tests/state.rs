//! State goes when windows do, and is booked.

use super::model::{all, assign, batch, operator, row, specs, sums};
use super::slices::{assert_nothing_is_held, drained};
use crate::operator::harness::Harness;
use crate::plan::WindowKind;

/// Ten million keys, ten thousand to each of a thousand windows.
#[test]
fn nothing_is_left_of_ten_million_keys() {
    let tumble = WindowKind::Tumble {
        size_ms: 1000,
        offset_ms: 0,
    };
    let spec = specs(assign(tumble), &["k"], &sums()[..1], None).single;
    let mut harness = Harness::new(operator(&spec));
    let (mut groups, mut peak) = (0, 0);
    for window in 0..1000i64 {
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
    assert_eq!(groups, 10_000_000);
    assert_nothing_is_held(&harness);
}

#[test]
fn keys_that_come_and_go_do_not_pile_up_under_sliding_windows() {
    for functions in [sums(), all()] {
        let hop = WindowKind::Hop {
            size_ms: 40,
            slide_ms: 1,
            offset_ms: 0,
        };
        let spec = specs(assign(hop), &["k"], &functions, None).single;
        let mut harness = Harness::new(operator(&spec));
        let mut held = Vec::new();
        for slice in 0..400i64 {
            let rows: Vec<_> = (0..50).map(|n| row(slice as i32 * 50 + n, slice, 1)).collect();
            harness.push(0, batch(&rows)).unwrap();
            harness.watermark(slice).unwrap();
            for output in drained(&mut harness) {
                assert!(output.num_rows() <= 40 * 50);
            }
            held.push(harness.operator.held());
        }
        let (early, late) = (held[80..120].iter().max(), held[360..].iter().max());
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
