//! The splits of one subtask: those being read, those that wait for their turn, those that have ended, and those that may
//! still appear.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;
use std::task::{Context as TaskWaker, Poll};
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::AbortHandle;

use crate::data::{Batch, EngineError, Result};
use crate::operator::{Context, Positioned, SplitId, SplitReader, SplitSource, SplitStream};
use crate::plan::WatermarkSpec;

use super::times::highest;

/// A batch that has been read and not been handed on.
pub(super) struct Ready {
    pub(super) batch: Batch,
    /// Where the split is after it.
    pub(super) position: Vec<u8>,
    /// What it leads to.
    pub(super) watermark: Option<i64>,
}

impl Ready {
    /// `None` for a batch without rows.
    pub(super) fn new(read: Positioned, watermark: Option<&WatermarkSpec>) -> Result<Option<Self>> {
        if read.batch.num_rows() == 0 {
            return Ok(None);
        }
        let watermark = watermark.map(|spec| highest(&spec.expr, &read.batch)).transpose()?;
        Ok(Some(Self {
            watermark: watermark.flatten(),
            batch: read.batch,
            position: read.position,
        }))
    }
}

/// One split on its way through the scan.
pub(super) struct OpenSplit {
    pub(super) id: SplitId,
    pub(super) stream: SplitStream,
    /// Where it is after what has been handed on.
    pub(super) position: Option<Vec<u8>>,
    pub(super) ready: Option<Ready>,
    pub(super) watermark: Option<i64>,
    /// Since when it has said nothing.
    pub(super) silent_since: Duration,
    pub(super) idle: bool,
    pub(super) ended: bool,
}

/// Where a split is, as a checkpoint has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SplitState {
    pub(super) id: SplitId,
    pub(super) position: Option<Vec<u8>>,
    pub(super) watermark: Option<i64>,
    pub(super) ended: bool,
}

/// The splits of one subtask.
pub(super) struct Share {
    source: Arc<dyn SplitSource>,
    subtask: usize,
    parallelism: usize,
    reader: Option<Box<dyn SplitReader>>,
    has_begun: bool,
    /// Names of splits that are not new.
    known: HashSet<String>,
    /// Of all subtasks, to begin with.
    restored: Vec<SplitState>,
    pub(super) open: Vec<OpenSplit>,
    /// Begun elsewhere or to be begun, in the order of their turns.
    waiting: VecDeque<SplitState>,
    ended: Vec<SplitState>,
    discovery: Option<Discovery>,
}

impl Share {
    pub(super) fn new(source: Arc<dyn SplitSource>, subtask: usize, parallelism: usize) -> Self {
        Self {
            source,
            subtask,
            parallelism,
            reader: None,
            has_begun: false,
            known: HashSet::new(),
            restored: Vec::new(),
            open: Vec::new(),
            waiting: VecDeque::new(),
            ended: Vec::new(),
            discovery: None,
        }
    }

    fn is_own(&self, split: &SplitId) -> bool {
        split.ordinal % self.parallelism as u64 == self.subtask as u64
    }

    /// The splits of all subtasks as they were. To be called before anything else.
    pub(super) fn restore(&mut self, splits: Vec<SplitState>) -> Result<()> {
        if self.has_begun {
            return Err(EngineError::Internal("a scan is restored after it has begun".into()));
        }
        for split in &splits {
            if !self.known.insert(split.id.name.clone()) {
                return Err(EngineError::BadInput(format!(
                    "the state has split '{}' twice: it is damaged, or two sources have the same operator id",
                    split.id.name
                )));
            }
        }
        self.restored = splits;
        Ok(())
    }

    #[cfg(test)]
    pub(super) fn restored(&self) -> &[SplitState] {
        &self.restored
    }

