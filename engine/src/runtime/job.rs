//! A job: what it is started from, one thread per subtask, and the handle through which the result is pulled.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use parking_lot::Mutex;
use thalweg_memory::{JobMemory, SpillDirectory};

use crate::data::{Batch, EngineError, Result};
use crate::exchange::{CancelToken, ChannelSource, GateEvent, Inlet, InputGate, ReadNext};
use crate::operator::{PreparedSink, RuntimeFilters};
use crate::plan::{JobGraph, OperatorSpec};
use crate::runtime::attempts::run_attempts;
use crate::runtime::checkpointing::JobControl;
use crate::runtime::deployment::Deployment;
use crate::runtime::environment::Environment;
use crate::runtime::execution_graph::{ExecutionGraph, Stage};
use crate::runtime::metrics::JobMetrics;
use crate::runtime::recovery::check_operators;
use crate::runtime::subtask::Subtask;

/// Enough for deeply nested expressions; only touched pages cost memory.
const STACK_BYTES: usize = 64 << 20;

static NEXT_JOB: AtomicU64 = AtomicU64::new(1);

/// What all parts of one attempt of a job share.
pub(super) struct JobShared {
    pub(super) id: String,
    pub(super) environment: Environment,
    pub(super) execution: ExecutionGraph,
    pub(super) cancel: CancelToken,
    pub(super) metrics: Arc<JobMetrics>,
    /// The job's part of the memory budget.
    pub(super) memory: JobMemory,
    pub(super) spill: Arc<SpillDirectory>,
    /// What the build sides of the joins tell the scans.
    pub(super) filters: Arc<RuntimeFilters>,
    /// The prepared sinks, by vertex.
    pub(super) sinks: Vec<(usize, Arc<dyn PreparedSink>)>,
    failure: Mutex<Option<EngineError>>,
}

impl JobShared {
    /// Ends the attempt with `error`, unless it is already ending.
    pub(super) fn fail(&self, error: EngineError) {
        if !matches!(error, EngineError::Cancelled) {
            self.failure.lock().get_or_insert(error);
        }
        self.cancel.cancel();
    }

    pub(super) fn outcome(&self) -> Result<()> {
        match self.failure.lock().take() {
            Some(error) => Err(error),
            None => self.cancel.check(),
        }
    }
}

/// A running job. Iterating pulls its result; the job ends when the result has been read, when it fails, when it is
/// cancelled or when the handle is dropped. Whichever it is, no thread and no file stays behind, but for the checkpoints of a
/// job that may go on.
pub struct JobHandle {
    graph: Arc<JobGraph>,
    cancel: CancelToken,
    metrics: Arc<JobMetrics>,
    control: JobControl,
    results: InputGate,
    driver: Option<JoinHandle<Result<()>>>,
}

/// What a job is started from, again and again while its restart strategy has it so.
pub(super) struct JobPlan {
    id: String,
    pub(super) environment: Environment,
    pub(super) execution: ExecutionGraph,
    pub(super) cancel: CancelToken,
    pub(super) metrics: Arc<JobMetrics>,
    pub(super) control: JobControl,
    /// The ways to whoever pulls the result.
    pub(super) inlets: Vec<Inlet>,
    memory: JobMemory,
}

impl JobPlan {
    /// What an attempt shares: a cancellation of its own, sinks prepared anew.
    pub(super) fn attempt(&self) -> Result<JobShared> {
        let cancel = CancelToken::new();
        let attempt = cancel.clone();
        self.cancel.on_cancel(move || attempt.cancel());
        let mut shared = JobShared {
            id: self.id.clone(),
            environment: self.environment.clone(),
            execution: self.execution.clone(),
            cancel,
            metrics: Arc::clone(&self.metrics),
            filters: Arc::new(RuntimeFilters::of(&self.execution.graph, &self.memory)),
            memory: self.memory.clone(),
            spill: Arc::new(SpillDirectory::new(
                &self.environment.spill_parent,
                self.environment.spill_compression,
            )),
            sinks: Vec::new(),
            failure: Mutex::new(None),
        };
        shared.prepare_sinks()?;
        Ok(shared)
    }
}

/// Starts a job.
///
/// # Errors
/// When the graph is not valid, a sink refuses its options, or no thread can be started.
pub fn submit(graph: JobGraph, environment: &Environment) -> Result<JobHandle> {
    let execution = ExecutionGraph::expand(graph)?;
    if environment.checkpointing.is_some() && execution.graph.is_streaming() {
        check_operators(&execution.graph)?;
    }
    let cancel = CancelToken::new();
    let metrics = Arc::new(JobMetrics::new(&execution.graph));
    let collectors = collecting_subtasks(&execution.graph);
    let memory = environment.memory.job();
    let results = InputGate::new(
        (0..collectors).map(|_| (0, ChannelSource::Live)).collect(),
        environment.credit_bytes() / collectors.max(1),
        cancel.clone(),
    )
    .with_memory(memory.pinned("result"));
    let graph = Arc::new(execution.graph.clone());
    let plan = JobPlan {
        id: format!("{:x}-{}", std::process::id(), NEXT_JOB.fetch_add(1, Ordering::Relaxed)),
        environment: environment.clone(),
        execution,
        cancel: cancel.clone(),
        metrics: Arc::clone(&metrics),
        control: JobControl::default(),
        inlets: (0..collectors).map(|channel| results.inlet(channel)).collect(),
        memory,
    };
    let control = plan.control.clone();
    let shared = plan.attempt()?;
    let deployment = Deployment::new(Arc::new(shared), plan.inlets.clone());
    let driver = std::thread::Builder::new()
        .name("tw-job".into())
        .spawn(move || run_attempts(&plan, deployment))
        .map_err(|source| EngineError::Io {
            path: "a thread for the job".into(),
            source,
        })?;
    Ok(JobHandle {
        graph,
        cancel,
        metrics,
        control,
        results,
        driver: Some(driver),
    })
}

