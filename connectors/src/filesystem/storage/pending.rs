//! Files that outlive the process that wrote them, under names that readers pass over, until a checkpoint shows them.
//!
//! A committable ([`PendingFile`]) says where a file waits and what it will be called. To publish is to move it there. It may
//! be done again, by another process: a file that waits no more and has its final name is published. Names are never used
//! twice, so nothing is overwritten.
//!
//! What waits without a committable in a checkpoint belongs to nobody: it is what an earlier run of the job left.
//! [`PendingStorage::recover`] removes it. Files of one job and target wait in one folder, whichever sink of the job wrote
//! them, so all sinks of a job must have published before one recovers.

mod local;
mod objects;

use std::fmt::Debug;

use serde::{Deserialize, Serialize};
use thalweg_engine::{EngineError, Result};
use xxhash_rust::xxh3::xxh3_64;

pub(super) use local::LocalPending;
pub(super) use objects::ObjectPending;

use super::StagedFile;
use super::local::{STAGED_SUFFIX, safe_name};

/// The version of the form of committables that this build writes, and the only one that it reads.
const VERSION: u32 = 1;

/// A complete file that waits.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PendingFile {
    version: u32,
    /// The target: a local folder, or the address of an object store.
    folder: String,
    /// Where it waits, relative to the folder.
    staged: String,
    /// What it will be called, relative to the folder.
    name: String,
    /// Bytes.
    length: u64,
}

/// See the module.
pub(crate) trait PendingStorage: Debug + Send + Sync {
    /// Begins a file whose final name, relative to the target, is `name`.
    fn create(&self, name: &str) -> Result<Box<dyn StagedFile>>;
    /// The complete file of that name.
    fn pending(&self, name: &str, length: u64) -> PendingFile;
    /// Makes sure that complete files survive the machine.
    fn seal(&self, files: &[PendingFile]) -> Result<()>;
    /// Gives files their final names, those that do not have them yet.
    fn publish(&self, files: &[PendingFile]) -> Result<()>;
    /// Removes whatever waits for the job under the target.
    fn recover(&self) -> Result<()>;
}

impl PendingFile {
    fn new(folder: &str, staged: String, name: String, length: u64) -> Self {
        Self {
            version: VERSION,
            folder: folder.to_string(),
            staged,
            name,
            length,
        }
    }

    pub(crate) fn encode(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|e| EngineError::Internal(e.to_string()))
    }

    pub(crate) fn decode(bytes: &[u8]) -> Result<Self> {
        let file: Self = serde_json::from_slice(bytes).map_err(|e| {
            EngineError::BadInput(format!(
                "what a sink of files prepared is damaged ({e}); restore an older checkpoint"
            ))
        })?;
        if file.version != VERSION {
            return Err(EngineError::BadInput(format!(
                "what a sink of files prepared has the form {}, this build knows {VERSION}; use the build that wrote the \
                 checkpoint",
                file.version
            )));
        }
        Ok(file)
    }

    /// The file is neither where it waited nor where it should be.
    fn lost(&self, staged: &str, target: &str) -> EngineError {
        EngineError::BadInput(format!(
            "{target} belongs to the checkpoint and is lost: it is neither there nor at {staged}, where it waited; if it was \
             removed on purpose put an empty file in its place, else restore an older checkpoint"
        ))
    }

    /// The file has another length than the one that was written.
    fn damaged(&self, place: &str, length: u64) -> EngineError {
        EngineError::BadInput(format!(
            "{place} has {length} bytes where {} were written; restore an older checkpoint",
            self.length
        ))
    }
}

/// The hidden folder under a target in which the files of a job wait.
fn waiting_folder(job: &str) -> String {
    // Names that differ only in characters that are not safe must not share it.
    format!(
        ".thalweg-pending-{}-{:08x}",
        safe_name(job),
        xxh3_64(job.as_bytes()) as u32
    )
}

/// Where a file waits, relative to the target.
fn staged_name(waiting: &str, name: &str) -> String {
    format!("{waiting}/{name}{STAGED_SUFFIX}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_committable_comes_back_and_a_damaged_one_is_an_error() {
        let file = PendingFile::new("/out", ".w/a.inprogress".into(), "a".into(), 7);
        let bytes = file.encode().unwrap();
        assert_eq!(PendingFile::decode(&bytes).unwrap(), file);
        assert!(
            PendingFile::decode(&bytes[1..])
                .unwrap_err()
                .to_string()
                .contains("damaged")
        );
        let newer = String::from_utf8(bytes)
            .unwrap()
            .replace("\"version\":1", "\"version\":2");
        assert!(
            PendingFile::decode(newer.as_bytes())
                .unwrap_err()
                .to_string()
                .contains("the form 2")
        );
    }

    #[test]
    fn jobs_do_not_share_a_folder() {
        assert_ne!(waiting_folder("a/b"), waiting_folder("a_b"));
        assert!(waiting_folder("ä").starts_with(".thalweg-pending-_-"));
    }
}
