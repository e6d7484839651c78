//! The full sort, external where it must be.
//!
//! Input is held as it comes, with one entry of 16 bytes a row (key prefix, batch, row). When the memory budget refuses
//! more, what is held is sorted and written to a spill file as a run; at the end the runs are merged. The payload is
//! gathered once per pass: when a run is written, and when the output is.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::utils::memory::RecordBatchMemoryCounter;

use crate::data::{Batch, EngineError, Result};
use crate::operator::sort::entries::{Entry, entry, place, sort_entries};
use crate::operator::sort::gather::Gather;
use crate::operator::sort::keys::{BatchKeys, KeyEncoder, Rest};
use crate::operator::sort::merge_runs::RunMerge;
use crate::operator::sort::ranges::Membership;
use crate::operator::sort::run::{BlockSize, KeyRange, MemoryRun, Run, RunWriter};
use crate::operator::{Collector, Context};
use crate::plan::SortKey;

/// At least so many runs are merged at once, however little memory there is.
const FAN_IN_MIN: usize = 2;
/// At most so many: more gain nothing, as a round would take few rows of each.
const FAN_IN_MAX: usize = 512;
/// An output batch may be so many blocks large: blocks of a small budget make small batches.
const OUTPUT_BLOCKS: usize = 4;

/// Sorts all input.
pub(in crate::operator) struct FullSort {
    keys: Vec<SortKey>,
    fetch: Option<usize>,
    encoder: Option<Arc<KeyEncoder>>,
    held: Held,
    runs: Vec<Run>,
    membership: Option<Membership>,
}

/// Input in memory.
#[derive(Default)]
struct Held {
    schema: Option<SchemaRef>,
    batches: Vec<Batch>,
    batch_bytes: RecordBatchMemoryCounter,
    rests: Vec<Rest>,
    rest_bytes: usize,
    /// Rows whose first key is not NULL.
    values: Vec<Entry>,
    nulls: Vec<Entry>,
}

impl FullSort {
    /// A sort by `keys` that emits the first `fetch` rows, or all.
    pub(super) fn new(keys: Vec<SortKey>, fetch: Option<usize>) -> Self {
        Self {
            keys,
            fetch,
            encoder: None,
            held: Held::default(),
            runs: Vec::new(),
            membership: None,
        }
    }

    /// One of several sorts that each emit one range of the keys of all.
    pub(super) fn sharing(keys: Vec<SortKey>, membership: Membership) -> Self {
        Self {
            membership: Some(membership),
            ..Self::new(keys, None)
        }
    }

    /// Takes a batch; spills what is held when it does not fit beside it.
    ///
    /// # Errors
    /// When a key fails or the disk does.
    pub(super) fn add(&mut self, batch: Batch, cx: &mut Context) -> Result<()> {
        let encoder = self.encoder(&batch.schema())?;
        let keys = encoder.encode(&batch)?;
        let mut wanted = self.held.count(&batch, &keys) + self.index_bytes();
        if !self.held.is_empty() && (cx.memory.must_spill() || cx.hold(wanted).is_err()) {
            self.spill(cx)?;
            wanted = self.held.count(&batch, &keys) + self.index_bytes();
        }
        // One batch must be held, or nothing would ever be sorted.
        cx.hold_anyway(wanted);
        self.held.push(batch, keys)?;
        cx.hold_anyway(self.held.bytes() + self.index_bytes());
        Ok(())
    }

    fn encoder(&mut self, schema: &SchemaRef) -> Result<Arc<KeyEncoder>> {
        if let Some(encoder) = &self.encoder {
            return Ok(Arc::clone(encoder));
        }
        let encoder = Arc::new(KeyEncoder::try_new(&self.keys, schema)?);
        self.held.schema = Some(Arc::clone(schema));
        Ok(Arc::clone(self.encoder.insert(encoder)))
    }

