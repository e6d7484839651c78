//! Sort: the whole input in order at its end, or its first rows only.

mod full;
mod gather;
mod keys;
mod prefix;
#[cfg(test)]
mod tests;
mod top_n;

use thalweg_memory::MemoryError;

use crate::data::{Batch, Result, batch_bytes};
use crate::operator::sort::full::FullSort;
use crate::operator::sort::top_n::{Added, TopN};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::SortSpec;

pub(in crate::operator) use gather::without_unused_strings;
pub(in crate::operator) use keys::{BatchKeys, KeyEncoder};

/// Sorts its input; with `fetch`, keeps the first rows only. Equal rows keep no particular order, but the same input
/// gives the same output.
pub(super) enum Sort {
    /// Everything.
    Full(FullSort),
    /// The first rows.
    Top(TopN),
}

impl Sort {
    /// A sort as `spec` says.
    pub(super) fn new(spec: SortSpec) -> Self {
        match spec.fetch {
            Some(fetch) => Sort::Top(TopN::new(spec.keys, fetch)),
            None => Sort::Full(FullSort::new(spec.keys)),
        }
    }
}

impl Operator for Sort {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        match self {
            Sort::Full(sort) => sort.add(batch, cx),
            Sort::Top(top) => match top.add(batch, cx)? {
                Added::Kept => Ok(()),
                Added::Overflow(batch) => {
                    let manager = cx.memory.manager();
                    let held = std::mem::replace(top, TopN::new(Vec::new(), 0)).into_batches();
                    Err(MemoryError::Exhausted {
                        consumer: cx.memory.consumer().to_string(),
                        requested_bytes: held.iter().chain([&batch]).map(batch_bytes).sum(),
                        available_bytes: manager.limit_bytes().saturating_sub(manager.reserved_bytes()),
                        budget_bytes: manager.limit_bytes(),
                    }
                    .into())
                }
            },
        }
    }

    fn on_end(&mut self, _port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        match self {
            Sort::Full(sort) => sort.finish(cx, out)?,
            Sort::Top(top) => top.finish(cx, out)?,
        }
        cx.hold(0)
    }

    fn is_done(&self) -> bool {
        matches!(self, Sort::Top(top) if top.wants_nothing())
    }
}
