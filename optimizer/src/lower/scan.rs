//! Leaves: tables, literal rows, and recursive queries (planned by DataFusion as a whole).

use std::sync::Arc;

use arrow::array::{RecordBatch, StringArray};
use arrow::datatypes::SchemaRef;
use datafusion::catalog::ScanArgs;
use datafusion::common::config::ConfigOptions;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::datasource::physical_plan::FileScanConfig;
use datafusion::datasource::source::DataSourceExec;
use datafusion::datasource::source_as_provider;
use datafusion::logical_expr::expr_rewriter::unnormalize_cols;
use datafusion::logical_expr::{DescribeTable, EmptyRelation, Expr, LogicalPlan, RecursiveQuery, TableScan, Values};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::empty::EmptyExec;
use datafusion::physical_plan::filter_pushdown::PushedDown;
use datafusion::physical_plan::placeholder_row::PlaceholderRowExec;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_planner::{DefaultPhysicalPlanner, PhysicalPlanner};
use datafusion_datasource_parquet::metadata::CachedParquetMetaData;
use thalweg_engine::Result;
use thalweg_engine::plan::{OperatorSpec, PhysicalPlan, ScanSpec};

use super::Lowering;
use crate::estimate::Estimate;
use crate::properties::Stream;

/// The size at which a split is worth no further cutting: it is read in some tens of milliseconds.
const SPLIT_BYTES: u64 = 16 << 20;
/// Smaller splits cost more to open than they help to balance.
const MIN_SPLIT_BYTES: u64 = 1 << 20;
/// Splits per subtask, so that one slow split holds nobody up.
const SPLITS_PER_SUBTASK: usize = 4;

