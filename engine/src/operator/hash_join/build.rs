//! The build side: batches as they arrive, and whole columns once it has ended.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, AsArray, UInt32Array, new_empty_array, new_null_array};
use arrow::compute::{concat, interleave};
use arrow::datatypes::{DataType, SchemaRef};

use crate::data::{Batch, EngineError, Result};
use crate::operator::Context;
use crate::operator::hash_join::output::Selection;

/// Collects the columns of the build side that the join will need, and books them.
pub(in crate::operator) struct Collected {
    schema: SchemaRef,
    kept: Vec<usize>,
    chunks: Vec<Vec<ArrayRef>>,
    booked: Vec<usize>,
    seen_buffers: HashSet<usize>,
    rows: usize,
}

impl Collected {
    /// Collects the columns `kept` of batches of `schema`, and `extra` computed ones.
    pub(in crate::operator) fn new(schema: SchemaRef, kept: Vec<usize>, extra: usize) -> Self {
        let columns = kept.len() + extra;
        Self {
            schema,
            kept,
            chunks: vec![Vec::new(); columns],
            booked: vec![0; columns],
            seen_buffers: HashSet::new(),
            rows: 0,
        }
    }

    /// Takes a batch and the computed columns.
    ///
    /// # Errors
    /// When the budget is exhausted, or there are more rows than a table can number.
    pub(in crate::operator) fn push(&mut self, batch: &Batch, extra: Vec<ArrayRef>, cx: &mut Context) -> Result<()> {
        self.rows += batch.num_rows();
        if self.rows >= u32::MAX as usize {
            return Err(EngineError::Plan(format!(
                "the build side of {} has more than {} rows in one subtask; raise the parallelism",
                cx.operator,
                u32::MAX
            )));
        }
        let columns = self
            .kept
            .iter()
            .map(|column| Arc::clone(batch.column(*column)))
            .chain(extra);
        for ((array, chunks), booked) in columns.zip(&mut self.chunks).zip(&mut self.booked) {
            *booked += new_bytes(&array.to_data(), &mut self.seen_buffers);
            chunks.push(array);
        }
        cx.hold(self.bytes())
    }

    /// Rows so far.
    pub(in crate::operator) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes held.
    pub(in crate::operator) fn bytes(&self) -> usize {
        self.booked.iter().sum::<usize>() + self.seen_buffers.capacity() * size_of::<usize>()
    }

    /// Takes out the chunks of the computed columns and the bytes booked for them, which the caller now books.
    pub(in crate::operator) fn take_extra(&mut self) -> (Vec<Vec<ArrayRef>>, usize) {
        let bytes = self.booked.drain(self.kept.len()..).sum();
        (self.chunks.drain(self.kept.len()..).collect(), bytes)
    }

    /// Joins the chunks of each column, one column at a time, so that no more than one column exists twice.
    /// `other_bytes` are held besides.
    ///
    /// # Errors
    /// When the budget is exhausted.
    pub(in crate::operator) fn finish(mut self, other_bytes: usize, cx: &mut Context) -> Result<BuildRows> {
        self.seen_buffers = HashSet::new();
        let mut columns = vec![None; self.schema.fields().len()];
        for (position, column) in self.kept.iter().enumerate() {
            let chunks = std::mem::take(&mut self.chunks[position]);
            let held = self.bytes() + other_bytes;
            cx.hold(held + if chunks.len() > 1 { self.booked[position] } else { 0 })?;
            let whole = BuildColumn::new(chunks, self.schema.field(*column).data_type())?;
            self.booked[position] = whole.memory_bytes();
            columns[*column] = Some(whole);
        }
        cx.hold(self.bytes() + other_bytes)?;
        Ok(BuildRows {
            columns,
            rows: self.rows,
        })
    }
}

/// Bytes of the buffers not seen before: slices of one buffer, as scans and exchanges make them, count once, and
/// count whole because they keep the whole buffer alive.
fn new_bytes(data: &ArrayData, seen: &mut HashSet<usize>) -> usize {
    let mut bytes = 0;
    let nulls = data.nulls().map(|nulls| nulls.buffer());
    for buffer in data.buffers().iter().chain(nulls) {
        if seen.insert(buffer.data_ptr().as_ptr() as usize) {
            bytes += buffer.capacity();
        }
    }
    bytes
        + data
            .child_data()
            .iter()
            .map(|child| new_bytes(child, seen))
            .sum::<usize>()
}

