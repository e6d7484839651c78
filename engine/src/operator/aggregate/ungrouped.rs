//! Aggregation without group columns: one accumulator per function over all rows.

use std::sync::Arc;

use arrow::array::ArrayRef;
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use datafusion::logical_expr::Accumulator;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateFunctionExpr;

use super::accumulators::{Inputs, as_mask, evaluate_all, raw_arguments};
use crate::data::{Batch, EngineError, Result};
use crate::operator::{Collector, Context};
use crate::plan::{AggregateMode, AggregateSpec};

/// States up to this size are kept when others ask for memory.
const LITTLE_BYTES: usize = 64 << 10;

/// Aggregation of all rows into one.
pub(super) struct Ungrouped {
    mode: AggregateMode,
    schema: SchemaRef,
    functions: Vec<Arc<AggregateFunctionExpr>>,
    filters: Vec<Option<Arc<dyn PhysicalExpr>>>,
    inputs: Inputs,
    accumulators: Vec<Box<dyn Accumulator>>,
}

impl Ungrouped {
    /// An aggregation of this spec.
    ///
    /// # Errors
    /// When a function refuses its arguments.
    pub(super) fn new(spec: AggregateSpec) -> Result<Self> {
        let filtered = spec.mode != AggregateMode::Final;
        let filters = spec
            .aggregates
            .filters
            .iter()
            .map(|filter| filter.clone().filter(|_| filtered))
            .collect();
        Ok(Self {
            mode: spec.mode,
            schema: Arc::clone(&spec.schema.0),
            inputs: Inputs::unfiltered(&spec)?,
            accumulators: create(&spec.aggregates.functions)?,
            functions: spec.aggregates.functions,
            filters,
        })
    }

    /// Takes a batch.
    ///
    /// # Errors
    /// When an expression or function fails, or, unless partial, when the budget is exhausted.
    pub(super) fn on_batch(&mut self, batch: &Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let inputs = self.inputs.evaluate(batch)?;
        for (index, accumulator) in self.accumulators.iter_mut().enumerate() {
            match (&self.filters[index], self.mode) {
                (_, AggregateMode::Final) => accumulator.merge_batch(&inputs[index].values)?,
                (None, _) => accumulator.update_batch(&inputs[index].values)?,
                (Some(filter), _) => {
                    // The arguments may fail on rows that do not count: they are evaluated on those that do.
                    let mask = as_mask(&filter.evaluate(batch)?.into_array(batch.num_rows())?)?;
                    let counted = filter_record_batch(batch, &mask)?;
                    if counted.num_rows() > 0 {
                        let arguments = raw_arguments(&self.functions[index]);
                        accumulator.update_batch(&evaluate_all(&arguments, &counted)?)?;
                    }
                }
            }
        }
        let held = self.accumulators.iter().map(|accumulator| accumulator.size()).sum();
        let asked = cx.memory.must_spill() && held > LITTLE_BYTES;
        if held <= LITTLE_BYTES {
            // A few numbers must not fail because others hold all memory.
            cx.hold_anyway(held);
            return Ok(());
        }
        match cx.hold(held) {
            Ok(()) if asked && self.mode == AggregateMode::Partial => self.let_go(cx, out),
            Err(EngineError::Memory(_)) if self.mode == AggregateMode::Partial => self.let_go(cx, out),
            booked => booked,
        }
    }

    fn let_go(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.emit(out)?;
        self.accumulators = create(&self.functions)?;
        cx.hold(0)
    }

    /// Hands on the one row.
    ///
    /// # Errors
    /// When a function or the consumer fails.
    pub(super) fn on_end(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.emit(out)?;
        self.accumulators = Vec::new();
        cx.hold(0)
    }

    fn emit(&mut self, out: &mut dyn Collector) -> Result<()> {
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.schema.fields().len());
        for accumulator in &mut self.accumulators {
            if self.mode == AggregateMode::Partial {
                for state in accumulator.state()? {
                    columns.push(state.to_array()?);
                }
            } else {
                columns.push(accumulator.evaluate()?.to_array()?);
            }
        }
        let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(1));
        out.collect(Batch::try_new_with_options(
            Arc::clone(&self.schema),
            columns,
            &options,
        )?)
    }
}

fn create(functions: &[Arc<AggregateFunctionExpr>]) -> Result<Vec<Box<dyn Accumulator>>> {
    functions
        .iter()
        .map(|function| Ok(function.create_accumulator()?))
        .collect()
}
