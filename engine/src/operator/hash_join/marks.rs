//! Which rows have matched, and what a join type makes of it.

use arrow::array::BooleanBufferBuilder;
use arrow::buffer::BooleanBuffer;
use datafusion::common::JoinType;

use crate::data::Result;
use crate::operator::hash_join::build::BuildRows;
use crate::operator::hash_join::output::{Output, Sides};
use crate::operator::{Collector, Context};

/// One bit per row.
pub(in crate::operator) struct Marks(BooleanBufferBuilder);

impl Marks {
    /// `rows` rows, none marked.
    pub(in crate::operator) fn new(rows: usize) -> Self {
        let mut bits = BooleanBufferBuilder::new(rows);
        bits.append_n(rows, false);
        Self(bits)
    }

    /// Whether `row` is marked.
    #[inline]
    pub(in crate::operator) fn get(&self, row: usize) -> bool {
        self.0.get_bit(row)
    }

    /// Marks `row`.
    #[inline]
    pub(in crate::operator) fn set(&mut self, row: usize) {
        self.0.set_bit(row, true);
    }

    /// The bits; none are left.
    pub(in crate::operator) fn finish(&mut self) -> BooleanBuffer {
        self.0.finish()
    }

    /// Bytes kept for `rows` rows.
    pub(in crate::operator) fn memory_bytes(rows: usize) -> usize {
        rows.div_ceil(8)
    }
}

/// Whether output rows are pairs of a build and a probe row.
pub(in crate::operator) fn emits_pairs(join_type: JoinType) -> bool {
    matches!(
        join_type,
        JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full
    )
}

/// Whether the join must know at its end which build rows matched.
pub(in crate::operator) fn visits_build(join_type: JoinType) -> bool {
    matches!(
        join_type,
        JoinType::Left | JoinType::Full | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark
    )
}

/// Whether a probe row without a match is emitted beside NULLs.
pub(in crate::operator) fn keeps_unmatched_probe(join_type: JoinType) -> bool {
    matches!(join_type, JoinType::Right | JoinType::Full)
}

/// Whether a build row without a match is emitted at the end, beside NULLs or with its mark.
pub(in crate::operator) fn keeps_unmatched_build(join_type: JoinType) -> bool {
    matches!(
        join_type,
        JoinType::Left | JoinType::Full | JoinType::LeftAnti | JoinType::LeftMark
    )
}

/// Whether no probe row can bring output when nothing on the build side can match and no build row awaits the end.
pub(in crate::operator) fn needs_build(join_type: JoinType) -> bool {
    !matches!(
        join_type,
        JoinType::Right | JoinType::Full | JoinType::RightAnti | JoinType::RightMark
    )
}

/// What the probe side's end brings: the build rows that matched, or did not, or all with their marks.
///
/// # Errors
/// When a kernel or the consumer fails.
pub(in crate::operator) fn emit_build(
    join_type: JoinType,
    build: &BuildRows,
    visited: &BooleanBuffer,
    output: &mut Output,
    cx: &Context,
    out: &mut dyn Collector,
) -> Result<()> {
    match join_type {
        JoinType::Left | JoinType::Full | JoinType::LeftAnti => output.build_where(build, &!visited, cx, out),
        JoinType::LeftSemi => output.build_where(build, visited, cx, out),
        JoinType::LeftMark => output.marked(Sides { build, probe: None }, visited, cx, out),
        JoinType::Inner | JoinType::Right => Ok(()),
        JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => Ok(()),
    }
}
