//! The `thalweg` binary from outside: what it prints, where, and how it ends.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::io::{BufRead, BufReader, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use arrow::array::Int64Array;
use arrow::ipc::reader::StreamReader;
use tempfile::TempDir;

const BINARY: &str = env!("CARGO_BIN_EXE_thalweg");
const PATIENCE: Duration = Duration::from_secs(120);

struct Ended {
    code: Option<i32>,
    stdout: Vec<u8>,
    stderr: String,
}

impl Ended {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap()
    }

    #[track_caller]
    fn succeeded(self) -> Self {
        assert_eq!(
            (self.code, self.stderr.as_str()),
            (Some(0), ""),
            "stdout: {}",
            self.text()
        );
        self
    }

    /// One line of cause, one of remedy, nothing else.
    #[track_caller]
    fn failed(self, code: i32) -> Self {
        let lines: Vec<_> = self.stderr.lines().collect();
        assert_eq!(self.code, Some(code), "{}", self.stderr);
        assert!(
            lines[0].starts_with("error: ") && lines[0].len() > "error: ".len(),
            "{}",
            self.stderr
        );
        assert!(lines.len() <= 2, "{}", self.stderr);
        assert!(
            lines.get(1).is_none_or(|line| line.starts_with("  help: ")),
            "{}",
            self.stderr
        );
        self
    }
}

fn start(args: &[&str]) -> Child {
    Command::new(BINARY)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

fn in_background(mut pipe: impl Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, receiver) = mpsc::channel();
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = pipe.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

fn finish(mut child: Child, stdout: Option<mpsc::Receiver<Vec<u8>>>) -> Ended {
    let stderr = in_background(child.stderr.take().unwrap());
    let outputs = stderr.recv_timeout(PATIENCE).and_then(|stderr| match stdout {
        Some(stdout) => Ok((stdout.recv_timeout(PATIENCE)?, stderr)),
        None => Ok((Vec::new(), stderr)),
    });
    if outputs.is_err() {
        child.kill().unwrap();
    }
    let code = child.wait().unwrap().code();
    let (stdout, stderr) = outputs.expect("thalweg did not end in time");
    Ended {
        code,
        stdout,
        stderr: String::from_utf8(stderr).unwrap(),
    }
}

fn thalweg_reading(input: &str, args: &[&str]) -> Ended {
    let mut child = start(args);
    let stdout = in_background(child.stdout.take().unwrap());
    // It may refuse its arguments without reading.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    finish(child, Some(stdout))
}

fn thalweg(args: &[&str]) -> Ended {
    thalweg_reading("", args)
}

struct Scripts(TempDir);

impl Scripts {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str, content: impl AsRef<[u8]>) -> String {
        let path: PathBuf = self.0.path().join(name);
        std::fs::write(&path, content).unwrap();
        path.to_str().unwrap().to_string()
    }
}

const TWO_ROWS: &str = "SELECT * FROM (VALUES (1, 'a,b'), (2, NULL)) AS t (n, s) ORDER BY n";

#[test]
fn a_table_that_is_piped_is_whole_and_the_same_each_time() {
    let long = "x".repeat(500);
    let ended = thalweg(&["sql", "-c", &format!("SELECT 1 AS n, '{long}' AS s, NULL AS nothing")]).succeeded();
    let lines: Vec<_> = ended.text().lines().collect();
    assert!(lines[1].starts_with("│ n │ s "), "{}", lines[1]);
    assert_eq!(lines[3], format!("│ 1 │ {long} │ NULL    │"));
    assert_eq!(lines.last(), Some(&"1 row"));
}

#[test]
fn csv() {
    let ended = thalweg(&["sql", "--format", "csv", "-c", TWO_ROWS]).succeeded();
    assert_eq!(ended.text(), "n,s\n1,\"a,b\"\n2,\n");
    let ended = thalweg(&["sql", "--format", "csv", "-c", "SELECT 1 AS n WHERE false"]).succeeded();
    assert_eq!(ended.text(), "n\n");
}

#[test]
fn json() {
    let ended = thalweg(&["sql", "--format", "json", "-c", TWO_ROWS]).succeeded();
    assert_eq!(ended.text(), "{\"n\":1,\"s\":\"a,b\"}\n{\"n\":2,\"s\":null}\n");
}

