//! [`InputGate`]: the channels of all inputs of one subtask, read in order of arrival.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Condvar, Mutex};
use thalweg_memory::Reservation;

use super::alignment::Alignments;
use crate::checkpoint::fault;
use crate::data::{Alignment, Barrier, Batch, Element, EngineError, LatencyMarker, Result, Watermark};
use crate::exchange::{CancelToken, ChannelSender, Demand};
use crate::time::Clock;

/// Which input of an operator an element came from.
pub type Port = usize;

/// Which input an operator wants to read next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReadNext {
    /// Whatever arrives first.
    Any,
    /// This input only (build before probe, merge of sorted inputs).
    Only(Port),
}

/// What a subtask reads from its gate.
#[derive(Debug)]
pub enum GateEvent {
    /// Rows of one input.
    Batch(Port, Batch),
    /// The minimum watermark of all channels has risen.
    Watermark(Watermark),
    /// All channels have delivered this barrier.
    Barrier(Barrier),
    /// This barrier has overtaken rows: the snapshot is to be taken now, and is complete with the next `InFlight`.
    Overtaking(Barrier),
    /// All channels have delivered the barrier that overtook; these rows are part of its snapshot.
    InFlight(Barrier, Vec<(Port, Batch)>),
    /// A marker on its way to the sinks.
    Latency(LatencyMarker),
    /// No channel that is open has anything to say for a while (`true`), or one speaks again.
    Idle(bool),
    /// All channels of this input have ended.
    End(Port),
    /// Nothing arrived in time.
    Pending,
}

/// Where the elements of a channel come from.
pub enum ChannelSource {
    /// A running producer, which holds the channel's [`Inlet`].
    Live,
    /// A materialized partition: read at the consumer's pace.
    Replay(Box<dyn Iterator<Item = Result<Batch>> + Send>),
}

struct Channel {
    port: Port,
    queue: VecDeque<Element>,
    queued_bytes: usize,
    ended: bool,
    watermark: Option<Watermark>,
    idle: bool,
    /// It has delivered a barrier that the others have not: it is not read until they have.
    blocked: bool,
}

struct State {
    channels: Vec<Channel>,
    open_channels_of_port: Vec<usize>,
    watermark: Option<Watermark>,
    /// All open channels are idle.
    idle: bool,
    alignments: Alignments,
    /// Whether barriers may overtake rows here.
    can_overtake: bool,
    /// Alignments are timed by it; without one no barrier ever overtakes for having waited.
    clock: Option<Arc<dyn Clock>>,
    /// The reader has left.
    closed: bool,
    /// Where what waits in the queues is booked.
    memory: Option<Reservation>,
}

struct Shared {
    state: Mutex<State>,
    readable: Condvar,
    writable: Condvar,
    credit_bytes: usize,
    cancel: CancelToken,
}

/// The receiving end of all channels of one subtask.
pub struct InputGate {
    shared: Arc<Shared>,
    replays: Vec<Option<Replay>>,
    cursor: usize,
}

struct Replay {
    port: Port,
    batches: Box<dyn Iterator<Item = Result<Batch>> + Send>,
}

/// The sending end of one channel of a gate in the same process.
#[derive(Clone)]
pub struct Inlet {
    shared: Arc<Shared>,
    channel: usize,
}

