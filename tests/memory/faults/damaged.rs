//! Spill files that are damaged while a query runs: it gives the right answer, when it had read them, or an error.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::{LOOK_PERIOD, Setup, assert_none, spilling};
use crate::cell::Cell;
use crate::relation::scramble;
use crate::spill_watch::Watcher;

const ROUNDS_MAX: u64 = 8;
const ERRORS_WANTED: usize = 9;

#[test]
fn a_damaged_spill_file_is_an_error_and_never_a_wrong_answer() {
    let _alone = crate::alone();
    let (mut damaged, mut failed) = (0, Vec::new());
    for round in 0..ROUNDS_MAX {
        for cell in spilling(round) {
            match damage(cell, round) {
                Ok(is_error) => damaged += usize::from(is_error),
                Err(error) => failed.push(format!("{cell}: {error}")),
            }
        }
        if (round > 0 && damaged >= ERRORS_WANTED) || !failed.is_empty() {
            break;
        }
    }
    assert_none(&failed);
    assert!(damaged >= ERRORS_WANTED, "only {damaged} queries saw the damage");
}

/// Runs a query whose spill files are damaged. Whether it ended with an error about that.
fn damage(cell: Cell, round: u64) -> Result<bool, String> {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::new(cell, folder.path());
    let done: HashSet<PathBuf> = HashSet::new();
    let watcher = Watcher::start(folder.path(), LOOK_PERIOD, done, move |done, files| {
        for (path, bytes) in files {
            // Those of DataFusion's operators are not ours to check.
            let is_ours = path.extension().is_some_and(|extension| extension == "arrow");
            if is_ours && bytes > 0 && done.insert(path.clone()) {
                // A file may be gone by now.
                let _ = damage_file(&path, bytes, scramble(round * 1000 + done.len() as u64));
            }
        }
    });
    let result = setup.run();
    let done = watcher.stop();
    setup.after()?;
    match result {
        Ok(digest) if digest == setup.expected => Ok(false),
        Ok(digest) => Err(format!("a wrong answer, {digest:?}, not {:?}", setup.expected)),
        Err(error) if error.contains("is damaged") && !done.is_empty() => Ok(true),
        Err(error) => Err(error),
    }
}

fn damage_file(path: &Path, bytes: u64, chance: u64) -> std::io::Result<()> {
    let file = OpenOptions::new().read(true).write(true).open(path)?;
    match chance % 4 {
        0 => file.set_len(bytes / 2),
        1 => file.write_all_at(&[0; 64], bytes / 2),
        _ => {
            let place = (chance >> 8) % bytes;
            let mut byte = [0];
            file.read_exact_at(&mut byte, place)?;
            file.write_all_at(&[byte[0] ^ (1 << ((chance >> 3) % 8))], place)
        }
    }
}
