//! Drives one operator in a test: push batches, end inputs, look at what came out. The context is the runtime's own.

use std::sync::Arc;
use std::time::Duration;

use arrow::compute::{concat_batches, filter_record_batch};
use arrow::datatypes::SchemaRef;
use datafusion::execution::TaskContext;
use thalweg_memory::{MemoryManager, SpillCompression, SpillDirectory};

use crate::data::{Batch, Result, Watermark, hash_rows, subtask_of_hash};
use crate::exchange::CancelToken;
use crate::operator::{Collector, Context, Operator, OperatorMetrics, Port, ReadNext};
use crate::state::{MAX_PARALLELISM, Restored, Run, Scope, Snapshot, SnapshotRequest, TableSpec};
use crate::time::{Clock, ManualClock, Timer};

/// What came out of an operator.
#[derive(Default)]
pub(crate) struct Collected {
    pub(crate) batches: Vec<Batch>,
    pub(crate) watermarks: Vec<Watermark>,
    /// What went to side outputs.
    pub(crate) side: Vec<(usize, Batch)>,
}

impl Collector for Collected {
    fn collect(&mut self, batch: Batch) -> Result<()> {
        assert!(batch.num_rows() > 0, "an operator handed on an empty batch");
        if let Some(first) = self.batches.first() {
            assert_eq!(first.schema(), batch.schema(), "an operator changed its schema");
        }
        self.batches.push(batch);
        Ok(())
    }

    fn watermark(&mut self, watermark: Watermark) -> Result<()> {
        assert!(
            self.watermarks.last().is_none_or(|last| *last <= watermark),
            "a watermark went back"
        );
        self.watermarks.push(watermark);
        Ok(())
    }

    fn collect_side(&mut self, tag: usize, batch: Batch) -> Result<()> {
        self.side.push((tag, batch));
        Ok(())
    }

    fn is_done(&self) -> bool {
        false
    }
}

/// One operator with its context and its output.
pub(crate) struct Harness<O: Operator> {
    pub(crate) operator: O,
    pub(crate) context: Context,
    pub(crate) output: Collected,
    pub(crate) memory: MemoryManager,
    /// The clock that the operator sees; stands still until [`Harness::advance`].
    pub(crate) clock: Arc<ManualClock>,
    runtime: tokio::runtime::Runtime,
}

impl<O: Operator> Harness<O> {
    pub(crate) fn new(operator: O) -> Self {
        Self::with_memory(operator, usize::MAX)
    }

    pub(crate) fn with_memory(operator: O, budget_bytes: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let memory = MemoryManager::new(budget_bytes);
        let clock = Arc::new(ManualClock::default());
        let context = Context {
            operator: "operator under test".into(),
            subtask: 0,
            parallelism: 1,
            batch_size: 8192,
            batch_bytes: 4 << 20,
            task: Arc::new(TaskContext::default()),
            io: runtime.handle().clone(),
            clock: Arc::clone(&clock) as Arc<dyn Clock>,
            memory: memory.job().spillable("operator under test"),
            spill: Arc::new(SpillDirectory::new(std::env::temp_dir(), SpillCompression::None)),
            filters: Arc::default(),
            streaming: false,
            metrics: Arc::new(OperatorMetrics::default()),
            cancel: CancelToken::new(),
        };
        Self {
            operator,
            context,
            output: Collected::default(),
            memory,
            clock,
            runtime,
        }
    }

    /// Hands the operator a batch; fails the test when the operator would not read that port now.
    pub(crate) fn push(&mut self, port: Port, batch: Batch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        if let ReadNext::Only(wanted) = self.operator.reads_next() {
            assert_eq!(wanted, port, "the operator wants another input first");
        }
        self.operator.on_batch(port, batch, &mut self.context, &mut self.output)
    }

    /// Tells the operator that event time has reached `at_ms`.
    pub(crate) fn watermark(&mut self, at_ms: i64) -> Result<()> {
        self.operator
            .on_watermark(Watermark(at_ms), &mut self.context, &mut self.output)
    }

    /// Lets processing time go by and calls the timers that come due, each at its time.
    pub(crate) fn advance(&mut self, by: Duration) -> Result<()> {
        let end = self.clock.now_ms() + i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        while let Some(due) = self.operator.next_timer().filter(|due| *due <= end) {
            let wait = u64::try_from(due - self.clock.now_ms()).unwrap_or(0);
            self.clock.advance(Duration::from_millis(wait));
            self.operator
                .on_timer(Timer::Processing(due), &mut self.context, &mut self.output)?;
        }
        let rest = u64::try_from(end - self.clock.now_ms()).unwrap_or(0);
        self.clock.advance(Duration::from_millis(rest));
        Ok(())
    }

    /// What has come out since the last call, as one batch.
    #[allow(dead_code, reason = "the stream operators use it")]
    pub(crate) fn take(&mut self, schema: &SchemaRef) -> Batch {
        concat_batches(schema, &std::mem::take(&mut self.output.batches)).unwrap()
    }

    pub(crate) fn end(&mut self, port: Port) -> Result<()> {
        self.operator.on_end(port, &mut self.context, &mut self.output)
    }

    /// All rows so far as one batch.
    pub(crate) fn rows(&self, schema: &SchemaRef) -> Batch {
        concat_batches(schema, &self.output.batches).unwrap()
    }

