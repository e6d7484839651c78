//! [`Changes`]: rows of a [`RowStore`] on their way out, as a changelog.

use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatchOptions, UInt8Array, UInt64Array};
use arrow::datatypes::SchemaRef;

use crate::data::{Batch, Result, RowKind};
use crate::operator::keyed::RowStore;
use crate::operator::{Collector, Context};

/// What leaves after a batch, in order.
pub(in crate::operator) struct Changes {
    schema: SchemaRef,
    /// Whether the rows' places are a column.
    with_places: bool,
    with_kinds: bool,
    slots: Vec<u32>,
    places: Vec<u64>,
    kinds: Vec<u8>,
}

impl Changes {
    /// No changes. Batches have the rows' columns, their places and their kinds, as far as they are wanted.
    pub(in crate::operator) fn new(schema: SchemaRef, with_places: bool, with_kinds: bool) -> Self {
        Self {
            schema,
            with_places,
            with_kinds,
            slots: Vec::new(),
            places: Vec::new(),
            kinds: Vec::new(),
        }
    }

    /// Adds a change.
    #[inline]
    pub(in crate::operator) fn add(&mut self, slot: u32, kind: RowKind, place: usize) {
        self.slots.push(slot);
        self.kinds.push(kind as u8);
        if self.with_places {
            self.places.push(place as u64);
        }
    }

    /// Hands on what has been added.
    ///
    /// # Errors
    /// When the consumer fails.
    pub(in crate::operator) fn flush(&mut self, store: &RowStore, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        let size = cx.batch_size.max(1);
        let mut start = 0;
        while start < self.slots.len() {
            let end = (start + size).min(self.slots.len());
            let columns = store.gather(&self.slots[start..end])?;
            let places = self.with_places.then(|| self.places[start..end].to_vec());
            self.emit(columns, places, self.kinds[start..end].to_vec(), out)?;
            start = end;
        }
        self.slots.clear();
        self.places.clear();
        self.kinds.clear();
        Ok(())
    }

    /// Hands on a batch of rows that are not in a store.
    ///
    /// # Errors
    /// As for `flush`.
    pub(in crate::operator) fn emit(
        &self,
        mut columns: Vec<ArrayRef>,
        places: Option<Vec<u64>>,
        kinds: Vec<u8>,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let rows = kinds.len();
        if rows == 0 {
            return Ok(());
        }
        if let Some(places) = places {
            columns.push(Arc::new(UInt64Array::from(places)));
        }
        if self.with_kinds {
            columns.push(Arc::new(UInt8Array::from(kinds)));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        out.collect(Batch::try_new_with_options(
            Arc::clone(&self.schema),
            columns,
            &options,
        )?)
    }
}
