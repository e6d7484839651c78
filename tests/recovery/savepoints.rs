//! What savepoints are for: a program that is corrected, grown, tried in two forms, moved.

use std::path::Path;
use std::time::{Duration, Instant};

use super::events::put;
use super::outputs::{compare, rows, seed};
use super::place::{Place, Rows, Tables, sink};
use super::process::{Job, PATIENCE, Running};

const NONE: Tables = Tables {
    appended: &[],
    changed: &[],
};
const TOTALS: &str = "k STRING, n BIGINT, total BIGINT";

/// A place whose first file is there.
fn place(number: u64) -> Place {
    let place = Place::new(seed() + number, 3, NONE);
    put(&place.input(), place.seed, 0);
    place
}

fn body(place: &Place, sinks: &[(&str, &str, &str)], inserts: &[&str]) -> String {
    let mut body = String::new();
    for (name, columns, format) in sinks {
        body += &sink(place.folder.path(), name, columns, format);
    }
    body + &format!("EXECUTE STATEMENT SET BEGIN\n{};\nEND;\n", inserts.join(";\n"))
}

fn totals(place: &Place, name: &str, condition: &str) -> String {
    let insert = format!("INSERT INTO {name} SELECT k, COUNT(*), SUM(v) FROM events WHERE {condition} GROUP BY k");
    body(place, &[(name, TOTALS, "debezium-json")], &[&insert])
}

/// What the totals are in batch mode.
fn expected(place: &Place, condition: &str) -> Rows {
    let query = format!("SELECT k, COUNT(*), SUM(v) FROM events WHERE {condition} GROUP BY k");
    rows(&place.batch(), &query)
}

