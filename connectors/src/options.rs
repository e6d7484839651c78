//! The options of one table, taken one by one, so that what is left over at the end is known to be unknown.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

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

    /// Takes an option that users do not give, so that no error lists it.
    #[cfg(feature = "kafka")]
    pub(crate) fn take_hidden(&mut self, key: &str) -> Option<String> {
        self.left.remove(key)
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

    /// Takes an option that is a number above 0.
    ///
    /// # Errors
    /// When the value is not such a number.
    pub fn take_positive(&mut self, key: &str) -> Result<Option<u64>> {
        match self.take_parsed(key)? {
            Some(0) => Err(self.bad_value(key, "0", "must be above 0")),
            number => Ok(number),
        }
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

/// Reads a time above zero with its unit, as Flink writes it: `500 ms`, `1 s`, `2min`. Without a unit it is
/// milliseconds.
///
/// # Errors
/// When `text` is no such time.
pub fn parse_duration(text: &str) -> std::result::Result<Duration, String> {
    let text = text.trim().to_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let millis: u64 = match unit.trim() {
        "" | "ms" | "milli" | "millis" | "millisecond" | "milliseconds" => 1,
        "s" | "sec" | "secs" | "second" | "seconds" => 1000,
        "m" | "min" | "minute" | "minutes" => 60_000,
        "h" | "hour" | "hours" => 3_600_000,
        "d" | "day" | "days" => 86_400_000,
        _ => return Err("must be a number and ms, s, min, h or d".into()),
    };
    let number: u64 = number.parse().map_err(|_| "must be a number and its unit, as 1 s")?;
    match number.checked_mul(millis) {
        Some(0) => Err("must be above zero".into()),
        Some(millis) => Ok(Duration::from_millis(millis)),
        None => Err("is too long".into()),
    }
}

/// Reads a size above zero with its unit, as Flink writes it: `128MB`, `64 kb`, `1g`; a unit is 1024 of the next smaller
/// one. Without a unit it is bytes.
///
/// # Errors
/// When `text` is no such size.
pub fn parse_bytes(text: &str) -> std::result::Result<u64, String> {
    let text = text.trim().to_lowercase();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let bytes: u64 = match unit.trim() {
        "" | "b" | "bytes" => 1,
        "k" | "kb" | "kib" => 1 << 10,
        "m" | "mb" | "mib" => 1 << 20,
        "g" | "gb" | "gib" => 1 << 30,
        "t" | "tb" | "tib" => 1 << 40,
        _ => return Err("must be a number and b, kb, mb, gb or tb".into()),
    };
    let number: u64 = number.parse().map_err(|_| "must be a number and its unit, as 128 MB")?;
    match number.checked_mul(bytes) {
        Some(0) => Err("must be above zero".into()),
        Some(bytes) => Ok(bytes),
        None => Err("is too large".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_a_number_and_its_unit() {
        for (text, bytes) in [
            ("128MB", 128 << 20),
            (" 7 ", 7),
            ("64 kb", 64 << 10),
            ("1 G", 1 << 30),
            ("2tib", 2 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes));
        }
        for wrong in [
            "",
            "mb",
            "-1",
            "1.5 mb",
            "3 barrels",
            "0 kb",
            "99999999999999999999",
            "16777216 tb",
        ] {
            assert!(parse_bytes(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_time_is_a_number_and_its_unit() {
        for (text, millis) in [
            ("500 ms", 500),
            ("1 s", 1000),
            ("2min", 120_000),
            (" 7 ", 7),
            ("1 DAY", 86_400_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(millis)));
        }
        for wrong in [
            "",
            "s",
            "-1 s",
            "1.5 s",
            "3 fortnights",
            "0 s",
            "99999999999999999999 s",
            "18446744073709551615 d",
        ] {
            assert!(parse_duration(wrong).is_err(), "{wrong}");
        }
    }
}
