//! Tables over files that are read record by record: changelogs, and files of which bad records are set aside.
//!
//! Each file is a split, but for changelogs: what a file says of a row comes after what the file before it said, so all
//! files are one split, read in the order of their names.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use async_trait::async_trait;
use bytes::Bytes;
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
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt, stream};
use object_store::{ObjectMeta, ObjectStore, ObjectStoreExt};
use thalweg_engine::plan::{SchemaSpec, SinkSpec};
use thalweg_engine::{EngineError, Result};

use crate::filesystem::FileOptions;
use crate::filesystem::diagnose::shown_name;
use crate::filesystem::storage::Target;
use crate::formats::{Decoder, FormatOptions, Lines};

/// So much of a file is read at once.
const READ_BYTES: u64 = 1 << 20;

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
#[derive(Debug)]
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
        let reading = Reading {
            store: Arc::clone(&self.store),
            files: self.files.clone(),
            waiting: files.iter().cloned().collect(),
            open: None,
            ready: VecDeque::new(),
            columns: Arc::clone(&self.columns),
            format: self.format.clone(),
            projection: self.projection.clone(),
            batch_rows: context.session_config().batch_size().max(1),
            bad_records: MetricBuilder::new(&self.metrics).counter("bad_records", partition),
        };
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

/// One split on its way.
struct Reading {
    store: Arc<dyn ObjectStore>,
    files: Files,
    waiting: VecDeque<ObjectMeta>,
    open: Option<OpenFile>,
    ready: VecDeque<RecordBatch>,
    columns: SchemaRef,
    format: FormatOptions,
    projection: Vec<usize>,
    batch_rows: usize,
    bad_records: Count,
}

/// One file on its way.
struct OpenFile {
    bytes: BoxStream<'static, DataFusionResult<Bytes>>,
    lines: Lines,
    decoder: Decoder,
    skips_line: bool,
}

impl Reading {
    async fn next(&mut self) -> DataFusionResult<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(batch));
            }
            let Some(mut file) = self.open.take() else {
                let Some(next) = self.waiting.pop_front() else {
                    return Ok(None);
                };
                self.open = Some(self.open_file(next)?);
                continue;
            };
            match file.bytes.next().await {
                Some(bytes) => {
                    file.lines.push(&bytes?);
                    if file.lines.len() as u64 >= READ_BYTES {
                        self.decode(&mut file, false)?;
                    }
                    self.open = Some(file);
                }
                None => self.decode(&mut file, true)?,
            }
        }
    }

    fn open_file(&self, file: ObjectMeta) -> DataFusionResult<OpenFile> {
        let store = Arc::clone(&self.store);
        let name = shown_name(self.files.url.object_store().as_str(), &file.location);
        let pieces = stream::iter((0..file.size).step_by(READ_BYTES as usize)).then(move |start| {
            let (store, location, end) = (
                Arc::clone(&store),
                file.location.clone(),
                (start + READ_BYTES).min(file.size),
            );
            async move { Ok(store.get_range(&location, start..end).await?) }
        });
        Ok(OpenFile {
            bytes: self.files.compression.convert_stream(pieces.boxed())?,
            lines: Lines::default(),
            decoder: Decoder::new(&self.format, &self.columns, name).map_err(external)?,
            skips_line: self.files.skips_header,
        })
    }

    /// Decodes the lines that are complete, or all at the end of the file.
    fn decode(&mut self, file: &mut OpenFile, at_end: bool) -> DataFusionResult<()> {
        let mut lines = if at_end {
            file.lines.all()
        } else {
            file.lines.complete()
        };
        let before = file.decoder.bad_records();
        if file.skips_line && !lines.is_empty() {
            lines.remove(0);
            file.decoder.skip_record();
            file.skips_line = false;
        }
        for records in lines.chunks(self.batch_rows) {
            let batch = file.decoder.decode(records).map_err(external)?;
            for start in (0..batch.num_rows()).step_by(self.batch_rows) {
                let piece = batch.slice(start, self.batch_rows.min(batch.num_rows() - start));
                self.ready.push_back(piece.project(&self.projection)?);
            }
        }
        self.bad_records.add((file.decoder.bad_records() - before) as usize);
        drop(lines);
        file.lines.consume();
        Ok(())
    }
}

fn external(error: EngineError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
