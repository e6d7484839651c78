//! Sorted runs on local disk: what a table keeps when its memory is spent.
//!
//! A run holds rows by rising hash, which is by key group too, in blocks; equal hashes are never in two blocks. A Bloom filter
//! says for most keys that are not there that they are not, the first hash of each block where the others are.

use std::sync::Arc;

use arrow::array::AsArray;
use arrow::compute::concat_batches;
use arrow::datatypes::UInt64Type;
use thalweg_memory::{SpillDirectory, SpillFile, SpillWriter};

use crate::data::{Batch, Result, batch_bytes};

/// Bytes of a block, about: what a lookup reads.
const BLOCK_BYTES: usize = 64 << 10;
const BITS_PER_KEY: usize = 10;
const PROBES: u64 = 6;

/// "Perhaps" or "certainly not" (Bloom, CACM 1970); six bits of one word of 512, so that a look costs one cache miss.
struct Bloom {
    words: Vec<[u64; 8]>,
}

impl Bloom {
    fn new(keys: usize) -> Self {
        Self {
            words: vec![[0; 8]; (keys * BITS_PER_KEY).div_ceil(512).max(1)],
        }
    }

    fn place(&self, hash: u64) -> (usize, u64) {
        // The high bits order the rows; mixing makes the place depend on all of them.
        let mixed = (hash ^ (hash >> 32)).wrapping_mul(0xD6E8_FEB8_6659_FD93);
        let word = ((u128::from(mixed) * self.words.len() as u128) >> 64) as usize;
        (word, mixed ^ hash.rotate_left(17))
    }

    fn insert(&mut self, hash: u64) {
        let (word, mut bits) = self.place(hash);
        for _ in 0..PROBES {
            self.words[word][(bits & 7) as usize] |= 1 << (bits >> 3 & 63);
            bits >>= 9;
        }
    }

    fn may_have(&self, hash: u64) -> bool {
        let (word, mut bits) = self.place(hash);
        (0..PROBES).all(|_| {
            let is_set = self.words[word][(bits & 7) as usize] & 1 << (bits >> 3 & 63) != 0;
            bits >>= 9;
            is_set
        })
    }
}

/// A run on disk; gone when the last clone is.
#[derive(Clone)]
pub(super) struct DiskRun {
    file: SpillFile,
    bloom: Arc<Bloom>,
    /// The first hash of each block.
    firsts: Arc<[u64]>,
    /// The newest epoch in it.
    newest: u32,
}

impl DiskRun {
    pub(super) fn bytes(&self) -> u64 {
        self.file.bytes()
    }

    /// Bytes in memory.
    pub(super) fn memory_bytes(&self) -> usize {
        self.bloom.words.len() * 64 + self.firsts.len() * 8
    }

    pub(super) fn newest(&self) -> u32 {
        self.newest
    }

    /// Whether a key of this hash can be in it.
    pub(super) fn may_have(&self, hash: u64) -> bool {
        self.bloom.may_have(hash)
    }

    /// The block where rows of this hash are, if any are.
    pub(super) fn block_of(&self, hash: u64) -> Option<usize> {
        self.firsts.partition_point(|first| *first <= hash).checked_sub(1)
    }

    /// Reads the block `block`.
    pub(super) fn read(&self, block: usize) -> Result<Option<Batch>> {
        Ok(self.file.open_at(block)?.next().transpose()?)
    }

    /// All blocks in order.
    pub(super) fn blocks(self) -> impl Iterator<Item = Result<Batch>> + Send {
        let mut reader = None;
        std::iter::from_fn(move || {
            if reader.is_none() {
                match self.file.open() {
                    Ok(opened) => reader = Some(opened),
                    Err(error) => return Some(Err(error.into())),
                }
            }
            let next = reader.as_mut()?.next()?;
            Some(next.map_err(Into::into))
        })
    }
}

/// The hashes of rows as runs store them.
pub(super) fn hashes_of(rows: &Batch) -> &[u64] {
    rows.column(0).as_primitive::<UInt64Type>().values()
}

/// Writes a run of rows that come by rising hash.
pub(super) struct RunWriter {
    writer: SpillWriter,
    /// Rows that do not make a block yet.
    pending: Vec<Batch>,
    pending_bytes: usize,
    hashes: Vec<u64>,
    firsts: Vec<u64>,
    newest: u32,
}

impl RunWriter {
    pub(super) fn new(spill: &SpillDirectory, rows: &Batch) -> Result<Self> {
        Ok(Self {
            writer: spill.create(rows.schema())?,
            pending: Vec::new(),
            pending_bytes: 0,
            hashes: Vec::new(),
            firsts: Vec::new(),
            newest: 0,
        })
    }

    /// Adds rows; the hash of the last must not come again. `newest` is not older than any of them.
    pub(super) fn write(&mut self, rows: &Batch, newest: u32) -> Result<()> {
        self.newest = self.newest.max(newest);
        self.pending_bytes += batch_bytes(rows);
        self.pending.push(rows.clone());
        if self.pending_bytes < BLOCK_BYTES {
            return Ok(());
        }
        self.flush()
    }

    fn flush(&mut self) -> Result<()> {
        let Some(first) = self.pending.first() else {
            return Ok(());
        };
        let rows = concat_batches(&first.schema(), &self.pending)?;
        self.pending.clear();
        let hashes = hashes_of(&rows);
        self.hashes.extend_from_slice(hashes);
        let row_bytes = std::mem::take(&mut self.pending_bytes) / rows.num_rows().max(1) + 1;
        let block = (BLOCK_BYTES / row_bytes).max(16);
        let mut start = 0;
        while start < rows.num_rows() {
            let end = whole_hashes(hashes, start, block);
            self.firsts.push(hashes[start]);
            self.writer.write(&rows.slice(start, end - start))?;
            start = end;
        }
        Ok(())
    }

    pub(super) fn finish(mut self) -> Result<DiskRun> {
        self.flush()?;
        let mut bloom = Bloom::new(self.hashes.len());
        self.hashes.iter().for_each(|hash| bloom.insert(*hash));
        Ok(DiskRun {
            file: self.writer.finish()?,
            bloom: Arc::new(bloom),
            firsts: self.firsts.into(),
            newest: self.newest,
        })
    }
}

/// Where a part of `hashes`, of at least `rows` from `start` on, can end without parting equal ones.
pub(super) fn whole_hashes(hashes: &[u64], start: usize, rows: usize) -> usize {
    let mut end = (start + rows).min(hashes.len());
    while end < hashes.len() && hashes[end] == hashes[end - 1] {
        end += 1;
    }
    end
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_forgets_nothing_and_seldom_errs() {
        let hash = |n: u64| n.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ (n << 7);
        let mut bloom = Bloom::new(10_000);
        (0..10_000).for_each(|n| bloom.insert(hash(n)));
        assert!((0..10_000).all(|n| bloom.may_have(hash(n))));
        let wrong = (10_000..110_000).filter(|n| bloom.may_have(hash(*n))).count();
        assert!(wrong < 5_000, "{wrong} of 100000");
    }

    #[test]
    fn equal_hashes_stay_together() {
        let hashes = [1, 2, 2, 2, 3];
        assert_eq!(whole_hashes(&hashes, 0, 1), 1);
        assert_eq!(whole_hashes(&hashes, 1, 1), 4);
        assert_eq!(whole_hashes(&hashes, 4, 9), 5);
    }
}
