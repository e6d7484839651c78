//! Cut anywhere and gone on with, by as many subtasks as one likes, a function gives what it would have given.

use proptest::prelude::*;

use super::*;
use crate::operator::harness::{StoredTable, parts_of, rescaled};

struct Mean;

impl AggregateFunction for Mean {
    type Input = i64;
    type Accumulator = String;
    type Output = i64;

    fn create(&self) -> String {
        "0/0".into()
    }

    fn add(&self, accumulator: String, value: &i64) -> String {
        let (sum, count) = accumulator.split_once('/').unwrap();
        let (sum, count): (i64, i64) = (sum.parse().unwrap(), count.parse().unwrap());
        format!("{}/{}", sum + value, count + 1)
    }

    fn result(&self, accumulator: &String) -> i64 {
        let (sum, count) = accumulator.split_once('/').unwrap();
        sum.parse::<i64>().unwrap() / count.parse::<i64>().unwrap()
    }
}

/// Has a state of every kind, and tells at a time what all of them have come to.
#[derive(Clone, Copy)]
struct Everything {
    count: ValueState<i64>,
    any: ValueState<ScalarValue>,
    list: ListState<i64>,
    map: MapState<i64, String>,
    most: ReducingState<i64>,
    mean: AggregatingState<Mean>,
    column: ColumnState,
    rules: BroadcastState<i64, i64>,
}

impl Everything {
    fn total(&self, key: usize, column: Option<i64>, states: &States) -> Result<i64> {
        let any = match self.any.get(states, key)? {
            Some(ScalarValue::Int64(Some(value))) => *value,
            Some(ScalarValue::Utf8(Some(text))) => text.len() as i64,
            _ => 0,
        };
        let map = self.map.entries(states, key)?;
        let parts = [
            self.count.get(states, key)?.copied().unwrap_or(-1),
            any,
            // The order of a list counts.
            self.list
                .get(states, key)?
                .iter()
                .fold(0, |so_far, item| so_far * 3 + item),
            map.fold(0, |so_far, (entry, text)| so_far * 5 + entry * 7 + text.len() as i64),
            self.most.get(states, key)?.copied().unwrap_or(-1),
            self.mean.get(states, key)?.unwrap_or(-1),
            column.unwrap_or(-1),
            self.rules.entries(states)?.map(|(entry, value)| entry * value).sum(),
        ];
        Ok(parts
            .iter()
            .fold(0i64, |so_far, part| so_far.wrapping_mul(1_000_003).wrapping_add(*part)))
    }

    /// Adds to the column: a key may be in a batch several times.
    fn add(&self, cx: &mut ProcessContext<'_>, values: &[i64]) -> Result<()> {
        let mut sums = std::collections::BTreeMap::new();
        for (key, value) in cx.keys.iter().zip(values) {
            *sums.entry(*key).or_insert(0) += value;
        }
        let keys: Vec<usize> = sums.keys().copied().collect();
        let old = self.column.read(cx.states, &keys)?;
        let old = old.as_primitive::<Int64Type>().iter();
        let new: Int64Array = old
            .zip(sums.values())
            .map(|(old, sum)| Some(old.unwrap_or(0) + sum))
            .collect();
        self.column.write(cx.states, &keys, &(Arc::new(new) as ArrayRef))
    }
}

impl ProcessFunction for Everything {
    fn on_batch(&mut self, port: Port, batch: &Batch, cx: &mut ProcessContext<'_>) -> Result<()> {
        let column = |column: usize| batch.column(column).as_primitive::<Int64Type>().values().to_vec();
        let (keys, values) = (column(0), column(1));
        if port == 1 {
            for (key, value) in keys.iter().zip(values) {
                match value {
                    0 => drop(self.rules.remove(cx.states, key)?),
                    value => self.rules.put(cx.states, *key, value)?,
                }
            }
            return Ok(());
        }
        for (row, value) in values.iter().copied().enumerate() {
            let key = cx.keys[row];
            let count = self.count.get(cx.states, key)?.copied().unwrap_or(0);
            self.count.set(cx.states, key, count + 1)?;
            let any = match value % 2 {
                0 => ScalarValue::from(value),
                _ => ScalarValue::from("x".repeat(value as usize % 10)),
            };
            self.any.set(cx.states, key, any)?;
            self.list.push(cx.states, key, value)?;
            self.map
                .put(cx.states, key, value % 4, "y".repeat(value as usize % 20))?;
            self.most.add(cx.states, key, value)?;
            self.mean.add(cx.states, key, &value)?;
            let time = cx.times_ms.unwrap()[row];
            cx.register_event_timer(key, time + 7 + value % 5);
            if value % 11 == 0 {
                cx.delete_event_timer(key, time + 8);
            }
        }
        self.add(cx, &values)
    }

