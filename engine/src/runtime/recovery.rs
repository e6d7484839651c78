//! What an attempt of a job starts from: which checkpoint, who gets what of it, and what is not let in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::Sender;

use datafusion::physical_expr::PhysicalExpr;

use crate::checkpoint::CheckpointStore;
use crate::checkpoint::coordinator::Task;
use crate::checkpoint::manifest::{Manifest, OperatorState};
use crate::data::{EngineError, Result};
use crate::operator::PreparedSink;
use crate::plan::{JobGraph, OperatorSpec, Partitioning, VertexId, operator_ids, vertex_ids};
use crate::runtime::checkpointing::{
    Checkpointing, Report, Reporter, SourceControl, StartFrom, Targets, in_flight_id, prepared, publish,
};
use crate::runtime::job::Deployed;
use crate::runtime::subtask::Head;
use crate::state::{Evolution, Restored, Scope, TableSpec, distinct_names};

/// A checkpoint to start from.
#[derive(Clone)]
pub(super) struct Origin {
    pub(super) manifest: Manifest,
    pub(super) store: CheckpointStore,
    /// Whether it is the job's own, so that new checkpoints may build on it.
    pub(super) is_own: bool,
    allow_dropped: bool,
    evolution: Evolution,
}

/// What subtasks are given to report checkpoints.
pub(super) struct CheckpointWiring {
    pub(super) operators: Vec<Vec<Option<String>>>,
    pub(super) vertices: Vec<String>,
    pub(super) in_flight: Vec<Vec<TableSpec>>,
    pub(super) sources: BTreeMap<Task, Arc<SourceControl>>,
    pub(super) store: CheckpointStore,
    pub(super) targets: Targets,
    pub(super) reports: Sender<Report>,
    /// The number of the last checkpoint there was.
    pub(super) last: u64,
}

impl CheckpointWiring {
    pub(super) fn new(
        graph: &JobGraph,
        store: CheckpointStore,
        targets: Targets,
        reports: Sender<Report>,
        last: u64,
    ) -> Self {
        let sources = source_tasks(graph).map(|task| (task, Arc::new(SourceControl::default())));
        Self {
            operators: link_ids(graph),
            vertices: vertex_ids(graph),
            in_flight: (0..graph.vertices.len())
                .map(|vertex| in_flight(graph, vertex))
                .collect(),
            sources: sources.collect(),
            store,
            targets,
            reports,
            last,
        }
    }

    pub(super) fn reporter(&self, vertex: VertexId, subtask: usize, parallelism: usize) -> Reporter {
        Reporter {
            task: (vertex, subtask),
            parallelism,
            vertex_id: self.vertices[vertex].clone(),
            operators: self.operators[vertex].clone(),
            source: self.sources.get(&(vertex, subtask)).cloned(),
            in_flight: self.in_flight[vertex].clone(),
            store: self.store.clone(),
            targets: self.targets.clone(),
            reports: self.reports.clone(),
            last: self.last,
            overtaking: None,
        }
    }
}

/// The ids of the operators of each chain as subtasks have them: a collector is none of them, it is a way out.
fn link_ids(graph: &JobGraph) -> Vec<Vec<Option<String>>> {
    let ids = operator_ids(graph).into_iter().zip(&graph.vertices);
    ids.map(|(ids, vertex)| {
        let links = ids.into_iter().zip(&vertex.chain);
        links
            .filter(|(_, operator)| !matches!(operator, OperatorSpec::Collect(_)))
            .map(|(id, _)| id)
            .collect()
    })
    .collect()
}

fn source_tasks(graph: &JobGraph) -> impl Iterator<Item = Task> {
    let of_source =
        |(_, vertex): &(usize, &crate::plan::Vertex)| vertex.chain.first().is_some_and(OperatorSpec::is_source);
    let sources = graph.vertices.iter().enumerate().filter(of_source);
    sources.flat_map(|(id, vertex)| (0..vertex.parallelism).map(move |subtask| (id, subtask)))
}

/// The tables of the rows in flight to a vertex, by input: those of a keyed exchange go where their keys do.
fn in_flight(graph: &JobGraph, vertex: VertexId) -> Vec<TableSpec> {
    let inputs = graph.inputs_of(vertex).map(|edge| edge.input + 1).max().unwrap_or(0);
    (0..inputs)
        .filter_map(|input| {
            let edge = graph.inputs_of(vertex).find(|edge| edge.input == input)?;
            let schema = distinct_names(&graph.vertices[edge.from].output_schema.0);
            let name = format!("input {input}");
            Some(match &edge.partitioning {
                Partitioning::Hash(keys) => {
                    let keys: Vec<Arc<dyn PhysicalExpr>> = keys.iter().map(|key| Arc::clone(&key.expr)).collect();
                    TableSpec::of_rows(name, schema, keys)
                }
                _ => TableSpec::union(name, schema),
            })
        })
        .collect()
}

