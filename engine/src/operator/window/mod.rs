//! Window: functions over whole partitions of a sorted input. The functions are DataFusion's; what rows they see at once
//! is decided here.
//!
//! The input is cut where the partition keys change. Complete partitions wait until there are enough rows for a batch, so
//! what is held is bounded by a batch and the largest partition. A partition that does not fit the budget goes to disk
//! while aggregates over all of it are folded ([`fold`]); functions that need all its rows at once fail.

mod cut;
mod fold;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::compute::{concat, concat_batches};
use arrow::datatypes::SchemaRef;
use datafusion::common::utils::memory::RecordBatchMemoryCounter;
use datafusion::physical_expr::window::WindowExpr;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::windows::WindowAggExec;
use thalweg_memory::MemoryError;

use crate::data::{Batch, EngineError, Result, batch_bytes};
use crate::operator::sort::without_unused_strings;
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::{Aggregates, WindowSpec};
pub(super) use cut::{Cut, Cutter};
use fold::Fold;

/// So much is held even beyond the budget.
const LITTLE_BYTES: usize = 64 << 10;
/// Output batches, spilled blocks and the complete partitions that wait have about this part of the share.
const BATCH_PART: usize = 8;
/// What a function keeps of each row while it is evaluated: a scalar and its place in the result.
const RESULT_BYTES_PER_ROW: usize = 80;

/// Appends the window functions' columns to its input.
pub(super) struct Window {
    label: String,
    functions: Vec<Arc<dyn WindowExpr>>,
    cutter: Cutter,
    whole: Option<Aggregates>,
    input_schema: SchemaRef,
    schema: SchemaRef,
    /// Rows of partitions that are complete.
    complete: Held,
    /// Rows of the partition that may go on.
    open: Held,
    /// The partition that may go on, when it did not fit.
    fold: Option<Fold>,
    is_done: bool,
}

/// Batches held.
struct Held {
    batches: Vec<Batch>,
    rows: usize,
    bytes: RecordBatchMemoryCounter,
}

impl Held {
    fn new() -> Self {
        Self {
            batches: Vec::new(),
            rows: 0,
            bytes: RecordBatchMemoryCounter::new(),
        }
    }

    fn push(&mut self, batch: Batch) {
        if batch.num_rows() > 0 {
            self.rows += batch.num_rows();
            self.bytes.count_batch(&batch);
            self.batches.push(batch);
        }
    }

    fn bytes(&self) -> usize {
        self.bytes.memory_usage()
    }
}

impl Window {
    /// The window functions of `spec`.
    ///
    /// # Errors
    /// When its plan is no `WindowAggExec`.
    pub(super) fn new(spec: WindowSpec) -> Result<Self> {
        let Some(plan) = spec.plan.0.downcast_ref::<WindowAggExec>() else {
            return Err(EngineError::Internal(format!(
                "{} is {}, not window functions over whole partitions",
                spec.label,
                spec.plan.0.name()
            )));
        };
        let functions = plan.window_expr().to_vec();
        Ok(Self {
            cutter: Cutter::new(
                functions
                    .first()
                    .map_or(Vec::new(), |first| first.partition_by().to_vec()),
            ),
            functions,
            whole: spec.whole,
            input_schema: plan.input().schema(),
            schema: plan.schema(),
            label: spec.label,
            complete: Held::new(),
            open: Held::new(),
            fold: None,
            is_done: false,
        })
    }

    fn take(&mut self, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let Cut { partitions, goes_on } = self.cutter.cut(&batch)?;
        let Some(last) = partitions.last().cloned() else {
            return Ok(());
        };
        if !goes_on {
            self.close(cx, out)?;
        }
        if partitions.len() == 1 {
            return self.go_on(batch, cx);
        }
        let mut start = 0;
        if goes_on {
            start = partitions[0].end;
            self.go_on(batch.slice(0, start), cx)?;
            self.close(cx, out)?;
        }
        self.complete.push(batch.slice(start, last.start - start));
        self.go_on(batch.slice(last.start, last.len()), cx)
    }

