//! Windows made of slices: from rows, or from the states that partial aggregations have sent, to results.
//!
//! A slice that gets rows has a table of its own. Windows of one slice leave straight from that table. For others the
//! slice is closed when the first window with it is complete: see [`Shared`].
//!
//! Its state is in [`state`].

mod ahead;
mod state;

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use super::changes::Changes;
use super::cut::{Cut, Rows, Selection, cut};
use super::intake::{Intake, key_types, slicing_of};
use super::output::{Bounds, Output};
use super::shared::Shared;
use super::slicing::Slicing;
use super::table::Table;
use super::updates::Updates;
use crate::data::{Batch, EngineError, Result, Watermark};
use crate::operator::aggregate::accumulators::{Accumulators, Take};
use crate::operator::{Collector, Context};
use crate::plan::{AggregateMode, WindowAggregateSpec, WindowProperty, WindowSource};

/// A slice that gets rows.
struct Open {
    table: Table,
    bytes: usize,
}

/// Aggregates windows.
pub(super) struct Windows {
    merges: bool,
    slicing: Slicing,
    lateness_ms: i64,
    intake: Intake,
    /// What the table of a new slice is made after.
    template: Table,
    /// By the slice's end.
    open: BTreeMap<i64, Open>,
    open_bytes: usize,
    /// None when each window is one slice and leaves once.
    shared: Option<Shared>,
    /// Early and late results.
    updates: Option<Updates>,
    /// The starts of attached windows, by their ends.
    starts: BTreeMap<i64, i64>,
    /// Windows that end here or before are complete and have left.
    done: Option<i64>,
    output: Output,
    groups: Vec<usize>,
    tables: state::Tables,
    /// Changes of slices.
    changes: Changes,
    ahead: ahead::Ahead,
}

impl Windows {
    /// # Errors
    /// When the spec contradicts itself, or a function refuses its arguments.
    pub(super) fn new(spec: WindowAggregateSpec) -> Result<Self> {
        let slicing = slicing_of(&spec)?;
        check(&spec)?;
        let types = key_types(&spec);
        let accumulators = Accumulators::new(spec.aggregates.functions.clone())?;
        let functions = &spec.aggregates.functions;
        let shared = if slicing.slices_per_window() > 1 || spec.emit.is_some() {
            let ordered = spec.emit.is_none();
            Some(Shared::new(types.clone(), slicing, functions, &accumulators, ordered)?)
        } else {
            None
        };
        let first = spec.group_by.len() + functions.len();
        let tables = state::Tables::new(&spec, &accumulators);
        Ok(Self {
            tables,
            changes: Changes::default(),
            ahead: ahead::Ahead::default(),
            merges: spec.mode == AggregateMode::Final,
            slicing,
            lateness_ms: spec.emit.map_or(0, |emit| emit.allowed_lateness_ms),
            intake: Intake::new(&spec, slicing)?,
            template: Table::new(types, accumulators)?,
            open: BTreeMap::new(),
            open_bytes: 0,
            shared,
            updates: spec.emit.map(|emit| Updates::new(emit, functions)).transpose()?,
            starts: BTreeMap::new(),
            done: None,
            output: Output::new(spec.schema.0, spec.properties, first)?,
            groups: Vec::new(),
        })
    }

    /// # Errors
    /// When a time is NULL, an expression or function fails, or the budget is exhausted.
    pub(super) fn on_batch(&mut self, batch: &Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let now = self.now(cx);
        let numbers = self.intake.numbers(batch, now)?;
        let Cut { slices, unwanted } = cut(&numbers, self.intake.of, |slice_end| !self.is_expired(slice_end));
        cx.metrics.late_rows.fetch_add(unwanted, Ordering::Relaxed);
        if slices.is_empty() {
            return Ok(());
        }
        let starts = self.intake.starts(batch)?;
        let rows = self.intake.rows(batch)?;
        for (slice_end, selection) in slices {
            if let Some(starts) = &starts {
                self.note_start(slice_end, starts, &selection)?;
            }
            match selection {
                Selection::All => self.take_rows(slice_end, &rows, self.merges)?,
                part => self.take_rows(slice_end, &rows.select(&part)?, self.merges)?,
            }
            if let Some(updates) = &mut self.updates {
                updates.touch(slice_end);
            }
        }
        cx.hold(self.held())?;
        if self.updates.is_some() {
            self.update(cx, out)?;
        }
        Ok(())
    }

