//! What a window aggregation reads of a batch: slices, group columns, the functions' inputs.

use std::sync::Arc;

use arrow::buffer::ScalarBuffer;
use arrow::datatypes::DataType;
use datafusion::physical_expr::PhysicalExpr;

use super::cut::{Rows, SliceOf};
use super::event_time::event_times;
use super::slicing::Slicing;
use crate::data::{Batch, EngineError, Result};
use crate::operator::aggregate::accumulators::{Inputs, evaluate_all};
use crate::plan::{AggregateMode, AggregateSpec, WindowAggregateSpec, WindowProperty, WindowSource, WindowTime};

/// The name of the column that tells the slice of a state.
pub(super) const SLICE_END_COLUMN: &str = "$slice_end";

/// Where the slice of a row comes from.
#[derive(Clone, Copy)]
enum Place {
    /// A column.
    Column(usize),
    /// The clock.
    Clock,
}

/// Reads batches.
pub(super) struct Intake {
    place: Place,
    pub(super) of: SliceOf,
    /// Column of the window's start.
    start: Option<usize>,
    group_by: Vec<Arc<dyn PhysicalExpr>>,
    inputs: Inputs,
}

impl Intake {
    /// For this spec, whose slices are `slicing`.
    ///
    /// # Errors
    /// When the spec contradicts itself.
    pub(super) fn new(spec: &WindowAggregateSpec, slicing: Slicing) -> Result<Self> {
        let functions = &spec.aggregates;
        if functions.functions.len() != functions.filters.len() {
            return Err(EngineError::Internal(format!(
                "{} aggregate functions have {} filters",
                functions.functions.len(),
                functions.filters.len()
            )));
        }
        let inputs = Inputs::new(&AggregateSpec {
            mode: spec.mode,
            group_by: spec.group_by.clone(),
            aggregates: functions.clone(),
            schema: spec.schema.clone(),
        })?;
        let (place, of, start) = match (spec.mode, spec.window) {
            (AggregateMode::Final, WindowSource::Assign { .. }) => {
                let mut states = 0;
                for function in &functions.functions {
                    states += function.state_fields()?.len();
                }
                (Place::Column(spec.group_by.len() + states), SliceOf::Ends, None)
            }
            (_, WindowSource::Assign { time, .. }) => {
                let place = match time {
                    WindowTime::Event(column) => Place::Column(column),
                    WindowTime::Processing => Place::Clock,
                };
                (place, SliceOf::Times(slicing), None)
            }
            (_, WindowSource::Attached { start, end }) => {
                // Starts may differ (sessions); only who tells of them has to know.
                let told = spec.properties.contains(&WindowProperty::Start);
                (Place::Column(end), SliceOf::Ends, start.filter(|_| told))
            }
        };
        Ok(Self {
            place,
            of,
            start,
            group_by: spec.group_by.iter().map(|key| Arc::clone(&key.expr)).collect(),
            inputs,
        })
    }

    /// Whether slices come from the clock.
    pub(super) fn by_clock(&self) -> bool {
        matches!(self.place, Place::Clock)
    }

    /// What tells the slice of each row: see [`SliceOf`]. `now` is the processing time.
    ///
    /// # Errors
    /// When a time is NULL.
    pub(super) fn numbers(&self, batch: &Batch, now: i64) -> Result<ScalarBuffer<i64>> {
        match self.place {
            Place::Column(column) => event_times(batch, column),
            Place::Clock => Ok(vec![now; batch.num_rows()].into()),
        }
    }

    /// The starts of the rows' windows, when they come with them.
    ///
    /// # Errors
    /// When one is NULL.
    pub(super) fn starts(&self, batch: &Batch) -> Result<Option<ScalarBuffer<i64>>> {
        self.start.map(|column| event_times(batch, column)).transpose()
    }

    /// The group columns and inputs of all rows.
    ///
    /// # Errors
    /// When an expression fails.
    pub(super) fn rows(&self, batch: &Batch) -> Result<Rows> {
        Ok(Rows {
            keys: evaluate_all(&self.group_by, batch)?,
            inputs: self.inputs.evaluate(batch)?,
            count: batch.num_rows(),
        })
    }
}

/// The types of the group columns.
pub(super) fn key_types(spec: &WindowAggregateSpec) -> Vec<DataType> {
    let fields = spec.schema.0.fields().iter().take(spec.group_by.len());
    fields.map(|field| field.data_type().clone()).collect()
}

/// The slices of a spec that has some.
///
/// # Errors
/// When the lengths of its windows contradict each other.
pub(super) fn slicing_of(spec: &WindowAggregateSpec) -> Result<Slicing> {
    match spec.window {
        WindowSource::Assign { window, .. } => Slicing::new(window),
        WindowSource::Attached { .. } => Ok(Slicing::attached()),
    }
}
