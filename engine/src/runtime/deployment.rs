//! From the execution graph to subtasks that can run: gates, chains, sources, sinks.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use thalweg_memory::SpillDirectory;

use crate::data::{EngineError, Result};
use crate::exchange::{
    BlockingWriter, BufferTimeout, ChannelId, ChannelSender, ChannelSource, Inlet, InputGate, Materialized, OutputGate,
    Partitioner, Transport,
};
use crate::operator::{
    Context, CustomFactory, LoggedSource, Operator, OperatorMetrics, SharedRuns, Sink, SinkJob, SplitSource, Splits,
    build_operator, build_range_sort, build_source,
};
use crate::plan::{Edge, ExchangeMode, MergeMode, OperatorSpec, Partitioning, ScanSpec, Vertex, VertexId};
use crate::runtime::chain::{Chain, Link, Outputs};
use crate::runtime::checkpointing::Checkpointing;
use crate::runtime::execution_graph::Stage;
use crate::runtime::job::{Deployed, JobShared};
use crate::runtime::recovery::CheckpointWiring;
use crate::runtime::subtask::{Head, SourceHead, Subtask};

/// No channel gets fewer credits than this, however many share an input.
const MIN_CREDIT_BYTES: usize = 256 << 10;

/// The part of the memory budget that the readers of one source may book at most.
const READERS_IN_BUDGET: usize = 4;

/// The channels within one process: the inlets of the gates of the running stage.
#[derive(Default)]
struct LocalTransport {
    inlets: Mutex<HashMap<ChannelId, Inlet>>,
}

impl Transport for LocalTransport {
    fn connect(&self, channel: ChannelId) -> Result<Box<dyn ChannelSender>> {
        let inlet = self.inlets.lock().remove(&channel);
        inlet
            .map(|inlet| Box::new(inlet) as Box<dyn ChannelSender>)
            .ok_or_else(|| EngineError::Internal(format!("{channel:?} has no receiver, or two senders")))
    }
}

/// Makes the subtasks of one stage after another.
pub(super) struct Deployment {
    pub(super) shared: Arc<JobShared>,
    /// The way to the thread that takes the checkpoints.
    pub(super) checkpoints: Option<CheckpointWiring>,
    /// How many stages have finished.
    pub(super) finished_stages: usize,
    /// Whether a subtask has been started.
    pub(super) has_run: bool,
    /// Where the output of finished stages lies, of attempts before this one.
    kept: Vec<Arc<SpillDirectory>>,
    /// The client's end of the result.
    results: Vec<Inlet>,
    /// The output of the blocking edges.
    materialized: HashMap<ChannelId, Arc<Materialized>>,
    /// What the subtasks of a sort by range share, by vertex and place in the chain.
    shared_runs: HashMap<(VertexId, usize), Arc<SharedRuns>>,
}

/// What the subtasks of a source read.
struct ScanInput {
    splits: Arc<Splits>,
    /// What can be positioned, where a connector knows how.
    source: Option<Arc<dyn SplitSource>>,
}

impl JobShared {
    /// How the job takes checkpoints, if it does.
    pub(super) fn checkpointing(&self) -> Option<&Checkpointing> {
        let checkpointing = self.environment.checkpointing.as_ref();
        checkpointing.filter(|_| self.execution.graph.is_streaming())
    }

    /// Lets every sink check its options before anything runs.
    pub(super) fn prepare_sinks(&mut self) -> Result<()> {
        let job = SinkJob {
            job: self.id.clone(),
            io: self.environment.io.clone(),
            runtime: self.environment.task.runtime_env(),
            clock: Arc::clone(&self.environment.clock),
            endless: false,
            checkpointed: self.checkpointing().map(|checkpointing| checkpointing.job.clone()),
        };
        for (id, vertex) in self.execution.graph.vertices.iter().enumerate() {
            for spec in &vertex.chain {
                let OperatorSpec::Sink(spec) = spec else { continue };
                let connector = self.environment.sinks.get(&spec.connector).ok_or_else(|| {
                    let mut known: Vec<_> = self.environment.sinks.keys().map(String::as_str).collect();
                    known.sort_unstable();
                    EngineError::Plan(format!(
                        "there is no sink connector '{}'; this build has: {}",
                        spec.connector,
                        known.join(", ")
                    ))
                })?;
                let job = SinkJob {
                    endless: self.execution.graph.is_endless(id),
                    ..job.clone()
                };
                match connector.prepare(spec, &job) {
                    Ok(sink) => self.sinks.push((id, sink)),
                    Err(error) => {
                        self.sinks.iter().for_each(|(_, sink)| sink.abort());
                        return Err(error);
                    }
                }
            }
        }
        Ok(())
    }
}

