//! What the composition root tells the optimizer and the runtime about connectors.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::common::TableReference;
use datafusion::error::DataFusionError;
use datafusion::execution::TaskContext;
use datafusion::logical_expr::dml::CopyTo;
use datafusion::physical_plan::ExecutionPlan;
use thalweg_engine::Result;
use thalweg_engine::operator::SinkJob;
use thalweg_engine::plan::SinkSpec;
use thalweg_engine::runtime::ScanDiagnosis;
use thalweg_optimizer::SinkResolver;

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
        thalweg_connectors::sink_of(provider.as_ref())
    }

    fn max_writers(&self, sink: &SinkSpec) -> Result<Option<usize>> {
        match thalweg_connectors::sinks().iter().find(|connector| connector.name() == sink.connector) {
            Some(connector) => Ok(connector.prepare(sink, &self.job)?.max_parallelism()),
            None => Ok(None),
        }
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
        self.io.block_on(thalweg_connectors::filesystem::locate_bad_record(scan, &runtime, cause))
    }
}
