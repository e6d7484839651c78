//! The window operator's loop: rows to windows, times to triggers, firings ([`emit`]) to results.

mod emit;
mod state;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{ArrayRef, RecordBatchOptions, UInt32Array};
use arrow::compute::take_record_batch;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use super::assigner::{AssignedRow, Bounds};
use super::firing::Firings;
use super::function::{Evaluator, event_times};
use super::keys::Keys;
use super::rows::{Place, RowList, RowStore};
use super::table::WindowTable;
use super::timers::{Timers, Waiting};
use super::trigger::{Requests, Trigger, TriggerContext, TriggerResult, TriggerTraits};
use super::{AccumulationMode, WindowBufferSpec};
use crate::data::{Batch, Result, Watermark, batch_bytes, without_row_kind};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::{ScalarExpr, WindowTime};
use crate::state::{Restored, Snapshot};
use crate::time::Timer;

/// Firings of so many rows are evaluated before more are gathered.
const FLUSH_ROWS: usize = 1 << 18;

/// See [`super`].
pub(super) struct WindowBuffer {
    spec: WindowBufferSpec,
    is_event_time: bool,
    merges: bool,
    retracts: bool,
    traits: TriggerTraits,
    assigner_exprs: Vec<ScalarExpr>,
    evictor_exprs: Vec<ScalarExpr>,
    evaluator: Evaluator,
    key_schema: SchemaRef,
    /// The output's schema without the row kind.
    result_schema: SchemaRef,
    watermark_ms: i64,
    now_ms: i64,
    keys: Keys,
    table: WindowTable,
    rows: RowStore,
    /// The last results, where they may be taken back.
    results: RowStore,
    event_timers: Timers,
    processing_timers: Timers,
    /// When windows are forgotten, in their own time.
    cleanup: Timers,
    firings: Firings,
    requests: Requests,
    trigger_inputs: Vec<ArrayRef>,
    /// Buffers of one call.
    numbers: Vec<usize>,
    assigned: Vec<Bounds>,
    overlapping: Vec<u32>,
    late: Vec<u32>,
    tables: state::Tables,
}

impl WindowBuffer {
    pub(super) fn new(spec: WindowBufferSpec) -> Result<Self> {
        let traits = spec.trigger.traits();
        let types: Vec<DataType> = spec
            .keys
            .iter()
            .map(|key| Ok(key.expr.data_type(&spec.input)?))
            .collect::<Result<_>>()?;
        let key_fields: Vec<Field> = spec
            .keys
            .iter()
            .map(|key| Ok(key.expr.return_field(&spec.input)?.as_ref().clone()))
            .collect::<Result<_>>()?;
        let evaluator = Evaluator::new(spec.function.clone(), &spec.input);
        let key_schema = Arc::new(Schema::new(key_fields));
        Ok(Self {
            tables: state::Tables::new(&spec, &key_schema, &evaluator)?,
            is_event_time: matches!(spec.time, WindowTime::Event(_)),
            merges: spec.assigner.merges(),
            retracts: spec.mode == AccumulationMode::AccumulatingAndRetracting,
            table: WindowTable::new(traits.words, spec.assigner.merges()),
            traits,
            assigner_exprs: spec.assigner.inputs(),
            evictor_exprs: spec
                .evictor
                .as_ref()
                .map(|evictor| evictor.inputs())
                .unwrap_or_default(),
            evaluator,
            key_schema,
            result_schema: without_row_kind(&spec.schema),
            watermark_ms: i64::MIN,
            now_ms: i64::MIN,
            keys: Keys::new(types)?,
            rows: RowStore::default(),
            results: RowStore::default(),
            event_timers: Timers::default(),
            processing_timers: Timers::default(),
            cleanup: Timers::default(),
            firings: Firings::default(),
            requests: Requests::default(),
            trigger_inputs: Vec::new(),
            numbers: Vec::new(),
            assigned: Vec::new(),
            overlapping: Vec::new(),
            late: Vec::new(),
            spec,
        })
    }

    /// When a window is forgotten; `i64::MAX`: never.
    fn cleanup_ms(&self, bounds: Bounds) -> i64 {
        if bounds.end_ms == i64::MAX {
            i64::MAX
        } else if self.is_event_time {
            bounds.last_ms().saturating_add(self.spec.allowed_lateness_ms)
        } else {
            bounds.last_ms()
        }
    }

    fn is_late(&self, bounds: Bounds) -> bool {
        self.is_event_time && bounds.end_ms < i64::MAX && self.cleanup_ms(bounds) <= self.watermark_ms
    }

