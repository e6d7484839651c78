//! Batches to the bytes of one file, per format.

use std::error::Error;
use std::io::Write;
use std::sync::Arc;

use arrow::csv;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::writer::{FileWriter as IpcWriter, IpcWriteOptions};
use arrow::json::LineDelimitedWriter;
use arrow::json::WriterBuilder as JsonWriterBuilder;
use arrow_avro::writer::format::AvroOcfFormat;
use arrow_avro::writer::{AvroWriter, WriterBuilder as AvroWriterBuilder};
use datafusion::common::file_options::csv_writer::CsvWriterOptions;
use parquet::arrow::ArrowWriter;
use thalweg_engine::{Batch, EngineError, Result};

use crate::filesystem::compress::Compressed;
use crate::filesystem::fixed::FixedEncoder;
use crate::filesystem::storage::StagedFile;
use crate::filesystem::{FileOptions, Format};
use crate::formats::Encode;

/// A row group is held in memory until it is written: it ends at so many bytes, if not at its rows before.
const ROW_GROUP_BYTES: usize = 32 << 20;

/// Whatever a format's writer fails with; the caller adds the path.
pub(super) type EncodeResult<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Writes one file.
pub(super) trait FileEncoder: Send {
    fn write(&mut self, batch: &Batch) -> EncodeResult<()>;
    /// Bytes held until they can be written.
    fn held_bytes(&self) -> usize;
    /// Bytes that what is held will add to the file, about.
    fn pending_bytes(&self) -> usize;
    /// Writes out what is held, as far as the format allows.
    fn relieve(&mut self) -> EncodeResult<()>;
    /// Ends the file and gives it back.
    fn finish(self: Box<Self>) -> EncodeResult<Box<dyn StagedFile>>;
}

/// The schema that files of a format get for rows of `schema`: dictionaries become their values, except in Parquet
/// (the Arrow file format allows one dictionary per file only, and every batch may bring its own).
///
/// # Errors
/// When the format cannot hold a column.
pub(super) fn file_schema(format: Format, schema: &Schema) -> Result<SchemaRef> {
    let fields = schema.fields().iter().map(|field| {
        let data_type = match field.data_type() {
            DataType::Dictionary(_, value) if format != Format::Parquet => value.as_ref().clone(),
            other => other.clone(),
        };
        if format == Format::Csv && data_type.is_nested() {
            return Err(EngineError::Plan(format!(
                "column '{}' of type {data_type} cannot be written as CSV; write JSON or Parquet, or take it apart",
                field.name()
            )));
        }
        Ok(Field::new(field.name(), data_type, field.is_nullable()).with_metadata(field.metadata().clone()))
    });
    Ok(Arc::new(Schema::new_with_metadata(
        fields.collect::<Result<Vec<_>>>()?,
        schema.metadata().clone(),
    )))
}

/// The writer of one file of rows of `schema` (from [`file_schema`]).
pub(super) fn encoder(
    options: &FileOptions,
    schema: &SchemaRef,
    file: Box<dyn StagedFile>,
) -> EncodeResult<Box<dyn FileEncoder>> {
    let text = |file| Compressed::new(file, options.text_compression(), options.text_compression_level());
    Ok(match options.format {
        Format::Parquet => {
            let properties = options.parquet.into_writer_properties_builder()?;
            let properties = properties.set_max_row_group_bytes(Some(ROW_GROUP_BYTES)).build();
            Box::new(ParquetEncoder(ArrowWriter::try_new(
                file,
                Arc::clone(schema),
                Some(properties),
            )?))
        }
        Format::Csv => {
            let builder = CsvWriterOptions::try_from(&options.csv)?.writer_options;
            Box::new(CsvEncoder {
                writer: builder.build(text(file)?),
                schema: Some(Arc::clone(schema)),
            })
        }
        Format::Json => {
            let builder = JsonWriterBuilder::new().with_explicit_nulls(!options.json_ignore_null_fields);
            Box::new(JsonEncoder(builder.build(text(file)?)))
        }
        Format::Arrow => {
            let ipc = IpcWriteOptions::default().try_with_compression(options.arrow)?;
            Box::new(IpcEncoder(IpcWriter::try_new_with_options(file, schema, ipc)?))
        }
        Format::Avro => {
            let builder = AvroWriterBuilder::new(schema.as_ref().clone()).with_compression(options.avro);
            Box::new(AvroEncoder(builder.build::<_, AvroOcfFormat>(file)?))
        }
        Format::DebeziumJson | Format::CanalJson => {
            let format = options.format.records().ok_or("not a changelog")?;
            Box::new(ChangelogEncoder {
                encode: crate::formats::encoder(format)?,
                file: text(file)?,
                text: Vec::new(),
            })
        }
        Format::Fixed => Box::new(FixedEncoder::try_new(schema, &options.fixed_lengths, file)?),
    })
}

