//! Operators: synchronous, single-threaded, vectorized.
//!
//! An operator is handed batches and control events by its subtask's loop and hands its output to a [`Collector`],
//! which is the next operator of the chain or the output gate: the operator cannot tell which.

mod aggregate;
mod array_bytes;
mod assign_watermark;
pub mod buffers;
mod context;
mod counted;
mod expand;
mod factory;
mod filter;
mod group_aggregate;
#[cfg(test)]
pub(crate) mod harness;
mod hash_join;
mod interval_join;
mod join_state;
mod keyed;
mod limit;
mod logged_source;
mod merge;
mod nested_loop_join;
mod normalize;
mod over;
mod partition_splits;
pub mod process;
mod progress;
mod project;
mod rank;
#[cfg(test)]
mod rescaling;
mod row_table;
mod runtime_filter;
mod scan;
mod session_assign;
mod sink;
mod sort;
mod split_source;
mod stream_join;
mod stream_scan;
mod stream_sort;
mod temporal_join;
mod time_buffer;
mod window;
mod window_aggregate;
mod window_assign;
mod window_join;
mod wrapped;

use std::sync::Arc;

use crate::data::{Batch, EngineError, Result, Watermark};
use crate::plan::{CustomSpec, Opaque};
use crate::state::{Restored, Snapshot};
use crate::time::Timer;

pub use crate::exchange::{Port, ReadNext};
pub use buffers as windows;
pub use context::{Context, OperatorMetrics};
pub use counted::{counted_rows, numbered_rows, rows_given};
pub use factory::{build_operator, build_range_sort, build_source};
pub use logged_source::LoggedSource;
pub use runtime_filter::RuntimeFilters;
pub use scan::{Scan, Source, SourceEvent, Splits};
pub use sink::{Committable, PreparedSink, Sink, SinkConnector, SinkJob, SinkWriter};
pub use sort::SharedRuns;
pub use split_source::{Positioned, SourceResolver, SplitId, SplitReader, SplitSource, SplitStream};
pub use stream_scan::StreamScan;

/// Where an operator's output goes.
pub trait Collector {
    /// Hands on rows. Blocks while the consumer is behind: that is the back-pressure.
    ///
    /// # Errors
    /// What the consumer fails with, or `Cancelled`.
    fn collect(&mut self, batch: Batch) -> Result<()>;

    /// Hands on the progress of event time.
    ///
    /// # Errors
    /// As for `collect`.
    fn watermark(&mut self, watermark: Watermark) -> Result<()>;

    /// Hands rows to the side output `tag` of the vertex, past the operators that follow (late rows, what a process
    /// function sets apart). A vertex without an edge for the tag drops them.
    ///
    /// # Errors
    /// As for `collect`.
    fn collect_side(&mut self, tag: usize, batch: Batch) -> Result<()>;

    /// Whether nobody wants more rows (a limit is reached): the producer may stop early.
    fn is_done(&self) -> bool;
}

/// Makes an operator that the program brings along, once per subtask.
pub trait CustomOperator: Send + Sync {
    /// The operator of one subtask.
    ///
    /// # Errors
    /// When it cannot be made.
    fn create(&self, subtask: usize, parallelism: usize) -> Result<Box<dyn Operator>>;
}

/// What the factory of a [`crate::plan::CustomSpec`] holds.
pub struct CustomFactory(pub Arc<dyn CustomOperator>);

impl CustomFactory {
    /// The spec of an operator that `factory` makes.
    pub fn spec(label: impl Into<String>, factory: Arc<dyn CustomOperator>) -> CustomSpec {
        CustomSpec {
            label: label.into(),
            factory: Opaque(Arc::new(CustomFactory(factory))),
        }
    }
}

/// One operator of a chain. Everything it keeps between calls it books on `cx.memory`.
pub trait Operator: Send {
    /// Takes a batch from `port`. Never called with zero rows.
    ///
    /// # Errors
    /// Ends the job; the error is reported with the operator's name.
    fn on_batch(&mut self, port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()>;

    /// Event time has reached `watermark` on all inputs. Stateless operators hand it on.
    ///
    /// # Errors
    /// As for `on_batch`.
    fn on_watermark(&mut self, watermark: Watermark, _cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        out.watermark(watermark)
    }

    /// A timer that the operator set has come due.
    ///
    /// # Errors
    /// As for `on_batch`.
    fn on_timer(&mut self, timer: Timer, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        Err(EngineError::Internal(format!(
            "{} set no timer but was handed {timer:?}",
            cx.operator
        )))
    }

    /// The processing time, in milliseconds since the epoch, at which the operator wants `on_timer` to be called with
    /// `Timer::Processing`; asked after each call of the operator. A time in the past is due at once.
    fn next_timer(&self) -> Option<i64> {
        None
    }

    /// `port` has ended. After the last port's end the operator emits what it still holds.
    ///
    /// # Errors
    /// As for `on_batch`.
    fn on_end(&mut self, port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()>;

    /// Hands over what the operator keeps, as tables, at a barrier. Must be quick: columns are shared or copied here, rows are
    /// made of them later by another thread. Rows handed to `out` still belong before the barrier. An operator without state
    /// does nothing; one that keeps state and cannot hand it over is not let into a job with checkpoints.
    ///
    /// # Errors
    /// Ends the job, as for `on_batch`.
    fn snapshot(&mut self, _state: &mut Snapshot, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }

    /// Takes back what `snapshot` handed over: rows of the subtask's key groups, from subtasks of any number. Called at most
    /// once, before anything else. Event time starts anew: the first watermark is that of the restored sources.
    ///
    /// # Errors
    /// When the state does not fit the operator.
    fn restore(&mut self, _state: &mut Restored, _cx: &mut Context) -> Result<()> {
        Ok(())
    }

    /// Which input to read next; asked before each read.
    fn reads_next(&self) -> ReadNext {
        ReadNext::Any
    }

    /// Whether the operator wants no more input from any port (a limit is reached).
    fn is_done(&self) -> bool {
        false
    }
}