    /// Sorts what is held and writes it as a run.
    fn spill(&mut self, cx: &mut Context) -> Result<()> {
        let (Some(encoder), Some(schema)) = (self.encoder.clone(), self.held.schema.clone()) else {
            return Ok(());
        };
        let block = BlockSize::for_share(cx.memory.share_bytes());
        let held_bytes = self.held.bytes();
        cx.hold_anyway(held_bytes + block.bytes());
        let mut writer = RunWriter::new(cx.spill.create(Arc::clone(&schema))?);
        let (order, gather) = self.held.sorted(&encoder, false, cx)?;
        let block_rows = block.rows(order.len(), gather.row_bytes() * order.len());
        let mut places = Vec::with_capacity(block_rows.min(order.len()));
        for entries in order.chunks(block_rows) {
            cx.cancel.check()?;
            places.clear();
            places.extend(entries.iter().map(|entry| place(*entry)));
            writer.write(gather.take(&places)?, &encoder, cx)?;
        }
        self.runs.push(Run::Spilled(writer.finish()?));
        drop(gather);
        self.held.recycle(order);
        cx.hold_anyway(self.held.bytes() + self.index_bytes());
        Ok(())
    }

    fn index_bytes(&self) -> usize {
        self.runs.iter().map(Run::index_bytes).sum()
    }

    /// Emits everything in order.
    ///
    /// # Errors
    /// When the disk or the consumer fails.
    pub(super) fn finish(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if self.runs.is_empty() && self.membership.is_none() {
            return self.finish_in_memory(cx, out);
        }
        let block = BlockSize::for_share(cx.memory.share_bytes());
        let subtasks = self.membership.as_ref().map_or(1, |_| cx.parallelism);
        self.reduce_runs(block, subtasks, cx)?;
        self.close_held(block, cx)?;
        let runs = std::mem::take(&mut self.runs);
        let Some(mut membership) = self.membership.take() else {
            let Some(encoder) = self.encoder.take() else {
                return Ok(());
            };
            let runs: Vec<Owned> = runs.into_iter().map(Owned).collect();
            return self.emit(RunMerge::new(runs, &KeyRange::default(), &encoder)?, block, cx, out);
        };
        let runs = membership.exchange(runs, &cx.cancel)?;
        let Some(first) = runs.first() else { return Ok(()) };
        // A subtask that has seen no rows merges its range all the same.
        let encoder = self.encoder(first.as_ref().schema())?;
        if let Some(range) = membership.range(&runs, &encoder) {
            self.emit(RunMerge::new(runs, &range, &encoder)?, block, cx, out)?;
        }
        membership.leave();
        Ok(())
    }

    fn emit<R: AsRef<Run>>(
        &self,
        merge: RunMerge<R>,
        block: BlockSize,
        cx: &mut Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let mut left = self.fetch.unwrap_or(usize::MAX);
        let output = block.times(OUTPUT_BLOCKS);
        merge.run(cx.batch_size, output, cx, &mut |batch, _| {
            let rows = batch.num_rows().min(left);
            left -= rows;
            if rows > 0 {
                out.collect(if rows < batch.num_rows() {
                    batch.slice(0, rows)
                } else {
                    batch
                })?;
            }
            Ok(left > 0 && !out.is_done())
        })
    }

    /// Merges the runs until so few are left that one block of each fits into memory at the last merge, in which all
    /// `subtasks` take part.
    fn reduce_runs(&mut self, block: BlockSize, subtasks: usize, cx: &mut Context) -> Result<()> {
        let Some(encoder) = self.encoder.clone() else {
            return Ok(());
        };
        loop {
            let largest = self
                .runs
                .iter()
                .map(Run::block_bytes)
                .max()
                .unwrap_or(0)
                .max(block.bytes());
            // Keys and entries take about as much again.
            let fan_in = (cx.memory.share_bytes() / (2 * largest)).clamp(FAN_IN_MIN, FAN_IN_MAX);
            let most = (fan_in / subtasks).max(FAN_IN_MIN);
            if self.runs.len() <= most {
                return Ok(());
            }
            // What is held would only make the merge harder.
            if !self.held.is_empty() {
                self.spill(cx)?;
                continue;
            }
            // The shortest first; no more than what brings the number down to the most.
            self.runs.sort_by_key(|run| std::cmp::Reverse(run.len()));
            let count = fan_in.min(self.runs.len() - most + 1).max(FAN_IN_MIN);
            let merged = self.runs.split_off(self.runs.len() - count);
            let run = Self::merge_to_run(merged, block, &encoder, cx)?;
            self.runs.push(run);
        }
    }

