//! Scan: reads splits, each handed out on demand, so that a slow split holds nobody up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::{Count, MetricValue};
use futures::StreamExt;
use tokio::sync::Notify;

use crate::data::{Batch, EngineError, Result, Watermark};
use crate::operator::Context;
use crate::operator::stream_scan::StreamScan;
use crate::plan::ScanSpec;
use crate::state::{Restored, Snapshot};

/// The splits of one scan, shared by its subtasks: whoever is free takes the next.
#[derive(Debug)]
pub struct Splits {
    next: AtomicUsize,
    count: usize,
}

impl Splits {
    /// Splits `0..count`.
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self {
            next: AtomicUsize::new(0),
            count,
        })
    }

    /// How many splits there are in all.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many splits have been handed out.
    pub fn taken(&self) -> usize {
        self.next.load(Ordering::Relaxed).min(self.count)
    }

    /// The next split, or `None` when all are taken.
    pub fn take(&self) -> Option<usize> {
        let split = self.next.fetch_add(1, Ordering::Relaxed);
        (split < self.count).then_some(split)
    }
}

/// What a source has to say.
pub enum SourceEvent {
    /// Rows.
    Batch(Batch),
    /// Progress of event time.
    Watermark(Watermark),
    /// Nothing is to be expected for a while (`true`), or it goes on.
    Idle(bool),
    /// Nothing yet; the time to wait is over.
    Pending,
    /// All splits are read.
    End,
}

/// The source of a subtask.
pub enum Source {
    /// Takes one split after the other.
    Batch(Scan),
    /// Reads splits side by side.
    Stream(Box<StreamScan>),
}

impl Source {
    /// The plan whose partitions are the splits.
    pub fn plan(&self) -> &Arc<dyn ExecutionPlan> {
        match self {
            Source::Batch(scan) => scan.plan(),
            Source::Stream(scan) => scan.plan(),
        }
    }

    /// Waits for the next event, at most `patience`.
    ///
    /// # Errors
    /// When the input cannot be read, or `Cancelled`.
    pub fn next(&mut self, cx: &mut Context, patience: Option<Duration>) -> Result<SourceEvent> {
        match self {
            Source::Batch(scan) => scan.next(cx, patience),
            Source::Stream(scan) => scan.next(cx, patience),
        }
    }

    /// What interrupts a wait in [`Source::next`], from any thread: it then returns [`SourceEvent::Pending`].
    ///
    /// # Errors
    /// As for [`Source::snapshot`].
    pub fn wake_by(&mut self, wake: Arc<Notify>) -> Result<()> {
        self.stream()?.wake_by(wake);
        Ok(())
    }

    /// Hands over where each split is: after the last batch that `next` has returned.
    ///
    /// # Errors
    /// For the source of a batch job, which has no checkpoints; or when the splits cannot be listed.
    pub fn snapshot(&mut self, state: &mut Snapshot, cx: &Context) -> Result<()> {
        self.stream()?.snapshot(state, cx)
    }

    /// Goes on where the splits were. To be called before anything else.
    ///
    /// # Errors
    /// As for [`Source::snapshot`], or when the state is of another kind.
    pub fn restore(&mut self, state: &mut Restored, cx: &Context) -> Result<()> {
        self.stream()?.restore(state, cx)
    }

    /// A checkpoint is complete: the sources are told how far the job is.
    pub fn checkpoint_complete(&mut self, checkpoint: u64) {
        if let Source::Stream(scan) = self {
            scan.checkpoint_complete(checkpoint);
        }
    }

    fn stream(&mut self) -> Result<&mut StreamScan> {
        match self {
            Source::Stream(scan) => Ok(scan),
            Source::Batch(_) => Err(EngineError::Plan(
                "the source of a batch job has no checkpoints; run it as a stream (execution.runtime-mode)".into(),
            )),
        }
    }
}

/// The metric of a plan that counts the records that it could not read and skipped.
const BAD_RECORDS: &str = "bad_records";

/// Carries the plan's count of bad records over to the operator's.
#[derive(Default)]
pub(super) struct BadRecords {
    /// The counters of the splits that this subtask has opened.
    counts: Vec<Count>,
    /// Whether the plan has no such counters. Others have many, so that they are looked for once only.
    none: bool,
}

