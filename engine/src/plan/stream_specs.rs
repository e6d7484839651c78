//! What the operators of unbounded streams are told: plain data, one struct per operator.
//!
//! A stream that is a changelog has `$row_kind` as its last column (see [`crate::data::RowKind`]); a spec's input and
//! output schemas tell whether it is there. Expressions never refer to it, and column numbers are the same with and
//! without it, as it is the last.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

use datafusion::common::JoinType;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de, ser};

use crate::plan::expression::join_type_text;
use crate::plan::{AggregateMode, Aggregates, JoinFilterSpec, ScalarExpr, SchemaSpec, SortKey};

/// How the rows of a window are told from the others by their time (The Dataflow Model, section 1.2). Milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WindowKind {
    /// Windows of one size, one after the other.
    Tumble {
        /// Length.
        size_ms: i64,
        /// Windows start at multiples of the size plus this.
        offset_ms: i64,
    },
    /// Windows of one size that start every `slide_ms`.
    Hop {
        /// Length, a multiple of the slide.
        size_ms: i64,
        /// Distance between two starts.
        slide_ms: i64,
        /// Windows start at multiples of the slide plus this.
        offset_ms: i64,
    },
    /// Windows of one start that grow by `step_ms` up to `max_ms`.
    Cumulate {
        /// The longest, a multiple of the step.
        max_ms: i64,
        /// Growth.
        step_ms: i64,
        /// The longest windows start at multiples of their size plus this.
        offset_ms: i64,
    },
    /// Rows of one key; of two that follow each other in time, less than the gap lies between.
    Session {
        /// Silence that ends a session.
        gap_ms: i64,
    },
}

/// The longest window: sums of a time and a few of these fit 64 bits.
const LENGTH_MS_MAX: i64 = 1 << 60;

impl WindowKind {
    /// By how much the windows are moved against the epoch.
    pub fn offset_ms(&self) -> i64 {
        match self {
            WindowKind::Tumble { offset_ms, .. }
            | WindowKind::Hop { offset_ms, .. }
            | WindowKind::Cumulate { offset_ms, .. } => *offset_ms,
            WindowKind::Session { .. } => 0,
        }
    }

    /// In how many windows a row is.
    pub fn windows_per_row(&self) -> i64 {
        match self {
            WindowKind::Tumble { .. } | WindowKind::Session { .. } => 1,
            WindowKind::Hop { size_ms, slide_ms, .. } => size_ms / slide_ms,
            WindowKind::Cumulate { max_ms, step_ms, .. } => max_ms / step_ms,
        }
    }

    /// What is wrong with the lengths, and what to do about it.
    ///
    /// # Errors
    /// When a length is not positive or out of all proportion, the long one is no multiple of the short one, or the offset
    /// is no shorter than the window.
    pub fn check(&self) -> Result<(), String> {
        let lengths: &[(&str, i64)] = match self {
            WindowKind::Tumble { size_ms, .. } => &[("size", *size_ms)],
            WindowKind::Hop { size_ms, slide_ms, .. } => &[("size", *size_ms), ("slide", *slide_ms)],
            WindowKind::Cumulate { max_ms, step_ms, .. } => &[("maximum size", *max_ms), ("step", *step_ms)],
            WindowKind::Session { gap_ms } => &[("gap", *gap_ms)],
        };
        for (name, length) in lengths {
            if *length <= 0 {
                return Err(format!(
                    "the {name} is {length} ms; it must be at least one millisecond"
                ));
            }
        }
        if let Some((name, length)) = lengths.iter().find(|(_, length)| *length > LENGTH_MS_MAX) {
            return Err(format!(
                "the {name} is {length} ms; it can be {LENGTH_MS_MAX} ms at most"
            ));
        }
        let (offset, longest) = (self.offset_ms(), lengths[0].1);
        if offset.checked_abs().is_none_or(|offset| offset >= longest) {
            return Err(format!(
                "the offset ({offset} ms) is not shorter than the {} ({longest} ms); make it so",
                lengths[0].0
            ));
        }
        match lengths {
            [(long_name, long), (short_name, short)] if long % short != 0 => Err(format!(
                "the {long_name} ({long} ms) is not a multiple of the {short_name} ({short} ms); make it one"
            )),
            _ => Ok(()),
        }
    }
}

