//! What needs no broker: options and columns, and what they refuse.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use thalweg_engine::data::is_changelog;

use super::options::{Flavor, Guarantee, KafkaOptions, Partitioner};
use super::start::{Bound, Start};
use super::{create_table, create_upsert_table};
use crate::{METADATA_KEY, PRIMARY_KEY, sink_of, takes_changelog};

fn options(more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let base = [
        ("connector", "kafka"),
        ("topic", "t"),
        ("properties.bootstrap.servers", "localhost:9092"),
        ("format", "json"),
    ];
    let all = base.iter().chain(more);
    all.map(|(key, value)| (key.to_string(), value.to_string())).collect()
}

fn without(key: &str) -> BTreeMap<String, String> {
    let mut options = options(&[]);
    options.remove(key);
    options
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, true),
        Field::new("name", DataType::Utf8, true),
    ]))
}

fn refused(options: &BTreeMap<String, String>) -> String {
    create_table("t", schema(), options)
        .err()
        .map_or_else(|| panic!("taken: {options:?}"), |e| e.to_string())
}

#[test]
fn options_have_flinks_names_and_defaults() {
    let plain = KafkaOptions::parse(Flavor::Log, &options(&[])).unwrap();
    assert_eq!(plain.source.start, Start::Group);
    assert_eq!(plain.source.bound, Bound::None);
    assert_eq!(plain.source.discovery, Some(Duration::from_secs(300)));
    assert_eq!(plain.sink.guarantee, Guarantee::AtLeastOnce);
    assert_eq!(plain.sink.partitioner, Partitioner::Default);
    let given = options(&[
        ("Scan.Startup.Mode", "TIMESTAMP"),
        ("scan.startup.timestamp-millis", "7"),
        ("scan.bounded.mode", "specific-offsets"),
        ("scan.bounded.specific-offsets", "partition:1,offset:9"),
        ("value.format", "csv"),
        ("value.csv.field-delimiter", ";"),
        ("csv.ignore-parse-errors", "true"),
        ("sink.delivery-guarantee", "exactly-once"),
        ("sink.transactional-id-prefix", "p"),
        ("properties.group.id", "g"),
        ("properties.fetch.max.bytes", "12345678"),
    ]);
    let parsed = KafkaOptions::parse(Flavor::Log, &given).unwrap();
    assert_eq!(parsed.source.start, Start::Timestamp(7));
    assert_eq!(parsed.source.bound, Bound::Offsets(BTreeMap::from([(1, 9)])));
    assert_eq!((parsed.value.name(), parsed.sink.prefix.as_deref()), ("csv", Some("p")));
    assert_eq!(parsed.properties["fetch.max.bytes"], "12345678");
    for off in ["0", "0 s", "-1"] {
        let off = options(&[("scan.topic-partition-discovery.interval", off)]);
        assert_eq!(KafkaOptions::parse(Flavor::Log, &off).unwrap().source.discovery, None);
    }
}

