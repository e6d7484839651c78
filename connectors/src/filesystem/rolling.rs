//! When part files are finished and shown before the job ends: a stream without end would hide its output for ever.

#[cfg(test)]
mod tests;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::filesystem::storage::StagedFile;

/// What the options `sink.rolling-policy.*` say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RollingOptions {
    /// A file of so many bytes is finished.
    pub file_bytes: Option<u64>,
    /// A file is finished so long after it was begun.
    pub rollover_interval: Option<Duration>,
    /// A file is finished when it has not been written to for so long.
    pub inactivity_interval: Option<Duration>,
}

/// When the files of a job with checkpoints are shown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryGuarantee {
    /// With the checkpoint that their rows belong to: every row is seen once.
    ExactlyOnce,
    /// As soon as they are finished: after a failure some rows are seen again.
    AtLeastOnce,
}

impl DeliveryGuarantee {
    /// Reads Flink's name of it.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        match text.trim().to_lowercase().as_str() {
            "exactly-once" => Ok(Self::ExactlyOnce),
            "at-least-once" => Ok(Self::AtLeastOnce),
            _ => Err("must be exactly-once or at-least-once".into()),
        }
    }
}

/// When a file is finished.
#[derive(Clone, Copy, Debug)]
pub(super) struct RollingPolicy {
    file_bytes: u64,
    rollover_ms: i64,
    inactivity_ms: Option<i64>,
}

impl RollingPolicy {
    /// Flink's defaults, but for inactivity.
    const FILE_BYTES: u64 = 128 << 20;
    const ROLLOVER: Duration = Duration::from_secs(30 * 60);

    /// `None` where files are shown when the job is done, all or none.
    pub(super) fn of(options: &RollingOptions, endless: bool) -> Option<Self> {
        if !endless && *options == RollingOptions::default() {
            return None;
        }
        Some(Self {
            file_bytes: options.file_bytes.unwrap_or(Self::FILE_BYTES),
            rollover_ms: millis(options.rollover_interval.unwrap_or(Self::ROLLOVER)),
            inactivity_ms: options.inactivity_interval.map(millis),
        })
    }

    /// Whether a file has grown enough.
    pub(super) fn is_full(&self, bytes: u64) -> bool {
        bytes >= self.file_bytes
    }

    /// When a file that was begun and last written to at these times is finished, however small it is.
    pub(super) fn due_ms(&self, begun_ms: i64, written_ms: i64) -> i64 {
        let due = begun_ms.saturating_add(self.rollover_ms);
        let silent = self.inactivity_ms.map(|silence| written_ms.saturating_add(silence));
        silent.map_or(due, |silent| due.min(silent))
    }
}

fn millis(duration: Duration) -> i64 {
    i64::try_from(duration.as_millis()).unwrap_or(i64::MAX)
}

/// A staged file whose bytes are counted.
pub(super) struct Counted {
    file: Box<dyn StagedFile>,
    bytes: Arc<AtomicU64>,
}

impl Counted {
    /// Counts into `bytes`.
    pub(super) fn new(file: Box<dyn StagedFile>, bytes: Arc<AtomicU64>) -> Self {
        Self { file, bytes }
    }
}

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.bytes.fetch_add(written as u64, Ordering::Relaxed);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl StagedFile for Counted {
    fn complete(self: Box<Self>) -> io::Result<()> {
        self.file.complete()
    }
}
