//! Records to rows: the format and its scan, as DataFusion's listing tables want them.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, FixedSizeBinaryArray, RecordBatch, RecordBatchOptions};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::Session;
use datafusion::common::stats::Precision;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{Statistics, exec_datafusion_err, exec_err, plan_datafusion_err};
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::file_compression_type::FileCompressionType;
use datafusion::datasource::listing::PartitionedFile;
use datafusion::datasource::physical_plan::{FileOpenFuture, FileOpener, FileScanConfig, FileSource};
use datafusion::datasource::projection::{ProjectionOpener, SplitProjection};
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::Result;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::projection::ProjectionExprs;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::metrics::ExecutionPlanMetricsSet;
use futures::stream::BoxStream;
use futures::{Stream, StreamExt, stream};
use object_store::{GetOptions, GetRange, GetResultPayload, ObjectMeta, ObjectStore};

use super::{Layout, Place};

/// Records that are read at once take about this many bytes, or a batch where that is less.
const READ_BYTES: usize = 1 << 20;

/// Files of records of one length.
#[derive(Debug)]
pub(in crate::filesystem) struct FixedFormat {
    lengths: Vec<usize>,
}

impl FixedFormat {
    /// Columns of these lengths; none where the columns' types say it.
    pub(in crate::filesystem) fn new(lengths: Vec<usize>) -> Self {
        Self { lengths }
    }
}

#[async_trait]
impl FileFormat for FixedFormat {
    fn get_ext(&self) -> String {
        "fixed".into()
    }

    fn get_ext_with_compression(&self, _compression: &FileCompressionType) -> Result<String> {
        Ok(self.get_ext())
    }

    fn compression_type(&self) -> Option<FileCompressionType> {
        None
    }

    /// The files do not name their columns.
    async fn infer_schema(
        &self,
        _state: &dyn Session,
        _store: &Arc<dyn ObjectStore>,
        _objects: &[ObjectMeta],
    ) -> Result<SchemaRef> {
        let field = |number: usize| Field::new(format!("column_{number}"), DataType::Binary, true);
        Ok(Arc::new(Schema::new(
            (1..=self.lengths.len()).map(field).collect::<Vec<_>>(),
        )))
    }

    async fn infer_stats(
        &self,
        _state: &dyn Session,
        _store: &Arc<dyn ObjectStore>,
        table_schema: SchemaRef,
        object: &ObjectMeta,
    ) -> Result<Statistics> {
        let mut statistics = Statistics::new_unknown(&table_schema);
        statistics.total_byte_size = Precision::Exact(object.size as usize);
        // The length of a record; a file that ends within one is what the scan complains about.
        if let Ok(layout) = Layout::try_new(&table_schema, &self.lengths)
            && object.size.is_multiple_of(layout.record_bytes as u64)
        {
            statistics.num_rows = Precision::Exact(object.size as usize / layout.record_bytes);
            for column in &mut statistics.column_statistics {
                column.null_count = Precision::Exact(0);
            }
        }
        Ok(statistics)
    }

    async fn create_physical_plan(
        &self,
        _state: &dyn Session,
        config: FileScanConfig,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(DataSourceExec::from_data_source(config))
    }