#[test]
fn what_is_wrong_is_named_with_what_to_do() {
    assert!(refused(&without("topic")).contains("'topic' or 'topic-pattern'"));
    assert!(refused(&without("format")).contains("needs the option 'format'"));
    assert!(refused(&without("properties.bootstrap.servers")).contains("'properties.bootstrap.servers'"));
    let cases: [(&[(&str, &str)], &str); 25] = [
        (&[("topic-pattern", "t.*")], "not both"),
        (&[("topic", "a b")], "names of letters"),
        (&[("topic", ";")], "names of letters"),
        (&[("properties.bootstrap.servers", " ,")], "names no broker"),
        (&[("properties.security.protocol", "SASL_SSL")], "only PLAINTEXT"),
        (&[("properties.sasl.password", "secret")], "without TLS and SASL"),
        (&[("properties.enable.auto.commit", "true")], "checkpoints"),
        (&[("properties.transactional.id", "x")], "sink.transactional-id-prefix"),
        (&[("properties.no.such.thing", "x")], "properties.no.such.thing"),
        (&[("properties.fetch.max.bytes", "many")], "properties.fetch.max.bytes"),
        (&[("format", "xml")], "avro-confluent"),
        (&[("format", "avro-confluent")], "avro-confluent.url"),
        (
            &[("format", "avro-confluent"), ("avro-confluent.url", "https://x")],
            "https is not",
        ),
        (&[("format", "raw")], "one column"),
        (&[("scan.startup.mode", "middle")], "earliest-offset"),
        (&[("scan.startup.mode", "timestamp")], "scan.startup.timestamp-millis"),
        (&[("scan.startup.timestamp-millis", "1")], "another mode"),
        (
            &[
                ("scan.startup.mode", "specific-offsets"),
                ("scan.startup.specific-offsets", "0:1"),
            ],
            "partition:0",
        ),
        (&[("scan.bounded.mode", "never")], "unbounded"),
        (&[("sink.delivery-guarantee", "sometimes")], "exactly-once"),
        (&[("sink.partitioner", "random")], "round-robin"),
        (&[("key.fields", "id")], "'key.format'"),
        (&[("key.format", "json")], "key.fields"),
        (&[("key.format", "json"), ("key.fields", "nothing")], "'nothing'"),
        (&[("sink.parallelism", "2")], "has no option 'sink.parallelism'"),
    ];
    for (given, why) in cases {
        let message = refused(&options(given));
        assert!(message.contains(why), "{given:?}: {message}");
        assert!(
            !message.contains(PRIMARY_KEY) && !message.contains("secret"),
            "{message}"
        );
    }
    let acks = [("sink.delivery-guarantee", "exactly-once"), ("properties.acks", "1")];
    assert!(refused(&options(&acks)).contains("must be all"));
    let prefixed = [
        ("key.format", "json"),
        ("key.fields", "id"),
        ("key.fields-prefix", "k_"),
    ];
    assert!(refused(&options(&prefixed)).contains("EXCEPT_KEY"));
}

#[test]
fn a_changelog_format_makes_a_changelog_and_its_sink_takes_one() {
    let plain = create_table("t", schema(), &options(&[])).unwrap();
    assert!(!is_changelog(&plain.schema()));
    let sink = sink_of(plain.as_ref()).unwrap().unwrap();
    assert_eq!((sink.connector.as_str(), takes_changelog(&sink)), ("kafka", false));
    let changes = create_table("t", schema(), &options(&[("format", "debezium-json")])).unwrap();
    assert!(is_changelog(&changes.schema()));
    let sink = sink_of(changes.as_ref()).unwrap().unwrap();
    assert!(takes_changelog(&sink) && is_changelog(&sink.schema.0));
    let mut many = options(&[("topic-pattern", "t.*")]);
    many.remove("topic");
    let table = create_table("t", schema(), &many).unwrap();
    assert!(sink_of(table.as_ref()).unwrap_err().to_string().contains("one topic"));
}

#[test]
fn upserts_need_a_key() {
    let mut given = options(&[("connector", "upsert-kafka"), ("key.format", "json")]);
    let refused = |given: &BTreeMap<String, String>| create_upsert_table("t", schema(), given).unwrap_err().to_string();
    assert!(refused(&given).contains("PRIMARY KEY"));
    given.insert(PRIMARY_KEY.into(), r#"["id"]"#.into());
    let table = create_upsert_table("t", schema(), &given).unwrap();
    assert!(!is_changelog(&table.schema()));
    let sink = sink_of(table.as_ref()).unwrap().unwrap();
    assert!(takes_changelog(&sink) && is_changelog(&sink.schema.0));
    given.insert("format".into(), "canal-json".into());
    assert!(refused(&given).contains("'connector' = 'kafka'"));
}

#[test]
fn metadata_has_its_names_and_types() {
    let with = |key: &str, data_type: DataType| {
        let field = Field::new("m", data_type, true).with_metadata([(METADATA_KEY.into(), key.into())].into());
        Arc::new(Schema::new(vec![Field::new("id", DataType::Int64, true), field]))
    };
    let table = create_table("t", with("offset", DataType::Int64), &options(&[])).unwrap();
    assert!(table.schema().field(1).metadata().is_empty());
    for (key, data_type, why) in [
        ("ofset", DataType::Int64, "timestamp-type"),
        ("offset", DataType::Utf8, "BIGINT"),
        ("headers", DataType::Utf8, "MAP"),
        ("timestamp", DataType::Boolean, "TIMESTAMP"),
    ] {
        let message = create_table("t", with(key, data_type), &options(&[]))
            .unwrap_err()
            .to_string();
        assert!(message.contains(why), "{message}");
    }
    let changelog = options(&[("format", "debezium-json")]);
    let message = create_table("t", with("offset", DataType::Int64), &changelog)
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("not supported with format 'debezium-json'"),
        "{message}"
    );
}
