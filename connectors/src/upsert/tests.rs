use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray, UInt8Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use async_trait::async_trait;
use parking_lot::Mutex;
use proptest::prelude::*;
use thalweg_engine::data::with_row_kind;
use thalweg_engine::operator::{PreparedSink, SinkJob};
use thalweg_engine::time::ManualClock;
use thalweg_engine::{Batch, Result};
use tokio::runtime::Handle;

use super::*;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int64, true),
        Field::new("v", DataType::Utf8, true),
    ]))
}

/// Changes of a table, as kind, key and value.
fn changelog(rows: &[(u8, i64, &str)]) -> Batch {
    let k: ArrayRef = Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.1)));
    let v: ArrayRef = Arc::new(StringArray::from_iter_values(rows.iter().map(|row| row.2)));
    let kinds: ArrayRef = Arc::new(UInt8Array::from_iter_values(rows.iter().map(|row| row.0)));
    Batch::try_new(with_row_kind(&schema()), vec![k, v, kinds]).unwrap()
}

fn buffer() -> UpsertBuffer {
    UpsertBuffer::try_new(schema(), vec![0]).unwrap()
}

fn rows_of(batch: &Batch) -> Vec<(i64, String)> {
    let keys = batch.column(0).as_primitive::<Int64Type>().values().iter().copied();
    let values = batch
        .column(1)
        .as_string::<i32>()
        .iter()
        .map(|v| v.unwrap().to_string());
    keys.zip(values).collect()
}

fn keys_of(batch: &Batch) -> Vec<i64> {
    batch.column(0).as_primitive::<Int64Type>().values().to_vec()
}

#[test]
fn of_each_key_the_last_change_counts() {
    let mut buffer = buffer();
    buffer
        .push(&changelog(&[(0, 1, "a"), (0, 2, "b"), (1, 1, "a"), (2, 1, "c")]))
        .unwrap();
    buffer
        .push(&changelog(&[(3, 2, "b"), (0, 3, "d"), (3, 3, "d"), (0, 3, "e")]))
        .unwrap();
    assert_eq!(buffer.rows(), 8);
    assert!(buffer.bytes() > 0);
    let changes = buffer.take(true).unwrap();
    assert_eq!(rows_of(&changes.upserts), [(1, "c".into()), (3, "e".into())]);
    assert_eq!(keys_of(&changes.deletes), [2]);
    assert_eq!((buffer.rows(), buffer.bytes()), (0, 0));
    assert!(buffer.take(true).unwrap().is_empty());
}

#[test]
fn a_row_that_waits_for_its_new_form_is_not_seen_missing() {
    let mut buffer = buffer();
    buffer.push(&changelog(&[(0, 1, "a"), (1, 2, "b")])).unwrap();
    let changes = buffer.take(false).unwrap();
    assert_eq!(
        (rows_of(&changes.upserts).len(), keys_of(&changes.deletes).len()),
        (1, 0)
    );
    assert_eq!(buffer.rows(), 1, "the old form of 2 waits");
    buffer.push(&changelog(&[(2, 2, "c")])).unwrap();
    assert_eq!(rows_of(&buffer.take(false).unwrap().upserts), [(2, "c".into())]);
    // At a barrier it has gone: the row has another key now.
    buffer.push(&changelog(&[(1, 2, "c")])).unwrap();
    assert_eq!(keys_of(&buffer.take(true).unwrap().deletes), [2]);
}

#[test]
fn a_key_is_never_null_and_values_that_do_not_fit_are_errors() {
    let k: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None]));
    let v: ArrayRef = Arc::new(StringArray::from(vec!["a", "b"]));
    let batch = Batch::try_new(schema(), vec![k, v]).unwrap();
    let error = buffer().push(&batch).unwrap_err().to_string();
    assert!(error.contains("'k'") && error.contains("NULL"), "{error}");
    let narrow = Arc::new(Schema::new(vec![Field::new("k", DataType::Int16, true)]));
    let k: ArrayRef = Arc::new(Int64Array::from(vec![70_000]));
    let wide = Batch::try_from_iter([("k", k)]).unwrap();
    assert!(UpsertBuffer::try_new(narrow, vec![0]).unwrap().push(&wide).is_err());
}

#[test]
fn without_a_key_rows_keep_their_order_and_number() {
    let mut buffer = UpsertBuffer::try_new(schema(), Vec::new()).unwrap();
    buffer.push(&changelog(&[(0, 2, "a"), (0, 1, "b")])).unwrap();
    buffer.push(&changelog(&[(0, 2, "a")])).unwrap();
    let changes = buffer.take(true).unwrap();
    assert_eq!(
        rows_of(&changes.upserts),
        [(2, "a".into()), (1, "b".into()), (2, "a".into())]
    );
    assert!(changes.key().is_empty() && changes.deletes.num_rows() == 0);
    assert!(buffer.push(&changelog(&[(3, 2, "a")])).is_err());
}

