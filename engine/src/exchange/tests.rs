use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatchOptions};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::physical_expr::expressions::Literal;
use parking_lot::Mutex;
use thalweg_memory::{MemoryManager, SpillDirectory};

use super::*;
use crate::data::{Alignment, Barrier, Batch, EngineError, LatencyMarker, Watermark};
use crate::plan::{Partitioning, ScalarExpr, SortKey};
use crate::time::ManualClock;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]))
}

fn batch(values: impl IntoIterator<Item = i64>) -> Batch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
    Batch::try_new(schema(), vec![column]).unwrap()
}

fn values(batch: &Batch) -> Vec<i64> {
    batch.column(0).as_primitive::<Int64Type>().values().to_vec()
}

fn key() -> ScalarExpr {
    ScalarExpr::column(0, &schema())
}

/// Remembers what was sent.
#[derive(Clone, Default)]
struct Recorder(Arc<Mutex<Vec<Element>>>);

impl Recorder {
    fn batches(&self) -> Vec<Vec<i64>> {
        let sent = self.0.lock();
        sent.iter()
            .filter_map(|e| {
                if let Element::Batch(b) = e {
                    Some(values(b))
                } else {
                    None
                }
            })
            .collect()
    }
}

impl ChannelSender for Recorder {
    fn send(&mut self, element: Element) -> Result<Demand> {
        self.0.lock().push(element);
        Ok(Demand::More)
    }

    fn demand(&self) -> Demand {
        Demand::More
    }
}

fn gate_to(
    recorders: &[Recorder],
    partitioning: &Partitioning,
    batch_size: usize,
    timeout: BufferTimeout,
    clock: Arc<ManualClock>,
) -> OutputGate {
    let senders = recorders
        .iter()
        .map(|r| Box::new(r.clone()) as Box<dyn ChannelSender>)
        .collect();
    let partitioner = Partitioner::new(partitioning, 0, recorders.len()).unwrap();
    OutputGate::new(partitioner, senders, (batch_size, usize::MAX), timeout, clock)
}

fn spread(partitioning: &Partitioning, channels: usize, batches: Vec<Batch>) -> Vec<Vec<i64>> {
    let recorders: Vec<_> = (0..channels).map(|_| Recorder::default()).collect();
    let mut gate = gate_to(&recorders, partitioning, 8, BufferTimeout::WhenFull, Arc::default());
    for batch in batches {
        gate.collect(batch).unwrap();
    }
    gate.control(&Element::EndOfInput).unwrap();
    recorders.iter().map(|r| r.batches().concat()).collect()
}

#[test]
fn forward_and_global_send_everything_to_one_channel() {
    for partitioning in [Partitioning::Forward, Partitioning::Global] {
        assert_eq!(
            spread(&partitioning, 1, vec![batch(0..5), batch(5..7)]),
            vec![vec![0, 1, 2, 3, 4, 5, 6]]
        );
    }
}

#[test]
fn broadcast_sends_everything_to_every_channel_and_rebalance_takes_turns() {
    assert_eq!(
        spread(&Partitioning::Broadcast, 2, vec![batch([1, 2])]),
        vec![vec![1, 2], vec![1, 2]]
    );
    let turns = spread(&Partitioning::Rebalance, 3, (0..6).map(|i| batch([i])).collect());
    assert_eq!(turns, vec![vec![0, 3], vec![1, 4], vec![2, 5]]);
}

#[test]
fn hash_keeps_equal_keys_together_and_in_order() {
    let channels = spread(&Partitioning::Hash(vec![key()]), 4, vec![batch((0..100).chain(0..100))]);
    assert_eq!(channels.iter().map(Vec::len).sum::<usize>(), 200);
    assert!(channels.iter().all(|rows| !rows.is_empty()));
    for (index, rows) in channels.iter().enumerate() {
        for other in channels.iter().skip(index + 1) {
            assert!(rows.iter().all(|row| !other.contains(row)));
        }
        let (first, second) = rows.split_at(rows.len() / 2);
        assert_eq!(first, second, "rows of one channel keep their order");
    }
}

#[test]
fn range_splits_at_the_bounds_of_its_order() {
    let literal = |value| ScalarExpr::new(Arc::new(Literal::new(ScalarValue::Int64(value))), schema());
    let keys = vec![SortKey {
        expr: key(),
        descending: true,
        nulls_first: false,
    }];
    let bounds = vec![vec![literal(Some(20))], vec![literal(Some(10))]];
    let channels = spread(
        &Partitioning::Range {
            keys: keys.clone(),
            bounds,
        },
        3,
        vec![batch([5, 10, 11, 20, 21, 30])],
    );
    assert_eq!(channels, vec![vec![20, 21, 30], vec![10, 11], vec![5]]);
    let wrong = Partitioning::Range {
        keys,
        bounds: vec![vec![literal(Some(1))], vec![literal(Some(2))]],
    };
    assert!(
        Partitioner::new(&wrong, 0, 3).is_err(),
        "ascending bounds of a descending order"
    );
}

