//! The state of windows of slices.
//!
//! - `slices`: a row per group and slice: keys, the slice's end, the states of all functions. A checkpoint that builds on
//!   another writes the slices that have got rows since, with all their groups, and the keys of those that have gone.
//! - `told` and `waiting`, with early and late results: see [`super::super::updates`].
//! - `starts`: of attached windows, by their ends.
//! - `progress`: which windows are complete; `slices_ahead` and `told_ahead`: see [`super::ahead`].
//! - `grid`: where time is cut. Slices of another grid cannot be used.
//!
//! Slices that have got no rows since they were closed share their columns with the checkpoint; those of others are copied
//! without hashing a key.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type};

use super::super::cut::{Rows, Selection, SliceOf, cut};
use super::super::frozen::{Keys, Piece, hand_over, table};
use super::super::slicing::Slicing;
use super::super::table::Table;
use super::{Windows, ahead};
use crate::data::{Batch, EngineError, Result};
use crate::operator::aggregate::accumulators::Accumulators;
use crate::operator::progress::{self, Progress};
use crate::operator::{Collector, Context};
use crate::plan::WindowAggregateSpec;
use crate::state::{Restored, Snapshot, TableSpec, columns};

/// The tables of a spec.
pub(super) struct Tables {
    keys: usize,
    slices: TableSpec,
    told: TableSpec,
}

impl Tables {
    pub(super) fn new(spec: &WindowAggregateSpec, accumulators: &Accumulators) -> Self {
        let fields = spec.schema.0.fields().iter().take(spec.group_by.len());
        let keys: Vec<Field> = fields.map(|field| field.as_ref().clone()).collect();
        let results: Vec<_> = spec
            .aggregates
            .functions
            .iter()
            .map(|function| function.field())
            .collect();
        let states = accumulators.state_fields().map(AsRef::as_ref);
        Self {
            keys: keys.len(),
            slices: table("slices", &keys, "slice_end", states),
            told: table("told", &keys, "window_end", results.iter().map(AsRef::as_ref)),
        }
    }
}

fn starts_table() -> TableSpec {
    TableSpec::union(
        "starts",
        columns([("window_end", DataType::Int64), ("window_start", DataType::Int64)]),
    )
}

fn grid_table() -> TableSpec {
    let fields = [
        ("attached", DataType::Boolean),
        ("slice_ms", DataType::Int64),
        ("offset_ms", DataType::Int64),
    ];
    TableSpec::union("grid", columns(fields))
}

impl Windows {
    /// # Errors
    /// When a function or the consumer fails.
    pub(in super::super) fn snapshot(
        &mut self,
        state: &mut Snapshot,
        cx: &mut Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        self.output.flush(out)?;
        self.ahead.snapshot(&self.tables.slices, &self.tables.told, state)?;
        let since = self.changes.begin(state.request());
        let pieces = self.freeze(since)?;
        let gone = since.map(|since| self.changes.gone_since(since)).unwrap_or_default();
        hand_over(state, &self.tables.slices, since, pieces, gone);
        if let (Some(updates), Some(shared)) = (&mut self.updates, &self.shared) {
            updates.snapshot(&self.tables.told, shared, state)?;
        }
        if !self.starts.is_empty() {
            let spec = starts_table();
            let ends = Int64Array::from_iter_values(self.starts.keys().copied());
            let starts = Int64Array::from_iter_values(self.starts.values().copied());
            let rows = RecordBatch::try_new(Arc::clone(&spec.schema), vec![Arc::new(ends), Arc::new(starts)])?;
            state.full(&spec, [Ok(rows)]);
        }
        snapshot_grid(&self.slicing, state)?;
        progress::snapshot(self.done, state, cx)?;
        cx.hold(self.held())
    }

