//! Sink: writes rows to a connector. Writers *stage*; the job *publishes* when all writers have finished, so that
//! a job that fails leaves nothing behind.

use std::fmt::Debug;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{ArrayRef, AsArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt64Type};
use datafusion::execution::runtime_env::RuntimeEnv;

use crate::data::{Batch, EngineError, Result};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::SinkSpec;
use crate::state::{Restored, Snapshot, TableSpec, columns};
use crate::time::{Clock, Timer};

/// Makes writers for one connector; named in [`SinkSpec::connector`], found in the runtime's registry.
pub trait SinkConnector: Debug + Send + Sync {
    /// The connector's name, as in `'connector' = '..'`.
    fn name(&self) -> &str;

    /// Checks options and schema, and prepares the sink of one job. Called at planning time and again before the job
    /// starts: it must not create, change or remove anything.
    ///
    /// # Errors
    /// When an option is unknown or wrong, or the connector cannot write the schema.
    fn prepare(&self, spec: &SinkSpec, job: &SinkJob) -> Result<Arc<dyn PreparedSink>>;
}

/// One sink of one job. Either `commit` or `abort` is called, exactly once, after all writers have finished or one
/// has failed; a sink that is dropped without either was only planned and has nothing staged, or must abort.
pub trait PreparedSink: Debug + Send + Sync {
    /// The most writers that this sink takes (a single file takes one); any number when `None`.
    fn max_parallelism(&self) -> Option<usize>;

    /// The writer of one subtask.
    ///
    /// # Errors
    /// When `parallelism` is above [`Self::max_parallelism`], or the target cannot be written.
    fn writer(&self, subtask: usize, parallelism: usize) -> Result<Box<dyn SinkWriter>>;

    /// Publishes everything that finished writers staged.
    ///
    /// # Errors
    /// When that fails; then nothing is published and nothing is left staged.
    fn commit(&self) -> Result<()>;

    /// Removes everything that is staged. What cannot be removed is left and reported to the log.
    fn abort(&self);

    /// Publishes what writers prepared, once the checkpoint that holds it is complete. May be called again with the same
    /// after a failure, by another process, too: what is published already stays as it is, once. Called from a thread that may
    /// block, while the writers go on.
    ///
    /// # Errors
    /// When it cannot be published now; the job then fails and tries again after its restart.
    fn publish(&self, _committables: &[Committable]) -> Result<()> {
        Ok(())
    }

    /// The job goes on from a checkpoint, or starts with checkpoints: called before any writer is made, after `publish` of what the
    /// checkpoint holds. Removes what earlier runs of the same job staged for the same target and never published.
    ///
    /// # Errors
    /// When the target cannot be looked at.
    fn recover(&self) -> Result<()> {
        Ok(())
    }

    /// Whether what has been published cannot be written again without being there twice: rows stay hidden until `publish` and
    /// then stand, as in a log. Such a sink does not let a job go back before a checkpoint that may have been published.
    fn hides_until_published(&self) -> bool {
        false
    }

    /// Whether rows appear exactly once when the job goes on from a checkpoint: rows stay hidden until `publish`, or writing
    /// them again changes nothing.
    fn is_exactly_once(&self) -> bool {
        false
    }
}

/// What a writer has prepared and nobody sees yet, in the sink's own format: enough to publish it from another process.
pub type Committable = Vec<u8>;

/// Writes the rows of one subtask. Dropped without `finish` when the job fails.
pub trait SinkWriter: Send {
    /// Stages rows.
    ///
    /// # Errors
    /// When the target fails, e.g. a full disk; the error names it.
    fn write(&mut self, batch: &Batch) -> Result<()>;

    /// Bytes held in memory now.
    fn held_bytes(&self) -> usize;

    /// Writes out what it holds in memory, as far as the format allows; called when memory is short.
    ///
    /// # Errors
    /// As for `write`.
    fn relieve(&mut self) -> Result<()>;

    /// Completes everything staged, which stays invisible until the commit.
    ///
    /// # Errors
    /// As for `write`.
    fn finish(&mut self) -> Result<()>;

