//! Tables whose columns are the connector's.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::TableType;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use thalweg_engine::{EngineError, Result};

use crate::generate::{GeneratedExec, Pace, Rows};

/// Makes the rows of a scan, given the columns it wants and the number of splits.
pub(crate) type MakeRows = Box<dyn Fn(&[usize], usize) -> DataFusionResult<Arc<dyn Rows>> + Send + Sync>;

/// A table of rows that are made up, over columns that the connector knows.
pub(crate) struct GeneratedTable {
    pub(crate) connector: &'static str,
    pub(crate) schema: SchemaRef,
    /// Events in all; endless when `None`.
    pub(crate) events: Option<u64>,
    /// Events a second by the wall clock.
    pub(crate) pace: Option<u64>,
    /// As asked for.
    pub(crate) splits: Option<usize>,
    pub(crate) make: MakeRows,
}

impl Debug for GeneratedTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct(self.connector)
            .field("events", &self.events)
            .field("pace", &self.pace)
            .field("splits", &self.splits)
            .finish_non_exhaustive()
    }
}

#[async_trait]
impl TableProvider for GeneratedTable {
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
        let all: Vec<usize> = (0..self.schema.fields().len()).collect();
        // What keeps to a pace needs no second split, and one split keeps event time in order.
        let splits = match (self.splits, self.pace) {
            (Some(splits), _) => splits,
            (None, Some(_)) => 1,
            (None, None) => state.config().target_partitions().max(1),
        };
        let rows = (self.make)(projection.unwrap_or(&all), splits)?;
        Ok(Arc::new(GeneratedExec::new(
            self.connector,
            rows,
            splits,
            self.events,
            self.pace.map(Pace::new),
        )))
    }
}

/// The columns of a table: those that the connector makes, by the names that a statement declares. It may declare
/// none. Capitals make no difference: an unquoted name has lost them before it comes here.
///
/// # Errors
/// When others are declared; the message says how to declare them.
pub(crate) fn check_columns(connector: &str, declared: &Schema, made: &SchemaRef) -> Result<SchemaRef> {
    let same = |(declared, made): (&Arc<Field>, &Arc<Field>)| {
        declared.name().eq_ignore_ascii_case(made.name())
            && same_type(declared.data_type(), made.data_type())
            && (declared.is_nullable() || !made.is_nullable())
    };
    let count = declared.fields().len();
    if count == 0 {
        return Ok(Arc::clone(made));
    }
    let pairs = || declared.fields().iter().zip(made.fields());
    if count == made.fields().len() && pairs().all(same) {
        let named = pairs().map(|(declared, made)| made.as_ref().clone().with_name(declared.name()));
        return Ok(Arc::new(Schema::new(named.collect::<Vec<_>>())));
    }
    let columns: Vec<String> = made
        .fields()
        .iter()
        .map(|field| format!("{} {}", field.name(), sql_type(field.data_type())))
        .collect();
    Err(EngineError::Plan(format!(
        "connector '{connector}' makes other columns than declared; leave them out, or declare: {}",
        columns.join(", ")
    )))
}

/// Text is text, however it lies in memory, and the NULL-ability of fields in a structure cannot be declared.
fn same_type(declared: &DataType, made: &DataType) -> bool {
    match (declared, made) {
        (DataType::Utf8 | DataType::LargeUtf8, DataType::Utf8View) => true,
        (DataType::Struct(declared), DataType::Struct(made)) => {
            declared.len() == made.len()
                && declared.iter().zip(made).all(|(declared, made)| {
                    declared.name().eq_ignore_ascii_case(made.name())
                        && same_type(declared.data_type(), made.data_type())
                })
        }
        _ => declared == made,
    }
}

fn sql_type(data_type: &DataType) -> String {
    match data_type {
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::Utf8View => "STRING".into(),
        DataType::Timestamp(_, _) => "TIMESTAMP(3)".into(),
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|field| format!("{} {}", field.name(), sql_type(field.data_type())))
                .collect();
            format!("STRUCT<{}>", fields.join(", "))
        }
        other => other.to_string(),
    }
}
