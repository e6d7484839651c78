use std::time::Duration;

use super::pace::{due_after, time_of};
use super::*;

#[test]
fn every_event_belongs_to_one_split_and_in_order() {
    for (splits, block) in [(1, 50), (2, 1000), (3, 7), (5, 1)] {
        let deal = Interleave::new(splits, block);
        for total in [0, 1, 6, 7, 20, 999, 1000, 1001, 2500, 10_000] {
            let mut seen = Vec::new();
            for split in 0..splits {
                let rows = deal.below(split, total);
                let events: Vec<u64> = (0..rows).map(|row| deal.event(split, row)).collect();
                assert!(events.is_sorted() && events.iter().all(|event| *event < total));
                assert!(
                    deal.event(split, rows) >= total,
                    "split {split} of {splits} ends early at {total}"
                );
                seen.extend(events);
            }
            seen.sort_unstable();
            assert_eq!(
                seen,
                (0..total).collect::<Vec<_>>(),
                "{splits} splits, blocks of {block}"
            );
        }
    }
}

#[test]
fn an_event_is_due_when_its_share_of_time_has_passed_and_not_before() {
    for per_second in [1, 3, 4000, 200_000, 999_999_937] {
        assert_eq!(due_after(Duration::ZERO, per_second), 1, "the first is due at once");
        for event in [1, 2, 3, 4, 5000, 4_000_000] {
            let time = time_of(event, per_second);
            assert!(due_after(time, per_second) > event);
            assert_eq!(due_after(time - Duration::from_nanos(1), per_second), event);
        }
    }
}

#[cfg(feature = "nexmark")]
#[test]
fn times_are_the_quotient() {
    for per_second in [1, 2, 3, 7, 999, 1000, 100_000, 1 << 31, (1 << 31) + 1, 1 << 40] {
        for disorder in [0, 1, 250] {
            let ticks = Ticks::new(1_600_000_000_000, per_second, disorder);
            for first in [0, 1, 50, 999_983, 123_456_789_012] {
                let mut times = [0; 64];
                ticks.fill(first, &mut times);
                for (event, time) in (first..).zip(times) {
                    let whole = 1_600_000_000_000 + (u128::from(event) * 1000 / u128::from(per_second)) as i64;
                    let behind = if disorder == 0 {
                        0
                    } else {
                        (mix(event) % (disorder + 1)) as i64
                    };
                    assert_eq!(time, whole - behind, "event {event} at {per_second}");
                    assert_eq!(ticks.at(event), time);
                }
            }
        }
    }
}

#[cfg(feature = "ysb")]
#[test]
fn the_random_numbers_are_javas() {
    // What `new java.util.Random(42)` gives.
    let mut random = JavaRandom::new(42);
    let numbers: Vec<i32> = (0..5).map(|_| random.next_int(10)).collect();
    assert_eq!(numbers, [0, 3, 8, 4, 0]);
    assert_eq!(JavaRandom::new(42).next_long() as i64, -5_025_562_857_975_149_833);
}

/// The seconds that this thread has run, whatever else the machine does: for measurements run by hand, on Linux.
#[cfg(any(feature = "nexmark", feature = "ysb"))]
pub(crate) fn cpu_seconds() -> f64 {
    let statistics = std::fs::read_to_string("/proc/thread-self/schedstat").unwrap();
    let nanos: u64 = statistics.split_whitespace().next().unwrap().parse().unwrap();
    nanos as f64 / 1e9
}

#[cfg(feature = "nexmark")]
#[test]
fn a_buffer_is_used_again_when_nobody_holds_it() {
    let mut spare = Spare::default();
    let first: Vec<i64> = spare.take(3, 5);
    assert_eq!(first, [0; 5]);
    let held = spare.give(3, vec![1i64, 2, 3]);
    assert_eq!(spare.take::<i64>(3, 3), [0; 3], "it is held");
    let slice = held.slice(1, 1);
    drop(held);
    assert_eq!(spare.take::<i64>(3, 3), [0; 3], "a part of it is held");
    assert_eq!(slice, [2]);
    drop(slice);
    assert_eq!(spare.take::<i64>(2, 1), [0], "another column's");
    assert_eq!(spare.take::<i64>(3, 4), [1, 2, 3, 0]);
    assert_eq!(spare.take::<i64>(3, 1), [0], "it was given away");
    // Held ones are forgotten before they are too many.
    let held: Vec<_> = (1..100i64)
        .map(|number| {
            let values: Vec<i64> = spare.take(0, 1);
            assert_eq!(values, [0]);
            spare.give(0, vec![number; 1])
        })
        .collect();
    drop(held);
    let kept = std::iter::from_fn(|| Some(spare.take::<i64>(0, 1)).filter(|values| *values != [0]));
    assert!((1..10).contains(&kept.count()));
}
