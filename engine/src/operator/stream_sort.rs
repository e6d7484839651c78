//! StreamSort: rows in the order of event time, then of further keys, then of arrival. A row leaves when the watermark
//! has reached it; a later one is dropped and counted. A snapshot is that of the [`TimeBuffer`].

#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering;

use crate::data::{Batch, EngineError, Result, Watermark, batch_bytes, is_changelog};
use crate::operator::row_table::RowTable;
use crate::operator::sort::KeyEncoder;
use crate::operator::time_buffer::{Released, TimeBuffer, TimeColumn, reordered};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::StreamSortSpec;
use crate::state::{Restored, Snapshot};

/// Sorts a stream by time.
pub(super) struct StreamSort {
    buffer: TimeBuffer,
    /// A total order is made in one subtask: all rows are the first one's.
    table: RowTable,
    /// Of the keys among rows of one time.
    keys: Option<KeyEncoder>,
}

impl StreamSort {
    /// A sort as `spec` says.
    ///
    /// # Errors
    /// When the time is no timestamp, a key has no order, or the input is a changelog.
    pub(super) fn new(spec: &StreamSortSpec) -> Result<Self> {
        let schema = &spec.schema.0;
        if is_changelog(schema) {
            return Err(EngineError::Plan(
                "a stream whose rows are taken back cannot be put into the order of time; sort the insertions before \
                 they are aggregated or joined"
                    .into(),
            ));
        }
        let keys = match spec.keys.as_slice() {
            [] => None,
            keys => Some(KeyEncoder::try_new(keys, schema)?),
        };
        Ok(Self {
            buffer: TimeBuffer::new(TimeColumn::try_new(spec.time, schema)?),
            table: RowTable::new("waiting", schema, Vec::new(), &[]),
            keys,
        })
    }

    fn emit(&self, released: &Released, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let held = self.buffer.bytes() + released.bytes();
        for range in released.pieces(cx.batch_size) {
            if out.is_done() {
                break;
            }
            cx.cancel.check()?;
            let times = &released.times()[range.clone()];
            let mut rows = released.gather(range)?;
            cx.hold(held + batch_bytes(&rows))?;
            if let Some(keys) = &self.keys
                && let Some(order) = order_within_times(keys, &rows, times)?
            {
                rows = reordered(&rows, &order)?;
            }
            for start in (0..rows.num_rows()).step_by(cx.batch_size) {
                out.collect(rows.slice(start, cx.batch_size.min(rows.num_rows() - start)))?;
            }
        }
        Ok(())
    }
}

/// The order by `keys` among rows of equal times; `None` when it is theirs.
fn order_within_times(keys: &KeyEncoder, rows: &Batch, times: &[i64]) -> Result<Option<Vec<u32>>> {
    if times.windows(2).all(|pair| pair[0] < pair[1]) {
        return Ok(None);
    }
    let keys = keys.encode(rows)?;
    let mut order: Vec<u32> = (0..times.len() as u32).collect();
    let mut start = 0;
    for peers in times.chunk_by(|one, next| one == next) {
        let end = start + peers.len();
        if peers.len() > 1 {
            order[start..end].sort_by(|one, other| keys.compare(*one as usize, &keys, *other as usize));
        }
        start = end;
    }
    Ok(Some(order))
}

impl Operator for StreamSort {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        let late = self.buffer.add(batch)?;
        cx.metrics.late_rows.fetch_add(late as u64, Ordering::Relaxed);
        cx.hold(self.buffer.bytes())
    }

    fn on_watermark(&mut self, watermark: Watermark, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if let Some(released) = self.buffer.release(watermark)? {
            self.emit(&released, cx, out)?;
        }
        cx.hold(self.buffer.bytes())?;
        out.watermark(watermark)
    }

    fn snapshot(&mut self, state: &mut Snapshot, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        state.full(self.table.spec(), self.buffer.freeze(&self.table));
        Ok(())
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        self.buffer.restore(&self.table, state.take(self.table.spec())?)?;
        cx.hold(self.buffer.bytes())
    }

    fn on_end(&mut self, _port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if let Some(released) = self.buffer.release(Watermark::MAX)? {
            self.emit(&released, cx, out)?;
        }
        cx.hold(0)
    }
}
