//! The state of sessions.
//!
//! - `sessions`: a row per open session: its key, its bounds, each function's state. Always written whole: a session changes with
//!   nearly each row of its key, and is known by a start that changes too.
//! - `progress`: which sessions have left.

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use std::sync::Arc;

use super::Sessions;
use super::functions::SlotFunction;
use crate::data::{Batch, Result};
use crate::operator::aggregate::group_table::GroupTable;
use crate::operator::progress::{self, Progress};
use crate::operator::{Collector, Context};
use crate::plan::WindowAggregateSpec;
use crate::state::{Restored, Snapshot, TableSpec, distinct_names};

/// Rows of a batch.
const BATCH_ROWS: usize = 1 << 16;

/// The table of a spec.
///
/// # Errors
/// When a function cannot tell its state.
pub(super) fn table(spec: &WindowAggregateSpec, functions: &[Box<dyn SlotFunction>]) -> Result<TableSpec> {
    let keys = spec.group_by.len();
    let of_keys = spec.schema.0.fields().iter().take(keys);
    let mut fields: Vec<Field> = of_keys.map(|field| field.as_ref().clone()).collect();
    fields.extend(["session_start", "session_end"].map(|name| Field::new(name, DataType::Int64, false)));
    for (slots, function) in functions.iter().zip(&spec.aggregates.functions) {
        for field in slots.state_fields()? {
            let name = format!("{}[{}]", function.name(), field.name());
            fields.push(Field::new(name, field.data_type().clone(), true));
        }
    }
    let mut table = TableSpec::by_key("sessions", distinct_names(&Schema::new(fields)), keys);
    table.unique = keys + 1;
    Ok(table)
}

impl Sessions {
    /// # Errors
    /// When a function or the consumer fails.
    pub(in super::super) fn snapshot(
        &mut self,
        state: &mut Snapshot,
        cx: &mut Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        self.output.flush(out)?;
        let slots = self.store.all();
        let of = |values: &[i64]| -> ArrayRef {
            Arc::new(Int64Array::from_iter_values(
                slots.iter().map(|slot| values[*slot as usize]),
            ))
        };
        let keys: Vec<u32> = slots.iter().map(|slot| self.store.keys[*slot as usize]).collect();
        let mut columns = match self.keys.as_ref().filter(|_| !slots.is_empty()) {
            Some(table) => table.gather(&keys)?,
            None => Vec::new(),
        };
        columns.extend([of(&self.store.starts), of(&self.store.ends)]);
        for function in &mut self.functions {
            columns.extend(function.states(&slots)?);
        }
        let mut rows = None;
        if !slots.is_empty() {
            let options = RecordBatchOptions::new().with_row_count(Some(slots.len()));
            rows = Some(Batch::try_new_with_options(
                Arc::clone(&self.table.schema),
                columns,
                &options,
            )?);
        }
        let rows = rows.into_iter().flat_map(|rows| {
            let starts = (0..rows.num_rows()).step_by(BATCH_ROWS);
            starts.map(move |start| Ok(rows.slice(start, BATCH_ROWS.min(rows.num_rows() - start))))
        });
        state.full(&self.table, rows);
        progress::snapshot(Some(self.done).filter(|done| *done > i64::MIN), state, cx)?;
        cx.hold(self.held())
    }

    /// # Errors
    /// When the state does not fit, a function fails, or the budget is exhausted.
    pub(in super::super) fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        self.done = Progress::restore(state, cx)?.least.unwrap_or(i64::MIN);
        let table = self.table.clone();
        let keys = table.unique - 1;
        let widths = self.functions.iter().map(|function| Ok(function.state_fields()?.len()));
        let widths = widths.collect::<Result<Vec<_>>>()?;
        for rows in state.take(&table)? {
            let rows = rows?;
            self.number_keys(&rows.columns()[..keys], rows.num_rows())?;
            let times = |column: usize| rows.column(column).as_primitive::<Int64Type>().values().iter();
            let bounds = times(keys).zip(times(keys + 1));
            let store = &mut self.store;
            let opened = self.groups.iter().zip(bounds);
            let slots: Vec<u32> = opened
                .map(|(key, (start, end))| store.open_with(*key, *start, *end))
                .collect();
            let mut first = keys + 2;
            for (function, width) in self.functions.iter_mut().zip(&widths) {
                function.grow(self.store.slots());
                function.restore(&slots, &rows.columns()[first..first + width])?;
                first += width;
            }
            cx.hold(self.held())?;
        }
        // The scratch space of a restore is no longer of use.
        (self.groups, self.slots) = (Vec::new(), Vec::new());
        debug_assert!(
            self.keys
                .as_ref()
                .is_none_or(|keys: &GroupTable| keys.len() == self.store.key_counts().1)
        );
        cx.hold(self.held())
    }
}
