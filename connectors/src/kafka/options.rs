//! The options of a Kafka table, with Flink's names.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use regex::Regex;
use thalweg_engine::{EngineError, Result};

use crate::formats::{FormatOptions, StreamFormat};
use crate::kafka::start::{Bound, Start};
use crate::{Options, PRIMARY_KEY, parse_duration};

/// How a table says which broker to talk to.
pub(super) const SERVERS: &str = "bootstrap.servers";

/// Which of the two connectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Flavor {
    /// `kafka`: records are rows, or changes told by their format.
    Log,
    /// `upsert-kafka`: a record is the row of its key, one without a value is its deletion.
    Upsert,
}

impl Flavor {
    /// As in `'connector' = '..'`.
    pub(super) fn name(self) -> &'static str {
        match self {
            Flavor::Log => "kafka",
            Flavor::Upsert => "upsert-kafka",
        }
    }
}

/// Which topics.
#[derive(Clone, Debug)]
pub(super) enum Topics {
    /// These.
    Named(Vec<String>),
    /// All whose whole name matches.
    Matching(Regex),
}

/// What a value or a key is written in.
#[derive(Clone, Debug)]
pub(super) enum Payload {
    /// A format of text.
    Text(FormatOptions),
    /// Avro without a header, by the schema of the table.
    Avro(FormatOptions),
    /// Avro with the id of its schema in a registry.
    AvroConfluent {
        /// What to do with bad records.
        policy: FormatOptions,
        /// The registry.
        url: String,
        /// The name under which the sink registers its schema; of the topic when `None`.
        subject: Option<String>,
    },
}

impl Payload {
    /// As in `'format' = '..'`.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Payload::Text(options) => options.format.name(),
            Payload::Avro(_) => "avro",
            Payload::AvroConfluent { .. } => "avro-confluent",
        }
    }

    /// Whether its records say what happens to rows.
    pub(super) fn is_changelog(&self) -> bool {
        matches!(self, Payload::Text(options) if options.format.is_changelog())
    }
}

/// When rows that were written are there to be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Guarantee {
    /// Some time.
    None,
    /// When the checkpoint is, and perhaps twice.
    AtLeastOnce,
    /// In one transaction that the checkpoint commits.
    ExactlyOnce,
}

/// Which partition a row goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Partitioner {
    /// By its key, as other clients do; rows without a key anywhere.
    Default,
    /// All of a subtask to one.
    Fixed,
    /// To one after the other.
    RoundRobin,
}

/// What is said about the source.
#[derive(Clone, Debug)]
pub(super) struct SourceOptions {
    pub(super) start: Start,
    pub(super) bound: Bound,
    pub(super) discovery: Option<Duration>,
    pub(super) commits_offsets: bool,
}

/// What is said about the sink.
#[derive(Clone, Debug)]
pub(super) struct SinkOptions {
    pub(super) guarantee: Guarantee,
    pub(super) prefix: Option<String>,
    pub(super) partitioner: Partitioner,
    /// Whether a transaction that is gone without having been committed is passed over.
    pub(super) passes_lost: bool,
}

/// All options of a table.
#[derive(Clone, Debug)]
pub(super) struct KafkaOptions {
    pub(super) flavor: Flavor,
    pub(super) topics: Topics,
    /// librdkafka's settings.
    pub(super) properties: BTreeMap<String, String>,
    pub(super) value: Payload,
    pub(super) key: Option<Payload>,
    pub(super) key_fields: Vec<String>,
    pub(super) key_prefix: String,
    /// Whether the key's columns are not in the value.
    pub(super) value_without_key: bool,
    pub(super) source: SourceOptions,
    pub(super) sink: SinkOptions,
}

