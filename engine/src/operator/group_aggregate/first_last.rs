//! FIRST_VALUE, LAST_VALUE and ANY_VALUE by arrival. Over insertions one value per group; over a changelog all values in
//! the order in which they came: of equal ones the oldest is taken back, as Flink does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, UInt64Array, downcast_primitive};
use arrow::datatypes::{DataType, Field, UInt64Type};

use super::rolling::{FrozenEntries, Rolling, Rows, field, keep};
use super::values::{Codec, Encoded, Numbers};
use crate::data::Result;
use crate::operator::aggregate::Input;
use crate::operator::keyed::Frozen;

/// The first value, or the last.
///
/// # Errors
/// When the type has no row format.
pub(super) fn first_last(
    argument: &DataType,
    last: bool,
    ignore_nulls: bool,
    changelog: bool,
) -> Result<Box<dyn Rolling>> {
    macro_rules! numbers {
        ($t:ty) => {
            boxed(
                Numbers::<$t>::new(argument.clone()),
                last,
                ignore_nulls,
                changelog,
            )
        };
    }
    Ok(downcast_primitive! {
        argument => (numbers),
        _ => boxed(Encoded::new(argument)?, last, ignore_nulls, changelog),
    })
}

fn boxed<C: Codec + 'static>(codec: C, last: bool, ignore_nulls: bool, changelog: bool) -> Box<dyn Rolling> {
    if changelog {
        return Box::new(Sequence {
            codec,
            last,
            ignore_nulls,
            groups: Vec::new(),
            next: 0,
            entries: 0,
            heap_bytes: 0,
        });
    }
    Box::new(One {
        codec,
        last,
        ignore_nulls,
        held: Vec::new(),
        heap_bytes: 0,
    })
}

/// A value; NULL is one too.
type Held<C> = Option<<C as Codec>::Value>;

struct One<C: Codec> {
    codec: C,
    last: bool,
    ignore_nulls: bool,
    held: Vec<Option<Held<C>>>,
    heap_bytes: usize,
}

impl<C: Codec> Rolling for One<C> {
    fn grow(&mut self, groups: usize) -> Result<()> {
        self.held.resize(groups, None);
        Ok(())
    }

    fn update(&mut self, input: &Input, rows: &Rows<'_>) -> Result<()> {
        let nulls = input.values[0].logical_nulls();
        let column = self.codec.encode(&input.values[0])?;
        let ignored = nulls.as_ref().filter(|_| self.ignore_nulls);
        let (held, last, heap_bytes) = (&mut self.held, self.last, &mut self.heap_bytes);
        rows.each(input.filter.as_ref(), ignored, |row, group, _| {
            let held = &mut held[group];
            if last || held.is_none() {
                let known = nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
                let value = known.then(|| C::value(&column, row));
                *heap_bytes += value.as_ref().map_or(0, C::heap_bytes);
                if let Some(Some(old)) = held.replace(value) {
                    *heap_bytes -= C::heap_bytes(&old);
                }
            }
        });
        Ok(())
    }

    fn gather(&self, groups: &[usize]) -> Result<ArrayRef> {
        let held = groups.iter().map(|group| self.held[*group].as_ref());
        self.codec.decode(held.map(|held| held.and_then(Option::as_ref)))
    }

    fn forget(&mut self, groups: &[usize]) {
        for group in groups {
            if let Some(Some(old)) = self.held[*group].take() {
                self.heap_bytes -= C::heap_bytes(&old);
            }
        }
    }

    fn compact(&mut self, kept: &[usize]) -> Result<()> {
        keep(&mut self.held, kept);
        Ok(())
    }

    fn size(&self) -> usize {
        self.held.capacity() * size_of::<Option<Held<C>>>() + self.heap_bytes
    }

    fn fields(&self) -> Result<Vec<Field>> {
        Ok(vec![
            field("value", self.codec.data_type().clone()),
            field("is_there", DataType::Boolean),
        ])
    }

    fn freeze(&mut self, groups: &[u32]) -> Result<Frozen> {
        let held = || groups.iter().map(|group| self.held[*group as usize].as_ref());
        let values = self.codec.freeze(held().map(|held| held.and_then(Option::as_ref)));
        let is_there: Vec<bool> = held().map(|held| held.is_some()).collect();
        Ok(Frozen::new(values.bytes + is_there.capacity(), move |positions| {
            let is_there = positions.iter().map(|at| Some(is_there[*at as usize]));
            let is_there: BooleanArray = is_there.collect();
            Ok(vec![(values.column)(positions)?, Arc::new(is_there)])
        }))
    }

    fn thaw(&mut self, groups: &[usize], columns: &[ArrayRef]) -> Result<()> {
        let nulls = columns[0].logical_nulls();
        let column = self.codec.encode(&columns[0])?;
        for ((row, group), is_there) in groups.iter().enumerate().zip(columns[1].as_boolean()) {
            if is_there != Some(true) {
                continue;
            }
            let known = nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
            let value = known.then(|| C::value(&column, row));
            self.heap_bytes += value.as_ref().map_or(0, C::heap_bytes);
            self.held[*group] = Some(value);
        }
        Ok(())
    }
}

