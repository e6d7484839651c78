//! Where partitions begin and end in batches that are sorted by the partition keys.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::{concat, partition, take};
use datafusion::physical_expr::PhysicalExpr;

use crate::data::{Batch, Result};
use crate::operator::array_bytes::compact;

/// Cuts batch after batch.
pub(in crate::operator) struct Cutter {
    partition_by: Vec<Arc<dyn PhysicalExpr>>,
    /// The keys of the last row so far, one row each.
    last_keys: Option<Vec<ArrayRef>>,
}

/// The partitions in one batch.
pub(in crate::operator) struct Cut {
    /// Their rows.
    pub(in crate::operator) partitions: Vec<Range<usize>>,
    /// The first is the one that the batch before ended with.
    pub(in crate::operator) goes_on: bool,
}

impl Cutter {
    /// Partitions by these keys; without any, all is one partition.
    pub(in crate::operator) fn new(partition_by: Vec<Arc<dyn PhysicalExpr>>) -> Self {
        Self {
            partition_by,
            last_keys: None,
        }
    }

    /// The keys.
    pub(in crate::operator) fn partition_by(&self) -> &[Arc<dyn PhysicalExpr>] {
        &self.partition_by
    }

    /// The partitions of the next batch, which has rows.
    ///
    /// # Errors
    /// When a key fails.
    pub(in crate::operator) fn cut(&mut self, batch: &Batch) -> Result<Cut> {
        let rows = batch.num_rows();
        let keys = self.partition_by.iter();
        let keys = keys.map(|key| Ok(key.evaluate(batch)?.into_array(rows)?));
        let keys = keys.collect::<Result<Vec<ArrayRef>>>()?;
        let last = UInt32Array::from_iter_values((rows as u32).checked_sub(1));
        let last = keys.iter().map(|key| compact(take(key, &last, None)?));
        let before = self.last_keys.replace(last.collect::<Result<_>>()?);
        if keys.is_empty() {
            return Ok(Cut {
                partitions: std::iter::once(0..rows).collect(),
                goes_on: before.is_some(),
            });
        }
        let goes_on = match before {
            Some(before) => {
                let pairs = before.iter().zip(&keys);
                let pairs = pairs.map(|(before, key)| Ok(concat(&[before.as_ref(), key.slice(0, 1).as_ref()])?));
                partition(&pairs.collect::<Result<Vec<_>>>()?)?.len() == 1
            }
            None => false,
        };
        Ok(Cut {
            partitions: partition(&keys)?.ranges(),
            goes_on,
        })
    }
}
