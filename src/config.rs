//! How a session is set up.

use std::path::PathBuf;

use thalweg_memory::SpillCompression;
use thalweg_optimizer::LoweringOptions;

/// How a session is set up. The fields are the session's defaults; `SET` changes the ones marked with a key.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Subtasks per vertex (`parallelism.default`), from 1 to 128.
    pub parallelism: usize,
    /// The memory budget in bytes (`taskmanager.memory.managed.size`); fixed for the session.
    pub memory_bytes: usize,
    /// Rows that a batch should have (`execution.batch-size`).
    pub batch_size: usize,
    /// How long an exchange may hold rows back, in ms; -1 = until a batch is full (`execution.buffer-timeout`).
    pub buffer_timeout_ms: i64,
    /// Build sides up to this size are broadcast (`table.optimizer.join.broadcast-threshold`), in bytes.
    pub broadcast_threshold_bytes: usize,
    /// Every exchange materializes its input before the consumer starts (`execution.batch-shuffle-mode`).
    pub blocking_exchanges: bool,
    /// The build sides of joins tell the scans of the probe sides which keys can match
    /// (`table.optimizer.runtime-filter.enabled`).
    pub runtime_filters: bool,
    /// Only scans of so many rows look at such filters; 0 = all that may
    /// (`table.optimizer.runtime-filter.min-probe-rows`).
    pub runtime_filter_min_rows: usize,
    /// Send every job graph through its serialized form before it runs (`thalweg.serialize-job-graphs`): what a
    /// cluster does; here for tests.
    pub serialize_job_graphs: bool,
    /// Where spill files go (`io.tmp.dirs`).
    pub spill_directory: PathBuf,
    /// How spill files are compressed (`taskmanager.memory.spill.compression`).
    pub spill_compression: SpillCompression,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            parallelism: std::thread::available_parallelism().map_or(1, usize::from),
            memory_bytes: machine_memory_bytes() / 10 * 6,
            batch_size: 8192,
            buffer_timeout_ms: -1,
            broadcast_threshold_bytes: LoweringOptions::BROADCAST_THRESHOLD_BYTES,
            blocking_exchanges: false,
            runtime_filters: true,
            runtime_filter_min_rows: LoweringOptions::RUNTIME_FILTER_MIN_ROWS,
            serialize_job_graphs: false,
            spill_directory: std::env::temp_dir(),
            spill_compression: SpillCompression::None,
        }
    }
}

/// The memory of the machine or, where a smaller one is set, of its control group.
fn machine_memory_bytes() -> usize {
    const FALLBACK_BYTES: usize = 4 << 30;
    let total = std::fs::read_to_string("/proc/meminfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("MemTotal:"))?;
        let kib: usize = line.split_whitespace().nth(1)?.parse().ok()?;
        kib.checked_mul(1024)
    });
    let group = std::fs::read_to_string("/sys/fs/cgroup/memory.max")
        .ok()
        .and_then(|text| text.trim().parse::<usize>().ok());
    match (total, group) {
        (Some(total), Some(group)) => total.min(group),
        (Some(bytes), None) | (None, Some(bytes)) => bytes,
        (None, None) => FALLBACK_BYTES,
    }
}
