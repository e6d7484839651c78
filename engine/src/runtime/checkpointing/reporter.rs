//! What a subtask does for checkpoints: it freezes its operators, and another thread stores what they hand over.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;

use arrow::datatypes::SchemaRef;
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::{Report, folder};
use crate::checkpoint::coordinator::Task;
use crate::checkpoint::{CheckpointStore, fault};
use crate::data::{Barrier, Batch, Result};
use crate::exchange::Port;
use crate::operator::Committable;
use crate::state::{FrozenTable, Snapshot, SnapshotRequest, TableSpec};

/// What the coordinator tells a source.
#[derive(Default)]
pub(in crate::runtime) struct SourceControl {
    barriers: Mutex<VecDeque<Barrier>>,
    completed: Mutex<Vec<u64>>,
    ends: AtomicBool,
    /// Interrupts the source's waiting.
    pub(in crate::runtime) wake: Arc<Notify>,
}

impl SourceControl {
    pub(super) fn trigger(&self, barrier: Barrier) {
        self.barriers.lock().push_back(barrier);
        self.wake.notify_one();
    }

    pub(super) fn complete(&self, checkpoint: u64) {
        self.completed.lock().push(checkpoint);
        self.wake.notify_one();
    }

    /// The source is to behave as if its input had ended.
    pub(super) fn end(&self) {
        self.ends.store(true, Ordering::SeqCst);
        self.wake.notify_one();
    }

    pub(in crate::runtime) fn is_to_end(&self) -> bool {
        self.ends.load(Ordering::Relaxed)
    }

    /// The next barrier to send.
    pub(in crate::runtime) fn barrier(&self) -> Option<Barrier> {
        self.barriers.lock().pop_front()
    }

    /// The checkpoints that have become complete since the last call.
    pub(in crate::runtime) fn completed(&self) -> Vec<u64> {
        std::mem::take(&mut *self.completed.lock())
    }
}

/// Where checkpoints under way are written, where that is not the job's own folder.
#[derive(Clone, Default)]
pub(in crate::runtime) struct Targets(Arc<Mutex<HashMap<u64, (CheckpointStore, String)>>>);

impl Targets {
    pub(super) fn set(&self, checkpoint: u64, target: Option<(CheckpointStore, String)>) {
        match target {
            Some(target) => self.0.lock().insert(checkpoint, target),
            None => self.0.lock().remove(&checkpoint),
        };
    }

    pub(super) fn get(&self, checkpoint: u64, store: &CheckpointStore) -> (CheckpointStore, String) {
        let known = self.0.lock().get(&checkpoint).cloned();
        known.unwrap_or_else(|| (store.clone(), folder(checkpoint)))
    }
}

/// What the operators of a subtask handed over at a barrier: each with its id.
#[derive(Default)]
pub(in crate::runtime) struct Frozen {
    pub(in crate::runtime) tables: Vec<(String, FrozenTable)>,
    pub(in crate::runtime) committables: Vec<(String, Committable)>,
}

impl Frozen {
    pub(in crate::runtime) fn add(&mut self, operator: &str, mut snapshot: Snapshot) {
        let of_operator = |what| (operator.to_string(), what);
        self.committables
            .extend(snapshot.take_committables().into_iter().map(of_operator));
        let tables = snapshot.into_tables().into_iter();
        self.tables.extend(tables.map(|table| (operator.to_string(), table)));
    }
}

/// What a subtask that has read all its input leaves behind.
pub(in crate::runtime) struct FinishedState {
    /// The last barrier that it has passed: what it left behind is part of later checkpoints only.
    pub(in crate::runtime) after: u64,
    /// Where a source was: that all its splits have ended.
    pub(in crate::runtime) tables: Vec<(String, TableSpec, Vec<Batch>)>,
    /// What its sink has prepared.
    pub(in crate::runtime) committables: Vec<(String, Committable)>,
}

/// Reports one subtask's part of checkpoints.
pub(in crate::runtime) struct Reporter {
    pub(in crate::runtime) task: Task,
    pub(in crate::runtime) parallelism: usize,
    pub(in crate::runtime) vertex_id: String,
    /// The id of each operator of the chain that keeps state.
    pub(in crate::runtime) operators: Vec<Option<String>>,
    pub(in crate::runtime) source: Option<Arc<SourceControl>>,
    /// The tables of rows in flight, by input.
    pub(in crate::runtime) in_flight: Vec<TableSpec>,
    pub(in crate::runtime) store: CheckpointStore,
    pub(in crate::runtime) targets: Targets,
    pub(in crate::runtime) reports: Sender<Report>,
    /// The number of the last barrier.
    pub(in crate::runtime) last: u64,
    /// What has been frozen for a barrier whose rows in flight are not known yet.
    pub(in crate::runtime) overtaking: Option<(Barrier, Frozen)>,
}