#[test]
fn small_batches_are_gathered_and_large_ones_pass() {
    let recorder = [Recorder::default()];
    let clock = Arc::new(ManualClock::default());
    let mut gate = gate_to(
        &recorder,
        &Partitioning::Global,
        4,
        BufferTimeout::WhenFull,
        Arc::clone(&clock),
    );
    for i in 0..5 {
        gate.collect(batch([i])).unwrap();
    }
    clock.advance(Duration::from_secs(3600));
    gate.flush_due().unwrap();
    assert_eq!(
        recorder[0].batches(),
        vec![vec![0, 1, 2, 3]],
        "-1: only full batches leave"
    );
    assert_eq!(gate.time_to_flush(), None);
    gate.watermark(Watermark(7)).unwrap();
    assert_eq!(recorder[0].batches().len(), 2, "a control event never overtakes rows");
    assert!(matches!(
        recorder[0].0.lock().last(),
        Some(Element::Watermark(Watermark(7)))
    ));
    gate.collect(batch(10..14)).unwrap();
    assert_eq!(recorder[0].batches()[2], vec![10, 11, 12, 13]);
}

#[test]
fn the_buffer_timeout_bounds_how_long_rows_are_held() {
    let recorder = [Recorder::default()];
    let clock = Arc::new(ManualClock::default());
    let timeout = BufferTimeout::from_ms(10);
    let mut gate = gate_to(&recorder, &Partitioning::Global, 1000, timeout, Arc::clone(&clock));
    assert_eq!(gate.time_to_flush(), None);
    gate.collect(batch([1])).unwrap();
    clock.advance(Duration::from_millis(6));
    gate.collect(batch([2])).unwrap();
    assert_eq!(
        gate.time_to_flush(),
        Some(Duration::from_millis(4)),
        "counted from the oldest row"
    );
    gate.flush_due().unwrap();
    assert!(recorder[0].batches().is_empty());
    clock.advance(Duration::from_millis(4));
    gate.flush_due().unwrap();
    assert_eq!(recorder[0].batches(), vec![vec![1, 2]]);
    assert_eq!(gate.time_to_flush(), None);

    let mut gate = gate_to(&recorder, &Partitioning::Global, 1000, BufferTimeout::from_ms(0), clock);
    gate.collect(batch([3])).unwrap();
    assert_eq!(recorder[0].batches()[1], vec![3], "0: each input batch leaves at once");
}

fn live(ports: &[Port], credit_bytes: usize) -> (InputGate, Vec<Inlet>, CancelToken) {
    let cancel = CancelToken::new();
    let channels = ports.iter().map(|port| (*port, ChannelSource::Live)).collect();
    let gate = InputGate::new(channels, credit_bytes, cancel.clone());
    let inlets = (0..ports.len()).map(|channel| gate.inlet(channel)).collect();
    (gate, inlets, cancel)
}

#[test]
fn the_gate_keeps_the_minimum_watermark_of_channels_that_speak() {
    let (mut gate, mut inlets, _) = live(&[0, 0, 0], 1 << 20);
    let next = |gate: &mut InputGate| match gate.next(ReadNext::Any, Some(Duration::ZERO)).unwrap() {
        GateEvent::Watermark(w) => Some(w.0),
        GateEvent::Pending => None,
        other => panic!("{other:?}"),
    };
    inlets[0].send(Element::Watermark(Watermark(10))).unwrap();
    inlets[1].send(Element::Watermark(Watermark(5))).unwrap();
    assert_eq!(next(&mut gate), None, "the third has not spoken");
    inlets[2].send(Element::Idle).unwrap();
    assert_eq!(next(&mut gate), Some(5), "idle channels do not hold back");
    inlets[1].send(Element::EndOfInput).unwrap();
    assert_eq!(next(&mut gate), Some(10), "nor do ended ones");
    inlets[2].send(Element::Watermark(Watermark(3))).unwrap();
    assert_eq!(next(&mut gate), None, "the watermark never goes back");
    inlets[0].send(Element::Watermark(Watermark(20))).unwrap();
    inlets[2].send(Element::Watermark(Watermark(12))).unwrap();
    assert_eq!(next(&mut gate), Some(12));
}

