//! COUNT, BOOL_AND and BOOL_OR: numbers of rows.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, Int64Array};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Field, Int64Type};

use super::rolling::{Rolling, Rows, field, keep};
use crate::data::Result;
use crate::operator::aggregate::Input;
use crate::operator::keyed::Frozen;

/// Rows whose arguments are not NULL.
#[derive(Default)]
pub(super) struct Count {
    counts: Vec<i64>,
}

impl Rolling for Count {
    fn grow(&mut self, groups: usize) -> Result<()> {
        self.counts.resize(groups, 0);
        Ok(())
    }

    fn update(&mut self, input: &Input, rows: &Rows<'_>) -> Result<()> {
        let nulls = known(&input.values);
        let counts = &mut self.counts;
        rows.each(input.filter.as_ref(), nulls.as_ref(), |_, group, sign| {
            counts[group] += i64::from(sign);
        });
        Ok(())
    }

    fn gather(&self, groups: &[usize]) -> Result<ArrayRef> {
        let counts = groups.iter().map(|group| self.counts[*group]);
        Ok(Arc::new(Int64Array::from_iter_values(counts)))
    }

    fn forget(&mut self, groups: &[usize]) {
        groups.iter().for_each(|group| self.counts[*group] = 0);
    }

    fn compact(&mut self, kept: &[usize]) -> Result<()> {
        keep(&mut self.counts, kept);
        Ok(())
    }

    fn size(&self) -> usize {
        self.counts.capacity() * size_of::<i64>()
    }

    fn fields(&self) -> Result<Vec<Field>> {
        Ok(vec![field("count", DataType::Int64)])
    }

    fn freeze(&mut self, groups: &[u32]) -> Result<Frozen> {
        let counts = groups.iter().map(|group| self.counts[*group as usize]);
        Ok(Frozen::numbers::<Int64Type>(DataType::Int64, counts.collect()))
    }

    fn thaw(&mut self, groups: &[usize], columns: &[ArrayRef]) -> Result<()> {
        let counts = columns[0].as_primitive::<Int64Type>();
        for (group, count) in groups.iter().zip(counts) {
            self.counts[*group] = count.unwrap_or(0);
        }
        Ok(())
    }
}

/// The rows in which no column is NULL.
pub(super) fn known(columns: &[ArrayRef]) -> Option<NullBuffer> {
    columns.iter().fold(None, |known, column| {
        NullBuffer::union(known.as_ref(), column.logical_nulls().as_ref())
    })
}

/// BOOL_AND or BOOL_OR: how many are true, how many are false.
pub(super) struct BoolLogic {
    or: bool,
    counts: Vec<[i64; 2]>,
}

impl BoolLogic {
    pub(super) fn new(or: bool) -> Self {
        Self { or, counts: Vec::new() }
    }
}

impl Rolling for BoolLogic {
    fn grow(&mut self, groups: usize) -> Result<()> {
        self.counts.resize(groups, [0; 2]);
        Ok(())
    }

    fn update(&mut self, input: &Input, rows: &Rows<'_>) -> Result<()> {
        let values = input.values[0].as_boolean();
        let counts = &mut self.counts;
        rows.each(input.filter.as_ref(), values.nulls(), |row, group, sign| {
            counts[group][usize::from(values.value(row))] += i64::from(sign);
        });
        Ok(())
    }

    fn gather(&self, groups: &[usize]) -> Result<ArrayRef> {
        let results = groups.iter().map(|group| match self.counts[*group] {
            [0, 0] => None,
            [falses, trues] => Some(if self.or { trues > 0 } else { falses == 0 }),
        });
        Ok(Arc::new(results.collect::<BooleanArray>()))
    }

    fn forget(&mut self, groups: &[usize]) {
        groups.iter().for_each(|group| self.counts[*group] = [0; 2]);
    }

    fn compact(&mut self, kept: &[usize]) -> Result<()> {
        keep(&mut self.counts, kept);
        Ok(())
    }

    fn size(&self) -> usize {
        self.counts.capacity() * size_of::<[i64; 2]>()
    }

    fn fields(&self) -> Result<Vec<Field>> {
        Ok(vec![field("falses", DataType::Int64), field("trues", DataType::Int64)])
    }

    fn freeze(&mut self, groups: &[u32]) -> Result<Frozen> {
        let counts: Vec<[i64; 2]> = groups.iter().map(|group| self.counts[*group as usize]).collect();
        Ok(Frozen::new(
            counts.capacity() * size_of::<[i64; 2]>(),
            move |positions| {
                let column = |side: usize| -> ArrayRef {
                    let counts = positions.iter().map(|at| counts[*at as usize][side]);
                    Arc::new(Int64Array::from_iter_values(counts))
                };
                Ok(vec![column(0), column(1)])
            },
        ))
    }

    fn thaw(&mut self, groups: &[usize], columns: &[ArrayRef]) -> Result<()> {
        for (side, column) in columns.iter().enumerate() {
            for (group, count) in groups.iter().zip(column.as_primitive::<Int64Type>()) {
                self.counts[*group][side] = count.unwrap_or(0);
            }
        }
        Ok(())
    }
}
