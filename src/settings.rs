//! `SET 'key' = 'value'`: Flink's names where the meaning is the same.

use datafusion::sql::sqlparser::tokenizer::Token;

use thalweg_memory::SpillCompression;

use crate::config::{RuntimeMode, SessionConfig};
use crate::error::{Error, Result};
use crate::script::tokenize;
use crate::suggest::closest;

/// A key that can be set, with how to show and change it.
pub(crate) struct Setting {
    pub(crate) key: &'static str,
    pub(crate) get: fn(&SessionConfig) -> String,
    pub(crate) set: fn(&mut SessionConfig, &str) -> std::result::Result<(), String>,
}

const SETTINGS: &[Setting] = &[
    Setting {
        key: "parallelism.default",
        get: |config| config.parallelism.to_string(),
        set: |config, value| {
            config.parallelism = whole(value, 1, 128)?;
            Ok(())
        },
    },
    Setting {
        key: "execution.runtime-mode",
        get: |config| format!("{:?}", config.runtime_mode).to_lowercase(),
        set: |config, value| {
            config.runtime_mode = match value.to_ascii_lowercase().as_str() {
                "batch" => RuntimeMode::Batch,
                "streaming" => RuntimeMode::Streaming,
                "automatic" => RuntimeMode::Automatic,
                _ => return Err("expected batch, streaming or automatic".into()),
            };
            Ok(())
        },
    },
    Setting {
        key: "pipeline.auto-watermark-interval",
        get: |config| format!("{} ms", config.watermark_interval_ms),
        set: |config, value| {
            config.watermark_interval_ms = duration(value)?;
            Ok(())
        },
    },
    Setting {
        key: "pipeline.watermark-alignment.allow-drift",
        get: |config| config.max_drift_ms.map_or("none".into(), |ms| format!("{ms} ms")),
        set: |config, value| {
            config.max_drift_ms = if value == "none" { None } else { Some(duration(value)?) };
            Ok(())
        },
    },
    Setting {
        key: "table.exec.source.idle-timeout",
        get: |config| format!("{} ms", config.idle_timeout_ms),
        set: |config, value| {
            config.idle_timeout_ms = duration(value)?;
            Ok(())
        },
    },
    Setting {
        key: "table.exec.state.ttl",
        get: |config| format!("{} ms", config.state_ttl_ms),
        set: |config, value| {
            config.state_ttl_ms = duration(value)?;
            Ok(())
        },
    },
    Setting {
        key: "taskmanager.memory.segment-size",
        get: |config| config.segment_bytes.to_string(),
        set: |config, value| {
            config.segment_bytes = whole(value, 1, 1 << 30)?;
            Ok(())
        },
    },
    Setting {
        key: "metrics.latency.interval",
        get: |config| {
            config
                .latency_interval_ms
                .map_or("0 ms".into(), |ms| format!("{ms} ms"))
        },
        set: |config, value| {
            config.latency_interval_ms = Some(duration(value)?).filter(|ms| *ms > 0);
            Ok(())
        },
    },
    Setting {
        key: "execution.batch-size",
        get: |config| config.batch_size.to_string(),
        set: |config, value| {
            config.batch_size = whole(value, 1, 1 << 20)?;
            Ok(())
        },
    },
    Setting {
        key: "execution.buffer-timeout",
        get: |config| match config.buffer_timeout_ms {
            None => "100 ms when streaming, else -1".into(),
            Some(-1) => "-1".into(),
            Some(ms) => format!("{ms} ms"),
        },
        set: |config, value| {
            config.buffer_timeout_ms = Some(milliseconds(value)?);
            Ok(())
        },
    },
    Setting {
        key: "execution.batch-shuffle-mode",
        get: |config| {
            if config.blocking_exchanges {
                "ALL_EXCHANGES_BLOCKING"
            } else {
                "ALL_EXCHANGES_PIPELINED"
            }
            .into()
        },
        set: |config, value| {
            config.blocking_exchanges = match value {
                "ALL_EXCHANGES_BLOCKING" => true,
                "ALL_EXCHANGES_PIPELINED" => false,
                _ => return Err("expected ALL_EXCHANGES_PIPELINED or ALL_EXCHANGES_BLOCKING".into()),
            };
            Ok(())
        },
    },
    Setting {
        key: "table.optimizer.join.broadcast-threshold",
        get: |config| config.broadcast_threshold_bytes.to_string(),
        set: |config, value| {
            config.broadcast_threshold_bytes = whole(value, 0, usize::MAX)?;
            Ok(())
        },
    },
    Setting {
        key: "table.optimizer.runtime-filter.enabled",
        get: |config| config.runtime_filters.to_string(),
        set: |config, value| {
            config.runtime_filters = value.parse().map_err(|_| "expected true or false".to_string())?;
            Ok(())
        },
    },
    Setting {
        key: "table.optimizer.runtime-filter.min-probe-rows",
        get: |config| config.runtime_filter_min_rows.to_string(),
        set: |config, value| {
            config.runtime_filter_min_rows = whole(value, 0, usize::MAX)?;
            Ok(())
        },
    },
    Setting {
        key: "taskmanager.memory.managed.size",
        get: |config| config.memory_bytes.to_string(),
        set: |_, _| Err("the memory budget is fixed when the session starts; use --memory".into()),
    },
    Setting {
        key: "io.tmp.dirs",
        get: |config| config.spill_directory.display().to_string(),
        set: |config, value| {
            config.spill_directory = value.into();
            Ok(())
        },
    },
    Setting {
        key: "taskmanager.memory.spill.compression",
        get: |config| config.spill_compression.name().into(),
        set: |config, value| {
            let known = SpillCompression::NAMES.iter().find(|(name, _)| *name == value);
            config.spill_compression = known.ok_or("expected none, lz4 or zstd")?.1;
            Ok(())
        },
    },
    Setting {
        key: "thalweg.serialize-job-graphs",
        get: |config| config.serialize_job_graphs.to_string(),
        set: |config, value| {
            config.serialize_job_graphs = value.parse().map_err(|_| "expected true or false".to_string())?;
            Ok(())
        },
    },
];