impl fmt::Display for WindowKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WindowKind::Tumble { size_ms, .. } => write!(f, "TUMBLE(size={size_ms} ms")?,
            WindowKind::Hop { size_ms, slide_ms, .. } => write!(f, "HOP(size={size_ms} ms, slide={slide_ms} ms")?,
            WindowKind::Cumulate { max_ms, step_ms, .. } => write!(f, "CUMULATE(max={max_ms} ms, step={step_ms} ms")?,
            WindowKind::Session { gap_ms } => write!(f, "SESSION(gap={gap_ms} ms")?,
        }
        match self.offset_ms() {
            0 => f.write_str(")"),
            offset => write!(f, ", offset={offset} ms)"),
        }
    }
}

/// Which time an operator goes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WindowTime {
    /// Event time: this input column, a timestamp of any unit. Progress is told by watermarks.
    Event(usize),
    /// Processing time: the moment at which a row arrives.
    Processing,
}

/// The watermark of a source (The Dataflow Model, section 2.3).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WatermarkSpec {
    /// A timestamp per row of the operator's input: no row at or before it is still to come once this row has. NULL says
    /// nothing.
    pub expr: ScalarExpr,
    /// A split that has been silent for so long does not hold back the others; never when `None`.
    pub idle_timeout_ms: Option<u64>,
    /// A watermark is handed on at most every so often; 0 = with each batch (`pipeline.auto-watermark-interval`).
    pub interval_ms: u64,
    /// A split whose watermark is further ahead of the slowest is not read until that has caught up.
    pub max_drift_ms: Option<u64>,
}

/// What a scan of a streaming job does beyond one of a batch job.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct StreamScanSpec {
    /// The watermark, over the scan's output, kept per split.
    pub watermark: Option<WatermarkSpec>,
}

/// Appends `window_start`, `window_end` and `window_time` to each row, once per window that the row is in. Not for
/// sessions.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WindowAssignSpec {
    /// The windows.
    pub window: WindowKind,
    /// The time.
    pub time: WindowTime,
    /// The output's schema.
    pub schema: SchemaSpec,
}

/// Appends the session that a row is in, over input that is sorted by `partition_by`, then by time: for bounded input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SessionAssignSpec {
    /// Each key has sessions of its own.
    pub partition_by: Vec<ScalarExpr>,
    /// The input's column with the time: a timestamp of any unit.
    pub time: usize,
    /// See [`WindowKind::Session`].
    pub gap_ms: i64,
    /// The output's schema: the input's columns and the three.
    pub schema: SchemaSpec,
}

/// How the rows of a window aggregation come to their windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WindowSource {
    /// By their time.
    Assign {
        /// The windows.
        window: WindowKind,
        /// The time.
        time: WindowTime,
    },
    /// They have them: the window's bounds are input columns. A window is complete when the watermark has reached
    /// its end less 1 ms.
    Attached {
        /// Column of the window's start, if the input has it.
        start: Option<usize>,
        /// Column of the window's end.
        end: usize,
    },
}

/// What a window aggregation tells of its windows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WindowProperty {
    /// `window_start`.
    Start,
    /// `window_end`, exclusive.
    End,
    /// `window_time`: the end less 1 ms, the event time of the result.
    Time,
}

/// When windows hand on results before and after the watermark has passed their end, and how long they are kept (The
/// Dataflow Model, section 2.3). The results are then a changelog.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EmitSpec {
    /// Processing time between two early results.
    pub early_ms: Option<u64>,
    /// Processing time between two late results; 0 = with each late row.
    pub late_ms: Option<u64>,
    /// Rows that are late by no more than this still count.
    pub allowed_lateness_ms: i64,
}

/// Groups and aggregates per window; a window's groups leave when it is complete.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WindowAggregateSpec {
    /// `Single`: rows to results. `Partial`: rows to states per slice (group columns, state columns, `$slice_end`).
    /// `Final`: those to results. Sessions and attached windows are `Single`.
    pub mode: AggregateMode,
    /// How rows come to windows.
    pub window: WindowSource,
    /// The group expressions, without the window's bounds, over the operator's own input (in `Final` columns `0..n`).
    /// Without any there is one group; a window without rows gives no result.
    pub group_by: Vec<ScalarExpr>,
    /// The functions with their filters; their arguments refer to the *raw* input.
    pub aggregates: Aggregates,
    /// What follows the results.
    pub properties: Vec<WindowProperty>,
    /// Early and late results.
    pub emit: Option<EmitSpec>,
    /// The output's schema: group columns, results (or states), properties, row kind when `emit` is there.
    pub schema: SchemaSpec,
}

