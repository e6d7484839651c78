//! What a [`StreamJoin`] keeps, as tables: the rows of both sides, what `NOT IN` counts, and which inputs have ended.
//!
//! That an input has ended matters: the rows of the other side are forgotten then, and one that is taken back is not to be
//! looked for among them. The input ends again after a restore, but rows may come before that.

use std::sync::Arc;

use arrow::array::{AsArray, BooleanArray};
use arrow::datatypes::{DataType, Field, Schema};

use super::StreamJoin;
use crate::data::{Batch, Result};
use crate::operator::Context;
use crate::state::{Restored, Snapshot, TableSpec};

/// One row of each subtask: which of its inputs have ended.
fn ended_table() -> TableSpec {
    let field = |name| Field::new(name, DataType::Boolean, false);
    TableSpec::union("ended", Arc::new(Schema::new(vec![field("left"), field("right")])))
}

impl StreamJoin {
    pub(super) fn freeze(&self, state: &mut Snapshot) -> Result<()> {
        for side in &self.sides {
            state.full(side.table.spec(), side.store.freeze(&side.table));
        }
        let spec = ended_table();
        let ended = |side: usize| Arc::new(BooleanArray::from(vec![self.sides[side].has_ended])) as _;
        let ended = Batch::try_new(Arc::clone(&spec.schema), vec![ended(0), ended(1)])?;
        state.full(&spec, [Ok(ended)]);
        match &self.null_aware {
            Some(null_aware) => null_aware.freeze(state),
            None => Ok(()),
        }
    }

    pub(super) fn thaw(&mut self, state: &mut Restored, cx: &Context) -> Result<()> {
        let now_ms = cx.clock.now_ms();
        for side in &mut self.sides {
            let rows = state.take(side.table.spec())?;
            side.store.restore(&side.keys, &side.table, rows, false, now_ms)?;
        }
        let (mut subtasks, mut ended) = (0, [0; 2]);
        for batch in state.take(&ended_table())? {
            let batch = batch?;
            subtasks += batch.num_rows();
            for (side, ended) in ended.iter_mut().enumerate() {
                *ended += batch.column(side).as_boolean().true_count();
            }
        }
        for (side, ended) in ended.into_iter().enumerate() {
            self.sides[side].has_ended = ended > 0 && ended == subtasks;
            // Of those subtasks whose input had ended the other side's rows are gone.
            self.sides[1 - side].may_forget |= ended > 0;
        }
        if let Some(null_aware) = &mut self.null_aware {
            null_aware.thaw(state, &self.sides[0].keys, now_ms)?;
        }
        Ok(())
    }
}
