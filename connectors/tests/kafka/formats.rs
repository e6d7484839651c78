//! What is written is read again, in every format.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use arrow::array::{ArrayRef, Float64Array, Int64Array, StringArray, TimestampMillisecondArray, UInt8Array};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use thalweg_engine::Batch;
use thalweg_engine::data::with_row_kind;

use crate::broker::{Topic, all, columns, failure, reader, rows, splits, topic};

fn schema() -> SchemaRef {
    columns(&[
        ("id", DataType::Int64),
        ("name", DataType::Utf8),
        ("x", DataType::Float64),
        ("at", DataType::Timestamp(TimeUnit::Millisecond, None)),
    ])
}

fn batch() -> Batch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from(vec![Some(1), None, Some(i64::MIN)])),
        Arc::new(StringArray::from(vec![Some("a,\"b\"\nc"), Some("é"), None])),
        Arc::new(Float64Array::from(vec![Some(-0.5), None, Some(1e300)])),
        Arc::new(TimestampMillisecondArray::from(vec![
            Some(1),
            None,
            Some(1_700_000_000_123),
        ])),
    ];
    Batch::try_new(schema(), columns).unwrap()
}

fn round_trip(topic: &Topic, schema: &SchemaRef, batch: &Batch, options: &[(&str, &str)]) -> Vec<String> {
    let sink = topic.sink(schema, options);
    let mut writer = sink.writer(0, 1).unwrap();
    writer.write(batch).unwrap();
    writer.finish().unwrap();
    read(topic, schema, options)
}

fn read(topic: &Topic, schema: &SchemaRef, options: &[(&str, &str)]) -> Vec<String> {
    let options = [options, &[("scan.bounded.mode", "latest-offset")]].concat();
    let source = topic.source(schema, &options);
    let split = &splits(source.as_ref())[0];
    all(&mut reader(source.as_ref(), 100).open(split, None).unwrap())
}

#[test]
fn rows_of_all_formats_come_back() {
    for format in ["json", "avro"] {
        let Some(topic) = topic(1) else { return };
        assert_eq!(
            round_trip(&topic, &schema(), &batch(), &[("format", format)]),
            rows(&batch()),
            "{format}"
        );
    }
    let Some(lines) = topic(1) else { return };
    // The empty text and NULL are one in CSV, and a record of several lines cannot be read.
    let one_line = batch().slice(1, 2);
    assert_eq!(
        round_trip(&lines, &schema(), &one_line, &[("format", "csv")]),
        rows(&one_line)
    );
    let Some(raw) = topic(1) else { return };
    let names = columns(&[("name", DataType::Utf8)]);
    let name = batch().project(&[1]).unwrap();
    assert_eq!(round_trip(&raw, &names, &name, &[("format", "raw")]), rows(&name));
    let Some(keyed) = topic(1) else { return };
    let options = [
        ("value.format", "json"),
        ("key.format", "json"),
        ("key.fields", "id;name"),
        ("value.fields-include", "EXCEPT_KEY"),
    ];
    assert_eq!(round_trip(&keyed, &schema(), &batch(), &options), rows(&batch()));
}

#[test]
fn changelogs_come_back() {
    let kinds: ArrayRef = Arc::new(UInt8Array::from(vec![0, 0, 3]));
    let mut changes = batch().columns().to_vec();
    changes.push(kinds);
    let changes = Batch::try_new(with_row_kind(&schema()), changes).unwrap();
    for format in ["debezium-json", "canal-json"] {
        let Some(topic) = topic(1) else { return };
        assert_eq!(
            round_trip(&topic, &schema(), &changes, &[("format", format)]),
            rows(&changes),
            "{format}"
        );
    }
}

/// A registry of schemas that answers as Confluent's does, to one question after the other.
struct Registry {
    url: String,
    schemas: Arc<Mutex<HashMap<usize, String>>>,
}

