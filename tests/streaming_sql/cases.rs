//! The cases of `cases/*.slt` in batch and in streaming mode: the same text, the same rows. Expected are the rows that
//! are left when the changelog is folded; DuckDB gave them, or a person where the file says so.

use std::path::{Path, PathBuf};

use sqllogictest::{DB, DBOutput, DefaultColumnType, Normalizer, Runner};
use tempfile::TempDir;
use thalweg::{Error, Session};

use super::changelog::{canonical, run, session, set};

const BATCH: &str = "batch";
const STREAMING: &str = "streaming";

struct Engine {
    session: Session,
    folder: TempDir,
}

impl DB for Engine {
    type Error = Error;
    type ColumnType = DefaultColumnType;

    fn run(&mut self, sql: &str) -> Result<DBOutput<DefaultColumnType>, Error> {
        let sql = sql
            .replace("$TMP", &self.folder.path().display().to_string())
            .replace("$DATA", &folder("data").display().to_string());
        let Some(collected) = run(&self.session, &sql)? else {
            return Ok(DBOutput::StatementComplete(0));
        };
        let types = |columns| vec![DefaultColumnType::Any; columns];
        let folded = match collected.folded() {
            Ok(folded) => folded,
            // Agrees with no expected row.
            Err(why) => {
                return Ok(DBOutput::Rows {
                    types: types(1),
                    rows: vec![vec![why]],
                });
            }
        };
        let mut rows: Vec<Vec<String>> = folded
            .into_iter()
            .flat_map(|(row, count)| std::iter::repeat_n(row, usize::try_from(count).unwrap()))
            .map(|row| row.into_iter().map(shown).collect())
            .collect();
        rows.sort();
        let changes = usize::from(collected.is_changelog());
        let types = types(collected.schema.fields().len() - changes);
        Ok(DBOutput::Rows { types, rows })
    }

    fn engine_name(&self) -> &str {
        "thalweg"
    }
}

pub(crate) fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/streaming_sql")
        .join(name)
}

fn shown(cell: String) -> String {
    if cell.is_empty() { "(empty)".into() } else { cell }
}

/// Both sides in an order of their own: a stream has none.
fn agree(_: Normalizer, actual: &[Vec<String>], expected: &[String]) -> bool {
    let mut expected: Vec<Vec<String>> = expected
        .iter()
        .map(|line| line.split('\t').map(|cell| canonical(cell.to_string())).collect())
        .collect();
    expected.sort();
    actual == expected
}

/// Runs every file; `mode` is also a label of the records, for `onlyif` and `skipif`.
fn run_all(mode: &str, parallelism: usize, settings: &[(&str, &str)]) {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder("cases"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.retain(|path| path.extension().is_some_and(|extension| extension == "slt"));
    files.sort();
    assert!(files.len() >= 8, "the cases are missing");
    let mut wrong = Vec::new();
    for file in files {
        let mut runner = Runner::new(|| async {
            let session = session(parallelism, settings);
            set(&session, "execution.runtime-mode", mode);
            Ok(Engine {
                session,
                folder: tempfile::tempdir().unwrap(),
            })
        });
        runner.add_label(mode);
        if settings.contains(&SERIALIZED) {
            runner.add_label("serialized");
        }
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
        "{} wrong in {mode} mode at parallelism {parallelism} {settings:?}:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

const SMALL: (&str, &str) = ("execution.batch-size", "2");
const EACH_BATCH: (&str, &str) = ("pipeline.auto-watermark-interval", "0");
const SERIALIZED: (&str, &str) = ("thalweg.serialize-job-graphs", "true");

#[test]
fn batch() {
    run_all(BATCH, 2, &[]);
}

#[test]
fn streaming_at_1() {
    run_all(STREAMING, 1, &[]);
}

#[test]
fn streaming_at_1_in_small_batches() {
    run_all(STREAMING, 1, &[SMALL, EACH_BATCH]);
}

#[test]
fn streaming_at_2_in_small_batches() {
    run_all(STREAMING, 2, &[SMALL, EACH_BATCH, ("execution.buffer-timeout", "0")]);
}

#[test]
fn streaming_at_5() {
    run_all(STREAMING, 5, &[EACH_BATCH]);
}

#[test]
fn streaming_at_5_through_serialized_graphs() {
    run_all(STREAMING, 5, &[SMALL, SERIALIZED]);
}