impl Deployment {
    /// `results`: the ways to whoever pulls the result, one for each subtask that collects.
    pub(super) fn new(shared: Arc<JobShared>, results: Vec<Inlet>) -> Self {
        Self {
            shared,
            checkpoints: None,
            finished_stages: 0,
            has_run: false,
            kept: Vec::new(),
            results,
            materialized: HashMap::new(),
            shared_runs: HashMap::new(),
        }
    }

    /// What has been made is dropped, it is to be made once more.
    pub(super) fn again(&mut self, results: Vec<Inlet>) {
        self.results = results;
        self.shared_runs.clear();
    }

    /// Makes the subtasks of `stage`.
    ///
    /// # Errors
    /// When an operator cannot be built from its spec.
    pub(super) fn deploy(&mut self, stage: &Stage) -> Result<Vec<Deployed>> {
        let transport = LocalTransport::default();
        let mut gates: HashMap<(VertexId, usize), InputGate> = HashMap::new();
        for vertex in stage.vertices.iter().copied() {
            for subtask in 0..self.shared.execution.graph.vertices[vertex].parallelism {
                if let Some(gate) = self.input_gate(vertex, subtask, &transport)? {
                    gates.insert((vertex, subtask), gate);
                }
            }
        }
        let mut deployed = Vec::new();
        for id in stage.vertices.iter().copied() {
            let mut vertex = self.shared.execution.graph.vertices[id].clone();
            if let Some(OperatorSpec::Scan(scan)) = vertex.chain.first_mut() {
                let task = &self.shared.environment.task;
                *scan = self.shared.filters.bound(scan.clone(), task)?;
            }
            let input = self.scan_input(id, &vertex)?;
            for subtask in 0..vertex.parallelism {
                let gate = gates.remove(&(id, subtask));
                deployed.push(self.subtask(id, &vertex, subtask, gate, input.as_ref(), &transport)?);
            }
        }
        Ok(deployed)
    }

    /// Whether the attempt can go on after the stages that have finished: they wrote to no sink, and nobody has pulled rows of the
    /// stage that failed.
    pub(super) fn keeps_stages(&self) -> bool {
        let graph = &self.shared.execution.graph;
        let stages = &self.shared.execution.stages;
        let has = |stage: &Stage, is: fn(&OperatorSpec) -> bool| {
            let operators = stage.vertices.iter().flat_map(|vertex| &graph.vertices[*vertex].chain);
            operators.into_iter().any(is)
        };
        let writes = |stage: &Stage| has(stage, |operator| matches!(operator, OperatorSpec::Sink(_)));
        let shows = |stage: &Stage| has(stage, |operator| matches!(operator, OperatorSpec::Collect(_)));
        (1..stages.len()).contains(&self.finished_stages)
            && !stages[..self.finished_stages].iter().any(writes)
            && !shows(&stages[self.finished_stages])
    }

    /// Goes on with another attempt after the stages that have finished.
    pub(super) fn renew(&mut self, shared: Arc<JobShared>, results: Vec<Inlet>) {
        self.kept.push(Arc::clone(&self.shared.spill));
        self.shared = shared;
        self.results = results;
        self.shared_runs.clear();
    }

    /// There is no other attempt.
    pub(super) fn give_up(&mut self) {
        self.finish();
        self.kept.clear();
    }

    /// Drops what the stages left and notes what they spilled.
    pub(super) fn finish(&mut self) {
        let spilled: u64 = self
            .materialized
            .values()
            .map(|partition| partition.spilled_bytes())
            .sum();
        self.shared
            .metrics
            .exchange_spilled_bytes
            .fetch_add(spilled, Ordering::Relaxed);
        self.materialized.clear();
        self.results.clear();
    }

