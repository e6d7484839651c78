//! What the operators that keep something per key share: [`KeyIndex`] numbers the keys and knows which of them live,
//! [`RowStore`] keeps rows in columns, [`Changes`] gathers the rows of a changelog on their way out. [`KeyTable`] and
//! [`RowTable`] are how both leave for a checkpoint and come back.

mod changes;
#[cfg(test)]
pub(in crate::operator) mod folded;
mod frozen;
mod index;
mod keyed_rows;
mod row_store;
#[cfg(test)]
pub(in crate::operator) mod subtasks;
mod tables;
#[cfg(test)]
mod timing;
mod touched;
mod tracked;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::buffer::BooleanBuffer;
use arrow::compute::kernels::cmp::not_distinct;
use arrow::datatypes::DataType;
use datafusion::physical_expr::PhysicalExpr;

use crate::data::{Batch, Result, canonical_floats};
use crate::operator::aggregate::evaluate_all;

pub(in crate::operator) use changes::Changes;
pub(in crate::operator) use frozen::{FROZEN_ROWS, Frozen, FrozenKeys, booked, table_batch, to_type};
pub(in crate::operator) use index::{Cut, KeyIndex};
pub(in crate::operator) use keyed_rows::KeyedRows;
pub(in crate::operator) use row_store::RowStore;
pub(in crate::operator) use tables::{KeyTable, RestoredBatch, RowTable, key_fields, plain_field};
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
/// When two columns have different types.
pub(in crate::operator) fn same_rows(left: &[ArrayRef], right: &[ArrayRef], rows: usize) -> Result<BooleanBuffer> {
    let mut same = BooleanBuffer::new_set(rows);
    for (left, right) in left.iter().zip(right) {
        let equal = match left.data_type() {
            DataType::Null => continue,
            nested if nested.is_nested() => {
                // Equality is defined for all types, order is not.
                BooleanBuffer::collect_bool(rows, |row| left.slice(row, 1) == right.slice(row, 1))
            }
            _ => not_distinct(left, right)?.values().clone(),
        };
        same = &same & &equal;
    }
    Ok(same)
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, Int32Array, ListArray, NullArray};
    use arrow::datatypes::Int32Type;

    use super::*;

    #[test]
    fn rows_are_the_same_whatever_their_types() {
        let list = |value| Some(vec![Some(1), value]);
        let lists = |values: [Option<i32>; 4]| -> ArrayRef {
            let rows = [list(values[0]), list(values[1]), None, list(values[3])];
            Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(rows))
        };
        let nulls: ArrayRef = Arc::new(NullArray::new(4));
        let floats = |values: [Option<f64>; 4]| -> ArrayRef { Arc::new(Float64Array::from(values.to_vec())) };
        let left = [
            lists([Some(1), None, None, Some(4)]),
            Arc::clone(&nulls),
            floats([Some(f64::NAN), None, None, Some(1.0)]),
        ];
        let mut right = left.clone();
        let same = |right: &[ArrayRef]| same_rows(&left, right, 4).unwrap().iter().collect::<Vec<_>>();
        assert_eq!(same(&right), [true; 4]);
        right[0] = lists([Some(1), Some(2), None, Some(5)]);
        assert_eq!(same(&right), [true, false, true, false]);
        right[2] = floats([None, None, Some(0.0), Some(1.0)]);
        assert_eq!(same(&right), [false; 4]);
        let numbers: ArrayRef = Arc::new(Int32Array::from(vec![1; 4]));
        assert!(same_rows(&left[2..], &[numbers], 4).is_err());
    }
}
