//! Reading: where it begins, how it goes on, what it does not see.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::execution::TaskContext;
use futures::TryStreamExt;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::producer::Producer;
use rdkafka::{Offset, TopicPartitionList};
use thalweg_connectors::METADATA_KEY;

use crate::broker::{LONG, all, columns, failure, next, reader, rows, runtime, splits, take, topic};

fn text() -> SchemaRef {
    columns(&[("v", DataType::Utf8)])
}

type Given = &'static [(&'static str, &'static str)];

const RAW: (&str, &str) = ("format", "raw");

#[test]
fn it_begins_where_the_options_say() {
    let Some(topic) = topic(1) else { return };
    let records = [
        (None, Some("a"), 1000),
        (None, Some("b"), 2000),
        (None, Some("c"), 3000),
    ];
    topic.send(&topic.producer(None), 0, &records);
    let cases: [(Given, &str, usize); 5] = [
        (&[("scan.startup.mode", "earliest-offset")], "0", 3),
        (&[("scan.startup.mode", "latest-offset")], "3", 0),
        (
            &[
                ("scan.startup.mode", "timestamp"),
                ("scan.startup.timestamp-millis", "1500"),
            ],
            "1",
            2,
        ),
        (
            &[
                ("scan.startup.mode", "timestamp"),
                ("scan.startup.timestamp-millis", "9999"),
            ],
            "3",
            0,
        ),
        (
            &[
                ("scan.startup.mode", "specific-offsets"),
                ("scan.startup.specific-offsets", "partition:0,offset:2"),
            ],
            "2",
            1,
        ),
    ];
    for (options, position, count) in cases {
        let options = [options, &[RAW]].concat();
        let source = topic.source(&text(), &options);
        let split = &splits(source.as_ref())[0];
        let mut stream = reader(source.as_ref(), 100).open(split, None).unwrap();
        assert_eq!(next(&mut stream), Some((vec![], position.to_string())), "{options:?}");
        let expected: Vec<String> = ["a", "b", "c"][3 - count..].iter().map(|v| v.to_string()).collect();
        if count > 0 {
            assert_eq!(take(&mut stream, count), (expected, "3".into()), "{options:?}");
        }
    }
    // What comes later is read, too, and nothing before it.
    let source = topic.source(&text(), &[RAW, ("scan.startup.mode", "latest-offset")]);
    let mut stream = reader(source.as_ref(), 100)
        .open(&splits(source.as_ref())[0], None)
        .unwrap();
    next(&mut stream);
    topic.fill(0, &["d"]);
    assert_eq!(take(&mut stream, 1), (vec!["d".into()], "4".into()));
}

#[test]
fn the_group_is_told_how_far_the_job_is_and_it_can_begin_there() {
    let Some(topic) = topic(1) else { return };
    topic.fill(0, &["a", "b", "c"]);
    let options = [
        RAW,
        ("properties.group.id", "told"),
        ("scan.startup.mode", "group-offsets"),
    ];
    let source = topic.source(&text(), &options);
    let split = &splits(source.as_ref())[0];
    let message = failure(&mut reader(source.as_ref(), 100).open(split, None).unwrap());
    assert!(
        message.contains("has no offset") && message.contains("partition 0"),
        "{message}"
    );

    let earliest = topic.source(&text(), &[RAW, ("properties.group.id", "told")]);
    let mut first = reader(earliest.as_ref(), 2);
    let mut stream = first.open(split, None).unwrap();
    let (_, position) = take(&mut stream, 2);
    first.checkpoint_complete(&[(split.clone(), position.into_bytes())]);
    let asked: BaseConsumer = topic.client().set("group.id", "told").create().unwrap();
    let committed = || {
        let mut list = TopicPartitionList::new();
        list.add_partition(&topic.name, 0);
        asked.committed_offsets(list, LONG).unwrap().elements()[0].offset()
    };
    while committed() == Offset::Invalid {}
    assert_eq!(committed(), Offset::Offset(2));

    let source = topic.source(&text(), &options);
    let mut stream = reader(source.as_ref(), 100).open(split, None).unwrap();
    assert_eq!(take(&mut stream, 1), (vec!["c".into()], "3".into()));
}

