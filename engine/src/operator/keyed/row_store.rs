//! [`RowStore`]: rows in columns, each under a slot of its own until it is released.
//!
//! Rows arrive as batches and stay in them as *chunks*. Small neighbours are merged like the runs of a log-structured tree, and when
//! most rows are released the live ones are copied together: slots stand, only their places change. A snapshot
//! shares the chunks and copies the places.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatchOptions};
use arrow::compute::interleave;
use arrow::datatypes::SchemaRef;

use super::frozen::FrozenRows;
use crate::data::{Batch, EngineError, Result, batch_bytes, compact_views};

/// Chunks that are copied together have at most so many rows.
const CHUNK_ROWS: usize = 1 << 16;
/// Chunks of so many rows are not merged: a few more of them cost less than the copy.
const MERGED_ROWS: usize = 1 << 13;
/// Released rows that are never worth a copy of the others.
const DEAD_MIN: usize = 1 << 13;
/// The slot of a row that has been released.
const RELEASED: u32 = u32::MAX;

/// Rows under slots.
pub(in crate::operator) struct RowStore {
    schema: SchemaRef,
    chunks: Vec<Chunk>,
    /// Chunk and row of each slot.
    places: Vec<(u32, u32)>,
    free: Vec<u32>,
    rows: usize,
    live: usize,
    bytes: usize,
}

struct Chunk {
    batch: Batch,
    /// The slot of each row.
    slots: Vec<u32>,
    bytes: usize,
}

impl RowStore {
    /// An empty store of rows of this schema.
    pub(in crate::operator) fn new(schema: SchemaRef) -> Self {
        Self {
            schema,
            chunks: Vec::new(),
            places: Vec::new(),
            free: Vec::new(),
            rows: 0,
            live: 0,
            bytes: 0,
        }
    }

    /// Keeps the rows of `columns`. Gives back the slot of each.
    ///
    /// # Errors
    /// When there are too many rows.
    pub(in crate::operator) fn push(&mut self, columns: Vec<ArrayRef>, rows: usize) -> Result<Vec<u32>> {
        if rows == 0 {
            return Ok(Vec::new());
        }
        let batch = self.batch(columns, rows)?;
        let mut slots = Vec::with_capacity(rows);
        for row in 0..rows {
            let place = (self.chunks.len() as u32, row as u32);
            let slot = match self.free.pop() {
                Some(slot) => {
                    self.places[slot as usize] = place;
                    slot
                }
                None => {
                    self.places.push(place);
                    // The highest bit is left to those who count rows that are not in the store yet.
                    u32::try_from(self.places.len() - 1)
                        .ok()
                        .filter(|slot| *slot < RELEASED >> 1)
                        .ok_or_else(|| EngineError::Internal("more than 2^31 rows are kept".into()))?
                }
            };
            slots.push(slot);
        }
        self.add(batch, slots.clone());
        self.live += rows;
        self.merge_small()?;
        Ok(slots)
    }

    /// Forgets a row.
    pub(in crate::operator) fn release(&mut self, slot: u32) {
        let (chunk, row) = self.places[slot as usize];
        let slot_of_row = &mut self.chunks[chunk as usize].slots[row as usize];
        debug_assert_eq!(*slot_of_row, slot, "a row is released twice");
        *slot_of_row = RELEASED;
        self.free.push(slot);
        self.live -= 1;
    }

    /// Gives back the memory of released rows when there are many.
    ///
    /// # Errors
    /// When rows cannot be copied.
    pub(in crate::operator) fn tidy(&mut self) -> Result<()> {
        if self.live == 0 {
            self.chunks.clear();
            (self.rows, self.bytes) = (0, 0);
        } else if self.rows > 2 * self.live + DEAD_MIN {
            let all = std::mem::take(&mut self.chunks);
            (self.rows, self.bytes) = (0, 0);
            self.copy(&all)?;
        }
        Ok(())
    }

    /// The columns of these rows.
    ///
    /// # Errors
    /// When they do not fit one array.
    pub(in crate::operator) fn gather(&self, slots: &[u32]) -> Result<Vec<ArrayRef>> {
        let place = |slot: &u32| {
            let (chunk, row) = self.places[*slot as usize];
            (chunk as usize, row as usize)
        };
        let places: Vec<(usize, usize)> = slots.iter().map(place).collect();
        self.columns(&self.chunks, &places)
    }

    /// The rows in these slots, for another thread to read: the chunks are shared.
    pub(in crate::operator) fn freeze(&self, slots: &[u32]) -> FrozenRows {
        let chunks = self.chunks.iter().map(|chunk| chunk.batch.clone()).collect();
        FrozenRows::new(chunks, slots.iter().map(|slot| self.places[*slot as usize]).collect())
    }

    /// How many rows are kept.
    #[cfg(test)]
    pub(in crate::operator) fn len(&self) -> usize {
        self.live
    }

