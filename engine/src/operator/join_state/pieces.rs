//! Rows in batches, numbered in the order of arrival.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, BooleanArray, UInt32Array, new_null_array};
use arrow::compute::{concat, filter, interleave, take};
use arrow::datatypes::DataType;

use crate::data::{EngineError, Result};
use crate::operator::array_bytes::{compact, payload_bytes};

/// No row: gathered as NULL.
pub(in crate::operator) const NO_ROW: u32 = u32::MAX;

/// Small neighbours are joined up to this many rows.
const JOINED_ROWS: usize = if cfg!(test) { 24 } else { 8192 };

/// Every so many rows the directory says in which piece they are.
const BLOCK_BITS: u32 = if cfg!(test) { 3 } else { 9 };

/// Neighbouring rows. Without columns when all of them are gone.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) base: u32,
    pub(super) rows: usize,
    pub(super) columns: Option<Vec<ArrayRef>>,
    bytes: usize,
    /// Least and greatest time, where rows have times.
    pub(super) times: (i64, i64),
    /// What comparing hashes has cost so far, in rows; see `RowStore`.
    pub(super) scanned: usize,
}

impl Piece {
    pub(super) fn range(&self) -> Range<usize> {
        self.base as usize..self.base as usize + self.rows
    }
}

/// The pieces of a store.
#[derive(Debug, Default)]
pub(super) struct Pieces {
    types: Vec<DataType>,
    pieces: Vec<Piece>,
    directory: Vec<u32>,
    rows: usize,
    bytes: usize,
    /// Rows of pieces that are gone.
    gone: usize,
}

/// Where rows are, for gathering one column after the other.
pub(in crate::operator) struct Located {
    used: Vec<u32>,
    places: Vec<(usize, usize)>,
    has_nulls: bool,
}

impl Located {
    pub(super) fn len(&self) -> usize {
        self.places.len()
    }
}

impl Pieces {
    pub(super) fn new(types: Vec<DataType>) -> Self {
        Self {
            types,
            ..Self::default()
        }
    }

    /// The types of the columns; this is of no use afterwards.
    pub(super) fn take_types(&mut self) -> Vec<DataType> {
        std::mem::take(&mut self.types)
    }

    /// Rows that have been numbered, with those that are gone.
    pub(super) fn rows(&self) -> usize {
        self.rows
    }

