//! [`Element`]: batches and the control events that travel between them, in order, on one channel.

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::DataType;

use crate::data::Batch;

/// "No row with an event time at or before this one is still to come", in milliseconds since the epoch
/// (The Dataflow Model, section 2.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Watermark(pub i64);

impl Watermark {
    /// The watermark at the end of bounded input: nothing is late any more, everything is complete.
    pub const MAX: Watermark = Watermark(i64::MAX);
}

/// A checkpoint barrier: the rows before it belong to checkpoint `id`, the rows after it do not
/// (Flink paper, section 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Barrier {
    /// The checkpoint's number, rising.
    pub id: u64,
    /// The complete checkpoint on which it may build; see [`crate::state::SnapshotRequest`].
    pub since: Option<u64>,
    /// How the channels of a subtask wait for each other.
    pub alignment: Alignment,
    /// Whether the sources say nothing after it: the job ends with this savepoint.
    pub stops: bool,
}

/// How a subtask with several channels takes a barrier that has come on one of them (Flink paper, section 3.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alignment {
    /// The channel waits for the others. After so many milliseconds the barrier overtakes the rows that are under way.
    Aligned {
        /// `None`: it waits however long it takes.
        timeout_ms: Option<u64>,
    },
    /// The barrier overtakes the rows that are under way, which become part of the snapshot.
    Unaligned,
    /// No channel waits: rows may count twice after a failure.
    AtLeastOnce,
}

/// Sent along with the rows now and then: how long one takes from its source to a sink. It overtakes no row, but does
/// not wait in the state of operators either.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LatencyMarker {
    /// The vertex of the source.
    pub vertex: usize,
    /// When it was sent, by the monotonic clock of the process, in nanoseconds.
    pub sent_ns: u64,
}

/// What a channel carries. First in, first out on one channel; no order across channels.
#[derive(Clone, Debug)]
pub enum Element {
    /// Rows.
    Batch(Batch),
    /// Progress of event time.
    Watermark(Watermark),
    /// A checkpoint's cut.
    Barrier(Barrier),
    /// The end of superstep `n` of an iteration.
    SuperstepEnd(u64),
    /// Measures the way.
    Latency(LatencyMarker),
    /// This channel has nothing to say for a while and must not hold back the watermark.
    Idle,
    /// This channel speaks again.
    Active,
    /// Nothing follows.
    EndOfInput,
}

impl Element {
    /// Bytes this element occupies in a queue; control events count as nothing, so that a full queue
    /// never holds them up.
    pub fn byte_size(&self) -> usize {
        match self {
            Element::Batch(batch) => batch_bytes(batch).max(MIN_BATCH_BYTES),
            _ => 0,
        }
    }
}

/// A batch without columns still takes a place in the queue.
const MIN_BATCH_BYTES: usize = 64;

/// The bytes of a batch's rows. Slices count what they show, not the buffers behind them, which several batches
/// may share; views count the strings that they refer to.
pub fn batch_bytes(batch: &Batch) -> usize {
    batch.columns().iter().map(array_bytes).sum()
}

fn array_bytes(array: &ArrayRef) -> usize {
    let strings = match array.data_type() {
        DataType::Utf8View => array.as_string_view().total_buffer_bytes_used(),
        DataType::BinaryView => array.as_binary_view().total_buffer_bytes_used(),
        _ => 0,
    };
    let rows = array
        .to_data()
        .get_slice_memory_size()
        .unwrap_or_else(|_| array.get_array_memory_size());
    rows + strings
}
