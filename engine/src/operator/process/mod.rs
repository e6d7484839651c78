//! Process functions: the program's own code with keyed state, timers and side outputs (Flink's `ProcessFunction`).
//!
//! Two faces. [`ProcessFunction`] takes whole batches with the number of each row's key: fast. [`RecordFunction`] takes
//! a row at a time: convenient; [`PerRecord`] makes the one of the other. With two inputs, the second may be broadcast
//! to all subtasks and fill a [`BroadcastState`] that all keys of the first see.
//!
//! Keys are dense numbers. A key of which no state and no timer is left is forgotten, and its number given to another:
//! a number is good for the time of one call only.
//!
//! **State.** A snapshot consists of a table for each declared state (`state`) and one of the times asked for with their
//! keys (`timers`). What a function keeps in fields of its own is not in it. The state of a function without a key is its
//! subtask's and cannot be shared out among more or fewer of them.

mod cells;
mod column;
mod contents;
mod fold;
mod handles;
mod keys;
mod record;
mod state;
#[cfg(test)]
mod tests;
mod timers;
mod value;

use std::sync::Arc;

use arrow::array::RecordBatchOptions;
use arrow::datatypes::{Field, Schema, SchemaRef};

pub use crate::state::Ttl;
pub use column::ColumnState;
pub use fold::{AggregateFunction, AggregatingState, ReducingState};
pub use handles::{BroadcastState, ListState, MapState, ValueState};
pub use record::{PerRecord, RecordContext, RecordFunction, RowView};
pub use state::{StateDeclarations, States};
pub use value::StateValue;

use self::keys::KeyNumbers;
use self::timers::{KeyTimers, delete, pop};
use crate::data::{Batch, EngineError, Result, Watermark};
use crate::operator::buffers::event_times;
use crate::operator::{Collector, Context, CustomFactory, CustomOperator, Operator, Port};
use crate::plan::{CustomSpec, ScalarExpr};
use crate::state::{Restored, Snapshot};
use crate::time::Timer;

/// A function of the program with state.
pub trait ProcessFunction: Send {
    /// Takes rows of input `port`. `cx.keys` holds the number of each row's key.
    ///
    /// # Errors
    /// Ends the job.
    fn on_batch(&mut self, port: Port, batch: &Batch, cx: &mut ProcessContext<'_>) -> Result<()>;

    /// A time that was asked for has come for these keys; each is there once.
    ///
    /// # Errors
    /// Ends the job.
    fn on_timers(&mut self, _timer: Timer, _keys: &[usize], _cx: &mut ProcessContext<'_>) -> Result<()> {
        Ok(())
    }

    /// All inputs have ended, and all event timers were called.
    ///
    /// # Errors
    /// Ends the job.
    fn on_end(&mut self, _cx: &mut ProcessContext<'_>) -> Result<()> {
        Ok(())
    }
}

/// What a process function works with.
pub struct ProcessContext<'a> {
    /// The number of each row's key; empty for rows of a broadcast input.
    pub keys: &'a [usize],
    /// The event time of each row, where the input has one.
    pub times_ms: Option<&'a [i64]>,
    /// How far event time has come.
    pub watermark_ms: i64,
    /// Processing time.
    pub now_ms: i64,
    /// The states.
    pub states: &'a mut States,
    timers: &'a mut KeyTimers,
    key_schema: &'a SchemaRef,
    output: &'a SchemaRef,
    out: &'a mut dyn Collector,
}

