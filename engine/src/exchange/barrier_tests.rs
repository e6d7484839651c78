//! Barriers in a gate: which rows a snapshot counts, and which it keeps as being under way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use proptest::prelude::*;

use super::*;
use crate::data::Alignment;
use crate::time::ManualClock;

const ALIGNED: Alignment = Alignment::Aligned { timeout_ms: None };
const TIMED: Alignment = Alignment::Aligned { timeout_ms: Some(10) };

fn rows(values: impl IntoIterator<Item = i64>) -> Batch {
    let schema = Schema::new(vec![Field::new("a", DataType::Int64, true)]);
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
    Batch::try_new(Arc::new(schema), vec![column]).unwrap()
}

fn values(batch: &Batch) -> Vec<i64> {
    batch.column(0).as_primitive::<Int64Type>().values().to_vec()
}

fn barrier(id: u64, alignment: Alignment) -> Barrier {
    Barrier {
        id,
        since: None,
        alignment,
        stops: false,
    }
}

/// A gate, what can be sent to it, and what is read from it in words.
struct Bench {
    gate: InputGate,
    inlets: Vec<Inlet>,
    clock: Arc<ManualClock>,
}

impl Bench {
    fn new(channels: usize, can_overtake: bool) -> Self {
        let sources = (0..channels).map(|_| (0, ChannelSource::Live)).collect();
        let clock = Arc::new(ManualClock::default());
        let gate =
            InputGate::new(sources, 1 << 20, CancelToken::new()).with_overtaking(can_overtake, Arc::clone(&clock) as _);
        let inlets = (0..channels).map(|channel| gate.inlet(channel)).collect();
        Self { gate, inlets, clock }
    }

    fn rows(&mut self, channel: usize, values: impl IntoIterator<Item = i64>) {
        self.inlets[channel].send(Element::Batch(rows(values))).unwrap();
    }

    fn barrier(&mut self, channel: usize, id: u64, alignment: Alignment) {
        let barrier = barrier(id, alignment);
        self.inlets[channel].send(Element::Barrier(barrier)).unwrap();
    }

    fn overtake(&mut self, channel: usize, id: u64, last: &[i64]) {
        let last = last.iter().map(|value| rows([*value])).collect();
        let barrier = barrier(id, Alignment::Unaligned);
        self.inlets[channel].overtake(last, barrier).unwrap();
    }

    fn end(&mut self, channel: usize) {
        self.inlets[channel].send(Element::EndOfInput).unwrap();
    }

    fn next(&mut self) -> GateEvent {
        self.gate.next(ReadNext::Any, Some(Duration::ZERO)).unwrap()
    }

    /// All that can be read now: rows as their values, `|1` an aligned barrier, `!1` one that overtakes, `1:[..]` the rows that it
    /// has overtaken, `$` the end.
    fn read(&mut self) -> String {
        let mut read = Vec::new();
        loop {
            read.push(match self.next() {
                GateEvent::Batch(_, batch) => values(&batch).iter().map(i64::to_string).collect::<Vec<_>>().join(" "),
                GateEvent::Barrier(barrier) => format!("|{}", barrier.id),
                GateEvent::Overtaking(barrier) => format!("!{}", barrier.id),
                GateEvent::InFlight(barrier, rows) => {
                    let mut all: Vec<i64> = rows.iter().flat_map(|(_, batch)| values(batch)).collect();
                    all.sort_unstable();
                    format!("{}:{all:?}", barrier.id)
                }
                GateEvent::End(_) => "$".into(),
                GateEvent::Pending => return read.join(" "),
                other => panic!("{other:?}"),
            });
        }
    }
}

#[test]
fn at_least_once_waits_for_nobody() {
    let mut bench = Bench::new(2, true);
    bench.barrier(0, 1, Alignment::AtLeastOnce);
    bench.rows(0, [1]);
    assert_eq!(bench.read(), "1", "rows pass their own barrier");
    bench.rows(1, [2]);
    bench.barrier(1, 1, Alignment::AtLeastOnce);
    assert_eq!(bench.read(), "2 |1");
}

