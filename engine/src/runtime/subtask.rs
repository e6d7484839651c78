//! One subtask: the visible loop that takes an element and hands it to the chain.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use datafusion::error::DataFusionError;

use crate::checkpoint::fault;
use crate::data::{Alignment, Barrier, Element, EngineError, LatencyMarker, Result, Watermark, batch_bytes};
use crate::exchange::{GateEvent, InputGate};
use crate::operator::{Collector, Context, Source, SourceEvent};
use crate::runtime::chain::Chain;
use crate::runtime::checkpointing::{FinishedState, Frozen, Reporter};
use crate::runtime::environment::ScanDiagnosis;
use crate::state::{Snapshot, SnapshotRequest};

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
    /// Tells of its part of checkpoints, in a job that takes them.
    pub(super) reporter: Option<Reporter>,
    /// It had finished at the checkpoint that the job goes on from: it has nothing to say.
    pub(super) had_finished: bool,
}

impl Subtask {
    /// Runs until the input ends, nobody wants more, or the job ends.
    pub(super) fn run(mut self) -> Result<()> {
        let reporter = self.reporter.as_mut();
        match (&mut self.head, self.had_finished) {
            (Head::Source(source), false) => run_source(source, &mut self.chain, reporter)?,
            (Head::Gate(gate), false) => run_gate(gate, &mut self.chain, reporter)?,
            (Head::Source(_), true) => {}
            (Head::Gate(gate), true) => gate.close(),
        }
        // What is left behind must be known before anybody downstream can be done.
        if let Some(reporter) = &mut self.reporter {
            finish(&mut self.head, &mut self.chain, reporter, self.had_finished)?;
        }
        self.chain.outputs.control(&Element::EndOfInput)
    }
}

/// Tells where the source is and what the sink has prepared; the other operators have said all they have to say.
fn finish(head: &mut Head, chain: &mut Chain, reporter: &mut Reporter, had_finished: bool) -> Result<()> {
    let request = SnapshotRequest {
        checkpoint: reporter.last + 1,
        since: None,
    };
    let mut tables = Vec::new();
    if let (Head::Source(source), Some(Some(id))) = (head, reporter.operators.first()) {
        let mut snapshot = Snapshot::new(request);
        source.scan.snapshot(&mut snapshot, &source.context)?;
        for table in snapshot.into_tables() {
            let rows = table.rows.collect::<Result<Vec<_>>>()?;
            tables.push((id.clone(), table.spec, rows));
        }
    }
    let mut frozen = Frozen::default();
    if !had_finished {
        chain.freeze(request, &reporter.operators, &mut frozen)?;
    }
    reporter.finish(FinishedState {
        after: reporter.last,
        tables,
        committables: frozen.committables,
    });
    Ok(())
}

fn run_source(source: &mut SourceHead, chain: &mut Chain, mut reporter: Option<&mut Reporter>) -> Result<()> {
    while !chain.outputs.is_done() && !chain.is_satisfied() {
        if let Some(reporter) = reporter.as_deref_mut()
            && source.attend(chain, reporter)?
        {
            break;
        }
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
    /// Does what the coordinator asks for; whether the source is to end.
    fn attend(&mut self, chain: &mut Chain, reporter: &mut Reporter) -> Result<bool> {
        let Some(control) = reporter.source.clone() else {
            return Ok(false);
        };
        for checkpoint in control.completed() {
            self.scan.checkpoint_complete(checkpoint);
        }
        while let Some(barrier) = control.barrier() {
            fault::point("before-barrier")?;
            let mut frozen = Frozen::default();
            if let Some(Some(id)) = reporter.operators.first() {
                let mut snapshot = Snapshot::new(Reporter::request(barrier));
                self.scan.snapshot(&mut snapshot, &self.context)?;
                frozen.add(id, snapshot);
            }
            fault::point("before-snapshot")?;
            chain.freeze(Reporter::request(barrier), &reporter.operators, &mut frozen)?;
            fault::point("after-snapshot")?;
            match barrier.alignment {
                Alignment::Unaligned => chain.outputs.overtake(barrier)?,
                _ => chain.outputs.control(&Element::Barrier(barrier))?,
            }
            reporter.acknowledge(barrier, frozen);
            fault::point("after-barrier")?;
            if barrier.stops {
                // The job ends with this savepoint, by being cancelled.
                let cancel = self.context.cancel.clone();
                self.context.io.block_on(cancel.cancelled());
                return Err(EngineError::Cancelled);
            }
        }
        Ok(control.is_to_end())
    }

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

fn run_gate(gate: &mut InputGate, chain: &mut Chain, mut reporter: Option<&mut Reporter>) -> Result<()> {
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
            GateEvent::Barrier(barrier) => {
                fault::point("after-alignment")?;
                let frozen = freeze(chain, reporter.as_deref_mut(), barrier)?;
                chain.outputs.control(&Element::Barrier(barrier))?;
                if let Some(reporter) = reporter.as_deref_mut() {
                    reporter.acknowledge(barrier, frozen);
                }
            }
            GateEvent::Overtaking(barrier) => {
                fault::point("after-alignment")?;
                let frozen = freeze(chain, reporter.as_deref_mut(), barrier)?;
                chain.outputs.overtake(barrier)?;
                if let Some(reporter) = reporter.as_deref_mut() {
                    reporter.last = reporter.last.max(barrier.id);
                    reporter.overtaking = Some((barrier, frozen));
                }
            }
            GateEvent::InFlight(barrier, rows) => {
                if let Some(reporter) = reporter.as_deref_mut() {
                    reporter.in_flight(barrier, rows)?;
                }
            }
            GateEvent::End(port) => {
                ended[port] = true;
                chain.end_port(port)?;
            }
            GateEvent::Pending => {}
        }
        chain.timers_due()?;
        chain.outputs.flush_due()?;
    }
    if let Some(reporter) = reporter
        && reporter.overtaking.is_some()
    {
        // The barrier has been passed, the rows that it overtook must not be missing.
        match gate.take_in_flight() {
            Some((barrier, rows)) => reporter.in_flight(barrier, rows)?,
            None => reporter.give_up(),
        }
    }
    gate.close();
    for port in (0..ports).filter(|port| !ended[*port]) {
        chain.end_port(port)?;
    }
    chain.end_from(1)
}

/// Lets the operators of a chain hand over what they keep.
fn freeze(chain: &mut Chain, reporter: Option<&mut Reporter>, barrier: Barrier) -> Result<Frozen> {
    let mut frozen = Frozen::default();
    if let Some(reporter) = reporter {
        fault::point("before-snapshot")?;
        chain.freeze(Reporter::request(barrier), &reporter.operators, &mut frozen)?;
        fault::point("after-snapshot")?;
    }
    Ok(frozen)
}
