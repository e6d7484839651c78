//! Records as rows.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryBuilder};
use arrow::compute::{CastOptions, cast_with_options};
use arrow::csv;
use arrow::datatypes::{DataType, SchemaRef};
use arrow::error::ArrowError;
use arrow::json;
use arrow::record_batch::RecordBatch;

/// The most of a bad record that an error shows.
const SHOWN_CHARACTERS: usize = 200;

/// What a record is written in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Format {
    Csv { field_delimiter: u8 },
    Json,
    Raw,
}

/// Makes rows of records.
pub(super) struct Decoder {
    format: Format,
    schema: SchemaRef,
    delimiter: u8,
    batch_rows: usize,
    /// Rows made so far.
    rows: u64,
    state: State,
}

enum State {
    Csv(Box<csv::reader::Decoder>),
    Json(json::reader::Decoder),
    Raw,
}

impl Decoder {
    /// # Errors
    /// When the format cannot read a column.
    pub(super) fn try_new(
        format: Format,
        schema: &SchemaRef,
        delimiter: u8,
        batch_rows: usize,
    ) -> Result<Self, String> {
        let state = match format {
            Format::Csv { field_delimiter } => {
                for field in schema.fields() {
                    if field.data_type().is_nested() || field.data_type().is_binary() {
                        return Err(format!(
                            "format 'csv' cannot read column '{}' of type {}",
                            field.name(),
                            field.data_type()
                        ));
                    }
                }
                let mut builder = csv::ReaderBuilder::new(Arc::clone(schema))
                    .with_batch_size(batch_rows)
                    .with_delimiter(field_delimiter);
                // Without it, \n, \r and \r\n each end a record.
                if delimiter != b'\n' {
                    builder = builder.with_terminator(delimiter);
                }
                State::Csv(Box::new(builder.build_decoder()))
            }
            Format::Json => {
                let builder = json::ReaderBuilder::new(Arc::clone(schema)).with_batch_size(batch_rows);
                State::Json(builder.build_decoder().map_err(|e| format!("format 'json': {e}"))?)
            }
            Format::Raw => {
                match schema.fields().iter().as_slice() {
                    [field] if field.data_type().is_string() || field.data_type().is_binary() => {}
                    _ => return Err("format 'raw' needs exactly one column, of text or bytes".into()),
                }
                State::Raw
            }
        };
        Ok(Self {
            format,
            schema: Arc::clone(schema),
            delimiter,
            batch_rows,
            rows: 0,
            state,
        })
    }

    /// The rows of whole records, each with its delimiter.
    ///
    /// # Errors
    /// When a record is no row: the message has its number and its text.
    pub(super) fn decode(&mut self, bytes: &[u8]) -> Result<Vec<RecordBatch>, String> {
        match self.batches(bytes) {
            Ok(batches) => {
                self.rows += batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>();
                Ok(batches)
            }
            Err(e) => Err(self.locate(bytes).unwrap_or_else(|| e.to_string())),
        }
    }

    fn batches(&mut self, bytes: &[u8]) -> Result<Vec<RecordBatch>, ArrowError> {
        let cut = || ArrowError::ParseError("the record is not complete at its end".into());
        let mut batches = Vec::new();
        let mut rest = bytes;
        match &mut self.state {
            // An empty read would tell the decoder that this is the end for good.
            State::Csv(decoder) => loop {
                let read = decoder.decode(rest)?;
                rest = &rest[read..];
                if !rest.is_empty() && decoder.capacity() > 0 {
                    continue;
                }
                match decoder.flush()? {
                    Some(batch) => batches.push(batch),
                    None if rest.is_empty() => {}
                    None => return Err(cut()),
                }
                if !rest.is_empty() {
                    continue;
                }
                // The decoder would keep a record that is cut in quotes, and wait for more of it.
                let written = records(bytes, self.delimiter)
                    .filter(|record| !record.is_empty())
                    .count();
                let read: usize = batches.iter().map(RecordBatch::num_rows).sum();
                return if read < written { Err(cut()) } else { Ok(batches) };
            },
            State::Json(decoder) => {
                // What parts the records must be a blank to JSON.
                let blank;
                if !self.delimiter.is_ascii_whitespace() {
                    let is_delimiter = |byte: &u8| *byte == self.delimiter;
                    blank = rest
                        .iter()
                        .map(|byte| if is_delimiter(byte) { b'\n' } else { *byte })
                        .collect::<Vec<u8>>();
                    rest = &blank;
                }
                while !rest.is_empty() {
                    let read = decoder.decode(rest)?;
                    rest = &rest[read..];
                    if rest.is_empty() && decoder.has_partial_record() {
                        return Err(cut());
                    }
                    batches.extend(decoder.flush()?);
                }
                Ok(batches)
            }
            State::Raw => {
                let lines = records(bytes, self.delimiter).collect::<Vec<_>>();
                let batches = lines.chunks(self.batch_rows).map(|lines| raw(&self.schema, lines));
                batches.collect()
            }
        }
    }

    /// The first record that is no row, when one is looked at after the other.
    fn locate(&self, bytes: &[u8]) -> Option<String> {
        let mut number = self.rows;
        for record in records(bytes, self.delimiter) {
            let mut alone = Self::try_new(self.format, &self.schema, self.delimiter, self.batch_rows).ok()?;
            let mut record = record.to_vec();
            record.push(self.delimiter);
            match alone.batches(&record) {
                Ok(batches) => number += batches.iter().map(|batch| batch.num_rows() as u64).sum::<u64>(),
                Err(e) => {
                    let text = String::from_utf8_lossy(&record);
                    let shown: String = text.trim_end().chars().take(SHOWN_CHARACTERS).collect();
                    return Some(format!("record {}: {e}: {shown}", number + 1));
                }
            }
        }
        None
    }
}

/// The records, without their delimiters. A `\r` before a `\n` belongs to the line's end.
fn records(bytes: &[u8], delimiter: u8) -> impl Iterator<Item = &[u8]> {
    let bytes = bytes.strip_suffix(&[delimiter]).unwrap_or(bytes);
    bytes
        .split(move |byte| *byte == delimiter)
        .map(move |record| match delimiter {
            b'\n' => record.strip_suffix(b"\r").unwrap_or(record),
            _ => record,
        })
}

fn raw(schema: &SchemaRef, lines: &[&[u8]]) -> Result<RecordBatch, ArrowError> {
    let mut builder = BinaryBuilder::with_capacity(lines.len(), lines.iter().map(|line| line.len()).sum());
    for line in lines {
        builder.append_value(line);
    }
    let bytes: ArrayRef = Arc::new(builder.finish());
    let strict = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    let wanted = schema.field(0).data_type();
    let bytes = match wanted.is_string() {
        // Whether it is text is looked at here.
        true => cast_with_options(&bytes, &DataType::Utf8, &strict)?,
        false => bytes,
    };
    let column = cast_with_options(&bytes, wanted, &strict)?;
    RecordBatch::try_new(Arc::clone(schema), vec![column])
}
