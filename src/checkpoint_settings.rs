//! The settings of checkpoints, recovery and restarts, under Flink's names.

use std::collections::BTreeMap;
use std::time::Duration;

use thalweg_engine::checkpoint::coordinator::CheckpointOptions;
use thalweg_engine::data::Alignment;
use thalweg_engine::runtime::RestartStrategy;

use crate::settings::{Setting, duration, whole};

/// How a session's jobs take checkpoints, and what they do after a failure.
#[derive(Clone, Debug, PartialEq)]
pub struct CheckpointConfig {
    /// The folder or URL below which jobs keep checkpoints, each in a folder of its name (`execution.checkpointing.dir`). Without it
    /// there are none.
    pub directory: Option<String>,
    /// Milliseconds between two checkpoints (`execution.checkpointing.interval`); 0: only at the end and when asked for.
    pub interval_ms: u64,
    /// Whether rows count exactly once after a failure, or at least once (`execution.checkpointing.mode`).
    pub exactly_once: bool,
    /// Milliseconds after which a checkpoint is discarded (`execution.checkpointing.timeout`).
    pub timeout_ms: u64,
    /// Milliseconds between the end of one and the start of the next (`execution.checkpointing.min-pause`).
    pub min_pause_ms: u64,
    /// Checkpoints under way at once (`execution.checkpointing.max-concurrent-checkpoints`).
    pub max_concurrent: usize,
    /// Failures in a row that are borne (`execution.checkpointing.tolerable-failed-checkpoints`).
    pub tolerable_failures: u32,
    /// Whether barriers overtake rows (`execution.checkpointing.unaligned.enabled`).
    pub unaligned: bool,
    /// Milliseconds that a barrier waits before it overtakes; 0: at once (`execution.checkpointing.aligned-checkpoint-timeout`).
    pub aligned_timeout_ms: u64,
    /// Whether only changes are written (`execution.checkpointing.incremental`).
    pub incremental: bool,
    /// Complete checkpoints that are kept (`execution.checkpointing.num-retained`).
    pub retained: usize,
    /// Whether the last one stays when the job finishes (`execution.checkpointing.externalized-checkpoint-retention`).
    pub keep_at_end: bool,
    /// How state is compressed: `none`, `lz4`, `zstd` (`execution.checkpointing.compression`).
    pub compression: String,
    /// Where savepoints go (`execution.checkpointing.savepoint-dir`).
    pub savepoint_directory: Option<String>,
    /// The savepoint or checkpoint that the next jobs start from (`execution.state-recovery.path`).
    pub recovery_path: Option<String>,
    /// Whether state that no operator claims is dropped (`execution.state-recovery.ignore-unclaimed-state`).
    pub ignore_unclaimed: bool,
    /// New names of columns of state, `old:new` separated by commas (`execution.state-recovery.renamed-columns`).
    pub renamed: BTreeMap<String, String>,
    /// The name under which a job finds its checkpoints again (`pipeline.name`); its sinks' names unless set.
    pub job_name: Option<String>,
    /// `restart-strategy.type` and what belongs to it.
    pub restart: RestartConfig,
}

/// `restart-strategy.*`.
#[derive(Clone, Debug, PartialEq)]
pub struct RestartConfig {
    /// `none`, `fixed-delay`, `exponential-delay`, `failure-rate`; unset: exponential-delay with checkpoints, else none.
    pub kind: Option<String>,
    /// Attempts of fixed-delay and exponential-delay; 0 = for ever.
    pub attempts: u32,
    /// The delay of fixed-delay and failure-rate, in ms.
    pub delay_ms: u64,
    /// The first delay of exponential-delay, in ms.
    pub initial_ms: u64,
    /// The longest delay of exponential-delay, in ms.
    pub max_ms: u64,
    /// The failures that failure-rate bears in its interval.
    pub max_failures: u32,
    /// The interval of failure-rate, in ms.
    pub failure_interval_ms: u64,
}

impl Default for CheckpointConfig {
    fn default() -> Self {
        Self {
            directory: None,
            interval_ms: 0,
            exactly_once: true,
            timeout_ms: 600_000,
            min_pause_ms: 0,
            max_concurrent: 1,
            tolerable_failures: 0,
            unaligned: false,
            aligned_timeout_ms: 0,
            incremental: true,
            retained: 1,
            keep_at_end: false,
            compression: "none".into(),
            savepoint_directory: None,
            recovery_path: None,
            ignore_unclaimed: false,
            renamed: BTreeMap::new(),
            job_name: None,
            restart: RestartConfig {
                kind: None,
                attempts: 1,
                delay_ms: 1000,
                initial_ms: 1000,
                max_ms: 60_000,
                max_failures: 1,
                failure_interval_ms: 60_000,
            },
        }
    }
}

