//! MIN and MAX. Over insertions the best value per group; over a changelog all values of a group in order with their numbers,
//! so that the next best is known when the best is taken back.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, UInt64Array, downcast_primitive};
use arrow::datatypes::{DataType, Field, UInt64Type};

use super::rolling::{FrozenEntries, Rolling, Rows, field, keep};
use super::values::{Codec, Encoded, Numbers};
use crate::data::Result;
use crate::operator::aggregate::Input;
use crate::operator::keyed::Frozen;

/// MIN, or MAX with `largest`.
///
/// # Errors
/// When the type has no order.
pub(super) fn extreme(argument: &DataType, largest: bool, changelog: bool) -> Result<Box<dyn Rolling>> {
    macro_rules! numbers {
        ($t:ty) => {
            boxed(Numbers::<$t>::new(argument.clone()), largest, changelog)
        };
    }
    Ok(downcast_primitive! {
        argument => (numbers),
        _ => boxed(Encoded::new(argument)?, largest, changelog),
    })
}

fn boxed<C: Codec + 'static>(codec: C, largest: bool, changelog: bool) -> Box<dyn Rolling> {
    if changelog {
        return Box::new(Ordered {
            codec,
            largest,
            values: Vec::new(),
            entries: 0,
            heap_bytes: 0,
        });
    }
    Box::new(Best {
        codec,
        wanted: if largest { Ordering::Greater } else { Ordering::Less },
        best: Vec::new(),
        heap_bytes: 0,
    })
}

struct Best<C: Codec> {
    codec: C,
    /// How a better value compares with the best.
    wanted: Ordering,
    best: Vec<Option<C::Value>>,
    heap_bytes: usize,
}

impl<C: Codec> Rolling for Best<C> {
    fn grow(&mut self, groups: usize) -> Result<()> {
        self.best.resize(groups, None);
        Ok(())
    }

    fn update(&mut self, input: &Input, rows: &Rows<'_>) -> Result<()> {
        let nulls = input.values[0].logical_nulls();
        let column = self.codec.encode(&input.values[0])?;
        let (best, wanted, heap_bytes) = (&mut self.best, self.wanted, &mut self.heap_bytes);
        rows.each(input.filter.as_ref(), nulls.as_ref(), |row, group, _| {
            let best = &mut best[group];
            let better = best
                .as_ref()
                .is_none_or(|best| C::compare(&column, row, best) == wanted);
            if better {
                let value = C::value(&column, row);
                *heap_bytes += C::heap_bytes(&value);
                if let Some(old) = best.replace(value) {
                    *heap_bytes -= C::heap_bytes(&old);
                }
            }
        });
        Ok(())
    }

    fn gather(&self, groups: &[usize]) -> Result<ArrayRef> {
        self.codec.decode(groups.iter().map(|group| self.best[*group].as_ref()))
    }

    fn forget(&mut self, groups: &[usize]) {
        for group in groups {
            if let Some(old) = self.best[*group].take() {
                self.heap_bytes -= C::heap_bytes(&old);
            }
        }
    }

    fn compact(&mut self, kept: &[usize]) -> Result<()> {
        keep(&mut self.best, kept);
        Ok(())
    }

    fn size(&self) -> usize {
        self.best.capacity() * size_of::<Option<C::Value>>() + self.heap_bytes
    }

    fn fields(&self) -> Result<Vec<Field>> {
        Ok(vec![field("best", self.codec.data_type().clone())])
    }

    fn freeze(&mut self, groups: &[u32]) -> Result<Frozen> {
        let best = groups.iter().map(|group| self.best[*group as usize].as_ref());
        let values = self.codec.freeze(best);
        Ok(Frozen::new(values.bytes, move |positions| {
            Ok(vec![(values.column)(positions)?])
        }))
    }

    fn thaw(&mut self, groups: &[usize], columns: &[ArrayRef]) -> Result<()> {
        let nulls = columns[0].logical_nulls();
        let column = self.codec.encode(&columns[0])?;
        for (row, group) in groups.iter().enumerate() {
            if nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row)) {
                let value = C::value(&column, row);
                self.heap_bytes += C::heap_bytes(&value);
                self.best[*group] = Some(value);
            }
        }
        Ok(())
    }
}

