//! Sort: the whole input in order at its end, or its first rows only.

mod entries;
#[cfg(test)]
mod external_tests;
mod full;
mod gather;
mod keys;
mod merge_runs;
mod prefix;
mod ranges;
mod run;
#[cfg(test)]
mod tests;
mod top_n;

use std::sync::Arc;

use crate::data::{Batch, Result};
use crate::operator::sort::full::FullSort;
use crate::operator::sort::ranges::Membership;
use crate::operator::sort::top_n::{Added, TopN};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::SortSpec;

pub(in crate::operator) use crate::data::compact_views as without_unused_strings;
pub(in crate::operator) use keys::{BatchKeys, KeyEncoder};
pub use ranges::SharedRuns;

/// Sorts its input; with `fetch`, keeps the first rows only. Equal rows keep no particular order, but the same input
/// gives the same output.
pub(super) enum Sort {
    /// Everything.
    Full(FullSort),
    /// The first rows.
    Top(TopN, SortSpec),
}

impl Sort {
    /// A sort as `spec` says.
    pub(super) fn new(spec: SortSpec) -> Self {
        match spec.fetch {
            Some(fetch) => Sort::Top(TopN::new(spec.keys.clone(), fetch), spec),
            None => Sort::Full(FullSort::new(spec.keys, None)),
        }
    }

    /// Subtask `subtask` of the sorts that share `runs`: each emits one range of the keys of all, in the order of the
    /// subtasks.
    pub(super) fn of_range(spec: SortSpec, runs: Arc<SharedRuns>, subtask: usize, subtasks: usize) -> Self {
        Sort::Full(FullSort::sharing(spec.keys, Membership::new(runs, subtask, subtasks)))
    }
}

impl Operator for Sort {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        match self {
            Sort::Full(sort) => sort.add(batch, cx),
            Sort::Top(top, spec) => {
                let Added::Overflow(batch) = top.add(batch, cx)? else {
                    return Ok(());
                };
                // The first rows do not fit: from here on a full sort, of which the first rows are handed on.
                let held = std::mem::replace(top, TopN::new(Vec::new(), 0)).into_batches();
                let mut sort = FullSort::new(spec.keys.clone(), spec.fetch);
                for batch in held.into_iter().chain([batch]) {
                    sort.add(batch, cx)?;
                }
                *self = Sort::Full(sort);
                Ok(())
            }
        }
    }

    fn on_end(&mut self, _port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        match self {
            Sort::Full(sort) => sort.finish(cx, out)?,
            Sort::Top(top, _) => top.finish(cx, out)?,
        }
        cx.hold(0)
    }

    fn is_done(&self) -> bool {
        matches!(self, Sort::Top(top, _) if top.wants_nothing())
    }
}
