//! Changes of tables as Debezium and Canal tell them in JSON.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, ListArray, StringArray, StructArray, UInt8Array};
use arrow::compute::interleave;
use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};
use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use thalweg_engine::Batch;
use thalweg_engine::data::RowKind;

use super::text::decode_json;
use super::{BadRecord, Decode, changelog_schema};

/// The columns, each of which may be missing: one side of a change may be, and deletions often tell the key only.
fn row_type(columns: &Schema) -> DataType {
    let nullable = columns
        .fields()
        .iter()
        .map(|field| field.as_ref().clone().with_nullable(true));
    DataType::Struct(nullable.collect())
}

/// Rows of a changelog, put together from several arrays of the same columns.
struct Rows {
    schema: SchemaRef,
    /// Of each column, which array and which row of it.
    places: Vec<Vec<(usize, usize)>>,
    kinds: Vec<u8>,
}

impl Rows {
    fn new(schema: &SchemaRef, count: usize) -> Self {
        Self {
            schema: Arc::clone(schema),
            places: vec![Vec::with_capacity(count); schema.fields().len() - 1],
            kinds: Vec::with_capacity(count),
        }
    }

    fn push(&mut self, kind: RowKind, array: usize, row: usize) {
        self.push_with(kind, |_| (array, row));
    }

    fn push_with(&mut self, kind: RowKind, place: impl Fn(usize) -> (usize, usize)) {
        for (column, places) in self.places.iter_mut().enumerate() {
            places.push(place(column));
        }
        self.kinds.push(kind as u8);
    }

    fn finish(self, arrays: &[&StructArray]) -> Result<Batch, BadRecord> {
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(self.places.len() + 1);
        for (column, places) in self.places.iter().enumerate() {
            let arrays: Vec<&dyn Array> = arrays.iter().map(|array| array.column(column).as_ref()).collect();
            columns.push(interleave(&arrays, places).map_err(BadRecord::somewhere)?);
        }
        columns.push(Arc::new(UInt8Array::from(self.kinds)));
        // This also finds NULLs where the table says that there are none.
        Batch::try_new(self.schema, columns).map_err(BadRecord::somewhere)
    }
}

fn text<'a>(rows: &'a StructArray, name: &str) -> Option<&'a StringArray> {
    rows.column_by_name(name)?.as_string_opt::<i32>()
}

/// Debezium's envelope: `{"before": {..}, "after": {..}, "op": "c" | "r" | "u" | "d", ..}`.
pub(super) struct Debezium {
    envelope: SchemaRef,
    schema: SchemaRef,
    schema_include: bool,
}

impl Debezium {
    /// Of rows of `columns`; with `schema_include` the envelope is in `payload`.
    pub(super) fn new(columns: &Schema, schema_include: bool) -> Self {
        let row = row_type(columns);
        let fields = Fields::from(vec![
            Field::new("before", row.clone(), true),
            Field::new("after", row, true),
            Field::new("op", DataType::Utf8, true),
        ]);
        let envelope = match schema_include {
            true => Schema::new(vec![Field::new("payload", DataType::Struct(fields), true)]),
            false => Schema::new(fields),
        };
        Self {
            envelope: Arc::new(envelope),
            schema: changelog_schema(columns),
            schema_include,
        }
    }
}

impl Decode for Debezium {
    fn decode(&mut self, records: &[&[u8]]) -> Result<Batch, BadRecord> {
        let decoded = decode_json(&self.envelope, records)?;
        let payload = match self.schema_include {
            true => decoded.column(0).as_struct().clone(),
            false => StructArray::from(decoded),
        };
        let side = |name: &str| payload.column_by_name(name).and_then(|side| side.as_struct_opt());
        let (Some(before), Some(after), Some(ops)) = (side("before"), side("after"), text(&payload, "op")) else {
            return Err(BadRecord::somewhere("it has neither 'before' nor 'after'"));
        };
        let mut rows = Rows::new(&self.schema, payload.len());
        for row in 0..payload.len() {
            let missing = |what: &str, of: &str| BadRecord::at(row, format!("'{what}' is null in {of}"));
            let op = match payload.is_valid(row) && ops.is_valid(row) {
                true => ops.value(row),
                false if self.schema_include => return Err(BadRecord::at(row, "it has no 'payload' with an 'op'")),
                false => {
                    return Err(BadRecord::at(
                        row,
                        "it has no 'op'; if it holds 'schema' and 'payload', set 'debezium-json.schema-include' = 'true'",
                    ));
                }
            };
            match op {
                "c" | "r" if after.is_null(row) => return Err(missing("after", "an insertion")),
                "c" | "r" => rows.push(RowKind::Insert, 1, row),
                "u" if after.is_null(row) => return Err(missing("after", "an update")),
                // PostgreSQL tells the old row only when asked to.
                "u" if before.is_null(row) => {
                    return Err(missing(
                        "before",
                        "an update (with PostgreSQL set REPLICA IDENTITY FULL)",
                    ));
                }
                "u" => {
                    rows.push(RowKind::UpdateBefore, 0, row);
                    rows.push(RowKind::UpdateAfter, 1, row);
                }
                "d" if before.is_null(row) => {
                    return Err(missing(
                        "before",
                        "a deletion (with PostgreSQL set REPLICA IDENTITY FULL)",
                    ));
                }
                "d" => rows.push(RowKind::Delete, 0, row),
                other => return Err(BadRecord::at(row, format!("unknown 'op' \"{other}\""))),
            }
        }
        rows.finish(&[before, after])
    }
}

