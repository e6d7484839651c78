//! [`Coordinator`]: when to trigger checkpoints, when they are complete, what to do about failures. Pure decisions over
//! observed facts: it does no I/O and reads no clock, so that every course of events can be tested.
//!
//! The protocol (Flink paper, section 3.3): trigger the sources; when every task that has not finished has acknowledged, store the
//! manifest; when it is stored the checkpoint is complete, and the sinks publish. A checkpoint that fails or takes too
//! long is discarded and the job goes on, until too many in a row have failed.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::data::Alignment;

/// A subtask, by vertex and number.
pub type Task = (usize, usize);

/// When checkpoints are taken and what becomes of those that fail (`execution.checkpointing.*`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointOptions {
    /// Between the starts of two checkpoints; `None`: only when asked for, and at the end.
    pub interval: Option<Duration>,
    /// A checkpoint that is not complete after so long is discarded.
    pub timeout: Duration,
    /// Between the end of a checkpoint and the start of the next.
    pub min_pause: Duration,
    /// Checkpoints under way at once, at least one.
    pub max_concurrent: usize,
    /// So many failures in a row are borne; the next one ends the job (and its restart strategy decides).
    pub tolerable_failures: u32,
    /// How barriers are aligned.
    pub alignment: Alignment,
    /// Whether only what has changed is written where an operator can tell.
    pub incremental: bool,
    /// Complete checkpoints that are kept.
    pub retained: usize,
    /// Whether the last checkpoint stays when the job ends: when it finishes, too (`true`), or only when it fails or is
    /// cancelled (`false`).
    pub keep_at_end: bool,
}

impl Default for CheckpointOptions {
    fn default() -> Self {
        Self {
            interval: None,
            timeout: Duration::from_secs(600),
            min_pause: Duration::ZERO,
            max_concurrent: 1,
            tolerable_failures: 0,
            alignment: Alignment::Aligned { timeout_ms: None },
            incremental: true,
            retained: 1,
            keep_at_end: false,
        }
    }
}

/// What has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fact {
    /// Time has passed.
    Tick,
    /// Somebody asks for a savepoint; `stops`: and for the job to end with it.
    SavepointAsked {
        /// Names the request.
        request: u64,
        /// Whether the sources say nothing after it.
        stops: bool,
    },
    /// A task's part of a checkpoint is stored.
    Acknowledged {
        /// The checkpoint.
        checkpoint: u64,
        /// The task.
        task: Task,
    },
    /// A task could not store its part, or the parts do not fit together.
    Declined {
        /// The checkpoint.
        checkpoint: u64,
        /// Why.
        reason: String,
    },
    /// A task has read all its input; what it leaves behind is known and counts for every later checkpoint.
    Finished {
        /// The task.
        task: Task,
    },
    /// The manifest is stored.
    Stored {
        /// The checkpoint.
        checkpoint: u64,
    },
    /// The manifest could not be stored.
    NotStored {
        /// The checkpoint.
        checkpoint: u64,
        /// Why.
        reason: String,
    },
}

/// What is to be done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Tell the sources to send the barrier.
    Trigger {
        /// The checkpoint.
        checkpoint: u64,
        /// The request, when it is a savepoint.
        savepoint: Option<u64>,
        /// Whether the sources say nothing after it.
        stops: bool,
    },
    /// All parts are there: store the manifest. `is_final`: all tasks have finished.
    Store {
        /// The checkpoint.
        checkpoint: u64,
        /// The request, when it is a savepoint.
        savepoint: Option<u64>,
        /// Whether nothing follows.
        is_final: bool,
    },
    /// The checkpoint is complete: publish what its sinks prepared, tell the sources.
    Complete {
        /// The checkpoint.
        checkpoint: u64,
        /// The request, when it is a savepoint.
        savepoint: Option<u64>,
        /// Whether the job ends with it.
        stops: bool,
        /// Whether all tasks have finished.
        is_final: bool,
    },
    /// Forget the checkpoint and remove its files.
    Discard {
        /// The checkpoint.
        checkpoint: u64,
        /// The request, when it is a savepoint.
        savepoint: Option<u64>,
        /// Why.
        reason: String,
    },
    /// Refuse a savepoint that was asked for.
    Refuse {
        /// The request.
        request: u64,
        /// Why.
        reason: String,
    },
    /// End the attempt: too many checkpoints have failed.
    Fail {
        /// Why.
        reason: String,
    },
}