impl ProcessContext<'_> {
    /// Asks to be called for a key when the watermark has reached `time_ms`.
    pub fn register_event_timer(&mut self, key: usize, time_ms: i64) {
        self.timers.event.entry(time_ms).or_default().push(key as u32);
    }

    /// Asks to be called for a key when the clock has reached `time_ms`.
    pub fn register_processing_timer(&mut self, key: usize, time_ms: i64) {
        self.timers.processing.entry(time_ms).or_default().push(key as u32);
    }

    /// Takes back what was asked for.
    pub fn delete_event_timer(&mut self, key: usize, time_ms: i64) {
        delete(&mut self.timers.event, key, time_ms);
    }

    /// Takes back what was asked for.
    pub fn delete_processing_timer(&mut self, key: usize, time_ms: i64) {
        delete(&mut self.timers.processing, key, time_ms);
    }

    /// The key of a number, one row.
    ///
    /// # Errors
    /// When the key cannot be brought to its type.
    pub fn key_row(&self, key: usize) -> Result<Batch> {
        self.key_rows(&[key])
    }

    /// The keys of these numbers, a row each.
    ///
    /// # Errors
    /// When they do not fit one batch.
    pub fn key_rows(&self, keys: &[usize]) -> Result<Batch> {
        let options = RecordBatchOptions::new().with_row_count(Some(keys.len()));
        let columns = self.states.keys.columns(keys)?;
        Ok(Batch::try_new_with_options(
            Arc::clone(self.key_schema),
            columns,
            &options,
        )?)
    }

    /// Hands on rows.
    ///
    /// # Errors
    /// When they have not the schema that was declared, or the consumer fails.
    pub fn emit(&mut self, rows: Batch) -> Result<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let (given, wanted) = (rows.schema(), self.output);
        let same = given.fields().len() == wanted.fields().len()
            && given
                .fields()
                .iter()
                .zip(wanted.fields())
                .all(|(given, wanted)| given.data_type() == wanted.data_type());
        if !same {
            return Err(EngineError::Plan(format!(
                "a process function gave {given}, not {wanted} as declared"
            )));
        }
        self.out.collect(rows.with_schema(Arc::clone(self.output))?)
    }

    /// Hands rows to a side output.
    ///
    /// # Errors
    /// When the consumer fails.
    pub fn emit_side(&mut self, tag: usize, rows: Batch) -> Result<()> {
        if rows.num_rows() == 0 {
            return Ok(());
        }
        self.out.collect_side(tag, rows)
    }
}

/// One input of a process operator.
#[derive(Clone)]
pub struct ProcessInput {
    /// Its schema.
    pub schema: SchemaRef,
    /// Its key; without, all rows have one key. The inputs that have keys have keys of the same types.
    pub keys: Vec<ScalarExpr>,
    /// The column of its event time.
    pub time: Option<usize>,
    /// Whether every subtask gets all of it, so that it may change broadcast states and has no key.
    pub broadcast: bool,
}

/// Makes the function of a subtask.
pub type MakeProcessFunction = dyn Fn(usize) -> Box<dyn ProcessFunction> + Send + Sync;

/// What a process operator does.
#[derive(Clone)]
pub struct ProcessSpec {
    /// The inputs by port.
    pub inputs: Vec<ProcessInput>,
    /// The states.
    pub states: StateDeclarations,
    /// Makes the function.
    pub function: Arc<MakeProcessFunction>,
    /// The schema of the output.
    pub output: SchemaRef,
}

impl ProcessSpec {
    /// The operator as a job graph holds it.
    ///
    /// # Errors
    /// When keys of the inputs differ in type, or two states have one name.
    pub fn operator(self, label: impl Into<String>) -> Result<CustomSpec> {
        self.states.check()?;
        let keyed = self.inputs.iter().filter(|input| !input.broadcast);
        let fields = keyed.map(key_fields).collect::<Result<Vec<_>>>()?;
        let types = |fields: &Vec<Field>| -> Vec<_> { fields.iter().map(|field| field.data_type().clone()).collect() };
        if fields.windows(2).any(|pair| types(&pair[0]) != types(&pair[1])) {
            return Err(EngineError::Plan("the keys of connected streams differ in type".into()));
        }
        Ok(CustomFactory::spec(label, Arc::new(self)))
    }
}

fn key_fields(input: &ProcessInput) -> Result<Vec<Field>> {
    let field = |key: &ScalarExpr| Ok(key.expr.return_field(&input.schema)?.as_ref().clone());
    input.keys.iter().map(field).collect()
}

impl CustomOperator for ProcessSpec {
    fn create(&self, subtask: usize, parallelism: usize) -> Result<Box<dyn Operator>> {
        let keyed = self.inputs.iter().find(|input| !input.broadcast);
        let fields = keyed.map(key_fields).transpose()?.unwrap_or_default();
        let types = fields.iter().map(|field| field.data_type().clone()).collect();
        Ok(Box::new(Process {
            function: (self.function)(subtask),
            key_schema: Arc::new(Schema::new(fields)),
            states: self.states.open(KeyNumbers::new(types, (subtask, parallelism))?)?,
            timers: KeyTimers::default(),
            watermark_ms: i64::MIN,
            ended: vec![false; self.inputs.len()],
            numbers: Vec::new(),
            spec: self.clone(),
        }))
    }
}

