//! The scan of a streaming job: a subtask reads all its splits side by side, with a watermark per split.
//!
//! Splits are dealt out to the subtasks in turn. What a subtask tells its consumers is the minimum of its splits'
//! watermarks, so that the order in which splits are read makes no row late: rows of one split are late only by what
//! the split itself says. Of the splits that have a batch ready the one whose watermark is furthest behind is read
//! first; with `max_drift_ms`, one that is further ahead than that is not read at all until the others have caught up.
//! (The Dataflow Model, section 2.3; per-split watermarks and alignment as in Flink's sources.)
//!
//! Each split is at a position: after the last batch that was handed on. A checkpoint holds the positions and the watermarks
//! of all splits, so that any number of subtasks can go on there; what has been read ahead and not handed on is read again.

mod share;
mod state;
#[cfg(test)]
mod state_tests;
#[cfg(test)]
mod tests;
mod times;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;
use std::time::Duration;

use datafusion::physical_plan::ExecutionPlan;
use futures::StreamExt;
use tokio::sync::Notify;

use crate::data::{EngineError, Result, Watermark};
use crate::operator::partition_splits::PartitionSplits;
use crate::operator::scan::{SourceEvent, sleep};
use crate::operator::{Context, SplitSource};
use crate::plan::{ScanSpec, WatermarkSpec};

use share::{OpenSplit, Ready, Share};
pub(super) use times::highest;

/// Reads the splits of one subtask side by side.
pub struct StreamScan {
    plan: Arc<dyn ExecutionPlan>,
    splits: Share,
    watermark: Option<WatermarkSpec>,
    emitted: Option<i64>,
    emitted_at: Option<Duration>,
    is_idle: bool,
    limit: Option<usize>,
    rows_left: usize,
    next_split: usize,
    /// Ends a wait before its time.
    wake: Arc<Notify>,
    /// Positions at checkpoints that are not complete yet.
    noted: state::Noted,
}

impl StreamScan {
    /// Reads `source`, or the partitions of the plan when there is none.
    pub(super) fn new(
        spec: ScanSpec,
        source: Option<Arc<dyn SplitSource>>,
        subtask: usize,
        parallelism: usize,
    ) -> Self {
        let source = source.unwrap_or_else(|| Arc::new(PartitionSplits::new(Arc::clone(&spec.plan.0))));
        Self {
            plan: spec.plan.0,
            splits: Share::new(source, subtask, parallelism),
            watermark: spec.stream.and_then(|stream| stream.watermark),
            emitted: None,
            emitted_at: None,
            is_idle: false,
            limit: spec.limit,
            rows_left: spec.limit.unwrap_or(usize::MAX),
            next_split: 0,
            wake: Arc::default(),
            noted: state::Noted::default(),
        }
    }

    /// The plan that is read.
    pub(super) fn plan(&self) -> &Arc<dyn ExecutionPlan> {
        &self.plan
    }

    pub(super) fn wake_by(&mut self, wake: Arc<Notify>) {
        self.wake = wake;
    }

    /// The next batch or watermark; waits at most `patience`.
    ///
    /// # Errors
    /// When the input cannot be read, or `Cancelled`.
    pub(super) fn next(&mut self, cx: &mut Context, patience: Option<Duration>) -> Result<SourceEvent> {
        let event = self.read(cx, patience);
        if let Some(bad_records) = self.splits.bad_records() {
            cx.metrics.bad_records.store(bad_records, Ordering::Relaxed);
        }
        event
    }

    fn read(&mut self, cx: &mut Context, patience: Option<Duration>) -> Result<SourceEvent> {
        cx.cancel.check()?;
        self.splits.begin(cx)?;
        let is_over = self.rows_left == 0;
        if !is_over {
            self.splits.open(cx)?;
        }
        let now = cx.clock.monotonic();
        if let Some(event) = self.progress(now) {
            return Ok(event);
        }
        if is_over || self.splits.have_ended() {
            self.splits.close();
            cx.hold_anyway(0);
            return Ok(SourceEvent::End);
        }
        self.fill(cx, self.patience(now, patience))?;
        self.splits.retire();
        let now = cx.clock.monotonic();
        let Some(index) = self.choose() else {
            self.note_idle(now);
            return Ok(self.progress(now).unwrap_or(SourceEvent::Pending));
        };
        let split = &mut self.splits.open[index];
        self.next_split = index + 1;
        let Some(ready) = split.ready.take() else {
            return Ok(SourceEvent::Pending);
        };
        split.watermark = split.watermark.max(ready.watermark);
        split.position = Some(ready.position);
        split.silent_since = now;
        split.idle = false;
        let rows = ready.batch.num_rows().min(self.rows_left);
        self.rows_left -= rows;
        Ok(SourceEvent::Batch(ready.batch.slice(0, rows)))
    }

    /// The minimum over the splits that count; `None` when one of them has not said anything yet.
    fn minimum(&self) -> Option<i64> {
        if self.splits.some_wait() {
            return None;
        }
        let counting = self.splits.open.iter().filter(|split| !split.idle);
        counting.map(|split| split.watermark).min()?
    }

