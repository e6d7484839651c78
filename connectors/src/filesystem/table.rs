//! Tables over files: DataFusion's listing and scans, with the declared order of columns, NULL partitions, and a sink.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::{Column, DFSchema, ScalarValue, Statistics};
use datafusion::config::TableParquetOptions;
use datafusion::datasource::TableType;
use datafusion::datasource::file_format::FileFormat;
use datafusion::datasource::file_format::arrow::ArrowFormat;
use datafusion::datasource::file_format::avro::AvroFormat;
use datafusion::datasource::file_format::csv::CsvFormat;
use datafusion::datasource::file_format::json::JsonFormat;
use datafusion::datasource::file_format::parquet::ParquetFormat;
use datafusion::datasource::listing::helpers::expr_applicable_for_cols;
use datafusion::datasource::listing::{
    ListingOptions, ListingTable, ListingTableConfig, ListingTableUrl, PartitionedFile,
};
use datafusion::datasource::physical_plan::{FileGroup, FileScanConfigBuilder};
use datafusion::datasource::table_schema::TableSchema;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::{Expr, TableProviderFilterPushDown, cast, lit, when};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::projection::ProjectionExec;
use thalweg_engine::plan::{SchemaSpec, SinkSpec};
use thalweg_engine::{EngineError, Result};

use crate::filesystem::fixed::{FixedFormat, Layout};
use crate::filesystem::records::{Files, RecordTable};
use crate::filesystem::storage::{Target, local_path};
use crate::filesystem::{FileOptions, Format, hive, watch};
use crate::formats::{FormatOptions, StreamFormat};

/// A table over files that knows how to be read and where `INSERT INTO` writes.
#[derive(Clone, Debug)]
pub struct FileTable {
    /// Lists and reads; its columns are the files' columns and then the partition columns, these as text.
    inner: ListingTable,
    /// The columns as declared.
    schema: SchemaRef,
    /// Where each declared column is in `inner`.
    order: Vec<usize>,
    /// The partition columns as declared.
    partitions: Vec<FieldRef>,
    /// The text that is NULL in CSV. DataFusion's scan knows the empty field only: where this is set, `inner` reads
    /// text, and NULL and the types are made here.
    null_literal: Option<String>,
    /// How long to wait before looking for new files; a table of the files that are there when `None`.
    monitor: Option<Duration>,
    options: BTreeMap<String, String>,
}

/// Makes the table over `path`; see [`create_table`].
///
/// # Errors
/// As there.
pub async fn table_provider(
    state: &dyn Session,
    path: &str,
    format: &str,
    schema: Option<SchemaRef>,
    partition_cols: &[String],
    options: &BTreeMap<String, String>,
) -> Result<Arc<dyn TableProvider>> {
    let mut options = options.clone();
    options.insert("path".into(), path.into());
    options.insert("format".into(), format.into());
    create_table(
        state,
        schema.unwrap_or_else(|| Arc::new(Schema::empty())),
        partition_cols,
        &options,
    )
    .await
}

