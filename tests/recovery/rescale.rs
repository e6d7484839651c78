//! A job that goes on at another parallelism, from savepoints and from checkpoints: with every operator of streaming SQL that
//! keeps state and is not in `files`.

use super::events::put;
use super::files::{self, killed_at_random};
use super::outputs::seed;
use super::place::{Place, Table, Tables, VERSION_AT};

const APPENDED: &[Table] = &[
    ("passed", "id BIGINT, k STRING, v BIGINT", "SELECT id, k, v FROM events"),
    (
        "cumulated",
        "ws TIMESTAMP(3), we TIMESTAMP(3), k STRING, n BIGINT, total BIGINT",
        "SELECT window_start, window_end, k, COUNT(*), SUM(v) \
         FROM CUMULATE(TABLE events, DESCRIPTOR(ts), INTERVAL '1' SECOND, INTERVAL '4' SECOND) GROUP BY window_start, window_end, k",
    ),
    (
        "ranged",
        "id BIGINT, k STRING, total BIGINT, n BIGINT",
        "SELECT id, k, SUM(v) OVER w, COUNT(*) OVER w FROM events \
         WINDOW w AS (PARTITION BY k ORDER BY ts RANGE BETWEEN INTERVAL '2' SECOND PRECEDING AND CURRENT ROW)",
    ),
    (
        "window_pairs",
        "a BIGINT, b BIGINT, ws TIMESTAMP(3)",
        "SELECT a.id, b.id, a.window_start FROM (SELECT * FROM TABLE(TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '3' SECOND))) a \
         LEFT JOIN (SELECT * FROM TABLE(TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '3' SECOND)) WHERE v > 500) b \
         ON a.k = b.k AND a.window_start = b.window_start AND a.window_end = b.window_end",
    ),
    ("versioned", "id BIGINT, ts TIMESTAMP(3)", VERSION_AT),
];

const CHANGED: &[Table] = &[
    (
        "first_times",
        "k STRING, ts TIMESTAMP(3)",
        "SELECT k, ts FROM (SELECT k, ts, ROW_NUMBER() OVER (PARTITION BY k ORDER BY ts) AS place FROM events) WHERE place = 1",
    ),
    (
        "last_times",
        "k STRING, ts TIMESTAMP(3)",
        "SELECT k, ts FROM (SELECT k, ts, ROW_NUMBER() OVER (PARTITION BY k ORDER BY ts DESC) AS place FROM events) WHERE place = 1",
    ),
    (
        "semi",
        "id BIGINT",
        "SELECT id FROM events WHERE v IN (SELECT v FROM events WHERE k = 'key 1')",
    ),
    (
        "anti",
        "id BIGINT",
        "SELECT a.id FROM events a WHERE NOT EXISTS (SELECT 1 FROM events b WHERE b.v = -a.v)",
    ),
    (
        "outer_pairs",
        "a BIGINT, b BIGINT",
        "SELECT a.id, b.id FROM (SELECT * FROM events WHERE v > 700) a FULL JOIN (SELECT * FROM events WHERE v < -700) b ON a.v = -b.v",
    ),
    (
        "all_together",
        "n BIGINT, total BIGINT, different BIGINT",
        "SELECT COUNT(*), SUM(v), COUNT(DISTINCT k) FROM events",
    ),
    (
        "of_changes",
        "n BIGINT, different BIGINT, most BIGINT",
        "SELECT n, COUNT(*), MAX(v) FROM (SELECT v, COUNT(*) AS n FROM events GROUP BY v) GROUP BY n",
    ),
    ("different", "v BIGINT", "SELECT DISTINCT v FROM events WHERE v > 0"),
];

const TABLES: Tables = Tables {
    appended: APPENDED,
    changed: CHANGED,
};

const PARALLELISMS: [usize; 5] = [1, 2, 3, 7, 2];

/// Stops with a savepoint and goes on from it, at one parallelism after another; `settings` are those of checkpoints.
fn stopped_and_rescaled(tables: Tables, settings: &[(&str, &str)]) {
    let place = Place::new(seed() + 3, 2 * PARALLELISMS.len(), tables);
    let savepoints = place.folder.path().join("savepoints");
    let mut savepoint: Option<String> = None;
    for (run, parallelism) in PARALLELISMS.into_iter().enumerate() {
        let mut settings = settings.to_vec();
        if let Some(savepoint) = &savepoint {
            settings.push(("execution.state-recovery.path", savepoint.as_str()));
        }
        let job = place.job(parallelism, &settings);
        let mut running = job.start(None);
        for number in [2 * run, 2 * run + 1] {
            put(&place.input(), place.seed, number);
        }
        if run + 1 < PARALLELISMS.len() {
            // Some have come through, others are under way.
            place.wait_until_passed(&mut running, 350 * run + 50);
            savepoint = Some(job.stop(running, &savepoints));
        } else {
            place.wait_until_all_have_passed(&mut running);
            job.drain(running, &savepoints);
        }
    }
    place.check();
}

#[test]
fn across_savepoints() {
    stopped_and_rescaled(TABLES, &[]);
}

#[test]
fn across_savepoints_between_unaligned_checkpoints() {
    stopped_and_rescaled(files::TABLES, &[("execution.checkpointing.unaligned.enabled", "true")]);
}

#[test]
fn across_aligned_checkpoints() {
    killed_at_random(TABLES, seed() + 4, 4, 10, |run| PARALLELISMS[run], &[]);
}

#[test]
fn across_unaligned_checkpoints() {
    let unaligned = [("execution.checkpointing.unaligned.enabled", "true")];
    killed_at_random(TABLES, seed() + 5, 4, 10, |run| PARALLELISMS[run], &unaligned);
}

#[test]
fn across_checkpoints_that_overtake_when_they_have_waited() {
    let timeout = [
        ("execution.checkpointing.unaligned.enabled", "true"),
        ("execution.checkpointing.aligned-checkpoint-timeout", "5 ms"),
    ];
    killed_at_random(TABLES, seed() + 6, 4, 10, |run| PARALLELISMS[run], &timeout);
}
