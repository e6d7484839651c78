//! TemporalJoin: joins each left row with the version of the right side at its time (`FOR SYSTEM_TIME AS OF`).
//!
//! In event time the rows of both sides wait until the watermark has reached them, and are then swept in the order of
//! time: a right row replaces the version of its key, a left row takes the version that is there. So of each key only the
//! newest version up to the watermark is kept, and the younger ones wait with the rest. In processing time the versions
//! are those that have arrived.
//!
//! Of a changelog `+I` and `+U` are versions, `-D` ends one, and `-U` says nothing, as its `+U` follows. A version that
//! comes after the watermark has passed it counts for the left rows still to come unless a younger one is there (of a key
//! that was ended nothing is remembered). Late left rows are dropped and counted.
//!
//! A snapshot is the current version of each key with its time, and the rows that wait. A table that is read to its end
//! first is the same in every subtask.

mod sweep;
#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering;

use arrow::array::UInt32Array;
use datafusion::common::JoinType;

use crate::data::{Batch, EngineError, Result, Watermark, is_changelog};
use crate::operator::join_state::{
    JoinKeys, JoinOutput, Removal, RowStore, StoreOptions, Waiting, event_times, take_rows,
};
use crate::operator::row_table::RowTable;
use crate::operator::temporal_join::sweep::{Sweep, Timed};
use crate::operator::{Collector, Context, Operator, Port, ReadNext};
use crate::plan::{TemporalJoinSpec, TemporalTime};
use crate::state::{Restored, Snapshot};
use crate::time::Timer;

/// So many rows are swept at a time.
const SWEEP_ROWS: usize = 32 * 1024;

const RIGHT: Port = 1;

/// Joins a stream with the versions of a table.
pub(super) struct TemporalJoin {
    spec: TemporalJoinSpec,
    sweep: Sweep,
    waiting: [Waiting; 2],
    waiting_tables: [RowTable; 2],
    versions_table: RowTable,
    reached_ms: i64,
    ended: [bool; 2],
}

impl TemporalJoin {
    /// A join as `spec` says.
    ///
    /// # Errors
    /// When the spec contradicts itself.
    pub(super) fn new(spec: TemporalJoinSpec) -> Result<Self> {
        if !matches!(spec.join_type, JoinType::Inner | JoinType::Left) {
            return Err(EngineError::Plan(format!(
                "a temporal join is an inner or a left join, not {}",
                spec.join_type
            )));
        }
        if is_changelog(&spec.left.schema.0) || is_changelog(&spec.schema.0) {
            return Err(EngineError::Plan(
                "the left side of a temporal join takes rows back; it must be insertions only".into(),
            ));
        }
        if spec.left.keys.is_empty() {
            return Err(EngineError::Plan(
                "a temporal join needs an equality with each column of the right side's primary key".into(),
            ));
        }
        let output = JoinOutput::new(
            spec.join_type,
            &spec.left,
            &spec.right,
            spec.filter.as_ref(),
            &spec.schema,
        )?;
        let keys = JoinKeys::of_sides(&spec.left, &spec.right, false)?;
        let options = StoreOptions {
            times: true,
            removal: Removal::ByNumber,
            ttl_ms: spec.right.ttl_ms,
            ..StoreOptions::default()
        };
        let store = RowStore::new(&spec.right, &keys[1], options);
        let versions_table = store.table("versions", &spec.right.keys);
        let waiting = [&spec.left, &spec.right].map(|side| Waiting::new(side.schema.0.clone()));
        Ok(Self {
            sweep: Sweep::new(keys, store, output, spec.join_type == JoinType::Left),
            waiting_tables: [
                waiting[0].table("left", &spec.left.keys),
                waiting[1].table("right", &spec.right.keys),
            ],
            waiting,
            versions_table: match spec.time {
                TemporalTime::Processing { bounded: true } => versions_table.broadcast(),
                _ => versions_table,
            },
            spec,
            reached_ms: i64::MIN,
            ended: [false; 2],
        })
    }

    /// Takes a batch whose rows wait for the watermark.
    fn wait(&mut self, port: Port, batch: &Batch, column: usize, cx: &mut Context) -> Result<()> {
        let times = event_times(batch, column)?;
        let is_late = |time: &i64| port != RIGHT && *time <= self.reached_ms;
        let late_rows = times.iter().filter(|time| is_late(time)).count();
        if late_rows == 0 {
            return self.waiting[port].push(batch, times);
        }
        cx.metrics.late_rows.fetch_add(late_rows as u64, Ordering::Relaxed);
        let kept: Vec<u32> = (0..times.len() as u32)
            .filter(|row| !is_late(&times[*row as usize]))
            .collect();
        let times = kept.iter().map(|row| times[*row as usize]).collect();
        self.waiting[port].push(&take_rows(batch, &UInt32Array::from(kept))?, times)
    }

