//! Avro records: bodies alone, written with the schema of the table, or with the number of their schema in a registry.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, new_null_array};
use arrow::compute::{CastOptions, cast_with_options, concat_batches};
use arrow::datatypes::{Schema, SchemaRef};
use arrow::util::display::FormatOptions as DisplayOptions;
use arrow_avro::reader::{Decoder, ReaderBuilder};
use arrow_avro::schema::{AvroSchema, Fingerprint, FingerprintAlgorithm, FingerprintStrategy, SchemaStore};
use arrow_avro::writer::format::{AvroBinaryFormat, AvroSoeFormat};
use arrow_avro::writer::{Encoder, WriterBuilder};
use thalweg_engine::{Batch, EngineError, Result};

use crate::formats::{BadRecord, Decode};
use crate::kafka::registry::{HEADER_BYTES, Registry, schema_id};

/// The most records that are decoded at once.
const RUN_RECORDS: usize = 8192;
/// The number of the table's own schema, where records do not tell one.
const OWN: u32 = 0;

/// The Avro schema of rows of `columns`.
///
/// # Errors
/// When a type is not one of Avro's.
pub(super) fn avro_schema(columns: &Schema) -> Result<AvroSchema> {
    AvroSchema::try_from(columns).map_err(|e| EngineError::Plan(format!("the columns cannot be written in Avro: {e}")))
}

/// Reads Avro records.
pub(super) struct Avro {
    target: SchemaRef,
    /// Of records that do not tell theirs.
    own: Option<String>,
    registry: Option<Arc<Registry>>,
    decoders: HashMap<u32, Decoder>,
}

impl Avro {
    /// Of records written with the schema of `columns`, into those of them that `target` has.
    ///
    /// # Errors
    /// When a type is not one of Avro's.
    pub(super) fn own(columns: &Schema, target: SchemaRef) -> Result<Self> {
        Ok(Self {
            target,
            own: Some(avro_schema(columns)?.json_string),
            registry: None,
            decoders: HashMap::new(),
        })
    }

    /// Of records whose schemas `registry` has learned.
    pub(super) fn of_registry(registry: Arc<Registry>, target: SchemaRef) -> Self {
        Self {
            target,
            own: None,
            registry: Some(registry),
            decoders: HashMap::new(),
        }
    }

    fn id(&self, record: &[u8]) -> std::result::Result<u32, String> {
        match self.own {
            Some(_) => Ok(OWN),
            None => schema_id(record).ok_or_else(|| {
                "it does not begin with 0 and the number of its schema; is it 'avro' without registry?".into()
            }),
        }
    }

    fn decoder(&self, id: u32) -> std::result::Result<Decoder, String> {
        let schema = match (&self.own, &self.registry) {
            (Some(own), _) => own.clone(),
            (None, Some(registry)) => match registry.schema(id) {
                Some(schema) => schema.to_string(),
                None => return Err(format!("the registry has no schema {id}")),
            },
            (None, None) => return Err("there is no registry".into()),
        };
        let mut store = SchemaStore::new_with_type(FingerprintAlgorithm::Id);
        store
            .set(Fingerprint::Id(id), AvroSchema::new(schema))
            .map_err(|e| format!("schema {id}: {e}"))?;
        ReaderBuilder::new()
            .with_batch_size(RUN_RECORDS)
            .with_writer_schema_store(store)
            .with_active_fingerprint(Fingerprint::Id(id))
            .build_decoder()
            .map_err(|e| format!("schema {id}: {e}"))
    }

    /// Records `first..` of one schema.
    fn run(&mut self, id: u32, first: usize, records: &[&[u8]]) -> std::result::Result<Batch, BadRecord> {
        // One that has failed may hold a part of a record: it is not used again.
        let mut decoder = match self.decoders.remove(&id) {
            Some(decoder) => decoder,
            None => self.decoder(id).map_err(|why| BadRecord::at(first, why))?,
        };
        let header = fingerprint_header(OWN);
        for (index, record) in records.iter().enumerate() {
            let left = decoder.capacity();
            if self.own.is_some() {
                decoder
                    .decode(&header)
                    .map_err(|e| BadRecord::at(first + index, e.to_string()))?;
            }
            let read = decoder
                .decode(record)
                .map_err(|e| BadRecord::at(first + index, e.to_string()))?;
            if read != record.len() {
                let why = "it is shorter or longer than its schema says";
                return Err(BadRecord::at(first + index, why));
            }
            if decoder.capacity() + 1 != left {
                return Err(BadRecord::at(first + index, "it is not one record of its schema"));
            }
        }
        let batch = decoder.flush().map_err(BadRecord::somewhere)?;
        let Some(batch) = batch else {
            return Err(BadRecord::at(first, "it gives no row"));
        };
        self.decoders.insert(id, decoder);
        self.fit(&batch)
    }

