//! Closed slices, and windows as merges of them.
//!
//! Its state are the parts: for each slice its end, the keys of its slots and the state columns, which a checkpoint shares.
//! Everything else (the directory, the running table, the tree) is made from them.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::changes::Changes;
use super::frozen::{Keys, Piece};
use super::part::{Directory, Merge, Merged, Part};
use super::running::{Running, is_invertible};
use super::slicing::Slicing;
use super::table::Table;
use super::tree::{Source, Tree};
use crate::data::Result;
use crate::operator::aggregate::accumulators::{Accumulators, Take};

/// Windows of no more slices than this are merged from them as they are.
const PLAIN_SLICES_MAX: i64 = 16;
/// A slice that has been closed so often becomes one part again.
const PARTS_MAX: usize = 8;

/// How a window is made of its slices.
enum Strategy {
    /// Merge all its slices.
    Plain,
    /// From the window before, less the slices it has left, plus those it has reached.
    Running(Running),
    /// From runs of slices that several windows share.
    Tree(Tree),
    /// From the shorter window of the same start.
    Growing(Option<Prefix>),
}

/// The merge of the slices that end after `start` and not after `end`.
struct Prefix {
    start: i64,
    end: i64,
    part: Part,
}

/// Closed slices.
pub(super) struct Shared {
    slicing: Slicing,
    functions: Accumulators,
    directory: Directory,
    merge: Merge,
    closed: BTreeMap<i64, Vec<Part>>,
    strategy: Strategy,
    parts_bytes: usize,
}

impl Shared {
    /// For groups with keys of these types. `ordered` says that each window is asked for once, in order.
    ///
    /// # Errors
    /// When a key's type cannot be grouped by or a function refuses its arguments.
    pub(super) fn new(
        types: Vec<DataType>,
        slicing: Slicing,
        functions: &[Arc<AggregateFunctionExpr>],
        accumulators: &Accumulators,
        ordered: bool,
    ) -> Result<Self> {
        let invertible = functions.iter().all(|function| is_invertible(function));
        let slices = slicing.slices_per_window();
        let strategy = if ordered && invertible && slices > 2 {
            Strategy::Running(Running::new(
                accumulators.state_fields().map(|field| field.data_type()),
            )?)
        } else if ordered && slicing.is_cumulative() {
            Strategy::Growing(None)
        } else if slices <= PLAIN_SLICES_MAX {
            Strategy::Plain
        } else {
            Strategy::Tree(Tree::default())
        };
        Ok(Self {
            slicing,
            functions: accumulators.successor()?,
            directory: Directory::new(types)?,
            merge: Merge::default(),
            closed: BTreeMap::new(),
            strategy,
            parts_bytes: 0,
        })
    }

    /// The ends of the closed slices.
    pub(super) fn ends(&self) -> impl Iterator<Item = i64> {
        self.closed.keys().copied()
    }

    /// Takes what a slice has got since it was last closed.
    ///
    /// # Errors
    /// When a function fails.
    pub(super) fn close(&mut self, slice_end: i64, table: Table) -> Result<()> {
        let rows = table.len();
        let (keys, states) = table.into_columns(Take::States)?;
        let mut part = Part {
            slots: self.directory.enter(&keys, rows)?,
            states,
            running: false,
        };
        match &mut self.strategy {
            Strategy::Running(running) => {
                // A late row of a slice that the present window has already taken in.
                let inside = running
                    .window
                    .is_some_and(|(start, end)| start < slice_end && slice_end <= end);
                if inside {
                    running.add(&mut part, self.directory.len());
                }
            }
            Strategy::Tree(tree) => tree.forget(self.slicing.number(slice_end)),
            Strategy::Growing(prefix) => {
                if prefix.as_ref().is_some_and(|prefix| slice_end <= prefix.end) {
                    *prefix = None;
                }
            }
            Strategy::Plain => {}
        }
        self.parts_bytes += part.size();
        let parts = self.closed.entry(slice_end).or_default();
        parts.push(part);
        if parts.len() >= PARTS_MAX {
            let parts = std::mem::take(parts);
            let one = self.unite(parts)?;
            self.closed.insert(slice_end, vec![one]);
        }
        Ok(())
    }