/// Whether what clients pull is no more than the counts of what sinks have written, which come at the end: then the job can start
/// again without anybody having seen rows that come twice.
pub(super) fn can_start_again(graph: &JobGraph) -> bool {
    let is_sink = |operator: &OperatorSpec| matches!(operator, OperatorSpec::Sink(_));
    let collectors = (0..graph.vertices.len())
        .filter(|id| matches!(graph.vertices[*id].chain.last(), Some(OperatorSpec::Collect(_))));
    collectors.into_iter().all(|id| {
        let mut above = vec![id];
        let mut seen = Vec::new();
        while let Some(vertex) = above.pop() {
            if seen.contains(&vertex) || graph.vertices[vertex].chain.iter().any(is_sink) {
                continue;
            }
            seen.push(vertex);
            let mut inputs = graph.inputs_of(vertex).map(|edge| edge.from).peekable();
            if inputs.peek().is_none() {
                return false;
            }
            above.extend(inputs);
        }
        true
    })
}

fn collecting_subtasks(graph: &JobGraph) -> usize {
    graph
        .vertices
        .iter()
        .filter(|vertex| matches!(vertex.chain.last(), Some(OperatorSpec::Collect(_))))
        .map(|vertex| vertex.parallelism)
        .sum()
}

/// A subtask ready to run, with what is needed to name it in messages.
pub(super) struct Deployed {
    pub(super) subtask: Subtask,
    pub(super) thread_name: String,
    pub(super) operators: Vec<String>,
    pub(super) active: Arc<AtomicUsize>,
    pub(super) task: (usize, usize),
}

pub(super) fn run_stage(shared: &Arc<JobShared>, stage: &Stage, subtasks: Vec<Deployed>) {
    let mut threads = Vec::with_capacity(subtasks.len());
    for deployed in subtasks {
        let worker = Arc::clone(shared);
        let name = deployed.thread_name.clone();
        let spawned = std::thread::Builder::new()
            .name(name)
            .stack_size(STACK_BYTES)
            .spawn(move || run_subtask(&worker, deployed));
        match spawned {
            Ok(thread) => threads.push(thread),
            Err(source) => {
                shared.fail(EngineError::Io {
                    path: "a thread for a subtask".into(),
                    source,
                });
                break;
            }
        }
    }
    tracing::debug!(job = %shared.id, vertices = stage.vertices.len(), subtasks = threads.len(), "stage started");
    for thread in threads {
        if thread.join().is_err() {
            shared.fail(EngineError::Internal(
                "a subtask's thread ended outside its loop".into(),
            ));
        }
    }
}

fn run_subtask(shared: &JobShared, deployed: Deployed) {
    let Deployed {
        subtask,
        operators,
        active,
        ..
    } = deployed;
    let _io = shared.environment.io.enter();
    let result = catch_unwind(AssertUnwindSafe(|| subtask.run()));
    let error = match result {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error,
        Err(payload) => {
            let text = payload
                .downcast_ref::<&str>()
                .map(ToString::to_string)
                .or_else(|| payload.downcast_ref::<String>().cloned())
                .unwrap_or_else(|| "without a message".into());
            let operator = operators.get(active.load(Ordering::Relaxed)).or(operators.last());
            EngineError::Panic(text).in_operator(operator.map_or("exchange", String::as_str))
        }
    };
    shared.fail(error);
}

impl JobHandle {
    /// The graph that runs.
    pub fn graph(&self) -> &Arc<JobGraph> {
        &self.graph
    }

    /// The job's counters; they go on while it runs.
    pub fn metrics(&self) -> &Arc<JobMetrics> {
        &self.metrics
    }

    /// Takes savepoints of the job, from any thread.
    pub fn control(&self) -> JobControl {
        self.control.clone()
    }

    /// Cancels the job from any thread.
    pub fn canceller(&self) -> CancelToken {
        self.cancel.clone()
    }

    /// Reads what is left of the result and waits for the end.
    ///
    /// # Errors
    /// What the job failed with.
    pub fn finish(mut self) -> Result<()> {
        self.try_for_each(|batch| batch.map(drop))
    }

    /// Waits for the job's thread; its error is told once.
    fn join(&mut self) -> Option<EngineError> {
        let outcome = self.driver.take()?.join();
        match outcome {
            Ok(result) => result.err(),
            Err(_) => Some(EngineError::Internal("the job's thread panicked".into())),
        }
    }
}

impl Iterator for JobHandle {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.driver.as_ref()?;
        if self.results.ports() == 0 {
            return self.join().map(Err);
        }
        loop {
            match self.results.next(ReadNext::Any, None) {
                Ok(GateEvent::Batch(_, batch)) => return Some(Ok(batch)),
                Ok(GateEvent::End(_)) => return self.join().map(Err),
                Ok(_) => {}
                Err(error) => {
                    // A job that was stopped with a savepoint ends well without a last row.
                    let was_cancelled = self.cancel.is_cancelled();
                    self.cancel.cancel();
                    return match self.join() {
                        Some(cause) => Some(Err(cause)),
                        None if was_cancelled => None,
                        None => Some(Err(error)),
                    };
                }
            }
        }
    }
}

impl Drop for JobHandle {
    fn drop(&mut self) {
        if self.driver.is_some() {
            self.cancel.cancel();
            // Whoever drops the handle does not want the result; its error goes with it.
            let _ = self.join();
        }
    }
}
