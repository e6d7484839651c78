//! Over real sockets on the loopback interface.

use std::io::Write;
use std::net::{TcpListener, TcpStream};

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, UInt8Type};
use arrow::record_batch::RecordBatch;
use arrow::util::pretty::pretty_format_batches;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::ExecutionPlanProperties;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;
use thalweg_engine::data::is_changelog;

use super::*;

fn schema(fields: &[(&str, DataType)]) -> SchemaRef {
    let field = |(name, data_type): &(&str, DataType)| Field::new(*name, data_type.clone(), true);
    Arc::new(Schema::new(fields.iter().map(field).collect::<Vec<_>>()))
}

fn two() -> SchemaRef {
    schema(&[("a", DataType::Int64), ("s", DataType::Utf8View)])
}

fn options(port: u16, more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let port = port.to_string();
    let base = [("hostname", "127.0.0.1"), ("port", port.as_str())];
    base.iter()
        .chain(more)
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

/// A server and a stream of what it is going to send.
async fn connected(
    schema: SchemaRef,
    more: &[(&str, &str)],
    projection: Option<&Vec<usize>>,
    batch_rows: usize,
) -> (TcpStream, SendableRecordBatchStream) {
    let (socket, stream, _) = connected_plan(schema, more, projection, batch_rows).await;
    (socket, stream)
}

/// Also the plan, for its metrics.
async fn connected_plan(
    schema: SchemaRef,
    more: &[(&str, &str)],
    projection: Option<&Vec<usize>>,
    batch_rows: usize,
) -> (TcpStream, SendableRecordBatchStream, Arc<dyn ExecutionPlan>) {
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let table = create_table(schema, &options(server.local_addr().unwrap().port(), more)).unwrap();
    let session = SessionContext::new_with_config(SessionConfig::new().with_batch_size(batch_rows));
    let plan = table.scan(&session.state(), projection, &[], None).await.unwrap();
    assert!(plan.boundedness().is_unbounded());
    assert_eq!(plan.properties().partitioning.partition_count(), 1);
    let stream = plan.execute(0, session.task_ctx()).unwrap();
    (server.accept().unwrap().0, stream, plan)
}

/// All rows of what was sent before the connection was closed.
async fn rows(
    schema: SchemaRef,
    more: &[(&str, &str)],
    sent: &[u8],
    batch_rows: usize,
) -> std::result::Result<String, String> {
    let (mut socket, stream) = connected(schema, more, None, batch_rows).await;
    socket.write_all(sent).unwrap();
    drop(socket);
    let batches: Vec<RecordBatch> = stream.try_collect().await.map_err(|e| e.to_string())?;
    assert!(batches.iter().all(|batch| (1..=batch_rows).contains(&batch.num_rows())));
    let lines = pretty_format_batches(&batches).unwrap().to_string();
    let lines = lines.lines().filter(|line| line.starts_with('|')).skip(1);
    Ok(lines
        .map(|line| line.replace([' ', '|'], ","))
        .collect::<Vec<_>>()
        .join("\n")
        .replace(",,", ","))
}

fn squeezed(text: &str) -> Vec<String> {
    let line = |line: &str| {
        line.split(',')
            .filter(|field| !field.is_empty())
            .collect::<Vec<_>>()
            .join(",")
    };
    text.lines().map(line).collect()
}

#[tokio::test]
async fn csv_json_and_raw_are_read_to_the_end() {
    for batch_rows in [1, 2, 8192] {
        let csv = rows(two(), &[("format", "csv")], b"1,x\r\n2,\"y,z\"\n,w", batch_rows)
            .await
            .unwrap();
        assert_eq!(squeezed(&csv), ["1,x", "2,y,z", "w"]);
        let more = [("format", "csv"), ("csv.field-delimiter", ";"), ("byte-delimiter", "0")];
        let csv = rows(two(), &more, b"1;x\x002;y\x00", batch_rows).await.unwrap();
        assert_eq!(squeezed(&csv), ["1,x", "2,y"]);
        let json = rows(
            two(),
            &[("format", "json"), ("byte-delimiter", "|")],
            b"{\"a\":1,\"s\":\"x\"}|{\"s\":\"y\",\"b\":[2]}|{\"a\":3}",
            batch_rows,
        );
        assert_eq!(squeezed(&json.await.unwrap()), ["1,x", "y", "3"]);
        for text in [DataType::Utf8, DataType::Utf8View, DataType::LargeUtf8] {
            let raw = rows(
                schema(&[("l", text)]),
                &[("format", "raw")],
                b"one\r\ntwo\nthree",
                batch_rows,
            );
            assert_eq!(squeezed(&raw.await.unwrap()), ["one", "two", "three"]);
        }
        let raw = rows(
            schema(&[("l", DataType::Binary)]),
            &[("format", "raw")],
            b"\xff\n",
            batch_rows,
        );
        assert_eq!(squeezed(&raw.await.unwrap()), ["ff"]);
    }
    assert_eq!(rows(two(), &[("format", "csv")], b"", 8).await.unwrap(), "");
}

#[tokio::test]
async fn a_row_comes_at_once_and_a_record_in_pieces_when_it_is_whole() {
    let (mut socket, mut stream) = connected(two(), &[("format", "csv")], Some(&vec![1]), 8192).await;
    socket.write_all(b"1,first\n2,sec").unwrap();
    let first = stream.try_next().await.unwrap().unwrap();
    assert_eq!((first.num_rows(), first.num_columns()), (1, 1));
    socket.write_all(b"ond\n").unwrap();
    let second = stream.try_next().await.unwrap().unwrap();
    assert_eq!(
        pretty_format_batches(&[second])
            .unwrap()
            .to_string()
            .matches("second")
            .count(),
        1
    );
    drop(socket);
    assert!(stream.try_next().await.unwrap().is_none());
}

#[tokio::test]
async fn many_records_come_all_and_in_order() {
    let (mut socket, stream) = connected(schema(&[("a", DataType::Int64)]), &[("format", "csv")], None, 1000).await;
    let sender = std::thread::spawn(move || {
        let text: String = (0..200_000).map(|i| format!("{i}\n")).collect();
        socket.write_all(text.as_bytes()).unwrap();
    });
    let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
    sender.join().unwrap();
    let numbers = batches
        .iter()
        .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec());
    assert!(numbers.eq(0..200_000));
}

