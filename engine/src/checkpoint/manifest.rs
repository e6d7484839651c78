//! [`Manifest`]: what a complete checkpoint consists of. Readable without the job.

use serde::{Deserialize, Serialize};

/// The version of the manifest's form that this build writes, and the newest that it reads.
pub const MANIFEST_VERSION: u32 = 1;

/// A complete checkpoint or savepoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// See [`MANIFEST_VERSION`].
    pub version: u32,
    /// The job's name.
    pub job: String,
    /// The checkpoint's number; rises over all runs of the job.
    pub checkpoint: u64,
    /// Checkpoint or savepoint.
    pub kind: CheckpointKind,
    /// When it was triggered, in milliseconds since the epoch.
    pub triggered_ms: i64,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// Number of key groups.
    pub max_parallelism: u32,
    /// Whether all input had been read: nothing is left but to publish.
    pub finished: bool,
    /// The operators that keep state, sources and sinks.
    pub operators: Vec<OperatorState>,
}

/// Who a checkpoint belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckpointKind {
    /// Automatic, owned by the job.
    Checkpoint,
    /// Asked for, self-contained, owned by the user.
    Savepoint,
}

/// The state of an operator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OperatorState {
    /// Tells the operator from all others, from one version of the program to the next.
    pub id: String,
    /// What it does, for people.
    pub name: String,
    /// Its subtasks.
    pub parallelism: usize,
    /// Whether all its subtasks had finished.
    pub finished: bool,
    /// Its tables.
    pub tables: Vec<TableState>,
    /// What a sink has prepared and may not have published yet, as hexadecimal digits.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub committables: Vec<String>,
}

/// A table: a whole run and the deltas after it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TableState {
    /// The table's name.
    pub name: String,
    /// The table's version.
    pub version: u32,
    /// Whose the rows are.
    pub scope: StoredScope,
    /// So many leading columns tell the rows apart.
    pub unique: usize,
    /// The runs, oldest first. The first is whole, the others are deltas.
    pub runs: Vec<StoredRun>,
}

/// See [`crate::state::Scope`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum StoredScope {
    /// By key group.
    Keyed,
    /// Every subtask has its own.
    Union,
    /// The same everywhere.
    Broadcast,
}

/// What the subtasks wrote of a table in one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredRun {
    /// The checkpoint that wrote it.
    pub checkpoint: u64,
    /// The checkpoint after which the changes are; `None` for a whole table.
    pub since: Option<u64>,
    /// A part per subtask that had rows.
    pub parts: Vec<StoredPart>,
}

/// What one subtask wrote of a table in one checkpoint.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredPart {
    /// The subtask.
    pub subtask: usize,
    /// The subtasks that the operator had.
    pub parallelism: usize,
    /// The file, relative to the job's directory (checkpoint) or the savepoint's.
    pub file: String,
    /// Where its frames begin in the file.
    pub offset: u64,
    /// How long they are, in bytes.
    pub length: u64,
    /// Bytes of the frames that hold deleted keys, after the others.
    pub deleted_length: u64,
    /// Rows.
    pub rows: u64,
    /// Deleted keys.
    pub deleted: u64,
    /// The schema, as an Arrow IPC message in hexadecimal digits.
    pub schema: String,
}

impl Manifest {
    /// The files that the checkpoint refers to, each once.
    pub fn files(&self) -> std::collections::BTreeSet<&str> {
        let runs = self
            .operators
            .iter()
            .flat_map(|operator| &operator.tables)
            .flat_map(|table| &table.runs);
        runs.flat_map(|run| &run.parts).map(|part| part.file.as_str()).collect()
    }

    /// Bytes that checkpoint `checkpoint` wrote for what is in this one.
    pub fn bytes_of(&self, checkpoint: u64) -> u64 {
        let runs = self
            .operators
            .iter()
            .flat_map(|operator| &operator.tables)
            .flat_map(|table| &table.runs);
        let parts = runs
            .filter(|run| run.checkpoint == checkpoint)
            .flat_map(|run| &run.parts);
        parts.map(|part| part.length + part.deleted_length).sum()
    }

    /// Bytes of all files' parts that it refers to.
    pub fn bytes(&self) -> u64 {
        let runs = self
            .operators
            .iter()
            .flat_map(|operator| &operator.tables)
            .flat_map(|table| &table.runs);
        runs.flat_map(|run| &run.parts)
            .map(|part| part.length + part.deleted_length)
            .sum()
    }
}
