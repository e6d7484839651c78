//! Event time of an event's number.

use crate::generate::mix;

/// `base + event * 1000 / per_second` milliseconds, less a bounded and repeatable disorder.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ticks {
    pub(crate) base: i64,
    pub(crate) per_second: u64,
    /// `2^64 / per_second`, rounded up, where multiplying by it divides a 32-bit number without error.
    reciprocal: Option<u64>,
    /// The most that a time is behind, in milliseconds.
    pub(crate) disorder: u64,
}

impl Ticks {
    pub(crate) fn new(base: i64, per_second: u64, disorder: u64) -> Self {
        // The numerators in `fill` are below `per_second + 1000 * 64`.
        let exact = (2..=1 << 31).contains(&per_second);
        Self {
            base,
            per_second,
            reciprocal: exact.then(|| u64::MAX / per_second + 1),
            disorder,
        }
    }

    #[inline]
    fn behind(&self, event: u64) -> i64 {
        match self.disorder {
            0 => 0,
            most => (mix(event) % (most + 1)) as i64,
        }
    }

    /// The time of one event.
    #[cfg(feature = "nexmark")]
    #[inline]
    pub(crate) fn at(&self, event: u64) -> i64 {
        let millis = event.wrapping_mul(1000) / self.per_second;
        self.base.wrapping_add(millis as i64).wrapping_sub(self.behind(event))
    }

    /// The times of consecutive events, at most 64 of them.
    #[inline]
    pub(crate) fn fill(&self, first: u64, out: &mut [i64]) {
        debug_assert!(out.len() <= 64);
        let start = first.wrapping_mul(1000);
        let millis = self.base.wrapping_add((start / self.per_second) as i64);
        let rest = start % self.per_second;
        match self.reciprocal {
            Some(reciprocal) => {
                for (i, out) in out.iter_mut().enumerate() {
                    let more = (u128::from(rest + i as u64 * 1000) * u128::from(reciprocal)) >> 64;
                    *out = millis.wrapping_add(more as i64);
                }
            }
            None => {
                for (i, out) in out.iter_mut().enumerate() {
                    *out = millis.wrapping_add(((rest + i as u64 * 1000) / self.per_second) as i64);
                }
            }
        }
        if self.disorder > 0 {
            for (i, out) in out.iter_mut().enumerate() {
                *out = out.wrapping_sub(self.behind(first + i as u64));
            }
        }
    }
}
