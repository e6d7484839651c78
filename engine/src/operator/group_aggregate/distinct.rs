//! Functions of DISTINCT values: how often each value is in each group, and the function over those that are there.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, UInt32Array, UInt64Array};
use arrow::compute::take;
use arrow::datatypes::{DataType, Field, UInt32Type, UInt64Type};

use super::counts::known;
use super::rolling::{Entries, FrozenEntries, Rolling, Rows, field, keep};
use crate::data::{Result, canonical_floats, has_nested_float};
use crate::operator::aggregate::{GroupTable, Input, plain_type};
use crate::operator::keyed::{FROZEN_ROWS, Frozen};

/// Pairs that are gone and never worth a new table.
const GONE_MIN: usize = 1024;
/// Pairs that are copied at once.
const COPIED_PAIRS: usize = 1 << 16;
/// The slot of a group that is not kept.
const NO_SLOT: u32 = u32::MAX;

/// A function of the distinct values of its arguments.
pub(super) struct Distinct {
    types: Vec<DataType>,
    has_floats: Vec<bool>,
    /// Whether a NULL is a value.
    keeps_nulls: bool,
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
    /// `inner` over the distinct values of arguments of these types. Rows with a NULL count only with `keeps_nulls`.
    ///
    /// # Errors
    /// When a type cannot be compared.
    pub(super) fn new(types: Vec<DataType>, keeps_nulls: bool, inner: Box<dyn Rolling>) -> Result<Self> {
        Ok(Self {
            pairs: table(&types)?,
            has_floats: types
                .iter()
                .map(|of| of.is_floating() || has_nested_float(of))
                .collect(),
            types,
            keeps_nulls,
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

/// The pairs of a range that are there: their groups, their values and how often they are there.
fn present(pairs: &GroupTable, counts: &[u64], groups: &[u32], range: std::ops::Range<usize>) -> Result<Entries> {
    let numbers: Vec<u32> = range.map(|pair| pair as u32).collect();
    let mut columns = pairs.gather_plain(&numbers)?;
    let slots = columns.remove(0);
    let of_pairs: Vec<u32> = slots
        .as_primitive::<UInt32Type>()
        .values()
        .iter()
        .map(|slot| groups[*slot as usize])
        .collect();
    let is_there = |at: &usize| of_pairs[*at] != NO_SLOT && counts[numbers[*at] as usize] > 0;
    let kept: Vec<usize> = (0..numbers.len()).filter(is_there).collect();
    let rows: UInt32Array = kept.iter().map(|at| *at as u32).collect();
    for column in &mut columns {
        *column = take(column, &rows, None)?;
    }
    let counts = kept.iter().map(|at| counts[numbers[*at] as usize]);
    columns.push(Arc::new(UInt64Array::from_iter_values(counts)));
    Ok((kept.iter().map(|at| of_pairs[*at]).collect(), columns))
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
        let nulls = known(&input.values).filter(|_| !self.keeps_nulls);
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
        for (column, has_floats) in input.values.iter().zip(&self.has_floats) {
            let column = take(column, &at, None)?;
            // A value may go in another form of the same float than it came.
            keys.push(if *has_floats {
                canonical_floats(&column)?
            } else {
                column
            });
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

    fn fields(&self) -> Result<Vec<Field>> {
        self.inner.fields()
    }

    fn freeze(&mut self, groups: &[u32]) -> Result<Frozen> {
        self.inner.freeze(groups)
    }

    fn thaw(&mut self, groups: &[usize], columns: &[ArrayRef]) -> Result<()> {
        self.inner.thaw(groups, columns)
    }

    fn entry_fields(&self) -> Vec<Field> {
        let value = |(at, of): (usize, &DataType)| field(&format!("value_{}", at + 1), plain_type(of).clone());
        let values = self.types.iter().enumerate().map(value);
        values.chain([field("count", DataType::UInt64)]).collect()
    }

    fn freeze_entries(&self) -> Result<Option<FrozenEntries>> {
        let mut groups = vec![NO_SLOT; self.next_slot as usize];
        for (group, slot) in self.slots.iter().enumerate() {
            groups[*slot as usize] = group as u32;
        }
        let (pairs, counts) = (self.pairs.frozen()?, self.counts.clone());
        let bytes = pairs.size() + counts.capacity() * size_of::<u64>() + groups.capacity() * size_of::<u32>();
        let entries = (0..counts.len()).step_by(FROZEN_ROWS).map(move |start| {
            let range = start..(start + FROZEN_ROWS).min(counts.len());
            present(&pairs, &counts, &groups, range)
        });
        Ok(Some(FrozenEntries {
            entries: Box::new(entries),
            bytes,
        }))
    }

    fn thaw_entries(&mut self, groups: &[usize], columns: &[ArrayRef]) -> Result<()> {
        let slots = groups.iter().map(|group| self.slots[*group]);
        let mut keys: Vec<ArrayRef> = vec![Arc::new(UInt32Array::from_iter_values(slots))];
        keys.extend(columns[..self.types.len()].iter().cloned());
        self.pairs.intern_wider(&keys, &mut self.numbers)?;
        self.counts.resize(self.pairs.len(), 0);
        let counts = columns[self.types.len()].as_primitive::<UInt64Type>().values();
        for ((pair, group), count) in self.numbers.iter().zip(groups).zip(counts) {
            self.counts[*pair] = *count;
            self.values[*group] += 1;
            self.live += 1;
        }
        Ok(())
    }
}
