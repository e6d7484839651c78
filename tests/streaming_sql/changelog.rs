//! Running statements in batch and in streaming mode, and folding what they give into a multiset of rows.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::mpsc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use thalweg::{Error, Outcome, QueryResult, Session, SessionConfig};

/// Rows that are there, and how often each is. No count is 0.
pub(crate) type Rows = HashMap<Vec<String>, i64>;

/// What a query that hangs is given before it is cancelled.
const LONGEST: Duration = Duration::from_secs(if cfg!(debug_assertions) { 300 } else { 120 });

/// A session with settings.
pub(crate) fn session(parallelism: usize, settings: &[(&str, &str)]) -> Session {
    let session = Session::new(SessionConfig {
        parallelism,
        memory_bytes: 4 << 30,
        ..SessionConfig::default()
    })
    .unwrap();
    settings.iter().for_each(|(key, value)| set(&session, key, value));
    session
}

pub(crate) fn set(session: &Session, key: &str, value: &str) {
    done(session, &format!("SET '{key}' = '{value}'"));
}

pub(crate) fn streaming(session: &Session) {
    set(session, "execution.runtime-mode", "streaming");
}

/// Runs a statement to its end.
#[track_caller]
pub(crate) fn done(session: &Session, sql: &str) {
    run(session, sql).unwrap_or_else(|e| panic!("{sql}: {e} {}", e.remedy().unwrap_or_default()));
}

/// The batches of a query with their schema.
pub(crate) struct Collected {
    pub(crate) schema: SchemaRef,
    pub(crate) batches: Vec<RecordBatch>,
}

/// Runs a statement; `None` for one that has no rows. A query that does not end is cancelled, which is an error.
pub(crate) fn run(session: &Session, sql: &str) -> Result<Option<Collected>, Error> {
    let Outcome::Rows(rows) = session.execute(sql)? else {
        return Ok(None);
    };
    let (over, waits) = mpsc::channel::<()>();
    let canceller = rows.canceller();
    let watchdog = std::thread::spawn(move || {
        if waits.recv_timeout(LONGEST) == Err(mpsc::RecvTimeoutError::Timeout) {
            canceller.cancel();
        }
    });
    let schema = rows.schema();
    let batches: Result<Vec<RecordBatch>, Error> = QueryResult::collect(rows);
    drop(over);
    watchdog.join().unwrap();
    Ok(Some(Collected {
        schema,
        batches: batches?,
    }))
}

impl Collected {
    /// Whether the first column is the kind of a changelog's rows.
    pub(crate) fn is_changelog(&self) -> bool {
        self.schema.fields().first().is_some_and(|field| field.name() == "op")
    }

    /// The rows that are left when insertions and retractions have cancelled each other.
    pub(crate) fn folded(&self) -> Result<Rows, String> {
        let changes = self.is_changelog();
        let mut rows = Rows::new();
        for batch in &self.batches {
            each_row(batch, |mut row| {
                let change = match changes.then(|| row.remove(0)).as_deref() {
                    None | Some("+I" | "+U") => 1,
                    Some("-U" | "-D") => -1,
                    Some(other) => panic!("'{other}' is no kind of row"),
                };
                *rows.entry(row).or_insert(0) += change;
            });
        }
        rows.retain(|_, count| *count != 0);
        match rows.iter().find(|(_, count)| **count < 0) {
            Some((row, count)) => Err(format!("taken back {} times more than given: {row:?}", -count)),
            None => Ok(rows),
        }
    }
}

fn each_row(batch: &RecordBatch, mut to: impl FnMut(Vec<String>)) {
    let options = FormatOptions::new().with_null("NULL");
    let columns: Vec<_> = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options).unwrap())
        .collect();
    for row in 0..batch.num_rows() {
        to(columns
            .iter()
            .map(|column| canonical(column.value(row).to_string()))
            .collect());
    }
}

/// Numbers that differ only in how they were rounded become the same text: `2.50` and `2.5`, `1` and `1.0`.
pub(crate) fn canonical(cell: String) -> String {
    let text = cell.trim_end();
    if !text.contains(['.', 'e', 'E']) {
        return if text.len() == cell.len() {
            cell
        } else {
            text.to_string()
        };
    }
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number.fract() == 0.0 && number.abs() < 1e15 => format!("{number:.0}"),
        Ok(number) if number.is_finite() => format!("{number:.9e}"),
        _ => text.to_string(),
    }
}

/// Rows of batches that are no changelog.
pub(crate) fn rows_of(batches: &[RecordBatch]) -> Rows {
    let mut rows = Rows::new();
    for batch in batches {
        each_row(batch, |row| *rows.entry(row).or_insert(0) += 1);
    }
    rows
}

/// `None` when the rows are the same, else some that differ.
pub(crate) fn difference(actual: &Rows, expected: &Rows) -> Option<String> {
    let (mut missing, mut wrong): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let mut note = |row: &Vec<String>| {
        let (got, wanted) = (
            actual.get(row).copied().unwrap_or(0),
            expected.get(row).copied().unwrap_or(0),
        );
        let line = || format!("{got} times instead of {wanted}: {}", row.join(" | "));
        match got.cmp(&wanted) {
            Ordering::Less => missing.push(line()),
            Ordering::Greater => wrong.push(line()),
            Ordering::Equal => {}
        }
    };
    expected.keys().for_each(&mut note);
    actual
        .keys()
        .filter(|row| !expected.contains_key(*row))
        .for_each(&mut note);
    if wrong.is_empty() && missing.is_empty() {
        return None;
    }
    wrong.sort();
    missing.sort();
    let total = |rows: &Rows| rows.values().sum::<i64>();
    Some(format!(
        "{} rows instead of {}; {} too few, {} too many:\n  {}",
        total(actual),
        total(expected),
        missing.len(),
        wrong.len(),
        missing
            .iter()
            .take(5)
            .chain(wrong.iter().take(5))
            .map(String::as_str)
            .collect::<Vec<_>>()
            .join("\n  ")
    ))
}

#[test]
fn the_comparison_can_fail() {
    let rows = |rows: &[(&str, i64)]| -> Rows {
        rows.iter()
            .map(|(row, count)| (vec![canonical((*row).to_string())], *count))
            .collect()
    };
    assert_eq!(
        difference(&rows(&[("1.50", 2), ("x", 1)]), &rows(&[("x", 1), ("1.5", 2)])),
        None
    );
    assert_eq!(difference(&rows(&[("3.0", 1)]), &rows(&[("3", 1)])), None);
    assert!(difference(&rows(&[("1.5", 2)]), &rows(&[("1.5", 1)])).is_some());
    assert!(difference(&rows(&[("1.5", 1)]), &rows(&[("1.500001", 1)])).is_some());
    assert!(difference(&rows(&[]), &rows(&[("x", 1)])).is_some());
    assert!(difference(&rows(&[("x", 1)]), &rows(&[])).is_some());
}

/// How a statement fails, with the remedy.
pub(crate) fn failure(session: &Session, sql: &str) -> String {
    match run(session, sql) {
        Ok(result) => panic!("{sql} gave {:?}", result.map(|rows| rows.batches)),
        Err(error) => format!("{error}; {}", error.remedy().unwrap_or_default()),
    }
}
