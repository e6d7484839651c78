//! How rows of an older schema become rows of the one that is declared now.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, RecordBatchOptions, new_null_array};
use arrow::compute::cast;
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};

use crate::data::{Batch, EngineError, Result};

/// What the name of a key column begins with, before the name of the column that is the key.
pub(crate) const KEY_PREFIX: &str = "key_";

/// What the user has said about state whose program has changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evolution {
    /// New names of columns, by old name.
    pub renamed: BTreeMap<String, String>,
}

impl Evolution {
    /// What a stored column is called now; where an operator keeps a column as a key, it is called after it.
    fn name_now(&self, name: &str) -> String {
        let of_key = || Some((KEY_PREFIX, self.renamed.get(name.strip_prefix(KEY_PREFIX)?)?));
        let renamed = self.renamed.get(name).map(|name| ("", name)).or_else(of_key);
        renamed.map_or_else(|| name.to_string(), |(prefix, name)| format!("{prefix}{name}"))
    }
}

/// Where each column of a declared schema comes from.
#[derive(Debug)]
pub struct Mapping {
    schema: SchemaRef,
    /// The stored column of each declared one; NULL when there is none.
    sources: Vec<Option<usize>>,
    is_same: bool,
}

/// Finds how rows stored as `from` become rows of `to`: columns are found by name, after renaming. A new column must be
/// nullable and is NULL; a type may widen; a column that is no longer declared is left out.
///
/// # Errors
/// When a column is new and not nullable, or its type changed in another way; the error names operator, table and column.
pub fn evolve(
    from: &SchemaRef,
    to: &SchemaRef,
    evolution: &Evolution,
    (operator, table): (&str, &str),
) -> Result<Mapping> {
    let refuse = |column: &str, detail: String| {
        Err(EngineError::Plan(format!(
            "the state of operator '{operator}' does not fit: column '{column}' of table '{table}' {detail}; \
             keep the column as it was, or start without that state"
        )))
    };
    let name_now = |name: &String| evolution.name_now(name);
    let stored: Vec<String> = from.fields().iter().map(|field| name_now(field.name())).collect();
    let mut sources = Vec::with_capacity(to.fields().len());
    for field in to.fields() {
        let Some(source) = stored.iter().position(|name| name == field.name()) else {
            if !field.is_nullable() {
                return refuse(field.name(), "is new and not nullable".into());
            }
            sources.push(None);
            continue;
        };
        let (old, new) = (from.field(source).data_type(), field.data_type());
        if !is_widening(old, new) {
            return refuse(
                field.name(),
                format!("was {old} and is {new} now, which may lose values"),
            );
        }
        sources.push(Some(source));
    }
    let is_same = from.fields().len() == to.fields().len()
        && sources.iter().enumerate().all(|(index, source)| *source == Some(index))
        && from
            .fields()
            .iter()
            .zip(to.fields())
            .all(|(a, b)| a.data_type() == b.data_type());
    Ok(Mapping {
        schema: Arc::clone(to),
        sources,
        is_same,
    })
}

impl Mapping {
    /// The first of these declared columns that is not stored.
    pub(super) fn missing(&self, mut columns: impl Iterator<Item = usize>) -> Option<&str> {
        let missing = columns.find(|column| self.sources.get(*column).is_some_and(Option::is_none))?;
        Some(self.schema.field(missing).name())
    }

    /// Rows of the declared schema.
    ///
    /// # Errors
    /// When a NULL stands in a column that must not have any.
    pub fn apply(&self, batch: &Batch) -> Result<Batch> {
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        if self.is_same {
            let columns = batch.columns().to_vec();
            return Ok(Batch::try_new_with_options(
                Arc::clone(&self.schema),
                columns,
                &options,
            )?);
        }
        let columns = self
            .sources
            .iter()
            .zip(self.schema.fields())
            .map(|(source, field)| -> Result<ArrayRef> {
                Ok(match source {
                    Some(source) => cast(batch.column(*source), field.data_type())?,
                    None => new_null_array(field.data_type(), batch.num_rows()),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Batch::try_new_with_options(
            Arc::clone(&self.schema),
            columns,
            &options,
        )?)
    }
}

/// Whether every value of `from` has an equal one in `to`.
fn is_widening(from: &DataType, to: &DataType) -> bool {
    use DataType::{
        Binary, BinaryView, Decimal128, Decimal256, Float16, Float32, Float64, Int8, Int16, Int32, Int64, LargeBinary,
        LargeUtf8, List, Null, Struct, Timestamp, UInt8, UInt16, UInt32, UInt64, Utf8, Utf8View,
    };
    if from == to {
        return true;
    }
    match (from, to) {
        (Null, _) => true,
        (Int8, Int16 | Int32 | Int64 | Float16 | Float32 | Float64)
        | (Int16, Int32 | Int64 | Float32 | Float64)
        | (Int32, Int64 | Float64)
        | (UInt8, UInt16 | UInt32 | UInt64 | Int16 | Int32 | Int64 | Float32 | Float64)
        | (UInt16, UInt32 | UInt64 | Int32 | Int64 | Float32 | Float64)
        | (UInt32, UInt64 | Int64 | Float64)
        | (Float16, Float32 | Float64)
        | (Float32, Float64) => true,
        (Utf8 | LargeUtf8 | Utf8View, Utf8 | LargeUtf8 | Utf8View) => true,
        (Binary | LargeBinary | BinaryView, Binary | LargeBinary | BinaryView) => true,
        (
            Decimal128(precision, scale) | Decimal256(precision, scale),
            Decimal128(wider, finer) | Decimal256(wider, finer),
        ) => finer >= scale && i16::from(*wider) - i16::from(*finer) >= i16::from(*precision) - i16::from(*scale),
        (Timestamp(unit, zone), Timestamp(finer, other)) => zone == other && precision(*finer) >= precision(*unit),
        (List(old), List(new)) => is_widening(old.data_type(), new.data_type()),
        (Struct(old), Struct(new)) => {
            old.len() == new.len()
                && old
                    .iter()
                    .zip(new)
                    .all(|(a, b)| a.name() == b.name() && is_widening(a.data_type(), b.data_type()))
        }
        _ => false,
    }
}

fn precision(unit: TimeUnit) -> u8 {
    match unit {
        TimeUnit::Second => 0,
        TimeUnit::Millisecond => 1,
        TimeUnit::Microsecond => 2,
        TimeUnit::Nanosecond => 3,
    }
}