    fn merge_to_run(runs: Vec<Run>, block: BlockSize, encoder: &KeyEncoder, cx: &mut Context) -> Result<Run> {
        let Some(schema) = runs.first().map(|run| Arc::clone(run.schema())) else {
            return Err(EngineError::Internal("there are no runs to merge".into()));
        };
        let mut writer = RunWriter::new(cx.spill.create(schema)?);
        let runs: Vec<Owned> = runs.into_iter().map(Owned).collect();
        let merge = RunMerge::new(runs, &KeyRange::default(), encoder)?;
        merge.run(usize::MAX, block, cx, &mut |batch, cx| {
            writer.write(batch, encoder, cx)?;
            Ok(true)
        })?;
        Ok(Run::Spilled(writer.finish()?))
    }

    /// What is held becomes the last run: in memory if the merge finds room beside it, otherwise on disk.
    fn close_held(&mut self, block: BlockSize, cx: &mut Context) -> Result<()> {
        if self.held.is_empty() {
            self.held = Held::default();
            cx.hold_anyway(self.index_bytes());
            return Ok(());
        }
        let merge_bytes: usize = self.runs.iter().map(|run| 2 * run.block_bytes()).sum();
        let held_bytes = self.held.bytes();
        let room = held_bytes + merge_bytes + (OUTPUT_BLOCKS + 2) * block.bytes();
        if !self.runs.is_empty() && (cx.memory.must_spill() || cx.hold(room).is_err()) {
            self.spill(cx)?;
            self.held = Held::default();
            cx.hold_anyway(self.index_bytes());
            return Ok(());
        }
        let Some(encoder) = self.encoder.clone() else {
            return Ok(());
        };
        let (order, gather) = self.held.sorted(&encoder, false, cx)?;
        let block_rows = block.rows(order.len(), gather.row_bytes() * order.len());
        let sample: Vec<(usize, usize)> = order.iter().step_by(block_rows).map(|entry| place(*entry)).collect();
        let mut firsts = Vec::with_capacity(sample.len());
        for places in sample.chunks(block_rows) {
            let keys = encoder.encode(&gather.take(places)?)?;
            firsts.extend((0..places.len()).map(|row| keys.owned(row)));
        }
        self.held = Held::default();
        let mut memory = cx.memory.pinned_sibling();
        cx.hold_anyway(0);
        memory.grow(held_bytes);
        self.runs.push(Run::Memory(MemoryRun {
            gather,
            order,
            block_rows,
            firsts,
            _memory: memory,
        }));
        Ok(())
    }

    fn finish_in_memory(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let Some(encoder) = self.encoder.take().filter(|_| !self.held.is_empty()) else {
            return Ok(());
        };
        let (rows, bytes) = (self.held.rows(), self.held.bytes());
        let (order, gather) = self.held.sorted(&encoder, true, cx)?;
        let output = BlockSize::for_share(cx.memory.share_bytes()).times(OUTPUT_BLOCKS);
        let batch_rows = cx.batch_size.min(output.rows(rows, bytes));
        let wanted = self.fetch.unwrap_or(usize::MAX).min(order.len());
        let mut places = Vec::with_capacity(batch_rows);
        for entries in order[..wanted].chunks(batch_rows) {
            cx.cancel.check()?;
            places.clear();
            places.extend(entries.iter().map(|entry| place(*entry)));
            out.collect(gather.take(&places)?)?;
            if out.is_done() {
                break;
            }
        }
        Ok(())
    }
}

