//! Reading expected answers and comparing results with them.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, AsArray, RecordBatch};
use arrow::csv::ReaderBuilder;
use arrow::datatypes::{DataType, Field, Schema};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use thalweg::{Outcome, Session, SessionConfig};

pub(crate) type Row = Vec<Option<String>>;

/// Numbers agree when they differ by less than this, relative to their size: DuckDB and DataFusion give averages and
/// quotients of decimals with different numbers of digits.
const TOLERANCE: f64 = 1e-4;

/// A session of the given parallelism with a small batch size, so that small data makes many batches.
pub(crate) fn session(parallelism: usize) -> Session {
    Session::new(SessionConfig {
        parallelism,
        memory_bytes: 4 << 30,
        batch_size: 1024,
        ..SessionConfig::default()
    })
    .unwrap()
}

/// Folder of generated data, e.g. `tpch/sf0.01`.
pub(crate) fn test_data(folder: &str) -> PathBuf {
    let root = std::env::var_os("THALWEG_TEST_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("target/test-data"),
        PathBuf::from,
    );
    let path = root.join(folder);
    assert!(
        path.is_dir(),
        "{} is missing: run scripts/test_data.sh (./test.sh does it)",
        path.display()
    );
    path
}

/// Makes every Parquet file of `folder` a table.
pub(crate) fn register_folder(session: &Session, folder: &Path) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "parquet") {
            let name = path.file_stem().unwrap().to_str().unwrap();
            let sql = format!(
                "CREATE EXTERNAL TABLE {name} STORED AS PARQUET LOCATION '{}'",
                path.display()
            );
            done(session, &sql);
        }
    }
}

/// Runs a statement to its end.
#[track_caller]
pub(crate) fn done(session: &Session, sql: &str) {
    session
        .execute(sql)
        .and_then(Outcome::collect)
        .unwrap_or_else(|e| panic!("{sql}: {e}"));
}

/// The rows of a query as text; NULL is `None`.
pub(crate) fn rows(session: &Session, sql: &str) -> thalweg::Result<Vec<Row>> {
    Ok(text(&session.execute(sql)?.collect()?))
}

/// The message and remedy of a statement that must fail.
#[track_caller]
pub(crate) fn failure(session: &Session, sql: &str) -> (String, String) {
    match session.execute(sql).and_then(Outcome::collect) {
        Ok(batches) => panic!(
            "{sql} gave {} rows",
            batches.iter().map(RecordBatch::num_rows).sum::<usize>()
        ),
        Err(error) => (error.to_string(), error.remedy().unwrap_or_default()),
    }
}

/// Cells as text.
pub(crate) fn text(batches: &[RecordBatch]) -> Vec<Row> {
    let options = FormatOptions::new().with_null("NULL");
    let mut rows = Vec::new();
    for batch in batches {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|c| (c.logical_nulls(), ArrayFormatter::try_new(c, &options).unwrap()))
            .collect();
        for row in 0..batch.num_rows() {
            rows.push(
                columns
                    .iter()
                    .map(|(nulls, column)| {
                        let null = nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
                        (!null).then(|| column.value(row).to_string())
                    })
                    .collect(),
            );
        }
    }
    rows
}

/// A CSV answer: a header, NULL as `null`.
pub(crate) fn read_answer(path: &Path, null: &str) -> Vec<Row> {
    let header = std::fs::read_to_string(path).unwrap();
    // Commas inside quotes do not separate.
    let columns = 1 + header
        .lines()
        .next()
        .unwrap_or_default()
        .split('"')
        .step_by(2)
        .map(|t| t.matches(',').count())
        .sum::<usize>();
    let fields: Vec<_> = (0..columns)
        .map(|i| Field::new(format!("c{i}"), DataType::Utf8, true))
        .collect();
    let pattern = if null.is_empty() { "^$" } else { r"^\\N$" };
    let reader = ReaderBuilder::new(Arc::new(Schema::new(fields)))
        .with_header(true)
        .with_null_regex(regex::Regex::new(pattern).unwrap())
        .build(File::open(path).unwrap())
        .unwrap();
    let mut rows = Vec::new();
    for batch in reader {
        let batch = batch.unwrap();
        for row in 0..batch.num_rows() {
            let cell = |column: &Arc<dyn Array>| {
                let column = column.as_string::<i32>();
                (!column.is_null(row)).then(|| column.value(row).to_string())
            };
            rows.push(batch.columns().iter().map(cell).collect());
        }
    }
    rows
}

/// `None` when the rows agree, else what differs first. Columns by position; `ordered`: rows by position too.
pub(crate) fn difference(mut actual: Vec<Row>, mut expected: Vec<Row>, ordered: bool) -> Option<String> {
    if actual.len() != expected.len() {
        return Some(format!("{} rows instead of {}", actual.len(), expected.len()));
    }
    if !ordered {
        actual.sort();
        expected.sort();
    }
    for (index, (a, e)) in actual.iter().zip(&expected).enumerate() {
        if a.len() != e.len() {
            return Some(format!("{} columns instead of {}", a.len(), e.len()));
        }
        if let Some(column) = a.iter().zip(e).position(|(a, e)| !agree(a.as_deref(), e.as_deref())) {
            return Some(format!(
                "row {index}, column {column}: {:?} instead of {:?}\n  {a:?}\n  {e:?}",
                a[column], e[column]
            ));
        }
    }
    None
}

fn agree(actual: Option<&str>, expected: Option<&str>) -> bool {
    match (actual, expected) {
        (None, None) => true,
        (Some(a), Some(e)) if a == e => true,
        (Some(a), Some(e)) => match (a.parse::<f64>(), e.parse::<f64>()) {
            (Ok(a), Ok(e)) => (a - e).abs() <= TOLERANCE * (1.0 + a.abs().max(e.abs())),
            _ => a.trim_end_matches("T00:00:00") == e.trim_end_matches(" 00:00:00"),
        },
        _ => false,
    }
}

#[test]
fn the_comparison_can_fail() {
    let row = |cells: &[&str]| cells.iter().map(|c| Some(c.to_string())).collect::<Row>();
    let (a, b) = (row(&["1.00001", "x"]), row(&["1", "x"]));
    assert_eq!(difference(vec![a.clone()], vec![b.clone()], true), None);
    assert!(difference(vec![a.clone()], vec![row(&["1.01", "x"])], true).is_some());
    assert!(difference(vec![a.clone()], vec![row(&["1", "y"])], true).is_some());
    assert!(difference(vec![a.clone()], vec![vec![None, Some("x".into())]], true).is_some());
    assert!(difference(vec![a.clone(), b.clone()], vec![a.clone()], true).is_some());
    let c = row(&["2", "z"]);
    assert!(difference(vec![a.clone(), c.clone()], vec![c.clone(), a.clone()], true).is_some());
    assert_eq!(difference(vec![a.clone(), c.clone()], vec![c, a], false), None);
}
