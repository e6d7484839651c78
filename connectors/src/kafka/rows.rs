//! Records of a partition to rows.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, RecordBatchOptions};
use arrow::compute::nullif;
use arrow::datatypes::SchemaRef;
use rdkafka::message::{BorrowedMessage, Message};
use thalweg_engine::{Batch, EngineError, Result};

use crate::formats::{DecodedRange, Decoder, FormatOptions, StreamFormat};
use crate::kafka::avro::Avro;
use crate::kafka::columns::About;
use crate::kafka::options::Payload;
use crate::kafka::registry::Registry;
use crate::kafka::table::KafkaSpec;

/// Where a column that is read comes from.
#[derive(Clone, Copy, Debug)]
enum Place {
    /// This column of the decoded values.
    Value(usize),
    /// This column of the decoded keys.
    Key(usize),
    About(About),
}

/// Makes rows of the records of one partition.
pub(super) struct Rows {
    schema: SchemaRef,
    places: Vec<Place>,
    value: Decoder,
    /// Whether a record without a value is a row whose value is NULL.
    takes_nulls: bool,
    registry: Option<Arc<Registry>>,
    key: Option<Keys>,
    source: String,
}

impl Rows {
    /// The columns `projection` of the table.
    ///
    /// # Errors
    /// When a format cannot fill its columns.
    pub(super) fn try_new(spec: &KafkaSpec, projection: &[usize], source: String) -> Result<Self> {
        let columns = &spec.columns;
        let read: Vec<usize> = columns
            .value
            .iter()
            .copied()
            .filter(|index| projection.contains(index))
            .collect();
        // Formats that find columns by their names need not look at the others.
        let by_name = match &spec.options.value {
            Payload::Text(options) => options.format == StreamFormat::Json,
            Payload::Avro(_) | Payload::AvroConfluent { .. } => true,
        };
        let read = match by_name {
            true if read.is_empty() => columns.value[..1].to_vec(),
            true => read,
            false => columns.value.clone(),
        };
        let target: SchemaRef = Arc::new(columns.declared.project(&read)?);
        let value = match &spec.options.value {
            Payload::Text(options) => Decoder::new(options, &target, source.clone())?,
            Payload::Avro(policy) => {
                let avro = Avro::own(&columns.value_schema, Arc::clone(&target))?;
                Decoder::of(Box::new(avro), target, "avro", policy, source.clone())
            }
            Payload::AvroConfluent { policy, .. } => {
                let Some(registry) = spec.registry.clone() else {
                    return Err(EngineError::Internal("avro-confluent without a registry".into()));
                };
                let avro = Avro::of_registry(registry, Arc::clone(&target));
                Decoder::of(Box::new(avro), target, "avro-confluent", policy, source.clone())
            }
        };
        let place = |index: &usize| match (columns.about(*index), read.iter().position(|read| read == index)) {
            (Some(about), _) => Ok(Place::About(about)),
            (None, Some(position)) => Ok(Place::Value(position)),
            // Behind the declared columns.
            (None, None) if *index == columns.declared.fields().len() => Ok(Place::Value(read.len())),
            (None, None) => match columns.key.iter().position(|key| key == index) {
                Some(position) => Ok(Place::Key(position)),
                None => Err(EngineError::Internal(format!("column {index} is nowhere"))),
            },
        };
        let places = projection.iter().map(place).collect::<Result<Vec<Place>>>()?;
        let needs_key = places.iter().any(|place| matches!(place, Place::Key(_)));
        let key = match &spec.options.key {
            Some(Payload::Text(options)) if needs_key => Some(Keys::try_new(options, &columns.key_schema, &source)?),
            _ => None,
        };
        Ok(Self {
            schema: Arc::new(spec.schema.project(projection)?),
            places,
            value: value.numbered_by("offset"),
            takes_nulls: matches!(&spec.options.value, Payload::Text(options) if options.format == StreamFormat::Raw),
            registry: spec.registry.clone(),
            key,
            source,
        })
    }

    /// The schema of the rows.
    pub(super) fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// How many records have been set aside.
    pub(super) fn bad_records(&self) -> u64 {
        self.value.bad_records()
    }

