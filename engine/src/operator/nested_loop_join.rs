//! Nested loop join: every build row with every probe row, for conditions without equal keys and for cross joins.
//!
//! The pairs of the build side and one probe batch are numbered, build row by build row, and judged in pieces of one
//! batch. A piece within one build row, or against a single probe row, copies nothing of the other side.
//!
//! When the build side does not fit, both sides go to disk, and as many build rows as fit meet the whole probe side at a
//! time.

mod probe;
mod spool;
#[cfg(test)]
mod tests;

use arrow::array::ArrayRef;
use thalweg_memory::SpillFile;

use crate::data::{Batch, EngineError, Result};
use crate::operator::hash_join::block_wise::{Method, block_wise};
use crate::operator::hash_join::build::Collected;
use crate::operator::hash_join::marks::{Marks, needs_build};
use crate::operator::hash_join::narrow::{Narrow, Side};
use crate::operator::hash_join::output::{Layout, Output};
use crate::operator::nested_loop_join::probe::Prober;
use crate::operator::nested_loop_join::spool::Spool;
use crate::operator::{Collector, Context, Operator, Port, ReadNext};
use crate::plan::{HashJoinSpec, NestedLoopJoinSpec};

const BUILD: Port = 0;

/// Joins two inputs on any condition.
pub(super) struct NestedLoopJoin {
    /// As a join without keys.
    spec: HashJoinSpec,
    phase: Phase,
    /// Made with the first element, as the spec may turn out to contradict itself.
    output: Option<Output>,
}

enum Phase {
    Start,
    Build(Collected),
    /// The build side does not fit.
    SpoolBuild(Box<(Narrow, Spool)>),
    Probe(Prober),
    SpoolProbe(Box<(Narrow, SpillFile, Spool)>),
    /// Nothing more can come out.
    Done,
}

impl NestedLoopJoin {
    /// A join as `spec` says.
    pub(super) fn new(spec: NestedLoopJoinSpec) -> Self {
        Self {
            spec: HashJoinSpec {
                join_type: spec.join_type,
                build_keys: vec![],
                probe_keys: vec![],
                null_equals_null: false,
                null_aware: false,
                runtime_filters: Vec::new(),
                filter: spec.filter,
                projection: spec.projection,
                build_schema: spec.build_schema,
                probe_schema: spec.probe_schema,
                schema: spec.schema,
            },
            phase: Phase::Start,
            output: None,
        }
    }

    fn start(&mut self) -> Result<()> {
        if matches!(self.phase, Phase::Start) {
            let layout = Layout::of(&self.spec)?;
            self.phase = Phase::Build(Collected::of(&self.spec, &layout));
            self.output = Some(Output::new(layout));
        }
        Ok(())
    }

    fn output(&mut self) -> Result<&mut Output> {
        self.output
            .as_mut()
            .ok_or_else(|| EngineError::Internal("the join has not started".into()))
    }

    /// The build side does not fit: writes what has arrived of it.
    fn spill(&self, collected: Collected, cx: &mut Context) -> Result<Box<(Narrow, Spool)>> {
        let narrow = Narrow::new(&self.spec, &Layout::of(&self.spec)?, &[])?;
        let mut spool = Spool::new(narrow.build.schema(), cx)?;
        let mut left = collected.bytes();
        for chunk in collected.into_batches() {
            left -= chunk.bytes;
            let batch = narrow.build.of_columns(chunk.kept.into_iter(), &[], chunk.rows)?;
            spool.push(batch, left, cx)?;
        }
        Ok(Box::new((narrow, spool)))
    }

    /// The build side has ended and is all in memory.
    fn build(&mut self, collected: Collected, cx: &mut Context) -> Result<Phase> {
        let rows = collected.rows();
        if rows == 0 && needs_build(self.spec.join_type) {
            cx.hold(0)?;
            return Ok(Phase::Done);
        }
        let bytes = collected.bytes_to_build(Marks::memory_bytes(rows));
        if rows > 0 && (cx.memory.must_spill() || cx.hold(bytes).is_err()) {
            let spooled = self.spill(collected, cx)?;
            return self.build_spooled(*spooled, cx);
        }
        Ok(Phase::Probe(Prober::build(self.spec.join_type, collected, cx)?))
    }

