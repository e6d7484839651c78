//! COPY, INSERT and connectors: what is written can be read, and a failed job leaves nothing.

use std::path::Path;

use super::answers::{done, failure, rows, session};

fn files(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![folder.to_path_buf()];
    while let Some(path) = open.pop() {
        for entry in std::fs::read_dir(path).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.push(format!("{}/", path.strip_prefix(folder).unwrap().display()));
                open.push(path);
            } else {
                found.push(path.strip_prefix(folder).unwrap().display().to_string());
            }
        }
    }
    found.sort();
    found
}

#[test]
fn every_format_round_trips_as_a_file_and_as_a_folder() {
    let session = session(3);
    done(
        &session,
        "CREATE TABLE t AS SELECT i, CASE WHEN i % 3 = 0 THEN NULL ELSE 's,\"' || i END AS s, i * 0.5 AS f \
                    FROM generate_series(1, 5000) g(i)",
    );
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    for (format, extension) in [
        ("parquet", "parquet"),
        ("csv", "csv"),
        ("json", "json"),
        ("arrow", "arrow"),
        ("avro", "avro"),
        ("csv", "csv.gz"),
        ("json", "json.zst"),
    ] {
        let compression = match extension.rsplit_once('.') {
            Some((_, "gz")) => ", 'compression' = 'gzip'",
            Some((_, "zst")) => ", 'compression' = 'zstd'",
            _ => "",
        };
        let name = extension.replace('.', "_");
        done(
            &session,
            &format!(
                "CREATE TABLE w_{name} (i BIGINT, s VARCHAR, f DOUBLE) \
                 WITH ('connector' = 'filesystem', 'path' = '{path}/{name}/', 'format' = '{format}'{compression})"
            ),
        );
        let counted = rows(&session, &format!("INSERT INTO w_{name} SELECT i, s, f FROM t")).unwrap();
        assert_eq!(counted, vec![vec![Some("5000".to_string())]], "{extension}");
        let sums = |table: &str| {
            rows(
                &session,
                &format!("SELECT count(*), count(s), sum(i), sum(f), min(s), max(s) FROM {table}"),
            )
            .unwrap()
        };
        assert_eq!(sums(&format!("w_{name}")), sums("t"), "{extension}");
        assert!(
            !files(folder.path()).iter().any(|file| file.contains("staging")),
            "{:?}",
            files(folder.path())
        );
    }
    for extension in ["parquet", "csv", "json", "arrow", "avro"] {
        done(
            &session,
            &format!("COPY (SELECT i, s, f FROM t) TO '{path}/single.{extension}'"),
        );
        let from_path = format!("SELECT count(*), sum(i) FROM '{path}/single.{extension}'");
        assert_eq!(
            rows(&session, &from_path).unwrap(),
            rows(&session, "SELECT count(*), sum(i) FROM t").unwrap()
        );
    }
}