#[test]
fn arrow() {
    let ended = thalweg(&["sql", "--format", "arrow", "-c", TWO_ROWS]).succeeded();
    let batches: Vec<_> = StreamReader::try_new(ended.stdout.as_slice(), None)
        .unwrap()
        .map(|b| b.unwrap())
        .collect();
    let numbers: Vec<_> = batches
        .iter()
        .flat_map(|batch| {
            batch
                .column(0)
                .as_any()
                .downcast_ref::<Int64Array>()
                .unwrap()
                .values()
                .to_vec()
        })
        .collect();
    assert_eq!(numbers, [1, 2]);
}

#[test]
fn arrow_holds_one_result() {
    let ended = thalweg(&["sql", "--format", "arrow", "-c", "SELECT 1 AS a; SELECT 2 AS a"]).failed(1);
    assert!(
        ended.stderr.contains("--format arrow holds one result"),
        "{}",
        ended.stderr
    );
    assert_eq!(StreamReader::try_new(ended.stdout.as_slice(), None).unwrap().count(), 1);
}

#[test]
fn a_script_runs_up_to_its_first_error_which_is_located() {
    let scripts = Scripts::new();
    let file = scripts.file(
        "q.sql",
        "-- first;\nSELECT 'a;b' AS s;\n\n/* then; */\nSELECT nonsense\nFROM nowhere;\nSELECT 'never' AS s;\n",
    );
    let ended = thalweg(&["run", &file, "--format", "csv"]).failed(1);
    assert_eq!(ended.text(), "s\na;b\n");
    let place = format!("error: {file}, statement starting at line ");
    assert!(ended.stderr.starts_with(&place), "{}", ended.stderr);
    let line: String = ended.stderr[place.len()..]
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    assert!(
        ["4", "5"].contains(&line.as_str()),
        "a comment may count as the statement's start: {}",
        ended.stderr
    );
}

#[test]
fn tables_defined_by_a_script_are_there_for_its_queries() {
    let scripts = Scripts::new();
    let data = scripts.file("d.csv", "city,inhabitants\nAarau,22000\nBasel,178000\n");
    let file = scripts.file(
        "q.sql",
        format!(
            "CREATE EXTERNAL TABLE cities STORED AS CSV LOCATION '{data}' OPTIONS ('format.has_header' 'true');\n\
             SELECT city FROM cities WHERE inhabitants > 100000;"
        ),
    );
    let ended = thalweg(&[
        "run",
        &file,
        "--format",
        "csv",
        "--parallelism",
        "2",
        "--memory",
        "256MB",
    ])
    .succeeded();
    assert_eq!(ended.text(), "city\nBasel\n");
}

#[test]
fn standard_input_is_a_script() {
    for args in [&["sql", "--format", "csv"][..], &["run", "-", "--format", "csv"]] {
        let ended = thalweg_reading("SELECT 1 AS a;\nSELECT 2 AS b", args).succeeded();
        assert_eq!(ended.text(), "a\n1\nb\n2\n");
    }
    let ended = thalweg_reading("SELECT 1 AS a;\nSELEC 2;", &["sql", "--format", "csv"]).failed(1);
    assert!(
        ended
            .stderr
            .starts_with("error: standard input, statement starting at line 2: "),
        "{}",
        ended.stderr
    );
    thalweg_reading("-- nothing\n", &["sql"]).succeeded();
}

#[test]
fn a_single_statement_needs_no_place_in_its_error() {
    let ended = thalweg(&["sql", "-c", "SELECT missing FROM nowhere"]).failed(1);
    assert!(!ended.stderr.contains("statement starting at"), "{}", ended.stderr);
}

#[test]
fn rows_are_limited_on_demand() {
    let ended = thalweg(&[
        "sql",
        "--max-rows",
        "3",
        "--format",
        "csv",
        "-c",
        "SELECT * FROM generate_series(1, 100000)",
    ]);
    assert_eq!(ended.succeeded().text().lines().count(), 4);
    let ended = thalweg(&["sql", "--max-rows", "2", "-c", "SELECT * FROM generate_series(1, 3)"]).succeeded();
    assert!(
        ended
            .text()
            .lines()
            .last()
            .unwrap()
            .starts_with("2 rows (there are more"),
        "{}",
        ended.text()
    );
    let ended = thalweg(&["sql", "--max-rows", "3", "-c", "SELECT * FROM generate_series(1, 3)"]).succeeded();
    assert!(ended.text().ends_with("3 rows\n"), "{}", ended.text());
}

