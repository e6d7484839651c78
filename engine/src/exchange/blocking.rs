//! Blocking channels: all of the producer's output is kept, in memory within the budget and else on disk, and can be
//! read any number of times.

use std::sync::Arc;

use parking_lot::Mutex;
use thalweg_memory::{Reservation, SpillDirectory, SpillFile, SpillWriter};

use crate::data::{Batch, Element, EngineError, Result};
use crate::exchange::{ChannelSender, Demand};

/// The part of a materialized partition that is kept in memory goes to disk beyond this share of the budget, so that
/// the operators of the next stage find memory.
const MEMORY_SHARE_DIVISOR: usize = 8;

/// The finished output of one channel: first the batches in memory, then those on disk, in the order written.
#[derive(Debug)]
pub struct Materialized {
    slot: Mutex<Option<Arc<Content>>>,
}

#[derive(Debug)]
struct Content {
    in_memory: Vec<Batch>,
    on_disk: Option<SpillFile>,
    _memory: Reservation,
}

impl Materialized {
    /// A partition whose producer has not finished.
    pub fn new() -> Arc<Self> {
        Arc::new(Self { slot: Mutex::new(None) })
    }

    /// Bytes on disk.
    pub fn spilled_bytes(&self) -> u64 {
        let slot = self.slot.lock();
        slot.as_ref()
            .and_then(|content| content.on_disk.as_ref())
            .map_or(0, SpillFile::bytes)
    }

    /// Reads the partition from the beginning.
    ///
    /// # Errors
    /// When the producer has not finished or the file on disk cannot be opened.
    pub fn read(&self) -> Result<Box<dyn Iterator<Item = Result<Batch>> + Send>> {
        let content = self.slot.lock().clone().ok_or_else(|| {
            EngineError::Internal("a blocking exchange was read before its producer had finished".into())
        })?;
        let on_disk = content.on_disk.as_ref().map(SpillFile::open).transpose()?;
        let count = content.in_memory.len();
        let in_memory = (0..count).map(move |index| Ok(content.in_memory[index].clone()));
        Ok(Box::new(
            in_memory.chain(on_disk.into_iter().flatten().map(|batch| Ok(batch?))),
        ))
    }
}

/// The producer's end of a blocking channel.
pub struct BlockingWriter {
    target: Arc<Materialized>,
    spill: Arc<SpillDirectory>,
    memory: Option<Reservation>,
    memory_limit_bytes: usize,
    in_memory: Vec<Batch>,
    on_disk: Option<SpillWriter>,
}

impl BlockingWriter {
    /// Writes to `target`. `memory` is booked up to a share of `budget_bytes`; the rest goes to `spill`.
    pub fn new(
        target: Arc<Materialized>,
        memory: Reservation,
        budget_bytes: usize,
        channels: usize,
        spill: Arc<SpillDirectory>,
    ) -> Self {
        Self {
            target,
            spill,
            memory: Some(memory),
            memory_limit_bytes: budget_bytes / MEMORY_SHARE_DIVISOR / channels.max(1),
            in_memory: Vec::new(),
            on_disk: None,
        }
    }

    fn write(&mut self, batch: Batch) -> Result<()> {
        if self.on_disk.is_none() {
            let size = Element::Batch(batch.clone()).byte_size();
            let memory = self.memory.as_mut().ok_or_else(written_after_end)?;
            if memory.bytes() + size <= self.memory_limit_bytes && memory.try_grow(size).is_ok() {
                self.in_memory.push(batch);
                return Ok(());
            }
            self.on_disk = Some(self.spill.create(batch.schema())?);
        }
        if let Some(file) = self.on_disk.as_mut() {
            file.write(&batch)?;
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        let content = Content {
            in_memory: std::mem::take(&mut self.in_memory),
            on_disk: self.on_disk.take().map(SpillWriter::finish).transpose()?,
            _memory: self.memory.take().ok_or_else(written_after_end)?,
        };
        *self.target.slot.lock() = Some(Arc::new(content));
        Ok(())
    }
}

fn written_after_end() -> EngineError {
    EngineError::Internal("a blocking exchange was written after its end".into())
}

impl ChannelSender for BlockingWriter {
    fn send(&mut self, element: Element) -> Result<Demand> {
        match element {
            Element::Batch(batch) => self.write(batch)?,
            Element::EndOfInput => self.finish()?,
            // A materialized partition is complete: event time has no progress to report inside it.
            Element::Watermark(_) | Element::Latency(_) | Element::Idle | Element::Active => {}
            Element::Barrier(_) | Element::SuperstepEnd(_) => {
                return Err(EngineError::Internal(
                    "a barrier cannot pass a blocking exchange".into(),
                ));
            }
        }
        Ok(Demand::More)
    }

    fn demand(&self) -> Demand {
        Demand::More
    }
}