/// Makes the table of `CREATE TABLE (columns) PARTITIONED BY (partition_cols) WITH (options)`. Without columns they
/// are found in the files. The path is a file, a folder or a pattern.
///
/// # Errors
/// When an option or column is wrong, or there are neither columns nor files.
pub async fn create_table(
    state: &dyn Session,
    columns: SchemaRef,
    partition_cols: &[String],
    options: &BTreeMap<String, String>,
) -> Result<Arc<dyn TableProvider>> {
    let mut options = options.clone();
    options.retain(|key, _| !key.eq_ignore_ascii_case("connector"));
    if !partition_cols.is_empty() {
        let names = serde_json::to_string(partition_cols).map_err(|e| EngineError::Internal(e.to_string()))?;
        options.insert("partitioned-by".into(), names);
    }
    let parsed = FileOptions::parse(&options)?;
    let url = listing_url(&parsed)?;
    if parsed.monitor.is_some() && !url.is_collection() {
        return Err(EngineError::Plan(format!(
            "option 'source.monitor-interval' is for folders and patterns, and '{}' is a file",
            parsed.path
        )));
    }
    if let Some(format) = record_format(&parsed)? {
        if parsed.monitor.is_some() {
            return Err(EngineError::Plan(format!(
                "option 'source.monitor-interval' is not for files that are read record by record (format '{}')",
                format.format.name()
            )));
        }
        return record_table(state, columns, url, &parsed, format, options).await;
    }
    let listing = ListingOptions::new(reader(state, &parsed)).with_file_extension(extension_filter(&parsed, &url));
    let declared = !columns.fields().is_empty();
    let found = if declared {
        columns
    } else {
        listing.infer_schema(state, &url).await?
    };
    let (files, partitions, schema) = split_columns(&found, &parsed.partition_by, declared)?;
    if parsed.format == Format::Fixed {
        Layout::try_new(&files, &parsed.fixed_lengths).map_err(EngineError::Plan)?;
    }
    let order = column_order(&schema, &files, &partitions)?;
    let null_literal = parsed
        .csv
        .null_value
        .clone()
        .filter(|null| parsed.format == Format::Csv && !null.is_empty());
    let files = if null_literal.is_some() {
        all_text(&files)
    } else {
        files
    };
    let as_text = partitions
        .iter()
        .map(|field| (field.name().clone(), DataType::Utf8))
        .collect();
    let config = ListingTableConfig::new(url)
        .with_listing_options(listing.with_table_partition_cols(as_text))
        .with_schema(files);
    let inner = ListingTable::try_new(config)?.with_cache(state.runtime_env().cache_manager.get_file_statistic_cache());
    Ok(Arc::new(FileTable {
        inner,
        schema,
        order,
        partitions,
        null_literal,
        monitor: parsed.monitor,
        options,
    }))
}

/// How records are read one by one, where that is needed: changelogs, and files of which bad records are set aside.
fn record_format(options: &FileOptions) -> Result<Option<FormatOptions>> {
    let Some(format) = options.format.records() else {
        return Ok(None);
    };
    if !(format.is_changelog() || options.ignore_parse_errors || options.dead_letter.is_some()) {
        return Ok(None);
    }
    let mut records = FormatOptions::new(format);
    records.ignore_parse_errors = options.ignore_parse_errors;
    records.dead_letter.clone_from(&options.dead_letter);
    records.schema_include = options.schema_include;
    let csv = &options.csv;
    if format == StreamFormat::Csv {
        let formats = [
            &csv.date_format,
            &csv.time_format,
            &csv.timestamp_format,
            &csv.timestamp_tz_format,
        ];
        let lines = [csv.newlines_in_values, csv.truncated_rows];
        let regex = csv.null_regex.is_some() && csv.null_value.is_none();
        if regex || formats.iter().any(|format| format.is_some()) || lines.contains(&Some(true)) {
            return Err(EngineError::Plan(
                "bad records of CSV cannot be set aside together with formats of dates and times, newlines in values, \
                 truncated rows or 'csv.null-regex'; leave out 'csv.ignore-parse-errors' and 'dead-letter.path', or those"
                    .into(),
            ));
        }
        records.csv.delimiter = csv.delimiter;
        records.csv.quote = csv.quote;
        records.csv.escape = csv.escape;
        records.csv.comment = csv.comment;
        records.csv.null_literal.clone_from(&csv.null_value);
    }
    if format == StreamFormat::Json && !options.json.newline_delimited {
        return Err(EngineError::Plan(
            "bad records cannot be set aside in an array of JSON; leave out 'json.ignore-parse-errors' and \
             'dead-letter.path', or 'json.newline-delimited'"
                .into(),
        ));
    }
    Ok(Some(records))
}