impl CheckpointConfig {
    /// For the coordinator.
    pub(crate) fn options(&self) -> CheckpointOptions {
        let alignment = match (self.exactly_once, self.unaligned, self.aligned_timeout_ms) {
            (false, _, _) => Alignment::AtLeastOnce,
            (true, false, _) => Alignment::Aligned { timeout_ms: None },
            (true, true, 0) => Alignment::Unaligned,
            (true, true, timeout) => Alignment::Aligned {
                timeout_ms: Some(timeout),
            },
        };
        CheckpointOptions {
            interval: Some(Duration::from_millis(self.interval_ms)).filter(|interval| !interval.is_zero()),
            timeout: Duration::from_millis(self.timeout_ms),
            min_pause: Duration::from_millis(self.min_pause_ms),
            // Barriers that overtake rows cannot overtake one another.
            max_concurrent: if self.unaligned { 1 } else { self.max_concurrent },
            tolerable_failures: self.tolerable_failures,
            alignment,
            incremental: self.incremental,
            retained: self.retained,
            keep_at_end: self.keep_at_end,
        }
    }

    /// For the runtime; `checkpointed`: whether the job takes checkpoints.
    pub(crate) fn restart_strategy(&self, checkpointed: bool) -> RestartStrategy {
        let restart = &self.restart;
        let delay = Duration::from_millis(restart.delay_ms);
        match restart.kind.as_deref() {
            Some("fixed-delay") => RestartStrategy::FixedDelay {
                attempts: restart.attempts,
                delay,
            },
            Some("failure-rate") => RestartStrategy::FailureRate {
                max_failures: restart.max_failures,
                interval: Duration::from_millis(restart.failure_interval_ms),
                delay,
            },
            Some("exponential-delay") => self.exponential(restart.attempts),
            None if checkpointed => self.exponential(0),
            _ => RestartStrategy::None,
        }
    }

    fn exponential(&self, attempts: u32) -> RestartStrategy {
        RestartStrategy::ExponentialDelay {
            initial: Duration::from_millis(self.restart.initial_ms),
            max: Duration::from_millis(self.restart.max_ms),
            multiplier: 1.5,
            reset_after: Duration::from_secs(3600),
            attempts,
        }
    }
}

fn text(value: &Option<String>) -> String {
    value.clone().unwrap_or_else(|| "none".into())
}

fn optional(value: &str) -> Option<String> {
    Some(value.trim().to_string()).filter(|value| !value.is_empty() && value != "none")
}

fn truth(value: &str) -> Result<bool, String> {
    value.parse().map_err(|_| "expected true or false".to_string())
}

macro_rules! setting {
    ($key:literal, $config:ident => $get:expr, $value:ident => $set:expr) => {
        Setting {
            key: $key,
            get: |config| {
                let $config = &config.checkpoints;
                $get
            },
            set: |config, $value| {
                let $config = &mut config.checkpoints;
                $set;
                Ok(())
            },
        }
    };
}

fn ms(ms: u64) -> String {
    format!("{ms} ms")
}