    /// Whether the rows in flight to a vertex can be handed to other subtasks than they were on their way to.
    fn can_overtake(&self, vertex: VertexId) -> bool {
        let movable = |edge: &Edge| {
            matches!(edge.mode, ExchangeMode::Pipelined)
                && matches!(edge.merge, MergeMode::Arrival)
                && matches!(
                    edge.partitioning,
                    Partitioning::Hash(_) | Partitioning::Rebalance | Partitioning::Global
                )
        };
        self.checkpoints.is_some() && self.shared.execution.graph.inputs_of(vertex).all(movable)
    }

    /// What the subtasks of a source read.
    fn scan_input(&self, id: VertexId, vertex: &Vertex) -> Result<Option<ScanInput>> {
        let Some(OperatorSpec::Scan(spec)) = vertex.chain.first() else {
            return Ok(None);
        };
        let splits = Splits::new(spec.plan.0.properties().partitioning.partition_count());
        self.shared.metrics.add_splits(Arc::clone(&splits));
        let resolver = self
            .shared
            .environment
            .sources
            .as_ref()
            .filter(|_| spec.stream.is_some());
        let source = resolver.and_then(|resolver| resolver.split_source(&spec.plan.0));
        let source = match source {
            Some(source) if source.needs_log() => Some(self.logged(id, spec, source)?),
            source => source,
        };
        Ok(Some(ScanInput { splits, source }))
    }

    /// `source` with a log. It is found again by the table's name, and by its place among the scans of that table.
    fn logged(&self, id: VertexId, spec: &ScanSpec, source: Arc<dyn SplitSource>) -> Result<Arc<dyn SplitSource>> {
        let Some(directory) = &self.shared.environment.wal_directory else {
            return Err(EngineError::Plan(format!(
                "table '{}' is to keep a log of what it reads ('scan.wal'), and a job without checkpoints has no place for it;                  SET 'execution.checkpointing.interval' and 'execution.checkpointing.dir', or leave the option out",
                spec.table
            )));
        };
        let before = self.shared.execution.graph.vertices.iter().take(id);
        let same = before.filter(
            |vertex| matches!(vertex.chain.first(), Some(OperatorSpec::Scan(scan)) if scan.table == spec.table),
        );
        let plain = |c: char| if c.is_ascii_alphanumeric() { c } else { '_' };
        let name: String = spec.table.chars().map(plain).collect();
        let directory = directory.join(format!("{name}-{}", same.count()));
        Ok(Arc::new(LoggedSource::new(source, directory, spec.plan.0.schema())))
    }

    fn input_gate(&self, vertex: VertexId, subtask: usize, transport: &LocalTransport) -> Result<Option<InputGate>> {
        let execution = &self.shared.execution;
        let mut channels = Vec::new();
        let mut live = Vec::new();
        for (edge_id, edge) in execution
            .graph
            .edges
            .iter()
            .enumerate()
            .filter(|(_, edge)| edge.to == vertex)
        {
            for channel in execution
                .channels(edge_id)
                .into_iter()
                .filter(|channel| channel.to == subtask)
            {
                let source = match edge.mode {
                    ExchangeMode::Pipelined => {
                        live.push((channels.len(), channel));
                        ChannelSource::Live
                    }
                    ExchangeMode::Blocking => match self.materialized.get(&channel) {
                        Some(partition) => ChannelSource::Replay(partition.read()?),
                        None => return Err(EngineError::Internal(format!("{channel:?} was not materialized"))),
                    },
                };
                channels.push((execution.port(channel), source));
            }
        }
        if channels.is_empty() {
            // A subtask that no channel leads to (a Global edge to more than one subtask) sees empty inputs.
            let ports = execution.inputs(vertex);
            if ports == 0 {
                return Ok(None);
            }
            channels.extend((0..ports).map(|port| {
                let nothing: Box<dyn Iterator<Item = _> + Send> = Box::new(std::iter::empty());
                (port, ChannelSource::Replay(nothing))
            }));
        }
        let environment = &self.shared.environment;
        let least = MIN_CREDIT_BYTES.min(environment.batch_bytes());
        let credit = (environment.credit_bytes() / channels.len()).max(least);
        let memory = self.shared.memory.pinned("input gate");
        let gate = InputGate::new(channels, credit, self.shared.cancel.clone())
            .with_memory(memory)
            .with_overtaking(self.can_overtake(vertex), Arc::clone(&environment.clock));
        let mut inlets = transport.inlets.lock();
        for (index, channel) in live {
            inlets.insert(channel, gate.inlet(index));
        }
        drop(inlets);
        Ok(Some(gate))
    }