    fn build_spooled(&mut self, (narrow, build): (Narrow, Spool), cx: &mut Context) -> Result<Phase> {
        let build = build.finish(cx)?;
        let probe = Spool::new(narrow.probe.schema(), cx)?;
        Ok(Phase::SpoolProbe(Box::new((narrow, build, probe))))
    }
}

/// The columns of `side` that are kept.
fn narrowed(side: &Side, batch: &Batch) -> Result<Batch> {
    side.of_columns(side.kept_of(batch), &[], batch.num_rows())
}

impl Operator for NestedLoopJoin {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.start()?;
        match (&mut self.phase, &mut self.output) {
            (Phase::Build(collected), _) => {
                if !collected.push(&batch, vec![], cx) {
                    drop(batch);
                    if let Phase::Build(collected) = std::mem::replace(&mut self.phase, Phase::Done) {
                        self.phase = Phase::SpoolBuild(self.spill(collected, cx)?);
                    }
                }
                Ok(())
            }
            (Phase::SpoolBuild(spooled), _) => {
                let (narrow, spool) = spooled.as_mut();
                spool.push(narrowed(&narrow.build, &batch)?, 0, cx)
            }
            (Phase::SpoolProbe(spooled), _) => {
                let (narrow, _, spool) = spooled.as_mut();
                spool.push(narrowed(&narrow.probe, &batch)?, 0, cx)
            }
            (Phase::Probe(prober), Some(output)) => prober.join(&self.spec, &batch, output, cx, out),
            _ => Ok(()),
        }
    }

    fn on_end(&mut self, port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.start()?;
        match (std::mem::replace(&mut self.phase, Phase::Done), port) {
            (Phase::Build(collected), BUILD) => {
                self.phase = self.build(collected, cx)?;
                Ok(())
            }
            (Phase::SpoolBuild(spooled), BUILD) => {
                self.phase = self.build_spooled(*spooled, cx)?;
                Ok(())
            }
            (Phase::Build(_) | Phase::SpoolBuild(_), _) => Err(EngineError::Internal(
                "the probe side ended before the build side".into(),
            )),
            (phase @ (Phase::Probe(_) | Phase::SpoolProbe(_)), BUILD) => {
                self.phase = phase;
                Ok(())
            }
            (Phase::Probe(prober), _) => {
                let join_type = self.spec.join_type;
                let output = self.output()?;
                prober.finish(join_type, output, cx, out)?;
                output.finish(out)?;
                cx.hold(0)
            }
            (Phase::SpoolProbe(spooled), _) => {
                let (narrow, build, probe) = *spooled;
                let probe = probe.finish(cx)?;
                block_wise::<EachWithEach>(&narrow.spec, &build, &probe, cx, out)
            }
            (Phase::Start | Phase::Done, _) => Ok(()),
        }
    }

    fn reads_next(&self) -> ReadNext {
        let builds = matches!(self.phase, Phase::Start | Phase::Build(_) | Phase::SpoolBuild(_));
        ReadNext::Only(if builds { BUILD } else { 1 })
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }
}

/// The block-wise join of every build row with every probe row.
struct EachWithEach;

impl Method for EachWithEach {
    type Prober = Prober;

    fn of(_spec: &HashJoinSpec) -> Result<Self> {
        Ok(Self)
    }

    fn keys(&self, _spec: &HashJoinSpec, _batch: &Batch) -> Result<Vec<ArrayRef>> {
        Ok(vec![])
    }

    fn table_bytes(&self, rows: usize) -> usize {
        Marks::memory_bytes(rows)
    }

    fn build(&self, spec: &HashJoinSpec, collected: Collected, cx: &mut Context) -> Result<Prober> {
        Prober::build(spec.join_type, collected, cx)
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
        prober.join(spec, batch, output, cx, out)
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
