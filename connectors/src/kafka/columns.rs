//! What each column of a table is: of the value, of the key, or about the record (`METADATA`).

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryBuilder, Int32Array, Int64Array, MapArray, StringArray, StringBuilder, StructArray,
    TimestampMillisecondArray,
};
use arrow::buffer::OffsetBuffer;
use arrow::compute::{can_cast_types, cast};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use rdkafka::Timestamp;
use rdkafka::message::{BorrowedMessage, Headers, Message};
use thalweg_engine::{EngineError, Result};

use crate::METADATA_KEY;
use crate::kafka::options::KafkaOptions;

/// What is known about a record beside its key and value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum About {
    /// Its topic.
    Topic,
    /// Its partition.
    Partition,
    /// Its place there.
    Offset,
    /// When it was made or taken in.
    Timestamp,
    /// Which of the two: `CreateTime` or `LogAppendTime`.
    TimestampType,
    /// Names and values.
    Headers,
    /// The key as it is.
    Key,
}

const ABOUT: [(&str, About); 7] = [
    ("topic", About::Topic),
    ("partition", About::Partition),
    ("offset", About::Offset),
    ("timestamp", About::Timestamp),
    ("timestamp-type", About::TimestampType),
    ("headers", About::Headers),
    ("key", About::Key),
];

fn utc() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("+00:00".into()))
}

impl About {
    fn parse(column: &str, key: &str) -> Result<Self> {
        let found = ABOUT.iter().find(|(name, _)| *name == key);
        found.map(|(_, about)| *about).ok_or_else(|| {
            let names: Vec<&str> = ABOUT.iter().map(|(name, _)| *name).collect();
            EngineError::Plan(format!(
                "column '{column}': connector 'kafka' has no metadata '{key}'; it has: {}",
                names.join(", ")
            ))
        })
    }

    /// As in `METADATA FROM '..'`.
    pub(super) fn name(self) -> &'static str {
        ABOUT
            .iter()
            .find(|(_, about)| *about == self)
            .map_or("", |(name, _)| name)
    }

    fn check(self, field: &Field) -> Result<()> {
        let (fits, wanted) = match self {
            About::Topic | About::TimestampType => (can_cast_types(&DataType::Utf8, field.data_type()), "STRING"),
            About::Partition => (field.data_type().is_integer(), "INT"),
            About::Offset => (field.data_type().is_integer(), "BIGINT"),
            About::Timestamp => (can_cast_types(&utc(), field.data_type()), "TIMESTAMP(3)"),
            About::Headers => (map_types(field.data_type()).is_some(), "MAP<STRING, BYTES>"),
            About::Key => (can_cast_types(&DataType::Binary, field.data_type()), "BYTES"),
        };
        match fits {
            true => Ok(()),
            false => Err(EngineError::Plan(format!(
                "column '{}' of type {} cannot hold the metadata '{}'; declare it as {wanted}",
                field.name(),
                field.data_type(),
                self.name()
            ))),
        }
    }

    /// Of these records, as `field` has it.
    pub(super) fn column(self, records: &[&BorrowedMessage<'_>], field: &Field) -> Result<ArrayRef> {
        let column: ArrayRef = match self {
            About::Topic => Arc::new(StringArray::from_iter_values(records.iter().map(|r| r.topic()))),
            About::Partition => Arc::new(Int32Array::from_iter_values(records.iter().map(|r| r.partition()))),
            About::Offset => Arc::new(Int64Array::from_iter_values(records.iter().map(|r| r.offset()))),
            About::Timestamp => {
                let times = records.iter().map(|r| r.timestamp().to_millis());
                let times: TimestampMillisecondArray = times.collect();
                Arc::new(times.with_timezone("+00:00"))
            }
            About::TimestampType => Arc::new(StringArray::from_iter(records.iter().map(|r| match r.timestamp() {
                Timestamp::NotAvailable => None,
                Timestamp::CreateTime(_) => Some("CreateTime"),
                Timestamp::LogAppendTime(_) => Some("LogAppendTime"),
            }))),
            About::Headers => return headers(records, field),
            About::Key => {
                let mut keys = BinaryBuilder::new();
                records.iter().for_each(|r| keys.append_option(r.key()));
                Arc::new(keys.finish())
            }
        };
        Ok(cast(&column, field.data_type())?)
    }
}

/// The fields of a map of texts to bytes.
fn map_types(data_type: &DataType) -> Option<(&Arc<Field>, &Arc<Field>, &Arc<Field>)> {
    let DataType::Map(entries, _) = data_type else {
        return None;
    };
    let DataType::Struct(fields) = entries.data_type() else {
        return None;
    };
    let (key, value) = (&fields[0], &fields[1]);
    let fits = can_cast_types(&DataType::Utf8, key.data_type()) && can_cast_types(&DataType::Binary, value.data_type());
    fits.then_some((entries, key, value))
}