#[test]
fn partitions_become_folders_and_are_pruned() {
    let session = session(2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    done(
        &session,
        "CREATE TABLE t AS SELECT i, i % 4 AS p, CASE WHEN i % 2 = 0 THEN 'a b' END AS q \
                    FROM generate_series(1, 100) g(i)",
    );
    done(
        &session,
        &format!("COPY t TO '{path}/out/' STORED AS PARQUET PARTITIONED BY (p)"),
    );
    let found = files(folder.path());
    for p in 0..4 {
        assert!(found.contains(&format!("out/p={p}/")), "{found:?}");
    }
    done(
        &session,
        &format!("CREATE EXTERNAL TABLE o STORED AS PARQUET PARTITIONED BY (p) LOCATION '{path}/out/'"),
    );
    let counted = rows(&session, "SELECT p, count(*), sum(i) FROM o WHERE p = '2' GROUP BY p").unwrap();
    assert_eq!(
        counted[0].iter().flatten().map(String::as_str).collect::<Vec<_>>(),
        ["2", "25", "1250"]
    );
}

#[test]
fn a_failed_write_leaves_nothing_and_keeps_what_was_there() {
    let session = session(3);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    done(
        &session,
        "CREATE TABLE t AS SELECT i FROM generate_series(1, 20000) g(i)",
    );
    done(&session, &format!("COPY (SELECT 1 AS old) TO '{path}/kept.parquet'"));
    for target in [
        format!("'{path}/new.csv'"),
        format!("'{path}/kept.parquet'"),
        format!("'{path}/dir/' STORED AS PARQUET"),
    ] {
        let (cause, _) = failure(
            &session,
            &format!("COPY (SELECT 1 / (i - 19999) AS x FROM t) TO {target}"),
        );
        assert!(cause.starts_with("division by zero"), "{cause}");
    }
    let found: Vec<_> = files(folder.path()).into_iter().filter(|file| file != "dir/").collect();
    assert_eq!(found, ["kept.parquet"]);
    assert_eq!(
        rows(&session, &format!("SELECT * FROM '{path}/kept.parquet'")).unwrap(),
        [[Some("1".to_string())]]
    );
}

#[test]
fn a_cancelled_write_leaves_nothing() {
    let session = session(2);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    done(
        &session,
        "CREATE TABLE g (i BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '2000000000')",
    );
    let outcome = session.execute(&format!("COPY g TO '{path}/x.parquet'")).unwrap();
    drop(outcome);
    assert!(files(folder.path()).is_empty(), "{:?}", files(folder.path()));
}

#[test]
fn datagen_is_the_same_at_every_parallelism() {
    let sums = [1, 2, 7].map(|parallelism| {
        let session = session(parallelism);
        done(
            &session,
            "CREATE TABLE g (i BIGINT, s VARCHAR, f DOUBLE) WITH ('connector' = 'datagen', \
             'number-of-rows' = '200000', 'seed' = '7', 'fields.i.kind' = 'sequence', 'fields.i.start' = '1', \
             'fields.i.end' = '200000', 'fields.s.length' = '3')",
        );
        rows(
            &session,
            "SELECT count(*), sum(i), count(DISTINCT s), min(f), max(f) FROM g",
        )
        .unwrap()
    });
    assert_eq!(sums[0], sums[1]);
    assert_eq!(sums[0], sums[2]);
    assert_eq!(sums[0][0][1].as_deref(), Some("20000100000"));
}

#[test]
fn blackhole_counts_and_cannot_be_read() {
    let session = session(2);
    done(&session, "CREATE TABLE b (i BIGINT) WITH ('connector' = 'blackhole')");
    let counted = rows(&session, "INSERT INTO b SELECT i FROM generate_series(1, 1000) g(i)").unwrap();
    assert_eq!(counted, [[Some("1000".to_string())]]);
    assert!(failure(&session, "SELECT * FROM b").0.contains("is a sink"));
    let (cause, _) = failure(&session, "CREATE TABLE c (i BIGINT) WITH ('connector' = 'kafak')");
    assert!(
        cause.contains("there is no connector 'kafak'") && cause.contains("filesystem"),
        "{cause}"
    );
    let (cause, _) = failure(
        &session,
        "CREATE TABLE c (i BIGINT) WITH ('connector' = 'blackhole', 'size' = '3')",
    );
    assert!(cause.contains("size"), "{cause}");
}

#[test]
fn records_of_fixed_length_are_sorted_from_file_to_file() {
    let session = session(4);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().display();
    // Three-byte keys, scattered, and a payload that follows from the key.
    let keys: Vec<u32> = (0..150_000)
        .map(|row: u32| row.wrapping_mul(2_654_435_761) >> 8)
        .collect();
    let record = |key: &u32| [&key.to_be_bytes()[1..], b"payload of ", &key.to_be_bytes()[1..]].concat();
    let input: Vec<u8> = keys.iter().flat_map(record).collect();
    std::fs::create_dir(folder.path().join("in")).unwrap();
    std::fs::write(folder.path().join("in/1.bin"), &input[..17 * 100_000]).unwrap();
    std::fs::write(folder.path().join("in/2.bin"), &input[17 * 100_000..]).unwrap();
    for name in ["in", "out"] {
        done(
            &session,
            &format!(
                "CREATE TABLE \"{name}\" (\"key\" BYTEA, payload BYTEA) WITH ('connector' = 'filesystem', \
                 'path' = '{path}/{name}/', 'format' = 'fixed', 'fixed.lengths' = '3,14')"
            ),
        );
    }
    let sort = "INSERT INTO out SELECT \"key\", payload FROM \"in\" ORDER BY \"key\"";
    assert_eq!(rows(&session, sort).unwrap(), vec![vec![Some("150000".to_string())]]);
    let written: Vec<u8> = files(&folder.path().join("out"))
        .iter()
        .flat_map(|file| std::fs::read(folder.path().join("out").join(file)).unwrap())
        .collect();
    let mut sorted = keys;
    sorted.sort_unstable();
    assert!(written == sorted.iter().flat_map(record).collect::<Vec<u8>>());

    let wrong = "INSERT INTO out SELECT \"key\", \"key\" AS payload FROM \"in\"";
    let (message, _) = failure(&session, wrong);
    assert!(
        message.contains("column 'payload' has a value of 3 bytes where records hold 14"),
        "{message}"
    );
    std::fs::write(folder.path().join("in/3.bin"), b"too short").unwrap();
    let (message, _) = failure(&session, "SELECT max(payload) FROM \"in\"");
    let expected = "3.bin: the file has 9 bytes, which is not a multiple of the 17 bytes of a record";
    assert!(message.contains(expected), "{message}");
}

#[test]
fn an_ordered_copy_to_a_folder_is_in_order_over_all_files() {
    let defaults = thalweg::SessionConfig::default();
    let (folder, spill) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    for (number, memory_bytes) in [defaults.memory_bytes, 4 << 20].into_iter().enumerate() {
        let session = thalweg::Session::new(thalweg::SessionConfig {
            parallelism: 12,
            memory_bytes,
            spill_directory: spill.path().to_path_buf(),
            ..defaults.clone()
        })
        .unwrap();
        // A hot key, NULLs, and keys in no order, read and written by 12 subtasks.
        done(
            &session,
            "CREATE TABLE unsorted AS \
             SELECT CASE WHEN i % 10 = 0 THEN NULL WHEN i % 2 = 0 THEN 7 ELSE i * 7919 % 100003 END AS k, i \
             FROM generate_series(1, 100000) g(i)",
        );
        done(
            &session,
            &format!(
                "COPY (SELECT k, i FROM unsorted ORDER BY k DESC NULLS LAST, i) TO '{}/{number}/' STORED AS CSV",
                folder.path().display()
            ),
        );
        let mut names = files(&folder.path().join(number.to_string()));
        names.sort();
        assert!(names.len() > 1, "{names:?}");
        let mut found = Vec::new();
        for name in names {
            let text = std::fs::read_to_string(folder.path().join(number.to_string()).join(name)).unwrap();
            found.extend(text.lines().skip(1).map(|line| {
                let (key, row) = line.split_once(',').unwrap();
                (key.parse::<i64>().ok(), row.parse::<i64>().unwrap())
            }));
        }
        let mut expected: Vec<(Option<i64>, i64)> = (1..=100_000)
            .map(|i| match i {
                i if i % 10 == 0 => (None, i),
                i if i % 2 == 0 => (Some(7), i),
                i => (Some(i * 7919 % 100_003), i),
            })
            .collect();
        expected.sort_by_key(|(key, row)| (key.is_none(), std::cmp::Reverse(*key), *row));
        assert!(found == expected, "within {memory_bytes} bytes");
    }
    assert_eq!(files(spill.path()), Vec::<String>::new());
}
