//! Topics of the shared broker, and the connector as the runtime uses it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::catalog::TableProvider;
use datafusion::execution::TaskContext;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt;
use rdkafka::ClientConfig;
use rdkafka::admin::{AdminClient, AdminOptions, NewPartitions, NewTopic, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};
use thalweg_connectors::kafka::split_source;
use thalweg_engine::Batch;
use thalweg_engine::operator::{PreparedSink, SinkJob, SplitId, SplitReader, SplitSource, SplitStream};
use thalweg_engine::time::SystemClock;
use tokio::runtime::Runtime;

use crate::services;

/// A broker that does not answer within this fails the test.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) fn runtime() -> &'static Runtime {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    RUNTIME.get_or_init(|| {
        tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .unwrap()
    })
}

/// A topic of its own for a test.
pub(crate) struct Topic {
    pub(crate) name: String,
    pub(crate) servers: &'static str,
}

/// A new topic; `None` without a broker.
pub(crate) fn topic(partitions: i32) -> Option<Topic> {
    static COUNT: AtomicUsize = AtomicUsize::new(0);
    let kafka = services::kafka()?;
    let topic = Topic {
        name: format!("t{}", COUNT.fetch_add(1, Ordering::Relaxed)),
        servers: &kafka.bootstrap,
    };
    let new = NewTopic::new(&topic.name, partitions, TopicReplication::Fixed(1));
    // Answers come while it lives.
    let admin = topic.admin();
    let created = admin.create_topics([&new], &AdminOptions::new());
    runtime().block_on(created).unwrap()[0].as_ref().unwrap();
    Some(topic)
}

impl Topic {
    fn admin(&self) -> AdminClient<DefaultClientContext> {
        self.client().create().unwrap()
    }

    pub(crate) fn client(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", self.servers);
        config
    }

    pub(crate) fn grow(&self, partitions: usize) {
        let grown = NewPartitions::new(&self.name, partitions);
        let admin = self.admin();
        let created = admin.create_partitions([&grown], &AdminOptions::new());
        runtime().block_on(created).unwrap()[0].as_ref().unwrap();
    }

    pub(crate) fn producer(&self, transactional_id: Option<&str>) -> BaseProducer {
        let mut config = self.client();
        if let Some(id) = transactional_id {
            config.set("transactional.id", id);
        }
        let producer: BaseProducer = config.create().unwrap();
        if transactional_id.is_some() {
            producer.init_transactions(LONG).unwrap();
        }
        producer
    }

    /// Sends records to a partition; the time is in milliseconds.
    pub(crate) fn send(&self, producer: &BaseProducer, partition: i32, records: &[(Option<&str>, Option<&str>, i64)]) {
        for (key, value, time) in records {
            let mut record: BaseRecord<'_, str, str> = BaseRecord::to(&self.name).partition(partition).timestamp(*time);
            record.key = *key;
            record.payload = *value;
            producer.send(record).map_err(|(e, _)| e).unwrap();
        }
        producer.flush(LONG).unwrap();
    }

    /// Sends values to a partition.
    pub(crate) fn fill(&self, partition: i32, values: &[&str]) {
        let records: Vec<_> = values.iter().map(|value| (None, Some(*value), 1000)).collect();
        self.send(&self.producer(None), partition, &records);
    }

    fn consumer(&self, isolation: &str) -> BaseConsumer {
        self.client()
            .set("group.id", "reader")
            .set("isolation.level", isolation)
            .set("enable.partition.eof", "true")
            .create()
            .unwrap()
    }

    /// The offset behind what is decided of a partition.
    pub(crate) fn stable_offset(&self, partition: i32) -> i64 {
        let consumer = self.consumer("read_committed");
        consumer.fetch_watermarks(&self.name, partition, LONG).unwrap().1
    }

    /// All committed records, partition by partition.
    pub(crate) fn committed(&self) -> Vec<OwnedMessage> {
        let consumer = self.consumer("read_committed");
        let metadata = consumer.fetch_metadata(Some(&self.name), LONG).unwrap();
        let partitions = metadata.topics()[0].partitions().len();
        let mut found = Vec::new();
        for partition in 0..i32::try_from(partitions).unwrap() {
            let mut assigned = TopicPartitionList::new();
            assigned
                .add_partition_offset(&self.name, partition, Offset::Beginning)
                .unwrap();
            consumer.assign(&assigned).unwrap();
            let mut polls = 0;
            loop {
                match consumer.poll(Duration::from_millis(100)) {
                    Some(Ok(record)) => found.push(record.detach()),
                    Some(Err(KafkaError::PartitionEOF(at))) if at == partition => break,
                    // Of the one before.
                    Some(Err(KafkaError::PartitionEOF(_))) => {}
                    Some(Err(e)) => panic!("{e}"),
                    // Nothing yet, or it was something else.
                    None => polls += 1,
                }
                assert!(polls < 1000, "no record and no end come");
            }
        }
        found
    }

    /// The values of all committed records, sorted.
    pub(crate) fn values(&self) -> Vec<String> {
        let committed = self.committed();
        let mut values: Vec<String> = committed
            .iter()
            .map(|record| {
                record
                    .payload()
                    .map_or("-".into(), |value| String::from_utf8(value.to_vec()).unwrap())
            })
            .collect();
        values.sort();
        values
    }

