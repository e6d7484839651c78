//! One slice's groups and what the functions have made of them.

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;

use super::cut::Rows;
use crate::data::Result;
use crate::operator::aggregate::accumulators::{Accumulators, Take};
use crate::operator::aggregate::group_table::GroupTable;

/// Groups (one, if there are no group columns) and their accumulators.
pub(super) struct Table {
    keys: Option<GroupTable>,
    accumulators: Accumulators,
    /// Without group columns: whether there has been a row.
    any: bool,
}

impl Table {
    /// An empty table for keys of these types.
    ///
    /// # Errors
    /// When a key's type cannot be grouped by.
    pub(super) fn new(types: Vec<DataType>, accumulators: Accumulators) -> Result<Self> {
        let keys = match types.is_empty() {
            true => None,
            false => Some(GroupTable::new(types)?),
        };
        Ok(Self {
            keys,
            accumulators,
            any: false,
        })
    }

    /// An empty table that expects keys such as this one has seen.
    ///
    /// # Errors
    /// When a function refuses its arguments.
    pub(super) fn successor(&self) -> Result<Self> {
        Ok(Self {
            keys: self.keys.as_ref().map(GroupTable::successor).transpose()?,
            accumulators: self.accumulators.successor()?,
            any: false,
        })
    }

    /// Takes rows: raw ones, or states when `merge`. `groups` is scratch space.
    ///
    /// # Errors
    /// When a function fails.
    pub(super) fn take_rows(&mut self, rows: &Rows, merge: bool, groups: &mut Vec<usize>) -> Result<()> {
        match &mut self.keys {
            Some(keys) => keys.number(&rows.keys, groups)?,
            None => {
                groups.clear();
                groups.resize(rows.count, 0);
                self.any |= rows.count > 0;
            }
        }
        let total = self.len();
        if merge {
            self.accumulators.merge(&rows.inputs, groups, total)
        } else {
            self.accumulators.update(&rows.inputs, groups, total)
        }
    }

    /// How many groups there are.
    pub(super) fn len(&self) -> usize {
        self.keys.as_ref().map_or(usize::from(self.any), GroupTable::len)
    }

    /// The group columns and the results, or states, of all groups. The table is spent by it.
    ///
    /// # Errors
    /// When a function fails.
    pub(super) fn into_columns(mut self, take: Take) -> Result<(Vec<ArrayRef>, Vec<ArrayRef>)> {
        let keys = match &self.keys {
            Some(keys) => keys.emit(0..keys.len())?,
            None => Vec::new(),
        };
        Ok((keys, self.accumulators.take_all(take)?))
    }

    /// The group columns and the states of all groups. The table goes on as it was.
    ///
    /// # Errors
    /// When a function fails.
    pub(super) fn copy(&mut self) -> Result<(Vec<ArrayRef>, Vec<ArrayRef>)> {
        let rows = self.len();
        let keys = match &self.keys {
            Some(keys) => keys.emit(0..rows)?,
            None => Vec::new(),
        };
        // Accumulators give their states away: others take them up. Groups keep their numbers, so that no key is hashed.
        let states = self.accumulators.take_all(Take::States)?;
        let mut accumulators = self.accumulators.successor()?;
        let groups: Vec<usize> = (0..rows).collect();
        accumulators.merge(&accumulators.state_inputs(&states), &groups, rows)?;
        self.accumulators = accumulators;
        Ok((keys, states))
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.keys.as_ref().map_or(0, GroupTable::size) + self.accumulators.size()
    }

    /// The accumulators, for what needs some of the same functions.
    pub(super) fn accumulators(&self) -> &Accumulators {
        &self.accumulators
    }

    /// The table of keys.
    pub(super) fn keys(&self) -> Option<&GroupTable> {
        self.keys.as_ref()
    }
}
