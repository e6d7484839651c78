//! What the sinks of this kind have in common in their options.

use std::collections::BTreeMap;
use std::time::Duration;

use arrow::datatypes::Schema;
use thalweg_engine::{EngineError, Result};

use crate::Options;
use crate::options::parse_duration;

/// The option of a [`thalweg_engine::plan::SinkSpec`] that carries the key's columns, as JSON. Not one of `WITH (..)`.
const KEY_OPTION: &str = "primary-key";

/// When readers see rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Isolation {
    /// As soon as they are written.
    ReadUncommitted,
    /// When the checkpoint, or the job, is complete.
    ReadCommitted,
}

/// Options that all have.
#[derive(Clone, Debug)]
pub(crate) struct UpsertOptions {
    pub(crate) isolation: Isolation,
    /// So many rows are written at once.
    pub(crate) max_rows: usize,
    /// No row waits longer.
    pub(crate) interval_ms: i64,
    /// How often it is tried again when the server cannot be reached.
    pub(crate) max_retries: u32,
    /// The columns of the key.
    pub(crate) key: Vec<String>,
}

impl UpsertOptions {
    pub(crate) fn take(options: &mut Options) -> Result<Self> {
        let isolation = match options.take("sink.isolation").map(|text| text.trim().to_lowercase()) {
            None => Isolation::ReadUncommitted,
            Some(text) => match text.as_str() {
                "read-uncommitted" => Isolation::ReadUncommitted,
                "read-committed" => Isolation::ReadCommitted,
                _ => {
                    return Err(options.bad_value(
                        "sink.isolation",
                        &text,
                        "must be read-uncommitted or read-committed",
                    ));
                }
            },
        };
        let max_rows = options.take_positive("sink.buffer-flush.max-rows")?.unwrap_or(1000);
        let interval = match options.take("sink.buffer-flush.interval") {
            None => Duration::from_secs(1),
            Some(text) => {
                parse_duration(&text).map_err(|why| options.bad_value("sink.buffer-flush.interval", &text, &why))?
            }
        };
        let max_retries = options.take_parsed("sink.max-retries")?.unwrap_or(5);
        Ok(Self {
            isolation,
            max_rows: usize::try_from(max_rows).unwrap_or(usize::MAX),
            interval_ms: i64::try_from(interval.as_millis()).unwrap_or(i64::MAX),
            max_retries,
            key: Vec::new(),
        })
    }
}

/// The options of a sink over a table with these options and this key.
pub(crate) fn sink_options(options: &BTreeMap<String, String>, key: &[String]) -> Result<BTreeMap<String, String>> {
    let mut options = options.clone();
    options.retain(|name, _| !name.eq_ignore_ascii_case("connector"));
    if options.keys().any(|name| name.eq_ignore_ascii_case(KEY_OPTION)) {
        return Err(EngineError::Plan(format!(
            "there is no option '{KEY_OPTION}'; write PRIMARY KEY (..) NOT ENFORCED behind the columns"
        )));
    }
    if !key.is_empty() {
        let key = serde_json::to_string(key).map_err(|e| EngineError::Internal(e.to_string()))?;
        options.insert(KEY_OPTION.into(), key);
    }
    Ok(options)
}

/// Takes the key's columns out of the options of a sink: the options of the table, and the key.
pub(crate) fn split_key(options: &BTreeMap<String, String>) -> Result<(BTreeMap<String, String>, Vec<String>)> {
    let mut options = options.clone();
    let key = match options.remove(KEY_OPTION) {
        None => Vec::new(),
        Some(text) => {
            serde_json::from_str(&text).map_err(|e| EngineError::Internal(format!("'{KEY_OPTION}' = '{text}': {e}")))?
        }
    };
    Ok((options, key))
}

/// Where the key's columns are in `schema`; none when the sink has no key.
///
/// # Errors
/// When there is no such column.
pub(crate) fn key_columns(options: &BTreeMap<String, String>, schema: &Schema) -> Result<Vec<usize>> {
    let (_, key) = split_key(options)?;
    let indices = key.iter().map(|name| Ok(schema.index_of(name)?));
    indices.collect()
}
