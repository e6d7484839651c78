//! The Yahoo streaming benchmark from Kafka to Redis under kills: ad events are filtered, joined with their campaigns and
//! counted by campaign and window of ten seconds. The test counts the events that it sends by itself.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use arrow::array::{AsArray, RecordBatch, UInt32Array};
use arrow::compute::{cast, concat_batches, take_record_batch};
use arrow::datatypes::{DataType, Int64Type};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;

use super::outputs::seed;
use super::process::{Job, PATIENCE};
use super::services::kafka::kafka;
use super::services::redis::Redis;
use super::topics::Topics;

const COLUMNS: &str = "user_id STRING, page_id STRING, ad_id BIGINT, ad_type STRING, event_type STRING, \
                       event_time TIMESTAMP(3), ip_address STRING";
const CAMPAIGNS: &str =
    "CREATE TABLE campaigns (ad_id BIGINT, campaign_id BIGINT) WITH ('connector' = 'ysb-campaigns')";
const WINDOW_MS: i64 = 10_000;
/// Events of a second of event time.
const RATE: usize = 100;
/// Events that are sent together. Their order is lost, which the watermark waits for.
const SLICE: usize = 200;

/// Counts by campaign and beginning of the window.
type Counts = BTreeMap<(i64, i64), i64>;

/// The events of a run, and where they go.
struct Place {
    folder: TempDir,
    topics: Topics,
    redis: Redis,
    slices: Vec<RecordBatch>,
    expected: Counts,
}

impl Place {
    /// `None` without a broker or Redis.
    fn new(seed: u64, slices: usize) -> Option<Self> {
        let topics = Topics::new(&kafka()?.bootstrap);
        let redis = Redis::start()?;
        topics.make("ads", 3);
        // Events lie where the hash of their user says.
        topics.run(&format!(
            "CREATE TABLE ads ({COLUMNS}) WITH ({}, 'format' = 'json', 'key.format' = 'raw', 'key.fields' = 'user_id')",
            topics.options("ads")
        ));
        topics.run(CAMPAIGNS);
        topics.run(&format!(
            "CREATE TABLE made WITH ('connector' = 'ysb', 'ysb.events' = '{}', 'ysb.event-time-rate' = '{RATE}', \
             'seed' = '{seed}')",
            slices * SLICE
        ));
        let made = collect(&topics, "SELECT * FROM made ORDER BY event_time");
        let expected = count(&made, &collect(&topics, "SELECT ad_id, campaign_id FROM campaigns"));
        let mut random = StdRng::seed_from_u64(seed);
        let slices = (0..slices).map(|number| {
            let mut order: Vec<u32> = (0..SLICE)
                .map(|row| u32::try_from(number * SLICE + row).unwrap())
                .collect();
            order.shuffle(&mut random);
            take_record_batch(&made, &UInt32Array::from(order)).unwrap()
        });
        Some(Self {
            folder: tempfile::tempdir().unwrap(),
            slices: slices.collect(),
            topics,
            redis,
            expected,
        })
    }

    fn feed(&self, number: usize) {
        let (name, slice) = (format!("slice_{number}"), &self.slices[number]);
        let session = self.topics.session();
        session
            .register_batches(&name, slice.schema(), vec![slice.clone()])
            .unwrap();
        self.topics.run(&format!("INSERT INTO ads SELECT * FROM {name}"));
    }

