//! The build side: batches as they arrive, and whole columns once it has ended.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, AsArray, UInt32Array, new_empty_array, new_null_array};
use arrow::compute::{concat, interleave};
use arrow::datatypes::{DataType, SchemaRef};

use crate::data::{Batch, EngineError, Result};
use crate::operator::Context;
use crate::operator::hash_join::output::{Layout, Selection};
use crate::operator::hash_join::widths::Width;
use crate::plan::HashJoinSpec;

/// Row numbers are 32 bits wide; what has more rows is spilled.
pub(super) const ROWS_MAX: usize = u32::MAX as usize;

/// The part of what is held that spilling it takes: staging and one block.
const SPILL_MARGIN: usize = 8;

/// Collects the columns of the build side that the join will need, and books them.
pub(in crate::operator) struct Collected {
    schema: SchemaRef,
    kept: Vec<usize>,
    chunks: Vec<Vec<ArrayRef>>,
    booked: Vec<usize>,
    seen_buffers: HashSet<usize>,
    rows: usize,
    batch_rows: Vec<usize>,
}

/// What was collected of one batch.
pub(in crate::operator) struct CollectedBatch {
    /// The columns of the input.
    pub(in crate::operator) kept: Vec<ArrayRef>,
    /// The computed ones.
    pub(in crate::operator) extra: Vec<ArrayRef>,
    pub(in crate::operator) rows: usize,
    /// Of the bytes booked: batches may share buffers, so each counts by its rows.
    pub(in crate::operator) bytes: usize,
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
            batch_rows: Vec::new(),
        }
    }

    /// Collects what the join that `spec` says needs for its output `layout`, and its keys.
    pub(in crate::operator) fn of(spec: &HashJoinSpec, layout: &Layout) -> Self {
        let kept = layout.build_columns(spec.filter.as_ref());
        Self::new(spec.build_schema.0.clone(), kept, spec.build_keys.len())
    }

    /// Takes a batch and the computed columns, and books them. False when they do not fit: they are taken all the
    /// same, booked beyond the budget, and the caller must spill.
    pub(in crate::operator) fn push(&mut self, batch: &Batch, extra: Vec<ArrayRef>, cx: &mut Context) -> bool {
        self.add(batch, extra);
        // What spilling takes is booked beforehand, in proportion.
        let bytes = self.bytes();
        if self.rows < ROWS_MAX && !cx.memory.must_spill() && cx.hold(bytes + bytes / SPILL_MARGIN).is_ok() {
            return true;
        }
        // Giving back the margin now would look as if we had spilled.
        cx.hold_anyway(bytes.max(cx.memory.bytes()));
        false
    }

    /// Takes a batch and the computed columns, which the caller books.
    pub(in crate::operator) fn add(&mut self, batch: &Batch, extra: Vec<ArrayRef>) {
        self.rows += batch.num_rows();
        self.batch_rows.push(batch.num_rows());
        let columns = self
            .kept
            .iter()
            .map(|column| Arc::clone(batch.column(*column)))
            .chain(extra);
        for ((array, chunks), booked) in columns.zip(&mut self.chunks).zip(&mut self.booked) {
            *booked += new_bytes(&array.to_data(), &mut self.seen_buffers);
            chunks.push(array);
        }
    }

    /// Rows so far.
    pub(in crate::operator) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes held.
    pub(in crate::operator) fn bytes(&self) -> usize {
        self.booked.iter().sum::<usize>() + self.seen_buffers.capacity() * size_of::<usize>()
    }

    /// What holding, building a table of `table_bytes` over the computed columns and [`Self::finish`] take at most.
    pub(in crate::operator) fn bytes_to_build(&self, table_bytes: usize) -> usize {
        let (kept, extra) = self.booked.split_at(self.kept.len());
        let copies = self.chunks.iter().zip(kept).filter(|(chunks, _)| chunks.len() > 1);
        let largest_copy = copies.map(|(_, bytes)| *bytes).max().unwrap_or(0);
        let key_bytes: usize = extra.iter().sum();
        self.bytes() + table_bytes + (2 * key_bytes).max(largest_copy)
    }

    /// Gives the batches back, one by one.
    pub(in crate::operator) fn into_batches(self) -> impl Iterator<Item = CollectedBatch> {
        let (bytes, all_rows, kept) = (self.bytes(), self.rows.max(1), self.kept.len());
        let mut columns: Vec<_> = self.chunks.into_iter().map(Vec::into_iter).collect();
        self.batch_rows.into_iter().map(move |rows| {
            let mut arrays: Vec<ArrayRef> = columns.iter_mut().filter_map(Iterator::next).collect();
            let extra = arrays.split_off(kept);
            CollectedBatch {
                kept: arrays,
                extra,
                rows,
                bytes: (bytes as u128 * rows as u128 / all_rows as u128) as usize,
            }
        })
    }

    /// Takes out the chunks of the computed columns and the bytes booked for them, which the caller now books.
    pub(in crate::operator) fn take_extra(&mut self) -> (Vec<Vec<ArrayRef>>, usize) {
        let bytes = self.booked.drain(self.kept.len()..).sum();
        (self.chunks.drain(self.kept.len()..).collect(), bytes)
    }

    /// Joins the chunks of each column, one column at a time, so that no more than one column exists twice. What that
    /// takes is booked already ([`Self::bytes_to_build`]); in the end the rows and `other_bytes` are.
    ///
    /// # Errors
    /// When a kernel fails.
    pub(in crate::operator) fn finish(mut self, other_bytes: usize, cx: &mut Context) -> Result<BuildRows> {
        self.seen_buffers.clear();
        let mut columns = vec![None; self.schema.fields().len()];
        for (position, column) in self.kept.iter().enumerate() {
            let chunks = std::mem::take(&mut self.chunks[position]);
            columns[*column] = Some(BuildColumn::new(chunks, self.schema.field(*column).data_type())?);
        }
        let mut seen = HashSet::new();
        let bytes: usize = columns.iter().flatten().map(|c| c.held_bytes(&mut seen)).sum();
        cx.hold_anyway(bytes + other_bytes);
        let widths = columns.iter().map(|column| Some(column.as_ref()?.width(self.rows)));
        Ok(BuildRows {
            widths: widths.map(Option::unwrap_or_default).collect(),
            columns,
            rows: self.rows,
        })
    }
}

