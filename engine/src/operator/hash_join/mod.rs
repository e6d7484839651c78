//! Hash join: input 0 is built into a table, then input 1 probes it.
//!
//! The build side is collected batch by batch, only the columns that the output or the residual condition needs. At
//! its end the table is built over all its keys, its size known, and the columns are joined into one array each, from
//! which output is gathered by row number. A probe batch is joined in three vectorized steps: keys to words
//! ([`keys`]), words to runs of matching build rows ([`table`]), runs to output ([`probe`], [`output`]).
//!
//! A build side that does not fit is split by a hash of its keys: what fits stays in memory, the rest goes to disk with
//! the probe rows that may match it ([`partitions`]), and each pair of files is a join of its own in the end ([`pairs`]),
//! over the columns that matter ([`narrow`]) and built on the smaller file. What cannot be split is joined block by block
//! ([`block_wise`]). A table that is being probed goes to disk when another operator needs the memory more ([`late`]).
//!
//! [`block_wise`], [`build`], [`marks`], [`narrow`] and [`output`] serve the nested loop join too.

pub(super) mod block_wise;
pub(super) mod build;
mod columns;
mod keys;
mod late;
pub(super) mod marks;
#[cfg(test)]
pub(super) mod naive;
pub(super) mod narrow;
pub(super) mod output;
mod pairs;
pub(super) mod partitions;
mod probe;
pub(super) mod radix;
mod slots;
#[cfg(test)]
mod spill_tests;
mod table;
#[cfg(test)]
mod tests;
mod widths;

use datafusion::common::{JoinType, ScalarValue};

use crate::data::{Batch, EngineError, Result};
use crate::operator::hash_join::build::Collected;
use crate::operator::hash_join::keys::KeyShape;
use crate::operator::hash_join::late::{Late, can_evict};
use crate::operator::hash_join::marks::{keeps_unmatched_build, needs_build};
use crate::operator::hash_join::narrow::Narrow;
use crate::operator::hash_join::output::{Layout, Output};
use crate::operator::hash_join::partitions::{BuildPartitions, ProbePartitions};
use crate::operator::hash_join::probe::Prober;
use crate::operator::runtime_filter::Publisher;
use crate::operator::{Collector, Context, Operator, Port, ReadNext};
use crate::plan::HashJoinSpec;

const BUILD: Port = 0;

/// Joins two inputs on equal keys.
pub(super) struct HashJoin {
    spec: HashJoinSpec,
    shape: KeyShape,
    phase: Phase,
    output: Output,
    /// How many joins have split the input before this one.
    depth: usize,
    /// Bytes of the build side, when it was spilled before.
    expected_bytes: Option<u64>,
    publisher: Publisher,
}

enum Phase {
    Build(Collected),
    /// The build side did not fit.
    Partition(Box<BuildPartitions>),
    Probe(Prober),
    /// Some of the build side is on disk.
    ProbePartitions(Box<ProbePartitions>),
    /// All of it is, since somewhere in mid-probe.
    Late(Box<Late>),
    /// Nothing more can come out.
    Done,
}

impl HashJoin {
    /// A join as `spec` says.
    ///
    /// # Errors
    /// When the spec contradicts itself.
    pub(super) fn new(spec: HashJoinSpec) -> Result<Self> {
        Self::nested(spec, 0, None)
    }

    /// A join of what `depth` joins before it have split, its build side of `expected_bytes`.
    fn nested(spec: HashJoinSpec, depth: usize, expected_bytes: Option<u64>) -> Result<Self> {
        if spec.build_keys.is_empty() || spec.build_keys.len() != spec.probe_keys.len() {
            return Err(EngineError::Internal(
                "a hash join needs as many probe keys as build keys, and one".into(),
            ));
        }
        let one_plain_key = spec.build_keys.len() == 1 && spec.filter.is_none() && !spec.null_equals_null;
        if spec.null_aware && !(spec.join_type == JoinType::RightAnti && one_plain_key) {
            return Err(EngineError::Internal(
                "a null-aware join is a RightAnti join on one key alone".into(),
            ));
        }
        let layout = Layout::of(&spec)?;
        Ok(Self {
            shape: KeyShape::of(&spec)?,
            phase: Phase::Build(Collected::of(&spec, &layout)),
            output: if depth > 0 {
                Output::detached(layout)
            } else {
                Output::new(layout)
            },
            publisher: Publisher::new(if depth == 0 { &spec.runtime_filters } else { &[] }),
            spec,
            depth,
            expected_bytes,
        })
    }

