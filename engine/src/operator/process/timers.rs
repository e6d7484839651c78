//! The times that a function has asked for, and for which keys.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{AsArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Int64Type};

use super::keys::KeyNumbers;
use crate::data::{Batch, EngineError, Result};
use crate::state::{Restored, Snapshot, TableSpec};

type TimersByTime = BTreeMap<i64, Vec<u32>>;

/// What a time with the keys that wait for it takes, about.
const TIMER_BYTES: usize = 96;
/// Rows that are written at once.
const ROWS: usize = 16 << 10;

const EVENT: &str = "event";
const PROCESSING: &str = "processing";

#[derive(Default)]
pub(super) struct KeyTimers {
    pub(super) event: TimersByTime,
    pub(super) processing: TimersByTime,
}

impl KeyTimers {
    pub(super) fn mark_used(&self, used: &mut [bool]) {
        for keys in self.event.values().chain(self.processing.values()) {
            keys.iter().for_each(|key| used[*key as usize] = true);
        }
    }

    pub(super) fn size(&self) -> usize {
        (self.event.len() + self.processing.len()) * TIMER_BYTES
    }

    fn spec(keys: &KeyNumbers) -> TableSpec {
        let fields = [("time", DataType::Int64), ("domain", DataType::Utf8)];
        let fields = fields.map(|(name, data_type)| Field::new(name, data_type, true));
        keys.spec("timers".into(), fields.into(), 2)
    }

    /// Adds the timers to a snapshot.
    pub(super) fn snapshot(&self, keys: &mut KeyNumbers, snapshot: &mut Snapshot) {
        let spec = Self::spec(keys);
        let schema = Arc::clone(&spec.schema);
        let frozen = keys.freeze();
        let mut parts = Vec::new();
        for (domain, timers) in [(EVENT, &self.event), (PROCESSING, &self.processing)] {
            let (mut times, mut numbers) = (Vec::new(), Vec::new());
            for (time, keys) in timers {
                // A function may ask for the same twice, but is called once.
                let mut once = keys.clone();
                once.sort_unstable();
                once.dedup();
                numbers.append(&mut once);
                times.resize(numbers.len(), *time);
            }
            parts.push((domain, times, numbers));
        }
        let rows = parts.into_iter().flat_map(move |(domain, times, numbers)| {
            let (schema, frozen) = (Arc::clone(&schema), frozen.clone());
            (0..numbers.len()).step_by(ROWS).map(move |start| {
                let end = (start + ROWS).min(numbers.len());
                let mut columns = frozen.columns(&numbers[start..end])?;
                columns.push(Arc::new(Int64Array::from(times[start..end].to_vec())));
                columns.push(Arc::new(StringArray::from(vec![domain; end - start])));
                Ok(Batch::try_new(Arc::clone(&schema), columns)?)
            })
        });
        snapshot.full(&spec, rows);
    }

    /// Takes back what `snapshot` added.
    pub(super) fn restore(&mut self, keys: &mut KeyNumbers, state: &mut Restored) -> Result<()> {
        let mut numbers = Vec::new();
        for batch in state.take(&Self::spec(keys))? {
            let batch = keys.own_rows(batch?)?;
            let width = keys.width();
            keys.number_stored(&batch.columns()[..width], batch.num_rows(), &mut numbers)?;
            let times = batch.column(width).as_primitive::<Int64Type>().values();
            let domains = batch.column(width + 1).as_string::<i32>();
            for (row, number) in numbers.iter().enumerate() {
                let timers = match domains.value(row) {
                    EVENT => &mut self.event,
                    PROCESSING => &mut self.processing,
                    other => return Err(EngineError::BadInput(format!("a timer of the unknown kind '{other}'"))),
                };
                timers.entry(times[row]).or_default().push(*number as u32);
            }
        }
        Ok(())
    }
}

/// Takes back what was asked for.
pub(super) fn delete(timers: &mut TimersByTime, key: usize, time_ms: i64) {
    if let Some(keys) = timers.get_mut(&time_ms) {
        keys.retain(|other| *other as usize != key);
        if keys.is_empty() {
            timers.remove(&time_ms);
        }
    }
}

/// The first time that has come, with the keys that wait for it.
pub(super) fn pop(timers: &mut TimersByTime, until: i64) -> Option<(i64, Vec<usize>)> {
    if *timers.first_key_value()?.0 > until {
        return None;
    }
    let (time, mut keys) = timers.pop_first()?;
    keys.sort_unstable();
    keys.dedup();
    Some((time, keys.into_iter().map(|key| key as usize).collect()))
}
