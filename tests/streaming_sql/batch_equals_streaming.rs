//! Every query of the batch tests once more in streaming mode: the folded changelog is batch mode's result. Which
//! queries streams refuse is written down here with the reason; one more than that is a failure.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use sqllogictest::{DefaultColumnType, Record};
use tempfile::TempDir;
use thalweg::Session;

use super::changelog::{difference, run, session, set};

/// Why queries are refused on streams, as a part of the message, and how many of tests/sql.
const REFUSED: &[(&str, usize)] = &[
    ("OVER with an order other than ascending time", 25),
    ("OVER a stream of updates", 3),
    ("LIMIT over a stream of updates", 0),
    ("GROUPING SETS over a stream of updates", 0),
    ("a recursive query", 12),
    ("a LeftMark join (EXISTS or IN below OR)", 6),
    ("SESSION without an aggregation", 2),
    ("grouping sessions by other columns", 1),
    ("is not a time attribute on a stream", 2),
    ("an aggregate function with ORDER BY", 1),
    ("ORDER BY anything but ascending event time", 1),
];

/// Queries that a stream answers otherwise. The empty grouping set over no input: a stream has no row before the first.
const OTHERWISE: &[&str] = &["FROM empty GROUP BY ROLLUP (g)", "FROM empty GROUP BY GROUPING SETS"];

#[derive(Default)]
struct Tally {
    same: usize,
    otherwise: usize,
    refused: BTreeMap<String, Vec<String>>,
    wrong: Vec<String>,
}

impl Tally {
    /// Runs `sql` in both modes.
    fn compare(&mut self, session: &Session, place: &str, sql: &str) {
        let sql = without_order(sql);
        // What fails in batch mode is tested elsewhere.
        let Ok(Some(batch)) = run(session, &sql) else { return };
        set(session, "execution.runtime-mode", "streaming");
        let streamed = run(session, &sql);
        set(session, "execution.runtime-mode", "batch");
        let rows = match streamed {
            Ok(rows) => rows.unwrap().folded(),
            Err(error) => {
                let message = error.to_string();
                match REFUSED.iter().find(|(reason, _)| message.contains(reason)) {
                    Some((reason, _)) => {
                        self.refused
                            .entry((*reason).into())
                            .or_default()
                            .push(format!("{place}: {message}"));
                    }
                    None => self.wrong.push(format!("{place}: {message}\n{sql}")),
                }
                return;
            }
        };
        let expected = super::changelog::rows_of(&batch.batches);
        if OTHERWISE.iter().any(|part| sql.contains(part)) {
            self.otherwise += 1;
            return;
        }
        match rows.map(|rows| difference(&rows, &expected)) {
            Ok(None) => self.same += 1,
            Ok(Some(difference)) => self.wrong.push(format!("{place}: {difference}\n{sql}")),
            Err(why) => self.wrong.push(format!("{place}: {why}\n{sql}")),
        }
    }

    fn check(self, what: &str, least_same: usize, refused: &[(&str, usize)]) {
        println!("{what}: {} the same, {} otherwise", self.same, self.otherwise);
        for (reason, places) in &self.refused {
            println!("  {} refused: {reason}", places.len());
        }
        assert!(
            self.wrong.is_empty(),
            "{what}: {} wrong:\n{}",
            self.wrong.len(),
            self.wrong.join("\n\n")
        );
        for (reason, places) in &self.refused {
            let most = refused
                .iter()
                .find(|(known, _)| known == reason)
                .map_or(0, |(_, most)| *most);
            assert!(
                places.len() <= most,
                "{what}: more is refused than was:\n{}",
                places.join("\n")
            );
        }
        assert!(
            self.same >= least_same,
            "{what}: only {} compared, once {least_same}",
            self.same
        );
    }
}

/// The query without an ORDER BY at its end that no LIMIT follows: a stream has no last row to sort by.
fn without_order(sql: &str) -> String {
    let bytes = sql.as_bytes();
    let (mut depth, mut quoted, mut order) = (0i32, None, None);
    for (at, &byte) in bytes.iter().enumerate() {
        match (quoted, byte) {
            (Some(quote), _) => quoted = (byte != quote).then_some(quote),
            (None, b'\'' | b'"') => quoted = Some(byte),
            (None, b'(' | b'[') => depth += 1,
            (None, b')' | b']') => depth -= 1,
            _ => {}
        }
        let starts = |word: &str| {
            sql.get(at..at + word.len())
                .is_some_and(|part| part.eq_ignore_ascii_case(word))
                && (at == 0 || !bytes[at - 1].is_ascii_alphanumeric() && bytes[at - 1] != b'_')
        };
        if depth == 0 && quoted.is_none() {
            if starts("ORDER BY") {
                order = Some(at);
            } else if ["LIMIT ", "OFFSET ", "FETCH ", "UNION ", "EXCEPT ", "INTERSECT "]
                .iter()
                .any(|word| starts(word))
            {
                order = None;
            }
        }
    }
    match order {
        Some(at) => sql[..at].to_string(),
        None => sql.to_string(),
    }
}