/// A process function at work.
struct Process {
    spec: ProcessSpec,
    function: Box<dyn ProcessFunction>,
    key_schema: SchemaRef,
    states: States,
    timers: KeyTimers,
    watermark_ms: i64,
    ended: Vec<bool>,
    numbers: Vec<usize>,
}

impl Process {
    /// Calls the function with a context.
    fn call(
        &mut self,
        (numbers, times_ms): (&[usize], Option<&[i64]>),
        cx: &Context,
        out: &mut dyn Collector,
        call: impl FnOnce(&mut dyn ProcessFunction, &mut ProcessContext<'_>) -> Result<()>,
    ) -> Result<()> {
        let now_ms = cx.clock.now_ms();
        self.states.set_time(now_ms);
        let mut context = ProcessContext {
            keys: numbers,
            times_ms,
            watermark_ms: self.watermark_ms,
            now_ms,
            states: &mut self.states,
            timers: &mut self.timers,
            key_schema: &self.key_schema,
            output: &self.spec.output,
            out,
        };
        call(self.function.as_mut(), &mut context)
    }

    fn pass(&mut self, is_event: bool, until: i64, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        loop {
            let timers = if is_event {
                &mut self.timers.event
            } else {
                &mut self.timers.processing
            };
            let Some((time, keys)) = pop(timers, until) else {
                return Ok(());
            };
            // A function may ask for time after time, and the end of time is far.
            cx.cancel.check()?;
            let timer = if is_event {
                Timer::Event(time)
            } else {
                Timer::Processing(time)
            };
            self.call((&[], None), cx, out, |function, context| {
                function.on_timers(timer, &keys, context)
            })?;
        }
    }

    /// Forgets the keys that have neither state nor timer, when there are many; books what is left.
    fn tidy(&mut self, cx: &mut Context) -> Result<()> {
        self.states.set_time(cx.clock.now_ms());
        self.states.settle(cx)?;
        if self.states.keys.is_crowded() {
            let mut used = vec![false; self.states.keys.bound()];
            self.states.mark_used(&mut used);
            self.timers.mark_used(&mut used);
            self.states.forget(&used);
        }
        cx.hold(self.states.size() + self.timers.size())
    }
}

impl Operator for Process {
    fn on_batch(&mut self, port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.pass(false, cx.clock.now_ms(), cx, out)?;
        let input = &self.spec.inputs[port];
        let times = match input.time {
            Some(column) => Some(event_times(batch.column(column), input.schema.field(column).name())?),
            None => None,
        };
        let mut numbers = std::mem::take(&mut self.numbers);
        numbers.clear();
        if !input.broadcast {
            let columns = input
                .keys
                .iter()
                .map(|key| Ok(key.expr.evaluate(&batch)?.into_array(batch.num_rows())?))
                .collect::<Result<Vec<_>>>()?;
            self.states.keys.number_all(&columns, batch.num_rows(), &mut numbers)?;
        }
        self.states.may_broadcast = input.broadcast;
        self.call((&numbers, times.as_deref()), cx, out, |function, context| {
            function.on_batch(port, &batch, context)
        })?;
        self.states.may_broadcast = false;
        self.numbers = numbers;
        self.tidy(cx)
    }

    fn on_watermark(&mut self, watermark: Watermark, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.watermark_ms = watermark.0;
        self.pass(true, watermark.0, cx, out)?;
        self.tidy(cx)?;
        out.watermark(watermark)
    }

    fn on_timer(&mut self, _timer: Timer, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.pass(false, cx.clock.now_ms(), cx, out)?;
        self.tidy(cx)
    }

    fn next_timer(&self) -> Option<i64> {
        self.timers.processing.first_key_value().map(|(time, _)| *time)
    }

    fn on_end(&mut self, port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.ended[port] = true;
        if self.ended.contains(&false) {
            return Ok(());
        }
        // Those that wait for the clock are not waited for, nor are they lost.
        let last = self.timers.processing.last_key_value().map(|(time, _)| *time);
        if let Some(last) = last {
            self.pass(false, last, cx, out)?;
        }
        self.call((&[], None), cx, out, |function, context| function.on_end(context))
    }

    fn snapshot(&mut self, state: &mut Snapshot, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        self.states.set_time(cx.clock.now_ms());
        self.states.snapshot(state);
        self.timers.snapshot(&mut self.states.keys, state);
        Ok(())
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        self.states.set_time(cx.clock.now_ms());
        self.states.restore(state, cx)?;
        self.timers.restore(&mut self.states.keys, state)?;
        self.tidy(cx)
    }
}
