//! Kafka to Kafka: a job that reads a topic of three partitions and writes transactions is killed at random instants and at the
//! fault points, while rows arrive. What is committed in the end is what a batch query over the same rows gives.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use thalweg::Session;

use super::events::{FILE_ROWS, put};
use super::outputs::{APPENDED, CHANGED, compare, counted, row_of, rows, seed};
use super::process::{Job, PATIENCE, Running};
use super::services::kafka::kafka;
use super::topics::{Topics, batch_session};

/// Of [`APPENDED`], those that are written to topics.
const LOGGED: &[&str] = &["passed", "tumbling", "sessions", "intervals", "firsts"];
/// Of [`CHANGED`], those that are written as changes.
const TOLD: &[&str] = &["pairs", "top"];
/// The newest row of each key: name, columns, query. A key is never NULL.
const KEPT: (&str, &str, &str) = (
    "totals",
    "k STRING, n BIGINT, total BIGINT, most BIGINT",
    "SELECT k, COUNT(*), SUM(v), MAX(v) FROM (SELECT COALESCE(k, 'none') AS k, v FROM events) GROUP BY k",
);
const COLUMNS: &str = "id BIGINT, k STRING, v BIGINT, ts TIMESTAMP(3)";
/// Where a kill matters to transactions: between their rows, their checkpoint and their commit.
const POINTS: &[&str] = &[
    "before-barrier",
    "after-barrier",
    "after-snapshot",
    "before-acknowledge",
    "before-manifest",
    "after-manifest",
    "before-commit",
    "after-commit",
    "before-notify",
    "after-notify",
    "after-restore",
];

type Output = (&'static str, &'static str, &'static str);

fn named(outputs: &'static [Output], names: &'static [&str]) -> impl Iterator<Item = &'static Output> {
    outputs.iter().filter(|output| names.contains(&output.0))
}

/// The rows of one run, in files and in topics.
struct Place {
    folder: TempDir,
    topics: Topics,
    seed: u64,
    files: usize,
}

impl Place {
    /// `None` without a broker.
    fn new(seed: u64, files: usize) -> Option<Self> {
        let topics = Topics::new(&kafka()?.bootstrap);
        topics.make("events", 3);
        for (name, ..) in named(APPENDED, LOGGED).chain(named(CHANGED, TOLD)).chain([&KEPT]) {
            topics.make(name, 2);
        }
        // Rows lie where the hash of their ids says: those of a key, and of an instant, in all partitions.
        topics.run(&format!(
            "CREATE TABLE events ({COLUMNS}) WITH ({}, 'format' = 'json', 'key.format' = 'json', 'key.fields' = 'id')",
            topics.options("events")
        ));
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("in")).unwrap();
        Some(Self {
            folder,
            topics,
            seed,
            files,
        })
    }

    /// A table over the rows, as files.
    fn create(&self, session: &Session, name: &str, path: &str) {
        let path = self.folder.path().join("in").join(path);
        let sql = format!(
            "CREATE TABLE {name} ({COLUMNS}) WITH ('connector' = 'filesystem', 'path' = '{}', 'format' = 'csv', \
             'csv.header' = 'false')",
            path.display()
        );
        session.execute(&sql).unwrap();
    }

    /// Sends the rows of a file to the topic.
    fn feed(&self, number: usize) {
        put(&self.folder.path().join("in"), self.seed, number);
        self.create(self.topics.session(), "file", &format!("{number:05}.csv"));
        self.topics.run("INSERT INTO events SELECT * FROM file");
        self.topics.run("DROP TABLE file");
    }

    /// The job: settings, tables, one statement set.
    fn job(&self, parallelism: usize, settings: &[(&str, &str)]) -> Job {
        let path = self.folder.path();
        let checkpoints = path.join("checkpoints");
        let own = [
            ("execution.runtime-mode", "streaming"),
            ("execution.checkpointing.dir", checkpoints.to_str().unwrap()),
            ("execution.checkpointing.interval", "100 ms"),
            ("pipeline.name", "killed"),
        ];
        let mut script = String::new();
        for (key, value) in own.iter().chain(settings) {
            script += &format!("SET '{key}' = '{value}';\n");
        }
        script += &format!(
            "CREATE TABLE events ({COLUMNS}, WATERMARK FOR ts AS ts - INTERVAL '1' SECOND) WITH ({}, 'format' = 'json', \
             'scan.startup.mode' = 'earliest-offset');\n",
            self.topics.options("events")
        );
        let mut inserts = String::new();
        let mut add = |(name, columns, query): &Output, more: &str| {
            // Job names are alike, so the ids of transactions are told apart by their topics.
            let options = self.topics.options(name);
            let options = if name == &KEPT.0 {
                options.replace("'kafka'", "'upsert-kafka'")
            } else {
                options
            };
            script += &format!("CREATE TABLE {name} ({columns}{more}, 'sink.delivery-guarantee' = 'exactly-once'")
                .replace("{options}", &options);
            script += ");\n";
            inserts += &format!("INSERT INTO {name} {query};\n");
        };
        for output in named(APPENDED, LOGGED) {
            add(output, ") WITH ({options}, 'format' = 'json'");
        }
        for output in named(CHANGED, TOLD) {
            add(output, ") WITH ({options}, 'format' = 'debezium-json'");
        }
        add(
            &KEPT,
            ", PRIMARY KEY (k) NOT ENFORCED) WITH ({options}, 'key.format' = 'raw', 'value.format' = 'json'",
        );
        script += &format!("EXECUTE STATEMENT SET BEGIN\n{inserts}END;\n");
        let file = path.join("job.sql");
        std::fs::write(&file, script).unwrap();
        Job {
            script: file,
            name: "killed".into(),
            checkpoints,
            parallelism,
        }
    }

    /// Waits until everything has passed, completes what is open, and compares what is committed.
    fn end(&self, job: &Job, mut running: Running) {
        let start = Instant::now();
        loop {
            let passed = self.topics.committed("passed");
            // More would be found by the comparison.
            if passed >= self.files * FILE_ROWS {
                break;
            }
            assert!(running.is_alive(), "{}", running.log());
            assert!(
                start.elapsed() < PATIENCE,
                "{passed} rows have passed: {}",
                running.log()
            );
            std::thread::sleep(Duration::from_millis(100));
        }
        job.drain(running, &self.folder.path().join("savepoints"));
        self.check();
    }

    fn check(&self) {
        let session = batch_session();
        self.create(&session, "events", "");
        for (name, columns, query) in named(APPENDED, LOGGED) {
            let written = self.topics.records(name);
            let written = written
                .iter()
                .map(|record| row_of(record.value.as_deref().unwrap(), columns));
            compare(name, &counted(written), &rows(&session, query));
        }
        for (name, columns, query) in named(CHANGED, TOLD) {
            let mut folded: BTreeMap<Vec<String>, i64> = BTreeMap::new();
            for record in self.topics.records(name) {
                let change: serde_json::Value = serde_json::from_str(&record.value.unwrap()).unwrap();
                for (side, sign) in [("before", -1), ("after", 1)] {
                    if !change[side].is_null() {
                        *folded.entry(row_of(&change[side].to_string(), columns)).or_default() += sign;
                    }
                }
            }
            folded.retain(|_, count| *count != 0);
            compare(name, &folded, &rows(&session, query));
        }
        let (name, columns, query) = KEPT;
        let mut newest = BTreeMap::new();
        for record in self.topics.records(name) {
            newest.insert(record.key.unwrap(), record.value);
        }
        let newest = newest.values().flatten().map(|row| row_of(row, columns));
        compare(name, &counted(newest), &rows(&session, query));
    }
}

