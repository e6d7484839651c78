//! What is stored by slot: keys, values, and what the table knows of each slot.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatchOptions, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::column::{Column, column};
use super::pages::Pages;
use super::source::Layout;
use crate::data::{Batch, Result};

/// Set in the epoch of a slot whose key is gone: it is kept to tell so.
pub(super) const DEAD: u32 = 1 << 31;
/// The epoch of a slot that is not in use.
pub(super) const FREE: u32 = u32::MAX;

/// Columns of a run before the keys: hash, epoch, time of last use.
pub(super) const BEFORE_KEYS: usize = 3;

/// The columns by slot.
pub(super) struct Store {
    pub(super) keys: Vec<Box<dyn Column>>,
    pub(super) values: Vec<Box<dyn Column>>,
    pub(super) hashes: Pages<u64>,
    /// After which barrier a slot was written last.
    pub(super) epochs: Pages<u32>,
    /// When a slot was used last, if the table has a time to live.
    pub(super) touched: Option<Pages<i64>>,
}

impl Store {
    /// Columns of these layouts and types, `keys` of them the key.
    pub(super) fn new(layouts: &[Layout], schema: &Schema, keys: usize, has_ttl: bool) -> Result<Self> {
        let columns = layouts.iter().zip(schema.fields());
        let mut columns = columns
            .map(|(layout, field)| column(layout, field.data_type()))
            .collect::<Result<Vec<_>>>()?;
        let values = columns.split_off(keys);
        Ok(Self {
            keys: columns,
            values,
            hashes: Pages::new(0),
            epochs: Pages::new(FREE),
            touched: has_ttl.then(|| Pages::new(0)),
        })
    }

    pub(super) fn grow(&mut self, slots: usize) {
        self.columns().for_each(|column| column.grow(slots));
        self.hashes.grow(slots);
        self.epochs.grow(slots);
        if let Some(touched) = &mut self.touched {
            touched.grow(slots);
        }
    }

    pub(super) fn columns(&mut self) -> impl Iterator<Item = &mut Box<dyn Column>> {
        self.keys.iter_mut().chain(&mut self.values)
    }

    pub(super) fn freeze(&mut self) -> Self {
        Self {
            keys: self.keys.iter_mut().map(|column| column.freeze()).collect(),
            values: self.values.iter_mut().map(|column| column.freeze()).collect(),
            hashes: self.hashes.freeze(),
            epochs: self.epochs.freeze(),
            touched: self.touched.as_mut().map(Pages::freeze),
        }
    }

    pub(super) fn compacted(&self, slots: &[u32]) -> Self {
        Self {
            keys: self.keys.iter().map(|column| column.compacted(slots)).collect(),
            values: self.values.iter().map(|column| column.compacted(slots)).collect(),
            hashes: self.hashes.compacted(slots),
            epochs: self.epochs.compacted(slots),
            touched: self.touched.as_ref().map(|touched| touched.compacted(slots)),
        }
    }

    /// Keys, values, and when the table has a time to live the time of last use.
    pub(super) fn rows(&self, slots: &[u32], schema: &SchemaRef) -> Result<Batch> {
        let columns = self.keys.iter().chain(&self.values).map(|column| column.gather(slots));
        let mut columns = columns.collect::<Result<Vec<_>>>()?;
        if let Some(touched) = &self.touched {
            columns.push(Arc::new(Int64Array::from_iter_values(
                slots.iter().map(|slot| touched.get(*slot)),
            )));
        }
        batch_of(schema, columns, slots.len())
    }

    /// The rows as a run holds them.
    pub(super) fn run_rows(&self, slots: &[u32], schema: &SchemaRef) -> Result<Batch> {
        let hashes = UInt64Array::from_iter_values(slots.iter().map(|slot| self.hashes.get(*slot)));
        let epochs = UInt32Array::from_iter_values(slots.iter().map(|slot| self.epochs.get(*slot)));
        let touched = |slot: &u32| self.touched.as_ref().map_or(0, |touched| touched.get(*slot));
        let touched = Int64Array::from_iter_values(slots.iter().map(touched));
        let mut columns: Vec<ArrayRef> = vec![Arc::new(hashes), Arc::new(epochs), Arc::new(touched)];
        for column in self.keys.iter().chain(&self.values) {
            columns.push(column.gather(slots)?);
        }
        batch_of(schema, columns, slots.len())
    }

    pub(super) fn bytes(&self) -> usize {
        let columns = self.keys.iter().chain(&self.values).map(|column| column.bytes());
        let touched = self.touched.as_ref().map_or(0, Pages::bytes);
        columns.sum::<usize>() + self.hashes.bytes() + self.epochs.bytes() + touched
    }

    pub(super) fn copied_bytes(&self) -> usize {
        let columns = self.keys.iter().chain(&self.values).map(|column| column.copied_bytes());
        columns.sum::<usize>() + self.epochs.copied_bytes() + self.touched.as_ref().map_or(0, Pages::copied_bytes)
    }
}

/// The schema of runs of a table whose keys and values are `fields`.
pub(super) fn run_schema(fields: &Schema) -> SchemaRef {
    let own = |name: &str, data_type| Arc::new(Field::new(name, data_type, false));
    let mut run = vec![
        own("hash", DataType::UInt64),
        own("epoch", DataType::UInt32),
        own("last used", DataType::Int64),
    ];
    // A key that is gone has no values, whatever the schema says.
    let nullable = |field: &Arc<Field>| Arc::new(field.as_ref().clone().with_nullable(true));
    run.extend(fields.fields().iter().map(nullable));
    Arc::new(Schema::new(run))
}

pub(super) fn batch_of(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<Batch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(Batch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}
