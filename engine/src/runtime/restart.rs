//! Whether and when a failed job starts again (`restart-strategy.*`).

use std::collections::VecDeque;
use std::time::Duration;

/// Whether and when a failed job starts again.
#[derive(Clone, Debug, PartialEq)]
pub enum RestartStrategy {
    /// It does not.
    None,
    /// So many times, each after the same delay.
    FixedDelay {
        /// How often; 0 = for ever.
        attempts: u32,
        /// Before each.
        delay: Duration,
    },
    /// After delays that grow, until it has run for long enough.
    ExponentialDelay {
        /// The first delay.
        initial: Duration,
        /// The longest.
        max: Duration,
        /// By how much the next is longer.
        multiplier: f64,
        /// A job that has run for so long begins with the first delay again.
        reset_after: Duration,
        /// How often in a row; 0 = for ever.
        attempts: u32,
    },
    /// As long as it does not fail too often.
    FailureRate {
        /// Failures in the interval that are borne.
        max_failures: u32,
        /// The interval.
        interval: Duration,
        /// Before each start.
        delay: Duration,
    },
}

/// The failures of one job so far.
#[derive(Debug)]
pub(super) struct Restarts {
    strategy: RestartStrategy,
    in_a_row: u32,
    failures: VecDeque<Duration>,
    delay: Duration,
}

impl Restarts {
    pub(super) fn new(strategy: RestartStrategy) -> Self {
        Self {
            strategy,
            in_a_row: 0,
            failures: VecDeque::new(),
            delay: Duration::ZERO,
        }
    }

    /// After a failure at `now` of an attempt that began at `began`: how long to wait before the next, or that there is
    /// none.
    pub(super) fn after_failure(&mut self, began: Duration, now: Duration) -> Option<Duration> {
        match &self.strategy {
            RestartStrategy::None => None,
            RestartStrategy::FixedDelay { attempts, delay } => {
                self.in_a_row += 1;
                (*attempts == 0 || self.in_a_row <= *attempts).then_some(*delay)
            }
            RestartStrategy::ExponentialDelay {
                initial,
                max,
                multiplier,
                reset_after,
                attempts,
            } => {
                if self.in_a_row == 0 || now.saturating_sub(began) >= *reset_after {
                    self.in_a_row = 0;
                    self.delay = *initial;
                } else {
                    self.delay = self.delay.mul_f64(*multiplier).min(*max);
                }
                self.in_a_row += 1;
                (*attempts == 0 || self.in_a_row <= *attempts).then_some(self.delay)
            }
            RestartStrategy::FailureRate {
                max_failures,
                interval,
                delay,
            } => {
                self.failures.push_back(now);
                while self.failures.front().is_some_and(|first| *first + *interval < now) {
                    self.failures.pop_front();
                }
                (self.failures.len() <= *max_failures as usize).then_some(*delay)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn fixed_delays_run_out() {
        let mut restarts = Restarts::new(RestartStrategy::FixedDelay {
            attempts: 2,
            delay: s(3),
        });
        let delays: Vec<_> = (0..3).map(|at| restarts.after_failure(s(at), s(at))).collect();
        assert_eq!(delays, [Some(s(3)), Some(s(3)), None]);
        assert_eq!(Restarts::new(RestartStrategy::None).after_failure(s(0), s(0)), None);
    }

    #[test]
    fn exponential_delays_grow_to_a_limit_and_begin_again() {
        let mut restarts = Restarts::new(RestartStrategy::ExponentialDelay {
            initial: s(1),
            max: s(5),
            multiplier: 2.0,
            reset_after: s(100),
            attempts: 0,
        });
        let mut delay = |began, now| restarts.after_failure(s(began), s(now)).unwrap().as_secs();
        assert_eq!([delay(0, 1), delay(2, 3), delay(5, 6), delay(10, 11)], [1, 2, 4, 5]);
        assert_eq!([delay(16, 200), delay(201, 202)], [1, 2]);
    }

    #[test]
    fn a_rate_of_failures_is_borne() {
        let mut restarts = Restarts::new(RestartStrategy::FailureRate {
            max_failures: 2,
            interval: s(10),
            delay: s(1),
        });
        let mut fail = |now| restarts.after_failure(s(0), s(now)).is_some();
        assert_eq!(
            [fail(0), fail(5), fail(11), fail(12), fail(40)],
            [true, true, true, false, true]
        );
    }
}
