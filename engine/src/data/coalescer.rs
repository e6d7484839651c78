//! [`Coalescer`]: small batches to batches of the target size, in rows and in bytes.

use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, BooleanArray, RecordBatchOptions, UInt32Array};
use arrow::compute::{BatchCoalescer, filter_record_batch, take};
use arrow::datatypes::DataType;

use crate::data::views::{compact_views, has_sparse_views, is_view};
use crate::data::{Batch, Result, batch_bytes};

/// Buffers up to this size may be kept alive by however few bytes.
const KEPT_BYTES: usize = 16 << 10;

/// The kernel doubles the buffers of views up to this size from batch to batch.
const VIEW_BUFFER_BYTES: usize = 1 << 20;

/// Gathers rows until a batch is full: of so many rows, or of so many bytes.
#[derive(Debug)]
pub(crate) struct Coalescer {
    batch_rows: usize,
    batch_bytes: usize,
    gather: Option<Gather>,
    held_bytes: usize,
    /// What comes after the full batch that waits to be taken.
    rest: Option<Batch>,
}

#[derive(Debug)]
struct Gather {
    rows: BatchCoalescer,
    /// Rows of a full batch.
    full_rows: usize,
}

impl Gather {
    fn free_rows(&self) -> usize {
        self.full_rows - self.rows.get_buffered_rows()
    }
}

impl Coalescer {
    /// Batches of `batch_rows` rows or about `batch_bytes` bytes, whichever comes first.
    pub(crate) fn new(batch_rows: usize, batch_bytes: usize) -> Self {
        Self {
            batch_rows,
            batch_bytes,
            gather: None,
            held_bytes: 0,
            rest: None,
        }
    }

    /// Whether nothing is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.rest.is_none() && self.gather.as_ref().is_none_or(|gather| gather.rows.is_empty())
    }

    /// Bytes held, about.
    pub(crate) fn held_bytes(&self) -> usize {
        self.held_bytes
    }

    /// Whether `batch` is large enough to be handed on as it is while nothing is held.
    pub(crate) fn is_large(&self, batch: &Batch) -> bool {
        batch.num_rows() * 2 >= self.batch_rows || batch_bytes(batch) * 2 >= self.batch_bytes
    }

    /// Takes a batch.
    ///
    /// # Errors
    /// When a column cannot be copied.
    pub(crate) fn push(&mut self, batch: Batch) -> Result<()> {
        self.take_rest()?;
        let bytes = batch_bytes(&batch);
        let gather = self.gather(&batch, bytes);
        // For each full batch that sparse views are cut into, the kernel allocates what the strings of all of them
        // take: it is given what one batch has place for, and the rest in its turn.
        if batch.num_rows() > gather.free_rows() && has_sparse_views(&batch) {
            self.rest = Some(batch);
            return self.take_piece_of_rest();
        }
        gather.rows.push_batch(apart(batch)?)?;
        self.held(bytes)
    }

    /// Takes the rows of `batch` for which `mask` is true; it holds no NULL.
    ///
    /// # Errors
    /// When a column cannot be copied.
    pub(crate) fn push_filtered(&mut self, batch: Batch, mask: &BooleanArray) -> Result<()> {
        self.take_rest()?;
        let (whole, count) = (batch_bytes(&batch), mask.true_count());
        let bytes = (whole as u128 * count as u128 / batch.num_rows().max(1) as u128) as usize;
        let gather = self.gather(&batch, whole);
        let has_views = batch.columns().iter().any(|column| is_view(column.data_type()));
        if count > gather.free_rows() && has_views {
            return self.push(filter_record_batch(&batch, mask)?);
        }
        gather.rows.push_batch_with_filter(batch, mask)?;
        self.held(bytes)
    }

    /// Makes what is held a batch, full or not.
    ///
    /// # Errors
    /// When a column cannot be built.
    pub(crate) fn flush(&mut self) -> Result<()> {
        self.take_rest()?;
        self.end_batch()
    }

    /// The next full batch.
    ///
    /// # Errors
    /// When a column cannot be copied.
    pub(crate) fn next(&mut self) -> Result<Option<Batch>> {
        loop {
            let Some(gather) = &mut self.gather else {
                return Ok(None);
            };
            if let Some(batch) = gather.rows.next_completed_batch() {
                if !gather.rows.is_empty() {
                    self.held_bytes = self.held_bytes.saturating_sub(batch_bytes(&batch));
                    return Ok(Some(batch));
                }
                self.held_bytes = 0;
                if self.batch_bytes < VIEW_BUFFER_BYTES {
                    gather.rows = BatchCoalescer::new(batch.schema(), gather.full_rows);
                }
                return Ok(Some(batch));
            }
            if self.rest.is_none() {
                return Ok(None);
            }
            self.take_piece_of_rest()?;
        }
    }

    fn take_rest(&mut self) -> Result<()> {
        while self.rest.is_some() {
            self.take_piece_of_rest()?;
        }
        Ok(())
    }

    /// Takes as many rows of the rest as make a full batch.
    fn take_piece_of_rest(&mut self) -> Result<()> {
        let (Some(rest), Some(gather)) = (self.rest.take(), &mut self.gather) else {
            return Ok(());
        };
        let count = gather.free_rows().min(rest.num_rows());
        let piece = compact_views(rest.slice(0, count))?;
        if count < rest.num_rows() {
            self.rest = Some(rest.slice(count, rest.num_rows() - count));
        }
        let bytes = batch_bytes(&piece);
        gather.rows.push_batch(apart(piece)?)?;
        self.held(bytes)
    }

    // Made with the first batch: it reserves memory for as many rows as a batch of that width should have.
    fn gather(&mut self, first: &Batch, bytes: usize) -> &mut Gather {
        let row_bytes = bytes.div_ceil(first.num_rows().max(1)).max(1);
        let full_rows = (self.batch_bytes / row_bytes).clamp(1, self.batch_rows);
        self.gather.get_or_insert_with(|| Gather {
            rows: BatchCoalescer::new(first.schema(), full_rows),
            full_rows,
        })
    }

    fn held(&mut self, more: usize) -> Result<()> {
        self.held_bytes += more;
        if self.held_bytes >= self.batch_bytes {
            self.end_batch()?;
        }
        Ok(())
    }

    fn end_batch(&mut self) -> Result<()> {
        if let Some(gather) = &mut self.gather {
            gather.rows.finish_buffered_batch()?;
        }
        Ok(())
    }
}

