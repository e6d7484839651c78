//! The thread that takes a job's checkpoints: it hears what subtasks report, asks the coordinator what to do, and does it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};

use parking_lot::Mutex;

use super::manifests::{Heading, KnownOperator, Parts, base, manifest, unhex};
use super::reporter::{FinishedState, SourceControl, Targets};
use super::{CheckpointStats, CheckpointSummary, Checkpointing, Report, SavepointEnding, SavepointRequest};
use crate::checkpoint::coordinator::{Coordinator, Decision, Fact, Task};
use crate::checkpoint::manifest::{CheckpointKind, Manifest};
use crate::checkpoint::{CheckpointStore, fault};
use crate::data::{Alignment, Barrier, EngineError, Result};
use crate::exchange::CancelToken;
use crate::operator::{Committable, PreparedSink};
use crate::plan::{JobGraph, operator_ids};
use crate::state::FrozenTable;
use crate::time::Clock;

/// How an attempt's checkpoints ended.
#[derive(Debug)]
pub(in crate::runtime) enum Ending {
    /// The final checkpoint is complete and published.
    Finished,
    /// The job was to end with a savepoint, and it is complete.
    Stopped,
    /// The attempt ended otherwise; the subtasks tell why.
    Cut,
    /// Checkpoints failed, or what they hold could not be published.
    Failed(EngineError),
}

/// Takes the checkpoints of one attempt.
pub(in crate::runtime) struct Driver {
    config: Checkpointing,
    coordinator: Coordinator,
    operators: Vec<KnownOperator>,
    tasks_of: Vec<usize>,
    sources: BTreeMap<Task, Arc<SourceControl>>,
    sinks: BTreeMap<String, Arc<dyn PreparedSink>>,
    targets: Targets,
    parts: BTreeMap<u64, Parts>,
    finished: BTreeMap<Task, FinishedState>,
    /// What sinks have prepared and is not published, with the checkpoint that is to publish it at the earliest.
    committables: Vec<(u64, String, Committable)>,
    /// The newest complete checkpoint in the job's own folder.
    last: Option<Manifest>,
    /// Whether the next checkpoint must be written whole.
    whole: bool,
    savepoints: BTreeMap<u64, SavepointRequest>,
    draining: Option<SavepointRequest>,
    next_request: u64,
    /// Tells this attempt's savepoints from those of others: after a failure their numbers may come again.
    began: String,
    clock: Arc<dyn Clock>,
    cancel: CancelToken,
    stats: Arc<Mutex<CheckpointStats>>,
    ending: Option<Ending>,
}

/// What a driver is made of.
pub(in crate::runtime) struct DriverParts {
    pub(in crate::runtime) config: Checkpointing,
    pub(in crate::runtime) sources: BTreeMap<Task, Arc<SourceControl>>,
    pub(in crate::runtime) sinks: BTreeMap<String, Arc<dyn PreparedSink>>,
    /// The checkpoint of the job's own that the attempt goes on from.
    pub(in crate::runtime) last: Option<Manifest>,
    /// The number of the first checkpoint.
    pub(in crate::runtime) first: u64,
    /// Where checkpoints under way are written; the subtasks' reporters have it too.
    pub(in crate::runtime) targets: Targets,
    pub(in crate::runtime) clock: Arc<dyn Clock>,
    pub(in crate::runtime) cancel: CancelToken,
    pub(in crate::runtime) stats: Arc<Mutex<CheckpointStats>>,
}

impl Driver {
    pub(in crate::runtime) fn new(graph: &JobGraph, parts: DriverParts) -> Self {
        let tasks_of: Vec<usize> = graph.vertices.iter().map(|vertex| vertex.parallelism).collect();
        let tasks = tasks_of
            .iter()
            .enumerate()
            .flat_map(|(vertex, count)| (0..*count).map(move |task| (vertex, task)));
        let now = parts.clock.monotonic();
        let options = parts.config.options.clone();
        let coordinator = Coordinator::new(options, tasks, parts.sources.keys().copied(), parts.first, now);
        Self {
            coordinator,
            operators: known_operators(graph),
            tasks_of,
            sources: parts.sources,
            sinks: parts.sinks,
            targets: parts.targets,
            parts: BTreeMap::new(),
            finished: BTreeMap::new(),
            committables: Vec::new(),
            last: parts.last,
            whole: false,
            savepoints: BTreeMap::new(),
            draining: None,
            next_request: 0,
            began: format!("{:x}", parts.clock.now_ms()),
            clock: parts.clock,
            cancel: parts.cancel,
            stats: parts.stats,
            ending: None,
            config: parts.config,
        }
    }

