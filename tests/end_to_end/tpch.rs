//! The 22 TPC-H queries against DuckDB's answers over the same files.

use std::collections::HashMap;

use super::answers::{difference, done, read_answer, register_folder, rows, session, test_data};

fn check(parallelism: usize, settings: &[&str]) {
    let folder = test_data("tpch/sf0.01");
    let session = session(parallelism);
    register_folder(&session, &folder);
    settings.iter().for_each(|setting| done(&session, setting));
    let ordered: HashMap<String, bool> = read_answer(&folder.join("answers.csv"), r"\N")
        .into_iter()
        .map(|row| (row[0].clone().unwrap(), row[3].as_deref() == Some("yes")))
        .collect();
    let mut wrong = Vec::new();
    for number in 1..=22 {
        let name = format!("q{number:02}");
        let sql = std::fs::read_to_string(folder.join(format!("{name}.sql"))).unwrap();
        let expected = read_answer(&folder.join(format!("{name}.csv")), r"\N");
        match rows(&session, &sql) {
            Ok(actual) => wrong.extend(difference(actual, expected, ordered[&name]).map(|d| format!("{name}: {d}"))),
            Err(error) => wrong.push(format!("{name}: {error}")),
        }
    }
    assert!(
        wrong.is_empty(),
        "parallelism {parallelism}: {} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    assert_eq!(session.memory().reserved_bytes(), 0);
}

#[test]
fn parallelism_1() {
    check(1, &[]);
}

#[test]
fn parallelism_2() {
    check(2, &[]);
}

#[test]
fn parallelism_7() {
    check(7, &[]);
}

#[test]
fn blocking_exchanges_and_serialized_job_graphs() {
    check(
        2,
        &[
            "SET 'execution.batch-shuffle-mode' = 'ALL_EXCHANGES_BLOCKING'",
            "SET 'thalweg.serialize-job-graphs' = 'true'",
            "SET 'table.optimizer.join.broadcast-threshold' = '0'",
        ],
    );
}