    fn subtask(
        &mut self,
        id: VertexId,
        vertex: &Vertex,
        subtask: usize,
        gate: Option<InputGate>,
        input: Option<&ScanInput>,
        transport: &LocalTransport,
    ) -> Result<Deployed> {
        let mut links = Vec::new();
        let mut names = Vec::new();
        let mut metrics = Vec::new();
        let mut source = None;
        for (place, spec) in vertex.chain.iter().enumerate() {
            let context = self.context(id, vertex, spec, subtask);
            names.push(context.operator.clone());
            metrics.push(Arc::clone(&context.metrics));
            match (spec, input) {
                (OperatorSpec::Scan(read), Some(input)) if place == 0 => {
                    let mut context = context;
                    // What a reader holds; never so much that nothing is left for the operators.
                    let most = context.memory.manager().limit_bytes() / READERS_IN_BUDGET / vertex.parallelism;
                    context.hold_anyway(read.read_bytes.min(most));
                    let (splits, reads) = (Arc::clone(&input.splits), input.source.clone());
                    let scan = build_source(spec, splits, reads, subtask, vertex.parallelism)?;
                    let diagnosis = self.shared.environment.diagnosis.clone();
                    source = Some(Box::new(SourceHead {
                        scan,
                        context,
                        diagnosis,
                        vertex: id,
                        latency_interval: self.shared.environment.latency_interval,
                        last_marker: None,
                    }));
                }
                (OperatorSpec::Collect(_), _) => {}
                _ => links.push(Link {
                    operator: self.operator((id, place), spec, subtask)?,
                    context,
                }),
            }
        }
        self.shared.metrics.add_subtask(id, metrics);
        let reporter = self
            .checkpoints
            .as_ref()
            .map(|wiring| wiring.reporter(id, subtask, vertex.parallelism));
        if let (Some(source), Some(control)) = (
            &mut source,
            reporter.as_ref().and_then(|reporter| reporter.source.as_ref()),
        ) {
            source.scan.wake_by(Arc::clone(&control.wake))?;
        }
        let head = match (source, gate) {
            (Some(source), _) => Head::Source(source),
            (None, Some(gate)) => Head::Gate(gate),
            (None, None) => return Err(EngineError::Internal(format!("'{}' has no input", vertex.name))),
        };
        if matches!(head, Head::Source(_)) {
            names.remove(0);
        }
        let outputs = self.outputs(id, vertex, subtask, transport)?;
        let active = Arc::new(AtomicUsize::new(0));
        let is_sink = |spec: &OperatorSpec| matches!(spec, OperatorSpec::Sink(_));
        let sink = vertex.chain.iter().any(is_sink).then_some(id);
        let first = usize::from(matches!(head, Head::Source(_)));
        let latencies = Arc::clone(&self.shared.metrics.latencies);
        let chain = Chain::new((first, links), outputs, Arc::clone(&active), sink, latencies);
        let thread_name = format!("tw-{id}-{subtask}");
        Ok(Deployed {
            subtask: Subtask {
                head,
                chain,
                reporter,
                had_finished: false,
            },
            task: (id, subtask),
            thread_name,
            operators: names,
            active,
        })
    }

    fn operator(
        &mut self,
        (id, place): (VertexId, usize),
        spec: &OperatorSpec,
        subtask: usize,
    ) -> Result<Box<dyn Operator>> {
        let execution = &self.shared.execution;
        let parallelism = execution.graph.vertices[id].parallelism;
        match spec {
            OperatorSpec::Sink(_) => {
                let (_, sink) = self
                    .shared
                    .sinks
                    .iter()
                    .find(|(vertex, _)| *vertex == id)
                    .ok_or_else(|| EngineError::Internal("a sink was not prepared".into()))?;
                let writer = sink.writer(subtask, parallelism)?;
                Ok(Box::new(Sink::new(writer).with_checkpoints(self.checkpoints.is_some())))
            }
            OperatorSpec::Sort(spec) if spec.by_range && parallelism > 1 => {
                let runs = self.shared_runs.entry((id, place)).or_default();
                Ok(build_range_sort(spec, Arc::clone(runs), subtask, parallelism))
            }
            OperatorSpec::Custom(spec) => {
                let factory =
                    spec.factory.0.downcast_ref::<CustomFactory>().ok_or_else(|| {
                        EngineError::Internal(format!("'{}' has a factory of another kind", spec.label))
                    })?;
                factory.0.create(subtask, parallelism)
            }
            other => build_operator(other, execution.inputs(id)),
        }
    }

