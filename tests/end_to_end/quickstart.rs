//! The README's first command gives DuckDB's answers.

use std::path::Path;
use std::process::Command;

use thalweg::{Outcome, Session};

use super::answers::{difference, read_answer, session, text};

#[test]
fn the_four_questions_are_answered_as_duckdb_answers_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = std::fs::read_to_string(root.join("examples/quickstart.sql")).unwrap();
    let script = script.replace("'examples/data/", &format!("'{}/examples/data/", root.display()));
    for parallelism in [1, 2, 7] {
        let session = session(parallelism);
        let mut answers = Vec::new();
        for statement in Session::split(&script).unwrap() {
            if let Outcome::Rows(rows) = session.execute(&statement.sql).unwrap() {
                answers.push(rows.collect::<thalweg::Result<Vec<_>>>().unwrap());
            }
        }
        assert_eq!(answers.len(), 4);
        for (index, answer) in answers.iter().enumerate() {
            let expected = read_answer(&root.join(format!("tests/expected/quickstart/q{}.csv", index + 1)), "");
            assert_eq!(difference(text(answer), expected, true), None, "question {}", index + 1);
        }
    }
}

#[test]
fn the_command_runs_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let output = Command::new(env!("CARGO_BIN_EXE_thalweg"))
        .args(["run", "examples/quickstart.sql"])
        .current_dir(root)
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for answer in [
        "Frontier Airlines Inc.",
        "Newark Liberty Intl",
        "fog (visibility under a mile)",
        "Des Moines",
    ] {
        assert!(stdout.contains(answer), "'{answer}' is missing in\n{stdout}");
    }
}