#[test]
fn a_gate_is_idle_while_all_its_open_channels_are() {
    let (mut gate, mut inlets, _) = live(&[0, 1], 1 << 20);
    let next = |gate: &mut InputGate| match gate.next(ReadNext::Any, Some(Duration::ZERO)).unwrap() {
        GateEvent::Watermark(w) => format!("w{}", w.0),
        GateEvent::Idle(idle) => format!("idle {idle}"),
        GateEvent::End(port) => format!("end {port}"),
        GateEvent::Pending => "pending".into(),
        other => panic!("{other:?}"),
    };
    inlets[0].send(Element::Idle).unwrap();
    assert_eq!(next(&mut gate), "pending", "the other one may speak");
    inlets[1].send(Element::Idle).unwrap();
    assert_eq!(next(&mut gate), "idle true");
    inlets[1].send(Element::Idle).unwrap();
    assert_eq!(next(&mut gate), "pending", "it is known");
    // A watermark is a sign of life.
    inlets[0].send(Element::Watermark(Watermark(7))).unwrap();
    assert_eq!((next(&mut gate), next(&mut gate)), ("idle false".into(), "w7".into()));
    inlets[0].send(Element::EndOfInput).unwrap();
    assert_eq!(next(&mut gate), "end 0");
    inlets[1].send(Element::Active).unwrap();
    inlets[1].send(Element::Watermark(Watermark(9))).unwrap();
    assert_eq!(next(&mut gate), "w9");
}

#[test]
fn latency_markers_stay_behind_the_rows_that_were_before_them() {
    let (mut gate, inlets, _) = live(&[0], 1 << 20);
    let clock = Arc::new(ManualClock::default());
    let senders = inlets
        .into_iter()
        .map(|inlet| Box::new(inlet) as Box<dyn ChannelSender>);
    let one = Partitioner::new(&Partitioning::Global, 0, 1).unwrap();
    let mut out = OutputGate::new(
        one,
        senders.collect(),
        (100, 1 << 20),
        BufferTimeout::from_ms(5),
        clock.clone(),
    );
    let marker = |sent_ns| LatencyMarker { vertex: 3, sent_ns };
    out.latency(marker(1)).unwrap();
    out.collect(batch([1])).unwrap();
    out.latency(marker(2)).unwrap();
    let mut next = || gate.next(ReadNext::Any, Some(Duration::ZERO)).unwrap();
    assert!(
        matches!(next(), GateEvent::Latency(first) if first == marker(1)),
        "nothing was held"
    );
    assert!(
        matches!(next(), GateEvent::Pending),
        "the row is held back, and the marker with it"
    );
    clock.advance(Duration::from_millis(5));
    out.flush_due().unwrap();
    assert!(matches!(next(), GateEvent::Batch(0, rows) if rows.num_rows() == 1));
    assert!(matches!(next(), GateEvent::Latency(second) if second == marker(2)));
}

#[test]
fn barriers_are_aligned_and_no_row_passes_them() {
    let (mut gate, mut inlets, _) = live(&[0, 1], 1 << 20);
    inlets[0].send(Element::Barrier(barrier(1))).unwrap();
    inlets[0].send(Element::Batch(batch([2]))).unwrap();
    inlets[1].send(Element::Batch(batch([1]))).unwrap();
    let mut next = || gate.next(ReadNext::Any, Some(Duration::ZERO)).unwrap();
    assert!(matches!(next(), GateEvent::Batch(1, _)));
    assert!(
        matches!(next(), GateEvent::Pending),
        "channel 0 waits behind its barrier"
    );
    inlets[1].send(Element::Barrier(barrier(1))).unwrap();
    assert!(matches!(next(), GateEvent::Barrier(Barrier { id: 1, .. })));
    assert!(matches!(next(), GateEvent::Batch(0, _)));
    inlets[0].send(Element::Barrier(barrier(2))).unwrap();
    inlets[1].send(Element::EndOfInput).unwrap();
    assert!(matches!(next(), GateEvent::End(1)));
    assert!(
        matches!(next(), GateEvent::Barrier(Barrier { id: 2, .. })),
        "an ended channel does not hold a barrier up"
    );
}

#[test]
fn an_operator_reads_the_input_it_wants() {
    let (mut gate, mut inlets, _) = live(&[0, 1], 1 << 20);
    inlets[1].send(Element::Batch(batch([1]))).unwrap();
    assert!(matches!(
        gate.next(ReadNext::Only(0), Some(Duration::ZERO)).unwrap(),
        GateEvent::Pending
    ));
    inlets[0].send(Element::EndOfInput).unwrap();
    assert!(matches!(gate.next(ReadNext::Only(0), None).unwrap(), GateEvent::End(0)));
    assert!(matches!(
        gate.next(ReadNext::Only(1), None).unwrap(),
        GateEvent::Batch(1, _)
    ));
}