    /// The slices that have changed.
    fn freeze(&mut self, since: Option<u64>) -> Result<Vec<Piece>> {
        let mut pieces = Vec::new();
        if let Some(shared) = &mut self.shared {
            // A closed slice with late rows is to have each group once.
            let closed: Vec<i64> = shared.ends().filter(|end| self.open.contains_key(end)).collect();
            for end in closed {
                if let Some(open) = self.open.remove(&end) {
                    self.open_bytes -= open.bytes;
                    shared.close(end, open.table)?;
                }
            }
            pieces = shared.freeze(|end| self.changes.is_changed(end, since))?;
        }
        for (end, open) in &mut self.open {
            let rows = open.table.len();
            if rows == 0 || !self.changes.is_changed(*end, since) {
                continue;
            }
            let (keys, values) = open.table.copy()?;
            pieces.push(Piece {
                end: *end,
                rows,
                keys: Keys::Own(keys),
                values,
            });
            let bytes = open.table.size();
            self.open_bytes = self.open_bytes - open.bytes + bytes;
            open.bytes = bytes;
        }
        Ok(pieces)
    }

    /// # Errors
    /// When the state does not fit, a function fails, or the budget is exhausted.
    pub(in super::super) fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        restore_grid(&self.slicing, state, cx)?;
        let progress = Progress::restore(state, cx)?;
        self.done = progress.least;
        for rows in state.take(&starts_table())? {
            let rows = rows?;
            let column = |index: usize| rows.column(index).as_primitive::<Int64Type>().values();
            let ends = column(0).iter().zip(column(1));
            let kept = ends.filter(|(end, _)| !self.is_expired(**end));
            self.starts
                .extend(kept.map(|(end, start)| (*end, *start)).collect::<Vec<_>>());
        }
        let mut closing = None;
        for rows in state.take(&self.tables.slices)? {
            for (of_rows, rows) in progress.split(&self.tables.slices, rows?)? {
                match of_rows.filter(|_| self.shared.is_some() && of_rows > self.done) {
                    Some(ahead) => self.ahead.add_slices(ahead, rows),
                    None => self.take_back(&rows, &mut closing)?,
                }
            }
            let of_closing = closing.as_ref().map_or(0, |(_, table): &(i64, Table)| table.size());
            cx.hold(self.held() + of_closing)?;
        }
        for (of_rows, rows) in ahead::restore(&self.tables.slices, state)? {
            match Some(of_rows) > self.done {
                true => self.ahead.add_slices(of_rows, rows),
                false => self.take_back(&rows, &mut closing)?,
            }
        }
        self.close_restored(closing)?;
        self.restore_updates(&progress, state, cx)?;
        cx.hold(self.held())
    }

    fn restore_updates(&mut self, progress: &Progress, state: &mut Restored, cx: &Context) -> Result<()> {
        let spec = &self.tables.told;
        let (Some(updates), Some(shared)) = (&mut self.updates, &mut self.shared) else {
            return match state.has("told") || state.has("waiting") {
                true => Err(EngineError::Plan(format!(
                    "the state of operator '{}' does not fit: it has early or late results, which the program has left off; \
                     keep them, or start without that state",
                    cx.operator
                ))),
                false => Ok(()),
            };
        };
        let mut told = Vec::new();
        for rows in state.take(spec)? {
            for (of_rows, rows) in progress.split(spec, rows?)? {
                match of_rows.filter(|_| of_rows > self.done) {
                    Some(ahead) => self.ahead.add_told(ahead, rows),
                    None => told.push(rows),
                }
            }
        }
        for (of_rows, rows) in ahead::restore(spec, state)? {
            match Some(of_rows) > self.done {
                true => self.ahead.add_told(of_rows, rows),
                false => told.push(rows),
            }
        }
        let (done, lateness_ms) = (self.done, self.lateness_ms);
        let is_gone = |end: i64| done.is_some_and(|done| end.saturating_add(lateness_ms) <= done);
        updates.restore_waiting(state, is_gone)?;
        updates.restore_told(&told, self.tables.keys, shared, is_gone)
    }

    /// Takes in the rows of the first who were ahead: windows have come as far now.
    pub(super) fn join_ahead(&mut self) -> Result<()> {
        let Some((progress, waiting)) = self.ahead.pop() else {
            return Ok(());
        };
        self.done = self.done.max(Some(progress));
        let mut closing = None;
        for rows in &waiting.slices {
            self.take_back(rows, &mut closing)?;
        }
        self.close_restored(closing)?;
        let (done, lateness_ms) = (self.done, self.lateness_ms);
        let is_gone = |end: i64| done.is_some_and(|done| end.saturating_add(lateness_ms) <= done);
        match (&mut self.updates, &mut self.shared) {
            (Some(updates), Some(shared)) => updates.restore_told(&waiting.told, self.tables.keys, shared, is_gone),
            _ => Ok(()),
        }
    }

    /// Takes back rows of slices. Slices that windows have left with are closed again: `closing` is the last one of those.
    fn take_back(&mut self, rows: &Batch, closing: &mut Option<(i64, Table)>) -> Result<()> {
        let keys = self.tables.keys;
        let ends = rows.column(keys).as_primitive::<Int64Type>().values();
        let all = Rows {
            keys: rows.columns()[..keys].to_vec(),
            inputs: self.template.accumulators().state_inputs(&rows.columns()[keys + 1..]),
            count: rows.num_rows(),
        };
        let slices = cut(ends, SliceOf::Ends, |end| !self.is_expired(end)).slices;
        for (end, selection) in slices {
            let selected;
            let rows = match selection {
                Selection::All => &all,
                part => {
                    selected = all.select(&part)?;
                    &selected
                }
            };
            // What has been told of windows refers to keys of closed slices.
            let is_closed = self.updates.is_some() || self.done.is_some_and(|done| end <= done);
            if self.shared.is_none() || !is_closed {
                self.take_rows(end, rows, true)?;
                continue;
            }
            if closing.as_ref().is_none_or(|(of, _)| *of != end) {
                let table = self.template.successor()?;
                self.close_restored(closing.replace((end, table)))?;
            }
            if let Some((_, table)) = closing {
                table.take_rows(rows, true, &mut self.groups)?;
                self.changes.touch(end);
            }
        }
        Ok(())
    }

    fn close_restored(&mut self, slice: Option<(i64, Table)>) -> Result<()> {
        if let (Some((end, table)), Some(shared)) = (slice, &mut self.shared) {
            self.template = table.successor()?;
            shared.close(end, table)?;
        }
        Ok(())
    }
}