    pub(super) fn gone(&self) -> usize {
        self.gone
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
            + self.pieces.capacity() * size_of::<Piece>()
            + self.directory.capacity() * size_of::<u32>()
            + self.pieces.len() * self.types.len() * size_of::<ArrayRef>()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Piece> {
        self.pieces.iter()
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Piece> {
        self.pieces.iter_mut()
    }

    pub(super) fn get(&self, piece: usize) -> &Piece {
        &self.pieces[piece]
    }

    pub(super) fn len(&self) -> usize {
        self.pieces.len()
    }

    /// Takes rows; those that are not much fewer than the rows before them stay as they are.
    pub(super) fn push(&mut self, columns: Vec<ArrayRef>, rows: usize, times: (i64, i64)) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        if self.rows + rows >= (NO_ROW - 1) as usize {
            return Err(EngineError::Plan(format!(
                "a side of a join of streams holds more than {} rows; bound it by a state TTL or by time",
                self.rows
            )));
        }
        let columns = columns.into_iter().map(own).collect::<Result<Vec<_>>>()?;
        let piece = Piece {
            base: self.rows as u32,
            rows,
            bytes: columns.iter().map(held_bytes).sum(),
            columns: Some(columns),
            times,
            scanned: 0,
        };
        self.rows += rows;
        self.bytes += piece.bytes;
        self.pieces.push(piece);
        while self.joins_last()? {}
        self.index_last();
        Ok(())
    }

    /// Joins the last two pieces when they are small and of about the same size, so that pieces stay few.
    fn joins_last(&mut self) -> Result<bool> {
        let [.., a, b] = self.pieces.as_slice() else {
            return Ok(false);
        };
        let (Some(left), Some(right)) = (&a.columns, &b.columns) else {
            return Ok(false);
        };
        if a.rows > 2 * b.rows || a.rows + b.rows > JOINED_ROWS {
            return Ok(false);
        }
        let columns = left
            .iter()
            .zip(right)
            .map(|(a, b)| Ok(concat(&[a.as_ref(), b.as_ref()])?));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        let piece = Piece {
            base: a.base,
            rows: a.rows + b.rows,
            bytes: columns.iter().map(held_bytes).sum(),
            columns: Some(columns),
            times: (a.times.0.min(b.times.0), a.times.1.max(b.times.1)),
            scanned: a.scanned + b.scanned,
        };
        self.bytes = self.bytes + piece.bytes - a.bytes - b.bytes;
        self.pieces.truncate(self.pieces.len() - 2);
        self.pieces.push(piece);
        Ok(true)
    }

    /// Brings the directory up to date for the last piece.
    fn index_last(&mut self) {
        let Some(last) = self.pieces.last() else { return };
        let number = (self.pieces.len() - 1) as u32;
        let first_block = (last.base as usize).div_ceil(1 << BLOCK_BITS);
        self.directory.truncate(first_block);
        let blocks = (self.rows - 1) / (1 << BLOCK_BITS) + 1;
        self.directory.resize(blocks.max(first_block), number);
    }

    /// Piece and position in it.
    #[inline]
    pub(super) fn locate(&self, row: u32) -> (usize, usize) {
        let mut piece = self.directory[(row >> BLOCK_BITS) as usize] as usize;
        // The piece in which the block begins may have been joined to the one before it since.
        piece = piece.min(self.pieces.len() - 1);
        while self.pieces[piece].base > row {
            piece -= 1;
        }
        while row as usize >= self.pieces[piece].range().end {
            piece += 1;
        }
        (piece, (row - self.pieces[piece].base) as usize)
    }

    pub(super) fn locate_all(&self, rows: &[u32]) -> Located {
        let mut slot_of = vec![NO_ROW; self.pieces.len()];
        let (mut used, mut has_nulls) = (Vec::new(), false);
        let mut last = (0..0, 0, 0);
        let places = rows.iter().map(|row| {
            if *row == NO_ROW {
                has_nulls = true;
                return (usize::MAX, 0);
            }
            if !last.0.contains(&(*row as usize)) {
                let (piece, _) = self.locate(*row);
                if slot_of[piece] == NO_ROW {
                    slot_of[piece] = used.len() as u32;
                    used.push(piece as u32);
                }
                last = (self.pieces[piece].range(), slot_of[piece] as usize, 0);
            }
            (last.1, *row as usize - last.0.start)
        });
        let mut places: Vec<_> = places.collect();
        if has_nulls {
            let nulls = used.len();
            for place in places.iter_mut().filter(|place| place.0 == usize::MAX) {
                place.0 = nulls;
            }
        }
        Located {
            used,
            places,
            has_nulls,
        }
    }

    /// A column of located rows.
    pub(super) fn gather(&self, column: usize, located: &Located) -> Result<ArrayRef> {
        let data_type = &self.types[column];
        if located.used.is_empty() {
            return Ok(new_null_array(data_type, located.len()));
        }
        let mut arrays = Vec::with_capacity(located.used.len() + 1);
        for piece in &located.used {
            let columns = self.pieces[*piece as usize].columns.as_ref();
            let columns = columns.ok_or_else(|| EngineError::Internal("a forgotten row is gathered".into()))?;
            arrays.push(&columns[column]);
        }
        if let ([only], false) = (arrays.as_slice(), located.has_nulls) {
            let rows = located.places.iter().map(|(_, row)| *row as u32);
            return Ok(take(only, &UInt32Array::from_iter_values(rows), None)?);
        }
        let null = new_null_array(data_type, 1);
        let mut arrays: Vec<&dyn Array> = arrays.into_iter().map(AsRef::as_ref).collect();
        if located.has_nulls {
            arrays.push(null.as_ref());
        }
        Ok(interleave(&arrays, &located.places)?)
    }

    /// Forgets the rows of pieces for which `expired` is true; their numbers stay taken until [`Self::compact`].
    pub(super) fn forget(&mut self, expired: impl Fn(&Piece) -> bool) -> usize {
        let before = self.gone;
        for piece in &mut self.pieces {
            if piece.columns.is_some() && expired(piece) {
                piece.columns = None;
                self.bytes -= piece.bytes;
                self.gone += piece.rows;
            }
        }
        self.gone - before
    }

    /// Keeps the rows whose `live` flag is set, and numbers them anew.
    pub(super) fn compact(&mut self, live: &[bool]) -> Result<()> {
        let types = self.take_types();
        let old = std::mem::replace(self, Self::new(types));
        for piece in old.pieces {
            let live = &live[piece.range()];
            let count = live.iter().filter(|live| **live).count();
            let Some(columns) = piece.columns.filter(|_| count > 0) else {
                continue;
            };
            let columns = if count == live.len() {
                columns
            } else {
                let mask = BooleanArray::from(live.to_vec());
                let kept = columns.iter().map(|column| Ok(filter(column, &mask)?));
                kept.collect::<Result<Vec<_>>>()?
            };
            self.push(columns, count, piece.times)?;
        }
        Ok(())
    }
}

/// What the rows of a column weigh.
pub(super) fn held_bytes(column: &ArrayRef) -> usize {
    let views = match column.data_type() {
        DataType::Utf8View | DataType::BinaryView => column.len() * size_of::<u128>(),
        _ => 0,
    };
    payload_bytes(column) + views
}

/// The column by itself: not as a small part of buffers that it would keep alive.
pub(super) fn own(column: ArrayRef) -> Result<ArrayRef> {
    let enough = 2 * held_bytes(&column) + 1024;
    if column.get_buffer_memory_size() <= enough {
        return Ok(column);
    }
    let compacted = compact(Arc::clone(&column))?;
    if compacted.get_buffer_memory_size() <= enough {
        return Ok(compacted);
    }
    let all = UInt32Array::from_iter_values(0..column.len() as u32);
    compact(take(&column, &all, None)?)
}
