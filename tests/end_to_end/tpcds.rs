//! The 99 TPC-DS queries against DuckDB's answers over the same files. `docs/status.md` lists what fails. `THALWEG_TPCDS_SF=1`
//! runs another scale, made by `scripts/test_data.sh tpcds --sf 1`.

use std::collections::HashMap;

use super::answers::{difference, read_answer, register_folder, rows, session, test_data};

/// Queries that are known not to give DuckDB's answer, with the reason. Empty: all 99 do.
const KNOWN_TO_FAIL: &[(&str, &str)] = &[];

fn check(parallelism: usize) {
    let scale = std::env::var("THALWEG_TPCDS_SF").unwrap_or_else(|_| "0.1".into());
    let folder = test_data(&format!("tpcds/sf{scale}"));
    let session = session(parallelism);
    register_folder(&session, &folder);
    let ordered: HashMap<String, bool> = read_answer(&folder.join("answers.csv"), r"\N")
        .into_iter()
        .map(|row| (row[0].clone().unwrap(), row[3].as_deref() == Some("yes")))
        .collect();
    let mut wrong = Vec::new();
    for number in 1..=99 {
        let name = format!("q{number:02}");
        let sql = std::fs::read_to_string(folder.join(format!("{name}.sql"))).unwrap();
        session
            .explain(&sql)
            .unwrap_or_else(|e| panic!("{name} does not plan: {e}"));
        let expected = read_answer(&folder.join(format!("{name}.csv")), r"\N");
        let outcome = match rows(&session, &sql) {
            Ok(actual) => difference(actual, expected, ordered[&name]),
            Err(error) => Some(error.to_string()),
        };
        let known = KNOWN_TO_FAIL.iter().any(|(query, _)| *query == name);
        match outcome {
            Some(problem) if !known => wrong.push(format!("{name}: {problem}")),
            None if known => wrong.push(format!("{name} is listed as failing but gives the right answer")),
            _ => {}
        }
    }
    assert!(
        wrong.is_empty(),
        "parallelism {parallelism}: {} wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn parallelism_1() {
    check(1);
}

#[test]
fn parallelism_4() {
    check(4);
}
