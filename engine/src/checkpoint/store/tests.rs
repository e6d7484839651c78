//! A store of checkpoints under everything that can happen to one.

mod children;
mod damage;
mod faults;
mod round_trip;
mod scopes;
mod sweeps;
mod writers;

use std::ops::Range;
use std::sync::{Arc, OnceLock};

use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Int64Type};
use object_store::memory::InMemory;
use tokio::runtime::{Handle, Runtime};

use super::*;
use crate::checkpoint::manifest::{
    CheckpointKind, MANIFEST_VERSION, Manifest, OperatorState, StoredRun, StoredScope, TableState,
};
use crate::data::Batch;
use crate::state::{FrozenTable, MAX_PARALLELISM, Scope, Snapshot, SnapshotRequest, TableSpec, columns};

/// The runtime for I/O, of all tests.
fn io() -> Handle {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    let runtime = RUNTIME.get_or_init(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        builder.worker_threads(2).enable_all().build().unwrap()
    });
    runtime.handle().clone()
}

fn open(store: Arc<dyn ObjectStore>) -> CheckpointStore {
    CheckpointStore::open("mem://bucket/jobs/job", store, Path::from("jobs/job"), io()).unwrap()
}

fn in_memory() -> CheckpointStore {
    open(Arc::new(InMemory::new()))
}

fn spec() -> TableSpec {
    TableSpec::by_key("t", columns([("key", DataType::Int64), ("value", DataType::Utf8)]), 1)
}

/// Rows with keys of a range, and values that tell the version.
fn rows(keys: Range<i64>, version: i64) -> Batch {
    let values: StringArray = keys.clone().map(|key| Some(format!("{key} of {version}"))).collect();
    let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(keys));
    Batch::try_new(spec().schema, vec![keys, Arc::new(values)]).unwrap()
}

fn keys(keys: &[i64]) -> Batch {
    let column: ArrayRef = Arc::new(Int64Array::from(keys.to_vec()));
    Batch::try_new(columns([("key", DataType::Int64)]), vec![column]).unwrap()
}

fn full(spec: &TableSpec, batches: Vec<Batch>) -> (String, FrozenTable) {
    let mut snapshot = Snapshot::new(SnapshotRequest {
        checkpoint: 1,
        since: None,
    });
    snapshot.full(spec, batches.into_iter().map(Ok));
    ("op".into(), snapshot.into_tables().remove(0))
}

fn delta(spec: &TableSpec, since: u64, changed: Vec<Batch>, deleted: &[i64]) -> (String, FrozenTable) {
    let mut snapshot = Snapshot::new(SnapshotRequest {
        checkpoint: since + 1,
        since: Some(since),
    });
    let deleted = [Ok(keys(deleted))];
    snapshot.delta(spec, since, changed.into_iter().map(Ok), deleted);
    ("op".into(), snapshot.into_tables().remove(0))
}

/// The manifest of a checkpoint that wrote these tables, after `before`.
fn manifest_of(checkpoint: u64, written: &[WrittenTable], before: Option<&Manifest>) -> Manifest {
    let mut manifest = before.cloned().unwrap_or(Manifest {
        version: MANIFEST_VERSION,
        job: "job".into(),
        checkpoint,
        kind: CheckpointKind::Checkpoint,
        triggered_ms: 1_700_000_000_000,
        duration_ms: 5,
        max_parallelism: MAX_PARALLELISM,
        finished: false,
        operators: Vec::new(),
    });
    manifest.checkpoint = checkpoint;
    for table in written {
        let operators = &mut manifest.operators;
        let operator = match operators.iter().position(|operator| operator.id == table.operator) {
            Some(index) => &mut operators[index],
            None => {
                operators.push(OperatorState {
                    id: table.operator.clone(),
                    name: "an operator".into(),
                    parallelism: table.part.parallelism,
                    finished: false,
                    tables: Vec::new(),
                    committables: Vec::new(),
                });
                operators.last_mut().unwrap()
            }
        };
        let name = &table.spec.name;
        let state = match operator.tables.iter().position(|state| state.name == *name) {
            Some(index) => &mut operator.tables[index],
            None => {
                operator.tables.push(TableState {
                    name: name.clone(),
                    version: table.spec.version,
                    scope: match table.spec.scope {
                        Scope::Keyed(_) => StoredScope::Keyed,
                        Scope::Union => StoredScope::Union,
                        Scope::Broadcast => StoredScope::Broadcast,
                    },
                    unique: table.spec.unique,
                    runs: Vec::new(),
                });
                operator.tables.last_mut().unwrap()
            }
        };
        if table.since.is_none() {
            state.runs.retain(|run| run.checkpoint == checkpoint);
        }
        if state.runs.last().is_none_or(|run| run.checkpoint != checkpoint) {
            state.runs.push(StoredRun {
                checkpoint,
                since: table.since,
                parts: Vec::new(),
            });
        }
        state.runs.last_mut().unwrap().parts.push(table.part.clone());
    }
    manifest
}

