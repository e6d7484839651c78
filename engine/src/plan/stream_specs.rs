//! What the operators of streams are told: plain data, as in `specs.rs`. Times are milliseconds.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::plan::{ScalarExpr, SchemaSpec};

/// How rows are assigned to windows of event time. `offset_ms` moves the windows against the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum WindowKind {
    /// Windows of one length, one after the other.
    Tumble {
        /// The length.
        size_ms: i64,
        /// See [`WindowKind`].
        offset_ms: i64,
    },
    /// Windows of one length, one starting each `slide_ms`.
    Hop {
        /// The length: a multiple of the slide.
        size_ms: i64,
        /// From one start to the next.
        slide_ms: i64,
        /// See [`WindowKind`].
        offset_ms: i64,
    },
    /// Windows that start together and end `step_ms` apart, up to `max_ms`.
    Cumulate {
        /// The longest window: a multiple of the step.
        max_ms: i64,
        /// From one end to the next.
        step_ms: i64,
        /// See [`WindowKind`].
        offset_ms: i64,
    },
    /// As long as no two neighbours are more than `gap_ms` apart; ends `gap_ms` after the last.
    Session {
        /// The gap.
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

/// Appends `window_start`, `window_end` and `window_time` to each row, once for each window that the row is in. Not for
/// sessions: see [`SessionAssignSpec`].
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WindowAssignSpec {
    /// The windows.
    pub window: WindowKind,
    /// The input's column with the time: a timestamp of any unit.
    pub time: usize,
    /// The output's schema: the input's columns and the three.
    pub schema: SchemaSpec,
}

/// Appends the session that a row is in, over input that is sorted by `partition_by`, then by time.
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