    /// A barrier: everything written so far belongs to this checkpoint. Completes it so far that it survives the process, and
    /// gives what [`PreparedSink::publish`] needs; nothing for a sink that has nothing to hide and only flushes. Called instead of
    /// `finish` at the end of a job with checkpoints, too. What the last call gave is published before that of this one is.
    ///
    /// # Errors
    /// As for `write`.
    fn prepare(&mut self, _checkpoint: u64) -> Result<Vec<Committable>> {
        self.relieve()?;
        Ok(Vec::new())
    }

    /// The processing time, in milliseconds since the epoch, from which [`Self::roll`] has something to do; `None` while
    /// it has nothing. Asked often.
    fn next_roll_ms(&self) -> Option<i64>;

    /// Completes and publishes what has waited long enough, for a sink that shows its output before the job ends.
    ///
    /// # Errors
    /// As for `write`.
    fn roll(&mut self) -> Result<()>;
}

/// What a connector may use.
#[derive(Clone, Debug)]
pub struct SinkJob {
    /// The job's id: part of the names of staged and published files.
    pub job: String,
    /// Where I/O runs. Sinks are called from threads outside this runtime and may block.
    pub io: tokio::runtime::Handle,
    /// DataFusion's runtime: its object stores and caches.
    pub runtime: Arc<RuntimeEnv>,
    /// Processing time.
    pub clock: Arc<dyn Clock>,
    /// Whether the rows come from an input without an end: the commit at the end of the job may never come.
    pub endless: bool,
    /// The name under which the job goes on after a restart, when it takes checkpoints: then writers `prepare`, the sink
    /// `publish`es, and neither `finish`, `commit`, `abort` nor `roll` is called.
    pub checkpointed: Option<String>,
}

/// The operator around a writer. Emits one row with the count of rows written.
pub struct Sink {
    writer: Box<dyn SinkWriter>,
    rows: u64,
    /// Whether the job takes checkpoints: then the writer prepares and never finishes.
    checkpointed: bool,
    ended: bool,
}

impl Sink {
    /// A sink operator that writes to `writer`.
    pub fn new(writer: Box<dyn SinkWriter>) -> Self {
        Self {
            writer,
            rows: 0,
            checkpointed: false,
            ended: false,
        }
    }

    /// In a job that takes checkpoints: what the writer writes is prepared at each barrier and at the end.
    pub fn with_checkpoints(self, checkpointed: bool) -> Self {
        Self { checkpointed, ..self }
    }

    /// The schema of what the operator emits: `count`, unsigned.
    pub fn output_schema() -> SchemaRef {
        Arc::new(Schema::new(vec![Field::new("count", DataType::UInt64, false)]))
    }

    /// How many rows have been written.
    fn written() -> TableSpec {
        TableSpec::union("written", columns([("rows", DataType::UInt64)]))
    }

    /// Books what the writer holds; when memory is short it writes out what it can.
    fn book(&mut self, cx: &mut Context) -> Result<()> {
        match cx.hold(self.writer.held_bytes()) {
            Err(EngineError::Memory(_)) => {
                self.writer.relieve()?;
                // What a format cannot write out yet it must hold, whoever else holds memory.
                cx.hold_anyway(self.writer.held_bytes());
                Ok(())
            }
            other => other,
        }
    }
}