    /// Runs the operator over whole inputs, port by port as it wants them, and gives back what came out.
    pub(crate) fn run(mut self, inputs: Vec<Vec<Batch>>) -> Result<Vec<Batch>> {
        let mut inputs: Vec<_> = inputs.into_iter().map(|batches| Some(batches.into_iter())).collect();
        while inputs.iter().any(Option::is_some) {
            let port = match self.operator.reads_next() {
                ReadNext::Only(port) => port,
                ReadNext::Any => inputs.iter().position(Option::is_some).unwrap(),
            };
            let input = inputs[port]
                .as_mut()
                .expect("the operator wants an input that has ended");
            match input.next() {
                Some(batch) => self.push(port, batch)?,
                None => {
                    inputs[port] = None;
                    self.end(port)?;
                }
            }
        }
        let batches = std::mem::take(&mut self.output.batches);
        drop(self.operator);
        drop(self.runtime);
        Ok(batches)
    }
}

/// A table as it would be stored.
pub(crate) struct StoredTable {
    pub(crate) spec: TableSpec,
    pub(crate) since: Option<u64>,
    pub(crate) rows: Vec<Batch>,
    pub(crate) deleted: Vec<Batch>,
}

impl<O: Operator> Harness<O> {
    /// What the operator hands over at barrier `checkpoint`.
    pub(crate) fn snapshot(&mut self, checkpoint: u64, since: Option<u64>) -> Result<Vec<StoredTable>> {
        let mut snapshot = Snapshot::new(SnapshotRequest { checkpoint, since });
        self.operator
            .snapshot(&mut snapshot, &mut self.context, &mut self.output)?;
        let tables = snapshot.into_tables().into_iter();
        tables
            .map(|table| {
                let schema = Arc::clone(&table.spec.schema);
                let rows: Vec<Batch> = table.rows.collect::<Result<_>>()?;
                assert!(
                    rows.iter().all(|rows| rows.schema() == schema),
                    "a table's rows have another schema"
                );
                Ok(StoredTable {
                    rows,
                    since: table.since,
                    deleted: table.deleted.map_or(Ok(Vec::new()), Iterator::collect)?,
                    spec: table.spec,
                })
            })
            .collect()
    }

    /// Hands the operator what is its, as subtask `subtask` of `parallelism`, of what all subtasks stored: a list of
    /// checkpoints, oldest first, each with the tables of each subtask. Deltas build on the checkpoint before.
    pub(crate) fn restore(
        &mut self,
        (subtask, parallelism): (usize, usize),
        checkpoints: &[Vec<Vec<StoredTable>>],
    ) -> Result<()> {
        let mut restored = Restored::new("operator under test", checkpoints.len() as u64, subtask, parallelism);
        (self.context.subtask, self.context.parallelism) = (subtask, parallelism);
        // A whole table ends the use of what was before.
        let mut names: Vec<&str> = Vec::new();
        for tables in checkpoints.iter().flatten() {
            names.extend(tables.iter().map(|table| table.spec.name.as_str()));
        }
        names.sort_unstable();
        names.dedup();
        for name in names {
            let of_name = |checkpoint: &'_ Vec<Vec<StoredTable>>| -> Vec<usize> {
                (0..checkpoint.len())
                    .filter(|subtask| checkpoint[*subtask].iter().any(|table| table.spec.name == name))
                    .collect()
            };
            let whole = checkpoints.iter().rposition(|checkpoint| {
                checkpoint
                    .iter()
                    .flatten()
                    .any(|table| table.spec.name == name && table.since.is_none())
            });
            for checkpoint in &checkpoints[whole.unwrap_or(0)..] {
                let mut rows = Vec::new();
                let mut deleted = Vec::new();
                let mut first = None;
                for subtask in of_name(checkpoint) {
                    for table in checkpoint[subtask].iter().filter(|table| table.spec.name == name) {
                        if matches!(table.spec.scope, Scope::Broadcast) && first.is_some() {
                            continue;
                        }
                        rows.extend(table.rows.iter().cloned());
                        deleted.extend(table.deleted.iter().cloned());
                        first.get_or_insert(&table.spec);
                    }
                }
                let Some(spec) = first else { continue };
                restored.add(
                    name,
                    Run {
                        schema: Arc::clone(&spec.schema),
                        version: spec.version,
                        rows: Box::new(rows.into_iter().map(Ok)),
                        deleted: Some(Box::new(deleted.into_iter().map(Ok))),
                        is_own: false,
                    },
                );
            }
        }
        self.operator.restore(&mut restored, &mut self.context)?;
        let left: Vec<&str> = restored.left().collect();
        assert!(left.is_empty(), "the operator did not take back {left:?}");
        Ok(())
    }
}

/// `parallelism` new operators that go on where `before` are: a snapshot of each, restored into all.
pub(crate) fn rescaled<O: Operator>(
    before: &mut [Harness<O>],
    parallelism: usize,
    make: impl Fn() -> O,
) -> Result<Vec<Harness<O>>> {
    let stored = before
        .iter_mut()
        .map(|harness| harness.snapshot(1, None))
        .collect::<Result<Vec<_>>>()?;
    let checkpoints = [stored];
    (0..parallelism)
        .map(|subtask| {
            let mut harness = Harness::new(make());
            harness.context.streaming = true;
            harness.restore((subtask, parallelism), &checkpoints)?;
            Ok(harness)
        })
        .collect()
}

/// Which of `parallelism` subtasks each row goes to by these key columns: as the exchange before the operator does.
pub(crate) fn parts_of(batch: &Batch, keys: &[usize], parallelism: usize) -> Vec<Batch> {
    let columns: Vec<_> = keys.iter().map(|key| Arc::clone(batch.column(*key))).collect();
    let mut hashes = Vec::new();
    hash_rows(&columns, batch.num_rows(), &mut hashes).unwrap();
    (0..parallelism)
        .map(|subtask| {
            let own = |hash: &u64| Some(subtask_of_hash(*hash, MAX_PARALLELISM, parallelism) == subtask);
            filter_record_batch(batch, &hashes.iter().map(own).collect()).unwrap()
        })
        .collect()
}