    /// Runs until the job has ended.
    pub(in crate::runtime) fn run(mut self, reports: &Receiver<Report>) -> Ending {
        loop {
            let now = self.clock.monotonic();
            let report = match self.coordinator.next_wake() {
                Some(wake) => match reports.recv_timeout(wake.saturating_sub(now)) {
                    Ok(report) => Some(report),
                    Err(RecvTimeoutError::Timeout) => None,
                    Err(RecvTimeoutError::Disconnected) => Some(Report::End),
                },
                None => Some(reports.recv().unwrap_or(Report::End)),
            };
            let fact = match report {
                None => Some(Fact::Tick),
                Some(Report::End) => {
                    self.refuse_all("the job ended before the savepoint was complete");
                    return self.ending.unwrap_or(Ending::Cut);
                }
                Some(report) => self.hear(report),
            };
            let Some(fact) = fact else { continue };
            let now = self.clock.monotonic();
            let mut decisions: Vec<Decision> = self.coordinator.observe(now, fact);
            while !decisions.is_empty() {
                let mut facts = Vec::new();
                for decision in decisions.drain(..) {
                    facts.extend(self.carry_out(decision));
                }
                let now = self.clock.monotonic();
                for fact in facts {
                    decisions.extend(self.coordinator.observe(now, fact));
                }
            }
            if let Some(ending) = self.ending.take() {
                self.refuse_all("the job ended before the savepoint was complete");
                return ending;
            }
        }
    }

    /// Notes what a report holds; the fact in it.
    fn hear(&mut self, report: Report) -> Option<Fact> {
        match report {
            Report::Prepared {
                checkpoint,
                committables,
            } => {
                self.keep_committables(checkpoint, committables);
                None
            }
            Report::Acknowledged {
                checkpoint,
                task,
                tables,
            } => {
                if let Some(parts) = self.parts.get_mut(&checkpoint) {
                    parts.acknowledged.insert(task);
                    parts.tables.extend(tables.into_iter().map(|table| (task, table)));
                }
                Some(Fact::Acknowledged { checkpoint, task })
            }
            Report::Declined { checkpoint, reason } => Some(Fact::Declined { checkpoint, reason }),
            Report::Finished { task, mut state } => {
                self.keep_committables(state.after + 1, std::mem::take(&mut state.committables));
                self.finished.insert(task, state);
                Some(Fact::Finished { task })
            }
            Report::Asked(request) => self.asked(request),
            Report::End => None,
        }
    }

    fn keep_committables(&mut self, checkpoint: u64, committables: Vec<(String, Committable)>) {
        let known = committables
            .into_iter()
            .map(|(operator, bytes)| (checkpoint, operator, bytes));
        self.committables.extend(known);
    }

    fn asked(&mut self, request: SavepointRequest) -> Option<Fact> {
        if let Err(error) = (self.config.open)(&request.target) {
            let _ = request.reply.send(Err(error.to_string()));
            return None;
        }
        if request.ending == SavepointEnding::Drain {
            // The final checkpoint will be it.
            for source in self.sources.values() {
                source.end();
            }
            self.draining = Some(request);
            return None;
        }
        let stops = request.ending == SavepointEnding::Stop;
        let number = self.next_request;
        self.next_request += 1;
        self.savepoints.insert(number, request);
        Some(Fact::SavepointAsked { request: number, stops })
    }

