//! Over: aggregates over the rows before each row, in the order of time.
//!
//! In event time rows wait in a [`TimeBuffer`] until the watermark has reached them. What it lets go is worked on in
//! pieces of about a batch, already in the order of time, so that all rows of one time are in one piece. For each frame
//! it is decided once which rows come into it and which leave ([`steps`]); each function then replays that in one loop
//! over its column ([`fold`], [`general`]). In processing time a batch is such a piece; its rows came at the same time, so
//! in a RANGE frame of so many milliseconds they are peers, while a frame without bound goes row by row, as in Flink.
//!
//! Partitions are numbers; what is kept of them are vectors by that number. A snapshot ([`checkpoint`]) consists of the
//! rows that wait, the partition keys with the totals of each function, and of frames that rows leave the rows in the
//! queue, in order, with the values of each function ([`kept`]): floats go on to the bit.

mod checkpoint;
mod fold;
mod function;
mod general;
mod general_kept;
mod keep;
mod kept;
mod partitions;
mod steps;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{Array, ArrayRef, UInt64Array};
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;

use self::fold::Input;
use self::function::over_function;
use self::kept::Function;
use self::partitions::Partitions;
use self::steps::{Bound, Queue, Steps};
use crate::data::{Batch, EngineError, ROW_KIND_COLUMN, Result, Watermark, batch_bytes};
use crate::operator::aggregate::{as_mask, evaluate_all, raw_arguments};
use crate::operator::row_table::RowTable;
use crate::operator::time_buffer::{TimeBuffer, TimeColumn};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::{Aggregates, OverFrame, OverSpec, WindowTime};
use crate::state::{Restored, Snapshot};
use crate::time::Timer;

/// Frames are looked through for rows that have become too old once they hold twice what was left the last time, and so
/// many more.
const SWEEP_ROWS: usize = 1 << 13;

/// Appends aggregates over the rows before each row.
pub(super) struct Over {
    /// The rows that wait, in event time.
    buffer: Option<(TimeBuffer, TimeColumn)>,
    /// The table of those.
    waiting: RowTable,
    partitions: Partitions,
    aggregates: Aggregates,
    frames: Vec<Frame>,
    /// Of each partition how many rows have come, when rows are numbered.
    numbers: Vec<u64>,
    row_numbers: usize,
    /// Whether a partition without rows in its frames is as one that has never been.
    empties: bool,
    ttl_ms: Option<i64>,
    /// When to look for silent partitions.
    check_at: Option<i64>,
    swept: usize,
    input_columns: usize,
    schema: SchemaRef,
}

/// The functions of one frame.
struct Frame {
    /// What tells it from others.
    name: String,
    by_peers: bool,
    queue: Option<Queue>,
    /// How much older rows may be, when that is what bounds the frame.
    span: Option<i64>,
    /// With the number of their column.
    functions: Vec<(usize, Box<dyn Function>)>,
}

impl Over {
    /// As `spec` says.
    ///
    /// # Errors
    /// When the spec contradicts itself, the time is no timestamp, or the input is a changelog.
    pub(super) fn new(spec: OverSpec) -> Result<Self> {
        let schema = Arc::clone(&spec.schema.0);
        let functions = spec.aggregates.functions.len();
        let input_columns = spec.aggregates.input.fields().len();
        if spec.frames.len() != functions
            || spec.aggregates.filters.len() != functions
            || schema.fields().len() != input_columns + functions + spec.row_numbers
        {
            return Err(EngineError::Internal(format!(
                "OVER has {functions} functions, {} frames, {} filters and {} columns for {input_columns} of its input",
                spec.frames.len(),
                spec.aggregates.filters.len(),
                schema.fields().len()
            )));
        }
        if schema.field_with_name(ROW_KIND_COLUMN).is_ok() {
            return Err(EngineError::Plan(
                "OVER takes a stream of insertions only, but rows of this one are taken back; aggregate before it changes"
                    .into(),
            ));
        }
        let buffer = match spec.time {
            WindowTime::Processing => None,
            WindowTime::Event(column) => {
                let column = TimeColumn::try_new(column, &spec.aggregates.input)?;
                Some((TimeBuffer::new(column), column))
            }
        };
        let frames = frames(&spec, buffer.as_ref().map(|(_, column)| *column))?;
        Ok(Self {
            waiting: RowTable::new("waiting", &spec.aggregates.input, Vec::new(), &spec.partition_by),
            buffer,
            partitions: Partitions::new(&spec.partition_by)?,
            empties: spec.row_numbers == 0 && frames.iter().all(|frame| frame.span.is_some()),
            aggregates: spec.aggregates,
            frames,
            numbers: Vec::new(),
            row_numbers: spec.row_numbers,
            ttl_ms: spec.ttl_ms.map(|ttl| i64::try_from(ttl).unwrap_or(i64::MAX)),
            check_at: None,
            swept: 0,
            input_columns,
            schema,
        })
    }