    /// The rows of records, which are in the order of their offsets.
    ///
    /// # Errors
    /// When one cannot be read and is not to be set aside.
    pub(super) fn decode(&mut self, records: &[BorrowedMessage<'_>]) -> Result<Batch> {
        let payloads = records
            .iter()
            .filter(|record| self.takes_nulls || record.payload().is_some());
        // Offsets are never negative.
        let numbered = payloads.map(|record| (record.offset().unsigned_abs(), record.payload().unwrap_or_default()));
        let numbered: Vec<(u64, &[u8])> = numbered.collect();
        if let Some(registry) = &self.registry {
            registry.learn(numbered.iter().map(|(_, payload)| *payload))?;
        }
        let (values, ranges) = self.value.decode_numbered(numbered)?;
        let has_nulls = self.takes_nulls && records.iter().any(|record| record.payload().is_none());
        let only_values = self.places.iter().all(|place| matches!(place, Place::Value(_)));
        let kept = match only_values && !has_nulls {
            true => Vec::new(),
            false => self.kept(records, ranges)?,
        };
        let nulls =
            has_nulls.then(|| BooleanArray::from_iter(kept.iter().map(|record| Some(record.payload().is_none()))));
        let keys = match &mut self.key {
            Some(keys) => Some(keys.decode(&kept)?),
            None => None,
        };
        let columns = self
            .places
            .iter()
            .zip(self.schema.fields())
            .map(|(place, field)| match (place, &keys, &nulls) {
                (Place::Value(column), _, Some(nulls)) => Ok(nullif(values.column(*column), nulls)?),
                (Place::Value(column), ..) => Ok(Arc::clone(values.column(*column))),
                (Place::Key(column), Some(keys), _) => Ok(Arc::clone(&keys[*column])),
                (Place::Key(_), None, _) => Err(EngineError::Internal("the key was not read".into())),
                (Place::About(about), ..) => about.column(&kept, field),
            });
        let columns: Vec<ArrayRef> = columns.collect::<Result<_>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(values.num_rows()));
        Batch::try_new_with_options(Arc::clone(&self.schema), columns, &options).map_err(|e| {
            let (first, last) = (records.first().map(|r| r.offset()), records.last().map(|r| r.offset()));
            EngineError::BadInput(format!("{}, offsets {first:?} to {last:?}: {e}", self.source))
        })
    }

    /// The records of which each is a row.
    fn kept<'r, 'c>(
        &self,
        records: &'r [BorrowedMessage<'c>],
        ranges: Vec<DecodedRange>,
    ) -> Result<Vec<&'r BorrowedMessage<'c>>> {
        if let Some(range) = ranges.iter().find(|range| range.rows != range.numbers.len()) {
            return Err(EngineError::BadInput(format!(
                "{}, from offset {:?}: {} records are {} rows, so that keys and metadata cannot be told of each; leave \
                 those columns or 'csv.allow-comments' out",
                self.source,
                range.numbers.first(),
                range.numbers.len(),
                range.rows
            )));
        }
        let by_offset: HashMap<u64, &BorrowedMessage<'c>> =
            match ranges.iter().map(|range| range.numbers.len()).sum::<usize>() == records.len() {
                true => return Ok(records.iter().collect()),
                false => records
                    .iter()
                    .map(|record| (record.offset().unsigned_abs(), record))
                    .collect(),
            };
        let numbers = ranges.iter().flat_map(|range| &range.numbers);
        Ok(numbers.filter_map(|number| by_offset.get(number).copied()).collect())
    }
}

/// Reads keys: one that cannot be read is an error, because its row is there already.
struct Keys {
    decoder: Decoder,
    /// Stands for a key that is not there.
    absent: &'static [u8],
}

impl Keys {
    fn try_new(options: &FormatOptions, columns: &SchemaRef, source: &str) -> Result<Self> {
        let decoder = Decoder::new(options, columns, format!("{source}, key"))?;
        Ok(Self {
            decoder: decoder.numbered_by("offset"),
            absent: match options.format {
                StreamFormat::Json => b"{}",
                _ => b"",
            },
        })
    }

    fn decode(&mut self, records: &[&BorrowedMessage<'_>]) -> Result<Vec<ArrayRef>> {
        let blank = |record: &BorrowedMessage<'_>| record.key().is_none_or(|key| key.trim_ascii().is_empty());
        let is_json = !self.absent.is_empty();
        let numbered = records.iter().map(|record| {
            let key = match is_json && blank(record) {
                true => self.absent,
                false => record.key().unwrap_or(self.absent),
            };
            (record.offset().unsigned_abs(), key)
        });
        let (keys, _) = self.decoder.decode_numbered(numbered.collect())?;
        let absent = BooleanArray::from_iter(records.iter().map(|record| Some(record.key().is_none())));
        let columns = keys.columns().iter().map(|column| match absent.true_count() {
            0 => Ok(Arc::clone(column)),
            _ => Ok(nullif(column, &absent)?),
        });
        columns.collect()
    }
}
