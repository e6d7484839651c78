//! The options of one table, taken one by one, so that what is left over at the end is known to be unknown.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use thalweg_engine::{EngineError, Result};

/// Options of a `WITH (..)` clause, by lower-case key.
#[derive(Clone, Debug)]
pub struct Options {
    connector: &'static str,
    left: BTreeMap<String, String>,
    known: Vec<String>,
}

impl Options {
    /// The options of a table of `connector`; the key `connector` itself is left out.
    pub fn new(connector: &'static str, options: &BTreeMap<String, String>) -> Self {
        let left = options
            .iter()
            .map(|(key, value)| (key.to_lowercase(), value.clone()))
            .filter(|(key, _)| key != "connector")
            .collect();
        Self {
            connector,
            left,
            known: Vec::new(),
        }
    }

    /// Takes an option.
    pub fn take(&mut self, key: &str) -> Option<String> {
        self.known.push(key.to_string());
        self.left.remove(&key.to_lowercase())
    }

    /// Takes an option and reads its value.
    ///
    /// # Errors
    /// When the value is not of that type.
    pub fn take_parsed<T: FromStr>(&mut self, key: &str) -> Result<Option<T>>
    where
        T::Err: Display,
    {
        self.take(key)
            .map(|text| {
                text.trim()
                    .parse()
                    .map_err(|e| self.bad_value(key, &text, &format!("{e}")))
            })
            .transpose()
    }

    /// Takes a boolean option; `default` when it is not given.
    ///
    /// # Errors
    /// When the value is neither true nor false.
    pub fn take_bool(&mut self, key: &str, default: bool) -> Result<bool> {
        match self.take(key) {
            Some(text) => parse_bool(&text).map_err(|e| self.bad_value(key, &text, &e)),
            None => Ok(default),
        }
    }

    /// The error for a value that cannot be used.
    pub fn bad_value(&self, key: &str, value: &str, why: &str) -> EngineError {
        EngineError::Plan(format!(
            "connector '{}': option '{key}' = '{value}': {why}",
            self.connector
        ))
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// When an option was not taken: it names the option and lists the valid ones.
    pub fn finish(self) -> Result<()> {
        match self.left.into_keys().next() {
            None => Ok(()),
            Some(key) => Err(EngineError::Plan(format!(
                "connector '{}' has no option '{key}'; its options are: {}",
                self.connector,
                self.known.join(", ")
            ))),
        }
    }
}

/// Reads `true` or `false`.
///
/// # Errors
/// When `text` is neither.
pub fn parse_bool(text: &str) -> std::result::Result<bool, String> {
    match text.trim().to_lowercase().as_str() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err("must be true or false".into()),
    }
}
