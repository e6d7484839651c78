//! States that are read and written by the batch: a table of keys and values.

use arrow::array::ArrayRef;
use thalweg_memory::Reservation;

use super::keys::KeyNumbers;
use super::state::States;
use crate::data::Result;
use crate::operator::Context;
use crate::state::{KeyedTable, NO_SLOT, Restored, Snapshot, TableSpec, Ttl};

/// A value per key, for whole batches of keys; see [`super::StateDeclarations::column`].
#[derive(Clone, Copy, Debug)]
pub struct ColumnState(pub(super) usize);

impl ColumnState {
    /// The values of keys, a row each: NULL for those that have none.
    ///
    /// # Errors
    /// When the handle is of another function, or the disk fails.
    pub fn read(&self, states: &mut States, keys: &[usize]) -> Result<ArrayRef> {
        let (column, numbers) = states.column(self.0)?;
        column.find(numbers, keys)?;
        column.table.read(&column.slots, 0)
    }

    /// Sets the values of keys; of a key that is there twice the last.
    ///
    /// # Errors
    /// As for `read`, and when the values have not the declared type.
    pub fn write(&self, states: &mut States, keys: &[usize], values: &ArrayRef) -> Result<()> {
        let (column, numbers) = states.column(self.0)?;
        column.locate(numbers, keys)?;
        column.table.write(&column.slots, 0, values)
    }

    /// Forgets the values of keys.
    ///
    /// # Errors
    /// As for `read`.
    pub fn clear(&self, states: &mut States, keys: &[usize]) -> Result<()> {
        let (column, numbers) = states.column(self.0)?;
        column.find(numbers, keys)?;
        column.table.remove(&column.slots);
        column.forget_numbers();
        Ok(())
    }
}

/// The table of a column state.
pub(super) struct ColumnTable {
    table: KeyedTable,
    /// Its own account, once it has something.
    memory: Option<Reservation>,
    /// The slots of the keys that were asked for last: they are mostly written next.
    slots: Vec<u32>,
    asked: Vec<usize>,
}

impl ColumnTable {
    pub(super) fn new(spec: TableSpec, ttl: Option<Ttl>) -> Result<Self> {
        Ok(Self {
            table: KeyedTable::new(spec, ttl)?,
            memory: None,
            slots: Vec::new(),
            asked: Vec::new(),
        })
    }

    pub(super) fn set_time(&mut self, now_ms: i64) {
        self.table.set_time(now_ms);
        // What was found may have expired.
        self.forget_numbers();
    }

    /// Numbers may be other keys' from now on, or slots.
    pub(super) fn forget_numbers(&mut self) {
        self.asked.clear();
        self.slots.clear();
    }

    fn find(&mut self, numbers: &KeyNumbers, keys: &[usize]) -> Result<()> {
        if self.asked == keys {
            return Ok(());
        }
        self.forget_numbers();
        self.table.find(&numbers.stored(keys)?, keys.len(), &mut self.slots)?;
        self.asked.extend_from_slice(keys);
        Ok(())
    }

    fn locate(&mut self, numbers: &KeyNumbers, keys: &[usize]) -> Result<()> {
        if self.asked == keys && !self.slots.contains(&NO_SLOT) {
            return Ok(());
        }
        self.forget_numbers();
        self.table.locate(&numbers.stored(keys)?, keys.len(), &mut self.slots)?;
        self.asked.extend_from_slice(keys);
        Ok(())
    }

    /// After a batch: sweeps, books memory, spills.
    pub(super) fn settle(&mut self, swept: usize, cx: &Context) -> Result<()> {
        self.forget_numbers();
        self.table.sweep(swept);
        let memory = self.memory.get_or_insert_with(|| cx.memory.sibling());
        let written = self.table.settle(memory, &cx.spill)?;
        cx.note_spilled(written);
        Ok(())
    }

    pub(super) fn snapshot(&mut self, snapshot: &mut Snapshot) {
        self.table.snapshot(snapshot);
        self.forget_numbers();
    }

    pub(super) fn restore(&mut self, keys: &KeyNumbers, state: &mut Restored, cx: &Context) -> Result<()> {
        for batch in state.take(self.table.spec())? {
            self.table.restore_rows(&keys.own_rows(batch?)?)?;
            self.settle(0, cx)?;
        }
        self.table.restored(state.checkpoint());
        Ok(())
    }
}
