//! [`KeyedRows`]: the table of an operator that keeps one row of a [`RowStore`] per key.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::SchemaRef;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;

use super::tables::{KeyTable, frozen_rows, key_fields, plain_field, with_types};
use super::{Cut, KeyIndex, RowStore};
use crate::data::{Batch, Result, has_nested_float};
use crate::operator::Context;
use crate::state::{Restored, Snapshot};

/// Where a column of a row is in the table.
#[derive(Clone, Copy)]
enum Source {
    Key(usize),
    Value(usize),
}

/// One row per key. Columns that are keys are written once.
pub(in crate::operator) struct KeyedRows {
    table: KeyTable,
    rows: SchemaRef,
    sources: Vec<Source>,
    /// The columns of a row that are not keys.
    values: Vec<usize>,
    keys: usize,
}

impl KeyedRows {
    /// A table of rows of this schema, by `keys` over it.
    ///
    /// # Errors
    /// When a key has no type.
    pub(in crate::operator) fn new(
        name: &str,
        rows: SchemaRef,
        keys: &[Arc<dyn PhysicalExpr>],
        has_ttl: bool,
    ) -> Result<Self> {
        let mut values = Vec::new();
        let mut sources = Vec::with_capacity(rows.fields().len());
        for (at, field) in rows.fields().iter().enumerate() {
            // A key is as good as the row's own column, but for -0.0 and what is not a number.
            let exact = !field.data_type().is_floating() && !has_nested_float(field.data_type());
            let is_column = |key: &Arc<dyn PhysicalExpr>| {
                let column = key.downcast_ref::<Column>();
                exact && column.is_some_and(|column| column.index() == at)
            };
            sources.push(match keys.iter().position(is_column) {
                Some(key) => Source::Key(key),
                None => {
                    values.push(at);
                    Source::Value(values.len() - 1)
                }
            });
        }
        let fields = values.iter().map(|at| plain_field(rows.field(*at)));
        let table = KeyTable::new(name, key_fields(keys, &rows)?, fields.collect(), has_ttl);
        Ok(Self {
            table,
            rows,
            sources,
            values,
            keys: keys.len(),
        })
    }

    /// Adds the table to a snapshot; `slots` has the slot of each key's row.
    ///
    /// # Errors
    /// When the keys cannot be copied.
    pub(in crate::operator) fn write(
        &self,
        state: &mut Snapshot,
        (index, cut): (&KeyIndex, &Cut),
        (store, slots): (&RowStore, &[u32]),
        cx: &Context,
    ) -> Result<()> {
        let slots: Vec<u32> = cut.live.iter().map(|group| slots[*group as usize]).collect();
        let (rows, order) = frozen_rows(store, &slots, self.values.clone());
        self.table.write(state, index, cut, (vec![rows], Some(order)), cx)
    }

    /// Takes the table back: calls `take` with the numbers of keys, their rows and the slots that those have now.
    ///
    /// # Errors
    /// When the state does not fit, or the budget is exhausted.
    pub(in crate::operator) fn read(
        &self,
        state: &mut Restored,
        (index, store): (&mut KeyIndex, &mut RowStore),
        cx: &mut Context,
        mut take: impl FnMut(&[usize], &Batch, Vec<u32>) -> Result<()>,
    ) -> Result<()> {
        self.table.read(state, index, cx, |index, groups, columns, cx| {
            let (keys, values) = columns.split_at(self.keys);
            let column = |source: &Source| -> ArrayRef {
                match source {
                    Source::Key(at) => Arc::clone(&keys[*at]),
                    Source::Value(at) => Arc::clone(&values[*at]),
                }
            };
            let columns: Vec<ArrayRef> = self.sources.iter().map(column).collect();
            let rows = with_types(&self.rows, &columns, groups.len())?;
            let slots = store.push(rows.columns().to_vec(), groups.len())?;
            take(groups, &rows, slots)?;
            cx.hold(index.size() + store.size())
        })
    }
}
