//! Aggregation with group columns: the group table and the accumulators over its groups.
//!
//! A partial aggregation may let go of its groups at any time, for the final one merges states of the same group. It
//! does so when the memory budget is exhausted, and for good when grouping does not shrink the rows: from then on rows
//! pass as states of one row each.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::physical_expr::PhysicalExpr;

use super::accumulators::{Accumulators, Input, Inputs, evaluate_all};
use super::group_table::GroupTable;
use crate::data::{Batch, EngineError, Result};
use crate::operator::{Collector, Context};
use crate::plan::{AggregateMode, AggregateSpec};

/// Rows to look at before judging whether a partial aggregation is worth its work.
const PROBE_ROWS: usize = 100_000;
/// More groups than this per row, and it is not.
const PASS_RATIO: f64 = 0.8;

/// Aggregation with at least one group column.
pub(super) struct Grouped {
    mode: AggregateMode,
    schema: SchemaRef,
    group_by: Vec<Arc<dyn PhysicalExpr>>,
    inputs: Inputs,
    accumulators: Accumulators,
    table: GroupTable,
    groups: Vec<usize>,
    /// Without functions the groups are the result, and the first so many are already handed on.
    emitted: usize,
    distinct_only: bool,
    adaptive: Adaptive,
}

/// Whether a partial aggregation still groups.
enum Adaptive {
    /// It does, having taken so many rows and let go of so many groups.
    Grouping { rows: usize, released: usize },
    /// It does, and always will.
    Fixed,
    /// It passes rows on as states.
    Passing,
}

impl Grouped {
    /// An aggregation of this spec.
    ///
    /// # Errors
    /// When a key's type cannot be grouped by, or a function refuses its arguments.
    pub(super) fn new(spec: AggregateSpec) -> Result<Self> {
        let inputs = Inputs::new(&spec)?;
        let types = spec.schema.0.fields().iter().take(spec.group_by.len());
        let table = GroupTable::new(types.map(|field| field.data_type().clone()).collect())?;
        let adaptive = match spec.mode {
            AggregateMode::Partial => Adaptive::Grouping { rows: 0, released: 0 },
            AggregateMode::Final | AggregateMode::Single => Adaptive::Fixed,
        };
        Ok(Self {
            mode: spec.mode,
            distinct_only: spec.aggregates.functions.is_empty(),
            accumulators: Accumulators::new(spec.aggregates.functions)?,
            schema: spec.schema.0,
            group_by: spec.group_by.into_iter().map(|key| key.expr).collect(),
            inputs,
            table,
            groups: Vec::new(),
            emitted: 0,
            adaptive,
        })
    }

    /// Takes a batch.
    ///
    /// # Errors
    /// When an expression or function fails, or, unless partial, when the budget is exhausted.
    pub(super) fn on_batch(&mut self, batch: &Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let keys = evaluate_all(&self.group_by, batch)?;
        let inputs = self.inputs.evaluate(batch)?;
        if matches!(self.adaptive, Adaptive::Passing) {
            return self.pass(keys, &inputs, batch.num_rows(), out);
        }
        // The slots double all at once: book that before.
        let growth = self.table.growth(batch.num_rows());
        self.book(growth, cx, out)?;
        self.table.intern(&keys, &mut self.groups)?;
        let total = self.table.len();
        match self.mode {
            AggregateMode::Final => self.accumulators.merge(&inputs, &self.groups, total)?,
            AggregateMode::Partial | AggregateMode::Single => {
                self.accumulators.update(&inputs, &self.groups, total)?;
            }
        }
        if self.distinct_only && self.table.len() - self.emitted >= cx.batch_size {
            self.emit_keys(cx.batch_size, out)?;
        }
        self.book(0, cx, out)?;
        self.adapt(&inputs, batch.num_rows(), cx, out)
    }

    /// Hands on what is left.
    ///
    /// # Errors
    /// When a function or the consumer fails.
    pub(super) fn on_end(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.let_go(cx, out)
    }

    /// Books what is held and `more`; a partial aggregation lets go of its groups when that is refused.
    fn book(&mut self, more: usize, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let held = self.table.size() + self.accumulators.size() + self.groups.capacity() * size_of::<usize>();
        match cx.hold(held + more) {
            Err(EngineError::Memory(_)) if self.mode == AggregateMode::Partial => self.let_go(cx, out),
            booked => booked,
        }
    }

    /// Once enough rows have come, decides whether to go on grouping.
    fn adapt(&mut self, inputs: &[Input], taken: usize, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let Adaptive::Grouping { rows, released } = &mut self.adaptive else {
            return Ok(());
        };
        *rows += taken;
        if *rows < PROBE_ROWS || ((*released + self.table.len()) as f64) <= PASS_RATIO * *rows as f64 {
            return Ok(());
        }
        match self.accumulators.convert(inputs) {
            Ok(_) => self.adaptive = Adaptive::Passing,
            // There is no way to ask a function but to try.
            Err(EngineError::DataFusion(DataFusionError::NotImplemented(_))) => {
                self.adaptive = Adaptive::Fixed;
                return Ok(());
            }
            Err(error) => return Err(error),
        }
        self.let_go(cx, out)
    }

    /// Hands on each row as a state.
    fn pass(&self, keys: Vec<ArrayRef>, inputs: &[Input], rows: usize, out: &mut dyn Collector) -> Result<()> {
        let mut columns = self.table.declared(keys)?;
        columns.extend(self.accumulators.convert(inputs)?);
        out.collect(self.batch_of(columns, rows)?)
    }

    /// Hands on all groups and forgets them.
    fn let_go(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let total = self.table.len();
        if self.distinct_only {
            self.emit_keys(cx.batch_size, out)?;
            self.emit_range(self.emitted..total, &[], out)?;
        } else if total > 0 {
            let columns = match self.mode {
                AggregateMode::Partial => self.accumulators.take_states()?,
                AggregateMode::Final | AggregateMode::Single => self.accumulators.take_results()?,
            };
            for start in (0..total).step_by(cx.batch_size) {
                if out.is_done() {
                    break;
                }
                self.emit_range(start..(start + cx.batch_size).min(total), &columns, out)?;
            }
        }
        self.table.clear()?;
        self.groups = Vec::new();
        self.emitted = 0;
        if let Adaptive::Grouping { released, .. } = &mut self.adaptive {
            *released += total;
        }
        cx.hold(0)
    }

    /// Hands on, in full batches, the groups that have not been.
    fn emit_keys(&mut self, batch_size: usize, out: &mut dyn Collector) -> Result<()> {
        while self.table.len() - self.emitted >= batch_size {
            let end = self.emitted + batch_size;
            self.emit_range(self.emitted..end, &[], out)?;
            self.emitted = end;
        }
        Ok(())
    }

    fn emit_range(&self, range: Range<usize>, columns: &[ArrayRef], out: &mut dyn Collector) -> Result<()> {
        if range.is_empty() {
            return Ok(());
        }
        let mut emitted = self.table.emit(range.clone())?;
        emitted.extend(columns.iter().map(|column| column.slice(range.start, range.len())));
        out.collect(self.batch_of(emitted, range.len())?)
    }

    fn batch_of(&self, columns: Vec<ArrayRef>, rows: usize) -> Result<Batch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(Batch::try_new_with_options(
            Arc::clone(&self.schema),
            columns,
            &options,
        )?)
    }
}
