//! Early and late results: which windows to tell of again and when, and what has changed since they were told of last.
//!
//! Its state is in [`state`].

mod state;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::compute::interleave;
use arrow::row::{RowConverter, SortField};
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;
use hashbrown::HashMap;

use super::changes::Changes;
use super::part::renumber;
use crate::data::{EngineError, Result, RowKind};
use crate::plan::EmitSpec;

/// What has last been told of a window.
struct Told {
    slots: Vec<u32>,
    results: Vec<ArrayRef>,
}

impl Told {
    fn size(&self) -> usize {
        let results = self.results.iter().map(|column| column.get_array_memory_size());
        self.slots.capacity() * size_of::<u32>() + results.sum::<usize>()
    }
}

/// What to tell of a window now.
pub(super) struct Change {
    pub(super) slots: Vec<u32>,
    pub(super) results: Vec<ArrayRef>,
    pub(super) kinds: Vec<RowKind>,
}

/// Windows to tell of again.
#[derive(Default)]
struct Waiting {
    windows: BTreeSet<i64>,
    due: Option<i64>,
}

impl Waiting {
    fn add(&mut self, window_end: i64, now: i64, after_ms: u64) {
        self.windows.insert(window_end);
        let after_ms = i64::try_from(after_ms).unwrap_or(i64::MAX);
        self.due.get_or_insert(now.saturating_add(after_ms));
    }

    fn take_due(&mut self, now: i64) -> BTreeSet<i64> {
        if self.due.is_none_or(|due| due > now) {
            return BTreeSet::new();
        }
        self.due = None;
        std::mem::take(&mut self.windows)
    }
}

/// Keeps what has been told of windows.
pub(super) struct Updates {
    spec: EmitSpec,
    told: BTreeMap<i64, Told>,
    told_bytes: usize,
    touched: BTreeSet<i64>,
    early: Waiting,
    late: Waiting,
    /// Compares results; none when there are no functions.
    converter: Option<RowConverter>,
    /// Changes of what has been told.
    changes: Changes,
}

impl Updates {
    /// # Errors
    /// When results of the functions cannot be compared.
    pub(super) fn new(spec: EmitSpec, functions: &[Arc<AggregateFunctionExpr>]) -> Result<Self> {
        let fields: Vec<SortField> = functions
            .iter()
            .map(|function| SortField::new(function.field().data_type().clone()))
            .collect();
        if !RowConverter::supports_fields(&fields) {
            return Err(EngineError::Plan(
                "early and late results of a function cannot be compared with earlier ones; leave them off or cast the result"
                    .into(),
            ));
        }
        Ok(Self {
            spec,
            told: BTreeMap::new(),
            told_bytes: 0,
            touched: BTreeSet::new(),
            early: Waiting::default(),
            late: Waiting::default(),
            changes: Changes::default(),
            converter: match fields.is_empty() {
                true => None,
                false => Some(RowConverter::new(fields)?),
            },
        })
    }

    /// The slice has got rows.
    pub(super) fn touch(&mut self, slice_end: i64) {
        self.touched.insert(slice_end);
    }

    /// The windows to tell of now. Those that end at `done` or before have been complete; `next` tells the first window
    /// with a slice that ends after another one.
    pub(super) fn take_due(
        &mut self,
        now: i64,
        done: Option<i64>,
        next: impl Fn(i64, Option<i64>) -> Option<i64>,
    ) -> BTreeSet<i64> {
        for slice_end in std::mem::take(&mut self.touched) {
            let mut at = next(slice_end, None);
            while let Some(end) = at {
                let complete = done.is_some_and(|done| end <= done);
                let gone = done.is_some_and(|done| end.saturating_add(self.spec.allowed_lateness_ms) <= done);
                if complete && !gone {
                    self.late.add(end, now, self.spec.late_ms.unwrap_or(0));
                } else if let (false, Some(early_ms)) = (complete, self.spec.early_ms) {
                    self.early.add(end, now, early_ms);
                }
                at = next(slice_end, at);
            }
        }
        let mut windows = self.early.take_due(now);
        // Those that have become complete meanwhile have been told of.
        windows.retain(|end| done.is_none_or(|done| *end > done));
        windows.extend(self.late.take_due(now));
        windows
    }

