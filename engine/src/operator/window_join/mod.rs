//! WindowJoin: joins rows of equal keys and the same window, once the window is complete.
//!
//! Rows wait, sorted by the end of their window. When the watermark completes windows, the rows of all of them are
//! joined as one hash join by key and window end, in groups of whole windows of some ten thousand rows: so many small
//! windows cost no more than a few large ones. Rows of a window that is already complete are late, dropped and counted.
//!
//! A snapshot is the rows that wait.

#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering;

use arrow::array::UInt32Array;
use datafusion::common::JoinType;

use crate::data::{Batch, EngineError, Result, RowKind, Watermark, batch_bytes, is_changelog};
use crate::operator::join_state::{
    Appended, Drained, JoinKeys, JoinOutput, Kinds, Probe, RowStore, Seekers, SideRows, StoreOptions, Waiting,
    event_times, in_order, match_rows, take_rows,
};
use crate::operator::row_table::RowTable;
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::WindowJoinSpec;
use crate::state::{Restored, Snapshot};

/// Windows are joined together up to about so many rows.
const GROUP_ROWS: usize = 32 * 1024;

/// Joins two streams window by window.
pub(super) struct WindowJoin {
    spec: WindowJoinSpec,
    keys: [JoinKeys; 2],
    ends: [usize; 2],
    waiting: [Waiting; 2],
    tables: [RowTable; 2],
    output: JoinOutput,
    reached_ms: i64,
    ended: [bool; 2],
}

/// The rows of one side of some windows, with the windows' ends.
struct Rows {
    rows: Batch,
    ends: Vec<i64>,
}

impl WindowJoin {
    /// A join as `spec` says.
    ///
    /// # Errors
    /// When the spec contradicts itself.
    pub(super) fn new(spec: WindowJoinSpec) -> Result<Self> {
        let schemas = [&spec.left.schema, &spec.right.schema, &spec.schema];
        if schemas.iter().any(|schema| is_changelog(&schema.0)) {
            return Err(EngineError::Plan(
                "a window join takes insertions only; one of its inputs takes rows back".into(),
            ));
        }
        let waiting = [&spec.left, &spec.right].map(|side| Waiting::new(side.schema.0.clone()));
        Ok(Self {
            tables: [
                waiting[0].table("left", &spec.left.keys),
                waiting[1].table("right", &spec.right.keys),
            ],
            waiting,
            output: JoinOutput::new(
                spec.join_type,
                &spec.left,
                &spec.right,
                spec.filter.as_ref(),
                &spec.schema,
            )?,
            keys: JoinKeys::of_sides(&spec.left, &spec.right, false)?,
            ends: [spec.left_end, spec.right_end],
            reached_ms: i64::MIN,
            ended: [false; 2],
            spec,
        })
    }

    /// Joins the windows that are complete.
    fn complete(&mut self, reached_ms: i64, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.reached_ms = self.reached_ms.max(reached_ms);
        let last_end = reached_ms.saturating_add(1);
        let before: usize = self.waiting.iter().map(Waiting::bytes).sum();
        let [left, right] = &mut self.waiting;
        let (mut left, mut right) = (left.take_through(last_end)?, right.take_through(last_end)?);
        while let Some(end) = group_end(&left, &right) {
            let group = [&mut left, &mut right].map(|side| {
                let (rows, ends) = side.take_through(end)?;
                Ok::<_, EngineError>(Rows { rows, ends })
            });
            let [left, right] = group;
            self.join(&[left?, right?], before, cx, out)?;
        }
        drop((left, right));
        self.output.flush(out)?;
        self.hold(cx)
    }

    /// Joins whole windows: the smaller side is indexed, the larger looks for partners.
    fn join(&mut self, group: &[Rows; 2], before: usize, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let build = usize::from(group[0].ends.len() > group[1].ends.len());
        let probe = 1 - build;
        if group[build].ends.is_empty() && self.needs_both(probe) {
            return Ok(());
        }
        let inputs = [&self.spec.left, &self.spec.right];
        let options = StoreOptions {
            times: true,
            ..StoreOptions::default()
        };
        let mut store = RowStore::new(inputs[build], &self.keys[build], options);
        // The rows of the store by their place in the group: those whose key is NULL are not there.
        let kept = self.store(&mut store, build, &group[build])?;
        let groups: usize = group.iter().map(|side| batch_bytes(&side.rows)).sum();
        cx.hold(before + groups + store.bytes())?;
        let keyed = self.keys[probe].evaluate(&group[probe].rows)?;
        let hashes = by_window(keyed.hashes(group[probe].ends.len())?, &group[probe].ends);
        let mut matched = [0, 1].map(|side| vec![false; group[side].ends.len()]);
        let pairs_leave = !matches!(self.spec.join_type, JoinType::LeftSemi | JoinType::LeftAnti);
        let seekers = Seekers {
            side: probe,
            rows: &group[probe].rows,
            probe: Probe {
                keyed: &keyed,
                hashes: &hashes,
                times: Some((&group[probe].ends, &group[probe].ends)),
            },
        };
        let keys = &self.keys[build];
        match_rows(
            seekers,
            &mut store,
            keys,
            &mut self.output,
            cx,
            out,
            &mut |store, output, pairs, out| {
                pairs.probe.iter().for_each(|row| matched[probe][*row as usize] = true);
                for row in &pairs.stored {
                    matched[build][kept.as_ref().map_or(*row, |kept| kept.value(*row as usize)) as usize] = true;
                }
                if !pairs_leave {
                    return Ok(());
                }
                let own = SideRows::batch(&group[probe].rows, &pairs.probe);
                let other = SideRows::stored(store, &pairs.stored);
                output.emit(in_order(probe, &own, &other), Kinds::All(RowKind::Insert), cx, out)
            },
        )?;
        for side in 0..2 {
            self.tell(side, &group[side], &matched[side], cx, out)?;
        }
        Ok(())
    }

