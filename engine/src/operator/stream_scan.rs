//! The scan of a streaming job: a subtask reads all its splits side by side, with a watermark per split.
//!
//! Splits are dealt out to the subtasks in turn. What a subtask tells its consumers is the minimum of its splits'
//! watermarks, so that the order in which splits are read makes no row late: rows of one split are late only by what
//! the split itself says. Of the splits that have a batch ready the one whose watermark is furthest behind is read
//! first; with `max_drift_ms`, one that is further ahead than that is not read at all until the others have caught up.
//! (The Dataflow Model, section 2.3; per-split watermarks and alignment as in Flink's sources.)

use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::logical_expr::Operator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, Literal};
use datafusion::physical_plan::ExecutionPlan;
use futures::StreamExt;

use crate::data::{Batch, EngineError, Result, Watermark};
use crate::operator::Context;
use crate::operator::scan::{BadRecords, SourceEvent, sleep};
use crate::plan::{ScalarExpr, ScanSpec, WatermarkSpec};

/// One split on its way through the scan.
struct Split {
    stream: SendableRecordBatchStream,
    /// Read, not handed on yet, with the watermark that it leads to.
    ready: Option<(Batch, Option<i64>)>,
    watermark: Option<i64>,
    /// Since when it has said nothing.
    silent_since: Duration,
    idle: bool,
    ended: bool,
}

/// Reads the splits of one subtask side by side.
pub struct StreamScan {
    plan: Arc<dyn ExecutionPlan>,
    /// Numbers of the splits that are not open yet.
    unopened: Vec<usize>,
    splits: Vec<Split>,
    watermark: Option<WatermarkSpec>,
    emitted: Option<i64>,
    emitted_at: Option<Duration>,
    is_idle: bool,
    rows_left: usize,
    next_split: usize,
    bad_records: BadRecords,
}

impl StreamScan {
    pub(super) fn new(spec: ScanSpec, subtask: usize, parallelism: usize) -> Self {
        let count = spec.plan.0.properties().partitioning.partition_count();
        Self {
            plan: spec.plan.0,
            unopened: (subtask..count).step_by(parallelism).collect(),
            splits: Vec::new(),
            watermark: spec.stream.and_then(|stream| stream.watermark),
            emitted: None,
            emitted_at: None,
            is_idle: false,
            rows_left: spec.limit.unwrap_or(usize::MAX),
            next_split: 0,
            bad_records: BadRecords::default(),
        }
    }

    /// The plan whose partitions are the splits.
    pub(super) fn plan(&self) -> &Arc<dyn ExecutionPlan> {
        &self.plan
    }

    /// The next batch or watermark; waits at most `patience`.
    ///
    /// # Errors
    /// When the input cannot be read, or `Cancelled`.
    pub(super) fn next(&mut self, cx: &mut Context, patience: Option<Duration>) -> Result<SourceEvent> {
        let event = self.read(cx, patience);
        self.bad_records.note(cx);
        event
    }

    fn read(&mut self, cx: &mut Context, patience: Option<Duration>) -> Result<SourceEvent> {
        cx.cancel.check()?;
        self.open(cx)?;
        let now = cx.clock.monotonic();
        if let Some(event) = self.progress(now) {
            return Ok(event);
        }
        if self.rows_left == 0 || self.splits.iter().all(|split| split.ended) {
            self.splits.clear();
            cx.hold_anyway(0);
            return Ok(SourceEvent::End);
        }
        self.fill(cx, self.patience(now, patience))?;
        let now = cx.clock.monotonic();
        let Some(index) = self.choose() else {
            self.note_idle(now);
            return Ok(self.progress(now).unwrap_or(SourceEvent::Pending));
        };
        let split = &mut self.splits[index];
        self.next_split = index + 1;
        let Some((batch, watermark)) = split.ready.take() else {
            return Ok(SourceEvent::Pending);
        };
        split.watermark = split.watermark.max(watermark);
        split.silent_since = now;
        split.idle = false;
        let rows = batch.num_rows().min(self.rows_left);
        self.rows_left -= rows;
        Ok(SourceEvent::Batch(batch.slice(0, rows)))
    }

    fn open(&mut self, cx: &Context) -> Result<()> {
        let _io = cx.io.enter();
        for split in std::mem::take(&mut self.unopened) {
            self.splits.push(Split {
                stream: self.plan.execute(split, Arc::clone(&cx.task))?,
                ready: None,
                watermark: None,
                silent_since: cx.clock.monotonic(),
                idle: false,
                ended: false,
            });
            self.bad_records.watch(&self.plan, split);
        }
        Ok(())
    }

    /// The watermark or idleness that is to be told now.
    fn progress(&mut self, now: Duration) -> Option<SourceEvent> {
        let spec = self.watermark.as_ref()?;
        let open = || self.splits.iter().filter(|split| !split.ended);
        let idle = open().next().is_some() && open().all(|split| split.idle && split.ready.is_none());
        if idle != self.is_idle {
            self.is_idle = idle;
            return Some(SourceEvent::Idle(idle));
        }
        let interval = Duration::from_millis(spec.interval_ms);
        if self.emitted_at.is_some_and(|last| now < last + interval) {
            return None;
        }
        let minimum = open()
            .filter(|split| !split.idle)
            .map(|split| split.watermark)
            .min()??;
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
        let open = || self.splits.iter().filter(|split| !split.ended);
        let silent = spec.idle_timeout_ms.and_then(|timeout| {
            let ends = open()
                .filter(|split| !split.idle)
                .map(|split| split.silent_since + Duration::from_millis(timeout));
            Some(ends.min()?.saturating_sub(now))
        });
        let minimum = open().filter(|split| !split.idle).map(|split| split.watermark).min();
        let waiting = minimum.flatten().is_some_and(|minimum| self.emitted < Some(minimum));
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
        for split in self
            .splits
            .iter_mut()
            .filter(|split| !split.ended && split.ready.is_none())
        {
            split.idle |= now >= split.silent_since + Duration::from_millis(timeout);
        }
    }