    /// The windows that have a late result to tell and are about to go, as those that end at `gone` or before are.
    pub(super) fn take_going(&mut self, gone: i64) -> Vec<i64> {
        let rest = self.late.windows.split_off(&gone.saturating_add(1));
        std::mem::replace(&mut self.late.windows, rest).into_iter().collect()
    }

    /// When there is something to tell.
    pub(super) fn due(&self) -> Option<i64> {
        self.early.due.into_iter().chain(self.late.due).min()
    }

    /// What has changed of the window since it was last told of. Groups of a window never go.
    ///
    /// # Errors
    /// When results cannot be compared.
    pub(super) fn change(&mut self, window_end: i64, slots: Vec<u32>, results: Vec<ArrayRef>) -> Result<Change> {
        self.late.windows.remove(&window_end);
        let before = self.told.remove(&window_end);
        let change = match &before {
            None => Change {
                kinds: vec![RowKind::Insert; slots.len()],
                slots: slots.clone(),
                results: results.clone(),
            },
            Some(before) => self.difference(before, &slots, &results)?,
        };
        self.told_bytes -= before.as_ref().map_or(0, Told::size);
        let told = Told { slots, results };
        self.told_bytes += told.size();
        self.told.insert(window_end, told);
        self.changes.touch(window_end);
        Ok(change)
    }

    fn difference(&self, before: &Told, slots: &[u32], results: &[ArrayRef]) -> Result<Change> {
        let rows = match &self.converter {
            Some(converter) => Some((
                converter.convert_columns(&before.results)?,
                converter.convert_columns(results)?,
            )),
            None => None,
        };
        let known: HashMap<u32, usize> = before.slots.iter().copied().zip(0..).collect();
        let mut change = Change {
            slots: Vec::new(),
            results: Vec::new(),
            kinds: Vec::new(),
        };
        let mut from = Vec::new();
        for (new, slot) in slots.iter().enumerate() {
            match known.get(slot) {
                None => {
                    change.slots.push(*slot);
                    change.kinds.push(RowKind::Insert);
                    from.push((1, new));
                }
                Some(old) => {
                    let same =
                        |(before, after): &(arrow::row::Rows, arrow::row::Rows)| before.row(*old) == after.row(new);
                    if rows.as_ref().is_none_or(same) {
                        continue;
                    }
                    change.slots.extend([*slot, *slot]);
                    change.kinds.extend([RowKind::UpdateBefore, RowKind::UpdateAfter]);
                    from.extend([(0, *old), (1, new)]);
                }
            }
        }
        for (old, new) in before.results.iter().zip(results) {
            change.results.push(interleave(&[old, new], &from)?);
        }
        Ok(change)
    }

    /// Follows the keys to their new slots.
    pub(super) fn renumber(&mut self, slots: &[u32]) {
        for told in self.told.values_mut() {
            renumber(&mut told.slots, slots);
        }
    }

    /// Forgets the first windows, as long as they are `gone`.
    ///
    /// # Errors
    /// When the keys of slots cannot be told.
    pub(super) fn expire(
        &mut self,
        gone: impl Fn(i64) -> bool,
        keys: impl Fn(&[u32]) -> Result<Vec<ArrayRef>>,
    ) -> Result<()> {
        while let Some(first) = self.told.first_entry().filter(|entry| gone(*entry.key())) {
            let (window_end, told) = first.remove_entry();
            self.told_bytes -= told.size();
            self.changes
                .go(window_end, || Ok((keys(&told.slots)?, told.slots.len())))?;
        }
        // A slice that is gone has no window left to be told of.
        self.early.windows.retain(|end| !gone(*end));
        self.late.windows.retain(|end| !gone(*end));
        for waiting in [&mut self.early, &mut self.late] {
            if waiting.windows.is_empty() {
                waiting.due = None;
            }
        }
        Ok(())
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.told_bytes + self.changes.size()
    }
}
