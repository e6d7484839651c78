//! [`OutputGate`]: the channels of one edge out of one subtask.

use std::sync::Arc;
use std::time::Duration;

use thalweg_memory::Reservation;

use crate::data::{Barrier, Batch, Coalescer, Element, LatencyMarker, Result, Watermark, compact_views};
use crate::exchange::{BufferTimeout, ChannelSender, Demand, Partitioner};
use crate::time::Clock;

struct OutputChannel {
    sender: Box<dyn ChannelSender>,
    pending: Coalescer,
    demand: Demand,
}

/// Splits batches over the channels of an edge and gathers what goes to each into batches of the target size.
pub struct OutputGate {
    partitioner: Partitioner,
    channels: Vec<OutputChannel>,
    timeout: BufferTimeout,
    clock: Arc<dyn Clock>,
    /// When the oldest row that is held back arrived.
    held_since: Option<Duration>,
    /// Latency markers behind the rows that are held back.
    markers: Vec<LatencyMarker>,
    /// Where what is held back is booked.
    memory: Option<Reservation>,
}

impl OutputGate {
    /// A gate over the given channels, for batches of `batch_size` rows and bytes.
    pub fn new(
        partitioner: Partitioner,
        senders: Vec<Box<dyn ChannelSender>>,
        (batch_rows, batch_bytes): (usize, usize),
        timeout: BufferTimeout,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let channels = senders
            .into_iter()
            .map(|sender| OutputChannel {
                sender,
                pending: Coalescer::new(batch_rows, batch_bytes),
                demand: Demand::More,
            })
            .collect();
        Self {
            partitioner,
            channels,
            timeout,
            clock,
            held_since: None,
            markers: Vec::new(),
            memory: None,
        }
    }

    /// Books what is held back on `memory`, even beyond the budget: a batch a channel bounds it.
    pub fn with_memory(self, memory: Reservation) -> Self {
        Self {
            memory: Some(memory),
            ..self
        }
    }

    fn book(&mut self) {
        if let Some(memory) = &mut self.memory {
            memory.resize(self.channels.iter().map(|channel| channel.pending.held_bytes()).sum());
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
            channel.pending.flush()?;
            channel.send_full()?;
        }
        self.book();
        let markers = std::mem::take(&mut self.markers);
        self.send_markers(markers)
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

    /// Sends a barrier past the rows that wait in the channels; what is held back here goes before it.
    ///
    /// # Errors
    /// As for `flush_due`.
    pub fn overtake(&mut self, barrier: Barrier) -> Result<()> {
        self.held_since = None;
        for channel in &mut self.channels {
            channel.pending.flush()?;
            let mut last = Vec::new();
            while let Some(batch) = channel.pending.next()? {
                last.push(batch);
            }
            channel.demand = channel.sender.overtake(last, barrier)?;
        }
        self.book();
        // Where the way was measured to is not where they are any more.
        self.markers.clear();
        Ok(())
    }

    /// Sends a latency marker behind the rows that are held back, whenever those leave.
    ///
    /// # Errors
    /// As for `flush_due`.
    pub fn latency(&mut self, marker: LatencyMarker) -> Result<()> {
        if self.channels.iter().any(OutputChannel::is_holding) {
            self.markers.push(marker);
            return Ok(());
        }
        self.send_markers([marker])
    }

    fn send_markers(&mut self, markers: impl IntoIterator<Item = LatencyMarker>) -> Result<()> {
        for marker in markers {
            for channel in &mut self.channels {
                channel.demand = channel.sender.send(Element::Latency(marker))?;
            }
        }
        Ok(())
    }

    /// Takes rows; waits while the consumers are behind.
    ///
    /// # Errors
    /// As for `flush_due`, or when a key cannot be computed.
    pub fn collect(&mut self, batch: Batch) -> Result<()> {
        let channels = &mut self.channels;
        let count = channels.len();
        self.partitioner
            .partition(batch, count, &mut |channel, part| channels[channel].push(part))?;
        self.book();
        match self.timeout {
            BufferTimeout::WhenFull => {}
            BufferTimeout::Immediate => self.flush()?,
            BufferTimeout::After(_) => {
                if !self.channels.iter().any(OutputChannel::is_holding) {
                    self.held_since = None;
                    let markers = std::mem::take(&mut self.markers);
                    self.send_markers(markers)?;
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
    fn push(&mut self, batch: Batch) -> Result<()> {
        if self.demand == Demand::Done {
            return Ok(());
        }
        if self.pending.is_empty() && self.pending.is_large(&batch) {
            // Rows must not keep alive, nor count as, the strings of rows that went elsewhere.
            let batch = compact_views(batch)?;
            self.demand = self.sender.send(Element::Batch(batch))?;
            return Ok(());
        }
        self.pending.push(batch)?;
        self.send_full()
    }

    fn send_full(&mut self) -> Result<()> {
        while let Some(full) = self.pending.next()? {
            self.demand = self.sender.send(Element::Batch(full))?;
        }
        Ok(())
    }

    fn is_holding(&self) -> bool {
        !self.pending.is_empty()
    }
}