    /// Takes more rows of the open partition.
    fn go_on(&mut self, rows: Batch, cx: &mut Context) -> Result<()> {
        match &mut self.fold {
            Some(fold) => fold.add(&rows, cx),
            None => {
                self.open.push(rows);
                Ok(())
            }
        }
    }

    /// The open partition is complete.
    fn close(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if let Some(fold) = self.fold.take() {
            return fold.replay(&self.schema, cx, out);
        }
        for batch in std::mem::replace(&mut self.open, Held::new()).batches {
            self.complete.push(batch);
        }
        Ok(())
    }

    /// Hands on what is complete once it is enough, and books the rest.
    fn settle(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if self.complete.rows >= cx.batch_size || self.complete.bytes() >= batch_bytes_max(cx) {
            self.emit_complete(cx, out)?;
        }
        if cx.memory.must_spill() && self.held() > LITTLE_BYTES {
            self.emit_complete(cx, out)?;
            self.start_fold(cx)?;
        }
        if cx.hold(self.held()).is_ok() {
            return Ok(());
        }
        self.emit_complete(cx, out)?;
        if cx.hold(self.held()).is_err() {
            self.start_fold(cx)?;
        }
        match cx.hold(self.held()) {
            Err(refused) => self.hold_little(self.held(), refused, cx),
            booked => booked,
        }
    }

    fn held(&self) -> usize {
        let folded = self.fold.as_ref().map_or(0, Fold::bytes);
        self.complete.bytes() + self.open.bytes() + folded
    }

    /// Books `bytes` beyond the budget if they are few; else that is the end, and the error says what did not fit.
    fn hold_little(&self, bytes: usize, refused: EngineError, cx: &mut Context) -> Result<()> {
        if bytes <= LITTLE_BYTES.max(cx.memory.share_bytes() / 4) {
            cx.hold_anyway(bytes);
            return Ok(());
        }
        let EngineError::Memory(MemoryError::Exhausted {
            consumer,
            requested_bytes,
            available_bytes,
            budget_bytes,
        }) = refused
        else {
            return Err(refused);
        };
        Err(EngineError::Memory(MemoryError::Exhausted {
            consumer: format!(
                "{consumer} ({}, whose largest partition takes {bytes} bytes)",
                self.label
            ),
            requested_bytes,
            available_bytes,
            budget_bytes,
        }))
    }

    /// Sends the open partition to disk, if the functions can do without its rows.
    fn start_fold(&mut self, cx: &mut Context) -> Result<()> {
        let Some(whole) = &self.whole else {
            return Ok(());
        };
        if self.open.batches.is_empty() {
            return Ok(());
        }
        let mut fold = Fold::new(whole, &self.input_schema, cx)?;
        for batch in std::mem::replace(&mut self.open, Held::new()).batches {
            fold.add(&batch, cx)?;
        }
        self.fold = Some(fold);
        Ok(())
    }

    /// Computes the functions over the complete partitions and hands these on. What is left is not booked anew.
    fn emit_complete(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let complete = std::mem::replace(&mut self.complete, Held::new());
        if complete.batches.is_empty() || out.is_done() {
            return Ok(());
        }
        let held = complete.bytes() + self.held();
        if cx.hold(held + self.cost(complete.rows, complete.bytes(), cx)).is_ok() {
            return self.emit_batches(complete.batches, cx, out);
        }
        // Nothing is copied, or a few partitions at a time.
        let partitions = self.partitions_of(&complete.batches)?;
        if let Some(whole) = &self.whole {
            let mut partitions = partitions.into_iter();
            return partitions.try_for_each(|pieces| fold::in_memory(whole, pieces, &self.schema, cx, out));
        }
        let mut group = Held::new();
        let last = partitions.len() - 1;
        for (index, pieces) in partitions.into_iter().enumerate() {
            pieces.into_iter().for_each(|piece| group.push(piece));
            // Slices of few batches: what they show counts, not the batches behind them.
            let bytes = group.batches.iter().map(batch_bytes).sum();
            let cost = self.cost(group.rows, bytes, cx);
            if cost < batch_bytes_max(cx) && index < last {
                continue;
            }
            if let Err(refused) = cx.hold(held + cost) {
                self.hold_little(held + cost, refused, cx)?;
            }
            let group = std::mem::replace(&mut group, Held::new());
            self.emit_batches(group.batches, cx, out)?;
        }
        Ok(())
    }

