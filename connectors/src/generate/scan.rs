//! The scan of made-up rows.

use std::fmt;
use std::sync::Arc;

use arrow::record_batch::RecordBatch;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, Statistics, internal_err};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};

use crate::generate::{Pace, Rows};

/// Makes rows up. Its partitions are the splits.
#[derive(Debug)]
pub(crate) struct GeneratedExec {
    connector: &'static str,
    rows: Arc<dyn Rows>,
    /// Events in all; endless when `None`.
    events: Option<u64>,
    /// By the wall clock, or as fast as possible.
    pace: Option<Pace>,
    /// So many rows of each split are left out, for one that goes on.
    skipped: u64,
    properties: Arc<PlanProperties>,
}

impl GeneratedExec {
    pub(crate) fn new(
        connector: &'static str,
        rows: Arc<dyn Rows>,
        splits: usize,
        events: Option<u64>,
        pace: Option<Pace>,
    ) -> Self {
        let boundedness = match events {
            Some(_) => Boundedness::Bounded,
            None => Boundedness::Unbounded {
                requires_infinite_memory: false,
            },
        };
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(rows.schema()),
            Partitioning::UnknownPartitioning(splits),
            EmissionType::Incremental,
            boundedness,
        ));
        Self {
            connector,
            rows,
            events,
            pace,
            skipped: 0,
            properties,
        }
    }

    /// The rows after the first `skipped` of each split, dealt to so many splits. `None` when they cannot be dealt so.
    pub(super) fn after(&self, split: usize, splits: usize, skipped: u64) -> Option<Self> {
        let rows = match splits == self.splits() {
            true => Arc::clone(&self.rows),
            false => self.rows.with_splits(splits)?,
        };
        if let Some(pace) = &self.pace
            && skipped > 0
        {
            pace.go_on_at(rows.event(split, skipped));
        }
        Some(Self {
            skipped,
            ..Self::new(self.connector, rows, splits, self.events, self.pace.clone())
        })
    }

    /// Which split makes which rows, apart from their number.
    pub(super) fn layout(&self) -> String {
        self.rows.layout()
    }

    pub(super) fn splits(&self) -> usize {
        self.properties.partitioning.partition_count()
    }
}

impl DisplayAs for GeneratedExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.events {
            Some(events) => write!(f, "{}: events={events}, splits={}", self.connector, self.splits()),
            None => write!(f, "{}: endless, splits={}", self.connector, self.splits()),
        }
    }
}

impl ExecutionPlan for GeneratedExec {
    fn name(&self) -> &str {
        self.connector
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn replace_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        if partition >= self.splits() {
            return internal_err!("{} has no split {partition}", self.connector);
        }
        let split = Split {
            rows: Arc::clone(&self.rows),
            split: partition,
            next: self.skipped,
            end: self.rows.below(partition, self.events.unwrap_or(u64::MAX)),
            batch_rows: context.session_config().batch_size().max(1),
            pace: self.pace.clone(),
        };
        let stream = futures::stream::unfold(split, |mut split| async move {
            let batch = split.next().await?;
            Some((batch, split))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(self.rows.schema(), stream)))
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Arc<Statistics>> {
        let unknown = Statistics::new_unknown(&self.rows.schema());
        let Some(events) = self.events else {
            return Ok(Arc::new(unknown));
        };
        let splits = match partition {
            Some(split) => split..split + 1,
            None => 0..self.splits(),
        };
        let rows: u64 = splits.map(|split| self.rows.below(split, events)).sum();
        Ok(Arc::new(Statistics {
            num_rows: Precision::Exact(rows as usize),
            ..unknown
        }))
    }
}

/// One split being read.
struct Split {
    rows: Arc<dyn Rows>,
    split: usize,
    next: u64,
    end: u64,
    batch_rows: usize,
    pace: Option<Pace>,
}

impl Split {
    /// The next batch: a full one, or with a pace what is due, which may be less.
    async fn next(&mut self) -> Option<Result<RecordBatch>> {
        if self.next >= self.end {
            return None;
        }
        let mut ready = self.end;
        if let Some(pace) = &self.pace {
            loop {
                ready = self.rows.below(self.split, pace.due()).min(self.end);
                if ready > self.next {
                    break;
                }
                pace.wait_for(self.rows.event(self.split, self.next)).await;
            }
        }
        let count = (ready - self.next).min(self.batch_rows as u64) as usize;
        let batch = self.rows.batch(self.split, self.next, count);
        self.next += count as u64;
        Some(batch.map_err(DataFusionError::from))
    }
}