#[tokio::test]
async fn a_bad_record_is_shown_with_its_number() {
    let error = rows(two(), &[("format", "csv")], b"1,x\n2,y\nthree,z\n4,a\n", 8)
        .await
        .unwrap_err();
    assert!(
        error.contains("record 3") && error.contains("three,z") && error.contains("127.0.0.1"),
        "{error}"
    );
    let error = rows(two(), &[("format", "json")], b"{\"a\":1}\n{\"a\":\n{\"a\":2}\n", 8)
        .await
        .unwrap_err();
    assert!(error.contains("record 2") && error.contains("{\"a\":"), "{error}");
    // Quotes do not reach over the delimiter: the next record would be a part of this one.
    let error = rows(two(), &[("format", "csv")], b"1,\"x\n2,y\"\n", 8)
        .await
        .unwrap_err();
    assert!(error.contains("record 1"), "{error}");
    let raw = schema(&[("l", DataType::Utf8View)]);
    let error = rows(raw, &[("format", "raw")], b"good\n\xff\n", 8).await.unwrap_err();
    assert!(error.contains("record 2"), "{error}");
}

#[tokio::test]
async fn changes_of_a_table_come_with_their_kinds() {
    let debezium = b"{\"before\":null,\"after\":{\"a\":1,\"s\":\"x\"},\"op\":\"c\"}\n\
        {\"before\":{\"a\":1,\"s\":\"x\"},\"after\":{\"a\":2,\"s\":\"x\"},\"op\":\"u\"}\n\
        {\"before\":{\"a\":2,\"s\":\"x\"},\"after\":null,\"op\":\"d\"}\n";
    let canal = b"{\"data\":[{\"a\":1}],\"type\":\"INSERT\"}\n\
        {\"data\":[{\"a\":2}],\"old\":[{\"a\":1}],\"type\":\"UPDATE\"}\n\
        {\"data\":[{\"a\":2}],\"type\":\"DELETE\"}";
    for (format, sent) in [("debezium-json", &debezium[..]), ("canal-json", &canal[..])] {
        for batch_rows in [1, 3, 8192] {
            let (mut socket, stream) = connected(two(), &[("format", format)], Some(&vec![2, 0]), batch_rows).await;
            assert!(is_changelog(
                &create_table(two(), &options(1, &[("format", format)]))
                    .unwrap()
                    .schema()
            ));
            socket.write_all(sent).unwrap();
            drop(socket);
            let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
            assert!(batches.iter().all(|batch| (1..=batch_rows).contains(&batch.num_rows())));
            let column = |index: usize| batches.iter().map(move |batch| batch.column(index));
            let kinds: Vec<u8> = column(0)
                .flat_map(|kinds| kinds.as_primitive::<UInt8Type>().values().to_vec())
                .collect();
            let values: Vec<i64> = column(1)
                .flat_map(|a| a.as_primitive::<Int64Type>().values().to_vec())
                .collect();
            assert_eq!((kinds, values), (vec![0, 1, 2, 3], vec![1, 1, 2, 2]), "{format}");
        }
    }
}

