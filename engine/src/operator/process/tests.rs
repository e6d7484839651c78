//! States, timers and side outputs of process functions, by both faces.

mod expiry;
mod restored;

use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use datafusion::common::ScalarValue;

use super::*;
use crate::operator::harness::{Collected, Harness};

struct Boxed(Box<dyn Operator>);

impl Operator for Boxed {
    fn on_batch(&mut self, port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.0.on_batch(port, batch, cx, out)
    }

    fn on_watermark(&mut self, watermark: Watermark, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.0.on_watermark(watermark, cx, out)
    }

    fn on_timer(&mut self, timer: Timer, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.0.on_timer(timer, cx, out)
    }

    fn next_timer(&self) -> Option<i64> {
        self.0.next_timer()
    }

    fn on_end(&mut self, port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.0.on_end(port, cx, out)
    }

    fn snapshot(&mut self, state: &mut Snapshot, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.0.snapshot(state, cx, out)
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        self.0.restore(state, cx)
    }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Int64, true),
        Field::new("value", DataType::Int64, true),
        Field::new("time", DataType::Timestamp(TimeUnit::Millisecond, None), false),
    ]))
}

fn output() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("key", DataType::Int64, true),
        Field::new("total", DataType::Int64, true),
    ]))
}

fn rows(rows: &[(i64, i64, i64)]) -> Batch {
    let key = Int64Array::from_iter_values(rows.iter().map(|row| row.0));
    let value = Int64Array::from_iter_values(rows.iter().map(|row| row.1));
    let time = TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.2));
    Batch::try_new(schema(), vec![Arc::new(key), Arc::new(value), Arc::new(time)]).unwrap()
}

fn keyed(broadcast: bool) -> ProcessInput {
    ProcessInput {
        schema: schema(),
        keys: if broadcast {
            Vec::new()
        } else {
            vec![ScalarExpr::column(0, &schema())]
        },
        time: Some(2),
        broadcast,
    }
}

fn harness(spec: ProcessSpec) -> Harness<Boxed> {
    spec.states.check().unwrap();
    Harness::new(Boxed(spec.create(0, 1).unwrap()))
}

fn pairs(output: &mut Collected) -> Vec<(i64, i64)> {
    let batches = std::mem::take(&mut output.batches);
    let column = |batch: &Batch, column: usize| batch.column(column).as_primitive::<Int64Type>().values().to_vec();
    batches
        .iter()
        .flat_map(|batch| column(batch, 0).into_iter().zip(column(batch, 1)).collect::<Vec<_>>())
        .collect()
}

/// Sums the values of a key; tells the sum when event time has passed the last of its times by 10 ms, and forgets it.
struct SumAndForget {
    sum: ValueState<i64>,
    last: ValueState<i64>,
}

impl RecordFunction for SumAndForget {
    fn on_record(&mut self, _port: Port, row: RowView<'_>, cx: &mut RecordContext<'_, '_>) -> Result<()> {
        let key = cx.key();
        let value = row.i64(1)?.unwrap_or(0);
        let sum = self.sum.get(cx.states(), key)?.copied().unwrap_or(0) + value;
        self.sum.set(cx.states(), key, sum)?;
        let time = cx.time_ms().unwrap();
        if let Some(last) = self.last.get(cx.states(), key)?.copied() {
            cx.delete_event_timer(last + 10);
        }
        self.last.set(cx.states(), key, time)?;
        cx.register_event_timer(time + 10);
        Ok(())
    }

    fn on_timer(&mut self, _timer: Timer, cx: &mut RecordContext<'_, '_>) -> Result<()> {
        let key = cx.key();
        let sum = self.sum.get(cx.states(), key)?.copied();
        let row = cx.key_row()?;
        cx.emit(vec![ScalarValue::try_from_array(row.column(0), 0)?, sum.into()])?;
        self.sum.clear(cx.states(), key)?;
        self.last.clear(cx.states(), key)
    }
}

