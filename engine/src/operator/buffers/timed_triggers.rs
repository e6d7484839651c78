//! Triggers that go by the passing of time within a window: continuous, early and late, count with a timeout, landmark.

use super::trigger::{Trigger, TriggerContext, TriggerResult, TriggerTraits, counted, fire_if};
use crate::data::Result;

/// The next multiple of `interval` after `time`.
fn next_multiple(time: i64, interval: i64) -> i64 {
    time.saturating_sub(time.rem_euclid(interval)).saturating_add(interval)
}

/// Fires at every multiple of the interval in event time that follows a row, and at the window's end. A firing that
/// would say nothing new is left out.
#[derive(Clone, Copy, Debug)]
pub struct ContinuousEventTime {
    /// The interval, above 0.
    pub interval_ms: i64,
}

// What is remembered: whether a time is asked for, and which.
impl Trigger for ContinuousEventTime {
    fn on_element(&self, cx: &mut TriggerContext<'_>) -> Result<TriggerResult> {
        if cx.is_complete() {
            return Ok(TriggerResult::Fire);
        }
        cx.register_event_time(cx.window.last_ms());
        let next = next_multiple(cx.time_ms, self.interval_ms).min(cx.window.last_ms());
        if cx.state[0] == 0 || next < cx.state[1] {
            cx.state[0] = 1;
            cx.state[1] = next;
            cx.register_event_time(next);
        }
        Ok(TriggerResult::Continue)
    }

    fn on_event_time(&self, cx: &mut TriggerContext<'_>) -> TriggerResult {
        let asked = cx.state[0] == 1 && cx.state[1] == cx.time_ms;
        if asked {
            cx.state.fill(0);
        }
        fire_if(asked || cx.time_ms == cx.window.last_ms())
    }

    fn on_merge(&self, cx: &mut TriggerContext<'_>, others: &[Vec<i64>]) {
        merge_times(cx.state, others);
        if !cx.is_complete() {
            cx.register_event_time(cx.window.last_ms());
        }
        if cx.state[0] == 1 {
            cx.register_event_time(cx.state[1]);
        }
    }

    fn traits(&self) -> TriggerTraits {
        TriggerTraits::merging(2)
    }
}

/// Keeps the earliest of the times that windows which have merged asked for.
fn merge_times(state: &mut [i64], others: &[Vec<i64>]) {
    for other in others.iter().filter(|other| other[0] == 1) {
        if state[0] == 0 || other[1] < state[1] {
            state[..2].copy_from_slice(&other[..2]);
        }
    }
}

/// Fires at every multiple of the interval in processing time that follows a row, and at the window's end when that is
/// in processing time.
#[derive(Clone, Copy, Debug)]
pub struct ContinuousProcessingTime {
    /// The interval, above 0.
    pub interval_ms: i64,
}

impl Trigger for ContinuousProcessingTime {
    fn on_element(&self, cx: &mut TriggerContext<'_>) -> Result<TriggerResult> {
        if let Some(end) = cx.processing_end() {
            cx.register_processing_time(end);
        }
        if cx.state[0] == 0 {
            cx.state[0] = 1;
            cx.state[1] = next_multiple(cx.now_ms, self.interval_ms);
            cx.register_processing_time(cx.state[1]);
        }
        Ok(TriggerResult::Continue)
    }

    fn on_processing_time(&self, cx: &mut TriggerContext<'_>) -> TriggerResult {
        let asked = cx.state[0] == 1 && cx.state[1] == cx.time_ms;
        if asked {
            cx.state.fill(0);
        }
        fire_if(asked || cx.processing_end() == Some(cx.time_ms))
    }

    fn on_merge(&self, cx: &mut TriggerContext<'_>, others: &[Vec<i64>]) {
        merge_times(cx.state, others);
        if let Some(end) = cx.processing_end() {
            cx.register_processing_time(end);
        }
        if cx.state[0] == 1 {
            cx.register_processing_time(cx.state[1]);
        }
    }

    fn traits(&self) -> TriggerTraits {
        TriggerTraits::merging(2)
    }
}

/// Fires early while the window is not complete, once when it is, and late for rows that come after that.
#[derive(Clone, Copy, Debug)]
pub struct EarlyLate {
    /// So long after the first row that no firing has taken in, in processing time; no early firings when `None`.
    pub early_ms: Option<i64>,
    /// With every so many late rows, and for the rest when the window is forgotten. 1 is each row.
    pub late_count: u64,
}

