//! Where the splits are, as tables.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BooleanArray, Int64Array, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Int64Type, UInt64Type};

use crate::data::{Batch, EngineError, Result};
use crate::operator::{Context, SplitId};
use crate::state::{Restored, Snapshot, TableSpec, columns};

use super::StreamScan;
use super::share::SplitState;

/// Checkpoints that may be under way at once and not be told of; older ones are forgotten.
const NOTED_MAX: usize = 64;

/// The positions at the checkpoints that are not complete, by checkpoint.
pub(super) type Noted = VecDeque<(u64, Vec<(SplitId, Vec<u8>)>)>;

fn splits_table() -> TableSpec {
    let fields = columns([
        ("name", DataType::Utf8),
        ("ordinal", DataType::UInt64),
        ("position", DataType::Binary),
        ("watermark_ms", DataType::Int64),
        ("ended", DataType::Boolean),
    ]);
    TableSpec::union("splits", fields)
}

fn limit_table() -> TableSpec {
    TableSpec::union("limit", columns([("rows_left", DataType::UInt64)]))
}

impl StreamScan {
    pub(in crate::operator) fn snapshot(&mut self, state: &mut Snapshot, cx: &Context) -> Result<()> {
        // A split that nobody has seen would be missing: a source may tell by the known ones which are new.
        self.splits.begin(cx)?;
        let splits = self.splits.states();
        let positions = splits
            .iter()
            .filter_map(|split| Some((split.id.clone(), split.position.clone()?)));
        self.noted.push_back((state.request().checkpoint, positions.collect()));
        if self.noted.len() > NOTED_MAX {
            self.noted.pop_front();
        }
        let spec = splits_table();
        state.full(&spec.clone(), std::iter::once_with(move || rows_of(&spec, &splits)));
        if self.limit.is_some() {
            let spec = limit_table();
            let left: ArrayRef = Arc::new(UInt64Array::from(vec![self.rows_left as u64]));
            let rows = Batch::try_new(Arc::clone(&spec.schema), vec![left])?;
            state.full(&spec, [Ok(rows)]);
        }
        Ok(())
    }

    pub(in crate::operator) fn restore(&mut self, state: &mut Restored, _cx: &Context) -> Result<()> {
        let mut splits = Vec::new();
        for rows in state.take(&splits_table())? {
            splits_of(&rows?, &mut splits)?;
        }
        self.splits.restore(splits)?;
        let mut left = None;
        for rows in state.take(&limit_table())? {
            // Each subtask gives at most so many rows as are wanted in all: none of the numbers is too small.
            left = left.max(arrow::compute::max(rows?.column(0).as_primitive::<UInt64Type>()));
        }
        if let (Some(left), Some(limit)) = (left, self.limit) {
            self.rows_left = limit.min(usize::try_from(left).unwrap_or(usize::MAX));
        }
        Ok(())
    }

    pub(in crate::operator) fn checkpoint_complete(&mut self, checkpoint: u64) {
        while self.noted.front().is_some_and(|(noted, _)| *noted <= checkpoint) {
            if let Some((noted, positions)) = self.noted.pop_front()
                && noted == checkpoint
            {
                self.splits.checkpoint_complete(&positions);
            }
        }
    }
}

fn rows_of(spec: &TableSpec, splits: &[SplitState]) -> Result<Batch> {
    let names = StringArray::from_iter_values(splits.iter().map(|split| &split.id.name));
    let ordinals = UInt64Array::from_iter_values(splits.iter().map(|split| split.id.ordinal));
    let positions: BinaryArray = splits.iter().map(|split| split.position.as_deref()).collect();
    let watermarks: Int64Array = splits.iter().map(|split| split.watermark).collect();
    let ended: BooleanArray = splits.iter().map(|split| Some(split.ended)).collect();
    let columns: Vec<ArrayRef> = vec![
        Arc::new(names),
        Arc::new(ordinals),
        Arc::new(positions),
        Arc::new(watermarks),
        Arc::new(ended),
    ];
    Ok(Batch::try_new(Arc::clone(&spec.schema), columns)?)
}

fn splits_of(rows: &Batch, splits: &mut Vec<SplitState>) -> Result<()> {
    let names = rows.column(0).as_string::<i32>();
    let ordinals = rows.column(1).as_primitive::<UInt64Type>();
    let positions = rows.column(2).as_binary::<i32>();
    let watermarks = rows.column(3).as_primitive::<Int64Type>();
    let ended = rows.column(4).as_boolean();
    if names.null_count() + ordinals.null_count() + ended.null_count() > 0 {
        return Err(EngineError::BadInput(
            "the state of the source's splits is damaged".into(),
        ));
    }
    splits.extend((0..rows.num_rows()).map(|row| SplitState {
        id: SplitId {
            name: names.value(row).to_string(),
            ordinal: ordinals.value(row),
        },
        position: positions.is_valid(row).then(|| positions.value(row).to_vec()),
        watermark: watermarks.is_valid(row).then(|| watermarks.value(row)),
        ended: ended.value(row),
    }));
    Ok(())
}
