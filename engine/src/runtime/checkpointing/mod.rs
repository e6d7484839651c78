//! Checkpoints of a running job: the thread that carries out what the [`crate::checkpoint::coordinator`] decides, what subtasks
//! report to it, and what a job starts from.

mod driver;
mod manifests;
mod reporter;

use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};

use parking_lot::Mutex;

pub(super) use driver::{Driver, DriverParts, Ending, end, prepared, publish};
pub(super) use reporter::{FinishedState, Frozen, Reporter, SourceControl, Targets, in_flight_id, renamed};

use crate::checkpoint::coordinator::{CheckpointOptions, Task};
use crate::checkpoint::manifest::Manifest;
use crate::checkpoint::{CheckpointStore, WrittenTable};
use crate::data::{EngineError, Result};
use crate::operator::Committable;
use crate::state::Evolution;

/// What a job needs to take checkpoints.
#[derive(Clone)]
pub struct Checkpointing {
    /// The job's name: it finds its checkpoints again by it, and sinks what they staged.
    pub job: String,
    /// Where its checkpoints are.
    pub store: CheckpointStore,
    /// When they are taken.
    pub options: CheckpointOptions,
    /// What the first attempt starts from.
    pub start: StartFrom,
    /// Opens the folder of a savepoint.
    pub open: OpenStore,
}

/// Opens the store at a path or URL.
pub type OpenStore = Arc<dyn Fn(&str) -> Result<CheckpointStore> + Send + Sync>;

/// What a job starts from.
#[derive(Clone, Debug)]
pub enum StartFrom {
    /// The newest complete checkpoint of the job's own, if there is one.
    Latest,
    /// A savepoint, or a checkpoint of another job.
    State(Box<StartState>),
}

/// A savepoint to start from.
#[derive(Clone, Debug)]
pub struct StartState {
    /// Where it is, for messages.
    pub path: String,
    /// Its store.
    pub store: CheckpointStore,
    /// Its manifest.
    pub manifest: Manifest,
    /// Whether state of operators that the program no longer has is dropped rather than refused.
    pub allow_dropped: bool,
    /// How columns have been renamed.
    pub evolution: Evolution,
}

/// What a job's checkpoints have been so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CheckpointStats {
    /// Complete checkpoints.
    pub completed: u64,
    /// Those that were discarded.
    pub failed: u64,
    /// How often the job has started again.
    pub restarts: u64,
    /// The newest complete one.
    pub last: Option<CheckpointSummary>,
    /// The checkpoint that the job, or its last restart, started from.
    pub restored: Option<u64>,
    /// How long it took to restore, in milliseconds.
    pub restore_ms: u64,
}

/// One complete checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CheckpointSummary {
    /// Its number.
    pub checkpoint: u64,
    /// From the trigger to the stored manifest, in milliseconds.
    pub duration_ms: u64,
    /// Bytes that it wrote.
    pub written_bytes: u64,
    /// Bytes of the state that it refers to.
    pub state_bytes: u64,
    /// Whether it was written as a whole.
    pub is_full: bool,
}

/// What subtasks and clients tell the driver.
pub(super) enum Report {
    /// A sink has prepared this at a barrier. Sent before the state is stored, so that it comes before whatever the task
    /// says of later barriers.
    Prepared {
        checkpoint: u64,
        committables: Vec<(String, Committable)>,
    },
    /// A task's part of a checkpoint is stored.
    Acknowledged {
        checkpoint: u64,
        task: Task,
        tables: Vec<WrittenTable>,
    },
    /// A task could not store its part.
    Declined { checkpoint: u64, reason: String },
    /// A task has read all its input.
    Finished { task: Task, state: FinishedState },
    /// Somebody asks for a savepoint.
    Asked(SavepointRequest),
    /// The attempt is over.
    End,
}

/// A savepoint that somebody waits for.
pub(super) struct SavepointRequest {
    pub(super) target: String,
    pub(super) ending: SavepointEnding,
    pub(super) reply: Sender<std::result::Result<String, String>>,
}

/// What becomes of the job after a savepoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SavepointEnding {
    /// It goes on.
    GoOn,
    /// It ends; what is open stays open in the savepoint.
    Stop,
    /// It ends as if its input had: everything that is open is completed first.
    Drain,
}

/// The way to a running job's coordinator, for its clients.
#[derive(Clone, Default)]
pub struct JobControl {
    reports: Arc<Mutex<Option<Sender<Report>>>>,
}

impl JobControl {
    pub(super) fn connect(&self, reports: Option<Sender<Report>>) {
        *self.reports.lock() = reports;
    }

    /// Takes a savepoint in a new folder below `target`; waits until it is complete. Gives its path.
    ///
    /// # Errors
    /// When the job takes no checkpoints, is not running, or the savepoint fails.
    pub fn savepoint(&self, target: &str, ending: SavepointEnding) -> Result<String> {
        let (reply, answer) = channel();
        let request = SavepointRequest {
            target: target.to_string(),
            ending,
            reply,
        };
        let not_running = || {
            EngineError::Plan(
                "the job takes no savepoint: it is not running, or has no checkpoints (SET 'execution.checkpointing.dir')".into(),
            )
        };
        {
            let reports = self.reports.lock();
            let sender = reports.as_ref().ok_or_else(not_running)?;
            sender.send(Report::Asked(request)).map_err(|_| not_running())?;
        }
        answer
            .recv()
            .map_err(|_| EngineError::Plan("the job ended before the savepoint was complete".into()))?
            .map_err(EngineError::Plan)
    }
}

/// `n` as a folder's name.
pub(super) fn folder(checkpoint: u64) -> String {
    format!("chk-{checkpoint}")
}