    fn on_timers(&mut self, timer: Timer, keys: &[usize], cx: &mut ProcessContext<'_>) -> Result<()> {
        let Timer::Event(time) = timer else {
            panic!("nobody asked for {timer:?}")
        };
        let rows = cx.key_rows(keys)?;
        let column = self.column.read(cx.states, keys)?;
        let column = column.as_primitive::<Int64Type>();
        let mut totals = Vec::new();
        let mut done = Vec::new();
        for (at, key) in keys.iter().enumerate() {
            totals.push(self.total(*key, column.iter().nth(at).unwrap(), cx.states)?);
            match (time + totals[at]).rem_euclid(4) {
                0 => {
                    self.count.clear(cx.states, *key)?;
                    self.any.clear(cx.states, *key)?;
                    self.list.take(cx.states, *key)?;
                    self.map.clear(cx.states, *key)?;
                    self.most.clear(cx.states, *key)?;
                    self.mean.clear(cx.states, *key)?;
                    done.push(*key);
                }
                1 => drop(self.map.remove(cx.states, *key, &1)?),
                _ => {}
            }
        }
        self.column.clear(cx.states, &done)?;
        let totals: ArrayRef = Arc::new(Int64Array::from(totals));
        cx.emit(Batch::try_new(output(), vec![Arc::clone(rows.column(0)), totals])?)
    }
}

fn everything() -> ProcessSpec {
    let mut states = StateDeclarations::new();
    let function = Everything {
        count: states.value("count"),
        any: states.value("any"),
        list: states.list("list"),
        map: states.map("map"),
        most: states.reducing("most", |a: &i64, b: &i64| *a.max(b)),
        mean: states.aggregating("mean", Mean),
        column: states.column("column", DataType::Int64),
        rules: states.broadcast("rules"),
    };
    ProcessSpec {
        inputs: vec![keyed(false), keyed(true)],
        states,
        function: Arc::new(move |_| Box::new(function)),
        output: output(),
    }
}

fn make() -> Boxed {
    Boxed(everything().create(0, 1).unwrap())
}

#[derive(Clone, Debug)]
enum Step {
    Rows(Vec<(i64, i64)>),
    Rules(Vec<(i64, i64)>),
    Watermark,
    Cut(usize),
    /// Goes on from the last checkpoint of a chain.
    Chain(usize, bool),
}

fn step() -> impl Strategy<Value = Step> {
    let rows = || prop::collection::vec((0..40i64, 0..100i64), 1..40);
    prop_oneof![
        5 => rows().prop_map(Step::Rows),
        1 => prop::collection::vec((0..4i64, 0..4i64), 1..4).prop_map(Step::Rules),
        3 => Just(Step::Watermark),
        1 => prop::sample::select(vec![1, 2, 3, 7]).prop_map(Step::Cut),
        2 => (prop::sample::select(vec![1, 2, 3, 7]), any::<bool>()).prop_map(|(p, fails)| Step::Chain(p, fails)),
    ]
}

/// The subtasks, and what came out of those before them.
struct Job {
    subtasks: Vec<Harness<Boxed>>,
    out: Vec<(i64, i64)>,
    now: i64,
    watermark: i64,
    chain: Vec<Vec<Vec<StoredTable>>>,
}

impl Job {
    fn new() -> Self {
        Self {
            subtasks: vec![Harness::new(make())],
            out: Vec::new(),
            now: 0,
            watermark: -1000,
            chain: Vec::new(),
        }
    }

    fn collect(&mut self) {
        for subtask in &mut self.subtasks {
            self.out.extend(pairs(&mut subtask.output));
        }
    }

    /// The sources hand on the watermark that they had.
    fn resume(&mut self) {
        for subtask in &mut self.subtasks {
            subtask.watermark(self.watermark).unwrap();
        }
    }

