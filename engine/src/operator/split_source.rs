//! [`SplitSource`]: sources that can be read again from a noted position, so that a job can go on where a checkpoint was.
//!
//! A scan's plan is any of DataFusion's. Connectors tell the runtime which of them can be positioned
//! ([`crate::runtime::Environment::sources`]); of all others the position is the number of rows that a partition has
//! given, and to go on there means to read it from the beginning and to drop so many.

use std::collections::HashSet;
use std::fmt::Debug;
use std::sync::Arc;
use std::time::Duration;

use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

use crate::data::{Batch, Result};

/// A part of a source that is read in order: a partition of a topic, a file.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SplitId {
    /// Names the split among all of the source, also after a restart.
    pub name: String,
    /// Subtask `ordinal % parallelism` reads it.
    pub ordinal: u64,
}

/// Rows of a split with the position after them.
#[derive(Clone, Debug)]
pub struct Positioned {
    /// The rows.
    pub batch: Batch,
    /// Where to go on after these rows; the source's own format, kept in checkpoints.
    pub position: Vec<u8>,
}

/// The rows of a split from a position on.
pub type SplitStream = BoxStream<'static, Result<Positioned>>;

/// A source that can be read from a position.
pub trait SplitSource: Debug + Send + Sync {
    /// The splits that there are now. Those of a restored job that are missing here are read on where they were, if
    /// [`SplitReader::open`] can.
    fn splits(&self) -> BoxFuture<'_, Result<Vec<SplitId>>>;

    /// The splits to begin in a job that is restored and goes on with those `known`: those of [`SplitSource::splits`] that
    /// are not among them. A source whose splits have other names when there are more or fewer of them finds out here what
    /// the known ones leave.
    ///
    /// # Errors
    /// When the source cannot be reached, or cannot go on with what is known.
    fn splits_besides<'a>(&'a self, known: &'a [SplitId]) -> BoxFuture<'a, Result<Vec<SplitId>>> {
        Box::pin(async move {
            let names: HashSet<&str> = known.iter().map(|split| split.name.as_str()).collect();
            let mut splits = self.splits().await?;
            splits.retain(|split| !names.contains(split.name.as_str()));
            Ok(splits)
        })
    }

    /// How often to look for new splits; `None` for a source whose splits do not change. A source that looks for new ones
    /// does not end when all it has have ended.
    fn discovery_interval(&self) -> Option<Duration> {
        None
    }

    /// How many splits a subtask reads side by side, where there may be too many to open all at once. Those that wait for
    /// their turn hold back the watermark: the order of reading makes no row late.
    fn open_at_once(&self) -> usize {
        usize::MAX
    }

    /// Whether what has been read cannot be read again, so that the runtime is to keep a log of it.
    fn needs_log(&self) -> bool {
        false
    }

    /// What reads the splits of one subtask.
    ///
    /// # Errors
    /// When the source cannot be reached.
    fn reader(&self, subtask: usize, task: Arc<TaskContext>) -> Result<Box<dyn SplitReader>>;
}

/// Reads the splits of one subtask.
pub trait SplitReader: Send {
    /// The rows of a split from `position` on; from where the source's options say when `None`. Runs on the I/O runtime.
    ///
    /// # Errors
    /// When the split cannot be opened or the position is none of its own.
    fn open(&mut self, split: &SplitId, position: Option<&[u8]>) -> Result<SplitStream>;

    /// A checkpoint with these positions is complete: to tell the source how far the job is, for its monitoring. Must not
    /// wait.
    fn checkpoint_complete(&mut self, _positions: &[(SplitId, Vec<u8>)]) {}

    /// How many records could not be read and were skipped, since the reader was made.
    fn bad_records(&self) -> u64 {
        0
    }
}

/// Knows which plans can be positioned.
pub trait SourceResolver: Debug + Send + Sync {
    /// The source that `plan` reads, when it can be positioned.
    fn split_source(&self, plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn SplitSource>>;
}