/// Groups and aggregates a stream without end: after each batch, what has changed leaves as a changelog.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct GroupAggregateSpec {
    /// The group expressions over the input. Without any there is one group, which exists from the first row on.
    pub group_by: Vec<ScalarExpr>,
    /// The functions with their filters.
    pub aggregates: Aggregates,
    /// The input's schema; tells whether rows are taken back.
    pub input_schema: SchemaSpec,
    /// Whether the old form of a changed row leaves too (`-U`).
    pub update_before: bool,
    /// A group that has not changed for so long is forgotten (`table.exec.state.ttl`).
    pub ttl_ms: Option<u64>,
    /// The output's schema: group columns, results, row kind. Without functions (DISTINCT) over insertions only there is
    /// no row kind.
    pub schema: SchemaSpec,
}

/// One side of a streaming join.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinInputSpec {
    /// The side's keys, over its input; as many as the other side's and of the same types. Without any, every pair is a
    /// candidate.
    pub keys: Vec<ScalarExpr>,
    /// The side's schema, with the row kind when it is a changelog.
    pub schema: SchemaSpec,
    /// Columns that tell a row from all others of the side, if there are such.
    pub unique_key: Option<Vec<usize>>,
    /// Rows are forgotten after so long.
    pub ttl_ms: Option<u64>,
}

/// Joins two streams without bounds in time. Input 0 is left, input 1 right.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StreamJoinSpec {
    /// Inner, left, right, full, left semi or left anti.
    #[serde(with = "join_type_text")]
    pub join_type: JoinType,
    /// The left side.
    pub left: JoinInputSpec,
    /// The right side.
    pub right: JoinInputSpec,
    /// Whether NULL keys match each other.
    pub null_equals_null: bool,
    /// `NOT IN` (left anti with one key): with a NULL on the right nothing is emitted, and a row with a NULL key only
    /// while the right side is empty.
    pub null_aware: bool,
    /// The residual condition.
    pub filter: Option<JoinFilterSpec>,
    /// The output's schema: left and right columns (left only for semi and anti), then the row kind where a row can
    /// be taken back.
    pub schema: SchemaSpec,
}

/// Joins rows of equal keys whose times are near each other; both inputs are insertions only.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct IntervalJoinSpec {
    /// Inner, left, right, full, left semi or left anti. What has no match leaves when none can come any more.
    #[serde(with = "join_type_text")]
    pub join_type: JoinType,
    /// The left side.
    pub left: JoinInputSpec,
    /// The right side.
    pub right: JoinInputSpec,
    /// The left side's time.
    pub left_time: WindowTime,
    /// The right side's time, of the same domain.
    pub right_time: WindowTime,
    /// A pair matches when `left + lower_ms <= right <= left + upper_ms`.
    pub lower_ms: i64,
    /// See `lower_ms`.
    pub upper_ms: i64,
    /// The residual condition.
    pub filter: Option<JoinFilterSpec>,
    /// The output's schema: left and right columns.
    pub schema: SchemaSpec,
}

/// Joins rows of equal keys and the same window when the window is complete; both inputs are insertions only.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WindowJoinSpec {
    /// Inner, left, right, full, left semi or left anti.
    #[serde(with = "join_type_text")]
    pub join_type: JoinType,
    /// The left side; its keys hold the window's start, if that is compared, but not its end.
    pub left: JoinInputSpec,
    /// The right side.
    pub right: JoinInputSpec,
    /// Column of the window's end on the left.
    pub left_end: usize,
    /// Column of the window's end on the right.
    pub right_end: usize,
    /// The residual condition.
    pub filter: Option<JoinFilterSpec>,
    /// The output's schema: left and right columns.
    pub schema: SchemaSpec,
}

/// Which version of the right side a temporal join takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TemporalTime {
    /// The one valid at the left row's event time: a row waits until the watermark has reached it.
    Event {
        /// The left row's time.
        left: usize,
        /// From when on a right row is valid.
        right: usize,
    },
    /// The one known when the left row arrives. With `bounded`, the right side is read to its end first (a lookup table).
    Processing {
        /// Whether the right side ends.
        bounded: bool,
    },
}

/// Joins each left row with the version of the right side at its time (`FOR SYSTEM_TIME AS OF`). The right side holds one
/// row per key at any time: later rows replace earlier ones, `-D` ends a version.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TemporalJoinSpec {
    /// Inner or left.
    #[serde(with = "join_type_text")]
    pub join_type: JoinType,
    /// The left side, insertions only.
    pub left: JoinInputSpec,
    /// The right side; its keys are its primary key.
    pub right: JoinInputSpec,
    /// Which version.
    pub time: TemporalTime,
    /// The residual condition.
    pub filter: Option<JoinFilterSpec>,
    /// The output's schema: left and right columns.
    pub schema: SchemaSpec,
}

