//! A binary tree of merged slices, for functions that cannot be subtracted: a window is a merge of few runs of slices.
//!
//! The node of level `n` and number `i` is the merge of the slices numbered `i << n` up to the next node. It is made when
//! a window first wants it, from its two halves, and goes when one of its slices goes or gets a late row.

use std::collections::BTreeMap;

use hashbrown::HashMap;

use super::part::{Merge, Part};
use super::slicing::Slicing;
use crate::data::Result;
use crate::operator::aggregate::accumulators::Accumulators;

/// Merged runs of slices, by level and number.
#[derive(Default)]
pub(super) struct Tree {
    nodes: HashMap<(u32, i64), Part>,
    levels: u32,
    bytes: usize,
}

/// What a merge needs.
pub(super) struct Source<'a> {
    pub(super) closed: &'a BTreeMap<i64, Vec<Part>>,
    pub(super) slicing: &'a Slicing,
    pub(super) functions: &'a Accumulators,
    pub(super) slots_max: usize,
}

impl Source<'_> {
    fn parts(&self, first: i64, after_last: i64) -> impl Iterator<Item = &Part> {
        let ends = self.slicing.end_of(first)..self.slicing.end_of(after_last);
        self.closed.range(ends).flat_map(|(_, parts)| parts)
    }
}

impl Tree {
    /// The parts that make up the slices from number `first` to before `after_last`.
    ///
    /// # Errors
    /// When a function fails.
    pub(super) fn cover<'a>(
        &'a mut self,
        first: i64,
        after_last: i64,
        source: &'a Source<'_>,
        merge: &mut Merge,
    ) -> Result<Vec<&'a Part>> {
        let mut wanted = Vec::new();
        let mut at = first;
        while at < after_last {
            let fits = (after_last - at).ilog2();
            let level = at.trailing_zeros().min(fits);
            self.ensure(level, at >> level, source, merge)?;
            wanted.push((level, at >> level));
            at += 1 << level;
        }
        let mut parts = Vec::new();
        for (level, number) in wanted {
            if level == 0 {
                parts.extend(source.parts(number, number + 1));
            } else {
                parts.extend(self.nodes.get(&(level, number)));
            }
        }
        Ok(parts)
    }

    /// Makes the node, if it is of any slice at all.
    fn ensure(&mut self, level: u32, number: i64, source: &Source<'_>, merge: &mut Merge) -> Result<()> {
        let (first, after_last) = (number << level, (number + 1) << level);
        let empty = source.parts(first, after_last).next().is_none();
        if level == 0 || empty || self.nodes.contains_key(&(level, number)) {
            return Ok(());
        }
        let halves = [number << 1, (number << 1) + 1];
        let mut parts: Vec<&Part> = Vec::new();
        if level == 1 {
            parts.extend(source.parts(first, after_last));
        } else {
            for half in halves {
                self.ensure(level - 1, half, source, merge)?;
            }
            parts.extend(halves.iter().filter_map(|half| self.nodes.get(&(level - 1, *half))));
        }
        let merged = merge.parts(parts.into_iter(), source.slots_max, source.functions)?;
        let node = merged.into_part()?;
        self.bytes += node.size();
        self.levels = self.levels.max(level);
        self.nodes.insert((level, number), node);
        Ok(())
    }

    /// The slice with this number has changed or gone.
    pub(super) fn forget(&mut self, number: i64) {
        for level in 1..=self.levels {
            if let Some(node) = self.nodes.remove(&(level, number >> level)) {
                self.bytes -= node.size();
            }
        }
        if self.nodes.is_empty() {
            *self = Self::default();
        }
    }

    /// Follows the keys to their new slots.
    pub(super) fn renumber(&mut self, slots: &[u32]) {
        for node in self.nodes.values_mut() {
            node.renumber(slots);
        }
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.bytes
    }
}