/// Writes and completes a checkpoint of one subtask.
fn write(
    store: &CheckpointStore,
    checkpoint: u64,
    tables: Vec<(String, FrozenTable)>,
    before: Option<&Manifest>,
) -> Result<Manifest> {
    let folder = checkpoint_folder(checkpoint);
    let written = store.write(&folder, "0-0", tables, (0, 1))?;
    let manifest = manifest_of(checkpoint, &written, before);
    store.commit(&folder, &manifest)?;
    Ok(manifest)
}

/// What subtask `subtask` of `parallelism` finds in the table, by key.
fn restored_by(
    store: &CheckpointStore,
    manifest: &Manifest,
    spec: &TableSpec,
    (subtask, parallelism): (usize, usize),
) -> Result<Vec<(i64, String)>> {
    let mut restored = store.restored(manifest, &manifest.operators[0], subtask, parallelism)?;
    let mut found = Vec::new();
    for batch in restored.take(spec)? {
        let batch = batch?;
        let keys = batch.column(0).as_primitive::<Int64Type>().values();
        let values = batch.column(1).as_string::<i32>().iter();
        found.extend(
            keys.iter()
                .zip(values)
                .map(|(key, value)| (*key, value.unwrap().to_string())),
        );
    }
    found.sort();
    Ok(found)
}

fn restored(store: &CheckpointStore, manifest: &Manifest) -> Result<Vec<(i64, String)>> {
    restored_by(store, manifest, &spec(), (0, 1))
}

fn pairs(batch: &Batch) -> Vec<(i64, String)> {
    let keys = batch.column(0).as_primitive::<Int64Type>().values().iter();
    let values = batch.column(1).as_string::<i32>().iter();
    keys.zip(values)
        .map(|(key, value)| (*key, value.unwrap().to_string()))
        .collect()
}

#[test]
fn a_store_is_opened_by_url_and_by_path() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a job #1/%41 ?");
    let store = CheckpointStore::local(&path, io()).unwrap();
    assert!(!path.exists(), "nothing is made");
    assert_eq!(store.list().unwrap(), [] as [u64; 0]);
    assert!(store.latest().unwrap().is_none());
    let written = write(&store, 1, vec![full(&spec(), vec![rows(0..10, 1)])], None).unwrap();
    assert!(path.join("chk-1/MANIFEST").exists());
    for place in [
        path.display().to_string(),
        store.url().to_string(),
        format!("{}/chk-1/", store.url()),
    ] {
        let located = CheckpointStore::at(&place, io()).unwrap().locate().unwrap();
        assert_eq!(located.manifest, written, "{place}");
        assert_eq!(
            restored(&located.store, &located.manifest).unwrap(),
            pairs(&rows(0..10, 1))
        );
    }
    let error = CheckpointStore::at("s3://bucket/x", io()).unwrap_err();
    assert!(
        error.to_string().contains("there is no store for 's3://bucket/x'"),
        "{error}"
    );
    let error = CheckpointStore::open("nowhere", Arc::new(InMemory::new()), Path::default(), io()).unwrap_err();
    assert!(error.to_string().contains("is no URL"), "{error}");
    let error = CheckpointStore::local(folder.path(), io())
        .unwrap()
        .locate()
        .unwrap_err();
    assert!(error.to_string().contains("there is no checkpoint in"), "{error}");
}

#[test]
fn numbers_go_on_after_all_that_were_begun() {
    let store = in_memory();
    assert_eq!(store.next_checkpoint().unwrap(), 1);
    write(&store, 7, vec![full(&spec(), vec![rows(0..1, 7)])], None).unwrap();
    store
        .write("chk-11", "0-0", vec![full(&spec(), vec![rows(0..1, 11)])], (0, 1))
        .unwrap();
    assert_eq!(store.next_checkpoint().unwrap(), 12);
    assert_eq!(store.list().unwrap(), [7]);
}
