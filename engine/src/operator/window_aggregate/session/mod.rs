//! Session windows: per key, rows that are less than a gap apart. A late row may join two sessions to one.
//!
//! Per batch: keys to numbers in one go; then, row by row, the session of each, which is a comparison or two as a key
//! mostly has one open session; then each function over the whole batch.
//!
//! Its state is in [`state`].

mod functions;
mod generic;
mod state;
mod store;

use std::sync::atomic::Ordering;

use arrow::array::ArrayRef;
use arrow::datatypes::DataType;

use self::functions::{SlotFunction, functions_of};
use self::store::{Joined, NONE, Store};
use super::cut::{Rows, Selection};
use super::intake::{Intake, key_types};
use super::output::{Bounds, Output};
use super::slicing::Slicing;
use crate::data::{Batch, EngineError, Result, Watermark};
use crate::operator::aggregate::group_table::GroupTable;
use crate::operator::{Collector, Context};
use crate::plan::{AggregateMode, WindowAggregateSpec};
use crate::state::TableSpec;

/// Keys are not sorted out below so many.
const COMPACT_MIN: usize = 1024;

/// Aggregates sessions.
pub(super) struct Sessions {
    intake: Intake,
    keys: Option<GroupTable>,
    store: Store,
    functions: Vec<Box<dyn SlotFunction>>,
    /// Sessions that ended here or before have left.
    done: i64,
    output: Output,
    groups: Vec<usize>,
    slots: Vec<u32>,
    /// For each slot itself, but for sessions that have become part of others in this batch.
    now_in: Vec<u32>,
    table: TableSpec,
}

impl Sessions {
    /// # Errors
    /// When the spec asks for what sessions cannot do, or a function refuses its arguments.
    pub(super) fn new(spec: WindowAggregateSpec, gap_ms: i64) -> Result<Self> {
        if spec.mode != AggregateMode::Single {
            return Err(EngineError::Internal("sessions are aggregated in one step".into()));
        }
        if spec.emit.is_some() {
            return Err(EngineError::Plan(
                "session windows have no early or late results; leave off table.exec.emit.*".into(),
            ));
        }
        if gap_ms <= 0 || gap_ms > i64::MAX / 8 {
            return Err(EngineError::Plan(format!(
                "the gap of sessions must be positive and not absurd, not {gap_ms} ms"
            )));
        }
        let types: Vec<DataType> = key_types(&spec);
        let first = spec.group_by.len() + spec.aggregates.functions.len();
        let functions = functions_of(&spec.aggregates)?;
        Ok(Self {
            table: state::table(&spec, &functions)?,
            // Times are read as they are: slices of attached windows are single moments.
            intake: Intake::new(&spec, Slicing::attached())?,
            keys: match types.is_empty() {
                true => None,
                false => Some(GroupTable::new(types)?),
            },
            store: Store::new(gap_ms),
            functions,
            done: i64::MIN,
            output: Output::new(spec.schema.0, spec.properties, first)?,
            groups: Vec::new(),
            slots: Vec::new(),
            now_in: Vec::new(),
        })
    }

    /// # Errors
    /// When a time is NULL, an expression or function fails, or the budget is exhausted.
    pub(super) fn on_batch(&mut self, batch: &Batch, cx: &mut Context) -> Result<()> {
        let now = if self.intake.by_clock() {
            cx.clock.now_ms().max(self.done)
        } else {
            0
        };
        let times = self.intake.numbers(batch, now)?;
        let rows = self.intake.rows(batch)?;
        self.number_keys(&rows.keys, rows.count)?;
        let late = self.join_all(&times)?;
        if late == 0 {
            self.update(&rows)?;
        } else {
            cx.metrics.late_rows.fetch_add(late, Ordering::Relaxed);
            let kept: Vec<u32> = (0..)
                .zip(&self.slots)
                .filter(|(_, slot)| **slot != NONE)
                .map(|(row, _)| row)
                .collect();
            self.slots.retain(|slot| *slot != NONE);
            if !kept.is_empty() {
                self.update(&rows.select(&Selection::Rows(kept.into()))?)?;
            }
            // Late rows leave keys behind that nobody needs.
            self.compact()?;
        }
        cx.hold(self.held())
    }

    fn number_keys(&mut self, columns: &[ArrayRef], rows: usize) -> Result<()> {
        match &mut self.keys {
            Some(keys) => {
                keys.number(columns, &mut self.groups)?;
                self.store.grow_keys(keys.len());
            }
            None => {
                self.groups.clear();
                self.groups.resize(rows, 0);
                self.store.grow_keys(1);
            }
        }
        Ok(())
    }