#[tokio::test]
async fn bad_records_are_counted_and_kept_where_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let kept = folder.path().join("bad.jsonl");
    let cases: [&[(&str, &str)]; 2] = [
        &[("format", "json"), ("json.ignore-parse-errors", "true")],
        &[("format", "json"), ("dead-letter.path", kept.to_str().unwrap())],
    ];
    for more in cases {
        let (mut socket, stream, plan) = connected_plan(two(), more, Some(&vec![0]), 2).await;
        socket
            .write_all(b"{\"a\":1}\n{\"a\":\nnonsense\n\n{\"a\":2}\n{\"a\":\"x\"}\n")
            .unwrap();
        drop(socket);
        let batches: Vec<RecordBatch> = stream.try_collect().await.unwrap();
        let values = batches
            .iter()
            .flat_map(|batch| batch.column(0).as_primitive::<Int64Type>().values().to_vec());
        assert_eq!(values.collect::<Vec<_>>(), [1, 2]);
        let counted = plan.metrics().unwrap().sum_by_name("bad_records").unwrap().as_usize();
        assert_eq!(counted, 3);
    }
    let kept = std::fs::read_to_string(kept).unwrap();
    assert_eq!(kept.lines().count(), 3);
    assert!(kept.contains("record 3") && kept.contains("nonsense"), "{kept}");
}

#[tokio::test]
async fn where_nobody_listens_is_an_error_and_dropping_the_stream_closes_the_socket() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let table = create_table(two(), &options(port, &[("format", "csv")])).unwrap();
    let session = SessionContext::new();
    let plan = table.scan(&session.state(), None, &[], None).await.unwrap();
    let error = plan
        .execute(0, session.task_ctx())
        .unwrap()
        .try_next()
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("cannot connect") && error.contains(&port.to_string()),
        "{error}"
    );
    let (mut socket, mut stream) = connected(two(), &[("format", "csv")], None, 8).await;
    socket.write_all(b"1,x\n").unwrap();
    stream.try_next().await.unwrap();
    drop(stream);
    // The other side sees the end, at once: it would wait for ever else.
    assert_eq!(std::io::Read::read(&mut socket, &mut [0; 8]).unwrap_or(0), 0);
}

#[test]
fn wrong_options_are_named() {
    let error =
        |columns: SchemaRef, more: &[(&str, &str)]| create_table(columns, &options(1, more)).unwrap_err().to_string();
    assert!(error(two(), &[]).contains("needs the option 'format'"));
    assert!(error(two(), &[("format", "xml")]).contains("json, csv, raw, debezium-json, canal-json"));
    assert!(error(two(), &[("format", "raw")]).contains("fills one column"));
    assert!(error(two(), &[("format", "csv"), ("byte-delimiter", "ab")]).contains("'byte-delimiter' = 'ab'"));
    assert!(error(two(), &[("format", "csv"), ("ports", "1")]).contains("no option 'ports'"));
    assert!(error(two(), &[("format", "json"), ("csv.field-delimiter", ";")]).contains("csv.field-delimiter"));
    let nested = schema(&[("l", DataType::Binary)]);
    assert!(error(nested, &[("format", "csv")]).contains("column 'l' of type Binary cannot be read from CSV"));
    let none = create_table(two(), &BTreeMap::new()).unwrap_err().to_string();
    assert!(none.contains("needs the option 'hostname'"), "{none}");
}

#[tokio::test(flavor = "multi_thread")]
async fn with_a_log_it_goes_on_and_without_it_says_so() {
    use thalweg_engine::operator::{LoggedSource, Positioned};
    let server = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let session = SessionContext::new();
    let source = async |wal: &str| {
        let table = create_table(two(), &options(port, &[("format", "csv"), ("scan.wal", wal)])).unwrap();
        let plan = table.scan(&session.state(), Some(&vec![0]), &[], None).await.unwrap();
        (crate::split_source(&plan).unwrap(), plan.schema())
    };
    let (plain, _) = source("false").await;
    assert!(!plain.needs_log());
    let split = plain.splits().await.unwrap().remove(0);
    let mut reader = plain.reader(0, session.task_ctx()).unwrap();
    let error = reader.open(&split, Some(&[])).err().unwrap().to_string();
    assert!(error.contains("set 'scan.wal' = 'true'"), "{error}");

    let temp = tempfile::tempdir().unwrap();
    let open = async |position: Option<&[u8]>| {
        let (logged, schema) = source("true").await;
        assert!(logged.needs_log());
        let logged = LoggedSource::new(logged, temp.path().into(), schema);
        let mut reader = thalweg_engine::operator::SplitSource::reader(&logged, 0, session.task_ctx()).unwrap();
        let stream = reader.open(&split, position).unwrap();
        (stream, server.accept().unwrap().0)
    };
    let numbers = |read: &Positioned| read.batch.column(0).as_primitive::<Int64Type>().values().to_vec();
    let (mut stream, mut sender) = open(None).await;
    let mut positions = Vec::new();
    for line in ["1,x\n2,y\n", "3,z\n"] {
        sender.write_all(line.as_bytes()).unwrap();
        let read = stream.try_next().await.unwrap().unwrap();
        positions.push((numbers(&read), read.position));
    }
    assert_eq!(positions[0].0.len() + positions[1].0.len(), 3);
    drop((stream, sender));
    let (stream, mut sender) = open(Some(&positions[0].1)).await;
    sender.write_all(b"4,w\n").unwrap();
    drop(sender);
    let rest: Vec<Positioned> = stream.try_collect::<Vec<_>>().await.unwrap();
    assert_eq!(rest.iter().map(numbers).collect::<Vec<_>>(), [vec![3], vec![4]]);
}
