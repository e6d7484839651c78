//! `thalweg state inspect` from outside: on a job, a checkpoint, a savepoint, and on what is none of them.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::path::Path;
use std::process::{Command, Output};
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringArray};
use arrow::datatypes::{DataType, Int64Type, SchemaRef, UInt64Type};
use arrow::ipc::reader::StreamReader;
use tempfile::TempDir;
use thalweg::engine::checkpoint::manifest::{
    CheckpointKind, MANIFEST_VERSION, Manifest, OperatorState, StoredRun, StoredScope, TableState,
};
use thalweg::engine::checkpoint::{CheckpointStore, WrittenTable, checkpoint_folder};
use thalweg::engine::state::{MAX_PARALLELISM, Snapshot, SnapshotRequest, TableSpec, columns};
use tokio::runtime::{Builder, Runtime};

fn schema() -> SchemaRef {
    columns([("key", DataType::Int64), ("value", DataType::Utf8)])
}

fn rows(keys: &[i64], value: &str) -> RecordBatch {
    let values: ArrayRef = Arc::new(StringArray::from(vec![value; keys.len()]));
    RecordBatch::try_new(schema(), vec![Arc::new(Int64Array::from(keys.to_vec())), values]).unwrap()
}

/// A job's folder with two checkpoints: the second changes key 2, adds key 4 and removes key 1 of the first.
struct Job {
    folder: TempDir,
    store: CheckpointStore,
    second: Manifest,
    _runtime: Runtime,
}

impl Job {
    fn new() -> Self {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::local(&folder.path().join("job"), runtime.handle().clone()).unwrap();
        let counts = TableSpec::by_key("counts", schema(), 1);
        let mut snapshot = Snapshot::new(SnapshotRequest {
            checkpoint: 1,
            since: None,
        });
        snapshot.full(&counts, [Ok(rows(&[1, 2, 3], "old"))]);
        snapshot.full(&TableSpec::union("splits", schema()), [Ok(rows(&[7], "split"))]);
        let mut manifest = Manifest {
            version: MANIFEST_VERSION,
            job: "words".into(),
            checkpoint: 1,
            kind: CheckpointKind::Checkpoint,
            triggered_ms: 0,
            duration_ms: 3,
            max_parallelism: MAX_PARALLELISM,
            finished: false,
            operators: vec![
                operator("agg-1", "aggregate", &["counts", "splits"]),
                operator("sink-1", "print", &[]),
            ],
        };
        commit(&store, &mut manifest, 1, snapshot);
        let mut snapshot = Snapshot::new(SnapshotRequest {
            checkpoint: 2,
            since: Some(1),
        });
        let gone: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let gone = RecordBatch::try_new(columns([("key", DataType::Int64)]), vec![gone]).unwrap();
        snapshot.delta(&counts, 1, [Ok(rows(&[2, 4], "new"))], [Ok(gone)]);
        commit(&store, &mut manifest, 2, snapshot);
        Self {
            folder,
            store,
            second: manifest,
            _runtime: runtime,
        }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }
}

fn operator(id: &str, name: &str, tables: &[&str]) -> OperatorState {
    let scope = |name: &str| {
        if name == "splits" {
            StoredScope::Union
        } else {
            StoredScope::Keyed
        }
    };
    let table = |name: &&str| TableState {
        name: name.to_string(),
        version: 1,
        scope: scope(name),
        unique: usize::from(*name != "splits"),
        runs: Vec::new(),
    };
    OperatorState {
        id: id.into(),
        name: name.into(),
        parallelism: 1,
        finished: false,
        tables: tables.iter().map(table).collect(),
        committables: Vec::new(),
    }
}

fn commit(store: &CheckpointStore, manifest: &mut Manifest, checkpoint: u64, snapshot: Snapshot) {
    let folder = checkpoint_folder(checkpoint);
    let tables = snapshot
        .into_tables()
        .into_iter()
        .map(|table| ("agg-1".to_string(), table));
    let written = store.write(&folder, "0-0", tables.collect(), (0, 1)).unwrap();
    for WrittenTable { spec, since, part, .. } in written {
        let tables = &mut manifest.operators[0].tables;
        let table = tables.iter_mut().find(|table| table.name == spec.name).unwrap();
        table.runs.push(StoredRun {
            checkpoint,
            since,
            parts: vec![part],
        });
    }
    manifest.checkpoint = checkpoint;
    store.commit(&folder, manifest).unwrap();
}

fn inspect(args: &[&str]) -> Output {
    let command = [&["state", "inspect"], args].concat();
    Command::new(env!("CARGO_BIN_EXE_thalweg"))
        .args(command)
        .output()
        .unwrap()
}

#[track_caller]
fn text(output: &Output) -> &str {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!((output.status.code(), errors.as_ref()), (Some(0), ""));
    std::str::from_utf8(&output.stdout).unwrap()
}

/// One line of cause, one of remedy.
#[track_caller]
fn refused(output: &Output, code: i32, cause: &str) {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{errors}");
    let lines: Vec<&str> = errors.lines().collect();
    assert!(lines.len() == 2 && lines[1].starts_with("  help: "), "{errors}");
    assert!(lines[0].starts_with("error: ") && lines[0].contains(cause), "{errors}");
    assert!(output.stdout.is_empty());
}

