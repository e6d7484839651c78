//! Filter: keeps the rows for which a predicate is true.

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute::{BatchCoalescer, filter_record_batch, prep_null_mask_filter};

use crate::data::{Batch, EngineError, Result};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::FilterSpec;

/// Keeps the rows for which the predicate is true, and gathers what is left into batches of the target size.
pub(super) struct Filter {
    spec: FilterSpec,
    gather: Option<BatchCoalescer>,
}

impl Filter {
    pub(super) fn new(spec: FilterSpec) -> Self {
        Self { spec, gather: None }
    }
}

impl Operator for Filter {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let mask = self.spec.predicate.expr.evaluate(&batch)?.into_array(batch.num_rows())?;
        let mask: &BooleanArray = mask.as_boolean_opt().ok_or_else(|| {
            EngineError::Internal(format!("the predicate {} is not boolean", self.spec.predicate))
        })?;
        let batch = match &self.spec.projection {
            Some(columns) => batch.project(columns)?,
            None => batch,
        };
        let kept = mask.true_count();
        if kept == 0 {
            return Ok(());
        }
        let gather = self
            .gather
            .get_or_insert_with(|| BatchCoalescer::new(batch.schema(), cx.batch_size));
        // A batch that loses few rows is cheaper to hand on as it is than to copy once more.
        if kept == batch.num_rows() && gather.is_empty() {
            return out.collect(batch);
        }
        let mask = if mask.null_count() > 0 { prep_null_mask_filter(mask) } else { mask.clone() };
        if kept * 2 > cx.batch_size && gather.is_empty() {
            return out.collect(filter_record_batch(&batch, &mask)?);
        }
        gather.push_batch_with_filter(batch, &mask)?;
        while let Some(full) = gather.next_completed_batch() {
            out.collect(full)?;
        }
        Ok(())
    }

    fn on_end(&mut self, _port: Port, _cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let Some(mut gather) = self.gather.take() else { return Ok(()) };
        gather.finish_buffered_batch()?;
        while let Some(rest) = gather.next_completed_batch() {
            out.collect(rest)?;
        }
        Ok(())
    }
}