/// Runs a job while rows arrive and it is killed at random, until it has been killed so often.
fn killed_at_random(
    seed: u64,
    kills: usize,
    files: usize,
    parallelism: impl Fn(usize) -> usize,
    settings: &[(&str, &str)],
) {
    let Some(place) = Place::new(seed, files) else { return };
    let mut random = StdRng::seed_from_u64(seed);
    let pause = Duration::from_millis((kills * 1000 / files) as u64);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        // Rows arrive all the time, so that every kill finds something under way.
        let feeder = scope.spawn(|| {
            for number in 0..files {
                place.feed(number);
                if !is_over.load(Ordering::Relaxed) {
                    std::thread::sleep(pause);
                }
            }
        });
        for killed in 0..kills {
            place.job(parallelism(killed), settings).run_and_kill(&mut random);
        }
        is_over.store(true, Ordering::Relaxed);
        feeder.join().unwrap();
    });
    let job = place.job(parallelism(kills), settings);
    let running = job.start(None);
    place.end(&job, running);
}

#[test]
fn killed_between_topics() {
    killed_at_random(seed(), 6, 30, |run| [2, 2, 3, 1][run % 4], &[]);
}

#[test]
fn killed_unaligned_between_topics() {
    let unaligned = [("execution.checkpointing.unaligned.enabled", "true")];
    killed_at_random(seed() + 3, 4, 20, |run| [3, 2, 1, 2][run % 4], &unaligned);
}

/// The long form: `cargo test --test recovery -- --ignored killed_often_between_topics`, with `THALWEG_SEED` for other
/// instants and `THALWEG_KILLS` for more of them.
#[test]
#[ignore = "takes minutes"]
fn killed_often_between_topics() {
    let kills = std::env::var("THALWEG_KILLS").ok().and_then(|text| text.parse().ok());
    let kills: usize = kills.unwrap_or(100);
    let unaligned = [
        ("execution.checkpointing.unaligned.enabled", "true"),
        ("execution.checkpointing.aligned-checkpoint-timeout", "5 ms"),
    ];
    killed_at_random(seed(), kills / 2, kills * 2, |run| [2, 1, 3, 7, 2][run / 10 % 5], &[]);
    killed_at_random(
        seed() + 1,
        kills - kills / 2,
        kills * 2,
        |run| [2, 3, 1][run / 10 % 3],
        &unaligned,
    );
}

#[test]
fn killed_around_commits() {
    let Some(place) = Place::new(seed() + 2, POINTS.len() + 1) else {
        return;
    };
    let mut random = StdRng::seed_from_u64(seed());
    for (number, point) in POINTS.iter().enumerate() {
        let k = match *point {
            // Once for each subtask.
            "after-restore" => 1,
            _ => random.random_range(1..4),
        };
        let job = place.job(2, &[]);
        let mut running = job.start(Some(&format!("{point}:{k}")));
        place.feed(number);
        // It ends by the fault, or never.
        let status = running.ended();
        assert!(!status.success());
        let word = format!("aborting at '{point}'");
        assert!(running.log().contains(&word), "{point}: {}", running.log());
    }
    place.feed(POINTS.len());
    let job = place.job(2, &[]);
    let running = job.start(None);
    place.end(&job, running);
}