/// Keeps the rows of each partition whose place in an order is from `first` to `last` (`ROW_NUMBER() OVER (..) <= n`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RankSpec {
    /// The partition expressions.
    pub partition_by: Vec<ScalarExpr>,
    /// The order within a partition. Of equal rows the one that came first is first.
    pub order_by: Vec<SortKey>,
    /// The first place to keep, from 1.
    pub first: usize,
    /// The last place to keep.
    pub last: usize,
    /// Whether the place is appended to the row, unsigned 64 bit.
    pub number: bool,
    /// Column of a window's end: ranks are per window and leave once, when the window is complete.
    pub window_end: Option<usize>,
    /// Whether the first `order_by` key is the event time or arrival itself, so that with `last` = 1 the operator is a
    /// deduplication that keeps one row per partition. Of rows of one time it keeps the first that came when the order
    /// is ascending, and the last when it is descending and this is the only key.
    pub by_time: bool,
    /// The input's schema.
    pub input_schema: SchemaSpec,
    /// Whether the old form of a changed row leaves too (`-U`).
    pub update_before: bool,
    /// A partition that has not changed for so long is forgotten.
    pub ttl_ms: Option<u64>,
    /// The output's schema: the input's columns, the place, the row kind unless `window_end` is there or nothing can be
    /// taken back.
    pub schema: SchemaSpec,
}

/// The rows before the current one that an OVER aggregate takes in, with the current row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum OverFrame {
    /// All since the beginning of the partition, up to the current row.
    RowsUnbounded,
    /// All since the beginning of the partition, with those of the same time as the current row.
    RangeUnbounded,
    /// So many rows before the current one.
    Rows(u64),
    /// Rows at most so many milliseconds older, with those of the same time as the current row.
    Range(i64),
}

/// Aggregates over the rows before each row, in the order of time; appends a column per function.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct OverSpec {
    /// The partition expressions.
    pub partition_by: Vec<ScalarExpr>,
    /// The order. In event time a row leaves when the watermark has reached it; a later one is dropped and counted.
    pub time: WindowTime,
    /// The functions.
    pub aggregates: Aggregates,
    /// One frame per function.
    pub frames: Vec<OverFrame>,
    /// Columns of functions that number rows (`ROW_NUMBER`): after those of `aggregates`, so many.
    pub row_numbers: usize,
    /// A partition that has been silent for so long is forgotten.
    pub ttl_ms: Option<u64>,
    /// The output's schema: the input's columns, then one per function.
    pub schema: SchemaSpec,
}

/// Makes a full changelog of upserts: remembers the last row of each key, so that `-U` rows are known and a repeated row
/// is dropped.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NormalizeSpec {
    /// The key's columns.
    pub keys: Vec<usize>,
    /// A key that has not changed for so long is forgotten.
    pub ttl_ms: Option<u64>,
    /// The schema of input and output.
    pub schema: SchemaSpec,
}

/// Puts rows into the order of event time, then of `keys`; a row leaves when the watermark has reached it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StreamSortSpec {
    /// The time's column.
    pub time: usize,
    /// The order among rows of one time.
    pub keys: Vec<SortKey>,
    /// The schema of input and output.
    pub schema: SchemaSpec,
}

/// Makes watermarks in the middle of a stream; those that come in are dropped, but for the last.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AssignWatermarkSpec {
    /// The watermark, over the operator's input.
    pub watermark: WatermarkSpec,
}

/// An operator that the program brings along. It cannot leave the process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CustomSpec {
    /// What it does, for plans and messages.
    pub label: String,
    /// What makes it: see `crate::operator::CustomOperator`.
    pub factory: Opaque,
}

/// Something of this process that a graph refers to. Serializing it is an error.
#[derive(Clone)]
pub struct Opaque(pub Arc<dyn Any + Send + Sync>);

impl fmt::Debug for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Opaque")
    }
}

impl Serialize for Opaque {
    fn serialize<S: Serializer>(&self, _serializer: S) -> Result<S::Ok, S::Error> {
        Err(ser::Error::custom(
            "a function of the program cannot leave this process; express it in SQL or as an expression",
        ))
    }
}

impl<'de> Deserialize<'de> for Opaque {
    fn deserialize<D: Deserializer<'de>>(_deserializer: D) -> Result<Self, D::Error> {
        Err(de::Error::custom("a function of another process cannot be called"))
    }
}