    fn carry_out(&mut self, decision: Decision) -> Option<Fact> {
        match decision {
            Decision::Trigger {
                checkpoint,
                savepoint,
                stops,
            } => {
                let reason = self.trigger(checkpoint, savepoint, stops).err()?.to_string();
                Some(Fact::Declined { checkpoint, reason })
            }
            Decision::Store {
                checkpoint,
                savepoint,
                is_final,
            } => Some(match self.store(checkpoint, savepoint, is_final) {
                Ok(()) => Fact::Stored { checkpoint },
                Err(error) => {
                    self.whole = true;
                    Fact::NotStored {
                        checkpoint,
                        reason: error.to_string(),
                    }
                }
            }),
            Decision::Complete {
                checkpoint,
                savepoint,
                stops,
                is_final,
            } => {
                if let Err(error) = self.complete(checkpoint, savepoint, stops) {
                    self.end(Ending::Failed(error));
                } else if is_final {
                    self.drained();
                    self.end(Ending::Finished);
                } else if stops {
                    self.end(Ending::Stopped);
                }
                None
            }
            Decision::Discard {
                checkpoint,
                savepoint,
                reason,
            } => {
                self.discard(checkpoint, savepoint, &reason);
                None
            }
            Decision::Refuse { request, reason } => {
                if let Some(request) = self.savepoints.remove(&request) {
                    let _ = request.reply.send(Err(format!("no savepoint can be taken: {reason}")));
                }
                None
            }
            Decision::Fail { reason } => {
                // Nothing is wrong with the program: the restart strategy decides.
                self.end(Ending::Failed(EngineError::BadInput(reason)));
                None
            }
        }
    }

    fn trigger(&mut self, checkpoint: u64, savepoint: Option<u64>, stops: bool) -> Result<()> {
        let options = &self.config.options;
        let is_whole = !options.incremental || savepoint.is_some() || std::mem::take(&mut self.whole);
        let since = self.last.as_ref().filter(|_| !is_whole).and_then(base);
        let alignment = match savepoint {
            Some(_) => Alignment::Aligned { timeout_ms: None },
            None => options.alignment,
        };
        let asked = savepoint.and_then(|request| self.savepoints.get(&request));
        let target = asked
            .map(|request| self.open_savepoint(request, checkpoint))
            .transpose()?;
        // The store is the savepoint's own folder, so that it can be moved as a whole.
        let target = target.map(|store| (store, String::new()));
        self.targets.set(checkpoint, target);
        let parts = Parts {
            triggered_ms: self.clock.now_ms(),
            since,
            ..Parts::default()
        };
        self.parts.insert(checkpoint, parts);
        tracing::debug!(job = %self.config.job, checkpoint, ?since, "checkpoint triggered");
        let barrier = Barrier {
            id: checkpoint,
            since,
            alignment,
            stops,
        };
        for source in self.sources.values() {
            source.trigger(barrier);
        }
        Ok(())
    }

    fn open_savepoint(&self, request: &SavepointRequest, checkpoint: u64) -> Result<CheckpointStore> {
        let target = request.target.trim_end_matches('/');
        let name = format!("savepoint-{}-{checkpoint}-{}", self.config.job, self.began);
        (self.config.open)(&format!("{target}/{name}"))
    }

