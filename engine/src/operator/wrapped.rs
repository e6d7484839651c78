//! Wrapped: runs a plan of DataFusion as an operator. The plan's one leaf, a placeholder, becomes a [`Feed`] that
//! yields what the operator is handed; the plan is polled from the operator's thread whenever there is something new.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Poll, Waker};

use arrow::datatypes::SchemaRef;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::execution_plan::reset_plan_states;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, ExecutionPlanProperties, PlanProperties, ReplaceChildrenOptions,
};
use futures::Stream;
use parking_lot::Mutex;

use crate::data::{Batch, EngineError, Result};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::{InputPlaceholder, WrappedSpec};

/// Batches handed to the plan that it may leave untouched before the operator waits for it.
const QUEUE_MAX: usize = 2;

/// Feeds its input to a DataFusion plan and hands on what the plan yields.
pub(super) struct Wrapped {
    plan: Arc<dyn ExecutionPlan>,
    queue: Arc<Mutex<Queue>>,
    output: Output,
}

enum Output {
    NotStarted,
    Running(SendableRecordBatchStream),
    Ended,
}

/// What became of waiting for the plan.
enum Polled {
    Batch(Batch),
    /// The plan has taken its input and waits for more.
    Hungry,
    Ended,
}

impl Wrapped {
    /// The plan of `spec`, with a feed in place of its placeholder.
    pub(super) fn new(spec: WrappedSpec) -> Result<Self> {
        let queue = Arc::new(Mutex::new(Queue::default()));
        let mut feeds = 0;
        // The same plan is run by other subtasks, and again after a restart: nothing may be left of an earlier run.
        let plan = reset_plan_states(spec.plan.0)?
            .transform_down(|node| {
                if !node.is::<InputPlaceholder>() {
                    return Ok(Transformed::no(node));
                }
                feeds += 1;
                let feed = Feed {
                    properties: Arc::clone(node.properties()),
                    queue: Arc::clone(&queue),
                };
                Ok(Transformed::yes(Arc::new(feed) as Arc<dyn ExecutionPlan>))
            })?
            .data;
        let partitions = plan.output_partitioning().partition_count();
        if feeds != 1 || partitions != 1 {
            return Err(EngineError::Internal(format!(
                "{} has {feeds} inputs and {partitions} output partitions; a wrapped plan has one of each",
                spec.label
            )));
        }
        Ok(Self {
            plan,
            queue,
            output: Output::NotStarted,
        })
    }

    /// Hands on what the plan yields until it has ended, or, while input is still to come, until it wants more.
    fn drain(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        loop {
            match self.poll(cx)? {
                Polled::Batch(batch) if batch.num_rows() == 0 => {}
                Polled::Batch(batch) => {
                    out.collect(batch)?;
                    if out.is_done() {
                        self.end();
                        return Ok(());
                    }
                }
                Polled::Hungry => return Ok(()),
                Polled::Ended => {
                    self.end();
                    return Ok(());
                }
            }
        }
    }

    fn poll(&mut self, cx: &mut Context) -> Result<Polled> {
        if matches!(self.output, Output::NotStarted) {
            let _io = cx.io.enter();
            self.output = Output::Running(self.plan.execute(0, Arc::clone(&cx.task))?);
        }
        let Output::Running(stream) = &mut self.output else {
            return Ok(Polled::Ended);
        };
        let queue = &self.queue;
        let cancel = cx.cancel.clone();
        let next = std::future::poll_fn(|task| match stream.as_mut().poll_next(task) {
            Poll::Ready(Some(batch)) => Poll::Ready(batch.map(Polled::Batch).map_err(EngineError::from)),
            Poll::Ready(None) => Poll::Ready(Ok(Polled::Ended)),
            Poll::Pending => {
                let mut queue = queue.lock();
                // A plan with tasks of its own takes its input when it pleases: it must not fall behind without bound.
                if !queue.closed && queue.batches.len() < QUEUE_MAX {
                    return Poll::Ready(Ok(Polled::Hungry));
                }
                queue.producer = Some(task.waker().clone());
                Poll::Pending
            }
        });
        cx.io.block_on(async {
            tokio::select! {
                biased;
                () = cancel.cancelled() => Err(EngineError::Cancelled),
                polled = next => polled,
            }
        })
    }

    fn end(&mut self) {
        self.output = Output::Ended;
        self.queue.lock().batches.clear();
    }
}

impl Operator for Wrapped {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if self.is_done() {
            return Ok(());
        }
        self.queue.lock().push(batch);
        self.drain(cx, out)
    }

    fn on_end(&mut self, _port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.queue.lock().close();
        self.drain(cx, out)
    }

    fn is_done(&self) -> bool {
        matches!(self.output, Output::Ended)
    }
}

/// Between the operator, which pushes, and the plan, which may pull from a task of its own.
#[derive(Debug, Default)]
struct Queue {
    batches: VecDeque<Batch>,
    closed: bool,
    consumer: Option<Waker>,
    producer: Option<Waker>,
}

impl Queue {
    fn push(&mut self, batch: Batch) {
        self.batches.push_back(batch);
        self.wake_consumer();
    }

    fn close(&mut self) {
        self.closed = true;
        self.wake_consumer();
    }

    fn wake_consumer(&mut self) {
        if let Some(waker) = self.consumer.take() {
            waker.wake();
        }
    }
}

/// The leaf of the running plan.
#[derive(Debug)]
struct Feed {
    properties: Arc<PlanProperties>,
    queue: Arc<Mutex<Queue>>,
}

impl DisplayAs for Feed {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Feed")
    }
}

impl ExecutionPlan for Feed {
    fn name(&self) -> &str {
        "Feed"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DataFusionResult<TreeNodeRecursion>,
    ) -> DataFusionResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn replace_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        Ok(Box::pin(FeedStream {
            schema: Arc::clone(self.properties.eq_properties.schema()),
            queue: Arc::clone(&self.queue),
        }))
    }
}

struct FeedStream {
    schema: SchemaRef,
    queue: Arc<Mutex<Queue>>,
}

impl Stream for FeedStream {
    type Item = DataFusionResult<Batch>;

    fn poll_next(self: Pin<&mut Self>, task: &mut std::task::Context<'_>) -> Poll<Option<Self::Item>> {
        let mut queue = self.queue.lock();
        if let Some(batch) = queue.batches.pop_front() {
            if let Some(producer) = queue.producer.take() {
                producer.wake();
            }
            return Poll::Ready(Some(Ok(batch)));
        }
        if queue.closed {
            return Poll::Ready(None);
        }
        queue.consumer = Some(task.waker().clone());
        Poll::Pending
    }
}

impl RecordBatchStream for FeedStream {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }
}
