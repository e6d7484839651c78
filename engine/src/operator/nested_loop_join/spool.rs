//! A side that is written to disk as it comes.

use arrow::datatypes::SchemaRef;
use thalweg_memory::{SpillFile, SpillWriter};

use crate::data::{Batch, Result};
use crate::operator::Context;
use crate::operator::hash_join::partitions::write;
use crate::operator::hash_join::radix::Staging;

/// Staging takes this part of the share.
const STAGING_PART: usize = 16;
const STAGING_BYTES_MIN: usize = 8 * 1024;
const STAGING_BYTES_MAX: usize = 2 << 20;

/// Gathers batches up into blocks, however small or large they come.
pub(super) struct Spool {
    staging: Staging,
    writer: SpillWriter,
}

impl Spool {
    /// For batches of `schema`.
    ///
    /// # Errors
    /// When the file cannot be made.
    pub(super) fn new(schema: &SchemaRef, cx: &Context) -> Result<Self> {
        let bytes = (cx.memory.share_bytes() / STAGING_PART).clamp(STAGING_BYTES_MIN, STAGING_BYTES_MAX);
        Ok(Self {
            staging: Staging::new(schema.clone(), bytes),
            writer: cx.spill.create(schema.clone())?,
        })
    }

    /// Takes a batch. `other_bytes` are held besides.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub(super) fn push(&mut self, batch: Batch, other_bytes: usize, cx: &mut Context) -> Result<()> {
        cx.cancel.check()?;
        let rows = batch.num_rows();
        self.staging.push(batch, vec![0; rows])?;
        cx.hold_anyway(other_bytes + self.staging.memory_bytes());
        if self.staging.is_full() {
            self.flush(cx)?;
            cx.hold_anyway(other_bytes);
        }
        Ok(())
    }

    fn flush(&mut self, cx: &Context) -> Result<()> {
        let writer = &mut self.writer;
        self.staging.distribute(|_, batch| write(writer, &batch, cx))
    }

    /// The file; nothing is held any more.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub(super) fn finish(mut self, cx: &mut Context) -> Result<SpillFile> {
        self.flush(cx)?;
        drop(self.staging);
        cx.hold(0)?;
        Ok(self.writer.finish()?)
    }
}