impl InputGate {
    /// A gate with the given channels, each belonging to an input. `credit_bytes` bounds what waits in one channel
    /// (one batch may always wait, however large).
    pub fn new(channels: Vec<(Port, ChannelSource)>, credit_bytes: usize, cancel: CancelToken) -> Self {
        let ports = channels.iter().map(|(port, _)| port + 1).max().unwrap_or(0);
        let mut open_channels_of_port = vec![0; ports];
        let mut replays = Vec::with_capacity(channels.len());
        let mut states = Vec::with_capacity(channels.len());
        for (port, source) in channels {
            open_channels_of_port[port] += 1;
            states.push(Channel {
                port,
                queue: VecDeque::new(),
                queued_bytes: 0,
                ended: false,
                watermark: None,
                idle: false,
                blocked: false,
            });
            replays.push(match source {
                ChannelSource::Live => None,
                ChannelSource::Replay(batches) => Some(Replay { port, batches }),
            });
        }
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                channels: states,
                open_channels_of_port,
                watermark: None,
                idle: false,
                alignments: Alignments::default(),
                can_overtake: false,
                clock: None,
                closed: false,
                memory: None,
            }),
            readable: Condvar::new(),
            writable: Condvar::new(),
            credit_bytes,
            cancel: cancel.clone(),
        });
        let weak = Arc::downgrade(&shared);
        cancel.on_cancel(move || {
            if let Some(shared) = weak.upgrade() {
                // The lock makes sure that nobody is between looking at the token and going to sleep.
                let _state = shared.state.lock();
                shared.readable.notify_all();
                shared.writable.notify_all();
            }
        });
        Self {
            shared,
            replays,
            cursor: 0,
        }
    }

    /// Books what waits in the channels on `memory`, even beyond the budget: the credits bound it.
    pub fn with_memory(self, memory: Reservation) -> Self {
        self.shared.state.lock().memory = Some(memory);
        self
    }

    /// Lets barriers overtake rows: those of the channels can be told apart by key, or go anywhere.
    pub fn with_overtaking(self, can_overtake: bool, clock: Arc<dyn Clock>) -> Self {
        {
            let mut state = self.shared.state.lock();
            state.can_overtake = can_overtake;
            state.clock = Some(clock);
        }
        self
    }

    /// The rows that a barrier has overtaken, once all channels have delivered it or ended.
    pub fn take_in_flight(&mut self) -> Option<(Barrier, Vec<(Port, Batch)>)> {
        match self.shared.state.lock().aligned_barrier() {
            Some(GateEvent::InFlight(barrier, rows)) => Some((barrier, rows)),
            _ => None,
        }
    }

    /// Puts rows that a snapshot held before all others of `port`; before any channel is written to.
    pub fn preload(&self, port: Port, batch: Batch) {
        let mut state = self.shared.state.lock();
        let size = Element::Batch(batch.clone()).byte_size();
        if let Some(channel) = state.channels.iter_mut().find(|channel| channel.port == port) {
            channel.queue.push_back(Element::Batch(batch));
            channel.queued_bytes += size;
            if let Some(memory) = &mut state.memory {
                memory.grow(size);
            }
        }
    }

    /// The sending end of a live channel.
    pub fn inlet(&self, channel: usize) -> Inlet {
        Inlet {
            shared: Arc::clone(&self.shared),
            channel,
        }
    }

    /// Number of inputs.
    pub fn ports(&self) -> usize {
        self.shared.state.lock().open_channels_of_port.len()
    }

    /// The next event of the inputs that `read` admits; waits for it at most `patience`.
    ///
    /// # Errors
    /// `Cancelled`, or a materialized partition that cannot be read.
    pub fn next(&mut self, read: ReadNext, patience: Option<Duration>) -> Result<GateEvent> {
        loop {
            self.shared.cancel.check()?;
            if let Some(event) = self.next_replayed(read)? {
                return Ok(event);
            }
            let shared = Arc::clone(&self.shared);
            let mut state = shared.state.lock();
            if let Some(event) = self.take(&mut state, read)? {
                return Ok(event);
            }
            if shared.cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            let alignment = state.time_to_overtake();
            match patience.into_iter().chain(alignment).min() {
                None => shared.readable.wait(&mut state),
                Some(wait) => {
                    if shared.readable.wait_for(&mut state, wait).timed_out() {
                        return Ok(self.take(&mut state, read)?.unwrap_or(GateEvent::Pending));
                    }
                }
            }
            self.cursor = self.cursor.wrapping_add(1);
        }
    }

    /// Tells the producers that nothing more is wanted.
    pub fn close(&mut self) {
        let mut state = self.shared.state.lock();
        state.closed = true;
        for channel in &mut state.channels {
            channel.queue.clear();
            channel.queued_bytes = 0;
        }
        state.memory = None;
        self.replays.iter_mut().for_each(|replay| *replay = None);
        drop(state);
        self.shared.writable.notify_all();
    }

    fn next_replayed(&mut self, read: ReadNext) -> Result<Option<GateEvent>> {
        for (index, slot) in self.replays.iter_mut().enumerate() {
            let Some(replay) = slot else { continue };
            if !admits(read, replay.port) {
                continue;
            }
            match replay.batches.next().transpose()? {
                Some(batch) => return Ok(Some(GateEvent::Batch(replay.port, batch))),
                None => {
                    *slot = None;
                    let mut state = self.shared.state.lock();
                    state.channels[index].queue.push_back(Element::EndOfInput);
                }
            }
        }
        Ok(None)
    }

    /// Takes the next event out of the queues, round-robin over the channels so that none starves.
    fn take(&mut self, state: &mut State, read: ReadNext) -> Result<Option<GateEvent>> {
        if let Some(event) = state.barrier_event().or_else(|| state.risen_watermark()) {
            return Ok(Some(event));
        }
        let count = state.channels.len();
        for offset in 0..count {
            let index = (self.cursor + offset) % count;
            loop {
                let channel = &mut state.channels[index];
                if channel.blocked || !admits(read, channel.port) {
                    break;
                }
                let Some(element) = channel.queue.pop_front() else {
                    break;
                };
                if channel.queued_bytes > 0 {
                    let size = element.byte_size();
                    channel.queued_bytes = channel.queued_bytes.saturating_sub(size);
                    if let Some(memory) = &mut state.memory {
                        memory.shrink(size);
                    }
                    self.shared.writable.notify_all();
                }
                if let Some(event) = state.accept(index, element)? {
                    self.cursor = index + 1;
                    return Ok(Some(event));
                }
            }
        }
        Ok(None)
    }
}

