//! Which windows a row is in (The Dataflow Model, section 2.1: `AssignWindows`).

use std::fmt::Debug;

use arrow::array::ArrayRef;

use crate::data::{EngineError, Result};
use crate::plan::ScalarExpr;

/// The time that a window spans: from `start_ms` on, before `end_ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bounds {
    /// The first millisecond.
    pub start_ms: i64,
    /// The first millisecond after the window.
    pub end_ms: i64,
}

impl Bounds {
    /// The window without bounds.
    pub const GLOBAL: Bounds = Bounds {
        start_ms: i64::MIN,
        end_ms: i64::MAX,
    };

    /// The last millisecond of the window. A window without an end has none: the time after all others.
    pub fn last_ms(&self) -> i64 {
        if self.end_ms == i64::MAX {
            i64::MAX
        } else {
            self.end_ms - 1
        }
    }
}

/// A row as an assigner sees it.
pub struct AssignedRow<'a> {
    /// The row's time: of the event, or of its arrival.
    pub time_ms: i64,
    /// Its place in `inputs`.
    pub row: usize,
    /// What [`Assigner::inputs`] asked for, over the batch.
    pub inputs: &'a [ArrayRef],
}

/// Puts rows into windows.
pub trait Assigner: Debug + Send + Sync {
    /// Appends the windows of a row. They are not empty, and in the time of the row lies none that has ended before it.
    ///
    /// # Errors
    /// When the row's inputs are not what they should be.
    fn assign(&self, row: &AssignedRow<'_>, windows: &mut Vec<Bounds>) -> Result<()>;

    /// Expressions over the input that `assign` looks at.
    fn inputs(&self) -> Vec<ScalarExpr> {
        Vec::new()
    }

    /// Whether windows of one key that overlap become one. Each row then has one window.
    fn merges(&self) -> bool {
        false
    }
}

fn positive(name: &str, value_ms: i64) -> Result<i64> {
    if value_ms > 0 {
        return Ok(value_ms);
    }
    Err(EngineError::Plan(format!(
        "the {name} of a window is {value_ms} ms, it must be above 0"
    )))
}

/// The start of the window of `size` that `time` is in.
fn start_of(time: i64, offset: i64, size: i64) -> i64 {
    time.saturating_sub(time.wrapping_sub(offset).rem_euclid(size))
}

/// Windows of one size, one after the other.
#[derive(Clone, Copy, Debug)]
pub struct Tumbling {
    size_ms: i64,
    offset_ms: i64,
}

impl Tumbling {
    /// Windows of `size_ms` that start at multiples of it, plus `offset_ms`.
    ///
    /// # Errors
    /// When the size is not above 0.
    pub fn new(size_ms: i64, offset_ms: i64) -> Result<Self> {
        let size_ms = positive("size", size_ms)?;
        Ok(Self { size_ms, offset_ms })
    }
}

impl Assigner for Tumbling {
    fn assign(&self, row: &AssignedRow<'_>, windows: &mut Vec<Bounds>) -> Result<()> {
        let start_ms = start_of(row.time_ms, self.offset_ms, self.size_ms);
        windows.push(Bounds {
            start_ms,
            end_ms: start_ms.saturating_add(self.size_ms),
        });
        Ok(())
    }
}

/// Windows of one size that start every so often. A row between two windows (a slide above the size) is in none.
#[derive(Clone, Copy, Debug)]
pub struct Sliding {
    size_ms: i64,
    slide_ms: i64,
    offset_ms: i64,
}

impl Sliding {
    /// Windows of `size_ms` that start every `slide_ms`, at multiples of it plus `offset_ms`.
    ///
    /// # Errors
    /// When size or slide is not above 0.
    pub fn new(size_ms: i64, slide_ms: i64, offset_ms: i64) -> Result<Self> {
        Ok(Self {
            size_ms: positive("size", size_ms)?,
            slide_ms: positive("slide", slide_ms)?,
            offset_ms,
        })
    }
}

impl Assigner for Sliding {
    fn assign(&self, row: &AssignedRow<'_>, windows: &mut Vec<Bounds>) -> Result<()> {
        let mut start_ms = start_of(row.time_ms, self.offset_ms, self.slide_ms);
        while start_ms > row.time_ms.saturating_sub(self.size_ms) {
            windows.push(Bounds {
                start_ms,
                end_ms: start_ms.saturating_add(self.size_ms),
            });
            let Some(next) = start_ms.checked_sub(self.slide_ms) else {
                break;
            };
            start_ms = next;
        }
        Ok(())
    }
}

/// Windows of one start that grow step by step up to a size, then start anew.
#[derive(Clone, Copy, Debug)]
pub struct Cumulate {
    step_ms: i64,
    max_ms: i64,
    offset_ms: i64,
}

impl Cumulate {
    /// Windows that grow by `step_ms` up to `max_ms`.
    ///
    /// # Errors
    /// When the step is not above 0, or the size no multiple of it.
    pub fn new(step_ms: i64, max_ms: i64, offset_ms: i64) -> Result<Self> {
        let (step_ms, max_ms) = (positive("step", step_ms)?, positive("size", max_ms)?);
        if max_ms % step_ms != 0 {
            return Err(EngineError::Plan(format!(
                "the size of a cumulating window, {max_ms} ms, is not a multiple of its step, {step_ms} ms"
            )));
        }
        Ok(Self {
            step_ms,
            max_ms,
            offset_ms,
        })
    }
}

impl Assigner for Cumulate {
    fn assign(&self, row: &AssignedRow<'_>, windows: &mut Vec<Bounds>) -> Result<()> {
        let start_ms = start_of(row.time_ms, self.offset_ms, self.max_ms);
        let mut end_ms = start_of(row.time_ms, start_ms, self.step_ms).saturating_add(self.step_ms);
        let last = start_ms.saturating_add(self.max_ms);
        while end_ms <= last {
            windows.push(Bounds { start_ms, end_ms });
            let Some(next) = end_ms.checked_add(self.step_ms) else {
                break;
            };
            end_ms = next;
        }
        Ok(())
    }
}

/// Rows of one key no two of which, one after the other, are the gap or more apart.
#[derive(Clone, Copy, Debug)]
pub struct Session {
    gap_ms: i64,
}

impl Session {
    /// Sessions that `gap_ms` of silence ends.
    ///
    /// # Errors
    /// When the gap is not above 0.
    pub fn new(gap_ms: i64) -> Result<Self> {
        let gap_ms = positive("gap", gap_ms)?;
        Ok(Self { gap_ms })
    }
}

impl Assigner for Session {
    fn assign(&self, row: &AssignedRow<'_>, windows: &mut Vec<Bounds>) -> Result<()> {
        windows.push(Bounds {
            start_ms: row.time_ms,
            end_ms: row.time_ms.saturating_add(self.gap_ms),
        });
        Ok(())
    }

    fn merges(&self) -> bool {
        true
    }
}

/// One window for all rows of a key. Its results tell the time of their rows as the window's bounds.
#[derive(Clone, Copy, Debug)]
pub struct Global;

impl Assigner for Global {
    fn assign(&self, _row: &AssignedRow<'_>, windows: &mut Vec<Bounds>) -> Result<()> {
        windows.push(Bounds::GLOBAL);
        Ok(())
    }
}

/// One window from a fixed moment on, without an end. Rows before it are in none.
#[derive(Clone, Copy, Debug)]
pub struct Landmark {
    /// Where the window starts.
    pub start_ms: i64,
}

impl Assigner for Landmark {
    fn assign(&self, row: &AssignedRow<'_>, windows: &mut Vec<Bounds>) -> Result<()> {
        if row.time_ms >= self.start_ms {
            windows.push(Bounds {
                start_ms: self.start_ms,
                end_ms: i64::MAX,
            });
        }
        Ok(())
    }
}
