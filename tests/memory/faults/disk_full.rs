//! A disk that fills up while queries spill: an error that names the place and the setting, nothing left, and a session
//! that goes on.

use std::path::Path;
use std::process::Command;

use super::{Setup, assert_none, spilling};

/// Set in the child process, in which files cannot grow.
const MARK: &str = "THALWEG_FULL_DISK_CHILD";
const LIMITED: &str = "faults::disk_full::files_that_cannot_grow";

/// Queries that spill into `folder`, which takes less than they need.
fn check(folder: &Path, cause: &str) -> Vec<String> {
    let mut failed = Vec::new();
    for cell in spilling(2) {
        let setup = Setup::new(cell, folder);
        match setup.run() {
            Err(error)
                if error.contains(cause)
                    && error.contains(&folder.display().to_string())
                    && error.contains("io.tmp.dirs") => {}
            Err(error) => failed.push(format!("{cell}: {error}")),
            Ok(_) => failed.push(format!("{cell}: no error")),
        }
        if let Err(error) = setup.after() {
            failed.push(format!("{cell}: {error}"));
        }
        drop(setup);
        let left = crate::spill_watch::left(folder);
        if !left.is_empty() {
            failed.push(format!("{cell}: the session left {left:?}"));
        }
    }
    failed
}

/// No rights are needed for a limit on the size of each file. The child ignores the signal that comes with it.
#[test]
fn files_that_cannot_grow() {
    if std::env::var_os(MARK).is_some() {
        let folder = tempfile::tempdir().unwrap();
        return assert_none(&check(folder.path(), "File too large"));
    }
    let _alone = crate::alone();
    let output = Command::new("sh")
        .args(["-c", "ulimit -f 64; trap '' XFSZ; exec \"$0\" \"$@\""])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", LIMITED, "--nocapture"])
        .env(MARK, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
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
    let _alone = crate::alone();
    let Some(disk) = Mounted::new() else {
        println!("no right to mount a small file system here: only the test with a limit on files runs");
        return;
    };
    assert_none(&check(disk.0.path(), "No space left on device"));
}