    /// Lets go of what `watermark` has reached.
    fn release(&mut self, watermark: Watermark, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let Some((buffer, _)) = &mut self.buffer else {
            return Ok(());
        };
        let Some(released) = buffer.release(watermark)? else {
            return Ok(());
        };
        for range in released.pieces(cx.batch_size) {
            if out.is_done() {
                break;
            }
            cx.cancel.check()?;
            let rows = released.gather(range.clone())?;
            let appended = self.append(&rows, &released.times()[range], cx)?;
            cx.hold(self.bytes() + released.bytes() + batch_bytes(&appended))?;
            emit(&appended, cx, out)?;
        }
        Ok(())
    }

    /// Computes the functions for rows that are in the order of time.
    fn append(&mut self, rows: &Batch, times: &[i64], cx: &Context) -> Result<Batch> {
        let now = cx.clock.now_ms();
        let mut expired = Vec::new();
        let groups = self.partitions.number(rows, now, self.ttl_ms, &mut expired)?;
        let total = self.partitions.len();
        for queue in self.frames.iter_mut().filter_map(|frame| frame.queue.as_mut()) {
            queue.grow(total);
        }
        self.numbers.resize(if self.row_numbers > 0 { total } else { 0 }, 0);
        self.forget(&expired)?;
        if let Some(ttl) = self.ttl_ms {
            self.check_at.get_or_insert(now.saturating_add(ttl));
        }
        let mut results: Vec<Option<ArrayRef>> = vec![None; self.aggregates.functions.len()];
        let inputs = self.inputs(rows)?;
        for frame in &mut self.frames {
            let mut steps = match frame.by_peers {
                true => Steps::of_peers(&groups, times),
                false => Steps::of_rows(&groups),
            };
            steps.groups_total = total;
            if let Some(queue) = &mut frame.queue {
                queue.plan(&mut steps, times)?;
            }
            frame.run(&steps, &inputs, &mut results)?;
        }
        let results = results.into_iter().flatten().chain(self.number_rows(&groups));
        let columns = self.schema.fields()[self.input_columns..].iter().zip(results);
        let columns = columns.map(|(field, column)| match column.data_type() == field.data_type() {
            true => Ok(column),
            false => Ok(cast(&column, field.data_type())?),
        });
        let columns = rows.columns().iter().cloned().map(Ok).chain(columns);
        Ok(Batch::try_new(
            Arc::clone(&self.schema),
            columns.collect::<Result<Vec<_>>>()?,
        )?)
    }

    /// What each function reads of the rows.
    fn inputs(&self, rows: &Batch) -> Result<Vec<Input>> {
        let functions = self.aggregates.functions.iter().zip(&self.aggregates.filters);
        let inputs = functions.map(|(function, filter)| {
            let filter = match filter {
                Some(filter) => {
                    let mask = filter.evaluate(rows)?.into_array(rows.num_rows())?;
                    Some(as_mask(&mask)?.values().clone())
                }
                None => None,
            };
            Ok(Input {
                values: evaluate_all(&raw_arguments(function), rows)?,
                filter,
            })
        });
        inputs.collect()
    }

    /// The columns of row numbers.
    fn number_rows(&mut self, groups: &[u32]) -> Vec<ArrayRef> {
        if self.row_numbers == 0 {
            return Vec::new();
        }
        let numbers = groups.iter().map(|group| {
            let number = &mut self.numbers[*group as usize];
            *number += 1;
            *number
        });
        let numbers: ArrayRef = Arc::new(UInt64Array::from_iter_values(numbers));
        vec![numbers; self.row_numbers]
    }