struct Pending {
    savepoint: Option<u64>,
    stops: bool,
    is_final: bool,
    triggered: Duration,
    missing: BTreeSet<Task>,
    storing: bool,
}

/// Decides about the checkpoints of one attempt of a job.
pub struct Coordinator {
    options: CheckpointOptions,
    running: BTreeSet<Task>,
    /// Sources that are running: without any, no barrier can be sent.
    sources: BTreeSet<Task>,
    pending: BTreeMap<u64, Pending>,
    asked: Vec<(u64, bool)>,
    next: u64,
    last_start: Duration,
    last_end: Option<Duration>,
    failures: u32,
    stopped: bool,
}

impl Coordinator {
    /// For an attempt of these tasks, some of which are sources, that starts at `now`; the first checkpoint has the number
    /// `first`.
    pub fn new(
        options: CheckpointOptions,
        tasks: impl IntoIterator<Item = Task>,
        sources: impl IntoIterator<Item = Task>,
        first: u64,
        now: Duration,
    ) -> Self {
        Self {
            options,
            running: tasks.into_iter().collect(),
            sources: sources.into_iter().collect(),
            pending: BTreeMap::new(),
            asked: Vec::new(),
            next: first,
            last_start: now,
            last_end: None,
            failures: 0,
            stopped: false,
        }
    }

    /// Takes a fact in at time `now`.
    pub fn observe(&mut self, now: Duration, fact: Fact) -> Vec<Decision> {
        let mut decisions = Vec::new();
        match fact {
            Fact::Tick => {}
            Fact::SavepointAsked { request, stops } => self.asked.push((request, stops)),
            Fact::Acknowledged { checkpoint, task } => {
                if let Some(pending) = self.pending.get_mut(&checkpoint) {
                    pending.missing.remove(&task);
                }
            }
            Fact::Declined { checkpoint, reason } => self.fail(now, checkpoint, reason, &mut decisions),
            Fact::Finished { task } => {
                self.running.remove(&task);
                self.sources.remove(&task);
                for pending in self.pending.values_mut() {
                    pending.missing.remove(&task);
                }
            }
            Fact::Stored { checkpoint } => self.stored(now, checkpoint, &mut decisions),
            Fact::NotStored { checkpoint, reason } => self.fail(now, checkpoint, reason, &mut decisions),
        }
        self.store(&mut decisions);
        self.expire(now, &mut decisions);
        self.trigger(now, &mut decisions);
        decisions
    }

    /// When to call [`Coordinator::observe`] with a [`Fact::Tick`] at the latest.
    pub fn next_wake(&self) -> Option<Duration> {
        let timeouts = self
            .pending
            .values()
            .map(|pending| pending.triggered + self.options.timeout);
        timeouts.chain(self.next_due()).min()
    }

    /// Whether checkpoints are under way.
    pub fn is_busy(&self) -> bool {
        !self.pending.is_empty()
    }

    /// Whether all tasks have finished and the final checkpoint is no longer under way.
    pub fn is_over(&self) -> bool {
        self.running.is_empty() && self.stopped && self.pending.is_empty()
    }

    fn next_due(&self) -> Option<Duration> {
        if self.stopped || self.sources.is_empty() || self.pending.len() >= self.options.max_concurrent {
            return None;
        }
        let due = self.last_start + self.options.interval?;
        let pause = self.last_end.map_or(Duration::ZERO, |end| end + self.options.min_pause);
        Some(due.max(pause))
    }

    fn trigger(&mut self, now: Duration, decisions: &mut Vec<Decision>) {
        if self.stopped {
            self.refuse("the job is ending", decisions);
            return;
        }
        if self.running.is_empty() {
            self.refuse("the job has read all its input", decisions);
            // What is under way can only hold less.
            if self.pending.values().all(|pending| pending.storing) {
                self.begin(now, None, false, true, decisions);
                self.stopped = true;
                self.store(decisions);
            }
            return;
        }
        if self.sources.is_empty() {
            self.refuse("the job has read all its input and is about to finish", decisions);
            return;
        }
        for (request, stops) in std::mem::take(&mut self.asked) {
            self.begin(now, Some(request), stops, false, decisions);
            self.stopped |= stops;
        }
        if self.next_due().is_some_and(|due| due <= now) {
            self.begin(now, None, false, false, decisions);
        }
    }