impl Reporter {
    /// The request for a barrier's snapshot.
    pub(in crate::runtime) fn request(barrier: Barrier) -> SnapshotRequest {
        SnapshotRequest {
            checkpoint: barrier.id,
            since: barrier.since,
        }
    }

    /// Stores what was frozen and acknowledges it, on a thread of its own.
    pub(in crate::runtime) fn acknowledge(&mut self, barrier: Barrier, frozen: Frozen) {
        let checkpoint = barrier.id;
        self.last = self.last.max(checkpoint);
        let (store, folder) = self.targets.get(checkpoint, &self.store);
        let (task, place) = (self.task, (self.task.1, self.parallelism));
        let reports = self.reports.clone();
        let name = format!("snap-{}-{}", task.0, task.1);
        let Frozen { tables, committables } = frozen;
        if !committables.is_empty() {
            let _ = reports.send(Report::Prepared {
                checkpoint,
                committables,
            });
        }
        let write = move || {
            let file = format!("{}-{}.state", task.0, task.1);
            let written = fault::point("before-acknowledge").and_then(|()| store.write(&folder, &file, tables, place));
            let report = match written {
                Ok(tables) => Report::Acknowledged {
                    checkpoint,
                    task,
                    tables,
                },
                Err(error) => Report::Declined {
                    checkpoint,
                    reason: format!("subtask {} of '{}' could not store its state: {error}", task.1, task.0),
                },
            };
            // Nobody listens any more when the attempt is over.
            let _ = reports.send(report);
        };
        if let Err(error) = std::thread::Builder::new().name(name).spawn(write) {
            let _ = self.reports.send(Report::Declined {
                checkpoint,
                reason: format!("no thread could be started: {error}"),
            });
        }
    }

    /// The rows that a barrier has overtaken are known: its snapshot is whole.
    pub(in crate::runtime) fn in_flight(&mut self, barrier: Barrier, rows: Vec<(Port, Batch)>) -> Result<()> {
        let Some((begun, mut frozen)) = self.overtaking.take().filter(|(begun, _)| begun.id == barrier.id) else {
            return Ok(());
        };
        let mut snapshot = Snapshot::new(Self::request(begun));
        for (port, spec) in self.in_flight.iter().enumerate() {
            let of_port = rows.iter().filter(|(of, _)| *of == port);
            let batches = of_port
                .map(|(_, batch)| renamed(batch, &spec.schema))
                .collect::<Result<Vec<_>>>()?;
            snapshot.full(spec, batches.into_iter().map(Ok));
        }
        frozen.add(&in_flight_id(&self.vertex_id), snapshot);
        self.acknowledge(begun, frozen);
        Ok(())
    }

    /// The subtask ends before the rows that a barrier has overtaken are known.
    pub(in crate::runtime) fn give_up(&mut self) {
        if let Some((barrier, frozen)) = self.overtaking.take() {
            let _ = self.reports.send(Report::Prepared {
                checkpoint: barrier.id,
                committables: frozen.committables,
            });
            let _ = self.reports.send(Report::Declined {
                checkpoint: barrier.id,
                reason: format!("subtask {} of vertex {} ended within it", self.task.1, self.task.0),
            });
        }
    }

    /// The subtask has read all its input.
    pub(in crate::runtime) fn finish(&mut self, state: FinishedState) {
        let _ = self.reports.send(Report::Finished { task: self.task, state });
    }
}

/// The id under which the rows in flight to a vertex are kept.
pub(in crate::runtime) fn in_flight_id(vertex_id: &str) -> String {
    format!("{vertex_id}/in-flight")
}

/// A batch under a schema of the same types.
pub(in crate::runtime) fn renamed(batch: &Batch, schema: &SchemaRef) -> Result<Batch> {
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(Batch::try_new_with_options(
        Arc::clone(schema),
        batch.columns().to_vec(),
        &options,
    )?)
}
