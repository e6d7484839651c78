//! A socket as a source: it cannot be read again, so it goes on only with a log of what it has said.

use std::sync::Arc;

use datafusion::execution::TaskContext;
use futures::future::BoxFuture;
use futures::{StreamExt, TryStreamExt};
use thalweg_engine::operator::{Positioned, SplitId, SplitReader, SplitSource, SplitStream};
use thalweg_engine::{EngineError, Result};

use crate::row_wise::RowWise;
use crate::socket::scan::SocketScan;

/// A socket; one split.
#[derive(Clone, Debug)]
pub(crate) struct SocketSource {
    plan: RowWise,
    address: String,
    is_logged: bool,
}

impl SocketSource {
    /// Of a plan over a socket.
    pub(crate) fn of(plan: &RowWise) -> Option<Self> {
        let scan = plan.leaf().downcast_ref::<SocketScan>()?;
        Some(Self {
            plan: plan.clone(),
            address: scan.socket().address.clone(),
            is_logged: scan.socket().is_logged,
        })
    }
}

impl SplitSource for SocketSource {
    fn splits(&self) -> BoxFuture<'_, Result<Vec<SplitId>>> {
        let split = SplitId {
            name: format!("socket {}", self.address),
            ordinal: 0,
        };
        Box::pin(async { Ok(vec![split]) })
    }

    fn needs_log(&self) -> bool {
        self.is_logged
    }

    fn reader(&self, _subtask: usize, task: Arc<TaskContext>) -> Result<Box<dyn SplitReader>> {
        Ok(Box::new(SocketReader {
            source: self.clone(),
            task,
            opened: Vec::new(),
        }))
    }
}

struct SocketReader {
    source: SocketSource,
    task: Arc<TaskContext>,
    /// What has been opened, for its metrics.
    opened: Vec<RowWise>,
}

impl SplitReader for SocketReader {
    fn open(&mut self, split: &SplitId, position: Option<&[u8]>) -> Result<SplitStream> {
        if position.is_some() {
            return Err(EngineError::Plan(format!(
                "{} cannot be read again from where the checkpoint was: set 'scan.wal' = 'true' in its table, so that a log \
                 is kept of what it says, or start without the state of this source",
                split.name
            )));
        }
        let plan = &self.source.plan;
        let rows = plan.over(plan.shared_leaf())?.execute(0, Arc::clone(&self.task))?;
        self.opened.push(plan.clone());
        let rows = rows.map_err(EngineError::from).map_ok(|batch| Positioned {
            batch,
            // That something has been read, and no more.
            position: Vec::new(),
        });
        Ok(rows.boxed())
    }

    fn bad_records(&self) -> u64 {
        let counts = self.opened.iter().filter_map(|plan| {
            let metrics = plan.leaf().metrics()?;
            Some(metrics.sum_by_name("bad_records")?.as_usize() as u64)
        });
        counts.max().unwrap_or(0)
    }
}