    fn unite(&mut self, mut parts: Vec<Part>) -> Result<Part> {
        let merged = self.merge.parts(parts.iter(), self.directory.len(), &self.functions)?;
        let mut one = merged.into_part()?;
        self.directory.hold(&one.slots);
        let was_running = parts.iter().any(|part| part.running);
        if let (Strategy::Running(running), true) = (&mut self.strategy, was_running) {
            running.add(&mut one, self.directory.len());
        }
        self.parts_bytes += one.size();
        for part in &mut parts {
            self.release(part)?;
        }
        Ok(one)
    }

    /// Lets go of a part.
    fn release(&mut self, part: &mut Part) -> Result<()> {
        if let (Strategy::Running(running), true) = (&mut self.strategy, part.running) {
            running.subtract(part);
        }
        self.parts_bytes -= part.size();
        self.directory.leave(&part.slots)
    }

    /// The groups of the window that ends at `end`, as slots, and their results.
    ///
    /// # Errors
    /// When a function fails.
    pub(super) fn window(&mut self, end: i64) -> Result<(Vec<u32>, Vec<ArrayRef>)> {
        let start = self.slicing.window_start(end);
        let slots_max = self.directory.len();
        let merged = match &mut self.strategy {
            Strategy::Plain => {
                let parts = self.closed.range(start + 1..=end).flat_map(|(_, parts)| parts);
                self.merge.parts(parts, slots_max, &self.functions)?
            }
            Strategy::Running(running) => {
                advance(running, &mut self.closed, start, end, slots_max);
                let (slots, states) = running.states();
                Merged::of_states(slots, &states, &self.functions)?
            }
            Strategy::Tree(tree) => {
                let source = Source {
                    closed: &self.closed,
                    slicing: &self.slicing,
                    functions: &self.functions,
                    slots_max,
                };
                let (first, last) = (self.slicing.number(start) + 1, self.slicing.number(end));
                let parts = tree.cover(first, last + 1, &source, &mut self.merge)?;
                self.merge.parts(parts.into_iter(), slots_max, &self.functions)?
            }
            Strategy::Growing(prefix) => {
                let known = prefix
                    .take()
                    .filter(|prefix| prefix.start == start && prefix.end <= end);
                let from = known.as_ref().map_or(start, |prefix| prefix.end);
                let rest = self.closed.range(from + 1..=end).flat_map(|(_, parts)| parts);
                let parts = known.iter().map(|prefix| &prefix.part).chain(rest);
                let part = self.merge.parts(parts, slots_max, &self.functions)?.into_part()?;
                let merged = Merged::of_states(part.slots.clone(), &part.states, &self.functions)?;
                *prefix = Some(Prefix { start, end, part });
                merged
            }
        };
        merged.into_results()
    }

    /// The group columns of these slots.
    ///
    /// # Errors
    /// When a key does not fit its type.
    pub(super) fn keys(&self, slots: &[u32]) -> Result<Vec<ArrayRef>> {
        self.directory.gather(slots)
    }

    /// The slots of keys that slices have.
    ///
    /// # Errors
    /// When there are too many keys.
    pub(super) fn slots(&mut self, keys: &[ArrayRef], rows: usize) -> Result<Vec<u32>> {
        self.directory.find(keys, rows)
    }

    /// The slices that are `wanted`, for a checkpoint: each becomes one part, whose columns are shared.
    ///
    /// # Errors
    /// When a function fails.
    pub(super) fn freeze(&mut self, wanted: impl Fn(i64) -> bool) -> Result<Vec<Piece>> {
        let of_many = self
            .closed
            .iter()
            .filter(|(end, parts)| parts.len() > 1 && wanted(**end));
        for end in of_many.map(|(end, _)| *end).collect::<Vec<_>>() {
            let parts = self.closed.remove(&end).unwrap_or_default();
            let one = self.unite(parts)?;
            self.closed.insert(end, vec![one]);
        }
        let wanted = self.closed.iter().filter(|(end, _)| wanted(**end));
        let parts = wanted.flat_map(|(end, parts)| parts.iter().map(move |part| (*end, part)));
        let parts: Vec<(i64, &Part)> = parts.filter(|(_, part)| !part.slots.is_empty()).collect();
        let keys = self.frozen_keys(&parts.iter().map(|(_, part)| part.slots.as_slice()).collect::<Vec<_>>())?;
        let pieces = parts.into_iter().zip(keys).map(|((end, part), keys)| Piece {
            end,
            rows: part.slots.len(),
            keys,
            values: part.states.clone(),
        });
        Ok(pieces.collect())
    }