    /// Takes a batch whose rows count at once.
    fn arrive(&mut self, port: Port, batch: &Batch, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        let rows = Timed {
            rows: batch.clone(),
            times: vec![0; batch.num_rows()],
        };
        let none = Timed {
            rows: batch_of_none(&self.spec, 1 - port),
            times: Vec::new(),
        };
        match port {
            RIGHT => self.sweep.run(&none, &rows, cx, out),
            _ => self.sweep.run(&rows, &none, cx, out),
        }
    }

    /// Joins the left rows up to `reached_ms`.
    fn reach(&mut self, reached_ms: i64, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.reached_ms = self.reached_ms.max(reached_ms);
        let [left, right] = &mut self.waiting;
        let (mut left, mut right) = (left.take_through(reached_ms)?, right.take_through(reached_ms)?);
        loop {
            let ends = [left.time_after(SWEEP_ROWS), right.time_after(SWEEP_ROWS)];
            let Some(end) = ends.into_iter().flatten().min() else {
                break;
            };
            let piece = [&mut left, &mut right].map(|side| {
                let (rows, times) = side.take_through(end)?;
                Ok::<_, EngineError>(Timed { rows, times })
            });
            let [left, right] = piece;
            self.sweep.run(&left?, &right?, cx, out)?;
        }
        drop((left, right));
        self.sweep.output.flush(out)?;
        self.hold(cx)
    }

    fn hold(&self, cx: &mut Context) -> Result<()> {
        let waiting: usize = self.waiting.iter().map(Waiting::bytes).sum();
        cx.hold(waiting + self.sweep.store.bytes())
    }
}

fn batch_of_none(spec: &TemporalJoinSpec, port: Port) -> Batch {
    let side = if port == RIGHT { &spec.right } else { &spec.left };
    Batch::new_empty(side.schema.0.clone())
}

impl Operator for TemporalJoin {
    fn on_batch(&mut self, port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.sweep.store.expire(cx.clock.now_ms())?;
        match self.spec.time {
            TemporalTime::Event { left, right } => {
                self.wait(port, &batch, if port == RIGHT { right } else { left }, cx)?;
            }
            TemporalTime::Processing { .. } => {
                self.arrive(port, &batch, cx, out)?;
                self.sweep.output.flush(out)?;
            }
        }
        self.hold(cx)
    }

    fn on_watermark(&mut self, watermark: Watermark, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if matches!(self.spec.time, TemporalTime::Event { .. }) {
            self.sweep.store.expire(cx.clock.now_ms())?;
            self.reach(watermark.0, cx, out)?;
        }
        out.watermark(watermark)
    }

    fn on_timer(&mut self, _timer: Timer, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        self.sweep.store.expire(cx.clock.now_ms())?;
        self.hold(cx)
    }

    fn next_timer(&self) -> Option<i64> {
        self.sweep.store.next_expiry()
    }

    fn on_end(&mut self, port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.ended[port] = true;
        if self.ended == [true; 2] {
            self.reach(i64::MAX, cx, out)?;
        }
        if self.ended[0] && self.waiting[0].is_empty() {
            // Nobody asks for versions any more; those that wait are dropped with the last watermark.
            self.sweep.store.clear();
        }
        self.hold(cx)
    }

    fn snapshot(&mut self, state: &mut Snapshot, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        let table = &self.versions_table;
        state.full(table.spec(), self.sweep.store.freeze(table));
        for (waiting, table) in self.waiting.iter().zip(&self.waiting_tables) {
            state.full(table.spec(), waiting.freeze(table));
        }
        Ok(())
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        let versions = state.take(self.versions_table.spec())?;
        self.sweep.restore(&self.versions_table, versions, cx.clock.now_ms())?;
        for (port, (waiting, table)) in self.waiting.iter_mut().zip(&self.waiting_tables).enumerate() {
            let rows = state.take(table.spec())?;
            // In processing time nothing waits.
            if let TemporalTime::Event { left, right } = self.spec.time {
                let column = if port == RIGHT { right } else { left };
                waiting.restore(table, rows, |rows| event_times(rows, column))?;
            }
        }
        self.hold(cx)
    }

    fn reads_next(&self) -> ReadNext {
        match self.spec.time {
            TemporalTime::Processing { bounded: true } if !self.ended[RIGHT] => ReadNext::Only(RIGHT),
            _ => ReadNext::Any,
        }
    }
}
