//! What the joins of streams share: the rows of one side, found by their key.
//!
//! A [`RowStore`] keeps batches as they came and numbers their rows in the order of arrival. A hash index of row numbers
//! ([`index`]) is extended only when somebody looks rows up, and few rows are looked up in many by comparing hashes
//! instead. An [`Expansion`] turns the rows of a batch into pairs with stored rows, a piece at a time; [`JoinOutput`]
//! judges pairs by the residual condition and gathers them into output. [`Waiting`] holds rows back until the watermark has
//! reached them.
//!
//! A snapshot of a store ([`frozen`]) consists of its live rows with, per row, its time, its match count and its arrival
//! where the join keeps those. Hashes and indexes are made anew.

mod equality;
mod event_time;
mod expansion;
mod frozen;
mod index;
mod keys;
mod matching;
#[cfg(test)]
pub(in crate::operator) mod naive;
mod output;
mod pieces;
mod removal;
mod store;
mod waiting;

pub(in crate::operator) use event_time::{event_times, times_of};
pub(in crate::operator) use expansion::{Expansion, Probe};
pub(in crate::operator) use keys::{JoinKeys, Keyed};
pub(in crate::operator) use matching::{Seekers, in_order, match_rows};
pub(in crate::operator) use output::{JoinOutput, Kinds, SideRows};
pub(in crate::operator) use pieces::NO_ROW;
pub(in crate::operator) use removal::fold;
pub(in crate::operator) use store::{Appended, Removal, RowStore, StoreOptions};
pub(in crate::operator) use waiting::{Drained, Waiting};

use arrow::array::{ArrayRef, RecordBatchOptions, UInt32Array};
use arrow::compute::take;

use crate::data::{Batch, Result};

/// Rows of `batch` by number; unlike the kernel it knows batches without columns.
///
/// # Errors
/// When the kernel fails.
pub(in crate::operator) fn take_rows(batch: &Batch, rows: &UInt32Array) -> Result<Batch> {
    let columns = batch.columns().iter().map(|column| Ok(take(column, rows, None)?));
    let columns = columns.collect::<Result<Vec<ArrayRef>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(rows.len()));
    Ok(Batch::try_new_with_options(batch.schema(), columns, &options)?)
}
