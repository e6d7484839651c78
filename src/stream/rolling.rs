//! Rolling aggregates: after each row, what its key has come to.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type, Int64Type, SchemaRef};
use thalweg_engine::operator::process::{ProcessContext, ProcessFunction, ValueState};
use thalweg_engine::plan::ScalarExpr;
use thalweg_engine::{EngineError, Result};

#[derive(Clone, Copy, Debug)]
pub(super) enum RollingKind {
    Sum,
    Min,
    Max,
    Count,
}

/// One aggregate of one column, exact for integers.
pub(super) struct RollingFunction {
    pub(super) kind: RollingKind,
    pub(super) column: Option<usize>,
    pub(super) exact: bool,
    pub(super) integer: ValueState<i64>,
    pub(super) float: ValueState<f64>,
    pub(super) keys: Vec<ScalarExpr>,
    pub(super) schema: SchemaRef,
}

impl RollingFunction {
    fn integers(&self, batch: &RecordBatch, cx: &mut ProcessContext<'_>) -> Result<ArrayRef> {
        let column = match self.column {
            Some(column) => Some(cast(batch.column(column), &DataType::Int64)?),
            None => None,
        };
        let values = column.as_ref().map(|column| column.as_primitive::<Int64Type>());
        let mut results: Vec<Option<i64>> = Vec::with_capacity(batch.num_rows());
        for (row, key) in cx.keys.iter().enumerate() {
            let so_far = self.integer.get(cx.states, *key)?.copied();
            let value = match values {
                None => Some(1),
                Some(values) => values.is_valid(row).then(|| values.value(row)),
            };
            let next = match (self.kind, so_far, value) {
                (_, None, value) => value,
                (_, so_far, None) => so_far,
                (RollingKind::Min, Some(so_far), Some(value)) => Some(so_far.min(value)),
                (RollingKind::Max, Some(so_far), Some(value)) => Some(so_far.max(value)),
                (RollingKind::Sum | RollingKind::Count, Some(so_far), Some(value)) => {
                    let sum = so_far.checked_add(value);
                    Some(sum.ok_or_else(|| EngineError::BadInput("a rolling sum is too large".into()))?)
                }
            };
            if let (Some(next), true) = (next, next != so_far) {
                self.integer.set(cx.states, *key, next)?;
            }
            results.push(next);
        }
        Ok(Arc::new(Int64Array::from(results)))
    }

    fn floats(&self, column: &ArrayRef, cx: &mut ProcessContext<'_>) -> Result<ArrayRef> {
        let column = cast(column, &DataType::Float64)?;
        let values = column.as_primitive::<Float64Type>();
        let mut results: Vec<Option<f64>> = Vec::with_capacity(values.len());
        for (row, key) in cx.keys.iter().enumerate() {
            let so_far = self.float.get(cx.states, *key)?.copied();
            let value = values.is_valid(row).then(|| values.value(row));
            let next = match (self.kind, so_far, value) {
                (_, None, value) => value,
                (_, so_far, None) => so_far,
                (RollingKind::Min, Some(so_far), Some(value)) => Some(so_far.min(value)),
                (RollingKind::Max, Some(so_far), Some(value)) => Some(so_far.max(value)),
                (RollingKind::Sum | RollingKind::Count, Some(so_far), Some(value)) => Some(so_far + value),
            };
            if let Some(next) = next {
                self.float.set(cx.states, *key, next)?;
            }
            results.push(next);
        }
        Ok(Arc::new(Float64Array::from(results)))
    }
}

impl ProcessFunction for RollingFunction {
    fn on_batch(&mut self, _port: usize, batch: &RecordBatch, cx: &mut ProcessContext<'_>) -> Result<()> {
        let mut columns = Vec::with_capacity(self.keys.len() + 1);
        for key in &self.keys {
            columns.push(key.expr.evaluate(batch)?.into_array(batch.num_rows())?);
        }
        columns.push(match self.column {
            Some(column) if !self.exact => self.floats(batch.column(column), cx)?,
            _ => self.integers(batch, cx)?,
        });
        cx.emit(RecordBatch::try_new(Arc::clone(&self.schema), columns)?)
    }
}
