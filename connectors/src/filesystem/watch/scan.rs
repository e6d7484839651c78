//! The endless scan of a watched folder, and the folder as a source that goes on.

use std::fmt;
use std::sync::Arc;

use datafusion::common::internal_err;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::future::BoxFuture;
use futures::{StreamExt, stream};
use thalweg_engine::Result;
use thalweg_engine::operator::{Positioned, SplitId, SplitReader, SplitSource, SplitStream};

use super::{Folder, Watch};
use crate::filesystem::progress::Progress;
use crate::row_wise::RowWise;

/// Reads the files of a folder as they appear: one split.
#[derive(Debug)]
pub(super) struct WatchScan {
    folder: Arc<Folder>,
    properties: Arc<PlanProperties>,
}

impl WatchScan {
    pub(super) fn new(folder: Arc<Folder>) -> Self {
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&folder.schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Unbounded {
                requires_infinite_memory: false,
            },
        );
        Self {
            folder,
            properties: Arc::new(properties),
        }
    }
}

impl DisplayAs for WatchScan {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Folder { url, interval, .. } = self.folder.as_ref();
        write!(f, "WatchedFolder: path={}, interval={interval:?}", url.as_str())
    }
}

impl ExecutionPlan for WatchScan {
    fn name(&self) -> &str {
        "WatchedFolder"
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

    fn execute(&self, partition: usize, task: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        if partition > 0 {
            return internal_err!("a watched folder has no split {partition}");
        }
        let watch = Watch::new(Arc::clone(&self.folder), task, Progress::default());
        let batches = stream::try_unfold(watch, |mut watch| async move {
            let batch = watch.next().await?;
            Ok(Some((batch, watch)))
        });
        let schema = Arc::clone(&self.folder.schema);
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, batches)))
    }
}

/// A watched folder whose files go on being read where they were.
#[derive(Clone, Debug)]
pub(crate) struct WatchSource {
    folder: Arc<Folder>,
}

impl WatchSource {
    /// Of a plan over a watched folder.
    pub(crate) fn of(plan: &RowWise) -> Option<Self> {
        let scan = plan.only_leaf()?.downcast_ref::<WatchScan>()?;
        Some(Self {
            folder: Arc::clone(&scan.folder),
        })
    }
}

impl SplitSource for WatchSource {
    fn splits(&self) -> BoxFuture<'_, Result<Vec<SplitId>>> {
        let split = SplitId {
            name: format!("folder {}", self.folder.url.as_str()),
            ordinal: 0,
        };
        Box::pin(async { Ok(vec![split]) })
    }

    fn reader(&self, _subtask: usize, task: Arc<TaskContext>) -> Result<Box<dyn SplitReader>> {
        Ok(Box::new(WatchReader {
            folder: Arc::clone(&self.folder),
            task,
        }))
    }
}

struct WatchReader {
    folder: Arc<Folder>,
    task: Arc<TaskContext>,
}

impl SplitReader for WatchReader {
    fn open(&mut self, split: &SplitId, position: Option<&[u8]>) -> Result<SplitStream> {
        let progress = Progress::decode(position, &split.name)?;
        let watch = Watch::new(Arc::clone(&self.folder), Arc::clone(&self.task), progress);
        let batches = stream::try_unfold(watch, |mut watch| async move {
            let batch = watch.next().await?;
            let position = watch.progress.encode();
            Ok(Some((Positioned { batch, position }, watch)))
        });
        Ok(batches.boxed())
    }
}