/// A run of this sort alone.
struct Owned(Run);

impl AsRef<Run> for Owned {
    fn as_ref(&self) -> &Run {
        &self.0
    }
}

impl Held {
    fn is_empty(&self) -> bool {
        self.batches.is_empty()
    }

    fn rows(&self) -> usize {
        self.values.len() + self.nulls.len()
    }

    /// Bytes of what is held.
    fn bytes(&self) -> usize {
        let entries = (self.values.capacity() + self.nulls.capacity()) * size_of::<Entry>();
        self.batch_bytes.memory_usage() + self.rest_bytes + entries
    }

    /// Counts a batch that is about to be pushed; gives the bytes held with it, those included that are free again
    /// once it is: a vector that grows exists twice.
    fn count(&mut self, batch: &Batch, keys: &BatchKeys) -> usize {
        self.batch_bytes.count_batch(batch);
        let needed = self.values.len() + batch.num_rows();
        let grown = if needed > self.values.capacity() {
            needed.max(self.values.capacity() * 2) * size_of::<Entry>()
        } else {
            0
        };
        self.bytes() + keys.byte_size() + grown
    }

    fn push(&mut self, batch: Batch, keys: BatchKeys) -> Result<()> {
        let (Ok(number), Ok(row_count)) = (u32::try_from(self.batches.len()), u32::try_from(batch.num_rows())) else {
            return Err(EngineError::Plan(
                "a sort holds at most 2^32 batches of 2^32 rows".into(),
            ));
        };
        let BatchKeys { head, rest } = keys;
        self.rest_bytes += rest.byte_size();
        let needed = self.values.len() + batch.num_rows();
        if needed > self.values.capacity() {
            let capacity = needed.max(self.values.capacity() * 2);
            self.values.reserve_exact(capacity - self.values.len());
        }
        for (row, prefix) in (0..row_count).zip(head.prefixes()) {
            let entry = entry(*prefix, number, row);
            if head.is_null(row as usize) {
                self.nulls.push(entry)
            } else {
                self.values.push(entry)
            }
        }
        self.rests.push(rest);
        self.batches.push(batch);
        Ok(())
    }

    /// All rows in order, and what to gather them from; nothing is held any more.
    fn sorted(&mut self, encoder: &KeyEncoder, may_join: bool, cx: &mut Context) -> Result<(Vec<Entry>, Gather)> {
        let Some(schema) = self.schema.clone() else {
            return Err(EngineError::Internal("a sort without input has no order".into()));
        };
        let batch_bytes = self.batch_bytes.memory_usage();
        let rests = std::mem::take(&mut self.rests);
        let refs: Vec<&Rest> = rests.iter().collect();
        let mut values = std::mem::take(&mut self.values);
        let mut nulls = std::mem::take(&mut self.nulls);
        sort_entries(&mut values, &refs);
        cx.cancel.check()?;
        // NULLs of an only key are all equal, and what lies behind them means nothing.
        if refs.first().is_some_and(|rest| matches!(rest, Rest::Rows(_))) {
            sort_entries(&mut nulls, &refs);
        }
        drop(refs);
        drop(rests);
        cx.memory.shrink(std::mem::take(&mut self.rest_bytes));
        let order = if encoder.nulls_first() && !nulls.is_empty() {
            nulls.append(&mut values);
            nulls
        } else {
            values.append(&mut nulls);
            values
        };
        self.batch_bytes = RecordBatchMemoryCounter::new();
        let gather = Gather::new(schema, std::mem::take(&mut self.batches), batch_bytes, may_join, cx)?;
        Ok((order, gather))
    }

    /// Takes the memory of sorted entries back for the next ones: it has been touched already.
    fn recycle(&mut self, mut order: Vec<Entry>) {
        order.clear();
        self.values = order;
    }
}