    /// Whether rows of `side` alone bring no output.
    fn needs_both(&self, side: usize) -> bool {
        match self.spec.join_type {
            JoinType::Full => false,
            JoinType::Left | JoinType::LeftAnti => side == 1,
            JoinType::Right => side == 0,
            _ => true,
        }
    }

    /// Stores the rows of one side that can match; gives back which those are, unless it is all.
    fn store(&self, store: &mut RowStore, side: usize, group: &Rows) -> Result<Option<UInt32Array>> {
        let keys = &self.keys[side];
        let keyed = keys.evaluate(&group.rows)?;
        let kept = keyed.nulls.as_ref().map(|nulls| {
            let rows = (0..nulls.len()).filter(|row| nulls.is_valid(*row));
            UInt32Array::from_iter_values(rows.map(|row| row as u32))
        });
        let (rows, ends, keyed) = match &kept {
            None => (group.rows.clone(), group.ends.clone(), keyed),
            Some(kept) => {
                let rows = take_rows(&group.rows, kept)?;
                let keyed = keys.evaluate(&rows)?;
                (
                    rows,
                    kept.values().iter().map(|row| group.ends[*row as usize]).collect(),
                    keyed,
                )
            }
        };
        let hashes = by_window(keyed.hashes(ends.len())?, &ends);
        let appended = Appended {
            rows: &rows,
            keyed: &keyed,
            hashes: Some(&hashes),
            times: &ends,
            counts: &[],
            now_ms: 0,
        };
        store.append(keys, &appended)?;
        Ok(kept)
    }

    /// Puts out what leaves of one side by itself.
    fn tell(
        &mut self,
        side: usize,
        group: &Rows,
        matched: &[bool],
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let wanted = match (self.spec.join_type, side) {
            (JoinType::LeftSemi, 0) => true,
            (JoinType::Left | JoinType::Full | JoinType::LeftAnti, 0) | (JoinType::Right | JoinType::Full, 1) => false,
            _ => return Ok(()),
        };
        let rows = (0..matched.len()).filter(|row| matched[*row] == wanted);
        let rows: Vec<u32> = rows.map(|row| row as u32).collect();
        for rows in rows.chunks(cx.batch_size.max(1)) {
            let (own, nulls) = (SideRows::batch(&group.rows, rows), SideRows::Nulls(rows.len()));
            self.output
                .emit(in_order(side, &own, &nulls), Kinds::All(RowKind::Insert), cx, out)?;
        }
        Ok(())
    }

    fn hold(&self, cx: &mut Context) -> Result<()> {
        cx.hold(self.waiting.iter().map(Waiting::bytes).sum())
    }
}

/// The last window of the next group.
fn group_end(left: &Drained, right: &Drained) -> Option<i64> {
    let ends = [left.time_after(GROUP_ROWS), right.time_after(GROUP_ROWS)];
    ends.into_iter().flatten().min()
}

/// Hashes of key and window. Of rows of one window they are equal where the hashes of the keys are.
fn by_window(mut hashes: Vec<u64>, ends: &[i64]) -> Vec<u64> {
    for (hash, end) in hashes.iter_mut().zip(ends) {
        *hash ^= (*end as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_right(29);
    }
    hashes
}

impl Operator for WindowJoin {
    fn on_batch(&mut self, port: Port, batch: Batch, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        let ends = event_times(&batch, self.ends[port])?;
        let complete_through = self.reached_ms.saturating_add(1);
        let late = |end: &i64| *end <= complete_through && self.reached_ms != i64::MIN;
        let late_rows = ends.iter().filter(|end| late(end)).count();
        if late_rows == 0 {
            self.waiting[port].push(&batch, ends)?;
            return self.hold(cx);
        }
        cx.metrics.late_rows.fetch_add(late_rows as u64, Ordering::Relaxed);
        let kept: Vec<u32> = (0..ends.len() as u32)
            .filter(|row| !late(&ends[*row as usize]))
            .collect();
        let ends = kept.iter().map(|row| ends[*row as usize]).collect();
        self.waiting[port].push(&take_rows(&batch, &UInt32Array::from(kept))?, ends)?;
        self.hold(cx)
    }

    fn on_watermark(&mut self, watermark: Watermark, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.complete(watermark.0, cx, out)?;
        out.watermark(watermark)
    }

    fn snapshot(&mut self, state: &mut Snapshot, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        for (waiting, table) in self.waiting.iter().zip(&self.tables) {
            state.full(table.spec(), waiting.freeze(table));
        }
        Ok(())
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        for ((waiting, table), end) in self.waiting.iter_mut().zip(&self.tables).zip(self.ends) {
            waiting.restore(table, state.take(table.spec())?, |rows| event_times(rows, end))?;
        }
        self.hold(cx)
    }

    fn on_end(&mut self, port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.ended[port] = true;
        if self.ended == [true; 2] {
            return self.complete(i64::MAX, cx, out);
        }
        Ok(())
    }
}