    /// Stores what finished sources left behind, then the manifest.
    fn store(&mut self, checkpoint: u64, savepoint: Option<u64>, is_final: bool) -> Result<()> {
        let (store, folder) = self.targets.get(checkpoint, &self.config.store);
        self.parts.entry(checkpoint).or_insert_with(|| Parts {
            triggered_ms: self.clock.now_ms(),
            ..Parts::default()
        });
        self.store_finished(checkpoint, &store, &folder)?;
        let asked = self.draining.as_ref().filter(|_| is_final);
        let drained = asked
            .map(|request| self.open_savepoint(request, checkpoint))
            .transpose()?;
        let Some(parts) = self.parts.get(&checkpoint) else {
            return Ok(());
        };
        let heading = Heading {
            job: &self.config.job,
            checkpoint,
            kind: match savepoint {
                Some(_) => CheckpointKind::Savepoint,
                None => CheckpointKind::Checkpoint,
            },
            duration_ms: u64::try_from(self.clock.now_ms() - parts.triggered_ms).unwrap_or(0),
            finished: is_final,
        };
        // Who finished after the barrier had state at the barrier, and more to say.
        let had_finished = |task: &Task| self.finished.contains_key(task) && !parts.acknowledged.contains(task);
        let finished = |vertex: usize| (0..self.tasks_of[vertex]).all(|task| had_finished(&(vertex, task)));
        let committables: Vec<_> = self
            .committables
            .iter()
            .filter(|(of, _, _)| *of <= checkpoint)
            .cloned()
            .collect();
        let manifest = manifest(
            &heading,
            &self.operators,
            &finished,
            parts,
            &committables,
            self.last.as_ref(),
        )
        .map_err(EngineError::Plan)?;
        store.commit(&folder, &manifest)?;
        if let Some(target) = drained {
            let mut copy = store.copy_into(&manifest, &target, "")?;
            copy.kind = CheckpointKind::Savepoint;
            target.commit("", &copy)?;
        }
        let duration_ms = heading.duration_ms;
        let mut stats = self.stats.lock();
        stats.completed += 1;
        stats.last = Some(CheckpointSummary {
            checkpoint,
            duration_ms,
            written_bytes: manifest.bytes_of(checkpoint),
            state_bytes: manifest.bytes(),
            is_full: parts.since.is_none(),
        });
        drop(stats);
        let stops = |request: &u64| {
            let asked = self.savepoints.get(request);
            asked.is_some_and(|asked| asked.ending == SavepointEnding::Stop)
        };
        match savepoint {
            None => self.last = Some(manifest),
            // What is published with it must not be written again, so the job itself goes on from there, too.
            Some(request) if stops(&request) => {
                let folder = super::folder(checkpoint);
                let mut own = store.copy_into(&manifest, &self.config.store, &folder)?;
                own.kind = CheckpointKind::Checkpoint;
                self.config.store.commit(&folder, &own)?;
            }
            Some(_) => {}
        }
        Ok(())
    }

    fn store_finished(&mut self, checkpoint: u64, store: &CheckpointStore, folder: &str) -> Result<()> {
        for (task, state) in &self.finished {
            let parts = self.parts.entry(checkpoint).or_default();
            if parts.acknowledged.contains(task) || state.tables.is_empty() {
                // It passed the barrier before it finished: where it was then counts.
                continue;
            }
            let tables = state.tables.iter().map(|(operator, spec, rows)| {
                let frozen = FrozenTable {
                    spec: spec.clone(),
                    since: None,
                    rows: Box::new(rows.clone().into_iter().map(Ok)),
                    deleted: None,
                };
                (operator.clone(), frozen)
            });
            let file = format!("{}-{}-finished.state", task.0, task.1);
            let written = store.write(folder, &file, tables.collect(), (task.1, self.tasks_of[task.0]))?;
            parts.tables.extend(written.into_iter().map(|table| (*task, table)));
        }
        Ok(())
    }

    /// The checkpoint is complete: sinks publish, sources are told, what nobody needs any more is removed.
    fn complete(&mut self, checkpoint: u64, savepoint: Option<u64>, stops: bool) -> Result<()> {
        self.parts.remove(&checkpoint);
        self.targets.set(checkpoint, None);
        if savepoint.is_some() && !stops {
            // After a failure the job goes back to its own last checkpoint, not to a savepoint: what was published with one would
            // be there twice. The next checkpoint publishes it.
            return self.hand_over(checkpoint, savepoint);
        }
        fault::point("before-commit")?;
        let mut ready: BTreeMap<String, Vec<Committable>> = BTreeMap::new();
        self.committables.retain(|(of, operator, bytes)| {
            if *of > checkpoint {
                return true;
            }
            ready.entry(operator.clone()).or_default().push(bytes.clone());
            false
        });
        publish(&self.sinks, &ready)?;
        fault::point("after-commit")?;
        fault::point("before-notify")?;
        for source in self.sources.values() {
            source.complete(checkpoint);
        }
        fault::point("after-notify")?;
        self.hand_over(checkpoint, savepoint)?;
        let kept = self.config.options.retained.max(1);
        let complete = self.config.store.list()?;
        let newest: Vec<u64> = complete.iter().rev().take(kept).copied().collect();
        self.config.store.retain(&newest)?;
        Ok(())
    }

    /// Tells who asked for a savepoint where it is.
    fn hand_over(&mut self, checkpoint: u64, savepoint: Option<u64>) -> Result<()> {
        if let Some(request) = savepoint.and_then(|request| self.savepoints.remove(&request)) {
            let path = self.open_savepoint(&request, checkpoint)?.url().to_string();
            let _ = request.reply.send(Ok(path));
        }
        Ok(())
    }

