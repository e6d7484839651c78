//! Larger than memory: what is cold goes to runs on disk, and comes back when it is asked for.

use arrow::array::{AsArray, BooleanArray, UInt32Array};
use arrow::compute::{filter_record_batch, take_record_batch};
use arrow::datatypes::{Int64Type, UInt32Type};
use thalweg_memory::{Reservation, SpillDirectory};

use super::lookup::KeyBatch;
use super::merge::{Merge, Sorted, are_equal, comparator};
use super::run::{DiskRun, RunWriter, hashes_of, whole_hashes};
use super::source::Source;
use super::store::{BEFORE_KEYS, DEAD};
use super::{GROWTH, KeyedTable};
use crate::data::{Batch, Result};

/// Rows that are written at once.
const ROWS: usize = 4096;
/// So many runs of about one size are merged.
const FAN_IN: usize = 4;

impl KeyedTable {
    /// To be called after each batch: books what the table holds, and when that cannot be had moves what is cold to disk.
    /// Slots are new ones afterwards. Gives the bytes that were written to disk.
    ///
    /// # Errors
    /// When the disk fails.
    pub fn settle(&mut self, memory: &mut Reservation, spill: &SpillDirectory) -> Result<u64> {
        self.tidy();
        let bytes = self.size();
        if !memory.must_spill() && memory.try_resize(bytes).is_ok() {
            return Ok(0);
        }
        let held = self.held_bytes();
        if self.slots as usize <= GROWTH || (held > 0 && bytes - held <= held) {
            // Without a page nothing goes; and while a snapshot holds most of it, little would be won.
            memory.resize(bytes);
            return Ok(0);
        }
        let target = (bytes / 2).min(memory.share_bytes() / 2);
        let keep = target / (bytes / self.slots as usize).max(1);
        let written = self.evict(keep, spill)?;
        memory.resize(self.size());
        Ok(written)
    }

    /// Gets rid of the garbage of values without a fixed width, when there is much.
    pub(crate) fn tidy(&mut self) {
        let slots = self.slots as usize;
        self.store.columns().for_each(|column| column.tidy(slots));
    }

    /// Moves all but about `keep` keys to a run.
    pub(super) fn evict(&mut self, keep: usize, spill: &SpillDirectory) -> Result<u64> {
        let (kept, run) = self.write_cold(keep, spill)?;
        let left = self.held_bytes() + self.store.bytes();
        self.store = self.store.compacted(&kept);
        self.left_bytes = left;
        self.slots = kept.len() as u32;
        self.capacity = kept.len().next_multiple_of(GROWTH);
        self.store.grow(self.capacity);
        self.free = Vec::new();
        self.index.clear();
        self.swept = 0;
        (self.live, self.dead) = (0, Vec::new());
        for slot in 0..self.slots {
            self.index.insert(self.store.hashes.get(slot), slot);
            match self.is_live(slot) {
                true => self.live += 1,
                false => self.dead.push(slot),
            }
        }
        self.index.forget_use();
        let Some(run) = run else { return Ok(0) };
        let written = run.bytes();
        self.runs.push(run);
        Ok(written + self.merge_runs(spill)?)
    }

    /// Writes what is cold; gives the slots that stay.
    fn write_cold(&self, keep: usize, spill: &SpillDirectory) -> Result<(Vec<u32>, Option<DiskRun>)> {
        let in_use = (self.slots as usize - self.free.len()).max(1);
        let mut kept: Vec<u32> = Vec::with_capacity(keep.min(in_use));
        let mut writer: Option<RunWriter> = None;
        let mut cold = Vec::new();
        for group in self.index.by_group() {
            let group: Vec<(u32, bool)> = group.collect();
            let quota = kept.len() + keep * group.len() / in_use;
            cold.clear();
            for (slot, is_used) in group {
                let epoch = self.store.epochs.get(slot);
                if epoch & DEAD == 0 && self.is_expired(slot) {
                    continue;
                }
                match is_used && kept.len() < quota {
                    true => kept.push(slot),
                    false => cold.push(slot),
                }
            }
            cold.sort_unstable_by_key(|slot| self.store.hashes.get(*slot));
            let hashes: Vec<u64> = cold.iter().map(|slot| self.store.hashes.get(*slot)).collect();
            let mut start = 0;
            while start < cold.len() {
                let end = whole_hashes(&hashes, start, ROWS);
                let rows = self.store.run_rows(&cold[start..end], &self.run_schema)?;
                let writer = match &mut writer {
                    Some(writer) => writer,
                    None => writer.insert(RunWriter::new(spill, &rows)?),
                };
                writer.write(&rows, newest_of(&rows))?;
                start = end;
            }
        }
        Ok((kept, writer.map(RunWriter::finish).transpose()?))
    }

