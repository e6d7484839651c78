//! The job's own thread: an attempt runs the stages in order, and at the end publishes or removes what the sinks staged; a failed
//! attempt is followed by another while the restart strategy has it so, from the newest checkpoint that can be used.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use crate::checkpoint::fault;
use crate::data::{EngineError, Result};
use crate::operator::PreparedSink;
use crate::plan::{JobGraph, OperatorSpec, operator_ids};
use crate::runtime::checkpointing::{Checkpointing, Driver, DriverParts, Ending, Report, Targets, end};
use crate::runtime::deployment::Deployment;
use crate::runtime::execution_graph::Stage;
use crate::runtime::job::{Deployed, JobPlan, JobShared, can_start_again, run_stage};
use crate::runtime::recovery::{CheckpointWiring, check_going_back, origins, recover_sinks, restore};
use crate::runtime::restart::Restarts;

/// Runs a job until it ends for good.
pub(super) fn run_attempts(plan: &JobPlan, first: Deployment) -> Result<()> {
    match attempts(plan, first) {
        Ok(End::Finished) => Ok(()),
        // Whoever waits for the result must see that nothing more comes, as not all of it came.
        Ok(End::Stopped) => {
            plan.cancel.cancel();
            Ok(())
        }
        Err(error) => {
            plan.cancel.cancel();
            Err(error)
        }
    }
}

/// How a job ends well.
enum End {
    /// All input has been read.
    Finished,
    /// With a savepoint.
    Stopped,
}

fn attempts(plan: &JobPlan, first: Deployment) -> Result<End> {
    let clock = Arc::clone(&plan.environment.clock);
    let mut restarts = Restarts::new(plan.environment.restart.clone());
    let can_restart = can_start_again(&plan.execution.graph);
    let mut deployment = first;
    loop {
        let began = clock.monotonic();
        let outcome = attempt(plan, &mut deployment);
        plan.control.connect(None);
        let error = match outcome {
            Ok(end) => return Ok(end),
            Err(error) => error,
        };
        // What was refused before anything ran would be refused again; rows that a client has pulled cannot be taken back.
        let is_refused = !deployment.has_run && matches!(error.root(), EngineError::Plan(_) | EngineError::BadInput(_));
        let is_cancelled = plan.cancel.is_cancelled() || matches!(error.root(), EngineError::Cancelled);
        let keeps_stages = deployment.keeps_stages();
        let is_final = is_cancelled || is_refused || !(can_restart || keeps_stages);
        let delay = match is_final {
            true => None,
            false => restarts.after_failure(began, clock.monotonic()),
        };
        let Some(delay) = delay else {
            deployment.give_up();
            return Err(error);
        };
        tracing::warn!(job = %deployment.shared.id, %error, ?delay, "the job failed and starts again");
        plan.environment
            .notice(&format!("the job failed and starts again in {delay:?}: {error}"));
        plan.metrics.checkpoints.lock().restarts += 1;
        if wait(plan, delay).is_err() {
            return Err(error);
        }
        if keeps_stages {
            deployment.renew(Arc::new(plan.attempt()?), plan.inlets.clone());
            continue;
        }
        deployment.give_up();
        // What the failed attempt held is given back before the next takes its own.
        drop(deployment);
        deployment = Deployment::new(Arc::new(plan.attempt()?), plan.inlets.clone());
    }
}

fn wait(plan: &JobPlan, delay: Duration) -> Result<()> {
    let cancel = plan.cancel.clone();
    plan.environment.io.block_on(async {
        tokio::select! {
            () = cancel.cancelled() => Err(EngineError::Cancelled),
            () = tokio::time::sleep(delay) => Ok(()),
        }
    })
}

/// One attempt, with checkpoints or without.
fn attempt(plan: &JobPlan, deployment: &mut Deployment) -> Result<End> {
    match deployment.shared.checkpointing().cloned() {
        Some(checkpointing) => with_checkpoints(plan, deployment, checkpointing),
        None => without_checkpoints(deployment).map(|()| End::Finished),
    }
}