impl KafkaOptions {
    /// Reads the options of `CREATE TABLE`.
    ///
    /// # Errors
    /// When one is missing, unknown or wrong.
    pub(super) fn parse(flavor: Flavor, given: &BTreeMap<String, String>) -> Result<Self> {
        let (properties, rest): (BTreeMap<_, _>, BTreeMap<_, _>) = given
            .iter()
            .map(|(key, value)| (key.trim().to_lowercase(), value.clone()))
            .partition(|(key, _)| key.starts_with("properties."));
        let properties = properties
            .into_iter()
            .map(|(key, value)| (key.trim_start_matches("properties.").to_string(), value))
            .collect();
        check_properties(flavor, &properties)?;
        let mut options = Options::new(flavor.name(), &unprefixed(rest));
        let topics = take_topics(flavor, &mut options)?;
        let primary_key = take_primary_key(&mut options)?;
        let value = take_value(flavor, &mut options)?;
        let key_fields = match flavor {
            Flavor::Upsert if primary_key.is_empty() => {
                return Err(EngineError::Plan(
                    "connector 'upsert-kafka' needs PRIMARY KEY (..) NOT ENFORCED: the key of its records".into(),
                ));
            }
            Flavor::Upsert => primary_key,
            Flavor::Log => list(options.take("key.fields")),
        };
        let key = take_key(flavor, &mut options, &key_fields)?;
        let key_prefix = options.take("key.fields-prefix").unwrap_or_default();
        let value_without_key = match options.take("value.fields-include") {
            None => false,
            Some(text) => match text.trim().to_uppercase().as_str() {
                "ALL" => false,
                "EXCEPT_KEY" => true,
                _ => return Err(options.bad_value("value.fields-include", &text, "must be ALL or EXCEPT_KEY")),
            },
        };
        if !key_prefix.is_empty() && !value_without_key {
            return Err(options.bad_value(
                "key.fields-prefix",
                &key_prefix,
                "needs 'value.fields-include' = 'EXCEPT_KEY'",
            ));
        }
        let source = take_source(flavor, &mut options)?;
        let sink = take_sink(&mut options, &properties)?;
        options.finish()?;
        Ok(Self {
            flavor,
            topics,
            properties,
            value,
            key,
            key_fields,
            key_prefix,
            value_without_key,
            source,
            sink,
        })
    }

    /// The one topic that a sink writes to.
    ///
    /// # Errors
    /// When there are several, or a pattern.
    pub(super) fn sink_topic(&self) -> Result<&str> {
        match &self.topics {
            Topics::Named(names) if names.len() == 1 => Ok(&names[0]),
            _ => Err(EngineError::Plan(format!(
                "connector '{}' writes to one topic; name it in the option 'topic' of the table that is written to",
                self.flavor.name()
            ))),
        }
    }
}

/// With `format` and `value.format`, `json.x` and `value.json.x` taken for the same.
fn unprefixed(options: BTreeMap<String, String>) -> BTreeMap<String, String> {
    let strip = |key: String| match key.strip_prefix("value.") {
        Some(rest) if rest != "fields-include" => rest.to_string(),
        _ => key,
    };
    options.into_iter().map(|(key, value)| (strip(key), value)).collect()
}

/// The properties that are ours to set.
const OURS: [(&str, &str); 6] = [
    ("enable.auto.commit", "offsets are kept in checkpoints"),
    ("enable.auto.offset.store", "offsets are kept in checkpoints"),
    ("enable.partition.eof", "the source needs to see it"),
    (
        "transactional.id",
        "set 'sink.transactional-id-prefix', of which it is made",
    ),
    ("enable.idempotence", "'sink.delivery-guarantee' says it"),
    ("partitioner", "set 'sink.partitioner'"),
];

fn check_properties(flavor: Flavor, properties: &BTreeMap<String, String>) -> Result<()> {
    let refused = |key: &str, value: &str, why: &str| {
        EngineError::Plan(format!(
            "connector '{}': option 'properties.{key}' = '{value}': {why}",
            flavor.name()
        ))
    };
    match properties.get(SERVERS) {
        None => {
            return Err(EngineError::Plan(format!(
                "connector '{}' needs the option 'properties.{SERVERS}', as localhost:9092",
                flavor.name()
            )));
        }
        Some(servers) if servers.split(',').all(|server| server.trim().is_empty()) => {
            return Err(refused(SERVERS, servers, "names no broker; write it as localhost:9092"));
        }
        Some(_) => {}
    }
    if let Some(protocol) = properties.get("security.protocol")
        && !protocol.trim().eq_ignore_ascii_case("PLAINTEXT")
    {
        return Err(refused(
            "security.protocol",
            protocol,
            "only PLAINTEXT is supported; this build talks to Kafka without TLS and SASL",
        ));
    }
    let secret = |key: &&String| key.starts_with("sasl.") || key.starts_with("ssl.");
    if let Some(key) = properties.keys().find(secret) {
        return Err(refused(
            key,
            "..",
            "this build talks to Kafka without TLS and SASL; only 'security.protocol' = 'PLAINTEXT' is supported",
        ));
    }
    for (key, why) in OURS {
        if let Some(value) = properties.get(key) {
            return Err(refused(key, value, &format!("it cannot be set: {why}")));
        }
    }
    // Finds what librdkafka does not know, with its reason.
    let mut config = rdkafka::ClientConfig::new();
    for (key, value) in properties {
        config.set(key, value);
    }
    match config.create_native_config() {
        Ok(_) => Ok(()),
        Err(rdkafka::error::KafkaError::ClientConfig(_, why, key, value)) => Err(refused(&key, &value, &why)),
        Err(other) => Err(EngineError::Plan(format!("connector '{}': {other}", flavor.name()))),
    }
}