/// Bytes that `columns` keep alive.
pub(super) fn held_bytes(columns: &[ArrayRef]) -> usize {
    let mut seen = HashSet::new();
    columns
        .iter()
        .map(|column| new_bytes(&column.to_data(), &mut seen))
        .sum()
}

/// Bytes of the rows of `columns`, without what they keep alive besides.
pub(in crate::operator) fn row_bytes(columns: &[ArrayRef]) -> usize {
    let texts = |column: &ArrayRef| match column.data_type() {
        DataType::Utf8View => column.as_string_view().total_buffer_bytes_used(),
        DataType::BinaryView => column.as_binary_view().total_buffer_bytes_used(),
        _ => 0,
    };
    columns
        .iter()
        .map(|column| gathered_bytes(column) + texts(column))
        .sum()
}

/// Bytes that gathering all rows of `column` allocates: views share their texts.
pub(in crate::operator) fn gathered_bytes(column: &ArrayRef) -> usize {
    column
        .to_data()
        .get_slice_memory_size()
        .unwrap_or_else(|_| column.get_array_memory_size())
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
    widths: Vec<Width>,
    rows: usize,
}

impl BuildRows {
    /// How many.
    pub(in crate::operator) fn len(&self) -> usize {
        self.rows
    }

    /// The columns that were kept, rising.
    pub(in crate::operator) fn kept(&self) -> impl Iterator<Item = usize> {
        let columns = self.columns.iter().enumerate();
        columns.filter_map(|(index, column)| column.as_ref().map(|_| index))
    }

    /// Bytes that gathering a row of column `index` takes.
    pub(in crate::operator) fn width(&self, index: usize) -> Width {
        self.widths.get(index).copied().unwrap_or_default()
    }

    /// Bytes that gathering a row of all columns takes, on average.
    pub(in crate::operator) fn row_width(&self) -> usize {
        self.widths.iter().map(|width| width.average()).sum()
    }

    /// Column `index`, when it is one array.
    pub(in crate::operator) fn whole(&self, index: usize) -> Option<&ArrayRef> {
        match self.columns.get(index)? {
            Some(BuildColumn::Whole(array)) => Some(array),
            _ => None,
        }
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

    /// Bytes kept alive that are not among those `seen`: columns read from one block share its buffer.
    fn held_bytes(&self, seen: &mut HashSet<usize>) -> usize {
        match self {
            Self::Whole(array) => new_bytes(&array.to_data(), seen),
            Self::Chunks { arrays, .. } => arrays.iter().map(|a| new_bytes(&a.to_data(), seen)).sum(),
        }
    }

    fn width(&self, rows: usize) -> Width {
        match self {
            Self::Whole(array) => Width::of(array),
            Self::Chunks { arrays, .. } => {
                let bytes: usize = arrays.iter().map(gathered_bytes).sum();
                Width::all(bytes.div_ceil(rows.max(1)))
            }
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
