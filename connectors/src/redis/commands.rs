//! Rows to commands.

use std::borrow::Cow;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, StringArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Schema};
use arrow::json::WriterBuilder;
use arrow::json::writer::LineDelimited;
use redis::{Cmd, Pipeline};
use thalweg_engine::{Batch, EngineError, Result};

use super::{Layout, ValueType};
use crate::upsert::Changes;

/// A column as texts.
enum Texts {
    Text(StringArray),
    Bytes(BinaryArray),
}

impl Texts {
    fn try_new(column: &ArrayRef) -> Result<Self> {
        Ok(match column.data_type() {
            data_type if data_type.is_binary() => {
                Texts::Bytes(cast(column, &DataType::Binary)?.as_binary::<i32>().clone())
            }
            _ => Texts::Text(cast(column, &DataType::Utf8)?.as_string::<i32>().clone()),
        })
    }

    fn value(&self, row: usize) -> Option<&[u8]> {
        match self {
            Texts::Text(texts) => texts.is_valid(row).then(|| texts.value(row).as_bytes()),
            Texts::Bytes(bytes) => bytes.is_valid(row).then(|| bytes.value(row)),
        }
    }
}

fn texts(batch: &Batch) -> Result<Vec<Texts>> {
    batch.columns().iter().map(Texts::try_new).collect()
}

/// Adds what writes `changes` to `pipeline`. A row takes the place of whatever was there, fields that are NULL now included;
/// in a transaction nobody sees it missing.
pub(super) fn add(changes: &Changes, layout: &Layout, pipeline: &mut Pipeline) -> Result<()> {
    let mut key = Vec::new();
    let deletes = texts(&changes.deletes)?;
    let parts: Vec<&Texts> = deletes.iter().collect();
    for row in 0..changes.deletes.num_rows() {
        layout.key(&parts, row, &mut key)?;
        pipeline.cmd("DEL").arg(key.as_slice()).ignore();
    }
    let rows = &changes.upserts;
    let names = changes.key();
    let keys = names.iter().map(|name| {
        let column = rows.column_by_name(name);
        Texts::try_new(column.ok_or_else(|| EngineError::Internal(format!("there is no column '{name}'")))?)
    });
    let keys = keys.collect::<Result<Vec<_>>>()?;
    let keys: Vec<&Texts> = keys.iter().collect();
    match layout.value_type {
        ValueType::Hash => {
            let columns = texts(rows)?;
            for row in 0..rows.num_rows() {
                layout.key(&keys, row, &mut key)?;
                pipeline.cmd("DEL").arg(key.as_slice()).ignore();
                let mut set = Cmd::new();
                set.arg("HSET").arg(key.as_slice());
                for (field, column) in rows.schema_ref().fields().iter().zip(&columns) {
                    if let Some(value) = column.value(row) {
                        set.arg(field.name()).arg(value);
                    }
                }
                pipeline.add_command(set).ignore();
            }
        }
        ValueType::Json => {
            let text = json(rows)?;
            for (row, line) in text.split(|byte| *byte == b'\n').take(rows.num_rows()).enumerate() {
                layout.key(&keys, row, &mut key)?;
                pipeline.cmd("SET").arg(key.as_slice()).arg(line).ignore();
            }
        }
        ValueType::Text => {
            let value = rows
                .schema_ref()
                .fields()
                .iter()
                .position(|field| !names.contains(field.name()));
            let value = value.ok_or_else(|| EngineError::Internal("there is no column beside the key".into()))?;
            let value = Texts::try_new(rows.column(value))?;
            for row in 0..rows.num_rows() {
                layout.key(&keys, row, &mut key)?;
                match value.value(row) {
                    Some(value) => pipeline.cmd("SET").arg(key.as_slice()).arg(value).ignore(),
                    // NULL is what a key that is not there has.
                    None => pipeline.cmd("DEL").arg(key.as_slice()).ignore(),
                };
            }
        }
    }
    Ok(())
}

/// A line for each row.
fn json(rows: &Batch) -> Result<Vec<u8>> {
    // A key may be of bytes, which JSON has no form for.
    let columns = rows
        .columns()
        .iter()
        .map(|column| match column.data_type().is_binary() {
            true => cast(column, &DataType::Utf8),
            false => Ok(Arc::clone(column)),
        });
    let columns = columns.collect::<std::result::Result<Vec<_>, _>>()?;
    let fields = rows.schema_ref().fields().iter().zip(&columns);
    let fields = fields.map(|(field, column)| field.as_ref().clone().with_data_type(column.data_type().clone()));
    let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
    let mut text = Vec::new();
    let builder = WriterBuilder::new().with_explicit_nulls(true);
    let mut writer = builder.build::<_, LineDelimited>(&mut text);
    writer.write(&Batch::try_new(schema, columns)?)?;
    writer.finish()?;
    drop(writer);
    Ok(text)
}

impl Layout {
    /// The key of a row. Where several columns make it, delimiters in their values are escaped: `a:b` and `c` is another key
    /// than `a` and `b:c`.
    fn key(&self, parts: &[&Texts], row: usize, key: &mut Vec<u8>) -> Result<()> {
        key.clear();
        key.extend_from_slice(self.prefix.as_bytes());
        for (index, part) in parts.iter().enumerate() {
            if index > 0 {
                key.extend_from_slice(self.delimiter.as_bytes());
            }
            let value = part
                .value(row)
                .ok_or_else(|| EngineError::Internal("a column of the key is NULL".into()))?;
            match parts.len() {
                1 => key.extend_from_slice(value),
                _ => key.extend_from_slice(&self.escaped(value)),
            }
        }
        Ok(())
    }

    /// `%`, and the first byte of a delimiter, as in URLs.
    fn escaped<'a>(&self, value: &'a [u8]) -> Cow<'a, [u8]> {
        let first = self.delimiter.as_bytes().first().copied();
        let special = |byte: u8| byte == b'%' || Some(byte) == first;
        if !value.iter().any(|byte| special(*byte)) {
            return Cow::Borrowed(value);
        }
        let mut escaped = Vec::with_capacity(value.len() + 8);
        for byte in value {
            match special(*byte) {
                true => escaped.extend_from_slice(format!("%{byte:02X}").as_bytes()),
                false => escaped.push(*byte),
            }
        }
        Cow::Owned(escaped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_of_several_columns_do_not_meet() {
        let layout = Layout {
            prefix: "p/".into(),
            delimiter: ":".into(),
            value_type: ValueType::Hash,
        };
        let column = |values: [&str; 3]| Texts::Text(StringArray::from(values.to_vec()));
        let (a, b) = (column(["a:b", "a", "%3A"]), column(["c", "b:c", ""]));
        let key = |parts: &[&Texts], row| {
            let mut key = Vec::new();
            layout.key(parts, row, &mut key).unwrap();
            String::from_utf8(key).unwrap()
        };
        let keys: Vec<String> = (0..3).map(|row| key(&[&a, &b], row)).collect();
        assert_eq!(keys, ["p/a%3Ab:c", "p/a:b%3Ac", "p/%253A:"]);
        assert_eq!(key(&[&a], 0), "p/a:b", "one column is its own key");
    }
}
