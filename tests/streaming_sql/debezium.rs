//! Tables of changes: read, aggregated, joined, written and read back; and what becomes of records that are none.

use std::collections::HashMap;
use std::path::Path;

use thalweg::Session;

use super::changelog::{Rows, difference, done, failure, run, session, set, streaming};

/// A change of the table `orders (id, k, v)`.
enum Change {
    Insert([i64; 3]),
    Update([i64; 3], [i64; 3]),
    Delete([i64; 3]),
}
use Change::{Delete, Insert, Update};

/// A thousand rows of which some change, also their key, and some go; every key's rows go and come.
fn changes() -> Vec<Change> {
    let row = |id: i64| [id, id % 7, id];
    let mut changes: Vec<Change> = (0..1000).map(|id| Insert(row(id))).collect();
    for id in (0..1000).step_by(3) {
        changes.push(Update(row(id), [id, (id + 1) % 7, -id]));
    }
    for id in (0..1000).step_by(9) {
        changes.push(Delete([id, (id + 1) % 7, -id]));
    }
    // All rows of the key 6 that are left go: the group ends.
    let left: HashMap<i64, [i64; 3]> = table(&changes);
    let mut gone: Vec<[i64; 3]> = left.into_values().filter(|row| row[1] == 6).collect();
    gone.sort_unstable();
    changes.extend(gone.into_iter().map(Delete));
    changes
}

/// The table after the changes, one after the other.
fn table(changes: &[Change]) -> HashMap<i64, [i64; 3]> {
    let mut table = HashMap::new();
    for change in changes {
        let (old, new) = match change {
            Insert(new) => (None, Some(new)),
            Update(old, new) => (Some(old), Some(new)),
            Delete(old) => (Some(old), None),
        };
        if let Some(old) = old {
            assert_eq!(table.remove(&old[0]), Some(*old));
        }
        if let Some(new) = new {
            assert_eq!(table.insert(new[0], *new), None);
        }
    }
    table
}

fn debezium(changes: &[Change]) -> String {
    let json = |[id, k, v]: &[i64; 3]| format!("{{\"id\": {id}, \"k\": {k}, \"v\": {v}}}");
    let line = |change: &Change| match change {
        Insert(new) => format!("{{\"before\": null, \"after\": {}, \"op\": \"c\"}}\n", json(new)),
        Update(old, new) => format!(
            "{{\"before\": {}, \"after\": {}, \"op\": \"u\"}}\n",
            json(old),
            json(new)
        ),
        Delete(old) => format!("{{\"before\": {}, \"after\": null, \"op\": \"d\"}}\n", json(old)),
    };
    changes.iter().map(line).collect()
}

fn create(session: &Session, columns: &str, path: &Path, more: &str) {
    done(
        session,
        &format!(
            "CREATE TABLE {columns} WITH ('connector' = 'filesystem', 'path' = '{}', 'format' = 'debezium-json'{more})",
            path.display()
        ),
    );
}

const ORDERS: &str = "orders (id BIGINT, k BIGINT, v BIGINT)";

/// A session with the table `orders`.
fn orders(parallelism: usize, folder: &Path) -> Session {
    let settings = [("execution.batch-size", "100"), ("execution.buffer-timeout", "0")];
    let session = session(parallelism, &settings);
    streaming(&session);
    let path = folder.join("orders.json");
    std::fs::write(&path, debezium(&changes())).unwrap();
    create(&session, ORDERS, &path, "");
    session
}

fn folded(session: &Session, sql: &str) -> Rows {
    run(session, sql).unwrap().unwrap().folded().unwrap()
}

/// Sum and count of the values of each key.
fn sums() -> HashMap<i64, (i64, i64)> {
    let mut sums = HashMap::new();
    for [_, k, v] in table(&changes()).into_values() {
        let (sum, count) = sums.entry(k).or_insert((0, 0));
        *sum += v;
        *count += 1;
    }
    assert_eq!(sums.len(), 6, "a key is gone");
    sums
}

fn rows(rows: impl Iterator<Item = Vec<i64>>) -> Rows {
    let mut all = Rows::new();
    for row in rows {
        *all.entry(row.iter().map(i64::to_string).collect()).or_insert(0) += 1;
    }
    all
}