impl Drop for InputGate {
    fn drop(&mut self) {
        self.close();
    }
}

fn admits(read: ReadNext, port: Port) -> bool {
    match read {
        ReadNext::Any => true,
        ReadNext::Only(wanted) => wanted == port,
    }
}

impl State {
    /// Takes in one element of a channel; gives the event it completes, if any.
    fn accept(&mut self, index: usize, element: Element) -> Result<Option<GateEvent>> {
        let channel = &mut self.channels[index];
        match element {
            Element::Batch(batch) => return Ok(Some(GateEvent::Batch(channel.port, batch))),
            Element::Watermark(watermark) => {
                channel.watermark = channel.watermark.max(Some(watermark));
                // Who has something to say is not idle.
                if std::mem::take(&mut channel.idle)
                    && let Some(event) = self.changed_idleness()
                {
                    return Ok(Some(event));
                }
            }
            Element::Idle => {
                channel.idle = true;
                return Ok(self.changed_idleness());
            }
            Element::Active => {
                channel.idle = false;
                return Ok(self.changed_idleness());
            }
            Element::Latency(marker) => return Ok(Some(GateEvent::Latency(marker))),
            Element::Barrier(barrier) => self.deliver(index, barrier),
            // The end of the job may be told where a subtask has told its own.
            Element::EndOfInput if channel.ended => {}
            Element::EndOfInput => {
                channel.ended = true;
                let port = channel.port;
                self.open_channels_of_port[port] -= 1;
                if self.open_channels_of_port[port] == 0 {
                    return Ok(Some(GateEvent::End(port)));
                }
            }
            Element::SuperstepEnd(step) => {
                return Err(EngineError::Internal(format!(
                    "superstep {step} ended outside an iteration"
                )));
            }
        }
        Ok(self.barrier_event().or_else(|| self.risen_watermark()))
    }

    /// Puts an element at the end of a channel, unless it is the barrier that has overtaken it already.
    fn enqueue(&mut self, index: usize, element: Element, size: usize) {
        if let Some(awaited) = self.alignments.awaited(index) {
            match &element {
                Element::Batch(batch) => {
                    let port = self.channels[index].port;
                    self.alignments.keep(port, batch.clone());
                }
                Element::Barrier(barrier) if barrier.id == awaited.id => {
                    let channels = self.channels.len();
                    self.alignments.deliver(awaited, index, channels, Duration::ZERO);
                    return;
                }
                _ => {}
            }
        }
        let channel = &mut self.channels[index];
        channel.queue.push_back(element);
        channel.queued_bytes += size;
        if let Some(memory) = &mut self.memory {
            memory.grow(size);
        }
    }

    /// Takes in a barrier of a channel.
    fn deliver(&mut self, index: usize, mut barrier: Barrier) {
        if !self.can_overtake && barrier.alignment != Alignment::AtLeastOnce {
            barrier.alignment = Alignment::Aligned { timeout_ms: None };
        }
        let channels = self.channels.len();
        self.alignments.deliver(barrier, index, channels, self.now());
        self.channels[index].blocked = self.alignments.holds_back(index);
    }

    /// Lets the channels go on that need not wait any more.
    fn unblock(&mut self) {
        for (index, channel) in self.channels.iter_mut().enumerate() {
            channel.blocked = self.alignments.holds_back(index);
        }
    }

    fn now(&self) -> Duration {
        self.clock.as_ref().map_or(Duration::ZERO, |clock| clock.monotonic())
    }

    fn time_to_overtake(&self) -> Option<Duration> {
        self.clock.as_ref()?;
        self.alignments.time_to_overtake(self.now())
    }

    /// A barrier that is to overtake now, or that every open channel has delivered.
    fn barrier_event(&mut self) -> Option<GateEvent> {
        if self.can_overtake && self.alignments.time_to_overtake(self.now()) == Some(Duration::ZERO) {
            return self.begin_to_overtake();
        }
        self.aligned_barrier()
    }

    /// The barrier, once every channel that has not ended has delivered it; the channels then go on.
    fn aligned_barrier(&mut self) -> Option<GateEvent> {
        let channels = &self.channels;
        let (barrier, in_flight) = self.alignments.complete(|channel| !channels[channel].ended)?;
        self.unblock();
        Some(match in_flight {
            None => GateEvent::Barrier(barrier),
            Some(rows) => GateEvent::InFlight(barrier, rows),
        })
    }

