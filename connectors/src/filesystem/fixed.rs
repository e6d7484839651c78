//! Files of records of one length, without header, separator or NULL: what gensort writes. A record is its columns'
//! bytes one after the other, so a file can be cut anywhere and read by several subtasks: a record belongs to the
//! range in which it begins.

mod read;
#[cfg(test)]
mod tests;
mod write;

use arrow::datatypes::{DataType, Schema};

pub(super) use read::FixedFormat;
pub(super) use write::FixedEncoder;

/// Where a record holds which column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    places: Vec<Place>,
    record_bytes: usize,
}

/// The bytes of one column.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    column: String,
    data_type: DataType,
    start: usize,
    length: usize,
}

impl Layout {
    /// The layout of records of `schema`. `lengths` are those of the columns; none when all types have a length.
    pub(super) fn try_new(schema: &Schema, lengths: &[usize]) -> Result<Self, String> {
        let columns = schema.fields().len();
        if !lengths.is_empty() && lengths.len() != columns {
            return Err(format!(
                "'fixed.lengths' names {} lengths, but the files have {columns} columns",
                lengths.len()
            ));
        }
        let mut places = Vec::with_capacity(columns);
        let mut start = 0usize;
        for (index, field) in schema.fields().iter().enumerate() {
            let column = field.name().clone();
            let length = length_of(field.data_type(), lengths.get(index).copied())
                .map_err(|why| format!("column '{column}' {why}"))?;
            places.push(Place {
                column,
                data_type: field.data_type().clone(),
                start,
                length,
            });
            start = start.saturating_add(length);
        }
        // Offsets into a column are 32 bits wide.
        if start > i32::MAX as usize {
            return Err(format!("a record of {start} bytes is too long"));
        }
        Ok(Self {
            places,
            record_bytes: start,
        })
    }
}

fn length_of(data_type: &DataType, said: Option<usize>) -> Result<usize, String> {
    let of_type = match data_type {
        DataType::FixedSizeBinary(length) => Some(usize::try_from(*length).unwrap_or(0)),
        DataType::Binary | DataType::LargeBinary | DataType::BinaryView => None,
        other => {
            return Err(format!(
                "of type {other} cannot be in a file of format 'fixed'; use BYTEA"
            ));
        }
    };
    match (of_type, said) {
        (Some(length), Some(said)) if length != said => {
            Err(format!("has {length} bytes, but 'fixed.lengths' says {said}"))
        }
        (None, None) => Err("has no length; add 'fixed.lengths' = 'n, ..', one for each column".into()),
        (Some(0), _) => Err("must have at least 1 byte".into()),
        (Some(length), _) | (None, Some(length)) => Ok(length),
    }
}
