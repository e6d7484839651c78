//! `upsert-kafka`: a record is the row of its key.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray, UInt8Array};
use arrow::datatypes::DataType;
use rdkafka::message::Message;
use thalweg_connectors::PRIMARY_KEY;
use thalweg_engine::Batch;
use thalweg_engine::data::with_row_kind;

use crate::broker::{Topic, columns, runtime, sink, topic};

fn options(topic: &Topic) -> BTreeMap<String, String> {
    let mut options = topic.options(&[
        ("connector", "upsert-kafka"),
        ("key.format", "json"),
        ("value.format", "json"),
        (PRIMARY_KEY, r#"["id"]"#),
    ]);
    options.remove("scan.startup.mode");
    options
}

#[test]
fn an_update_is_its_new_form_and_a_deletion_has_no_value() {
    let Some(topic) = topic(2) else { return };
    let schema = columns(&[("id", DataType::Int64), ("v", DataType::Utf8)]);
    let table = thalweg_connectors::kafka::create_upsert_table("t", Arc::clone(&schema), &options(&topic)).unwrap();
    let spec = thalweg_connectors::sink_of(table.as_ref()).unwrap().unwrap();
    assert!(thalweg_connectors::takes_changelog(&spec));
    let sink = sink(table.as_ref(), None);
    assert!(sink.is_exactly_once());
    let mut writer = sink.writer(0, 1).unwrap();
    let write = |ids: Vec<Option<i64>>, values: Vec<&str>, kinds: Vec<u8>| {
        let (ids, values): (ArrayRef, ArrayRef) =
            (Arc::new(Int64Array::from(ids)), Arc::new(StringArray::from(values)));
        Batch::try_new(
            with_row_kind(&schema),
            vec![ids, values, Arc::new(UInt8Array::from(kinds))],
        )
        .unwrap()
    };
    let changes = write(
        vec![Some(1), Some(2), Some(1), Some(1), Some(2)],
        vec!["a", "b", "a", "c", "b"],
        vec![0, 0, 1, 2, 3],
    );
    writer.write(&changes).unwrap();
    assert!(writer.prepare(1).unwrap().is_empty());
    let mut latest: BTreeMap<String, Vec<Option<String>>> = BTreeMap::new();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    for record in topic.committed() {
        let values = latest.entry(text(record.key().unwrap())).or_default();
        values.push(record.payload().map(text));
    }
    let json = |value: &str| Some(value.to_string());
    assert_eq!(
        latest,
        BTreeMap::from([
            (
                r#"{"id":1}"#.to_string(),
                vec![json(r#"{"id":1,"v":"a"}"#), json(r#"{"id":1,"v":"c"}"#)]
            ),
            (r#"{"id":2}"#.to_string(), vec![json(r#"{"id":2,"v":"b"}"#), None]),
        ])
    );
    let state = datafusion::prelude::SessionContext::new().state();
    let message = runtime()
        .block_on(table.scan(&state, None, &[], None))
        .unwrap_err()
        .to_string();
    assert!(message.contains("not be read"), "{message}");
}
