//! How the channels of a gate take a barrier: aligned, unaligned or not at all.
//!
//! *Aligned*: a channel that has delivered the barrier waits until the others have (Flink paper, section 3.3). *Unaligned*: the
//! first barrier is taken at once; the rows that were under way, those queued and those that still arrive before the
//! barrier of their own channel, become part of the snapshot ([`super::GateEvent::InFlight`]). An aligned barrier
//! becomes an unaligned one when the others keep it waiting too long. *At least once*: nothing waits, nothing is kept.

use std::collections::VecDeque;
use std::time::Duration;

use super::Port;
use crate::data::{Alignment, Barrier, Batch};

/// Rows under way, each with its input.
pub(super) type InFlight = Vec<(Port, Batch)>;

/// A barrier that some channels have delivered and others have not.
pub(super) struct Aligning {
    pub(super) barrier: Barrier,
    /// Which channels have delivered it.
    delivered: Vec<bool>,
    /// When the first did, by the monotonic clock.
    started: Duration,
    /// The rows that it has overtaken, once it overtakes.
    in_flight: Option<InFlight>,
    /// Whether the subtask has been told that it overtakes: only then is it known what it has overtaken.
    announced: bool,
}

/// The barriers under way in a gate, oldest first.
#[derive(Default)]
pub(super) struct Alignments {
    under_way: VecDeque<Aligning>,
    /// The newest barrier that has been taken: what comes of older ones is late and of no use.
    taken: Option<u64>,
}

impl Aligning {
    fn overtakes(&self) -> bool {
        self.in_flight.is_some()
    }

    /// Whether a channel that has delivered it waits for the others.
    fn holds_back(&self) -> bool {
        self.barrier.alignment != Alignment::AtLeastOnce && !self.overtakes()
    }
}

impl Alignments {
    /// Notes that `channel` of `channels` has delivered a barrier.
    pub(super) fn deliver(&mut self, barrier: Barrier, channel: usize, channels: usize, now: Duration) {
        if self.taken.is_some_and(|taken| barrier.id <= taken) {
            return;
        }
        let known = self
            .under_way
            .iter()
            .position(|aligning| aligning.barrier.id == barrier.id);
        let index = known.unwrap_or_else(|| {
            let aligning = Aligning {
                barrier,
                delivered: vec![false; channels],
                started: now,
                in_flight: None,
                announced: false,
            };
            let at = self.under_way.partition_point(|other| other.barrier.id < barrier.id);
            self.under_way.insert(at, aligning);
            at
        });
        self.under_way[index].delivered[channel] = true;
    }

    /// Whether `channel` must wait: it has delivered a barrier that has not been taken. One that could overtake holds its
    /// channels back, too, as long as an older one is under way: only the oldest overtakes.
    pub(super) fn holds_back(&self, channel: usize) -> bool {
        let mut under_way = self.under_way.iter();
        under_way.any(|aligning| aligning.delivered[channel] && aligning.holds_back())
    }

    /// Whether a barrier older than this one is under way.
    pub(super) fn has_older(&self, barrier: Barrier) -> bool {
        self.under_way
            .front()
            .is_some_and(|oldest| oldest.barrier.id < barrier.id)
    }

    /// The oldest barrier, when all channels that are open have delivered it; it is taken.
    pub(super) fn complete(&mut self, is_open: impl Fn(usize) -> bool) -> Option<(Barrier, Option<InFlight>)> {
        let oldest = self.under_way.front()?;
        if oldest.overtakes() && !oldest.announced {
            return None;
        }
        let missing = |(channel, delivered): (usize, &bool)| !delivered && is_open(channel);
        if oldest.delivered.iter().enumerate().any(missing) {
            return None;
        }
        let done = self.under_way.pop_front()?;
        self.taken = Some(done.barrier.id);
        Some((done.barrier, done.in_flight))
    }

    /// How long until the oldest barrier overtakes; zero when it does and the subtask is to be told.
    pub(super) fn time_to_overtake(&self, now: Duration) -> Option<Duration> {
        let oldest = self.under_way.front()?;
        if oldest.announced {
            return None;
        }
        match oldest.barrier.alignment {
            Alignment::Unaligned => Some(Duration::ZERO),
            Alignment::Aligned {
                timeout_ms: Some(timeout),
            } => Some((oldest.started + Duration::from_millis(timeout)).saturating_sub(now)),
            Alignment::Aligned { timeout_ms: None } | Alignment::AtLeastOnce => None,
        }
    }

    /// The oldest barrier overtakes from now on.
    pub(super) fn overtake(&mut self) -> Option<Barrier> {
        let oldest = self.under_way.front_mut()?;
        oldest.in_flight.get_or_insert_default();
        oldest.barrier.alignment = Alignment::Unaligned;
        Some(oldest.barrier)
    }

    /// The subtask is told that the oldest barrier overtakes.
    pub(super) fn announce(&mut self) {
        if let Some(oldest) = self.under_way.front_mut() {
            oldest.announced = true;
        }
    }

    /// Whether `channel` has delivered the oldest barrier.
    pub(super) fn is_delivered(&self, channel: usize) -> bool {
        self.under_way.front().is_some_and(|oldest| oldest.delivered[channel])
    }

    /// The announced barrier that `channel` has yet to deliver: the rows that it sends until then are kept.
    pub(super) fn awaited(&self, channel: usize) -> Option<Barrier> {
        let oldest = self.under_way.front().filter(|oldest| oldest.announced)?;
        (!oldest.delivered[channel]).then_some(oldest.barrier)
    }

    /// Keeps rows that the oldest barrier overtakes.
    pub(super) fn keep(&mut self, port: Port, batch: Batch) {
        if let Some(rows) = self.under_way.front_mut().and_then(|oldest| oldest.in_flight.as_mut()) {
            rows.push((port, batch));
        }
    }
}
