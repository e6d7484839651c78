//! Local files: staged in a hidden folder inside the target (so that publishing is a rename within one file system),
//! published by link or rename.

use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use thalweg_engine::{EngineError, Result};

use crate::filesystem::storage::{StagedFile, Storage, numbered};

/// The ending of a staged file: not one that a listing of a format looks for.
pub(super) const STAGED_SUFFIX: &str = ".inprogress";

/// See the module.
#[derive(Debug)]
pub(crate) struct LocalStorage {
    folder: PathBuf,
    job: String,
    replace: bool,
    rename_on_clash: bool,
    /// Whether files are on the disk, rather than with the system, before they get their final names.
    sync: bool,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// The staging folder, once it exists.
    staging: Option<PathBuf>,
    /// Folders that this job made, parents first.
    made: Vec<PathBuf>,
    opened: usize,
    /// Final names of completed files that are still staged, relative to the target.
    complete: Vec<String>,
    /// How many have got their final names ahead of the others.
    published: usize,
    ended: bool,
}

impl LocalStorage {
    pub(crate) fn new(folder: PathBuf, job: &str, replace: bool, rename_on_clash: bool, sync: bool) -> Self {
        Self {
            folder,
            job: safe_name(job),
            replace,
            rename_on_clash,
            sync,
            state: Arc::default(),
        }
    }

    fn staging(&self, state: &mut State) -> Result<PathBuf> {
        if let Some(staging) = &state.staging {
            return Ok(staging.clone());
        }
        make_folders(&self.folder, &mut state.made).map_err(|e| failed(&self.folder, e))?;
        // A killed process may have left a folder of this name; it is not ours to touch.
        for n in 0.. {
            let suffix = if n == 0 { String::new() } else { format!("-{n}") };
            let staging = self.folder.join(format!(".thalweg-staging-{}{suffix}", self.job));
            match fs::create_dir(&staging) {
                Ok(()) => {
                    state.staging = Some(staging.clone());
                    return Ok(staging);
                }
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && n < 1000 => {}
                Err(e) => return Err(failed(&staging, e)),
            }
        }
        Err(EngineError::Internal("ran out of numbers".into()))
    }

    /// Gives a staged file its final name; the name it got.
    fn publish_one(&self, staging: &Path, name: &str, made: &mut Vec<PathBuf>) -> Result<PathBuf> {
        let staged = staging.join(format!("{name}{STAGED_SUFFIX}"));
        let mut target = self.folder.join(name);
        if let Some(parent) = target.parent() {
            make_folders(parent, made).map_err(|e| failed(parent, e))?;
        }
        if self.replace {
            fs::rename(&staged, &target).map_err(|e| failed(&target, e))?;
            return Ok(target);
        }
        for n in 1.. {
            match move_without_replacing(&staged, &target) {
                Ok(()) => break,
                Err(e) if e.kind() == io::ErrorKind::AlreadyExists && self.rename_on_clash && n < 10_000 => {
                    target = self.folder.join(numbered(name, n));
                }
                Err(e) => return Err(failed(&target, e)),
            }
        }
        Ok(target)
    }

    fn remove_staging(state: &mut State) {
        if let Some(staging) = state.staging.take()
            && let Err(e) = fs::remove_dir_all(&staging)
            && e.kind() != io::ErrorKind::NotFound
        {
            tracing::warn!("cannot remove {}: {e}; remove it by hand", staging.display());
        }
    }

    fn remove_made(state: &mut State) {
        // Only empty ones go: others may have begun to use them.
        for folder in state.made.drain(..).rev() {
            let _ = fs::remove_dir(folder);
        }
    }
}