async fn record_table(
    state: &dyn Session,
    columns: SchemaRef,
    url: ListingTableUrl,
    parsed: &FileOptions,
    format: FormatOptions,
    options: BTreeMap<String, String>,
) -> Result<Arc<dyn TableProvider>> {
    let name = format.format.name();
    if !parsed.partition_by.is_empty() {
        return Err(EngineError::Plan(format!(
            "files of format '{name}' that are read record by record have no partitions; leave PARTITIONED BY out"
        )));
    }
    let columns = match columns.fields().is_empty() {
        false => columns,
        true if format.format.is_changelog() => {
            return Err(EngineError::Plan(format!(
                "format '{name}' needs columns: CREATE TABLE t (a INT, ..) WITH (..)"
            )));
        }
        true => {
            let listing =
                ListingOptions::new(reader(state, parsed)).with_file_extension(extension_filter(parsed, &url));
            listing.infer_schema(state, &url).await?
        }
    };
    let has_header = parsed
        .csv
        .has_header
        .unwrap_or(state.config().options().catalog.has_header);
    let files = Files {
        extension: extension_filter(parsed, &url),
        url,
        compression: parsed.text_compression().into(),
        skips_header: parsed.format == Format::Csv && has_header,
    };
    Ok(Arc::new(RecordTable::try_new(files, columns, format, options)?))
}

/// Columns of the files, partition columns, and both as declared.
fn split_columns(
    columns: &SchemaRef,
    partition_by: &[String],
    declared: bool,
) -> Result<(SchemaRef, Vec<FieldRef>, SchemaRef)> {
    let mut partitions = Vec::with_capacity(partition_by.len());
    for name in partition_by {
        match columns.field_with_name(name) {
            Ok(field) => partitions.push(Arc::new(field.clone())),
            Err(_) if !declared => partitions.push(Arc::new(Field::new(name, DataType::Utf8, true))),
            Err(_) => {
                return Err(EngineError::Plan(format!(
                    "PARTITIONED BY names '{name}', which is not among the columns"
                )));
            }
        }
    }
    let in_files = columns
        .fields()
        .iter()
        .filter(|field| !partition_by.contains(field.name()));
    let files: Vec<FieldRef> = in_files.cloned().collect();
    if files.is_empty() {
        return Err(EngineError::Plan(
            "every column is a partition column; none is left for the files".into(),
        ));
    }
    let schema = if declared {
        Arc::clone(columns)
    } else {
        Arc::new(Schema::new(
            files.iter().chain(&partitions).cloned().collect::<Vec<_>>(),
        ))
    };
    Ok((Arc::new(Schema::new(files)), partitions, schema))
}

fn all_text(schema: &Schema) -> SchemaRef {
    let text = |field: &FieldRef| field.as_ref().clone().with_data_type(DataType::Utf8);
    Arc::new(Schema::new(schema.fields().iter().map(text).collect::<Vec<_>>()))
}

fn column_order(schema: &Schema, files: &Schema, partitions: &[FieldRef]) -> Result<Vec<usize>> {
    let names: Vec<&String> = files
        .fields()
        .iter()
        .chain(partitions)
        .map(|field| field.name())
        .collect();
    let place = |field: &FieldRef| {
        names
            .iter()
            .position(|name| *name == field.name())
            .ok_or_else(|| EngineError::Internal(field.name().clone()))
    };
    schema.fields().iter().map(place).collect()
}

/// The URL to list. A folder that does not exist yet is one, too: `INSERT INTO` will make it.
fn listing_url(options: &FileOptions) -> Result<ListingTableUrl> {
    let path = &options.path;
    let is_pattern = path.contains(['*', '?', '[']) && !path.contains("://");
    let folder = !is_pattern && !path.ends_with('/') && matches!(Target::resolve(options)?, Target::Folder(_));
    Ok(ListingTableUrl::parse(if folder {
        format!("{path}/")
    } else {
        path.clone()
    })?)
}