fn snapshot_grid(slicing: &Slicing, state: &mut Snapshot) -> Result<()> {
    let spec = grid_table();
    let (attached, slice_ms, offset_ms) = slicing.grid();
    let row = RecordBatch::try_new(
        Arc::clone(&spec.schema),
        vec![
            Arc::new(BooleanArray::from(vec![attached])),
            Arc::new(Int64Array::from(vec![slice_ms])),
            Arc::new(Int64Array::from(vec![offset_ms])),
        ],
    )?;
    state.full(&spec, [Ok(row)]);
    Ok(())
}

fn restore_grid(slicing: &Slicing, state: &mut Restored, cx: &Context) -> Result<()> {
    for rows in state.take(&grid_table())? {
        let rows = rows?;
        let number = |column: usize, row: usize| rows.column(column).as_primitive::<Int64Type>().value(row);
        for row in 0..rows.num_rows() {
            let stored = (rows.column(0).as_boolean().value(row), number(1, row), number(2, row));
            if stored != slicing.grid() {
                let text = |(attached, slice_ms, offset_ms): (bool, i64, i64)| match attached {
                    true => "windows that come with the rows".to_string(),
                    false => format!("slices of {slice_ms} ms at an offset of {offset_ms} ms"),
                };
                return Err(EngineError::Plan(format!(
                    "the state of operator '{}' does not fit: it is of {}, the program's windows are of {}; \
                     keep the windows as they were, or start without that state",
                    cx.operator,
                    text(stored),
                    text(slicing.grid())
                )));
            }
        }
    }
    Ok(())
}
