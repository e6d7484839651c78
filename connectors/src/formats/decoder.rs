//! A table's decoder: what happens to records that cannot be read.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::compute::concat_batches;
use arrow::datatypes::SchemaRef;
use serde_json::json;
use thalweg_engine::{Batch, EngineError, Result};

use super::changelog::{Canal, Debezium};
use super::text::{Csv, Json, Raw};
use super::{BadRecord, Decode, FormatOptions, StreamFormat};

/// So many characters of a bad record are shown.
const SHOWN_CHARS: usize = 80;

/// Records that were decoded at once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DecodedRange {
    /// Their numbers.
    pub numbers: Vec<u64>,
    /// How many rows they gave: one each, unless the format is a changelog or has comments.
    pub rows: usize,
}

/// Records of one source (a file, a connection, a partition of a topic) to rows.
pub struct Decoder {
    decode: Box<dyn Decode>,
    schema: SchemaRef,
    format: &'static str,
    skips: bool,
    dead_letter: Option<DeadLetter>,
    source: String,
    /// What the number of a record is.
    numbers: &'static str,
    records: u64,
    bad_records: u64,
}

impl Decoder {
    /// For a table of `columns` (without the row kind) whose records come from `source`, which errors name.
    ///
    /// # Errors
    /// When the format cannot fill these columns.
    pub fn new(options: &FormatOptions, columns: &SchemaRef, source: impl Into<String>) -> Result<Self> {
        let decode: Box<dyn Decode> = match options.format {
            StreamFormat::Json => Box::new(Json(Arc::clone(columns))),
            StreamFormat::Csv => Box::new(Csv::try_new(columns, &options.csv)?),
            StreamFormat::Raw => Box::new(Raw::try_new(columns)?),
            StreamFormat::DebeziumJson => Box::new(Debezium::new(columns, options.schema_include)),
            StreamFormat::CanalJson => Box::new(Canal::new(columns)),
        };
        let schema = options.format.schema(columns);
        Ok(Self::of(decode, schema, options.format.name(), options, source))
    }

    /// Around `decode`, which reads the format called `format` into rows of `schema`; of `options` what they say about bad
    /// records.
    pub fn of(
        decode: Box<dyn Decode>,
        schema: SchemaRef,
        format: &'static str,
        options: &FormatOptions,
        source: impl Into<String>,
    ) -> Self {
        Self {
            decode,
            schema,
            format,
            skips: options.ignore_parse_errors || options.dead_letter.is_some(),
            dead_letter: options.dead_letter.as_deref().map(DeadLetter::new),
            source: source.into(),
            numbers: "record",
            records: 0,
            bad_records: 0,
        }
    }

    /// The same, of a source whose records have numbers of their own, called `numbers`; see [`Self::decode_numbered`].
    pub fn numbered_by(mut self, numbers: &'static str) -> Self {
        self.numbers = numbers;
        self
    }

    /// The schema of the rows: the columns, and the row kind when the format is a changelog.
    pub fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// How many records have been skipped.
    pub fn bad_records(&self) -> u64 {
        self.bad_records
    }

    /// Passes over a record that is none, e.g. a header, so that those after it have their right numbers.
    pub fn skip_record(&mut self) {
        self.records += 1;
    }

    /// The rows of the next records, in their order; there may be none.
    ///
    /// # Errors
    /// When a record cannot be read and is not to be skipped, or the dead-letter file cannot be written.
    pub fn decode(&mut self, records: &[&[u8]]) -> Result<Batch> {
        let first = self.records;
        self.records += records.len() as u64;
        // With the number of each, from 1.
        let numbered: Vec<(u64, &[u8])> = (first + 1..).zip(records.iter().copied()).collect();
        Ok(self.decode_numbered(numbered)?.0)
    }

