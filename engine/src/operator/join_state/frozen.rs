//! A [`RowStore`] on its way into a checkpoint and back.
//!
//! To freeze a store is to share its columns and to copy what is kept per row; which rows live is found out by whoever draws
//! the rows. Each snapshot is the whole of the store. Rows are written in the order of arrival, and as all rows of a key
//! are of one subtask, that order stands among rows of a key when the rows of several subtasks come back.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int64Array, UInt32Array};
use arrow::compute::{filter, interleave_record_batch};
use arrow::datatypes::{DataType, Field, Int64Type, UInt32Type};

use super::keys::JoinKeys;
use super::store::{Appended, RowStore, StoreOptions};
use crate::data::{Batch, EngineError, Result};
use crate::operator::row_table::RowTable;
use crate::plan::ScalarExpr;
use crate::state::RestoredRows;

/// Rows that are brought into order at once.
const ORDERED_ROWS: usize = 8192;

/// The columns beside the rows, by the options that ask for them.
const TIME: &str = "$time";
const MATCHES: &str = "$matches";
const ARRIVAL: &str = "$arrival";

impl StoreOptions {
    /// What is kept beside each row. Rows of a program that did not forget any have no arrival.
    fn beside(&self) -> Vec<Field> {
        let times = self.times.then(|| Field::new(TIME, DataType::Int64, false));
        let counts = self.counts.then(|| Field::new(MATCHES, DataType::UInt32, false));
        let arrival = self.ttl_ms.map(|_| Field::new(ARRIVAL, DataType::Int64, true));
        times.into_iter().chain(counts).chain(arrival).collect()
    }
}

/// Pieces of a store and what was known of their rows.
struct FrozenStore {
    table: RowTable,
    /// Number of the first row, rows, columns.
    pieces: std::vec::IntoIter<(usize, usize, Vec<ArrayRef>)>,
    first: usize,
    dead: Option<Vec<bool>>,
    times: Option<Vec<i64>>,
    counts: Option<Vec<u32>>,
    arrivals: Option<Vec<(i64, u32)>>,
    /// Only rows after this time.
    after: i64,
}

impl RowStore {
    /// The table of the store's rows, which belong where `keys` lead.
    pub(in crate::operator) fn table(&self, name: &str, keys: &[ScalarExpr]) -> RowTable {
        RowTable::new(name, &self.schema, self.options.beside(), keys)
    }

    /// The rows that are there now.
    pub(in crate::operator) fn freeze(&self, table: &RowTable) -> impl Iterator<Item = Result<Batch>> + Send + use<> {
        self.freeze_after(table, i64::MIN)
    }

    /// The rows that are there now and have a time after `after`.
    pub(in crate::operator) fn freeze_after(
        &self,
        table: &RowTable,
        after: i64,
    ) -> impl Iterator<Item = Result<Batch>> + Send + use<> {
        let width = table.width();
        let pieces = self.pieces.iter().filter_map(|piece| {
            let columns = piece.columns.as_ref()?;
            let is_asked_for = !self.options.times || piece.times.1 > after;
            is_asked_for.then(|| (piece.range().start, piece.rows, columns[..width].to_vec()))
        });
        FrozenStore {
            table: table.clone(),
            pieces: pieces.collect::<Vec<_>>().into_iter(),
            first: self.first as usize,
            dead: self.removals.as_ref().map(|removals| removals.dead.clone()),
            times: self.options.times.then(|| self.times.clone()),
            counts: self.options.counts.then(|| self.counts.clone()),
            arrivals: self.options.ttl_ms.map(|_| self.arrivals.iter().copied().collect()),
            after,
        }
    }

    /// Takes the rows of a snapshot; the store is empty. `by_time` asks for the order of time.
    ///
    /// # Errors
    /// When a key's expression fails, or the rows are too many.
    pub(in crate::operator) fn restore(
        &mut self,
        keys: &JoinKeys,
        table: &RowTable,
        rows: RestoredRows,
        by_time: bool,
        now_ms: i64,
    ) -> Result<()> {
        let arrival = self.options.ttl_ms.map(|_| table.spec().schema.fields().len() - 1);
        match arrival.or_else(|| by_time.then_some(table.width())) {
            // Rows are forgotten in the order in which they came: the rows of several subtasks are merged.
            Some(column) => {
                for stored in ordered(rows.collect::<Result<Vec<_>>>()?, column, now_ms)? {
                    self.restore_batch(keys, table, &stored?, now_ms)?;
                }
            }
            None => {
                for stored in rows {
                    self.restore_batch(keys, table, &stored?, now_ms)?;
                }
            }
        }
        Ok(())
    }