struct ParquetEncoder(ArrowWriter<Box<dyn StagedFile>>);

impl FileEncoder for ParquetEncoder {
    fn write(&mut self, batch: &Batch) -> EncodeResult<()> {
        Ok(self.0.write(batch)?)
    }

    fn held_bytes(&self) -> usize {
        self.0.memory_size()
    }

    fn pending_bytes(&self) -> usize {
        self.0.in_progress_size()
    }

    fn relieve(&mut self) -> EncodeResult<()> {
        Ok(self.0.flush()?)
    }

    fn finish(self: Box<Self>) -> EncodeResult<Box<dyn StagedFile>> {
        Ok(self.0.into_inner()?)
    }
}

struct CsvEncoder {
    writer: csv::Writer<Compressed>,
    /// The schema, until the first batch has written the header.
    schema: Option<SchemaRef>,
}

impl FileEncoder for CsvEncoder {
    fn write(&mut self, batch: &Batch) -> EncodeResult<()> {
        self.schema = None;
        Ok(self.writer.write(batch)?)
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn pending_bytes(&self) -> usize {
        0
    }

    fn relieve(&mut self) -> EncodeResult<()> {
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> EncodeResult<Box<dyn StagedFile>> {
        // A file without rows still has its header.
        if let Some(schema) = self.schema.take() {
            self.writer.write(&Batch::new_empty(schema))?;
        }
        Ok(self.writer.into_inner().finish()?)
    }
}

struct JsonEncoder(LineDelimitedWriter<Compressed>);

impl FileEncoder for JsonEncoder {
    fn write(&mut self, batch: &Batch) -> EncodeResult<()> {
        Ok(self.0.write(batch)?)
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn pending_bytes(&self) -> usize {
        0
    }

    fn relieve(&mut self) -> EncodeResult<()> {
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> EncodeResult<Box<dyn StagedFile>> {
        self.0.finish()?;
        Ok(self.0.into_inner().finish()?)
    }
}

struct ChangelogEncoder {
    encode: Box<dyn Encode>,
    file: Compressed,
    text: Vec<u8>,
}

impl FileEncoder for ChangelogEncoder {
    fn write(&mut self, batch: &Batch) -> EncodeResult<()> {
        self.text.clear();
        self.encode.encode(batch, &mut self.text)?;
        Ok(self.file.write_all(&self.text)?)
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn pending_bytes(&self) -> usize {
        0
    }

    fn relieve(&mut self) -> EncodeResult<()> {
        Ok(())
    }

    fn finish(self: Box<Self>) -> EncodeResult<Box<dyn StagedFile>> {
        Ok(self.file.finish()?)
    }
}

struct IpcEncoder(IpcWriter<Box<dyn StagedFile>>);

impl FileEncoder for IpcEncoder {
    fn write(&mut self, batch: &Batch) -> EncodeResult<()> {
        Ok(self.0.write(batch)?)
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn pending_bytes(&self) -> usize {
        0
    }

    fn relieve(&mut self) -> EncodeResult<()> {
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> EncodeResult<Box<dyn StagedFile>> {
        self.0.finish()?;
        Ok(self.0.into_inner()?)
    }
}

struct AvroEncoder(AvroWriter<Box<dyn StagedFile>>);

impl FileEncoder for AvroEncoder {
    fn write(&mut self, batch: &Batch) -> EncodeResult<()> {
        Ok(self.0.write(batch)?)
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn pending_bytes(&self) -> usize {
        0
    }

    fn relieve(&mut self) -> EncodeResult<()> {
        Ok(())
    }

    fn finish(mut self: Box<Self>) -> EncodeResult<Box<dyn StagedFile>> {
        self.0.finish()?;
        Ok(self.0.into_inner())
    }
}
