//! Files to files: windows, sessions, joins, changelogs, top-n, OVER and deduplication in one job, which is killed at random
//! instants, and at each fault point.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tempfile::TempDir;
use thalweg::{RuntimeMode, Session, SessionConfig};
use thalweg_engine::checkpoint::fault;

use super::events::{FILE_ROWS, put};
use super::outputs::{APPENDED, CHANGED, compare, counted, row_of, rows, seed};
use super::process::{Job, PATIENCE, Running};

/// Folders of one run.
struct Place {
    folder: TempDir,
    seed: u64,
    files: usize,
}

impl Place {
    fn new(seed: u64, files: usize) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("in")).unwrap();
        Self { folder, seed, files }
    }

    fn input(&self) -> std::path::PathBuf {
        self.folder.path().join("in")
    }

    fn events(&self, watched: bool) -> String {
        let watched = if watched {
            ", 'source.monitor-interval' = '10 ms'"
        } else {
            ""
        };
        format!(
            "CREATE TABLE events (id BIGINT, k STRING, v BIGINT, ts TIMESTAMP(3), \
             WATERMARK FOR ts AS ts - INTERVAL '1' SECOND) WITH ('connector' = 'filesystem', 'path' = '{}/', \
             'format' = 'csv', 'csv.header' = 'false'{watched})",
            self.input().display()
        )
    }

    /// The job: settings, tables, one statement set.
    fn job(&self, parallelism: usize, settings: &[(&str, &str)]) -> Job {
        let path = self.folder.path();
        let mut script = String::new();
        let checkpoints = path.join("checkpoints");
        let own = [
            ("execution.runtime-mode", "streaming"),
            ("execution.checkpointing.dir", checkpoints.to_str().unwrap()),
            ("execution.checkpointing.interval", "40 ms"),
            ("pipeline.name", "killed"),
        ];
        for (key, value) in own.iter().chain(settings) {
            script += &format!("SET '{key}' = '{value}';\n");
        }
        script += &format!("{};\n", self.events(true));
        let mut inserts = String::new();
        for (name, columns, query) in APPENDED {
            script += &sink(path, name, columns, "json");
            inserts += &format!("INSERT INTO {name} {query};\n");
        }
        for (name, columns, query) in CHANGED {
            script += &sink(path, name, columns, "debezium-json");
            inserts += &format!("INSERT INTO {name} {query};\n");
        }
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

    /// How many rows have passed through, as far as anybody sees.
    fn passed(&self) -> usize {
        lines(&self.folder.path().join("passed")).len()
    }

    fn wait_until_all_have_passed(&self, running: &mut Running) {
        let start = Instant::now();
        while self.passed() < self.files * FILE_ROWS {
            assert!(running.is_alive(), "{}", running.log());
            assert!(
                start.elapsed() < PATIENCE,
                "{} rows have passed: {}",
                self.passed(),
                running.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Compares what the job has written with what a batch query over the same files gives.
    fn check(&self) {
        let config = SessionConfig {
            runtime_mode: RuntimeMode::Batch,
            parallelism: 1,
            ..SessionConfig::default()
        };
        let session = Session::new(config).unwrap();
        session.execute(&self.events(false)).unwrap();
        for (name, columns, query) in APPENDED {
            let written = lines(&self.folder.path().join(name));
            compare(
                name,
                &counted(written.iter().map(|line| row_of(line, columns))),
                &rows(&session, query),
            );
        }
        for (name, columns, query) in CHANGED {
            let mut folded: BTreeMap<Vec<String>, i64> = BTreeMap::new();
            for line in lines(&self.folder.path().join(name)) {
                let change: serde_json::Value = serde_json::from_str(&line).unwrap();
                for (side, sign) in [("before", -1), ("after", 1)] {
                    if !change[side].is_null() {
                        *folded.entry(row_of(&change[side].to_string(), columns)).or_default() += sign;
                    }
                }
            }
            folded.retain(|_, count| *count != 0);
            compare(name, &folded, &rows(&session, query));
        }
    }
}

fn sink(path: &Path, name: &str, columns: &str, format: &str) -> String {
    format!(
        "CREATE TABLE {name} ({columns}) WITH ('connector' = 'filesystem', 'path' = '{}/', 'format' = '{format}');\n",
        path.join(name).display()
    )
}

/// The lines of all files of a folder that a reader of the folder would read.
fn lines(folder: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with(['.', '_']) || path.is_dir() {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        lines.extend(text.lines().map(str::to_string));
    }
    lines
}

/// Runs a job while files arrive and it is killed at random, until it has been killed so often.
fn killed_at_random(
    seed: u64,
    kills: usize,
    files: usize,
    parallelism: impl Fn(usize) -> usize,
    settings: &[(&str, &str)],
) {
    let place = Place::new(seed, files);
    let mut random = StdRng::seed_from_u64(seed);
    let mut killed = 0;
    let mut put_files = 0;
    while killed < kills {
        let job = place.job(parallelism(killed), settings);
        let running = job.start(None);
        // Files arrive all the time, so that every kill finds something under way.
        let share = (files - put_files).min(files.div_ceil(kills));
        for number in put_files..put_files + share {
            put(&place.input(), seed, number);
        }
        put_files += share;
        std::thread::sleep(Duration::from_millis(random.random_range(5..900)));
        assert!(
            running.kill(),
            "it ended by itself: {}",
            std::fs::read_to_string(job.script.with_extension("log")).unwrap()
        );
        killed += 1;
    }
    for number in put_files..files {
        put(&place.input(), seed, number);
    }
    let job = place.job(parallelism(killed), settings);
    let mut running = job.start(None);
    place.wait_until_all_have_passed(&mut running);
    job.drain(running, &place.folder.path().join("savepoints"));
    place.check();
}

#[test]
fn undisturbed() {
    let place = Place::new(seed(), 10);
    let job = place.job(2, &[]);
    let mut running = job.start(None);
    for number in 0..10 {
        put(&place.input(), place.seed, number);
    }
    place.wait_until_all_have_passed(&mut running);
    job.drain(running, &place.folder.path().join("savepoints"));
    place.check();
}

#[test]
fn killed_aligned() {
    killed_at_random(seed(), 8, 16, |_| 2, &[]);
}

#[test]
fn killed_unaligned_and_rescaled() {
    let unaligned = [("execution.checkpointing.unaligned.enabled", "true")];
    killed_at_random(seed() + 1, 8, 16, |run| [1, 2, 3, 2][run % 4], &unaligned);
}

/// The long form: `cargo test --test recovery -- --ignored killed_often`, with `THALWEG_SEED` for other instants.
#[test]
#[ignore = "takes minutes"]
fn killed_often() {
    killed_at_random(seed(), 100, 120, |run| [2, 1, 3, 7, 2][run / 20 % 5], &[]);
    let timeout = [
        ("execution.checkpointing.unaligned.enabled", "true"),
        ("execution.checkpointing.aligned-checkpoint-timeout", "5 ms"),
    ];
    killed_at_random(seed() + 1, 50, 60, |run| [2, 3, 1][run / 10 % 3], &timeout);
}

#[test]
fn killed_at_every_fault_point() {
    let place = Place::new(seed() + 2, 10);
    let mut random = StdRng::seed_from_u64(seed());
    let mut put_files = 0;
    let mut killed = Vec::new();
    // The end of the job is its own case below; an upload in several parts takes more state than this job has, and is killed in
    // the tests of the store.
    let elsewhere = ["before-end", "within-upload"];
    for point in fault::POINTS.iter().filter(|point| !elsewhere.contains(point)) {
        // A process goes on from a checkpoint once.
        let k = if *point == "after-restore" {
            1
        } else {
            random.random_range(1..4)
        };
        let job = place.job(2, &[]);
        let mut running = job.start(Some(&format!("{point}:{k}")));
        let start = Instant::now();
        while running.is_alive() {
            if put_files < 8 {
                put(&place.input(), place.seed, put_files);
                put_files += 1;
            }
            if start.elapsed() > Duration::from_secs(20) {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if !running.is_alive() {
            killed.push(*point);
        }
        running.kill();
    }
    let never: Vec<_> = fault::POINTS
        .iter()
        .filter(|point| !killed.contains(point) && !elsewhere.contains(point))
        .collect();
    assert!(never.is_empty(), "these fault points were never reached: {never:?}");
    for number in put_files..10 {
        put(&place.input(), place.seed, number);
    }
    let job = place.job(2, &[]);
    let mut running = job.start(Some("before-end:1"));
    place.wait_until_all_have_passed(&mut running);
    // Killed between the final checkpoint and the end: the next run finds nothing left to do.
    let _ = job.ask(&[
        "stop",
        "--drain",
        "--target",
        place.folder.path().join("savepoints").to_str().unwrap(),
    ]);
    assert!(!running.ended().success());
    let mut running = job.start(None);
    assert!(running.ended().success(), "{}", running.log());
    place.check();
}