#[test]
fn a_full_channel_holds_its_sender_until_the_reader_reads() {
    let (mut gate, mut inlets, _) = live(&[0], 100);
    let mut inlet = inlets.remove(0);
    let sent = Arc::new(Mutex::new(0));
    let counter = Arc::clone(&sent);
    let sender = std::thread::spawn(move || {
        for i in 0..50 {
            inlet.send(Element::Batch(batch(i * 10..i * 10 + 10))).unwrap();
            *counter.lock() += 1;
        }
        inlet.send(Element::EndOfInput).unwrap();
    });
    let mut read = 0;
    let mut most_ahead = 0;
    while let GateEvent::Batch(_, rows) = gate.next(ReadNext::Any, None).unwrap() {
        assert_eq!(values(&rows)[0], read * 10);
        read += 1;
        most_ahead = most_ahead.max(*sent.lock() - read);
    }
    assert_eq!(read, 50);
    assert!(
        most_ahead <= 2,
        "batches of 80 bytes, credit for 100: {most_ahead} were under way"
    );
    sender.join().unwrap();
}

#[test]
fn a_blocked_sender_wakes_when_the_reader_leaves_or_the_job_is_cancelled() {
    for cancel_it in [false, true] {
        let (gate, mut inlets, cancel) = live(&[0], 10);
        let mut inlet = inlets.remove(0);
        inlet.send(Element::Batch(batch(0..10))).unwrap();
        let sender = std::thread::spawn(move || inlet.send(Element::Batch(batch(0..10))));
        if cancel_it {
            cancel.cancel();
        } else {
            drop(gate);
        }
        match sender.join().unwrap() {
            Ok(demand) => assert!(!cancel_it && demand == Demand::Done),
            Err(error) => assert!(cancel_it && matches!(error, EngineError::Cancelled)),
        }
    }
}

#[test]
fn a_waiting_reader_wakes_when_the_job_is_cancelled() {
    let (mut gate, _inlets, cancel) = live(&[0], 10);
    let reader = std::thread::spawn(move || gate.next(ReadNext::Any, None));
    cancel.cancel();
    assert!(matches!(reader.join().unwrap(), Err(EngineError::Cancelled)));
}

#[test]
fn batches_without_columns_are_counted_and_passed() {
    let (mut gate, mut inlets, _) = live(&[0], 1 << 20);
    let options = RecordBatchOptions::new().with_row_count(Some(3));
    let empty = Batch::try_new_with_options(Arc::new(Schema::empty()), vec![], &options).unwrap();
    inlets[0].send(Element::Batch(empty)).unwrap();
    assert!(matches!(gate.next(ReadNext::Any, None).unwrap(), GateEvent::Batch(0, b) if b.num_rows() == 3));
}

#[test]
fn a_blocking_channel_can_be_read_twice_from_memory_and_from_disk() {
    let parent = tempfile::tempdir().unwrap();
    for (budget, on_disk) in [(usize::MAX, false), (8 * 1000, true), (0, true)] {
        let spill = Arc::new(SpillDirectory::new(
            parent.path(),
            thalweg_memory::SpillCompression::None,
        ));
        let memory = MemoryManager::new(budget);
        let target = Materialized::new();
        assert!(target.read().is_err(), "its producer has not finished");
        let reservation = memory.reservation("test");
        let mut writer = BlockingWriter::new(Arc::clone(&target), reservation, budget, 1, Arc::clone(&spill));
        for i in 0..10 {
            writer.send(Element::Batch(batch(i * 50..i * 50 + 50))).unwrap();
        }
        writer.send(Element::Watermark(Watermark::MAX)).unwrap();
        writer.send(Element::EndOfInput).unwrap();
        for _ in 0..2 {
            let read: Vec<i64> = target.read().unwrap().flat_map(|b| values(&b.unwrap())).collect();
            assert_eq!(read, (0..500).collect::<Vec<_>>());
        }
        assert_eq!(target.spilled_bytes() > 0, on_disk);
        assert!(memory.reserved_bytes() <= budget / 8);
        drop((writer, target));
        assert_eq!(memory.reserved_bytes(), 0);
        drop(spill);
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }
}

fn barrier(id: u64) -> Barrier {
    Barrier {
        id,
        since: None,
        alignment: Alignment::Aligned { timeout_ms: None },
        stops: false,
    }
}