    /// Stores what is needed of the batch's rows; gives their times and the place of the first.
    fn store(&mut self, batch: &Batch) -> Result<(Vec<i64>, Place)> {
        let times = match self.spec.time {
            WindowTime::Event(column) => event_times(batch.column(column), self.spec.input.field(column).name())?,
            WindowTime::Processing => vec![self.now_ms; batch.num_rows()],
        };
        let keys = evaluate(&self.spec.keys, batch)?;
        let mut numbers = std::mem::take(&mut self.numbers);
        self.keys.intern(&keys, batch.num_rows(), &mut numbers)?;
        self.numbers = numbers;
        let mut columns = self.evaluator.stored(batch)?;
        columns.extend(keys);
        columns.extend(evaluate(&self.evictor_exprs, batch)?);
        let names = columns.iter().zip(0u32..);
        let fields: Vec<Field> = names
            .map(|(column, number)| Field::new(number.to_string(), column.data_type().clone(), true))
            .collect();
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        let stored = Batch::try_new_with_options(Arc::new(Schema::new(fields)), columns, &options)?;
        let bytes = batch_bytes(&stored);
        let place = self.rows.push(stored.columns().to_vec(), times.clone(), bytes);
        Ok((times, place))
    }

    /// Puts a row into its windows; says whether it was too late for all of them.
    fn element(
        &mut self,
        (row, time_ms, place): (usize, i64, Place),
        inputs: &[ArrayRef],
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<bool> {
        let key = self.numbers[row] as u32;
        let mut assigned = std::mem::take(&mut self.assigned);
        assigned.clear();
        let assign = AssignedRow { time_ms, row, inputs };
        self.spec.assigner.assign(&assign, &mut assigned)?;
        let mut is_late = !assigned.is_empty();
        for bounds in &assigned {
            let window = if self.merges {
                self.session(key, *bounds, cx, out)?
            } else if self.is_late(*bounds) {
                None
            } else {
                Some(self.window(key, *bounds))
            };
            if let Some(window) = window {
                is_late = false;
                self.add(window, row, time_ms, place)?;
            }
        }
        self.assigned = assigned;
        Ok(is_late)
    }

    fn window(&mut self, key: u32, bounds: Bounds) -> u32 {
        self.table.find(key, bounds).unwrap_or_else(|| self.open(key, bounds))
    }

    fn open(&mut self, key: u32, bounds: Bounds) -> u32 {
        let window = self.table.open_window(key, bounds);
        self.schedule_cleanup(window);
        window
    }

    fn schedule_cleanup(&mut self, window: u32) {
        let state = self.table.get(window);
        let at = self.cleanup_ms(state.bounds);
        if at < i64::MAX {
            let generation = state.generation;
            self.cleanup.register(at, Waiting { window, generation });
        }
    }

    /// The window that a row which would have one of its own joins, or nothing when it is late.
    fn session(&mut self, key: u32, own: Bounds, cx: &Context, out: &mut dyn Collector) -> Result<Option<u32>> {
        let mut overlapping = std::mem::take(&mut self.overlapping);
        self.table.overlapping(key, own, &mut overlapping);
        if overlapping.len() > 1 && self.retracts {
            // What the windows have said must be known before one of them takes it all back.
            self.flush(cx, out)?;
        }
        let window = match overlapping.split_first() {
            None if self.is_late(own) => None,
            None => Some(self.open(key, own)),
            Some((target, others)) => {
                self.merge(*target, others, own)?;
                Some(*target)
            }
        };
        self.overlapping = overlapping;
        Ok(window)
    }

    fn merge(&mut self, target: u32, others: &[u32], own: Bounds) -> Result<()> {
        let mut bounds = self.table.get(target).bounds;
        for joined in others.iter().map(|other| self.table.get(*other).bounds).chain([own]) {
            bounds.start_ms = bounds.start_ms.min(joined.start_ms);
            bounds.end_ms = bounds.end_ms.max(joined.end_ms);
        }
        if bounds == self.table.get(target).bounds {
            return Ok(());
        }
        let mut memories = Vec::with_capacity(others.len());
        let (mut rows, mut previous) = (self.table.get(target).rows, self.table.get(target).previous);
        let mut is_dirty = self.table.get(target).is_dirty;
        for other in others {
            memories.push(self.table.words(*other).to_vec());
            let swallowed = self.table.get_mut(*other);
            is_dirty |= swallowed.is_dirty;
            let (mut more, mut more_previous) = (swallowed.rows, swallowed.previous);
            self.rows.join(&mut rows, &mut more);
            self.results.join(&mut previous, &mut more_previous);
            self.table.close(*other);
        }
        let window = self.table.get_mut(target);
        window.bounds = bounds;
        window.rows = rows;
        window.previous = previous;
        window.is_dirty = is_dirty;
        window.is_merged |= !others.is_empty();
        // What was asked for belongs to the windows as they were.
        window.generation += 1;
        window.asked_event_ms = None;
        window.asked_processing_ms = None;
        self.schedule_cleanup(target);
        self.ask(target, 0, None, |trigger, cx| {
            trigger.on_merge(cx, &memories);
            Ok(TriggerResult::Continue)
        })?;
        Ok(())
    }

    fn add(&mut self, window: u32, row: usize, time_ms: i64, place: Place) -> Result<()> {
        if self.traits.looks_ahead {
            let result = self.ask(window, time_ms, Some(row), |trigger, cx| trigger.before_element(cx))?;
            self.obey(window, result)?;
        }
        let state = self.table.get_mut(window);
        self.rows.append(&mut state.rows, place);
        state.is_dirty = true;
        let result = self.ask(window, time_ms, Some(row), |trigger, cx| trigger.on_element(cx))?;
        if result != TriggerResult::Continue {
            self.obey(window, result)?;
            self.forget_if_done(window);
        }
        Ok(())
    }

    /// Asks the trigger and notes the times that it asks for.
    fn ask(
        &mut self,
        number: u32,
        time_ms: i64,
        row: Option<usize>,
        ask: impl FnOnce(&dyn Trigger, &mut TriggerContext<'_>) -> Result<TriggerResult>,
    ) -> Result<TriggerResult> {
        let cleanup_ms = self.cleanup_ms(self.table.get(number).bounds);
        let (window, state) = self.table.with_words(number);
        let mut cx = TriggerContext {
            window: window.bounds,
            is_event_time: self.is_event_time,
            time_ms,
            row: row.unwrap_or(0),
            inputs: if row.is_some() { &self.trigger_inputs } else { &[] },
            watermark_ms: self.watermark_ms,
            now_ms: self.now_ms,
            cleanup_ms,
            rows: window.rows.len(),
            state,
            requests: &mut self.requests,
        };
        let result = ask(self.spec.trigger.as_ref(), &mut cx)?;
        let waiting = Waiting {
            window: number,
            generation: window.generation,
        };
        for at in self.requests.event_ms.drain(..) {
            if window.asked_event_ms != Some(at) {
                window.asked_event_ms = Some(at);
                self.event_timers.register(at, waiting);
            }
        }
        for at in self.requests.processing_ms.drain(..) {
            if window.asked_processing_ms != Some(at) {
                window.asked_processing_ms = Some(at);
                self.processing_timers.register(at, waiting);
            }
        }
        Ok(result)
    }

    fn obey(&mut self, window: u32, result: TriggerResult) -> Result<()> {
        let until = self.requests.until_ms.take();
        if result.fires() {
            self.fire(window, until)?;
        }
        if result.purges() {
            let state = self.table.get_mut(window);
            self.rows.release(&mut state.rows);
            self.results.release(&mut state.previous);
            state.pane = None;
            state.is_dirty = false;
        }
        Ok(())
    }

    /// Forgets a window without bounds of which nothing is left to know.
    fn forget_if_done(&mut self, number: u32) {
        let window = self.table.get(number);
        let is_empty = window.rows.len() == 0 && window.previous.len() == 0 && window.pane.is_none();
        if is_empty && window.bounds.end_ms == i64::MAX && self.table.words(number).iter().all(|word| *word == 0) {
            self.table.close(number);
        }
    }

    /// Calls the windows that wait for a time in one of the domains up to `until`, those that are to be forgotten last.
    fn pass(&mut self, is_event: bool, until: i64, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        loop {
            let timers = if is_event {
                &mut self.event_timers
            } else {
                &mut self.processing_timers
            };
            let fires = timers.next().unwrap_or(i64::MAX);
            let cleans = is_event == self.is_event_time && self.cleanup.next().is_some_and(|next| next < fires);
            let popped = if cleans {
                self.cleanup.pop(until)
            } else {
                timers.pop(until)
            };
            let Some((time_ms, waiting)) = popped else {
                // The earliest may be a cleanup at the end of time.
                return Ok(());
            };
            // A trigger of the program may ask for time after time, and the end of time is far.
            cx.cancel.check()?;
            for waiting in waiting {
                if !self.table.is_alive(waiting) {
                    continue;
                }
                if cleans {
                    self.close(waiting.window);
                } else {
                    self.call(is_event, time_ms, waiting.window)?;
                }
                if self.firings.places.len() >= FLUSH_ROWS {
                    self.flush(cx, out)?;
                }
            }
        }
    }

    fn call(&mut self, is_event: bool, time_ms: i64, window: u32) -> Result<()> {
        let state = self.table.get_mut(window);
        let asked = if is_event {
            &mut state.asked_event_ms
        } else {
            &mut state.asked_processing_ms
        };
        if *asked == Some(time_ms) {
            *asked = None;
        }
        let result = self.ask(window, time_ms, None, |trigger, cx| {
            Ok(if is_event {
                trigger.on_event_time(cx)
            } else {
                trigger.on_processing_time(cx)
            })
        })?;
        self.obey(window, result)?;
        self.forget_if_done(window);
        Ok(())
    }

    fn close(&mut self, number: u32) {
        let window = self.table.get_mut(number);
        let (mut rows, mut previous): (RowList, RowList) = (window.rows, window.previous);
        self.rows.release(&mut rows);
        self.results.release(&mut previous);
        self.table.close(number);
    }

    /// Evaluates what has fired, gives up what is gone, and books what is left.
    fn finish_call(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.flush(cx, out)?;
        self.trigger_inputs.clear();
        self.rows.sweep()?;
        self.results.sweep()?;
        if self.table.open() == 0 {
            self.table.reset();
            self.keys.clear()?;
            self.event_timers.clear();
            self.processing_timers.clear();
            self.cleanup.clear();
        } else {
            let table = &self.table;
            for timers in [&mut self.event_timers, &mut self.processing_timers, &mut self.cleanup] {
                timers.drop_stale(|waiting| table.is_alive(waiting));
            }
            if self.keys.is_crowded()
                && let Some(new_number) = self.keys.shrink(&self.table.used_keys(self.keys.len()))?
            {
                self.table.renumber_keys(&new_number);
            }
        }
        cx.hold(self.size())
    }

    fn size(&self) -> usize {
        let timers = [&self.event_timers, &self.processing_timers, &self.cleanup];
        self.keys.size()
            + self.table.size()
            + self.rows.size()
            + self.results.size()
            + timers.into_iter().map(Timers::size).sum::<usize>()
    }

    fn hand_on_late(&mut self, batch: &Batch, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        if self.late.is_empty() {
            return Ok(());
        }
        let late = std::mem::take(&mut self.late);
        match self.spec.late_output {
            Some(tag) => out.collect_side(tag, take_record_batch(batch, &UInt32Array::from(late))?),
            None => {
                cx.metrics.late_rows.fetch_add(late.len() as u64, Ordering::Relaxed);
                Ok(())
            }
        }
    }

    /// Bytes that are to be booked.
    #[cfg(test)]
    pub(super) fn booked(&self) -> usize {
        self.size()
    }

    /// The open windows and the bytes held, for tests.
    #[cfg(test)]
    pub(super) fn held(&self) -> (usize, bool) {
        (self.table.open(), self.rows.is_empty() && self.results.is_empty())
    }
}

fn evaluate(exprs: &[ScalarExpr], batch: &Batch) -> Result<Vec<ArrayRef>> {
    exprs
        .iter()
        .map(|expr| Ok(expr.expr.evaluate(batch)?.into_array(batch.num_rows())?))
        .collect()
}

impl Operator for WindowBuffer {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.now_ms = cx.clock.now_ms();
        self.pass(false, self.now_ms.saturating_sub(1), cx, out)?;
        let (times, first) = self.store(&batch)?;
        let assigner_inputs = evaluate(&self.assigner_exprs, &batch)?;
        self.trigger_inputs = evaluate(&self.traits.inputs, &batch)?;
        for (row, time_ms) in times.into_iter().enumerate() {
            let place = RowStore::place(first, row);
            if self.element((row, time_ms, place), &assigner_inputs, cx, out)? {
                self.late.push(row as u32);
            }
            if self.firings.places.len() >= FLUSH_ROWS {
                self.flush(cx, out)?;
            }
        }
        self.hand_on_late(&batch, cx, out)?;
        self.finish_call(cx, out)
    }

    fn on_watermark(&mut self, watermark: Watermark, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.now_ms = cx.clock.now_ms();
        // After a restore event time may start before what has been reached.
        self.watermark_ms = self.watermark_ms.max(watermark.0);
        self.pass(true, watermark.0, cx, out)?;
        self.finish_call(cx, out)?;
        out.watermark(watermark)
    }

    fn on_timer(&mut self, _timer: Timer, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.now_ms = cx.clock.now_ms();
        self.pass(false, self.now_ms.saturating_sub(1), cx, out)?;
        self.finish_call(cx, out)
    }

    fn next_timer(&self) -> Option<i64> {
        let cleanup = self.cleanup.next().filter(|_| !self.is_event_time);
        let next = self.processing_timers.next().into_iter().chain(cleanup).min()?;
        // A millisecond is over when the next has begun: rows of the last one of a window may still come in it.
        Some(next.saturating_add(1))
    }

    fn snapshot(&mut self, state: &mut Snapshot, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        self.hand_over(state, cx)
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        self.take_back(state, cx)?;
        cx.hold(self.size())
    }

    fn on_end(&mut self, _port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let open: Vec<u32> = self.table.numbers().collect();
        for window in open {
            if self.table.get(window).is_dirty {
                self.fire(window, None)?;
            }
            self.close(window);
            if self.firings.places.len() >= FLUSH_ROWS {
                self.flush(cx, out)?;
            }
        }
        self.finish_call(cx, out)
    }
}
