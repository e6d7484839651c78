//! `'connector' = 'datagen'`: rows made up, the same for the same seed at any parallelism: a value depends on the
//! seed, the column and the row's number only.

mod column;
mod scan;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::datasource::TableType;
use datafusion::error::Result as DataFusionResult;
use datafusion::logical_expr::Expr;
use datafusion::physical_plan::ExecutionPlan;
use thalweg_engine::{EngineError, Result};

use crate::Options;
use crate::datagen::column::Column;
use crate::datagen::scan::DatagenExec;

/// A table of rows that are made up.
#[derive(Debug)]
pub struct DatagenTable {
    schema: SchemaRef,
    columns: Arc<Vec<Column>>,
    rows: u64,
}

/// The table of `CREATE TABLE .. WITH ('connector' = 'datagen')`. Options: `number-of-rows`, `seed`, and per column
/// `fields.<name>.kind` (`random`, `sequence`), `.min`, `.max`, `.start`, `.end`, `.length`, `.null-rate`.
///
/// # Errors
/// When an option is unknown or wrong, a type cannot be made up, or nothing says how many rows there are.
pub fn create_table(columns: SchemaRef, options: &BTreeMap<String, String>) -> Result<Arc<dyn TableProvider>> {
    if columns.fields().is_empty() {
        return Err(EngineError::Plan(
            "connector 'datagen' needs columns: CREATE TABLE t (a INT, ..) WITH (..)".into(),
        ));
    }
    let mut options = Options::new("datagen", options);
    let number_of_rows: Option<u64> = options.take_parsed("number-of-rows")?;
    let seed: u64 = options.take_parsed("seed")?.unwrap_or(0);
    let fields = columns.fields().iter().enumerate();
    let made = fields
        .map(|(i, field)| Column::parse(field, seed, i, &mut options))
        .collect::<Result<Vec<_>>>()?;
    options.finish()?;
    // A sequence that has reached its end ends the table, as in Flink.
    let rows = made
        .iter()
        .filter_map(Column::rows)
        .chain(number_of_rows)
        .min()
        .ok_or_else(|| {
            EngineError::Plan(
                "connector 'datagen' needs 'number-of-rows', or a column with 'fields.<name>.kind' = 'sequence', \
             to end in batch mode"
                    .into(),
            )
        })?;
    Ok(Arc::new(DatagenTable {
        schema: columns,
        columns: Arc::new(made),
        rows,
    }))
}

#[async_trait]
impl TableProvider for DatagenTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.columns.len()).collect();
        let projection = projection.cloned().unwrap_or(all);
        let rows = limit.map_or(self.rows, |limit| self.rows.min(limit as u64));
        Ok(Arc::new(DatagenExec::try_new(
            &self.schema,
            Arc::clone(&self.columns),
            projection,
            rows,
        )?))
    }
}
