//! When a window hands on its rows (The Dataflow Model, section 2.2).
//!
//! A trigger is told of every row, in the order in which rows come, and of the times that it asked for. What it
//! remembers of a window are a few numbers, which the operator keeps: a trigger itself has no state and serves all
//! windows.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::ArrayRef;

use super::assigner::Bounds;
use crate::data::Result;
use crate::plan::ScalarExpr;

/// What becomes of a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TriggerResult {
    /// Nothing.
    Continue,
    /// Its function is called.
    Fire,
    /// It forgets its rows.
    Purge,
    /// Its function is called, then it forgets its rows.
    FireAndPurge,
}

impl TriggerResult {
    /// Whether the function is called.
    pub fn fires(self) -> bool {
        matches!(self, TriggerResult::Fire | TriggerResult::FireAndPurge)
    }

    /// Whether the rows are forgotten.
    pub fn purges(self) -> bool {
        matches!(self, TriggerResult::Purge | TriggerResult::FireAndPurge)
    }
}

/// A window as a trigger sees it.
pub struct TriggerContext<'a> {
    /// The window.
    pub window: Bounds,
    /// Whether the window's bounds are event time.
    pub is_event_time: bool,
    /// The time of the row that has come; else the time that the trigger asked for.
    pub time_ms: i64,
    /// The row's place in `inputs`.
    pub row: usize,
    /// What [`TriggerTraits`] asked for, over the batch of the row; nothing when there is no row.
    pub inputs: &'a [ArrayRef],
    /// How far event time has come.
    pub watermark_ms: i64,
    /// Processing time.
    pub now_ms: i64,
    /// When the window is forgotten, in its own time; `i64::MAX`: never.
    pub cleanup_ms: i64,
    /// How many rows the window holds.
    pub rows: usize,
    /// What the trigger remembers, as many as its `TriggerTraits` say, numbers, 0 at first.
    pub state: &'a mut [i64],
    pub(super) requests: &'a mut Requests,
}

/// What a trigger asked for in one call.
#[derive(Default)]
pub(super) struct Requests {
    pub(super) event_ms: Vec<i64>,
    pub(super) processing_ms: Vec<i64>,
    pub(super) until_ms: Option<i64>,
}

impl TriggerContext<'_> {
    /// Asks for [`Trigger::on_event_time`] when the watermark has reached `time_ms`.
    pub fn register_event_time(&mut self, time_ms: i64) {
        self.requests.event_ms.push(time_ms);
    }

    /// Asks for [`Trigger::on_processing_time`] when the clock has reached `time_ms`.
    pub fn register_processing_time(&mut self, time_ms: i64) {
        self.requests.processing_ms.push(time_ms);
    }

    /// The firing that follows takes in only the rows before `time_ms`, which is then the window's end.
    pub fn fire_until(&mut self, time_ms: i64) {
        self.requests.until_ms = Some(time_ms);
    }

    /// Whether the window is complete: event time has passed its end.
    pub fn is_complete(&self) -> bool {
        self.is_event_time && self.window.last_ms() <= self.watermark_ms
    }

    /// The last millisecond of the window, if it is of processing time.
    pub fn processing_end(&self) -> Option<i64> {
        (!self.is_event_time && self.window.end_ms < i64::MAX).then(|| self.window.last_ms())
    }
}

