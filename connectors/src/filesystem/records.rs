//! Tables over files that are read record by record: changelogs, and files of which bad records are set aside.
//!
//! Each file is a split, but for changelogs: what a file says of a row comes after what the file before it said, so all
//! files are one split, read in the order of their names.

mod reading;
mod source;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::TableType;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::{TryStreamExt, stream};
use object_store::{ObjectMeta, ObjectStore};
use thalweg_engine::plan::{SchemaSpec, SinkSpec};
use thalweg_engine::{EngineError, Result};

use crate::filesystem::FileOptions;
use crate::filesystem::progress::Progress;
use crate::filesystem::storage::Target;
use crate::formats::{Decoder, FormatOptions};

use reading::Reading;
pub(crate) use source::RecordSource;

/// Which files, and what is around their records.
#[derive(Clone, Debug)]
pub(super) struct Files {
    /// Where they are.
    pub(super) url: ListingTableUrl,
    /// How their names end.
    pub(super) extension: String,
    /// Their compression as a whole.
    pub(super) compression: FileCompressionType,
    /// Whether their first line is no record.
    pub(super) skips_header: bool,
}

/// A table over files of records. It is a changelog (`is_changelog` of its schema) when its format is one.
#[derive(Debug)]
pub struct RecordTable {
    files: Files,
    columns: SchemaRef,
    schema: SchemaRef,
    format: FormatOptions,
    options: BTreeMap<String, String>,
}

impl RecordTable {
    /// Over `files` of records of `columns`.
    ///
    /// # Errors
    /// When the format cannot fill these columns.
    pub(super) fn try_new(
        files: Files,
        columns: SchemaRef,
        format: FormatOptions,
        options: BTreeMap<String, String>,
    ) -> Result<Self> {
        let schema = Arc::clone(Decoder::new(&format, &columns, "")?.schema());
        Ok(Self {
            files,
            columns,
            schema,
            format,
            options,
        })
    }

    /// Where `INSERT INTO` writes.
    ///
    /// # Errors
    /// When the path is a pattern.
    pub fn sink(&self) -> Result<SinkSpec> {
        Target::resolve(&FileOptions::parse(&self.options)?)?;
        Ok(SinkSpec {
            connector: "filesystem".into(),
            options: self.options.clone(),
            schema: SchemaSpec(Arc::clone(&self.schema)),
        })
    }
}

#[async_trait]
impl TableProvider for RecordTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let store = state.runtime_env().object_store(&self.files.url)?;
        let listed = self
            .files
            .url
            .list_all_files(state, store.as_ref(), &self.files.extension)
            .await?;
        let mut files: Vec<ObjectMeta> = listed
            .try_filter(|file| futures::future::ready(file.size > 0))
            .try_collect()
            .await?;
        files.sort_by(|one, other| one.location.cmp(&other.location));
        let splits = match self.format.format.is_changelog() {
            true => vec![files],
            false if files.is_empty() => vec![files],
            false => files.into_iter().map(|file| vec![file]).collect(),
        };
        let projection = projection
            .cloned()
            .unwrap_or_else(|| (0..self.schema.fields().len()).collect());
        let schema = Arc::new(self.schema.project(&projection)?);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(splits.len()),
            EmissionType::Incremental,
            Boundedness::Bounded,
        );
        Ok(Arc::new(RecordScan {
            store,
            files: self.files.clone(),
            splits,
            columns: Arc::clone(&self.columns),
            format: self.format.clone(),
            projection,
            schema,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        }))
    }
}

/// Reads files record by record. Its metric `bad_records` counts those that were set aside.
#[derive(Clone, Debug)]
struct RecordScan {
    store: Arc<dyn ObjectStore>,
    files: Files,
    splits: Vec<Vec<ObjectMeta>>,
    columns: SchemaRef,
    format: FormatOptions,
    projection: Vec<usize>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl DisplayAs for RecordScan {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let files = self.splits.iter().map(Vec::len).sum::<usize>();
        write!(f, "Records: format={}, files={files}", self.format.format.name())
    }
}

impl ExecutionPlan for RecordScan {
    fn name(&self) -> &str {
        "Records"
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

    fn execute(&self, partition: usize, context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let Some(files) = self.splits.get(partition) else {
            return datafusion::common::internal_err!("Records has no split {partition}");
        };
        let bad_records = MetricBuilder::new(&self.metrics).counter("bad_records", partition);
        let reading = Reading::new(self, files.clone(), Progress::default(), &context, bad_records);
        let batches = stream::try_unfold(reading, |mut reading| async move {
            let batch = reading.next().await?;
            Ok(batch.map(|batch| (batch, reading)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            batches,
        )))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

fn external(error: EngineError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