fn list(text: Option<String>) -> Vec<String> {
    let text = text.unwrap_or_default();
    let items = text.split(';').map(str::trim).filter(|item| !item.is_empty());
    items.map(str::to_string).collect()
}

fn take_topics(flavor: Flavor, options: &mut Options) -> Result<Topics> {
    let topic = options.take("topic");
    let pattern = options.take("topic-pattern");
    match (topic, pattern) {
        (Some(_), Some(_)) => Err(EngineError::Plan(format!(
            "connector '{}' takes 'topic' or 'topic-pattern', not both",
            flavor.name()
        ))),
        (None, None) => Err(EngineError::Plan(format!(
            "connector '{}' needs the option 'topic' or 'topic-pattern'",
            flavor.name()
        ))),
        (None, Some(pattern)) => {
            let whole = Regex::new(&format!("^(?:{pattern})$"));
            let whole = whole.map_err(|e| options.bad_value("topic-pattern", &pattern, &e.to_string()))?;
            Ok(Topics::Matching(whole))
        }
        (Some(topic), None) => {
            let names = list(Some(topic.clone()));
            let fits = |name: &String| {
                name.len() <= 249 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
            };
            if names.is_empty() || !names.iter().all(fits) {
                let why = "must be names of letters, digits, '.', '_' and '-', with ';' between them";
                return Err(options.bad_value("topic", &topic, why));
            }
            let unique: BTreeSet<String> = names.into_iter().collect();
            Ok(Topics::Named(unique.into_iter().collect()))
        }
    }
}

fn take_primary_key(options: &mut Options) -> Result<Vec<String>> {
    match options.take_hidden(PRIMARY_KEY) {
        None => Ok(Vec::new()),
        Some(text) => serde_json::from_str(&text)
            .map_err(|e| options.bad_value(PRIMARY_KEY, &text, &format!("must be a JSON list of names: {e}"))),
    }
}

fn take_value(flavor: Flavor, options: &mut Options) -> Result<Payload> {
    let Some(format) = options.take("format") else {
        return Err(EngineError::Plan(format!(
            "connector '{}' needs the option 'format': json, csv, raw, debezium-json, canal-json, avro or avro-confluent",
            flavor.name()
        )));
    };
    let name = format.trim().to_lowercase();
    let policy = |options: &mut Options, name: &str| -> Result<FormatOptions> {
        // Avro says of bad records what raw ones may: its own options have other names.
        let mut policy = FormatOptions::new(StreamFormat::Raw);
        policy.ignore_parse_errors = options.take_bool(&format!("{name}.ignore-parse-errors"), false)?;
        policy.dead_letter = options.take("dead-letter.path").map(Into::into);
        Ok(policy)
    };
    match name.as_str() {
        "avro" => Ok(Payload::Avro(policy(options, "avro")?)),
        "avro-confluent" => {
            let policy = policy(options, "avro-confluent")?;
            let url = options.take("avro-confluent.url");
            let subject = options.take("avro-confluent.subject");
            let Some(url) = url else {
                return Err(EngineError::Plan(
                    "format 'avro-confluent' needs the option 'avro-confluent.url': the schema registry".into(),
                ));
            };
            if !url.starts_with("http://") {
                let why = "must be a URL as http://host:8081; https is not supported";
                return Err(options.bad_value("avro-confluent.url", &url, why));
            }
            Ok(Payload::AvroConfluent { policy, url, subject })
        }
        _ => {
            let parsed = StreamFormat::parse(&name).map_err(|_| {
                options.bad_value(
                    "format",
                    &format,
                    "must be json, csv, raw, debezium-json, canal-json, avro or avro-confluent",
                )
            })?;
            if flavor == Flavor::Upsert && parsed.is_changelog() {
                let why = "the records of 'upsert-kafka' are rows; use 'connector' = 'kafka' for changelogs";
                return Err(options.bad_value("format", &format, why));
            }
            Ok(Payload::Text(FormatOptions::take(parsed, options)?))
        }
    }
}

