//! JSON, CSV and raw records.

use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryArray, StringArray};
use arrow::compute::cast;
use arrow::csv::ReaderBuilder as CsvReaderBuilder;
use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use arrow::error::ArrowError;
use arrow::json::ReaderBuilder as JsonReaderBuilder;
use regex::Regex;
use thalweg_engine::{Batch, EngineError, Result};

use super::options::CsvOptions;
use super::{BadRecord, Decode};

/// What arrow says, without saying that it is arrow.
fn told(error: ArrowError) -> String {
    let text = error.to_string();
    for head in [
        "Json error: ",
        "Csv error: ",
        "Parser error: ",
        "Invalid argument error: ",
    ] {
        if let Some(rest) = text.strip_prefix(head) {
            return rest.to_string();
        }
    }
    text
}

/// JSON objects, one a record.
///
/// # Errors
/// When one is not an object of this schema.
pub(super) fn decode_json(schema: &SchemaRef, records: &[&[u8]]) -> std::result::Result<Batch, BadRecord> {
    let mut decoder = JsonReaderBuilder::new(Arc::clone(schema))
        .with_batch_size(records.len().max(1))
        .with_coerce_primitive(true)
        .build_decoder()
        .map_err(|error| BadRecord::somewhere(told(error)))?;
    for (index, record) in records.iter().enumerate() {
        // A record after which the count is not one more would be taken for a part of its neighbours.
        let read = decoder
            .decode(record)
            .and_then(|read| Ok((read, decoder.decode(b"\n")?)));
        match read {
            Err(error) => return Err(BadRecord::at(index, told(error))),
            Ok(_) if decoder.has_partial_record() => {
                return Err(BadRecord::at(index, "it ends in the middle of a value"));
            }
            Ok((read, _)) if read < record.trim_ascii_end().len() || decoder.len() > index + 1 => {
                return Err(BadRecord::at(index, "it holds more than one value"));
            }
            Ok(_) if decoder.len() < index + 1 => return Err(BadRecord::at(index, "it holds no value")),
            Ok(_) => {}
        }
    }
    let batch = decoder.flush().map_err(|error| BadRecord::somewhere(told(error)))?;
    Ok(batch.unwrap_or_else(|| Batch::new_empty(Arc::clone(schema))))
}

/// JSON objects.
pub(super) struct Json(pub(super) SchemaRef);

impl Decode for Json {
    fn decode(&mut self, records: &[&[u8]]) -> std::result::Result<Batch, BadRecord> {
        decode_json(&self.0, records)
    }
}

/// Delimited fields.
pub(super) struct Csv {
    schema: SchemaRef,
    options: CsvOptions,
    null: Option<Regex>,
    line: Vec<u8>,
}

impl Csv {
    /// As the options say.
    ///
    /// # Errors
    /// When a column's type cannot be in CSV.
    pub(super) fn try_new(schema: &SchemaRef, options: &CsvOptions) -> Result<Self> {
        let unreadable = |field: &&FieldRef| field.data_type().is_nested() || field.data_type().is_binary();
        if let Some(field) = schema.fields().iter().find(unreadable) {
            return Err(EngineError::Plan(format!(
                "column '{}' of type {} cannot be read from CSV; use JSON",
                field.name(),
                field.data_type()
            )));
        }
        let null = options
            .null_literal
            .as_ref()
            .map(|literal| format!("^({})?$", regex::escape(literal)));
        Ok(Self {
            schema: Arc::clone(schema),
            options: options.clone(),
            null: null
                .map(|null| Regex::new(&null))
                .transpose()
                .map_err(|error| EngineError::Plan(format!("'csv.null-literal': {error}")))?,
            line: Vec::new(),
        })
    }
}

impl Decode for Csv {
    fn decode(&mut self, records: &[&[u8]]) -> std::result::Result<Batch, BadRecord> {
        let comment = self.options.comment;
        let is_row = |record: &[u8]| comment.is_none() || record.first().copied() != comment;
        let rows = records.iter().enumerate().filter(|(_, record)| is_row(record));
        let count = rows.clone().count();
        let mut builder = CsvReaderBuilder::new(Arc::clone(&self.schema))
            .with_delimiter(self.options.delimiter)
            .with_quote(self.options.quote)
            .with_batch_size(count + 1);
        if let Some(escape) = self.options.escape {
            builder = builder.with_escape(escape);
        }
        if let Some(null) = &self.null {
            builder = builder.with_null_regex(null.clone());
        }
        let mut decoder = builder.build_decoder();
        for (done, (index, record)) in rows.enumerate() {
            self.line.clear();
            self.line.extend_from_slice(record);
            self.line.push(b'\n');
            let read = decoder
                .decode(&self.line)
                .map_err(|error| BadRecord::at(index, told(error)))?;
            // A quote that is not closed would take in the next record.
            if read < self.line.len() || decoder.capacity() != count - done {
                return Err(BadRecord::at(index, "a quote is not closed, or it holds several lines"));
            }
        }
        let batch = decoder.flush().map_err(|error| BadRecord::somewhere(told(error)))?;
        let batch = batch.unwrap_or_else(|| Batch::new_empty(Arc::clone(&self.schema)));
        Ok(batch)
    }
}

/// Records that are the value of the one column.
pub(super) struct Raw {
    schema: SchemaRef,
    is_text: bool,
}

impl Raw {
    /// Into the one column of `schema`.
    ///
    /// # Errors
    /// When there are several, or it is neither text nor binary.
    pub(super) fn try_new(schema: &SchemaRef) -> Result<Self> {
        let [field] = schema.fields().as_ref() else {
            return Err(EngineError::Plan(format!(
                "format 'raw' fills one column, but the table has {}",
                schema.fields().len()
            )));
        };
        use DataType::{Binary, BinaryView, LargeBinary, LargeUtf8, Utf8, Utf8View};
        let is_text = match field.data_type() {
            Utf8 | LargeUtf8 | Utf8View => true,
            Binary | LargeBinary | BinaryView => false,
            other => {
                return Err(EngineError::Plan(format!(
                    "format 'raw' fills a column of type STRING or BYTEA; '{}' is {other}",
                    field.name()
                )));
            }
        };
        Ok(Self {
            schema: Arc::clone(schema),
            is_text,
        })
    }
}

impl Decode for Raw {
    fn decode(&mut self, records: &[&[u8]]) -> std::result::Result<Batch, BadRecord> {
        let values: ArrayRef = if self.is_text {
            let texts = records.iter().enumerate().map(|(index, record)| {
                std::str::from_utf8(record).map_err(|error| BadRecord::at(index, format!("invalid UTF-8: {error}")))
            });
            Arc::new(StringArray::from(texts.collect::<std::result::Result<Vec<_>, _>>()?))
        } else {
            Arc::new(BinaryArray::from_iter_values(records))
        };
        let values = cast(&values, self.schema.field(0).data_type()).map_err(BadRecord::somewhere)?;
        Batch::try_new(Arc::clone(&self.schema), vec![values]).map_err(BadRecord::somewhere)
    }

    fn skips_blank(&self) -> bool {
        false
    }
}
