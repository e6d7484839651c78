//! The convenient face: a process function that is called with one row at a time.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::ScalarValue;

use super::{ProcessContext, ProcessFunction, States};
use crate::data::{Batch, EngineError, Result};
use crate::operator::Port;
use crate::time::Timer;

/// One row of a batch.
#[derive(Clone, Copy)]
pub struct RowView<'a> {
    batch: &'a Batch,
    row: usize,
}

impl<'a> RowView<'a> {
    /// Row `row` of `batch`.
    pub fn new(batch: &'a Batch, row: usize) -> Self {
        Self { batch, row }
    }

    /// The place of the row in its batch.
    pub fn index(&self) -> usize {
        self.row
    }

    /// The batch that the row is in.
    pub fn batch(&self) -> &'a Batch {
        self.batch
    }

    /// Whether column `column` is NULL.
    pub fn is_null(&self, column: usize) -> bool {
        self.batch.column(column).is_null(self.row)
    }

    /// The value of any column.
    ///
    /// # Errors
    /// When the type has no scalar form.
    pub fn scalar(&self, column: usize) -> Result<ScalarValue> {
        Ok(ScalarValue::try_from_array(self.batch.column(column), self.row)?)
    }

    /// An integer, or a time in the column's unit; nothing when it is NULL.
    ///
    /// # Errors
    /// When the column holds neither.
    pub fn i64(&self, column: usize) -> Result<Option<i64>> {
        let array = self.batch.column(column);
        if array.is_null(self.row) {
            return Ok(None);
        }
        if let Some(values) = array.as_primitive_opt::<arrow::datatypes::Int64Type>() {
            return Ok(Some(values.value(self.row)));
        }
        let value = cast(&array.slice(self.row, 1), &DataType::Int64)?;
        let value = value.as_primitive::<arrow::datatypes::Int64Type>();
        Ok(value.is_valid(0).then(|| value.value(0)))
    }

    /// A number; nothing when it is NULL.
    ///
    /// # Errors
    /// When the column holds no numbers.
    pub fn f64(&self, column: usize) -> Result<Option<f64>> {
        let array = self.batch.column(column);
        if array.is_null(self.row) {
            return Ok(None);
        }
        if let Some(values) = array.as_primitive_opt::<arrow::datatypes::Float64Type>() {
            return Ok(Some(values.value(self.row)));
        }
        let value = cast(&array.slice(self.row, 1), &DataType::Float64)?;
        let value = value.as_primitive::<arrow::datatypes::Float64Type>();
        Ok(value.is_valid(0).then(|| value.value(0)))
    }

    /// A text; nothing when it is NULL.
    ///
    /// # Errors
    /// When the column holds no texts.
    pub fn str(&self, column: usize) -> Result<Option<&'a str>> {
        let array: &'a ArrayRef = self.batch.column(column);
        if array.is_null(self.row) {
            return Ok(None);
        }
        match array.data_type() {
            DataType::Utf8 => Ok(Some(array.as_string::<i32>().value(self.row))),
            DataType::LargeUtf8 => Ok(Some(array.as_string::<i64>().value(self.row))),
            DataType::Utf8View => Ok(Some(array.as_string_view().value(self.row))),
            other => Err(EngineError::Plan(format!("column {column} is {other}, not a text"))),
        }
    }

    /// A truth value; nothing when it is NULL.
    ///
    /// # Errors
    /// When the column holds none.
    pub fn bool(&self, column: usize) -> Result<Option<bool>> {
        let array = self.batch.column(column);
        let values = array
            .as_boolean_opt()
            .ok_or_else(|| EngineError::Plan(format!("column {column} is {}, not a truth value", array.data_type())))?;
        Ok(values.is_valid(self.row).then(|| values.value(self.row)))
    }
}

/// A process function that is called with one row at a time.
pub trait RecordFunction: Send {
    /// Takes a row of input `port`.
    ///
    /// # Errors
    /// Ends the job.
    fn on_record(&mut self, port: Port, row: RowView<'_>, cx: &mut RecordContext<'_, '_>) -> Result<()>;

    /// A time that was asked for has come, for the key of `cx`.
    ///
    /// # Errors
    /// Ends the job.
    fn on_timer(&mut self, _timer: Timer, _cx: &mut RecordContext<'_, '_>) -> Result<()> {
        Ok(())
    }
}

/// What a [`RecordFunction`] works with: everything is about the key of the row.
pub struct RecordContext<'a, 'b> {
    inner: &'a mut ProcessContext<'b>,
    rows: &'a mut RowBuffer,
    key: usize,
    time_ms: Option<i64>,
}

impl RecordContext<'_, '_> {
    /// The number of the row's key, by which states are read and written.
    pub fn key(&self) -> usize {
        self.key
    }

    /// The row's key, one row.
    ///
    /// # Errors
    /// When the key cannot be brought to its type.
    pub fn key_row(&self) -> Result<Batch> {
        self.inner.key_row(self.key)
    }