impl Registry {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let schemas = Arc::new(Mutex::new(HashMap::new()));
        let shared = Arc::clone(&schemas);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                Self::answer(stream.unwrap(), &shared);
            }
        });
        Self { url, schemas }
    }

    fn answer(stream: TcpStream, schemas: &Mutex<HashMap<usize, String>>) {
        let mut reader = BufReader::new(stream);
        let mut first = String::new();
        reader.read_line(&mut first).unwrap();
        let (mut length, mut line) = (0, String::new());
        while reader.read_line(&mut line).unwrap() > 2 {
            if let Some(value) = line.to_lowercase().strip_prefix("content-length:") {
                length = value.trim().parse().unwrap();
            }
            line.clear();
        }
        let mut body = vec![0; length];
        reader.read_exact(&mut body).unwrap();
        let mut schemas = schemas.lock().unwrap();
        let path = first.split(' ').nth(1).unwrap();
        let (status, answer) = match path.strip_prefix("/schemas/ids/") {
            Some(id) => match schemas.get(&id.parse().unwrap()) {
                Some(schema) => ("200 OK", serde_json::json!({ "schema": schema })),
                None => ("404 Not Found", serde_json::json!({ "error_code": 40403 })),
            },
            None => {
                assert!(
                    first.starts_with("POST /subjects/") && path.ends_with("-value/versions"),
                    "{first}"
                );
                let asked: serde_json::Value = serde_json::from_slice(&body).unwrap();
                let id = schemas.len() + 7;
                schemas.insert(id, asked["schema"].as_str().unwrap().to_string());
                ("200 OK", serde_json::json!({ "id": id }))
            }
        };
        let answer = answer.to_string();
        let head = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
            answer.len()
        );
        let stream = reader.get_mut();
        stream.write_all((head + &answer).as_bytes()).unwrap();
    }
}

#[test]
fn avro_with_a_registry_reads_what_older_and_newer_writers_wrote() {
    let Some(topic) = topic(1) else { return };
    let registry = Registry::start();
    let options = [
        ("format", "avro-confluent"),
        ("avro-confluent.url", registry.url.as_str()),
    ];
    assert_eq!(round_trip(&topic, &schema(), &batch(), &options), rows(&batch()));
    // Another writer has fewer columns, in another order, of a narrower type.
    let other = columns(&[("name", DataType::Utf8), ("id", DataType::Int32)]);
    let names: ArrayRef = Arc::new(StringArray::from(vec!["new"]));
    let ids: ArrayRef = Arc::new(arrow::array::Int32Array::from(vec![5]));
    let newer = Batch::try_new(Arc::clone(&other), vec![names, ids]).unwrap();
    let mut writer = topic.sink(&other, &options).writer(0, 1).unwrap();
    writer.write(&newer).unwrap();
    writer.finish().unwrap();
    assert_eq!(registry.schemas.lock().unwrap().len(), 2);
    let read_all = read(&topic, &schema(), &options);
    assert_eq!((read_all.len(), read_all[3].as_str()), (4, "5|new|NULL|NULL"));
    // One whose schema nobody knows, and one that is no Avro at all.
    topic.fill(0, &["\0\0\0\u{1}\u{2}x", "plain"]);
    let source = topic.source(&schema(), &options);
    let split = &splits(source.as_ref())[0];
    let message = failure(&mut reader(source.as_ref(), 100).open(split, None).unwrap());
    assert!(
        message.contains("offset 4") && message.contains("no schema 258"),
        "{message}"
    );
    let skipping = [&options[..], &[("avro-confluent.ignore-parse-errors", "true")]].concat();
    assert_eq!(read(&topic, &schema(), &skipping), read_all);
    // A registry that is away is no reason to skip records.
    let away = [
        ("format", "avro-confluent"),
        ("avro-confluent.url", "http://127.0.0.1:1"),
        skipping[2],
    ];
    let source = topic.source(&schema(), &away);
    let message = failure(&mut reader(source.as_ref(), 100).open(split, None).unwrap());
    assert!(message.contains("schema registry http://127.0.0.1:1"), "{message}");
}