    /// Finds the session of each row, [`NONE`] for late ones, of which it tells the number.
    fn join_all(&mut self, times: &[i64]) -> Result<u64> {
        let mut late = 0;
        let mut merges: Vec<(u32, u32)> = Vec::new();
        self.slots.clear();
        for (key, time) in self.groups.iter().zip(times) {
            let slot = match self.store.join(*key, *time, self.done) {
                Joined::Session(slot) => slot,
                Joined::Merged(into, from) => {
                    merges.push((into, from));
                    into
                }
                Joined::Late => {
                    late += 1;
                    NONE
                }
            };
            self.slots.push(slot);
        }
        for function in &mut self.functions {
            function.grow(self.store.slots());
        }
        if merges.is_empty() {
            return Ok(late);
        }
        // Rows of this batch that went into a session before it became part of another follow it.
        let known = self.now_in.len() as u32;
        self.now_in.extend(known..self.store.slots() as u32);
        let now_in = &mut self.now_in;
        for (into, from) in &merges {
            for function in &mut self.functions {
                function.merge(*into, *from)?;
            }
            now_in[*from as usize] = *into;
        }
        for slot in self.slots.iter_mut().filter(|slot| **slot != NONE) {
            while now_in[*slot as usize] != *slot {
                *slot = now_in[*slot as usize];
            }
        }
        for (_, from) in &merges {
            now_in[*from as usize] = *from;
        }
        Ok(late)
    }

    fn update(&mut self, rows: &Rows) -> Result<()> {
        for (function, input) in self.functions.iter_mut().zip(&rows.inputs) {
            function.update(input, &self.slots)?;
        }
        Ok(())
    }

    /// # Errors
    /// When a function or the consumer fails.
    pub(super) fn on_watermark(
        &mut self,
        watermark: Watermark,
        cx: &mut Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        if !self.intake.by_clock() || watermark == Watermark::MAX {
            self.complete(watermark.0.saturating_add(1), cx, out)?;
        }
        out.watermark(watermark)
    }

    /// # Errors
    /// As for `on_watermark`.
    pub(super) fn on_timer(&mut self, now: i64, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if self.intake.by_clock() {
            self.complete(now, cx, out)?;
        }
        Ok(())
    }

    /// When `on_timer` has work to do.
    pub(super) fn next_timer(&self) -> Option<i64> {
        self.store.due().filter(|_| self.intake.by_clock())
    }

    /// # Errors
    /// As for `on_watermark`.
    pub(super) fn on_end(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.complete(i64::MAX, cx, out)
    }

    /// Hands on the sessions that end at `done` or before, the oldest first.
    fn complete(&mut self, done: i64, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.done = self.done.max(done);
        let over = self.store.over(self.done);
        for slots in over.chunks(cx.batch_size.max(1)) {
            self.emit(slots, cx, out)?;
        }
        self.output.flush(out)?;
        self.store.close(&over);
        self.compact()?;
        cx.hold(self.held())
    }

    fn emit(&mut self, slots: &[u32], cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let at = |slot: &u32| *slot as usize;
        let bounds: Vec<Bounds> = slots
            .iter()
            .map(|slot| Bounds {
                start: self.store.starts[at(slot)],
                end: self.store.ends[at(slot)],
            })
            .collect();
        let mut columns: Vec<ArrayRef> = match &self.keys {
            Some(keys) => {
                let of_slots: Vec<u32> = slots.iter().map(|slot| self.store.keys[at(slot)]).collect();
                keys.gather(&of_slots)?
            }
            None => Vec::new(),
        };
        for function in &mut self.functions {
            columns.push(function.take(slots)?);
        }
        self.output.windows(columns, &bounds, cx, out)
    }

    /// Forgets keys without sessions, once they are the most; all of it when there is no session.
    fn compact(&mut self) -> Result<()> {
        let (live, all) = self.store.key_counts();
        if self.store.is_empty() {
            for function in &mut self.functions {
                function.clear();
            }
            if self.keys.as_ref().is_some_and(|keys| keys.len() > 0) {
                self.keys = self.keys.as_ref().map(GroupTable::successor).transpose()?;
                self.store.forget_keys();
            }
            (self.groups, self.slots, self.now_in) = (Vec::new(), Vec::new(), Vec::new());
            return Ok(());
        }
        let Some(keys) = self.keys.as_ref().filter(|_| all >= COMPACT_MIN && live * 2 < all) else {
            return Ok(());
        };
        let live = self.store.live_keys();
        let mut compacted = keys.successor()?;
        compacted.number(&keys.gather(&live)?, &mut self.groups)?;
        self.keys = Some(compacted);
        self.store.renumber_keys(&live);
        Ok(())
    }

    /// Bytes held.
    pub(super) fn held(&self) -> usize {
        if self.store.is_empty() {
            return self.output.held_bytes();
        }
        let functions: usize = self.functions.iter().map(|function| function.size()).sum();
        let keys = self.keys.as_ref().map_or(0, GroupTable::size);
        let scratch = self.groups.capacity() * size_of::<usize>() + self.now_in.capacity() * size_of::<u32>();
        keys + self.store.size() + functions + scratch + self.output.held_bytes()
    }
}