    /// The columns by their names, with the table's types.
    fn fit(&self, batch: &Batch) -> std::result::Result<Batch, BadRecord> {
        let strict = CastOptions {
            safe: false,
            format_options: DisplayOptions::default(),
        };
        let columns = self
            .target
            .fields()
            .iter()
            .map(|field| match batch.column_by_name(field.name()) {
                Some(column) => cast_with_options(column, field.data_type(), &strict)
                    .map_err(|e| BadRecord::somewhere(format!("'{}': {e}", field.name()))),
                None => Ok(new_null_array(field.data_type(), batch.num_rows())),
            });
        let columns: Vec<ArrayRef> = columns.collect::<std::result::Result<_, _>>()?;
        Batch::try_new(Arc::clone(&self.target), columns).map_err(BadRecord::somewhere)
    }
}

/// What Avro's decoder wants before a body.
fn fingerprint_header(id: u32) -> [u8; HEADER_BYTES] {
    let [a, b, c, d] = id.to_be_bytes();
    [0, a, b, c, d]
}

impl Decode for Avro {
    fn decode(&mut self, records: &[&[u8]]) -> std::result::Result<Batch, BadRecord> {
        let mut batches = Vec::new();
        let mut first = 0;
        while first < records.len() {
            let id = self.id(records[first]).map_err(|why| BadRecord::at(first, why))?;
            let same = |record: &&&[u8]| self.id(record) == Ok(id);
            let count = records[first..].iter().take(RUN_RECORDS).take_while(same).count();
            batches.push(self.run(id, first, &records[first..first + count])?);
            first += count;
        }
        match batches.len() {
            1 => Ok(batches.swap_remove(0)),
            _ => concat_batches(&self.target, &batches).map_err(BadRecord::somewhere),
        }
    }

    fn skips_blank(&self) -> bool {
        false
    }
}

/// What writes rows of `columns`: with the number of their schema where there is one.
///
/// # Errors
/// When a type is not one of Avro's.
pub(super) fn encoder(columns: &Schema, id: Option<u32>) -> Result<Encoder> {
    let builder = WriterBuilder::new(columns.clone());
    let encoder = match id {
        None => builder.build_encoder::<AvroBinaryFormat>(),
        Some(id) => builder
            .with_fingerprint_strategy(FingerprintStrategy::Id(id))
            .build_encoder::<AvroSoeFormat>(),
    };
    encoder.map_err(|e| EngineError::Plan(format!("the columns cannot be written in Avro: {e}")))
}

#[cfg(test)]
mod tests {
    use arrow::array::{Float64Array, Int64Array, StringArray};
    use arrow::datatypes::{DataType, Field};

    use super::*;

    fn batch() -> Batch {
        let id: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(3)]));
        let name: ArrayRef = Arc::new(StringArray::from(vec![Some("a"), Some(""), None]));
        let x: ArrayRef = Arc::new(Float64Array::from(vec![f64::NAN, 0.0, -1.5]));
        Batch::try_from_iter_with_nullable([("id", id, true), ("name", name, true), ("x", x, true)]).unwrap()
    }

    #[test]
    fn what_is_written_is_read_again_and_damage_is_noticed() {
        let batch = batch();
        let mut encoder = encoder(batch.schema_ref(), None).unwrap();
        encoder.encode(&batch).unwrap();
        let rows = encoder.flush();
        let records: Vec<_> = rows.iter().collect();
        let mut slices: Vec<&[u8]> = records.iter().map(|record| record.as_ref()).collect();
        let mut avro = Avro::own(batch.schema_ref(), batch.schema()).unwrap();
        let read = avro.decode(&slices).unwrap();
        assert_eq!(format!("{read:?}"), format!("{batch:?}"));
        // A part of the columns, another type.
        let target = Arc::new(Schema::new(vec![Field::new("id", DataType::Int32, true)]));
        let mut narrow = Avro::own(batch.schema_ref(), target).unwrap();
        assert_eq!(narrow.decode(&slices).unwrap().num_columns(), 1);
        // One that is cut, one with more behind it, none at all: the others are not lost with it.
        let long = [slices[1], b"x"].concat();
        for damaged in [&slices[1][..slices[1].len() - 1], &long[..], &b""[..]] {
            let sound = slices[1];
            slices[1] = damaged;
            assert_eq!(avro.decode(&slices).unwrap_err().record, Some(1), "{damaged:?}");
            slices[1] = sound;
            assert_eq!(avro.decode(&slices).unwrap().num_rows(), 3);
        }
    }
}