#[test]
fn an_overview_of_a_job_a_checkpoint_and_a_savepoint() {
    let job = Job::new();
    let savepoint = CheckpointStore::local(Path::new(&job.path("sp")), job._runtime.handle().clone()).unwrap();
    let mut copied = job.store.copy_into(&job.second, &savepoint, "").unwrap();
    copied.kind = CheckpointKind::Savepoint;
    savepoint.commit("", &copied).unwrap();
    for (place, first) in [
        (job.path("job"), "checkpoint 2 of job 'words': "),
        (job.path("job/chk-1"), "checkpoint 1 of job 'words': "),
        (
            format!("file://{}", job.path("job/chk-2")),
            "checkpoint 2 of job 'words': ",
        ),
        (job.path("sp"), "savepoint 2 of job 'words': "),
    ] {
        let output = inspect(&[&place]);
        let shown = text(&output);
        assert!(shown.starts_with(first), "{shown}");
        for word in [
            "agg-1",
            "aggregate",
            "counts",
            "keyed",
            "splits",
            "union",
            "sink-1",
            "key Int64, value Utf8",
        ] {
            assert!(shown.contains(word), "{word}: {shown}");
        }
    }
    let output = inspect(&[&job.path("job"), "--format", "csv", "--table", "counts"]);
    let shown = text(&output);
    let lines: Vec<&str> = shown.lines().collect();
    assert!(
        lines[0].starts_with("operator,name,parallelism,finished,table,scope,version,unique,runs,rows,deleted,bytes")
    );
    assert!(
        lines[1].starts_with("agg-1,aggregate,1,false,counts,keyed,1,1,2,5,1,"),
        "{shown}"
    );
    assert_eq!(lines.len(), 2);
}

#[test]
fn rows_are_the_newest_of_each_key() {
    let job = Job::new();
    let place = job.path("job");
    let output = inspect(&[&place, "--table", "counts", "--rows", "0", "--format", "arrow"]);
    assert_eq!(output.status.code(), Some(0));
    let mut found: Vec<(i64, String)> = Vec::new();
    for batch in StreamReader::try_new(output.stdout.as_slice(), None).unwrap() {
        let batch = batch.unwrap();
        let keys = batch.column(0).as_primitive::<Int64Type>().values();
        let values = batch.column(1).as_string::<i32>().iter();
        found.extend(keys.iter().copied().zip(values.map(|value| value.unwrap().to_string())));
    }
    found.sort();
    let expected = [(2, "new"), (3, "old"), (4, "new")].map(|(key, value)| (key, value.to_string()));
    assert_eq!(found, expected);
    let output = inspect(&[
        &place,
        "--operator",
        "aggregate",
        "--table",
        "splits",
        "--rows",
        "5",
        "--format",
        "json",
    ]);
    assert_eq!(text(&output), "{\"key\":7,\"value\":\"split\"}\n");
    let output = inspect(&[&place, "--table", "counts", "--rows", "2", "--format", "csv"]);
    assert_eq!(text(&output).lines().count(), 3);
    let output = inspect(&[&place, "--table", "counts", "--rows", "2"]);
    assert!(text(&output).ends_with("\n2 rows\nthere are more; --rows N shows more of them, 0 shows all\n"));
}

#[test]
fn key_groups_add_up() {
    let job = Job::new();
    let output = inspect(&[&job.path("job"), "--key-groups", "--format", "arrow"]);
    let batches: Vec<RecordBatch> = StreamReader::try_new(output.stdout.as_slice(), None)
        .unwrap()
        .map(|batch| batch.unwrap())
        .collect();
    let sum = |column: &str| -> u64 {
        let column = |batch: &RecordBatch| batch.column_by_name(column).unwrap().clone();
        let values = batches
            .iter()
            .flat_map(|batch| column(batch).as_primitive::<UInt64Type>().values().to_vec());
        values.sum()
    };
    assert_eq!(sum("rows"), 3);
    assert!(sum("bytes") >= 3 * 11);
    let output = inspect(&[&job.path("job"), "--key-groups"]);
    assert!(text(&output).contains("key_group"));
}

#[test]
fn what_cannot_be_shown_is_said() {
    let job = Job::new();
    let place = job.path("job");
    refused(
        &inspect(&[&job.path("nowhere")]),
        1,
        "there is no checkpoint in file://",
    );
    refused(
        &inspect(&["s3://bucket/job"]),
        1,
        "there is no store for 's3://bucket/job'",
    );
    refused(
        &inspect(&[&place, "--operator", "x"]),
        1,
        "there is no operator 'x' in checkpoint 2",
    );
    refused(
        &inspect(&[&place, "--table", "x"]),
        1,
        "there is no table 'x' in checkpoint 2",
    );
    refused(
        &inspect(&[&place, "--rows", "3"]),
        2,
        "--rows shows one table, and there are 2",
    );
    let manifest = job.folder.path().join("job/chk-2/MANIFEST");
    std::fs::write(&manifest, "thalweg-manifest 1 0\n{}").unwrap();
    refused(&inspect(&[&job.path("job/chk-2")]), 1, "its checksum does not match");
    // The job's latest is an older one then, and that is said.
    let output = inspect(&[&place]);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        errors.starts_with("warning: checkpoint 2: ") && errors.lines().count() == 1,
        "{errors}"
    );
    assert!(
        String::from_utf8_lossy(&output.stdout).starts_with("checkpoint 1 of job"),
        "{errors}"
    );
}