    /// Lets every split that has no batch ready read one if it can; waits only when none has any.
    fn fill(&mut self, cx: &mut Context, patience: Option<Duration>) -> Result<()> {
        let cancel = cx.cancel.clone();
        let io = cx.io.clone();
        let expr = self.watermark.as_ref().map(|spec| &spec.expr);
        let splits = &mut self.splits;
        let polled = futures::future::poll_fn(|task| {
            let mut any = false;
            for split in splits.iter_mut().filter(|split| !split.ended && split.ready.is_none()) {
                match split.stream.poll_next_unpin(task) {
                    Poll::Ready(None) => {
                        split.ended = true;
                        any = true;
                    }
                    Poll::Ready(Some(batch)) => {
                        let batch = match batch {
                            Ok(batch) => batch,
                            Err(error) => return Poll::Ready(Err(EngineError::from(error))),
                        };
                        any = true;
                        if batch.num_rows() > 0 {
                            match expr.map(|expr| highest(expr, &batch)).transpose() {
                                Ok(watermark) => split.ready = Some((batch, watermark.flatten())),
                                Err(error) => return Poll::Ready(Err(error)),
                            }
                        }
                    }
                    Poll::Pending => {}
                }
            }
            // A split that is held back because it has drifted ahead is no reason not to wait for the others, but they
            // are then pending and wake us.
            if any || splits.iter().any(|split| split.ready.is_some()) {
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
                () = sleep(patience) => Ok(()),
            }
        })
    }

    /// The split to hand a batch on from: the one whose watermark is furthest behind; in turn when nothing tells.
    fn choose(&self) -> Option<usize> {
        let count = self.splits.len();
        let order = (0..count).map(|offset| (self.next_split + offset) % count);
        let ready = order.filter_map(|index| Some((index, self.splits[index].ready.as_ref()?)));
        let (index, (_, watermark)) =
            ready.min_by_key(|(index, (_, watermark))| self.splits[*index].watermark.max(*watermark))?;
        let max_drift = self.watermark.as_ref().and_then(|spec| spec.max_drift_ms);
        if let (Some(drift), Some(watermark)) = (max_drift, *watermark) {
            let others = self
                .splits
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

/// The highest watermark that the rows of a batch lead to, in milliseconds.
///
/// # Errors
/// When the expression fails or gives no timestamp.
pub(super) fn highest(expr: &ScalarExpr, batch: &Batch) -> Result<Option<i64>> {
    // A delay is the same for all rows: the latest of them decides, and the others need no arithmetic on calendars.
    if batch.num_rows() > 1
        && let Some(column) = delayed_column(&expr.expr)
    {
        let ticks = ticks(batch.column(column))?;
        let row = latest(&ticks);
        return row.map_or(Ok(None), |row| highest(expr, &batch.slice(row, 1)));
    }
    let values = expr.expr.evaluate(batch)?.into_array(batch.num_rows())?;
    let DataType::Timestamp(unit, _) = values.data_type() else {
        return Err(EngineError::Plan(format!(
            "the watermark {expr:?} is {}, not a timestamp",
            values.data_type()
        )));
    };
    let highest = arrow::compute::max(&ticks(&values)?);
    // Rounded down, as the times of rows are: before the epoch, too.
    Ok(highest.map(|highest| match unit {
        TimeUnit::Second => highest.saturating_mul(1000),
        TimeUnit::Millisecond => highest,
        TimeUnit::Microsecond => highest.div_euclid(1000),
        TimeUnit::Nanosecond => highest.div_euclid(1_000_000),
    }))
}

/// The column that `expr` is, or is a fixed length of time before or after.
fn delayed_column(expr: &Arc<dyn PhysicalExpr>) -> Option<usize> {
    if let Some(column) = expr.downcast_ref::<Column>() {
        return Some(column.index());
    }
    let delayed = expr.downcast_ref::<BinaryExpr>()?;
    let column = delayed.left().downcast_ref::<Column>()?;
    let delay = delayed.right().downcast_ref::<Literal>()?;
    let fixed = match delay.value() {
        // Months are of several lengths.
        ScalarValue::IntervalMonthDayNano(Some(delay)) => delay.months == 0,
        ScalarValue::IntervalDayTime(Some(_)) => true,
        other => matches!(other.data_type(), DataType::Duration(_)),
    };
    (fixed && matches!(delayed.op(), Operator::Minus | Operator::Plus)).then(|| column.index())
}

fn ticks(times: &ArrayRef) -> Result<Int64Array> {
    if !matches!(times.data_type(), DataType::Timestamp(_, _)) {
        return Err(EngineError::Plan(format!(
            "a watermark is {}, not a timestamp",
            times.data_type()
        )));
    }
    Ok(cast(times, &DataType::Int64)?.as_primitive::<Int64Type>().clone())
}

/// The row with the greatest number.
fn latest(ticks: &Int64Array) -> Option<usize> {
    let highest = arrow::compute::max(ticks)?;
    // From behind: time goes forward.
    (0..ticks.len())
        .rev()
        .find(|row| ticks.value(*row) == highest && ticks.is_valid(*row))
}

#[cfg(test)]
mod tests;