    fn take(&mut self, step: &Step, cuts: bool) {
        match step {
            Step::Rows(of) => {
                self.now += 1;
                let of: Vec<_> = of.iter().map(|(key, value)| (*key, *value, self.now)).collect();
                let parallelism = self.subtasks.len();
                for (subtask, part) in parts_of(&rows(&of), &[0], parallelism).into_iter().enumerate() {
                    self.subtasks[subtask].push(0, part).unwrap();
                }
            }
            Step::Rules(of) => {
                let of: Vec<_> = of.iter().map(|(key, value)| (*key, *value, self.now)).collect();
                for subtask in &mut self.subtasks {
                    subtask.push(1, rows(&of)).unwrap();
                }
            }
            Step::Watermark => {
                self.now += 5;
                self.watermark = self.now - 5;
                self.resume();
            }
            Step::Cut(parallelism) if cuts => {
                self.collect();
                self.subtasks = rescaled(&mut self.subtasks, *parallelism, make).unwrap();
                self.chain.clear();
                self.resume();
            }
            Step::Chain(parallelism, fails) if cuts => {
                let checkpoint = self.chain.len() as u64 + 1;
                let since = (checkpoint > 1).then_some(checkpoint - 1);
                let subtasks = self.subtasks.iter_mut();
                let stored: Vec<_> = subtasks
                    .map(|subtask| subtask.snapshot(checkpoint, since).unwrap())
                    .collect();
                for table in stored.iter().flatten() {
                    let builds = table.spec.name.starts_with("value") || table.spec.name.starts_with("column");
                    assert_eq!(table.since, since.filter(|_| builds), "{}", table.spec.name);
                }
                self.chain.push(stored);
                if *fails {
                    self.collect();
                    self.subtasks = (0..*parallelism).map(|_| Harness::new(make())).collect();
                    for subtask in 0..*parallelism {
                        self.subtasks[subtask]
                            .restore((subtask, *parallelism), &self.chain)
                            .unwrap();
                    }
                    self.chain.clear();
                    self.resume();
                }
            }
            Step::Cut(_) | Step::Chain(..) => {}
        }
    }