fn settings() -> impl Iterator<Item = &'static Setting> {
    SETTINGS.iter().chain(crate::checkpoint_settings::SETTINGS)
}

pub(crate) fn whole(value: &str, least: usize, most: usize) -> std::result::Result<usize, String> {
    value
        .parse::<usize>()
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or_else(|| format!("expected a whole number from {least} to {most}"))
}

/// `-1`, `0`, `100`, `100ms`, `100 ms`, `1 s`.
pub(crate) fn milliseconds(value: &str) -> std::result::Result<i64, String> {
    let text = value.trim();
    let digits = text.trim_end_matches(|c: char| c.is_alphabetic()).trim();
    let unit = text[digits.len()..].trim();
    let factor = match unit {
        "" | "ms" | "millisecond" | "milliseconds" => 1,
        "s" | "sec" | "second" | "seconds" => 1000,
        "min" | "minute" | "minutes" => 60_000,
        "h" | "hour" | "hours" => 3_600_000,
        "d" | "day" | "days" => 86_400_000,
        _ => return Err("expected a time such as 100 ms, 0, or -1".into()),
    };
    let number: i64 = digits
        .parse()
        .map_err(|_| "expected a time such as 100 ms, 0, or -1".to_string())?;
    if number < -1 {
        return Err("expected a time such as 100 ms, 0, or -1".into());
    }
    Ok(if number < 0 { -1 } else { number.saturating_mul(factor) })
}

/// A time that is not negative, as for [`milliseconds`].
pub(crate) fn duration(value: &str) -> std::result::Result<u64, String> {
    u64::try_from(milliseconds(value)?).map_err(|_| "expected a time such as 100 ms, or 0".to_string())
}

/// A statement about settings.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Command {
    /// `SET 'key' = 'value'`.
    Set { key: String, value: String },
    /// `RESET 'key'`.
    Reset { key: String },
    /// `SET`: show all.
    ShowAll,
}

