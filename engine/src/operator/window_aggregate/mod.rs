//! WindowAggregate: groups and aggregates the rows of each window; its results leave when it is complete.
//!
//! Time is cut into *slices* such that every window is a run of them ([`slicing`]). A batch is cut by slices ([`cut`]),
//! mostly without a copy, and each slice groups its rows in a table of its own ([`table`]): state goes as a whole with
//! its slice, never key by key. Tumbling windows are slices. Others are merged from slices ([`shared`]). Sessions differ
//! by key and have state of their own kind ([`session`]).

mod changes;
mod cut;
mod event_time;
mod frozen;
mod intake;
mod output;
mod part;
mod partial;
mod running;
mod session;
mod shared;
mod slicing;
mod table;
#[cfg(test)]
mod tests;
mod tree;
mod updates;
mod windows;

use crate::data::{Batch, Result, Watermark};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::{AggregateMode, WindowAggregateSpec, WindowKind, WindowSource};
use crate::state::{Restored, Snapshot};
use crate::time::Timer;
use partial::Partial;
use session::Sessions;
use windows::Windows;

/// Groups and aggregates per window.
pub(super) struct WindowAggregate {
    kind: Kind,
}

enum Kind {
    Partial(Box<Partial>),
    Windows(Box<Windows>),
    Sessions(Box<Sessions>),
}

impl WindowAggregate {
    /// An aggregation of this spec.
    ///
    /// # Errors
    /// When the spec contradicts itself, a key's type cannot be grouped by, or a function refuses its arguments.
    pub(super) fn new(spec: WindowAggregateSpec) -> Result<Self> {
        let session = match spec.window {
            WindowSource::Assign {
                window: WindowKind::Session { gap_ms },
                ..
            } => Some(gap_ms),
            _ => None,
        };
        let kind = match (session, spec.mode) {
            (Some(gap_ms), _) => Kind::Sessions(Box::new(Sessions::new(spec, gap_ms)?)),
            (None, AggregateMode::Partial) => Kind::Partial(Box::new(Partial::new(spec)?)),
            (None, _) => Kind::Windows(Box::new(Windows::new(spec)?)),
        };
        Ok(Self { kind })
    }

    /// Bytes held.
    #[cfg(test)]
    fn held(&self) -> usize {
        match &self.kind {
            Kind::Partial(partial) => partial.held(),
            Kind::Windows(windows) => windows.held(),
            Kind::Sessions(sessions) => sessions.held(),
        }
    }
}

impl Operator for WindowAggregate {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        match &mut self.kind {
            Kind::Partial(partial) => partial.on_batch(&batch, cx, out),
            Kind::Windows(windows) => windows.on_batch(&batch, cx, out),
            Kind::Sessions(sessions) => sessions.on_batch(&batch, cx),
        }
    }

    fn on_watermark(&mut self, watermark: Watermark, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        match &mut self.kind {
            Kind::Partial(partial) => partial.on_watermark(watermark, cx, out),
            Kind::Windows(windows) => windows.on_watermark(watermark, cx, out),
            Kind::Sessions(sessions) => sessions.on_watermark(watermark, cx, out),
        }
    }

    fn on_timer(&mut self, _timer: Timer, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let now = cx.clock.now_ms();
        match &mut self.kind {
            Kind::Partial(_) => Ok(()),
            Kind::Windows(windows) => windows.on_timer(now, cx, out),
            Kind::Sessions(sessions) => sessions.on_timer(now, cx, out),
        }
    }

    fn next_timer(&self) -> Option<i64> {
        match &self.kind {
            Kind::Partial(_) => None,
            Kind::Windows(windows) => windows.next_timer(),
            Kind::Sessions(sessions) => sessions.next_timer(),
        }
    }

    fn on_end(&mut self, _port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        match &mut self.kind {
            Kind::Partial(partial) => partial.on_end(cx, out),
            Kind::Windows(windows) => windows.on_end(cx, out),
            Kind::Sessions(sessions) => sessions.on_end(cx, out),
        }
    }

    fn snapshot(&mut self, state: &mut Snapshot, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        match &mut self.kind {
            Kind::Partial(partial) => partial.snapshot(cx, out),
            Kind::Windows(windows) => windows.snapshot(state, cx, out),
            Kind::Sessions(sessions) => sessions.snapshot(state, cx, out),
        }
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        match &mut self.kind {
            Kind::Partial(_) => Ok(()),
            Kind::Windows(windows) => windows.restore(state, cx),
            Kind::Sessions(sessions) => sessions.restore(state, cx),
        }
    }
}
