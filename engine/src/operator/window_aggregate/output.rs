//! Results on their way out: in batches of a good size, with the bounds of their windows.

use std::sync::Arc;

use arrow::array::{ArrayRef, PrimitiveArray, RecordBatchOptions, UInt8Array};
use arrow::buffer::ScalarBuffer;
use arrow::datatypes::{DataType, SchemaRef, TimeUnit, TimestampMillisecondType};

use crate::data::{Batch, Coalescer, EngineError, Result, RowKind, batch_bytes};
use crate::operator::{Collector, Context};
use crate::plan::WindowProperty;

/// Where a window lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Bounds {
    /// First millisecond.
    pub(super) start: i64,
    /// The millisecond after the last.
    pub(super) end: i64,
}

/// Gathers the results of windows.
pub(super) struct Output {
    schema: SchemaRef,
    properties: Vec<WindowProperty>,
    /// Types of the properties' columns.
    types: Vec<DataType>,
    /// The one small batch that waits for company, before anything is copied.
    first: Option<Batch>,
    small: Option<Coalescer>,
}

impl Output {
    /// For a schema whose columns from `first` on are the properties.
    ///
    /// # Errors
    /// When the properties' columns are no timestamps of milliseconds.
    pub(super) fn new(schema: SchemaRef, properties: Vec<WindowProperty>, first: usize) -> Result<Self> {
        let mut types = Vec::with_capacity(properties.len());
        for (at, property) in (first..).zip(&properties) {
            let data_type = schema.fields().get(at).map(|field| field.data_type().clone());
            match data_type {
                Some(data_type @ DataType::Timestamp(TimeUnit::Millisecond, _)) => types.push(data_type),
                other => {
                    return Err(EngineError::Internal(format!(
                        "column {at} is to be the window's {property:?} but is {other:?}"
                    )));
                }
            }
        }
        Ok(Self {
            schema,
            properties,
            types,
            first: None,
            small: None,
        })
    }

    fn property(&self, values: Vec<i64>, data_type: &DataType) -> ArrayRef {
        let array = PrimitiveArray::<TimestampMillisecondType>::new(ScalarBuffer::from(values), None);
        Arc::new(array.with_data_type(data_type.clone()))
    }

    /// The properties' columns for rows of one window.
    fn of_one_window(&self, bounds: Bounds, rows: usize) -> Vec<ArrayRef> {
        let columns = self.properties.iter().zip(&self.types);
        columns
            .map(|(property, data_type)| self.property(vec![value_of(*property, bounds); rows], data_type))
            .collect()
    }

    /// Hands on rows of one window: its groups' keys and results. `kinds` is there when the output is a changelog.
    ///
    /// # Errors
    /// When the columns contradict the schema, or the consumer fails.
    pub(super) fn window(
        &mut self,
        mut columns: Vec<ArrayRef>,
        rows: usize,
        bounds: Bounds,
        kinds: Option<Vec<RowKind>>,
        cx: &mut Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        columns.extend(self.of_one_window(bounds, rows));
        if let Some(kinds) = kinds {
            columns.push(Arc::new(UInt8Array::from_iter_values(
                kinds.iter().map(|kind| *kind as u8),
            )));
        }
        self.rows(columns, rows, cx, out)
    }

    /// Hands on rows each of which has bounds of its own (sessions).
    ///
    /// # Errors
    /// As for `window`.
    pub(super) fn windows(
        &mut self,
        mut columns: Vec<ArrayRef>,
        bounds: &[Bounds],
        cx: &mut Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        for (property, data_type) in self.properties.iter().zip(&self.types) {
            let values = bounds.iter().map(|bounds| value_of(*property, *bounds)).collect();
            columns.push(self.property(values, data_type));
        }
        self.rows(columns, bounds.len(), cx, out)
    }

    /// Hands on rows that have all their columns.
    ///
    /// # Errors
    /// As for `window`.
    pub(super) fn rows(
        &mut self,
        columns: Vec<ArrayRef>,
        rows: usize,
        cx: &mut Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        if rows == 0 {
            return Ok(());
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let all = Batch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
        let mut start = 0;
        while start < rows && !out.is_done() {
            cx.cancel.check()?;
            let count = cx.batch_size.min(rows - start);
            self.piece(all.slice(start, count), cx, out)?;
            start += count;
        }
        Ok(())
    }

    fn piece(&mut self, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let large = batch.num_rows() * 2 >= cx.batch_size || batch_bytes(&batch) * 2 >= cx.batch_bytes;
        if large || batch.num_columns() == 0 {
            // Windows leave in their order.
            self.flush(out)?;
            return out.collect(batch);
        }
        if self.small.is_none() {
            let Some(first) = self.first.take() else {
                self.first = Some(batch);
                return Ok(());
            };
            let mut small = Coalescer::new(cx.batch_size, cx.batch_bytes);
            small.push(first)?;
            self.small = Some(small);
        }
        if let Some(small) = &mut self.small {
            small.push(batch)?;
            while let Some(full) = small.next()? {
                out.collect(full)?;
            }
        }
        Ok(())
    }

    /// Hands on what has been gathered.
    ///
    /// # Errors
    /// When the consumer fails.
    pub(super) fn flush(&mut self, out: &mut dyn Collector) -> Result<()> {
        if let Some(first) = self.first.take() {
            out.collect(first)?;
        }
        if let Some(mut small) = self.small.take() {
            small.flush()?;
            while let Some(rest) = small.next()? {
                out.collect(rest)?;
            }
        }
        Ok(())
    }
}

impl Output {
    /// Bytes held.
    pub(super) fn held_bytes(&self) -> usize {
        self.first.as_ref().map_or(0, batch_bytes) + self.small.as_ref().map_or(0, Coalescer::held_bytes)
    }
}

fn value_of(property: WindowProperty, bounds: Bounds) -> i64 {
    match property {
        WindowProperty::Start => bounds.start,
        WindowProperty::End => bounds.end,
        WindowProperty::Time => bounds.end - 1,
    }
}
