//! Which rows of a window a firing leaves out, and the window forgets (before its function is called).

use std::fmt::Debug;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Float64Type};

use crate::data::{EngineError, Result};
use crate::plan::ScalarExpr;

/// The rows of a window that fires, in the order in which they came.
pub struct EvictedRows<'a> {
    /// The time of each row.
    pub times_ms: &'a [i64],
    /// What [`Evictor::inputs`] asked for, of these rows.
    pub inputs: &'a [ArrayRef],
}

/// Chooses the rows that a window forgets when it fires.
pub trait Evictor: Debug + Send + Sync {
    /// Sets `keep` to false for the rows to forget; it is all true before.
    ///
    /// # Errors
    /// When the inputs are not what they should be.
    fn evict(&self, rows: &EvictedRows<'_>, keep: &mut [bool]) -> Result<()>;

    /// Expressions over the input that `evict` looks at.
    fn inputs(&self) -> Vec<ScalarExpr> {
        Vec::new()
    }
}

/// Keeps the rows that came last.
#[derive(Clone, Copy, Debug)]
pub struct KeepLast(pub usize);

impl Evictor for KeepLast {
    fn evict(&self, _rows: &EvictedRows<'_>, keep: &mut [bool]) -> Result<()> {
        let gone = keep.len().saturating_sub(self.0);
        keep[..gone].fill(false);
        Ok(())
    }
}

/// Keeps the rows that are less than so many milliseconds older than the youngest.
#[derive(Clone, Copy, Debug)]
pub struct KeepRecent(pub i64);

impl Evictor for KeepRecent {
    fn evict(&self, rows: &EvictedRows<'_>, keep: &mut [bool]) -> Result<()> {
        let Some(youngest) = rows.times_ms.iter().max() else {
            return Ok(());
        };
        let cut = youngest.saturating_sub(self.0);
        for (keep, time) in keep.iter_mut().zip(rows.times_ms) {
            *keep = *time > cut;
        }
        Ok(())
    }
}

/// Keeps the rows whose value is less than `threshold` away from that of the last one. NULL is no distance away.
#[derive(Clone, Debug)]
pub struct KeepNear {
    /// The value, a number.
    pub value: ScalarExpr,
    /// From which distance on rows go.
    pub threshold: f64,
}

impl Evictor for KeepNear {
    fn evict(&self, rows: &EvictedRows<'_>, keep: &mut [bool]) -> Result<()> {
        let values = as_numbers(&rows.inputs[0])?;
        let values = values.as_primitive::<Float64Type>();
        let Some(last) = values.len().checked_sub(1).filter(|last| values.is_valid(*last)) else {
            return Ok(());
        };
        let last = values.value(last);
        for (row, keep) in keep.iter_mut().enumerate() {
            *keep = values.is_null(row) || (values.value(row) - last).abs() < self.threshold;
        }
        Ok(())
    }

    fn inputs(&self) -> Vec<ScalarExpr> {
        vec![self.value.clone()]
    }
}

/// A column as floats.
///
/// # Errors
/// When it holds no numbers.
pub(super) fn as_numbers(column: &ArrayRef) -> Result<ArrayRef> {
    if !column.data_type().is_numeric() {
        return Err(EngineError::Plan(format!(
            "a change is measured between numbers, not between {}",
            column.data_type()
        )));
    }
    Ok(cast(column, &DataType::Float64)?)
}