    /// The options of a table over this topic.
    pub(crate) fn options(&self, more: &[(&str, &str)]) -> BTreeMap<String, String> {
        let mut options = BTreeMap::from([
            ("connector".to_string(), "kafka".to_string()),
            ("topic".to_string(), self.name.clone()),
            ("properties.bootstrap.servers".to_string(), self.servers.to_string()),
            ("scan.startup.mode".to_string(), "earliest-offset".to_string()),
        ]);
        options.extend(more.iter().map(|(key, value)| (key.to_string(), value.to_string())));
        options
    }

    pub(crate) fn table(&self, columns: &SchemaRef, more: &[(&str, &str)]) -> Arc<dyn TableProvider> {
        let state = SessionContext::new().state();
        let options = self.options(more);
        let table = thalweg_connectors::create_table(&state, "t", Arc::clone(columns), &[], &options);
        runtime().block_on(table).unwrap()
    }

    pub(crate) fn scan(&self, columns: &SchemaRef, more: &[(&str, &str)]) -> Arc<dyn ExecutionPlan> {
        scan(self.table(columns, more).as_ref())
    }

    pub(crate) fn source(&self, columns: &SchemaRef, more: &[(&str, &str)]) -> Arc<dyn SplitSource> {
        split_source(&self.scan(columns, more)).unwrap()
    }

    /// The sink of a table over this topic, in a job with checkpoints.
    pub(crate) fn sink(&self, columns: &SchemaRef, more: &[(&str, &str)]) -> Arc<dyn PreparedSink> {
        sink(self.table(columns, more).as_ref(), Some("job"))
    }
}

pub(crate) fn scan(table: &dyn TableProvider) -> Arc<dyn ExecutionPlan> {
    let state = SessionContext::new().state();
    runtime().block_on(table.scan(&state, None, &[], None)).unwrap()
}

pub(crate) fn sink(table: &dyn TableProvider, checkpointed: Option<&str>) -> Arc<dyn PreparedSink> {
    let spec = thalweg_connectors::sink_of(table).unwrap().unwrap();
    let job = SinkJob {
        job: "0".into(),
        io: runtime().handle().clone(),
        runtime: SessionContext::new().runtime_env(),
        clock: Arc::new(SystemClock::new()),
        endless: true,
        checkpointed: checkpointed.map(str::to_string),
    };
    let sinks = thalweg_connectors::sinks();
    let connector = sinks.iter().find(|sink| sink.name() == spec.connector).unwrap();
    connector.prepare(&spec, &job).unwrap()
}

pub(crate) fn columns(columns: &[(&str, DataType)]) -> SchemaRef {
    let fields = columns
        .iter()
        .map(|(name, data_type)| Field::new(*name, data_type.clone(), true));
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// Rows as text, their values with `|` between.
pub(crate) fn rows(batch: &Batch) -> Vec<String> {
    let format = FormatOptions::default().with_null("NULL");
    let columns: Vec<_> = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &format).unwrap())
        .collect();
    (0..batch.num_rows())
        .map(|row| {
            let values: Vec<String> = columns.iter().map(|column| column.value(row).to_string()).collect();
            values.join("|")
        })
        .collect()
}

/// What reads the splits of a source in batches of at most so many rows.
pub(crate) fn reader(source: &dyn SplitSource, batch_rows: usize) -> Box<dyn SplitReader> {
    let config = SessionConfig::new().with_batch_size(batch_rows);
    let task = TaskContext::default().with_session_config(config);
    source.reader(0, Arc::new(task)).unwrap()
}

pub(crate) fn splits(source: &dyn SplitSource) -> Vec<SplitId> {
    runtime().block_on(source.splits()).unwrap()
}

/// The next rows, with the position after them; `None` at the end.
pub(crate) fn next(stream: &mut SplitStream) -> Option<(Vec<String>, String)> {
    let read = runtime().block_on(async { tokio::time::timeout(LONG, stream.next()).await });
    let read = read.expect("no rows come")?.unwrap();
    Some((rows(&read.batch), String::from_utf8(read.position).unwrap()))
}

/// The next `count` rows, with the last position.
pub(crate) fn take(stream: &mut SplitStream, count: usize) -> (Vec<String>, String) {
    let (mut found, mut last) = (Vec::new(), String::new());
    while found.len() < count {
        let (rows, position) = next(stream).expect("the rows end");
        found.extend(rows);
        last = position;
    }
    assert_eq!(found.len(), count);
    (found, last)
}

/// All rows of a stream that ends.
pub(crate) fn all(stream: &mut SplitStream) -> Vec<String> {
    let mut found = Vec::new();
    while let Some((rows, _)) = next(stream) {
        found.extend(rows);
    }
    found
}

/// Why a stream fails.
pub(crate) fn failure(stream: &mut SplitStream) -> String {
    loop {
        let read = runtime().block_on(async { tokio::time::timeout(LONG, stream.next()).await });
        match read.expect("no error comes") {
            Some(Ok(_)) => {}
            Some(Err(e)) => return e.to_string(),
            None => panic!("it ends without an error"),
        }
    }
}
