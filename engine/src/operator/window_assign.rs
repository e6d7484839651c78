//! WindowAssign: the windows of a row as columns (tumbling, hopping, cumulating).
//!
//! A batch is handed on once for each of the windows that its rows are in, with the same columns and other bounds: no row
//! is copied. Where only some rows of a batch are in the n-th window, those are filtered out.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, PrimitiveArray, TimestampMillisecondArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{
    ArrowPrimitiveType, DataType, SchemaRef, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
    TimestampNanosecondType, TimestampSecondType,
};

use crate::data::{Batch, EngineError, Result};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::{WindowAssignSpec, WindowKind, WindowTime};

/// The columns that windows add.
pub(super) const WINDOW_COLUMNS: usize = 3;
/// Times so near to the ends of what 64 bits hold are refused: no sum below can overflow.
const TIME_MS_MAX: i64 = i64::MAX / 4;

/// Appends the windows' bounds.
pub(super) struct WindowAssign {
    spec: WindowAssignSpec,
}

impl WindowAssign {
    /// # Errors
    /// When the lengths contradict each other or the window is a session.
    pub(super) fn new(spec: WindowAssignSpec) -> Result<Self> {
        if let WindowKind::Session { .. } = spec.window {
            return Err(EngineError::Internal("sessions are not assigned row by row".into()));
        }
        spec.window.check().map_err(EngineError::Plan)?;
        Ok(Self { spec })
    }

    /// Hands `batch` on with the windows that begin at `starts` and are `length_ms` long.
    fn emit(&self, batch: Batch, starts: Vec<i64>, length_ms: i64, out: &mut dyn Collector) -> Result<()> {
        let ends = starts.iter().map(|start| start + length_ms).collect();
        out.collect(with_windows(&batch, starts, ends, &self.spec.schema.0)?)
    }
}

impl Operator for WindowAssign {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let times = match self.spec.time {
            WindowTime::Event(column) => times_ms(&batch, column)?,
            WindowTime::Processing => vec![cx.clock.now_ms(); batch.num_rows()],
        };
        match self.spec.window {
            WindowKind::Tumble { size_ms, offset_ms } => {
                self.emit(batch, starts_of(&times, size_ms, offset_ms), size_ms, out)
            }
            WindowKind::Hop {
                size_ms,
                slide_ms,
                offset_ms,
            } => {
                // The last window that a row is in, and then those before it.
                let mut starts = starts_of(&times, slide_ms, offset_ms);
                for _ in 0..size_ms / slide_ms {
                    cx.cancel.check()?;
                    if out.is_done() {
                        return Ok(());
                    }
                    self.emit(batch.clone(), starts.clone(), size_ms, out)?;
                    starts.iter_mut().for_each(|start| *start -= slide_ms);
                }
                Ok(())
            }
            WindowKind::Cumulate {
                max_ms,
                step_ms,
                offset_ms,
            } => {
                let starts = starts_of(&times, max_ms, offset_ms);
                let steps: Vec<i64> = times
                    .iter()
                    .zip(&starts)
                    .map(|(t, start)| (t - start) / step_ms)
                    .collect();
                let (first, all_in) = (steps.iter().min().copied(), steps.iter().max().copied());
                for step in first.unwrap_or(0)..max_ms / step_ms {
                    cx.cancel.check()?;
                    if out.is_done() {
                        return Ok(());
                    }
                    let length = (step + 1) * step_ms;
                    if all_in.is_some_and(|last| last <= step) {
                        self.emit(batch.clone(), starts.clone(), length, out)?;
                        continue;
                    }
                    let mask = BooleanArray::from_iter(steps.iter().map(|first| Some(*first <= step)));
                    let chosen = starts.iter().zip(&steps).filter(|(_, first)| **first <= step);
                    let chosen = chosen.map(|(start, _)| *start).collect();
                    self.emit(filter_record_batch(&batch, &mask)?, chosen, length, out)?;
                }
                Ok(())
            }
            WindowKind::Session { .. } => Err(EngineError::Internal("sessions are not assigned row by row".into())),
        }
    }

    fn on_end(&mut self, _port: Port, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }
}

/// The start of the window of length `size_ms` that each time is in. Rounds towards minus infinity.
fn starts_of(times: &[i64], size_ms: i64, offset_ms: i64) -> Vec<i64> {
    let mut start = i64::MIN / 2;
    times
        .iter()
        .map(|time| {
            // Neighbours are often in the same window; a division costs more than to look.
            if !(0..size_ms).contains(&(time - start)) {
                start = time - (time - offset_ms).rem_euclid(size_ms);
            }
            start
        })
        .collect()
}

/// The times of a batch in milliseconds, rounded towards minus infinity.
///
/// # Errors
/// When one is NULL or beyond all reason, or the column holds no timestamps.
pub(super) fn times_ms(batch: &Batch, column: usize) -> Result<Vec<i64>> {
    let array = batch.column(column);
    let schema = batch.schema();
    let name = schema.field(column).name();
    if array.null_count() > 0 {
        return Err(EngineError::BadInput(format!(
            "column '{name}' is NULL in a row, which is then in no window; keep such rows out with WHERE {name} IS NOT NULL"
        )));
    }
    let times = match array.data_type() {
        DataType::Timestamp(TimeUnit::Second, _) => {
            converted::<TimestampSecondType>(array, |time| time.saturating_mul(1000))
        }
        DataType::Timestamp(TimeUnit::Millisecond, _) => converted::<TimestampMillisecondType>(array, |time| time),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            converted::<TimestampMicrosecondType>(array, |time| time.div_euclid(1000))
        }
        DataType::Timestamp(TimeUnit::Nanosecond, _) => {
            converted::<TimestampNanosecondType>(array, |time| time.div_euclid(1_000_000))
        }
        other => {
            return Err(EngineError::Internal(format!(
                "column '{name}' is {other}, no timestamp"
            )));
        }
    };
    let reasonable = -TIME_MS_MAX..=TIME_MS_MAX;
    match times.iter().find(|time| !reasonable.contains(time)) {
        None => Ok(times),
        Some(time) => Err(EngineError::BadInput(format!(
            "column '{name}' holds a time {time} ms from 1970, which no window can hold"
        ))),
    }
}

fn converted<T: ArrowPrimitiveType<Native = i64>>(array: &ArrayRef, to_ms: impl Fn(i64) -> i64) -> Vec<i64> {
    let array: &PrimitiveArray<T> = array.as_primitive();
    array.values().iter().map(|time| to_ms(*time)).collect()
}

/// `batch` with the columns `window_start`, `window_end` and `window_time`, which `schema` ends with.
///
/// # Errors
/// When `schema` is not that of the batch and the three columns.
pub(super) fn with_windows(batch: &Batch, starts: Vec<i64>, ends: Vec<i64>, schema: &SchemaRef) -> Result<Batch> {
    let times: Vec<i64> = ends.iter().map(|end| end - 1).collect();
    let mut columns = batch.columns().to_vec();
    for (place, values) in [starts, ends, times].into_iter().enumerate() {
        let field = schema.field(schema.fields().len() - WINDOW_COLUMNS + place);
        let zone = match field.data_type() {
            DataType::Timestamp(TimeUnit::Millisecond, zone) => zone.clone(),
            other => {
                return Err(EngineError::Internal(format!("a window's bound is {other}")));
            }
        };
        columns.push(Arc::new(
            TimestampMillisecondArray::from(values).with_timezone_opt(zone),
        ));
    }
    Ok(Batch::try_new(Arc::clone(schema), columns)?)
}

#[cfg(test)]
mod tests;