#[test]
fn it_goes_on_at_a_noted_position_whoever_reads() {
    let Some(topic) = topic(3) else { return };
    for partition in 0..3 {
        let values: Vec<String> = (0..5).map(|n| format!("{partition}{n}")).collect();
        topic.fill(partition, &values.iter().map(String::as_str).collect::<Vec<_>>());
    }
    let source = topic.source(&text(), &[RAW]);
    let found = splits(source.as_ref());
    assert_eq!(found.len(), 3);
    let mut one = reader(source.as_ref(), 2);
    let mut noted = Vec::new();
    for (partition, split) in found.iter().enumerate() {
        let (rows, position) = take(&mut one.open(split, None).unwrap(), 2);
        assert_eq!(rows, [format!("{partition}0"), format!("{partition}1")]);
        noted.push(position);
    }
    drop(one);
    // Another process, in which one subtask reads two of them side by side.
    let source = topic.source(&text(), &[RAW, ("scan.startup.mode", "latest-offset")]);
    let mut other = reader(source.as_ref(), 100);
    let mut streams: Vec<_> = (0..3)
        .map(|partition| {
            other
                .open(&found[partition], Some(noted[partition].as_bytes()))
                .unwrap()
        })
        .collect();
    for (partition, stream) in streams.iter_mut().enumerate() {
        let (rows, position) = take(stream, 3);
        assert_eq!(
            (rows[0].as_str(), position.as_str()),
            (format!("{partition}2").as_str(), "5")
        );
    }
    let message = other.open(&found[0], Some(b"yesterday")).err().unwrap().to_string();
    assert!(message.contains("'yesterday' is no position"), "{message}");
    let message = failure(&mut reader(source.as_ref(), 1).open(&found[0], Some(b"77")).unwrap());
    assert!(
        message.contains("offset 77") && message.contains(&topic.name),
        "{message}"
    );
}

#[test]
fn a_partition_that_appears_later_is_read_from_its_beginning() {
    let Some(topic) = topic(1) else { return };
    topic.fill(0, &["old"]);
    let options = [
        RAW,
        ("scan.startup.mode", "latest-offset"),
        ("scan.topic-partition-discovery.interval", "1 s"),
    ];
    let source = topic.source(&text(), &options);
    assert_eq!(source.discovery_interval().map(|interval| interval.as_secs()), Some(1));
    let before = splits(source.as_ref());
    topic.grow(2);
    topic.fill(1, &["new"]);
    let mut after = splits(source.as_ref());
    while after.len() < 2 {
        after = splits(source.as_ref());
    }
    assert_eq!(after[0], before[0]);
    let mut subtask = reader(source.as_ref(), 10);
    assert_eq!(
        next(&mut subtask.open(&after[0], None).unwrap()),
        Some((vec![], "1".into()))
    );
    let mut stream = subtask.open(&after[1], None).unwrap();
    assert_eq!(take(&mut stream, 1), (vec!["new".into()], "1".into()));
}

#[test]
fn what_is_not_committed_is_not_read() {
    let Some(topic) = topic(1) else { return };
    topic.fill(0, &["a"]);
    let producer = topic.producer(Some(&format!("{}-open", topic.name)));
    producer.begin_transaction().unwrap();
    topic.send(&producer, 0, &[(None, Some("aborted"), 1000)]);
    producer.abort_transaction(LONG).unwrap();
    producer.begin_transaction().unwrap();
    topic.send(&producer, 0, &[(None, Some("b"), 1000)]);
    let bounded = [RAW, ("scan.bounded.mode", "latest-offset")];
    let read = || {
        let plan = topic.scan(&text(), &bounded);
        let batches = plan.execute(0, Arc::new(TaskContext::default())).unwrap();
        let batches: Vec<_> = runtime()
            .block_on(async { tokio::time::timeout(LONG, batches.try_collect()).await })
            .unwrap()
            .unwrap();
        batches.iter().flat_map(rows).collect::<Vec<_>>()
    };
    assert_eq!(read(), ["a"]);
    // A reader that is there already sees it when it is committed, and does not see the mark behind it.
    let source = topic.source(&text(), &[RAW]);
    let split = &splits(source.as_ref())[0];
    let mut stream = reader(source.as_ref(), 10).open(split, None).unwrap();
    assert_eq!(take(&mut stream, 1).0, ["a"]);
    producer.commit_transaction(LONG).unwrap();
    assert_eq!(take(&mut stream, 1).0, ["b"]);
    assert_eq!(read(), ["a", "b"]);
    let uncommitted = [
        RAW,
        ("scan.bounded.mode", "latest-offset"),
        ("properties.isolation.level", "read_uncommitted"),
    ];
    let source = topic.source(&text(), &uncommitted);
    assert_eq!(
        all(&mut reader(source.as_ref(), 10).open(split, None).unwrap()),
        ["a", "aborted", "b"]
    );
}