    /// The event time of the row, where the input has one; the time that was asked for.
    pub fn time_ms(&self) -> Option<i64> {
        self.time_ms
    }

    /// The states.
    pub fn states(&mut self) -> &mut States {
        self.inner.states
    }

    /// How far event time has come.
    pub fn watermark_ms(&self) -> i64 {
        self.inner.watermark_ms
    }

    /// Processing time.
    pub fn now_ms(&self) -> i64 {
        self.inner.now_ms
    }

    /// Asks to be called for this key when the watermark has reached `time_ms`.
    pub fn register_event_timer(&mut self, time_ms: i64) {
        self.inner.register_event_timer(self.key, time_ms);
    }

    /// Asks to be called for this key when the clock has reached `time_ms`.
    pub fn register_processing_timer(&mut self, time_ms: i64) {
        self.inner.register_processing_timer(self.key, time_ms);
    }

    /// Takes back what [`Self::register_event_timer`] asked for.
    pub fn delete_event_timer(&mut self, time_ms: i64) {
        self.inner.delete_event_timer(self.key, time_ms);
    }

    /// Takes back what [`Self::register_processing_timer`] asked for.
    pub fn delete_processing_timer(&mut self, time_ms: i64) {
        self.inner.delete_processing_timer(self.key, time_ms);
    }

    /// Hands on a row.
    ///
    /// # Errors
    /// When it has not as many values as the output has columns.
    pub fn emit(&mut self, row: Vec<ScalarValue>) -> Result<()> {
        self.rows.push(row)
    }

    /// Hands rows to a side output.
    ///
    /// # Errors
    /// As for [`ProcessContext::emit_side`].
    pub fn emit_side(&mut self, tag: usize, rows: Batch) -> Result<()> {
        self.inner.emit_side(tag, rows)
    }
}

/// Rows on their way to a batch.
struct RowBuffer {
    schema: SchemaRef,
    columns: Vec<Vec<ScalarValue>>,
    rows: usize,
}

impl RowBuffer {
    fn new(schema: SchemaRef) -> Self {
        Self {
            columns: vec![Vec::new(); schema.fields().len()],
            schema,
            rows: 0,
        }
    }

    fn push(&mut self, row: Vec<ScalarValue>) -> Result<()> {
        if row.len() != self.columns.len() {
            return Err(EngineError::Plan(format!(
                "a row of {} values was handed on, the output has {} columns",
                row.len(),
                self.columns.len()
            )));
        }
        for (column, value) in self.columns.iter_mut().zip(row) {
            column.push(value);
        }
        self.rows += 1;
        Ok(())
    }

    fn take(&mut self) -> Result<Option<Batch>> {
        if self.rows == 0 {
            return Ok(None);
        }
        let mut columns = Vec::with_capacity(self.columns.len());
        for (values, field) in self.columns.iter_mut().zip(self.schema.fields()) {
            let array = ScalarValue::iter_to_array(std::mem::take(values))?;
            columns.push(if array.data_type() == field.data_type() {
                array
            } else {
                cast(&array, field.data_type())?
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(std::mem::take(&mut self.rows)));
        Ok(Some(Batch::try_new_with_options(
            Arc::clone(&self.schema),
            columns,
            &options,
        )?))
    }
}

/// A [`RecordFunction`] as a [`ProcessFunction`].
pub struct PerRecord<F> {
    function: F,
    rows: RowBuffer,
}

impl<F: RecordFunction> PerRecord<F> {
    /// Calls `function` with each row; what it hands on has schema `output`.
    pub fn new(function: F, output: SchemaRef) -> Self {
        Self {
            function,
            rows: RowBuffer::new(output),
        }
    }
}

impl<F: RecordFunction> ProcessFunction for PerRecord<F> {
    fn on_batch(&mut self, port: Port, batch: &Batch, cx: &mut ProcessContext<'_>) -> Result<()> {
        for row in 0..batch.num_rows() {
            let key = cx.keys.get(row).copied().unwrap_or(0);
            let time_ms = cx.times_ms.map(|times| times[row]);
            let mut record = RecordContext {
                inner: cx,
                rows: &mut self.rows,
                key,
                time_ms,
            };
            self.function.on_record(port, RowView::new(batch, row), &mut record)?;
        }
        self.rows.take()?.map_or(Ok(()), |rows| cx.emit(rows))
    }

    fn on_timers(&mut self, timer: Timer, keys: &[usize], cx: &mut ProcessContext<'_>) -> Result<()> {
        let (Timer::Event(time) | Timer::Processing(time)) = timer;
        for key in keys {
            let mut record = RecordContext {
                inner: cx,
                rows: &mut self.rows,
                key: *key,
                time_ms: Some(time),
            };
            self.function.on_timer(timer, &mut record)?;
        }
        self.rows.take()?.map_or(Ok(()), |rows| cx.emit(rows))
    }
}