#[test]
fn a_committable_comes_back_and_a_damaged_one_is_an_error() {
    let mut buffer = buffer();
    buffer.push(&changelog(&[(0, 1, "a"), (3, 2, "b")])).unwrap();
    for changes in [buffer.take(true).unwrap(), buffer.take(true).unwrap()] {
        let mark = Mark::new("job", "run", 3, 7);
        let bytes = Prepared {
            mark: mark.clone(),
            changes: changes.clone(),
        };
        let bytes = bytes.encode().unwrap();
        let back = Prepared::decode(&bytes).unwrap();
        assert_eq!(back.mark, mark);
        assert_eq!(
            (&back.changes.upserts, &back.changes.deletes),
            (&changes.upserts, &changes.deletes)
        );
        assert_eq!(back.changes.key(), ["k"]);
        for cut in 0..bytes.len() {
            assert!(Prepared::decode(&bytes[..cut]).is_err(), "cut at {cut}");
        }
        assert!(Prepared::decode(&[bytes.as_slice(), &[0]].concat()).is_err());
    }
    let newer = br#"{"version":9,"job":"j","run":"r","subtask":0,"checkpoint":1}"#;
    let newer = [(newer.len() as u64).to_le_bytes().as_slice(), newer].concat();
    assert!(Prepared::decode(&newer).unwrap_err().to_string().contains("form 9"));
}

/// A database in memory: rows by key, and the marks.
#[derive(Debug, Default)]
struct Database {
    rows: Mutex<BTreeMap<i64, String>>,
    /// By run and subtask the last checkpoint.
    marks: Mutex<BTreeMap<(String, usize), u64>>,
    /// So many next calls fail before they do anything, and so many after.
    failing: Mutex<(u32, u32)>,
}

struct Connected(Arc<Database>);

impl Database {
    fn write(&self, changes: &Changes) {
        let mut rows = self.rows.lock();
        keys_of(&changes.deletes)
            .into_iter()
            .for_each(|key| drop(rows.remove(&key)));
        rows.extend(rows_of(&changes.upserts));
    }

    fn rows(&self) -> Vec<(i64, String)> {
        self.rows.lock().clone().into_iter().collect()
    }

    fn fails(&self, before: bool) -> std::result::Result<(), Failure> {
        let mut failing = self.failing.lock();
        let left = if before { &mut failing.0 } else { &mut failing.1 };
        match *left {
            0 => Ok(()),
            _ => {
                *left -= 1;
                Err(Failure::Again("gone".into()))
            }
        }
    }
}

#[derive(Debug)]
struct TestStore(Arc<Database>);

#[async_trait]
impl Store for TestStore {
    fn describe(&self) -> String {
        "database".into()
    }

    async fn connect(&self) -> std::result::Result<Box<dyn Session>, Failure> {
        Ok(Box::new(Connected(Arc::clone(&self.0))))
    }
}

#[async_trait]
impl Session for Connected {
    async fn apply(&mut self, changes: &Changes) -> std::result::Result<(), Failure> {
        self.0.fails(true)?;
        self.0.write(changes);
        self.0.fails(false)
    }

    async fn commit(&mut self, prepared: &[Prepared]) -> std::result::Result<(), Failure> {
        self.0.fails(true)?;
        for Prepared { mark, changes } in prepared {
            let key = (mark.run.clone(), mark.subtask);
            let last = self.0.marks.lock().get(&key).copied();
            if last.is_none_or(|last| last < mark.checkpoint) {
                self.0.write(changes);
                self.0.marks.lock().insert(key, mark.checkpoint);
            }
        }
        self.0.fails(false)
    }

    async fn recover(&mut self) -> std::result::Result<(), Failure> {
        Ok(())
    }
}

fn sink(
    database: &Arc<Database>,
    clock: &Arc<ManualClock>,
    isolation: Isolation,
    checkpoints: bool,
) -> Result<UpsertSink> {
    let options = UpsertOptions {
        isolation,
        max_rows: 3,
        interval_ms: 1000,
        max_retries: 2,
        key: vec!["k".into()],
    };
    let job = SinkJob {
        job: "j1".into(),
        io: Handle::current(),
        runtime: Arc::default(),
        clock: Arc::clone(clock) as _,
        endless: true,
        checkpointed: checkpoints.then(|| "job".into()),
    };
    UpsertSink::try_new(Arc::new(TestStore(Arc::clone(database))), options, schema(), &job)
}

