//! SessionAssign: the session of a row as columns, over input sorted by keys and time.
//!
//! What is held is the session that may go on, and no more: the rows of those that are complete leave with the batch
//! that completes them. Its state are the rows of that session (`rows`). Sorted input cannot be dealt anew: a subtask goes on with
//! one open session, and refuses to go on with several.

use std::ops::Range;
use std::sync::Arc;

use arrow::compute::concat_batches;
use arrow::datatypes::Schema;
use datafusion::common::utils::memory::RecordBatchMemoryCounter;

use crate::data::{Batch, EngineError, Result};
use crate::operator::window::{Cut, Cutter};
use crate::operator::window_assign::{WINDOW_COLUMNS, times_ms, with_windows};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::SessionAssignSpec;
use crate::state::{Restored, Snapshot, TableSpec, distinct_names};

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

    fn table(&self) -> TableSpec {
        let fields = self.spec.schema.0.fields();
        let input = Schema::new(fields[..fields.len() - WINDOW_COLUMNS].to_vec());
        TableSpec::of_rows("rows", distinct_names(&input), self.cutter.partition_by().to_vec())
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

    fn snapshot(&mut self, state: &mut Snapshot, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        let table = self.table();
        let rows = self.open.as_ref().map(|open| open.rows.clone()).unwrap_or_default();
        let schema = Arc::clone(&table.schema);
        let rows = rows
            .into_iter()
            .map(move |rows| Ok(Batch::try_new(Arc::clone(&schema), rows.columns().to_vec())?));
        state.full(&table, rows);
        Ok(())
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        let table = self.table();
        let rows = state.take(&table)?.collect::<Result<Vec<_>>>()?;
        let rows = concat_batches(&table.schema, &rows)?;
        if rows.num_rows() == 0 {
            return Ok(());
        }
        let times = times_ms(&rows, self.spec.time)?;
        let partitions = self.cutter.cut(&rows)?.partitions;
        let runs = self.runs(&times, &partitions);
        let [run] = runs.as_slice() else {
            return Err(EngineError::Plan(format!(
                "'{}' is handed {} open sessions, but goes on with one: its input is sorted and cannot be dealt anew; \
                 restore it with the parallelism that it had",
                cx.operator,
                runs.len()
            )));
        };
        self.extend(&rows, &times, run.clone());
        cx.hold(self.open.as_ref().map_or(0, |open| open.bytes.memory_usage()))
    }

    fn on_end(&mut self, _port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.close(out)?;
        cx.hold(0)
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{ArrayRef, AsArray, Int64Array, TimestampMillisecondArray};
    use arrow::datatypes::{DataType, Field, Int64Type, SchemaRef, TimeUnit, TimestampMillisecondType};
    use proptest::prelude::*;

    use super::*;
    use crate::operator::harness::Harness;
    use crate::plan::{ScalarExpr, SchemaSpec};

    fn schema(windows: usize) -> SchemaRef {
        let time = DataType::Timestamp(TimeUnit::Millisecond, None);
        let mut fields = vec![
            Field::new("k", DataType::Int64, true),
            Field::new("ts", time.clone(), false),
        ];
        let names = ["window_start", "window_end", "window_time"];
        fields.extend(
            names
                .map(|name| Field::new(name, time.clone(), false))
                .into_iter()
                .take(windows),
        );
        Arc::new(Schema::new(fields))
    }

    fn harness() -> Harness<SessionAssign> {
        Harness::new(SessionAssign::new(SessionAssignSpec {
            partition_by: vec![ScalarExpr::column(0, &schema(0))],
            time: 1,
            gap_ms: 10,
            schema: SchemaSpec(schema(WINDOW_COLUMNS)),
        }))
    }

    fn batch(rows: &[(Option<i64>, i64)]) -> Batch {
        let keys: ArrayRef = Arc::new(rows.iter().map(|row| row.0).collect::<Int64Array>());
        let times = TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.1));
        Batch::try_new(schema(0), vec![keys, Arc::new(times)]).unwrap()
    }

    fn lines(batches: &[Batch]) -> Vec<(Option<i64>, i64, i64, i64)> {
        let mut lines = Vec::new();
        for batch in batches {
            let time = |column: usize| batch.column(column).as_primitive::<TimestampMillisecondType>().values();
            let keys = batch.column(0).as_primitive::<Int64Type>().iter();
            lines.extend(
                keys.enumerate()
                    .map(|(row, key)| (key, time(1)[row], time(2)[row], time(3)[row])),
            );
        }
        lines
    }

    proptest! {
        #[test]
        fn a_cut_session_goes_on(
            rows in prop::collection::vec((prop::option::of(0i64..3), 0i64..150), 1..60),
            cuts in prop::collection::vec((1usize..8, any::<bool>()), 60),
        ) {
            let mut rows = rows;
            rows.sort_unstable();
            let mut whole = harness();
            whole.push(0, batch(&rows)).unwrap();
            whole.end(0).unwrap();
            let (mut cut, mut output) = (harness(), Vec::new());
            for (size, restores) in cuts {
                let rest = rows.split_off(size.min(rows.len()));
                cut.push(0, batch(&rows)).unwrap();
                rows = rest;
                if restores {
                    output.append(&mut cut.output.batches);
                    let stored = vec![cut.snapshot(1, None).unwrap()];
                    cut = harness();
                    cut.restore((0, 1), &[stored]).unwrap();
                    prop_assert!(cut.context.memory.bytes() > 0);
                }
            }
            cut.end(0).unwrap();
            output.append(&mut cut.output.batches);
            prop_assert_eq!(lines(&output), lines(&whole.output.batches));
        }
    }

    #[test]
    fn several_open_sessions_are_refused() {
        let stored = [1, 2].map(|key| {
            let mut harness = harness();
            harness.push(0, batch(&[(Some(key), 5)])).unwrap();
            harness.snapshot(1, None).unwrap()
        });
        let error = harness().restore((0, 1), &[Vec::from(stored)]).unwrap_err().to_string();
        assert!(
            error.contains("2 open sessions") && error.contains("parallelism"),
            "{error}"
        );
    }
}