/// The ending that files in a folder must have to be read. A named file and a pattern say themselves what they want;
/// so does a folder in which no file has the format's own ending (Flink and Hadoop write files without any).
fn extension_filter(options: &FileOptions, url: &ListingTableUrl) -> String {
    if !url.is_collection() || url.get_glob().is_some() {
        return String::new();
    }
    let extension = format!(".{}", options.extension());
    match local_path(&options.path) {
        Ok(Some(folder)) if options.partition_by.is_empty() && foreign_files_only(&folder, &extension) => String::new(),
        _ => extension,
    }
}

fn foreign_files_only(folder: &std::path::Path, extension: &str) -> bool {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return false;
    };
    let mut foreign = false;
    for entry in entries.flatten().filter(|entry| entry.path().is_file()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.ends_with(extension) {
            return false;
        }
        foreign |= !name.starts_with(['.', '_']);
    }
    foreign
}

fn reader(state: &dyn Session, options: &FileOptions) -> Arc<dyn FileFormat> {
    match options.format {
        Format::Parquet => {
            let session = state.default_table_options().parquet;
            Arc::new(ParquetFormat::default().with_options(TableParquetOptions {
                global: session.global,
                ..session
            }))
        }
        Format::Csv => Arc::new(CsvFormat::default().with_options(options.csv.clone())),
        // What is in a changelog's files is JSON, too; its table does not read it this way.
        Format::Json | Format::DebeziumJson | Format::CanalJson => {
            Arc::new(JsonFormat::default().with_options(options.json.clone()))
        }
        Format::Arrow => Arc::new(ArrowFormat),
        Format::Avro => Arc::new(AvroFormat),
        Format::Fixed => Arc::new(FixedFormat::new(options.fixed_lengths.clone())),
    }
}