#[tokio::test(flavor = "multi_thread")]
async fn uncommitted_rows_are_seen_when_there_are_enough_or_they_have_waited() {
    let (database, clock) = (Arc::<Database>::default(), Arc::<ManualClock>::default());
    let sink = sink(&database, &clock, Isolation::ReadUncommitted, true).unwrap();
    assert!(sink.is_exactly_once());
    let mut writer = sink.writer(0, 1).unwrap();
    assert_eq!(writer.next_roll_ms(), None);
    writer.write(&changelog(&[(0, 1, "a"), (0, 2, "b")])).unwrap();
    assert!(database.rows().is_empty());
    assert_eq!(writer.next_roll_ms(), Some(1000));
    clock.advance(std::time::Duration::from_millis(1000));
    writer.roll().unwrap();
    assert_eq!(database.rows().len(), 2);
    assert_eq!(writer.next_roll_ms(), None);
    writer
        .write(&changelog(&[(0, 3, "a"), (0, 4, "b"), (3, 1, "a")]))
        .unwrap();
    assert_eq!(database.rows().len(), 3);
    writer.write(&changelog(&[(0, 5, "c")])).unwrap();
    assert!(writer.prepare(1).unwrap().is_empty());
    assert_eq!(database.rows().len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_rows_are_seen_once_however_often_they_are_published() {
    let (database, clock) = (Arc::<Database>::default(), Arc::<ManualClock>::default());
    let first = sink(&database, &clock, Isolation::ReadCommitted, true).unwrap();
    let mut writer = first.writer(0, 1).unwrap();
    writer
        .write(&changelog(&[(0, 1, "a"), (0, 2, "b"), (0, 3, "c"), (0, 4, "d")]))
        .unwrap();
    writer.relieve().unwrap();
    assert_eq!(writer.next_roll_ms(), None);
    let one = writer.prepare(1).unwrap();
    writer.write(&changelog(&[(3, 1, "a")])).unwrap();
    let two = writer.prepare(2).unwrap();
    assert!(writer.prepare(3).unwrap().is_empty(), "nothing was written");
    assert!(database.rows().is_empty());
    // Another process publishes, all at once and in any order.
    let second = sink(&database, &clock, Isolation::ReadCommitted, true).unwrap();
    second.publish(&[two.clone(), one.clone()].concat()).unwrap();
    assert_eq!(keys(&database), [2, 3, 4]);
    second.recover().unwrap();
    second.publish(&one).unwrap();
    first.publish(&two).unwrap();
    assert_eq!(keys(&database), [2, 3, 4]);
    // A run that takes the job up again counts by itself.
    let mut writer = second.writer(0, 1).unwrap();
    writer.write(&changelog(&[(0, 9, "z")])).unwrap();
    second.publish(&writer.prepare(1).unwrap()).unwrap();
    assert_eq!(keys(&database), [2, 3, 4, 9]);
    assert!(writer.finish().is_err(), "a job with checkpoints prepares");
}

fn keys(database: &Database) -> Vec<i64> {
    database.rows().into_iter().map(|(key, _)| key).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_tried_again_and_not_for_ever() {
    let (database, clock) = (Arc::<Database>::default(), Arc::<ManualClock>::default());
    let sink = sink(&database, &clock, Isolation::ReadUncommitted, true).unwrap();
    let mut writer = sink.writer(0, 1).unwrap();
    *database.failing.lock() = (1, 1);
    writer.write(&changelog(&[(0, 1, "a")])).unwrap();
    writer.prepare(1).unwrap();
    assert_eq!(keys(&database), [1]);
    assert_eq!(*database.failing.lock(), (0, 0), "both failures happened");
    *database.failing.lock() = (3, 0);
    writer.write(&changelog(&[(0, 2, "a")])).unwrap();
    let error = writer.prepare(2).unwrap_err().to_string();
    assert!(
        error.contains("database: gone (after 3 attempts") && error.contains("sink.max-retries"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn committed_rows_without_checkpoints_need_an_end() {
    let (database, clock) = (Arc::<Database>::default(), Arc::<ManualClock>::default());
    let error = sink(&database, &clock, Isolation::ReadCommitted, false)
        .unwrap_err()
        .to_string();
    assert!(error.contains("execution.checkpointing.interval"), "{error}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the batches, the flushes and the compactions are: what is written gives the table that the changelog describes.
    #[test]
    fn buffers_describe_the_table(batches in proptest::collection::vec(
        (proptest::collection::vec((0..6i64, 0..3u8), 0..8), 0..3u8), 0..12)
    ) {
        let mut table: BTreeMap<i64, String> = BTreeMap::new();
        let database = Database::default();
        let mut buffer = buffer();
        let mut count = 0;
        for (changes, then) in batches {
            let mut rows: Vec<(u8, i64, String)> = Vec::new();
            for (key, change) in changes {
                count += 1;
                match (table.get(&key).cloned(), change) {
                    (Some(old), 0) => {
                        rows.push((3, key, old));
                        table.remove(&key);
                    }
                    (Some(old), _) => {
                        rows.push((1, key, old));
                        rows.push((2, key, count.to_string()));
                        table.insert(key, count.to_string());
                    }
                    (None, _) => {
                        rows.push((0, key, count.to_string()));
                        table.insert(key, count.to_string());
                    }
                }
            }
            let rows: Vec<(u8, i64, &str)> = rows.iter().map(|(kind, key, v)| (*kind, *key, v.as_str())).collect();
            buffer.push(&changelog(&rows)).unwrap();
            match then {
                0 => buffer.compact().unwrap(),
                1 => database.write(&buffer.take(false).unwrap()),
                _ => database.write(&buffer.take(true).unwrap()),
            }
        }
        let rest = buffer.take(true).unwrap();
        let encoded = Prepared { mark: Mark::new("j", "r", 0, 1), changes: rest }.encode().unwrap();
        database.write(&Prepared::decode(&encoded).unwrap().changes);
        prop_assert_eq!(database.rows(), table.into_iter().collect::<Vec<_>>());
    }
}
