//! Joins tell the scans of their probe sides which keys can match.

use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, RecordBatch, StringArray};
use datafusion::datasource::MemTable;
use datafusion::parquet::arrow::ArrowWriter;
use datafusion::parquet::file::properties::WriterProperties;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use thalweg::{Session, SessionConfig};

use super::answers::{done, register_folder, rows, session, test_data};

const ROWS: i64 = 400_000;

/// `big(k, text)`, far more than waits in the channels while a build side is read, and `small(k, v)`.
fn tables(session: &Session) {
    let big = (0..100).map(|part| {
        let keys = part * ROWS / 100..(part + 1) * ROWS / 100;
        let texts = StringArray::from_iter_values(keys.clone().map(|key| format!("{key:0>120}")));
        let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(keys.map(|key| key % 50_000)));
        RecordBatch::try_from_iter([("k", keys), ("text", Arc::new(texts) as ArrayRef)]).unwrap()
    });
    let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(0..1000));
    let values: ArrayRef = Arc::new(Int64Array::from_iter_values((0..1000).map(|key| key % 10)));
    let small = RecordBatch::try_from_iter([("k", keys), ("v", values)]).unwrap();
    for (name, batches) in [("big", big.collect::<Vec<_>>()), ("small", vec![small])] {
        let table = MemTable::try_new(batches[0].schema(), vec![batches]).unwrap();
        session.register_table(name, Arc::new(table)).unwrap();
    }
}

fn loaded(parallelism: usize) -> Session {
    let session = Session::new(SessionConfig {
        parallelism,
        memory_bytes: 1 << 30,
        ..SessionConfig::default()
    })
    .unwrap();
    tables(&session);
    session
}

/// The plan with metrics.
fn analyzed(session: &Session, sql: &str) -> String {
    let plan = rows(session, &format!("EXPLAIN ANALYZE {sql}")).unwrap();
    plan[0][1].clone().unwrap()
}

/// `(rows_in, rows_out)` of the runtime filters, one after the other.
fn filtered(plan: &str) -> Vec<(u64, u64)> {
    let lines: Vec<&str> = plan.lines().collect();
    let number = |line: &str, name: &str| {
        let rest = line.split_once(name).unwrap().1;
        rest.split_whitespace().next().unwrap().parse().unwrap()
    };
    lines
        .windows(2)
        .filter(|pair| pair[0].trim_start().starts_with("RuntimeFilter "))
        .map(|pair| (number(pair[1], "rows_in="), number(pair[1], "rows_out=")))
        .collect()
}

#[test]
fn rows_that_cannot_match_are_dropped_at_the_scan() {
    let sql = "SELECT count(*), min(b.text), sum(s.k) FROM small s JOIN big b ON b.k = s.k WHERE s.v = 3";
    for (parallelism, setting) in [
        (1, "SET 'table.optimizer.join.broadcast-threshold' = '0'"),
        (2, "SET 'table.optimizer.join.broadcast-threshold' = '0'"),
        (2, "RESET 'table.optimizer.join.broadcast-threshold'"),
    ] {
        let session = loaded(parallelism);
        done(&session, setting);
        let plan = analyzed(&session, sql);
        let [(taken, kept)] = filtered(&plan)[..] else {
            panic!("{plan}")
        };
        // Before the join has read its build side, each of its subtasks takes no more than 8 MB.
        assert_eq!(taken, ROWS as u64, "{plan}");
        assert!(kept < ROWS as u64 / 2, "{plan}");
        let expected = rows(&session, sql).unwrap();
        assert_eq!(expected[0][0].as_deref(), Some("800"));
        done(&session, "SET 'table.optimizer.runtime-filter.enabled' = 'false'");
        assert!(filtered(&analyzed(&session, sql)).is_empty());
        assert_eq!(rows(&session, sql).unwrap(), expected);
        assert_eq!(session.memory().reserved_bytes(), 0);
    }
}