impl FileTable {
    /// Whether files that appear later are read too, so that the table has no end.
    pub fn is_watched(&self) -> bool {
        self.monitor.is_some()
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

    /// DataFusion's table below.
    pub fn listing(&self) -> &ListingTable {
        &self.inner
    }

    fn is_partition_filter(&self, filter: &Expr) -> bool {
        let names: Vec<&str> = self.partitions.iter().map(|field| field.name().as_str()).collect();
        !names.is_empty() && expr_applicable_for_cols(&names, filter)
    }

    /// The scan of a partitioned table: DataFusion lists, the directories' values are typed here (NULL among them),
    /// files are pruned by them, DataFusion reads.
    async fn scan_partitioned(
        &self,
        state: &dyn Session,
        projection: Vec<usize>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let listed = self.inner.list_files_for_scan(state, &[], None).await?;
        let mut files = Vec::new();
        for file in listed.file_groups.into_iter().flat_map(FileGroup::into_inner) {
            files.push(hive::typed(file, &self.partitions)?);
        }
        let files = hive::prune(state, files, &self.partitions, self.partition_filters(filters))?;
        self.plan_files(state, files, projection, limit).await
    }

    /// The filters that the directories' names alone decide.
    pub(super) fn partition_filters(&self, filters: &[Expr]) -> Vec<Expr> {
        let of_partitions = filters.iter().filter(|filter| self.is_partition_filter(filter));
        of_partitions.cloned().collect()
    }

    /// The columns of `inner` that stand for declared ones.
    fn inner_projection(&self, projection: Option<&Vec<usize>>) -> Vec<usize> {
        match projection {
            Some(columns) => columns.iter().map(|column| self.order[*column]).collect(),
            None => self.order.clone(),
        }
    }

    /// The scan of one file, whole.
    pub(super) async fn plan_file(
        &self,
        state: &dyn Session,
        file: PartitionedFile,
        projection: Option<&Vec<usize>>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let plan = self
            .plan_files(state, vec![file], self.inner_projection(projection), None)
            .await?;
        match &self.null_literal {
            Some(null) => self.with_nulls(state, plan, null),
            None => Ok(plan),
        }
    }

    /// The declared partition columns.
    pub(super) fn partitions(&self) -> &[FieldRef] {
        &self.partitions
    }

    async fn plan_files(
        &self,
        state: &dyn Session,
        files: Vec<PartitionedFile>,
        projection: Vec<usize>,
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let options = self.inner.options();
        let Some(url) = self.inner.table_paths().first().filter(|_| !files.is_empty()) else {
            return Ok(Arc::new(EmptyExec::new(Arc::new(
                self.inner_schema().project(&projection)?,
            ))));
        };
        let files_schema = Arc::new(self.file_columns());
        let columns = TableSchema::builder(files_schema)
            .with_table_partition_cols(self.partitions.clone())
            .build();
        let source = options.format.file_source(columns);
        let known: Vec<&Statistics> = files.iter().filter_map(|file| file.statistics.as_deref()).collect();
        let statistics = if known.len() == files.len() {
            Statistics::try_merge_iter(known, &self.inner_schema())?
        } else {
            Statistics::new_unknown(&self.inner_schema())
        };
        let config = FileScanConfigBuilder::new(url.object_store(), source)
            .with_file_groups(FileGroup::new(files).split_files(state.config().target_partitions()))
            .with_statistics(statistics)
            .with_projection_indices(Some(projection))?
            .with_limit(limit)
            .build();
        options.format.create_physical_plan(state, config).await
    }

    /// Makes the columns of a CSV scan, which are text, into the declared ones: `null` is NULL, the rest is parsed.
    fn with_nulls(
        &self,
        state: &dyn Session,
        plan: Arc<dyn ExecutionPlan>,
        null: &str,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let schema = plan.schema();
        let columns = DFSchema::try_from(Arc::clone(&schema))?;
        let mut exprs = Vec::with_capacity(schema.fields().len());
        for field in schema.fields() {
            let column = Expr::Column(Column::from_name(field.name()));
            let declared = self.schema.field_with_name(field.name())?;
            let expr = if self.partitions.iter().any(|partition| partition.name() == field.name()) {
                column
            } else {
                let is_null = column.clone().eq(lit(null));
                let text = match field.is_nullable() {
                    true => when(is_null, lit(ScalarValue::Utf8(None))).otherwise(column)?,
                    false => column,
                };
                cast(text, declared.data_type().clone())
            };
            exprs.push((state.create_physical_expr(expr, &columns)?, field.name().clone()));
        }
        Ok(Arc::new(ProjectionExec::try_new(exprs, plan)?))
    }

    fn file_columns(&self) -> Schema {
        let all = self.inner.schema();
        Schema::new(all.fields()[..all.fields().len() - self.partitions.len()].to_vec())
    }

    /// The columns in the order of `inner`, typed as declared.
    fn inner_schema(&self) -> Schema {
        Schema::new(
            self.file_columns()
                .fields()
                .iter()
                .chain(&self.partitions)
                .cloned()
                .collect::<Vec<_>>(),
        )
    }
}

#[async_trait]
impl TableProvider for FileTable {
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
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        if let Some(interval) = self.monitor {
            return watch::plan(self, state, projection, filters, interval);
        }
        let inner = self.inner_projection(projection);
        let plan = if self.partitions.is_empty() {
            self.inner.scan(state, Some(&inner), filters, limit).await?
        } else {
            self.scan_partitioned(state, inner, filters, limit).await?
        };
        match &self.null_literal {
            Some(null) => self.with_nulls(state, plan, null),
            None => Ok(plan),
        }
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DataFusionResult<Vec<TableProviderFilterPushDown>> {
        Ok(filters
            .iter()
            .map(|filter| match self.is_partition_filter(filter) {
                true => TableProviderFilterPushDown::Exact,
                false => TableProviderFilterPushDown::Inexact,
            })
            .collect())
    }
}