/// Waits until an output table holds what is expected.
fn wait_for(running: &mut Running, expected: &Rows, written: impl Fn() -> Rows) {
    let start = Instant::now();
    loop {
        let written = written();
        if written == *expected {
            return;
        }
        if !running.is_alive() || start.elapsed() > PATIENCE {
            eprintln!("{}", running.log());
            return compare("what is waited for", &written, expected);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn savepoints(place: &Place) -> std::path::PathBuf {
    place.folder.path().join("savepoints")
}

/// Runs `first` until it has said what is expected of the first file, and stops it with a savepoint.
fn stopped(place: &Place, first: &Job, expected: &Rows, written: impl Fn() -> Rows) -> String {
    let mut running = first.start(None);
    wait_for(&mut running, expected, written);
    first.stop(running, &savepoints(place))
}

/// A job that is refused: what it says. `untouched` is an output folder that it must not have written to.
fn refused(job: &Job, untouched: &Path) -> String {
    let before = std::fs::read_dir(untouched).into_iter().flatten().count();
    let mut running = job.start(None);
    assert!(!running.ended().success(), "{}", running.log());
    let after = std::fs::read_dir(untouched).into_iter().flatten().count();
    assert_eq!(before, after, "it has begun to write");
    running.log()
}

#[test]
fn a_condition_is_corrected() {
    let place = place(20);
    let first = place.job_of("fixed", 2, &[], &totals(&place, "totals", "v < 0"));
    let savepoint = stopped(&place, &first, &expected(&place, "v < 0"), || {
        place.folded("totals", TOTALS)
    });
    // It may be moved, as a whole.
    let moved = place.folder.path().join("moved");
    std::fs::rename(savepoint.trim_start_matches("file://"), &moved).unwrap();
    put(&place.input(), place.seed, 1);
    let from = [("execution.state-recovery.path", moved.to_str().unwrap())];
    let second = place.job_of("fixed", 3, &from, &totals(&place, "totals", "v > 0"));
    let mut running = second.start(None);
    let all = expected(&place, "id < 200 AND v < 0 OR id >= 200 AND v > 0");
    wait_for(&mut running, &all, || place.folded("totals", TOTALS));
    // Its own checkpoints count now, not the savepoint again.
    let own = std::fs::read_dir(place.folder.path().join("checkpoints/fixed")).unwrap();
    assert!(own.count() > 0);
    running.kill();
    put(&place.input(), place.seed, 2);
    let mut running = second.start(None);
    let all = expected(&place, "id < 200 AND v < 0 OR id >= 200 AND v > 0");
    wait_for(&mut running, &all, || place.folded("totals", TOTALS));
    second.drain(running, &savepoints(&place));
    compare("totals", &place.folded("totals", TOTALS), &all);
}

#[test]
fn two_jobs_go_on_from_one_savepoint() {
    let place = place(21);
    let first = place.job_of("first", 2, &[], &totals(&place, "totals", "TRUE"));
    let mut running = first.start(None);
    wait_for(&mut running, &expected(&place, "TRUE"), || {
        place.folded("totals", TOTALS)
    });
    let savepoint = first.savepoint(&mut running, &savepoints(&place), &["savepoint"]);
    assert!(running.is_alive());
    put(&place.input(), place.seed, 1);
    put(&place.input(), place.seed, 2);
    let all = expected(&place, "TRUE");
    wait_for(&mut running, &all, || place.folded("totals", TOTALS));
    for (name, parallelism) in [("a", 1), ("b", 3)] {
        let from = [("execution.state-recovery.path", savepoint.as_str())];
        let job = place.job_of(name, parallelism, &from, &totals(&place, name, "TRUE"));
        let mut running = job.start(None);
        // Every key has rows in the later files, so that its last total is said.
        wait_for(&mut running, &all, || {
            let mut folded = place.folded(name, TOTALS);
            folded.retain(|_, count| *count > 0);
            folded
        });
        job.drain(running, &savepoints(&place));
    }
    first.drain(running, &savepoints(&place));
    compare("totals", &place.folded("totals", TOTALS), &all);
}

#[test]
fn an_operator_that_is_gone_is_named() {
    let place = place(22);
    let sinks = [("passed", "id BIGINT", "json"), ("totals", TOTALS, "debezium-json")];
    let passed = "INSERT INTO passed SELECT id FROM events";
    let both = body(
        &place,
        &sinks,
        &[
            passed,
            "INSERT INTO totals SELECT k, COUNT(*), SUM(v) FROM events GROUP BY k",
        ],
    );
    let first = place.job_of("dropping", 2, &[], &both);
    let savepoint = stopped(&place, &first, &expected(&place, "TRUE"), || {
        place.folded("totals", TOTALS)
    });
    put(&place.input(), place.seed, 1);
    let ids = || place.appended("passed", "id BIGINT");
    let from = ("execution.state-recovery.path", savepoint.as_str());
    let less = body(&place, &sinks[..1], &[passed]);
    let second = place.job_of("dropping", 2, &[from], &less);
    let said = refused(&second, &place.folder.path().join("passed"));
    assert!(
        said.contains("which the program does not have") && said.contains("ignore-unclaimed-state"),
        "{said}"
    );
    assert!(said.contains("Scan events"), "it names the operator: {said}");
    let ignoring = ("execution.state-recovery.ignore-unclaimed-state", "true");
    let second = place.job_of("dropping", 2, &[from, ignoring], &less);
    let mut running = second.start(None);
    let all = rows(&place.batch(), "SELECT id FROM events");
    wait_for(&mut running, &all, ids);
    second.drain(running, &savepoints(&place));
    compare("passed", &ids(), &all);
}

#[test]
fn draining_says_what_is_open_and_stopping_does_not() {
    let place = place(23);
    let windows = |name: &str| {
        let insert = format!(
            "INSERT INTO {name} SELECT window_start, COUNT(*) FROM TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '1' HOUR) \
             GROUP BY window_start, window_end"
        );
        let columns = "ws TIMESTAMP(3), n BIGINT";
        let passed = "INSERT INTO passed SELECT id FROM events";
        body(
            &place,
            &[(name, columns, "json"), ("passed", "id BIGINT", "json")],
            &[&insert, passed],
        )
    };
    let counts = |name: &str| place.appended(name, "n BIGINT");
    let first = place.job_of("windows", 2, &[], &windows("hours"));
    let ids = || place.appended("passed", "id BIGINT");
    let savepoint = stopped(&place, &first, &rows(&place.batch(), "SELECT id FROM events"), ids);
    assert!(counts("hours").is_empty(), "the hour is open");
    let from = [("execution.state-recovery.path", savepoint.as_str())];
    let second = place.job_of("windows", 1, &from, &windows("hours"));
    let running = second.start(None);
    let drained = second.drain(running, &savepoints(&place));
    assert_eq!(counts("hours"), Rows::from([(vec!["200".into()], 1)]));
    // Nothing is left to be said.
    let from = [("execution.state-recovery.path", drained.as_str())];
    let third = place.job_of("windows", 2, &from, &windows("hours"));
    assert!(third.start(None).ended().success());
    assert_eq!(counts("hours"), Rows::from([(vec!["200".into()], 1)]));
}

/// A savepoint does not publish: what came after the last checkpoint is said again after a failure.
#[test]
fn killed_after_a_savepoint() {
    for settings in [
        &[("execution.checkpointing.interval", "1 h")][..],
        &[
            ("execution.checkpointing.interval", "15 ms"),
            ("execution.checkpointing.unaligned.enabled", "true"),
        ],
    ] {
        let place = place(24);
        let columns = "id BIGINT, k STRING, v BIGINT";
        let insert = "INSERT INTO passed SELECT id, k, v FROM events";
        let insert = [
            insert,
            "INSERT INTO totals SELECT k, COUNT(*), SUM(v) FROM events GROUP BY k",
        ];
        let sinks = [("passed", columns, "json"), ("totals", TOTALS, "debezium-json")];
        let job = place.job_of("kept", 2, settings, &body(&place, &sinks, &insert));
        for run in 0..3 {
            let mut running = job.start(None);
            if run > 0 {
                put(&place.input(), place.seed, run);
            }
            for _ in 0..3 {
                job.savepoint(&mut running, &savepoints(&place), &["savepoint"]);
            }
            assert!(running.kill());
        }
        // Checkpoints show what it has read.
        let job = place.job_of("kept", 2, &[], &body(&place, &sinks, &insert));
        let mut running = job.start(None);
        let all = expected(&place, "TRUE");
        let ids = rows(&place.batch(), "SELECT id, k, v FROM events");
        wait_for(&mut running, &all, || place.folded("totals", TOTALS));
        wait_for(&mut running, &ids, || place.appended("passed", columns));
        job.drain(running, &savepoints(&place));
        compare("totals", &place.folded("totals", TOTALS), &all);
        compare("passed", &place.appended("passed", columns), &ids);
    }
}

/// The same rows under other names or types of columns.
fn table(place: &Place, name: &str, columns: &str) -> String {
    format!(
        "CREATE TABLE {name} ({columns}, ts TIMESTAMP(3), WATERMARK FOR ts AS ts - INTERVAL '1' SECOND) WITH \
         ('connector' = 'filesystem', 'path' = '{}/', 'format' = 'csv', 'csv.header' = 'false', 'source.monitor-interval' = '10 ms');\n",
        place.input().display()
    )
}

/// Stops a job whose rows are `first`, and goes on as `second`, whose table `out` has `columns` and is then `query` in batch mode.
struct Evolution {
    first: [&'static str; 2],
    second: [&'static str; 2],
    columns: [&'static str; 2],
    query: [&'static str; 2],
}

impl Evolution {
    /// The second job before it has started.
    fn stopped(&self, place: &Place, settings: &[(&str, &str)]) -> Job {
        let body = |[columns, insert]: [&str; 2], out: &str| {
            table(place, "input", columns) + &body(place, &[("out", out, "debezium-json")], &[insert])
        };
        let first = place.job_of("evolving", 2, &[], &body(self.first, self.columns[0]));
        let expected = rows(&place.batch(), self.query[0]);
        let savepoint = stopped(place, &first, &expected, || place.folded("out", self.columns[0]));
        put(&place.input(), place.seed, 1);
        let from = [("execution.state-recovery.path", savepoint.as_str())];
        let settings = [settings, &from].concat();
        place.job_of("evolving", 3, &settings, &body(self.second, self.columns[1]))
    }

    fn goes_on(&self, number: u64, settings: &[(&str, &str)]) {
        let place = place(number);
        let second = self.stopped(&place, settings);
        let mut running = second.start(None);
        let expected = rows(&place.batch(), self.query[1]);
        wait_for(&mut running, &expected, || place.folded("out", self.columns[1]));
        second.drain(running, &savepoints(&place));
        compare("out", &place.folded("out", self.columns[1]), &expected);
    }
}

const LAST: &str = "SELECT k, id FROM (SELECT k, id, ROW_NUMBER() OVER (PARTITION BY k ORDER BY ts DESC) AS place FROM events) \
                    WHERE place = 1";
const LAST_WITH_V: &str = "SELECT k, id, v FROM (SELECT k, id, v, ROW_NUMBER() OVER (PARTITION BY k ORDER BY ts DESC) AS place \
                           FROM events) WHERE place = 1";
const MOST: &str = "SELECT k, MAX(v) FROM events GROUP BY k";

#[test]
fn a_column_is_added() {
    let last = "INSERT INTO out SELECT k, id FROM (SELECT k, id, ROW_NUMBER() OVER (PARTITION BY k ORDER BY ts DESC) AS place \
                FROM input) WHERE place = 1";
    let with_v = "INSERT INTO out SELECT k, id, v FROM (SELECT k, id, v, ROW_NUMBER() OVER (PARTITION BY k ORDER BY ts DESC) AS \
                  place FROM input) WHERE place = 1";
    let evolution = Evolution {
        first: ["id BIGINT, k STRING, v BIGINT", last],
        second: ["id BIGINT, k STRING, v BIGINT", with_v],
        columns: ["k STRING, id BIGINT", "k STRING, id BIGINT, v BIGINT"],
        query: [LAST, LAST_WITH_V],
    };
    evolution.goes_on(30, &[]);
}

#[test]
fn a_column_is_renamed() {
    let evolution = Evolution {
        first: [
            "id BIGINT, k STRING, v BIGINT",
            "INSERT INTO out SELECT k, id FROM (SELECT k, id, ROW_NUMBER() OVER (PARTITION BY k ORDER BY ts DESC) AS place \
             FROM input) WHERE place = 1",
        ],
        second: [
            "number BIGINT, name STRING, v BIGINT",
            "INSERT INTO out SELECT name, number FROM (SELECT name, number, ROW_NUMBER() OVER (PARTITION BY name ORDER BY ts DESC) \
             AS place FROM input) WHERE place = 1",
        ],
        columns: ["k STRING, id BIGINT"; 2],
        query: [LAST; 2],
    };
    evolution.goes_on(31, &[("execution.state-recovery.renamed-columns", "k:name, id:number")]);
    // Not told of, a key would be lost.
    let place = place(34);
    let second = evolution.stopped(&place, &[]);
    let said = refused(&second, &place.folder.path().join("out"));
    assert!(
        said.contains("key column 'key_name'") && said.contains("renamed-columns"),
        "{said}"
    );
}

#[test]
fn a_type_is_widened_and_not_narrowed() {
    let most = "INSERT INTO out SELECT k, MAX(v) FROM input GROUP BY k";
    let (narrow, wide) = ("id BIGINT, k STRING, v INT", "id BIGINT, k STRING, v BIGINT");
    let mut evolution = Evolution {
        first: [narrow, most],
        second: [wide, most],
        columns: ["k STRING, v BIGINT"; 2],
        query: [MOST; 2],
    };
    evolution.goes_on(32, &[]);
    std::mem::swap(&mut evolution.first, &mut evolution.second);
    let place = place(33);
    let second = evolution.stopped(&place, &[("restart-strategy.type", "fixed-delay")]);
    let said = refused(&second, &place.folder.path().join("out"));
    assert!(
        said.contains("was Int64 and is Int32 now") && said.contains("'groups'"),
        "it names the table and the column: {said}"
    );
}