    /// As [`Self::decode`], of records with their numbers, which errors name. Beside the rows, of each batch that was decoded at
    /// once, in their order: the numbers of its records and how many rows they gave.
    ///
    /// # Errors
    /// As for [`Self::decode`].
    pub fn decode_numbered(&mut self, numbered: Vec<(u64, &[u8])>) -> Result<(Batch, Vec<DecodedRange>)> {
        let kept: Vec<(u64, &[u8])> = match self.decode.skips_blank() {
            true => numbered
                .into_iter()
                .filter(|(_, record)| !record.trim_ascii().is_empty())
                .collect(),
            false => numbered,
        };
        let mut batches = Vec::new();
        let mut ranges = Vec::new();
        let (numbers, texts): (Vec<u64>, Vec<&[u8]>) = kept.into_iter().unzip();
        let mut found = |numbers: &[u64], batch: Batch| {
            ranges.push(DecodedRange {
                numbers: numbers.to_vec(),
                rows: batch.num_rows(),
            });
            if batch.num_rows() > 0 {
                batches.push(batch);
            }
        };
        let decoded = self.decode_range(&numbers, &texts, &mut found);
        if let Some(dead_letter) = &mut self.dead_letter {
            dead_letter.flush()?;
        }
        decoded?;
        let batch = match batches.len() {
            1 => batches.swap_remove(0),
            _ => concat_batches(&self.schema, &batches)?,
        };
        Ok((batch, ranges))
    }

    fn decode_range(&mut self, numbers: &[u64], texts: &[&[u8]], found: &mut dyn FnMut(&[u64], Batch)) -> Result<()> {
        if texts.is_empty() {
            return Ok(());
        }
        let bad = match self.decode.decode(texts) {
            Ok(batch) => {
                found(numbers, batch);
                return Ok(());
            }
            Err(bad) => bad,
        };
        if let ([number], [text]) = (numbers, texts) {
            return self.set_aside(*number, text, &bad);
        }
        // Where it is known which one it was, that one is alone; otherwise halves tell.
        let cuts = match bad.record.filter(|record| *record < texts.len()) {
            Some(record) => [record, record + 1],
            None => [texts.len() / 2; 2],
        };
        for range in [0..cuts[0], cuts[0]..cuts[1], cuts[1]..texts.len()] {
            self.decode_range(&numbers[range.clone()], &texts[range], found)?;
        }
        Ok(())
    }

    fn set_aside(&mut self, number: u64, record: &[u8], bad: &BadRecord) -> Result<()> {
        let place = format!("{}, {} {number}", self.source, self.numbers);
        if !self.skips {
            return Err(EngineError::BadInput(format!(
                "{place} cannot be read as {}: {}: {}; set '{}.ignore-parse-errors' = 'true' to skip such records, or \
                 'dead-letter.path' to keep them",
                self.format,
                bad.why,
                shown(record),
                self.format
            )));
        }
        self.bad_records += 1;
        if let Some(dead_letter) = &mut self.dead_letter {
            dead_letter.add(&format!("{place}: {}", bad.why), record);
        }
        Ok(())
    }
}

/// The beginning of a record.
fn shown(record: &[u8]) -> String {
    // Only what is shown is decoded: a record may be megabytes.
    let text = String::from_utf8_lossy(&record[..record.len().min(4 * SHOWN_CHARS + 4)]);
    let mut shown: String = text.chars().take(SHOWN_CHARS).collect();
    if text.chars().nth(SHOWN_CHARS).is_some() {
        shown.push_str("..");
    }
    shown
}

/// The file to which bad records are appended.
struct DeadLetter {
    path: PathBuf,
    file: Option<File>,
    waiting: Vec<u8>,
}

impl DeadLetter {
    fn new(path: &Path) -> Self {
        Self {
            path: path.to_path_buf(),
            file: None,
            waiting: Vec::new(),
        }
    }

    fn add(&mut self, error: &str, record: &[u8]) {
        let line = json!({ "error": error, "record": String::from_utf8_lossy(record) });
        self.waiting.extend_from_slice(line.to_string().as_bytes());
        self.waiting.push(b'\n');
    }

    /// Appends what waits, in one call: lines of several subtasks do not mix.
    fn flush(&mut self) -> Result<()> {
        if self.waiting.is_empty() {
            return Ok(());
        }
        let failed = |source| EngineError::Io {
            path: self.path.display().to_string(),
            source,
        };
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let opened = OpenOptions::new()
                    .create(true)
                    .append(true)
                    .open(&self.path)
                    .map_err(failed)?;
                self.file.insert(opened)
            }
        };
        file.write_all(&self.waiting)
            .and_then(|()| file.flush())
            .map_err(failed)?;
        self.waiting.clear();
        Ok(())
    }
}
