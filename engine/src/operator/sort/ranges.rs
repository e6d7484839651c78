//! Runs shared by the subtasks of one sort: each merges one range of the keys out of the runs of all, so that all cores
//! merge and the outputs, put one after the other, are in order.

use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

use crate::data::Result;
use crate::exchange::CancelToken;
use crate::operator::sort::keys::{KeyEncoder, OwnedKey};
use crate::operator::sort::run::{KeyRange, Run};

/// How often a subtask that waits for the others looks whether the job was cancelled.
const LOOK_AT_CANCEL: Duration = Duration::from_millis(20);

/// What the subtasks of one sort share.
#[derive(Default)]
pub struct SharedRuns {
    state: Mutex<State>,
    complete: Condvar,
}

#[derive(Default)]
struct State {
    runs: Vec<Arc<SharedRun>>,
    arrived: usize,
    left: usize,
    bounds: Option<Arc<[OwnedKey]>>,
}

impl std::fmt::Debug for SharedRuns {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SharedRuns")
    }
}

/// A run that several subtasks read.
pub(super) struct SharedRun(pub(super) Run);

impl AsRef<Run> for SharedRun {
    fn as_ref(&self) -> &Run {
        &self.0
    }
}

/// A run by reference count.
pub(super) struct RunHandle(Arc<SharedRun>);

impl AsRef<Run> for RunHandle {
    fn as_ref(&self) -> &Run {
        &self.0.0
    }
}

/// One subtask's part in the sharing; one that leaves early counts as having brought nothing.
pub(super) struct Membership {
    shared: Arc<SharedRuns>,
    subtask: usize,
    subtasks: usize,
    has_arrived: bool,
}

impl Membership {
    pub(super) fn new(shared: Arc<SharedRuns>, subtask: usize, subtasks: usize) -> Self {
        Self {
            shared,
            subtask,
            subtasks,
            has_arrived: false,
        }
    }

    /// Brings this subtask's runs, waits for those of the others, and returns all.
    ///
    /// # Errors
    /// When the job is cancelled.
    pub(super) fn exchange(&mut self, runs: Vec<Run>, cancel: &CancelToken) -> Result<Vec<RunHandle>> {
        let mut state = self.shared.state.lock();
        state.runs.extend(runs.into_iter().map(|run| Arc::new(SharedRun(run))));
        state.arrived += 1;
        self.has_arrived = true;
        self.shared.complete.notify_all();
        while state.arrived < self.subtasks {
            cancel.check()?;
            self.shared.complete.wait_for(&mut state, LOOK_AT_CANCEL);
        }
        Ok(state.runs.iter().map(|run| RunHandle(Arc::clone(run))).collect())
    }

    /// This subtask's range of the keys; `None` when there are fewer ranges than subtasks and it gets none.
    pub(super) fn range(&self, runs: &[RunHandle], encoder: &KeyEncoder) -> Option<KeyRange> {
        let mut state = self.shared.state.lock();
        let bounds = state.bounds.get_or_insert_with(|| {
            let runs: Vec<&Run> = runs.iter().map(AsRef::as_ref).collect();
            bounds(&runs, self.subtasks, encoder).into()
        });
        let low = self.subtask.checked_sub(1).map(|below| bounds.get(below).cloned());
        match low {
            Some(None) => None,
            low => Some(KeyRange {
                low: low.flatten(),
                high: bounds.get(self.subtask).cloned(),
            }),
        }
    }

    /// This subtask reads no run any more: what only it referred to is freed.
    pub(super) fn leave(&self) {
        let mut state = self.shared.state.lock();
        state.left += 1;
        if state.left == self.subtasks {
            state.runs.clear();
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        if !self.has_arrived {
            self.shared.state.lock().arrived += 1;
            self.shared.complete.notify_all();
        }
    }
}

/// The keys that cut all rows into `parts` ranges of about equal numbers of rows, going by the first keys of blocks.
fn bounds(runs: &[&Run], parts: usize, encoder: &KeyEncoder) -> Vec<OwnedKey> {
    let mut sample: Vec<(&OwnedKey, usize)> = runs.iter().flat_map(|run| run.sample()).collect();
    sample.sort_by(|(a, _), (b, _)| encoder.compare(a, b));
    let total: usize = runs.iter().map(|run| run.len()).sum();
    let mut bounds: Vec<OwnedKey> = Vec::with_capacity(parts.saturating_sub(1));
    let mut before = 0;
    for (key, rows) in sample {
        if bounds.len() + 1 < parts && before * parts >= total * (bounds.len() + 1) && before > 0 {
            // Equal bounds would make an empty range, which is right, but a wider one serves better.
            bounds.push(key.clone());
        }
        before += rows;
    }
    bounds
}
