//! Keys of any types, stored column by column.
//!
//! A batch is interned in rounds, each a few tight loops instead of one per row and column: hash all rows; probe all
//! rows (a free slot makes a new group, a slot of the same hash a candidate); append the new keys column by column;
//! compare all candidates column by column. Rows whose candidate was another key go on probing in the next round; there
//! are next to none.

use std::ops::Range;

use arrow::array::{Array, ArrayRef, downcast_primitive};
use arrow::array::{
    BinaryArray, BinaryViewArray, FixedSizeBinaryArray, LargeBinaryArray, LargeStringArray, StringArray,
    StringViewArray,
};
use arrow::datatypes::DataType;

use super::bytes_column::BytesColumn;
use super::group_table::KeyStore;
use super::key_column::{KeyColumn, PrimitiveColumn};
use super::row_column::RowColumn;
use super::slots::{Probed, Slots};
use crate::data::Result;

/// Keys stored column by column, and the index over them.
pub(super) struct ColumnKeys {
    columns: Vec<Box<dyn KeyColumn>>,
    slots: Slots,
    groups: usize,
    round: Round,
}

/// Bytes of a [`Round`] for each row of the largest batch.
const ROUND_BYTES_PER_ROW: usize =
    size_of::<u64>() + size_of::<(u32, usize)>() + 3 * size_of::<u32>() + size_of::<usize>() + 1;

/// What one round works on.
#[derive(Default)]
struct Round {
    hashes: Vec<u64>,
    /// Rows still without a group, with the position to probe next.
    pending: Vec<(u32, usize)>,
    new_rows: Vec<u32>,
    /// Rows and the groups whose keys may be theirs, and where the probe stands.
    rows: Vec<u32>,
    candidates: Vec<u32>,
    positions: Vec<usize>,
    same: Vec<bool>,
}

impl ColumnKeys {
    /// For columns of these types.
    ///
    /// # Errors
    /// When a type cannot be a group key.
    pub(super) fn new(types: &[DataType]) -> Result<Self> {
        let columns = types.iter().map(column_for).collect::<Result<_>>()?;
        Ok(Self {
            columns,
            slots: Slots::new(),
            groups: 0,
            round: Round::default(),
        })
    }

    fn probe(&mut self, groups: &mut [usize]) {
        let round = &mut self.round;
        round.new_rows.clear();
        round.rows.clear();
        round.candidates.clear();
        round.positions.clear();
        for (row, position) in round.pending.drain(..) {
            let hash = (round.hashes[row as usize] >> 32) as u32;
            match self.slots.probe(hash, position) {
                Probed::Free(at) => {
                    self.slots.occupy(at, hash, self.groups as u32);
                    groups[row as usize] = self.groups;
                    self.groups += 1;
                    round.new_rows.push(row);
                }
                Probed::Candidate(group, at) => {
                    round.rows.push(row);
                    round.candidates.push(group);
                    round.positions.push(at);
                }
            }
        }
    }

    fn compare(&mut self, groups: &mut [usize]) {
        let round = &mut self.round;
        round.same.clear();
        round.same.resize(round.rows.len(), true);
        for column in &self.columns {
            column.compare(&round.rows, &round.candidates, &mut round.same);
        }
        for (i, row) in round.rows.iter().enumerate() {
            if round.same[i] {
                groups[*row as usize] = round.candidates[i] as usize;
            } else {
                round.pending.push((*row, self.slots.next(round.positions[i])));
            }
        }
    }
}

fn column_for(data_type: &DataType) -> Result<Box<dyn KeyColumn>> {
    macro_rules! primitive {
        ($t:ty) => {
            Box::new(PrimitiveColumn::<$t>::new(data_type.clone()))
        };
    }
    Ok(downcast_primitive! {
        data_type => (primitive),
        DataType::Utf8 => Box::new(BytesColumn::<StringArray>::new(data_type.clone())),
        DataType::LargeUtf8 => Box::new(BytesColumn::<LargeStringArray>::new(data_type.clone())),
        DataType::Utf8View => Box::new(BytesColumn::<StringViewArray>::new(data_type.clone())),
        DataType::Binary => Box::new(BytesColumn::<BinaryArray>::new(data_type.clone())),
        DataType::LargeBinary => Box::new(BytesColumn::<LargeBinaryArray>::new(data_type.clone())),
        DataType::BinaryView => Box::new(BytesColumn::<BinaryViewArray>::new(data_type.clone())),
        DataType::FixedSizeBinary(_) => Box::new(BytesColumn::<FixedSizeBinaryArray>::new(data_type.clone())),
        _ => Box::new(RowColumn::try_new(data_type.clone())?)
    })
}

impl KeyStore for ColumnKeys {
    fn accepts(&self, _arrays: &[ArrayRef]) -> bool {
        true
    }

    fn intern(&mut self, arrays: &[ArrayRef], groups: &mut Vec<usize>) -> Result<()> {
        let rows = arrays[0].len();
        self.slots.reserve(rows)?;
        self.round.hashes.clear();
        self.round.hashes.resize(rows, 0);
        for (column, array) in self.columns.iter_mut().zip(arrays) {
            column.bind(array)?;
            column.hash(&mut self.round.hashes);
        }
        let (slots, round) = (&self.slots, &mut self.round);
        let homes = round.hashes.iter().map(|hash| slots.home((hash >> 32) as u32));
        round.pending.clear();
        round.pending.extend((0..rows as u32).zip(homes));
        groups.clear();
        groups.resize(rows, 0);
        while !self.round.pending.is_empty() {
            self.probe(groups);
            for column in &mut self.columns {
                column.append(&self.round.new_rows);
            }
            self.compare(groups);
        }
        for column in &mut self.columns {
            column.release();
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.groups
    }

    fn emit(&self, range: Range<usize>) -> Result<Vec<ArrayRef>> {
        self.columns.iter().map(|column| column.emit(range.clone())).collect()
    }

    fn gather(&self, groups: &[u32]) -> Result<Vec<ArrayRef>> {
        self.columns.iter().map(|column| column.gather(groups)).collect()
    }

    fn size(&self) -> usize {
        let columns: usize = self.columns.iter().map(|column| column.size()).sum();
        columns + self.slots.size() + self.round.hashes.capacity() * ROUND_BYTES_PER_ROW
    }

    fn bytes_in(&self, range: Range<usize>) -> usize {
        self.columns.iter().map(|column| column.bytes_in(range.clone())).sum()
    }

    fn growth(&self, columns: &[ArrayRef]) -> usize {
        let rows = columns.first().map_or(0, |column| column.len());
        let round = rows.saturating_sub(self.round.hashes.capacity()) * ROUND_BYTES_PER_ROW;
        let keys = self.columns.iter().zip(columns);
        self.slots.growth(rows) + round + keys.map(|(keys, column)| keys.growth(column)).sum::<usize>()
    }

    fn frozen(&self) -> Result<Box<dyn KeyStore>> {
        let columns = self.columns.iter().map(|column| column.frozen());
        Ok(Box::new(Self {
            columns: columns.collect::<Result<_>>()?,
            slots: Slots::new(),
            groups: self.groups,
            round: Round::default(),
        }))
    }
}
