//! How far an operator's time has come, as state: which windows have left and which rows are late.
//!
//! Each subtask stores it with its key groups. Who takes over key groups of several subtasks goes on from the least of them, so
//! that no row is wrongly late; what subtasks that were further have already told of can be set apart ([`Progress::split`]).

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, Int64Array, RecordBatch, UInt32Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Int64Type, UInt32Type};

use crate::data::{Batch, EngineError, Result};
use crate::operator::Context;
use crate::state::{Restored, Scope, Snapshot, TableSpec, columns, key_groups, key_groups_of};

fn table() -> TableSpec {
    let schema = columns([
        ("first_group", DataType::UInt32),
        ("after_last_group", DataType::UInt32),
        ("progress", DataType::Int64),
    ]);
    TableSpec::union("progress", schema)
}

/// Stores how far this subtask has come; `None` when it has seen no time yet.
///
/// # Errors
/// Never, but for a bug.
pub(super) fn snapshot(progress: Option<i64>, state: &mut Snapshot, cx: &Context) -> Result<()> {
    let spec = table();
    let groups = key_groups_of(cx.subtask, cx.parallelism);
    let row = RecordBatch::try_new(
        Arc::clone(&spec.schema),
        vec![
            Arc::new(UInt32Array::from(vec![groups.start])),
            Arc::new(UInt32Array::from(vec![groups.end])),
            Arc::new(Int64Array::from(vec![progress])),
        ],
    )?;
    state.full(&spec, [Ok(row)]);
    Ok(())
}

/// How far those had come whose key groups this subtask has now.
pub(super) struct Progress {
    /// The least of them; `None` when one had seen no time, or nothing is stored.
    pub(super) least: Option<i64>,
    of_groups: Vec<(Range<u32>, Option<i64>)>,
}

impl Progress {
    /// Takes back what subtasks stored.
    ///
    /// # Errors
    /// When the state cannot be read or has another shape.
    pub(super) fn restore(state: &mut Restored, cx: &Context) -> Result<Self> {
        let own = key_groups_of(cx.subtask, cx.parallelism);
        let mut of_groups = Vec::new();
        for rows in state.take(&table())? {
            let rows = rows?;
            let (first, after) = (
                rows.column(0).as_primitive::<UInt32Type>(),
                rows.column(1).as_primitive::<UInt32Type>(),
            );
            let progress = rows.column(2).as_primitive::<Int64Type>();
            if first.null_count() + after.null_count() > 0 {
                return Err(EngineError::BadInput(format!(
                    "the state of operator '{}' is damaged: table 'progress' has a row without key groups; \
                     use another checkpoint",
                    cx.operator
                )));
            }
            for row in 0..rows.num_rows() {
                let groups = first.value(row)..after.value(row);
                if groups.start < own.end && own.start < groups.end {
                    of_groups.push((groups, progress.is_valid(row).then(|| progress.value(row))));
                }
            }
        }
        // None is less than all.
        let least = of_groups.iter().map(|(_, progress)| *progress).min().flatten();
        Ok(Self { least, of_groups })
    }

    /// The rows of a keyed table by the progress of the subtask that stored them.
    ///
    /// # Errors
    /// When a key cannot be computed.
    pub(super) fn split(&self, spec: &TableSpec, rows: Batch) -> Result<Vec<(Option<i64>, Batch)>> {
        let Scope::Keyed(keys) = &spec.scope else {
            return Ok(vec![(self.least, rows)]);
        };
        if self.of_groups.iter().all(|(_, progress)| *progress == self.least) {
            return Ok(vec![(self.least, rows)]);
        }
        let groups = key_groups(keys, &rows)?;
        let of_group = |group: &u32| {
            let found = self.of_groups.iter().find(|(groups, _)| groups.contains(group));
            found.map_or(self.least, |(_, progress)| *progress)
        };
        let of_rows: Vec<Option<i64>> = groups.iter().map(of_group).collect();
        let mut distinct = of_rows.clone();
        distinct.sort_unstable();
        distinct.dedup();
        let parts = distinct.into_iter().map(|progress| {
            let mask: BooleanArray = of_rows.iter().map(|of_row| Some(*of_row == progress)).collect();
            Ok((progress, filter_record_batch(&rows, &mask)?))
        });
        parts.collect()
    }
}
