//! `NOT IN`: whether a left row comes out depends on all right rows, not only on those of its key.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, UInt32Array, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema, UInt64Type};

use super::Run;
use crate::data::{Batch, Result, RowKind};
use crate::operator::join_state::{
    Appended, JoinKeys, JoinOutput, Kinds, Removal, RowStore, SideRows, StoreOptions, take_rows,
};
use crate::operator::row_table::RowTable;
use crate::operator::{Collector, Context};
use crate::plan::JoinInputSpec;
use crate::state::{Restored, Snapshot, TableSpec};

/// With a NULL among the right rows no left row comes out; a left row whose key is NULL does only while there is no right
/// row at all.
pub(super) struct NullAware {
    right_rows: u64,
    right_nulls: u64,
    /// The left rows whose key is NULL.
    left_nulls: RowStore,
    table: RowTable,
}

/// How many right rows there are, and how many of them have a NULL key.
fn counts_table() -> TableSpec {
    let field = |name| Field::new(name, DataType::UInt64, false);
    let schema = Schema::new(vec![field("right_rows"), field("right_nulls")]);
    TableSpec::of_rows("right_counts", Arc::new(schema), Vec::new())
}

impl NullAware {
    pub(super) fn new(left: &JoinInputSpec, keys: &JoinKeys) -> Self {
        let options = StoreOptions {
            removal: Removal::of(left),
            ttl_ms: left.ttl_ms,
            ..StoreOptions::default()
        };
        let left_nulls = RowStore::new(left, keys, options);
        Self {
            right_rows: 0,
            right_nulls: 0,
            table: left_nulls.table("left_nulls", &[]),
            left_nulls,
        }
    }

    pub(super) fn freeze(&self, state: &mut Snapshot) -> Result<()> {
        state.full(self.table.spec(), self.left_nulls.freeze(&self.table));
        let spec = counts_table();
        let count = |count: u64| Arc::new(UInt64Array::from(vec![count])) as ArrayRef;
        let columns = vec![count(self.right_rows), count(self.right_nulls)];
        let counts = Batch::try_new(Arc::clone(&spec.schema), columns)?;
        state.full(&spec, [Ok(counts)]);
        Ok(())
    }

    pub(super) fn thaw(&mut self, state: &mut Restored, keys: &JoinKeys, now_ms: i64) -> Result<()> {
        let rows = state.take(self.table.spec())?;
        self.left_nulls.restore(keys, &self.table, rows, false, now_ms)?;
        for counts in state.take(&counts_table())? {
            let counts = counts?;
            let total = |column: usize| {
                counts
                    .column(column)
                    .as_primitive::<UInt64Type>()
                    .values()
                    .iter()
                    .sum::<u64>()
            };
            self.right_rows += total(0);
            self.right_nulls += total(1);
        }
        Ok(())
    }

    /// Whether left rows with a key come out.
    pub(super) fn shows(&self) -> bool {
        self.right_nulls == 0
    }

    /// Whether a left row without partner comes out.
    pub(super) fn shows_left(&self, is_null: bool) -> bool {
        if is_null { self.right_rows == 0 } else { self.shows() }
    }

    pub(super) fn bytes(&self) -> usize {
        self.left_nulls.bytes()
    }

    pub(super) fn next_expiry(&self) -> Option<i64> {
        self.left_nulls.next_expiry()
    }

    pub(super) fn expire(&mut self, now_ms: i64) -> Result<()> {
        self.left_nulls.expire(now_ms)
    }

    pub(super) fn clear(&mut self) {
        self.left_nulls.clear();
    }

    /// Stores the left rows of a run whose key is NULL.
    pub(super) fn store_left(&mut self, run: &Run, keys: &JoinKeys, now_ms: i64) -> Result<()> {
        let nulls = run
            .keyed
            .nulls
            .iter()
            .flat_map(|nulls| (0..nulls.len()).filter(|row| nulls.is_null(*row)));
        let rows = UInt32Array::from_iter_values(nulls.map(|row| row as u32));
        let rows = take_rows(&run.rows, &rows)?;
        let appended = Appended {
            keyed: &keys.evaluate(&rows)?,
            rows: &rows,
            hashes: None,
            times: &[],
            counts: &[],
            now_ms,
        };
        self.left_nulls.append(keys, &appended)
    }

    /// Takes back the left rows of a run whose key is NULL; the others are not there.
    pub(super) fn remove_left(&mut self, run: &Run, keys: &JoinKeys) -> Result<()> {
        if run.keyed.nulls.is_some() {
            self.left_nulls.remove(keys, &run.rows)?;
        }
        Ok(())
    }

    /// Right rows are about to come: takes back what is not true any more because of that, apart from their partners.
    pub(super) fn before_right_comes(
        &mut self,
        run: &Run,
        left: &RowStore,
        output: &mut JoinOutput,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let (rows, nulls) = counted(run);
        if self.right_rows == 0 {
            tell(&self.left_nulls, |_| true, RowKind::Delete, output, cx, out)?;
        }
        if self.right_nulls == 0 && nulls > 0 {
            tell(left, |row| left.counts[row] == 0, RowKind::Delete, output, cx, out)?;
        }
        self.right_rows += rows;
        self.right_nulls += nulls;
        Ok(())
    }

    /// Right rows have gone, and their partners know: says what is true again because of that.
    pub(super) fn after_right_went(
        &mut self,
        run: &Run,
        left: &RowStore,
        output: &mut JoinOutput,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let (rows, nulls) = counted(run);
        let before = (self.right_rows, self.right_nulls);
        self.right_rows = self.right_rows.saturating_sub(rows);
        self.right_nulls = self.right_nulls.saturating_sub(nulls);
        if before.1 > 0 && self.right_nulls == 0 {
            tell(left, |row| left.counts[row] == 0, RowKind::Insert, output, cx, out)?;
        }
        if before.0 > 0 && self.right_rows == 0 {
            tell(&self.left_nulls, |_| true, RowKind::Insert, output, cx, out)?;
        }
        Ok(())
    }
}

/// Rows, and how many of them have a NULL key.
fn counted(run: &Run) -> (u64, u64) {
    let nulls = run.keyed.nulls.as_ref().map_or(0, |nulls| nulls.null_count());
    (run.rows.num_rows() as u64, nulls as u64)
}

/// Puts out the stored left rows for which `wanted` is true.
fn tell(
    store: &RowStore,
    wanted: impl Fn(usize) -> bool,
    kind: RowKind,
    output: &mut JoinOutput,
    cx: &Context,
    out: &mut dyn Collector,
) -> Result<()> {
    let rows = store.rows_where((i64::MIN, i64::MAX), wanted);
    for rows in rows.chunks(output.pairs_max(store.row_bytes(), cx)) {
        cx.cancel.check()?;
        let (left, right) = (SideRows::stored(store, rows), SideRows::Nulls(rows.len()));
        output.emit([&left, &right], Kinds::All(kind), cx, out)?;
    }
    Ok(())
}
