//! The keys of one side of a join: columns, hashes, and which rows can match at all.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::buffer::NullBuffer;
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::physical_expr::expressions::Column;

use crate::data::{Batch, EngineError, Result, canonical_floats, has_nested_float, hash_rows};
use crate::plan::{JoinInputSpec, ScalarExpr};

/// How the keys of one side are computed.
#[derive(Debug)]
pub(in crate::operator) struct JoinKeys {
    exprs: Vec<ScalarExpr>,
    types: Vec<DataType>,
    /// Whether equal hashes of rows without NULL are equal keys.
    pub(super) exact: bool,
    null_equals_null: bool,
    /// Where a stored row has its keys: a column of the row, or one that is stored beside them.
    pub(super) stored: Vec<usize>,
    /// The keys that are stored beside the row.
    pub(super) extras: Vec<usize>,
}

/// The keys of a batch.
pub(in crate::operator) struct Keyed {
    /// The columns, without encodings and with canonical floats.
    pub(in crate::operator) columns: Vec<ArrayRef>,
    /// Rows that match nothing. `None` when there are none.
    pub(in crate::operator) nulls: Option<NullBuffer>,
}

impl JoinKeys {
    /// The keys of both sides.
    ///
    /// # Errors
    /// When they differ in number or type.
    pub(in crate::operator) fn of_sides(
        left: &JoinInputSpec,
        right: &JoinInputSpec,
        null_equals_null: bool,
    ) -> Result<[Self; 2]> {
        let keys = [Self::new(left, null_equals_null)?, Self::new(right, null_equals_null)?];
        if keys[0].types != keys[1].types {
            return Err(EngineError::Internal(format!(
                "the sides of a join have keys of different types: {:?} and {:?}",
                keys[0].types, keys[1].types
            )));
        }
        Ok(keys)
    }

    /// The keys of one side.
    ///
    /// # Errors
    /// When an expression has no type.
    pub(in crate::operator) fn new(side: &JoinInputSpec, null_equals_null: bool) -> Result<Self> {
        let schema = &side.schema.0;
        let types = side.keys.iter().map(|key| Ok(plain(key.expr.data_type(schema)?)));
        let types = types.collect::<Result<Vec<_>>>()?;
        // The hash of one value of up to 64 bits is a bijection; the one value that hashes as NULL does only matters
        // where NULL can match.
        let exact = match types.as_slice() {
            [] => true,
            [only] => !null_equals_null && fits_a_word(only),
            _ => false,
        };
        let width = schema.fields().len() - usize::from(crate::data::is_changelog(schema));
        let (mut stored, mut extras) = (Vec::new(), Vec::new());
        for (number, key) in side.keys.iter().enumerate().filter(|_| !exact) {
            let column = key.expr.downcast_ref::<Column>().map(Column::index);
            let as_is = |column: &usize| {
                let data_type = schema.field(*column).data_type();
                data_type == &types[number] && !has_floats(data_type)
            };
            stored.push(column.filter(as_is).unwrap_or_else(|| {
                extras.push(number);
                width + extras.len() - 1
            }));
        }
        Ok(Self {
            exprs: side.keys.clone(),
            types,
            exact,
            null_equals_null,
            stored,
            extras,
        })
    }

    /// The types of the key columns.
    pub(in crate::operator) fn types(&self) -> &[DataType] {
        &self.types
    }

    /// The keys of `batch`.
    ///
    /// # Errors
    /// When an expression fails.
    pub(in crate::operator) fn evaluate(&self, batch: &Batch) -> Result<Keyed> {
        let mut columns = Vec::with_capacity(self.exprs.len());
        for (expr, data_type) in self.exprs.iter().zip(&self.types) {
            let mut column = expr.expr.evaluate(batch)?.into_array(batch.num_rows())?;
            if column.data_type() != data_type {
                column = cast(&column, data_type)?;
            }
            if has_floats(data_type) {
                column = canonical_floats(&column)?;
            }
            columns.push(column);
        }
        let nulls = if self.null_equals_null {
            None
        } else {
            let all: Vec<_> = columns.iter().map(Array::logical_nulls).collect();
            NullBuffer::union_many(all.iter().map(Option::as_ref)).filter(|nulls| nulls.null_count() > 0)
        };
        Ok(Keyed { columns, nulls })
    }

    /// The keys that are stored beside a row.
    pub(super) fn extra_columns(&self, keyed: &Keyed) -> Vec<ArrayRef> {
        let columns = self.extras.iter().map(|number| Arc::clone(&keyed.columns[*number]));
        columns.collect()
    }
}

impl Keyed {
    /// The hashes of `rows` rows.
    ///
    /// # Errors
    /// When a nested type cannot be hashed.
    pub(in crate::operator) fn hashes(&self, rows: usize) -> Result<Vec<u64>> {
        let mut hashes = Vec::new();
        hash_rows(&self.columns, rows, &mut hashes)?;
        Ok(hashes)
    }
}

/// The type without its encoding.
fn plain(data_type: DataType) -> DataType {
    match data_type {
        DataType::Dictionary(_, value) => plain(*value),
        DataType::RunEndEncoded(_, value) => plain(value.data_type().clone()),
        other => other,
    }
}

fn has_floats(data_type: &DataType) -> bool {
    data_type.is_floating() || has_nested_float(data_type)
}

fn fits_a_word(data_type: &DataType) -> bool {
    match data_type {
        DataType::Boolean | DataType::Date32 | DataType::Date64 | DataType::Time32(_) | DataType::Time64(_) => true,
        DataType::Timestamp(_, _) | DataType::Duration(_) => true,
        other => other.is_integer() || other.is_floating(),
    }
}
