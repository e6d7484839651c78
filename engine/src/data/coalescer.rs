//! [`Coalescer`]: small batches to batches of the target size, in rows and in bytes.

use arrow::array::BooleanArray;
use arrow::compute::BatchCoalescer;

use crate::data::{Batch, Result, batch_bytes};

/// Gathers rows until a batch is full: of so many rows, or of so many bytes.
#[derive(Debug)]
pub(crate) struct Coalescer {
    batch_rows: usize,
    batch_bytes: usize,
    gather: Option<BatchCoalescer>,
    held_bytes: usize,
}

impl Coalescer {
    /// Batches of `batch_rows` rows or about `batch_bytes` bytes, whichever comes first.
    pub(crate) fn new(batch_rows: usize, batch_bytes: usize) -> Self {
        Self {
            batch_rows,
            batch_bytes,
            gather: None,
            held_bytes: 0,
        }
    }

    /// Whether nothing is held.
    pub(crate) fn is_empty(&self) -> bool {
        self.gather.as_ref().is_none_or(BatchCoalescer::is_empty)
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
        let bytes = batch_bytes(&batch);
        self.gather(&batch, bytes).push_batch(batch)?;
        self.held(bytes)
    }

    /// Takes the rows of `batch` for which `mask` is true; it holds no NULL.
    ///
    /// # Errors
    /// When a column cannot be copied.
    pub(crate) fn push_filtered(&mut self, batch: Batch, mask: &BooleanArray) -> Result<()> {
        let whole = batch_bytes(&batch);
        let bytes = (whole as u128 * mask.true_count() as u128 / batch.num_rows().max(1) as u128) as usize;
        self.gather(&batch, whole).push_batch_with_filter(batch, mask)?;
        self.held(bytes)
    }

    /// Makes what is held a batch, full or not.
    ///
    /// # Errors
    /// When a column cannot be built.
    pub(crate) fn flush(&mut self) -> Result<()> {
        if let Some(gather) = &mut self.gather {
            gather.finish_buffered_batch()?;
        }
        Ok(())
    }

    /// The next full batch.
    pub(crate) fn next(&mut self) -> Option<Batch> {
        let gather = self.gather.as_mut()?;
        let batch = gather.next_completed_batch()?;
        self.held_bytes = if gather.is_empty() {
            0
        } else {
            self.held_bytes.saturating_sub(batch_bytes(&batch))
        };
        Some(batch)
    }

    // Made with the first batch: it reserves memory for as many rows as a batch of that width should have.
    fn gather(&mut self, first: &Batch, bytes: usize) -> &mut BatchCoalescer {
        let row_bytes = bytes.div_ceil(first.num_rows().max(1)).max(1);
        let rows = (self.batch_bytes / row_bytes).clamp(1, self.batch_rows);
        self.gather
            .get_or_insert_with(|| BatchCoalescer::new(first.schema(), rows))
    }

    fn held(&mut self, more: usize) -> Result<()> {
        self.held_bytes += more;
        if self.held_bytes >= self.batch_bytes {
            self.flush()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, StringArray};

    use super::*;

    fn wide(rows: usize, width: usize) -> Batch {
        let column: ArrayRef = Arc::new(StringArray::from_iter_values((0..rows).map(|_| "x".repeat(width))));
        Batch::try_from_iter([("a", column)]).unwrap()
    }

    fn all(coalescer: &mut Coalescer) -> Vec<usize> {
        std::iter::from_fn(|| coalescer.next())
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
        assert_eq!(coalescer.next(), None);
        coalescer.flush().unwrap();
        assert_eq!(all(&mut coalescer), [30]);
    }
}