#[test]
fn an_unaligned_barrier_keeps_the_rows_that_it_has_overtaken() {
    let mut bench = Bench::new(3, true);
    bench.rows(1, [1, 2]);
    bench.rows(2, [3]);
    bench.barrier(2, 1, Alignment::Unaligned);
    bench.rows(2, [4]);
    bench.barrier(0, 1, Alignment::Unaligned);
    bench.rows(0, [5]);
    assert!(
        matches!(bench.next(), GateEvent::Overtaking(barrier) if barrier.id == 1),
        "channel 0 is read first"
    );
    bench.rows(1, [6]);
    bench.rows(0, [7]);
    bench.barrier(1, 1, Alignment::Unaligned);
    bench.rows(1, [8]);
    assert!(
        matches!(bench.next(), GateEvent::InFlight(_, rows) if rows.iter().flat_map(|(_, b)| values(b)).collect::<Vec<_>>() == [1, 2, 3, 6]),
        "queued before it, and arrived before the barrier of their own channel"
    );
    let mut rest: Vec<i64> = bench.read().split(' ').map(|text| text.parse().unwrap()).collect();
    rest.sort_unstable();
    assert_eq!(rest, [1, 2, 3, 4, 5, 6, 7, 8], "they are processed, too, once");
}

#[test]
fn an_aligned_barrier_overtakes_when_it_has_waited_too_long() {
    let mut bench = Bench::new(2, true);
    bench.barrier(0, 1, TIMED);
    bench.rows(0, [1]);
    bench.rows(1, [2]);
    assert_eq!(bench.read(), "2");
    bench.clock.advance(Duration::from_millis(9));
    assert_eq!(bench.read(), "", "it still waits");
    bench.rows(1, [3]);
    bench.clock.advance(Duration::from_millis(1));
    assert_eq!(bench.read(), "!1 1 3");
    bench.rows(1, [4]);
    bench.barrier(1, 1, TIMED);
    assert_eq!(bench.read(), "1:[3, 4] 4");
    // In time, nothing is kept.
    bench.barrier(0, 2, TIMED);
    bench.rows(1, [5]);
    bench.barrier(1, 2, TIMED);
    assert_eq!(bench.read(), "5 |2");
}

#[test]
fn a_channel_that_ends_is_not_waited_for() {
    let mut bench = Bench::new(3, true);
    bench.barrier(0, 1, ALIGNED);
    bench.rows(1, [1]);
    bench.end(1);
    bench.barrier(2, 1, ALIGNED);
    assert_eq!(bench.read(), "1 |1");
    bench.barrier(0, 2, Alignment::Unaligned);
    assert_eq!(bench.read(), "!2");
    bench.rows(2, [2]);
    assert_eq!(bench.read(), "2");
    bench.end(2);
    assert_eq!(bench.read(), "2:[2]", "its rows were under way");
    bench.barrier(0, 3, Alignment::Unaligned);
    bench.end(0);
    assert_eq!(bench.read(), "!3 3:[] $");
}

#[test]
fn a_sender_overtakes_before_and_after_the_receiver_was_told() {
    let mut bench = Bench::new(2, true);
    bench.rows(0, [1]);
    bench.overtake(0, 1, &[2, 3]);
    bench.rows(0, [4]);
    bench.rows(1, [5]);
    let GateEvent::Overtaking(_) = bench.next() else {
        panic!("before any row");
    };
    bench.rows(1, [6]);
    bench.overtake(1, 1, &[7]);
    bench.rows(1, [8]);
    assert_eq!(
        bench.read().split(' ').count(),
        "1:[1, 2, 3, 5, 6, 7] 1 2 3 4 5 6 7 8".split(' ').count()
    );
    bench.overtake(1, 2, &[]);
    bench.overtake(0, 2, &[9]);
    assert_eq!(bench.read(), "!2 2:[9] 9");
}

