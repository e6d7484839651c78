//! The sink around a store: when what is written, and what happens when the server goes away.

use std::fmt::Debug;
use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arrow::datatypes::{DataType, SchemaRef};
use async_trait::async_trait;
use parking_lot::Mutex;
use thalweg_engine::operator::{Committable, PreparedSink, SinkJob, SinkWriter};
use thalweg_engine::time::Clock;
use thalweg_engine::{Batch, EngineError, Result};
use tokio::runtime::Handle;

use super::{Changes, Isolation, Mark, Prepared, UpsertBuffer, UpsertOptions};
use crate::run_token::run_token;

/// The wait before the first new attempt; each further one waits twice as long, up to the second.
const FIRST_WAIT: Duration = Duration::from_millis(250);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// Why a store did not do what it was asked for.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The server is away or busy: worth another attempt.
    Again(String),
    /// It would fail again.
    Never(String),
}

/// A connection to a store.
#[async_trait]
pub(crate) trait Session: Send {
    /// Writes changes, at once or in pieces; when it fails, some may be written.
    async fn apply(&mut self, changes: &Changes) -> std::result::Result<(), Failure>;

    /// Writes, in one transaction, those whose mark is not recorded, with their marks.
    async fn commit(&mut self, prepared: &[Prepared]) -> std::result::Result<(), Failure>;

    /// Makes what `commit` needs, and forgets marks that are too old to matter.
    async fn recover(&mut self) -> std::result::Result<(), Failure>;
}

/// A database.
#[async_trait]
pub(crate) trait Store: Debug + Send + Sync {
    /// What it is called in messages; no password.
    fn describe(&self) -> String;

    /// A new connection, with which what can be checked has been.
    async fn connect(&self) -> std::result::Result<Box<dyn Session>, Failure>;
}

/// One sink of one job.
#[derive(Debug)]
pub(crate) struct UpsertSink {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    store: Arc<dyn Store>,
    options: UpsertOptions,
    /// The rows as the store takes them.
    schema: SchemaRef,
    key: Vec<usize>,
    io: Handle,
    clock: Arc<dyn Clock>,
    job: String,
    run: String,
    checkpointed: bool,
    /// Of a job without checkpoints: what waits for its end.
    staged: Mutex<Vec<Prepared>>,
}

impl UpsertSink {
    /// The sink of `job` into `store`, of rows of `schema`, whose key is in the options.
    pub(crate) fn try_new(
        store: Arc<dyn Store>,
        options: UpsertOptions,
        schema: SchemaRef,
        job: &SinkJob,
    ) -> Result<Self> {
        let key = options.key.iter().map(|name| {
            let index = schema.index_of(name)?;
            let data_type = schema.field(index).data_type();
            if matches!(data_type, DataType::Float16 | DataType::Float32 | DataType::Float64) {
                return Err(EngineError::Plan(format!(
                    "column '{name}' of type {data_type} cannot be in the PRIMARY KEY of a sink: equal numbers may differ in \
                     their bits; use DECIMAL or an integer"
                )));
            }
            Ok(index)
        });
        let key = key.collect::<Result<Vec<_>>>()?;
        if job.endless && job.checkpointed.is_none() && options.isolation == Isolation::ReadCommitted {
            return Err(EngineError::Plan(format!(
                "{}: 'sink.isolation' = 'read-committed' shows rows when a checkpoint is complete, and this job takes none; SET \
                 'execution.checkpointing.interval', or leave the option out",
                store.describe()
            )));
        }
        Ok(Self {
            shared: Arc::new(Shared {
                store,
                options,
                schema,
                key,
                io: job.io.clone(),
                clock: Arc::clone(&job.clock),
                job: job.checkpointed.clone().unwrap_or_else(|| job.job.clone()),
                run: run_token(),
                checkpointed: job.checkpointed.is_some(),
                staged: Mutex::default(),
            }),
        })
    }
}

impl PreparedSink for UpsertSink {
    fn max_parallelism(&self) -> Option<usize> {
        None
    }

    fn writer(&self, subtask: usize, _parallelism: usize) -> Result<Box<dyn SinkWriter>> {
        let mut connection = Connection(None);
        // What is wrong with the server or the table is told before any row is read.
        connection.perform(&self.shared, Work::Connect)?;
        Ok(Box::new(UpsertWriter {
            buffer: UpsertBuffer::try_new(Arc::clone(&self.shared.schema), self.shared.key.clone())?,
            shared: Arc::clone(&self.shared),
            connection,
            subtask,
            begun_ms: 0,
        }))
    }

    fn commit(&self) -> Result<()> {
        let staged = std::mem::take(&mut *self.shared.staged.lock());
        if staged.is_empty() {
            return Ok(());
        }
        Connection(None).perform(&self.shared, Work::Commit(staged))
    }

    fn abort(&self) {
        self.shared.staged.lock().clear();
    }

    fn publish(&self, committables: &[Committable]) -> Result<()> {
        if committables.is_empty() {
            return Ok(());
        }
        let prepared = committables.iter().map(|bytes| Prepared::decode(bytes));
        let mut prepared = prepared.collect::<Result<Vec<_>>>()?;
        // The checkpoints of a writer must come in their order, whatever order they are handed in.
        prepared.sort_by_key(|prepared| prepared.mark.checkpoint);
        Connection(None).perform(&self.shared, Work::Commit(prepared))
    }

    fn recover(&self) -> Result<()> {
        match self.shared.options.isolation {
            Isolation::ReadCommitted => Connection(None).perform(&self.shared, Work::Recover),
            Isolation::ReadUncommitted => Ok(()),
        }
    }

    fn hides_until_published(&self) -> bool {
        // Writing a row of a key again changes nothing.
        self.shared.key.is_empty() && self.shared.options.isolation == Isolation::ReadCommitted
    }

