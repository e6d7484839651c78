//! Functions of DISTINCT values: how often each value is in each group, and the function over those that are there.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, UInt32Type};

use super::counts::known;
use super::rolling::{Rolling, Rows, keep};
use crate::data::Result;
use crate::operator::aggregate::{GroupTable, Input};

/// Pairs that are gone and never worth a new table.
const GONE_MIN: usize = 1024;
/// Pairs that are copied at once.
const COPIED_PAIRS: usize = 1 << 16;
/// The slot of a group that is not kept.
const NO_SLOT: u32 = u32::MAX;

/// A function of the distinct values of its arguments.
pub(super) struct Distinct {
    types: Vec<DataType>,
    /// Keys are pairs of a slot and the values.
    pairs: GroupTable,
    /// How often each pair is there.
    counts: Vec<u64>,
    /// The slot of each group. A group that is forgotten gets a new one, so that its pairs need not be searched for.
    slots: Vec<u32>,
    next_slot: u32,
    /// Distinct values of each group.
    values: Vec<usize>,
    /// Pairs that are there, in groups that are.
    live: usize,
    inner: Box<dyn Rolling>,
    numbers: Vec<usize>,
}

impl Distinct {
    /// `inner` over the distinct values of arguments of these types.
    ///
    /// # Errors
    /// When a type cannot be compared.
    pub(super) fn new(types: Vec<DataType>, inner: Box<dyn Rolling>) -> Result<Self> {
        Ok(Self {
            pairs: table(&types)?,
            types,
            counts: Vec::new(),
            slots: Vec::new(),
            next_slot: 0,
            values: Vec::new(),
            live: 0,
            inner,
            numbers: Vec::new(),
        })
    }

    /// Copies the pairs that are there into a new table, whose slots are those that `slots` now says.
    fn rebuild(&mut self, new_slots: &[u32]) -> Result<()> {
        let old = std::mem::replace(&mut self.pairs, table(&self.types)?);
        let counts = std::mem::take(&mut self.counts);
        for start in (0..old.len()).step_by(COPIED_PAIRS) {
            let end = (start + COPIED_PAIRS).min(old.len());
            let mut keys = old.emit_keys(start..end)?;
            let slots = keys[0].as_primitive::<UInt32Type>().values().clone();
            let kept = |pair: &usize| counts[*pair] > 0 && new_slots[slots[*pair - start] as usize] != NO_SLOT;
            let kept: Vec<usize> = (start..end).filter(kept).collect();
            if kept.is_empty() {
                continue;
            }
            let rows: UInt32Array = kept.iter().map(|pair| (pair - start) as u32).collect();
            for key in &mut keys {
                *key = take(key, &rows, None)?;
            }
            let renamed = kept.iter().map(|pair| new_slots[slots[pair - start] as usize]);
            keys[0] = Arc::new(UInt32Array::from_iter_values(renamed));
            self.pairs.intern_wider(&keys, &mut self.numbers)?;
            self.counts.extend(kept.iter().map(|pair| counts[*pair]));
        }
        Ok(())
    }

    /// Gives each group the slot of its own number. Says which slot became which.
    fn rename_slots(&mut self) -> Vec<u32> {
        let mut new_slots = vec![NO_SLOT; self.next_slot as usize];
        for (group, slot) in self.slots.iter_mut().enumerate() {
            new_slots[*slot as usize] = group as u32;
            *slot = group as u32;
        }
        self.next_slot = self.slots.len() as u32;
        new_slots
    }
}

fn table(types: &[DataType]) -> Result<GroupTable> {
    GroupTable::new([DataType::UInt32].into_iter().chain(types.iter().cloned()).collect())
}

impl Rolling for Distinct {
    fn grow(&mut self, groups: usize) -> Result<()> {
        while self.slots.len() < groups {
            self.slots.push(self.next_slot);
            self.next_slot += 1;
        }
        self.values.resize(groups, 0);
        self.inner.grow(groups)
    }

    fn update(&mut self, input: &Input, rows: &Rows<'_>) -> Result<()> {
        let nulls = known(&input.values);
        let (mut at, mut groups, mut signs) = (Vec::new(), Vec::new(), Vec::new());
        rows.each(input.filter.as_ref(), nulls.as_ref(), |row, group, sign| {
            at.push(row as u32);
            groups.push(group);
            signs.push(sign);
        });
        if at.is_empty() {
            return Ok(());
        }
        let at = UInt32Array::from(at);
        let slots = groups.iter().map(|group| self.slots[*group]);
        let mut keys: Vec<ArrayRef> = vec![Arc::new(UInt32Array::from_iter_values(slots))];
        for column in &input.values {
            keys.push(take(column, &at, None)?);
        }
        self.pairs.intern_wider(&keys, &mut self.numbers)?;
        self.counts.resize(self.pairs.len(), 0);
        // What is left of the signs are the values that come to a group or leave it.
        for (row, pair) in self.numbers.iter().enumerate() {
            let count = &mut self.counts[*pair];
            let of_group = &mut self.values[groups[row]];
            match (signs[row] > 0, *count) {
                (true, before) => {
                    *count += 1;
                    if before > 0 {
                        signs[row] = 0;
                    } else {
                        *of_group += 1;
                        self.live += 1;
                    }
                }
                (false, 0) => signs[row] = 0,
                (false, before) => {
                    *count -= 1;
                    if before > 1 {
                        signs[row] = 0;
                    } else {
                        *of_group -= 1;
                        self.live -= 1;
                    }
                }
            }
        }
        let input = Input {
            values: keys.split_off(1),
            filter: None,
        };
        let rows = Rows {
            groups: &groups,
            signs: Some(&signs),
        };
        self.inner.update(&input, &rows)?;
        let gone = self.pairs.len() - self.live;
        if gone > GONE_MIN && gone > self.live {
            let new_slots = self.rename_slots();
            self.rebuild(&new_slots)?;
        }
        Ok(())
    }

    fn gather(&self, groups: &[usize]) -> Result<ArrayRef> {
        self.inner.gather(groups)
    }

    fn forget(&mut self, groups: &[usize]) {
        for group in groups {
            if self.values[*group] > 0 {
                self.live -= self.values[*group];
                self.values[*group] = 0;
                self.slots[*group] = self.next_slot;
                self.next_slot += 1;
            }
        }
        self.inner.forget(groups);
    }

    fn compact(&mut self, kept: &[usize]) -> Result<()> {
        keep(&mut self.slots, kept);
        keep(&mut self.values, kept);
        self.live = self.values.iter().sum();
        let new_slots = self.rename_slots();
        self.rebuild(&new_slots)?;
        self.inner.compact(kept)
    }

    fn size(&self) -> usize {
        self.pairs.size()
            + self.counts.capacity() * size_of::<u64>()
            + self.slots.capacity() * (size_of::<u32>() + size_of::<usize>())
            + self.numbers.capacity() * size_of::<usize>()
            + self.inner.size()
    }
}
