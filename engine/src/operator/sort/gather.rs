//! Gathers rows by place from batches that are held: the one time a sort copies its payload.

use arrow::compute::interleave_record_batch;

use crate::data::{Batch, Result};

/// Batches to take rows from.
pub(super) struct Gather {
    batches: Vec<Batch>,
}

impl Gather {
    pub(super) fn new(batches: Vec<Batch>) -> Result<Self> {
        Ok(Self { batches })
    }

    /// The rows at `places` (batch, row), in that order.
    pub(super) fn take(&self, places: &[(usize, usize)]) -> Result<Batch> {
        let batches: Vec<&Batch> = self.batches.iter().collect();
        Ok(interleave_record_batch(&batches, places)?)
    }
}