    fn refuse(&mut self, reason: &str, decisions: &mut Vec<Decision>) {
        for (request, _) in self.asked.drain(..) {
            decisions.push(Decision::Refuse {
                request,
                reason: reason.to_string(),
            });
        }
    }

    fn begin(
        &mut self,
        now: Duration,
        savepoint: Option<u64>,
        stops: bool,
        is_final: bool,
        decisions: &mut Vec<Decision>,
    ) {
        let checkpoint = self.next;
        self.next += 1;
        self.last_start = now;
        let pending = Pending {
            savepoint,
            stops,
            is_final,
            triggered: now,
            missing: self.running.clone(),
            storing: false,
        };
        self.pending.insert(checkpoint, pending);
        if !is_final {
            decisions.push(Decision::Trigger {
                checkpoint,
                savepoint,
                stops,
            });
        }
    }

    /// Stores what is complete, in the order of the numbers: sinks publish in that order.
    fn store(&mut self, decisions: &mut Vec<Decision>) {
        // Those behind the oldest wait for it.
        let Some((checkpoint, pending)) = self.pending.iter_mut().next() else {
            return;
        };
        if pending.storing || !pending.missing.is_empty() {
            return;
        }
        pending.storing = true;
        decisions.push(Decision::Store {
            checkpoint: *checkpoint,
            savepoint: pending.savepoint,
            is_final: pending.is_final,
        });
    }

    fn stored(&mut self, now: Duration, checkpoint: u64, decisions: &mut Vec<Decision>) {
        let Some(done) = self.pending.remove(&checkpoint) else {
            return;
        };
        self.last_end = Some(now);
        self.failures = 0;
        decisions.push(Decision::Complete {
            checkpoint,
            savepoint: done.savepoint,
            stops: done.stops,
            is_final: done.is_final,
        });
    }

    fn expire(&mut self, now: Duration, decisions: &mut Vec<Decision>) {
        let timeout = self.options.timeout;
        // What is being stored cannot be called back.
        let late = |pending: &Pending| !pending.storing && now >= pending.triggered + timeout;
        let expired: Vec<u64> = self
            .pending
            .iter()
            .filter(|(_, pending)| late(pending))
            .map(|(checkpoint, _)| *checkpoint)
            .collect();
        for checkpoint in expired {
            let missing = self.pending[&checkpoint].missing.len();
            let reason = format!("it took more than {timeout:?}: {missing} subtasks have not acknowledged it");
            self.fail(now, checkpoint, reason, decisions);
        }
    }

    fn fail(&mut self, now: Duration, checkpoint: u64, reason: String, decisions: &mut Vec<Decision>) {
        let Some(failed) = self.pending.remove(&checkpoint) else {
            return;
        };
        self.last_end = Some(now);
        decisions.push(Decision::Discard {
            checkpoint,
            savepoint: failed.savepoint,
            reason: reason.clone(),
        });
        if failed.stops {
            // The sources are silent already: only a new attempt makes them speak again.
            decisions.push(Decision::Fail {
                reason: format!("savepoint {checkpoint}, with which the job was to end, failed: {reason}"),
            });
            return;
        }
        if failed.savepoint.is_some() {
            return;
        }
        self.failures += 1;
        if failed.is_final || self.failures > self.options.tolerable_failures {
            decisions.push(Decision::Fail {
                reason: format!(
                    "checkpoint {checkpoint} failed: {reason} ({} in a row, \
                     execution.checkpointing.tolerable-failed-checkpoints is {})",
                    self.failures, self.options.tolerable_failures
                ),
            });
        }
    }
}

/// On which complete checkpoint the next one should build, of a chain of (checkpoint, bytes) whose first is whole: deltas that
/// are no larger than what comes are written again together with it, so that the chain stays short and every change is
/// written a logarithmic number of times (as in a size-tiered log-structured merge tree). `None`: everything, as the
/// deltas together have come to half of the whole.
pub fn base_of(chain: &[(u64, u64)], expected_bytes: u64) -> Option<u64> {
    let ((_, whole), deltas) = chain.split_first()?;
    let all: u64 = deltas.iter().map(|(_, bytes)| bytes).sum::<u64>() + expected_bytes;
    if all > whole / 2 {
        return None;
    }
    let mut together = expected_bytes.max(1);
    let mut kept = deltas.len();
    while kept > 0 && deltas[kept - 1].1 <= 2 * together {
        together += deltas[kept - 1].1;
        kept -= 1;
    }
    Some(chain[kept].0)
}

#[cfg(test)]
mod tests;
