//! Results as bytes: CSV, JSON lines, Arrow IPC and plans; tables are in [`table`](super::table).
//!
//! Encoders write to memory and know nothing of terminals and pipes, so that a broken pipe is seen in one place.

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{Array, ArrayRef, RecordBatch, StringArray};
use arrow::compute::cast;
use arrow::csv;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::ipc::writer::StreamWriter;
use arrow::json::writer::{LineDelimited, WriterBuilder as JsonBuilder};
use arrow::util::display::{ArrayFormatter, FormatOptions};

use super::failure::Result;
use super::options::Format;
use super::table::Table;

/// Turns one result into bytes.
pub(crate) trait Encoder {
    /// Adds a batch.
    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<()>;

    /// Writes what was held back: no batch has come for a while.
    fn settle(&mut self, out: &mut Vec<u8>) -> Result<()>;

    /// Ends the result.
    fn end(&mut self, summary: &Summary, out: &mut Vec<u8>) -> Result<()>;
}

/// What there is to say about a whole result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Summary {
    /// Rows shown.
    pub(crate) rows: u64,
    /// How long it took, where that is to be told.
    pub(crate) elapsed: Option<Duration>,
    /// There were more rows than the limit.
    pub(crate) cut: bool,
}

/// The encoder for a result of this schema; `width` is the terminal's, if there is one.
pub(crate) fn encoder(format: Format, schema: &SchemaRef, width: Option<usize>) -> Result<Box<dyn Encoder>> {
    Ok(match format {
        Format::Table if is_plan(schema) => Box::new(Plan),
        Format::Table => Box::new(Table::new(schema, width)),
        Format::Csv => Box::new(Csv {
            schema: schema.clone(),
            header_due: true,
        }),
        Format::Json => Box::new(Json),
        Format::Arrow => Box::new(Arrow {
            writer: StreamWriter::try_new(Vec::new(), schema)?,
        }),
    })
}

/// RFC 4180 with a header, lines ended as Unix does.
struct Csv {
    schema: SchemaRef,
    header_due: bool,
}

impl Encoder for Csv {
    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
        let header = std::mem::take(&mut self.header_due);
        csv::WriterBuilder::new()
            .with_header(header)
            .build(out)
            .write(&flatten(batch)?)?;
        Ok(())
    }

    fn settle(&mut self, _out: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, _summary: &Summary, out: &mut Vec<u8>) -> Result<()> {
        if self.header_due {
            self.batch(&RecordBatch::new_empty(self.schema.clone()), out)?;
        }
        Ok(())
    }
}

/// CSV has no nested values: they become text.
fn flatten(batch: &RecordBatch) -> Result<RecordBatch> {
    if !batch
        .schema_ref()
        .fields()
        .iter()
        .any(|field| is_nested(field.data_type()))
    {
        return Ok(batch.clone());
    }
    let columns = batch.columns().iter().map(text_if_nested).collect::<Result<Vec<_>>>()?;
    let fields = batch.schema_ref().fields().iter().zip(&columns);
    let fields: Vec<_> = fields
        .map(|(field, column)| Field::new(field.name(), column.data_type().clone(), true))
        .collect();
    Ok(RecordBatch::try_new(Arc::new(Schema::new(fields)), columns)?)
}

fn is_nested(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, value) => is_nested(value),
        other => other.is_nested(),
    }
}

fn text_if_nested(column: &ArrayRef) -> Result<ArrayRef> {
    if !is_nested(column.data_type()) {
        return Ok(column.clone());
    }
    let options = FormatOptions::default();
    let cells = ArrayFormatter::try_new(column, &options)?;
    let text = (0..column.len()).map(|row| column.is_valid(row).then(|| cells.value(row).to_string()));
    Ok(Arc::new(text.collect::<StringArray>()))
}

/// One object per line.
struct Json;

impl Encoder for Json {
    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
        let mut writer = JsonBuilder::new()
            .with_explicit_nulls(true)
            .build::<_, LineDelimited>(out);
        writer.write(batch)?;
        writer.finish()?;
        Ok(())
    }

    fn settle(&mut self, _out: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, _summary: &Summary, _out: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }
}

/// One IPC stream.
struct Arrow {
    writer: StreamWriter<Vec<u8>>,
}

impl Encoder for Arrow {
    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
        self.writer.write(batch)?;
        out.append(self.writer.get_mut());
        Ok(())
    }

    fn settle(&mut self, _out: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, _summary: &Summary, out: &mut Vec<u8>) -> Result<()> {
        self.writer.finish()?;
        out.append(self.writer.get_mut());
        Ok(())
    }
}

/// EXPLAIN's answer is text of many lines, which a table would only spoil.
struct Plan;

