//! When an event is due.

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio::time::Instant;

const SECOND: u128 = 1_000_000_000;

/// A rate of events by the wall clock. All splits count from the moment the first of them was asked for a row, so
/// that together they keep the rate.
#[derive(Clone, Debug)]
pub(crate) struct Pace {
    per_second: u64,
    origin: Arc<OnceLock<Instant>>,
    /// The event that is due at the origin.
    first: Arc<OnceLock<u64>>,
}

impl Pace {
    pub(crate) fn new(per_second: u64) -> Self {
        Self {
            per_second: per_second.max(1),
            origin: Arc::new(OnceLock::new()),
            first: Arc::new(OnceLock::new()),
        }
    }

    /// The same pace from now on, for a job that goes on: `event` is due at once. Splits share what the first of them says.
    pub(crate) fn go_on_at(&self, event: u64) {
        self.first.get_or_init(|| event);
    }

    fn first(&self) -> u64 {
        *self.first.get_or_init(|| 0)
    }

    fn origin(&self) -> Instant {
        *self.origin.get_or_init(Instant::now)
    }

    /// How many events are due: those of which the number is below this.
    pub(crate) fn due(&self) -> u64 {
        due_after(self.origin().elapsed(), self.per_second).saturating_add(self.first())
    }

    /// Waits until `event` is due; tokio's timer is up to a millisecond late.
    pub(crate) async fn wait_for(&self, event: u64) {
        let later = event.saturating_sub(self.first());
        match self.origin().checked_add(time_of(later, self.per_second)) {
            Some(time) => tokio::time::sleep_until(time).await,
            None => std::future::pending().await,
        }
    }
}

/// How many events are due when so much time has passed; the first is due at once.
pub(super) fn due_after(elapsed: Duration, per_second: u64) -> u64 {
    let due = elapsed.as_nanos() * u128::from(per_second) / SECOND + 1;
    u64::try_from(due).unwrap_or(u64::MAX)
}

/// How much time passes before an event is due.
pub(super) fn time_of(event: u64, per_second: u64) -> Duration {
    let nanos = (u128::from(event) * SECOND).div_ceil(u128::from(per_second));
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}
