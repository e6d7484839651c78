//! Joining two spill files: what the hybrid hash join leaves for the end.
//!
//! A pair of files is a hash join of its own, built on the smaller file, and split again by another hash when that does
//! not fit. A key that too many rows share cannot be split: then as many build rows as fit are loaded, all of the probe
//! file passes by, and so on block by block. That is right for the joins that keep or mark build rows; the others are
//! turned around first.

use datafusion::common::JoinType;
use thalweg_memory::{Reservation, SpillFile, SpillReader};

use crate::data::{Batch, EngineError, Result};
use crate::operator::hash_join::build::Collected;
use crate::operator::hash_join::keys::KeyShape;
use crate::operator::hash_join::marks::{keeps_unmatched_build, needs_build};
use crate::operator::hash_join::narrow::mirror;
use crate::operator::hash_join::output::{Layout, Output};
use crate::operator::hash_join::probe::Prober;
use crate::operator::hash_join::{BUILD, HashJoin};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::HashJoinSpec;

/// A pair is split so many times at most.
const DEPTH_MAX: usize = 5;

/// Files up to this size are not split: their blocks would be tiny.
const SPLIT_BYTES_MIN: u64 = 16 * 1024;

/// One partition on disk.
pub(super) struct Pair {
    pub(super) build: SpillFile,
    pub(super) probe: SpillFile,
    /// Most of its build rows share one key, for all one knows: splitting it once more would not help.
    pub(super) hot: bool,
}

impl Pair {
    fn mirrored(self) -> Self {
        Self {
            build: self.probe,
            probe: self.build,
            hot: self.hot,
        }
    }
}

/// Joins a pair of files in the narrow form of `spec`, which a join at `depth` left.
///
/// # Errors
/// When reading, a kernel or the consumer fails.
pub(super) fn join_pair(
    spec: &HashJoinSpec,
    pair: Pair,
    depth: usize,
    cx: &Context,
    out: &mut dyn Collector,
) -> Result<()> {
    cx.cancel.check()?;
    let no_output = (pair.probe.rows() == 0 && !keeps_unmatched_build(spec.join_type))
        || (pair.build.rows() == 0 && needs_build(spec.join_type));
    if no_output || out.is_done() {
        return Ok(());
    }
    let (smaller_spec, pair) = if pair.probe.bytes() < pair.build.bytes() {
        (mirror(spec), pair.mirrored())
    } else {
        (spec.clone(), pair)
    };
    let mut part = cx.part();
    let splits = !pair.hot && depth < DEPTH_MAX && pair.build.bytes() > SPLIT_BYTES_MIN;
    // What seems to fit may not, and is then split in vain, so that ends too.
    let fits = || Ok::<_, EngineError>(depth < DEPTH_MAX && fits(&smaller_spec, &pair.build, cx)?);
    if splits || fits()? {
        let mut join = HashJoin::nested(smaller_spec, depth + 1, Some(pair.build.bytes()))?;
        feed(&mut join, BUILD, pair.build, &mut part, out)?;
        return feed(&mut join, 1, pair.probe, &mut part, out);
    }
    block_wise(smaller_spec, pair, &mut part, out)
}

/// Whether a table over `build` fits into our share.
fn fits(spec: &HashJoinSpec, build: &SpillFile, cx: &Context) -> Result<bool> {
    let table_bytes = KeyShape::of(spec)?.table_bytes(build.rows() as usize);
    let bytes = build.bytes() + build.bytes() / 2 + table_bytes as u64;
    Ok(build.rows() < u64::from(u32::MAX) && bytes <= cx.memory.share_bytes() as u64)
}

fn feed(join: &mut HashJoin, port: Port, file: SpillFile, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
    let mut blocks = Blocks::open(&file, cx)?;
    // The file goes away as soon as it is read.
    drop(file);
    while !join.is_done() && !out.is_done() {
        cx.cancel.check()?;
        let Some(batch) = blocks.next()? else { break };
        if port == BUILD {
            // The join books it now.
            blocks.forget();
        }
        join.on_batch(port, batch, cx, out)?;
    }
    drop(blocks);
    join.on_end(port, cx, out)
}

/// Reads a file block by block and books the block at hand.
pub(in crate::operator) struct Blocks {
    reader: SpillReader,
    /// Pinned: one block is all that it ever holds.
    memory: Reservation,
}

