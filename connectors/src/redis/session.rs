//! One connection: batches as transactions, and the marks of what has been committed.

use async_trait::async_trait;
use redis::aio::MultiplexedConnection;
use redis::{ErrorKind, Pipeline, RedisError, RetryMethod, Value};

use super::{Layout, commands};
use crate::upsert::{Changes, Failure, Mark, Prepared, Session};

/// How long marks are kept after the last commit of a run: much longer than a job may be down between two attempts to publish.
const MARKS_KEPT_S: i64 = 90 * 24 * 3600;
/// So often a transaction is begun again when somebody else commits at the same time.
const COLLISIONS_MAX: usize = 100;

/// See the module.
pub(super) struct RedisSession {
    connection: MultiplexedConnection,
    layout: Layout,
}

impl RedisSession {
    pub(super) fn new(connection: MultiplexedConnection, layout: Layout) -> Self {
        Self { connection, layout }
    }

    /// Whether the mark, or a later one of its writer, is recorded.
    async fn is_done(&mut self, mark: &Mark) -> Result<bool, Failure> {
        let mut get = redis::cmd("HGET");
        get.arg(marks_key(mark)).arg(mark.subtask);
        let last: Option<u64> = get.query_async(&mut self.connection).await.map_err(failure)?;
        Ok(last.is_some_and(|last| last >= mark.checkpoint))
    }

    async fn watch(&mut self, prepared: &[Prepared]) -> Result<(), Failure> {
        let mut watch = redis::cmd("WATCH");
        for prepared in prepared {
            watch.arg(marks_key(&prepared.mark));
        }
        watch.exec_async(&mut self.connection).await.map_err(failure)
    }
}

/// A hash: of each writer of a run the last checkpoint that has been written.
fn marks_key(mark: &Mark) -> String {
    format!("thalweg:commits:{}:{}", mark.job, mark.run)
}

#[async_trait]
impl Session for RedisSession {
    async fn apply(&mut self, changes: &Changes) -> Result<(), Failure> {
        let mut pipeline = Pipeline::new();
        pipeline.atomic();
        commands::add(changes, &self.layout, &mut pipeline).map_err(refused)?;
        pipeline.exec_async(&mut self.connection).await.map_err(failure)
    }

    async fn commit(&mut self, prepared: &[Prepared]) -> Result<(), Failure> {
        if prepared.is_empty() {
            return Ok(());
        }
        for _ in 0..COLLISIONS_MAX {
            self.watch(prepared).await?;
            let mut pipeline = Pipeline::new();
            pipeline.atomic();
            for Prepared { mark, changes } in prepared {
                if self.is_done(mark).await? {
                    continue;
                }
                commands::add(changes, &self.layout, &mut pipeline).map_err(refused)?;
                let key = marks_key(mark);
                pipeline
                    .cmd("HSET")
                    .arg(&key)
                    .arg(mark.subtask)
                    .arg(mark.checkpoint)
                    .ignore();
                pipeline.cmd("EXPIRE").arg(&key).arg(MARKS_KEPT_S).ignore();
            }
            if pipeline.is_empty() {
                let unwatch = redis::cmd("UNWATCH");
                return unwatch.exec_async(&mut self.connection).await.map_err(failure);
            }
            // Nothing is left of the answers but whether the transaction took place: without it there is none.
            pipeline.cmd("PING");
            let answer: Value = pipeline.query_async(&mut self.connection).await.map_err(failure)?;
            if answer != Value::Nil {
                return Ok(());
            }
        }
        Err(Failure::Again("others commit for the same job without end".into()))
    }

    async fn recover(&mut self) -> Result<(), Failure> {
        // Marks expire by themselves.
        Ok(())
    }
}

fn refused(error: thalweg_engine::EngineError) -> Failure {
    Failure::Never(error.to_string())
}

/// What an error of the client means.
pub(super) fn failure(error: RedisError) -> Failure {
    let lost = error.is_io_error()
        || error.is_timeout()
        || error.is_connection_dropped()
        || error.is_connection_refusal()
        || matches!(
            error.retry_method(),
            RetryMethod::Reconnect | RetryMethod::WaitAndRetry | RetryMethod::RetryImmediately
        );
    match lost && error.kind() != ErrorKind::AuthenticationFailed {
        true => Failure::Again(error.to_string()),
        false => Failure::Never(error.to_string()),
    }
}