const PER_KEY: &str = "SELECT k, SUM(v), COUNT(*) FROM orders GROUP BY k";

#[test]
fn a_changelog_is_aggregated_and_joined() {
    let folder = tempfile::tempdir().unwrap();
    for parallelism in [1, 3] {
        let session = orders(parallelism, folder.path());
        let all = rows(table(&changes()).into_values().map(|row| row.to_vec()));
        assert_eq!(difference(&folded(&session, "SELECT * FROM orders"), &all), None);
        let per_key = rows(sums().into_iter().map(|(k, (sum, count))| vec![k, sum, count]));
        assert_eq!(difference(&folded(&session, PER_KEY), &per_key), None);

        // A second changelog: key 3 is renamed, key 4 goes, key 5 never was.
        let keys: Vec<Change> = [0, 1, 2, 3, 4].map(|k| Insert([k, 10 * k, 0])).into();
        let keys: Vec<Change> = keys
            .into_iter()
            .chain([Update([3, 30, 0], [3, 31, 0]), Delete([4, 40, 0])])
            .collect();
        let path = folder.path().join("keys.json");
        std::fs::write(&path, debezium(&keys)).unwrap();
        create(&session, "keys (id BIGINT, k BIGINT, v BIGINT)", &path, "");
        let join = "SELECT o.id, o.v, d.k FROM orders o JOIN keys d ON o.k = d.id";
        let names = table(&keys);
        let joined = table(&changes()).into_values().filter_map(|[id, k, v]| {
            let [_, name, _] = names.get(&k)?;
            Some(vec![id, v, *name])
        });
        let joined = rows(joined);
        assert!(joined.len() > 100);
        assert_eq!(difference(&folded(&session, join), &joined), None);
        let outer = "SELECT d.k, SUM(o.v), COUNT(*) FROM orders o LEFT JOIN keys d ON o.k = d.id GROUP BY d.k";
        let mut by_name: HashMap<Option<i64>, (i64, i64)> = HashMap::new();
        for (k, (sum, count)) in sums() {
            let of = by_name.entry(names.get(&k).map(|row| row[1])).or_insert((0, 0));
            *of = (of.0 + sum, of.1 + count);
        }
        let text = |name: Option<i64>| name.map_or("NULL".to_string(), |name| name.to_string());
        let by_name: Rows = by_name
            .into_iter()
            .map(|(name, (sum, count))| (vec![text(name), sum.to_string(), count.to_string()], 1))
            .collect();
        assert!(by_name.keys().any(|row| row[0] == "NULL"));
        assert_eq!(difference(&folded(&session, outer), &by_name), None);
    }
}

#[test]
fn an_aggregate_is_written_as_changes_and_read_back() {
    for format in ["debezium-json", "canal-json"] {
        let folder = tempfile::tempdir().unwrap();
        let session = orders(2, folder.path());
        done(
            &session,
            &format!(
                "CREATE TABLE sums (k BIGINT, s BIGINT, n BIGINT) WITH ('connector' = 'filesystem', 'path' = '{}', \
                 'format' = '{format}', 'single-file-output' = 'true')",
                folder.path().join("sums.json").display()
            ),
        );
        done(&session, &format!("INSERT INTO sums {PER_KEY}"));
        let written = std::fs::read_to_string(folder.path().join("sums.json")).unwrap();
        assert!(written.lines().count() > 6, "only the last values were written");
        let per_key = rows(sums().into_iter().map(|(k, (sum, count))| vec![k, sum, count]));
        assert_eq!(difference(&folded(&session, "SELECT * FROM sums"), &per_key), None);
        let total = rows([vec![sums().values().map(|(sum, _)| sum).sum::<i64>()]].into_iter());
        assert_eq!(difference(&folded(&session, "SELECT SUM(s) FROM sums"), &total), None);
    }
}

