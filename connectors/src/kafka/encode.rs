//! Rows to the values and keys of records.

use std::ops::Range;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::csv;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use arrow::json::LineDelimitedWriter;
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use arrow_avro::writer::Encoder as AvroEncoder;
use thalweg_engine::data::with_row_kind;
use thalweg_engine::{Batch, EngineError, Result};

use crate::formats::{CsvOptions, Encode, StreamFormat, encoder as changelog_encoder};
use crate::kafka::avro;
use crate::kafka::options::Payload;

/// A part of the records, one for each row.
pub(super) struct Encoded {
    bytes: Vec<u8>,
    /// Where each is; `None` for one that is not there at all.
    ranges: Vec<Option<Range<usize>>>,
}

impl Encoded {
    /// Of a row.
    pub(super) fn get(&self, row: usize) -> Option<&[u8]> {
        self.ranges.get(row).cloned().flatten().map(|range| &self.bytes[range])
    }
}

/// Writes the values or keys of rows of some columns.
pub(super) struct Encoder {
    schema: SchemaRef,
    kind: Kind,
}

enum Kind {
    Json,
    Csv(CsvOptions),
    Raw,
    Changelog(Box<dyn Encode>),
    Avro(Box<AvroEncoder>),
}

impl Encoder {
    /// Of rows of `columns`, without the row kind. `schema_id` is what a registry gave these columns.
    ///
    /// # Errors
    /// When the format cannot hold a column.
    pub(super) fn try_new(payload: &Payload, columns: &SchemaRef, schema_id: Option<u32>) -> Result<Self> {
        let mut schema = Arc::clone(columns);
        let kind = match payload {
            Payload::Avro(_) => Kind::Avro(Box::new(avro::encoder(columns, None)?)),
            Payload::AvroConfluent { .. } => Kind::Avro(Box::new(avro::encoder(columns, schema_id)?)),
            Payload::Text(options) => match options.format {
                StreamFormat::Json => Kind::Json,
                StreamFormat::Csv => {
                    check_csv(columns)?;
                    Kind::Csv(options.csv.clone())
                }
                StreamFormat::Raw => {
                    check_raw(columns)?;
                    Kind::Raw
                }
                changelog @ (StreamFormat::DebeziumJson | StreamFormat::CanalJson) => {
                    schema = with_row_kind(columns);
                    Kind::Changelog(changelog_encoder(changelog)?)
                }
            },
        };
        Ok(Self { schema, kind })
    }

    /// The schema of the batches to encode: the columns, and the row kind where the format is a changelog.
    pub(super) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// Encodes each row of a batch of [`Self::schema`].
    ///
    /// # Errors
    /// When a value cannot be written.
    pub(super) fn encode(&mut self, batch: &Batch) -> Result<Encoded> {
        let rows = batch.num_rows();
        let mut bytes = Vec::new();
        let ranges = match &mut self.kind {
            Kind::Raw => return raw(batch.column(0)),
            Kind::Json => {
                let builder = WriterBuilder::new().with_explicit_nulls(true);
                let mut writer: LineDelimitedWriter<&mut Vec<u8>> = builder.build::<_, LineDelimited>(&mut bytes);
                writer.write(batch)?;
                writer.finish()?;
                drop(writer);
                lines(&bytes, None)
            }
            Kind::Changelog(encode) => {
                encode.encode(batch, &mut bytes)?;
                lines(&bytes, None)
            }
            Kind::Csv(options) => {
                let mut builder = csv::WriterBuilder::new()
                    .with_header(false)
                    .with_delimiter(options.delimiter)
                    .with_quote(options.quote);
                if let Some(escape) = options.escape {
                    builder = builder.with_escape(escape).with_double_quote(false);
                }
                if let Some(null) = &options.null_literal {
                    builder = builder.with_null(null.clone());
                }
                let mut writer = builder.build(&mut bytes);
                writer.write(batch)?;
                drop(writer);
                lines(&bytes, Some(options))
            }
            Kind::Avro(encoder) => {
                encoder.encode(batch).map_err(|e| failed(&e))?;
                let encoded = encoder.flush();
                let offsets = encoded.offsets();
                let ranges = offsets.windows(2).map(|pair| Some(pair[0]..pair[1])).collect();
                bytes = encoded.bytes().to_vec();
                ranges
            }
        };
        if ranges.len() != rows {
            return Err(EngineError::Internal(format!(
                "{rows} rows were encoded to {} records",
                ranges.len()
            )));
        }
        Ok(Encoded { bytes, ranges })
    }
}

fn failed(error: &dyn std::fmt::Display) -> EngineError {
    EngineError::BadInput(format!("a row cannot be written in Avro: {error}"))
}

fn check_csv(columns: &Schema) -> Result<()> {
    let unwritable = columns
        .fields()
        .iter()
        .find(|field| field.data_type().is_nested() || field.data_type().is_binary());
    match unwritable {
        None => Ok(()),
        Some(field) => Err(EngineError::Plan(format!(
            "column '{}' of type {} cannot be written as CSV; use JSON",
            field.name(),
            field.data_type()
        ))),
    }
}

fn is_text(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
}

fn check_raw(columns: &Schema) -> Result<()> {
    let [field] = columns.fields().as_ref() else {
        return Err(EngineError::Plan(format!(
            "format 'raw' holds one column, but there are {}",
            columns.fields().len()
        )));
    };
    match is_text(field.data_type()) || field.data_type().is_binary() {
        true => Ok(()),
        false => Err(EngineError::Plan(format!(
            "format 'raw' holds a column of type STRING or BYTEA; '{}' is {}",
            field.name(),
            field.data_type()
        ))),
    }
}

