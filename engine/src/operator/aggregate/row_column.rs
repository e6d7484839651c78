//! Keys of nested types: compared and stored in Arrow's row format.

use std::ops::Range;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, Rows, SortField};
use foldhash::fast::FixedState;

use super::bytes_column::{ByteHeap, hash_bytes};
use super::key_column::KeyColumn;
use super::key_value::combine;
use crate::data::{EngineError, Result};
use crate::operator::array_bytes::payload_bytes;

/// Keys of one nested column as rows.
pub(super) struct RowColumn {
    data_type: DataType,
    converter: RowConverter,
    state: FixedState,
    heap: ByteHeap,
    bound: Option<Rows>,
}

impl RowColumn {
    /// An empty column.
    ///
    /// # Errors
    /// When the type has no row format.
    pub(super) fn try_new(data_type: DataType) -> Result<Self> {
        let field = SortField::new(data_type.clone());
        if !RowConverter::supports_fields(std::slice::from_ref(&field)) {
            return Err(EngineError::Plan(format!(
                "cannot group by a column of type {data_type}; cast it first"
            )));
        }
        let converter = RowConverter::new(vec![field])?;
        Ok(Self {
            data_type,
            converter,
            state: FixedState::default(),
            heap: ByteHeap::new(),
            bound: None,
        })
    }
}

impl RowColumn {
    fn parse(&self, groups: impl Iterator<Item = usize>) -> Result<ArrayRef> {
        let parser = self.converter.parser();
        let rows = groups.map(|group| parser.parse(self.heap.get(group)));
        let mut columns = self.converter.convert_rows(rows)?;
        columns
            .pop()
            .ok_or_else(|| EngineError::Internal(format!("no rows of type {}", self.data_type)))
    }
}

impl KeyColumn for RowColumn {
    fn bind(&mut self, array: &ArrayRef) -> Result<()> {
        self.bound = Some(self.converter.convert_columns(std::slice::from_ref(array))?);
        Ok(())
    }

    fn hash(&self, hashes: &mut [u64]) {
        let Some(rows) = &self.bound else { return };
        for (hash, row) in hashes.iter_mut().zip(rows) {
            *hash = combine(*hash, hash_bytes(&self.state, row.data()));
        }
    }

    fn compare(&self, rows: &[u32], groups: &[u32], same: &mut [bool]) {
        let Some(bound) = &self.bound else { return };
        for ((row, group), same) in rows.iter().zip(groups).zip(same) {
            *same = *same && bound.row(*row as usize).data() == self.heap.get(*group as usize);
        }
    }

    fn append(&mut self, rows: &[u32]) {
        let Some(bound) = &self.bound else { return };
        for row in rows {
            self.heap.push(bound.row(*row as usize).data());
        }
    }

    fn release(&mut self) {
        self.bound = None;
    }

    fn emit(&self, range: Range<usize>) -> Result<ArrayRef> {
        self.parse(range)
    }

    fn gather(&self, groups: &[u32]) -> Result<ArrayRef> {
        self.parse(groups.iter().map(|group| *group as usize))
    }

    fn size(&self) -> usize {
        self.converter.size() + self.heap.size()
    }

    fn bytes_in(&self, range: Range<usize>) -> usize {
        self.heap.bytes_in(range)
    }

    fn growth(&self, array: &ArrayRef) -> usize {
        // The row format takes a ninth more than what it encodes; the batch's rows are there beside those stored.
        let rows = payload_bytes(array) * 9 / 8 + array.len() * size_of::<usize>();
        rows + self.heap.growth(array.len(), rows)
    }

    fn frozen(&self) -> Result<Box<dyn KeyColumn>> {
        let mut frozen = Self::try_new(self.data_type.clone())?;
        frozen.heap = self.heap.clone();
        Ok(Box::new(frozen))
    }
}
