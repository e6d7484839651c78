//! Looks into a spill directory while a query runs.

use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

/// What was seen in a spill directory.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Seen {
    /// The most spill files at once.
    pub(crate) files: usize,
    /// The most bytes in them at once.
    pub(crate) bytes: u64,
}

/// The spill files of jobs and their sizes, anywhere below `parent`.
pub(crate) fn spill_files(parent: &Path) -> Vec<(PathBuf, u64)> {
    let mut files = Vec::new();
    let mut folders = vec![parent.to_path_buf()];
    // Files and folders go away while they are listed.
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if entry.path().extension().is_none_or(|extension| extension != "lock") {
                files.push((entry.path(), metadata.len()));
            }
        }
    }
    files
}

/// Everything that is left directly below `parent`.
pub(crate) fn left(parent: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(parent).into_iter().flatten().flatten();
    entries
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// A thread that calls a function with the spill files every now and then, until it is stopped.
pub(crate) struct Watcher<T> {
    stop: Sender<()>,
    thread: JoinHandle<T>,
}

impl<T: Send + 'static> Watcher<T> {
    /// Calls `look` with the state and the files below `parent`, each `period`.
    pub(crate) fn start(
        parent: &Path,
        period: Duration,
        mut state: T,
        look: impl Fn(&mut T, Vec<(PathBuf, u64)>) + Send + 'static,
    ) -> Self {
        let (stop, stopped): (_, Receiver<()>) = channel();
        let parent = parent.to_path_buf();
        let thread = std::thread::spawn(move || {
            while stopped.recv_timeout(period) == Err(RecvTimeoutError::Timeout) {
                look(&mut state, spill_files(&parent));
            }
            state
        });
        Self { stop, thread }
    }

    /// The state at the end.
    pub(crate) fn stop(self) -> T {
        drop(self.stop);
        self.thread.join().unwrap()
    }
}