    /// Windows when they are complete, seen at once; and counts as they grow, seen with their checkpoints.
    fn job(&self, parallelism: usize) -> Job {
        let checkpoints = self.folder.path().join("checkpoints");
        let sink = |name: &str, isolation: &str| {
            format!(
                "CREATE TABLE {name} (campaign_id BIGINT, w BIGINT, n BIGINT, PRIMARY KEY (campaign_id, w) NOT ENFORCED) \
                 WITH ('connector' = 'redis', 'url' = '{}', 'sink.key-prefix' = '{name}:', 'sink.value-type' = 'string', \
                 'sink.isolation' = '{isolation}', 'sink.buffer-flush.interval' = '50 ms')",
                self.redis.url()
            )
        };
        let script = format!(
            "SET 'execution.runtime-mode' = 'streaming';
             SET 'execution.checkpointing.dir' = '{}';
             SET 'execution.checkpointing.interval' = '100 ms';
             SET 'pipeline.name' = 'counter';
             CREATE TABLE ads ({COLUMNS}, pt AS PROCTIME(), WATERMARK FOR event_time AS event_time - INTERVAL '3' SECOND)
             WITH ({}, 'format' = 'json', 'scan.startup.mode' = 'earliest-offset');
             {CAMPAIGNS};
             {};
             {};
             CREATE VIEW hits AS SELECT c.campaign_id AS campaign_id, e.event_time AS event_time
             FROM ads e JOIN campaigns FOR SYSTEM_TIME AS OF e.pt AS c ON e.ad_id = c.ad_id WHERE e.event_type = 'view';
             EXECUTE STATEMENT SET BEGIN
             INSERT INTO complete SELECT campaign_id, CAST(window_start AS BIGINT), COUNT(*)
             FROM TUMBLE(TABLE hits, DESCRIPTOR(event_time), INTERVAL '10' SECOND)
             GROUP BY campaign_id, window_start, window_end;
             INSERT INTO growing SELECT campaign_id, w, COUNT(*) FROM
             (SELECT campaign_id, CAST(event_time AS BIGINT) / {WINDOW_MS} * {WINDOW_MS} AS w FROM hits)
             GROUP BY campaign_id, w;
             END;\n",
            checkpoints.display(),
            self.topics.options("ads"),
            sink("complete", "read-uncommitted"),
            sink("growing", "read-committed"),
        );
        let file = self.folder.path().join("job.sql");
        std::fs::write(&file, script).unwrap();
        Job {
            script: file,
            name: "counter".into(),
            checkpoints,
            parallelism,
        }
    }

    /// What Redis holds.
    fn counts(&self, name: &str) -> Counts {
        let keys = self.redis.cli(&["--raw", "KEYS", &format!("{name}:*")]);
        let keys: Vec<&str> = keys.lines().collect();
        if keys.is_empty() {
            return Counts::new();
        }
        let values = self.redis.cli(&[&["--raw", "MGET"], keys.as_slice()].concat());
        let values: Vec<&str> = values.lines().collect();
        assert_eq!(keys.len(), values.len(), "a count is no number");
        let number = |text: &str| text.parse::<i64>().unwrap();
        let key_of = |key: &str| {
            let (campaign, window) = key[name.len() + 1..].split_once(':').unwrap();
            (number(campaign), number(window))
        };
        keys.iter()
            .zip(values)
            .map(|(key, value)| (key_of(key), number(value)))
            .collect()
    }

    #[track_caller]
    fn compare(&self, name: &str) {
        let found = self.counts(name);
        let wrong: Vec<_> = (self.expected.iter())
            .filter_map(|(key, count)| {
                found
                    .get(key)
                    .filter(|found| *found != count)
                    .map(|found| (key, count, found))
            })
            .collect();
        let missing: Vec<_> = self.expected.keys().filter(|key| !found.contains_key(*key)).collect();
        let extra: Vec<_> = found.keys().filter(|key| !self.expected.contains_key(*key)).collect();
        assert!(
            wrong.is_empty() && missing.is_empty() && extra.is_empty(),
            "{name}: of {} windows {} are wrong, {} missing, {} extra: wrong {:?}, missing {:?}, extra {:?}",
            self.expected.len(),
            wrong.len(),
            missing.len(),
            extra.len(),
            &wrong[..wrong.len().min(5)],
            &missing[..missing.len().min(5)],
            &extra[..extra.len().min(5)]
        );
    }