/// Recognizes Flink's form with quoted keys, and a bare `SET`; the others are the SQL parser's.
pub(crate) fn parse(sql: &str) -> Result<Option<Command>> {
    let tokens: Vec<Token> = tokenize(sql)?
        .into_iter()
        .map(|token| token.token)
        .filter(|token| !matches!(token, Token::Whitespace(_) | Token::EOF | Token::SemiColon))
        .collect();
    let is_word = |token: &Token, word: &str| matches!(token, Token::Word(w) if w.value.eq_ignore_ascii_case(word));
    Ok(match tokens.as_slice() {
        [set] if is_word(set, "SET") => Some(Command::ShowAll),
        [set, Token::SingleQuotedString(key), Token::Eq, value] if is_word(set, "SET") => {
            let value = match value {
                Token::SingleQuotedString(text) => text.clone(),
                other => other.to_string(),
            };
            Some(Command::Set {
                key: key.clone(),
                value,
            })
        }
        [reset, Token::SingleQuotedString(key)] if is_word(reset, "RESET") => Some(Command::Reset { key: key.clone() }),
        _ => None,
    })
}

/// Changes one setting. `Ok(false)`: the key is not ours.
///
/// # Errors
/// When the value is not one that the key can have, or the key is like one of ours but none.
pub(crate) fn set(config: &mut SessionConfig, key: &str, value: &str) -> Result<bool> {
    if let Some(setting) = settings().find(|setting| setting.key == key) {
        (setting.set)(config, value)
            .map_err(|why| Error::statement(format!("cannot set '{key}' to '{value}'")).with_remedy(why))?;
        return Ok(true);
    }
    if key.starts_with("datafusion.") {
        return Ok(false);
    }
    let error = Error::statement(format!("there is no setting '{key}'"));
    Err(match closest(key, settings().map(|setting| setting.key)) {
        Some(name) => error.with_remedy(format!("did you mean '{name}'?")),
        None => error.with_remedy("SET without arguments lists the settings"),
    })
}

/// All settings with their values.
pub(crate) fn all(config: &SessionConfig) -> Vec<(&'static str, String)> {
    settings().map(|setting| (setting.key, (setting.get)(config))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked() {
        let mut config = SessionConfig::default();
        assert!(set(&mut config, "parallelism.default", "7").unwrap());
        assert_eq!(config.parallelism, 7);
        let error = set(&mut config, "parallelism.default", "0").unwrap_err();
        assert_eq!(error.to_string(), "cannot set 'parallelism.default' to '0'");
        assert_eq!(error.remedy().as_deref(), Some("expected a whole number from 1 to 128"));
        let error = set(&mut config, "paralelism.default", "2").unwrap_err();
        assert_eq!(error.remedy().as_deref(), Some("did you mean 'parallelism.default'?"));
        assert!(!set(&mut config, "datafusion.execution.batch_size", "2").unwrap());
        assert!(set(&mut config, "execution.runtime-mode", "streaming").unwrap());
        assert_eq!(config.runtime_mode, RuntimeMode::Streaming);
        assert!(set(&mut config, "execution.runtime-mode", "continuous").is_err());
    }

    #[test]
    fn times_have_units() {
        for (text, ms) in [
            ("-1", -1),
            ("0", 0),
            ("100", 100),
            ("100 ms", 100),
            ("2s", 2000),
            ("1 min", 60_000),
        ] {
            assert_eq!(milliseconds(text), Ok(ms), "{text}");
        }
        for text in ["", "-2", "ms", "1 year", "1.5s"] {
            assert!(milliseconds(text).is_err(), "{text}");
        }
    }

    #[test]
    fn flinks_form_is_recognized() {
        let parsed = parse("SET 'a.b' = 'c'").unwrap();
        assert_eq!(
            parsed,
            Some(Command::Set {
                key: "a.b".into(),
                value: "c".into()
            })
        );
        assert_eq!(parse("set;").unwrap(), Some(Command::ShowAll));
        assert_eq!(parse("SET a = 1").unwrap(), None);
    }
}
