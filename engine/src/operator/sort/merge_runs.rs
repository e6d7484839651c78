//! Merging runs, a round at a time.
//!
//! A round takes what is certain: of all runs that have blocks to come, the one whose block ends first limits the round,
//! and every row up to that key is at hand. Those rows, a few sorted pieces, are brought in order by sorting their
//! entries with a sort that finds and merges sorted pieces, which costs a fraction of a tournament with a comparison per
//! level and row.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::Array;
use arrow::compute::interleave;
use datafusion::common::utils::memory::get_record_batch_memory_size;

use crate::data::{Batch, Result};
use crate::operator::Context;
use crate::operator::sort::entries::{Entry, entry, merge_entries, place};
use crate::operator::sort::keys::{KeyEncoder, Rest};
use crate::operator::sort::run::{BlockSize, Cursor, KeyRange, Run, partition_point};

/// Merges runs into batches in order.
pub(super) struct RunMerge<'e, R> {
    encoder: &'e KeyEncoder,
    cursors: Vec<Cursor<R>>,
    nulls_first: bool,
    values: Vec<Entry>,
    nulls: Vec<Entry>,
}

/// Whether the merge should go on.
pub(super) type GoOn = bool;

impl<'e, R: AsRef<Run>> RunMerge<'e, R> {
    /// A merge of what `runs` hold in `range`.
    pub(super) fn new(runs: Vec<R>, range: &KeyRange, encoder: &'e KeyEncoder) -> Result<Self> {
        let cursors = runs
            .into_iter()
            .map(|run| Cursor::new(run, range.clone(), encoder))
            .collect::<Result<_>>()?;
        Ok(Self {
            encoder,
            cursors,
            nulls_first: encoder.nulls_first(),
            values: Vec::new(),
            nulls: Vec::new(),
        })
    }

    /// Hands batches of at most `batch_rows` rows, and about the block size in bytes, to `emit`, in order, until it
    /// wants no more.
    pub(super) fn run(
        mut self,
        batch_rows: usize,
        block: BlockSize,
        cx: &mut Context,
        emit: &mut dyn FnMut(Batch, &mut Context) -> Result<GoOn>,
    ) -> Result<()> {
        loop {
            cx.cancel.check()?;
            for cursor in &mut self.cursors {
                cursor.fill(self.encoder)?;
            }
            self.cursors.retain(|cursor| cursor.block.is_some());
            if self.cursors.is_empty() {
                cx.hold_anyway(0);
                return Ok(());
            }
            let (rows, bytes) = self.held();
            cx.hold_anyway(bytes + block.bytes());
            let batch_rows = batch_rows.min(block.rows(rows, bytes)).max(1);
            self.take_round();
            if !self.emit_round(batch_rows, cx, emit)? {
                return Ok(());
            }
        }
    }

    /// Rows at hand and the bytes that they take.
    fn held(&self) -> (usize, usize) {
        let blocks = self.cursors.iter().filter_map(|cursor| cursor.block.as_ref());
        blocks.fold((0, 0), |(rows, bytes), block| {
            let batch_bytes = get_record_batch_memory_size(&block.batch);
            // Keys, and an entry for each row.
            let key_bytes = block.keys.byte_size() + block.batch.num_rows() * size_of::<Entry>();
            (rows + block.batch.num_rows(), bytes + batch_bytes + key_bytes)
        })
    }

    /// Makes entries of all rows that no row to come can precede, in order.
    fn take_round(&mut self) {
        let limit = self.limiting_cursor();
        let ends: Vec<usize> = self
            .cursors
            .iter()
            .map(|cursor| self.round_end(cursor, limit))
            .collect();
        self.values.clear();
        self.nulls.clear();
        for (number, (cursor, end)) in self.cursors.iter_mut().zip(ends).enumerate() {
            let Some(block) = &mut cursor.block else { continue };
            for row in block.position..end {
                let entry = entry(block.keys.head.prefixes()[row], number as u32, row as u32);
                if block.keys.head.is_null(row) {
                    self.nulls.push(entry);
                } else {
                    self.values.push(entry);
                }
            }
            block.position = end;
        }
        let rests: Vec<&Rest> = self
            .cursors
            .iter()
            .filter_map(|cursor| cursor.block.as_ref().map(|block| &block.keys.rest))
            .collect();
        merge_entries(&mut self.values, &rests);
        // Without rows behind the NULLs (one key), NULLs are equal.
        if rests.first().is_some_and(|rest| matches!(rest, Rest::Rows(_))) {
            merge_entries(&mut self.nulls, &rests);
        }
    }

    /// The cursor with blocks to come whose block ends first.
    fn limiting_cursor(&self) -> Option<usize> {
        let last = |number: usize| {
            self.cursors[number]
                .block
                .as_ref()
                .map(|block| (&block.keys, block.end - 1))
        };
        (0..self.cursors.len())
            .filter(|number| self.cursors[*number].has_more)
            .min_by(|a, b| match (last(*a), last(*b)) {
                (Some((keys, row)), Some((others, other))) => keys.compare(row, others, other),
                _ => Ordering::Equal,
            })
    }

    /// Up to where the rows of `cursor` do not come after the limit.
    fn round_end(&self, cursor: &Cursor<R>, limit: Option<usize>) -> usize {
        let Some(block) = &cursor.block else { return 0 };
        let Some(limit) = limit.and_then(|number| self.cursors[number].block.as_ref()) else {
            return block.end;
        };
        let rest = block.end - block.position;
        block.position
            + partition_point(rest, |row| {
                let row = block.position + row;
                block.keys.compare(row, &limit.keys, limit.end - 1) != Ordering::Greater
            })
    }

    fn emit_round(
        &self,
        batch_rows: usize,
        cx: &mut Context,
        emit: &mut dyn FnMut(Batch, &mut Context) -> Result<GoOn>,
    ) -> Result<GoOn> {
        let batches: Vec<&Batch> = self
            .cursors
            .iter()
            .filter_map(|cursor| cursor.block.as_ref().map(|block| &block.batch))
            .collect();
        let order = if self.nulls_first {
            [&self.nulls, &self.values]
        } else {
            [&self.values, &self.nulls]
        };
        let mut places = Vec::with_capacity(batch_rows.min(self.nulls.len() + self.values.len()));
        let mut left = self.nulls.len() + self.values.len();
        for entry in order.into_iter().flatten() {
            places.push(place(*entry));
            left -= 1;
            if places.len() == batch_rows || left == 0 {
                let batch = interleave_batches(&batches, &places)?;
                places.clear();
                if !emit(batch, cx)? {
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }
}

fn interleave_batches(batches: &[&Batch], places: &[(usize, usize)]) -> Result<Batch> {
    let schema = batches[0].schema();
    let mut columns = Vec::with_capacity(schema.fields().len());
    for column in 0..schema.fields().len() {
        let arrays: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(column).as_ref()).collect();
        columns.push(interleave(&arrays, places)?);
    }
    Ok(Batch::try_new(Arc::clone(&schema), columns)?)
}