    /// Forgets all of these partitions.
    fn forget(&mut self, groups: &[usize]) -> Result<()> {
        if groups.is_empty() {
            return Ok(());
        }
        self.evict(|queue, _| Some(queue.plan_end(groups)))?;
        for (_, function) in self.frames.iter_mut().flat_map(|frame| &mut frame.functions) {
            function.forget(groups);
        }
        for group in groups {
            if let Some(number) = self.numbers.get_mut(*group) {
                *number = 0;
            }
        }
        Ok(())
    }

    /// Lets rows leave the frames without others coming in.
    fn evict(&mut self, plan: impl Fn(&mut Queue, Option<i64>) -> Option<Steps>) -> Result<()> {
        let inputs = self.inputs(&Batch::new_empty(Arc::clone(&self.aggregates.input)))?;
        let mut results = vec![None; self.aggregates.functions.len()];
        for frame in &mut self.frames {
            if let Some(queue) = &mut frame.queue
                && let Some(steps) = plan(queue, frame.span)
            {
                frame.run(&steps, &inputs, &mut results)?;
            }
        }
        Ok(())
    }

    /// Once in a while lets rows leave that are too old for every row to come: those are at `earliest` or later.
    fn sweep(&mut self, earliest: i64) -> Result<()> {
        if self.held_rows() < 2 * self.swept + SWEEP_ROWS {
            return Ok(());
        }
        self.evict(|queue, span| Some(queue.plan_eviction(earliest.saturating_sub(span?))))?;
        if self.empties {
            let frames = &self.frames;
            self.partitions.drop_where(|group| {
                let mut queues = frames.iter().filter_map(|frame| frame.queue.as_ref());
                queues.all(|queue| queue.is_empty(group))
            });
            self.compact()?;
        }
        self.swept = self.held_rows();
        Ok(())
    }

    /// Rows in frames that time bounds, and partitions.
    fn held_rows(&self) -> usize {
        let timed = self.frames.iter().filter(|frame| frame.span.is_some());
        let rows = timed.filter_map(|frame| frame.queue.as_ref()).map(Queue::rows);
        rows.sum::<usize>() + if self.empties { self.partitions.alive() } else { 0 }
    }

    fn compact(&mut self) -> Result<()> {
        let Some(kept) = self.partitions.compact()? else {
            return Ok(());
        };
        for frame in &mut self.frames {
            if let Some(queue) = &mut frame.queue {
                queue.retain(&kept);
            }
            for (_, function) in &mut frame.functions {
                function.retain(&kept);
            }
        }
        if self.row_numbers > 0 {
            self.numbers = kept.iter().map(|group| self.numbers[*group]).collect();
        }
        Ok(())
    }

    /// Forgets the partitions that have been silent for too long.
    fn expire(&mut self, now: i64) -> Result<()> {
        let Some(ttl) = self.ttl_ms else { return Ok(()) };
        let (silent, next) = self.partitions.silent(now.saturating_sub(ttl));
        self.forget(&silent)?;
        if !silent.is_empty() {
            let mut is_silent = vec![false; self.partitions.len()];
            silent.iter().for_each(|group| is_silent[*group] = true);
            self.partitions.drop_where(|group| is_silent[group]);
            self.compact()?;
        }
        // Each look goes through all partitions: not for every one that falls silent.
        self.check_at = next.map(|next| next.saturating_add(ttl).max(now.saturating_add((ttl / 4).max(1))));
        Ok(())
    }

    /// Nothing comes any more.
    fn clear(&mut self) -> Result<()> {
        let all: Vec<usize> = (0..self.partitions.len()).collect();
        self.forget(&all)?;
        self.partitions.drop_where(|_| true);
        self.compact()?;
        self.check_at = None;
        Ok(())
    }

    fn bytes(&self) -> usize {
        let frames = self.frames.iter().map(|frame| {
            let functions = frame.functions.iter().map(|(_, function)| function.bytes());
            frame.queue.as_ref().map_or(0, Queue::bytes) + functions.sum::<usize>()
        });
        let buffer = self.buffer.as_ref().map_or(0, |(buffer, _)| buffer.bytes());
        let numbers = self.numbers.capacity() * size_of::<u64>();
        buffer + numbers + self.partitions.bytes() + frames.sum::<usize>()
    }
}

/// Hands on rows in batches of a good size.
fn emit(rows: &Batch, cx: &Context, out: &mut dyn Collector) -> Result<()> {
    for start in (0..rows.num_rows()).step_by(cx.batch_size) {
        out.collect(rows.slice(start, cx.batch_size.min(rows.num_rows() - start)))?;
    }
    Ok(())
}

