//! [`RowKind`]: what a row of a changelog says, and the column that carries it.

use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatchOptions, UInt8Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, UInt8Type};

use crate::data::{Batch, EngineError, Result};

/// The last column of a batch of a changelog. Streams of insertions only do not have it.
pub const ROW_KIND_COLUMN: &str = "$row_kind";

/// What a row of a changelog says (Flink's names and numbers).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum RowKind {
    /// `+I`: a new row.
    Insert = 0,
    /// `-U`: the old form of a row that changes; its new form follows.
    UpdateBefore = 1,
    /// `+U`: the new form of a row that changes.
    UpdateAfter = 2,
    /// `-D`: a row that goes.
    Delete = 3,
}

impl RowKind {
    /// From its number.
    ///
    /// # Errors
    /// When there is no such kind.
    pub fn from_u8(number: u8) -> Result<Self> {
        Ok(match number {
            0 => RowKind::Insert,
            1 => RowKind::UpdateBefore,
            2 => RowKind::UpdateAfter,
            3 => RowKind::Delete,
            other => return Err(EngineError::Internal(format!("there is no row kind {other}"))),
        })
    }

    /// As users see it: `+I`, `-U`, `+U`, `-D`.
    pub fn symbol(self) -> &'static str {
        match self {
            RowKind::Insert => "+I",
            RowKind::UpdateBefore => "-U",
            RowKind::UpdateAfter => "+U",
            RowKind::Delete => "-D",
        }
    }

    /// Whether the row is added to the table that the changelog describes (`+I`, `+U`), rather than taken away.
    pub fn is_addition(self) -> bool {
        matches!(self, RowKind::Insert | RowKind::UpdateAfter)
    }
}

/// Whether batches of this schema are part of a changelog.
pub fn is_changelog(schema: &Schema) -> bool {
    schema
        .fields()
        .last()
        .is_some_and(|field| field.name() == ROW_KIND_COLUMN)
}

/// `schema` with the row kind as its last column.
pub fn with_row_kind(schema: &Schema) -> SchemaRef {
    let kind = Arc::new(Field::new(ROW_KIND_COLUMN, DataType::UInt8, false));
    let fields: Vec<_> = schema.fields().iter().cloned().chain([kind]).collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

/// `schema` without the row kind, if it has one.
pub fn without_row_kind(schema: &Schema) -> SchemaRef {
    let columns = schema.fields().len() - usize::from(is_changelog(schema));
    let fields: Vec<_> = schema.fields().iter().take(columns).cloned().collect();
    Arc::new(Schema::new_with_metadata(fields, schema.metadata().clone()))
}

/// The columns of a batch and, of a changelog, the kind of each row (as numbers, see [`RowKind::from_u8`]).
///
/// # Errors
/// When the row kind's column has another type.
pub fn split_row_kind(batch: &Batch) -> Result<(Batch, Option<UInt8Array>)> {
    if !is_changelog(batch.schema_ref()) {
        return Ok((batch.clone(), None));
    }
    let last = batch.num_columns() - 1;
    let kinds = batch
        .column(last)
        .as_primitive_opt::<UInt8Type>()
        .filter(|kinds| kinds.null_count() == 0)
        .ok_or_else(|| EngineError::Internal(format!("{ROW_KIND_COLUMN} is not UInt8 without NULL")))?
        .clone();
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    let columns = batch.columns()[..last].to_vec();
    let rows = Batch::try_new_with_options(without_row_kind(batch.schema_ref()), columns, &options)?;
    Ok((rows, Some(kinds)))
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, Int64Array};

    use super::*;

    #[test]
    fn the_row_kind_comes_off_and_the_rows_stay() {
        let schema = Schema::new(vec![Field::new("a", DataType::Int64, true)]);
        let column: ArrayRef = Arc::new(Int64Array::from(vec![7, 8]));
        let kinds = UInt8Array::from(vec![1, 2]);
        let batch = Batch::try_new(
            with_row_kind(&schema),
            vec![Arc::clone(&column), Arc::new(kinds.clone())],
        )
        .unwrap();
        let (rows, split) = split_row_kind(&batch).unwrap();
        assert_eq!((rows.num_columns(), rows.column(0)), (1, &column));
        assert_eq!(split, Some(kinds));
        let (plain, none) = split_row_kind(&rows).unwrap();
        assert_eq!((plain, none), (rows, None));
        assert_eq!(without_row_kind(&with_row_kind(&schema)).as_ref(), &schema);
    }

    #[test]
    fn kinds_have_flinks_numbers_and_symbols() {
        let symbols: Vec<_> = (0..4).map(|n| RowKind::from_u8(n).unwrap().symbol()).collect();
        assert_eq!(symbols, ["+I", "-U", "+U", "-D"]);
        assert!(RowKind::from_u8(4).is_err());
        assert!(RowKind::UpdateAfter.is_addition() && !RowKind::UpdateBefore.is_addition());
    }
}
