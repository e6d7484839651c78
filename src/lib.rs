//! TEMPORARY STAND-IN for the library, over plain DataFusion: replaced at the merge.
#![allow(missing_docs, clippy::disallowed_methods)]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::prelude::{SessionConfig as DfConfig, SessionContext};
use futures::StreamExt;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug)]
pub struct Error {
    cause: String,
}

impl Error {
    fn new(cause: impl ToString) -> Self {
        Self {
            cause: cause.to_string(),
        }
    }
    pub fn remedy(&self) -> Option<String> {
        Some("check the statement".into())
    }
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.cause)
    }
}
impl std::error::Error for Error {}

#[derive(Debug, Clone)]
pub struct SessionConfig {
    pub parallelism: usize,
    pub memory_bytes: usize,
}

impl Default for SessionConfig {
    fn default() -> Self {
        Self {
            parallelism: 2,
            memory_bytes: 1 << 30,
        }
    }
}

pub struct Session {
    context: SessionContext,
    runtime: tokio::runtime::Runtime,
}

pub struct ScriptStatement {
    pub sql: String,
    pub line: usize,
}

fn scan(text: &str) -> (Vec<ScriptStatement>, bool, bool) {
    let (mut out, mut current, mut start) = (vec![], String::new(), 1);
    let (mut line, mut quote, mut chars) = (1, None, text.chars().peekable());
    let mut comment = false;
    while let Some(c) = chars.next() {
        if c == '\n' {
            line += 1;
            comment = false;
        }
        if comment {
            continue;
        }
        match (quote, c) {
            (Some(q), c) if q == c => quote = None,
            (None, '\'' | '"') => quote = Some(c),
            (None, '-') if chars.peek() == Some(&'-') => {
                comment = true;
                continue;
            }
            (None, ';') => {
                if !current.trim().is_empty() {
                    out.push(ScriptStatement {
                        sql: current.trim().to_string(),
                        line: start,
                    });
                }
                current.clear();
                continue;
            }
            _ => {}
        }
        if current.trim().is_empty() && !c.is_whitespace() {
            start = line;
        }
        current.push(c);
    }
    let complete = current.trim().is_empty() && !out.is_empty();
    if !current.trim().is_empty() {
        out.push(ScriptStatement {
            sql: current.trim().to_string(),
            line: start,
        });
    }
    (out, quote.is_some(), complete)
}

impl Session {
    pub fn new(config: SessionConfig) -> Result<Self> {
        let df = DfConfig::new()
            .with_target_partitions(config.parallelism)
            .with_information_schema(true);
        Ok(Self {
            context: SessionContext::new_with_config(df).enable_url_table(),
            runtime: tokio::runtime::Runtime::new().map_err(Error::new)?,
        })
    }
    pub fn split(text: &str) -> Result<Vec<ScriptStatement>> {
        let (statements, open, _) = scan(text);
        if open {
            Err(Error::new("unterminated quote"))
        } else {
            Ok(statements)
        }
    }
    pub fn is_complete(text: &str) -> bool {
        let (_, open, complete) = scan(text);
        !open && complete
    }
    pub fn execute(&self, sql: &str) -> Result<Outcome> {
        let frame = self.runtime.block_on(self.context.sql(sql)).map_err(Error::new)?;
        if frame.schema().fields().is_empty() {
            self.runtime.block_on(frame.collect()).map_err(Error::new)?;
            return Ok(Outcome::Done("done".into()));
        }
        let mut stream = self.runtime.block_on(frame.execute_stream()).map_err(Error::new)?;
        let schema = stream.schema();
        let (sender, receiver) = sync_channel(2);
        let rows = Arc::new(AtomicU64::new(0));
        let counted = rows.clone();
        let task = self.runtime.spawn(async move {
            while let Some(item) = stream.next().await {
                if let Ok(batch) = &item {
                    counted.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
                }
                let sender = sender.clone();
                let sent = tokio::task::spawn_blocking(move || sender.send(item.map_err(Error::new)));
                if !matches!(sent.await, Ok(Ok(()))) {
                    return;
                }
            }
        });
        let progress = ProgressHandle {
            rows,
            start: Instant::now(),
        };
        Ok(Outcome::Rows(QueryResult {
            schema,
            receiver,
            progress,
            canceller: Canceller(task.abort_handle()),
        }))
    }
    pub fn explain(&self, sql: &str) -> Result<String> {
        let frame = self.runtime.block_on(self.context.sql(sql)).map_err(Error::new)?;
        Ok(frame.logical_plan().display_indent().to_string())
    }
    pub fn names(&self) -> Vec<String> {
        let mut names = vec!["count".to_string(), "sum".into()];
        for catalog in self.context.catalog_names() {
            let Some(catalog) = self.context.catalog(&catalog) else {
                continue;
            };
            for schema in catalog.schema_names() {
                names.extend(catalog.schema(&schema).map(|s| s.table_names()).unwrap_or_default());
            }
        }
        names
    }
}

pub enum Outcome {
    Rows(QueryResult),
    Done(String),
}

pub struct QueryResult {
    schema: SchemaRef,
    receiver: Receiver<Result<RecordBatch>>,
    progress: ProgressHandle,
    canceller: Canceller,
}

impl QueryResult {
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }
    pub fn progress(&self) -> ProgressHandle {
        self.progress.clone()
    }
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }
}

impl Iterator for QueryResult {
    type Item = Result<RecordBatch>;
    fn next(&mut self) -> Option<Self::Item> {
        self.receiver.recv().ok()
    }
}

#[derive(Clone)]
pub struct ProgressHandle {
    rows: Arc<AtomicU64>,
    start: Instant,
}

pub struct Progress {
    pub rows_read: u64,
    pub bytes_read: u64,
    pub rows_out: u64,
    pub splits_done: usize,
    pub splits_total: usize,
    pub elapsed: Duration,
}

impl ProgressHandle {
    pub fn snapshot(&self) -> Progress {
        let rows = self.rows.load(Ordering::Relaxed);
        Progress {
            rows_read: rows,
            bytes_read: rows * 8,
            rows_out: rows,
            splits_done: 0,
            splits_total: 2,
            elapsed: self.start.elapsed(),
        }
    }
}

#[derive(Clone)]
pub struct Canceller(tokio::task::AbortHandle);

impl Canceller {
    pub fn cancel(&self) {
        self.0.abort();
    }
}
