//! Writing: when rows are seen, and by whom they are committed.

use std::sync::Arc;

use arrow::array::{ArrayRef, StringArray};
use arrow::datatypes::{DataType, SchemaRef};
use thalweg_engine::Batch;
use thalweg_engine::operator::{PreparedSink, SinkWriter};

use crate::broker::{Topic, columns, sink, topic};

const EXACTLY_ONCE: [(&str, &str); 2] = [("format", "raw"), ("sink.delivery-guarantee", "exactly-once")];

fn text() -> SchemaRef {
    columns(&[("v", DataType::Utf8)])
}

fn batch(values: &[&str]) -> Batch {
    let column: ArrayRef = Arc::new(StringArray::from(values.to_vec()));
    Batch::try_new(text(), vec![column]).unwrap()
}

fn exactly_once(topic: &Topic) -> Arc<dyn PreparedSink> {
    topic.sink(&text(), &EXACTLY_ONCE)
}

fn write(writer: &mut Box<dyn SinkWriter>, values: &[&str], checkpoint: u64) -> Vec<Vec<u8>> {
    writer.write(&batch(values)).unwrap();
    writer.prepare(checkpoint).unwrap()
}

#[test]
fn rows_are_hidden_until_their_checkpoint_is_complete() {
    let Some(topic) = topic(1) else { return };
    let sink = exactly_once(&topic);
    assert!(sink.is_exactly_once());
    sink.recover().unwrap();
    let mut writer = sink.writer(0, 1).unwrap();
    assert!(writer.prepare(1).unwrap().is_empty(), "nothing was written");
    let second = write(&mut writer, &["a", "b"], 2);
    assert_eq!(second.len(), 1);
    assert_eq!(topic.values(), [""; 0]);
    // The next ones do not wait for it.
    let third = write(&mut writer, &["c"], 3);
    sink.publish(&second).unwrap();
    assert_eq!(topic.values(), ["a", "b"]);
    let fourth = write(&mut writer, &["d"], 4);
    sink.publish(&third).unwrap();
    sink.publish(&fourth).unwrap();
    assert_eq!(topic.values(), ["a", "b", "c", "d"]);
    // Once more, as after a failure: all of them were committed before, by producers that have gone on since.
    for committables in [&second, &third, &fourth] {
        sink.publish(committables).unwrap();
    }
    assert_eq!(topic.values(), ["a", "b", "c", "d"]);
}

#[test]
fn another_process_commits_what_a_checkpoint_holds_and_aborts_the_rest() {
    let Some(topic) = topic(2) else { return };
    let killed = exactly_once(&topic);
    killed.recover().unwrap();
    let mut writers: Vec<_> = (0..2).map(|subtask| killed.writer(subtask, 2).unwrap()).collect();
    let mut complete = Vec::new();
    complete.extend(write(&mut writers[0], &["a"], 1));
    complete.extend(write(&mut writers[1], &["b"], 1));
    // Of a checkpoint that will never be complete, and of none.
    write(&mut writers[0], &["stray"], 2);
    writers[1].write(&batch(&["open"])).unwrap();
    writers[1].relieve().unwrap();

    let restored = exactly_once(&topic);
    restored.publish(&complete).unwrap();
    restored.publish(&complete).unwrap();
    restored.recover().unwrap();
    // With another parallelism; what was aborted does not hold back readers.
    let mut writer = restored.writer(0, 1).unwrap();
    let next = write(&mut writer, &["c"], 2);
    restored.publish(&next).unwrap();
    assert_eq!(topic.values(), ["a", "b", "c"]);
    // It may die after having committed, too.
    let again = exactly_once(&topic);
    again.publish(&next).unwrap();
    again.recover().unwrap();
    again.publish(&next).unwrap();
    assert_eq!(topic.values(), ["a", "b", "c"]);

    // The first process was not dead after all: it must not write any more.
    let zombie = writers[1].prepare(3).unwrap_err().to_string();
    assert!(
        zombie.contains("taken it over") || zombie.contains("cannot deliver"),
        "{zombie}"
    );
    let began = writers[0]
        .write(&batch(&["zombie"]))
        .and_then(|()| writers[0].prepare(3));
    if let Ok(committables) = began {
        // It has taken a new producer, which has taken over in its turn; nobody commits for it.
        assert_eq!(committables.len(), 1);
    }
    assert_eq!(topic.values(), ["a", "b", "c"]);
}

#[test]
fn a_transaction_that_timed_out_is_an_error_and_not_silence() {
    let Some(topic) = topic(1) else { return };
    let short = [&EXACTLY_ONCE[..], &[("properties.transaction.timeout.ms", "1000")]].concat();
    let first = topic.sink(&text(), &short);
    let mut writer = first.writer(0, 1).unwrap();
    let committables = write(&mut writer, &["late"], 1);
    while topic.stable_offset(0) == 0 {}
    for sink in [&topic.sink(&text(), &short), &first] {
        let message = sink.publish(&committables).unwrap_err().to_string();
        assert!(
            message.contains("rows are lost") && message.contains("transaction.timeout.ms"),
            "{message}"
        );
    }
    let ignoring = [&short[..], &[("sink.lost-transactions", "ignore")]].concat();
    topic.sink(&text(), &ignoring).publish(&committables).unwrap();
    assert_eq!(topic.values(), [""; 0]);
}

#[test]
fn exactly_once_needs_checkpoints() {
    let Some(topic) = topic(1) else { return };
    let without = sink(topic.table(&text(), &EXACTLY_ONCE).as_ref(), None);
    let message = without.writer(0, 1).err().unwrap().to_string();
    assert!(message.contains("needs checkpoints"), "{message}");
    let message = exactly_once(&topic)
        .publish(&[b"nonsense".to_vec()])
        .unwrap_err()
        .to_string();
    assert!(message.contains("nonsense"), "{message}");
}

#[test]
fn at_least_once_flushes_at_the_barrier() {
    let Some(topic) = topic(3) else { return };
    let options = [("format", "raw"), ("sink.partitioner", "round-robin")];
    let sink = topic.sink(&text(), &options);
    assert!(!sink.is_exactly_once());
    let mut writer = sink.writer(1, 2).unwrap();
    assert!(write(&mut writer, &["a", "b", "c"], 1).is_empty());
    assert_eq!(writer.held_bytes(), 0);
    let mut places: Vec<_> = topic
        .committed()
        .iter()
        .map(rdkafka::message::Message::partition)
        .collect();
    places.sort_unstable();
    assert_eq!(places, [0, 1, 2]);
    let fixed = topic.sink(&text(), &[("format", "raw"), ("sink.partitioner", "fixed")]);
    let mut writer = fixed.writer(4, 5).unwrap();
    writer.write(&batch(&["d", "e"])).unwrap();
    writer.finish().unwrap();
    let of_one = topic
        .committed()
        .into_iter()
        .filter(|record| rdkafka::Message::partition(record) == 1);
    assert_eq!(of_one.count(), 3);
    // A record that brokers do not take is an error that says so.
    let huge = "x".repeat(2 << 20);
    let message = writer.write(&batch(&[&huge])).unwrap_err().to_string();
    assert!(
        message.contains(&topic.name) && message.contains("2097152"),
        "{message}"
    );
}
