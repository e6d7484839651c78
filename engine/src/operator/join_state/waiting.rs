//! Rows that wait until the watermark has reached their time.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatchOptions, UInt32Array};
use arrow::compute::{concat_batches, interleave};
use arrow::datatypes::SchemaRef;

use super::pieces::held_bytes;
use super::store::own_batch;
use super::take_rows;
use crate::data::{Batch, Result};
use crate::operator::row_table::RowTable;
use crate::plan::ScalarExpr;
use crate::state::RestoredRows;

/// Small neighbours are joined up to this many rows.
const JOINED_ROWS: usize = if cfg!(test) { 24 } else { 8192 };

/// Rows sorted by time, those before `at` already gone.
struct Piece {
    rows: Batch,
    times: Vec<i64>,
    at: usize,
}

impl Piece {
    fn new(rows: Batch, times: Vec<i64>) -> Result<Self> {
        if times.is_sorted() {
            return Ok(Self { rows, times, at: 0 });
        }
        let mut order: Vec<u32> = (0..times.len() as u32).collect();
        order.sort_by_key(|row| times[*row as usize]);
        Ok(Self {
            times: order.iter().map(|row| times[*row as usize]).collect(),
            rows: take_rows(&rows, &UInt32Array::from(order))?,
            at: 0,
        })
    }

    fn left(&self) -> usize {
        self.times.len() - self.at
    }

    fn rest(&self) -> (Batch, &[i64]) {
        (self.rows.slice(self.at, self.left()), &self.times[self.at..])
    }

    fn bytes(&self) -> usize {
        let columns: usize = self.rows.columns().iter().map(held_bytes).sum();
        columns + self.times.capacity() * size_of::<i64>()
    }
}

/// Rows that wait for a time. A snapshot is the rows, piece by piece; their times follow from them.
pub(in crate::operator) struct Waiting {
    schema: SchemaRef,
    pieces: Vec<Piece>,
    bytes: usize,
}

impl Waiting {
    /// For rows of `schema`.
    pub(in crate::operator) fn new(schema: SchemaRef) -> Self {
        Self {
            schema,
            pieces: Vec::new(),
            bytes: 0,
        }
    }

    /// Bytes held.
    pub(in crate::operator) fn bytes(&self) -> usize {
        self.bytes + self.pieces.capacity() * size_of::<Piece>()
    }

    /// Whether no row waits.
    pub(in crate::operator) fn is_empty(&self) -> bool {
        self.pieces.is_empty()
    }

    /// Takes rows with the times that they wait for.
    ///
    /// # Errors
    /// When a kernel fails.
    pub(in crate::operator) fn push(&mut self, rows: &Batch, times: Vec<i64>) -> Result<()> {
        if times.is_empty() {
            return Ok(());
        }
        let rows = Batch::try_new_with_options(
            Arc::clone(&self.schema),
            rows.columns().to_vec(),
            &RecordBatchOptions::new().with_row_count(Some(times.len())),
        )?;
        self.add(Piece::new(own_batch(&rows)?, times)?);
        while let [.., a, b] = self.pieces.as_slice()
            && a.left() <= 2 * b.left()
            && a.left() + b.left() <= JOINED_ROWS
        {
            let ((a, a_times), (b, b_times)) = (a.rest(), b.rest());
            let rows = match self.schema.fields().is_empty() {
                true => self.bare(a.num_rows() + b.num_rows())?,
                false => concat_batches(&self.schema, [&a, &b])?,
            };
            let piece = Piece::new(rows, [a_times, b_times].concat())?;
            for piece in self.pieces.drain(self.pieces.len() - 2..) {
                self.bytes -= piece.bytes();
            }
            self.add(piece);
        }
        Ok(())
    }

    /// The table of the rows, which belong where `keys` lead.
    pub(in crate::operator) fn table(&self, name: &str, keys: &[ScalarExpr]) -> RowTable {
        RowTable::new(name, &self.schema, Vec::new(), keys)
    }

    /// The rows that wait now, those of one time in the order of arrival.
    pub(in crate::operator) fn freeze(&self, table: &RowTable) -> impl Iterator<Item = Result<Batch>> + Send + use<> {
        let pieces: Vec<Batch> = self.pieces.iter().map(|piece| piece.rest().0).collect();
        let table = table.clone();
        let rows = pieces.into_iter();
        rows.map(move |rows| table.batch(rows.columns().to_vec(), rows.num_rows()))
    }

