//! Scan: reads splits, each handed out on demand, so that a slow split holds nobody up.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::ExecutionPlan;
use futures::StreamExt;

use crate::data::{Batch, EngineError, Result};
use crate::operator::Context;
use crate::plan::ScanSpec;

/// The splits of one scan, shared by its subtasks: whoever is free takes the next.
#[derive(Debug)]
pub struct Splits {
    next: AtomicUsize,
    count: usize,
}

impl Splits {
    /// Splits `0..count`.
    pub fn new(count: usize) -> Arc<Self> {
        Arc::new(Self { next: AtomicUsize::new(0), count })
    }

    /// How many splits there are in all.
    pub fn count(&self) -> usize {
        self.count
    }

    /// How many splits have been handed out.
    pub fn taken(&self) -> usize {
        self.next.load(Ordering::Relaxed).min(self.count)
    }

    /// The next split, or `None` when all are taken.
    pub fn take(&self) -> Option<usize> {
        let split = self.next.fetch_add(1, Ordering::Relaxed);
        (split < self.count).then_some(split)
    }
}

/// What a source has to say.
pub enum SourceEvent {
    /// Rows.
    Batch(Batch),
    /// Nothing yet; the time to wait is over.
    Pending,
    /// All splits are read.
    End,
}

/// Reads splits of a scan plan until none is left.
pub struct Scan {
    plan: Arc<dyn ExecutionPlan>,
    splits: Arc<Splits>,
    current: Option<SendableRecordBatchStream>,
    rows_left: usize,
}

impl Scan {
    pub(super) fn new(spec: ScanSpec, splits: Arc<Splits>) -> Self {
        Self {
            plan: spec.plan.0,
            splits,
            current: None,
            rows_left: spec.limit.unwrap_or(usize::MAX),
        }
    }

    /// The plan whose partitions are the splits.
    pub fn plan(&self) -> &Arc<dyn ExecutionPlan> {
        &self.plan
    }

    /// Waits for the next batch, at most `patience`; decoding runs on the calling thread, I/O on the I/O runtime.
    ///
    /// # Errors
    /// When the input cannot be read, or `Cancelled`.
    pub fn next(&mut self, cx: &mut Context, patience: Option<Duration>) -> Result<SourceEvent> {
        loop {
            cx.cancel.check()?;
            if self.rows_left == 0 {
                self.current = None;
                return Ok(SourceEvent::End);
            }
            let Some(stream) = self.current.as_mut() else {
                let Some(split) = self.splits.take() else { return Ok(SourceEvent::End) };
                let _io = cx.io.enter();
                self.current = Some(self.plan.execute(split, Arc::clone(&cx.task))?);
                continue;
            };
            let cancel = cx.cancel.clone();
            let polled = cx.io.block_on(async {
                tokio::select! {
                    biased;
                    item = stream.next() => Ok(Some(item)),
                    () = cancel.cancelled() => Err(EngineError::Cancelled),
                    () = sleep(patience) => Ok(None),
                }
            })?;
            match polled {
                None => return Ok(SourceEvent::Pending),
                Some(None) => self.current = None,
                Some(Some(batch)) => {
                    let batch = batch?;
                    if batch.num_rows() == 0 {
                        continue;
                    }
                    let rows = batch.num_rows().min(self.rows_left);
                    self.rows_left -= rows;
                    return Ok(SourceEvent::Batch(batch.slice(0, rows)));
                }
            }
        }
    }
}

async fn sleep(patience: Option<Duration>) {
    match patience {
        Some(duration) => tokio::time::sleep(duration).await,
        None => std::future::pending().await,
    }
}
