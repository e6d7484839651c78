//! 200 jobs in a row in one process: no growth in threads, file handles or memory.

use std::process::Command;

/// Set in the child process, in which nothing else runs.
const MARK: &str = "THALWEG_MANY_JOBS_CHILD";

#[test]
fn two_hundred_jobs_leave_nothing_behind() {
    if std::env::var_os(MARK).is_some() {
        return child();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "many_jobs::two_hundred_jobs_leave_nothing_behind",
            "--nocapture",
        ])
        .env(MARK, "1")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    println!("{text}");
}

#[derive(Debug)]
struct Footprint {
    threads: usize,
    handles: usize,
    resident_kib: usize,
}

fn footprint() -> Footprint {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let resident = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    // The I/O pool grows to its bound and shrinks when idle; what must not grow are the threads of jobs.
    let names = std::fs::read_dir("/proc/self/task")
        .unwrap()
        .map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap_or_default());
    let (pool, others): (Vec<_>, Vec<_>) = names.partition(|name| name.starts_with("tw-io"));
    assert!(pool.len() <= 2 + 16, "{pool:?}");
    Footprint {
        threads: others.len(),
        handles: std::fs::read_dir("/proc/self/fd").unwrap().count(),
        resident_kib: resident.split_whitespace().nth(1).unwrap().parse().unwrap(),
    }
}

fn child() {
    let spill = tempfile::tempdir().unwrap();
    let session = thalweg::Session::new(thalweg::SessionConfig {
        parallelism: 3,
        memory_bytes: 1 << 30,
        spill_directory: spill.path().to_path_buf(),
        ..thalweg::SessionConfig::default()
    })
    .unwrap();
    let data = format!("{}/examples/data", env!("CARGO_MANIFEST_DIR"));
    let one = |session: &thalweg::Session, number: usize| {
        let table = format!("'{data}/flights.parquet'");
        let blocking = if number.is_multiple_of(2) {
            "ALL_EXCHANGES_BLOCKING"
        } else {
            "ALL_EXCHANGES_PIPELINED"
        };
        session
            .execute(&format!("SET 'execution.batch-shuffle-mode' = '{blocking}'"))
            .unwrap();
        match number % 5 {
            // Left in the middle.
            0 => drop(session.execute(&format!("SELECT * FROM {table} ORDER BY distance"))),
            // Fails in the middle.
            1 => assert!(
                session
                    .execute(&format!("SELECT 1 / (month - 6) FROM {table}"))
                    .unwrap()
                    .collect()
                    .is_err()
            ),
            2 => {
                let rows = session
                    .execute(&format!(
                        "SELECT carrier, count(*), avg(dep_delay) FROM {table} f GROUP BY carrier ORDER BY 2 DESC"
                    ))
                    .unwrap();
                assert_eq!(rows.collect().unwrap().iter().map(|b| b.num_rows()).sum::<usize>(), 16);
            }
            3 => {
                let rows = session
                    .execute(&format!(
                        "SELECT a.name, count(*) FROM {table} f JOIN '{data}/airlines.parquet' a USING (carrier) \
                         GROUP BY a.name"
                    ))
                    .unwrap();
                assert_eq!(rows.collect().unwrap().iter().map(|b| b.num_rows()).sum::<usize>(), 16);
            }
            _ => {
                let rows = session.execute(&format!("SELECT * FROM {table} LIMIT 7")).unwrap();
                assert_eq!(rows.collect().unwrap().iter().map(|b| b.num_rows()).sum::<usize>(), 7);
            }
        }
        assert_eq!(session.memory().reserved_bytes(), 0, "job {number}");
    };
    (0..50).for_each(|number| one(&session, number));
    let before = footprint();
    (50..250).for_each(|number| one(&session, number));
    let after = footprint();
    println!("after 50 jobs {before:?}, after 250 {after:?}");
    assert_eq!(after.threads, before.threads);
    assert!(after.handles <= before.handles, "{before:?} {after:?}");
    // The allocator keeps some pages back; a leak of one batch a job would be 100 MB.
    assert!(
        after.resident_kib < before.resident_kib + 40 * 1024,
        "{before:?} {after:?}"
    );
    drop(session);
    assert_eq!(std::fs::read_dir(spill.path()).unwrap().count(), 0);
}