#[test]
fn a_reader_that_leaves_ends_the_run_quietly() {
    for format in ["csv", "json", "table"] {
        let many = "SELECT value AS a, value AS b FROM generate_series(1, 1000000000)";
        let mut child = start(&["sql", "--format", format, "-c", many]);
        let mut reader = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        drop(reader);
        finish(child, None).succeeded();
    }
}

#[test]
fn explain_shows_plans_and_defines_what_they_need() {
    let scripts = Scripts::new();
    let data = scripts.file("d.csv", "a\n1\n");
    let file = scripts.file(
        "q.sql",
        format!(
            "CREATE EXTERNAL TABLE t STORED AS CSV LOCATION '{data}' OPTIONS ('format.has_header' 'true');\n\
             SELECT a FROM t;\nSELECT count(*) FROM t;"
        ),
    );
    let ended = thalweg(&["explain", &file]).succeeded();
    assert!(
        ended.text().starts_with("-- statement starting at line 2\n"),
        "{}",
        ended.text()
    );
    assert!(
        ended.text().contains("\n\n-- statement starting at line 3\n"),
        "{}",
        ended.text()
    );
    let ended = thalweg_reading("SELECT * FROM nowhere", &["explain", "-"]).failed(1);
    assert!(
        ended.stderr.contains("standard input, statement starting at line 1: "),
        "{}",
        ended.stderr
    );
}

#[test]
fn usage_errors_end_with_2() {
    for args in [
        &[][..],
        &["fly"],
        &["run"],
        &["run", "q.sql", "--format", "xml"],
        &["run", "q.sql", "--parallelism", "0"],
        &["run", "q.sql", "--parallelism", "many"],
        &["run", "q.sql", "--memory", "512XB"],
        &["sql", "-c"],
        &["serve"],
    ] {
        let ended = thalweg(args);
        assert_eq!(ended.code, Some(2), "{args:?}");
        assert!(ended.stdout.is_empty() && !ended.stderr.is_empty(), "{args:?}");
    }
    let ended = thalweg(&["run", "q.sql", "--memory", "512XB"]);
    assert!(ended.stderr.contains("`XB` is not a unit of size"), "{}", ended.stderr);
    let ended = thalweg(&["run", "q.sql", "--jobmanager", "localhost:8081"]).failed(2);
    assert!(
        ended.stderr.contains("not available in this version"),
        "{}",
        ended.stderr
    );
}

#[test]
fn unreadable_scripts_are_named() {
    let ended = thalweg(&["run", "/nowhere/q.sql"]).failed(1);
    assert!(
        ended.stderr.starts_with("error: cannot read /nowhere/q.sql: "),
        "{}",
        ended.stderr
    );
    let scripts = Scripts::new();
    let file = scripts.file("latin1.sql", b"SELECT 1;\nSELECT '\xe9';\n");
    let ended = thalweg(&["run", &file]).failed(1);
    assert!(ended.stderr.contains("is not UTF-8 at line 2"), "{}", ended.stderr);
}

#[test]
fn help_and_version_go_to_stdout() {
    let help = thalweg(&["--help"]).succeeded();
    for command in ["run", "sql", "explain"] {
        assert!(help.text().contains(&format!("\n  {command} ")), "{}", help.text());
    }
    assert!(!help.text().contains("taskmanager"), "{}", help.text());
    let version = thalweg(&["--version"]).succeeded();
    assert_eq!(version.text(), format!("thalweg {}\n", env!("CARGO_PKG_VERSION")));
}

/// Ctrl-C, SIGTERM, line editing and the width of a terminal need a terminal: Python lends one.
#[test]
fn on_a_terminal() {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/cli/terminal.py");
    let mut command = Command::new("python3");
    let child = command
        .args([script, BINARY])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn();
    let Ok(mut child) = child else {
        eprintln!("skipped: python3 is not there");
        return;
    };
    let stdout = in_background(child.stdout.take().unwrap());
    let ended = finish(child, Some(stdout));
    assert_eq!(ended.code, Some(0), "{}\n{}", ended.text(), ended.stderr);
}
