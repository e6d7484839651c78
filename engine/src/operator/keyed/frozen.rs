//! What keyed operators keep, as a snapshot hands it over: copies made at the barrier, out of which another thread makes
//! the rows of tables.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, PrimitiveArray, RecordBatchOptions};
use arrow::compute::{cast, interleave};
use arrow::datatypes::{DataType, SchemaRef};
use thalweg_memory::Reservation;

use crate::data::{Batch, Result, compact_views};
use crate::operator::Context;
use crate::operator::aggregate::GroupTable;

/// Rows of a batch of a table.
pub(in crate::operator) const FROZEN_ROWS: usize = 1 << 13;

/// Columns that were copied at a barrier.
pub(in crate::operator) struct Frozen {
    /// The columns of the rows at some positions.
    pub(in crate::operator) columns: Columns,
    /// Bytes held.
    pub(in crate::operator) bytes: usize,
}

/// From positions to columns.
pub(in crate::operator) type Columns = Box<dyn Fn(&[u32]) -> Result<Vec<ArrayRef>> + Send>;

impl Frozen {
    /// From positions to columns.
    pub(in crate::operator) fn new(
        bytes: usize,
        columns: impl Fn(&[u32]) -> Result<Vec<ArrayRef>> + Send + 'static,
    ) -> Self {
        Self {
            columns: Box::new(columns),
            bytes,
        }
    }

    /// A column of numbers.
    pub(in crate::operator) fn numbers<T: ArrowPrimitiveType>(data_type: DataType, values: Vec<T::Native>) -> Self {
        Self::new(values.capacity() * size_of::<T::Native>(), move |positions| {
            let values = positions.iter().map(|position| values[*position as usize]);
            let array = PrimitiveArray::<T>::from_iter_values(values);
            Ok(vec![Arc::new(array.with_data_type(data_type.clone()))])
        })
    }
}

/// A copy of the keys of a [`super::KeyIndex`].
pub(in crate::operator) struct FrozenKeys {
    /// `None` without key columns.
    table: Option<GroupTable>,
}

impl FrozenKeys {
    pub(super) fn new(table: Option<GroupTable>) -> Self {
        Self { table }
    }

    /// The key columns of these keys, without dictionaries.
    ///
    /// # Errors
    /// When they do not fit one array.
    pub(in crate::operator) fn gather(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        self.table
            .as_ref()
            .map_or(Ok(Vec::new()), |table| table.gather_plain(groups))
    }

    /// Bytes held.
    pub(in crate::operator) fn size(&self) -> usize {
        self.table.as_ref().map_or(0, GroupTable::size)
    }
}

/// Rows of a [`super::RowStore`]: its chunks, and where each row is.
pub(in crate::operator) struct FrozenRows {
    chunks: Vec<Batch>,
    /// Chunk and row.
    places: Vec<(u32, u32)>,
}

impl FrozenRows {
    pub(super) fn new(chunks: Vec<Batch>, places: Vec<(u32, u32)>) -> Self {
        Self { chunks, places }
    }

    /// The rows, by their numbers, as they lie: read so, a batch touches few chunks.
    pub(in crate::operator) fn order(&self) -> Vec<u32> {
        let mut order: Vec<u32> = (0..self.places.len() as u32).collect();
        order.sort_unstable_by_key(|row| self.places[*row as usize]);
        order
    }

    /// Some columns of some rows.
    ///
    /// # Errors
    /// When they do not fit one array.
    pub(in crate::operator) fn gather(&self, rows: &[u32], columns: &[usize]) -> Result<Vec<ArrayRef>> {
        // Only the chunks that are used: a column of views keeps the buffers of all that it is handed.
        let mut numbers = vec![usize::MAX; self.chunks.len()];
        let mut used = Vec::new();
        let places: Vec<(usize, usize)> = rows
            .iter()
            .map(|row| {
                let (chunk, row) = self.places[*row as usize];
                let number = &mut numbers[chunk as usize];
                if *number == usize::MAX {
                    *number = used.len();
                    used.push(&self.chunks[chunk as usize]);
                }
                (*number, row as usize)
            })
            .collect();
        let gather = |column: &usize| {
            let arrays: Vec<&dyn Array> = used.iter().map(|chunk| chunk.column(*column).as_ref()).collect();
            Ok(interleave(&arrays, &places)?)
        };
        columns.iter().map(gather).collect()
    }

    /// Bytes held beside the chunks, which are shared.
    pub(in crate::operator) fn size(&self) -> usize {
        self.places.capacity() * size_of::<(u32, u32)>()
    }
}

/// A batch of a table of these columns, which may have dictionaries where the table has none.
///
/// # Errors
/// When the columns are not those of the schema.
pub(in crate::operator) fn table_batch(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<Batch> {
    let columns = columns.into_iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| to_type(column, field.data_type()));
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let columns = columns.collect::<Result<_>>()?;
    compact_views(Batch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

/// The column as one of another type.
///
/// # Errors
/// When a value does not fit the type.
pub(in crate::operator) fn to_type(column: ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    match column.data_type() == data_type {
        true => Ok(column),
        false => Ok(cast(&column, data_type)?),
    }
}

/// The order in which the rows of a table are read, found by the thread that reads them.
pub(in crate::operator) type Order = Box<dyn FnOnce() -> Vec<u32> + Send>;

/// The rows of a table, batch by batch. What they are made of is booked until they have been read.
pub(in crate::operator) struct FrozenTable {
    schema: SchemaRef,
    parts: Vec<Columns>,
    rows: usize,
    next: usize,
    order: Option<Order>,
    ordered: Vec<u32>,
    _booked: Reservation,
}

impl FrozenTable {
    /// A table of `rows` rows whose columns are those of `parts`, one after the other.
    pub(in crate::operator) fn new(
        schema: &SchemaRef,
        rows: usize,
        parts: Vec<Frozen>,
        order: Option<Order>,
        cx: &Context,
    ) -> Self {
        Self {
            schema: Arc::clone(schema),
            _booked: booked(parts.iter().map(|part| part.bytes).sum(), cx),
            parts: parts.into_iter().map(|part| part.columns).collect(),
            rows,
            next: 0,
            order,
            ordered: Vec::new(),
        }
    }

    fn batch(&mut self) -> Result<Batch> {
        if let Some(order) = self.order.take() {
            self.ordered = order();
        }
        let end = (self.next + FROZEN_ROWS).min(self.rows);
        let range = (self.next as u32..end as u32).collect::<Vec<u32>>();
        let positions = match self.ordered.is_empty() {
            true => range.as_slice(),
            false => &self.ordered[self.next..end],
        };
        self.next = end;
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        for part in &self.parts {
            columns.extend(part(positions)?);
        }
        table_batch(&self.schema, columns, positions.len())
    }
}

impl Iterator for FrozenTable {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        (self.next < self.rows).then(|| self.batch())
    }
}

/// Books what a snapshot has copied, even beyond the budget: without it the operator could not go on.
pub(in crate::operator) fn booked(bytes: usize, cx: &Context) -> Reservation {
    let mut booked = cx.memory.pinned_sibling();
    booked.resize(bytes);
    booked
}
