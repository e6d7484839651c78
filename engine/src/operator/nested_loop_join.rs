//! Nested loop join: every build row with every probe row, for conditions without equal keys and for cross joins.
//!
//! The pairs of the build side and one probe batch are numbered, build row by build row, and judged in pieces of one
//! batch. A piece within one build row, or against a single probe row, copies nothing of the other side.

use arrow::array::UInt32Array;
use arrow::buffer::BooleanBuffer;
use datafusion::common::JoinType;

use crate::data::{Batch, EngineError, Result};
use crate::operator::hash_join::build::{BuildRows, Collected};
use crate::operator::hash_join::marks::{Marks, emit_build, emits_pairs, needs_build, visits_build};
use crate::operator::hash_join::output::{Layout, Output, Selection, Sides, satisfied};
use crate::operator::{Collector, Context, Operator, Port, ReadNext};
use crate::plan::{JoinFilterSpec, NestedLoopJoinSpec};

#[cfg(test)]
mod tests;

const BUILD: Port = 0;

/// Joins two inputs on any condition.
pub(super) struct NestedLoopJoin {
    spec: NestedLoopJoinSpec,
    phase: Phase,
    /// Made with the first element, as the spec may turn out to contradict itself.
    output: Option<Output>,
}

enum Phase {
    Start,
    Build(Collected),
    Probe(Prober),
    /// Nothing more can come out.
    Done,
}

struct Prober {
    rows: BuildRows,
    visited: Option<Marks>,
}

impl NestedLoopJoin {
    /// A join as `spec` says.
    pub(super) fn new(spec: NestedLoopJoinSpec) -> Self {
        Self {
            spec,
            phase: Phase::Start,
            output: None,
        }
    }

    fn start(&mut self) -> Result<()> {
        if !matches!(self.phase, Phase::Start) {
            return Ok(());
        }
        let spec = &self.spec;
        let build_width = spec.build_schema.0.fields().len();
        let probe_width = spec.probe_schema.0.fields().len();
        let projection = spec.projection.as_deref();
        let layout = Layout::new(
            spec.join_type,
            build_width,
            probe_width,
            projection,
            spec.schema.0.clone(),
        )?;
        let kept = layout.build_columns(spec.filter.as_ref());
        self.phase = Phase::Build(Collected::new(spec.build_schema.0.clone(), kept, 0));
        self.output = Some(Output::new(layout));
        Ok(())
    }

    fn output(&mut self) -> Result<&mut Output> {
        self.output
            .as_mut()
            .ok_or_else(|| EngineError::Internal("the join has not started".into()))
    }
}

impl Operator for NestedLoopJoin {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.start()?;
        match (&mut self.phase, &mut self.output) {
            (Phase::Build(collected), _) => {
                collected.push(&batch, vec![], cx);
                Ok(())
            }
            (Phase::Probe(prober), Some(output)) => prober.join(&self.spec, &batch, output, cx, out),
            _ => Ok(()),
        }
    }

    fn on_end(&mut self, port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.start()?;
        let join_type = self.spec.join_type;
        match (std::mem::replace(&mut self.phase, Phase::Done), port) {
            (Phase::Build(collected), BUILD) => {
                let rows = collected.rows();
                if rows == 0 && needs_build(join_type) {
                    return cx.hold(0);
                }
                let visited = visits_build(join_type).then(|| Marks::new(rows));
                let marks_bytes = visited.as_ref().map_or(0, |_| Marks::memory_bytes(rows));
                self.phase = Phase::Probe(Prober {
                    rows: collected.finish(marks_bytes, cx)?,
                    visited,
                });
                Ok(())
            }
            (Phase::Build(_), _) => Err(EngineError::Internal(
                "the probe side ended before the build side".into(),
            )),
            (Phase::Probe(prober), BUILD) => {
                self.phase = Phase::Probe(prober);
                Ok(())
            }
            (Phase::Probe(mut prober), _) => {
                let output = self.output()?;
                if let Some(visited) = &mut prober.visited {
                    emit_build(join_type, &prober.rows, &visited.finish(), output, cx, out)?;
                }
                drop(prober);
                output.finish(out)?;
                cx.hold(0)
            }
            (Phase::Start | Phase::Done, _) => Ok(()),
        }
    }

    fn reads_next(&self) -> ReadNext {
        ReadNext::Only(if matches!(self.phase, Phase::Start | Phase::Build(_)) {
            BUILD
        } else {
            1
        })
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }
}

impl Prober {
    fn join(
        &mut self,
        spec: &NestedLoopJoinSpec,
        batch: &Batch,
        output: &mut Output,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let join_type = spec.join_type;
        let matched = match &spec.filter {
            Some(filter) => self.judge(filter, join_type, batch, output, cx, out)?,
            None => self.cross(join_type, batch, output, cx, out)?,
        };
        let sides = Sides {
            build: &self.rows,
            probe: Some(batch),
        };
        match join_type {
            JoinType::Right | JoinType::Full | JoinType::RightAnti => output.probe_where(sides, &!&matched, cx, out),
            JoinType::RightSemi => output.probe_where(sides, &matched, cx, out),
            JoinType::RightMark => output.marked(sides, &matched, cx, out),
            JoinType::Inner | JoinType::Left => Ok(()),
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => Ok(()),
        }
    }

