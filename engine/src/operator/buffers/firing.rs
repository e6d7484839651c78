//! The firings of a micro-batch: gathered row by row, evaluated and handed on together.

use std::ops::Range;

use arrow::array::{ArrayRef, UInt8Array};
use arrow::compute::interleave;

use super::assigner::Bounds;
use super::function::Results;
use super::rows::{Place, RowList, RowStore};
use crate::data::{Result, RowKind};

/// What a firing takes back.
#[derive(Clone, Copy, Debug)]
pub(super) enum Previous {
    /// Nothing: results stand, or there has been none.
    Nothing,
    /// These rows of earlier results.
    Rows(RowList),
    /// The result of another firing of the same micro-batch.
    Pane(u32),
}

/// One firing of one window.
pub(super) struct Pane {
    /// Where its rows begin.
    pub(super) start: usize,
    /// A row of its key.
    pub(super) key: Place,
    pub(super) bounds: Bounds,
    pub(super) window: u32,
    pub(super) previous: Previous,
}

/// Firings that are not evaluated yet.
#[derive(Default)]
pub(super) struct Firings {
    /// The rows of all of them, one after the other.
    pub(super) places: Vec<Place>,
    pub(super) panes: Vec<Pane>,
}

impl Firings {
    /// The rows of a firing.
    pub(super) fn range(&self, pane: usize) -> Range<usize> {
        let end = self.panes.get(pane + 1).map_or(self.places.len(), |next| next.start);
        self.panes[pane].start..end
    }

    pub(super) fn clear(&mut self) {
        self.places.clear();
        self.panes.clear();
    }
}

/// The changelog of results that take back earlier ones: row by row `-U` and `+U`, what is left over `-D` or `+I`.
pub(super) fn changelog(firings: &Firings, results: &Results, kept: &RowStore) -> Result<(Vec<ArrayRef>, UInt8Array)> {
    let mut old_places = Vec::new();
    let mut picks: Vec<(usize, usize)> = Vec::new();
    let mut kinds: Vec<u8> = Vec::new();
    let range = |pane: usize| results.starts[pane]..results.starts[pane + 1];
    for (index, pane) in firings.panes.iter().enumerate() {
        let new: Vec<_> = range(index).map(|row| (1, row)).collect();
        let old: Vec<_> = match pane.previous {
            Previous::Nothing => Vec::new(),
            Previous::Pane(earlier) => range(earlier as usize).map(|row| (1, row)).collect(),
            Previous::Rows(list) => {
                let first = old_places.len();
                old_places.extend(kept.places(list));
                (first..old_places.len()).map(|row| (0, row)).collect()
            }
        };
        let pairs = old.len().min(new.len());
        for (old, new) in old.iter().zip(&new) {
            picks.extend([*old, *new]);
            kinds.extend([RowKind::UpdateBefore as u8, RowKind::UpdateAfter as u8]);
        }
        picks.extend(&old[pairs..]);
        kinds.resize(picks.len(), RowKind::Delete as u8);
        picks.extend(&new[pairs..]);
        kinds.resize(picks.len(), RowKind::Insert as u8);
    }
    let old = kept.gather(&old_places, 0..results.rows.num_columns())?;
    let columns = results.rows.columns().iter().enumerate().map(|(index, new)| {
        // Without old rows there is nothing to take from: the new column stands in for it.
        let old = old.get(index).unwrap_or(new);
        Ok(interleave(&[old.as_ref(), new.as_ref()], &picks)?)
    });
    Ok((columns.collect::<Result<_>>()?, UInt8Array::from(kinds)))
}