impl Storage for LocalStorage {
    fn create(&self, name: &str) -> Result<Box<dyn StagedFile>> {
        let mut state = self.state.lock();
        let path = self.staging(&mut state)?.join(format!("{name}{STAGED_SUFFIX}"));
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(|e| failed(parent, e))?;
        }
        let file = File::create_new(&path).map_err(|e| failed(&path, e))?;
        state.opened += 1;
        Ok(Box::new(LocalFile {
            file: BufWriter::with_capacity(256 << 10, file),
            name: name.to_string(),
            sync: self.sync,
            state: Arc::clone(&self.state),
        }))
    }

    fn describe(&self, name: &str) -> String {
        self.folder.join(name).display().to_string()
    }

    fn is_empty(&self) -> bool {
        self.state.lock().opened == 0
    }

    fn target_is_empty(&self) -> Result<bool> {
        match fs::read_dir(&self.folder) {
            Ok(mut entries) => {
                Ok(!entries.any(|entry| entry.is_ok_and(|e| !e.file_name().as_encoded_bytes().starts_with(b"."))))
            }
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(e) => Err(failed(&self.folder, e)),
        }
    }

    fn publish_file(&self, name: &str) -> Result<()> {
        let mut state = self.state.lock();
        let complete = state.complete.iter().position(|complete| complete == name);
        let (Some(place), Some(staging)) = (complete, state.staging.clone()) else {
            return Err(EngineError::Internal(format!(
                "{} is not complete",
                self.describe(name)
            )));
        };
        let path = self.publish_one(&staging, name, &mut state.made)?;
        state.complete.swap_remove(place);
        state.published += 1;
        if self.sync {
            sync_folders(&[path]);
        }
        Ok(())
    }

    fn publish(&self) -> Result<()> {
        let mut state = self.state.lock();
        state.ended = true;
        let unfinished = state.opened - state.published - state.complete.len();
        let mut made = std::mem::take(&mut state.made);
        let mut published = Vec::new();
        let outcome = if unfinished > 0 {
            Err(EngineError::Internal(format!(
                "{unfinished} files under {} are unfinished",
                self.folder.display()
            )))
        } else if let Some(staging) = state.staging.clone() {
            state.complete.iter().try_for_each(|name| {
                published.push(self.publish_one(&staging, name, &mut made)?);
                Ok(())
            })
        } else {
            Ok(())
        };
        Self::remove_staging(&mut state);
        if outcome.is_err() {
            // Half of a result is worse than none.
            for path in published {
                let _ = fs::remove_file(path);
            }
            state.made = made;
            Self::remove_made(&mut state);
            return outcome;
        }
        if self.sync {
            sync_folders(&published);
        }
        Ok(())
    }

    fn discard(&self) {
        let mut state = self.state.lock();
        state.ended = true;
        Self::remove_staging(&mut state);
        Self::remove_made(&mut state);
    }
}

impl Drop for LocalStorage {
    fn drop(&mut self) {
        if !self.state.lock().ended {
            self.discard();
        }
    }
}

struct LocalFile {
    file: BufWriter<File>,
    name: String,
    sync: bool,
    state: Arc<Mutex<State>>,
}

impl Write for LocalFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    /// Keeps the buffer: writers flush after every batch, but only a complete file is ever read.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl StagedFile for LocalFile {
    fn complete(mut self: Box<Self>) -> io::Result<()> {
        self.file.flush()?;
        if self.sync {
            self.file.get_ref().sync_data()?;
        }
        self.state.lock().complete.push(self.name);
        Ok(())
    }
}

/// An id as part of a file's name.
pub(super) fn safe_name(id: &str) -> String {
    let safe = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '_'
        }
    };
    id.chars().map(safe).collect()
}

pub(super) fn failed(path: &Path, source: io::Error) -> EngineError {
    EngineError::Io {
        path: path.display().to_string(),
        source,
    }
}

/// The names of files are safe when their folders are.
fn sync_folders(files: &[PathBuf]) {
    let mut folders: Vec<&Path> = files.iter().filter_map(|path| path.parent()).collect();
    folders.sort();
    folders.dedup();
    for folder in folders {
        if let Ok(folder) = File::open(folder) {
            let _ = folder.sync_all();
        }
    }
}

/// Makes `folder` and notes every level that was not there.
pub(super) fn make_folders(folder: &Path, made: &mut Vec<PathBuf>) -> io::Result<()> {
    if folder.as_os_str().is_empty() || folder.is_dir() {
        return Ok(());
    }
    if let Some(parent) = folder.parent() {
        make_folders(parent, made)?;
    }
    match fs::create_dir(folder) {
        Ok(()) => made.push(folder.to_path_buf()),
        Err(_) if folder.is_dir() => {}
        Err(e) => return Err(e),
    }
    Ok(())
}

/// A rename that fails when `to` exists. A hard link does that atomically; where the file system has none, look first.
pub(super) fn move_without_replacing(from: &Path, to: &Path) -> io::Result<()> {
    match fs::hard_link(from, to) {
        Ok(()) => fs::remove_file(from),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Err(e),
        Err(_) if to.exists() => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => fs::rename(from, to),
    }
}
