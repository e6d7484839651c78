//! How time is cut into slices, and which windows a slice is part of.
//!
//! A slice is named by its end. All windows are unions of consecutive slices: a row is kept once, in its slice, however
//! many windows it is in.

use crate::data::{EngineError, Result};
use crate::plan::WindowKind;

/// Slices and windows of one kind.
#[derive(Clone, Copy, Debug)]
pub(super) struct Slicing {
    kind: Kind,
    /// Length of a slice: windows end at multiples of it (plus the offset).
    slice_ms: i64,
    offset_ms: i64,
    /// Length of the longest windows.
    size_ms: i64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Every window is `size_ms` long; tumbling windows have one slice.
    Hop,
    /// Windows share a start and grow.
    Cumulate,
    /// Rows come with their window's end, each window is a slice.
    Attached,
}

impl Slicing {
    /// The slices of these windows.
    ///
    /// # Errors
    /// When lengths are not positive or do not go into each other, or the windows are sessions.
    pub(super) fn new(window: WindowKind) -> Result<Self> {
        let (kind, slice_ms, size_ms, offset_ms) = match window {
            WindowKind::Tumble { size_ms, offset_ms } => (Kind::Hop, size_ms, size_ms, offset_ms),
            WindowKind::Hop {
                size_ms,
                slide_ms,
                offset_ms,
            } => (Kind::Hop, slide_ms, size_ms, offset_ms),
            WindowKind::Cumulate {
                max_ms,
                step_ms,
                offset_ms,
            } => (Kind::Cumulate, step_ms, max_ms, offset_ms),
            WindowKind::Session { .. } => return Err(EngineError::Internal("sessions have no slices".into())),
        };
        if slice_ms <= 0 || size_ms <= 0 || size_ms > i64::MAX / 8 {
            return Err(EngineError::Plan(format!(
                "a window's size and its slide or step must be positive and not absurd, not {size_ms} ms and {slice_ms} ms"
            )));
        }
        if size_ms % slice_ms != 0 {
            return Err(EngineError::Plan(format!(
                "the size of a window ({size_ms} ms) must be a multiple of its slide or step ({slice_ms} ms)"
            )));
        }
        Ok(Self {
            kind,
            slice_ms,
            offset_ms: offset_ms.rem_euclid(size_ms),
            size_ms,
        })
    }

    /// Windows that come with the rows.
    pub(super) fn attached() -> Self {
        Self {
            kind: Kind::Attached,
            slice_ms: 1,
            offset_ms: 0,
            size_ms: 1,
        }
    }

    /// The start of the slice that `time` is in.
    #[inline]
    pub(super) fn slice_start(&self, time: i64) -> i64 {
        time - (time - self.offset_ms).rem_euclid(self.slice_ms)
    }

    /// What the ends of slices mean: two of the same grid cut time at the same places.
    pub(super) fn grid(&self) -> (bool, i64, i64) {
        let attached = self.kind == Kind::Attached;
        (attached, self.slice_ms, self.offset_ms.rem_euclid(self.slice_ms))
    }

    /// Length of a slice.
    pub(super) fn slice_ms(&self) -> i64 {
        self.slice_ms
    }

    /// Slices counted through: neighbours have neighbouring numbers.
    pub(super) fn number(&self, slice_end: i64) -> i64 {
        (slice_end - self.offset_ms).div_euclid(self.slice_ms)
    }

    /// The end of the slice with this number.
    pub(super) fn end_of(&self, number: i64) -> i64 {
        number * self.slice_ms + self.offset_ms
    }

    /// How many slices the longest windows have.
    pub(super) fn slices_per_window(&self) -> i64 {
        self.size_ms / self.slice_ms
    }

    /// Whether windows share a start and grow.
    pub(super) fn is_cumulative(&self) -> bool {
        self.kind == Kind::Cumulate
    }

    /// Where the last window that holds the slice ends.
    pub(super) fn last_window_end(&self, slice_end: i64) -> i64 {
        match self.kind {
            Kind::Hop => slice_end + self.size_ms - self.slice_ms,
            Kind::Cumulate => self.cumulate_start(slice_end) + self.size_ms,
            Kind::Attached => slice_end,
        }
    }

    /// Where the first window that holds the slice and ends after `after` ends.
    pub(super) fn next_window_end(&self, slice_end: i64, after: Option<i64>) -> Option<i64> {
        let end = match after {
            Some(after) if after >= slice_end => {
                if after >= self.last_window_end(slice_end) {
                    return None;
                }
                slice_end + ((after - slice_end) / self.slice_ms + 1) * self.slice_ms
            }
            _ => slice_end,
        };
        (end <= self.last_window_end(slice_end)).then_some(end)
    }

    /// Where the window that ends at `end` starts. Not for attached windows.
    pub(super) fn window_start(&self, end: i64) -> i64 {
        match self.kind {
            Kind::Hop => end - self.size_ms,
            Kind::Cumulate => self.cumulate_start(end),
            Kind::Attached => end - 1,
        }
    }

    /// The common start of the windows of which one ends at `end`.
    fn cumulate_start(&self, end: i64) -> i64 {
        let last = end - 1;
        last - (last - self.offset_ms).rem_euclid(self.size_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ends(slicing: &Slicing, time: i64) -> Vec<i64> {
        let slice = slicing.slice_start(time) + slicing.slice_ms();
        let mut ends = Vec::new();
        while let Some(end) = slicing.next_window_end(slice, ends.last().copied()) {
            ends.push(end);
        }
        assert_eq!(ends.last(), Some(&slicing.last_window_end(slice)));
        ends
    }

    #[test]
    fn every_window_of_a_time_is_met_once() {
        let hop = Slicing::new(WindowKind::Hop {
            size_ms: 10,
            slide_ms: 5,
            offset_ms: 12,
        });
        let hop = hop.unwrap();
        assert_eq!(ends(&hop, 0), [2, 7]);
        assert_eq!(ends(&hop, -4), [-3, 2]);
        assert_eq!(hop.window_start(7), -3);
        let cumulate = Slicing::new(WindowKind::Cumulate {
            max_ms: 12,
            step_ms: 4,
            offset_ms: -1,
        });
        let cumulate = cumulate.unwrap();
        assert_eq!(ends(&cumulate, -1), [3, 7, 11]);
        assert_eq!(ends(&cumulate, 6), [7, 11]);
        assert_eq!(ends(&cumulate, -2), [-1]);
        assert_eq!([-1, 3, 11].map(|end| cumulate.window_start(end)), [-13, -1, -1]);
        let tumble = Slicing::new(WindowKind::Tumble {
            size_ms: 7,
            offset_ms: -3,
        });
        assert_eq!(ends(&tumble.unwrap(), -11), [-10]);
    }

    #[test]
    fn lengths_must_go_into_each_other() {
        let hop = |size_ms, slide_ms| {
            Slicing::new(WindowKind::Hop {
                size_ms,
                slide_ms,
                offset_ms: 0,
            })
        };
        assert!(hop(10, 3).is_err() && hop(3, 10).is_err() && hop(0, 1).is_err() && hop(10, -5).is_err());
        assert!(Slicing::new(WindowKind::Session { gap_ms: 1 }).is_err());
    }
}
