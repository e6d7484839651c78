//! The directory of one job's spill files.
//!
//! Next to each directory `thalweg-spill-X` lies `thalweg-spill-X.lock`, which its owner holds locked for as long as it
//! lives: the operating system releases the lock however the owner ends. A directory whose lock is free, or gone, has
//! no owner any more.

use std::fs::{File, TryLockError};
use std::io::{Error, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arrow::datatypes::SchemaRef;
use parking_lot::Mutex;

use super::file::SpillWriter;
use super::{SpillCompression, spill_error};
use crate::Result;

const PREFIX: &str = "thalweg-spill-";
const LOCK_SUFFIX: &str = ".lock";
const CREATE_ATTEMPTS: u32 = 100;

static NEXT_DIRECTORY: AtomicU64 = AtomicU64::new(0);

/// The spill directory of one job: made at the first spill, removed with everything in it when dropped.
#[derive(Debug)]
pub struct SpillDirectory {
    parent: PathBuf,
    compression: SpillCompression,
    directory: Mutex<Option<Arc<Locked>>>,
    next_file: AtomicU64,
}

impl SpillDirectory {
    /// Spill files will go to a new directory under `parent`.
    pub fn new(parent: impl Into<PathBuf>, compression: SpillCompression) -> Self {
        Self {
            parent: parent.into(),
            compression,
            directory: Mutex::new(None),
            next_file: AtomicU64::new(0),
        }
    }

    /// The job's directory, when it has spilled.
    pub fn path(&self) -> Option<PathBuf> {
        self.directory.lock().as_ref().map(|d| d.path.clone())
    }

    /// The job's directory, made now if there is none: for parts that write files of their own.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn ensure(&self) -> Result<PathBuf> {
        Ok(self.directory()?.path.clone())
    }

    /// Opens a new spill file for batches of `schema`.
    ///
    /// # Errors
    /// When the directory or the file cannot be made.
    pub fn create(&self, schema: SchemaRef) -> Result<SpillWriter> {
        let directory = self.directory()?;
        let number = self.next_file.fetch_add(1, Ordering::Relaxed);
        let path = directory.path.join(format!("{number:06}.arrow"));
        SpillWriter::create(path, directory, schema, self.compression)
    }

    fn directory(&self) -> Result<Arc<Locked>> {
        let mut slot = self.directory.lock();
        if let Some(directory) = slot.as_ref() {
            return Ok(Arc::clone(directory));
        }
        std::fs::create_dir_all(&self.parent).map_err(|e| spill_error(&self.parent, e))?;
        let made = Locked::create(&self.parent).map_err(|e| spill_error(&self.parent, e))?;
        Ok(Arc::clone(slot.insert(Arc::new(made))))
    }
}

/// A directory and the lock that says it is in use.
#[derive(Debug)]
pub(super) struct Locked {
    path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Locked {
    fn create(parent: &Path) -> std::io::Result<Self> {
        for _ in 0..CREATE_ATTEMPTS {
            // The number tells directories of one process apart, the random part those of processes that share a disk.
            let number = NEXT_DIRECTORY.fetch_add(1, Ordering::Relaxed);
            let random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), number) as u32;
            let name = format!("{PREFIX}{}-{number}-{random:08x}", std::process::id());
            let lock_path = parent.join(format!("{name}{LOCK_SUFFIX}"));
            let lock = match File::create_new(&lock_path) {
                Ok(lock) => lock,
                Err(e) if e.kind() == ErrorKind::AlreadyExists => continue,
                Err(e) => return Err(e),
            };
            let path = parent.join(name);
            match lock.try_lock() {
                Ok(()) => {}
                // Somebody who sweeps was faster.
                Err(TryLockError::WouldBlock) => continue,
                Err(TryLockError::Error(e)) => {
                    let _ = std::fs::remove_file(&lock_path);
                    return Err(e);
                }
            }
            if let Err(e) = std::fs::create_dir(&path) {
                let _ = std::fs::remove_file(&lock_path);
                return Err(e);
            }
            return Ok(Self {
                path,
                lock_path,
                _lock: lock,
            });
        }
        Err(Error::new(
            ErrorKind::AlreadyExists,
            "no name is free for a spill directory",
        ))
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        remove(&self.path, &self.lock_path);
    }
}

/// First the directory, then the lock: a directory without a lock is one that nobody owns.
fn remove(directory: &Path, lock: &Path) {
    // What cannot be removed now is swept by the next process.
    let _ = std::fs::remove_dir_all(directory);
    let _ = std::fs::remove_file(lock);
}

/// Removes the spill directories under `parent` whose process was killed. Returns how many.
pub fn sweep(parent: &Path) -> usize {
    let Ok(entries) = std::fs::read_dir(parent) else {
        return 0;
    };
    let mut swept = 0;
    for entry in entries.flatten() {
        let name = entry.file_name();
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX)) else {
            continue;
        };
        let directory = parent.join(name.strip_suffix(LOCK_SUFFIX).unwrap_or(name));
        let lock_path = directory.with_file_name(format!("{}{LOCK_SUFFIX}", name.trim_end_matches(LOCK_SUFFIX)));
        let lock = File::open(&lock_path);
        let is_free = match &lock {
            Ok(lock) => lock.try_lock().is_ok(),
            Err(e) => e.kind() == ErrorKind::NotFound,
        };
        if is_free {
            swept += usize::from(directory.exists());
            remove(&directory, &lock_path);
        }
    }
    swept
}
