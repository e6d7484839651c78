//! A chain of operators in one subtask: each is the collector of the one before it, the output gates end it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::data::{Barrier, Batch, Element, LatencyMarker, Result, Watermark};
use crate::exchange::{OutputGate, Port, ReadNext};
use crate::operator::{Collector, Context, Operator};
use crate::runtime::checkpointing::Frozen;
use crate::runtime::latency::LatencyHistograms;
use crate::state::{Restored, Snapshot, SnapshotRequest};
use crate::time::Timer;

/// One operator with what the runtime lends it.
pub(super) struct Link {
    pub(super) operator: Box<dyn Operator>,
    pub(super) context: Context,
}

/// The output gates of a subtask: each gets everything.
pub(super) struct Outputs {
    pub(super) gates: Vec<OutputGate>,
    /// The gates of the side outputs, each with its tag.
    pub(super) sides: Vec<(usize, OutputGate)>,
}

impl Outputs {
    /// How long from now until held rows must leave.
    pub(super) fn time_to_flush(&self) -> Option<Duration> {
        self.all().filter_map(OutputGate::time_to_flush).min()
    }

    fn all(&self) -> impl Iterator<Item = &OutputGate> {
        self.gates.iter().chain(self.sides.iter().map(|(_, gate)| gate))
    }

    fn all_mut(&mut self) -> impl Iterator<Item = &mut OutputGate> {
        self.gates.iter_mut().chain(self.sides.iter_mut().map(|(_, gate)| gate))
    }

    pub(super) fn flush_due(&mut self) -> Result<()> {
        self.all_mut().try_for_each(OutputGate::flush_due)
    }

    fn latency(&mut self, marker: LatencyMarker) -> Result<()> {
        self.all_mut().try_for_each(|gate| gate.latency(marker))
    }

    pub(super) fn control(&mut self, event: &Element) -> Result<()> {
        self.all_mut().try_for_each(|gate| gate.control(event))
    }

    /// Sends a barrier past the rows that wait in the channels.
    pub(super) fn overtake(&mut self, barrier: Barrier) -> Result<()> {
        self.all_mut().try_for_each(|gate| gate.overtake(barrier))
    }
}

impl Collector for Outputs {
    fn collect(&mut self, batch: Batch) -> Result<()> {
        match self.gates.as_mut_slice() {
            [gate] => gate.collect(batch),
            gates => gates.iter_mut().try_for_each(|gate| gate.collect(batch.clone())),
        }
    }

    fn watermark(&mut self, watermark: Watermark) -> Result<()> {
        self.all_mut().try_for_each(|gate| gate.watermark(watermark))
    }

    fn collect_side(&mut self, tag: usize, batch: Batch) -> Result<()> {
        self.sides
            .iter_mut()
            .filter(|(side, _)| *side == tag)
            .try_for_each(|(_, gate)| gate.collect(batch.clone()))
    }

    fn is_done(&self) -> bool {
        self.all().next().is_some() && self.all().all(OutputGate::is_done)
    }
}

/// The operators of a subtask and where their output goes.
pub(super) struct Chain {
    links: Vec<Link>,
    /// The place of the first of them in the vertex: a source comes before. What collects a result comes after, and is none.
    first: usize,
    pub(super) outputs: Outputs,
    /// Which operator is being called, for the message of a panic.
    active: Arc<AtomicUsize>,
    /// The vertex, when it ends in a sink: latency markers end here.
    sink: Option<usize>,
    latencies: Arc<LatencyHistograms>,
}

impl Chain {
    pub(super) fn new(
        (first, links): (usize, Vec<Link>),
        outputs: Outputs,
        active: Arc<AtomicUsize>,
        sink: Option<usize>,
        latencies: Arc<LatencyHistograms>,
    ) -> Self {
        Self {
            links,
            first,
            outputs,
            active,
            sink,
            latencies,
        }
    }

    /// Hands rows to the first operator.
    pub(super) fn batch(&mut self, port: Port, batch: Batch) -> Result<()> {
        self.rest(0).deliver(port, batch)
    }

    /// Hands the progress of event time to the first operator.
    pub(super) fn watermark(&mut self, watermark: Watermark) -> Result<()> {
        self.rest(0).watermark(watermark)
    }

    /// Hands a latency marker to the outputs; a chain without any is where the way ends.
    pub(super) fn latency(&mut self, marker: LatencyMarker) -> Result<()> {
        if let (Some(sink), Some(link)) = (self.sink, self.links.last()) {
            let now = u64::try_from(link.context.clock.monotonic().as_nanos()).unwrap_or(u64::MAX);
            self.latencies.record(marker, sink, now.saturating_sub(marker.sent_ns));
            return Ok(());
        }
        self.outputs.latency(marker)
    }

    /// Tells the consumers that nothing is to come for a while, or that it goes on.
    pub(super) fn idle(&mut self, idle: bool) -> Result<()> {
        self.outputs
            .control(if idle { &Element::Idle } else { &Element::Active })
    }

    /// How long the chain can wait for input: until rows must leave or a timer comes due. `None`: for ever.
    pub(super) fn patience(&self) -> Option<Duration> {
        let flush = self.outputs.time_to_flush();
        let timers = self.links.iter().filter_map(|link| {
            let due = link.operator.next_timer()?;
            let wait = due.saturating_sub(link.context.clock.now_ms());
            Some(Duration::from_millis(u64::try_from(wait).unwrap_or(0)))
        });
        timers.chain(flush).min()
    }

