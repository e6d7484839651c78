//! librdkafka's clients: their settings, their logs and what went wrong.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::TopicPartitionList;
use rdkafka::client::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, KafkaResult};
use rdkafka::message::DeliveryResult;
use rdkafka::message::Message;
use rdkafka::producer::{NoCustomPartitioner, ProducerContext};
use thalweg_engine::{EngineError, Result};

use crate::kafka::options::{KafkaOptions, SERVERS, Topics};

/// So long a question about topics may take.
const ASK: Duration = Duration::from_secs(30);
/// What a partition may hold ahead of its reader, unless a property says otherwise: librdkafka's own bound is 64 MiB.
const QUEUED_KBYTES: &str = "8192";
/// What a producer may hold, unless a property says otherwise: librdkafka's own bound is 1 GiB.
const BUFFERED_KBYTES: &str = "32768";

/// An error with its place.
pub(super) fn failed(place: &str, error: impl Display) -> EngineError {
    EngineError::BadInput(format!("Kafka: {place}: {error}"))
}

/// Passes on what clients say, and keeps the first record that could not be delivered.
#[derive(Debug, Default)]
pub(super) struct KafkaContext {
    undelivered: Mutex<Option<String>>,
}

impl KafkaContext {
    /// Why a record could not be delivered; told once.
    pub(super) fn take_undelivered(&self) -> Option<String> {
        self.undelivered.lock().take()
    }
}

impl ClientContext for KafkaContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical | RDKafkaLogLevel::Error => {
                tracing::error!("librdkafka: {facility} {message}");
            }
            RDKafkaLogLevel::Warning => tracing::warn!("librdkafka: {facility} {message}"),
            RDKafkaLogLevel::Notice | RDKafkaLogLevel::Info => tracing::info!("librdkafka: {facility} {message}"),
            RDKafkaLogLevel::Debug => tracing::debug!("librdkafka: {facility} {message}"),
        }
    }

    fn error(&self, error: KafkaError, reason: &str) {
        tracing::warn!("librdkafka: {error}: {reason}");
    }
}

impl ConsumerContext for KafkaContext {
    fn commit_callback(&self, result: KafkaResult<()>, _offsets: &TopicPartitionList) {
        if let Err(error) = result {
            // Offsets in the group are for monitoring; the job's own are in its checkpoints.
            tracing::warn!("Kafka: cannot commit offsets to the consumer group: {error}");
        }
    }
}

impl ProducerContext<NoCustomPartitioner> for KafkaContext {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, _opaque: ()) {
        if let Err((error, record)) = result {
            self.undelivered
                .lock()
                .get_or_insert_with(|| format!("partition {}: {error}", record.partition()));
        }
    }
}

/// The address of the brokers, as errors name it.
pub(super) fn servers(properties: &BTreeMap<String, String>) -> &str {
    properties.get(SERVERS).map_or("", String::as_str)
}

fn config(options: &KafkaOptions, defaults: &[(&str, &str)]) -> ClientConfig {
    let mut config = ClientConfig::new();
    config
        .set("client.id", "thalweg")
        .set_log_level(RDKafkaLogLevel::Warning);
    for (key, value) in defaults {
        config.set(*key, *value);
    }
    for (key, value) in &options.properties {
        config.set(key, value);
    }
    config
}

/// Properties of one of the two kinds of clients only; librdkafka would warn of them in the other.
fn without(config: &mut ClientConfig, keys: &[&str]) {
    for key in keys {
        config.remove(key);
    }
}

const OF_PRODUCERS: [&str; 12] = [
    "acks",
    "request.required.acks",
    "compression.type",
    "compression.codec",
    "linger.ms",
    "queue.buffering.max.ms",
    "queue.buffering.max.kbytes",
    "queue.buffering.max.messages",
    "batch.size",
    "batch.num.messages",
    "transaction.timeout.ms",
    "message.timeout.ms",
];
const OF_CONSUMERS: [&str; 9] = [
    "group.id",
    "auto.offset.reset",
    "isolation.level",
    "fetch.min.bytes",
    "fetch.max.bytes",
    "fetch.wait.max.ms",
    "max.poll.interval.ms",
    "queued.max.messages.kbytes",
    "queued.min.messages",
];

/// A consumer that reads the partitions it is told to.
///
/// # Errors
/// When its settings contradict each other.
pub(super) fn consumer(options: &KafkaOptions) -> Result<Arc<BaseConsumer<KafkaContext>>> {
    let mut config = config(
        options,
        &[
            // A consumer must have one; this one is never joined.
            ("group.id", "thalweg"),
            ("isolation.level", "read_committed"),
            // A record that is gone is an error, not a reason to read others.
            ("auto.offset.reset", "error"),
            ("queued.max.messages.kbytes", QUEUED_KBYTES),
        ],
    );
    without(&mut config, &OF_PRODUCERS);
    config
        .set("enable.auto.commit", "false")
        .set("enable.auto.offset.store", "false")
        .set("enable.partition.eof", "true");
    let consumer = config.create_with_context(KafkaContext::default());
    Ok(Arc::new(consumer.map_err(|e| failed(servers(&options.properties), e))?))
}

/// The settings of a producer.
pub(super) fn producer_config(options: &KafkaOptions) -> ClientConfig {
    let mut config = config(
        options,
        &[
            ("queue.buffering.max.kbytes", BUFFERED_KBYTES),
            ("queue.buffering.max.messages", "500000"),
            // As the Java client does it, so that a key goes to the same partition whoever writes it.
            ("partitioner", "murmur2_random"),
        ],
    );
    without(&mut config, &OF_CONSUMERS);
    config
}

/// The partitions of the topics that there are now, with the names of their topics.
///
/// # Errors
/// When the brokers do not answer or a topic is not there.
pub(super) fn partitions(
    consumer: &BaseConsumer<KafkaContext>,
    options: &KafkaOptions,
) -> Result<Vec<(String, Vec<i32>)>> {
    let servers = servers(&options.properties);
    let unreachable = |e: KafkaError| {
        failed(
            servers,
            format!("cannot ask for its topics: {e}; is 'properties.bootstrap.servers' right and the broker running?"),
        )
    };
    let mut found: Vec<(String, Vec<i32>)> = Vec::new();
    match &options.topics {
        Topics::Named(names) => {
            for name in names {
                let metadata = consumer.fetch_metadata(Some(name), ASK).map_err(unreachable)?;
                let topic = metadata.topics().iter().find(|topic| topic.name() == name);
                let Some(topic) = topic.filter(|topic| topic.error().is_none() && !topic.partitions().is_empty())
                else {
                    let why = topic.and_then(|topic| topic.error());
                    let why = why.map_or_else(String::new, |e| {
                        format!(" ({})", rdkafka::types::RDKafkaErrorCode::from(e))
                    });
                    return Err(failed(
                        servers,
                        format!("there is no topic '{name}'{why}; create it, or correct the option 'topic'"),
                    ));
                };
                found.push((name.clone(), topic.partitions().iter().map(|p| p.id()).collect()));
            }
        }
        Topics::Matching(pattern) => {
            let metadata = consumer.fetch_metadata(None, ASK).map_err(unreachable)?;
            for topic in metadata.topics() {
                if topic.error().is_none() && pattern.is_match(topic.name()) && !topic.name().starts_with("__") {
                    found.push((
                        topic.name().to_string(),
                        topic.partitions().iter().map(|p| p.id()).collect(),
                    ));
                }
            }
            found.sort();
        }
    }
    for (_, partitions) in &mut found {
        partitions.sort_unstable();
    }
    Ok(found)
}