impl Operator for Sink {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        self.writer.write(&batch)?;
        self.rows += batch.num_rows() as u64;
        cx.metrics.rows_in.fetch_max(self.rows, Ordering::Relaxed);
        self.book(cx)
    }

    fn on_timer(&mut self, _timer: Timer, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        self.writer.roll()?;
        self.book(cx)
    }

    /// What was written since the last barrier is prepared; rows that a failure takes are written again.
    fn snapshot(&mut self, state: &mut Snapshot, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        let prepared = self.writer.prepare(state.request().checkpoint)?;
        state.commit(prepared);
        let rows: ArrayRef = Arc::new(UInt64Array::from(vec![self.rows]));
        let spec = Self::written();
        let written = Batch::try_new(Arc::clone(&spec.schema), vec![rows])?;
        state.full(&spec, [Ok(written)]);
        cx.hold_anyway(self.writer.held_bytes());
        Ok(())
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        let mut rows = 0;
        for batch in state.take(&Self::written())? {
            rows += batch?
                .column(0)
                .as_primitive::<UInt64Type>()
                .values()
                .iter()
                .sum::<u64>();
        }
        // All subtasks see what all have written.
        if cx.subtask == 0 {
            self.rows = rows;
        }
        Ok(())
    }

    fn next_timer(&self) -> Option<i64> {
        // What a job with checkpoints rolls is published with the next of them.
        self.writer.next_roll_ms().filter(|_| !self.ended)
    }

    fn on_end(&mut self, _port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.ended = true;
        if !self.checkpointed {
            self.writer.finish()?;
        }
        cx.hold_anyway(self.writer.held_bytes());
        let count: ArrayRef = Arc::new(UInt64Array::from(vec![self.rows]));
        out.collect(Batch::try_new(Self::output_schema(), vec![count])?)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use arrow::array::Int32Array;
    use parking_lot::Mutex;

    use super::*;
    use crate::operator::harness::Harness;

    /// Holds what it was given until it is relieved, or for a second.
    struct Greedy(Arc<Mutex<(usize, usize, bool)>>);

    impl SinkWriter for Greedy {
        fn write(&mut self, batch: &Batch) -> Result<()> {
            self.0.lock().0 += batch.num_rows() * 1000;
            Ok(())
        }

        fn held_bytes(&self) -> usize {
            self.0.lock().0
        }

        fn relieve(&mut self) -> Result<()> {
            let mut state = self.0.lock();
            (state.0, state.1) = (0, state.1 + 1);
            Ok(())
        }

        fn finish(&mut self) -> Result<()> {
            self.0.lock().2 = true;
            Ok(())
        }

        fn next_roll_ms(&self) -> Option<i64> {
            (self.0.lock().0 > 0).then_some(1000)
        }

        fn roll(&mut self) -> Result<()> {
            self.0.lock().0 = 0;
            Ok(())
        }
    }

    fn batch(rows: i32) -> Batch {
        let column: ArrayRef = Arc::new(Int32Array::from_iter_values(0..rows));
        Batch::try_from_iter([("a", column)]).unwrap()
    }

    #[test]
    fn counts_rows_and_finishes_the_writer() {
        let state = Arc::new(Mutex::new((0, 0, false)));
        let sink = Sink::new(Box::new(Greedy(Arc::clone(&state))));
        let out = Harness::new(sink).run(vec![vec![batch(3), batch(4)]]).unwrap();
        assert_eq!(out[0].column(0).as_primitive::<UInt64Type>().value(0), 7);
        assert!(state.lock().2);
    }

    #[test]
    fn the_writer_rolls_when_its_time_has_come_and_memory_is_given_back() {
        let state = Arc::new(Mutex::new((0, 0, false)));
        let mut harness = Harness::new(Sink::new(Box::new(Greedy(Arc::clone(&state)))));
        harness.push(0, batch(3)).unwrap();
        harness.advance(Duration::from_millis(999)).unwrap();
        assert_eq!((state.lock().0, harness.context.memory.bytes()), (3000, 3000));
        harness.advance(Duration::from_millis(1)).unwrap();
        assert_eq!((state.lock().0, harness.context.memory.bytes()), (0, 0));
        assert_eq!(harness.operator.next_timer(), None);
    }

    #[test]
    fn asks_the_writer_for_memory_when_the_budget_is_spent() {
        let state = Arc::new(Mutex::new((0, 0, false)));
        let sink = Sink::new(Box::new(Greedy(Arc::clone(&state))));
        let out = Harness::with_memory(sink, 1 << 20)
            .run(vec![vec![batch(1000), batch(1000)]])
            .unwrap();
        assert_eq!(out[0].column(0).as_primitive::<UInt64Type>().value(0), 2000);
        assert!(state.lock().1 > 0, "the budget of 1 MiB was never felt");
    }
}
