//! The last resort of a join on disk: as many build rows as fit are loaded, the whole probe file passes by, and so on
//! with the next build rows.
//!
//! That is right for joins that emit pairs only, or build rows by what they matched: such a row meets every probe row
//! while it is in memory. Joins that emit probe rows by what they matched are turned around first, and a full join is a
//! left join and what of the probe side is left over.

use arrow::array::ArrayRef;
use datafusion::common::JoinType;
use thalweg_memory::{Reservation, SpillFile, SpillReader};

use crate::data::{Batch, Result};
use crate::operator::hash_join::build::{Collected, ROWS_MAX};
use crate::operator::hash_join::narrow::mirror;
use crate::operator::hash_join::output::{Layout, Output};
use crate::operator::{Collector, Context};
use crate::plan::HashJoinSpec;

/// How build rows in memory are joined with probe rows: by hash, or each with each.
pub(in crate::operator) trait Method: Sized {
    /// Build rows, ready to be joined.
    type Prober;

    /// The method for the join that `spec` says.
    fn of(spec: &HashJoinSpec) -> Result<Self>;

    /// What is computed from build rows and kept beside them.
    fn keys(&self, spec: &HashJoinSpec, batch: &Batch) -> Result<Vec<ArrayRef>>;

    /// Bytes needed for `rows` build rows besides themselves.
    fn table_bytes(&self, rows: usize) -> usize;

    /// Makes build rows ready; what that takes is booked, and what the prober takes is so in the end.
    fn build(&self, spec: &HashJoinSpec, collected: Collected, cx: &mut Context) -> Result<Self::Prober>;

    /// Joins one probe batch.
    fn join(
        &self,
        spec: &HashJoinSpec,
        prober: &mut Self::Prober,
        batch: &Batch,
        output: &mut Output,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()>;

    /// All probe rows have passed: hands on the build rows that wait for that.
    fn finish(
        &self,
        spec: &HashJoinSpec,
        prober: Self::Prober,
        output: &mut Output,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()>;
}

/// Joins two files in the narrow form of `spec`.
///
/// # Errors
/// When reading, a kernel or the consumer fails.
pub(in crate::operator) fn block_wise<M: Method>(
    spec: &HashJoinSpec,
    build: &SpillFile,
    probe: &SpillFile,
    cx: &mut Context,
    out: &mut dyn Collector,
) -> Result<()> {
    let turn = match spec.join_type {
        // Fewer passes, and over as much.
        JoinType::Inner => probe.bytes() < build.bytes(),
        JoinType::Left | JoinType::Full | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => false,
        JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => true,
    };
    let mirrored = mirror(spec);
    let (spec, other, build, probe) = if turn {
        (&mirrored, spec, probe, build)
    } else {
        (spec, &mirrored, build, probe)
    };
    let as_type = |spec: &HashJoinSpec, join_type| HashJoinSpec {
        join_type,
        ..spec.clone()
    };
    let whole = spec;
    if spec.join_type != JoinType::Full {
        return chunks::<M>(spec, whole, Layout::of(spec)?, build, probe, cx, out).map(drop);
    }
    let left = as_type(spec, JoinType::Left);
    if chunks::<M>(&left, whole, Layout::of(spec)?, build, probe, cx, out)? {
        return Ok(());
    }
    // What is left of the probe side: the rows that nothing matches when it is the build side, in the layout of the
    // full join and so beside NULLs.
    let anti = as_type(other, JoinType::LeftAnti);
    chunks::<M>(&anti, &anti, Layout::of(other)?, probe, build, cx, out).map(drop)
}

/// Joins the build rows chunk by chunk as `spec` says; as `whole` says when there is one chunk, which is told.
fn chunks<M: Method>(
    spec: &HashJoinSpec,
    whole: &HashJoinSpec,
    layout: Layout,
    build: &SpillFile,
    probe: &SpillFile,
    cx: &mut Context,
    out: &mut dyn Collector,
) -> Result<bool> {
    let method = M::of(spec)?;
    let kept = layout.build_columns(spec.filter.as_ref());
    let mut output = Output::detached(layout);
    let mut blocks = Blocks::open(build, cx)?;
    let (mut is_first, mut is_whole) = (true, false);
    while (blocks.next_bytes() > 0 || is_first) && !out.is_done() {
        // One probe block is read at a time, and the budget must have a place for it.
        let mut probe = Blocks::open(probe, cx)?;
        probe.book_largest();
        let collected = Collected::new(spec.build_schema.0.clone(), kept.clone(), spec.build_keys.len());
        let collected = load(&method, spec, &mut blocks, collected, cx)?;
        is_whole = is_first && blocks.next_bytes() == 0;
        is_first = false;
        let spec = if is_whole { whole } else { spec };
        let mut prober = method.build(spec, collected, cx)?;
        while let Some(batch) = probe.next()? {
            cx.cancel.check()?;
            method.join(spec, &mut prober, &batch, &mut output, cx, out)?;
            if out.is_done() {
                return Ok(true);
            }
        }
        drop(probe);
        method.finish(spec, prober, &mut output, cx, out)?;
        cx.hold(0)?;
    }
    output.finish(out)?;
    Ok(is_whole)
}

/// Loads as many rows as fit, at least one block, and books what making them ready takes besides.
fn load<M: Method>(
    method: &M,
    spec: &HashJoinSpec,
    blocks: &mut Blocks,
    mut collected: Collected,
    cx: &mut Context,
) -> Result<Collected> {
    while blocks.next_bytes() > 0 {
        cx.cancel.check()?;
        let (next, rows) = (blocks.next_bytes(), collected.rows());
        if rows > 0 {
            // The next block is taken to have rows like those before it; its columns are copied once more.
            let more = next as u128 * rows as u128 / collected.bytes().max(1) as u128;
            let rows = rows + more as usize + 1;
            let wanted = collected.bytes_to_build(method.table_bytes(rows)) + 3 * next;
            if rows >= ROWS_MAX || cx.hold(wanted).is_err() {
                break;
            }
        }
        let Some(batch) = blocks.next()? else { break };
        let keys = method.keys(spec, &batch)?;
        collected.add(&batch, keys);
        blocks.forget();
    }
    cx.hold_anyway(collected.bytes_to_build(method.table_bytes(collected.rows())));
    Ok(collected)
}

/// Reads a file block by block and books the block at hand.
pub(super) struct Blocks {
    reader: SpillReader,
    /// Pinned: one block is all that it ever holds.
    memory: Reservation,
    largest_bytes: usize,
    booked_bytes: usize,
}

impl Blocks {
    /// The blocks of `file`.
    pub(super) fn open(file: &SpillFile, cx: &Context) -> Result<Self> {
        Ok(Self {
            reader: file.open()?,
            memory: cx.memory.pinned_sibling(),
            largest_bytes: file.largest_block_bytes() as usize,
            booked_bytes: 0,
        })
    }

    /// Books the largest block from now on, whichever is at hand.
    fn book_largest(&mut self) {
        self.booked_bytes = self.largest_bytes;
        self.memory.resize(self.booked_bytes);
    }

    /// Bytes of the next block; 0 at the end.
    fn next_bytes(&self) -> usize {
        self.reader.next_block_bytes()
    }

    /// The next block; the one before must be gone.
    pub(super) fn next(&mut self) -> Result<Option<Batch>> {
        self.memory.resize(self.booked_bytes.max(self.next_bytes()));
        Ok(self.reader.next().transpose()?)
    }

    /// Somebody else books the block at hand.
    pub(super) fn forget(&mut self) {
        self.memory.resize(self.booked_bytes);
    }
}
