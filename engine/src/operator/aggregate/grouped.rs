//! Aggregation with group columns: the group table and the accumulators over its groups.
//!
//! A partial aggregation may let go of its groups at any time, for the final one merges states of the same group. It
//! does so when the memory budget is exhausted, and for good when grouping does not shrink the rows: from then on rows
//! pass as states of one row each.
//!
//! The others spill: all groups go to disk as rows of keys and states, partitioned by the keys, and the table begins
//! anew. At the end the partitions are merged one after the other, each in a table of its own that may spill in turn.
//!
//! Without functions groups are handed on as they appear. Once groups have been spilled that stops, as nobody can tell
//! any more which are new: the partitions hold first the groups that have been handed on, then those that may be new.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatchOptions};
use arrow::datatypes::SchemaRef;
use datafusion::error::DataFusionError;
use datafusion::physical_expr::PhysicalExpr;

use super::accumulators::{Accumulators, Input, Inputs, Take, evaluate_all};
use super::group_table::GroupTable;
use super::partitions::{DEPTH_MAX, Partition, Partitions, spill_schema};
use crate::data::{Batch, EngineError, Result};
use crate::operator::array_bytes::{compact, payload_bytes, slice_bytes};
use crate::operator::{Collector, Context};
use crate::plan::{AggregateMode, AggregateSpec};

/// Rows to look at before judging whether a partial aggregation is worth its work.
const PROBE_ROWS: usize = 100_000;
/// More groups than this per row, and it is not.
const PASS_RATIO: f64 = 0.8;
/// A batch is taken in pieces down to this size before groups are let go for it.
const PIECE_ROWS_MIN: usize = 128;
/// Letting go of so little would not help anybody, and leave blocks of a few rows: it is held even beyond the budget.
const LITTLE_BYTES: usize = 64 << 10;
/// What leaves at once (an output batch, a slice on its way to disk) is this part of the share, and booked beforehand.
const LEAVING_PART: usize = 8;
/// Groups leave in no more slices than this.
const SLICES_MAX: usize = 64;

/// Aggregation with at least one group column.
pub(super) struct Grouped {
    mode: AggregateMode,
    schema: SchemaRef,
    group_by: Vec<Arc<dyn PhysicalExpr>>,
    inputs: Inputs,
    accumulators: Accumulators,
    table: GroupTable,
    groups: Vec<usize>,
    /// As far as one can tell, the accumulators have room for so many groups: vectors double.
    room: usize,
    /// Without functions the groups are the result, and the first so many are already handed on.
    emitted: usize,
    distinct_only: bool,
    adaptive: Adaptive,
    spilled: Option<Partitions>,
    /// How often what is in the table has been partitioned.
    depth: u32,
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

/// Rows to group.
struct Rows {
    keys: Vec<ArrayRef>,
    inputs: Vec<Input>,
    count: usize,
    /// The inputs are states.
    merge: bool,
    /// The groups have been handed on.
    emitted: bool,
}

impl Rows {
    fn slice(&self, start: usize, count: usize) -> Self {
        Self {
            keys: self.keys.iter().map(|key| key.slice(start, count)).collect(),
            inputs: self.inputs.iter().map(|input| input.slice(start, count)).collect(),
            count,
            merge: self.merge,
            emitted: self.emitted,
        }
    }

