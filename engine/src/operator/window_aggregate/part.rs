//! What slices have in common: one directory of keys, so that slices are merged by slot and no key is hashed twice.
//!
//! A closed slice is a [`Part`]: the slots of its groups and their states. A window is a merge of parts.

use arrow::array::{Array, ArrayRef};
use arrow::datatypes::DataType;

use crate::data::Result;
use crate::operator::aggregate::accumulators::{Accumulators, Take};
use crate::operator::aggregate::group_table::GroupTable;

/// A directory is not compacted below so many keys.
const COMPACT_MIN: usize = 1024;
const NO_GROUP: u32 = u32::MAX;

/// States of some groups.
#[derive(Default)]
pub(super) struct Part {
    /// The group's key in the [`Directory`].
    pub(super) slots: Vec<u32>,
    /// The state columns of all functions.
    pub(super) states: Vec<ArrayRef>,
    /// Whether the running table counts it in.
    pub(super) running: bool,
}

impl Part {
    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        let states = self.states.iter().map(|column| column.get_array_memory_size());
        self.slots.capacity() * size_of::<u32>() + states.sum::<usize>()
    }

    /// Follows the keys to their new slots.
    pub(super) fn renumber(&mut self, slots: &[u32]) {
        renumber(&mut self.slots, slots);
    }
}

/// Follows keys to their new slots.
pub(super) fn renumber(own: &mut [u32], slots: &[u32]) {
    for slot in own {
        *slot = slots[*slot as usize];
    }
}

/// The keys of all closed slices.
pub(super) struct Directory {
    types: Vec<DataType>,
    keys: Option<GroupTable>,
    /// How many parts hold the key.
    holders: Vec<u32>,
    dead: usize,
    groups: Vec<usize>,
}

impl Directory {
    /// Of keys of these types.
    ///
    /// # Errors
    /// When a key's type cannot be grouped by.
    pub(super) fn new(types: Vec<DataType>) -> Result<Self> {
        Ok(Self {
            keys: new_keys(&types)?,
            types,
            holders: Vec::new(),
            dead: 0,
            groups: Vec::new(),
        })
    }

    /// The slots of these distinct keys, for a part that holds them from now on.
    ///
    /// # Errors
    /// When there are too many keys.
    pub(super) fn enter(&mut self, keys: &[ArrayRef], rows: usize) -> Result<Vec<u32>> {
        match &mut self.keys {
            Some(table) => table.number(keys, &mut self.groups)?,
            None => {
                self.groups.clear();
                self.groups.resize(rows, 0);
            }
        }
        let known = self.holders.len();
        let total = self.keys.as_ref().map_or(1, GroupTable::len);
        self.holders.resize(total, 0);
        self.dead += total - known;
        let slots: Vec<u32> = self.groups.iter().map(|group| *group as u32).collect();
        self.hold(&slots);
        Ok(slots)
    }

    /// One more part holds these slots.
    pub(super) fn hold(&mut self, slots: &[u32]) {
        for slot in slots {
            let holders = &mut self.holders[*slot as usize];
            self.dead -= usize::from(*holders == 0);
            *holders += 1;
        }
    }

    /// A part with these slots is gone.
    ///
    /// # Errors
    /// When the table cannot be made anew.
    pub(super) fn leave(&mut self, slots: &[u32]) -> Result<()> {
        self.let_go(slots);
        if self.dead == self.holders.len() {
            let keys = self.keys.as_ref().map(GroupTable::successor).transpose()?;
            let types = std::mem::take(&mut self.types);
            *self = Self {
                types,
                keys,
                holders: Vec::new(),
                dead: 0,
                groups: Vec::new(),
            };
        }
        Ok(())
    }

    /// When most keys are held by nobody, forgets those and tells the new slot of each old one.
    ///
    /// # Errors
    /// When the keys cannot be copied.
    pub(super) fn compact(&mut self) -> Result<Option<Vec<u32>>> {
        if self.dead * 2 <= self.holders.len() || self.holders.len() < COMPACT_MIN {
            return Ok(None);
        }
        let Some(keys) = &self.keys else { return Ok(None) };
        let live: Vec<u32> = (0..)
            .zip(&self.holders)
            .filter(|(_, holders)| **holders > 0)
            .map(|(slot, _)| slot)
            .collect();
        let mut compacted = keys.successor()?;
        compacted.number(&keys.gather(&live)?, &mut self.groups)?;
        let mut slots = vec![NO_GROUP; self.holders.len()];
        for (new, old) in (0..).zip(&live) {
            slots[*old as usize] = new;
        }
        self.holders = live.iter().map(|slot| self.holders[*slot as usize]).collect();
        self.keys = Some(compacted);
        self.dead = 0;
        self.groups = Vec::new();
        Ok(Some(slots))
    }

