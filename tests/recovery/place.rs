//! The folders of a run: the job that reads one and writes others, and what a batch query over the same files gives.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use tempfile::TempDir;
use thalweg::{RuntimeMode, Session, SessionConfig};

use super::events::FILE_ROWS;
use super::outputs::{compare, counted, row_of, rows};
use super::process::{Job, PATIENCE, Running};

/// Rows as text, with counts.
pub(crate) type Rows = BTreeMap<Vec<String>, i64>;

/// An output table: name, columns, query.
pub(crate) type Table = (&'static str, &'static str, &'static str);

/// The output tables of a job.
#[derive(Clone, Copy)]
pub(crate) struct Tables {
    /// Whose rows must be the same, one by one; the first holds every row, the moment it is read.
    pub(crate) appended: &'static [Table],
    /// Of updates, which are compared when they have been folded.
    pub(crate) changed: &'static [Table],
}

/// The version of a row's key at its time.
pub(crate) const VERSION_AT: &str =
    "SELECT o.id, r.ts FROM events o LEFT JOIN versions FOR SYSTEM_TIME AS OF o.ts AS r ON o.k = r.k";
const VERSION_AT_IN_BATCH: &str = "SELECT o.id, MAX(r.ts) FROM events o LEFT JOIN events r \
     ON o.k = r.k AND r.ts + INTERVAL '1' SECOND <= o.ts GROUP BY o.id";

/// Folders of one run.
pub(crate) struct Place {
    pub(crate) folder: TempDir,
    pub(crate) seed: u64,
    files: usize,
    tables: Tables,
}

impl Place {
    pub(crate) fn new(seed: u64, files: usize, tables: Tables) -> Self {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("in")).unwrap();
        Self {
            folder,
            seed,
            files,
            tables,
        }
    }

    pub(crate) fn input(&self) -> PathBuf {
        self.folder.path().join("in")
    }

    pub(crate) fn events(&self, watched: bool) -> String {
        let watched = if watched {
            ", 'source.monitor-interval' = '10 ms'"
        } else {
            ""
        };
        format!(
            "CREATE TABLE events (id BIGINT, k STRING, v BIGINT, ts TIMESTAMP(3), \
             WATERMARK FOR ts AS ts - INTERVAL '1' SECOND) WITH ('connector' = 'filesystem', 'path' = '{}/', \
             'format' = 'csv', 'csv.header' = 'false'{watched})",
            self.input().display()
        )
    }

    /// The same rows, each a version of its key that counts a second later.
    fn versions(&self) -> String {
        format!(
            "CREATE TABLE versions (id BIGINT, k STRING, v BIGINT, ts TIMESTAMP(3), since AS ts + INTERVAL '1' SECOND, \
             WATERMARK FOR since AS since - INTERVAL '1' SECOND, PRIMARY KEY (k) NOT ENFORCED) WITH ('connector' = 'filesystem', \
             'path' = '{}/', 'format' = 'csv', 'csv.header' = 'false', 'source.monitor-interval' = '10 ms')",
            self.input().display()
        )
    }

    /// The job of the tables.
    pub(crate) fn job(&self, parallelism: usize, settings: &[(&str, &str)]) -> Job {
        let path = self.folder.path();
        let mut body = format!("{};\n", self.versions());
        let mut inserts = String::new();
        for (name, columns, query) in self.tables.appended {
            body += &sink(path, name, columns, "json");
            inserts += &format!("INSERT INTO {name} {query};\n");
        }
        for (name, columns, query) in self.tables.changed {
            body += &sink(path, name, columns, "debezium-json");
            inserts += &format!("INSERT INTO {name} {query};\n");
        }
        body += &format!("EXECUTE STATEMENT SET BEGIN\n{inserts}END;\n");
        self.job_of("killed", parallelism, settings, &body)
    }

    /// A job with the table `events`: settings, then `body`.
    pub(crate) fn job_of(&self, name: &str, parallelism: usize, settings: &[(&str, &str)], body: &str) -> Job {
        let path = self.folder.path();
        let mut script = String::new();
        let checkpoints = path.join("checkpoints");
        let own = [
            ("execution.runtime-mode", "streaming"),
            ("execution.checkpointing.dir", checkpoints.to_str().unwrap()),
            ("execution.checkpointing.interval", "40 ms"),
            ("pipeline.name", name),
        ];
        for (key, value) in own.iter().chain(settings) {
            script += &format!("SET '{key}' = '{value}';\n");
        }
        script += &format!("{};\n{body}", self.events(true));
        let file = path.join(format!("{name}.sql"));
        std::fs::write(&file, script).unwrap();
        Job {
            script: file,
            name: name.into(),
            checkpoints,
            parallelism,
        }
    }

    /// How many rows have passed through, as far as anybody sees.
    pub(crate) fn passed(&self) -> usize {
        lines(&self.folder.path().join("passed")).len()
    }

    pub(crate) fn wait_until_all_have_passed(&self, running: &mut Running) {
        self.wait_until_passed(running, self.files * FILE_ROWS);
    }

    /// Waits until so many rows have passed through.
    pub(crate) fn wait_until_passed(&self, running: &mut Running, rows: usize) {
        let start = Instant::now();
        while self.passed() < rows {
            assert!(running.is_alive(), "{}", running.log());
            assert!(
                start.elapsed() < PATIENCE,
                "{} rows have passed: {}",
                self.passed(),
                running.log()
            );
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Compares what the job has written with what a batch query over the same files gives.
    pub(crate) fn check(&self) {
        let session = self.batch();
        let in_batch = |query: &'static str| match query {
            VERSION_AT => VERSION_AT_IN_BATCH,
            other => other,
        };
        for (name, columns, query) in self.tables.appended {
            compare(name, &self.appended(name, columns), &rows(&session, in_batch(query)));
        }
        for (name, columns, query) in self.tables.changed {
            compare(name, &self.folded(name, columns), &rows(&session, in_batch(query)));
        }
    }

    /// A session that reads the files in batch mode.
    pub(crate) fn batch(&self) -> Session {
        let config = SessionConfig {
            runtime_mode: RuntimeMode::Batch,
            parallelism: 1,
            ..SessionConfig::default()
        };
        let session = Session::new(config).unwrap();
        session.execute(&self.events(false)).unwrap();
        session
    }

    /// The rows of an output table in JSON, with counts.
    pub(crate) fn appended(&self, name: &str, columns: &str) -> Rows {
        let written = lines(&self.folder.path().join(name));
        counted(written.iter().map(|line| row_of(line, columns)))
    }

    /// The rows that the changes of an output table in Debezium's JSON leave; those taken back that it has not given count below 0.
    pub(crate) fn folded(&self, name: &str, columns: &str) -> Rows {
        let mut folded = Rows::new();
        for line in lines(&self.folder.path().join(name)) {
            let change: serde_json::Value = serde_json::from_str(&line).unwrap();
            for (side, sign) in [("before", -1), ("after", 1)] {
                if !change[side].is_null() {
                    *folded.entry(row_of(&change[side].to_string(), columns)).or_default() += sign;
                }
            }
        }
        folded.retain(|_, count| *count != 0);
        folded
    }
}

pub(crate) fn sink(path: &Path, name: &str, columns: &str, format: &str) -> String {
    format!(
        "CREATE TABLE {name} ({columns}) WITH ('connector' = 'filesystem', 'path' = '{}/', 'format' = '{format}');\n",
        path.join(name).display()
    )
}

/// The lines of all files of a folder that a reader of the folder would read.
fn lines(folder: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    for entry in std::fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with(['.', '_']) || path.is_dir() {
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        lines.extend(text.lines().map(str::to_string));
    }
    lines
}
