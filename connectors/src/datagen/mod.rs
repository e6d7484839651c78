//! `'connector' = 'datagen'`: rows made up, the same for the same seed at any parallelism: a value depends on the
//! seed, the column and the row's number only. Without `number-of-rows` it is a stream without end; `rows-per-second`
//! lets the rows out by the wall clock, each when it is due.

mod column;
mod rows;
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
use crate::datagen::rows::{DatagenRows, Deal};
use crate::generate::{GeneratedExec, Interleave, Pace};

/// Rows in a block of one split of a stream.
const BLOCK: u64 = 1024;

/// A table of rows that are made up.
#[derive(Debug)]
pub struct DatagenTable {
    schema: SchemaRef,
    columns: Arc<Vec<Column>>,
    /// Rows in all; endless when `None`.
    rows: Option<u64>,
    /// Rows a second by the wall clock.
    pace: Option<u64>,
    /// As asked for.
    splits: Option<usize>,
}

/// The table of `CREATE TABLE .. WITH ('connector' = 'datagen')`. Options: `number-of-rows`, `rows-per-second`,
/// `splits`, `seed`, and per column `fields.<name>.kind` (`random`, `sequence`, `event-time`), `.min`, `.max`,
/// `.start`, `.end`, `.length`, `.rate`, `.disorder`, `.null-rate`.
///
/// # Errors
/// When an option is unknown or wrong, or a type cannot be made up.
pub fn create_table(columns: SchemaRef, options: &BTreeMap<String, String>) -> Result<Arc<dyn TableProvider>> {
    if columns.fields().is_empty() {
        return Err(EngineError::Plan(
            "connector 'datagen' needs columns: CREATE TABLE t (a INT, ..) WITH (..)".into(),
        ));
    }
    let mut options = Options::new("datagen", options);
    let number_of_rows: Option<u64> = options.take_parsed("number-of-rows")?;
    let pace = options.take_positive("rows-per-second")?;
    let splits = options.take_positive("splits")?.map(|splits| splits as usize);
    let seed: u64 = options.take_parsed("seed")?.unwrap_or(0);
    let fields = columns.fields().iter().enumerate();
    let made = fields
        .map(|(i, field)| Column::parse(field, seed, i, pace, &mut options))
        .collect::<Result<Vec<_>>>()?;
    options.finish()?;
    // A sequence that has reached its end ends the table, as in Flink.
    let rows = made.iter().filter_map(Column::rows).chain(number_of_rows).min();
    Ok(Arc::new(DatagenTable {
        schema: columns,
        columns: Arc::new(made),
        rows,
        pace,
        splits,
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
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let all: Vec<usize> = (0..self.columns.len()).collect();
        let projection = projection.cloned().unwrap_or(all);
        let rows = match (self.rows, limit) {
            (Some(rows), Some(limit)) => Some(rows.min(limit as u64)),
            (rows, _) => rows,
        };
        let deal = match (rows, self.pace, self.splits) {
            // Large ranges, which whoever is free takes.
            (Some(rows), None, None) => Deal::ranges(rows),
            // What keeps a pace needs no second split, and one split keeps the order.
            (_, Some(_), splits) => Deal::Interleaved(Interleave::new(splits.unwrap_or(1), 1)),
            (_, None, splits) => {
                let splits = splits.unwrap_or(state.config().target_partitions());
                Deal::Interleaved(Interleave::new(splits, BLOCK))
            }
        };
        let splits = deal.splits();
        let made = DatagenRows::try_new(&self.schema, Arc::clone(&self.columns), projection, deal)?;
        Ok(Arc::new(GeneratedExec::new(
            "Datagen",
            Arc::new(made),
            splits,
            rows,
            self.pace.map(Pace::new),
        )))
    }
}