    /// The group columns of these slots.
    ///
    /// # Errors
    /// When a key does not fit its type.
    pub(super) fn gather(&self, slots: &[u32]) -> Result<Vec<ArrayRef>> {
        match &self.keys {
            Some(keys) if slots.len() == keys.len() && slots.iter().zip(0..).all(|(slot, at)| *slot == at) => {
                keys.emit(0..keys.len())
            }
            Some(keys) => keys.gather(slots),
            None => Ok(Vec::new()),
        }
    }

    /// The slots of keys that parts hold.
    ///
    /// # Errors
    /// When there are too many keys.
    pub(super) fn find(&mut self, keys: &[ArrayRef], rows: usize) -> Result<Vec<u32>> {
        let slots = self.enter(keys, rows)?;
        self.let_go(&slots);
        Ok(slots)
    }

    fn let_go(&mut self, slots: &[u32]) {
        for slot in slots {
            let holders = &mut self.holders[*slot as usize];
            *holders -= 1;
            self.dead += usize::from(*holders == 0);
        }
    }

    /// How many slots there are.
    pub(super) fn len(&self) -> usize {
        self.holders.len()
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        if self.holders.is_empty() {
            return 0;
        }
        self.keys.as_ref().map_or(0, GroupTable::size)
            + self.holders.capacity() * size_of::<u32>()
            + self.groups.capacity() * size_of::<usize>()
    }
}

fn new_keys(types: &[DataType]) -> Result<Option<GroupTable>> {
    match types.is_empty() {
        true => Ok(None),
        false => GroupTable::new(types.to_vec()).map(Some),
    }
}

/// Merges parts; keeps its scratch space.
#[derive(Default)]
pub(super) struct Merge {
    /// The group of each slot in the merge that is going on.
    numbers: Vec<u32>,
    groups: Vec<usize>,
}

/// Groups merged from parts.
pub(super) struct Merged {
    pub(super) slots: Vec<u32>,
    accumulators: Accumulators,
}

impl Merge {
    /// Merges `parts`, whose slots are below `slots_max`.
    ///
    /// # Errors
    /// When a function fails.
    pub(super) fn parts<'a>(
        &mut self,
        parts: impl Iterator<Item = &'a Part>,
        slots_max: usize,
        functions: &Accumulators,
    ) -> Result<Merged> {
        let mut accumulators = functions.successor()?;
        let mut slots: Vec<u32> = Vec::new();
        self.numbers.resize(slots_max.max(self.numbers.len()), NO_GROUP);
        let mut merged = Ok(());
        for part in parts {
            self.groups.clear();
            for slot in &part.slots {
                let number = &mut self.numbers[*slot as usize];
                if *number == NO_GROUP {
                    *number = slots.len() as u32;
                    slots.push(*slot);
                }
                self.groups.push(*number as usize);
            }
            let inputs = accumulators.state_inputs(&part.states);
            merged = accumulators.merge(&inputs, &self.groups, slots.len());
            if merged.is_err() {
                break;
            }
        }
        for slot in &slots {
            self.numbers[*slot as usize] = NO_GROUP;
        }
        merged?;
        Ok(Merged { slots, accumulators })
    }

    /// Lets go of the scratch space.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.numbers.capacity() * size_of::<u32>() + self.groups.capacity() * size_of::<usize>()
    }
}

impl Merged {
    /// Results of states that are one per slot.
    ///
    /// # Errors
    /// When a function fails.
    pub(super) fn of_states(slots: Vec<u32>, states: &[ArrayRef], functions: &Accumulators) -> Result<Self> {
        let mut accumulators = functions.successor()?;
        let groups: Vec<usize> = (0..slots.len()).collect();
        let inputs = accumulators.state_inputs(states);
        accumulators.merge(&inputs, &groups, slots.len())?;
        Ok(Self { slots, accumulators })
    }

    /// As a part of larger merges.
    ///
    /// # Errors
    /// When a function fails.
    pub(super) fn into_part(mut self) -> Result<Part> {
        let states = self.accumulators.take_all(Take::States)?;
        Ok(Part {
            slots: self.slots,
            states,
            running: false,
        })
    }

    /// The slots and the results of their groups.
    ///
    /// # Errors
    /// When a function fails.
    pub(super) fn into_results(mut self) -> Result<(Vec<u32>, Vec<ArrayRef>)> {
        let results = self.accumulators.take_all(Take::Results)?;
        Ok((self.slots, results))
    }
}