    /// Bytes that evaluation takes beside rows of so many bytes: these as one batch, what is computed, an output batch.
    fn cost(&self, rows: usize, bytes: usize, cx: &Context) -> usize {
        bytes + rows * RESULT_BYTES_PER_ROW * self.functions.len() + bytes.min(batch_bytes_max(cx))
    }

    fn emit_batches(&self, batches: Vec<Batch>, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let batch = match &batches[..] {
            [only] => only.clone(),
            several => concat_batches(&self.input_schema, several)?,
        };
        drop(batches);
        let computed = self.compute(&batch, cx)?;
        emit(&batch, computed, &self.schema, cx, out)
    }

    /// The pieces of each partition of batches that hold whole ones, in order.
    fn partitions_of(&self, batches: &[Batch]) -> Result<Vec<Vec<Batch>>> {
        let mut cutter = Cutter::new(self.cutter.partition_by().to_vec());
        let mut partitions: Vec<Vec<Batch>> = Vec::new();
        for batch in batches {
            let Cut {
                partitions: ranges,
                goes_on,
            } = cutter.cut(batch)?;
            for (index, range) in ranges.into_iter().enumerate() {
                let piece = batch.slice(range.start, range.len());
                match partitions.last_mut() {
                    Some(last) if index == 0 && goes_on => last.push(piece),
                    _ => partitions.push(vec![piece]),
                }
            }
        }
        Ok(partitions)
    }

    /// The functions' columns over complete partitions.
    fn compute(&self, batch: &Batch, cx: &Context) -> Result<Vec<ArrayRef>> {
        let partitions = Cutter::new(self.cutter.partition_by().to_vec()).cut(batch)?.partitions;
        let mut results: Vec<Vec<ArrayRef>> = vec![Vec::with_capacity(partitions.len()); self.functions.len()];
        for range in partitions {
            cx.cancel.check()?;
            let rows = batch.slice(range.start, range.len());
            for (function, results) in self.functions.iter().zip(&mut results) {
                results.push(function.evaluate(&rows)?);
            }
        }
        let results = results.into_iter().map(|results| {
            let arrays: Vec<&dyn Array> = results.iter().map(AsRef::as_ref).collect();
            Ok(concat(&arrays)?)
        });
        results.collect()
    }
}

impl Operator for Window {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if self.is_done {
            return Ok(());
        }
        self.take(batch, cx, out)?;
        self.settle(cx, out)?;
        self.is_done = out.is_done();
        Ok(())
    }

    fn on_end(&mut self, _port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if !self.is_done {
            self.close(cx, out)?;
            self.emit_complete(cx, out)?;
        }
        self.is_done = true;
        (self.complete, self.open, self.fold) = (Held::new(), Held::new(), None);
        cx.hold(0)
    }

    fn is_done(&self) -> bool {
        self.is_done
    }
}

/// What an output batch may take.
fn batch_bytes_max(cx: &Context) -> usize {
    (cx.memory.share_bytes() / BATCH_PART).max(LITTLE_BYTES)
}

/// Rows of about `bytes_max`, when so many rows take `bytes`.
fn rows_within(bytes_max: usize, rows: usize, bytes: usize) -> usize {
    (bytes_max / (bytes / rows.max(1)).max(1)).max(1)
}

/// Hands on rows with what was computed for them.
fn emit(
    rows: &Batch,
    computed: Vec<ArrayRef>,
    schema: &SchemaRef,
    cx: &Context,
    out: &mut dyn Collector,
) -> Result<()> {
    let columns = rows.columns().iter().cloned().chain(computed).collect();
    let whole = Batch::try_new(Arc::clone(schema), columns)?;
    let count = whole.num_rows();
    let piece = rows_within(batch_bytes_max(cx), count, batch_bytes(&whole)).min(cx.batch_size);
    for start in (0..count).step_by(piece) {
        if out.is_done() {
            break;
        }
        out.collect(without_unused_strings(whole.slice(start, piece.min(count - start)))?)?;
    }
    Ok(())
}
