//! [`Snapshot`]: what an operator hands over at a barrier.

use std::fmt;

use super::TableSpec;
use crate::data::{Batch, Result};

/// Rows that a background thread will draw. Drawing must not wait for the operator.
pub type Frozen = Box<dyn Iterator<Item = Result<Batch>> + Send>;

/// What a snapshot is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotRequest {
    /// The checkpoint's number, rising.
    pub checkpoint: u64,
    /// The checkpoint on which deltas may build: it is complete and is kept as long as this one. `None` asks for everything.
    pub since: Option<u64>,
}

/// One table at a barrier.
pub struct FrozenTable {
    /// The table.
    pub spec: TableSpec,
    /// `None`: `rows` is the whole table. Else the rows that have changed since that checkpoint.
    pub since: Option<u64>,
    /// Rows of the table's schema.
    pub rows: Frozen,
    /// Keys (the first `unique` columns of the schema) that have gone since.
    pub deleted: Option<Frozen>,
}

impl fmt::Debug for FrozenTable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FrozenTable({}, since {:?})", self.spec.name, self.since)
    }
}

/// The state of an operator of one subtask at a barrier.
#[derive(Debug)]
pub struct Snapshot {
    request: SnapshotRequest,
    tables: Vec<FrozenTable>,
    committables: Vec<Vec<u8>>,
}

impl Snapshot {
    /// An empty snapshot.
    pub fn new(request: SnapshotRequest) -> Self {
        Self {
            request,
            tables: Vec::new(),
            committables: Vec::new(),
        }
    }

    /// What it is for.
    pub fn request(&self) -> SnapshotRequest {
        self.request
    }

    /// Adds a whole table. Each batch has the table's schema; empty batches and tables without rows are fine.
    pub fn full<I>(&mut self, spec: &TableSpec, rows: I)
    where
        I: IntoIterator<Item = Result<Batch>>,
        I::IntoIter: Send + 'static,
    {
        self.tables.push(FrozenTable {
            spec: spec.clone(),
            since: None,
            rows: Box::new(rows.into_iter()),
            deleted: None,
        });
    }

    /// Adds what has changed in a table since the checkpoint that the request names: the new form of changed and new rows,
    /// and the keys that have gone. A key may be in one of them only, and once.
    pub fn delta<I, D>(&mut self, spec: &TableSpec, since: u64, changed: I, deleted: D)
    where
        I: IntoIterator<Item = Result<Batch>>,
        I::IntoIter: Send + 'static,
        D: IntoIterator<Item = Result<Batch>>,
        D::IntoIter: Send + 'static,
    {
        debug_assert!(spec.unique > 0, "a table without a key cannot be written as a delta");
        self.tables.push(FrozenTable {
            spec: spec.clone(),
            since: Some(since),
            rows: Box::new(changed.into_iter()),
            deleted: Some(Box::new(deleted.into_iter())),
        });
    }

    /// Adds what a sink has prepared, to be published when the checkpoint is complete.
    pub fn commit(&mut self, committables: impl IntoIterator<Item = Vec<u8>>) {
        self.committables.extend(committables);
    }

    /// Takes out what a sink has prepared.
    pub fn take_committables(&mut self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.committables)
    }

    /// The tables.
    pub fn into_tables(self) -> Vec<FrozenTable> {
        self.tables
    }
}
