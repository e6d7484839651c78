//! Writes the rows of one subtask to a topic.

use std::sync::Arc;

use arrow::array::{Array, AsArray, BooleanArray, Int64Array};
use arrow::compute::{cast, filter_record_batch};
use arrow::datatypes::{DataType, Int64Type, TimeUnit, UInt8Type};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::producer::{BaseRecord, Producer};
use std::time::Duration;
use thalweg_engine::data::{RowKind, split_row_kind};
use thalweg_engine::operator::{Committable, SinkWriter};
use thalweg_engine::{Batch, EngineError, Result};

use crate::kafka::client::failed;
use crate::kafka::columns::About;
use crate::kafka::encode::{Encoder, conform};
use crate::kafka::options::{Flavor, Guarantee, Partitioner};
use crate::kafka::pool::{KafkaProducer, Pool, Transactional, check_delivery, flush, misused};
use crate::kafka::table::KafkaSpec;

/// When the producer's queue is full, some of it is delivered so soon.
const DELIVERY: Duration = Duration::from_millis(100);
/// After so many rows the deliveries of those before are looked at.
const ROWS_BETWEEN_POLLS: usize = 1024;

/// How rows are sent.
pub(super) enum Sender {
    /// Each by itself.
    Plain(Box<KafkaProducer>),
    /// In transactions; none is open before the first row.
    Transactions {
        /// Of the whole sink.
        pool: Arc<Pool>,
        /// The one that takes rows now.
        open: Option<Box<Transactional>>,
    },
}

/// Which partitions rows go to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Route {
    /// The client decides.
    Client,
    /// All to this.
    To(i32),
    /// To one after the other of so many.
    Around { next: i32, of: i32 },
}

impl Route {
    /// Of a subtask, to a topic of so many partitions.
    pub(super) fn new(partitioner: Partitioner, subtask: usize, partitions: usize) -> Self {
        let partitions = i32::try_from(partitions).unwrap_or(i32::MAX).max(1);
        let first = i32::try_from(subtask % partitions.unsigned_abs() as usize).unwrap_or(0);
        match partitioner {
            Partitioner::Default => Route::Client,
            Partitioner::Fixed => Route::To(first),
            Partitioner::RoundRobin => Route::Around {
                next: first,
                of: partitions,
            },
        }
    }

    fn next(&mut self) -> Option<i32> {
        match self {
            Route::Client => None,
            Route::To(partition) => Some(*partition),
            Route::Around { next, of } => {
                let partition = *next;
                *next = (partition + 1) % *of;
                Some(partition)
            }
        }
    }
}

/// See the module.
pub(super) struct KafkaWriter {
    pub(super) spec: Arc<KafkaSpec>,
    pub(super) topic: String,
    pub(super) subtask: usize,
    pub(super) sender: Sender,
    pub(super) value: Encoder,
    pub(super) key: Option<Encoder>,
    pub(super) route: Route,
    /// Bytes and rows sent, for an estimate of what is held.
    pub(super) sent: (u64, u64),
}

/// What is sent of a batch.
struct Outgoing {
    /// The columns, in which rows are in the order of the records.
    rows: Batch,
    /// Rows that delete what has their key.
    deletes: Option<BooleanArray>,
}

impl KafkaWriter {
    fn place(&self) -> String {
        format!("topic {}", self.topic)
    }

    fn producer(&self) -> Option<&KafkaProducer> {
        match &self.sender {
            Sender::Plain(producer) => Some(producer),
            Sender::Transactions { open, .. } => open.as_ref().map(|open| &open.producer),
        }
    }

    /// The rows to send, with the row kind for formats that tell it.
    fn outgoing(&self, batch: &Batch) -> Result<Outgoing> {
        if self.spec.options.flavor == Flavor::Log {
            return Ok(Outgoing {
                rows: batch.clone(),
                deletes: None,
            });
        }
        let (rows, kinds) = split_row_kind(batch)?;
        let Some(kinds) = kinds else {
            return Ok(Outgoing { rows, deletes: None });
        };
        // The new form of a row has the same key: it takes the old one's place.
        let sent: BooleanArray = kinds
            .values()
            .iter()
            .map(|kind| Some(*kind != RowKind::UpdateBefore as u8))
            .collect();
        let rows = filter_record_batch(&rows, &sent)?;
        let kinds = arrow::compute::filter(&kinds, &sent)?;
        let kinds = kinds.as_primitive::<UInt8Type>().values().iter();
        let deletes = kinds.map(|kind| Some(*kind == RowKind::Delete as u8)).collect();
        Ok(Outgoing {
            rows,
            deletes: Some(deletes),
        })
    }