    /// Takes rows: raw ones, or states when `merge`.
    fn take_rows(&mut self, slice_end: i64, rows: &Rows, merge: bool) -> Result<()> {
        if !self.open.contains_key(&slice_end) {
            // The youngest table knows best what keys look like now.
            let youngest = self
                .open
                .values()
                .next_back()
                .map_or(&self.template, |open| &open.table);
            let table = youngest.successor()?;
            self.open.insert(slice_end, Open { table, bytes: 0 });
        }
        let Some(open) = self.open.get_mut(&slice_end) else {
            return Ok(());
        };
        open.table.take_rows(rows, merge, &mut self.groups)?;
        self.changes.touch(slice_end);
        let bytes = open.table.size();
        self.open_bytes = self.open_bytes - open.bytes + bytes;
        open.bytes = bytes;
        Ok(())
    }

    fn note_start(&mut self, slice_end: i64, starts: &[i64], selection: &Selection) -> Result<()> {
        let first = match selection {
            Selection::All => 0,
            Selection::Range(start, _) => *start,
            Selection::Rows(rows) => rows.values().first().map_or(0, |row| *row as usize),
        };
        let start = *self.starts.entry(slice_end).or_insert(starts[first]);
        let same = match selection {
            Selection::All => starts.iter().all(|other| *other == start),
            Selection::Range(first, rows) => starts[*first..first + rows].iter().all(|other| *other == start),
            Selection::Rows(rows) => rows.values().iter().all(|row| starts[*row as usize] == start),
        };
        if same {
            return Ok(());
        }
        Err(EngineError::BadInput(format!(
            "windows that end at {slice_end} ms since 1970 have several starts; make window_start a group column"
        )))
    }

    /// Processing time, which does not go back.
    fn now(&self, cx: &Context) -> i64 {
        if self.intake.by_clock() {
            cx.clock.now_ms().max(self.done.unwrap_or(i64::MIN))
        } else {
            0
        }
    }

