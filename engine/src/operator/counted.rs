//! Splits whose position is the number of rows that they have given.

use arrow::record_batch::RecordBatch;
use datafusion::execution::SendableRecordBatchStream;
use futures::StreamExt;
use futures::stream;

use crate::data::{EngineError, Result};
use crate::operator::{Positioned, SplitStream};

/// The rows that a position says have been given; none without a position.
///
/// # Errors
/// When the position is no such number; the error names `split`.
pub fn rows_given(position: Option<&[u8]>, split: &str) -> Result<u64> {
    let Some(position) = position else { return Ok(0) };
    let bytes = <[u8; 8]>::try_from(position).map_err(|_| {
        EngineError::Plan(format!(
            "the position of split '{split}' is of another kind of source; start without the state of this source, or \
             read the source that it was taken of"
        ))
    })?;
    Ok(u64::from_le_bytes(bytes))
}

/// The rows of `rows`, which begins at the beginning of `split`, after the first `given`. The position of each batch is the
/// number of rows up to its end, little endian.
///
/// The stream fails when it ends before so many rows: the input is not what it was.
pub fn counted_rows(rows: SendableRecordBatchStream, given: u64, split: impl Into<String>) -> SplitStream {
    let counted = Counted {
        rows,
        given,
        read: 0,
        split: split.into(),
    };
    let batches = stream::try_unfold(counted, |mut counted| async move {
        Ok(counted.next().await?.map(|batch| (batch, counted)))
    });
    batches.boxed()
}

/// The rows of `rows`, which begins after the first `given` of its split, with positions as those of [`counted_rows`].
pub fn numbered_rows(rows: SendableRecordBatchStream, given: u64) -> SplitStream {
    let mut given = given;
    let numbered = rows.map(move |batch| {
        let batch: RecordBatch = batch?;
        given += batch.num_rows() as u64;
        Ok(Positioned {
            batch,
            position: given.to_le_bytes().to_vec(),
        })
    });
    numbered.boxed()
}

struct Counted {
    rows: SendableRecordBatchStream,
    /// So many were given before.
    given: u64,
    /// So many have been read now.
    read: u64,
    split: String,
}

impl Counted {
    async fn next(&mut self) -> Result<Option<Positioned>> {
        loop {
            let Some(batch) = self.rows.next().await else {
                return self.end();
            };
            let batch: RecordBatch = batch?;
            let rows = batch.num_rows() as u64;
            let dropped = self.given.saturating_sub(self.read).min(rows);
            self.read += rows;
            if dropped == rows {
                continue;
            }
            let batch = match dropped {
                0 => batch,
                // Less than the rows of a batch.
                dropped => batch.slice(dropped as usize, (rows - dropped) as usize),
            };
            return Ok(Some(Positioned {
                batch,
                position: self.read.to_le_bytes().to_vec(),
            }));
        }
    }

    fn end(&self) -> Result<Option<Positioned>> {
        if self.read < self.given {
            return Err(EngineError::BadInput(format!(
                "{} ends after {} rows, but {} had been read of it before: the input has changed or shrunk; restore it, or \
                 start without the state of this source",
                self.split, self.read, self.given
            )));
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, AsArray, Int64Array};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
    use futures::TryStreamExt;

    use super::*;

    /// Ten rows in batches of these sizes.
    fn ten(sizes: &[i64]) -> SendableRecordBatchStream {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, false)]));
        let mut next = 0;
        let mut batches = Vec::new();
        for size in sizes {
            let column: ArrayRef = Arc::new(Int64Array::from_iter_values(next..next + size));
            batches.push(Ok(RecordBatch::try_new(Arc::clone(&schema), vec![column]).unwrap()));
            next += size;
        }
        Box::pin(RecordBatchStreamAdapter::new(schema, stream::iter(batches)))
    }

    #[tokio::test]
    async fn the_rest_of_the_rows_is_given_wherever_the_cut_was() {
        for sizes in [&[10][..], &[3, 0, 4, 3], &[1, 1, 1, 1, 1, 1, 1, 1, 1, 1], &[0, 10, 0]] {
            for given in 0..=10_u64 {
                let rest = counted_rows(ten(sizes), given, "s").try_collect::<Vec<_>>();
                let rest = rest.await.unwrap();
                let mut rows = Vec::new();
                for positioned in rest {
                    assert!(positioned.batch.num_rows() > 0);
                    rows.extend_from_slice(positioned.batch.column(0).as_primitive::<Int64Type>().values());
                    let position = rows_given(Some(&positioned.position), "s").unwrap();
                    assert_eq!(position, *rows.last().unwrap() as u64 + 1);
                }
                assert_eq!(rows, (given as i64..10).collect::<Vec<_>>());
            }
        }
    }

    #[tokio::test]
    async fn an_input_that_has_shrunk_is_named() {
        let rest = counted_rows(ten(&[10]), 11, "file f").try_collect::<Vec<_>>();
        let error = rest.await.unwrap_err().to_string();
        assert!(
            error.contains("file f ends after 10 rows, but 11 had been read"),
            "{error}"
        );
        let error = rows_given(Some(&[1, 2]), "file f").unwrap_err().to_string();
        assert!(error.contains("split 'file f' is of another kind"), "{error}");
    }
}
