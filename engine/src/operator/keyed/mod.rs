//! What the operators that keep something per key share: [`KeyIndex`] numbers the keys and knows which of them live,
//! [`RowStore`] keeps rows in columns, [`Changes`] gathers the rows of a changelog on their way out.

mod changes;
#[cfg(test)]
pub(in crate::operator) mod folded;
mod index;
mod row_store;
#[cfg(test)]
mod timing;
mod touched;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, make_comparator};
use arrow::buffer::BooleanBuffer;
use arrow::compute::SortOptions;
use arrow::compute::kernels::cmp::not_distinct;
use datafusion::physical_expr::PhysicalExpr;

use crate::data::{Batch, Result, canonical_floats};
use crate::operator::aggregate::evaluate_all;

pub(in crate::operator) use changes::Changes;
pub(in crate::operator) use index::KeyIndex;
pub(in crate::operator) use row_store::RowStore;
pub(in crate::operator) use touched::Touched;

/// Key columns of a batch, with one representation of each float: what leaves later must equal what left before.
///
/// # Errors
/// When an expression fails.
pub(in crate::operator) fn evaluate_keys(keys: &[Arc<dyn PhysicalExpr>], batch: &Batch) -> Result<Vec<ArrayRef>> {
    let columns = evaluate_all(keys, batch)?;
    columns
        .into_iter()
        .map(|column| {
            if column.data_type().is_floating() {
                canonical_floats(&column)
            } else {
                Ok(column)
            }
        })
        .collect()
}

/// Which rows are the same in two lists of columns; NULL is the same as NULL.
///
/// # Errors
/// When a type cannot be compared.
pub(in crate::operator) fn same_rows(left: &[ArrayRef], right: &[ArrayRef], rows: usize) -> Result<BooleanBuffer> {
    let mut same = BooleanBuffer::new_set(rows);
    for (left, right) in left.iter().zip(right) {
        let equal = if left.data_type().is_nested() {
            let compare = make_comparator(left.as_ref(), right.as_ref(), SortOptions::default())?;
            BooleanBuffer::collect_bool(rows, |row| compare(row, row).is_eq())
        } else {
            not_distinct(left, right)?.values().clone()
        };
        same = &same & &equal;
    }
    Ok(same)
}