impl Lowering<'_> {
    pub(super) async fn table_scan(&mut self, scan: &TableScan) -> Result<Stream> {
        let provider = source_as_provider(&scan.source)?;
        let filters = unnormalize_cols(scan.filters.iter().cloned());
        let requests: Vec<_> = scan.statistics_requests.iter().cloned().collect();
        let args = ScanArgs::default()
            .with_projection(scan.projection.as_deref())
            .with_filters(Some(&filters))
            .with_limit(scan.fetch)
            .with_statistics_requests(&requests);
        let plan = provider.scan_with_args(self.session, args).await?.into_inner();
        let (plan, handled) = self.push_filters(scan, plan)?;
        let file_bytes = file_bytes(&plan);
        let plan = self.split(plan, file_bytes)?;
        let estimate = scan_estimate(&plan, file_bytes)?.limit(scan.fetch);
        let mut stream = self.scan_splits(scan.table_name.to_string(), plan, scan.fetch, estimate);
        stream.handled_filters = handled;
        Ok(stream)
    }

    /// Hands the filters to the source, which skips row groups and pages with them. Those that it applies to every row
    /// are returned: nobody needs to apply them again.
    fn push_filters(
        &self,
        scan: &TableScan,
        plan: Arc<dyn ExecutionPlan>,
    ) -> Result<(Arc<dyn ExecutionPlan>, Vec<Expr>)> {
        let Some(exec) = plan.downcast_ref::<DataSourceExec>() else {
            return Ok((plan, Vec::new()));
        };
        // A filter on a column that is not read was applied by the provider itself.
        let schema = &scan.projected_schema;
        let pushable: Vec<&Expr> = scan
            .filters
            .iter()
            .filter(|filter| filter.column_refs().into_iter().all(|column| schema.has_column(column)))
            .filter(|filter| !filter.contains_scalar_subquery())
            .collect();
        if pushable.is_empty() {
            return Ok((plan, Vec::new()));
        }
        let predicates = self.physical_all(pushable.iter().copied(), schema)?;
        let options = self.session.config_options();
        let pushed = exec.data_source().try_pushdown_filters(predicates, options)?;
        let Some(source) = pushed.updated_node else {
            return Ok((plan, Vec::new()));
        };
        let handled = pushable
            .into_iter()
            .zip(&pushed.filters)
            .filter(|(_, outcome)| matches!(outcome, PushedDown::Yes))
            .map(|(filter, _)| filter.clone())
            .collect();
        Ok((Arc::new(DataSourceExec::new(source)), handled))
    }

    /// Cuts a scan into many more splits than subtasks, by byte ranges where the format allows it.
    fn split(&self, plan: Arc<dyn ExecutionPlan>, file_bytes: Option<u64>) -> Result<Arc<dyn ExecutionPlan>> {
        let by_subtasks = self.options.parallelism * SPLITS_PER_SUBTASK;
        let target = match file_bytes {
            Some(bytes) => {
                let wanted = by_subtasks.max((bytes / SPLIT_BYTES) as usize);
                wanted.min((bytes / MIN_SPLIT_BYTES) as usize)
            }
            None => by_subtasks,
        };
        if target <= plan.properties().output_partitioning().partition_count() {
            return Ok(plan);
        }
        let mut options = ConfigOptions::clone(self.session.config_options());
        options.optimizer.repartition_file_min_size = 0;
        Ok(plan.repartitioned(target, &options)?.unwrap_or(plan))
    }

    fn scan_splits(
        &mut self,
        table: String,
        plan: Arc<dyn ExecutionPlan>,
        limit: Option<usize>,
        estimate: Estimate,
    ) -> Stream {
        let splits = plan.properties().output_partitioning().partition_count();
        let parallelism = if splits <= 1 { 1 } else { self.options.parallelism };
        let schema = plan.schema();
        let scan = OperatorSpec::Scan(ScanSpec {
            stream: None,
            table,
            read_bytes: self.row_group_bytes(&plan).unwrap_or(0),
            plan: PhysicalPlan(plan),
            limit,
            bounded_by: Vec::new(),
        });
        self.source(scan, parallelism, schema, estimate)
    }

    /// Bytes of the columns that are read, in the largest row group of a scan of Parquet files: a reader holds all of
    /// it. Known when the footers are in DataFusion's cache, as they are when statistics were collected.
    fn row_group_bytes(&self, plan: &Arc<dyn ExecutionPlan>) -> Option<usize> {
        let source = plan.downcast_ref::<DataSourceExec>()?.data_source();
        let config = source.downcast_ref::<FileScanConfig>()?;
        let footers = self.session.runtime_env().cache_manager.get_file_metadata_cache();
        let schema = plan.schema();
        let mut largest = 0;
        for file in config.file_groups.iter().flat_map(|group| group.iter()) {
            let cached = footers.get(&file.object_meta.location)?;
            let footer = cached.file_metadata.as_any().downcast_ref::<CachedParquetMetaData>()?;
            for group in footer.parquet_metadata().row_groups() {
                let columns = group.columns().iter();
                let read = columns.filter(|column| {
                    let root = column.column_path().parts().first();
                    root.is_some_and(|name| schema.column_with_name(name).is_some())
                });
                let bytes: i64 = read.map(|column| column.compressed_size()).sum();
                largest = largest.max(usize::try_from(bytes).unwrap_or(0));
            }
        }
        Some(largest)
    }

    pub(super) fn values(&mut self, values: &Values) -> Result<Stream> {
        let rows = values
            .values
            .iter()
            .map(|row| self.physical_all(row, &values.schema))
            .collect::<Result<Vec<_>>>()?;
        let estimate = Estimate::exactly(rows.len(), values.schema.as_arrow());
        let plan = MemorySourceConfig::try_new_as_values(Arc::clone(values.schema.inner()), rows)?;
        Ok(self.scan_splits("VALUES".into(), plan, None, estimate))
    }

    pub(super) fn empty_relation(&mut self, empty: &EmptyRelation) -> Result<Stream> {
        let schema: SchemaRef = Arc::clone(empty.schema.inner());
        let estimate = Estimate::exactly(usize::from(empty.produce_one_row), &schema);
        let plan: Arc<dyn ExecutionPlan> = if empty.produce_one_row {
            Arc::new(PlaceholderRowExec::new(schema))
        } else {
            Arc::new(EmptyExec::new(schema))
        };
        let name = if empty.produce_one_row { "one row" } else { "no rows" };
        Ok(self.scan_splits(name.into(), plan, None, estimate))
    }

    pub(super) fn describe_table(&mut self, describe: &DescribeTable) -> Result<Stream> {
        let fields = describe.schema.fields();
        let schema = Arc::clone(describe.output_schema.inner());
        let names = StringArray::from_iter_values(fields.iter().map(|field| field.name()));
        let types = StringArray::from_iter_values(fields.iter().map(|field| field.data_type().to_string()));
        let nullable = StringArray::from_iter_values(fields.iter().map(|f| if f.is_nullable() { "YES" } else { "NO" }));
        let columns = vec![Arc::new(names) as _, Arc::new(types) as _, Arc::new(nullable) as _];
        let batch = RecordBatch::try_new(Arc::clone(&schema), columns)?;
        let estimate = Estimate::exactly(batch.num_rows(), &schema);
        let plan = MemorySourceConfig::try_new_exec(&[vec![batch]], schema, None)?;
        Ok(self.scan_splits("DESCRIBE".into(), plan, None, estimate))
    }

    /// The whole recursion runs inside DataFusion's operator, as one split.
    pub(super) async fn recursive_query(&mut self, node: &LogicalPlan, recursive: &RecursiveQuery) -> Result<Stream> {
        // A clone: a session state built anew would register an empty default catalog over the session's own.
        let mut session = self.session.clone();
        session.config_mut().options_mut().execution.target_partitions = 1;
        let plan = DefaultPhysicalPlanner::default()
            .create_physical_plan(node, &session)
            .await?;
        let plan: Arc<dyn ExecutionPlan> = if plan.properties().output_partitioning().partition_count() > 1 {
            Arc::new(CoalescePartitionsExec::new(plan))
        } else {
            plan
        };
        let estimate = Estimate::unknown(&plan.schema());
        let name = format!("{} (recursive, by DataFusion)", recursive.name);
        Ok(self.scan_splits(name, plan, None, estimate))
    }
}

/// The bytes that a scan of files reads.
fn file_bytes(plan: &Arc<dyn ExecutionPlan>) -> Option<u64> {
    let source = plan.downcast_ref::<DataSourceExec>()?.data_source();
    let config = source.downcast_ref::<FileScanConfig>()?;
    let files = config.file_groups.iter().flat_map(|group| group.iter());
    Some(files.map(|file| file.effective_size()).sum())
}

fn scan_estimate(plan: &Arc<dyn ExecutionPlan>, file_bytes: Option<u64>) -> Result<Estimate> {
    let schema = plan.schema();
    let statistics = StatisticsContext::new().compute(plan.as_ref(), &StatisticsArgs::new())?;
    Ok(Estimate::from_statistics(&statistics, file_bytes, &schema))
}
