//! Processes that die at a fault point, and disks that are full.

use std::path::Path as FilePath;
use std::process::Command;

use super::*;
use crate::checkpoint::fault::{POINTS, VARIABLE};

/// The folder that the child process works in.
const FOLDER: &str = "THALWEG_CHECKPOINT_CHILD";

/// Rows whose file is uploaded in parts.
fn large(version: i64) -> Batch {
    let value = format!("{version} ").repeat(1000);
    let values: StringArray = (0..20_000).map(|_| Some(&value)).collect();
    let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(0..20_000));
    Batch::try_new(spec().schema, vec![keys, Arc::new(values)]).unwrap()
}

/// What the job does with its second checkpoint.
fn second(store: &CheckpointStore) -> Result<()> {
    write(store, 2, vec![full(&spec(), vec![large(2)])], None)?;
    store.retain(&[2]).map(drop)
}

fn child(test: &str, shell: &str, folder: &FilePath, setting: &str) -> std::process::Output {
    let test = format!("checkpoint::store::tests::children::{test}");
    Command::new("sh")
        .args(["-c", &format!("{shell} exec \"$0\" \"$@\"")])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", &test, "--nocapture", "--test-threads=1"])
        .env(FOLDER, folder)
        .env(VARIABLE, setting)
        .output()
        .unwrap()
}

/// The versions of the rows of the latest checkpoint, after a start.
fn recover(folder: &FilePath) -> (u64, String) {
    let store = CheckpointStore::local(folder, io()).unwrap();
    store.sweep_at_start().unwrap();
    let (manifest, passed_over) = store.latest().unwrap().unwrap();
    assert!(passed_over.is_empty(), "{passed_over:?}");
    let found = restored(&store, &manifest).unwrap();
    assert_eq!(found.len(), 20_000);
    assert!(found.windows(2).all(|pair| pair[0].1 == pair[1].1));
    // It goes on.
    second(&store).map_or_else(
        |error| assert!(error.to_string().contains("checkpoint 2 has been")),
        |()| (),
    );
    (manifest.checkpoint, found[0].1[..1].to_string())
}

#[test]
fn a_process_that_dies_at_any_point_leaves_a_whole_checkpoint() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        let store = CheckpointStore::local(FilePath::new(&folder), io()).unwrap();
        let done = second(&store);
        println!("the child ended: {done:?}");
        return;
    }
    for point in POINTS {
        for action in ["", ":error"] {
            let folder = tempfile::tempdir().unwrap();
            let store = CheckpointStore::local(folder.path(), io()).unwrap();
            write(&store, 1, vec![full(&spec(), vec![large(1)])], None).unwrap();
            let name = "a_process_that_dies_at_any_point_leaves_a_whole_checkpoint";
            let output = child(name, "", folder.path(), &format!("{point}:1{action}"));
            let told = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
            let is_ours = ["upload", "manifest", "sweep"].iter().any(|step| point.ends_with(step));
            match (is_ours, action) {
                (false, _) => assert!(told.contains("the child ended: Ok"), "{point}: {told}"),
                (true, "") => {
                    assert!(
                        !output.status.success() && told.contains("aborting at"),
                        "{point}: {told}"
                    );
                    assert!(!told.contains("the child ended"), "{point}: {told}");
                }
                _ => assert!(
                    told.contains("the child ended: Err") && told.contains(point),
                    "{point}: {told}"
                ),
            }
            let expected = match *point {
                "before-upload" | "within-upload" | "after-upload" | "before-manifest" => 1,
                _ => 2,
            };
            assert_eq!(
                recover(folder.path()),
                (expected, expected.to_string()),
                "{point}{action}"
            );
        }
    }
}

#[test]
fn a_setting_that_is_wrong_stops_the_job() {
    if std::env::var_os(FOLDER).is_some() {
        let error = second(&in_memory()).unwrap_err();
        println!("the child was told: {error}");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let output = child(
        "a_setting_that_is_wrong_stops_the_job",
        "",
        folder.path(),
        "before-lunch:1",
    );
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.contains("the child was told: THALWEG_FAULT: there is no fault point 'before-lunch'"),
        "{text}"
    );
}

/// Writes to a folder that takes less than a checkpoint needs.
fn check_full(folder: &FilePath, cause: &str) {
    let store = CheckpointStore::local(folder, io()).unwrap();
    let first = write(&store, 1, vec![full(&spec(), vec![rows(0..100, 1)])], None).unwrap();
    for batch in [rows(0..100_000, 2), large(2)] {
        let error = write(&store, 2, vec![full(&spec(), vec![batch.clone(), batch])], None).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(cause) && text.contains("chk-2/0-0"), "{text}");
        let EngineError::Io { source, .. } = &error else {
            panic!("{error:?}")
        };
        assert!(!matches!(source.kind(), std::io::ErrorKind::Other), "{source:?}");
        store.discard("chk-2").unwrap();
    }
    // What was half written is gone sooner or later; a start does not wait for that.
    store.sweep_at_start().unwrap();
    assert_eq!(store.latest().unwrap().unwrap().0, first);
    assert_eq!(restored(&store, &first).unwrap(), pairs(&rows(0..100, 1)));
    write(&store, 3, vec![full(&spec(), vec![rows(0..100, 3)])], None).unwrap();
}

/// No rights are needed for a limit on the size of each file. The child ignores the signal that comes with it.
#[test]
fn files_that_cannot_grow() {
    if let Some(folder) = std::env::var_os(FOLDER) {
        return check_full(FilePath::new(&folder), "File too large");
    }
    let folder = tempfile::tempdir().unwrap();
    let output = child(
        "files_that_cannot_grow",
        "ulimit -f 64; trap '' XFSZ;",
        folder.path(),
        "",
    );
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 passed"), "{text}{errors}");
}

/// A file system of 2 MB, where this process may mount one (CI runs as root).
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=2m", "tmpfs"])
            .arg(folder.path())
            .status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(folder))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_disk_that_is_full() {
    let Some(disk) = Mounted::new() else {
        println!("no right to mount a small file system here: only the test with a limit on files runs");
        return;
    };
    check_full(&disk.0.path().join("job"), "No space left on device");
}