    /// Without a condition everything matches: which probe rows did.
    fn cross(
        &mut self,
        join_type: JoinType,
        batch: &Batch,
        output: &mut Output,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<BooleanBuffer> {
        let (build_rows, probe_rows) = (self.rows.len(), batch.num_rows());
        if let Some(visited) = &mut self.visited
            && build_rows > 0
            && !visited.get(0)
        {
            (0..build_rows).for_each(|row| visited.set(row));
        }
        let sides = Sides {
            build: &self.rows,
            probe: Some(batch),
        };
        if emits_pairs(join_type) && output.is_bare() {
            output.bare(build_rows * probe_rows, cx, out)?;
        } else if emits_pairs(join_type) {
            let rows_max = output.piece_rows(sides, None, cx);
            for piece in Pieces::new(build_rows, probe_rows, rows_max) {
                cx.cancel.check()?;
                output.pairs(sides, &piece.build(), &piece.probe(), cx, out)?;
                if out.is_done() {
                    break;
                }
            }
        }
        let any = build_rows > 0;
        Ok(BooleanBuffer::collect_bool(probe_rows, |_| any))
    }

    /// Judges every pair by the condition: which probe rows matched.
    fn judge(
        &mut self,
        filter: &JoinFilterSpec,
        join_type: JoinType,
        batch: &Batch,
        output: &mut Output,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<BooleanBuffer> {
        let probe_rows = batch.num_rows();
        let sides = Sides {
            build: &self.rows,
            probe: Some(batch),
        };
        let one_match_is_enough = !emits_pairs(join_type) && self.visited.is_none();
        let mut matched = Marks::new(probe_rows);
        let mut matched_rows = 0;
        let rows_max = output.piece_rows(sides, Some(filter), cx);
        for piece in Pieces::new(self.rows.len(), probe_rows, rows_max) {
            cx.cancel.check()?;
            let (build, probe) = (piece.build(), piece.probe());
            let mask = satisfied(filter, sides, &build, &probe)?;
            let (mut build_hits, mut probe_hits) = (Vec::new(), Vec::new());
            for position in mask.values().set_indices() {
                let (build_row, probe_row) = piece.pair(position);
                matched_rows += usize::from(!matched.get(probe_row));
                matched.set(probe_row);
                if let Some(visited) = &mut self.visited {
                    visited.set(build_row);
                }
                if emits_pairs(join_type) {
                    build_hits.push(build_row as u32);
                    probe_hits.push(probe_row as u32);
                }
            }
            if build_hits.len() == piece.len {
                output.pairs(sides, &build, &probe, cx, out)?;
            } else if !build_hits.is_empty() {
                let build = Selection::Take(UInt32Array::from(build_hits));
                let probe = Selection::Take(UInt32Array::from(probe_hits));
                output.pairs(sides, &build, &probe, cx, out)?;
            }
            if out.is_done() || (one_match_is_enough && matched_rows == probe_rows) {
                break;
            }
        }
        Ok(matched.finish())
    }
}

/// A piece of the numbered pairs: pair `n` is build row `n / probe_rows` with probe row `n % probe_rows`.
struct Piece {
    probe_rows: usize,
    start: usize,
    len: usize,
}

impl Piece {
    fn pair(&self, position: usize) -> (usize, usize) {
        let number = self.start + position;
        (number / self.probe_rows, number % self.probe_rows)
    }

    fn build(&self) -> Selection {
        if self.probe_rows == 1 {
            return Selection::Slice {
                start: self.start,
                len: self.len,
            };
        }
        let (mut row, mut probe) = self.pair(0);
        let mut rows = Vec::with_capacity(self.len);
        while rows.len() < self.len {
            let end = self.len.min(rows.len() + self.probe_rows - probe);
            rows.resize(end, row as u32);
            (row, probe) = (row + 1, 0);
        }
        Selection::Take(UInt32Array::from(rows))
    }

    fn probe(&self) -> Selection {
        let (_, first) = self.pair(0);
        if first + self.len <= self.probe_rows {
            return Selection::Slice {
                start: first,
                len: self.len,
            };
        }
        let mut rows = Vec::with_capacity(self.len);
        let mut start = first;
        while rows.len() < self.len {
            let end = self.probe_rows.min(start + self.len - rows.len());
            rows.extend(start as u32..end as u32);
            start = 0;
        }
        Selection::Take(UInt32Array::from(rows))
    }
}

/// The pieces of all pairs, none larger than a batch.
struct Pieces {
    probe_rows: usize,
    next: usize,
    end: usize,
    piece_rows: usize,
}

impl Pieces {
    fn new(build_rows: usize, probe_rows: usize, batch_size: usize) -> Self {
        // Whole build rows where they fit, so that no piece begins in the middle of one for nothing.
        let piece_rows = if probe_rows <= batch_size {
            batch_size - batch_size % probe_rows.max(1)
        } else {
            batch_size
        };
        Self {
            probe_rows,
            next: 0,
            end: build_rows * probe_rows,
            piece_rows: piece_rows.max(1),
        }
    }
}

impl Iterator for Pieces {
    type Item = Piece;

    fn next(&mut self) -> Option<Piece> {
        if self.next == self.end {
            return None;
        }
        let start = self.next;
        // Within a build row when the probe batch is larger than a piece, so that the probe columns are slices.
        let in_row = self.probe_rows - start % self.probe_rows;
        let len = if self.probe_rows > self.piece_rows {
            self.piece_rows.min(in_row)
        } else {
            self.piece_rows
        };
        self.next = self.end.min(start + len);
        Some(Piece {
            probe_rows: self.probe_rows,
            start,
            len: self.next - start,
        })
    }
}