    /// Whether all windows with the slice are complete, and so long that no row counts any more.
    fn is_expired(&self, slice_end: i64) -> bool {
        let last = self.slicing.last_window_end(slice_end).saturating_add(self.lateness_ms);
        self.done.is_some_and(|done| last <= done)
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
            self.complete(watermark.0, cx, out)?;
        }
        out.watermark(watermark)
    }

    /// # Errors
    /// As for `on_watermark`.
    pub(super) fn on_timer(&mut self, now: i64, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if self.intake.by_clock() {
            self.complete(now - 1, cx, out)?;
        }
        if self.updates.is_some() {
            self.update(cx, out)?;
        }
        Ok(())
    }

    /// When `on_timer` has work to do.
    pub(super) fn next_timer(&self) -> Option<i64> {
        let window = if self.intake.by_clock() {
            self.next_window().into_iter().chain(self.ahead.first()).min()
        } else {
            None
        };
        let update = self.updates.as_ref().and_then(Updates::due);
        window.into_iter().chain(update).min()
    }

    /// # Errors
    /// As for `on_watermark`.
    pub(super) fn on_end(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.complete(i64::MAX, cx, out)
    }

    /// Hands on all windows that end at `progress` (their last millisecond) or before, the oldest first.
    fn complete(&mut self, progress: i64, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if let Some(updates) = &mut self.updates {
            // Late results do not wait longer than the window is kept.
            let gone = progress.saturating_add(1).saturating_sub(self.lateness_ms);
            for end in updates.take_going(gone) {
                self.fire(end, cx, out)?;
            }
        }
        loop {
            let next = self.next_window().filter(|end| end - 1 <= progress);
            let come = next.map_or(progress.saturating_add(1), |end| end - 1);
            if self.ahead.first().is_some_and(|ahead| ahead <= come) {
                self.join_ahead()?;
                continue;
            }
            let Some(end) = next else { break };
            self.fire(end, cx, out)?;
            self.done = self.done.max(Some(end));
            self.expire()?;
            cx.hold(self.held())?;
        }
        self.done = self.done.max(Some(progress.saturating_add(1)));
        self.expire()?;
        self.output.flush(out)?;
        cx.hold(self.held())
    }

    /// Where the next window that has rows and has not left ends.
    fn next_window(&self) -> Option<i64> {
        let next = |slice_end: i64| self.slicing.next_window_end(slice_end, self.done);
        let open = self.open.keys().copied().find_map(next);
        let closed = self.shared.iter().flat_map(Shared::ends).find_map(next);
        open.into_iter().chain(closed).min()
    }

    /// Hands on one window.
    fn fire(&mut self, end: i64, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let bounds = self.bounds(end);
        if self.shared.is_none() {
            let Some(open) = self.open.remove(&end) else {
                return Ok(());
            };
            self.open_bytes -= open.bytes;
            self.template = open.table.successor()?;
            let rows = open.table.len();
            let (mut columns, results) = open.table.into_columns(Take::Results)?;
            self.changes.go(end, || Ok((columns.clone(), rows)))?;
            columns.extend(results);
            return self.output.window(columns, rows, bounds, None, cx, out);
        }
        self.close(end)?;
        let Some(shared) = &mut self.shared else { return Ok(()) };
        let (slots, results) = shared.window(end)?;
        if let Some(updates) = &mut self.updates {
            let change = updates.change(end, slots, results)?;
            let mut columns = shared.keys(&change.slots)?;
            columns.extend(change.results);
            let kinds = Some(change.kinds);
            return self.output.window(columns, change.slots.len(), bounds, kinds, cx, out);
        }
        let mut columns = shared.keys(&slots)?;
        columns.extend(results);
        self.output.window(columns, slots.len(), bounds, None, cx, out)
    }

    /// Closes the slices that end at `end` or before.
    fn close(&mut self, end: i64) -> Result<()> {
        let Some(shared) = &mut self.shared else { return Ok(()) };
        while let Some(first) = self.open.first_entry().filter(|entry| *entry.key() <= end) {
            let (slice_end, open) = first.remove_entry();
            self.open_bytes -= open.bytes;
            self.template = open.table.successor()?;
            shared.close(slice_end, open.table)?;
        }
        Ok(())
    }

    fn bounds(&self, end: i64) -> Bounds {
        let start = self.starts.get(&end).copied();
        Bounds {
            start: start.unwrap_or_else(|| self.slicing.window_start(end)),
            end,
        }
    }

    /// Lets go of what no window needs any more.
    fn expire(&mut self) -> Result<()> {
        let (slicing, lateness_ms, done) = (self.slicing, self.lateness_ms, self.done);
        let expired = |slice_end: i64| {
            let last = slicing.last_window_end(slice_end).saturating_add(lateness_ms);
            done.is_some_and(|done| last <= done)
        };
        while self.starts.first_key_value().is_some_and(|(end, _)| expired(*end)) {
            self.starts.pop_first();
        }
        while let Some(first) = self.open.first_entry().filter(|entry| expired(*entry.key())) {
            let (slice_end, open) = first.remove_entry();
            self.open_bytes -= open.bytes;
            let rows = open.table.len();
            match &mut self.shared {
                Some(shared) => shared.close(slice_end, open.table)?,
                None => self
                    .changes
                    .go(slice_end, || Ok((open.table.into_columns(Take::States)?.0, rows)))?,
            }
        }
        if let Some(shared) = &mut self.shared {
            if let Some(updates) = &mut self.updates {
                let gone = |window_end: i64| done.is_some_and(|done| window_end.saturating_add(lateness_ms) <= done);
                updates.expire(gone, |slots| shared.keys(slots))?;
            }
            shared.expire(expired, &mut self.changes)?;
            let moved = shared.compact()?;
            if let (Some(updates), Some(slots)) = (&mut self.updates, moved) {
                updates.renumber(&slots);
            }
        }
        Ok(())
    }

    /// Early and late results, if they are due.
    fn update(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let now = cx.clock.now_ms();
        let Some(updates) = &mut self.updates else {
            return Ok(());
        };
        let windows = updates.take_due(now, self.done, |slice_end, after| {
            self.slicing.next_window_end(slice_end, after)
        });
        for end in windows {
            self.fire(end, cx, out)?;
        }
        self.output.flush(out)?;
        cx.hold(self.held())
    }

    /// Bytes held.
    pub(super) fn held(&self) -> usize {
        self.open_bytes
            + self.shared.as_ref().map_or(0, Shared::size)
            + self.updates.as_ref().map_or(0, Updates::size)
            + self.changes.size()
            + self.ahead.size()
            + self.output.held_bytes()
    }
}

/// # Errors
/// When the spec asks for what windows of slices cannot tell.
fn check(spec: &WindowAggregateSpec) -> Result<()> {
    let no_start = matches!(spec.window, WindowSource::Attached { start: None, .. });
    if no_start && spec.properties.contains(&WindowProperty::Start) {
        return Err(EngineError::Plan(
            "window_start is asked for, but the input does not have it".into(),
        ));
    }
    let sent = spec.mode == AggregateMode::Single;
    if matches!(spec.window, WindowSource::Attached { .. }) && !sent {
        return Err(EngineError::Internal(
            "windows that come with the rows are aggregated in one step".into(),
        ));
    }
    if spec.emit.is_some_and(|emit| emit.allowed_lateness_ms < 0) {
        return Err(EngineError::Plan("the allowed lateness is negative".into()));
    }
    Ok(())
}
