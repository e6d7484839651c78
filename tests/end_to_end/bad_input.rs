//! Bad input, each with the exact message.

use std::io::Write;
use std::path::Path;

use super::answers::{done, failure, session};

fn flights() -> String {
    format!("{}/examples/data/flights.parquet", env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn malformed_sql_with_its_position() {
    let session = session(2);
    assert_eq!(
        failure(&session, "SELECT a,\n  FROM t WHERE"),
        (
            "syntax error at line 2, column 15: Expected: an expression, found: EOF".into(),
            "check the statement at that place".into()
        )
    );
    assert_eq!(
        failure(&session, "SELEC 1").0,
        "syntax error at line 1, column 1: Expected: an SQL statement, found: SELEC"
    );
    assert_eq!(
        failure(&session, "SELECT 'open").0,
        "syntax error at line 1, column 8: Unterminated string literal"
    );
    assert_eq!(
        failure(&session, "SELECT 1; SELECT 2").0,
        "there is more than one statement"
    );
    assert_eq!(failure(&session, " -- nothing").0, "there is no statement");
}

#[test]
fn unknown_tables_and_columns_with_suggestions() {
    let session = session(2);
    done(
        &session,
        &format!(
            "CREATE EXTERNAL TABLE flights STORED AS PARQUET LOCATION '{}'",
            flights()
        ),
    );
    assert_eq!(
        failure(&session, "SELECT * FROM flihgts"),
        ("there is no table 'flihgts'".into(), "did you mean 'flights'?".into())
    );
    assert_eq!(
        failure(&session, "SELECT * FROM zebra"),
        ("there is no table 'zebra'".into(), "the tables are: flights".into())
    );
    assert_eq!(
        failure(&session, "SELECT dep_dleay FROM flights"),
        (
            "there is no column 'dep_dleay'".into(),
            "did you mean 'dep_delay'?".into()
        )
    );
    assert_eq!(
        failure(
            &session,
            "SELECT carrier FROM flights a JOIN flights b ON a.flight = b.flight"
        )
        .0,
        "the column 'carrier' is ambiguous"
    );
    assert!(
        failure(&session, "SELECT no_such_function(1)")
            .0
            .contains("no_such_function")
    );
}

#[test]
fn type_mismatches() {
    // One subtask: which of several meets the error first is a matter of chance, and the message names it.
    let session = session(1);
    done(&session, "CREATE TABLE t AS SELECT 1 AS n, 'x' AS s, true AS b");
    assert_eq!(
        failure(&session, "SELECT b + 1 FROM t"),
        (
            "Cannot coerce arithmetic expression Boolean + Int64 to valid types".into(),
            "cast one side to the type of the other".into()
        )
    );
    assert_eq!(
        failure(&session, "SELECT CAST(s AS INT) FROM t"),
        (
            "Cannot cast string 'x' to value of Int32 type (in operator Project [0.0])".into(),
            "TRY_CAST gives NULL for what cannot be cast".into()
        )
    );
    let (cause, remedy) = failure(&session, "SELECT sum(s) FROM t");
    assert_eq!(cause, "there is no function sum(Utf8)");
    assert!(
        remedy.starts_with("cast the arguments; there is ") && remedy.contains("sum(Float64)"),
        "{remedy}"
    );
    let (cause, _) = failure(&session, "INSERT INTO t VALUES (1, 'x')");
    assert_eq!(
        cause,
        "Inconsistent data length across values list: got 2 values in row 0 but expected 3"
    );
}

#[test]
fn division_by_zero() {
    // One subtask: which of several meets the error first is a matter of chance, and the message names it.
    let session = session(1);
    done(&session, "CREATE TABLE t AS SELECT i FROM generate_series(0, 10) g(i)");
    let (cause, remedy) = failure(&session, "SELECT 1 / i FROM t");
    assert_eq!(cause, "division by zero (in operator Project [0.0])");
    assert_eq!(remedy, "guard the divisor, e.g. x / NULLIF(y, 0)");
}

fn write(path: &Path, bytes: &[u8]) {
    std::fs::File::create(path).unwrap().write_all(bytes).unwrap();
}

#[test]
fn a_truncated_parquet_file() {
    let session = session(2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("cut.parquet");
    let whole = std::fs::read(flights()).unwrap();
    write(&path, &whole[..whole.len() / 2]);
    let sql = format!(
        "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{}'",
        path.display()
    );
    let (cause, remedy) = failure(&session, &sql);
    assert_eq!(
        cause,
        format!(
            "{}: Parquet error: Parquet error: Invalid Parquet file. Corrupt footer",
            path.display()
        )
    );
    assert_eq!(remedy, "check that the file is whole and of the format that is read");
    // Damaged in the middle: found when it is read.
    let mut damaged = whole.clone();
    let middle = damaged.len() / 3;
    damaged[middle..middle + 4096].fill(0xA5);
    write(&path, &damaged);
    done(&session, &sql);
    let (cause, _) = failure(
        &session,
        "SELECT sum(dep_delay), max(tailnum), max(dest), sum(distance), sum(arr_time) FROM t",
    );
    assert!(cause.contains("cut.parquet"), "{cause}");
}

#[test]
fn a_csv_row_with_too_few_fields() {
    // One subtask: which of several meets the error first is a matter of chance, and the message names it.
    let session = session(1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("short.csv");
    let mut text = String::from("a,b,c\n");
    (0..30_000).for_each(|i| text.push_str(&format!("{i},x,{}\n", i * 2)));
    text.push_str("30000,x\n");
    (0..30_000).for_each(|i| text.push_str(&format!("{i},x,{}\n", i * 2)));
    write(&path, text.as_bytes());
    done(
        &session,
        &format!(
            "CREATE TABLE t (a BIGINT, b VARCHAR, c BIGINT) WITH ('connector' = 'filesystem', 'path' = '{}', \
             'format' = 'csv', 'csv.header' = 'true')",
            path.display()
        ),
    );
    let (cause, _) = failure(&session, "SELECT sum(c) FROM t");
    assert_eq!(
        cause,
        format!(
            "{}, line 30002: 2 fields where the table has 3 (in operator Scan [0.0])",
            path.display()
        )
    );
}

#[test]
fn invalid_utf8_and_wrong_values_in_text() {
    // One subtask: which of several meets the error first is a matter of chance, and the message names it.
    let session = session(1);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("bad.csv");
    write(&path, b"a,b\n1,x\n2,\xFF\xFE\n3,y\n");
    let create = |name: &str, format: &str, columns: &str, file: &Path| {
        let header = if format == "csv" { ", 'csv.header' = 'true'" } else { "" };
        format!(
            "CREATE TABLE {name} ({columns}) WITH ('connector' = 'filesystem', 'path' = '{}', 'format' = '{format}'{header})",
            file.display()
        )
    };
    done(&session, &create("utf", "csv", "a BIGINT, b VARCHAR", &path));
    let (cause, _) = failure(&session, "SELECT max(b) FROM utf");
    assert_eq!(
        cause,
        format!(
            "{}, line 3, column 'b': invalid UTF-8 (in operator Scan [0.0])",
            path.display()
        )
    );
    let path = folder.path().join("words.csv");
    write(&path, b"a,b\n1,x\nabc,y\n");
    done(&session, &create("words", "csv", "a BIGINT, b VARCHAR", &path));
    let (cause, _) = failure(&session, "SELECT sum(a) FROM words");
    assert_eq!(
        cause,
        format!(
            "{}, line 3: cannot parse 'abc' as Int64 in column 'a' (in operator Scan [0.0])",
            path.display()
        )
    );
    let path = folder.path().join("bad.json");
    write(&path, b"{\"a\": 1}\n{\"a\": \n{\"a\": 3}\n");
    done(&session, &create("json", "json", "a BIGINT", &path));
    let (cause, _) = failure(&session, "SELECT sum(a) FROM json");
    assert_eq!(
        cause,
        format!(
            "{}, line 2: the file ends in the middle of a record (in operator Scan [0.0])",
            path.display()
        )
    );
}

#[test]
fn a_missing_file() {
    let session = session(2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("nowhere.parquet");
    let (cause, remedy) = failure(&session, &format!("SELECT * FROM '{}'", path.display()));
    assert_eq!(
        cause,
        format!("there is no file '{}' to read as a table", path.display())
    );
    assert_eq!(
        remedy,
        "check the path; .parquet, .csv, .json, .arrow and .avro files can be read in place"
    );
    let (cause, remedy) = failure(
        &session,
        &format!(
            "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{}'",
            path.display()
        ),
    );
    assert_eq!(cause, format!("there is no file '{}'", path.display()));
    assert_eq!(remedy, "check the path");
    // Removed after the table was made.
    std::fs::copy(flights(), &path).unwrap();
    done(
        &session,
        &format!(
            "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{}'",
            path.display()
        ),
    );
    std::fs::remove_file(&path).unwrap();
    let (cause, _) = failure(&session, "SELECT count(tailnum) FROM t");
    assert!(cause.contains("nowhere.parquet"), "{cause}");
}

#[test]
fn a_disk_that_fills_up() {
    let session = session(2);
    let (cause, remedy) = failure(
        &session,
        "COPY (SELECT i FROM generate_series(1, 1000) g(i)) TO '/dev/full/x.csv'",
    );
    assert!(cause.contains("/dev/full"), "{cause}");
    assert!(!remedy.is_empty());
    full_disk::check();
}

/// A file system of 64 KiB, where this process may mount one (CI runs as root).
mod full_disk {
    use std::process::Command;

    use super::super::answers::{done, failure, session};

    struct Mounted(tempfile::TempDir);

    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = Command::new("umount").arg(self.0.path()).status();
        }
    }

    pub(super) fn check() {
        let folder = tempfile::tempdir().unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=64k", "tmpfs"])
            .arg(folder.path())
            .status()
            .is_ok_and(|status| status.success());
        if !mounted {
            println!(
                "no right to mount a small file system here: the part of the test on a really full disk is left out"
            );
            return;
        }
        let disk = Mounted(folder);
        let path = disk.0.path().display();
        let session = session(2);
        let rows = "SELECT i, md5(CAST(i AS VARCHAR)) AS s FROM generate_series(1, 200000) g(i)";
        for target in [
            format!("'{path}/x.csv'"),
            format!("'{path}/x.parquet'"),
            format!("'{path}/dir/' STORED AS JSON"),
        ] {
            let (cause, remedy) = failure(&session, &format!("COPY ({rows}) TO {target}"));
            assert!(
                cause.contains("No space left on device") && cause.contains(&path.to_string()),
                "{cause}"
            );
            assert!(remedy.contains("free space"), "{remedy}");
            let left: Vec<_> = std::fs::read_dir(disk.0.path())
                .unwrap()
                .map(|e| e.unwrap().file_name())
                .filter(|n| n != "dir")
                .collect();
            assert!(left.is_empty(), "{left:?}");
        }
        done(&session, &format!("SET 'io.tmp.dirs' = '{path}'"));
        done(
            &session,
            "SET 'execution.batch-shuffle-mode' = 'ALL_EXCHANGES_BLOCKING'",
        );
        let small = thalweg::Session::new(thalweg::SessionConfig {
            memory_bytes: 1 << 20,
            spill_directory: disk.0.path().to_path_buf(),
            blocking_exchanges: true,
            ..thalweg::SessionConfig::default()
        })
        .unwrap();
        let (cause, remedy) = failure(&small, &format!("SELECT count(*) FROM ({rows}) GROUP BY s"));
        assert!(
            cause.contains("No space left on device") && cause.contains(&path.to_string()),
            "{cause}"
        );
        assert!(remedy.contains("io.tmp.dirs"), "{remedy}");
        drop(small);
        assert_eq!(
            std::fs::read_dir(disk.0.path())
                .unwrap()
                .filter(|e| e.as_ref().unwrap().file_name() != "dir")
                .count(),
            0
        );
    }
}

#[test]
fn a_deep_statement_is_answered_and_a_deeper_one_refused() {
    let session = session(2);
    done(&session, "CREATE TABLE t AS SELECT 1 AS a");
    let chain = |length: usize| vec!["a <> 2"; length].join(" AND ");
    let counted = session
        .execute(&format!("SELECT count(*) FROM t WHERE {}", chain(4900)))
        .unwrap()
        .collect()
        .unwrap();
    assert_eq!(counted[0].num_rows(), 1);
    let (cause, remedy) = failure(&session, &format!("SELECT count(*) FROM t WHERE {}", chain(20_000)));
    assert_eq!(cause, "the statement nests 19999 levels deep, more than 5000");
    assert!(remedy.contains("join with it"));
    let nested = format!("SELECT {}1{}", "(".repeat(1000), ")".repeat(1000));
    assert_eq!(
        failure(&session, &nested).0,
        "syntax error: the statement is nested too deeply"
    );
}

#[test]
fn line_ends_inside_quotes_are_no_ends_of_rows() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("quoted.csv");
    let mut text = String::from("a,b\n");
    (0..60_000).for_each(|i| text.push_str(&format!("{i},\"first line of {i}\n{i},second\"\n")));
    write(&path, text.as_bytes());
    for parallelism in [1, 4] {
        let session = session(parallelism);
        let sql = format!("SELECT count(*), sum(a), max(length(b)) FROM '{}'", path.display());
        let row = super::answers::rows(&session, &sql).unwrap();
        assert_eq!(
            row[0].iter().flatten().map(String::as_str).collect::<Vec<_>>(),
            ["60000", "1799970000", "32"]
        );
    }
}