    /// The watermark or idleness that is to be told now.
    fn progress(&mut self, now: Duration) -> Option<SourceEvent> {
        let idle = if self.splits.are_none() {
            // There may be some later.
            self.splits.looks_for_more()
        } else {
            let silent = |split: &OpenSplit| split.idle && split.ready.is_none();
            self.watermark.is_some() && !self.splits.some_wait() && self.splits.open.iter().all(silent)
        };
        if idle != self.is_idle {
            self.is_idle = idle;
            return Some(SourceEvent::Idle(idle));
        }
        let interval = Duration::from_millis(self.watermark.as_ref()?.interval_ms);
        if self.emitted_at.is_some_and(|last| now < last + interval) {
            return None;
        }
        let minimum = self.minimum()?;
        if self.emitted.is_some_and(|emitted| minimum <= emitted) {
            return None;
        }
        self.emitted = Some(minimum);
        self.emitted_at = Some(now);
        Some(SourceEvent::Watermark(Watermark(minimum)))
    }

    /// How long to wait for input: no longer than until a watermark is due or a split becomes idle.
    fn patience(&self, now: Duration, patience: Option<Duration>) -> Option<Duration> {
        let Some(spec) = &self.watermark else { return patience };
        let silent = spec.idle_timeout_ms.and_then(|timeout| {
            let ends = self
                .splits
                .open
                .iter()
                .filter(|split| !split.idle)
                .map(|split| split.silent_since + Duration::from_millis(timeout));
            Some(ends.min()?.saturating_sub(now))
        });
        let waiting = self.minimum().is_some_and(|minimum| self.emitted < Some(minimum));
        let due = self.emitted_at.filter(|_| waiting).map(|last| {
            (last + Duration::from_millis(spec.interval_ms))
                .saturating_sub(now)
                .max(Duration::from_millis(1))
        });
        patience.into_iter().chain(silent).chain(due).min()
    }

    fn note_idle(&mut self, now: Duration) {
        let Some(timeout) = self.watermark.as_ref().and_then(|spec| spec.idle_timeout_ms) else {
            return;
        };
        for split in self.splits.open.iter_mut().filter(|split| split.ready.is_none()) {
            split.idle |= now >= split.silent_since + Duration::from_millis(timeout);
        }
    }

    /// Lets every split that has no batch ready read one if it can; waits only when none has any.
    fn fill(&mut self, cx: &mut Context, patience: Option<Duration>) -> Result<()> {
        let cancel = cx.cancel.clone();
        let io = cx.io.clone();
        let wake = Arc::clone(&self.wake);
        let watermark = self.watermark.as_ref();
        let splits = &mut self.splits;
        let polled = futures::future::poll_fn(|task| {
            let mut any = match splits.poll_found(task) {
                Ok(any) => any,
                Err(error) => return Poll::Ready(Err(error)),
            };
            for split in splits
                .open
                .iter_mut()
                .filter(|split| !split.ended && split.ready.is_none())
            {
                match split.stream.poll_next_unpin(task) {
                    Poll::Ready(None) => {
                        split.ended = true;
                        any = true;
                    }
                    Poll::Ready(Some(read)) => {
                        any = true;
                        match read.and_then(|read| Ready::new(read, watermark)) {
                            Ok(ready) => split.ready = ready,
                            Err(error) => return Poll::Ready(Err(error)),
                        }
                    }
                    Poll::Pending => {}
                }
            }
            // A split that is held back because it has drifted ahead is no reason not to wait for the others, but they
            // are then pending and wake us.
            if any || splits.open.iter().any(|split| split.ready.is_some()) {
                Poll::Ready(Ok(()))
            } else {
                Poll::Pending
            }
        });
        io.block_on(async {
            tokio::select! {
                biased;
                done = polled => done,
                () = cancel.cancelled() => Err(EngineError::Cancelled),
                () = wake.notified() => Ok(()),
                () = sleep(patience) => Ok(()),
            }
        })
    }

    /// The split to hand a batch on from: the one whose watermark is furthest behind; in turn when nothing tells.
    fn choose(&self) -> Option<usize> {
        let open = &self.splits.open;
        let order = (0..open.len()).map(|offset| (self.next_split + offset) % open.len());
        let ready = order.filter_map(|index| Some((index, open[index].ready.as_ref()?)));
        let (index, ready) = ready.min_by_key(|(index, ready)| open[*index].watermark.max(ready.watermark))?;
        let max_drift = self.watermark.as_ref().and_then(|spec| spec.max_drift_ms);
        if let (Some(drift), Some(watermark)) = (max_drift, ready.watermark) {
            let others = open
                .iter()
                .enumerate()
                .filter(|(other, split)| *other != index && !split.ended && !split.idle && split.ready.is_none());
            // One that has not spoken yet says nothing about how far the others may go.
            let slowest = others.filter_map(|(_, split)| split.watermark).min();
            if slowest
                .is_some_and(|slowest| watermark.saturating_sub(slowest) > i64::try_from(drift).unwrap_or(i64::MAX))
            {
                return None;
            }
        }
        Some(index)
    }
}
