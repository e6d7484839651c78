//! End-to-end latency by markers: how long what leaves a source takes to a sink, waiting in exchanges included, waiting in
//! the state of operators not.

use std::collections::BTreeMap;

use parking_lot::Mutex;

use crate::data::LatencyMarker;

/// Sub-buckets per power of two: a quantile is off by at most 3 %.
const STEPS: usize = 32;

/// Counts of latencies by size.
#[derive(Clone, Debug)]
pub struct LatencyHistogram {
    counts: Vec<u64>,
    total: u64,
    max_ns: u64,
}

impl Default for LatencyHistogram {
    fn default() -> Self {
        Self {
            counts: vec![0; 64 * STEPS],
            total: 0,
            max_ns: 0,
        }
    }
}

impl LatencyHistogram {
    /// Counts one.
    pub fn record(&mut self, latency_ns: u64) {
        self.counts[bucket(latency_ns)] += 1;
        self.total += 1;
        self.max_ns = self.max_ns.max(latency_ns);
    }

    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.total
    }

    /// The greatest, in nanoseconds.
    pub fn max_ns(&self) -> u64 {
        self.max_ns
    }

    /// The latency, in nanoseconds, that a part `q` (from 0 to 1) of all does not pass; `None` before the first.
    pub fn quantile_ns(&self, q: f64) -> Option<u64> {
        if self.total == 0 {
            return None;
        }
        let wanted = ((q * self.total as f64).ceil() as u64).clamp(1, self.total);
        let mut seen = 0;
        let at = self.counts.iter().position(|count| {
            seen += count;
            seen >= wanted
        })?;
        Some(upper_bound(at).min(self.max_ns))
    }

    /// What has been counted since `earlier`, an earlier form of this histogram. The greatest is that of all.
    pub fn since(&self, earlier: &LatencyHistogram) -> LatencyHistogram {
        let counts = self.counts.iter().zip(&earlier.counts);
        LatencyHistogram {
            counts: counts.map(|(now, then)| now.saturating_sub(*then)).collect(),
            total: self.total.saturating_sub(earlier.total),
            max_ns: self.max_ns,
        }
    }

    /// Adds the counts of another.
    pub fn merge(&mut self, other: &LatencyHistogram) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.total += other.total;
        self.max_ns = self.max_ns.max(other.max_ns);
    }
}

fn bucket(latency_ns: u64) -> usize {
    if latency_ns < STEPS as u64 {
        return latency_ns as usize;
    }
    let power = 63 - latency_ns.leading_zeros() as usize;
    let shift = power - STEPS.trailing_zeros() as usize;
    (shift + 1) * STEPS + ((latency_ns >> shift) as usize & (STEPS - 1))
}

fn upper_bound(bucket: usize) -> u64 {
    if bucket < STEPS {
        return bucket as u64;
    }
    let shift = bucket / STEPS - 1;
    let step = (STEPS + bucket % STEPS) as u64;
    // The last bucket ends where the numbers do.
    (step + 1).checked_mul(1 << shift).map_or(u64::MAX, |end| end - 1)
}

/// The latencies from each source vertex to each sink vertex.
#[derive(Debug, Default)]
pub struct LatencyHistograms {
    /// By (source vertex, sink vertex).
    each: Mutex<BTreeMap<(usize, usize), LatencyHistogram>>,
}

impl LatencyHistograms {
    pub(super) fn record(&self, marker: LatencyMarker, sink: usize, latency_ns: u64) {
        self.each
            .lock()
            .entry((marker.vertex, sink))
            .or_default()
            .record(latency_ns);
    }

    /// The histograms so far, by source vertex and sink vertex.
    pub fn all(&self) -> BTreeMap<(usize, usize), LatencyHistogram> {
        self.each.lock().clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_off_by_little() {
        let mut histogram = LatencyHistogram::default();
        assert_eq!(histogram.quantile_ns(0.5), None);
        for latency in 1..=100_000 {
            histogram.record(latency * 1000);
        }
        for (q, exact) in [(0.0, 1000.0), (0.5, 50e6), (0.99, 99e6), (1.0, 100e6)] {
            let found = histogram.quantile_ns(q).unwrap() as f64;
            assert!((found / exact - 1.0).abs() <= 0.032, "{q}: {found} for {exact}");
        }
        let mut twice = histogram.clone();
        twice.merge(&histogram);
        assert_eq!(twice.count(), 200_000);
        assert_eq!(twice.quantile_ns(0.5), histogram.quantile_ns(0.5));
        let second = twice.since(&histogram);
        assert_eq!(
            (second.count(), second.quantile_ns(0.9)),
            (100_000, histogram.quantile_ns(0.9))
        );
    }

    #[test]
    fn every_latency_is_in_the_bucket_that_ends_at_or_after_it() {
        for latency in (0..5000).chain([u64::MAX, u64::MAX / 3, 1 << 40]) {
            let at = bucket(latency);
            assert!(upper_bound(at) >= latency, "{latency}");
            assert!(at == 0 || upper_bound(at - 1) < latency, "{latency}");
        }
    }
}