/// The values of a column as they are.
fn raw(column: &ArrayRef) -> Result<Encoded> {
    let (bytes, offsets, nulls) = match is_text(column.data_type()) {
        true => {
            let texts = cast(column, &DataType::LargeUtf8)?;
            let texts = texts.as_string::<i64>();
            (
                texts.value_data().to_vec(),
                texts.value_offsets().to_vec(),
                texts.nulls().cloned(),
            )
        }
        false => {
            let binaries = cast(column, &DataType::LargeBinary)?;
            let binaries = binaries.as_binary::<i64>();
            (
                binaries.value_data().to_vec(),
                binaries.value_offsets().to_vec(),
                binaries.nulls().cloned(),
            )
        }
    };
    let ranges = offsets.windows(2).enumerate().map(|(row, pair)| {
        let is_null = nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
        (!is_null).then_some(pair[0] as usize..pair[1] as usize)
    });
    Ok(Encoded {
        ranges: ranges.collect(),
        bytes,
    })
}

/// Lines without their ends; with `csv` an end between quotes is none.
fn lines(bytes: &[u8], csv: Option<&CsvOptions>) -> Vec<Option<Range<usize>>> {
    let mut ranges = Vec::new();
    let mut start = 0;
    match csv.filter(|csv| memchr::memchr(csv.quote, bytes).is_some()) {
        None => {
            for end in memchr::memchr_iter(b'\n', bytes) {
                ranges.push(Some(start..end));
                start = end + 1;
            }
        }
        Some(csv) => {
            let (mut quoted, mut escaped) = (false, false);
            for (at, byte) in bytes.iter().enumerate() {
                match *byte {
                    _ if escaped => escaped = false,
                    byte if Some(byte) == csv.escape => escaped = true,
                    // A doubled quote ends the field and begins it again.
                    byte if byte == csv.quote => quoted = !quoted,
                    b'\n' if !quoted => {
                        ranges.push(Some(start..at));
                        start = at + 1;
                    }
                    _ => {}
                }
            }
        }
    }
    ranges
}

/// The batch with the types of `schema`, column by column.
///
/// # Errors
/// When a column cannot have its type.
pub(super) fn conform(batch: &Batch, schema: &SchemaRef, columns: &[usize]) -> Result<Batch> {
    let conformed = columns.iter().zip(schema.fields()).map(|(column, field)| {
        let column = batch.column(*column);
        match column.data_type() == field.data_type() {
            true => Ok(Arc::clone(column)),
            false => Ok(cast(column, field.data_type())?),
        }
    });
    Ok(Batch::try_new(Arc::clone(schema), conformed.collect::<Result<_>>()?)?)
}

#[cfg(test)]
mod tests {
    use arrow::array::{BinaryArray, Int64Array, StringArray};

    use super::*;
    use crate::formats::FormatOptions;

    fn texts(payload: &Payload, batch: &Batch) -> Vec<Option<String>> {
        let mut encoder = Encoder::try_new(payload, &batch.schema(), None).unwrap();
        let encoded = encoder.encode(batch).unwrap();
        let text = |row| encoded.get(row).map(|bytes| String::from_utf8(bytes.to_vec()).unwrap());
        (0..batch.num_rows()).map(text).collect()
    }

    #[test]
    fn each_row_is_a_record_whatever_is_in_it() {
        let id: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]));
        let name: ArrayRef = Arc::new(StringArray::from(vec![Some("a\nb\"c\","), Some("x"), None]));
        let batch = Batch::try_from_iter_with_nullable([("id", id, true), ("name", name, true)]).unwrap();
        let text = |format| Payload::Text(FormatOptions::new(format));
        let some = |texts: [&str; 3]| texts.map(|text| Some(text.to_string())).to_vec();
        assert_eq!(
            texts(&text(StreamFormat::Json), &batch),
            some([
                r#"{"id":1,"name":"a\nb\"c\","}"#,
                r#"{"id":null,"name":"x"}"#,
                r#"{"id":3,"name":null}"#
            ])
        );
        assert_eq!(
            texts(&text(StreamFormat::Csv), &batch),
            some(["1,\"a\nb\"\"c\"\",\"", ",x", "3,"])
        );
        let names = batch.project(&[1]).unwrap();
        assert_eq!(
            texts(&text(StreamFormat::Raw), &names),
            [Some("a\nb\"c\",".to_string()), Some("x".to_string()), None]
        );
        let sliced = names.slice(1, 2);
        assert_eq!(texts(&text(StreamFormat::Raw), &sliced), [Some("x".to_string()), None]);
        assert!(texts(&text(StreamFormat::Json), &batch.slice(0, 0)).is_empty());
    }

    #[test]
    fn raw_takes_one_column_of_bytes() {
        let bytes: ArrayRef = Arc::new(BinaryArray::from(vec![Some(&b"\xff\0"[..]), Some(b""), None]));
        let batch = Batch::try_from_iter_with_nullable([("b", bytes, true)]).unwrap();
        let raw = Payload::Text(FormatOptions::new(StreamFormat::Raw));
        let mut encoder = Encoder::try_new(&raw, &batch.schema(), None).unwrap();
        let encoded = encoder.encode(&batch).unwrap();
        assert_eq!(
            (encoded.get(0), encoded.get(1), encoded.get(2)),
            (Some(&b"\xff\0"[..]), Some(&b""[..]), None)
        );
        let number: ArrayRef = Arc::new(Int64Array::from(vec![1]));
        let numbers = Batch::try_from_iter([("n", number)]).unwrap();
        assert!(Encoder::try_new(&raw, &numbers.schema(), None).is_err());
    }
}