    /// The keys of each list of slots. All keys are copied once when the lists are longer than that.
    ///
    /// # Errors
    /// When a key does not fit its type.
    pub(super) fn frozen_keys(&self, lists: &[&[u32]]) -> Result<Vec<Keys>> {
        let total: usize = lists.iter().map(|slots| slots.len()).sum();
        if total >= self.directory.len() {
            let all: Vec<u32> = (0..self.directory.len() as u32).collect();
            let all = Arc::new(self.directory.gather(&all)?);
            let keys = lists.iter().map(|slots| Keys::Among(Arc::clone(&all), slots.to_vec()));
            return Ok(keys.collect());
        }
        let keys = self.directory.gather(&lists.concat())?;
        let mut start = 0;
        let own = lists.iter().map(|slots| {
            let own = keys.iter().map(|key| key.slice(start, slots.len())).collect();
            start += slots.len();
            Keys::Own(own)
        });
        Ok(own.collect())
    }

    /// Lets go of the slices that nobody needs any more: the first ones, as long as `expired`.
    ///
    /// # Errors
    /// When a table cannot be made anew.
    pub(super) fn expire(&mut self, expired: impl Fn(i64) -> bool, changes: &mut Changes) -> Result<()> {
        while let Some(first) = self.closed.first_entry().filter(|entry| expired(*entry.key())) {
            let (slice_end, mut parts) = first.remove_entry();
            changes.go(slice_end, || {
                let mut slots: Vec<u32> = parts.iter().flat_map(|part| &part.slots).copied().collect();
                slots.sort_unstable();
                slots.dedup();
                Ok((self.directory.gather(&slots)?, slots.len()))
            })?;
            match &mut self.strategy {
                Strategy::Tree(tree) => tree.forget(self.slicing.number(slice_end)),
                Strategy::Growing(prefix) => {
                    if prefix.as_ref().is_some_and(|prefix| prefix.start < slice_end) {
                        *prefix = None;
                    }
                }
                Strategy::Plain | Strategy::Running(_) => {}
            }
            for part in &mut parts {
                self.release(part)?;
            }
        }
        if self.closed.is_empty() {
            self.merge.clear();
        }
        Ok(())
    }

    /// Forgets keys that no slice holds, once they are the most. Tells where the others have gone.
    ///
    /// # Errors
    /// When the keys cannot be copied.
    pub(super) fn compact(&mut self) -> Result<Option<Vec<u32>>> {
        let Some(slots) = self.directory.compact()? else {
            return Ok(None);
        };
        for part in self.closed.values_mut().flatten() {
            part.renumber(&slots);
        }
        match &mut self.strategy {
            Strategy::Plain => {}
            Strategy::Running(running) => running.renumber(&slots),
            Strategy::Tree(tree) => tree.renumber(&slots),
            Strategy::Growing(prefix) => {
                if let Some(prefix) = prefix {
                    prefix.part.renumber(&slots);
                }
            }
        }
        self.merge.clear();
        Ok(Some(slots))
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        let strategy = match &self.strategy {
            Strategy::Plain => 0,
            Strategy::Running(running) => running.size(),
            Strategy::Tree(tree) => tree.size(),
            Strategy::Growing(prefix) => prefix.as_ref().map_or(0, |prefix| prefix.part.size()),
        };
        self.parts_bytes + self.directory.size() + self.merge.size() + strategy
    }
}

/// Moves the running table on to the window of the slices that end after `start` and not after `end`.
fn advance(running: &mut Running, closed: &mut BTreeMap<i64, Vec<Part>>, start: i64, end: i64, slots_max: usize) {
    let (left, reached) = running.window.unwrap_or((start, start));
    if left < start {
        for part in closed.range_mut(left + 1..=start).flat_map(|(_, parts)| parts) {
            if part.running {
                running.subtract(part);
            }
        }
    }
    if reached < end {
        for part in closed
            .range_mut(reached.max(start) + 1..=end)
            .flat_map(|(_, parts)| parts)
        {
            if !part.running {
                running.add(part, slots_max);
            }
        }
    }
    running.window = Some((start, end));
}
