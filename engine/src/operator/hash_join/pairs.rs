//! Joining two spill files: what the hybrid hash join leaves for the end.
//!
//! A pair of files is a hash join of its own, built on the smaller file, and split again by another hash when that does
//! not fit. A key that too many rows share cannot be split: that pair is joined [block by block](super::block_wise).

use arrow::array::ArrayRef;
use thalweg_memory::SpillFile;

use crate::data::{Batch, EngineError, Result};
use crate::operator::hash_join::block_wise::{Blocks, Method, block_wise};
use crate::operator::hash_join::build::Collected;
use crate::operator::hash_join::keys::KeyShape;
use crate::operator::hash_join::marks::{keeps_unmatched_build, needs_build};
use crate::operator::hash_join::narrow::mirror;
use crate::operator::hash_join::output::Output;
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
    block_wise::<ByHash>(&smaller_spec, &pair.build, &pair.probe, &mut part, out)
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
    if out.is_done() {
        return Ok(());
    }
    join.on_end(port, cx, out)
}

/// The block-wise join by hash.
struct ByHash(KeyShape);

impl Method for ByHash {
    type Prober = Prober;

    fn of(spec: &HashJoinSpec) -> Result<Self> {
        Ok(Self(KeyShape::of(spec)?))
    }

    fn keys(&self, spec: &HashJoinSpec, batch: &Batch) -> Result<Vec<ArrayRef>> {
        self.0.evaluate(&spec.build_keys, batch)
    }

    fn table_bytes(&self, rows: usize) -> usize {
        self.0.table_bytes(rows)
    }

    fn build(&self, spec: &HashJoinSpec, collected: Collected, cx: &mut Context) -> Result<Prober> {
        Prober::build(spec, &self.0, collected, 0, cx)
    }

    fn join(
        &self,
        spec: &HashJoinSpec,
        prober: &mut Prober,
        batch: &Batch,
        output: &mut Output,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let keys = self.0.evaluate(&spec.probe_keys, batch)?;
        let keys = self.0.digest(&keys, batch.num_rows())?;
        prober.join(spec, batch, &keys, output, cx, out)
    }

    fn finish(
        &self,
        spec: &HashJoinSpec,
        prober: Prober,
        output: &mut Output,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        prober.finish(spec.join_type, output, cx, out)
    }
}