    fn file_source(&self, table_schema: TableSchema) -> Arc<dyn FileSource> {
        Arc::new(FixedSource {
            lengths: self.lengths.clone(),
            projection: SplitProjection::unprojected(&table_schema),
            table_schema,
            batch_rows: 8192,
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }
}

/// The scan of such files.
#[derive(Clone)]
struct FixedSource {
    lengths: Vec<usize>,
    table_schema: TableSchema,
    projection: SplitProjection,
    batch_rows: usize,
    metrics: ExecutionPlanMetricsSet,
}

impl FileSource for FixedSource {
    fn create_file_opener(
        &self,
        store: Arc<dyn ObjectStore>,
        _config: &FileScanConfig,
        _partition: usize,
    ) -> Result<Arc<dyn FileOpener>> {
        let files = self.table_schema.file_schema();
        let layout = Layout::try_new(files, &self.lengths).map_err(|why| plan_datafusion_err!("{why}"))?;
        let records = Records::try_new(layout, files, &self.projection.file_indices, self.batch_rows)?;
        let opener = FixedOpener { store, records };
        ProjectionOpener::try_new(self.projection.clone(), Arc::new(opener), files)
    }

    fn table_schema(&self) -> &TableSchema {
        &self.table_schema
    }

    fn with_batch_size(&self, batch_size: usize) -> Arc<dyn FileSource> {
        Arc::new(Self {
            batch_rows: batch_size,
            ..self.clone()
        })
    }

    fn projection(&self) -> Option<&ProjectionExprs> {
        Some(&self.projection.source)
    }

    fn try_pushdown_projection(&self, projection: &ProjectionExprs) -> Result<Option<Arc<dyn FileSource>>> {
        let merged = self.projection.source.try_merge(projection)?;
        Ok(Some(Arc::new(Self {
            projection: SplitProjection::new(self.table_schema.file_schema(), &merged),
            ..self.clone()
        })))
    }

    fn metrics(&self) -> &ExecutionPlanMetricsSet {
        &self.metrics
    }

    fn file_type(&self) -> &str {
        "fixed"
    }

    fn apply_expressions(
        &self,
        f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        for projected in &self.projection.source {
            if f(&projected.expr)? == TreeNodeRecursion::Stop {
                return Ok(TreeNodeRecursion::Stop);
            }
        }
        Ok(TreeNodeRecursion::Continue)
    }
}

struct FixedOpener {
    store: Arc<dyn ObjectStore>,
    records: Records,
}

impl FileOpener for FixedOpener {
    fn open(&self, file: PartitionedFile) -> Result<FileOpenFuture> {
        let (store, records) = (Arc::clone(&self.store), self.records.clone());
        Ok(Box::pin(async move {
            let range = records.range(&file)?;
            if range.is_empty() {
                return Ok(stream::empty().boxed());
            }
            let options = GetOptions {
                range: Some(GetRange::Bounded(range.clone())),
                ..GetOptions::default()
            };
            let got = store.get_opts(&file.object_meta.location, options).await?;
            Ok(match got.payload {
                GetResultPayload::File(mut file, _) => {
                    file.seek(SeekFrom::Start(range.start))?;
                    records.of_file(file, range.end - range.start)
                }
                GetResultPayload::Stream(bytes) => {
                    // A file that has become shorter ends early.
                    let limit = usize::try_from(range.end - range.start)
                        .map_err(|_| exec_datafusion_err!("the range is too long for this machine"))?;
                    records.of_stream(bytes.map(|bytes| Ok(bytes?)), limit).boxed()
                }
            })
        }))
    }
}

/// Turns records into batches.
#[derive(Clone)]
pub(super) struct Records {
    layout: Layout,
    /// The columns to read, and their schema.
    columns: Vec<usize>,
    schema: SchemaRef,
    rows_at_once: usize,
}

impl Records {
    /// Reads `columns` of `files`, at most `batch_rows` rows at once.
    pub(super) fn try_new(layout: Layout, files: &Schema, columns: &[usize], batch_rows: usize) -> Result<Self> {
        Ok(Self {
            columns: columns.to_vec(),
            schema: Arc::new(files.project(columns)?),
            rows_at_once: (READ_BYTES / layout.record_bytes).clamp(1, batch_rows.max(1)),
            layout,
        })
    }

    /// The bytes of the records that begin in the file's range.
    fn range(&self, file: &PartitionedFile) -> Result<Range<u64>> {
        let (size, record) = (file.object_meta.size, self.layout.record_bytes as u64);
        if !size.is_multiple_of(record) {
            return exec_err!("the file has {size} bytes, which is not a multiple of the {record} bytes of a record");
        }
        let Some(range) = &file.range else {
            return Ok(0..size);
        };
        let boundary = |at: i64| u64::try_from(at).unwrap_or(0).next_multiple_of(record).min(size);
        Ok(boundary(range.start)..boundary(range.end))
    }

    /// The records in the next `left` bytes of `file`, read when they are asked for, into a buffer that is used again.
    fn of_file(self, mut file: File, mut left: u64) -> BoxStream<'static, Result<RecordBatch>> {
        let mut buffer = vec![1; self.rows_at_once * self.layout.record_bytes];
        let batches = std::iter::from_fn(move || {
            let bytes = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
            if bytes == 0 {
                return None;
            }
            left -= bytes as u64;
            let read = file.read_exact(&mut buffer[..bytes]);
            Some(read.map_err(Into::into).and_then(|()| self.batch(&buffer[..bytes])))
        });
        stream::iter(batches).boxed()
    }

    /// The records in `bytes`, which come in pieces of any size; they must be `left` bytes.
    pub(super) fn of_stream<B: AsRef<[u8]>>(
        self,
        bytes: impl Stream<Item = Result<B>> + Send + Unpin,
        left: usize,
    ) -> impl Stream<Item = Result<RecordBatch>> + Send {
        let at_once = self.rows_at_once * self.layout.record_bytes;
        let state = (bytes, Vec::with_capacity(at_once), left);
        stream::try_unfold(state, move |(mut bytes, mut held, left)| {
            let records = self.clone();
            async move {
                let wanted = at_once.min(left);
                while held.len() < wanted {
                    let Some(piece) = bytes.next().await else {
                        return exec_err!("the file ends {} bytes early", left - held.len());
                    };
                    held.extend_from_slice(piece?.as_ref());
                }
                if wanted == 0 {
                    return Ok(None);
                }
                let batch = records.batch(&held[..wanted])?;
                held.drain(..wanted);
                Ok(Some((batch, (bytes, held, left - wanted))))
            }
        })
    }

    fn batch(&self, records: &[u8]) -> Result<RecordBatch> {
        let record = self.layout.record_bytes;
        let columns = self
            .columns
            .iter()
            .map(|column| self.layout.places[*column].gather(records, record));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(records.len() / record));
        Ok(RecordBatch::try_new_with_options(
            Arc::clone(&self.schema),
            columns,
            &options,
        )?)
    }
}

impl Place {
    /// The column's values in the records.
    fn gather(&self, records: &[u8], record_bytes: usize) -> Result<ArrayRef> {
        let rows = records.len() / record_bytes;
        let mut values = Vec::with_capacity(rows * self.length);
        for record in records.chunks_exact(record_bytes) {
            values.extend_from_slice(&record[self.start..][..self.length]);
        }
        let values = Buffer::from_vec(values);
        if let DataType::FixedSizeBinary(length) = self.data_type {
            return Ok(Arc::new(FixedSizeBinaryArray::try_new(length, values, None)?));
        }
        let offsets: Vec<i32> = (0..=rows).map(|row| (row * self.length) as i32).collect();
        let binary = BinaryArray::new(OffsetBuffer::new(ScalarBuffer::from(offsets)), values, None);
        Ok(match self.data_type {
            DataType::Binary => Arc::new(binary),
            _ => cast(&binary, &self.data_type)?,
        })
    }
}