/// The stages one after another. Those that have finished stay finished when a later one fails: their output is materialized and
/// can be read again (Flink paper, section 3.2).
fn without_checkpoints(deployment: &mut Deployment) -> Result<()> {
    let stages = deployment.shared.execution.stages.clone();
    for stage in stages.iter().skip(deployment.finished_stages) {
        match deployment.deploy(stage) {
            Ok(subtasks) => {
                deployment.has_run = true;
                run_stage(&deployment.shared, stage, subtasks);
            }
            Err(error) => deployment.shared.fail(error),
        }
        if deployment.shared.cancel.is_cancelled() {
            break;
        }
        deployment.finished_stages += 1;
    }
    let shared = Arc::clone(&deployment.shared);
    let mut outcome = shared.outcome();
    if outcome.is_ok() {
        deployment.finish();
    }
    for (_, sink) in &shared.sinks {
        match outcome {
            Ok(()) => outcome = sink.commit(),
            Err(_) => sink.abort(),
        }
    }
    outcome
}

/// The sinks of an attempt by the ids of their operators.
fn sinks_by_id(shared: &JobShared) -> BTreeMap<String, Arc<dyn PreparedSink>> {
    let graph = &shared.execution.graph;
    let ids = operator_ids(graph);
    let is_sink = |operator: &OperatorSpec| matches!(operator, OperatorSpec::Sink(_));
    let of_vertex = |vertex: usize| {
        let place = graph.vertices[vertex].chain.iter().position(is_sink)?;
        ids[vertex][place].clone()
    };
    let sinks = shared.sinks.iter();
    sinks
        .filter_map(|(vertex, sink)| Some((of_vertex(*vertex)?, Arc::clone(sink))))
        .collect()
}

/// What the attempt runs with beside its subtasks.
struct Running {
    wiring_reports: std::sync::mpsc::Sender<Report>,
    driver: JoinHandle<Ending>,
}

fn with_checkpoints(plan: &JobPlan, deployment: &mut Deployment, config: Checkpointing) -> Result<End> {
    let shared = Arc::clone(&deployment.shared);
    let store = config.store.clone();
    let [stage] = &shared.execution.stages[..] else {
        return Err(EngineError::Plan(
            "a job with blocking exchanges takes no checkpoints; SET 'execution.batch-shuffle-mode' = 'ALL_EXCHANGES_PIPELINED'".into(),
        ));
    };
    let sinks = sinks_by_id(&shared);
    let stage = stage.clone();
    let prepared = start(plan, deployment, &config, &sinks, &stage);
    let (subtasks, running) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            deployment.checkpoints = None;
            deployment.finish();
            return Err(error);
        }
    };
    deployment.has_run = true;
    run_stage(&shared, &stage, subtasks);
    let failed = shared.cancel.is_cancelled();
    if failed {
        end(&running.wiring_reports);
    }
    deployment.checkpoints = None;
    deployment.finish();
    // Without a failure the driver ends by itself, after the final checkpoint.
    let ending = running
        .driver
        .join()
        .unwrap_or_else(|_| Ending::Failed(EngineError::Internal("the checkpoints' thread panicked".into())));
    let outcome = shared.outcome();
    match ending {
        Ending::Finished => {
            fault::point("before-end")?;
            if !config.options.keep_at_end {
                store.remove_all()?;
            }
            Ok(End::Finished)
        }
        Ending::Stopped => Ok(End::Stopped),
        Ending::Failed(error) => match outcome {
            Err(first) if !matches!(first, EngineError::Cancelled) => Err(first),
            _ => Err(error),
        },
        Ending::Cut => outcome.and(Err(EngineError::Cancelled)),
    }
}

