//! `examples/stream.sql`: the same text gives the same answer as a batch and as a stream, and what is late is missing and
//! counted. The answers are DuckDB's (`tests/expected/stream/answers.sql`).

use std::path::Path;
use std::process::Command;

use thalweg::{Outcome, Session};

use super::answers::{Row, difference, read_answer, rows, session, text};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn expected(name: &str) -> Vec<Row> {
    read_answer(&root().join("tests/expected/stream").join(name), "")
}

/// The example as it is, and with the data where they are.
fn script() -> (String, String) {
    let script = std::fs::read_to_string(root().join("examples/stream.sql")).unwrap();
    let placed = script.replace("'examples/data/", &format!("'{}/examples/data/", root().display()));
    (script, placed)
}

#[test]
fn batch_and_stream_agree_and_late_flights_are_counted() {
    let (_, script) = script();
    for parallelism in [1, 2, 7] {
        let session = session(parallelism);
        let mut answers = Vec::new();
        for statement in Session::split(&script).unwrap() {
            if let Outcome::Rows(rows) = session.execute(&statement.sql).unwrap() {
                answers.push(text(&rows.collect::<thalweg::Result<Vec<_>>>().unwrap()));
            }
        }
        let [batch, stream, hasty, analyzed, changing] = &answers[..] else {
            panic!("{} answers instead of 5", answers.len());
        };
        for (answer, file) in [(batch, "all.csv"), (stream, "all.csv"), (hasty, "in_time.csv")] {
            let difference = difference(answer.clone(), expected(file), true);
            assert_eq!(difference, None, "{file}, parallelism {parallelism}");
        }
        assert_eq!(batch, stream);
        let plan = analyzed[0][1].as_deref().unwrap_or_default();
        assert!(plan.contains("late_rows=5"), "{plan}");
        assert_eq!(difference(changing.clone(), expected("changing.csv"), false), None);
    }
}

#[test]
fn the_two_answers_come_from_one_text() {
    let (script, _) = script();
    let queries: Vec<String> = Session::split(&script)
        .unwrap()
        .into_iter()
        .map(|statement| statement.sql)
        .filter(|sql| sql.contains("AS delayed"))
        .map(|sql| sql[sql.find("SELECT").unwrap()..].to_string())
        .collect();
    assert_eq!(queries.len(), 3);
    assert_eq!(queries[0], queries[1]);
    assert_eq!(queries[0], queries[2].replace("hasty_departures", "departures"));
}

#[test]
fn the_departures_are_those_of_the_flights() {
    let session = session(2);
    let data = root().join("examples/data");
    let readme = std::fs::read_to_string(data.join("README.md")).unwrap();
    let copy = readme.split("```sql").nth(1).unwrap().split("```").next().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let target = folder.path().join("departures.csv");
    let copy = copy
        .replace(
            "'examples/data/flights.parquet'",
            &format!("'{}/flights.parquet'", data.display()),
        )
        .replace("'examples/data/departures.csv'", &format!("'{}'", target.display()));
    assert_eq!(rows(&session, copy.trim().trim_end_matches(';')).unwrap().len(), 1);
    let (made, kept) = (
        std::fs::read(target).unwrap(),
        std::fs::read(data.join("departures.csv")).unwrap(),
    );
    assert!(
        made == kept,
        "the statement in examples/data/README.md makes another file"
    );
}

#[test]
fn the_command_runs_it() {
    let output = Command::new(env!("CARGO_BIN_EXE_thalweg"))
        .args(["run", "examples/stream.sql"])
        .current_dir(root())
        .output()
        .unwrap();
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    for answer in ["2013-01-10T18:00:00", "late_rows=5", "-U"] {
        assert!(stdout.contains(answer), "'{answer}' is missing in\n{stdout}");
    }
}
