//! Aggregates over all rows of a partition: folded row by row, so that the rows can wait on disk for the result.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use datafusion::common::ScalarValue;
use datafusion::logical_expr::Accumulator;
use thalweg_memory::SpillWriter;

use super::{batch_bytes_max, rows_within};
use crate::data::{Batch, EngineError, Result, batch_bytes};
use crate::operator::array_bytes::compact;
use crate::operator::{Collector, Context};
use crate::plan::Aggregates;

/// A partition whose rows are on disk.
pub(super) struct Fold {
    functions: Functions,
    rows: SpillWriter,
}

impl Fold {
    /// An empty partition.
    ///
    /// # Errors
    /// When a function or the disk fails.
    pub(super) fn new(whole: &Aggregates, input: &SchemaRef, cx: &Context) -> Result<Self> {
        Ok(Self {
            functions: Functions::new(whole)?,
            rows: cx.spill.create(Arc::clone(input))?,
        })
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.functions.bytes()
    }

    /// Takes rows of the partition.
    ///
    /// # Errors
    /// When a function fails or the disk is full.
    pub(super) fn add(&mut self, rows: &Batch, cx: &Context) -> Result<()> {
        self.functions.update(rows)?;
        let count = rows.num_rows();
        let block = rows_within(batch_bytes_max(cx), count, batch_bytes(rows));
        for start in (0..count).step_by(block) {
            cx.cancel.check()?;
            let before = self.rows.bytes();
            let block = rows.slice(start, block.min(count - start));
            let columns = block.columns().iter().cloned().map(compact);
            self.rows
                .write(&Batch::try_new(block.schema(), columns.collect::<Result<_>>()?)?)?;
            cx.note_spilled(self.rows.bytes() - before);
        }
        Ok(())
    }

    /// Hands on the rows, which are all, with the functions' results.
    ///
    /// # Errors
    /// When a function, the disk or the consumer fails.
    pub(super) fn replay(mut self, schema: &SchemaRef, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let results = self.functions.evaluate()?;
        let mut reader = self.rows.finish()?.open()?;
        loop {
            cx.cancel.check()?;
            cx.hold_anyway(reader.next_block_bytes() + batch_bytes_max(cx) + results_bytes(&results));
            let Some(block) = reader.next() else {
                return cx.hold(0);
            };
            if out.is_done() {
                return cx.hold(0);
            }
            emit(&block?, &results, schema, cx, out)?;
        }
    }
}

/// Hands on a partition that is held, piece by piece.
///
/// # Errors
/// When a function or the consumer fails.
pub(super) fn in_memory(
    whole: &Aggregates,
    pieces: Vec<Batch>,
    schema: &SchemaRef,
    cx: &Context,
    out: &mut dyn Collector,
) -> Result<()> {
    let mut functions = Functions::new(whole)?;
    for piece in &pieces {
        functions.update(piece)?;
    }
    let results = functions.evaluate()?;
    for piece in pieces {
        cx.cancel.check()?;
        emit(&piece, &results, schema, cx, out)?;
    }
    Ok(())
}

struct Functions {
    whole: Aggregates,
    accumulators: Vec<Box<dyn Accumulator>>,
}

impl Functions {
    fn new(whole: &Aggregates) -> Result<Self> {
        let accumulators = whole.functions.iter();
        let accumulators = accumulators.map(|function| Ok(function.create_accumulator()?));
        Ok(Self {
            whole: whole.clone(),
            accumulators: accumulators.collect::<Result<_>>()?,
        })
    }

    fn bytes(&self) -> usize {
        self.accumulators.iter().map(|accumulator| accumulator.size()).sum()
    }

    fn update(&mut self, rows: &Batch) -> Result<()> {
        let functions = self.whole.functions.iter().zip(&self.whole.filters);
        for ((function, filter), accumulator) in functions.zip(&mut self.accumulators) {
            let evaluate = |rows: &Batch| -> Result<Vec<ArrayRef>> {
                let arguments = function.expressions();
                let values = arguments.iter();
                let values = values.map(|argument| Ok(argument.evaluate(rows)?.into_array(rows.num_rows())?));
                values.collect()
            };
            match filter {
                None => accumulator.update_batch(&evaluate(rows)?)?,
                Some(filter) => {
                    let mask = filter.evaluate(rows)?.into_array(rows.num_rows())?;
                    let mask = datafusion::common::cast::as_boolean_array(&mask).map_err(EngineError::from)?;
                    accumulator.update_batch(&evaluate(&filter_record_batch(rows, mask)?)?)?;
                }
            }
        }
        Ok(())
    }

    fn evaluate(&mut self) -> Result<Vec<ScalarValue>> {
        let results = self.accumulators.iter_mut();
        results.map(|accumulator| Ok(accumulator.evaluate()?)).collect()
    }
}

fn results_bytes(results: &[ScalarValue]) -> usize {
    results.iter().map(ScalarValue::size).sum()
}

/// Hands on rows with the same results for each.
fn emit(
    rows: &Batch,
    results: &[ScalarValue],
    schema: &SchemaRef,
    cx: &Context,
    out: &mut dyn Collector,
) -> Result<()> {
    let count = rows.num_rows();
    let bytes = batch_bytes(rows) + count * results_bytes(results);
    let piece = rows_within(batch_bytes_max(cx), count, bytes).min(cx.batch_size);
    for start in (0..count).step_by(piece) {
        if out.is_done() {
            break;
        }
        let rows = rows.slice(start, piece.min(count - start));
        let rows = crate::operator::sort::without_unused_strings(rows)?;
        let results = results
            .iter()
            .map(|result| Ok(result.to_array_of_size(rows.num_rows())?));
        let columns = rows.columns().iter().cloned().map(Ok).chain(results);
        out.collect(Batch::try_new(Arc::clone(schema), columns.collect::<Result<_>>()?)?)?;
    }
    Ok(())
}