    /// Bytes held.
    pub(in crate::operator) fn size(&self) -> usize {
        self.bytes
            + self.rows * size_of::<u32>()
            + self.places.capacity() * size_of::<(u32, u32)>()
            + self.free.capacity() * size_of::<u32>()
    }

    fn batch(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<Batch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        compact_views(Batch::try_new_with_options(
            Arc::clone(&self.schema),
            columns,
            &options,
        )?)
    }

    fn columns(&self, chunks: &[Chunk], places: &[(usize, usize)]) -> Result<Vec<ArrayRef>> {
        (0..self.schema.fields().len())
            .map(|column| {
                let arrays: Vec<&dyn Array> = chunks.iter().map(|chunk| chunk.batch.column(column).as_ref()).collect();
                Ok(interleave(&arrays, places)?)
            })
            .collect()
    }

    fn add(&mut self, batch: Batch, slots: Vec<u32>) {
        let bytes = batch_bytes(&batch);
        self.rows += slots.len();
        self.bytes += bytes;
        self.chunks.push(Chunk { batch, slots, bytes });
    }

    fn pop(&mut self) -> Option<Chunk> {
        let chunk = self.chunks.pop()?;
        self.rows -= chunk.slots.len();
        self.bytes -= chunk.bytes;
        Some(chunk)
    }

    /// Merges the last chunk with those before it that are not much larger: a row is copied a few times at most.
    fn merge_small(&mut self) -> Result<()> {
        let mut total = 0;
        let mut count = 0;
        for chunk in self.chunks.iter().rev() {
            let rows = chunk.slots.len();
            if count > 0 && (rows > 2 * total || rows + total > MERGED_ROWS) {
                break;
            }
            total += rows;
            count += 1;
        }
        if count < 2 {
            return Ok(());
        }
        let mut parts: Vec<Chunk> = (0..count).filter_map(|_| self.pop()).collect();
        parts.reverse();
        self.copy(&parts)
    }

    /// Keeps the live rows of `parts` in new chunks.
    fn copy(&mut self, parts: &[Chunk]) -> Result<()> {
        let mut places = Vec::new();
        let mut slots = Vec::new();
        for (number, chunk) in parts.iter().enumerate() {
            for (row, slot) in chunk.slots.iter().enumerate().filter(|(_, slot)| **slot != RELEASED) {
                places.push((number, row));
                slots.push(*slot);
            }
        }
        for (places, slots) in places.chunks(CHUNK_ROWS).zip(slots.chunks(CHUNK_ROWS)) {
            let batch = self.batch(self.columns(parts, places)?, places.len())?;
            for (row, slot) in slots.iter().enumerate() {
                self.places[*slot as usize] = (self.chunks.len() as u32, row as u32);
            }
            self.add(batch, slots.to_vec());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, Int64Array, StringViewArray};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema};
    use proptest::prelude::*;

    use super::*;

    fn columns(numbers: &[i64]) -> Vec<ArrayRef> {
        let texts = numbers.iter().map(|n| format!("a text that is not inlined {n}"));
        vec![
            Arc::new(Int64Array::from(numbers.to_vec())),
            Arc::new(StringViewArray::from_iter_values(texts)),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn slots_keep_their_rows(steps in prop::collection::vec((1usize..3000, 0u32..100), 1..40)) {
            let schema = Arc::new(Schema::new(vec![
                Field::new("n", DataType::Int64, false),
                Field::new("text", DataType::Utf8View, false),
            ]));
            let mut store = RowStore::new(schema);
            let mut held: Vec<(u32, i64)> = Vec::new();
            let mut next = 0;
            for (rows, released) in steps {
                let numbers: Vec<i64> = (next..next + rows as i64).collect();
                next += rows as i64;
                let slots = store.push(columns(&numbers), rows).unwrap();
                held.extend(slots.into_iter().zip(numbers));
                let mut position = 0u32;
                held.retain(|(slot, _)| {
                    position += 1;
                    let keep = position * 37 % 100 >= released;
                    if !keep {
                        store.release(*slot);
                    }
                    keep
                });
                store.tidy().unwrap();
                let slots: Vec<u32> = held.iter().map(|(slot, _)| *slot).collect();
                prop_assert_eq!(store.len(), slots.len());
                if slots.is_empty() {
                    continue;
                }
                let gathered = store.gather(&slots).unwrap();
                let numbers: Vec<i64> = held.iter().map(|(_, number)| *number).collect();
                prop_assert_eq!(gathered[0].as_primitive::<Int64Type>().values().to_vec(), numbers.clone());
                prop_assert_eq!(&gathered[1], &columns(&numbers)[1]);
            }
            prop_assert!(store.rows <= 2 * store.live + DEAD_MIN);
            prop_assert!(store.chunks.len() <= 20 + store.rows * 2 / MERGED_ROWS);
        }
    }
}