#[test]
fn a_bad_record_fails_or_is_skipped_and_counted_or_kept() {
    let folder = tempfile::tempdir().unwrap();
    let session = orders(2, folder.path());
    let path = folder.path().join("damaged.json");
    let good = debezium(&changes());
    let (first, rest) = good.split_at(good.find('\n').unwrap() + 1);
    let damaged = format!("{first}{{\"before\": nonsense\n{rest}{{\"op\": \"x\"}}\n");
    std::fs::write(&path, damaged).unwrap();
    let kept = folder.path().join("bad.jsonl");
    create(&session, &ORDERS.replace("orders", "strict"), &path, "");
    create(
        &session,
        &ORDERS.replace("orders", "lenient"),
        &path,
        ", 'debezium-json.ignore-parse-errors' = 'true'",
    );
    create(
        &session,
        &ORDERS.replace("orders", "careful"),
        &path,
        &format!(", 'dead-letter.path' = '{}'", kept.display()),
    );
    let of = |name: &str| PER_KEY.replace("orders", name);
    let error = failure(&session, &of("strict"));
    assert!(
        error.contains("damaged.json, record 2") && error.contains("nonsense"),
        "{error}"
    );
    assert!(
        error.contains("'debezium-json.ignore-parse-errors' = 'true'"),
        "{error}"
    );
    let per_key = folded(&session, PER_KEY);
    for name in ["lenient", "careful"] {
        assert_eq!(difference(&folded(&session, &of(name)), &per_key), None, "{name}");
    }
    let kept_lines = || {
        std::fs::read_to_string(&kept)
            .unwrap()
            .lines()
            .map(str::to_string)
            .collect::<Vec<_>>()
    };
    assert_eq!(kept_lines().len(), 2);
    assert!(kept_lines()[0].contains("record 2") && kept_lines()[0].contains("nonsense"));
    assert!(kept_lines()[1].contains("unknown 'op'"), "{:?}", kept_lines());
    let analyzed = |name: &str| {
        let rows = run(&session, &format!("EXPLAIN ANALYZE {}", of(name)))
            .unwrap()
            .unwrap();
        format!("{:?}", rows.batches)
    };
    assert!(analyzed("lenient").contains("bad_records=2"), "{}", analyzed("lenient"));
    assert!(!analyzed("orders").contains("bad_records"));
}

#[test]
fn batch_mode_counts_bad_records_over_all_splits() {
    let folder = tempfile::tempdir().unwrap();
    let session = session(2, &[]);
    let files = folder.path().join("in");
    std::fs::create_dir(&files).unwrap();
    for file in 0..5 {
        std::fs::write(
            files.join(format!("{file}.json")),
            "{\"a\": 1}\n{\"a\": \"x\"}\n{\"a\": 2}\n",
        )
        .unwrap();
    }
    done(
        &session,
        &format!(
            "CREATE TABLE t (a BIGINT) WITH ('connector' = 'filesystem', 'path' = '{}', 'format' = 'json', \
             'json.ignore-parse-errors' = 'true')",
            files.display()
        ),
    );
    let rows = run(&session, "EXPLAIN ANALYZE SELECT SUM(a) FROM t").unwrap().unwrap();
    let text = format!("{:?}", rows.batches);
    assert!(text.contains("bad_records=5") && text.contains("rows_out=10"), "{text}");
}

#[test]
fn what_cannot_be_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let session = orders(1, folder.path());
    set(&session, "execution.runtime-mode", "batch");
    let error = failure(&session, PER_KEY);
    assert!(
        error.contains("'orders' is a changelog") && error.contains("streaming"),
        "{error}"
    );
    streaming(&session);
    done(
        &session,
        &format!(
            "CREATE TABLE plain (k BIGINT, s BIGINT, n BIGINT) WITH ('connector' = 'filesystem', 'path' = '{}', 'format' = 'json')",
            folder.path().join("plain/").display()
        ),
    );
    let error = failure(&session, &format!("INSERT INTO plain {PER_KEY}"));
    assert!(error.contains("the sink 'plain' takes insertions only"), "{error}");
    let watched = format!(
        "CREATE TABLE w (id BIGINT) WITH ('connector' = 'filesystem', 'path' = '{}/', 'format' = 'debezium-json', \
         'source.monitor-interval' = '1 s')",
        folder.path().display()
    );
    let error = failure(&session, &watched);
    assert!(
        error.contains("'source.monitor-interval'") && error.contains("debezium-json"),
        "{error}"
    );
}