/// The functions by frame.
fn frames(spec: &OverSpec, time: Option<TimeColumn>) -> Result<Vec<Frame>> {
    let mut frames: Vec<(OverFrame, Frame)> = Vec::new();
    let input = &spec.aggregates.input;
    for (index, (function, kind)) in spec.aggregates.functions.iter().zip(&spec.frames).enumerate() {
        let arguments = raw_arguments(function)
            .into_iter()
            .map(|argument| Ok(argument.data_type(input)?));
        let arguments = arguments.collect::<Result<Vec<_>>>()?;
        let bound = match *kind {
            OverFrame::RowsUnbounded | OverFrame::RangeUnbounded => None,
            OverFrame::Rows(rows) => Some(Bound::Rows(rows)),
            OverFrame::Range(ms) if ms < 0 => {
                return Err(EngineError::Plan(format!(
                    "a RANGE frame cannot begin {} ms after its row",
                    -ms
                )));
            }
            OverFrame::Range(ms) => Some(Bound::Time(time.map_or(ms, |column| column.span(ms)))),
        };
        let result = function.field().data_type().clone();
        let function = over_function(function, &arguments, &result, bound.is_some());
        let place = match frames.iter().position(|(known, _)| known == kind) {
            Some(place) => place,
            None => {
                let by_peers = match kind {
                    OverFrame::RangeUnbounded => time.is_some(),
                    OverFrame::Range(_) => true,
                    OverFrame::RowsUnbounded | OverFrame::Rows(_) => false,
                };
                let frame = Frame {
                    name: match kind {
                        OverFrame::RowsUnbounded => "all rows".into(),
                        OverFrame::RangeUnbounded => "all times".into(),
                        OverFrame::Rows(rows) => format!("{rows} rows"),
                        OverFrame::Range(ms) => format!("{ms} ms"),
                    },
                    by_peers,
                    queue: bound.map(Queue::new),
                    span: bound.and_then(|bound| match bound {
                        Bound::Time(span) => Some(span),
                        Bound::Rows(_) => None,
                    }),
                    functions: Vec::new(),
                };
                frames.push((*kind, frame));
                frames.len() - 1
            }
        };
        frames[place].1.functions.push((index, function));
    }
    Ok(frames.into_iter().map(|(_, frame)| frame).collect())
}

impl Frame {
    fn run(&mut self, steps: &Steps, inputs: &[Input], results: &mut [Option<ArrayRef>]) -> Result<()> {
        let next = self.queue.as_ref().map_or(&[][..], Queue::next);
        for (index, function) in &mut self.functions {
            results[*index] = Some(function.run(&inputs[*index], steps, next)?);
        }
        if let Some(queue) = &mut self.queue {
            queue.settle(steps);
        }
        Ok(())
    }
}

impl Operator for Over {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if let Some((buffer, _)) = &mut self.buffer {
            let late = buffer.add(batch)?;
            cx.metrics.late_rows.fetch_add(late as u64, Ordering::Relaxed);
        } else {
            let now = cx.clock.now_ms();
            let appended = self.append(&batch, &vec![now; batch.num_rows()], cx)?;
            cx.hold(self.bytes() + batch_bytes(&appended))?;
            emit(&appended, cx, out)?;
            self.sweep(now)?;
        }
        cx.hold(self.bytes())
    }

    fn on_watermark(&mut self, watermark: Watermark, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.release(watermark, cx, out)?;
        if let Some(reached) = self.buffer.as_ref().and_then(|(buffer, _)| buffer.reached()) {
            if watermark == Watermark::MAX {
                self.clear()?;
            } else {
                self.sweep(reached.saturating_add(1))?;
            }
            cx.hold(self.bytes())?;
        }
        out.watermark(watermark)
    }

    fn on_timer(&mut self, _timer: Timer, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        self.expire(cx.clock.now_ms())?;
        cx.hold(self.bytes())
    }

    fn next_timer(&self) -> Option<i64> {
        self.check_at
    }

    fn snapshot(&mut self, state: &mut Snapshot, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        self.freeze(state)
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        self.thaw(state, cx)?;
        cx.hold(self.bytes())
    }

    fn on_end(&mut self, _port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.release(Watermark::MAX, cx, out)?;
        self.clear()?;
        cx.hold(0)
    }
}
