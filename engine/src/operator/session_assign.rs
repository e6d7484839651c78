//! SessionAssign: the session of a row as columns, over input sorted by keys and time.
//!
//! What is held is the session that may go on, and no more: the rows of those that are complete leave with the batch
//! that completes them.

use std::ops::Range;

use datafusion::common::utils::memory::RecordBatchMemoryCounter;

use crate::data::{Batch, Result};
use crate::operator::window::{Cut, Cutter};
use crate::operator::window_assign::{times_ms, with_windows};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::SessionAssignSpec;

/// Appends the sessions' bounds.
pub(super) struct SessionAssign {
    spec: SessionAssignSpec,
    cutter: Cutter,
    open: Option<Open>,
}

/// The session that may go on.
struct Open {
    start: i64,
    last: i64,
    /// Its rows from the batches before.
    rows: Vec<Batch>,
    bytes: RecordBatchMemoryCounter,
}

impl Open {
    fn new(start: i64) -> Self {
        Self {
            start,
            last: start,
            rows: Vec::new(),
            bytes: RecordBatchMemoryCounter::new(),
        }
    }
}

impl SessionAssign {
    pub(super) fn new(spec: SessionAssignSpec) -> Self {
        let keys = spec.partition_by.iter().map(|key| key.expr.clone()).collect();
        Self {
            cutter: Cutter::new(keys),
            spec,
            open: None,
        }
    }

    /// The runs of rows that belong together in this batch, the first of which may belong to the open session.
    fn runs(&self, times: &[i64], partitions: &[Range<usize>]) -> Vec<Range<usize>> {
        let mut runs = Vec::new();
        for partition in partitions {
            let mut start = partition.start;
            for row in partition.start + 1..partition.end {
                // A session is complete when the watermark has reached its end less 1 ms: a row at its end is another's.
                if times[row] - times[row - 1] >= self.spec.gap_ms {
                    runs.push(start..row);
                    start = row;
                }
            }
            runs.push(start..partition.end);
        }
        runs
    }

    /// Hands on the open session, which is complete.
    fn close(&mut self, out: &mut dyn Collector) -> Result<()> {
        let Some(open) = self.open.take() else { return Ok(()) };
        let end = open.last + self.spec.gap_ms;
        for batch in open.rows {
            let rows = batch.num_rows();
            let output = with_windows(&batch, vec![open.start; rows], vec![end; rows], &self.spec.schema.0)?;
            out.collect(output)?;
        }
        Ok(())
    }

    /// Hands on whole sessions of one batch.
    fn emit(&self, batch: &Batch, times: &[i64], runs: &[Range<usize>], out: &mut dyn Collector) -> Result<()> {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else {
            return Ok(());
        };
        let rows = batch.slice(first.start, last.end - first.start);
        let mut starts = Vec::with_capacity(rows.num_rows());
        let mut ends = Vec::with_capacity(rows.num_rows());
        for run in runs {
            starts.resize(starts.len() + run.len(), times[run.start]);
            ends.resize(ends.len() + run.len(), times[run.end - 1] + self.spec.gap_ms);
        }
        out.collect(with_windows(&rows, starts, ends, &self.spec.schema.0)?)
    }

    /// Adds a run of rows to the open session, or opens one with it.
    fn extend(&mut self, batch: &Batch, times: &[i64], run: Range<usize>) {
        let open = self.open.get_or_insert_with(|| Open::new(times[run.start]));
        open.last = times[run.end - 1];
        let rows = batch.slice(run.start, run.len());
        open.bytes.count_batch(&rows);
        open.rows.push(rows);
    }
}

impl Operator for SessionAssign {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let times = times_ms(&batch, self.spec.time)?;
        let Cut { partitions, goes_on } = self.cutter.cut(&batch)?;
        let mut runs = self.runs(&times, &partitions);
        let Some(last) = runs.pop() else { return Ok(()) };
        let first = runs.first().unwrap_or(&last).clone();
        let continues = goes_on
            && self
                .open
                .as_ref()
                .is_some_and(|open| times[first.start] - open.last < self.spec.gap_ms);
        if !continues {
            self.close(out)?;
        }
        // The rest of the session that was open, when the batch completes it.
        if continues && !runs.is_empty() {
            self.extend(&batch, &times, runs.remove(0));
            self.close(out)?;
        }
        self.emit(&batch, &times, &runs, out)?;
        self.extend(&batch, &times, last);
        let held = self.open.as_ref().map_or(0, |open| open.bytes.memory_usage());
        cx.hold(held)
    }

    fn on_end(&mut self, _port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.close(out)?;
        cx.hold(0)
    }
}