#[test]
fn a_gate_that_cannot_overtake_aligns() {
    let mut bench = Bench::new(2, false);
    bench.rows(0, [1]);
    bench.overtake(0, 1, &[2]);
    bench.rows(0, [3]);
    bench.rows(1, [4]);
    bench.clock.advance(Duration::from_secs(60));
    let before: Vec<_> = bench.read().split(' ').map(str::to_string).collect();
    assert_eq!(before.len(), 3, "{before:?}");
    bench.barrier(1, 1, Alignment::Unaligned);
    assert_eq!(bench.read(), "|1 3");
}

#[test]
fn a_savepoint_waits_behind_a_checkpoint_that_overtakes() {
    let mut bench = Bench::new(2, true);
    bench.overtake(0, 1, &[]);
    bench.rows(0, [1]);
    bench.barrier(0, 2, ALIGNED);
    bench.rows(0, [2]);
    assert_eq!(bench.read(), "!1 1", "row 2 is after the savepoint's barrier");
    bench.rows(1, [3]);
    bench.overtake(1, 1, &[]);
    assert_eq!(bench.read(), "1:[3] 3", "the savepoint still waits for channel 1");
    bench.rows(1, [4]);
    bench.barrier(1, 2, ALIGNED);
    assert_eq!(bench.read(), "4 |2 2");
}

#[test]
fn a_barrier_stays_behind_that_of_a_checkpoint_that_was_given_up() {
    let mut bench = Bench::new(2, true);
    // The first is never completed by channel 1 in time; the second comes past it.
    bench.overtake(0, 1, &[]);
    bench.rows(0, [1]);
    assert_eq!(bench.read(), "!1 1");
    bench.rows(0, [2]);
    bench.overtake(0, 2, &[3]);
    bench.rows(0, [4]);
    bench.rows(1, [5]);
    assert_eq!(bench.read(), "5 2 3");
    bench.overtake(1, 1, &[]);
    bench.rows(1, [6]);
    assert_eq!(bench.read(), "1:[5] !2 6 4");
    bench.rows(1, [7]);
    bench.overtake(1, 2, &[]);
    assert_eq!(bench.read(), "2:[6, 7] 7");
}

/// What a test does next.
#[derive(Clone, Copy, Debug)]
enum Step {
    /// The next row of a channel.
    Row(usize),
    /// The next barrier of a channel, in order or past what waits.
    Barrier(usize, bool),
    End(usize),
    Read,
    Wait,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        6 => (0..3usize).prop_map(Step::Row),
        4 => (0..3usize, any::<bool>()).prop_map(|(channel, past)| Step::Barrier(channel, past)),
        1 => (0..3usize).prop_map(Step::End),
        6 => Just(Step::Read),
        1 => Just(Step::Wait),
    ];
    proptest::collection::vec(step, 1..120)
}

/// What has been sent and read.
#[derive(Default)]
struct Model {
    sent: [Vec<i64>; 3],
    /// Per barrier and channel, how many rows were sent before it.
    before: BTreeMap<u64, [Option<usize>; 3]>,
    next_barrier: [u64; 3],
    ended: [bool; 3],
    processed: Vec<i64>,
    /// Per barrier, the rows that its snapshot counts or keeps.
    counted: BTreeMap<u64, Vec<i64>>,
    complete: Vec<u64>,
}

impl Model {
    fn row(&mut self, bench: &mut Bench, channel: usize) {
        let row = channel as i64 * 1000 + self.sent[channel].len() as i64;
        self.sent[channel].push(row);
        bench.rows(channel, [row]);
    }