fn take_key(flavor: Flavor, options: &mut Options, fields: &[String]) -> Result<Option<Payload>> {
    let format = options.take("key.format");
    let Some(format) = format else {
        return match (flavor, fields.is_empty()) {
            (Flavor::Log, true) => Ok(None),
            _ => Err(EngineError::Plan(format!(
                "connector '{}' needs the option 'key.format' (raw or json) for the columns of its key: {}",
                flavor.name(),
                fields.join(", ")
            ))),
        };
    };
    if fields.is_empty() {
        return Err(options.bad_value("key.format", &format, "needs 'key.fields': the columns of the key"));
    }
    let parsed = match format.trim().to_lowercase().as_str() {
        "raw" => StreamFormat::Raw,
        "json" => StreamFormat::Json,
        _ => return Err(options.bad_value("key.format", &format, "must be raw or json")),
    };
    Ok(Some(Payload::Text(FormatOptions::new(parsed))))
}

/// Whether a time is zero or below it, which turns off what it is the interval of.
fn is_none(text: &str) -> bool {
    let number = text
        .trim()
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .unwrap_or_default();
    text.trim().starts_with('-') || !number.is_empty() && number.bytes().all(|digit| digit == b'0')
}

fn take_source(flavor: Flavor, options: &mut Options) -> Result<SourceOptions> {
    let start = Start::take(flavor, options)?;
    let bound = Bound::take(options)?;
    let discovery = match options.take("scan.topic-partition-discovery.interval") {
        // Flink's default.
        None => Some(Duration::from_secs(300)),
        Some(text) if is_none(&text) => None,
        Some(text) => Some(
            parse_duration(&text)
                .map_err(|why| options.bad_value("scan.topic-partition-discovery.interval", &text, &why))?,
        ),
    };
    let discovery = discovery.filter(|_| bound == Bound::None);
    Ok(SourceOptions {
        start,
        bound,
        discovery,
        commits_offsets: options.take_bool("commit.offsets.on.checkpoint", true)?,
    })
}

fn take_sink(options: &mut Options, properties: &BTreeMap<String, String>) -> Result<SinkOptions> {
    let guarantee = match options.take("sink.delivery-guarantee") {
        None => Guarantee::AtLeastOnce,
        Some(text) => match text.trim().to_lowercase().as_str() {
            "none" => Guarantee::None,
            "at-least-once" => Guarantee::AtLeastOnce,
            "exactly-once" => Guarantee::ExactlyOnce,
            _ => {
                let why = "must be none, at-least-once or exactly-once";
                return Err(options.bad_value("sink.delivery-guarantee", &text, why));
            }
        },
    };
    let partitioner = match options.take("sink.partitioner") {
        None => Partitioner::Default,
        Some(text) => match text.trim().to_lowercase().as_str() {
            "default" => Partitioner::Default,
            "fixed" => Partitioner::Fixed,
            "round-robin" => Partitioner::RoundRobin,
            _ => return Err(options.bad_value("sink.partitioner", &text, "must be default, fixed or round-robin")),
        },
    };
    let lost = options.take("sink.lost-transactions");
    let passes_lost = match lost.as_deref().map(str::trim) {
        None | Some("fail") => false,
        Some("ignore") => true,
        Some(text) => return Err(options.bad_value("sink.lost-transactions", text, "must be fail or ignore")),
    };
    let prefix = options.take("sink.transactional-id-prefix");
    if prefix.as_deref().is_some_and(|prefix| prefix.trim().is_empty()) {
        return Err(options.bad_value("sink.transactional-id-prefix", "", "must not be empty"));
    }
    if guarantee == Guarantee::ExactlyOnce
        && let Some(acks) = properties
            .get("acks")
            .or_else(|| properties.get("request.required.acks"))
        && !matches!(acks.trim(), "all" | "-1")
    {
        return Err(options.bad_value("properties.acks", acks, "must be all for exactly-once"));
    }
    Ok(SinkOptions {
        guarantee,
        prefix,
        partitioner,
        passes_lost,
    })
}
