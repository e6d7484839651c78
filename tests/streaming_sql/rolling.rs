//! Files of a job without end: they are there while it runs.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use thalweg::Outcome;

use super::changelog::{Rows, difference, done, failure, run, session, set};

const NUMBERS: &str = "CREATE TABLE numbers (n BIGINT) WITH ('connector' = 'datagen', 'rows-per-second' = '100000', \
     'fields.n.kind' = 'sequence')";

#[test]
fn an_endless_insert_shows_finished_files_while_it_runs() {
    let folder = tempfile::tempdir().unwrap();
    let session = session(1, &[("execution.buffer-timeout", "0")]);
    set(&session, "execution.runtime-mode", "automatic");
    done(&session, NUMBERS);
    for (format, policy) in [
        ("parquet", "rollover-interval' = '20 ms"),
        ("csv", "file-size' = '4 kb"),
    ] {
        let path = folder.path().join(format);
        done(
            &session,
            &format!(
                "CREATE TABLE out_{format} (n BIGINT) WITH ('connector' = 'filesystem', 'path' = '{}/', \
                 'format' = '{format}', 'sink.rolling-policy.{policy}')",
                path.display()
            ),
        );
        let Outcome::Rows(mut job) = session
            .execute(&format!("INSERT INTO out_{format} SELECT n FROM numbers"))
            .unwrap()
        else {
            panic!("an INSERT gives a count");
        };
        let canceller = job.canceller();
        let waits = path.clone();
        let ended = Arc::new(AtomicBool::new(false));
        let over = Arc::clone(&ended);
        let watcher = std::thread::spawn(move || {
            while count(&waits) < 3 && !over.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            canceller.cancel();
        });
        let cancelled = job.any(|batch| batch.is_err());
        ended.store(true, Ordering::Relaxed);
        watcher.join().unwrap();
        assert!(cancelled);
        assert!(count(&path) >= 3, "what was shown stays");
        // One writer: what was shown is what came first, and nothing twice.
        let sql = format!("SELECT COUNT(*) - MAX(n), COUNT(*) - COUNT(DISTINCT n), MIN(n) FROM out_{format}");
        let first = Rows::from([(["1", "0", "0"].map(str::to_string).to_vec(), 1)]);
        assert_eq!(
            difference(&run(&session, &sql).unwrap().unwrap().folded().unwrap(), &first),
            None
        );
    }
    let single = format!(
        "CREATE TABLE single (n BIGINT) WITH ('connector' = 'filesystem', 'path' = '{}', 'format' = 'csv')",
        folder.path().join("single.csv").display()
    );
    done(&session, &single);
    let error = failure(&session, "INSERT INTO single SELECT n FROM numbers");
    assert!(error.contains("single.csv is one file"), "{error}");
    // A limit ends it: one file will do.
    done(&session, "INSERT INTO single SELECT n FROM numbers LIMIT 10");
}

fn count(folder: &std::path::Path) -> usize {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("part-"))
        .count()
}
