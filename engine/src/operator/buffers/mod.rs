//! Windows that keep their rows: any assigner, any trigger, an evictor, any function (The Dataflow Model, sections 2
//! and 3; Flink's window operator).
//!
//! A window lives for one key and one span of time. Rows are put into their windows one after the other, and the trigger
//! sees each of them, so that what fires, and with which rows, is what a row-at-a-time engine would give. What is done
//! once per micro-batch is everything else: keys are numbered, times and expressions are computed for whole columns, and
//! the firings of all windows are evaluated together (`function`).
//!
//! - [`Assigner`] says which windows a row is in; windows that overlap may merge (sessions).
//! - [`Trigger`] says when a window fires, and whether it then forgets its rows.
//! - [`Evictor`] says which rows a firing leaves out; the window forgets them.
//! - [`AccumulationMode`] says how a result relates to the ones before it.
//! - A window in event time stays until the watermark has passed its end by the allowed lateness. A row all of whose windows
//!   are gone is late: it goes to the side output, or is dropped and counted.
//!
//! At the end of the input every window fires that holds a row which no firing has told of: a global window that is
//! never triggered, an unfilled count window, windows in processing time. Nothing then stays.
//!
//! Where this is not Flink: a continuous trigger does not fire again when nothing has come since; sessions do not merge when
//! the silence between them is exactly the gap; nothing is lost at the end of the input.
//!
//! **State.** A checkpoint holds the stored rows with their times and windows, per window its key, bounds, flags, the times
//! asked for and the trigger's numbers, and where results are taken back the rows of the last one: see `operator/state`.
//! Assigners, triggers, evictors and functions of the program are called by shared reference and must keep nothing of their
//! own from one call to the next: what a trigger remembers are its numbers.

mod assigner;
mod evictor;
mod firing;
mod function;
pub(in crate::operator) mod keys;
mod operator;
mod rows;
mod table;
#[cfg(test)]
mod tests;
mod timed_triggers;
mod timers;
mod trigger;
mod value_triggers;

use std::sync::Arc;

use arrow::datatypes::SchemaRef;

pub use assigner::{AssignedRow, Assigner, Bounds, Cumulate, Global, Landmark, Session, Sliding, Tumbling};
pub use evictor::{EvictedRows, Evictor, KeepLast, KeepNear, KeepRecent};
pub use function::{ApplyFunction, WindowContext, WindowFunction};
pub use timed_triggers::{ContinuousEventTime, ContinuousProcessingTime, CountOrTimeout, EarlyLate, LandmarkSteps};
pub use trigger::{
    Count, EventTime, Never, ProcessingTime, Purging, Trigger, TriggerContext, TriggerResult, TriggerTraits,
};
pub use value_triggers::{Delta, DeltaClose, Punctuation};

use crate::data::{EngineError, Result, is_changelog};
use crate::operator::{CustomFactory, CustomOperator, Operator};
use crate::plan::{CustomSpec, ScalarExpr, WindowTime};

pub(in crate::operator) use function::event_times;
use operator::WindowBuffer;

/// How the results of one window relate to each other (The Dataflow Model, section 2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AccumulationMode {
    /// A result tells of the rows since the one before it.
    Discarding,
    /// A result tells of all rows, and stands beside the ones before it.
    #[default]
    Accumulating,
    /// A result tells of all rows and takes back the one before it: the output is a changelog. A trigger that purges
    /// begins anew; what it has said stands.
    AccumulatingAndRetracting,
}

/// What a window operator does.
#[derive(Clone)]
pub struct WindowBufferSpec {
    /// Which windows a row is in.
    pub assigner: Arc<dyn Assigner>,
    /// When they fire.
    pub trigger: Arc<dyn Trigger>,
    /// Which rows they forget when they do.
    pub evictor: Option<Arc<dyn Evictor>>,
    /// Which time the windows are of, and the rows have.
    pub time: WindowTime,
    /// The key, over the input; without, all rows have one key (and the operator one subtask).
    pub keys: Vec<ScalarExpr>,
    /// What is computed.
    pub function: WindowFunction,
    /// For how long a complete window stays for late rows.
    pub allowed_lateness_ms: i64,
    /// The side output of late rows; dropped and counted when `None`.
    pub late_output: Option<usize>,
    /// How results relate.
    pub mode: AccumulationMode,
    /// The schema of the input.
    pub input: SchemaRef,
    /// The schema of the output; when results are taken back, with the row kind.
    pub schema: SchemaRef,
}

impl WindowBufferSpec {
    /// The operator as a job graph holds it.
    ///
    /// # Errors
    /// When parts of the spec do not go together.
    pub fn operator(self, label: impl Into<String>) -> Result<CustomSpec> {
        self.check()?;
        Ok(CustomFactory::spec(label, Arc::new(self)))
    }

    fn check(&self) -> Result<()> {
        if is_changelog(&self.input) {
            return Err(EngineError::Plan(
                "a window over a changelog would count rows that are taken back; fold it first".into(),
            ));
        }
        let retracts = self.mode == AccumulationMode::AccumulatingAndRetracting;
        if retracts != is_changelog(&self.schema) {
            return Err(EngineError::Plan(
                "the output of a window is a changelog exactly when it accumulates and retracts".into(),
            ));
        }
        if self.assigner.merges() && !self.trigger.traits().merges {
            return Err(EngineError::Plan(format!(
                "the trigger {:?} does not work with windows that merge, as {:?} do",
                self.trigger, self.assigner
            )));
        }
        if self.allowed_lateness_ms < 0 {
            return Err(EngineError::Plan(format!(
                "the allowed lateness is {} ms, it cannot be below 0",
                self.allowed_lateness_ms
            )));
        }
        if let WindowTime::Event(column) = self.time
            && column >= self.input.fields().len()
        {
            return Err(EngineError::Plan(format!("there is no event time column {column}")));
        }
        Ok(())
    }
}

impl CustomOperator for WindowBufferSpec {
    fn create(&self, _subtask: usize, _parallelism: usize) -> Result<Box<dyn Operator>> {
        Ok(Box::new(WindowBuffer::new(self.clone())?))
    }
}
