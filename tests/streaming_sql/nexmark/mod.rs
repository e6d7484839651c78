//! The queries of Nexmark in streaming mode against DuckDB's answers to independent formulations (`answers.sql`), over
//! the very same events. `THALWEG_NEXMARK_EVENTS` is how many of them there are.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use tempfile::TempDir;
use thalweg::Session;

use super::changelog::{Rows, difference, done, rows_of, run, session, streaming};

/// So many events a second of event time that no two have the same: ties would leave rows open.
const RATE: &str = "1000";
const EVENTS: usize = 60_000;
const MANY_EVENTS: usize = 1_000_000;

struct Nexmark {
    folder: TempDir,
    events: usize,
    options: String,
    queries: Vec<(String, String)>,
}

impl Nexmark {
    /// Writes the events to Parquet and has DuckDB answer.
    fn new(events: usize) -> Self {
        Self::with(events, 0)
    }

    /// The same, each event up to so many milliseconds behind.
    fn with(events: usize, disorder_ms: u64) -> Self {
        let options = format!(
            "'nexmark.events' = '{events}', 'nexmark.event-time-rate' = '{RATE}', \
             'nexmark.out-of-order-ms' = '{disorder_ms}'"
        );
        let folder = tempfile::tempdir().unwrap();
        let session = session(2, &[("execution.runtime-mode", "batch")]);
        for table in ["person", "auction", "bid"] {
            done(
                &session,
                &format!(
                    "CREATE TABLE {table} WITH ('connector' = 'nexmark', 'nexmark.table' = '{table}', {})",
                    options
                ),
            );
            let file = folder.path().join(format!("{table}.parquet"));
            done(
                &session,
                &format!("COPY (SELECT * FROM {table}) TO '{}'", file.display()),
            );
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/streaming_sql/nexmark/answers.py");
        let status = Command::new(python()).arg(script).arg(folder.path()).status().unwrap();
        assert!(status.success(), "DuckDB did not answer");
        Self {
            folder,
            events,
            options,
            queries: queries(),
        }
    }

    /// A session in streaming mode with the tables.
    fn session(&self, parallelism: usize, settings: &[(&str, &str)]) -> Session {
        let session = session(parallelism, settings);
        let tables = include_str!("../../../benches/nexmark/tables.sql").replace("{options}", &self.options);
        for statement in tables.split(";\n").filter(|statement| !statement.trim().is_empty()) {
            done(&session, statement);
        }
        done(
            &session,
            "CREATE TABLE side_input AS SELECT value AS key, CAST(value AS VARCHAR) AS value \
             FROM generate_series(0, 9999) t(value)",
        );
        streaming(&session);
        session
    }

    fn query(&self, name: &str) -> &str {
        &self.queries.iter().find(|(known, _)| known == name).unwrap().1
    }

    fn expected(&self, name: &str) -> Rows {
        let file = File::open(self.folder.path().join(format!("{name}.parquet"))).unwrap();
        let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
        rows_of(&reader.map(Result::unwrap).collect::<Vec<_>>())
    }

    /// What is wrong with a query's answer.
    fn check(&self, session: &Session, name: &str) -> Option<String> {
        let rows = match run(session, self.query(name)) {
            Ok(rows) => rows.unwrap(),
            Err(error) => return Some(format!("{name}: {error}")),
        };
        let rows = match rows.folded() {
            Ok(rows) => comparable(name, rows),
            Err(why) => return Some(format!("{name}: {why}")),
        };
        let expected = self.expected(name);
        assert!(name == "q3" || !expected.is_empty(), "{name} has no rows to compare");
        difference(&rows, &expected).map(|difference| format!("{name}: {difference}"))
    }

    fn check_all(&self, parallelism: usize, settings: &[(&str, &str)]) {
        let names: Vec<&str> = self.queries.iter().map(|(name, _)| name.as_str()).collect();
        self.check_these(&names, parallelism, settings);
    }

    fn check_these(&self, names: &[&str], parallelism: usize, settings: &[(&str, &str)]) {
        let session = self.session(parallelism, settings);
        let wrong: Vec<String> = names.iter().filter_map(|name| self.check(&session, name)).collect();
        assert!(
            wrong.is_empty(),
            "{} of {} at parallelism {parallelism} {settings:?}:\n{}",
            wrong.len(),
            names.len(),
            wrong.join("\n")
        );
    }
}

/// The Python of the test data, which has DuckDB.
fn python() -> PathBuf {
    let root = std::env::var_os("THALWEG_TEST_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-data"),
        PathBuf::from,
    );
    let python = root.join("venv/bin/python");
    assert!(
        python.exists(),
        "{} is missing: run scripts/test_data.sh (./test.sh does it)",
        python.display()
    );
    python
}

