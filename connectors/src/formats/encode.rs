//! Rows of a changelog to records: Debezium's and Canal's JSON, one line a row. As in Flink an update is written as the
//! deletion of the old row and the insertion of the new one.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ListArray, StringArray, StructArray, UInt8Array};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::{Field, Schema};
use arrow::json::LineDelimitedWriter;
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use thalweg_engine::data::{RowKind, split_row_kind};
use thalweg_engine::{Batch, EngineError, Result};

use super::StreamFormat;

/// Rows to records.
pub trait Encode: Send {
    /// Appends a line for each row of `batch`, which may or may not be of a changelog.
    ///
    /// # Errors
    /// When a column cannot be written.
    fn encode(&mut self, batch: &Batch, out: &mut Vec<u8>) -> Result<()>;
}

/// What writes `format`.
///
/// # Errors
/// When it is no changelog's.
pub fn encoder(format: StreamFormat) -> Result<Box<dyn Encode>> {
    match format {
        StreamFormat::DebeziumJson => Ok(Box::new(Debezium)),
        StreamFormat::CanalJson => Ok(Box::new(Canal)),
        other => Err(EngineError::Plan(format!(
            "format '{}' cannot write a changelog",
            other.name()
        ))),
    }
}

struct Debezium;
struct Canal;

/// The rows as one column, and which of them are additions.
fn split(batch: &Batch) -> Result<(StructArray, Vec<bool>)> {
    let (rows, kinds) = split_row_kind(batch)?;
    let kinds = kinds.unwrap_or_else(|| UInt8Array::from(vec![RowKind::Insert as u8; batch.num_rows()]));
    let additions = kinds
        .values()
        .iter()
        .map(|kind| Ok(RowKind::from_u8(*kind)?.is_addition()));
    let additions = additions.collect::<Result<_>>()?;
    Ok((StructArray::from(rows), additions))
}

fn write(columns: Vec<(&str, ArrayRef)>, out: &mut Vec<u8>) -> Result<()> {
    let fields = columns
        .iter()
        .map(|(name, column)| Field::new(*name, column.data_type().clone(), true));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let batch = Batch::try_new(schema, columns.into_iter().map(|(_, column)| column).collect())?;
    let builder = WriterBuilder::new().with_explicit_nulls(true);
    let mut writer: LineDelimitedWriter<&mut Vec<u8>> = builder.build::<_, LineDelimited>(out);
    writer.write(&batch)?;
    Ok(writer.finish()?)
}

impl Encode for Debezium {
    fn encode(&mut self, batch: &Batch, out: &mut Vec<u8>) -> Result<()> {
        let (rows, additions) = split(batch)?;
        let side = |shown: Vec<bool>| -> Result<ArrayRef> {
            let (fields, columns, _) = rows.clone().into_parts();
            Ok(Arc::new(StructArray::try_new(
                fields,
                columns,
                Some(NullBuffer::from(shown)),
            )?))
        };
        let before = side(additions.iter().map(|addition| !addition).collect())?;
        let ops = additions.iter().map(|addition| if *addition { "c" } else { "d" });
        let ops: ArrayRef = Arc::new(StringArray::from_iter_values(ops));
        let after = side(additions)?;
        write(vec![("before", before), ("after", after), ("op", ops)], out)
    }
}

impl Encode for Canal {
    fn encode(&mut self, batch: &Batch, out: &mut Vec<u8>) -> Result<()> {
        let (rows, additions) = split(batch)?;
        let types = additions
            .iter()
            .map(|addition| if *addition { "INSERT" } else { "DELETE" });
        let types: ArrayRef = Arc::new(StringArray::from_iter_values(types));
        let item = Arc::new(Field::new("item", rows.data_type().clone(), false));
        let offsets = OffsetBuffer::from_lengths(std::iter::repeat_n(1, rows.len()));
        let data: ArrayRef = Arc::new(ListArray::try_new(item, offsets, Arc::new(rows), None)?);
        write(vec![("data", data), ("type", types)], out)
    }
}