/// Checks that every operator of a job can take part in checkpoints.
///
/// # Errors
/// Names the first that cannot.
pub(super) fn check_operators(graph: &JobGraph) -> Result<()> {
    let is_sink = |operator: &OperatorSpec| matches!(operator, OperatorSpec::Sink(_));
    // What follows a sink sees nothing before the end but the counts of rows written.
    let mut follows_sink = vec![false; graph.vertices.len()];
    for id in graph
        .topological_order()
        .map_err(|e| EngineError::Plan(e.to_string()))?
    {
        let vertex = &graph.vertices[id];
        let mut follows =
            graph.inputs_of(id).next().is_some() && graph.inputs_of(id).all(|edge| follows_sink[edge.from]);
        for operator in &vertex.chain {
            if !follows && !operator.has_snapshots() {
                return Err(EngineError::Plan(format!(
                    "operator {} of '{}' keeps state that no checkpoint can hold; run the job without checkpoints, or write the query \
                     so that it runs on streams",
                    operator.name(),
                    vertex.name
                )));
            }
            follows |= is_sink(operator);
        }
        follows_sink[id] = follows;
    }
    Ok(())
}

/// The checkpoints that an attempt may start from, the best first.
///
/// # Errors
/// When the job's folder cannot be read, or a checkpoint in it cannot be used and going back before it would show
/// rows twice.
pub(super) fn origins(
    checkpointing: &Checkpointing,
    sinks: &BTreeMap<String, Arc<dyn PreparedSink>>,
) -> Result<Vec<Origin>> {
    let store = &checkpointing.store;
    let mut origins = Vec::new();
    let mut complaints = Vec::new();
    let begins_at = match &checkpointing.start {
        StartFrom::State(state) => state.manifest.checkpoint,
        StartFrom::Latest => 0,
    };
    // The job's own checkpoints count as far as they are of the time since it started from there. Older ones do not: what
    // followed them is published.
    let own = store.list()?.into_iter().rev();
    for checkpoint in own.filter(|checkpoint| *checkpoint > begins_at) {
        match store.load(&format!("chk-{checkpoint}")) {
            Ok(manifest) => origins.push(Origin {
                manifest,
                store: store.clone(),
                is_own: true,
                allow_dropped: false,
                evolution: Evolution::default(),
            }),
            // What is older than a sound one does not matter.
            Err(error) if origins.is_empty() => complaints.push(error.to_string()),
            Err(_) => {}
        }
    }
    for complaint in &complaints {
        tracing::warn!(job = %checkpointing.job, complaint, "a checkpoint cannot be used");
    }
    if origins.is_empty() && !complaints.is_empty() {
        return Err(EngineError::BadInput(format!(
            "no checkpoint of job '{}' can be used: {}; remove {} to start the job anew",
            checkpointing.job,
            complaints.join("; "),
            store.url()
        )));
    }
    if let Some(complaint) = complaints.first() {
        check_going_back(complaint, sinks, store.url())?;
    }
    if let StartFrom::State(state) = &checkpointing.start {
        origins.push(Origin {
            manifest: state.manifest.clone(),
            store: state.store.clone(),
            is_own: false,
            allow_dropped: state.allow_dropped,
            evolution: state.evolution.clone(),
        });
    }
    Ok(origins)
}

/// Refuses to go back before a checkpoint that is damaged where a sink has published, or may have, what it holds.
///
/// # Errors
/// That.
pub(super) fn check_going_back(
    damage: &str,
    sinks: &BTreeMap<String, Arc<dyn PreparedSink>>,
    place: &str,
) -> Result<()> {
    match sinks.iter().find(|(_, sink)| sink.hides_until_published()) {
        None => Ok(()),
        Some((_, sink)) => Err(EngineError::BadInput(format!(
            "{damage}; an older checkpoint cannot take its place, as sink {sink:?} may have published what came after it, which would \
             then be there twice; mend the file, or remove that checkpoint from {place} to accept rows twice"
        ))),
    }
}

/// Lets the sinks finish what the checkpoint holds and remove what no checkpoint does.
///
/// # Errors
/// What a sink fails with.
pub(super) fn recover_sinks(sinks: &BTreeMap<String, Arc<dyn PreparedSink>>, origin: Option<&Origin>) -> Result<()> {
    if let Some(origin) = origin {
        let mut ready = prepared(&origin.manifest)?;
        if origin.allow_dropped {
            ready.retain(|operator, _| sinks.contains_key(operator));
        }
        publish(sinks, &ready)?;
    }
    sinks.values().try_for_each(|sink| sink.recover())
}