    fn context(&self, id: VertexId, vertex: &Vertex, spec: &OperatorSpec, subtask: usize) -> Context {
        let environment = &self.shared.environment;
        let operator = format!("{} [{id}.{subtask}]", spec.name());
        let memory = &self.shared.memory;
        Context {
            memory: if spec.spills() {
                memory.spillable(&operator)
            } else {
                memory.pinned(&operator)
            },
            operator,
            subtask,
            parallelism: vertex.parallelism,
            batch_size: environment.batch_size,
            batch_bytes: environment.batch_bytes(),
            task: Arc::clone(&environment.task),
            io: environment.io.clone(),
            clock: Arc::clone(&environment.clock),
            spill: Arc::clone(&self.shared.spill),
            filters: Arc::clone(&self.shared.filters),
            streaming: self.shared.execution.graph.is_streaming(),
            metrics: Arc::new(OperatorMetrics::default()),
            cancel: self.shared.cancel.clone(),
        }
    }

    fn outputs(
        &mut self,
        id: VertexId,
        vertex: &Vertex,
        subtask: usize,
        transport: &LocalTransport,
    ) -> Result<Outputs> {
        let shared = Arc::clone(&self.shared);
        let environment = &shared.environment;
        let gate = |partitioner, senders, timeout| {
            let clock = Arc::clone(&environment.clock);
            let bytes = environment.exchange_bytes.unwrap_or(usize::MAX);
            let batch_size = (environment.batch_size, environment.batch_bytes().min(bytes));
            let memory = shared.memory.pinned("output gate");
            OutputGate::new(partitioner, senders, batch_size, timeout, clock).with_memory(memory)
        };
        let mut gates = Vec::new();
        let mut sides = Vec::new();
        if matches!(vertex.chain.last(), Some(OperatorSpec::Collect(_))) {
            let inlet = self
                .results
                .pop()
                .ok_or_else(|| EngineError::Internal("too many collectors".into()))?;
            gates.push(gate(
                Partitioner::One(0),
                vec![Box::new(inlet)],
                environment.buffer_timeout,
            ));
        }
        for (edge_id, edge) in shared
            .execution
            .graph
            .edges
            .iter()
            .enumerate()
            .filter(|(_, edge)| edge.from == id)
        {
            let channels: Vec<_> = shared
                .execution
                .channels(edge_id)
                .into_iter()
                .filter(|channel| channel.from == subtask)
                .collect();
            let partitioner = Partitioner::new(&edge.partitioning, subtask, channels.len())?;
            let mut senders = Vec::with_capacity(channels.len());
            for channel in &channels {
                senders.push(match edge.mode {
                    ExchangeMode::Pipelined => transport.connect(*channel)?,
                    ExchangeMode::Blocking => self.blocking_sender(*channel, vertex.parallelism * channels.len()),
                });
            }
            let timeout = edge
                .buffer_timeout_ms
                .map_or(environment.buffer_timeout, BufferTimeout::from_ms);
            match edge.side_output {
                None => gates.push(gate(partitioner, senders, timeout)),
                Some(tag) => sides.push((tag, gate(partitioner, senders, timeout))),
            }
        }
        Ok(Outputs { gates, sides })
    }

    fn blocking_sender(&mut self, channel: ChannelId, channels: usize) -> Box<dyn ChannelSender> {
        let target = Materialized::new();
        self.materialized.insert(channel, Arc::clone(&target));
        let memory = &self.shared.memory;
        Box::new(BlockingWriter::new(
            target,
            memory.pinned("blocking exchange"),
            memory.manager().limit_bytes(),
            channels,
            Arc::clone(&self.shared.spill),
        ))
    }
}
