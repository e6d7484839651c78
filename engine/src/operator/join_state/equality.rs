//! Whether rows that agree in their hash agree in fact.

use arrow::array::{ArrayRef, DynComparator, make_comparator};
use arrow::compute::SortOptions;

use super::pieces::Pieces;
use crate::data::{EngineError, Result};

/// Compares columns of a batch with columns of stored rows, piece by piece as they turn up.
pub(super) struct Equality {
    probe: Vec<ArrayRef>,
    stored: Vec<usize>,
    comparators: Vec<Option<Vec<DynComparator>>>,
}

impl Equality {
    /// `probe[i]` is compared with stored column `stored[i]`.
    pub(super) fn new(probe: Vec<ArrayRef>, stored: Vec<usize>) -> Self {
        Self {
            probe,
            stored,
            comparators: Vec::new(),
        }
    }

    /// Whether row `row` of the batch equals stored row `stored`; NULL equals NULL.
    pub(super) fn holds(&mut self, pieces: &Pieces, row: u32, stored: u32) -> Result<bool> {
        let (piece, position) = pieces.locate(stored);
        if self.comparators.len() <= piece {
            self.comparators.resize_with(pieces.len(), || None);
        }
        let comparators = match &mut self.comparators[piece] {
            Some(comparators) => comparators,
            none => none.insert(comparators(&self.probe, &self.stored, pieces, piece)?),
        };
        let mut all = comparators.iter();
        Ok(all.all(|compare| compare(row as usize, position).is_eq()))
    }
}

fn comparators(probe: &[ArrayRef], stored: &[usize], pieces: &Pieces, piece: usize) -> Result<Vec<DynComparator>> {
    let columns = pieces.get(piece).columns.as_ref();
    let columns = columns.ok_or_else(|| EngineError::Internal("a forgotten row is compared".into()))?;
    let pairs = probe.iter().zip(stored);
    pairs
        .map(|(probe, stored)| Ok(make_comparator(probe, &columns[*stored], SortOptions::default())?))
        .collect()
}