/// Refuses state that no operator of the program takes.
fn check_claimed(graph: &JobGraph, origin: &Origin) -> Result<()> {
    if origin.allow_dropped {
        return Ok(());
    }
    let mut known: BTreeSet<String> = operator_ids(graph).into_iter().flatten().flatten().collect();
    known.extend(vertex_ids(graph).iter().map(|id| in_flight_id(id)));
    let holds = |operator: &&OperatorState| {
        let runs = operator.tables.iter().flat_map(|table| &table.runs);
        runs.flat_map(|run| &run.parts).any(|part| part.rows > 0) || !operator.committables.is_empty()
    };
    let lost = origin
        .manifest
        .operators
        .iter()
        .filter(holds)
        .find(|operator| !known.contains(&operator.id));
    match lost {
        None => Ok(()),
        Some(operator) => Err(EngineError::Plan(format!(
            "checkpoint {} holds state of operator '{}' ({}), which the program does not have; give the operator its old uid, or drop \
             the state: SET 'execution.state-recovery.ignore-unclaimed-state' = 'true'",
            origin.manifest.checkpoint, operator.id, operator.name
        ))),
    }
}

/// Hands the subtasks what they had; each on a thread of its own, as much of it is.
///
/// # Errors
/// When the state does not fit the program or cannot be read.
pub(super) fn restore(
    graph: &JobGraph,
    origin: &Origin,
    wiring: &CheckpointWiring,
    subtasks: &mut [Deployed],
) -> Result<()> {
    check_claimed(graph, origin)?;
    std::thread::scope(|scope| {
        let running: Vec<_> = subtasks
            .iter_mut()
            .map(|deployed| scope.spawn(move || restore_subtask(graph, origin, wiring, deployed)))
            .collect();
        let mut outcome = Ok(());
        for thread in running {
            let one = thread.join().unwrap_or_else(|_| {
                Err(EngineError::BadInput(
                    "the state could not be taken back: its reader panicked".into(),
                ))
            });
            outcome = outcome.and(one);
        }
        outcome
    })
}

fn restore_subtask(
    graph: &JobGraph,
    origin: &Origin,
    wiring: &CheckpointWiring,
    deployed: &mut Deployed,
) -> Result<()> {
    let (vertex, subtask) = deployed.task;
    let parallelism = graph.vertices[vertex].parallelism;
    let ids = &wiring.operators[vertex];
    let state_of = |id: &str| origin.manifest.operators.iter().find(|state| state.id == id);
    let open = |state: &OperatorState| -> Result<Restored> {
        let restored = origin.store.restored(&origin.manifest, state, subtask, parallelism)?;
        Ok(restored.with_evolution(origin.evolution.clone()))
    };
    let mut states = ids
        .iter()
        .map(|id| id.as_deref().and_then(state_of).map(open).transpose())
        .collect::<Result<Vec<_>>>()?;
    let known: Vec<&OperatorState> = ids.iter().flatten().filter_map(|id| state_of(id)).collect();
    deployed.subtask.had_finished = !known.is_empty() && known.iter().all(|state| state.finished);
    if let (Head::Source(source), Some(Some(state))) = (&mut deployed.subtask.head, states.first_mut()) {
        let restored = source.scan.restore(state, &source.context);
        restored.map_err(|error| error.in_operator(&source.context.operator))?;
    }
    if deployed.subtask.had_finished {
        return Ok(());
    }
    deployed.subtask.chain.restore(&mut states)?;
    if !origin.allow_dropped {
        for (restored, id) in states.iter().zip(ids) {
            if let Some(table) = restored.as_ref().and_then(|restored| restored.left().next()) {
                return Err(EngineError::Plan(format!(
                    "checkpoint {} holds table '{table}' of operator '{}', which the operator no longer has; drop it with \
                     SET 'execution.state-recovery.ignore-unclaimed-state' = 'true'",
                    origin.manifest.checkpoint,
                    id.as_deref().unwrap_or_default()
                )));
            }
        }
    }
    if let (Head::Gate(gate), Some(state)) = (
        &deployed.subtask.head,
        state_of(&in_flight_id(&wiring.vertices[vertex])),
    ) {
        let mut restored = open(state)?;
        for (port, spec) in wiring.in_flight[vertex].iter().enumerate() {
            let edge = graph.inputs_of(vertex).find(|edge| edge.input == port);
            let Some(schema) = edge.map(|edge| &graph.vertices[edge.from].output_schema.0) else {
                continue;
            };
            for (number, batch) in restored.take(spec)?.enumerate() {
                let is_mine = !matches!(spec.scope, Scope::Union) || number % parallelism == subtask;
                if is_mine {
                    gate.preload(port, crate::runtime::checkpointing::renamed(&batch?, schema)?);
                }
            }
        }
    }
    Ok(())
}