/// Says when a window fires.
pub trait Trigger: Debug + Send + Sync {
    /// A row has been added.
    ///
    /// # Errors
    /// When the row's inputs are not what they should be.
    fn on_element(&self, cx: &mut TriggerContext<'_>) -> Result<TriggerResult>;

    /// A row is about to be added; only asked when its `TriggerTraits` say that it looks ahead.
    ///
    /// # Errors
    /// As for `on_element`.
    fn before_element(&self, _cx: &mut TriggerContext<'_>) -> Result<TriggerResult> {
        Ok(TriggerResult::Continue)
    }

    /// The watermark has reached a time that was asked for.
    fn on_event_time(&self, _cx: &mut TriggerContext<'_>) -> TriggerResult {
        TriggerResult::Continue
    }

    /// The clock has reached a time that was asked for.
    fn on_processing_time(&self, _cx: &mut TriggerContext<'_>) -> TriggerResult {
        TriggerResult::Continue
    }

    /// The window has swallowed others, whose memories are `others`; the times that any of them asked for are
    /// forgotten. A trigger that does not merge is never asked.
    fn on_merge(&self, _cx: &mut TriggerContext<'_>, _others: &[Vec<i64>]) {}

    /// What the trigger is made of: properties that the operator asks for once.
    fn traits(&self) -> TriggerTraits {
        TriggerTraits::default()
    }
}

/// Properties of a trigger.
#[derive(Clone, Debug, Default)]
pub struct TriggerTraits {
    /// How many numbers it remembers per window. A window without bounds and rows whose numbers are all 0 is forgotten,
    /// with the times that were asked for.
    pub words: usize,
    /// Whether it works with windows that merge.
    pub merges: bool,
    /// Whether it wants [`Trigger::before_element`].
    pub looks_ahead: bool,
    /// Expressions over the input that it looks at.
    pub inputs: Vec<ScalarExpr>,
}

impl TriggerTraits {
    pub(super) fn merging(words: usize) -> Self {
        Self {
            words,
            merges: true,
            ..Self::default()
        }
    }
}

/// Fires when event time has passed the window's end, then with each row that comes late. The default.
#[derive(Clone, Copy, Debug)]
pub struct EventTime;

impl Trigger for EventTime {
    fn on_element(&self, cx: &mut TriggerContext<'_>) -> Result<TriggerResult> {
        if cx.is_complete() {
            return Ok(TriggerResult::Fire);
        }
        cx.register_event_time(cx.window.last_ms());
        Ok(TriggerResult::Continue)
    }

    fn on_event_time(&self, cx: &mut TriggerContext<'_>) -> TriggerResult {
        fire_if(cx.time_ms == cx.window.last_ms())
    }

    fn on_merge(&self, cx: &mut TriggerContext<'_>, _others: &[Vec<i64>]) {
        if !cx.is_complete() {
            cx.register_event_time(cx.window.last_ms());
        }
    }

    fn traits(&self) -> TriggerTraits {
        TriggerTraits::merging(0)
    }
}

/// Fires when the clock has passed the window's end. The default of windows in processing time.
#[derive(Clone, Copy, Debug)]
pub struct ProcessingTime;

impl Trigger for ProcessingTime {
    fn on_element(&self, cx: &mut TriggerContext<'_>) -> Result<TriggerResult> {
        cx.register_processing_time(cx.window.last_ms());
        Ok(TriggerResult::Continue)
    }

    fn on_processing_time(&self, cx: &mut TriggerContext<'_>) -> TriggerResult {
        fire_if(cx.time_ms == cx.window.last_ms())
    }

    fn on_merge(&self, cx: &mut TriggerContext<'_>, _others: &[Vec<i64>]) {
        cx.register_processing_time(cx.window.last_ms());
    }

    fn traits(&self) -> TriggerTraits {
        TriggerTraits::merging(0)
    }
}

/// Never fires; what is left at the end of the input leaves then.
#[derive(Clone, Copy, Debug)]
pub struct Never;

impl Trigger for Never {
    fn on_element(&self, _cx: &mut TriggerContext<'_>) -> Result<TriggerResult> {
        Ok(TriggerResult::Continue)
    }

    fn traits(&self) -> TriggerTraits {
        TriggerTraits::merging(0)
    }
}

/// Fires with every so many rows.
#[derive(Clone, Copy, Debug)]
pub struct Count(pub u64);

impl Trigger for Count {
    fn on_element(&self, cx: &mut TriggerContext<'_>) -> Result<TriggerResult> {
        Ok(fire_if(counted(&mut cx.state[0], self.0)))
    }

    fn on_merge(&self, cx: &mut TriggerContext<'_>, others: &[Vec<i64>]) {
        cx.state[0] += others.iter().map(|other| other[0]).sum::<i64>();
    }

    fn traits(&self) -> TriggerTraits {
        TriggerTraits::merging(1)
    }
}

/// Forgets the rows with each firing of another trigger.
#[derive(Clone, Debug)]
pub struct Purging(pub Arc<dyn Trigger>);

impl Purging {
    fn purge(result: TriggerResult) -> TriggerResult {
        match result {
            TriggerResult::Fire => TriggerResult::FireAndPurge,
            other => other,
        }
    }
}

impl Trigger for Purging {
    fn on_element(&self, cx: &mut TriggerContext<'_>) -> Result<TriggerResult> {
        self.0.on_element(cx).map(Self::purge)
    }

    fn before_element(&self, cx: &mut TriggerContext<'_>) -> Result<TriggerResult> {
        self.0.before_element(cx).map(Self::purge)
    }

    fn on_event_time(&self, cx: &mut TriggerContext<'_>) -> TriggerResult {
        Self::purge(self.0.on_event_time(cx))
    }

    fn on_processing_time(&self, cx: &mut TriggerContext<'_>) -> TriggerResult {
        Self::purge(self.0.on_processing_time(cx))
    }

    fn on_merge(&self, cx: &mut TriggerContext<'_>, others: &[Vec<i64>]) {
        self.0.on_merge(cx, others);
    }

    fn traits(&self) -> TriggerTraits {
        self.0.traits()
    }
}

pub(super) fn fire_if(condition: bool) -> TriggerResult {
    if condition {
        TriggerResult::Fire
    } else {
        TriggerResult::Continue
    }
}

/// Counts one more; whether that makes `limit`, from which it begins anew.
pub(super) fn counted(count: &mut i64, limit: u64) -> bool {
    *count += 1;
    let full = u64::try_from(*count).is_ok_and(|count| count >= limit);
    if full {
        *count = 0;
    }
    full
}