/// Canal's messages: `{"data": [{..}, ..], "old": [{..}, ..], "type": "INSERT" | "UPDATE" | "DELETE", ..}`. `old` holds
/// the columns that have changed.
pub(super) struct Canal {
    envelope: SchemaRef,
    schema: SchemaRef,
    columns: Vec<String>,
}

impl Canal {
    /// Of rows of `columns`.
    pub(super) fn new(columns: &Schema) -> Self {
        let rows = DataType::List(Arc::new(Field::new("item", row_type(columns), true)));
        Self {
            envelope: Arc::new(Schema::new(vec![
                Field::new("data", rows.clone(), true),
                Field::new("old", rows, true),
                Field::new("type", DataType::Utf8, true),
                Field::new("isDdl", DataType::Boolean, true),
            ])),
            schema: changelog_schema(columns),
            columns: columns.fields().iter().map(|field| field.name().clone()).collect(),
        }
    }
}

/// The parts of Canal's messages.
struct Messages<'a> {
    data: &'a ListArray,
    old: &'a ListArray,
    types: &'a StringArray,
    is_ddl: &'a BooleanArray,
}

impl Decode for Canal {
    fn decode(&mut self, records: &[&[u8]]) -> Result<Batch, BadRecord> {
        let decoded = decode_json(&self.envelope, records)?;
        let messages = Messages {
            data: decoded.column(0).as_list(),
            old: decoded.column(1).as_list(),
            types: decoded.column(2).as_string(),
            is_ddl: decoded.column(3).as_boolean(),
        };
        let (new, old) = (messages.data.values().as_struct(), messages.old.values().as_struct());
        let mut rows = Rows::new(&self.schema, new.len());
        for (row, record) in records.iter().enumerate() {
            if messages.is_ddl.is_valid(row) && messages.is_ddl.value(row) {
                continue;
            }
            let kind = match messages.types.is_valid(row) {
                true => messages.types.value(row),
                false => return Err(BadRecord::at(row, "it has no 'type'")),
            };
            // A change of the schema, not of rows.
            if messages.data.is_null(row) && kind == "CREATE" {
                continue;
            }
            let after = items(messages.data, row).ok_or_else(|| BadRecord::at(row, "'data' is null"))?;
            if let Some(null) = after.clone().find(|item| new.is_null(*item)) {
                return Err(BadRecord::at(
                    row,
                    format!("'data' holds null at {}", null - after.start),
                ));
            }
            match kind {
                "INSERT" => after.for_each(|item| rows.push(RowKind::Insert, 0, item)),
                "DELETE" => after.for_each(|item| rows.push(RowKind::Delete, 0, item)),
                "UPDATE" => {
                    let before = items(messages.old, row).filter(|before| before.len() == after.len());
                    let before =
                        before.ok_or_else(|| BadRecord::at(row, "'old' does not hold a row for each of 'data'"))?;
                    let told =
                        OldNames::read(record, before.len()).map_err(|error| BadRecord::at(row, error.to_string()))?;
                    for ((after, before), told) in after.zip(before).zip(told) {
                        let places = self.columns.iter().map(|column| match told.contains(column.as_str()) {
                            true => (1, before),
                            false => (0, after),
                        });
                        let places: Vec<_> = places.collect();
                        rows.push_with(RowKind::UpdateBefore, |column| places[column]);
                        rows.push(RowKind::UpdateAfter, 0, after);
                    }
                }
                other => return Err(BadRecord::at(row, format!("unknown 'type' \"{other}\""))),
            }
        }
        rows.finish(&[new, old])
    }
}

fn items(lists: &ListArray, row: usize) -> Option<std::ops::Range<usize>> {
    let offsets = lists.value_offsets();
    lists
        .is_valid(row)
        .then(|| offsets[row] as usize..offsets[row + 1] as usize)
}

/// The names in each row of `old`: a column that is there and null was NULL, one that is not there has not changed. The
/// columns alone do not tell these apart.
#[derive(Deserialize)]
struct OldNames<'a> {
    #[serde(borrow, default)]
    old: Option<Vec<Option<Names<'a>>>>,
}

impl<'a> OldNames<'a> {
    fn read(record: &'a [u8], rows: usize) -> serde_json::Result<Vec<BTreeSet<Cow<'a, str>>>> {
        let names: OldNames<'a> = serde_json::from_slice(record)?;
        let mut names: Vec<_> = names
            .old
            .unwrap_or_default()
            .into_iter()
            .map(|names| names.unwrap_or_default().0)
            .collect();
        names.resize(rows, BTreeSet::new());
        Ok(names)
    }
}

/// The names of an object's members.
#[derive(Default)]
struct Names<'a>(BTreeSet<Cow<'a, str>>);

impl<'de: 'a, 'a> Deserialize<'de> for Names<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = BTreeSet<Cow<'de, str>>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut names = BTreeSet::new();
                while let Some((Name(name), IgnoredAny)) = map.next_entry()? {
                    names.insert(name);
                }
                Ok(names)
            }
        }
        deserializer.deserialize_map(Members).map(Names)
    }
}

/// A name, borrowed where it has no escapes.
#[derive(Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);