    fn payload_bytes(&self) -> usize {
        let inputs = self.inputs.iter().flat_map(|input| &input.values);
        self.keys.iter().chain(inputs).map(payload_bytes).sum()
    }
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
            room: 0,
            emitted: 0,
            adaptive,
            spilled: None,
            depth: 0,
        })
    }

    /// Takes a batch.
    ///
    /// # Errors
    /// When an expression or function fails, or the disk when groups are spilled.
    pub(super) fn on_batch(&mut self, batch: &Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let rows = Rows {
            keys: evaluate_all(&self.group_by, batch)?,
            inputs: self.inputs.evaluate(batch)?,
            count: batch.num_rows(),
            merge: self.mode == AggregateMode::Final,
            emitted: false,
        };
        if matches!(self.adaptive, Adaptive::Passing) {
            return self.pass(rows, out);
        }
        self.give_way(cx, out)?;
        self.take_rows(&rows, 0, cx, out)?;
        self.adapt(&rows, cx, out)
    }

    /// Hands on what is left.
    ///
    /// # Errors
    /// When a function, the consumer or the disk fails, or one group does not fit the budget.
    pub(super) fn on_end(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let mut waiting = self.end_of_input(cx, out)?;
        while let Some(partition) = waiting.pop() {
            if out.is_done() {
                break;
            }
            self.depth = partition.depth;
            self.merge_partition(&partition, cx, out)?;
            drop(partition);
            waiting.extend(self.end_of_input(cx, out)?);
        }
        Ok(())
    }

    /// What is in the table is complete: hands it on, unless other parts of it are on disk.
    fn end_of_input(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<Vec<Partition>> {
        if self.spilled.is_none() {
            self.let_go(cx, out)?;
            return Ok(Vec::new());
        }
        self.spill(cx, out)?;
        cx.hold(0)?;
        self.spilled.take().map_or(Ok(Vec::new()), Partitions::finish)
    }

    fn merge_partition(&mut self, partition: &Partition, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let mut reader = partition.file.open()?;
        loop {
            cx.cancel.check()?;
            let block_bytes = reader.next_block_bytes();
            let Some(block) = reader.next() else {
                return Ok(());
            };
            let block = block?;
            self.give_way(cx, out)?;
            let columns = block.columns();
            let (keys, states) = columns.split_at(self.group_by.len());
            let mut rows = Rows {
                keys: keys.to_vec(),
                inputs: self.accumulators.state_inputs(states),
                count: block.num_rows(),
                merge: true,
                emitted: false,
            };
            if self.distinct_only {
                // Those that have been handed on come first, in the block and in the file.
                let count = states[0].as_boolean().true_count();
                let mut emitted = rows.slice(0, count);
                emitted.emitted = true;
                self.take_rows(&emitted, block_bytes, cx, out)?;
                rows = rows.slice(count, rows.count - count);
            }
            self.take_rows(&rows, block_bytes, cx, out)?;
        }
    }

    /// Groups rows, piece by piece when memory is short. The rows themselves have `beside` bytes to be booked.
    fn take_rows(&mut self, rows: &Rows, beside: usize, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if rows.count == 0 {
            return Ok(());
        }
        let more = self.growth(rows) + beside;
        if let Err(refused) = self.book(more, cx) {
            if rows.count > PIECE_ROWS_MIN || (rows.count > 1 && rows.payload_bytes() > LITTLE_BYTES) {
                let half = rows.count / 2;
                self.take_rows(&rows.slice(0, half), beside, cx, out)?;
                return self.take_rows(&rows.slice(half, rows.count - half), beside, cx, out);
            }
            self.make_room(refused, more, cx, out)?;
        }
        self.number(rows, cx, out)?;
        let total = self.table.len();
        if rows.merge {
            self.accumulators.merge(&rows.inputs, &self.groups, total)?;
        } else {
            self.accumulators.update(&rows.inputs, &self.groups, total)?;
        }
        if total > self.room {
            self.room = total.max(2 * self.room);
        }
        if rows.emitted {
            self.emitted = total;
        } else if self.distinct_only && self.spilled.is_none() && total - self.emitted >= cx.batch_size {
            self.emit_keys(cx, out)?;
        }
        match self.book(beside, cx) {
            Err(refused) => self.make_room(refused, beside, cx, out),
            booked => booked,
        }
    }

    /// Puts the number of each row's group into `groups`.
    fn number(&mut self, rows: &Rows, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if self.table.intern(&rows.keys, &mut self.groups)? {
            return Ok(());
        }
        // The table's keys, the arrays that they are copied through, and those of the wider table.
        if let Err(refused) = self.book(3 * self.table.size(), cx) {
            self.make_room(refused, 0, cx, out)?;
        }
        self.table.intern_wider(&rows.keys, &mut self.groups)
    }

    /// Bytes held.
    fn held(&self) -> usize {
        self.table.size() + self.accumulators.size() + self.groups.capacity() * size_of::<usize>()
    }

    /// Bytes that these rows may add.
    fn growth(&self, rows: &Rows) -> usize {
        let doubled = if self.room > 0 && self.table.len() + rows.count > self.room {
            self.accumulators.size()
        } else {
            0
        };
        let groups = rows.count.saturating_sub(self.groups.capacity()) * size_of::<usize>();
        self.table.growth(&rows.keys) + self.accumulators.growth(&rows.inputs) + doubled + groups
    }

    /// Books what is held, what it takes to let go of it, and `more`.
    fn book(&self, more: usize, cx: &mut Context) -> Result<()> {
        let held = self.held();
        cx.hold(held + held / LEAVING_PART + more)
    }

    /// Lets go of the groups, as `more` was refused; books it in any case, unless one group is too large.
    fn make_room(
        &mut self,
        refused: EngineError,
        more: usize,
        cx: &mut Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        if self.table.len() > 0 && self.held() > LITTLE_BYTES {
            if self.is_stuck() {
                let share = cx.memory.share_bytes();
                if self.held() > share + share / 4 {
                    return Err(refused);
                }
            } else {
                match self.release(cx, out) {
                    // There is no way to ask a function but to try.
                    Err(EngineError::DataFusion(DataFusionError::NotImplemented(_))) => return Err(refused),
                    released => released?,
                }
            }
        }
        if self.book(more, cx).is_err() {
            cx.hold_anyway(self.held() + more);
        }
        Ok(())
    }

    /// Whether spilling the groups and merging them again would not get anywhere.
    fn is_stuck(&self) -> bool {
        self.depth >= DEPTH_MAX || (self.depth > 0 && self.table.len() <= 1)
    }

    /// Lets go of the groups when others need the memory.
    fn give_way(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if cx.memory.must_spill() && self.held() > LITTLE_BYTES && !self.is_stuck() {
            return self.release(cx, out);
        }
        Ok(())
    }

    fn release(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        match self.mode {
            AggregateMode::Partial => self.let_go(cx, out),
            AggregateMode::Final | AggregateMode::Single => self.spill(cx, out),
        }
    }

    /// Writes all groups to the partitions and forgets them.
    fn spill(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let total = self.table.len();
        if total == 0 {
            return self.forget(cx);
        }
        if self.distinct_only && self.spilled.is_none() {
            self.emit_range(self.emitted..total, &[], cx, out)?;
            self.emitted = total;
        }
        let mut partitions = match self.spilled.take() {
            Some(partitions) => partitions,
            None => {
                let schema = spill_schema(&self.table, &self.accumulators, self.distinct_only);
                Partitions::new(schema, self.group_by.len(), self.depth + 1, cx)
            }
        };
        let slice_bytes = (self.held() / LEAVING_PART).max(LITTLE_BYTES);
        let slice_rows = slice_rows(total, self.held(), slice_bytes).min(self.accumulators.rows_within(slice_bytes));
        let mut outflow = self.accumulators.begin(Take::States, total, slice_bytes)?;
        let mut start = 0;
        while start < total {
            let range = self.leaving(start..total, slice_rows, slice_bytes);
            let mut columns = self.table.emit_keys(range.clone())?;
            columns.extend(self.accumulators.next(&mut outflow, range.len())?);
            if self.distinct_only {
                let emitted = range.clone().map(|group| Some(group < self.emitted));
                columns.push(Arc::new(BooleanArray::from_iter(emitted)));
            }
            partitions.write(&columns, range.len(), cx)?;
            start = range.end;
        }
        self.spilled = Some(partitions);
        self.forget(cx)
    }

    fn forget(&mut self, cx: &mut Context) -> Result<()> {
        self.table.clear()?;
        self.accumulators.reset()?;
        self.groups = Vec::new();
        self.room = 0;
        self.emitted = 0;
        cx.hold(0)
    }

    /// The groups that leave next, of those in `range`: at most `rows` whose keys take no more than `bytes`, but one.
    fn leaving(&self, range: Range<usize>, rows: usize, bytes: usize) -> Range<usize> {
        let mut count = range.len().min(rows);
        while count > 1 && self.table.bytes_in(range.start..range.start + count) > bytes {
            count /= 2;
        }
        range.start..range.start + count
    }

    /// Once enough rows have come, decides whether to go on grouping.
    fn adapt(&mut self, taken: &Rows, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let Adaptive::Grouping { rows, released } = &mut self.adaptive else {
            return Ok(());
        };
        *rows += taken.count;
        if *rows < PROBE_ROWS || ((*released + self.table.len()) as f64) <= PASS_RATIO * *rows as f64 {
            return Ok(());
        }
        match self.accumulators.convert(&taken.inputs) {
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
    fn pass(&self, rows: Rows, out: &mut dyn Collector) -> Result<()> {
        let mut columns = self.table.declared(rows.keys)?;
        columns.extend(self.accumulators.convert(&rows.inputs)?);
        out.collect(self.batch_of(columns, rows.count)?)
    }

    /// Hands on all groups and forgets them.
    fn let_go(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let total = self.table.len();
        if self.distinct_only {
            self.emit_keys(cx, out)?;
            self.emit_range(self.emitted..total, &[], cx, out)?;
        } else if total > 0 {
            self.emit_all(cx, out)?;
        }
        self.forget(cx)?;
        if let Adaptive::Grouping { released, .. } = &mut self.adaptive {
            *released += total;
        }
        Ok(())
    }

    fn emit_all(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let take = match self.mode {
            AggregateMode::Partial => Take::States,
            AggregateMode::Final | AggregateMode::Single => Take::Results,
        };
        let (total, large_bytes) = (self.table.len(), large_bytes(cx));
        let mut outflow = self.accumulators.begin(take, total, large_bytes)?;
        let rows = if outflow.is_wide() {
            slice_rows(total, self.held(), large_bytes).min(self.accumulators.rows_within(large_bytes))
        } else {
            total
        };
        let mut start = 0;
        while start < total && !out.is_done() {
            let end = (start + rows).min(total);
            let columns = self.accumulators.next(&mut outflow, end - start)?;
            self.emit_range(start..end, &columns, cx, out)?;
            start = end;
        }
        Ok(())
    }

    /// Hands on, in full batches, the groups that have not been.
    fn emit_keys(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let waiting = self.table.len() - self.emitted;
        let end = self.emitted + waiting / cx.batch_size * cx.batch_size;
        self.emit_range(self.emitted..end, &[], cx, out)?;
        self.emitted = end;
        Ok(())
    }

    /// Hands on a range of groups with their columns, in batches of no more rows and bytes than is good.
    fn emit_range(
        &self,
        range: Range<usize>,
        columns: &[ArrayRef],
        cx: &mut Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let large_bytes = large_bytes(cx);
        let wide = columns.iter().map(slice_bytes).sum::<usize>() > large_bytes;
        let mut start = range.start;
        while start < range.end && !out.is_done() {
            cx.cancel.check()?;
            let mut part = self.leaving(start..range.end, cx.batch_size, large_bytes);
            let sliced = |part: &Range<usize>| -> Vec<ArrayRef> {
                let at = part.start - range.start;
                columns.iter().map(|column| column.slice(at, part.len())).collect()
            };
            let mut values = sliced(&part);
            while wide && part.len() > 1 && values.iter().map(payload_bytes).sum::<usize>() > large_bytes {
                part.end = part.start + part.len() / 2;
                values = sliced(&part);
            }
            if wide {
                values = values.into_iter().map(compact).collect::<Result<_>>()?;
            }
            let mut emitted = self.table.emit(part.clone())?;
            emitted.extend(values);
            out.collect(self.batch_of(emitted, part.len())?)?;
            start = part.end;
        }
        Ok(())
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

/// What an output batch, and a function's results on their way there, may take.
fn large_bytes(cx: &Context) -> usize {
    (cx.memory.share_bytes() / LEAVING_PART).max(LITTLE_BYTES)
}

/// Rows of a slice of about `slice_bytes` of `total` groups that take `bytes`.
fn slice_rows(total: usize, bytes: usize, slice_bytes: usize) -> usize {
    total.div_ceil(bytes.div_ceil(slice_bytes).clamp(1, SLICES_MAX)).max(1)
}