impl BadRecords {
    /// Finds the counters of a split that has been opened.
    pub(super) fn watch(&mut self, plan: &Arc<dyn ExecutionPlan>, split: usize) {
        if self.none {
            return;
        }
        let mut plans = vec![plan];
        while let Some(plan) = plans.pop() {
            for metric in plan.metrics().iter().flat_map(|metrics| metrics.iter()) {
                if let MetricValue::Count { name, count } = metric.value()
                    && name == BAD_RECORDS
                    && metric.partition() == Some(split)
                {
                    self.counts.push(count.clone());
                }
            }
            plans.extend(plan.children());
        }
        self.none = self.counts.is_empty();
    }

    /// What has been counted so far.
    pub(super) fn sum(&self) -> u64 {
        self.counts.iter().map(Count::value).sum::<usize>() as u64
    }

    /// Notes what has been counted so far.
    fn note(&self, cx: &Context) {
        if !self.counts.is_empty() {
            cx.metrics.bad_records.store(self.sum(), Ordering::Relaxed);
        }
    }
}

/// Reads splits of a scan plan until none is left.
pub struct Scan {
    plan: Arc<dyn ExecutionPlan>,
    splits: Arc<Splits>,
    current: Option<SendableRecordBatchStream>,
    rows_left: usize,
    bad_records: BadRecords,
}

impl Scan {
    pub(super) fn new(spec: ScanSpec, splits: Arc<Splits>) -> Self {
        Self {
            plan: spec.plan.0,
            splits,
            current: None,
            rows_left: spec.limit.unwrap_or(usize::MAX),
            bad_records: BadRecords::default(),
        }
    }

    /// The plan whose partitions are the splits.
    pub fn plan(&self) -> &Arc<dyn ExecutionPlan> {
        &self.plan
    }

    /// Waits for the next batch, at most `patience`; decoding runs on the calling thread, I/O on the I/O runtime.
    ///
    /// # Errors
    /// When the input cannot be read, or `Cancelled`.
    pub fn next(&mut self, cx: &mut Context, patience: Option<Duration>) -> Result<SourceEvent> {
        let event = self.read(cx, patience);
        self.bad_records.note(cx);
        event
    }

    fn read(&mut self, cx: &mut Context, patience: Option<Duration>) -> Result<SourceEvent> {
        loop {
            cx.cancel.check()?;
            if self.rows_left == 0 {
                self.current = None;
                cx.hold_anyway(0);
                return Ok(SourceEvent::End);
            }
            let Some(stream) = self.current.as_mut() else {
                let Some(split) = self.splits.take() else {
                    cx.hold_anyway(0);
                    return Ok(SourceEvent::End);
                };
                let _io = cx.io.enter();
                self.current = Some(self.plan.execute(split, Arc::clone(&cx.task))?);
                self.bad_records.watch(&self.plan, split);
                continue;
            };
            let cancel = cx.cancel.clone();
            let polled = cx.io.block_on(async {
                tokio::select! {
                    biased;
                    item = stream.next() => Ok(Some(item)),
                    () = cancel.cancelled() => Err(EngineError::Cancelled),
                    () = sleep(patience) => Ok(None),
                }
            })?;
            match polled {
                None => return Ok(SourceEvent::Pending),
                Some(None) => self.current = None,
                Some(Some(batch)) => {
                    let batch = batch?;
                    if batch.num_rows() == 0 {
                        continue;
                    }
                    let rows = batch.num_rows().min(self.rows_left);
                    self.rows_left -= rows;
                    return Ok(SourceEvent::Batch(batch.slice(0, rows)));
                }
            }
        }
    }
}

