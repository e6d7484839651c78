//! Merging rows that come by rising hash from several places: of each key the newest row.

use std::cmp::Ordering;

use arrow::array::{DynComparator, UInt32Array, make_comparator};
use arrow::compute::{SortOptions, concat_batches, take_record_batch};

use super::run::hashes_of;
use crate::data::{Batch, Result};

/// Rows by rising hash; a batch never ends between equal hashes.
pub(super) type Sorted = Box<dyn Iterator<Item = Result<Batch>> + Send>;

struct Source {
    rows: Sorted,
    batch: Option<Batch>,
    /// How many rows of `batch` are done with.
    offset: usize,
}

/// The newest row of each key, by rising hash. In runs' schema: the hash first, the keys in columns `keys`.
pub(super) struct Merge {
    /// The newest first.
    sources: Vec<Source>,
    keys: std::ops::Range<usize>,
    is_open: bool,
}

impl Merge {
    /// Merges `sources`, the newest first.
    pub(super) fn new(sources: Vec<Sorted>, keys: std::ops::Range<usize>) -> Self {
        let source = |rows| Source {
            rows,
            batch: None,
            offset: 0,
        };
        Self {
            sources: sources.into_iter().map(source).collect(),
            keys,
            is_open: true,
        }
    }

    fn read(&mut self) -> Result<Option<Batch>> {
        for source in &mut self.sources {
            while source
                .batch
                .as_ref()
                .is_none_or(|batch| source.offset == batch.num_rows())
            {
                source.offset = 0;
                source.batch = source.rows.next().transpose()?;
                if source.batch.is_none() {
                    break;
                }
            }
        }
        self.sources.retain(|source| source.batch.is_some());
        // Up to here every source can say what it has.
        let last = |source: &Source| source.batch.as_ref().and_then(|batch| hashes_of(batch).last().copied());
        let Some(bound) = self.sources.iter().filter_map(last).min() else {
            return Ok(None);
        };
        let mut parts = Vec::with_capacity(self.sources.len());
        for source in &mut self.sources {
            let Some(batch) = &source.batch else { continue };
            let rest = &hashes_of(batch)[source.offset..];
            let rows = rest.partition_point(|hash| *hash <= bound);
            if rows > 0 {
                parts.push(batch.slice(source.offset, rows));
                source.offset += rows;
            }
        }
        if let [part] = parts.as_slice() {
            return Ok(Some(part.clone()));
        }
        let rows = concat_batches(&parts[0].schema(), &parts)?;
        let newest = self.newest(&rows)?;
        Ok(Some(take_record_batch(&rows, &newest)?))
    }

    /// The rows to keep, by hash, of rows of several sources, the newest source first.
    fn newest(&self, rows: &Batch) -> Result<UInt32Array> {
        let hashes = hashes_of(rows);
        let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
        // Stable: of equal hashes the newer row comes first.
        order.sort_by_key(|row| hashes[*row as usize]);
        let mut same: Option<Vec<DynComparator>> = None;
        let mut kept: Vec<u32> = Vec::with_capacity(order.len());
        for row in order {
            let hash = hashes[row as usize];
            let mut is_old = false;
            for other in kept.iter().rev().take_while(|other| hashes[**other as usize] == hash) {
                if same.is_none() {
                    same = Some(comparators(rows, rows, self.keys.clone())?);
                }
                is_old |= are_equal(same.as_deref().unwrap_or_default(), *other as usize, row as usize);
            }
            if !is_old {
                kept.push(row);
            }
        }
        Ok(kept.into())
    }
}

impl Iterator for Merge {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        if !self.is_open {
            return None;
        }
        let next = self.read().transpose();
        self.is_open = matches!(next, Some(Ok(_)));
        next
    }
}

/// What compares the key columns of `left` with those of `right`.
fn comparators(left: &Batch, right: &Batch, keys: std::ops::Range<usize>) -> Result<Vec<DynComparator>> {
    keys.map(|key| comparator(left.column(key), right.column(key)))
        .collect()
}

/// What compares two columns; NULL equals NULL.
pub(super) fn comparator(left: &dyn arrow::array::Array, right: &dyn arrow::array::Array) -> Result<DynComparator> {
    Ok(make_comparator(left, right, SortOptions::default())?)
}

/// Whether row `left` has the key of row `right`.
pub(super) fn are_equal(comparators: &[DynComparator], left: usize, right: usize) -> bool {
    comparators
        .iter()
        .all(|compare| compare(left, right) == Ordering::Equal)
}
