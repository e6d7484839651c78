//! Checkpoints that are damaged, that cannot be written, that others write; operators that fail.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use thalweg::stream::{StreamJob, WatermarkStrategy};
use thalweg::{Session, SessionConfig};
use thalweg_engine::EngineError;
use thalweg_engine::checkpoint::faulty::{Fault, FaultyStore, Request};
use thalweg_engine::runtime::SavepointEnding;
use url::Url;

use super::events::put;
use super::outputs::{compare, rows, seed};
use super::place::{Place, Tables, sink};
use super::process::{Job, PATIENCE};

const NONE: Tables = Tables {
    appended: &[],
    changed: &[],
};
const COLUMNS: &str = "id BIGINT, k STRING, v BIGINT";
const ROWS: &str = "SELECT id, k, v FROM events";

fn place(files: usize) -> Place {
    let place = Place::new(seed() + 40, files, NONE);
    (0..files).for_each(|number| put(&place.input(), place.seed, number));
    place
}

/// A job that keeps three whole checkpoints; `shown`: into files, that show rows with checkpoints.
fn job(place: &Place, shown: bool) -> Job {
    let body = match shown {
        true => sink(place.folder.path(), "passed", COLUMNS, "json"),
        false => format!("CREATE TABLE passed ({COLUMNS}) WITH ('connector' = 'blackhole');\n"),
    };
    let settings = [
        ("execution.checkpointing.num-retained", "3"),
        ("execution.checkpointing.incremental", "false"),
        ("restart-strategy.type", "none"),
    ];
    place.job_of("damaged", 2, &settings, &format!("{body}INSERT INTO passed {ROWS};\n"))
}

/// The job's complete checkpoints, oldest first.
fn complete(job: &Job) -> Vec<(u64, PathBuf)> {
    let folder = job.checkpoints.join(&job.name);
    let mut all: Vec<(u64, PathBuf)> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let number = path.file_name()?.to_str()?.strip_prefix("chk-")?.parse().ok()?;
            path.join("MANIFEST").exists().then_some((number, path))
        })
        .collect();
    all.sort();
    all
}

/// Runs the job until it has three checkpoints, and kills it. They are not touched any more.
fn killed_with_three(job: &Job) -> Vec<(u64, PathBuf)> {
    let mut running = job.start(None);
    let start = Instant::now();
    while complete(job).len() < 3 {
        assert!(running.is_alive() && start.elapsed() < PATIENCE, "{}", running.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    running.kill();
    let all = complete(job);
    assert!(all.len() >= 2, "{all:?}");
    all
}

fn state_files(checkpoint: &Path) -> Vec<PathBuf> {
    let files = std::fs::read_dir(checkpoint)
        .unwrap()
        .map(|entry| entry.unwrap().path());
    let files: Vec<_> = files.filter(|path| !path.ends_with("MANIFEST")).collect();
    assert!(!files.is_empty(), "nothing to damage");
    files
}

fn truncate(path: &Path) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..bytes.len() / 2]).unwrap();
}

fn flip(path: &Path) {
    let mut bytes = std::fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    std::fs::write(path, bytes).unwrap();
}

