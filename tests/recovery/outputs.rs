//! What the jobs that are killed write, and how it is compared with what a batch query gives.

use std::collections::BTreeMap;

use arrow::util::display::{ArrayFormatter, FormatOptions};
use thalweg::Session;

/// Output tables whose rows must be the same, one by one: name, columns, query.
pub(crate) const APPENDED: &[(&str, &str, &str)] = &[
    ("passed", "id BIGINT, k STRING, v BIGINT", "SELECT id, k, v FROM events"),
    (
        "tumbling",
        "ws TIMESTAMP(3), k STRING, n BIGINT, total BIGINT, least BIGINT, different BIGINT",
        "SELECT window_start, k, COUNT(*), SUM(v), MIN(v), COUNT(DISTINCT v) \
         FROM TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '3' SECOND) GROUP BY window_start, window_end, k",
    ),
    (
        "hopping",
        "ws TIMESTAMP(3), n BIGINT, most BIGINT",
        "SELECT window_start, COUNT(*), MAX(v) \
         FROM HOP(TABLE events, DESCRIPTOR(ts), INTERVAL '1' SECOND, INTERVAL '4' SECOND) GROUP BY window_start, window_end",
    ),
    (
        "sessions",
        "ws TIMESTAMP(3), we TIMESTAMP(3), k STRING, n BIGINT, total BIGINT",
        "SELECT window_start, window_end, k, COUNT(*), SUM(v) \
         FROM SESSION(TABLE events PARTITION BY k, DESCRIPTOR(ts), INTERVAL '2' SECOND) GROUP BY window_start, window_end, k",
    ),
    (
        "intervals",
        "a BIGINT, b BIGINT",
        "SELECT a.id, b.id FROM events a LEFT JOIN events b ON a.k = b.k AND a.v = -b.v \
         AND b.ts BETWEEN a.ts - INTERVAL '5' SECOND AND a.ts + INTERVAL '5' SECOND",
    ),
    (
        "running",
        "id BIGINT, k STRING, total BIGINT",
        "SELECT id, k, SUM(v) OVER (PARTITION BY k ORDER BY ts ROWS BETWEEN 3 PRECEDING AND CURRENT ROW) FROM events",
    ),
    (
        "firsts",
        "ws TIMESTAMP(3), k STRING, v BIGINT, place BIGINT",
        "SELECT window_start, k, v, CAST(place AS BIGINT) FROM (SELECT window_start, window_end, k, v, ROW_NUMBER() OVER \
         (PARTITION BY window_start, window_end, k ORDER BY v DESC, id) AS place \
         FROM TUMBLE(TABLE events, DESCRIPTOR(ts), INTERVAL '10' SECOND)) WHERE place <= 2",
    ),
];

/// Output tables of updates, which are compared when they have been folded.
pub(crate) const CHANGED: &[(&str, &str, &str)] = &[
    (
        "totals",
        "k STRING, n BIGINT, total BIGINT, most BIGINT",
        "SELECT k, COUNT(*), SUM(v), MAX(v) FROM events GROUP BY k",
    ),
    (
        "pairs",
        "a BIGINT, b BIGINT",
        "SELECT a.id, b.n FROM events a JOIN (SELECT v, COUNT(*) AS n FROM events WHERE v > 990 GROUP BY v) b ON a.v = b.v",
    ),
    (
        "top",
        "k STRING, id BIGINT, v BIGINT",
        "SELECT k, id, v FROM (SELECT k, id, v, ROW_NUMBER() OVER (PARTITION BY k ORDER BY v DESC, id) AS place FROM events) \
         WHERE place <= 3",
    ),
];

/// The values of a line of JSON, in the order of the columns.
pub(crate) fn row_of(line: &str, columns: &str) -> Vec<String> {
    let object: serde_json::Value = serde_json::from_str(line).unwrap();
    let names = columns.split(", ").map(|column| column.split(' ').next().unwrap());
    names
        .map(|name| match &object[name] {
            serde_json::Value::Null => "NULL".to_string(),
            serde_json::Value::String(text) => text.replace(' ', "T").trim_end_matches('Z').to_string(),
            other => other.to_string(),
        })
        .collect()
}

pub(crate) fn counted(rows: impl Iterator<Item = Vec<String>>) -> BTreeMap<Vec<String>, i64> {
    let mut counts = BTreeMap::new();
    for row in rows {
        *counts.entry(row).or_insert(0) += 1;
    }
    counts
}

pub(crate) fn rows(session: &Session, query: &str) -> BTreeMap<Vec<String>, i64> {
    let options = FormatOptions::default().with_null("NULL");
    let mut all = Vec::new();
    for batch in session.sql(query).unwrap().collect().unwrap() {
        let columns: Vec<_> = batch
            .columns()
            .iter()
            .map(|column| ArrayFormatter::try_new(column.as_ref(), &options).unwrap())
            .collect();
        for row in 0..batch.num_rows() {
            let text = |column: &ArrayFormatter<'_>| column.value(row).to_string().replace(' ', "T");
            all.push(columns.iter().map(text).collect());
        }
    }
    counted(all.into_iter())
}

#[track_caller]
pub(crate) fn compare(name: &str, written: &BTreeMap<Vec<String>, i64>, expected: &BTreeMap<Vec<String>, i64>) {
    assert!(!expected.is_empty(), "{name}: nothing is compared");
    let differs = |(row, count): &(&Vec<String>, &i64)| written.get(*row) != Some(*count);
    let lost: Vec<_> = expected.iter().filter(differs).take(5).collect();
    let extra: Vec<_> = written
        .iter()
        .filter(|(row, count)| expected.get(*row) != Some(*count))
        .take(5)
        .collect();
    assert!(
        lost.is_empty() && extra.is_empty(),
        "{name}: {} rows written, {} expected\nexpected, with counts: {lost:?}\nwritten, with counts: {extra:?}",
        written.values().sum::<i64>(),
        expected.values().sum::<i64>()
    );
}

pub(crate) fn seed() -> u64 {
    std::env::var("THALWEG_SEED")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(7)
}
