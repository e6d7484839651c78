//! The state of early and late results.
//!
//! - `told`: a row per group and window: keys, the window's end, the results that were told last.
//! - `waiting`: the windows to tell of again, and when.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::{concat_batches, take};
use arrow::datatypes::{DataType, Int64Type};

use super::super::frozen::{Piece, hand_over};
use super::super::shared::Shared;
use super::{Told, Updates, Waiting};
use crate::data::{Batch, Result};
use crate::operator::array_bytes::compact;
use crate::state::{Restored, Snapshot, TableSpec, columns};

fn waiting_table() -> TableSpec {
    let fields = [
        ("is_late", DataType::Boolean),
        ("window_end", DataType::Int64),
        ("due_ms", DataType::Int64),
    ];
    TableSpec::union("waiting", columns(fields))
}

impl Updates {
    /// # Errors
    /// When keys do not fit their types.
    pub(in super::super) fn snapshot(&mut self, spec: &TableSpec, shared: &Shared, state: &mut Snapshot) -> Result<()> {
        let since = self.changes.begin(state.request());
        let changed = self.told.iter();
        let changed = changed.filter(|(end, told)| self.changes.is_changed(**end, since) && !told.slots.is_empty());
        let changed: Vec<(&i64, &Told)> = changed.collect();
        let slots: Vec<&[u32]> = changed.iter().map(|(_, told)| told.slots.as_slice()).collect();
        let keys = shared.frozen_keys(&slots)?;
        let pieces = changed.into_iter().zip(keys).map(|((end, told), keys)| Piece {
            end: *end,
            rows: told.slots.len(),
            keys,
            values: told.results.clone(),
        });
        let pieces = pieces.collect();
        let gone = since.map(|since| self.changes.gone_since(since)).unwrap_or_default();
        hand_over(state, spec, since, pieces, gone);
        let waiting = [(false, &self.early), (true, &self.late)];
        let waiting = waiting.into_iter().flat_map(|(is_late, waiting)| {
            let windows = waiting.windows.iter();
            windows.map(move |end| (is_late, *end, waiting.due))
        });
        let waiting: Vec<(bool, i64, Option<i64>)> = waiting.collect();
        let spec = waiting_table();
        let is_late: BooleanArray = waiting.iter().map(|(is_late, ..)| Some(*is_late)).collect();
        let ends = Int64Array::from_iter_values(waiting.iter().map(|(_, end, _)| *end));
        let due: Int64Array = waiting.iter().map(|(.., due)| *due).collect();
        let rows = RecordBatch::try_new(
            Arc::clone(&spec.schema),
            vec![Arc::new(is_late), Arc::new(ends), Arc::new(due)],
        )?;
        state.full(&spec, [Ok(rows)]);
        Ok(())
    }

    /// Takes back what has been told of windows that are not gone, of `keys` key columns.
    ///
    /// # Errors
    /// When the state does not fit.
    pub(in super::super) fn restore_told(
        &mut self,
        rows: &[Batch],
        keys: usize,
        shared: &mut Shared,
        is_gone: impl Fn(i64) -> bool,
    ) -> Result<()> {
        let mut told: BTreeMap<i64, Vec<Batch>> = BTreeMap::new();
        for rows in rows {
            let ends = rows.column(keys).as_primitive::<Int64Type>().values();
            // The rows of a window mostly follow each other.
            let mut start = 0;
            for run in ends.chunk_by(|a, b| a == b) {
                if !is_gone(run[0]) {
                    told.entry(run[0]).or_default().push(rows.slice(start, run.len()));
                }
                start += run.len();
            }
        }
        while let Some((end, rows)) = told.pop_first() {
            self.take_back(end, &concat_batches(rows[0].schema_ref(), &rows)?, keys, shared)?;
        }
        Ok(())
    }

    /// Takes back the windows to tell of again, but for those that are gone.
    ///
    /// # Errors
    /// When the state does not fit.
    pub(in super::super) fn restore_waiting(
        &mut self,
        state: &mut Restored,
        is_gone: impl Fn(i64) -> bool,
    ) -> Result<()> {
        for rows in state.take(&waiting_table())? {
            let rows = rows?;
            let number = |column: usize| rows.column(column).as_primitive::<Int64Type>();
            for row in 0..rows.num_rows() {
                let end = number(1).value(row);
                if is_gone(end) {
                    continue;
                }
                let waiting: &mut Waiting = match rows.column(0).as_boolean().value(row) {
                    true => &mut self.late,
                    false => &mut self.early,
                };
                waiting.windows.insert(end);
                if number(2).is_valid(row) {
                    let due = number(2).value(row);
                    waiting.due = Some(waiting.due.map_or(due, |other| other.min(due)));
                }
            }
        }
        Ok(())
    }

    fn take_back(&mut self, window_end: i64, rows: &Batch, keys: usize, shared: &mut Shared) -> Result<()> {
        // What is kept must not hold the rest of its batch.
        let all = UInt32Array::from_iter_values(0..rows.num_rows() as u32);
        let slots = shared.slots(&rows.columns()[..keys], rows.num_rows())?;
        let results = rows.columns()[keys + 1..].iter();
        let results = results.map(|column| compact(take(column, &all, None)?));
        let results = results.collect::<Result<_>>()?;
        let told = Told { slots, results };
        self.told_bytes += told.size();
        self.told.insert(window_end, told);
        self.changes.touch(window_end);
        Ok(())
    }
}