/// What is done to a checkpoint, and its name.
type Damage = (&'static str, fn(&Path));

/// Each of them.
const DAMAGES: &[Damage] = &[
    ("a manifest cut off", |checkpoint| {
        truncate(&checkpoint.join("MANIFEST"))
    }),
    ("a bit of the manifest", |checkpoint| flip(&checkpoint.join("MANIFEST"))),
    ("state cut off", |checkpoint| {
        state_files(checkpoint).iter().for_each(|path| truncate(path))
    }),
    ("a bit of the state", |checkpoint| {
        state_files(checkpoint).iter().for_each(|path| flip(path))
    }),
    ("state gone", |checkpoint| {
        state_files(checkpoint)
            .iter()
            .for_each(|path| std::fs::remove_file(path).unwrap());
    }),
];

#[test]
fn an_older_checkpoint_takes_the_place_of_a_damaged_one() {
    for (what, damage) in DAMAGES {
        let place = place(2);
        let job = job(&place, false);
        let all = killed_with_three(&job);
        damage(&all[all.len() - 1].1);
        let before = all[all.len() - 2].0;
        let mut running = job.start(None);
        let expected = format!("goes on from checkpoint {before}");
        let start = Instant::now();
        while !running.log().contains(&expected) {
            assert!(
                running.is_alive() && start.elapsed() < PATIENCE,
                "{what}: {}",
                running.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
        running.kill();
    }
}

#[test]
fn rows_that_were_shown_are_not_shown_again_after_a_damage() {
    for (what, damage) in DAMAGES {
        let place = place(2);
        let job = job(&place, true);
        let all = killed_with_three(&job);
        let shown = place.appended("passed", COLUMNS);
        damage(&all[all.len() - 1].1);
        let mut running = job.start(None);
        assert!(!running.ended().success(), "{what}: {}", running.log());
        let said = running.log();
        assert!(
            said.contains("an older checkpoint cannot take its place") && said.contains("/chk-"),
            "{what}: {said}"
        );
        assert!(
            place.appended("passed", COLUMNS) == shown,
            "{what}: the output has changed"
        );
    }
}

#[test]
fn one_process_runs_a_job() {
    let place = place(1);
    let job = job(&place, true);
    let mut running = job.start(None);
    let start = Instant::now();
    while complete(&job).is_empty() {
        assert!(running.is_alive() && start.elapsed() < PATIENCE, "{}", running.log());
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut second = job.start(None);
    assert!(!second.ended().success());
    assert!(second.log().contains("job 'damaged' runs already"), "{}", second.log());
    assert!(running.is_alive());
    job.drain(running, &place.folder.path().join("savepoints"));
    compare(
        "passed",
        &place.appended("passed", COLUMNS),
        &rows(&place.batch(), ROWS),
    );
}

/// A session in this process that writes `events` to `passed`.
fn session(place: &Place, checkpoints: &str, watched: bool, settings: &[(&str, &str)]) -> Session {
    let config = SessionConfig {
        parallelism: 2,
        memory_bytes: 256 << 20,
        ..SessionConfig::default()
    };
    let session = Session::new(config).unwrap();
    let own = [
        ("execution.runtime-mode", "streaming"),
        ("execution.checkpointing.dir", checkpoints),
        ("execution.checkpointing.interval", "5 ms"),
        ("pipeline.name", "in-process"),
        ("restart-strategy.type", "fixed-delay"),
        ("restart-strategy.fixed-delay.attempts", "10"),
        ("restart-strategy.fixed-delay.delay", "1 ms"),
    ];
    for (key, value) in own.iter().chain(settings) {
        session.execute(&format!("SET '{key}' = '{value}'")).unwrap();
    }
    session.execute(&place.events(watched)).unwrap();
    let passed = sink(place.folder.path(), "passed", COLUMNS, "json");
    session.execute(passed.trim_end_matches(";\n")).unwrap();
    session
}

/// Starts the job; the batches for which `fails` is true of their number make an operator fail.
fn start(session: &Session, fails: impl Fn(usize) -> bool + Send + Sync + 'static) -> StreamJob {
    let builder = session.stream();
    let events = builder.from_table("events", WatermarkStrategy::none()).unwrap();
    let names = ["id", "k", "v"].map(datafusion::prelude::col);
    let events = events.select(names.into()).unwrap();
    let calls = AtomicUsize::new(0);
    let mapped = events.map(events.schema(), move |batch| {
        match fails(calls.fetch_add(1, Ordering::SeqCst)) {
            true => Err(EngineError::Internal("it fails now and then".into())),
            false => Ok(batch.clone()),
        }
    });
    mapped.sink_to_table("passed").unwrap();
    builder.start("in-process").unwrap()
}

fn checkpoints(place: &Place) -> String {
    place.folder.path().join("checkpoints").display().to_string()
}

#[test]
fn an_operator_that_fails_now_and_then() {
    let place = place(10);
    let session = session(&place, &checkpoints(&place), false, &[]);
    let job = start(&session, |call| [2, 4, 9, 13].contains(&call));
    let metrics = job.metrics();
    job.wait().unwrap();
    // Two subtasks may fail at once.
    let restarts = metrics.checkpoints().restarts;
    assert!((2..=4).contains(&restarts), "{restarts}");
    compare(
        "passed",
        &place.appended("passed", COLUMNS),
        &rows(&place.batch(), ROWS),
    );
}

#[test]
fn attempts_run_out() {
    let place = place(2);
    let settings = [("restart-strategy.fixed-delay.attempts", "3")];
    let session = session(&place, &checkpoints(&place), false, &settings);
    let job = start(&session, |_| true);
    let metrics = job.metrics();
    let error = job.wait().unwrap_err().to_string();
    assert!(error.contains("it fails now and then"), "{error}");
    assert_eq!(metrics.checkpoints().restarts, 3);
    assert!(place.appended("passed", COLUMNS).is_empty());
}

#[test]
fn an_object_store_that_fails() {
    type Plan = fn(&FaultyStore);
    let plans: &[(&str, Plan)] = &[
        ("delays", |store| {
            store.always(Request::Put, Fault::Delay(Duration::from_millis(3)))
        }),
        ("doubles", |store| store.always(Request::Put, Fault::Double)),
        ("loses", |store| {
            (0..40).for_each(|n| store.at(Request::Put, 3 * n + 1, Fault::Lose))
        }),
        ("fails", |store| {
            (0..40).for_each(|n| store.at(Request::Put, 7 * n + 1, Fault::Fail))
        }),
        ("lists late", |store| {
            store.always(Request::List, Fault::Delay(Duration::from_millis(3)))
        }),
    ];
    for (what, plan) in plans {
        let place = place(6);
        let settings = [("execution.checkpointing.tolerable-failed-checkpoints", "1000")];
        let session = session(&place, "faulty://bucket/checkpoints", false, &settings);
        let store = FaultyStore::new(Arc::new(object_store::memory::InMemory::new()));
        session.register_object_store(&Url::parse("faulty://bucket").unwrap(), Arc::new(store.clone()));
        plan(&store);
        let job = start(&session, |call| [1, 4].contains(&call));
        job.wait().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(store.fired() > 0, "{what}: nothing was wrong");
        compare(what, &place.appended("passed", COLUMNS), &rows(&place.batch(), ROWS));
    }
}

/// A file system of 1 MB, where this process may mount one (CI runs as root).
struct Mounted(tempfile::TempDir);

impl Mounted {
    fn new() -> Option<Self> {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"])
            .arg(folder.path())
            .status();
        mounted.is_ok_and(|status| status.success()).then(|| Self(folder))
    }

    /// Takes all the room there is.
    fn fill(&self) -> PathBuf {
        let ballast = self.0.path().join("ballast");
        assert!(
            std::fs::write(&ballast, vec![1; 2 << 20]).is_err(),
            "it is larger than it should be"
        );
        ballast
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).status();
    }
}

#[test]
fn a_full_disk_under_the_checkpoints() {
    let Some(disk) = Mounted::new() else {
        println!("no right to mount a small file system here");
        return;
    };
    let place = place(2);
    let ballast = disk.fill();
    let folder = disk.0.path().display().to_string();
    let settings = [("execution.checkpointing.tolerable-failed-checkpoints", "1000000")];
    let going_on = session(&place, &folder, true, &settings);
    let job = start(&going_on, |_| false);
    let metrics = job.metrics();
    let begin = Instant::now();
    let wait = |what: &str, is_so: &dyn Fn() -> bool| {
        while !is_so() {
            assert!(begin.elapsed() < PATIENCE, "{what}: {:?}", metrics.checkpoints());
            std::thread::sleep(Duration::from_millis(5));
        }
    };
    wait("none fails", &|| metrics.checkpoints().failed >= 3);
    assert_eq!(metrics.checkpoints().completed, 0);
    assert!(place.appended("passed", COLUMNS).is_empty());
    std::fs::remove_file(ballast).unwrap();
    let all = rows(&place.batch(), ROWS);
    wait("nothing is shown", &|| place.appended("passed", COLUMNS) == all);
    assert_eq!(metrics.checkpoints().restarts, 0, "the job went on all the time");
    let savepoints = place.folder.path().join("savepoints").display().to_string();
    job.control().savepoint(&savepoints, SavepointEnding::Drain).unwrap();
    job.wait().unwrap();
    compare("passed", &place.appended("passed", COLUMNS), &all);

    // As many in a row as are borne, and one.
    let _ballast = disk.fill();
    let settings = [
        ("execution.checkpointing.tolerable-failed-checkpoints", "2"),
        ("restart-strategy.type", "none"),
    ];
    let failing = session(&place, &folder, true, &settings);
    let error = start(&failing, |_| false).wait().unwrap_err().to_string();
    assert!(
        error.contains("No space left") && error.contains("3 in a row"),
        "{error}"
    );
}
