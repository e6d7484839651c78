//! What the connectors that make rows up share: numbering over splits, the arithmetic, pacing, the scan.
//!
//! A row comes of an *event*, and everything in it depends on the event's number and the seed only. So any split can
//! make any event, and which split makes which is a matter of speed and of time, never of content.

#[cfg(any(feature = "nexmark", feature = "ysb"))]
mod java;
mod pace;
mod scan;
mod source;
#[cfg(any(feature = "nexmark", feature = "ysb"))]
mod spare;
#[cfg(any(feature = "nexmark", feature = "ysb"))]
mod table;
#[cfg(test)]
pub(crate) mod tests;
#[cfg(any(feature = "nexmark", feature = "ysb"))]
mod ticks;

use std::fmt::Debug;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;
#[cfg(any(feature = "ysb", all(test, feature = "nexmark")))]
pub(crate) use java::JavaRandom;
#[cfg(any(feature = "nexmark", feature = "ysb"))]
pub(crate) use java::Pool;
pub(crate) use pace::Pace;
pub(crate) use scan::GeneratedExec;
pub(crate) use source::GeneratedSource;
#[cfg(any(feature = "nexmark", feature = "ysb"))]
pub(crate) use spare::Spare;
#[cfg(any(feature = "nexmark", feature = "ysb"))]
pub(crate) use table::{GeneratedTable, check_columns};
#[cfg(any(feature = "nexmark", feature = "ysb"))]
pub(crate) use ticks::Ticks;

/// Makes rows. The rows of a split are numbered from 0, in the order of the events they come of.
pub(crate) trait Rows: Debug + Send + Sync {
    /// What a batch looks like.
    fn schema(&self) -> SchemaRef;

    /// How many rows of a split come of events below `event`.
    fn below(&self, split: usize, event: u64) -> u64;

    /// The event that a row of a split comes of.
    fn event(&self, split: usize, row: u64) -> u64;

    /// Rows `first .. first + count` of a split.
    ///
    /// # Errors
    /// When a value does not fit the type of its column.
    fn batch(&self, split: usize, first: u64, count: usize) -> Result<RecordBatch, ArrowError>;

    /// Which split makes which rows, apart from their number: what must stay so that a split can go on.
    fn layout(&self) -> String;

    /// The same rows in so many splits; `None` when there cannot be so many.
    fn with_splits(&self, splits: usize) -> Option<Arc<dyn Rows>>;
}

/// Deals events to splits in blocks of consecutive events, round-robin: the event times of all splits advance
/// together, and inside a block a column is a plain loop.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Interleave {
    splits: u64,
    block: u64,
}

impl Interleave {
    pub(crate) fn new(splits: usize, block: u64) -> Self {
        Self {
            splits: splits.max(1) as u64,
            block: block.max(1),
        }
    }

    pub(crate) fn with_splits(self, splits: usize) -> Self {
        Self::new(splits, self.block)
    }

    pub(crate) fn layout(self) -> String {
        format!("blocks of {}", self.block)
    }

    #[cfg(any(feature = "nexmark", feature = "datagen"))]
    pub(crate) fn splits(self) -> usize {
        self.splits as usize
    }

    /// The number among all events of a split's `local`-th.
    pub(crate) fn event(self, split: usize, local: u64) -> u64 {
        (local / self.block * self.splits + split as u64) * self.block + local % self.block
    }

    /// How many events there are from a split's `local`-th to the end of its block.
    #[cfg(any(feature = "ysb", feature = "datagen"))]
    pub(crate) fn left_in_block(self, local: u64) -> u64 {
        self.block - local % self.block
    }

    /// How many events of a split are below `event`.
    pub(crate) fn below(self, split: usize, event: u64) -> u64 {
        let round = self.block.saturating_mul(self.splits);
        let begun = (event % round).saturating_sub(split as u64 * self.block);
        event / round * self.block + begun.min(self.block)
    }
}

/// A 64-bit finalizer (the constants of SplitMix64).
#[inline]
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

/// What spreads the numbers of events before they are mixed: 2^64 over the golden ratio.
pub(crate) const SPREAD: u64 = 0x9E37_79B9_7F4A_7C15;