    fn end(mut self) -> Vec<(i64, i64)> {
        for subtask in &mut self.subtasks {
            subtask.watermark(i64::MAX).unwrap();
            subtask.end(0).unwrap();
            subtask.end(1).unwrap();
        }
        self.collect();
        self.out.sort_unstable();
        self.out
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn a_cut_is_not_to_be_seen(steps in prop::collection::vec(step(), 1..40)) {
        let (mut whole, mut cut) = (Job::new(), Job::new());
        for step in &steps {
            whole.take(step, false);
            cut.take(step, true);
        }
        prop_assert_eq!(whole.end(), cut.end());
    }
}

#[test]
fn processing_timers_are_kept() {
    let spec = || {
        let mut states = StateDeclarations::new();
        let count = states.value("count");
        ProcessSpec {
            inputs: vec![keyed(false)],
            states,
            function: Arc::new(move |_| Box::new(Delayed { count })),
            output: output(),
        }
    };
    let mut before = [harness(spec())];
    before[0].push(0, rows(&[(1, 0, 0), (2, 0, 0), (1, 0, 0)])).unwrap();
    let mut after = rescaled(&mut before, 2, || Boxed(spec().create(0, 1).unwrap())).unwrap();
    let mut out = Vec::new();
    for subtask in &mut after {
        assert!(subtask.operator.next_timer().is_none_or(|due| due == 5));
        subtask.advance(Duration::from_millis(5)).unwrap();
        out.extend(pairs(&mut subtask.output));
    }
    out.sort_unstable();
    assert_eq!(out, [(1, 2), (2, 1)]);
}

#[test]
fn states_may_be_added() {
    let mut before = harness(sum_and_forget());
    before.push(0, rows(&[(1, 5, 0), (2, 6, 3)])).unwrap();
    let stored = before.snapshot(1, None).unwrap();
    let names: Vec<&str> = stored.iter().map(|table| table.spec.name.as_str()).collect();
    assert_eq!(names, ["value sum", "value last", "timers"]);
    let mut states = StateDeclarations::new();
    let _: ListState<i64> = states.list("new");
    let (sum, last) = (states.value("sum"), states.value("last"));
    let mut after = harness(ProcessSpec {
        states,
        function: Arc::new(move |_| Box::new(PerRecord::new(SumAndForget { sum, last }, output()))),
        ..sum_and_forget()
    });
    after.restore((0, 1), &[vec![stored]]).unwrap();
    after.push(0, rows(&[(1, 7, 4)])).unwrap();
    after.watermark(i64::MAX).unwrap();
    assert_eq!(pairs(&mut after.output), [(2, 6), (1, 12)]);
}

#[test]
fn the_state_of_a_function_without_a_key_stays_with_its_subtask() {
    let spec = || ProcessSpec {
        inputs: vec![ProcessInput {
            keys: Vec::new(),
            ..keyed(false)
        }],
        ..count_rows()
    };
    let make = |subtask, parallelism| Harness::new(Boxed(spec().create(subtask, parallelism).unwrap()));
    let mut stored = Vec::new();
    for subtask in 0..2 {
        let mut before = make(subtask, 2);
        before.push(0, rows(&[(0, 1, 0)].repeat(subtask + 3))).unwrap();
        stored.push(before.snapshot(1, None).unwrap());
    }
    let stored = [stored];
    for subtask in 0..2 {
        let mut after = make(subtask, 2);
        after.restore((subtask, 2), &stored).unwrap();
        after.push(0, rows(&[(0, 1, 0)])).unwrap();
        assert_eq!(pairs(&mut after.output), [(0, subtask as i64 + 4)]);
    }
    let error = make(0, 3).restore((0, 3), &stored).unwrap_err().to_string();
    assert!(error.contains("of 2 subtasks, there are 3 now"), "{error}");
}

/// After each batch, how many rows there were.
struct CountRows(ValueState<i64>);

impl ProcessFunction for CountRows {
    fn on_batch(&mut self, _port: Port, batch: &Batch, cx: &mut ProcessContext<'_>) -> Result<()> {
        assert_eq!(cx.key_rows(&[0])?.num_columns(), 0);
        let count = self.0.get(cx.states, 0)?.copied().unwrap_or(0) + batch.num_rows() as i64;
        self.0.set(cx.states, 0, count)?;
        let columns = [0, count].map(|value| Arc::new(Int64Array::from(vec![value])) as ArrayRef);
        cx.emit(Batch::try_new(output(), columns.to_vec())?)
    }
}

fn count_rows() -> ProcessSpec {
    let mut states = StateDeclarations::new();
    let count = states.value("count");
    ProcessSpec {
        inputs: vec![keyed(false)],
        states,
        function: Arc::new(move |_| Box::new(CountRows(count))),
        output: output(),
    }
}

/// Sums values by key in a column.
struct SumColumn(ColumnState);

impl ProcessFunction for SumColumn {
    fn on_batch(&mut self, _port: Port, batch: &Batch, cx: &mut ProcessContext<'_>) -> Result<()> {
        let keys = cx.keys.to_vec();
        let old = self.0.read(cx.states, &keys)?;
        let (old, values) = (
            old.as_primitive::<Int64Type>(),
            batch.column(1).as_primitive::<Int64Type>(),
        );
        let sums: Int64Array = old
            .iter()
            .zip(values)
            .map(|(old, value)| Some(old.unwrap_or(0) + value?))
            .collect();
        let sums: ArrayRef = Arc::new(sums);
        self.0.write(cx.states, &keys, &sums)?;
        cx.emit(Batch::try_new(output(), vec![Arc::clone(batch.column(0)), sums])?)
    }
}

#[test]
fn a_column_may_be_larger_than_memory() {
    let mut states = StateDeclarations::new();
    let sum = states.column("sum", DataType::Int64);
    let spec = ProcessSpec {
        inputs: vec![keyed(false)],
        states,
        function: Arc::new(move |_| Box::new(SumColumn(sum))),
        output: output(),
    };
    let mut harness = Harness::with_memory(Boxed(spec.create(0, 1).unwrap()), 2 << 20);
    let batch = |start: i64| rows(&(start..start + 1000).map(|key| (key, key, 0)).collect::<Vec<_>>());
    for _ in 0..2 {
        for start in (0..60_000).step_by(1000) {
            harness.push(0, batch(start)).unwrap();
        }
    }
    let spilled = &harness.context.metrics.spilled_bytes;
    assert!(spilled.load(std::sync::atomic::Ordering::Relaxed) > 0);
    let sums = pairs(&mut harness.output);
    let second = &sums[60_000..];
    assert!(second.iter().all(|(key, sum)| *sum == 2 * key), "both times are in it");
}
