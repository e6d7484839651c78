//! The command `thalweg`, ended by signals while it spills.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};

use super::{LOOK_PERIOD, MB, PATIENCE, when_spilled};
use crate::cell::{session, start, text_of};
use crate::spill_watch::{left, spill_files};

const BINARY: &str = env!("CARGO_BIN_EXE_thalweg");
const ROWS: usize = 40_000;

/// A file of about 40 MB in memory.
fn write_file(path: &Path) {
    let spill = tempfile::tempdir().unwrap();
    let session = session(1024 * MB, 2, spill.path());
    let rows = format!("SELECT i, repeat(md5(CAST(i AS VARCHAR)), 32) AS s FROM generate_series(1, {ROWS}) g(i)");
    let copied = start(&session, &format!("COPY ({rows}) TO '{}'", path.display())).unwrap();
    copied.for_each(|batch| drop(batch.map_err(|error| text_of(&error)).unwrap()));
}

/// A process whose spill files lie in `spill`. Nobody reads what it prints: it cannot end while it has more to print than
/// a pipe holds.
fn sort(file: &Path, spill: &Path) -> Child {
    Command::new(BINARY)
        .args(["sql", "--memory", "8MB", "--parallelism", "2", "--format", "csv", "-c"])
        .arg(format!("SELECT s, i FROM '{}' ORDER BY s", file.display()))
        .env("TMPDIR", spill)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// The process, when it has spilled.
fn spilling_sort(file: &Path, spill: &Path) -> Child {
    let (watcher, spilled) = when_spilled(spill);
    let mut child = sort(file, spill);
    let started = crate::now();
    let is_spilling = loop {
        if spilled.recv_timeout(LOOK_PERIOD).is_ok() {
            break true;
        }
        if started.elapsed() > PATIENCE || child.try_wait().unwrap().is_some() {
            break false;
        }
    };
    watcher.stop();
    if !is_spilling {
        let _ = child.kill();
        let (status, output) = end(child);
        panic!("it ended, or {PATIENCE:?} passed, and it had not spilled: {status}: {output}");
    }
    child
}

/// Reads what the process still prints, and waits for its end.
fn end(child: Child) -> (ExitStatus, String) {
    let output = child.wait_with_output().unwrap();
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn what_a_killed_process_leaves_is_swept_by_the_next() {
    let _alone = crate::alone();
    let folder = tempfile::tempdir().unwrap();
    let (file, spill) = (folder.path().join("rows.parquet"), folder.path().join("spill"));
    std::fs::create_dir(&spill).unwrap();
    write_file(&file);
    let mut child = spilling_sort(&file, &spill);
    child.kill().unwrap();
    let (status, _) = end(child);
    assert!(!status.success());
    assert!(!spill_files(&spill).is_empty(), "a killed process cannot clean up");
    let next = Command::new(BINARY)
        .args(["sql", "--format", "csv", "-c", "SELECT 42 AS n"])
        .env("TMPDIR", &spill)
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&next.stdout), "n\n42\n");
    assert_eq!(left(&spill), [] as [String; 0]);
}

#[test]
fn a_running_process_keeps_its_files_when_another_starts() {
    let _alone = crate::alone();
    let folder = tempfile::tempdir().unwrap();
    let (file, spill) = (folder.path().join("rows.parquet"), folder.path().join("spill"));
    std::fs::create_dir(&spill).unwrap();
    write_file(&file);
    let mut child = spilling_sort(&file, &spill);
    let next = Command::new(BINARY)
        .args(["sql", "--format", "csv", "-c", "SELECT 42 AS n"])
        .env("TMPDIR", &spill)
        .status()
        .unwrap();
    assert!(next.success());
    let mut text = String::new();
    child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    let (status, errors) = end(child);
    assert!(status.success(), "{errors}");
    assert_eq!(text.lines().count(), ROWS + 1);
    assert!(text.lines().skip(1).is_sorted_by_key(|line| line.split(',').next()));
    assert_eq!(left(&spill), [] as [String; 0]);
}

#[test]
fn a_terminated_process_removes_its_files() {
    let _alone = crate::alone();
    let folder = tempfile::tempdir().unwrap();
    let (file, spill) = (folder.path().join("rows.parquet"), folder.path().join("spill"));
    std::fs::create_dir(&spill).unwrap();
    write_file(&file);
    let child = spilling_sort(&file, &spill);
    let sent = Command::new("kill")
        .args(["-TERM", &child.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    let (status, errors) = end(child);
    assert_eq!(status.code(), Some(143), "{errors}");
    assert_eq!(left(&spill), [] as [String; 0]);
}