    /// Lets the job go on until everything is counted, completes what is open, and compares.
    fn end(&self) {
        let job = self.job(2);
        let mut running = job.start(None);
        let total: i64 = self.expected.values().sum();
        let start = Instant::now();
        // What counts too much is found below.
        while self.counts("growing").values().sum::<i64>() < total {
            assert!(running.is_alive(), "{}", running.log());
            if start.elapsed() > PATIENCE {
                self.compare("growing");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        job.drain(running, &self.folder.path().join("savepoints"));
        self.compare("complete");
        self.compare("growing");
    }
}

/// The rows of a query as one batch.
fn collect(topics: &Topics, query: &str) -> RecordBatch {
    let batches = topics.session().sql(query).unwrap().collect().unwrap();
    concat_batches(&batches[0].schema(), &batches).unwrap()
}

/// The views of each campaign and window, counted one by one.
fn count(events: &RecordBatch, ads: &RecordBatch) -> Counts {
    let numbers = |batch: &RecordBatch, name: &str| {
        let column = cast(batch.column_by_name(name).unwrap(), &DataType::Int64).unwrap();
        column.as_primitive::<Int64Type>().values().to_vec()
    };
    let campaigns: HashMap<i64, i64> = (numbers(ads, "ad_id").into_iter())
        .zip(numbers(ads, "campaign_id"))
        .collect();
    let types = cast(events.column_by_name("event_type").unwrap(), &DataType::Utf8).unwrap();
    let types = types.as_string::<i32>();
    let (ids, times) = (numbers(events, "ad_id"), numbers(events, "event_time"));
    let mut counts = Counts::new();
    for (row, (id, time)) in ids.iter().zip(times).enumerate() {
        if types.value(row) == "view" {
            let window = time.div_euclid(WINDOW_MS) * WINDOW_MS;
            *counts.entry((campaigns[id], window)).or_default() += 1;
        }
    }
    assert!(
        counts.len() > 100 && counts.values().any(|count| *count > 1),
        "{counts:?}"
    );
    counts
}

/// Counts under kills.
fn count_under_kills(seed: u64, kills: usize, slices: usize) {
    let Some(place) = Place::new(seed, slices) else { return };
    let mut random = StdRng::seed_from_u64(seed);
    let pause = Duration::from_millis((kills * 1000 / slices) as u64);
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let feeder = scope.spawn(|| {
            for number in 0..slices {
                place.feed(number);
                if !is_over.load(Ordering::Relaxed) {
                    std::thread::sleep(pause);
                }
            }
        });
        for killed in 0..kills {
            place.job([2, 3, 1][killed % 3]).run_and_kill(&mut random);
        }
        is_over.store(true, Ordering::Relaxed);
        feeder.join().unwrap();
    });
    place.end();
}

#[test]
fn every_window_is_counted_exactly() {
    count_under_kills(seed(), 6, 40);
}

/// The rows of a checkpoint go to Redis in one transaction when it is complete: killed before, between and after.
#[test]
fn every_window_is_counted_exactly_around_commits() {
    const POINTS: &[&str] = &[
        "after-snapshot",
        "after-manifest",
        "before-commit",
        "after-commit",
        "before-notify",
        "after-restore",
    ];
    let Some(place) = Place::new(seed() + 1, 2 * POINTS.len()) else {
        return;
    };
    let mut random = StdRng::seed_from_u64(seed());
    for (number, point) in POINTS.iter().enumerate() {
        let k = if *point == "after-restore" {
            1
        } else {
            random.random_range(1..4)
        };
        let mut running = place.job(2).start(Some(&format!("{point}:{k}")));
        place.feed(2 * number);
        place.feed(2 * number + 1);
        assert!(!running.ended().success());
        let word = format!("aborting at '{point}'");
        assert!(running.log().contains(&word), "{point}: {}", running.log());
    }
    place.end();
}

/// The long form: `cargo test --test recovery -- --ignored counted`, with `THALWEG_SEED` for other instants.
#[test]
#[ignore = "takes minutes"]
fn every_window_is_counted_exactly_when_killed_often() {
    count_under_kills(seed(), 100, 400);
}