    /// The final checkpoint of a job that was drained is the savepoint that was asked for.
    fn drained(&mut self) {
        if let (Some(request), Some(last)) = (self.draining.take(), &self.last) {
            let answer = self.open_savepoint(&request, last.checkpoint);
            let answer = answer
                .map(|store| store.url().to_string())
                .map_err(|error| error.to_string());
            let _ = request.reply.send(answer);
        }
    }

    fn discard(&mut self, checkpoint: u64, savepoint: Option<u64>, reason: &str) {
        tracing::warn!(job = %self.config.job, checkpoint, reason, "checkpoint discarded");
        self.stats.lock().failed += 1;
        self.parts.remove(&checkpoint);
        // What was prepared for it goes with the next.
        let (store, folder) = self.targets.get(checkpoint, &self.config.store);
        self.targets.set(checkpoint, None);
        if let Err(error) = store.discard(&folder) {
            tracing::warn!(job = %self.config.job, checkpoint, %error, "what a discarded checkpoint wrote is left");
        }
        if let Some(request) = savepoint.and_then(|request| self.savepoints.remove(&request)) {
            let _ = request.reply.send(Err(format!("the savepoint failed: {reason}")));
        }
    }

    fn refuse_all(&mut self, reason: &str) {
        let asked = std::mem::take(&mut self.savepoints)
            .into_values()
            .chain(self.draining.take());
        for request in asked {
            let _ = request.reply.send(Err(reason.to_string()));
        }
    }

    /// Ends the attempt.
    fn end(&mut self, ending: Ending) {
        if !matches!(ending, Ending::Finished) {
            self.cancel.cancel();
        }
        self.ending.get_or_insert(ending);
    }
}

/// Lets each sink publish what it prepared.
///
/// # Errors
/// What a sink fails with.
pub(in crate::runtime) fn publish(
    sinks: &BTreeMap<String, Arc<dyn PreparedSink>>,
    ready: &BTreeMap<String, Vec<Committable>>,
) -> Result<()> {
    for (operator, committables) in ready {
        let sink = sinks.get(operator).ok_or_else(|| {
            EngineError::Plan(format!("the sink '{operator}' of the checkpoint is not in the program"))
        })?;
        sink.publish(committables)?;
    }
    Ok(())
}

/// What a manifest's sinks have prepared.
///
/// # Errors
/// When it cannot be read.
pub(in crate::runtime) fn prepared(manifest: &Manifest) -> Result<BTreeMap<String, Vec<Committable>>> {
    let mut ready: BTreeMap<String, Vec<Committable>> = BTreeMap::new();
    for operator in &manifest.operators {
        for digits in &operator.committables {
            let bytes = unhex(digits).ok_or_else(|| {
                EngineError::BadInput(format!(
                    "what sink '{}' prepared in checkpoint {} is damaged",
                    operator.id, manifest.checkpoint
                ))
            })?;
            ready.entry(operator.id.clone()).or_default().push(bytes);
        }
    }
    Ok(ready)
}

fn known_operators(graph: &JobGraph) -> Vec<KnownOperator> {
    let ids = operator_ids(graph);
    let vertex_ids = crate::plan::vertex_ids(graph);
    let mut known = Vec::new();
    let mut seen = BTreeSet::new();
    for (vertex, operators) in ids.into_iter().enumerate() {
        let parallelism = graph.vertices[vertex].parallelism;
        for (place, id) in operators.into_iter().enumerate() {
            let Some(id) = id else { continue };
            seen.insert(id.clone());
            known.push(KnownOperator {
                id,
                name: format!(
                    "{} of {}",
                    graph.vertices[vertex].chain[place].name(),
                    graph.vertices[vertex].name
                ),
                vertex,
                parallelism,
            });
        }
        known.push(KnownOperator {
            id: super::reporter::in_flight_id(&vertex_ids[vertex]),
            name: format!("rows in flight to {}", graph.vertices[vertex].name),
            vertex,
            parallelism,
        });
    }
    known
}

/// The end of an attempt, told to its driver.
pub(in crate::runtime) fn end(reports: &Sender<Report>) {
    let _ = reports.send(Report::End);
}