    /// The oldest barrier overtakes: what is queued before it in channels that have not delivered it is kept.
    fn begin_to_overtake(&mut self) -> Option<GateEvent> {
        let barrier = self.alignments.overtake()?;
        let channels = self.channels.len();
        for index in 0..channels {
            if self.alignments.is_delivered(index) {
                continue;
            }
            let channel = &mut self.channels[index];
            let is_barrier = |element: &Element| matches!(element, Element::Barrier(other) if other.id == barrier.id);
            let at = channel.queue.iter().position(is_barrier);
            let before = at.unwrap_or(channel.queue.len());
            keep_rows(&mut self.alignments, channel, before);
            if let Some(at) = at {
                channel.queue.remove(at);
                self.alignments.deliver(barrier, index, channels, Duration::ZERO);
            }
        }
        self.alignments.announce();
        self.unblock();
        Some(GateEvent::Overtaking(barrier))
    }

    /// A barrier comes past what waits in a channel; but it stays behind older barriers (a savepoint's, or that of a checkpoint
    /// that was given up), whose rows are others.
    fn overtaken(&mut self, index: usize, barrier: Barrier) {
        let waits = |element: &Element| matches!(element, Element::Barrier(_));
        if self.alignments.has_older(barrier) || self.channels[index].queue.iter().any(waits) {
            self.enqueue(index, Element::Barrier(barrier), 0);
            return;
        }
        let now = self.now();
        let channels = self.channels.len();
        // Once it is announced, what waits there has been kept already.
        let is_kept = self
            .alignments
            .awaited(index)
            .is_some_and(|awaited| awaited.id == barrier.id);
        self.alignments.deliver(barrier, index, channels, now);
        if !is_kept && self.alignments.is_delivered(index) {
            self.alignments.overtake();
            let channel = &self.channels[index];
            keep_rows(&mut self.alignments, channel, channel.queue.len());
        }
    }

    /// Whether all open channels are idle, when that has changed.
    fn changed_idleness(&mut self) -> Option<GateEvent> {
        let mut open = self.channels.iter().filter(|channel| !channel.ended).peekable();
        let idle = open.peek().is_some() && open.all(|channel| channel.idle);
        if idle == self.idle {
            return None;
        }
        self.idle = idle;
        Some(GateEvent::Idle(idle))
    }

    /// The minimum over the channels that have not ended and are not idle, when it has risen.
    fn risen_watermark(&mut self) -> Option<GateEvent> {
        let minimum = self
            .channels
            .iter()
            .filter(|channel| !channel.ended && !channel.idle)
            .map(|channel| channel.watermark)
            .min()??;
        if self.watermark.is_some_and(|last| minimum <= last) {
            return None;
        }
        self.watermark = Some(minimum);
        Some(GateEvent::Watermark(minimum))
    }
}

/// Keeps the rows among the first `count` elements that wait in a channel.
fn keep_rows(alignments: &mut Alignments, channel: &Channel, count: usize) {
    for element in channel.queue.iter().take(count) {
        if let Element::Batch(batch) = element {
            alignments.keep(channel.port, batch.clone());
        }
    }
}

impl ChannelSender for Inlet {
    fn send(&mut self, element: Element) -> Result<Demand> {
        if matches!(element, Element::Barrier(_)) {
            fault::point("before-alignment")?;
        }
        let shared = &self.shared;
        let size = element.byte_size();
        let mut state = shared.state.lock();
        loop {
            if shared.cancel.is_cancelled() {
                return Err(EngineError::Cancelled);
            }
            if state.closed {
                return Ok(Demand::Done);
            }
            let queued = state.channels[self.channel].queued_bytes;
            if size == 0 || queued == 0 || queued + size <= shared.credit_bytes {
                break;
            }
            shared.writable.wait(&mut state);
        }
        state.enqueue(self.channel, element, size);
        drop(state);
        shared.readable.notify_one();
        Ok(Demand::More)
    }

    fn overtake(&mut self, last: Vec<Batch>, barrier: Barrier) -> Result<Demand> {
        let shared = &self.shared;
        let mut state = shared.state.lock();
        if shared.cancel.is_cancelled() {
            return Err(EngineError::Cancelled);
        }
        if state.closed {
            return Ok(Demand::Done);
        }
        for batch in last {
            let element = Element::Batch(batch);
            let size = element.byte_size();
            state.enqueue(self.channel, element, size);
        }
        if state.can_overtake {
            state.overtaken(self.channel, barrier);
        } else {
            state.enqueue(self.channel, Element::Barrier(barrier), 0);
        }
        drop(state);
        shared.readable.notify_one();
        Ok(Demand::More)
    }

    fn demand(&self) -> Demand {
        if self.shared.state.lock().closed {
            Demand::Done
        } else {
            Demand::More
        }
    }
}
