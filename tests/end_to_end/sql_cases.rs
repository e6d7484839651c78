//! The cases of `tests/sql/*.slt`, each at several parallelisms, with pipelined and with blocking exchanges. The
//! expected rows are DuckDB's, or worked out by hand where the file says so.

use std::path::Path;

use arrow::array::RecordBatch;
use sqllogictest::{DB, DBOutput, DefaultColumnType, Normalizer, Runner};
use tempfile::TempDir;
use thalweg::{Outcome, Session};

use super::answers::{done, session, text};

/// What a case may differ by when both sides are numbers.
const TOLERANCE: f64 = 1e-9;

struct Engine {
    session: Session,
    folder: TempDir,
}

impl DB for Engine {
    type Error = thalweg::Error;
    type ColumnType = DefaultColumnType;

    fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, thalweg::Error> {
        let data = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/data");
        let sql = sql
            .replace("$TMP", &self.folder.path().display().to_string())
            .replace("$DATA", data);
        let batches = match self.session.execute(&sql)? {
            Outcome::Rows(rows) => rows.collect::<Result<Vec<RecordBatch>, _>>()?,
            Outcome::Done(_) => return Ok(DBOutput::StatementComplete(0)),
        };
        let types = vec![DefaultColumnType::Any; batches.first().map_or(0, RecordBatch::num_columns)];
        let cell = |cell: Option<String>| match cell {
            None => "NULL".to_string(),
            Some(text) if text.is_empty() => "(empty)".to_string(),
            Some(text) => text,
        };
        let rows = text(&batches)
            .into_iter()
            .map(|row| row.into_iter().map(cell).collect())
            .collect();
        Ok(DBOutput::Rows { types, rows })
    }

    fn engine_name(&self) -> &str {
        "thalweg"
    }
}

fn agree(_: Normalizer, actual: &[Vec<String>], expected: &[String]) -> bool {
    actual.len() == expected.len()
        && actual.iter().zip(expected).all(|(row, line)| {
            let cells: Vec<&str> = line.split('\t').map(str::trim_end).collect();
            row.len() == cells.len()
                && row
                    .iter()
                    .zip(cells)
                    .all(|(a, e)| a.trim_end() == e || numbers_agree(a, e))
        })
}

fn numbers_agree(actual: &str, expected: &str) -> bool {
    match (actual.parse::<f64>(), expected.parse::<f64>()) {
        (Ok(a), Ok(e)) => (a.is_nan() && e.is_nan()) || a == e || (a - e).abs() <= TOLERANCE * a.abs().max(e.abs()),
        _ => false,
    }
}

fn run_all(parallelism: usize, settings: &[&str]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/sql");
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "slt"));
    files.sort();
    assert!(files.len() >= 10, "the cases are missing");
    let mut wrong = Vec::new();
    for file in files {
        let mut runner = Runner::new(|| async {
            let engine = Engine {
                session: session(parallelism),
                folder: tempfile::tempdir().unwrap(),
            };
            settings.iter().for_each(|setting| done(&engine.session, setting));
            Ok(engine)
        });
        runner.with_validator(agree);
        runner.with_hash_threshold(0);
        for record in sqllogictest::parse_file(&file).unwrap() {
            if let Err(error) = runner.run(record) {
                wrong.push(error.to_string());
            }
        }
    }
    assert!(
        wrong.is_empty(),
        "parallelism {parallelism}, {settings:?}:\n{}",
        wrong.join("\n")
    );
}

const BLOCKING: &str = "SET 'execution.batch-shuffle-mode' = 'ALL_EXCHANGES_BLOCKING'";
const NO_BROADCAST: &str = "SET 'table.optimizer.join.broadcast-threshold' = '0'";

#[test]
fn parallelism_1() {
    run_all(1, &[]);
}

#[test]
fn parallelism_2_without_broadcast() {
    run_all(2, &[NO_BROADCAST]);
}

#[test]
fn parallelism_7() {
    run_all(7, &[]);
}

#[test]
fn parallelism_3_blocking() {
    run_all(3, &[BLOCKING, NO_BROADCAST]);
}

#[test]
fn few_rows_in_a_batch() {
    run_all(
        2,
        &[
            "SET 'execution.batch-size' = '100'",
            "SET 'execution.buffer-timeout' = '0'",
        ],
    );
}