fn sum_and_forget() -> ProcessSpec {
    let mut states = StateDeclarations::new();
    let (sum, last) = (states.value("sum"), states.value("last"));
    ProcessSpec {
        inputs: vec![keyed(false)],
        states,
        function: Arc::new(move |_| Box::new(PerRecord::new(SumAndForget { sum, last }, output()))),
        output: output(),
    }
}

#[test]
fn timers_are_per_key_and_can_be_taken_back() {
    let mut harness = harness(sum_and_forget());
    harness.push(0, rows(&[(1, 5, 0), (2, 6, 3), (1, 7, 4)])).unwrap();
    harness.watermark(12).unwrap();
    assert_eq!(pairs(&mut harness.output), [], "key 1 was heard of again");
    harness.watermark(13).unwrap();
    assert_eq!(pairs(&mut harness.output), [(2, 6)]);
    harness.watermark(i64::MAX).unwrap();
    assert_eq!(pairs(&mut harness.output), [(1, 12)]);
    assert_eq!(harness.output.watermarks.len(), 3);
}

#[test]
fn keys_that_nothing_is_known_of_are_forgotten() {
    let mut harness = harness(sum_and_forget());
    for round in 0..60 {
        let batch: Vec<_> = (0..1000).map(|key| (round * 1000 + key, 1, round)).collect();
        harness.push(0, rows(&batch)).unwrap();
        // One key stays to the end.
        harness.push(0, rows(&[(-1, 1, 1_000_000)])).unwrap();
        harness.watermark(round + 10).unwrap();
    }
    assert_eq!(pairs(&mut harness.output).len(), 60_000);
    assert!(
        harness.context.memory.bytes() < 1 << 20,
        "{} bytes stay",
        harness.context.memory.bytes()
    );
    harness.watermark(i64::MAX).unwrap();
    assert_eq!(pairs(&mut harness.output), [(-1, 60)]);
}

/// Hands on the rows whose key stands in the rules, which come by input 1; the others go aside, a list keeps all values.
struct Rules {
    rules: BroadcastState<i64, i64>,
    values: ListState<i64>,
    cheats: bool,
}

impl ProcessFunction for Rules {
    fn on_batch(&mut self, port: Port, batch: &Batch, cx: &mut ProcessContext<'_>) -> Result<()> {
        let column = |column: usize| batch.column(column).as_primitive::<Int64Type>().values().to_vec();
        let (keys, values) = (column(0), column(1));
        if port == 1 || self.cheats {
            for (key, value) in keys.iter().zip(values) {
                self.rules.put(cx.states, *key, value)?;
            }
            return Ok(());
        }
        for (row, key) in keys.iter().enumerate() {
            let number = cx.keys[row];
            self.values.push(cx.states, number, values[row])?;
            match self.rules.get(cx.states, key)?.copied() {
                Some(factor) => {
                    let total = self.values.get(cx.states, number)?.iter().sum::<i64>() * factor;
                    let columns = [*key, total].map(|value| Arc::new(Int64Array::from(vec![value])) as _);
                    cx.emit(Batch::try_new(output(), columns.to_vec())?)?;
                }
                None => cx.emit_side(3, batch.slice(row, 1))?,
            }
        }
        Ok(())
    }
}

fn rules(cheats: bool) -> ProcessSpec {
    let mut states = StateDeclarations::new();
    let (rules, values) = (states.broadcast("rules"), states.list("values"));
    ProcessSpec {
        inputs: vec![keyed(false), keyed(true)],
        states,
        function: Arc::new(move |_| Box::new(Rules { rules, values, cheats })),
        output: output(),
    }
}