    /// The times that the rows give their records; other metadata is the broker's to give.
    fn times(&self, rows: &Batch) -> Result<Option<Int64Array>> {
        let mut times = None;
        for (column, about) in &self.spec.columns.metadata {
            let values = rows.column(*column);
            if values.null_count() == values.len() {
                continue;
            }
            let DataType::Timestamp(_, zone) = values.data_type() else {
                return Err(EngineError::BadInput(format!(
                    "Kafka: {}: column '{}' gives the metadata '{}' of records a value, which cannot be written; declare it \
                     VIRTUAL",
                    self.place(),
                    self.spec.columns.declared.field(*column).name(),
                    about.name()
                )));
            };
            if *about != About::Timestamp {
                return Err(misused("metadata of a wrong type"));
            }
            let millis = cast(values, &DataType::Timestamp(TimeUnit::Millisecond, zone.clone()))?;
            times = Some(cast(&millis, &DataType::Int64)?.as_primitive::<Int64Type>().clone());
        }
        Ok(times)
    }

    fn send(&mut self, row: (Option<&[u8]>, Option<&[u8]>, Option<i64>)) -> Result<()> {
        let (key, value, time) = row;
        let partition = self.route.next();
        let topic = self.topic.clone();
        let mut record: BaseRecord<'_, [u8], [u8]> = BaseRecord::to(&topic);
        record.key = key;
        record.payload = value;
        record.partition = partition;
        record.timestamp = time;
        let Some(producer) = self.producer() else {
            return Err(misused("no transaction is open"));
        };
        loop {
            match producer.send(record) {
                Ok(()) => break,
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), back)) => {
                    producer.poll(DELIVERY);
                    check_delivery(producer, &self.place())?;
                    record = back;
                }
                Err((error, _)) => {
                    // The first reason is the better one.
                    check_delivery(producer, &self.place())?;
                    let size = value.map_or(0, <[u8]>::len);
                    return Err(failed(
                        &self.place(),
                        format!("cannot send a record of {size} bytes: {error}"),
                    ));
                }
            }
        }
        self.sent.0 += (key.map_or(0, <[u8]>::len) + value.map_or(0, <[u8]>::len)) as u64;
        self.sent.1 += 1;
        Ok(())
    }

    fn flush(&self) -> Result<()> {
        match self.producer() {
            Some(producer) => flush(producer, &self.place()),
            None => Ok(()),
        }
    }
}

impl SinkWriter for KafkaWriter {
    fn write(&mut self, batch: &Batch) -> Result<()> {
        let Outgoing { rows, deletes } = self.outgoing(batch)?;
        if rows.num_rows() == 0 {
            return Ok(());
        }
        if let Sender::Transactions { pool, open } = &mut self.sender
            && open.is_none()
        {
            *open = Some(Box::new(pool.begin(self.subtask)?));
        }
        let times = self.times(&rows)?;
        let mut columns = self.spec.columns.value.clone();
        if self.spec.options.value.is_changelog() {
            columns.push(rows.num_columns() - 1);
        }
        let values = conform(&rows, self.value.schema(), &columns)?;
        let values = self.value.encode(&values)?;
        let keys = match &mut self.key {
            None => None,
            Some(key) => {
                let keys = conform(&rows, key.schema(), &self.spec.columns.key)?;
                Some(key.encode(&keys)?)
            }
        };
        for row in 0..rows.num_rows() {
            let is_delete = deletes.as_ref().is_some_and(|deletes| deletes.value(row));
            let value = values.get(row).filter(|_| !is_delete);
            let key = keys.as_ref().and_then(|keys| keys.get(row));
            if key.is_none() && self.spec.options.flavor == Flavor::Upsert {
                return Err(failed(
                    &self.place(),
                    "the primary key of a row is NULL, so it cannot be upserted",
                ));
            }
            let time = times
                .as_ref()
                .and_then(|times| times.is_valid(row).then(|| times.value(row)));
            self.send((key, value, time))?;
            if row % ROWS_BETWEEN_POLLS == 0
                && let Some(producer) = self.producer()
            {
                producer.poll(Duration::ZERO);
            }
        }
        match self.producer() {
            Some(producer) => {
                producer.poll(Duration::ZERO);
                check_delivery(producer, &self.place())
            }
            None => Ok(()),
        }
    }

    fn held_bytes(&self) -> usize {
        let waiting = self.producer().map_or(0, |producer| producer.in_flight_count()) as u64;
        usize::try_from(waiting * (self.sent.0 / self.sent.1.max(1))).unwrap_or(usize::MAX)
    }

    fn relieve(&mut self) -> Result<()> {
        self.flush()
    }

    fn finish(&mut self) -> Result<()> {
        self.flush()
    }

    fn prepare(&mut self, _checkpoint: u64) -> Result<Vec<Committable>> {
        let guarantee = self.spec.options.sink.guarantee;
        match &mut self.sender {
            Sender::Plain(_) if guarantee == Guarantee::None => Ok(Vec::new()),
            Sender::Plain(_) => {
                self.flush()?;
                Ok(Vec::new())
            }
            Sender::Transactions { pool, open } => match open.take() {
                // Nothing was written since the last barrier.
                None => Ok(Vec::new()),
                Some(transactional) => Ok(vec![pool.prepare(*transactional)?.write()?]),
            },
        }
    }

    fn next_roll_ms(&self) -> Option<i64> {
        None
    }

    fn roll(&mut self) -> Result<()> {
        Ok(())
    }
}
