//! How wide output rows are: a piece of output is bounded in bytes, not only in rows.
//!
//! The average width of a side's rows bounds most pieces. Where a few rows are much wider than the average (a text of a
//! megabyte among short ones, met by thousands of partners) pairs are counted one by one.

use arrow::array::{Array, ArrayRef, AsArray, OffsetSizeTrait};
use arrow::datatypes::DataType;
use datafusion::common::JoinSide;

use crate::operator::Context;
use crate::operator::hash_join::build::gathered_bytes;
use crate::operator::hash_join::output::{Layout, Sides, Source};
use crate::plan::JoinFilterSpec;

/// Pieces of output up to this size are never too large.
pub(super) const SMALL_PIECE_BYTES: usize = 16 * 1024;

/// So many times what a piece should have is still no reason to count its pairs one by one.
const TOLERANCE: usize = 4;

/// What one piece of output should take at most.
pub(super) fn piece_bytes(cx: &Context) -> usize {
    (cx.memory.share_bytes() / 8).max(SMALL_PIECE_BYTES)
}

/// Bytes that gathering a row of a column takes.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::operator) struct Width {
    average: usize,
    most: usize,
}

impl Width {
    /// Of the rows of `column`.
    pub(in crate::operator) fn of(column: &ArrayRef) -> Self {
        if let Some(width) = column.data_type().primitive_width() {
            return Self::all(width);
        }
        let average = gathered_bytes(column).div_ceil(column.len().max(1));
        Self {
            average,
            most: longest_text_bytes(column).max(average),
        }
    }

    /// The average.
    pub(in crate::operator) fn average(self) -> usize {
        self.average
    }

    /// Of rows that are all alike, for all one knows.
    pub(in crate::operator) fn all(bytes: usize) -> Self {
        Self {
            average: bytes,
            most: bytes,
        }
    }
}

/// Bytes of the longest string or binary value that gathering copies; 0 for other types.
fn longest_text_bytes(column: &ArrayRef) -> usize {
    fn longest<O: OffsetSizeTrait>(offsets: &[O]) -> usize {
        let lengths = offsets.windows(2).map(|pair| pair[1] - pair[0]);
        lengths.max().map_or(0, O::as_usize)
    }
    match column.data_type() {
        DataType::Utf8 => longest(column.as_string::<i32>().value_offsets()),
        DataType::Binary => longest(column.as_binary::<i32>().value_offsets()),
        DataType::LargeUtf8 => longest(column.as_string::<i64>().value_offsets()),
        DataType::LargeBinary => longest(column.as_binary::<i64>().value_offsets()),
        _ => 0,
    }
}

/// Bytes of one string or binary value that gathering copies; `None` for other types.
fn text_bytes(column: &ArrayRef, row: usize) -> Option<usize> {
    Some(match column.data_type() {
        DataType::Utf8 => column.as_string::<i32>().value_length(row) as usize,
        DataType::Binary => column.as_binary::<i32>().value_length(row) as usize,
        DataType::LargeUtf8 => column.as_string::<i64>().value_length(row) as usize,
        DataType::LargeBinary => column.as_binary::<i64>().value_length(row) as usize,
        _ => return None,
    })
}

/// How large pieces of output may be, for one probe batch.
pub(in crate::operator) struct PieceLimit<'a> {
    /// Rows of a piece.
    pub(in crate::operator) rows_max: usize,
    skew: Option<Skew<'a>>,
}

/// What is needed to count pairs one by one.
struct Skew<'a> {
    bytes_max: usize,
    build: Vec<&'a ArrayRef>,
    probe: Vec<&'a ArrayRef>,
}

impl<'a> PieceLimit<'a> {
    /// For output of `layout` and what `filter` is judged on.
    pub(super) fn new(layout: &Layout, sides: Sides<'a>, filter: Option<&JoinFilterSpec>, cx: &Context) -> Self {
        let output = layout.sources().iter().copied();
        let judged = filter.iter().flat_map(|filter| &filter.columns);
        let judged = judged.map(|(side, column)| match side {
            JoinSide::Left => Source::Build(*column),
            _ => Source::Probe(*column),
        });
        let mut sum = Width::default();
        let mut skew = Skew {
            bytes_max: 0,
            build: Vec::new(),
            probe: Vec::new(),
        };
        for source in output.chain(judged) {
            let width = match source {
                Source::Build(column) => {
                    skew.build.extend(sides.build.whole(column));
                    sides.build.width(column)
                }
                Source::Probe(column) => sides.probe.map_or(Width::default(), |batch| {
                    skew.probe.push(batch.column(column));
                    Width::of(batch.column(column))
                }),
                Source::Mark => Width::all(1),
            };
            sum.average += width.average;
            sum.most += width.most;
        }
        let mut rows_max = cx.batch_size;
        if sum.most.saturating_mul(rows_max) <= SMALL_PIECE_BYTES {
            return Self { rows_max, skew: None };
        }
        let bytes_max = piece_bytes(cx);
        rows_max = (bytes_max / sum.average.max(1)).clamp(1, rows_max);
        let is_skewed = rows_max > 1 && sum.most.saturating_mul(rows_max) / TOLERANCE > bytes_max;
        Self {
            rows_max,
            skew: is_skewed.then_some(Skew { bytes_max, ..skew }),
        }
    }

    /// How many of the pairs make a piece. Row numbers that do not exist stand for NULLs.
    pub(super) fn piece(&self, build: &[u32], probe: &[u32]) -> usize {
        let Some(skew) = &self.skew else { return build.len() };
        let bytes = |columns: &[&ArrayRef], row: u32| -> usize {
            let of = |column: &&ArrayRef| match (row as usize) < column.len() {
                true => text_bytes(column, row as usize).unwrap_or(0),
                false => 0,
            };
            columns.iter().map(of).sum()
        };
        let mut sum = 0;
        for (count, (build, probe)) in build.iter().zip(probe).enumerate() {
            sum += bytes(&skew.build, *build) + bytes(&skew.probe, *probe);
            if sum > skew.bytes_max {
                return count.max(1);
            }
        }
        build.len()
    }
}
