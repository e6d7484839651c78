//! Made-up rows as a source that goes on: the position is the number of the next row of the split.

use std::sync::Arc;

use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use futures::future::BoxFuture;
use thalweg_engine::operator::{SplitId, SplitReader, SplitSource, SplitStream, numbered_rows, rows_given};
use thalweg_engine::{EngineError, Result};

use crate::generate::GeneratedExec;
use crate::row_wise::RowWise;

/// The splits of made-up rows. How many there are may depend on the parallelism, so the number is part of a split's name: a job
/// that is restored goes on with the splits that it had.
#[derive(Debug)]
pub(crate) struct GeneratedSource {
    plan: RowWise,
}

impl GeneratedSource {
    /// Of a plan over generated rows.
    pub(crate) fn of(plan: &RowWise) -> Option<Self> {
        plan.leaf().downcast_ref::<GeneratedExec>()?;
        // The number of a row must be that of the row below.
        (!plan.drops_rows()).then(|| Self { plan: plan.clone() })
    }

    fn scan(&self) -> Result<&GeneratedExec> {
        let scan = self.plan.leaf().downcast_ref::<GeneratedExec>();
        scan.ok_or_else(|| EngineError::Internal("made-up rows of another scan".into()))
    }

    fn all(&self, splits: usize) -> Result<Vec<SplitId>> {
        let layout = self.scan()?.layout();
        let split = |split| SplitId {
            name: format!("split {split} of {splits}, {layout}"),
            ordinal: split as u64,
        };
        Ok((0..splits).map(split).collect())
    }

    /// The number of splits that a split is one of.
    fn count_of(&self, split: &SplitId) -> Result<usize> {
        let layout = self.scan()?.layout();
        let count = || {
            let (_, rest) = split.name.strip_prefix("split ")?.split_once(" of ")?;
            let (count, dealt) = rest.split_once(", ")?;
            let count: usize = count.parse().ok()?;
            (dealt == layout && count as u64 > split.ordinal).then_some(count)
        };
        count().ok_or_else(|| {
            EngineError::Plan(format!(
                "the state is of '{}', and the table's rows are dealt in {layout} now: its options have changed; set them as \
                 they were, or start without the state of this source",
                split.name
            ))
        })
    }
}

impl SplitSource for GeneratedSource {
    fn splits(&self) -> BoxFuture<'_, Result<Vec<SplitId>>> {
        Box::pin(async { self.all(self.scan()?.splits()) })
    }

    fn splits_besides<'a>(&'a self, known: &'a [SplitId]) -> BoxFuture<'a, Result<Vec<SplitId>>> {
        Box::pin(async move {
            let Some(first) = known.first() else {
                return self.splits().await;
            };
            let count = self.count_of(first)?;
            let mut all = self.all(count)?;
            if let Some(other) = known.iter().find(|split| !all.contains(split)) {
                return Err(EngineError::BadInput(format!(
                    "the state is of '{}' and of '{}', which are not of one table",
                    first.name, other.name
                )));
            }
            all.retain(|split| !known.contains(split));
            Ok(all)
        })
    }

    fn reader(&self, _subtask: usize, task: Arc<TaskContext>) -> Result<Box<dyn SplitReader>> {
        Ok(Box::new(GeneratedReader {
            source: Self {
                plan: self.plan.clone(),
            },
            task,
        }))
    }
}

struct GeneratedReader {
    source: GeneratedSource,
    task: Arc<TaskContext>,
}

impl SplitReader for GeneratedReader {
    fn open(&mut self, split: &SplitId, position: Option<&[u8]>) -> Result<SplitStream> {
        let given = rows_given(position, &split.name)?;
        let count = self.source.count_of(split)?;
        let number = split.ordinal as usize;
        let scan = self.source.scan()?.after(number, count, given).ok_or_else(|| {
            EngineError::Plan(format!(
                "the table's rows cannot be dealt as '{}' any more: its options have changed; set them as they were, or \
                 start without the state of this source",
                split.name
            ))
        })?;
        let plan: Arc<dyn ExecutionPlan> = self.source.plan.over(Arc::new(scan))?;
        let rows = plan.execute(number, Arc::clone(&self.task))?;
        Ok(numbered_rows(rows, given))
    }
}