    fn is_exactly_once(&self) -> bool {
        !self.shared.key.is_empty() || self.shared.options.isolation == Isolation::ReadCommitted
    }
}

/// What a connection is asked for.
enum Work {
    Connect,
    Apply(Changes),
    Commit(Vec<Prepared>),
    Recover,
}

/// A session, if one is open.
struct Connection(Option<Box<dyn Session>>);

impl Connection {
    /// Does `work` on the I/O runtime and waits; connects anew when the server has gone.
    fn perform(&mut self, shared: &Shared, work: Work) -> Result<()> {
        let (store, session) = (Arc::clone(&shared.store), self.0.take());
        let retries = shared.options.max_retries;
        let (session, outcome) = wait(&shared.io, attempts(store, session, work, retries))?;
        self.0 = session;
        outcome.map_err(|why| EngineError::Io {
            path: shared.store.describe(),
            source: io::Error::other(why),
        })
    }
}

async fn attempts(
    store: Arc<dyn Store>,
    mut session: Option<Box<dyn Session>>,
    work: Work,
    retries: u32,
) -> (Option<Box<dyn Session>>, std::result::Result<(), String>) {
    let mut pause = FIRST_WAIT;
    let mut attempt = 0;
    loop {
        let failure = match attempt_once(store.as_ref(), &mut session, &work).await {
            Ok(()) => return (session, Ok(())),
            Err(failure) => failure,
        };
        // Nobody knows in which state it is.
        session = None;
        match failure {
            Failure::Never(why) => return (None, Err(why)),
            Failure::Again(why) if attempt == retries => {
                let tries = retries.saturating_add(1);
                return (
                    None,
                    Err(format!("{why} (after {tries} attempts, see 'sink.max-retries')")),
                );
            }
            Failure::Again(why) => tracing::warn!("{}: {why}; trying again", store.describe()),
        }
        attempt += 1;
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_WAIT);
    }
}

async fn attempt_once(
    store: &dyn Store,
    session: &mut Option<Box<dyn Session>>,
    work: &Work,
) -> std::result::Result<(), Failure> {
    let session = match session {
        Some(session) => session,
        None => session.insert(store.connect().await?),
    };
    match work {
        Work::Connect => Ok(()),
        Work::Apply(changes) => session.apply(changes).await,
        Work::Commit(prepared) => session.commit(prepared).await,
        Work::Recover => session.recover().await,
    }
}

/// Runs `future` on the I/O runtime and waits. Not `Handle::block_on`: that panics on a runtime's own thread.
fn wait<T: Send + 'static>(io: &Handle, future: impl Future<Output = T> + Send + 'static) -> Result<T> {
    let (sender, receiver) = std::sync::mpsc::sync_channel(1);
    io.spawn(async move {
        let _ = sender.send(future.await);
    });
    receiver
        .recv()
        .map_err(|_| EngineError::Internal("the I/O runtime has stopped, or a sink's task panicked".into()))
}

struct UpsertWriter {
    shared: Arc<Shared>,
    buffer: UpsertBuffer,
    connection: Connection,
    subtask: usize,
    /// Since when something waits.
    begun_ms: i64,
}

impl UpsertWriter {
    fn is_committed(&self) -> bool {
        self.shared.options.isolation == Isolation::ReadCommitted
    }

    /// Writes what waits.
    fn flush(&mut self, complete: bool) -> Result<()> {
        let changes = self.buffer.take(complete)?;
        self.begun_ms = self.shared.clock.now_ms();
        if changes.is_empty() {
            return Ok(());
        }
        self.connection.perform(&self.shared, Work::Apply(changes))
    }

    fn prepared(&mut self, checkpoint: u64) -> Result<Option<Prepared>> {
        let changes = self.buffer.take(true)?;
        let mark = Mark::new(&self.shared.job, &self.shared.run, self.subtask, checkpoint);
        Ok((!changes.is_empty()).then_some(Prepared { mark, changes }))
    }
}

impl SinkWriter for UpsertWriter {
    fn write(&mut self, batch: &Batch) -> Result<()> {
        if self.buffer.rows() == 0 {
            self.begun_ms = self.shared.clock.now_ms();
        }
        self.buffer.push(batch)?;
        if !self.is_committed() && self.buffer.rows() >= self.shared.options.max_rows {
            self.flush(false)?;
        }
        Ok(())
    }

    fn held_bytes(&self) -> usize {
        self.buffer.bytes()
    }

    fn relieve(&mut self) -> Result<()> {
        match self.is_committed() {
            true => self.buffer.compact(),
            false => self.flush(false),
        }
    }

    fn finish(&mut self) -> Result<()> {
        if !self.is_committed() {
            return self.flush(true);
        }
        if self.shared.checkpointed {
            return Err(EngineError::Internal(
                "a sink of a job with checkpoints was finished".into(),
            ));
        }
        let prepared = self.prepared(0)?;
        self.shared.staged.lock().extend(prepared);
        Ok(())
    }

    fn prepare(&mut self, checkpoint: u64) -> Result<Vec<Committable>> {
        if !self.is_committed() {
            self.flush(true)?;
            return Ok(Vec::new());
        }
        let prepared = self.prepared(checkpoint)?;
        prepared.iter().map(Prepared::encode).collect()
    }

    fn next_roll_ms(&self) -> Option<i64> {
        let waits = !self.is_committed() && self.buffer.rows() > 0;
        waits.then(|| self.begun_ms.saturating_add(self.shared.options.interval_ms))
    }

    fn roll(&mut self) -> Result<()> {
        match self.next_roll_ms() {
            Some(due) if due <= self.shared.clock.now_ms() => self.flush(false),
            _ => Ok(()),
        }
    }
}