fn headers(records: &[&BorrowedMessage<'_>], field: &Field) -> Result<ArrayRef> {
    let Some((entries, key, value)) = map_types(field.data_type()) else {
        return Err(EngineError::Internal(format!(
            "headers cannot be {}",
            field.data_type()
        )));
    };
    let (mut names, mut values, mut lengths) = (StringBuilder::new(), BinaryBuilder::new(), Vec::new());
    for record in records {
        let headers = record.headers();
        let headers = headers.iter().flat_map(|headers| headers.iter());
        let mut count = 0;
        for header in headers {
            names.append_value(header.key);
            values.append_option(header.value);
            count += 1;
        }
        lengths.push(count);
    }
    let names: ArrayRef = Arc::new(names.finish());
    let values: ArrayRef = Arc::new(values.finish());
    let fields = vec![Arc::new(key.as_ref().clone().with_nullable(false)), Arc::clone(value)];
    let columns = vec![cast(&names, key.data_type())?, cast(&values, value.data_type())?];
    let pairs = StructArray::try_new(fields.into(), columns, None)?;
    let map = MapArray::try_new(
        Arc::new(entries.as_ref().clone().with_data_type(pairs.data_type().clone())),
        OffsetBuffer::from_lengths(lengths),
        pairs,
        None,
        false,
    )?;
    Ok(Arc::new(map))
}

/// Where each column of a table comes from and goes to. Numbers are of declared columns.
#[derive(Clone, Debug)]
pub(super) struct Columns {
    /// As declared, without the marks for connectors.
    pub(super) declared: SchemaRef,
    /// Those in the value.
    pub(super) value: Vec<usize>,
    /// As the value's format sees them.
    pub(super) value_schema: SchemaRef,
    /// Those in the key.
    pub(super) key: Vec<usize>,
    /// As the key's format sees them: without the prefix of their names.
    pub(super) key_schema: SchemaRef,
    /// Those about the record.
    pub(super) metadata: Vec<(usize, About)>,
}

impl Columns {
    /// Of a table with these options.
    ///
    /// # Errors
    /// When a column of the key is not there, or one of metadata has a wrong type.
    pub(super) fn try_new(schema: &SchemaRef, options: &KafkaOptions) -> Result<Self> {
        if schema.fields().is_empty() {
            return Err(EngineError::Plan(format!(
                "connector '{}' needs columns: CREATE TABLE t (a INT, ..) WITH (..)",
                options.flavor.name()
            )));
        }
        let unmarked = schema.fields().iter().map(|field| {
            let mut metadata = field.metadata().clone();
            metadata.remove(METADATA_KEY);
            field.as_ref().clone().with_metadata(metadata)
        });
        let declared: SchemaRef = Arc::new(Schema::new(unmarked.collect::<Vec<_>>()));
        let mut metadata = Vec::new();
        for (index, field) in schema.fields().iter().enumerate() {
            if let Some(key) = field.metadata().get(METADATA_KEY) {
                let about = About::parse(field.name(), key)?;
                about.check(field)?;
                metadata.push((index, about));
            }
        }
        let is_metadata = |index: &usize| metadata.iter().any(|(column, _)| column == index);
        let mut key = Vec::new();
        for name in &options.key_fields {
            let index = declared.index_of(name).ok().filter(|index| !is_metadata(index));
            let Some(index) = index else {
                return Err(EngineError::Plan(format!(
                    "the key names '{name}', which is no stored column of the table"
                )));
            };
            if !name.starts_with(&options.key_prefix) {
                return Err(EngineError::Plan(format!(
                    "column '{name}' of the key does not begin with 'key.fields-prefix' = '{}'",
                    options.key_prefix
                )));
            }
            key.push(index);
        }
        let in_value = |index: &usize| !(is_metadata(index) || options.value_without_key && key.contains(index));
        let value: Vec<usize> = (0..declared.fields().len()).filter(in_value).collect();
        if value.is_empty() {
            return Err(EngineError::Plan(
                "no column is in the value of the records; declare one, or leave out 'value.fields-include'".into(),
            ));
        }
        let key_fields = key.iter().map(|index| {
            let field = declared.field(*index);
            let name = field.name().strip_prefix(&options.key_prefix).unwrap_or(field.name());
            field.clone().with_name(name)
        });
        Ok(Self {
            value_schema: Arc::new(declared.project(&value)?),
            key_schema: Arc::new(Schema::new(key_fields.collect::<Vec<_>>())),
            declared,
            value,
            key,
            metadata,
        })
    }

    /// What a column is about, if it is about the record.
    pub(super) fn about(&self, column: usize) -> Option<About> {
        let found = self.metadata.iter().find(|(index, _)| *index == column);
        found.map(|(_, about)| *about)
    }
}
