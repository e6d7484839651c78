//! [`PartitionSplits`]: any scan as a source that can go on: the position is the number of rows that a partition has given,
//! and to go on there is to read it from the beginning and to drop so many.

use std::sync::Arc;

use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use futures::future::BoxFuture;

use crate::data::{EngineError, Result};
use crate::operator::counted::{counted_rows, rows_given};
use crate::operator::scan::BadRecords;
use crate::operator::{SplitId, SplitReader, SplitSource, SplitStream};

/// The partitions of a plan as splits.
#[derive(Debug)]
pub(super) struct PartitionSplits {
    plan: Arc<dyn ExecutionPlan>,
}

impl PartitionSplits {
    pub(super) fn new(plan: Arc<dyn ExecutionPlan>) -> Self {
        Self { plan }
    }

    fn count(&self) -> usize {
        self.plan.properties().partitioning.partition_count()
    }

    fn all(&self) -> Vec<SplitId> {
        let count = self.count();
        let split = |index| SplitId {
            name: format!("partition {index} of {count}"),
            ordinal: index as u64,
        };
        (0..count).map(split).collect()
    }
}

impl SplitSource for PartitionSplits {
    fn splits(&self) -> BoxFuture<'_, Result<Vec<SplitId>>> {
        Box::pin(async { Ok(self.all()) })
    }

    fn splits_besides<'a>(&'a self, known: &'a [SplitId]) -> BoxFuture<'a, Result<Vec<SplitId>>> {
        Box::pin(async move {
            let mut all = self.all();
            if let Some(strange) = known.iter().find(|split| !all.contains(split)) {
                return Err(EngineError::Plan(format!(
                    "the scan has {} partitions now and the state is of '{}'; start with the parallelism and the input that \
                     the job had, or without the state of this source",
                    all.len(),
                    strange.name
                )));
            }
            all.retain(|split| !known.contains(split));
            Ok(all)
        })
    }

    fn reader(&self, _subtask: usize, task: Arc<TaskContext>) -> Result<Box<dyn SplitReader>> {
        Ok(Box::new(PartitionReader {
            plan: Arc::clone(&self.plan),
            task: in_order(&task),
            bad_records: BadRecords::default(),
        }))
    }
}

/// `task` with partitions that keep to their own files: else one that is free takes another's, so that which rows a
/// partition has is a matter of luck, and a plan that is executed again finds all of them taken.
fn in_order(task: &TaskContext) -> Arc<TaskContext> {
    let mut config = task.session_config().clone();
    config.options_mut().execution.enable_file_stream_work_stealing = false;
    Arc::new(TaskContext::new(
        task.task_id(),
        task.session_id(),
        config,
        task.scalar_functions().clone(),
        task.higher_order_functions().clone(),
        task.aggregate_functions().clone(),
        task.window_functions().clone(),
        task.runtime_env(),
    ))
}

struct PartitionReader {
    plan: Arc<dyn ExecutionPlan>,
    task: Arc<TaskContext>,
    bad_records: BadRecords,
}

impl SplitReader for PartitionReader {
    fn open(&mut self, split: &SplitId, position: Option<&[u8]>) -> Result<SplitStream> {
        // The ordinal of a partition is its number.
        let partition = split.ordinal as usize;
        let given = rows_given(position, &split.name)?;
        let rows = self.plan.execute(partition, Arc::clone(&self.task))?;
        self.bad_records.watch(&self.plan, partition);
        Ok(counted_rows(rows, given, split.name.clone()))
    }

    fn bad_records(&self) -> u64 {
        self.bad_records.sum()
    }
}
