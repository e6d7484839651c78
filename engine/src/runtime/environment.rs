//! What a process lends all its jobs.

use std::any::Any;
use std::collections::HashMap;
use std::fmt::Debug;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use thalweg_memory::{MemoryManager, SpillCompression};

use crate::exchange::BufferTimeout;
use crate::operator::{SinkConnector, SourceResolver};
use crate::runtime::checkpointing::Checkpointing;
use crate::runtime::restart::RestartStrategy;
use crate::time::Clock;

/// Explains a failed scan better than the reader that failed: which file, which line.
pub trait ScanDiagnosis: Debug + Send + Sync {
    /// A message that names the place, or `None` when there is nothing to add.
    fn explain(&self, scan: &Arc<dyn ExecutionPlan>, context: &TaskContext, cause: &DataFusionError) -> Option<String>;
}

/// Takes one line of text.
pub type Notices = dyn Fn(&str) + Send + Sync;

/// What a process lends all its jobs.
#[derive(Clone)]
pub struct Environment {
    /// The memory budget.
    pub memory: MemoryManager,
    /// Where I/O runs.
    pub io: tokio::runtime::Handle,
    /// Processing time.
    pub clock: Arc<dyn Clock>,
    /// For functions and scans of DataFusion.
    pub task: Arc<TaskContext>,
    /// The sinks by name.
    pub sinks: HashMap<String, Arc<dyn SinkConnector>>,
    /// Knows which scans can go on from a position.
    pub sources: Option<Arc<dyn SourceResolver>>,
    /// Where the job keeps logs of sources that cannot be read again: below the directory of its checkpoints. Such a source is
    /// refused when `None`.
    pub wal_directory: Option<PathBuf>,
    /// Explains failed scans.
    pub diagnosis: Option<Arc<dyn ScanDiagnosis>>,
    /// Under which directory jobs spill (`io.tmp.dirs`).
    pub spill_parent: PathBuf,
    /// How spill files are compressed (`taskmanager.memory.spill.compression`).
    pub spill_compression: SpillCompression,
    /// Rows that a batch should have.
    pub batch_size: usize,
    /// The default of edges that do not set their own.
    pub buffer_timeout: BufferTimeout,
    /// What may wait in the channels of one input of one subtask together, in bytes.
    pub input_credit_bytes: usize,
    /// How many bytes make a batch full for an exchange; as [`Environment::batch_bytes`] when `None`. Streaming jobs send
    /// smaller ones, so that at a moderate rate rows need not wait long for a batch to fill
    /// (`taskmanager.memory.segment-size`). A batch that is larger when it reaches the exchange is not cut.
    pub exchange_bytes: Option<usize>,
    /// How often sources send a latency marker (`metrics.latency.interval`); never when `None`.
    pub latency_interval: Option<Duration>,
    /// Whether and how streaming jobs take checkpoints.
    pub checkpointing: Option<Checkpointing>,
    /// Whether and when a failed job starts again.
    pub restart: RestartStrategy,
    /// Is told what users should know of a job that goes on: that it has failed and starts again, where it goes on from.
    pub notices: Option<Arc<Notices>>,
    /// Lives as long as the job: what must not be let go of before it has ended.
    pub keep: Option<Arc<dyn Any + Send + Sync>>,
}

/// The part of the memory budget that one batch should have at most.
const BATCHES_IN_BUDGET: usize = 128;
const BATCH_BYTES_MIN: usize = 64 << 10;
const BATCH_BYTES_MAX: usize = 4 << 20;
/// The part of the memory budget that the channels of one input may hold at most.
const INPUTS_IN_BUDGET: usize = 32;

impl Environment {
    /// Tells users something.
    pub(crate) fn notice(&self, text: &str) {
        if let Some(notices) = &self.notices {
            notices(text);
        }
    }

    /// Bytes that a batch should not pass by much.
    pub fn batch_bytes(&self) -> usize {
        (self.memory.limit_bytes() / BATCHES_IN_BUDGET).clamp(BATCH_BYTES_MIN, BATCH_BYTES_MAX)
    }

    /// What may wait in the channels of one input of one subtask together, in bytes: less where memory is scarce.
    pub fn credit_bytes(&self) -> usize {
        let share = self.memory.limit_bytes() / INPUTS_IN_BUDGET;
        self.input_credit_bytes.min(share.max(BATCH_BYTES_MIN))
    }
}
