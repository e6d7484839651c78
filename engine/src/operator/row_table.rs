//! [`RowTable`]: rows that an operator keeps, as a table of its state.
//!
//! The columns of the rows come first, so that key expressions over the rows hold over the table; what is kept beside each
//! row follows. Columns are found by name when the schema of the rows has changed since.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatchOptions};
use arrow::datatypes::{Field, Schema, SchemaRef};

use crate::data::{Batch, Result};
use crate::plan::ScalarExpr;
use crate::state::{Scope, TableSpec, distinct_names};

/// Rows and what is kept beside them.
#[derive(Clone, Debug)]
pub(super) struct RowTable {
    spec: TableSpec,
    rows: SchemaRef,
}

impl RowTable {
    /// Table `name` of rows of schema `rows`, which belong where `keys` of them lead; without keys to the first subtask.
    pub(super) fn new(name: &str, rows: &SchemaRef, beside: Vec<Field>, keys: &[ScalarExpr]) -> Self {
        let fields = rows.fields().iter().map(|field| field.as_ref().clone());
        let schema = Schema::new(fields.chain(beside).collect::<Vec<_>>());
        let keys = keys.iter().map(|key| Arc::clone(&key.expr)).collect();
        Self {
            spec: TableSpec::of_rows(name, distinct_names(&schema), keys),
            rows: Arc::clone(rows),
        }
    }

    /// The same rows in every subtask.
    pub(super) fn broadcast(mut self) -> Self {
        self.spec.scope = Scope::Broadcast;
        self
    }

    /// What is declared.
    pub(super) fn spec(&self) -> &TableSpec {
        &self.spec
    }

    /// How many columns the rows have.
    pub(super) fn width(&self) -> usize {
        self.rows.fields().len()
    }

    /// A batch of the table: `count` rows of these columns, then what is kept beside them.
    ///
    /// # Errors
    /// When they do not fit the schema.
    pub(super) fn batch(&self, columns: Vec<ArrayRef>, count: usize) -> Result<Batch> {
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let schema = Arc::clone(&self.spec.schema);
        Ok(Batch::try_new_with_options(schema, columns, &options)?)
    }

    /// The rows of a batch of the table, as they came, and the columns beside them.
    ///
    /// # Errors
    /// When they do not fit the schema of the rows.
    pub(super) fn split<'a>(&self, stored: &'a Batch) -> Result<(Batch, &'a [ArrayRef])> {
        let (rows, beside) = stored.columns().split_at(self.width());
        let options = RecordBatchOptions::new().with_row_count(Some(stored.num_rows()));
        let rows = Batch::try_new_with_options(Arc::clone(&self.rows), rows.to_vec(), &options)?;
        Ok((rows, beside))
    }
}