    /// Least and greatest build key, when there is one key of an integer-like type and the build side has ended: no
    /// probe row outside can match.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for filters pushed into the probe side's scan")
    )]
    pub(super) fn build_bounds(&self) -> Option<(ScalarValue, ScalarValue)> {
        let Phase::Probe(prober) = &self.phase else { return None };
        let (min, max) = prober.table.bounds?;
        let data_type = self.shape.only_type()?;
        let scalar = |word: i64| {
            let value = if data_type.is_unsigned_integer() {
                ScalarValue::UInt64(Some(word as u64))
            } else {
                ScalarValue::Int64(Some(word))
            };
            value.cast_to(data_type).ok()
        };
        // Words are ordered as signed; unsigned keys beyond the signed range have no order here.
        let ordered = min >= 0 || !data_type.is_unsigned_integer();
        if ordered && !data_type.is_decimal() {
            Some((scalar(min)?, scalar(max)?))
        } else {
            None
        }
    }

    /// The build side has ended and is all in memory: builds the table.
    fn build(&mut self, collected: Collected, cx: &mut Context) -> Result<Phase> {
        let rows = collected.rows();
        let bytes = collected.bytes_to_build(self.shape.table_bytes(rows));
        if rows > 0 && (cx.memory.must_spill() || cx.hold(bytes).is_err()) {
            let partitions = self.spill(collected, cx)?;
            return self.build_resident(partitions, cx);
        }
        let prober = Prober::build(&self.spec, &self.shape, collected, 0, cx)?;
        let is_idle = prober.table.is_empty() && self.is_idle_without_matches(rows);
        if is_idle || (self.spec.null_aware && prober.has_null_key) {
            cx.hold(0)?;
            return Ok(Phase::Done);
        }
        Ok(Phase::Probe(prober))
    }

    /// The build side does not fit: partitions what has arrived of it.
    fn spill(&mut self, collected: Collected, cx: &mut Context) -> Result<Box<BuildPartitions>> {
        let narrow = Narrow::new(&self.spec, &Layout::of(&self.spec)?, self.shape.types())?;
        self.output = Output::detached(Layout::of(&narrow.spec)?);
        let partitions = BuildPartitions::new(narrow, &self.shape, collected, self.depth, self.expected_bytes, cx)?;
        Ok(Box::new(partitions))
    }

    /// Somebody is short of memory in mid-probe: the table goes to disk, and `batch` after it.
    fn evict(&mut self, batch: &Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if let Phase::Probe(prober) = std::mem::replace(&mut self.phase, Phase::Done) {
            let mut late = Late::evict(&self.spec, &self.shape, prober, &mut self.output, cx, out)?;
            let keys = self.shape.evaluate(&self.spec.probe_keys, batch)?;
            late.push(batch, self.shape.digest(&keys, batch.num_rows())?, cx)?;
            cx.hold_anyway(late.memory_bytes());
            self.phase = Phase::Late(Box::new(late));
        }
        Ok(())
    }

    /// The build side has ended and does not fit: builds the table of what does.
    fn build_resident(&mut self, partitions: Box<BuildPartitions>, cx: &mut Context) -> Result<Phase> {
        if self.spec.null_aware && partitions.saw_null_key() {
            drop(partitions);
            cx.hold(0)?;
            return Ok(Phase::Done);
        }
        let partitions = partitions.finish(&self.shape, self.spec.null_aware, cx)?;
        Ok(Phase::ProbePartitions(Box::new(partitions)))
    }

    /// Whether no output can come from `rows` build rows of which none can match.
    fn is_idle_without_matches(&self, rows: usize) -> bool {
        needs_build(self.spec.join_type) && !(keeps_unmatched_build(self.spec.join_type) && rows > 0)
    }
}

impl Operator for HashJoin {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        match &mut self.phase {
            Phase::Build(collected) => {
                let keys = self.shape.evaluate(&self.spec.build_keys, &batch)?;
                self.publisher.add(&keys, cx)?;
                if !collected.push(&batch, keys, cx) {
                    drop(batch);
                    if let Phase::Build(collected) = std::mem::replace(&mut self.phase, Phase::Done) {
                        self.phase = Phase::Partition(self.spill(collected, cx)?);
                    }
                }
                Ok(())
            }
            Phase::Partition(partitions) => {
                self.publisher
                    .add(&self.shape.evaluate(&self.spec.build_keys, &batch)?, cx)?;
                partitions.push(&self.shape, &batch, cx)
            }
            Phase::ProbePartitions(partitions) => partitions.push(&self.shape, &batch, &mut self.output, cx, out),
            Phase::Probe(prober) => {
                if cx.memory.must_spill() && can_evict(self.spec.join_type, prober) {
                    return self.evict(&batch, cx, out);
                }
                let keys = self.shape.evaluate(&self.spec.probe_keys, &batch)?;
                let keys = self.shape.digest(&keys, batch.num_rows())?;
                prober.join(&self.spec, &batch, &keys, &mut self.output, cx, out)
            }
            Phase::Late(late) => {
                let keys = self.shape.evaluate(&self.spec.probe_keys, &batch)?;
                late.push(&batch, self.shape.digest(&keys, batch.num_rows())?, cx)?;
                cx.hold_anyway(late.memory_bytes());
                Ok(())
            }
            Phase::Done => Ok(()),
        }
    }

    fn on_end(&mut self, port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        match (std::mem::replace(&mut self.phase, Phase::Done), port) {
            (Phase::Build(collected), BUILD) => {
                self.publisher.finish(cx);
                self.phase = self.build(collected, cx)?;
                Ok(())
            }
            (Phase::Partition(partitions), BUILD) => {
                self.publisher.finish(cx);
                self.phase = self.build_resident(partitions, cx)?;
                Ok(())
            }
            (Phase::Build(_) | Phase::Partition(_), _) => Err(EngineError::Internal(
                "the probe side ended before the build side".into(),
            )),
            (phase @ (Phase::Probe(_) | Phase::ProbePartitions(_) | Phase::Late(_)), BUILD) => {
                self.phase = phase;
                Ok(())
            }
            (Phase::Probe(prober), _) => {
                prober.finish(self.spec.join_type, &mut self.output, cx, out)?;
                self.output.finish(out)?;
                cx.hold(0)
            }
            (Phase::Late(late), _) => {
                self.output.finish(out)?;
                late.finish(self.depth, cx, out)
            }
            (Phase::ProbePartitions(partitions), _) => partitions.finish(&self.shape, &mut self.output, cx, out),
            (Phase::Done, _) => Ok(()),
        }
    }

    fn reads_next(&self) -> ReadNext {
        ReadNext::Only(if matches!(self.phase, Phase::Build(_) | Phase::Partition(_)) {
            BUILD
        } else {
            1
        })
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }
}