#[test]
fn a_bounded_reading_ends_where_it_did_also_after_a_restart() {
    let Some(topic) = topic(2) else { return };
    topic.fill(0, &["a", "b", "c"]);
    let source = topic.source(&text(), &[RAW, ("scan.bounded.mode", "latest-offset")]);
    let found = splits(source.as_ref());
    let mut one = reader(source.as_ref(), 1);
    let mut stream = one.open(&found[0], None).unwrap();
    let (_, position) = take(&mut stream, 1);
    topic.fill(0, &["later"]);
    let mut again = reader(source.as_ref(), 1)
        .open(&found[0], Some(position.as_bytes()))
        .unwrap();
    assert_eq!(all(&mut again), ["b", "c"]);
    assert_eq!(all(&mut one.open(&found[1], None).unwrap()), [""; 0]);
}

#[test]
fn keys_and_what_is_about_records_are_columns() {
    let Some(topic) = topic(1) else { return };
    let records = [
        (Some("k1"), Some(r#"{"v": 1}"#), 1000),
        (None, Some("broken"), 2000),
        (None, None, 2500),
        (None, Some(r#"{"v": 2, "other": 3}"#), 3000),
    ];
    topic.send(&topic.producer(None), 0, &records);
    let about = |name: &str, key: &str, data_type| {
        Field::new(name, data_type, true).with_metadata([(METADATA_KEY.to_string(), key.to_string())].into())
    };
    let schema: SchemaRef = Arc::new(Schema::new(vec![
        about("o", "offset", DataType::Int64),
        Field::new("k", DataType::Utf8, true),
        Field::new("v", DataType::Int32, true),
        about("at", "timestamp", DataType::Timestamp(TimeUnit::Millisecond, None)),
        about("p", "partition", DataType::Int32),
        about("t", "topic", DataType::Utf8),
    ]));
    let options = [
        ("format", "json"),
        ("key.format", "raw"),
        ("key.fields", "k"),
        ("value.fields-include", "EXCEPT_KEY"),
        ("scan.bounded.mode", "latest-offset"),
    ];
    let skipping = [&options[..], &[("json.ignore-parse-errors", "true")]].concat();
    let source = topic.source(&schema, &skipping);
    let split = &splits(source.as_ref())[0];
    let read = all(&mut reader(source.as_ref(), 10).open(split, None).unwrap());
    let name = &topic.name;
    assert_eq!(
        read,
        [
            format!("0|k1|1|1970-01-01T00:00:01|0|{name}"),
            format!("3|NULL|2|1970-01-01T00:00:03|0|{name}"),
        ]
    );
    let source = topic.source(&schema, &options);
    let message = failure(&mut reader(source.as_ref(), 10).open(split, None).unwrap());
    assert!(
        message.contains(&format!("topic {name}, partition 0, offset 1 ")) && message.contains("broken"),
        "{message}"
    );
}

#[test]
fn a_topic_that_is_not_there_is_named() {
    let Some(topic) = topic(1) else { return };
    let table = topic.table(&text(), &[RAW, ("topic", "nowhere")]);
    let state = datafusion::prelude::SessionContext::new().state();
    let message = runtime()
        .block_on(table.scan(&state, None, &[], None))
        .unwrap_err()
        .to_string();
    assert!(message.contains("no topic 'nowhere'"), "{message}");
    // By the offsets of a group that is not named.
    let nobody = topic.table(&text(), &[RAW, ("scan.startup.mode", "group-offsets")]);
    let message = runtime()
        .block_on(nobody.scan(&state, None, &[], None))
        .unwrap_err()
        .to_string();
    assert!(message.contains("'properties.group.id'"), "{message}");
    // A pattern may be of topics that are still to come.
    let options = [RAW, ("topic-pattern", "nowhere-.*")];
    let mut given = topic.options(&options);
    given.remove("topic");
    let pattern = thalweg_connectors::kafka::create_table("t", text(), &given).unwrap();
    let plan = runtime().block_on(pattern.scan(&state, None, &[], None)).unwrap();
    assert_eq!(plan.properties().partitioning.partition_count(), 1);
}
