//! [`OutputGate`]: the channels of one edge out of one subtask.

use std::sync::Arc;
use std::time::Duration;

use arrow::compute::BatchCoalescer;

use crate::data::{Batch, Element, Result, Watermark};
use crate::exchange::{BufferTimeout, ChannelSender, Demand, Partitioner};
use crate::time::Clock;

struct OutputChannel {
    sender: Box<dyn ChannelSender>,
    pending: Option<BatchCoalescer>,
    demand: Demand,
}

/// Splits batches over the channels of an edge and gathers what goes to each into batches of the target size.
pub struct OutputGate {
    partitioner: Partitioner,
    channels: Vec<OutputChannel>,
    batch_size: usize,
    timeout: BufferTimeout,
    clock: Arc<dyn Clock>,
    /// When the oldest row that is held back arrived.
    held_since: Option<Duration>,
}

impl OutputGate {
    /// A gate over the given channels.
    pub fn new(
        partitioner: Partitioner,
        senders: Vec<Box<dyn ChannelSender>>,
        batch_size: usize,
        timeout: BufferTimeout,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let channels = senders
            .into_iter()
            .map(|sender| OutputChannel {
                sender,
                pending: None,
                demand: Demand::More,
            })
            .collect();
        Self {
            partitioner,
            channels,
            batch_size,
            timeout,
            clock,
            held_since: None,
        }
    }

    /// How long from now until held rows must leave; `None` when none are held or they may stay.
    pub fn time_to_flush(&self) -> Option<Duration> {
        match (self.timeout, self.held_since) {
            (BufferTimeout::After(timeout), Some(since)) => {
                Some((since + timeout).saturating_sub(self.clock.monotonic()))
            }
            _ => None,
        }
    }

    /// Sends what has been held long enough.
    ///
    /// # Errors
    /// `Cancelled`, or that a channel broke.
    pub fn flush_due(&mut self) -> Result<()> {
        if self.time_to_flush() == Some(Duration::ZERO) {
            self.flush()
        } else {
            Ok(())
        }
    }

    /// Sends all that is held.
    ///
    /// # Errors
    /// As for `flush_due`.
    pub fn flush(&mut self) -> Result<()> {
        self.held_since = None;
        for channel in &mut self.channels {
            if let Some(pending) = &mut channel.pending {
                pending.finish_buffered_batch()?;
                while let Some(batch) = pending.next_completed_batch() {
                    channel.demand = channel.sender.send(Element::Batch(batch))?;
                }
            }
        }
        Ok(())
    }

    /// Sends a control event to all channels, after all rows that came before it.
    ///
    /// # Errors
    /// As for `flush_due`.
    pub fn control(&mut self, event: &Element) -> Result<()> {
        self.flush()?;
        for channel in &mut self.channels {
            channel.demand = channel.sender.send(event.clone())?;
        }
        Ok(())
    }

    /// Takes rows; waits while the consumers are behind.
    ///
    /// # Errors
    /// As for `flush_due`, or when a key cannot be computed.
    pub fn collect(&mut self, batch: Batch) -> Result<()> {
        let (channels, batch_size) = (&mut self.channels, self.batch_size);
        let count = channels.len();
        self.partitioner.partition(batch, count, &mut |channel, part| {
            channels[channel].push(part, batch_size)
        })?;
        match self.timeout {
            BufferTimeout::WhenFull => {}
            BufferTimeout::Immediate => self.flush()?,
            BufferTimeout::After(_) => {
                if !self.channels.iter().any(OutputChannel::is_holding) {
                    self.held_since = None;
                } else if self.held_since.is_none() {
                    self.held_since = Some(self.clock.monotonic());
                }
            }
        }
        Ok(())
    }

    /// Takes the progress of event time.
    ///
    /// # Errors
    /// As for `flush_due`.
    pub fn watermark(&mut self, watermark: Watermark) -> Result<()> {
        self.control(&Element::Watermark(watermark))
    }

    /// Whether no consumer wants more.
    pub fn is_done(&self) -> bool {
        self.channels
            .iter()
            .all(|channel| channel.demand == Demand::Done || channel.sender.demand() == Demand::Done)
    }
}

impl OutputChannel {
    fn push(&mut self, batch: Batch, batch_size: usize) -> Result<()> {
        if self.demand == Demand::Done {
            return Ok(());
        }
        let empty = self.pending.as_ref().is_none_or(BatchCoalescer::is_empty);
        if empty && batch.num_rows() * 2 > batch_size {
            self.demand = self.sender.send(Element::Batch(batch))?;
            return Ok(());
        }
        let pending = self
            .pending
            .get_or_insert_with(|| BatchCoalescer::new(batch.schema(), batch_size));
        pending.push_batch(batch)?;
        while let Some(full) = pending.next_completed_batch() {
            self.demand = self.sender.send(Element::Batch(full))?;
        }
        Ok(())
    }

    fn is_holding(&self) -> bool {
        self.pending.as_ref().is_some_and(|pending| !pending.is_empty())
    }
}