fn is_plan(schema: &Schema) -> bool {
    let names: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
    matches!(names.as_slice(), ["plan"] | ["plan_type", "plan"])
}

impl Encoder for Plan {
    fn batch(&mut self, batch: &RecordBatch, out: &mut Vec<u8>) -> Result<()> {
        let columns = batch.columns().iter().map(|column| cast(column, &DataType::Utf8));
        let columns = columns.collect::<std::result::Result<Vec<_>, _>>()?;
        let texts: Vec<_> = columns
            .iter()
            .filter_map(|c| c.as_any().downcast_ref::<StringArray>())
            .collect();
        for row in 0..batch.num_rows() {
            for (i, text) in texts.iter().enumerate() {
                out.extend(text.value(row).trim_end().bytes());
                out.extend(if i + 1 < texts.len() {
                    ":\n".bytes()
                } else {
                    "\n".bytes()
                });
            }
        }
        Ok(())
    }

    fn settle(&mut self, _out: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }

    fn end(&mut self, _summary: &Summary, _out: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, Int32Array, ListArray};
    use arrow::datatypes::Int32Type;
    use arrow::ipc::reader::StreamReader;

    use super::*;

    const SUMMARY: Summary = Summary {
        rows: 0,
        elapsed: None,
        cut: false,
    };

    fn encode(format: Format, schema: &SchemaRef, batches: &[RecordBatch]) -> Vec<u8> {
        let mut out = Vec::new();
        let mut encoder = encoder(format, schema, None).unwrap();
        for batch in batches {
            encoder.batch(batch, &mut out).unwrap();
        }
        encoder.end(&SUMMARY, &mut out).unwrap();
        out
    }

    fn text(format: Format, batch: &RecordBatch) -> String {
        String::from_utf8(encode(format, batch.schema_ref(), &[batch.clone(), batch.slice(0, 1)])).unwrap()
    }

    fn sample() -> RecordBatch {
        let list = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(1), None]), None]);
        RecordBatch::try_from_iter_with_nullable([
            ("n", Arc::new(Int32Array::from(vec![Some(1), None])) as ArrayRef, true),
            (
                "s, t",
                Arc::new(StringArray::from(vec![Some("a \"b\"\nc"), Some("")])),
                true,
            ),
            ("l", Arc::new(list), true),
        ])
        .unwrap()
    }

    #[test]
    fn csv_quotes_what_must_be_and_has_one_header() {
        assert_eq!(
            text(Format::Csv, &sample()),
            "n,\"s, t\",l\n1,\"a \"\"b\"\"\nc\",\"[1, ]\"\n,,\n1,\"a \"\"b\"\"\nc\",\"[1, ]\"\n"
        );
    }

    #[test]
    fn csv_of_no_batch_still_has_its_header() {
        let schema = sample().schema();
        assert_eq!(encode(Format::Csv, &schema, &[]), b"n,\"s, t\",l\n");
        assert_eq!(encode(Format::Json, &schema, &[]), b"");
    }

    #[test]
    fn json_is_one_object_per_line_with_its_nulls() {
        assert_eq!(
            text(Format::Json, &sample()),
            "{\"n\":1,\"s, t\":\"a \\\"b\\\"\\nc\",\"l\":[1,null]}\n{\"n\":null,\"s, t\":\"\",\"l\":null}\n\
             {\"n\":1,\"s, t\":\"a \\\"b\\\"\\nc\",\"l\":[1,null]}\n"
        );
        let numbers = Arc::new(Float64Array::from(vec![f64::NAN, f64::INFINITY])) as ArrayRef;
        let batch = RecordBatch::try_from_iter([("x", numbers)]).unwrap();
        assert!(
            text(Format::Json, &batch).starts_with("{\"x\":null}\n"),
            "{}",
            text(Format::Json, &batch)
        );
    }

    #[test]
    fn arrow_reads_back() {
        let batch = sample();
        let bytes = encode(Format::Arrow, batch.schema_ref(), &[batch.clone(), batch.clone()]);
        let read: Vec<_> = StreamReader::try_new(bytes.as_slice(), None)
            .unwrap()
            .map(|b| b.unwrap())
            .collect();
        assert_eq!(read, [batch.clone(), batch]);
    }

    #[test]
    fn a_plan_is_printed_as_it_is() {
        let plan = Arc::new(StringArray::from(vec!["Scan\n  Filter\n"])) as ArrayRef;
        let kind = Arc::new(StringArray::from(vec!["physical"])) as ArrayRef;
        let batch = RecordBatch::try_from_iter([("plan_type", kind), ("plan", plan)]).unwrap();
        assert_eq!(
            encode(Format::Table, batch.schema_ref(), std::slice::from_ref(&batch)),
            b"physical:\nScan\n  Filter\n"
        );
    }
}
