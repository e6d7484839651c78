//! Gathers rows by place from batches that are held: the one time a sort copies its payload.
//!
//! A column that fits twice into the budget is first made one array: taking from one array costs half of what taking
//! from a thousand does, and a column of dictionaries is merged once instead of once per output batch.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, UInt32Array};
use arrow::compute::{concat, interleave, take};
use arrow::datatypes::SchemaRef;

use crate::data::{Batch, Result, compact_views};
use crate::operator::Context;

/// The largest column that is made one array: the offsets of strings and lists are 32 bits wide.
const WHOLE_BYTES_MAX: usize = 1 << 30;

enum Column {
    Whole(ArrayRef),
    Pieces(Vec<ArrayRef>),
}

/// Batches to take rows from.
pub(super) struct Gather {
    schema: SchemaRef,
    columns: Vec<Column>,
    /// The first row of each batch among all; `None` when there are too many rows to count in 32 bits.
    starts: Option<Vec<u32>>,
    row_bytes: usize,
}

impl Gather {
    /// Takes over `batches`, which are booked already as `bytes`. A column that fits twice into the budget is made one
    /// array when `may_join`.
    pub(super) fn new(
        schema: SchemaRef,
        batches: Vec<Batch>,
        bytes: usize,
        may_join: bool,
        cx: &mut Context,
    ) -> Result<Self> {
        let rows: usize = batches.iter().map(Batch::num_rows).sum();
        let starts = if may_join { starts(&batches) } else { None };
        let mut pieces: Vec<Vec<ArrayRef>> = schema.fields().iter().map(|_| Vec::new()).collect();
        for batch in batches {
            let (_, columns, _) = batch.into_parts();
            pieces
                .iter_mut()
                .zip(columns)
                .for_each(|(pieces, column)| pieces.push(column));
        }
        let mut columns = Vec::with_capacity(pieces.len());
        for pieces in pieces {
            cx.cancel.check()?;
            columns.push(if starts.is_some() {
                whole(pieces, cx)?
            } else {
                Column::Pieces(pieces)
            });
        }
        Ok(Self {
            schema,
            columns,
            starts,
            row_bytes: bytes.div_ceil(rows.max(1)),
        })
    }

    /// The schema of the rows.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Bytes of a row, on average.
    pub(super) fn row_bytes(&self) -> usize {
        self.row_bytes
    }

    /// The rows at `places` (batch, row), in that order.
    pub(super) fn take(&self, places: &[(usize, usize)]) -> Result<Batch> {
        let rows = self.starts.as_ref().map(|starts| {
            UInt32Array::from_iter_values(places.iter().map(|(batch, row)| starts[*batch] + *row as u32))
        });
        let columns = self.columns.iter().map(|column| match (column, &rows) {
            (Column::Whole(whole), Some(rows)) => Ok(take(whole, rows, None)?),
            (Column::Whole(whole), None) => Ok(interleave(&[whole.as_ref()], places)?),
            (Column::Pieces(pieces), _) => {
                let pieces: Vec<&dyn Array> = pieces.iter().map(AsRef::as_ref).collect();
                Ok(interleave(&pieces, places)?)
            }
        });
        let columns = columns.collect::<Result<Vec<_>>>()?;
        compact_views(Batch::try_new(Arc::clone(&self.schema), columns)?)
    }
}

fn starts(batches: &[Batch]) -> Option<Vec<u32>> {
    let mut next = 0_u32;
    let mut starts = Vec::with_capacity(batches.len());
    for batch in batches {
        starts.push(next);
        next = next.checked_add(u32::try_from(batch.num_rows()).ok()?)?;
    }
    Some(starts)
}

/// One array of all pieces, when that is possible and both fit the budget for the moment that both exist.
fn whole(pieces: Vec<ArrayRef>, cx: &mut Context) -> Result<Column> {
    let mut bytes = 0;
    for piece in &pieces {
        bytes += piece.to_data().get_slice_memory_size()?;
    }
    if bytes > WHOLE_BYTES_MAX || cx.memory.try_grow(bytes).is_err() {
        return Ok(Column::Pieces(pieces));
    }
    let arrays: Vec<&dyn Array> = pieces.iter().map(AsRef::as_ref).collect();
    // Dictionaries may hold more values together than their keys can count, while those of one output batch fit.
    let column = match concat(&arrays) {
        Ok(whole) => Column::Whole(whole),
        Err(_) => Column::Pieces(pieces),
    };
    cx.memory.shrink(bytes);
    Ok(column)
}
