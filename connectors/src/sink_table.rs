//! A table that can be written to and not read.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::plan_err;
use datafusion::datasource::TableType;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use thalweg_engine::plan::SinkSpec;
use thalweg_engine::{EngineError, Result};

/// A table over a sink.
#[derive(Debug)]
pub struct SinkTable {
    name: String,
    schema: SchemaRef,
    sink: SinkSpec,
}

impl SinkTable {
    /// The table `name` over `sink`.
    ///
    /// # Errors
    /// When there are no columns.
    pub fn try_new(name: &str, schema: SchemaRef, sink: SinkSpec) -> Result<Self> {
        if schema.fields().is_empty() {
            return Err(EngineError::Plan(format!(
                "connector '{}' needs columns: CREATE TABLE {name} (a INT, ..) WITH (..)",
                sink.connector
            )));
        }
        Ok(Self {
            name: name.to_string(),
            schema,
            sink,
        })
    }

    /// Where `INSERT INTO` writes.
    pub fn sink(&self) -> SinkSpec {
        self.sink.clone()
    }
}

#[async_trait]
impl TableProvider for SinkTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        _projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        plan_err!(
            "table {} is a sink ('connector' = '{}'), it cannot be read",
            self.name,
            self.sink.connector
        )
    }
}
