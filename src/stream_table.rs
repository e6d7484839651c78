//! [`StreamTable`]: a connector's table with what Flink's `CREATE TABLE` declares beyond its columns.

use std::any::Any;
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{ScanArgs, ScanResult, Session as DataFusionSession, TableProvider};
use datafusion::common::{Constraint, Constraints, Statistics};
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{Expr, LogicalPlan, TableProviderFilterPushDown, TableType};
use datafusion::physical_plan::ExecutionPlan;
use thalweg_optimizer::logical::without_watermarks;

/// What a `CREATE TABLE` declares.
#[derive(Clone, Debug, Default)]
pub struct TableDefinition {
    /// The table's name as it was written.
    pub name: String,
    /// The statement.
    pub sql: String,
    /// `WITH (..)`, without what is ours.
    pub options: BTreeMap<String, String>,
    /// The columns of the primary key, which nobody enforces; empty without one.
    pub primary_key: Vec<String>,
    /// The column of `WATERMARK FOR`.
    pub rowtime: Option<String>,
    /// After so long without rows a split does not hold back the watermark of the others.
    pub idle_timeout_ms: Option<u64>,
    /// The columns that are computed.
    pub computed: Vec<String>,
    /// The columns that the connector reads beside the row, and their keys there.
    pub metadata: Vec<(String, String)>,
    /// The metadata columns that cannot be written.
    pub virtual_columns: Vec<String>,
}

/// A table with computed columns, a watermark or a primary key. In a query it is what a view is: its plan (a watermark
/// over a projection over a scan) takes its place. The scan at the bottom is one of a `StreamTable` again, without the
/// plan, over the connector's columns only.
#[derive(Debug)]
pub struct StreamTable {
    definition: Arc<TableDefinition>,
    physical: Arc<dyn TableProvider>,
    constraints: Constraints,
    schema: SchemaRef,
    plan: Option<LogicalPlan>,
}

impl StreamTable {
    /// The connector's columns under `definition`: what the plan of the whole table scans.
    pub(crate) fn scanned(definition: Arc<TableDefinition>, physical: Arc<dyn TableProvider>) -> Self {
        let schema = physical.schema();
        Self {
            constraints: constraints_of(&definition, &schema),
            schema,
            definition,
            physical,
            plan: None,
        }
    }

    /// The whole table: `plan` over [`StreamTable::scanned`].
    pub(crate) fn whole(definition: Arc<TableDefinition>, physical: Arc<dyn TableProvider>, plan: LogicalPlan) -> Self {
        let schema: SchemaRef = Arc::new(plan.schema().as_arrow().clone());
        Self {
            constraints: constraints_of(&definition, &schema),
            schema,
            definition,
            physical,
            plan: Some(plan),
        }
    }

    /// What was declared of the table, where `provider` is one of these: in the catalog, or in a scan of a plan.
    pub fn of(provider: &dyn TableProvider) -> Option<&Self> {
        (provider as &dyn Any).downcast_ref()
    }

    /// What was declared.
    pub fn definition(&self) -> &TableDefinition {
        &self.definition
    }

    /// The connector's table.
    pub fn physical(&self) -> &Arc<dyn TableProvider> {
        &self.physical
    }

    /// The columns that an INSERT without a column list gives values for.
    pub(crate) fn persisted_columns(&self) -> Vec<String> {
        let schema = self.physical.schema();
        let names = schema.fields().iter().map(|field| field.name());
        names
            .filter(|name| !self.definition.virtual_columns.contains(name))
            .cloned()
            .collect()
    }
}

/// The provider that a connector made: `provider` itself, or the one that a [`StreamTable`] is about.
pub(crate) fn physical_of(provider: &Arc<dyn TableProvider>) -> &Arc<dyn TableProvider> {
    match StreamTable::of(provider.as_ref()) {
        Some(table) => table.physical(),
        None => provider,
    }
}

fn constraints_of(definition: &TableDefinition, schema: &SchemaRef) -> Constraints {
    let key: Option<Vec<usize>> = definition
        .primary_key
        .iter()
        .map(|name| schema.index_of(name).ok())
        .collect();
    match key {
        Some(key) if !key.is_empty() => Constraints::new_unverified(vec![Constraint::PrimaryKey(key)]),
        _ => Constraints::default(),
    }
}

#[async_trait]
impl TableProvider for StreamTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn constraints(&self) -> Option<&Constraints> {
        Some(&self.constraints)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    fn get_table_definition(&self) -> Option<&str> {
        Some(&self.definition.sql)
    }

    fn get_logical_plan(&self) -> Option<Cow<'_, LogicalPlan>> {
        self.plan.as_ref().map(Cow::Borrowed)
    }

    fn get_column_default(&self, column: &str) -> Option<&Expr> {
        self.physical.get_column_default(column)
    }

    async fn scan(
        &self,
        state: &dyn DataFusionSession,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let Some(plan) = &self.plan else {
            return self.physical.scan(state, projection, filters, limit).await;
        };
        let plan = state.create_physical_plan(&without_watermarks(plan.clone())?).await?;
        match projection {
            None => Ok(plan),
            Some(projection) => {
                let columns = projection.iter().map(|index| {
                    let name = self.schema.field(*index).name();
                    let column = datafusion::physical_expr::expressions::Column::new(name, *index);
                    (Arc::new(column) as _, name.clone())
                });
                let projection = datafusion::physical_plan::projection::ProjectionExec::try_new(
                    columns.collect::<Vec<(Arc<dyn datafusion::physical_expr::PhysicalExpr>, String)>>(),
                    plan,
                )?;
                Ok(Arc::new(projection))
            }
        }
    }

    async fn scan_with_args<'a>(
        &self,
        state: &dyn DataFusionSession,
        args: ScanArgs<'a>,
    ) -> DataFusionResult<ScanResult> {
        if self.plan.is_none() {
            return self.physical.scan_with_args(state, args).await;
        }
        let projection = args.projection().map(<[usize]>::to_vec);
        let plan = self.scan(state, projection.as_ref(), &[], None).await?;
        Ok(ScanResult::new(plan))
    }

    fn supports_filters_pushdown(&self, filters: &[&Expr]) -> DataFusionResult<Vec<TableProviderFilterPushDown>> {
        match &self.plan {
            None => self.physical.supports_filters_pushdown(filters),
            Some(_) => Ok(vec![TableProviderFilterPushDown::Unsupported; filters.len()]),
        }
    }

    fn statistics(&self) -> Option<Statistics> {
        match &self.plan {
            None => self.physical.statistics(),
            Some(_) => None,
        }
    }

    async fn insert_into(
        &self,
        state: &dyn DataFusionSession,
        input: Arc<dyn ExecutionPlan>,
        insert_op: InsertOp,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        self.physical.insert_into(state, input, insert_op).await
    }
}