/// The settings; see [`CheckpointConfig`].
pub(crate) const SETTINGS: &[Setting] = &[
    setting!("execution.checkpointing.dir", c => text(&c.directory), v => c.directory = optional(v)),
    setting!("execution.checkpointing.interval", c => ms(c.interval_ms), v => c.interval_ms = duration(v)?),
    setting!(
        "execution.checkpointing.mode",
        c => if c.exactly_once { "exactly-once".into() } else { "at-least-once".into() },
        v => c.exactly_once = match v.to_ascii_lowercase().replace('_', "-").as_str() {
            "exactly-once" => true,
            "at-least-once" => false,
            _ => return Err("expected exactly-once or at-least-once".into()),
        }
    ),
    setting!("execution.checkpointing.timeout", c => ms(c.timeout_ms), v => c.timeout_ms = duration(v)?.max(1)),
    setting!("execution.checkpointing.min-pause", c => ms(c.min_pause_ms), v => c.min_pause_ms = duration(v)?),
    setting!(
        "execution.checkpointing.max-concurrent-checkpoints",
        c => c.max_concurrent.to_string(),
        v => c.max_concurrent = whole(v, 1, 64)?
    ),
    setting!(
        "execution.checkpointing.tolerable-failed-checkpoints",
        c => c.tolerable_failures.to_string(),
        v => c.tolerable_failures = whole(v, 0, u32::MAX as usize)? as u32
    ),
    setting!("execution.checkpointing.unaligned.enabled", c => c.unaligned.to_string(), v => c.unaligned = truth(v)?),
    setting!(
        "execution.checkpointing.aligned-checkpoint-timeout",
        c => ms(c.aligned_timeout_ms),
        v => c.aligned_timeout_ms = duration(v)?
    ),
    setting!("execution.checkpointing.incremental", c => c.incremental.to_string(), v => c.incremental = truth(v)?),
    setting!("execution.checkpointing.num-retained", c => c.retained.to_string(), v => c.retained = whole(v, 1, 1000)?),
    setting!(
        "execution.checkpointing.externalized-checkpoint-retention",
        c => if c.keep_at_end { "RETAIN_AT_END".into() } else { "RETAIN_ON_CANCELLATION".into() },
        v => c.keep_at_end = match v {
            "RETAIN_AT_END" => true,
            "RETAIN_ON_CANCELLATION" => false,
            _ => return Err("expected RETAIN_ON_CANCELLATION or RETAIN_AT_END".into()),
        }
    ),
    setting!(
        "execution.checkpointing.compression",
        c => c.compression.clone(),
        v => c.compression = match v {
            "none" | "lz4" | "zstd" => v.to_string(),
            _ => return Err("expected none, lz4 or zstd".into()),
        }
    ),
    setting!(
        "execution.checkpointing.savepoint-dir",
        c => text(&c.savepoint_directory),
        v => c.savepoint_directory = optional(v)
    ),
    setting!("execution.state-recovery.path", c => text(&c.recovery_path), v => c.recovery_path = optional(v)),
    setting!(
        "execution.state-recovery.ignore-unclaimed-state",
        c => c.ignore_unclaimed.to_string(),
        v => c.ignore_unclaimed = truth(v)?
    ),
    setting!(
        "execution.state-recovery.renamed-columns",
        c => c.renamed.iter().map(|(old, new)| format!("{old}:{new}")).collect::<Vec<_>>().join(","),
        v => c.renamed = renamed(v)?
    ),
    setting!("pipeline.name", c => text(&c.job_name), v => c.job_name = optional(v)),
    setting!(
        "restart-strategy.type",
        c => c.restart.kind.clone().unwrap_or_else(|| "exponential-delay with checkpoints, else none".into()),
        v => c.restart.kind = match v {
            "none" | "fixed-delay" | "exponential-delay" | "failure-rate" => Some(v.to_string()),
            _ => return Err("expected none, fixed-delay, exponential-delay or failure-rate".into()),
        }
    ),
    setting!(
        "restart-strategy.fixed-delay.attempts",
        c => c.restart.attempts.to_string(),
        v => c.restart.attempts = whole(v, 0, u32::MAX as usize)? as u32
    ),
    setting!("restart-strategy.fixed-delay.delay", c => ms(c.restart.delay_ms), v => c.restart.delay_ms = duration(v)?),
    setting!(
        "restart-strategy.exponential-delay.initial-backoff",
        c => ms(c.restart.initial_ms),
        v => c.restart.initial_ms = duration(v)?
    ),
    setting!(
        "restart-strategy.exponential-delay.max-backoff",
        c => ms(c.restart.max_ms),
        v => c.restart.max_ms = duration(v)?
    ),
    setting!(
        "restart-strategy.exponential-delay.attempts-before-reset-backoff",
        c => c.restart.attempts.to_string(),
        v => c.restart.attempts = whole(v, 0, u32::MAX as usize)? as u32
    ),
    setting!(
        "restart-strategy.failure-rate.max-failures-per-interval",
        c => c.restart.max_failures.to_string(),
        v => c.restart.max_failures = whole(v, 0, u32::MAX as usize)? as u32
    ),
    setting!(
        "restart-strategy.failure-rate.failure-rate-interval",
        c => ms(c.restart.failure_interval_ms),
        v => c.restart.failure_interval_ms = duration(v)?
    ),
    setting!("restart-strategy.failure-rate.delay", c => ms(c.restart.delay_ms), v => c.restart.delay_ms = duration(v)?),
];

fn renamed(value: &str) -> Result<BTreeMap<String, String>, String> {
    let pairs = value.split(',').map(str::trim).filter(|pair| !pair.is_empty());
    pairs
        .map(|pair| {
            let (old, new) = pair.split_once(':').ok_or("expected old:new, separated by commas")?;
            Ok((old.trim().to_string(), new.trim().to_string()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use crate::config::SessionConfig;
    use crate::settings::set;

    use super::*;

    #[test]
    fn settings_become_options() {
        let mut config = SessionConfig::default();
        for (key, value) in [
            ("execution.checkpointing.interval", "1s"),
            ("execution.checkpointing.unaligned.enabled", "true"),
            ("execution.checkpointing.aligned-checkpoint-timeout", "50 ms"),
            ("execution.checkpointing.max-concurrent-checkpoints", "3"),
            ("execution.state-recovery.renamed-columns", "a:b, c:d"),
            ("restart-strategy.type", "fixed-delay"),
            ("restart-strategy.fixed-delay.attempts", "7"),
        ] {
            assert!(set(&mut config, key, value).unwrap(), "{key}");
        }
        let options = config.checkpoints.options();
        assert_eq!(options.interval, Some(Duration::from_secs(1)));
        assert_eq!(options.alignment, Alignment::Aligned { timeout_ms: Some(50) });
        assert_eq!(options.max_concurrent, 1);
        assert_eq!(config.checkpoints.renamed["c"], "d");
        let restart = config.checkpoints.restart_strategy(true);
        assert!(matches!(restart, RestartStrategy::FixedDelay { attempts: 7, .. }));
        assert_eq!(
            CheckpointConfig::default().restart_strategy(false),
            RestartStrategy::None
        );
        assert!(set(&mut config, "execution.checkpointing.mode", "twice").is_err());
        set(&mut config, "execution.checkpointing.mode", "AT_LEAST_ONCE").unwrap();
        assert_eq!(config.checkpoints.options().alignment, Alignment::AtLeastOnce);
    }
}