    /// Takes the rows of a snapshot, whose times `times` finds.
    ///
    /// # Errors
    /// When a time cannot be found or a kernel fails.
    pub(in crate::operator) fn restore(
        &mut self,
        table: &RowTable,
        rows: RestoredRows,
        times: impl Fn(&Batch) -> Result<Vec<i64>>,
    ) -> Result<()> {
        for stored in rows {
            let (rows, _) = table.split(&stored?)?;
            let times = times(&rows)?;
            self.push(&rows, times)?;
        }
        Ok(())
    }

    fn add(&mut self, piece: Piece) {
        self.bytes += piece.bytes();
        self.pieces.push(piece);
    }

    fn bare(&self, rows: usize) -> Result<Batch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(Batch::try_new_with_options(Arc::clone(&self.schema), vec![], &options)?)
    }

    /// Takes out the rows whose time is not after `time`.
    ///
    /// # Errors
    /// When a kernel fails.
    pub(in crate::operator) fn take_through(&mut self, time: i64) -> Result<Drained> {
        let mut drained = Drained {
            schema: Arc::clone(&self.schema),
            pieces: Vec::new(),
            rows: Vec::new(),
            at: 0,
        };
        for piece in std::mem::take(&mut self.pieces) {
            let end = piece.at + piece.times[piece.at..].partition_point(|t| *t <= time);
            if end > piece.at {
                let number = drained.pieces.len() as u32;
                let rows = (piece.at..end).map(|row| (piece.times[row], number, row as u32));
                drained.rows.extend(rows);
                drained.pieces.push(piece.rows.clone());
            }
            let bytes = piece.bytes();
            if end == piece.times.len() {
                self.bytes -= bytes;
            } else if end * 2 > piece.times.len() {
                // The greater part is gone: it must not be kept for the sake of the rest.
                self.bytes -= bytes;
                let rest: Vec<u32> = (end as u32..piece.times.len() as u32).collect();
                self.add(Piece {
                    rows: own_batch(&take_rows(&piece.rows, &UInt32Array::from(rest))?)?,
                    times: piece.times[end..].to_vec(),
                    at: 0,
                });
            } else {
                self.pieces.push(Piece { at: end, ..piece });
            }
        }
        // Stable, so rows of one time stay in the order of arrival.
        drained.rows.sort_by_key(|(time, _, _)| *time);
        Ok(drained)
    }
}

/// Rows whose time has come, in its order.
pub(in crate::operator) struct Drained {
    schema: SchemaRef,
    pieces: Vec<Batch>,
    rows: Vec<(i64, u32, u32)>,
    at: usize,
}

impl Drained {
    /// The last time among the next so many rows.
    pub(in crate::operator) fn time_after(&self, rows: usize) -> Option<i64> {
        let last = self.rows.len().checked_sub(1)?;
        (self.at <= last).then(|| self.rows[(self.at + rows.max(1) - 1).min(last)].0)
    }

    /// The next rows, through `time`, with their times.
    ///
    /// # Errors
    /// When a kernel fails.
    pub(in crate::operator) fn take_through(&mut self, time: i64) -> Result<(Batch, Vec<i64>)> {
        let count = self.rows[self.at..].partition_point(|(t, _, _)| *t <= time);
        let rows = &self.rows[self.at..self.at + count];
        self.at += count;
        let times = rows.iter().map(|(time, _, _)| *time).collect();
        let options = RecordBatchOptions::new().with_row_count(Some(count));
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        let mut slots = vec![u32::MAX; self.pieces.len()];
        let mut used = Vec::new();
        let places = rows.iter().map(|(_, piece, row)| {
            let slot = &mut slots[*piece as usize];
            if *slot == u32::MAX {
                *slot = used.len() as u32;
                used.push(*piece as usize);
            }
            (*slot as usize, *row as usize)
        });
        let places: Vec<_> = places.collect();
        if let [only] = used.as_slice() {
            let rows = UInt32Array::from_iter_values(places.iter().map(|(_, row)| *row as u32));
            return Ok((take_rows(&self.pieces[*only], &rows)?, times));
        }
        for (column, field) in self.schema.fields().iter().enumerate() {
            let arrays: Vec<&dyn Array> = used
                .iter()
                .map(|piece| self.pieces[*piece].column(column).as_ref())
                .collect();
            let gathered: ArrayRef = match arrays.is_empty() {
                true => arrow::array::new_empty_array(field.data_type()),
                false => interleave(&arrays, &places)?,
            };
            columns.push(gathered);
        }
        Ok((
            Batch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?,
            times,
        ))
    }
}