struct Ordered<C: Codec> {
    codec: C,
    largest: bool,
    /// How often each value is in the group.
    values: Vec<BTreeMap<C::Value, u64>>,
    entries: usize,
    heap_bytes: usize,
}

impl<C: Codec> Rolling for Ordered<C> {
    fn grow(&mut self, groups: usize) -> Result<()> {
        self.values.resize_with(groups, BTreeMap::new);
        Ok(())
    }

    fn update(&mut self, input: &Input, rows: &Rows<'_>) -> Result<()> {
        let nulls = input.values[0].logical_nulls();
        let column = self.codec.encode(&input.values[0])?;
        let (values, entries, heap_bytes) = (&mut self.values, &mut self.entries, &mut self.heap_bytes);
        rows.each(input.filter.as_ref(), nulls.as_ref(), |row, group, sign| {
            let value = C::value(&column, row);
            let of_group = &mut values[group];
            if sign > 0 {
                if let Some(count) = of_group.get_mut(&value) {
                    *count += 1;
                } else {
                    *heap_bytes += C::heap_bytes(&value);
                    *entries += 1;
                    of_group.insert(value, 1);
                }
            } else if let Some(count) = of_group.get_mut(&value) {
                *count -= 1;
                if *count == 0 {
                    *heap_bytes -= C::heap_bytes(&value);
                    *entries -= 1;
                    of_group.remove(&value);
                }
            }
        });
        Ok(())
    }

    fn gather(&self, groups: &[usize]) -> Result<ArrayRef> {
        self.codec.decode(groups.iter().map(|group| {
            let of_group = &self.values[*group];
            let best = if self.largest {
                of_group.last_key_value()
            } else {
                of_group.first_key_value()
            };
            best.map(|(value, _)| value)
        }))
    }

    fn forget(&mut self, groups: &[usize]) {
        for group in groups {
            let old = std::mem::take(&mut self.values[*group]);
            self.entries -= old.len();
            self.heap_bytes -= old.keys().map(C::heap_bytes).sum::<usize>();
        }
    }

    fn compact(&mut self, kept: &[usize]) -> Result<()> {
        keep(&mut self.values, kept);
        Ok(())
    }

    fn size(&self) -> usize {
        // Nodes of a tree are two thirds full or so.
        self.values.capacity() * size_of::<BTreeMap<C::Value, u64>>()
            + self.entries * (size_of::<C::Value>() + size_of::<u64>()) * 3 / 2
            + self.heap_bytes
    }

    fn fields(&self) -> Result<Vec<Field>> {
        Ok(Vec::new())
    }

    fn freeze(&mut self, _groups: &[u32]) -> Result<Frozen> {
        Ok(Frozen::new(0, |_| Ok(Vec::new())))
    }

    fn thaw(&mut self, _groups: &[usize], _columns: &[ArrayRef]) -> Result<()> {
        Ok(())
    }

    fn entry_fields(&self) -> Vec<Field> {
        vec![
            field("value", self.codec.data_type().clone()),
            field("count", DataType::UInt64),
        ]
    }

    fn freeze_entries(&self) -> Result<Option<FrozenEntries>> {
        let (mut groups, mut counts) = (Vec::new(), Vec::new());
        for (group, values) in self.values.iter().enumerate() {
            groups.resize(groups.len() + values.len(), group as u32);
            counts.extend(values.values());
        }
        let values = self.codec.freeze(self.values.iter().flat_map(BTreeMap::keys).map(Some));
        let bytes = values.bytes + counts.capacity() * size_of::<u64>();
        let frozen = Frozen::new(bytes, move |positions| {
            let counts = positions.iter().map(|at| counts[*at as usize]);
            let counts = UInt64Array::from_iter_values(counts);
            Ok(vec![(values.column)(positions)?, Arc::new(counts)])
        });
        Ok(Some(FrozenEntries::new(groups, frozen)))
    }

    fn thaw_entries(&mut self, groups: &[usize], columns: &[ArrayRef]) -> Result<()> {
        let column = self.codec.encode(&columns[0])?;
        let counts = columns[1].as_primitive::<UInt64Type>().values();
        for (row, group) in groups.iter().enumerate() {
            let value = C::value(&column, row);
            self.heap_bytes += C::heap_bytes(&value);
            self.entries += 1;
            self.values[*group].insert(value, counts[row]);
        }
        Ok(())
    }
}