struct Arrivals<C: Codec> {
    by_time: BTreeMap<u64, Held<C>>,
    by_value: BTreeMap<Held<C>, VecDeque<u64>>,
}

impl<C: Codec> Default for Arrivals<C> {
    fn default() -> Self {
        Self {
            by_time: BTreeMap::new(),
            by_value: BTreeMap::new(),
        }
    }
}

struct Sequence<C: Codec> {
    codec: C,
    last: bool,
    ignore_nulls: bool,
    groups: Vec<Arrivals<C>>,
    next: u64,
    entries: usize,
    heap_bytes: usize,
}

impl<C: Codec> Rolling for Sequence<C> {
    fn grow(&mut self, groups: usize) -> Result<()> {
        self.groups.resize_with(groups, Arrivals::default);
        Ok(())
    }

    fn update(&mut self, input: &Input, rows: &Rows<'_>) -> Result<()> {
        let nulls = input.values[0].logical_nulls();
        let column = self.codec.encode(&input.values[0])?;
        let ignored = nulls.as_ref().filter(|_| self.ignore_nulls);
        let (groups, next) = (&mut self.groups, &mut self.next);
        let (entries, heap_bytes) = (&mut self.entries, &mut self.heap_bytes);
        rows.each(input.filter.as_ref(), ignored, |row, group, sign| {
            let known = nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
            let value = known.then(|| C::value(&column, row));
            let bytes = 2 * value.as_ref().map_or(0, C::heap_bytes);
            let arrivals = &mut groups[group];
            if sign > 0 {
                arrivals.by_time.insert(*next, value.clone());
                arrivals.by_value.entry(value).or_default().push_back(*next);
                *next += 1;
                *entries += 1;
                *heap_bytes += bytes;
            } else if let Some(times) = arrivals.by_value.get_mut(&value) {
                if let Some(time) = times.pop_front() {
                    arrivals.by_time.remove(&time);
                    *entries -= 1;
                    *heap_bytes -= bytes;
                }
                if times.is_empty() {
                    arrivals.by_value.remove(&value);
                }
            }
        });
        Ok(())
    }

    fn gather(&self, groups: &[usize]) -> Result<ArrayRef> {
        self.codec.decode(groups.iter().map(|group| {
            let by_time = &self.groups[*group].by_time;
            let held = if self.last {
                by_time.last_key_value()
            } else {
                by_time.first_key_value()
            };
            held.and_then(|(_, value)| value.as_ref())
        }))
    }

    fn forget(&mut self, groups: &[usize]) {
        for group in groups {
            let old = std::mem::take(&mut self.groups[*group]);
            self.entries -= old.by_time.len();
            let bytes = old.by_time.values().flatten().map(C::heap_bytes);
            self.heap_bytes -= 2 * bytes.sum::<usize>();
        }
    }

    fn compact(&mut self, kept: &[usize]) -> Result<()> {
        keep(&mut self.groups, kept);
        Ok(())
    }

    fn size(&self) -> usize {
        self.groups.capacity() * size_of::<Arrivals<C>>()
            + self.entries * (2 * size_of::<Held<C>>() + 3 * size_of::<u64>()) * 3 / 2
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
            field("arrival", DataType::UInt64),
        ]
    }

    fn freeze_entries(&self) -> Result<Option<FrozenEntries>> {
        let (mut groups, mut arrivals) = (Vec::new(), Vec::new());
        for (group, values) in self.groups.iter().enumerate() {
            groups.resize(groups.len() + values.by_time.len(), group as u32);
            arrivals.extend(values.by_time.keys().copied());
        }
        let values = self.groups.iter().flat_map(|values| values.by_time.values());
        let values = self.codec.freeze(values.map(Option::as_ref));
        let bytes = values.bytes + arrivals.capacity() * size_of::<u64>();
        let frozen = Frozen::new(bytes, move |positions| {
            let arrivals = positions.iter().map(|at| arrivals[*at as usize]);
            let arrivals = UInt64Array::from_iter_values(arrivals);
            Ok(vec![(values.column)(positions)?, Arc::new(arrivals)])
        });
        Ok(Some(FrozenEntries::new(groups, frozen)))
    }

    fn thaw_entries(&mut self, groups: &[usize], columns: &[ArrayRef]) -> Result<()> {
        let nulls = columns[0].logical_nulls();
        let column = self.codec.encode(&columns[0])?;
        let times = columns[1].as_primitive::<UInt64Type>().values();
        for (row, group) in groups.iter().enumerate() {
            let known = nulls.as_ref().is_none_or(|nulls| nulls.is_valid(row));
            let value = known.then(|| C::value(&column, row));
            self.heap_bytes += 2 * value.as_ref().map_or(0, C::heap_bytes);
            self.entries += 1;
            self.next = self.next.max(times[row] + 1);
            let of_group = &mut self.groups[*group];
            of_group.by_time.insert(times[row], value.clone());
            // Entries of a group may come in any order.
            let of_value = of_group.by_value.entry(value).or_default();
            let at = of_value.partition_point(|time| *time < times[row]);
            of_value.insert(at, times[row]);
        }
        Ok(())
    }
}
