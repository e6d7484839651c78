//! The full sort: entries of 16 bytes (key prefix, batch, row) are sorted as plain integers; only runs of equal
//! prefixes look at the rest of the keys. The payload is touched once, when it is emitted.

use arrow::row::Rows;
use datafusion::common::utils::memory::RecordBatchMemoryCounter;

use crate::data::{Batch, EngineError, Result};
use crate::operator::sort::gather::Gather;
use crate::operator::sort::keys::{BatchKeys, KeyEncoder};
use crate::operator::sort::prefix::bytes_at;
use crate::operator::{Collector, Context};
use crate::plan::SortKey;

/// One row: prefix (upper 64 bits), batch (32), row (32). Ties fall to the position, which makes the order definite.
type Entry = u128;

fn entry(prefix: u64, batch: u32, row: u32) -> Entry {
    u128::from(prefix) << 64 | u128::from(batch) << 32 | u128::from(row)
}

fn prefix(entry: Entry) -> u64 {
    (entry >> 64) as u64
}

/// Batch and row.
fn place(entry: Entry) -> (usize, usize) {
    ((entry as u64 >> 32) as usize, entry as u32 as usize)
}

/// Keeps everything, sorts at the end.
pub(in crate::operator) struct FullSort {
    keys: Vec<SortKey>,
    encoder: Option<KeyEncoder>,
    batches: Vec<Batch>,
    batch_bytes: RecordBatchMemoryCounter,
    values: Vec<Entry>,
    nulls: Vec<Entry>,
    rows: Vec<Rows>,
    row_bytes: usize,
}

impl FullSort {
    pub(super) fn new(keys: Vec<SortKey>) -> Self {
        Self {
            keys,
            encoder: None,
            batches: Vec::new(),
            batch_bytes: RecordBatchMemoryCounter::new(),
            values: Vec::new(),
            nulls: Vec::new(),
            rows: Vec::new(),
            row_bytes: 0,
        }
    }

    pub(super) fn add(&mut self, batch: Batch, cx: &mut Context) -> Result<()> {
        let encoder = match &mut self.encoder {
            Some(encoder) => encoder,
            None => self.encoder.insert(KeyEncoder::try_new(&self.keys, &batch.schema())?),
        };
        let BatchKeys { head, rows } = encoder.encode(&batch)?;
        let (Ok(number), Ok(row_count)) = (u32::try_from(self.batches.len()), u32::try_from(batch.num_rows())) else {
            return Err(EngineError::Plan(
                "a sort holds at most 2^32 batches of 2^32 rows".into(),
            ));
        };
        self.batch_bytes.count_batch(&batch);
        self.row_bytes += rows.as_ref().map_or(0, Rows::size);
        let null_count = (0..batch.num_rows()).filter(|row| head.is_null(*row)).count();
        self.reserve(batch.num_rows() - null_count, null_count, cx)?;
        for (row, prefix) in (0..row_count).zip(head.prefixes()) {
            let entry = entry(*prefix, number, row);
            if head.is_null(row as usize) {
                self.nulls.push(entry)
            } else {
                self.values.push(entry)
            }
        }
        self.rows.extend(rows);
        self.batches.push(batch);
        Ok(())
    }

    /// Books what is held and makes room for more entries; a vector that grows exists twice for a moment.
    fn reserve(&mut self, values: usize, nulls: usize, cx: &mut Context) -> Result<()> {
        for (entries, more) in [(&mut self.values, values), (&mut self.nulls, nulls)] {
            let needed = entries.len() + more;
            if needed > entries.capacity() {
                let capacity = needed.max(entries.capacity() * 2);
                cx.memory.try_grow(capacity * size_of::<Entry>())?;
                entries.reserve_exact(capacity - entries.len());
            }
        }
        cx.hold(self.held_bytes())
    }

    fn held_bytes(&self) -> usize {
        let entries = (self.values.capacity() + self.nulls.capacity()) * size_of::<Entry>();
        self.batch_bytes.memory_usage() + self.row_bytes + entries
    }

    pub(super) fn finish(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let Some(encoder) = self.encoder.take() else {
            return Ok(());
        };
        let (mut values, mut nulls) = (std::mem::take(&mut self.values), std::mem::take(&mut self.nulls));
        let rows = std::mem::take(&mut self.rows);
        for entries in [&mut values, &mut nulls] {
            cx.cancel.check()?;
            sort_entries(entries, &rows);
        }
        drop(rows);
        let gather = Gather::new(std::mem::take(&mut self.batches))?;
        let order = if encoder.nulls_first() {
            [nulls, values]
        } else {
            [values, nulls]
        };
        let mut places = Vec::with_capacity(cx.batch_size);
        for entry in order.into_iter().flatten() {
            places.push(place(entry));
            if places.len() == cx.batch_size {
                cx.cancel.check()?;
                out.collect(gather.take(&places)?)?;
                places.clear();
                if out.is_done() {
                    return Ok(());
                }
            }
        }
        if !places.is_empty() {
            out.collect(gather.take(&places)?)?;
        }
        Ok(())
    }
}

fn sort_entries(entries: &mut [Entry], rows: &[Rows]) {
    entries.sort_unstable();
    if !rows.is_empty() {
        for run in entries.chunk_by_mut(|a, b| prefix(*a) == prefix(*b)) {
            sort_run(run, rows, 0);
        }
    }
}

/// Runs shorter than this are sorted by comparing whole rows.
const SHORT_RUN: usize = 24;
/// Bytes of common prefix after which a run is sorted by comparing whole rows: it bounds the recursion.
const DEEP: usize = 512;

/// Sorts rows that agree up to byte `depth`: by the next eight bytes, and then the runs that still agree.
fn sort_run(mut run: &mut [Entry], rows: &[Rows], mut depth: usize) {
    let bytes = |entry: Entry| {
        let (batch, row) = place(entry);
        rows[batch].row(row).data()
    };
    loop {
        if run.len() < 2 {
            return;
        }
        if run.len() < SHORT_RUN || depth > DEEP {
            run.sort_unstable_by(|a, b| bytes(*a).cmp(bytes(*b)).then((*a as u64).cmp(&(*b as u64))));
            return;
        }
        let mut longest = 0;
        for entry in run.iter_mut() {
            let bytes = bytes(*entry);
            longest = longest.max(bytes.len());
            *entry = u128::from(bytes_at(bytes, depth)) << 64 | u128::from(*entry as u64);
        }
        run.sort_unstable();
        depth += size_of::<u64>();
        if depth >= longest {
            return;
        }
        let all_agree = match (run.first(), run.last()) {
            (Some(first), Some(last)) => prefix(*first) == prefix(*last),
            _ => return,
        };
        if !all_agree {
            break;
        }
        // A prefix that all share costs a turn of the loop, not a call.
        run = &mut run[..];
    }
    for run in run.chunk_by_mut(|a, b| prefix(*a) == prefix(*b)) {
        sort_run(run, rows, depth);
    }
}
