//! One subtask: the visible loop that takes an element and hands it to the chain.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use datafusion::error::DataFusionError;

use crate::data::{Element, EngineError, LatencyMarker, Result, Watermark, batch_bytes};
use crate::exchange::{GateEvent, InputGate};
use crate::operator::{Collector, Context, Source, SourceEvent};
use crate::runtime::chain::Chain;
use crate::runtime::environment::ScanDiagnosis;

/// Where a subtask's elements come from.
pub(super) enum Head {
    /// Splits; the context is the scan's own.
    Source(Box<SourceHead>),
    /// Channels.
    Gate(InputGate),
}

/// A source with its context.
pub(super) struct SourceHead {
    pub(super) scan: Source,
    pub(super) context: Context,
    pub(super) diagnosis: Option<Arc<dyn ScanDiagnosis>>,
    /// The source's vertex.
    pub(super) vertex: usize,
    /// How often a latency marker is sent.
    pub(super) latency_interval: Option<Duration>,
    pub(super) last_marker: Option<Duration>,
}

/// One parallel instance of a vertex.
pub(super) struct Subtask {
    pub(super) head: Head,
    pub(super) chain: Chain,
}

impl Subtask {
    /// Runs until the input ends, nobody wants more, or the job ends.
    pub(super) fn run(mut self) -> Result<()> {
        match self.head {
            Head::Source(ref mut source) => run_source(source, &mut self.chain)?,
            Head::Gate(ref mut gate) => run_gate(gate, &mut self.chain)?,
        }
        self.chain.outputs.control(&Element::EndOfInput)
    }
}

fn run_source(source: &mut SourceHead, chain: &mut Chain) -> Result<()> {
    while !chain.outputs.is_done() && !chain.is_satisfied() {
        match source.next(chain)? {
            SourceEvent::Batch(batch) => chain.batch(0, batch)?,
            SourceEvent::Watermark(watermark) => chain.watermark(watermark)?,
            SourceEvent::Idle(idle) => chain.idle(idle)?,
            SourceEvent::Pending => {}
            SourceEvent::End => break,
        }
        source.mark_latency(chain)?;
        chain.timers_due()?;
        chain.outputs.flush_due()?;
    }
    if chain.outputs.is_done() {
        // Nobody will see what the operators still hold.
        return Ok(());
    }
    chain.watermark(Watermark::MAX)?;
    chain.end_from(0)
}

impl SourceHead {
    fn next(&mut self, chain: &Chain) -> Result<SourceEvent> {
        let start = self.context.clock.monotonic();
        let event = self.scan.next(&mut self.context, chain.patience());
        let elapsed = self.context.clock.monotonic().saturating_sub(start);
        let metrics = &self.context.metrics;
        metrics
            .busy_ns
            .fetch_add(u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        if let Ok(SourceEvent::Batch(batch)) = &event {
            metrics.rows_out.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
            metrics.batches_out.fetch_add(1, Ordering::Relaxed);
            // Nobody looks at how far an endless source has come.
            if matches!(self.scan, Source::Batch(_)) {
                metrics
                    .bytes_out
                    .fetch_add(batch_bytes(batch) as u64, Ordering::Relaxed);
            }
        }
        event.map_err(|error| self.explain(error).in_operator(&self.context.operator))
    }

    /// Sends a latency marker when one is due.
    fn mark_latency(&mut self, chain: &mut Chain) -> Result<()> {
        let Some(interval) = self.latency_interval else {
            return Ok(());
        };
        let now = self.context.clock.monotonic();
        if self.last_marker.is_some_and(|last| now < last + interval) {
            return Ok(());
        }
        self.last_marker = Some(now);
        chain.latency(LatencyMarker {
            vertex: self.vertex,
            sent_ns: u64::try_from(now.as_nanos()).unwrap_or(u64::MAX),
        })
    }

    fn explain(&self, error: EngineError) -> EngineError {
        let explain = |cause: &DataFusionError| {
            self.diagnosis
                .as_ref()?
                .explain(self.scan.plan(), &self.context.task, cause)
        };
        match error {
            EngineError::DataFusion(cause) => match explain(&cause) {
                Some(message) => EngineError::BadInput(message),
                None => EngineError::DataFusion(cause),
            },
            other => other,
        }
    }
}

fn run_gate(gate: &mut InputGate, chain: &mut Chain) -> Result<()> {
    let ports = gate.ports();
    let mut ended = vec![false; ports];
    while ended.contains(&false) {
        if chain.outputs.is_done() {
            // Nobody will see what the operators still hold.
            gate.close();
            return Ok(());
        }
        if chain.is_satisfied() {
            break;
        }
        match gate.next(chain.reads_next(), chain.patience())? {
            GateEvent::Batch(port, batch) => chain.batch(port, batch)?,
            GateEvent::Watermark(watermark) => chain.watermark(watermark)?,
            GateEvent::Latency(marker) => chain.latency(marker)?,
            GateEvent::Idle(idle) => chain.idle(idle)?,
            GateEvent::Barrier(barrier) => chain.outputs.control(&Element::Barrier(barrier))?,
            GateEvent::End(port) => {
                ended[port] = true;
                chain.end_port(port)?;
            }
            GateEvent::Pending => {}
        }
        chain.timers_due()?;
        chain.outputs.flush_due()?;
    }
    gate.close();
    for port in (0..ports).filter(|port| !ended[*port]) {
        chain.end_port(port)?;
    }
    chain.end_from(1)
}