    /// Calls the operators whose timers have come due.
    pub(super) fn timers_due(&mut self) -> Result<()> {
        for index in 0..self.links.len() {
            let link = &self.links[index];
            let Some(due) = link.operator.next_timer() else {
                continue;
            };
            if due <= link.context.clock.now_ms() {
                let mut rest = self.rest(index);
                rest.call(|operator, context, out| operator.on_timer(Timer::Processing(due), context, out))?;
            }
        }
        Ok(())
    }

    /// Lets the operators hand over what they keep, each with its id in `ids`, which are those of the chain's last places.
    pub(super) fn freeze(
        &mut self,
        request: SnapshotRequest,
        ids: &[Option<String>],
        frozen: &mut Frozen,
    ) -> Result<()> {
        for index in 0..self.links.len() {
            let mut snapshot = Snapshot::new(request);
            let mut rest = self.rest(index);
            rest.call(|operator, context, out| operator.snapshot(&mut snapshot, context, out))?;
            if let Some(id) = ids.get(self.first + index).and_then(Option::as_ref) {
                frozen.add(id, snapshot);
            }
        }
        Ok(())
    }

    /// Hands the operators back what they kept.
    pub(super) fn restore(&mut self, states: &mut [Option<Restored>]) -> Result<()> {
        for (link, state) in self.links.iter_mut().zip(states.iter_mut().skip(self.first)) {
            let Some(state) = state else { continue };
            let restored = link.operator.restore(state, &mut link.context);
            restored.map_err(|error| error.in_operator(&link.context.operator))?;
        }
        Ok(())
    }

    /// Ends one input of the first operator.
    pub(super) fn end_port(&mut self, port: Port) -> Result<()> {
        self.end_of(0, port)
    }

    /// Ends the operators from `first` on, one by one; all inputs of those before have ended.
    pub(super) fn end_from(&mut self, first: usize) -> Result<()> {
        (first..self.links.len()).try_for_each(|index| self.end_of(index, 0))
    }

    /// Which input the first operator wants.
    pub(super) fn reads_next(&self) -> ReadNext {
        self.links
            .first()
            .map_or(ReadNext::Any, |link| link.operator.reads_next())
    }

    /// Whether an operator wants no more input.
    pub(super) fn is_satisfied(&self) -> bool {
        self.links.iter().any(|link| link.operator.is_done())
    }

    fn end_of(&mut self, index: usize, port: Port) -> Result<()> {
        let mut rest = self.rest(index);
        rest.call(|operator, context, out| operator.on_end(port, context, out))
    }

    fn rest(&mut self, index: usize) -> Rest<'_> {
        Rest {
            links: &mut self.links[index..],
            outputs: &mut self.outputs,
            index,
            active: &self.active,
        }
    }
}

/// The chain from one operator on.
struct Rest<'a> {
    links: &'a mut [Link],
    outputs: &'a mut Outputs,
    index: usize,
    active: &'a AtomicUsize,
}

impl Rest<'_> {
    fn deliver(&mut self, port: Port, batch: Batch) -> Result<()> {
        if self.links.is_empty() {
            return self.outputs.collect(batch);
        }
        self.call(|operator, context, out| {
            context
                .metrics
                .rows_in
                .fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
            operator.on_batch(port, batch, context, out)
        })
    }

    /// Calls the first operator of the rest with the others as its collector.
    fn call(
        &mut self,
        action: impl FnOnce(&mut dyn Operator, &mut Context, &mut dyn Collector) -> Result<()>,
    ) -> Result<()> {
        let Some((link, rest)) = self.links.split_first_mut() else {
            return Ok(());
        };
        let clock = Arc::clone(&link.context.clock);
        let metrics = Arc::clone(&link.context.metrics);
        let caller = self.active.swap(self.index, Ordering::Relaxed);
        let mut out = Counting {
            rest: Rest {
                links: rest,
                outputs: self.outputs,
                index: self.index + 1,
                active: self.active,
            },
            rows: 0,
            batches: 0,
        };
        let start = clock.monotonic();
        let result = action(link.operator.as_mut(), &mut link.context, &mut out);
        let elapsed = clock.monotonic().saturating_sub(start);
        metrics
            .busy_ns
            .fetch_add(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        metrics.rows_out.fetch_add(out.rows, Ordering::Relaxed);
        metrics.batches_out.fetch_add(out.batches, Ordering::Relaxed);
        self.active.store(caller, Ordering::Relaxed);
        result.map_err(|error| error.in_operator(&link.context.operator))
    }

    fn watermark(&mut self, watermark: Watermark) -> Result<()> {
        if self.links.is_empty() {
            return self.outputs.watermark(watermark);
        }
        self.call(|operator, context, out| operator.on_watermark(watermark, context, out))
    }
}

/// Counts what an operator hands on.
struct Counting<'a> {
    rest: Rest<'a>,
    rows: u64,
    batches: u64,
}

impl Collector for Counting<'_> {
    fn collect(&mut self, batch: Batch) -> Result<()> {
        self.rows += batch.num_rows() as u64;
        self.batches += 1;
        self.rest.deliver(0, batch)
    }

    fn watermark(&mut self, watermark: Watermark) -> Result<()> {
        self.rest.watermark(watermark)
    }

    fn collect_side(&mut self, tag: usize, batch: Batch) -> Result<()> {
        self.rest.outputs.collect_side(tag, batch)
    }

    fn is_done(&self) -> bool {
        self.rest.links.iter().any(|link| link.operator.is_done()) || self.rest.outputs.is_done()
    }
}