    /// Finds out which splits there are.
    pub(super) fn begin(&mut self, cx: &Context) -> Result<()> {
        if self.has_begun {
            return Ok(());
        }
        let restored = std::mem::take(&mut self.restored);
        let known: Vec<SplitId> = restored.iter().map(|split| split.id.clone()).collect();
        let (source, cancel) = (Arc::clone(&self.source), cx.cancel.clone());
        let mut new = cx.io.block_on(async {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Err(EngineError::Cancelled),
                new = source.splits_besides(&known) => new,
            }
        })?;
        let (ended, mut begun): (Vec<_>, Vec<_>) = restored
            .into_iter()
            .filter(|split| self.is_own(&split.id))
            .partition(|split| split.ended);
        self.ended = ended;
        begun.sort_by(|one, other| one.id.cmp_turn(&other.id));
        // Those that hold rows back come first: they had their turn already.
        let (begun, unbegun): (Vec<_>, Vec<_>) = begun.into_iter().partition(|split| split.position.is_some());
        self.waiting.extend(begun);
        self.waiting.extend(unbegun);
        new.sort_by(SplitId::cmp_turn);
        self.add(new);
        if let Some(interval) = self.source.discovery_interval() {
            self.discovery = Some(Discovery::start(Arc::clone(&self.source), interval, &cx.io));
        }
        self.has_begun = true;
        Ok(())
    }

    /// Takes over those of `found` that are new and this subtask's.
    fn add(&mut self, found: Vec<SplitId>) -> bool {
        let mut any = false;
        for id in found {
            if self.is_own(&id) && self.known.insert(id.name.clone()) {
                any = true;
                self.waiting.push_back(SplitState {
                    id,
                    position: None,
                    watermark: None,
                    ended: false,
                });
            }
        }
        any
    }

    /// Opens splits whose turn it is.
    pub(super) fn open(&mut self, cx: &Context) -> Result<()> {
        let at_once = self.source.open_at_once().max(1);
        // What was open before is open at once, however many subtasks shared it: its watermark counts.
        let is_due = |open: usize, next: &SplitState| open < at_once || next.position.is_some();
        while self.waiting.front().is_some_and(|next| is_due(self.open.len(), next)) {
            let Some(next) = self.waiting.pop_front() else { break };
            let _io = cx.io.enter();
            let reader = match &mut self.reader {
                Some(reader) => reader,
                None => self
                    .reader
                    .insert(self.source.reader(self.subtask, Arc::clone(&cx.task))?),
            };
            self.open.push(OpenSplit {
                stream: reader.open(&next.id, next.position.as_deref())?,
                id: next.id,
                position: next.position,
                ready: None,
                watermark: next.watermark,
                silent_since: cx.clock.monotonic(),
                idle: false,
                ended: false,
            });
        }
        Ok(())
    }

    /// Takes over the splits that have been found since; whether there are any.
    pub(super) fn poll_found(&mut self, task: &mut TaskWaker<'_>) -> Result<bool> {
        let mut any = false;
        while let Some(discovery) = &mut self.discovery {
            match discovery.found.poll_recv(task) {
                Poll::Ready(Some(found)) => any |= self.add(found?),
                Poll::Ready(None) => {
                    return Err(EngineError::Internal("nobody looks for new splits any more".into()));
                }
                Poll::Pending => break,
            }
        }
        Ok(any)
    }

    /// Puts aside the splits that have ended.
    pub(super) fn retire(&mut self) {
        let ended = |split: &mut OpenSplit| split.ended;
        self.ended
            .extend(self.open.extract_if(.., ended).map(|split| SplitState {
                id: split.id,
                position: split.position,
                watermark: split.watermark,
                ended: true,
            }));
    }

    /// Where each split is, after what has been handed on.
    pub(super) fn states(&self) -> Vec<SplitState> {
        let open = self.open.iter().map(|split| SplitState {
            id: split.id.clone(),
            position: split.position.clone(),
            watermark: split.watermark,
            ended: false,
        });
        open.chain(self.waiting.iter().cloned())
            .chain(self.ended.iter().cloned())
            .collect()
    }

    /// Whether none is open or will be of those that are known.
    pub(super) fn are_none(&self) -> bool {
        self.open.is_empty() && self.waiting.is_empty()
    }

    /// Whether splits wait for their turn.
    pub(super) fn some_wait(&self) -> bool {
        !self.waiting.is_empty()
    }

    pub(super) fn looks_for_more(&self) -> bool {
        self.discovery.is_some()
    }

    pub(super) fn have_ended(&self) -> bool {
        self.are_none() && !self.looks_for_more()
    }

    /// Nobody wants more rows; where the splits are stays known.
    pub(super) fn close(&mut self) {
        self.discovery = None;
        for split in &mut self.open {
            split.stream = Box::pin(futures::stream::empty());
            split.ready = None;
        }
    }

    pub(super) fn checkpoint_complete(&mut self, positions: &[(SplitId, Vec<u8>)]) {
        if let Some(reader) = &mut self.reader {
            reader.checkpoint_complete(positions);
        }
    }

    pub(super) fn bad_records(&self) -> Option<u64> {
        Some(self.reader.as_ref()?.bad_records()).filter(|bad_records| *bad_records > 0)
    }
}

impl SplitId {
    /// The order in which splits have their turns.
    fn cmp_turn(&self, other: &Self) -> std::cmp::Ordering {
        (self.ordinal, &self.name).cmp(&(other.ordinal, &other.name))
    }
}

/// Looks for new splits now and then, on the I/O runtime.
struct Discovery {
    found: mpsc::Receiver<Result<Vec<SplitId>>>,
    looking: AbortHandle,
}

impl Discovery {
    fn start(source: Arc<dyn SplitSource>, interval: Duration, io: &tokio::runtime::Handle) -> Self {
        let (sender, found) = mpsc::channel(1);
        let looking = io.spawn(async move {
            loop {
                tokio::time::sleep(interval).await;
                let found = source.splits().await;
                let has_failed = found.is_err();
                if sender.send(found).await.is_err() || has_failed {
                    return;
                }
            }
        });
        Self {
            found,
            looking: looking.abort_handle(),
        }
    }
}

impl Drop for Discovery {
    fn drop(&mut self) {
        self.looking.abort();
    }
}