/// `sorted(k, text)` as Parquet in many row groups and several splits, by key.
fn sorted_file(session: &Session, folder: &Path) {
    let path = folder.join("sorted.parquet");
    let mut random = StdRng::seed_from_u64(1);
    let mut batches = (0..10i64).map(|part| {
        let keys = part * 20_000..(part + 1) * 20_000;
        let texts = StringArray::from_iter_values(keys.clone().map(|_| format!("{:0>120}", random.random::<u128>())));
        let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(keys));
        RecordBatch::try_from_iter([("k", keys), ("text", Arc::new(texts) as ArrayRef)]).unwrap()
    });
    let first = batches.next().unwrap();
    let properties = WriterProperties::builder()
        .set_max_row_group_row_count(Some(10_000))
        .set_dictionary_enabled(false)
        .build();
    let file = std::fs::File::create(&path).unwrap();
    let mut writer = ArrowWriter::try_new(file, first.schema(), Some(properties)).unwrap();
    writer.write(&first).unwrap();
    batches.for_each(|batch| writer.write(&batch).unwrap());
    writer.close().unwrap();
    done(
        session,
        &format!(
            "CREATE EXTERNAL TABLE sorted STORED AS PARQUET LOCATION '{}'",
            path.display()
        ),
    );
}

#[test]
fn what_lies_outside_the_bounds_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let session = loaded(1);
    sorted_file(&session, folder.path());
    let sql = "SELECT count(*), min(b.text), sum(s.k) FROM small s JOIN sorted b ON b.k = s.k WHERE s.v = 3";
    let plan = analyzed(&session, sql);
    let [(read, _)] = filtered(&plan)[..] else {
        panic!("{plan}")
    };
    assert!(read < 120_000, "{plan}");
    let expected = rows(&session, sql).unwrap();
    assert_eq!(expected[0][0].as_deref(), Some("100"));
    let none = "SELECT count(*), min(b.text) FROM small s JOIN sorted b ON b.k = s.k WHERE s.v = 3 AND s.k = 4";
    assert_eq!(rows(&session, none).unwrap()[0][0].as_deref(), Some("0"));
    done(&session, "SET 'table.optimizer.runtime-filter.enabled' = 'false'");
    assert_eq!(rows(&session, sql).unwrap(), expected);
}

#[test]
fn joins_that_keep_unmatched_rows_drop_none() {
    let session = loaded(2);
    for sql in [
        "SELECT count(*), count(s.k) FROM big b LEFT JOIN small s ON b.k = s.k AND s.v = 3",
        "SELECT count(*), count(s.k) FROM big b FULL JOIN (SELECT * FROM small WHERE v = 3) s ON b.k = s.k",
        "SELECT count(*), max(text) FROM big b WHERE NOT EXISTS (SELECT 1 FROM small s WHERE b.k = s.k AND s.v = 3)",
    ] {
        done(&session, "SET 'table.optimizer.runtime-filter.min-probe-rows' = '0'");
        let plan = analyzed(&session, sql);
        assert!(filtered(&plan).is_empty(), "{plan}");
    }
}

/// With filters wherever they may be: the answers stay the same.
#[test]
fn tpch_answers_do_not_depend_on_filters() {
    let folder = test_data("tpch/sf0.01");
    let session = session(2);
    register_folder(&session, &folder);
    let mut looked = 0;
    for number in 1..=22 {
        let sql = std::fs::read_to_string(folder.join(format!("q{number:02}.sql"))).unwrap();
        done(&session, "SET 'table.optimizer.runtime-filter.enabled' = 'false'");
        let without = rows(&session, &sql).unwrap();
        done(&session, "SET 'table.optimizer.runtime-filter.enabled' = 'true'");
        done(&session, "SET 'table.optimizer.runtime-filter.min-probe-rows' = '0'");
        assert_eq!(rows(&session, &sql).unwrap(), without, "q{number:02}");
        let plan = rows(&session, &format!("EXPLAIN {sql}")).unwrap();
        looked += usize::from(
            plan.iter()
                .any(|row| row[1].as_ref().unwrap().contains("RuntimeFilter #0")),
        );
    }
    assert!(looked > 10, "only {looked} queries have filters");
}