fn is_query(sql: &str) -> bool {
    let first = sql.trim_start().trim_start_matches('(').trim_start();
    ["SELECT", "WITH", "VALUES", "FROM"].iter().any(|word| {
        first
            .get(..word.len())
            .is_some_and(|start| start.eq_ignore_ascii_case(word))
    })
}

fn slt_files() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql");
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "slt"));
    files.sort();
    files
}

fn sql_cases(parallelism: usize, settings: &[(&str, &str)]) {
    let mut tally = Tally::default();
    for file in slt_files() {
        let session = session(parallelism, settings);
        set(&session, "execution.runtime-mode", "batch");
        let folder = TempDir::new().unwrap();
        let data = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data");
        for record in sqllogictest::parse_file::<DefaultColumnType>(&file).unwrap() {
            let (sql, place) = match record {
                Record::Query { sql, loc, .. } | Record::Statement { sql, loc, .. } => (sql, loc.to_string()),
                _ => continue,
            };
            let sql = sql
                .replace("$TMP", &folder.path().display().to_string())
                .replace("$DATA", data);
            if is_query(&sql) {
                let place = place.rsplit('/').next().unwrap().to_string();
                tally.compare(&session, &place, &sql);
            } else {
                // Those that must fail do, and leave nothing behind.
                drop(run(&session, &sql));
            }
        }
    }
    tally.check("tests/sql", 251, REFUSED);
}

#[test]
fn sql_cases_at_1() {
    sql_cases(1, &[]);
}

#[test]
fn sql_cases_at_2_in_small_batches() {
    sql_cases(
        2,
        &[
            ("execution.batch-size", "512"),
            ("pipeline.auto-watermark-interval", "0"),
        ],
    );
}

#[test]
fn sql_cases_at_5() {
    sql_cases(5, &[]);
}

/// The queries of a benchmark over the data of `scripts/test_data.sh`.
fn benchmark(name: &str, parallelism: usize, least_same: usize, refused: &[(&str, usize)]) {
    let root = std::env::var_os("THALWEG_TEST_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-data"),
        PathBuf::from,
    );
    let folder = root.join(name);
    assert!(
        folder.is_dir(),
        "{} is missing: run scripts/test_data.sh",
        folder.display()
    );
    let session = session(parallelism, &[("execution.runtime-mode", "batch")]);
    let mut files: Vec<PathBuf> = std::fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    let mut tally = Tally::default();
    let (tables, others): (Vec<_>, Vec<_>) = files
        .into_iter()
        .partition(|path| path.extension().is_some_and(|extension| extension == "parquet"));
    for table in tables {
        let sql = format!(
            "CREATE EXTERNAL TABLE {} STORED AS PARQUET LOCATION '{}'",
            table.file_stem().unwrap().display(),
            table.display()
        );
        super::changelog::done(&session, &sql);
    }
    for query in others {
        if query.extension().is_some_and(|extension| extension == "sql") {
            let sql = std::fs::read_to_string(&query).unwrap();
            tally.compare(&session, &query.file_stem().unwrap().display().to_string(), &sql);
        }
    }
    tally.check(name, least_same, refused);
}

#[test]
fn tpch_at_2() {
    benchmark("tpch/sf0.01", 2, 22, &[]);
}

#[test]
#[ignore = "minutes"]
fn tpcds_at_2() {
    let refused = [
        ("OVER a stream of updates", 14),
        ("LIMIT over a stream of updates", 4),
        ("GROUPING SETS over a stream of updates", 4),
        ("a LeftMark join (EXISTS or IN below OR)", 3),
    ];
    benchmark("tpcds/sf0.1", 2, 74, &refused);
}

#[test]
fn the_last_order_is_found() {
    assert_eq!(without_order("SELECT a FROM t ORDER BY a"), "SELECT a FROM t ");
    assert_eq!(
        without_order("SELECT a FROM t ORDER BY a LIMIT 2"),
        "SELECT a FROM t ORDER BY a LIMIT 2"
    );
    let inner = "SELECT sum(a) OVER (ORDER BY a) FROM (SELECT 1 AS a ORDER BY 1) t";
    assert_eq!(without_order(inner), inner);
    assert_eq!(
        without_order("SELECT 'ORDER BY' FROM t order by\n1"),
        "SELECT 'ORDER BY' FROM t "
    );
}
