//! Rows that are taken back: found in a store by what tells them apart, and in the batch that brought them.

use arrow::array::{ArrayRef, DynComparator, UInt8Array, make_comparator};
use arrow::compute::SortOptions;

use super::equality::Equality;
use super::index::HashIndex;
use super::keys::JoinKeys;
use super::pieces::NO_ROW;
use super::store::{Removal, Removals, RowStore, identity_hashes};
use crate::data::{Batch, Result, is_changelog};
use crate::plan::JoinInputSpec;

impl Removal {
    /// For the rows of `side`.
    pub(in crate::operator) fn of(side: &JoinInputSpec) -> Self {
        let schema = &side.schema.0;
        match &side.unique_key {
            _ if !is_changelog(schema) => Removal::Never,
            Some(columns) => Removal::ByColumns(columns.clone()),
            None => Removal::ByColumns((0..schema.fields().len() - 1).collect()),
        }
    }
}

impl RowStore {
    /// Takes back a stored row for each row of `rows`, and says which were found.
    ///
    /// # Errors
    /// When a kernel fails.
    pub(in crate::operator) fn remove(&mut self, keys: &JoinKeys, rows: &Batch) -> Result<Vec<bool>> {
        self.index_all(keys)?;
        let mut found = vec![false; rows.num_rows()];
        let Some(removals) = &mut self.removals else {
            return Ok(found);
        };
        let names = removals.columns.clone().unwrap_or_default();
        let hashes = identity_hashes(rows, &names)?;
        let columns: Vec<ArrayRef> = names.iter().map(|c| rows.column(*c).clone()).collect();
        let mut equality = Equality::new(columns, names);
        for (row, hash) in hashes.iter().enumerate() {
            let (mut newer, mut at) = (NO_ROW, removals.index.find(*hash).head);
            while at != NO_ROW && at >= self.first && !equality.holds(&self.pieces, row as u32, at)? {
                (newer, at) = (at, removals.next[at as usize]);
            }
            if at == NO_ROW || at < self.first {
                continue;
            }
            found[row] = true;
            unlink_identity(removals, *hash, newer, at);
            unlink_key(removals, &mut self.index, &mut self.next, self.hashes[at as usize], at);
        }
        self.tidy()?;
        Ok(found)
    }

    /// Takes back these rows, which are there. Numbers stand until [`Self::tidy`].
    pub(in crate::operator) fn remove_rows(&mut self, rows: &[u32]) {
        let Some(removals) = &mut self.removals else { return };
        for at in rows {
            // What is not indexed yet never will be.
            if (*at as usize) < self.next.len() {
                unlink_key(
                    removals,
                    &mut self.index,
                    &mut self.next,
                    self.hashes[*at as usize],
                    *at,
                );
            }
            removals.dead[*at as usize] = true;
        }
        removals.dead_rows += rows.len();
    }
}

fn unlink_identity(removals: &mut Removals, hash: u64, newer: u32, at: u32) {
    let older = removals.next[at as usize];
    if newer == NO_ROW {
        removals.index.drop_one(hash, Some(older));
    } else {
        removals.next[newer as usize] = older;
        removals.index.drop_one(hash, None);
    }
    removals.dead[at as usize] = true;
    removals.dead_rows += 1;
}

fn unlink_key(removals: &mut Removals, index: &mut HashIndex, next: &mut [u32], hash: u64, at: u32) {
    let (newer, older) = (removals.key_before[at as usize], next[at as usize]);
    if newer == NO_ROW {
        index.drop_one(hash, Some(older));
    } else {
        next[newer as usize] = older;
        index.drop_one(hash, None);
    }
    if older != NO_ROW {
        removals.key_before[older as usize] = newer;
    }
}

/// Which rows of a batch take back rows from before it, and which stay added after it: an addition that the batch itself
/// takes back cancels out. The former may then all be handled before the latter.
///
/// # Errors
/// When the columns that tell rows apart cannot be compared.
pub(in crate::operator) fn fold(rows: &Batch, kinds: &UInt8Array, identity: &[usize]) -> Result<(Vec<u32>, Vec<u32>)> {
    let is_addition = |kind: u8| kind == 0 || kind == 2;
    let kinds = kinds.values();
    let hashes = identity_hashes(rows, identity)?;
    let comparators = identity.iter().map(|column| {
        let column = rows.column(*column);
        Ok(make_comparator(column, column, SortOptions::default())?)
    });
    let comparators = comparators.collect::<Result<Vec<DynComparator>>>()?;
    let same = |a: usize, b: u32| comparators.iter().all(|compare| compare(a, b as usize).is_eq());
    let mut pending = HashIndex::default();
    let mut next = vec![NO_ROW; rows.num_rows()];
    let mut added = vec![false; rows.num_rows()];
    let mut retractions = Vec::new();
    for (row, kind) in kinds.iter().enumerate() {
        if is_addition(*kind) {
            next[row] = pending.push(hashes[row], row as u32);
            added[row] = true;
            continue;
        }
        let (mut newer, mut at) = (NO_ROW, pending.find(hashes[row]).head);
        while at != NO_ROW && !same(row, at) {
            (newer, at) = (at, next[at as usize]);
        }
        if at == NO_ROW {
            retractions.push(row as u32);
            continue;
        }
        added[at as usize] = false;
        if newer == NO_ROW {
            pending.drop_one(hashes[row], Some(next[at as usize]));
        } else {
            next[newer as usize] = next[at as usize];
            pending.drop_one(hashes[row], None);
        }
    }
    let additions = (0..rows.num_rows() as u32).filter(|row| added[*row as usize]);
    Ok((retractions, additions.collect()))
}
