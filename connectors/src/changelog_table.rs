//! [`ChangelogTable`]: a table whose rows come as a changelog.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::TableType;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use thalweg_engine::data::without_row_kind;

/// Hides the row kind of a connector's changelog from queries, which are about the table that it describes. What a scan
/// yields has it, after the columns that were asked for: the streaming planner goes by that.
#[derive(Debug)]
pub struct ChangelogTable {
    inner: Arc<dyn TableProvider>,
    schema: SchemaRef,
}

impl ChangelogTable {
    /// Over a table whose last column is the row kind.
    pub fn new(inner: Arc<dyn TableProvider>) -> Self {
        Self {
            schema: without_row_kind(&inner.schema()),
            inner,
        }
    }

    /// The connector's table.
    pub fn inner(&self) -> &dyn TableProvider {
        self.inner.as_ref()
    }
}

#[async_trait]
impl TableProvider for ChangelogTable {
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
        _limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let kind = self.schema.fields().len();
        let all = || (0..kind).collect();
        let mut columns: Vec<usize> = projection.cloned().unwrap_or_else(all);
        columns.push(kind);
        // So many rows of a changelog are not so many rows of its table.
        self.inner.scan(state, Some(&columns), filters, None).await
    }
}