    /// Merges the newest runs while there are several of about one size.
    fn merge_runs(&mut self, spill: &SpillDirectory) -> Result<u64> {
        let mut written = 0;
        while self.runs.len() >= FAN_IN {
            let from = self.runs.len() - FAN_IN;
            let newer: u64 = self.runs[from + 1..].iter().map(DiskRun::bytes).sum();
            if self.runs[from].bytes() > 2 * newer {
                break;
            }
            let tail = self.runs.split_off(from);
            let sources: Vec<Sorted> = tail
                .into_iter()
                .rev()
                .map(|run| Box::new(run.blocks()) as Sorted)
                .collect();
            let mut writer: Option<RunWriter> = None;
            for rows in Merge::new(sources, self.key_columns()) {
                let rows = self.still_of_use(rows?)?;
                if rows.num_rows() == 0 {
                    continue;
                }
                let writer = match &mut writer {
                    Some(writer) => writer,
                    None => writer.insert(RunWriter::new(spill, &rows)?),
                };
                writer.write(&rows, newest_of(&rows))?;
            }
            if let Some(writer) = writer {
                let run = writer.finish()?;
                written += run.bytes();
                self.runs.push(run);
            }
        }
        Ok(written)
    }

    /// Where runs have the keys.
    pub(super) fn key_columns(&self) -> std::ops::Range<usize> {
        BEFORE_KEYS..BEFORE_KEYS + self.key_count
    }

    /// Leaves out what has expired, and tidings that nobody needs. The rows are of the newest of `self.runs`' successors.
    fn still_of_use(&self, rows: Batch) -> Result<Batch> {
        let oldest = self.history.oldest();
        let (epochs, touched) = (epochs_of(&rows), touched_of(&rows));
        let keep = (0..rows.num_rows()).map(|row| {
            if epochs[row] & DEAD == 0 {
                return Some(!self.ttl.is_some_and(|ttl| ttl.has_expired(touched[row], self.now_ms)));
            }
            let hash = hashes_of(&rows)[row];
            let is_asked = oldest.is_some_and(|oldest| epochs[row] & !DEAD >= oldest);
            Some(is_asked || self.runs.iter().any(|run| run.may_have(hash)))
        });
        let keep: BooleanArray = keep.collect();
        Ok(filter_record_batch(&rows, &keep)?)
    }

    /// Brings those keys of the rows `missing` to memory that runs have.
    pub(super) fn fetch(&mut self, batch: &KeyBatch, missing: &[u32]) -> Result<()> {
        let mut pending = missing.to_vec();
        let runs = self.runs.clone();
        for run in runs.iter().rev() {
            pending.sort_unstable_by_key(|row| batch.hashes[*row as usize]);
            let mut rest = Vec::new();
            let mut next = 0;
            while let Some(row) = pending.get(next) {
                let block = run.block_of(batch.hashes[*row as usize]);
                let mut wanted = Vec::new();
                while let Some(row) = pending.get(next) {
                    let hash = batch.hashes[*row as usize];
                    if run.block_of(hash) != block {
                        break;
                    }
                    match block.is_some() && run.may_have(hash) {
                        true => wanted.push(*row),
                        false => rest.push(*row),
                    }
                    next += 1;
                }
                if let Some(block) = block.filter(|_| !wanted.is_empty())
                    && let Some(rows) = run.read(block)?
                {
                    let found = self.matching(&rows, batch, &wanted, &mut rest)?;
                    self.adopt(&rows, found)?;
                }
            }
            pending = rest;
            if pending.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Which rows of a block have the keys of rows `wanted`; the others of these are the `rest`.
    fn matching(&self, rows: &Batch, batch: &KeyBatch, wanted: &[u32], rest: &mut Vec<u32>) -> Result<Vec<u32>> {
        let hashes = hashes_of(rows);
        let same = self.key_columns().zip(&batch.columns);
        let same = same
            .map(|(column, key)| comparator(rows.column(column), key))
            .collect::<Result<Vec<_>>>()?;
        let mut found = Vec::new();
        for row in wanted {
            let hash = batch.hashes[*row as usize];
            let start = hashes.partition_point(|other| *other < hash);
            let mut equal = (start..hashes.len()).take_while(|at| hashes[*at] == hash);
            match equal.find(|at| are_equal(&same, *at, *row as usize)) {
                Some(at) => found.push(at as u32),
                None => rest.push(*row),
            }
        }
        // One key may stand in several rows of the batch.
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// Takes rows of a run into memory as they are there.
    fn adopt(&mut self, rows: &Batch, found: Vec<u32>) -> Result<()> {
        let rows = take_record_batch(rows, &UInt32Array::from(found))?;
        let (hashes, epochs, touched) = (hashes_of(&rows), epochs_of(&rows), touched_of(&rows));
        let sources = self.layouts.iter().zip(&rows.columns()[BEFORE_KEYS..]);
        let sources = sources
            .map(|(layout, column)| Source::new(layout, column))
            .collect::<Result<Vec<_>>>()?;
        for row in 0..rows.num_rows() {
            let has_expired = self.ttl.is_some_and(|ttl| ttl.has_expired(touched[row], self.now_ms));
            if epochs[row] & DEAD != 0 || has_expired {
                continue;
            }
            let slot = self.allocate()?;
            for (column, source) in self.store.columns().zip(&sources) {
                column.set(slot, source, row);
            }
            self.enter(slot, hashes[row], epochs[row], touched[row]);
        }
        Ok(())
    }
}

pub(super) fn epochs_of(rows: &Batch) -> &[u32] {
    rows.column(1).as_primitive::<UInt32Type>().values()
}

pub(super) fn touched_of(rows: &Batch) -> &[i64] {
    rows.column(2).as_primitive::<Int64Type>().values()
}

fn newest_of(rows: &Batch) -> u32 {
    epochs_of(rows).iter().map(|epoch| epoch & !DEAD).max().unwrap_or(0)
}
