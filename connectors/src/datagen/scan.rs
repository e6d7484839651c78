//! The scan of made-up rows: partitions are ranges of row numbers.

use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::{RecordBatch, RecordBatchOptions};
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Statistics, internal_err};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};

use crate::datagen::column::Column;

const SPLIT_ROWS_MIN: u64 = 65_536;
const SPLIT_ROWS_MAX: u64 = 1 << 20;

/// Makes rows up.
#[derive(Debug)]
pub(super) struct DatagenExec {
    columns: Arc<Vec<Column>>,
    projection: Vec<usize>,
    schema: SchemaRef,
    rows: u64,
    split_rows: u64,
    properties: Arc<PlanProperties>,
}

impl DatagenExec {
    pub(super) fn try_new(
        schema: &SchemaRef,
        columns: Arc<Vec<Column>>,
        projection: Vec<usize>,
        rows: u64,
    ) -> Result<Self> {
        let schema = Arc::new(schema.project(&projection)?);
        let split_rows = rows.div_ceil(64).clamp(SPLIT_ROWS_MIN, SPLIT_ROWS_MAX);
        let splits = rows.div_ceil(split_rows).max(1) as usize;
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(splits),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        Ok(Self {
            columns,
            projection,
            schema,
            rows,
            split_rows,
            properties,
        })
    }

    /// The row numbers of a split.
    fn range(&self, split: usize) -> std::ops::Range<u64> {
        let start = (split as u64).saturating_mul(self.split_rows).min(self.rows);
        start..start.saturating_add(self.split_rows).min(self.rows)
    }
}

impl DisplayAs for DatagenExec {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Datagen: rows={}", self.rows)
    }
}

impl ExecutionPlan for DatagenExec {
    fn name(&self) -> &str {
        "Datagen"
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
        if partition >= self.properties.partitioning.partition_count() {
            return internal_err!("Datagen has no split {partition}");
        }
        let rows = self.range(partition);
        let batch_rows = context.session_config().batch_size().max(1);
        let (columns, projection) = (Arc::clone(&self.columns), self.projection.clone());
        let schema = Arc::clone(&self.schema);
        let batches = rows.clone().step_by(batch_rows).map(move |first| {
            let count = (rows.end - first).min(batch_rows as u64) as usize;
            let values = projection.iter().map(|column| columns[*column].values(first, count));
            let options = RecordBatchOptions::new().with_row_count(Some(count));
            let values = values.collect::<std::result::Result<Vec<_>, _>>()?;
            Ok(RecordBatch::try_new_with_options(
                Arc::clone(&schema),
                values,
                &options,
            )?)
        });
        let stream = futures::stream::iter(batches);
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            stream,
        )))
    }

    fn partition_statistics(&self, partition: Option<usize>) -> Result<Arc<Statistics>> {
        let rows = match partition {
            Some(split) => {
                let range = self.range(split);
                range.end - range.start
            }
            None => self.rows,
        };
        let unknown = Statistics::new_unknown(&self.schema);
        Ok(Arc::new(Statistics {
            num_rows: Precision::Exact(rows as usize),
            ..unknown
        }))
    }
}
