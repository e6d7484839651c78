//! Exchange: how batches and control events get from the subtasks of one vertex to those of another.
//!
//! An [`OutputGate`] splits a batch by the edge's partitioning, gathers the pieces of each channel into batches of
//! the target size and sends them when full, when the buffer timeout strikes or when a control event must pass. A
//! channel spends byte credits; when they are used up, the sender waits: that is the back-pressure. An [`InputGate`]
//! merges the channels of all inputs of one subtask, keeps the minimum watermark and aligns barriers.

mod alignment;
#[cfg(test)]
mod barrier_tests;
mod blocking;
mod cancel;
mod input_gate;
mod output_gate;
mod partitioner;
#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::data::{Barrier, Batch, Element, Result};

pub use blocking::{BlockingWriter, Materialized};
pub use cancel::CancelToken;
pub use input_gate::{ChannelSource, GateEvent, Inlet, InputGate, Port, ReadNext};
pub use output_gate::OutputGate;
pub use partitioner::{CustomPartition, MAX_PARALLELISM, PartitionFunction, Partitioner};

/// One channel of the expanded graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ChannelId {
    /// The edge in the job graph.
    pub edge: usize,
    /// The producing subtask.
    pub from: usize,
    /// The consuming subtask.
    pub to: usize,
}

/// Whether the consumer still wants elements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Demand {
    /// It does.
    More,
    /// It has left (a limit is reached): what was sent is dropped, nothing more need be sent.
    Done,
}

/// The sending end of a channel. First in, first out.
pub trait ChannelSender: Send {
    /// Sends an element; waits while the channel's credits are used up.
    ///
    /// # Errors
    /// `Cancelled`, or that the channel broke.
    fn send(&mut self, element: Element) -> Result<Demand>;

    /// Sends a barrier past the rows that wait in the channel, which become part of the consumer's snapshot, after `last`, which are
    /// part of it too; waits for no credits. A channel that cannot do so sends them in order.
    ///
    /// # Errors
    /// As for `send`.
    fn overtake(&mut self, last: Vec<Batch>, barrier: Barrier) -> Result<Demand> {
        for batch in last {
            self.send(Element::Batch(batch))?;
        }
        self.send(Element::Barrier(barrier))
    }

    /// Whether the consumer still wants elements; does not wait.
    fn demand(&self) -> Demand;
}

/// Connects subtasks: within a process by queues ([`Inlet`]), between processes by Arrow Flight.
pub trait Transport: Send + Sync {
    /// Opens the sending end of a channel.
    ///
    /// # Errors
    /// When the channel is not known or its consumer cannot be reached.
    fn connect(&self, channel: ChannelId) -> Result<Box<dyn ChannelSender>>;
}

/// How long an exchange may hold rows back to fill a batch (Flink paper, section 3.1; `execution.buffer-timeout`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BufferTimeout {
    /// Until a batch is full, a control event passes or the input ends (`-1`).
    WhenFull,
    /// Not at all: each input batch is sent at once (`0`).
    Immediate,
    /// At most so long.
    After(Duration),
}

impl BufferTimeout {
    /// From milliseconds as users write them: `-1`, `0` or more.
    pub fn from_ms(ms: i64) -> Self {
        match ms {
            0 => BufferTimeout::Immediate,
            ms if ms < 0 => BufferTimeout::WhenFull,
            ms => BufferTimeout::After(Duration::from_millis(ms.unsigned_abs())),
        }
    }
}
