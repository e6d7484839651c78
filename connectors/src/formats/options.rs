//! Which format a table's records have, and what its options say about it.

use std::path::PathBuf;

use arrow::datatypes::{Schema, SchemaRef};
use thalweg_engine::{EngineError, Result};

use crate::Options;

/// A format of records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamFormat {
    /// A JSON object.
    Json,
    /// Delimited fields.
    Csv,
    /// The one column's value as it is.
    Raw,
    /// A change as Debezium tells it: `before`, `after`, `op`.
    DebeziumJson,
    /// Changes as Canal tells them: `data`, `old`, `type`.
    CanalJson,
}

const FORMATS: [StreamFormat; 5] = [
    StreamFormat::Json,
    StreamFormat::Csv,
    StreamFormat::Raw,
    StreamFormat::DebeziumJson,
    StreamFormat::CanalJson,
];

impl StreamFormat {
    /// The format called `name`.
    ///
    /// # Errors
    /// When there is none; lists those that there are.
    pub fn parse(name: &str) -> Result<Self> {
        let lower = name.trim().to_lowercase();
        let found = FORMATS.into_iter().find(|format| format.name() == lower);
        found.ok_or_else(|| {
            let names = FORMATS.map(StreamFormat::name).join(", ");
            EngineError::Plan(format!(
                "there is no format '{name}' of records; the formats are: {names}"
            ))
        })
    }

    /// As in `'format' = '..'`.
    pub fn name(self) -> &'static str {
        match self {
            StreamFormat::Json => "json",
            StreamFormat::Csv => "csv",
            StreamFormat::Raw => "raw",
            StreamFormat::DebeziumJson => "debezium-json",
            StreamFormat::CanalJson => "canal-json",
        }
    }

    /// Whether its records say what happens to rows: the batches are a changelog.
    pub fn is_changelog(self) -> bool {
        matches!(self, StreamFormat::DebeziumJson | StreamFormat::CanalJson)
    }

    /// The schema of what is read as `columns`: with the row kind when the format is a changelog.
    pub fn schema(self, columns: &SchemaRef) -> SchemaRef {
        match self.is_changelog() {
            true => changelog_schema(columns),
            false => SchemaRef::clone(columns),
        }
    }
}

/// The schema of a changelog of rows of `columns`: these and then the row kind.
pub fn changelog_schema(columns: &Schema) -> SchemaRef {
    thalweg_engine::data::with_row_kind(columns)
}

/// How records are read.
#[derive(Clone, Debug)]
pub struct FormatOptions {
    /// The format.
    pub format: StreamFormat,
    /// Whether records that cannot be read are skipped.
    pub ignore_parse_errors: bool,
    /// The file to which records that cannot be read are appended, and skipped.
    pub dead_letter: Option<PathBuf>,
    /// Whether Debezium's messages carry their schema.
    pub schema_include: bool,
    /// CSV.
    pub csv: CsvOptions,
}

/// How CSV is read.
#[derive(Clone, Debug)]
pub struct CsvOptions {
    /// Between fields.
    pub delimiter: u8,
    /// Around fields.
    pub quote: u8,
    /// Before a quote in a quoted field, if that is not doubled.
    pub escape: Option<u8>,
    /// Begins a line that is no record.
    pub comment: Option<u8>,
    /// What stands for NULL, beside the empty field.
    pub null_literal: Option<String>,
}

impl FormatOptions {
    /// A format without options: a record that cannot be read is an error.
    pub fn new(format: StreamFormat) -> Self {
        Self {
            format,
            ignore_parse_errors: false,
            dead_letter: None,
            schema_include: false,
            csv: CsvOptions {
                delimiter: b',',
                quote: b'"',
                escape: None,
                comment: None,
                null_literal: None,
            },
        }
    }

    /// Takes what is said about `format`.
    ///
    /// # Errors
    /// When a value is wrong.
    pub fn take(format: StreamFormat, options: &mut Options) -> Result<Self> {
        let name = format.name();
        let mut taken = Self::new(format);
        taken.ignore_parse_errors = options.take_bool(&format!("{name}.ignore-parse-errors"), false)?;
        taken.dead_letter = options.take("dead-letter.path").map(PathBuf::from);
        match format {
            StreamFormat::DebeziumJson => {
                taken.schema_include = options.take_bool("debezium-json.schema-include", false)?;
            }
            StreamFormat::Csv => taken.csv.take(options)?,
            StreamFormat::Json | StreamFormat::Raw | StreamFormat::CanalJson => {}
        }
        Ok(taken)
    }
}

impl CsvOptions {
    fn take(&mut self, options: &mut Options) -> Result<()> {
        let mut byte = |key: &str| match options.take(key) {
            None => Ok(None),
            Some(text) => match (text.as_str(), text.as_bytes()) {
                ("\\t", _) => Ok(Some(b'\t')),
                (_, [byte]) if byte.is_ascii() => Ok(Some(*byte)),
                _ => Err(options.bad_value(key, &text, "must be one ASCII character")),
            },
        };
        self.delimiter = byte("csv.field-delimiter")?.unwrap_or(self.delimiter);
        self.quote = byte("csv.quote-character")?.unwrap_or(self.quote);
        self.escape = byte("csv.escape-character")?;
        self.null_literal = options.take("csv.null-literal");
        self.comment = options.take_bool("csv.allow-comments", false)?.then_some(b'#');
        Ok(())
    }
}
