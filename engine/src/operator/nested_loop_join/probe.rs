//! Judging every build row with every row of a probe batch.

use arrow::array::UInt32Array;
use arrow::buffer::BooleanBuffer;
use datafusion::common::JoinType;

use crate::data::{Batch, Result};
use crate::operator::hash_join::build::{BuildRows, Collected};
use crate::operator::hash_join::marks::{Marks, emit_build, emits_pairs, visits_build};
use crate::operator::hash_join::output::{Output, Selection, Sides, satisfied};
use crate::operator::{Collector, Context};
use crate::plan::{HashJoinSpec, JoinFilterSpec};

/// The build side as the probe side meets it.
pub(super) struct Prober {
    rows: BuildRows,
    /// The build rows that matched, when the join type asks.
    visited: Option<Marks>,
}

impl Prober {
    /// What was collected, made ready. What that takes is booked already; in the end the prober is.
    ///
    /// # Errors
    /// When a kernel fails.
    pub(super) fn build(join_type: JoinType, collected: Collected, cx: &mut Context) -> Result<Self> {
        let rows = collected.rows();
        let visited = visits_build(join_type).then(|| Marks::new(rows));
        let marks_bytes = visited.as_ref().map_or(0, |_| Marks::memory_bytes(rows));
        Ok(Self {
            rows: collected.finish(marks_bytes, cx)?,
            visited,
        })
    }

    /// The probe side has ended: hands on the build rows that wait for that.
    ///
    /// # Errors
    /// When a kernel or the consumer fails.
    pub(super) fn finish(
        mut self,
        join_type: JoinType,
        output: &mut Output,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        match &mut self.visited {
            Some(visited) => emit_build(join_type, &self.rows, &visited.finish(), output, cx, out),
            None => Ok(()),
        }
    }

    /// Joins one probe batch.
    ///
    /// # Errors
    /// When the condition, a kernel or the consumer fails.
    pub(super) fn join(
        &mut self,
        spec: &HashJoinSpec,
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
            let rows_max = output.piece_limit(sides, None, cx).rows_max;
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
        let rows_max = output.piece_limit(sides, Some(filter), cx).rows_max;
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