// What is remembered: whether an early firing is asked for, when, and the late rows.
impl Trigger for EarlyLate {
    fn on_element(&self, cx: &mut TriggerContext<'_>) -> Result<TriggerResult> {
        if cx.is_complete() {
            let fires = counted(&mut cx.state[2], self.late_count);
            if cx.state[2] == 1 {
                cx.register_event_time(cx.cleanup_ms);
            }
            return Ok(fire_if(fires));
        }
        cx.register_event_time(cx.window.last_ms());
        if let Some(early_ms) = self.early_ms
            && cx.state[0] == 0
        {
            cx.state[0] = 1;
            cx.state[1] = cx.now_ms.saturating_add(early_ms);
            cx.register_processing_time(cx.state[1]);
        }
        Ok(TriggerResult::Continue)
    }

    fn on_event_time(&self, cx: &mut TriggerContext<'_>) -> TriggerResult {
        if cx.time_ms == cx.window.last_ms() {
            cx.state[..2].fill(0);
            return TriggerResult::Fire;
        }
        let left = cx.time_ms == cx.cleanup_ms && cx.state[2] > 0;
        if left {
            cx.state[2] = 0;
        }
        fire_if(left)
    }

    fn on_processing_time(&self, cx: &mut TriggerContext<'_>) -> TriggerResult {
        let asked = cx.state[0] == 1 && cx.state[1] == cx.time_ms;
        if asked {
            cx.state[..2].fill(0);
        }
        fire_if(asked)
    }

    fn on_merge(&self, cx: &mut TriggerContext<'_>, others: &[Vec<i64>]) {
        merge_times(cx.state, others);
        cx.state[2] += others.iter().map(|other| other[2]).sum::<i64>();
        if cx.state[2] > 0 {
            cx.register_event_time(cx.cleanup_ms);
        }
        if !cx.is_complete() {
            cx.register_event_time(cx.window.last_ms());
        }
        if cx.state[0] == 1 {
            cx.register_processing_time(cx.state[1]);
        }
    }

    fn traits(&self) -> TriggerTraits {
        TriggerTraits::merging(3)
    }
}

/// Fires and forgets with every so many rows, or when the first of them is so old in processing time.
#[derive(Clone, Copy, Debug)]
pub struct CountOrTimeout {
    /// How many rows.
    pub count: u64,
    /// How old.
    pub timeout_ms: i64,
}

// What is remembered: the rows, and until when they wait.
impl Trigger for CountOrTimeout {
    fn on_element(&self, cx: &mut TriggerContext<'_>) -> Result<TriggerResult> {
        if counted(&mut cx.state[0], self.count) {
            cx.state.fill(0);
            return Ok(TriggerResult::FireAndPurge);
        }
        if cx.state[0] == 1 {
            cx.state[1] = cx.now_ms.saturating_add(self.timeout_ms);
            cx.register_processing_time(cx.state[1]);
        }
        Ok(TriggerResult::Continue)
    }

    fn on_processing_time(&self, cx: &mut TriggerContext<'_>) -> TriggerResult {
        if cx.state[0] == 0 || cx.state[1] != cx.time_ms {
            return TriggerResult::Continue;
        }
        cx.state.fill(0);
        TriggerResult::FireAndPurge
    }

    fn traits(&self) -> TriggerTraits {
        TriggerTraits {
            words: 2,
            ..TriggerTraits::default()
        }
    }
}

/// Of a window with a start and no end: fires at every multiple of the step after the start that follows a row, with the
/// rows before that moment. A row that comes when its moment has passed joins the next firing of the last moment passed.
#[derive(Clone, Copy, Debug)]
pub struct LandmarkSteps {
    /// The step, above 0.
    pub step_ms: i64,
}

impl LandmarkSteps {
    fn boundary_after(&self, start: i64, time: i64) -> i64 {
        let passed = time.saturating_sub(start).div_euclid(self.step_ms);
        start.saturating_add(passed.saturating_add(1).saturating_mul(self.step_ms))
    }
}

impl Trigger for LandmarkSteps {
    fn on_element(&self, cx: &mut TriggerContext<'_>) -> Result<TriggerResult> {
        let start = cx.window.start_ms;
        let mut boundary = self.boundary_after(start, cx.time_ms);
        if boundary.saturating_sub(1) <= cx.watermark_ms {
            // The last boundary that event time has passed.
            boundary = self.boundary_after(start, cx.watermark_ms.saturating_add(1).saturating_sub(self.step_ms));
        }
        cx.register_event_time(boundary.saturating_sub(1));
        Ok(TriggerResult::Continue)
    }

    fn on_event_time(&self, cx: &mut TriggerContext<'_>) -> TriggerResult {
        cx.fire_until(cx.time_ms.saturating_add(1));
        TriggerResult::Fire
    }
}