pub(super) async fn sleep(patience: Option<Duration>) {
    match patience {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, AsArray, Int32Array};
    use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
    use datafusion::execution::TaskContext;
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
    use futures::stream;

    use super::*;
    use crate::operator::harness::Harness;
    use crate::operator::limit::Limit;
    use crate::plan::{LimitSpec, PhysicalPlan};

    /// A split: its rows, each a batch; or one that never says anything.
    #[derive(Debug)]
    struct Split {
        schema: SchemaRef,
        rows: Option<Vec<i32>>,
    }

    impl PartitionStream for Split {
        fn schema(&self) -> &SchemaRef {
            &self.schema
        }

        fn execute(&self, _task: Arc<TaskContext>) -> SendableRecordBatchStream {
            let schema = Arc::clone(&self.schema);
            match &self.rows {
                None => Box::pin(RecordBatchStreamAdapter::new(schema, stream::pending())),
                Some(rows) => {
                    let batches: Vec<_> = rows.iter().map(|row| Ok(batch(&schema, *row))).collect();
                    Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(batches)))
                }
            }
        }
    }

    fn batch(schema: &SchemaRef, row: i32) -> Batch {
        // An empty batch first, now and then: a scan hands none on.
        let rows = if row < 0 { vec![] } else { vec![row] };
        Batch::try_new(Arc::clone(schema), vec![Arc::new(Int32Array::from(rows)) as ArrayRef]).unwrap()
    }

    fn scan_spec(splits: Vec<Option<Vec<i32>>>, limit: Option<usize>) -> ScanSpec {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int32, false)]));
        let split = |rows| {
            Arc::new(Split {
                schema: Arc::clone(&schema),
                rows,
            }) as Arc<dyn PartitionStream>
        };
        let splits = splits.into_iter().map(split).collect();
        let plan = StreamingTableExec::try_new(Arc::clone(&schema), splits, None, [], false, None).unwrap();
        ScanSpec {
            stream: None,
            bounded_by: vec![],
            table: "t".into(),
            plan: PhysicalPlan(Arc::new(plan)),
            limit,
            read_bytes: 0,
        }
    }

    /// For its context only.
    fn harness() -> Harness<Limit> {
        Harness::new(Limit::new(LimitSpec { skip: 0, fetch: None }))
    }

    fn read_all(scan: &mut Scan, cx: &mut Context) -> Vec<i32> {
        let mut rows = Vec::new();
        loop {
            match scan.next(cx, None).unwrap() {
                SourceEvent::Batch(batch) => {
                    assert!(batch.num_rows() > 0, "an empty batch was handed on");
                    rows.extend(batch.column(0).as_primitive::<Int32Type>().values());
                }
                SourceEvent::Pending => panic!("pending without a time to wait"),
                SourceEvent::Watermark(_) | SourceEvent::Idle(_) => panic!("a batch scan has no watermark"),
                SourceEvent::End => return rows,
            }
        }
    }

    #[test]
    fn a_slow_split_does_not_hold_up_the_other_subtask() {
        let spec = scan_spec(vec![None, Some(vec![1, -1, 2]), Some(vec![]), Some(vec![3])], None);
        let splits = Splits::new(4);
        let mut slow = Scan::new(spec.clone(), Arc::clone(&splits));
        let mut free = Scan::new(spec, Arc::clone(&splits));
        let mut harness = harness();
        let event = slow.next(&mut harness.context, Some(Duration::from_millis(1))).unwrap();
        assert!(matches!(event, SourceEvent::Pending));
        assert_eq!(splits.taken(), 1);
        assert_eq!(read_all(&mut free, &mut harness.context), [1, 2, 3]);
        assert_eq!((splits.taken(), splits.count()), (4, 4));
        let event = slow.next(&mut harness.context, Some(Duration::ZERO)).unwrap();
        assert!(
            matches!(event, SourceEvent::Pending),
            "the slow split is still being read"
        );
    }

    #[test]
    fn cancelling_ends_a_wait_that_has_no_end() {
        let mut scan = Scan::new(scan_spec(vec![None], None), Splits::new(1));
        let mut harness = harness();
        let cancel = harness.context.cancel.clone();
        let waiting = std::thread::spawn(move || {
            let ended = scan.next(&mut harness.context, None);
            matches!(ended, Err(EngineError::Cancelled))
        });
        cancel.cancel();
        assert!(waiting.join().unwrap());
    }

    #[test]
    fn cancelling_wakes_a_scan_that_waits_already() {
        let mut scan = Scan::new(scan_spec(vec![None], None), Splits::new(1));
        let mut harness = harness();
        let cancel = harness.context.cancel.clone();
        // The cancellation comes from the I/O runtime while the only thing the scan can do is wait.
        harness.context.io.spawn(async move {
            tokio::time::sleep(Duration::from_millis(20)).await;
            cancel.cancel();
        });
        assert!(matches!(
            scan.next(&mut harness.context, None),
            Err(EngineError::Cancelled)
        ));
    }

    #[test]
    fn a_limit_ends_the_scan_in_the_middle_of_a_batch() {
        for (limit, expected) in [(0, &[][..]), (2, &[1, 2]), (3, &[1, 2, 3]), (9, &[1, 2, 3])] {
            let mut scan = Scan::new(
                scan_spec(vec![Some(vec![1, 2]), Some(vec![3])], Some(limit)),
                Splits::new(2),
            );
            assert_eq!(read_all(&mut scan, &mut harness().context), expected);
        }
    }

    #[test]
    fn a_scan_of_no_splits_ends_at_once() {
        assert!(
            read_all(
                &mut Scan::new(scan_spec(vec![], None), Splits::new(0)),
                &mut harness().context
            )
            .is_empty()
        );
    }
}