/// The build side after its end; the columns nobody needs are `None`.
pub(in crate::operator) struct BuildRows {
    columns: Vec<Option<BuildColumn>>,
    rows: usize,
}

impl BuildRows {
    /// How many.
    pub(in crate::operator) fn len(&self) -> usize {
        self.rows
    }

    /// Rows of column `index`.
    ///
    /// # Errors
    /// When the kernel fails.
    pub(in crate::operator) fn gather(&self, index: usize, rows: &Selection) -> Result<ArrayRef> {
        match self.columns.get(index) {
            Some(Some(column)) => column.gather(rows),
            _ => Err(EngineError::Internal(format!("build column {index} was not kept"))),
        }
    }
}

#[derive(Clone)]
enum BuildColumn {
    Whole(ArrayRef),
    /// Too large for one array of its type (more than 2 GB of strings). The last chunk is one NULL.
    Chunks {
        arrays: Vec<ArrayRef>,
        starts: Vec<usize>,
    },
}

/// String views of more buffers than this are compacted: each gathered batch shares, and so counts, every buffer.
const VIEW_BUFFERS_MAX: usize = 16;

impl BuildColumn {
    fn new(mut chunks: Vec<ArrayRef>, data_type: &DataType) -> Result<Self> {
        if chunks.len() < 2 {
            return Ok(Self::Whole(chunks.pop().unwrap_or_else(|| new_empty_array(data_type))));
        }
        let bytes: usize = chunks
            .iter()
            .map(|c| c.to_data().get_slice_memory_size().unwrap_or(0))
            .sum();
        if bytes <= i32::MAX as usize || !has_small_offsets(data_type) {
            let refs: Vec<&dyn Array> = chunks.iter().map(AsRef::as_ref).collect();
            // A dictionary may still be unable to number the values of all chunks.
            if let Ok(whole) = concat(&refs) {
                return Ok(Self::Whole(compact(whole)));
            }
        }
        chunks.push(new_null_array(data_type, 1));
        let mut starts = Vec::with_capacity(chunks.len());
        let mut next = 0;
        for chunk in &chunks {
            starts.push(next);
            next += chunk.len();
        }
        Ok(Self::Chunks { arrays: chunks, starts })
    }

    fn memory_bytes(&self) -> usize {
        let mut seen = HashSet::new();
        match self {
            Self::Whole(array) => new_bytes(&array.to_data(), &mut seen),
            Self::Chunks { arrays, .. } => arrays.iter().map(|a| new_bytes(&a.to_data(), &mut seen)).sum(),
        }
    }

    fn gather(&self, rows: &Selection) -> Result<ArrayRef> {
        let (arrays, starts) = match self {
            Self::Whole(array) => return rows.of(array),
            Self::Chunks { arrays, starts } => (arrays, starts),
        };
        let place = |row: usize| {
            let chunk = starts.partition_point(|start| *start <= row) - 1;
            (chunk, row - starts[chunk])
        };
        let null = (arrays.len() - 1, 0);
        let places: Vec<(usize, usize)> = match rows {
            Selection::Slice { start, len } => (*start..start + len).map(place).collect(),
            Selection::Take(rows) => rows
                .iter()
                .map(|row| row.map_or(null, |row| place(row as usize)))
                .collect(),
            Selection::Nulls(len) => vec![null; *len],
        };
        let refs: Vec<&dyn Array> = arrays.iter().map(AsRef::as_ref).collect();
        Ok(interleave(&refs, &places)?)
    }
}

fn has_small_offsets(data_type: &DataType) -> bool {
    match data_type {
        DataType::LargeUtf8 | DataType::LargeBinary | DataType::Utf8View | DataType::BinaryView => false,
        DataType::FixedSizeBinary(_) => false,
        other => !other.is_primitive(),
    }
}

fn compact(array: ArrayRef) -> ArrayRef {
    match array.data_type() {
        DataType::Utf8View if array.as_string_view().data_buffers().len() > VIEW_BUFFERS_MAX => {
            Arc::new(array.as_string_view().gc())
        }
        DataType::BinaryView if array.as_binary_view().data_buffers().len() > VIEW_BUFFERS_MAX => {
            Arc::new(array.as_binary_view().gc())
        }
        _ => array,
    }
}

/// Row numbers as indices; `None` is a NULL row.
pub(in crate::operator) fn nullable_rows(rows: &[u32], none: u32) -> UInt32Array {
    rows.iter().map(|row| (*row != none).then_some(*row)).collect()
}