/// `q0` to `q22`.
fn queries() -> Vec<(String, String)> {
    let mut queries: Vec<(String, String)> = Vec::new();
    for line in include_str!("../../../benches/nexmark/queries.sql").lines() {
        if let Some(title) = line.strip_prefix("-- q") {
            let (number, _) = title.split_once(':').unwrap();
            queries.push((format!("q{number}"), String::new()));
        } else if let Some((_, query)) = queries.last_mut() {
            query.push_str(line);
            query.push('\n');
        }
    }
    assert_eq!(queries.len(), 23);
    queries
}

/// The part of an answer that does not depend on the moment or on how ties fall.
fn comparable(name: &str, rows: Rows) -> Rows {
    let mut kept = Rows::new();
    for (row, count) in rows {
        match name {
            // Windows of processing time: bids per bidder, over all windows.
            "q12" => {
                let n: i64 = row[1].parse().unwrap();
                *kept.entry(vec![row[0].clone()]).or_insert(0) += n * count;
            }
            "q19" => {
                let place = row.last().unwrap().clone();
                *kept.entry(vec![row[0].clone(), row[2].clone(), place]).or_insert(0) += count;
            }
            _ => {
                kept.insert(row, count);
            }
        }
    }
    if name != "q12" {
        return kept;
    }
    kept.into_iter()
        .map(|(mut row, n)| {
            row.push(n.to_string());
            (row, 1)
        })
        .collect()
}

fn events(default: usize) -> usize {
    std::env::var("THALWEG_NEXMARK_EVENTS").map_or(default, |events| events.parse().unwrap())
}

#[test]
fn every_query_answers_as_duckdb_does() {
    let nexmark = Nexmark::new(events(EVENTS));
    nexmark.check_all(2, &[("pipeline.auto-watermark-interval", "0")]);
    nexmark.check_all(1, &[]);
    nexmark.check_all(3, &[("execution.batch-size", "512"), ("execution.buffer-timeout", "0")]);
    log_to_files(&nexmark);
}

/// Rows that are out of order, by less than the watermark waits for. Two may have the same time now: what depends on which
/// comes first is left out.
#[test]
fn disorder_that_the_watermark_waits_for_changes_nothing() {
    let nexmark = Nexmark::with(events(EVENTS) / 2, 950);
    let names = ["q3", "q4", "q5", "q6", "q7", "q8", "q11", "q13", "q16", "q17", "q20"];
    nexmark.check_these(
        &names,
        2,
        &[
            ("pipeline.auto-watermark-interval", "0"),
            ("execution.batch-size", "256"),
        ],
    );
    nexmark.check_these(&names, 3, &[]);
}

#[test]
#[ignore = "minutes: a million events"]
fn every_query_answers_as_duckdb_does_over_many_events() {
    let nexmark = Nexmark::new(events(MANY_EVENTS));
    nexmark.check_all(2, &[]);
    nexmark.check_all(1, &[("pipeline.auto-watermark-interval", "0")]);
}

/// q10 as it is meant: into folders by day and minute.
fn log_to_files(nexmark: &Nexmark) {
    let session = nexmark.session(2, &[]);
    let folder = nexmark.folder.path().join("log");
    done(
        &session,
        &format!(
            "CREATE TABLE log (auction BIGINT, bidder BIGINT, price BIGINT, ts TIMESTAMP(3), extra STRING, day STRING, \
             minute STRING) PARTITIONED BY (day, minute) \
             WITH ('connector' = 'filesystem', 'path' = '{}', 'format' = 'parquet')",
            folder.display()
        ),
    );
    done(&session, &format!("INSERT INTO log {}", nexmark.query("q10")));
    let minutes: Vec<_> = std::fs::read_dir(folder.join("day=2020-09-13")).unwrap().collect();
    // The first event is in the last third of a minute.
    assert_eq!(minutes.len(), (40_000 + nexmark.events - 1) / 60_000 + 1);
    super::changelog::set(&session, "execution.runtime-mode", "batch");
    let written = run(&session, "SELECT * FROM log").unwrap().unwrap();
    assert_eq!(difference(&rows_of(&written.batches), &nexmark.expected("q10")), None);
}
