//! The progress line on stderr: shown when a query takes long and someone may be watching.

use std::io::{self, IsTerminal};
use std::time::Duration;

use indicatif::{BinaryBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};
use thalweg::{Progress, ProgressHandle};

/// How often the line is brought up to date.
pub(crate) const TICK: Duration = Duration::from_millis(100);

/// Queries shorter than this show nothing.
const PATIENCE: Duration = Duration::from_millis(300);

/// The line of one query; removed when dropped.
pub(crate) struct Meter {
    handle: ProgressHandle,
    wanted: bool,
    bar: Option<ProgressBar>,
}

impl Meter {
    /// A line that appears once it is worth it, and never when stderr is not a terminal.
    pub(crate) fn new(handle: ProgressHandle) -> Self {
        Self {
            handle,
            wanted: io::stderr().is_terminal(),
            bar: None,
        }
    }

    /// Shows how far the query has come.
    pub(crate) fn tick(&mut self) {
        if !self.wanted {
            return;
        }
        let progress = self.handle.snapshot();
        if progress.elapsed < PATIENCE {
            return;
        }
        let bar = self.bar.get_or_insert_with(new_bar);
        bar.set_message(describe(&progress));
        bar.tick();
    }

    /// Removes the line; rows that appear on the terminal from now on show the progress themselves.
    pub(crate) fn retire(&mut self) {
        self.wanted = false;
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        self.retire();
    }
}

fn new_bar() -> ProgressBar {
    let style =
        ProgressStyle::with_template("{spinner} {wide_msg}").unwrap_or_else(|_| ProgressStyle::default_spinner());
    ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr()).with_style(style)
}

/// One line for people.
fn describe(progress: &Progress) -> String {
    let seconds = progress.elapsed.as_secs_f64();
    let mut parts = vec![
        format!("{seconds:.1} s"),
        format!("{} rows read", HumanCount(progress.rows_read)),
    ];
    if progress.bytes_read > 0 {
        parts.push(BinaryBytes(progress.bytes_read).to_string());
    }
    if progress.splits_total > 0 {
        let share = 100.0 * progress.splits_done as f64 / progress.splits_total as f64;
        parts.push(format!("{share:.0} % of {} splits", progress.splits_total));
    }
    if seconds > 0.0 {
        parts.push(format!(
            "{} rows/s",
            HumanCount((progress.rows_read as f64 / seconds) as u64)
        ));
    }
    if progress.rows_out > 0 {
        parts.push(format!("{} rows out", HumanCount(progress.rows_out)));
    }
    format!("{} (Ctrl-C cancels)", parts.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_what_is_known() {
        let mut progress = Progress {
            rows_read: 3_000_000,
            bytes_read: 5 << 20,
            rows_out: 0,
            splits_done: 3,
            splits_total: 12,
            spilled_bytes: 0,
            elapsed: Duration::from_millis(1500),
        };
        assert_eq!(
            describe(&progress),
            "1.5 s, 3,000,000 rows read, 5.00 MiB, 25 % of 12 splits, 2,000,000 rows/s (Ctrl-C cancels)"
        );
        progress.splits_total = 0;
        progress.bytes_read = 0;
        assert_eq!(
            describe(&progress),
            "1.5 s, 3,000,000 rows read, 2,000,000 rows/s (Ctrl-C cancels)"
        );
    }
}