/// Restores what there is to restore, and starts the thread that takes the checkpoints.
fn start(
    plan: &JobPlan,
    deployment: &mut Deployment,
    config: &Checkpointing,
    sinks: &BTreeMap<String, Arc<dyn PreparedSink>>,
    stage: &Stage,
) -> Result<(Vec<Deployed>, Running)> {
    let clock = Arc::clone(&plan.environment.clock);
    let (reports, heard) = channel();
    let targets = Targets::default();
    let began = clock.monotonic();
    // A number is used once, also one of which nothing came.
    let last = config.store.next_checkpoint()?.saturating_sub(1);
    config.store.sweep_at_start()?;
    let wire = |last: u64| {
        CheckpointWiring::new(
            &deployment_graph(plan),
            config.store.clone(),
            targets.clone(),
            reports.clone(),
            last,
        )
    };
    let mut passed = Vec::new();
    let mut candidates = origins(config, sinks)?;
    let state_last = candidates
        .iter()
        .map(|origin| origin.manifest.checkpoint)
        .max()
        .unwrap_or(0);
    let last = last.max(state_last);
    let graph = deployment_graph(plan);
    let (subtasks, origin) = loop {
        let origin = (!candidates.is_empty()).then(|| candidates.remove(0));
        recover_sinks(sinks, origin.as_ref())?;
        deployment.checkpoints = Some(wire(last));
        let mut subtasks = deployment.deploy(stage)?;
        let Some(origin) = origin else {
            break (subtasks, None);
        };
        let restored = match &deployment.checkpoints {
            Some(wiring) => restore(&graph, &origin, wiring, &mut subtasks),
            None => Ok(()),
        };
        match restored {
            Ok(()) => break (subtasks, Some(origin)),
            // An older checkpoint holds the same program's state.
            Err(error) if !is_damage(&error) || candidates.is_empty() => return Err(error.or_all(&passed)),
            Err(error) => {
                check_going_back(&error.to_string(), sinks, config.store.url())?;
                plan.environment.notice(&format!(
                    "checkpoint {} cannot be restored, an older one is tried: {error}",
                    origin.manifest.checkpoint
                ));
                tracing::warn!(checkpoint = origin.manifest.checkpoint, %error, "a checkpoint cannot be restored, an older one is tried");
                passed.push(error.to_string());
                drop(subtasks);
                deployment.again(plan.inlets.clone());
            }
        }
    };
    let mut stats = plan.metrics.checkpoints.lock();
    let restored = origin.as_ref().map(|origin| origin.manifest.checkpoint);
    stats.restored = restored;
    stats.restore_ms = u64::try_from(clock.monotonic().saturating_sub(began).as_millis()).unwrap_or(u64::MAX);
    drop(stats);
    let Some(wiring) = &deployment.checkpoints else {
        return Err(EngineError::Internal("the checkpoints' wiring is gone".into()));
    };
    let parts = DriverParts {
        config: config.clone(),
        sources: wiring.sources.clone(),
        sinks: sinks.clone(),
        last: origin.filter(|origin| origin.is_own).map(|origin| origin.manifest),
        first: last + 1,
        targets,
        clock,
        cancel: deployment.shared.cancel.clone(),
        stats: Arc::clone(&plan.metrics.checkpoints),
    };
    fault::point("after-restore")?;
    if let Some(checkpoint) = restored {
        plan.environment
            .notice(&format!("job '{}' goes on from checkpoint {checkpoint}", config.job));
    }
    let running = start_driver(plan, &graph, parts, heard, reports)?;
    Ok((subtasks, running))
}

fn start_driver(
    plan: &JobPlan,
    graph: &JobGraph,
    parts: DriverParts,
    heard: Receiver<Report>,
    reports: std::sync::mpsc::Sender<Report>,
) -> Result<Running> {
    let driver = Driver::new(graph, parts);
    plan.control.connect(Some(reports.clone()));
    let driver = std::thread::Builder::new()
        .name("tw-checkpoints".into())
        .spawn(move || driver.run(&heard))
        .map_err(|source| EngineError::Io {
            path: "a thread for the checkpoints".into(),
            source,
        })?;
    Ok(Running {
        wiring_reports: reports,
        driver,
    })
}

fn deployment_graph(plan: &JobPlan) -> JobGraph {
    plan.execution.graph.clone()
}

/// Whether an error tells of files rather than of the program.
fn is_damage(error: &EngineError) -> bool {
    !matches!(
        error.root(),
        EngineError::Plan(_) | EngineError::Cancelled | EngineError::Memory(_)
    )
}

impl EngineError {
    /// With what was passed over before.
    fn or_all(self, passed: &[String]) -> Self {
        if passed.is_empty() {
            return self;
        }
        EngineError::BadInput(format!(
            "{self}; newer checkpoints could not be used either: {}",
            passed.join("; ")
        ))
    }
}
