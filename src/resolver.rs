//! What the composition root tells the optimizer and the runtime about connectors.

use std::sync::Arc;

use crate::error::{Error, ErrorKind};
use crate::stream_table::physical_of;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::common::TableReference;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::datasource::listing::ListingTable;
use datafusion::datasource::source_as_provider;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::execution::runtime_env::RuntimeEnv;
use datafusion::logical_expr::LogicalPlan;
use datafusion::logical_expr::dml::CopyTo;
use datafusion::physical_plan::ExecutionPlan;
use object_store::ObjectStoreExt;
use thalweg_connectors::filesystem::FileTable;
use thalweg_engine::Result;
use thalweg_engine::operator::SinkJob;
use thalweg_engine::plan::SinkSpec;
use thalweg_engine::runtime::ScanDiagnosis;
use thalweg_optimizer::{SinkChangelog, SinkResolver};

/// Writes go to the connector of their table.
#[derive(Debug)]
pub(crate) struct ConnectorResolver {
    pub(crate) job: SinkJob,
}

impl SinkResolver for ConnectorResolver {
    fn copy(&self, copy: &CopyTo) -> Result<SinkSpec> {
        thalweg_connectors::filesystem::copy_sink(copy)
    }

    fn insert(
        &self,
        _table: &TableReference,
        provider: &Arc<dyn TableProvider>,
        _input_schema: &SchemaRef,
    ) -> Result<Option<SinkSpec>> {
        thalweg_connectors::sink_of(physical_of(provider).as_ref())
    }

    fn max_writers(&self, sink: &SinkSpec) -> Result<Option<usize>> {
        match thalweg_connectors::sinks()
            .iter()
            .find(|connector| connector.name() == sink.connector)
        {
            Some(connector) => Ok(connector.prepare(sink, &self.job)?.max_parallelism()),
            None => Ok(None),
        }
    }

    fn key(&self, sink: &SinkSpec) -> Result<Vec<usize>> {
        thalweg_connectors::sink_key(sink)
    }

    fn changelog(&self, sink: &SinkSpec) -> Result<SinkChangelog> {
        Ok(if thalweg_connectors::takes_changelog(sink) {
            SinkChangelog::All
        } else {
            SinkChangelog::Insertions
        })
    }
}

/// Finds the file and line that a reader stumbled over.
#[derive(Debug)]
pub(crate) struct ScanDoctor {
    pub(crate) io: tokio::runtime::Handle,
}

impl ScanDiagnosis for ScanDoctor {
    fn explain(&self, scan: &Arc<dyn ExecutionPlan>, context: &TaskContext, cause: &DataFusionError) -> Option<String> {
        let runtime = context.runtime_env();
        self.io
            .block_on(thalweg_connectors::filesystem::locate_bad_record(scan, &runtime, cause))
    }
}

/// Fails when a table of one file has lost it. A listing would give no file and the query no row, which is a wrong
/// answer; a folder or pattern without files is an empty table.
pub(crate) async fn check_files(plan: &LogicalPlan, runtime: &RuntimeEnv) -> crate::Result<()> {
    let mut files = Vec::new();
    plan.apply_with_subqueries(|node| {
        if let LogicalPlan::TableScan(scan) = node
            && let Ok(provider) = source_as_provider(&scan.source)
        {
            let any = physical_of(&provider).as_ref() as &dyn std::any::Any;
            let listing = any
                .downcast_ref::<FileTable>()
                .map(FileTable::listing)
                .or_else(|| any.downcast_ref());
            let paths = listing.into_iter().flat_map(|table: &ListingTable| table.table_paths());
            files.extend(paths.filter(|path| !path.is_collection()).cloned());
        }
        Ok(TreeNodeRecursion::Continue)
    })?;
    for file in files {
        let store = runtime.object_store(file.object_store())?;
        store.head(file.prefix()).await.map_err(|error| match error {
            object_store::Error::NotFound { .. } => {
                let place = file.as_str().strip_prefix("file://").unwrap_or(file.as_str());
                Error::new(ErrorKind::Execution, format!("there is no file '{place}'"))
                    .with_remedy("it was there when the table was created; restore it or drop the table")
            }
            other => Error::from(DataFusionError::from(other)),
        })?;
    }
    Ok(())
}