#[test]
fn a_broadcast_state_is_seen_by_all_keys_and_changed_by_its_input_only() {
    let mut harness = harness(rules(false));
    harness.push(1, rows(&[(1, 10, 0), (2, 100, 0)])).unwrap();
    harness
        .push(0, rows(&[(1, 5, 0), (3, 5, 0), (2, 5, 0), (1, 6, 0)]))
        .unwrap();
    assert_eq!(pairs(&mut harness.output), [(1, 50), (2, 500), (1, 110)]);
    assert_eq!(harness.output.side.len(), 1);
    let mut cheat = super::tests::harness(rules(true));
    let error = cheat.push(0, rows(&[(1, 5, 0)])).unwrap_err().to_string();
    assert!(error.contains("broadcast"), "{error}");
}

/// Tells after 5 ms of processing time how many rows a key has had; once per key and time.
struct Delayed {
    count: ValueState<u64>,
}

impl ProcessFunction for Delayed {
    fn on_batch(&mut self, _port: Port, _batch: &Batch, cx: &mut ProcessContext<'_>) -> Result<()> {
        for row in 0..cx.keys.len() {
            let key = cx.keys[row];
            let count = self.count.get(cx.states, key)?.copied().unwrap_or(0);
            self.count.set(cx.states, key, count + 1)?;
            cx.register_processing_timer(key, cx.now_ms + 5);
        }
        Ok(())
    }

    fn on_timers(&mut self, _timer: Timer, keys: &[usize], cx: &mut ProcessContext<'_>) -> Result<()> {
        let rows = cx.key_rows(keys)?;
        let counts = keys
            .iter()
            .map(|key| self.count.get(cx.states, *key).unwrap().map(|n| *n as i64));
        let counts: Int64Array = counts.collect();
        cx.emit(Batch::try_new(
            output(),
            vec![Arc::clone(rows.column(0)), Arc::new(counts)],
        )?)
    }
}

#[test]
fn processing_timers_come_due_together_and_at_the_end_at_the_latest() {
    let mut states = StateDeclarations::new();
    let count = states.value("count");
    let mut harness = harness(ProcessSpec {
        inputs: vec![keyed(false)],
        states,
        function: Arc::new(move |_| Box::new(Delayed { count })),
        output: output(),
    });
    harness.push(0, rows(&[(1, 0, 0), (2, 0, 0), (1, 0, 0)])).unwrap();
    harness.advance(Duration::from_millis(4)).unwrap();
    assert_eq!(pairs(&mut harness.output), []);
    harness.advance(Duration::from_millis(1)).unwrap();
    assert_eq!(pairs(&mut harness.output), [(1, 2), (2, 1)]);
    harness.push(0, rows(&[(2, 0, 0)])).unwrap();
    harness.end(0).unwrap();
    assert_eq!(pairs(&mut harness.output), [(2, 2)]);
}

fn open(states: &StateDeclarations) -> States {
    states
        .open(KeyNumbers::new(vec![DataType::Int64], (0, 1)).unwrap())
        .unwrap()
}

#[test]
fn maps_and_texts_are_states_too() {
    let mut states = StateDeclarations::new();
    let map: MapState<String, f64> = states.map("map");
    let text: ValueState<String> = states.value("text");
    let mut stored = open(&states);
    map.put(&mut stored, 2, "b".into(), 2.0).unwrap();
    map.put(&mut stored, 2, "a".into(), 1.0).unwrap();
    map.put(&mut stored, 2, "a".into(), 3.0).unwrap();
    text.set(&mut stored, 0, "hello".into()).unwrap();
    let entries: Vec<_> = map.entries(&stored, 2).unwrap().map(|(k, v)| (k.clone(), *v)).collect();
    assert_eq!(entries, [("a".to_string(), 3.0), ("b".to_string(), 2.0)]);
    let mut used = vec![false; 4];
    stored.mark_used(&mut used);
    assert_eq!(used, [true, false, true, false]);
    map.clear(&mut stored, 2).unwrap();
    text.clear(&mut stored, 0).unwrap();
    let mut used = vec![false; 4];
    stored.mark_used(&mut used);
    assert_eq!(used, [false; 4]);
    states.value::<i64>("map");
    assert!(states.check().unwrap_err().to_string().contains("'map'"));
}
