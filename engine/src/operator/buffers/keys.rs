//! Keys to dense numbers, and the numbers of keys that are gone back.

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::DataType;

use crate::data::Result;
use crate::operator::aggregate::GroupTable;

/// Tables up to this many keys are not made anew for the few that are gone.
const FEW_KEYS: usize = 4096;

/// The keys that have state. Without key columns there is one key, number 0.
pub(in crate::operator) struct Keys {
    table: Option<GroupTable>,
    /// At how many keys to look next how many of them are gone.
    look_at: usize,
}

impl Keys {
    /// Keys of these types.
    ///
    /// # Errors
    /// When a type cannot be a key.
    pub(in crate::operator) fn new(types: Vec<DataType>) -> Result<Self> {
        let table = if types.is_empty() {
            None
        } else {
            Some(GroupTable::new(types)?)
        };
        Ok(Self {
            table,
            look_at: FEW_KEYS,
        })
    }

    /// Puts into `numbers` the number of each row's key.
    ///
    /// # Errors
    /// When there are too many keys.
    pub(in crate::operator) fn intern(
        &mut self,
        columns: &[ArrayRef],
        rows: usize,
        numbers: &mut Vec<usize>,
    ) -> Result<()> {
        match &mut self.table {
            Some(table) => table.intern_wider(columns, numbers),
            None => {
                numbers.clear();
                numbers.resize(rows, 0);
                Ok(())
            }
        }
    }

    /// How many numbers are given out.
    pub(in crate::operator) fn len(&self) -> usize {
        self.table.as_ref().map_or(1, GroupTable::len)
    }

    /// Whether it is time to look for keys that are gone.
    pub(in crate::operator) fn is_crowded(&self) -> bool {
        self.table.is_some() && self.len() >= self.look_at
    }

    /// Forgets all keys but those that `is_used`; gives the new number of each (of the others anything), or nothing when
    /// most are in use.
    ///
    /// # Errors
    /// When the keys do not fit one array.
    pub(in crate::operator) fn shrink(&mut self, is_used: &[bool]) -> Result<Option<Vec<u32>>> {
        let Some(table) = &mut self.table else { return Ok(None) };
        let used: UInt32Array = (0u32..)
            .zip(is_used)
            .filter(|(_, used)| **used)
            .map(|(n, _)| n)
            .collect();
        if used.len() * 2 > is_used.len() {
            self.look_at = (is_used.len() * 2).max(FEW_KEYS);
            return Ok(None);
        }
        let keys = table.emit_keys(0..table.len())?;
        let kept = keys.iter().map(|column| take(column, &used, None));
        let kept = kept.collect::<std::result::Result<Vec<_>, _>>()?;
        table.clear()?;
        let mut numbers = Vec::new();
        if !used.is_empty() {
            table.intern_wider(&kept, &mut numbers)?;
        }
        let mut new_number = vec![0; is_used.len()];
        for (old, new) in used.values().iter().zip(&numbers) {
            new_number[*old as usize] = *new as u32;
        }
        self.look_at = (used.len() * 2).max(FEW_KEYS);
        Ok(Some(new_number))
    }

    /// The keys with these numbers, as columns.
    ///
    /// # Errors
    /// When the keys do not fit one array.
    #[allow(dead_code, reason = "for the state of buffers")]
    pub(in crate::operator) fn columns(&self, numbers: &UInt32Array) -> Result<Vec<ArrayRef>> {
        let Some(table) = &self.table else {
            return Ok(Vec::new());
        };
        let keys = table.emit(0..table.len())?;
        keys.iter().map(|column| Ok(take(column, numbers, None)?)).collect()
    }

    /// The key of one number, as columns of one row.
    ///
    /// # Errors
    /// When the key cannot be brought to its type.
    #[allow(dead_code, reason = "for the state of buffers")]
    pub(in crate::operator) fn one(&self, number: usize) -> Result<Vec<ArrayRef>> {
        match &self.table {
            Some(table) => table.emit(number..number + 1),
            None => Ok(Vec::new()),
        }
    }

    /// Forgets all keys.
    ///
    /// # Errors
    /// When a type cannot be a key.
    pub(in crate::operator) fn clear(&mut self) -> Result<()> {
        self.look_at = FEW_KEYS;
        self.table.as_mut().map_or(Ok(()), GroupTable::clear)
    }

    /// Bytes held.
    pub(in crate::operator) fn size(&self) -> usize {
        self.table.as_ref().map_or(0, GroupTable::size)
    }
}