    fn restore_batch(&mut self, keys: &JoinKeys, table: &RowTable, stored: &Batch, now_ms: i64) -> Result<()> {
        let (rows, beside) = table.split(stored)?;
        let before = self.rows();
        let mut beside = beside.iter();
        let mut next = || {
            let column = beside.next();
            column.ok_or_else(|| EngineError::Internal("a table of rows lacks a column".into()))
        };
        let times = match self.options.times {
            true => next()?.as_primitive::<Int64Type>().values().to_vec(),
            false => Vec::new(),
        };
        let counts = match self.options.counts {
            true => next()?.as_primitive::<UInt32Type>().values().to_vec(),
            false => Vec::new(),
        };
        self.append_rows(
            keys,
            &Appended {
                keyed: &keys.evaluate(&rows)?,
                rows: &rows,
                hashes: None,
                times: &times,
                counts: &counts,
                now_ms,
            },
        )?;
        if self.options.ttl_ms.is_some() {
            let arrivals = next()?.as_primitive::<Int64Type>();
            for (row, at) in arrivals.iter().enumerate() {
                self.note_arrival(at.unwrap_or(now_ms), (before + row + 1) as u32);
            }
        }
        Ok(())
    }
}

impl FrozenStore {
    fn draw(&self, base: usize, rows: usize, mut columns: Vec<ArrayRef>) -> Result<Batch> {
        let range = base..base + rows;
        let is_kept = |row: usize| {
            let is_there = row >= self.first && self.dead.as_ref().is_none_or(|dead| !dead[row]);
            is_there && self.times.as_ref().is_none_or(|times| times[row] > self.after)
        };
        let kept: BooleanArray = range.clone().map(|row| Some(is_kept(row))).collect();
        if let Some(times) = &self.times {
            columns.push(Arc::new(Int64Array::from(times[range.clone()].to_vec())));
        }
        if let Some(counts) = &self.counts {
            columns.push(Arc::new(UInt32Array::from(counts[range.clone()].to_vec())));
        }
        if let Some(arrivals) = &self.arrivals {
            let mut at = arrivals.partition_point(|(_, end)| *end as usize <= base);
            let arrival = range.map(|row| {
                while arrivals.get(at).is_some_and(|(_, end)| *end as usize <= row) {
                    at += 1;
                }
                arrivals.get(at).map(|(arrival, _)| *arrival)
            });
            columns.push(Arc::new(arrival.collect::<Int64Array>()));
        }
        let count = kept.true_count();
        if count < rows {
            let columns_kept = columns.iter().map(|column| Ok(filter(column, &kept)?));
            columns = columns_kept.collect::<Result<Vec<_>>>()?;
        }
        self.table.batch(columns, count)
    }
}

impl Iterator for FrozenStore {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        let (base, rows, columns) = self.pieces.next()?;
        Some(self.draw(base, rows, columns))
    }
}

/// Batches as they are, or cut anew in the order of a column, in which NULL is `now_ms`.
fn ordered(batches: Vec<Batch>, column: usize, now_ms: i64) -> Result<Box<dyn Iterator<Item = Result<Batch>>>> {
    let mut order = Vec::new();
    for (number, batch) in batches.iter().enumerate() {
        let values = batch.column(column).as_primitive::<Int64Type>();
        let places = values.iter().enumerate();
        order.extend(places.map(|(row, value)| (value.unwrap_or(now_ms), number, row)));
    }
    if order.is_sorted_by_key(|(value, _, _)| *value) {
        return Ok(Box::new(batches.into_iter().map(Ok)));
    }
    // Stable: rows of a key stay in the order in which they were.
    order.sort_by_key(|(value, _, _)| *value);
    let places: Vec<(usize, usize)> = order.into_iter().map(|(_, batch, row)| (batch, row)).collect();
    let starts = (0..places.len()).step_by(ORDERED_ROWS);
    Ok(Box::new(starts.map(move |start| {
        let end = (start + ORDERED_ROWS).min(places.len());
        // Of the many batches few have rows here.
        let mut slots = vec![usize::MAX; batches.len()];
        let mut used = Vec::new();
        let places = places[start..end].iter().map(|(batch, row)| {
            if slots[*batch] == usize::MAX {
                slots[*batch] = used.len();
                used.push(&batches[*batch]);
            }
            (slots[*batch], *row)
        });
        let places: Vec<_> = places.collect();
        Ok(interleave_record_batch(&used, &places)?)
    })))
}
