//! What executing a statement gives.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use thalweg_engine::exchange::CancelToken;
use thalweg_engine::runtime::{JobHandle, JobMetrics, LatencyHistogram};

use crate::error::{Error, Result};
use crate::streaming::shown;

/// What a statement did.
pub enum Outcome {
    /// It has rows, to be pulled.
    Rows(QueryResult),
    /// It is done; what to tell the user, which may be nothing.
    Done(String),
}

impl Outcome {
    /// Reads all rows; none for a statement that has no rows.
    ///
    /// # Errors
    /// What the query fails with.
    pub fn collect(self) -> Result<Vec<RecordBatch>> {
        match self {
            Outcome::Rows(rows) => rows.collect(),
            Outcome::Done(_) => Ok(Vec::new()),
        }
    }
}

enum Rows {
    /// A running job.
    Job(Box<JobHandle>),
    /// Rows that are already there (EXPLAIN).
    Ready(std::vec::IntoIter<RecordBatch>),
}

/// The rows of a query, pulled batch by batch while the job runs. Dropping it cancels the job.
pub struct QueryResult {
    schema: SchemaRef,
    rows: Rows,
    metrics: Option<Arc<JobMetrics>>,
    cancel: CancelToken,
    started: Instant,
    rows_out: Arc<AtomicU64>,
}

#[expect(clippy::disallowed_methods, reason = "the time that a user waits is the machine's")]
fn now() -> Instant {
    Instant::now()
}

impl QueryResult {
    pub(crate) fn of_job(job: JobHandle, schema: SchemaRef) -> Self {
        Self {
            schema,
            metrics: Some(Arc::clone(job.metrics())),
            cancel: job.canceller(),
            rows: Rows::Job(Box::new(job)),
            started: now(),
            rows_out: Arc::default(),
        }
    }

    pub(crate) fn ready(schema: SchemaRef, batches: Vec<RecordBatch>) -> Self {
        Self {
            schema,
            metrics: None,
            cancel: CancelToken::new(),
            rows: Rows::Ready(batches.into_iter()),
            started: now(),
            rows_out: Arc::default(),
        }
    }

    /// The columns.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    /// How far the query has come; may be asked from any thread.
    pub fn progress(&self) -> ProgressHandle {
        ProgressHandle {
            metrics: self.metrics.clone(),
            started: self.started,
            rows_out: Arc::clone(&self.rows_out),
        }
    }

    /// Cancels the query from any thread.
    pub fn canceller(&self) -> Canceller {
        Canceller {
            token: self.cancel.clone(),
        }
    }
}

impl Iterator for QueryResult {
    type Item = Result<RecordBatch>;

    fn next(&mut self) -> Option<Self::Item> {
        let batch = match &mut self.rows {
            Rows::Job(job) => match job.next()? {
                Ok(batch) => shown(batch, &self.schema),
                Err(error) => Err(Error::from(error)),
            },
            Rows::Ready(batches) => Ok(batches.next()?),
        };
        if let Ok(batch) = &batch {
            self.rows_out.fetch_add(batch.num_rows() as u64, Ordering::Relaxed);
        }
        Some(batch)
    }
}

/// Looks at a query's progress.
#[derive(Clone)]
pub struct ProgressHandle {
    metrics: Option<Arc<JobMetrics>>,
    started: Instant,
    rows_out: Arc<AtomicU64>,
}

/// How far a query has come.
#[derive(Clone, Copy, Debug, Default)]
pub struct Progress {
    /// Rows read by the sources.
    pub rows_read: u64,
    /// Bytes of those rows in memory.
    pub bytes_read: u64,
    /// Rows of the result so far.
    pub rows_out: u64,
    /// Splits handed out.
    pub splits_done: usize,
    /// Splits in all; 0 before the sources are open.
    pub splits_total: usize,
    /// Bytes that operators and blocking exchanges have written to spill files; those of exchanges when the job ends.
    pub spilled_bytes: u64,
    /// Since the query started.
    pub elapsed: Duration,
}

impl ProgressHandle {
    /// What latency markers took from the sources to the sinks so far; `None` unless `metrics.latency.interval` is set.
    pub fn latency(&self) -> Option<LatencyHistogram> {
        let all = self.metrics.as_ref()?.latencies().all();
        all.into_values().reduce(|mut sum, more| {
            sum.merge(&more);
            sum
        })
    }

    /// The progress at this moment.
    pub fn snapshot(&self) -> Progress {
        let progress = self
            .metrics
            .as_ref()
            .map(|metrics| metrics.progress())
            .unwrap_or_default();
        Progress {
            rows_read: progress.rows_read,
            bytes_read: progress.bytes_read,
            rows_out: self.rows_out.load(Ordering::Relaxed),
            splits_done: progress.splits_taken,
            splits_total: progress.splits_total,
            spilled_bytes: progress.spilled_bytes,
            elapsed: self.started.elapsed(),
        }
    }
}

/// Cancels a query.
#[derive(Clone)]
pub struct Canceller {
    token: CancelToken,
}

impl Canceller {
    /// Cancels; whoever pulls the rows gets an error that says so.
    pub fn cancel(&self) {
        self.token.cancel();
    }
}
