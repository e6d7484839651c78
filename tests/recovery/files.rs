//! Files to files: windows, sessions, joins, changelogs, top-n, OVER and deduplication in one job, which is killed at random
//! instants, and at each fault point.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use thalweg_engine::checkpoint::fault;

use super::events::put;
use super::outputs::{APPENDED, CHANGED, seed};
use super::place::{Place, Tables};

/// All of them.
pub(crate) const TABLES: Tables = Tables {
    appended: APPENDED,
    changed: CHANGED,
};

/// Runs a job while files arrive and it is killed at random, until it has been killed so often.
pub(crate) fn killed_at_random(
    tables: Tables,
    seed: u64,
    kills: usize,
    files: usize,
    parallelism: impl Fn(usize) -> usize,
    settings: &[(&str, &str)],
) {
    let place = Place::new(seed, files, tables);
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
    let place = Place::new(seed(), 10, TABLES);
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
    killed_at_random(TABLES, seed(), 8, 16, |_| 2, &[]);
}

#[test]
fn killed_unaligned_and_rescaled() {
    let unaligned = [("execution.checkpointing.unaligned.enabled", "true")];
    killed_at_random(TABLES, seed() + 1, 8, 16, |run| [1, 2, 3, 2][run % 4], &unaligned);
}

/// The long form: `cargo test --test recovery -- --ignored killed_often`, with `THALWEG_SEED` for other instants.
#[test]
#[ignore = "takes minutes"]
fn killed_often() {
    killed_at_random(TABLES, seed(), 100, 120, |run| [2, 1, 3, 7, 2][run / 20 % 5], &[]);
    let timeout = [
        ("execution.checkpointing.unaligned.enabled", "true"),
        ("execution.checkpointing.aligned-checkpoint-timeout", "5 ms"),
    ];
    killed_at_random(TABLES, seed() + 1, 50, 60, |run| [2, 3, 1][run / 10 % 3], &timeout);
}

#[test]
fn killed_at_every_fault_point() {
    let place = Place::new(seed() + 2, 10, TABLES);
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