impl Blocks {
    /// The blocks of `file`.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub(in crate::operator) fn open(file: &SpillFile, cx: &Context) -> Result<Self> {
        Ok(Self {
            reader: file.open()?,
            memory: cx.memory.pinned_sibling(),
        })
    }

    /// Bytes of the next block; 0 at the end.
    pub(in crate::operator) fn next_bytes(&self) -> usize {
        self.reader.next_block_bytes()
    }

    /// The next block; the one before must be gone.
    ///
    /// # Errors
    /// When reading fails.
    pub(in crate::operator) fn next(&mut self) -> Result<Option<Batch>> {
        self.memory.resize(self.reader.next_block_bytes());
        Ok(self.reader.next().transpose()?)
    }

    /// Somebody else books the block at hand.
    pub(in crate::operator) fn forget(&mut self) {
        self.memory.free();
    }
}

/// A join of two files, some build rows at a time.
fn block_wise(spec: HashJoinSpec, pair: Pair, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
    match spec.join_type {
        JoinType::Inner | JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => {
            chunks(&spec, Layout::of(&spec)?, &pair, cx, out)
        }
        JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => {
            let (spec, pair) = (mirror(&spec), pair.mirrored());
            chunks(&spec, Layout::of(&spec)?, &pair, cx, out)
        }
        JoinType::Full => {
            let left = HashJoinSpec {
                join_type: JoinType::Left,
                ..spec.clone()
            };
            chunks(&left, Layout::of(&spec)?, &pair, cx, out)?;
            // The probe rows without a match: the other way round only the rows that nothing matched come out, but in
            // the layout of the full join, so beside NULLs.
            let mirrored = mirror(&spec);
            let layout = Layout::of(&mirrored)?;
            let anti = HashJoinSpec {
                join_type: JoinType::LeftAnti,
                ..mirrored
            };
            chunks(&anti, layout, &pair.mirrored(), cx, out)
        }
    }
}

fn chunks(spec: &HashJoinSpec, layout: Layout, pair: &Pair, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
    let shape = KeyShape::of(spec)?;
    let kept = layout.build_columns(spec.filter.as_ref());
    let mut output = Output::new(layout);
    let mut build = Blocks::open(&pair.build, cx)?;
    while build.next_bytes() > 0 && !out.is_done() {
        let extra = |batch: &Batch| shape.evaluate(&spec.build_keys, batch);
        let collected = Collected::new(spec.build_schema.0.clone(), kept.clone(), spec.build_keys.len());
        let collected = load(&mut build, collected, extra, |rows| shape.table_bytes(rows), cx)?;
        let mut prober = Prober::build(spec, &shape, collected, 0, cx)?;
        let mut probe = Blocks::open(&pair.probe, cx)?;
        while let Some(batch) = probe.next()? {
            cx.cancel.check()?;
            let keys = shape.evaluate(&spec.probe_keys, &batch)?;
            let keys = shape.digest(&keys, batch.num_rows())?;
            prober.join(spec, &batch, &keys, &mut output, cx, out)?;
            if out.is_done() {
                return Ok(());
            }
        }
        drop(probe);
        prober.finish(spec.join_type, &mut output, cx, out)?;
        cx.hold(0)?;
    }
    output.finish(out)
}

/// Loads as many rows as fit, at least one block, and books what building a table takes besides.
pub(in crate::operator) fn load(
    blocks: &mut Blocks,
    mut collected: Collected,
    extra: impl Fn(&Batch) -> Result<Vec<arrow::array::ArrayRef>>,
    table_bytes: impl Fn(usize) -> usize,
    cx: &mut Context,
) -> Result<Collected> {
    while blocks.next_bytes() > 0 {
        cx.cancel.check()?;
        let (next, rows) = (blocks.next_bytes(), collected.rows());
        if rows > 0 {
            // The next block is taken to have rows like those before it; its columns are copied once more.
            let rows = rows + (next as u128 * rows as u128 / collected.bytes().max(1) as u128) as usize + 1;
            let wanted = collected.bytes_to_build(table_bytes(rows)) + 3 * next;
            if rows >= u32::MAX as usize || cx.hold(wanted).is_err() {
                break;
            }
        }
        let Some(batch) = blocks.next()? else { break };
        let extra = extra(&batch)?;
        collected.add(&batch, extra);
        blocks.forget();
    }
    cx.hold_anyway(collected.bytes_to_build(table_bytes(collected.rows())));
    Ok(collected)
}
