//! How a session is set up.

use std::path::PathBuf;

use thalweg_memory::SpillCompression;
use thalweg_optimizer::LoweringOptions;

use crate::checkpoint_settings::CheckpointConfig;

/// How queries run (`execution.runtime-mode`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RuntimeMode {
    /// Bounded input, one final result.
    Batch,
    /// Results as soon as they are known; a result that changes is a changelog.
    Streaming,
    /// Batch when all sources are bounded, else streaming.
    #[default]
    Automatic,
}

/// How a session is set up. The fields are the session's defaults; `SET` changes the ones marked with a key.
#[derive(Clone, Debug)]
pub struct SessionConfig {
    /// Subtasks per vertex (`parallelism.default`), from 1 to 128.
    pub parallelism: usize,
    /// The memory budget in bytes (`taskmanager.memory.managed.size`); fixed for the session.
    pub memory_bytes: usize,
    /// Rows that a batch should have (`execution.batch-size`).
    pub batch_size: usize,
    /// How long an exchange may hold rows back, in ms; -1 = until a batch is full (`execution.buffer-timeout`). Unless set,
    /// -1 for batch jobs and 100 for streaming jobs.
    pub buffer_timeout_ms: Option<i64>,
    /// Batch, streaming, or whichever fits the sources (`execution.runtime-mode`).
    pub runtime_mode: RuntimeMode,
    /// How often sources hand on a watermark, in ms; 0 = with each batch (`pipeline.auto-watermark-interval`).
    pub watermark_interval_ms: u64,
    /// A source that has been silent for so long, in ms, holds back no watermark; 0 = never
    /// (`table.exec.source.idle-timeout`).
    pub idle_timeout_ms: u64,
    /// A split whose watermark is further ahead of the slowest than this, in ms, is not read until that has caught up
    /// (`pipeline.watermark-alignment.allow-drift`); never held back when `None`.
    pub max_drift_ms: Option<u64>,
    /// State of streaming queries that has not changed for so long, in ms, is forgotten; 0 = kept for ever
    /// (`table.exec.state.ttl`).
    pub state_ttl_ms: u64,
    /// How many bytes make a batch full for an exchange of a streaming job (`taskmanager.memory.segment-size`).
    pub segment_bytes: usize,
    /// How often sources send a latency marker, in ms (`metrics.latency.interval`).
    pub latency_interval_ms: Option<u64>,
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
    /// Checkpoints, recovery and restarts.
    pub checkpoints: CheckpointConfig,
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
            buffer_timeout_ms: None,
            runtime_mode: RuntimeMode::Automatic,
            watermark_interval_ms: 200,
            idle_timeout_ms: 0,
            max_drift_ms: None,
            state_ttl_ms: 0,
            segment_bytes: 24 << 10,
            latency_interval_ms: None,
            broadcast_threshold_bytes: LoweringOptions::BROADCAST_THRESHOLD_BYTES,
            blocking_exchanges: false,
            runtime_filters: true,
            runtime_filter_min_rows: LoweringOptions::RUNTIME_FILTER_MIN_ROWS,
            serialize_job_graphs: false,
            checkpoints: CheckpointConfig::default(),
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