    fn barrier(&mut self, bench: &mut Bench, channel: usize, past: bool, alignments: &[Alignment]) {
        let id = self.next_barrier[channel] + 1;
        let alignment = alignments[id as usize % alignments.len()];
        self.next_barrier[channel] = id;
        let overtakes = alignment == Alignment::Unaligned || alignment == TIMED && past;
        if overtakes {
            let row = channel as i64 * 1000 + self.sent[channel].len() as i64;
            self.sent[channel].push(row);
            bench.overtake(channel, id, &[row]);
        } else {
            bench.barrier(channel, id, alignment);
        }
        self.before.entry(id).or_default()[channel] = Some(self.sent[channel].len());
    }

    /// Reads one event; whether there was one.
    fn read(&mut self, bench: &mut Bench) -> bool {
        match bench.next() {
            GateEvent::Batch(_, batch) => self.processed.extend(values(&batch)),
            GateEvent::Barrier(barrier) => {
                self.counted.insert(barrier.id, self.processed.clone());
                self.complete.push(barrier.id);
            }
            GateEvent::Overtaking(barrier) => {
                self.counted.insert(barrier.id, self.processed.clone());
            }
            GateEvent::InFlight(barrier, rows) => {
                let counted = self.counted.get_mut(&barrier.id).expect("it was announced");
                counted.extend(rows.iter().flat_map(|(_, batch)| values(batch)));
                self.complete.push(barrier.id);
            }
            GateEvent::End(_) => {}
            GateEvent::Pending => return false,
            other => panic!("{other:?}"),
        }
        true
    }

    fn check(&self) {
        for id in &self.complete {
            let mut counted = self.counted[id].clone();
            counted.sort_unstable();
            let before = self.before.get(id).copied().unwrap_or_default();
            let mut expected: Vec<i64> = (0..3)
                .flat_map(|channel| self.sent[channel][..before[channel].unwrap_or(self.sent[channel].len())].to_vec())
                .collect();
            expected.sort_unstable();
            assert_eq!(counted, expected, "checkpoint {id}");
        }
        for channel in 0..3 {
            let of_channel = self.processed.iter().filter(|row| **row / 1000 == channel as i64);
            let of_channel: Vec<i64> = of_channel.copied().collect();
            assert_eq!(of_channel, self.sent[channel], "in order, each once");
        }
    }
}

fn run(steps: &[Step], can_overtake: bool, alignments: &[Alignment]) {
    let mut bench = Bench::new(3, can_overtake);
    let mut model = Model::default();
    for step in steps {
        match *step {
            Step::Row(channel) if !model.ended[channel] => model.row(&mut bench, channel),
            Step::Barrier(channel, past) if !model.ended[channel] => {
                model.barrier(&mut bench, channel, past, alignments);
            }
            // One channel stays, so that the barriers of the others come to an end.
            Step::End(channel) if channel > 0 && !model.ended[channel] => {
                model.ended[channel] = true;
                bench.end(channel);
            }
            Step::Read => {
                model.read(&mut bench);
            }
            Step::Wait => bench.clock.advance(Duration::from_millis(6)),
            _ => {}
        }
    }
    // All catch up with the last barrier.
    let last = model.next_barrier.iter().copied().max().unwrap_or(0);
    for channel in 0..3 {
        while !model.ended[channel] && model.next_barrier[channel] < last {
            model.barrier(&mut bench, channel, false, alignments);
        }
    }
    while model.read(&mut bench) {}
    assert_eq!(model.complete, (1..=last).collect::<Vec<_>>(), "each once, in order");
    model.check();
}

proptest! {
    #[test]
    fn each_row_counts_in_each_snapshot_once(steps in steps()) {
        run(&steps, true, &[ALIGNED]);
        run(&steps, true, &[Alignment::Unaligned]);
        run(&steps, true, &[TIMED]);
        run(&steps, true, &[Alignment::Unaligned, ALIGNED, TIMED]);
        run(&steps, false, &[Alignment::Unaligned, TIMED, ALIGNED]);
    }
}