/// The batch with those columns copied out that wait as they are and keep much more alive than themselves: a narrow
/// column of a block read from disk would keep its wide columns, however long it waits.
fn apart(batch: Batch) -> Result<Batch> {
    if !batch.columns().iter().any(keeps_much_alive) {
        return Ok(batch);
    }
    let all = UInt32Array::from_iter_values(0..batch.num_rows() as u32);
    let columns = batch.columns().iter().map(|column| -> Result<ArrayRef> {
        Ok(if keeps_much_alive(column) {
            take(column, &all, None)?
        } else {
            Arc::clone(column)
        })
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(Batch::try_new_with_options(batch.schema(), columns, &options)?)
}

fn keeps_much_alive(column: &ArrayRef) -> bool {
    fn largest_buffer_bytes(data: &ArrayData) -> usize {
        let nulls = data.nulls().map(|nulls| nulls.buffer());
        let own = data.buffers().iter().chain(nulls).map(|buffer| buffer.capacity());
        let children = data.child_data().iter().map(largest_buffer_bytes);
        own.chain(children).max().unwrap_or(0)
    }
    let data_type: &DataType = column.data_type();
    // Numbers are copied when they come, and so are views where they are sparse.
    if data_type.is_primitive() || is_view(data_type) {
        return false;
    }
    let data = column.to_data();
    let largest = largest_buffer_bytes(&data);
    largest > KEPT_BYTES && data.get_slice_memory_size().is_ok_and(|bytes| largest > 2 * bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray, Int64Array, StringArray, StringViewArray};

    use super::*;

    fn wide(rows: usize, width: usize) -> Batch {
        let column: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|_| "x".repeat(width))));
        Batch::try_from_iter([("a", column)]).unwrap()
    }

    fn all(coalescer: &mut Coalescer) -> Vec<usize> {
        std::iter::from_fn(|| coalescer.next().unwrap())
            .map(|batch| batch.num_rows())
            .collect()
    }

    #[test]
    fn a_batch_is_full_by_rows_or_by_bytes() {
        let mut narrow = Coalescer::new(100, 1 << 20);
        (0..5).for_each(|_| narrow.push(wide(30, 1)).unwrap());
        assert_eq!(all(&mut narrow), [100]);
        narrow.flush().unwrap();
        assert_eq!(all(&mut narrow), [50]);
        assert!(narrow.is_empty() && narrow.held_bytes() == 0);
        let mut bounded = Coalescer::new(100, 10_000);
        (0..7).for_each(|_| bounded.push(wide(1, 4000)).unwrap());
        bounded.flush().unwrap();
        let rows = all(&mut bounded);
        assert_eq!(rows.iter().sum::<usize>(), 7);
        assert!(rows.iter().all(|rows| *rows <= 3), "{rows:?}");
    }

    #[test]
    fn what_a_filter_leaves_is_counted() {
        let mut coalescer = Coalescer::new(1000, 10_000);
        let mask = BooleanArray::from_iter((0..100).map(|row| Some(row % 10 == 0)));
        for _ in 0..3 {
            coalescer.push_filtered(wide(100, 90), &mask).unwrap();
        }
        assert_eq!(coalescer.next().unwrap(), None);
        coalescer.flush().unwrap();
        assert_eq!(all(&mut coalescer), [30]);
    }

    fn views(rows: usize) -> Batch {
        let texts = (0..rows).map(|row| format!("{row:0100}"));
        let column: ArrayRef = Arc::new(StringViewArray::from_iter_values(texts));
        Batch::try_from_iter([("a", column)]).unwrap()
    }

    fn buffer_bytes(batch: &Batch) -> usize {
        let buffers = batch.column(0).as_string_view().data_buffers().iter();
        buffers.map(|buffer| buffer.capacity()).sum()
    }

    /// Every third row of many is far more than a batch: each batch must hold its own strings and no more.
    #[test]
    fn sparse_views_are_cut_into_batches_of_their_own_bytes() {
        let batch = views(6000);
        let third = BooleanArray::from_iter((0..6000).map(|row| Some(row % 3 == 0)));
        let expected = filter_record_batch(&batch, &third).unwrap();
        let whole_bytes = buffer_bytes(&batch);
        type Push = fn(&mut Coalescer, &Batch, &BooleanArray);
        let ways: [Push; 2] = [
            |coalescer, batch, mask| coalescer.push_filtered(batch.clone(), mask).unwrap(),
            |coalescer, batch, mask| coalescer.push(filter_record_batch(batch, mask).unwrap()).unwrap(),
        ];
        for push in ways {
            let mut coalescer = Coalescer::new(8192, 10_000);
            push(&mut coalescer, &batch, &third);
            // More comes before anything is taken.
            push(&mut coalescer, &batch, &third);
            coalescer.flush().unwrap();
            let batches: Vec<Batch> = std::iter::from_fn(|| coalescer.next().unwrap()).collect();
            assert!(batches.len() > 40, "{}", batches.len());
            let bytes: usize = batches.iter().map(buffer_bytes).sum();
            assert!(bytes < whole_bytes * 2, "{bytes} of {whole_bytes}");
            let found = arrow::compute::concat_batches(&expected.schema(), &batches).unwrap();
            let expected = arrow::compute::concat_batches(&expected.schema(), [&expected, &expected]).unwrap();
            assert_eq!(found, expected);
            assert!(coalescer.is_empty() && coalescer.held_bytes() == 0);
        }
    }

    /// Nothing but the batch at hand is copied before it is asked for.
    #[test]
    fn what_is_held_of_sparse_views_is_a_batch() {
        let batch = views(6000);
        let mut coalescer = Coalescer::new(8192, 10_000);
        coalescer.push(batch.slice(0, 2000)).unwrap();
        assert!(coalescer.held_bytes() <= 20_000, "{}", coalescer.held_bytes());
        assert!(!coalescer.is_empty());
        coalescer.flush().unwrap();
        assert_eq!(all(&mut coalescer).iter().sum::<usize>(), 2000);
    }

    /// Batch after batch is gathered from few rows of many.
    #[test]
    fn buffers_of_views_do_not_outgrow_the_batches() {
        let batch = views(6000);
        let mut coalescer = Coalescer::new(8192, 10_000);
        for start in (0..6000).step_by(20) {
            coalescer.push(batch.slice(start, 10)).unwrap();
            while let Some(full) = coalescer.next().unwrap() {
                let bytes = buffer_bytes(&full);
                assert!(bytes < 50_000, "{bytes} for {} rows", full.num_rows());
            }
        }
    }

    #[test]
    fn a_narrow_column_does_not_keep_the_block_that_it_was_read_from() {
        let block: ArrayRef = Arc::new(StringArray::from_iter_values(
            (0..2000).map(|row| format!("{row:0100}")),
        ));
        let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..2000));
        let batch = Batch::try_from_iter([("a", block), ("b", numbers)]).unwrap();
        let few = apart(batch.slice(700, 20)).unwrap();
        assert_eq!(few, batch.slice(700, 20));
        assert!(few.column(0).get_buffer_memory_size() < 10_000);
        let most = batch.slice(0, 1500);
        let kept = apart(most.clone()).unwrap();
        assert!(kept.column(0).to_data().ptr_eq(&most.column(0).to_data()));
    }
}
