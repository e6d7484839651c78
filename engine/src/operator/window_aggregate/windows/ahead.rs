//! Rows of subtasks that were ahead: restored together with those of slower ones, they wait until the others have come as far,
//! as their results of the windows up to there have been told.
//!
//! Subtasks are all as far as each other at an aligned barrier in event time, so that there is mostly nothing here.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};

use crate::data::{Batch, Result, batch_bytes};
use crate::state::{Restored, Snapshot, TableSpec};

/// Restored rows that wait.
#[derive(Default)]
pub(super) struct Waiting {
    pub(super) slices: Vec<Batch>,
    pub(super) told: Vec<Batch>,
}

/// Rows by how far those were that stored them.
#[derive(Default)]
pub(super) struct Ahead {
    by_progress: BTreeMap<i64, Waiting>,
    bytes: usize,
}

impl Ahead {
    /// How far the first of them are.
    pub(super) fn first(&self) -> Option<i64> {
        self.by_progress.keys().next().copied()
    }

    pub(super) fn add_slices(&mut self, progress: i64, rows: Batch) {
        self.bytes += batch_bytes(&rows);
        self.by_progress.entry(progress).or_default().slices.push(rows);
    }

    pub(super) fn add_told(&mut self, progress: i64, rows: Batch) {
        self.bytes += batch_bytes(&rows);
        self.by_progress.entry(progress).or_default().told.push(rows);
    }

    /// Takes out the first of them.
    pub(super) fn pop(&mut self) -> Option<(i64, Waiting)> {
        let (progress, waiting) = self.by_progress.pop_first()?;
        let rows = waiting.slices.iter().chain(&waiting.told);
        self.bytes -= rows.map(batch_bytes).sum::<usize>();
        Some((progress, waiting))
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.bytes
    }

    pub(super) fn snapshot(&self, slices: &TableSpec, told: &TableSpec, state: &mut Snapshot) -> Result<()> {
        if self.by_progress.is_empty() {
            return Ok(());
        }
        let with_progress = |rows: &Batch, progress: i64, spec: &TableSpec| -> Result<Batch> {
            let mut columns = rows.columns().to_vec();
            columns.push(Arc::new(Int64Array::from(vec![progress; rows.num_rows()])) as ArrayRef);
            Ok(Batch::try_new(Arc::clone(&spec.schema), columns)?)
        };
        let (of_slices, of_told) = (table(slices), table(told));
        let (mut slices, mut told) = (Vec::new(), Vec::new());
        for (progress, waiting) in &self.by_progress {
            slices.extend(
                waiting
                    .slices
                    .iter()
                    .map(|rows| with_progress(rows, *progress, &of_slices)),
            );
            told.extend(waiting.told.iter().map(|rows| with_progress(rows, *progress, &of_told)));
        }
        state.full(&of_slices, slices);
        if !told.is_empty() {
            state.full(&of_told, told);
        }
        Ok(())
    }
}

/// The table of those rows of `spec` that wait.
fn table(spec: &TableSpec) -> TableSpec {
    let progress = Arc::new(Field::new("$progress", DataType::Int64, false));
    let fields = spec.schema.fields().iter().cloned().chain([progress]);
    TableSpec {
        name: format!("{}_ahead", spec.name),
        schema: Arc::new(Schema::new(fields.collect::<Vec<_>>())),
        unique: 0,
        ..spec.clone()
    }
}

/// The rows of `spec` that have waited at the checkpoint, by how far those were that stored them.
pub(super) fn restore(spec: &TableSpec, state: &mut Restored) -> Result<Vec<(i64, Batch)>> {
    let mut all = Vec::new();
    for rows in state.take(&table(spec))? {
        let rows = rows?;
        let last = rows.num_columns() - 1;
        let progress = rows.column(last).as_primitive::<Int64Type>();
        let mut distinct = progress.values().to_vec();
        distinct.sort_unstable();
        distinct.dedup();
        let columns: Vec<usize> = (0..last).collect();
        for of_rows in distinct {
            let mask = progress
                .values()
                .iter()
                .map(|of_row| Some(*of_row == of_rows))
                .collect();
            let part = filter_record_batch(&rows, &mask)?.project(&columns)?;
            all.push((of_rows, part.with_schema(Arc::clone(&spec.schema))?));
        }
    }
    Ok(all)
}
