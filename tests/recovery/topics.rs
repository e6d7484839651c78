//! Topics of a broker: made, filled and read.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{Array, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Int64Type};
use thalweg::{RuntimeMode, Session, SessionConfig};

use super::process::PATIENCE;

/// A record that is committed.
#[derive(Debug)]
pub(crate) struct Record {
    pub(crate) partition: i64,
    pub(crate) offset: i64,
    pub(crate) key: Option<String>,
    /// `None`: the key is deleted.
    pub(crate) value: Option<String>,
}

/// The topics of one test, whose names have a number of their own.
pub(crate) struct Topics {
    pub(crate) servers: String,
    number: usize,
    /// What fills and reads them.
    session: Session,
}

impl Topics {
    pub(crate) fn new(servers: &str) -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        Self {
            servers: servers.to_string(),
            number: COUNT.fetch_add(1, Ordering::Relaxed),
            session: batch_session(),
        }
    }

    /// The name that topic `name` of this test has.
    pub(crate) fn topic(&self, name: &str) -> String {
        format!("kill-{}-{name}", self.number)
    }

    /// Makes a topic.
    pub(crate) fn make(&self, name: &str, partitions: i32) {
        create_topic(&self.servers, &self.topic(name), partitions);
        let topic = self.options(name);
        self.run(&format!(
            "CREATE TABLE {name}_raw (k STRING, payload STRING, p INT METADATA FROM 'partition' VIRTUAL, \
             o BIGINT METADATA FROM 'offset' VIRTUAL) WITH ({topic}, 'format' = 'raw', 'key.format' = 'raw', \
             'key.fields' = 'k', 'value.fields-include' = 'EXCEPT_KEY', 'scan.startup.mode' = 'earliest-offset', \
             'scan.bounded.mode' = 'latest-offset')"
        ));
        // The broker hears of it a little later than its controller does.
        let start = Instant::now();
        while let Err(error) = self.count(name) {
            let is_unknown = error.to_string().contains("there is no topic");
            assert!(is_unknown && start.elapsed() < PATIENCE, "{error}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// The options that name a topic.
    pub(crate) fn options(&self, name: &str) -> String {
        format!(
            "'connector' = 'kafka', 'topic' = '{}', 'properties.bootstrap.servers' = '{}'",
            self.topic(name),
            self.servers
        )
    }

    /// Executes a statement to its end.
    pub(crate) fn run(&self, sql: &str) {
        self.session.execute(sql).unwrap().collect().unwrap();
    }

    /// The session, to register tables.
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// How many records are committed.
    pub(crate) fn committed(&self, name: &str) -> usize {
        self.count(name).unwrap()
    }

    fn count(&self, name: &str) -> thalweg::Result<usize> {
        let query = format!("SELECT COUNT(*) FROM {name}_raw");
        let batches = self.session.sql(&query)?.collect()?;
        let count = batches[0].column(0).as_primitive::<Int64Type>().value(0);
        Ok(usize::try_from(count).unwrap())
    }

    /// The committed records, in the order of their offsets.
    pub(crate) fn records(&self, name: &str) -> Vec<Record> {
        let query = format!("SELECT CAST(p AS BIGINT), o, k, payload FROM {name}_raw");
        let mut records = Vec::new();
        for batch in self.session.sql(&query).unwrap().collect().unwrap() {
            let number = |column: usize, row: usize| batch.column(column).as_primitive::<Int64Type>().value(row);
            let texts = [2, 3].map(|column| cast(batch.column(column), &DataType::Utf8).unwrap());
            let text = |column: usize, row: usize| {
                let texts = texts[column].as_string::<i32>();
                texts.is_valid(row).then(|| texts.value(row).to_string())
            };
            records.extend((0..batch.num_rows()).map(|row| Record {
                partition: number(0, row),
                offset: number(1, row),
                key: text(0, row),
                value: text(1, row),
            }));
        }
        records.sort_by_key(|record| (record.partition, record.offset));
        records
    }
}

/// A session whose statements end.
pub(crate) fn batch_session() -> Session {
    let config = SessionConfig {
        runtime_mode: RuntimeMode::Batch,
        parallelism: 1,
        ..SessionConfig::default()
    };
    Session::new(config).unwrap()
}

/// Asks a broker of one node for a topic: `CreateTopics`, version 2. Java's command takes seconds for each.
fn create_topic(servers: &str, name: &str, partitions: i32) {
    let text = |text: &str| {
        let mut bytes = i16::try_from(text.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes
    };
    let mut request = Vec::new();
    // The call, its version, its number, whose it is.
    request.extend([0, 19, 0, 2, 0, 0, 0, 1]);
    request.extend(text("tests"));
    // One topic.
    request.extend(1_i32.to_be_bytes());
    request.extend(text(name));
    request.extend(partitions.to_be_bytes());
    // One replica, wherever; no settings; within 30 s; and not only checked.
    request.extend(1_i16.to_be_bytes());
    request.extend([0; 8]);
    request.extend(30_000_i32.to_be_bytes());
    request.push(0);
    let mut broker = TcpStream::connect(servers).unwrap();
    let length = i32::try_from(request.len()).unwrap();
    broker.write_all(&length.to_be_bytes()).unwrap();
    broker.write_all(&request).unwrap();
    let mut length = [0; 4];
    broker.read_exact(&mut length).unwrap();
    let mut answer = vec![0; usize::try_from(i32::from_be_bytes(length)).unwrap()];
    broker.read_exact(&mut answer).unwrap();
    // Its number, a delay, one topic, its name; then what went wrong.
    let code = &answer[12 + 2 + name.len()..][..2];
    assert_eq!(code, [0, 0], "topic {name} was not made: {answer:?}");
}
