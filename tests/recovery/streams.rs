//! A program of streams, with states of every kind, timers, windows of rows and broadcast state, that is stopped and goes on at other
//! parallelisms.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::functions_aggregate::expr_fn::sum;
use datafusion::prelude::{col, lit};
use thalweg::engine::runtime::SavepointEnding;
use thalweg::engine::time::Timer;
use thalweg::stream::{
    BroadcastState, ColumnState, DataStream, ListState, MapState, ProcessContext, ProcessFunction, ReducingState,
    StateDeclarations, StreamJob, ValueState, WatermarkStrategy, WindowAssigner, WindowEvictor, WindowTrigger,
};
use thalweg::{Session, SessionConfig};

use super::events::{FILE_ROWS, put};
use super::outputs::{compare, seed};
use super::place::{Place, Rows, Tables, sink};
use super::process::PATIENCE;

const FILES: usize = 5;
/// The output tables.
const TABLES: &[(&str, &str)] = &[
    (
        "everything",
        "k STRING, a BIGINT, b BIGINT, c BIGINT, d BIGINT, e BIGINT",
    ),
    ("counted", "k STRING, total BIGINT"),
    ("leaps", "k STRING, total BIGINT"),
    ("evicted", "k STRING, total BIGINT"),
    ("sessions", "k STRING, total BIGINT"),
];

/// Keeps a state of each kind, and says what is in them with each row.
#[derive(Clone)]
struct Everything {
    count: ValueState<i64>,
    ids: ListState<i64>,
    values: MapState<i64, i64>,
    sum: ReducingState<i64>,
    last: ColumnState,
    rules: BroadcastState<i64, i64>,
    output: SchemaRef,
}

impl Everything {
    fn row(&self, key: usize, id: i64, value: i64, cx: &mut ProcessContext<'_>) -> thalweg::engine::Result<[i64; 5]> {
        let states = &mut *cx.states;
        let count = self.count.get(states, key)?.copied().unwrap_or(0) + 1;
        self.count.set(states, key, count)?;
        self.ids.push(states, key, id)?;
        self.values.put(states, key, value % 10, count)?;
        self.sum.add(states, key, value)?;
        let last = self.last.read(states, &[key])?;
        let last = last.as_primitive::<Int64Type>().iter().next().flatten().unwrap_or(-1);
        self.last
            .write(states, &[key], &(Arc::new(Int64Array::from(vec![id])) as ArrayRef))?;
        let listed = self.ids.get(states, key)?.iter().sum::<i64>();
        let mapped = self
            .values
            .entries(states, key)?
            .map(|(value, count)| value * count)
            .sum();
        let sum = self.sum.get(states, key)?.copied().unwrap_or(0);
        Ok([count, listed, mapped, sum, last])
    }

    fn emit(&self, keys: ArrayRef, rows: &[[i64; 5]], cx: &mut ProcessContext<'_>) -> thalweg::engine::Result<()> {
        let column = |at: usize| Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row[at]))) as ArrayRef;
        let columns = std::iter::once(keys).chain((0..5).map(column)).collect();
        cx.emit(RecordBatch::try_new(Arc::clone(&self.output), columns)?)
    }
}

impl ProcessFunction for Everything {
    fn on_batch(
        &mut self,
        port: usize,
        batch: &RecordBatch,
        cx: &mut ProcessContext<'_>,
    ) -> thalweg::engine::Result<()> {
        let ids = batch.column(0).as_primitive::<Int64Type>();
        let values = batch.column(2).as_primitive::<Int64Type>();
        let value = |row: usize| if values.is_null(row) { 0 } else { values.value(row) };
        if port == 1 {
            for row in 0..batch.num_rows() {
                self.rules.put(cx.states, ids.value(row), value(row))?;
            }
            return Ok(());
        }
        let mut said = Vec::new();
        for row in 0..batch.num_rows() {
            let key = cx.keys[row];
            said.push(self.row(key, ids.value(row), value(row), cx)?);
            let time = cx.times_ms.map_or(0, |times| times[row]);
            cx.register_event_timer(key, time / 1000 * 1000 + 5000);
            cx.register_event_timer(key, i64::MAX);
        }
        self.emit(Arc::clone(batch.column(1)), &said, cx)
    }

    fn on_timers(&mut self, timer: Timer, keys: &[usize], cx: &mut ProcessContext<'_>) -> thalweg::engine::Result<()> {
        let mut said = Vec::new();
        for key in keys {
            said.push(match timer {
                // All has been read: all rules are known.
                Timer::Event(i64::MAX) => {
                    let rules: Vec<_> = self.rules.entries(cx.states)?.map(|(id, value)| id * value).collect();
                    let count = self.count.get(cx.states, *key)?.copied().unwrap_or(0);
                    [-2, rules.len() as i64, rules.iter().sum(), count, 0]
                }
                Timer::Event(time) | Timer::Processing(time) => [-1, time, 0, 0, 0],
            });
        }
        let rows = cx.key_rows(keys)?;
        self.emit(Arc::clone(rows.column(0)), &said, cx)
    }
}

fn everything(events: &DataStream) -> DataStream {
    let mut states = StateDeclarations::new();
    let mut fields = vec![events.schema().field(1).clone()];
    fields.extend(["a", "b", "c", "d", "e"].map(|name| Field::new(name, DataType::Int64, true)));
    let output: SchemaRef = Arc::new(Schema::new(fields));
    let function = Everything {
        count: states.value("count"),
        ids: states.list("ids"),
        values: states.map("values"),
        sum: states.reducing("sum", |a, b| a + b),
        last: states.column("last", DataType::Int64),
        rules: states.broadcast("rules"),
        output: Arc::clone(&output),
    };
    let rules = events.filter(col("v").gt(lit(800))).unwrap();
    let keyed = events.key_by(&["k"]).unwrap();
    let connected = keyed.connect_broadcast(&rules).unwrap();
    connected.process(states, output, move |_| function.clone()).unwrap()
}

/// Starts the program.
fn start(place: &Place, parallelism: usize, from: Option<&str>, settings: &[(&str, &str)]) -> (Session, StreamJob) {
    let config = SessionConfig {
        parallelism,
        memory_bytes: 256 << 20,
        ..SessionConfig::default()
    };
    let session = Session::new(config).unwrap();
    let checkpoints = place.folder.path().join("checkpoints").display().to_string();
    let own = [
        ("execution.runtime-mode", "streaming"),
        ("execution.checkpointing.dir", checkpoints.as_str()),
        ("execution.checkpointing.interval", "10 ms"),
        ("execution.state-recovery.path", from.unwrap_or("none")),
        ("pipeline.name", "program"),
    ];
    for (key, value) in own.iter().chain(settings) {
        session.execute(&format!("SET '{key}' = '{value}'")).unwrap();
    }
    session.execute(&place.events(true)).unwrap();
    for (name, columns) in TABLES {
        let ddl = sink(place.folder.path(), name, columns, "json");
        session.execute(ddl.trim_end_matches(";\n")).unwrap();
    }
    let builder = session.stream();
    let times = WatermarkStrategy::bounded_out_of_orderness("ts", Duration::from_secs(1));
    let events = builder.from_table("events", times).unwrap();
    everything(&events).sink_to_table("everything").unwrap();
    let present = events.filter(col("v").is_not_null()).unwrap().key_by(&["k"]).unwrap();
    let write = |stream: DataStream, name: &str| {
        let named = stream.select(vec![col("k"), col("total")]).unwrap();
        named.sink_to_table(name).unwrap();
    };
    let total = || vec![sum(col("v")).alias("total")];
    write(present.count_window(5).aggregate(total()).unwrap(), "counted");
    let leaps = present.window(WindowAssigner::delta(col("v"), 300.0));
    write(leaps.aggregate(total()).unwrap(), "leaps");
    let evicted = present
        .window(WindowAssigner::global())
        .trigger(WindowTrigger::Count(4));
    write(
        evicted.evictor(WindowEvictor::Count(3)).aggregate(total()).unwrap(),
        "evicted",
    );
    let sessions = present.window(WindowAssigner::session(Duration::from_secs(2)));
    write(sessions.aggregate(total()).unwrap(), "sessions");
    let job = builder.start("program").unwrap();
    (session, job)
}

/// Rows that have come through: those that timers have said are not counted.
fn passed(place: &Place) -> usize {
    let rows = place.appended(TABLES[0].0, TABLES[0].1);
    let of_rows = rows.iter().filter(|(row, _)| !row[1].starts_with('-'));
    of_rows.map(|(_, count)| *count as usize).sum()
}

/// One file after the other, so that the rows of a key come in one order; at these parallelisms in turn.
fn run(parallelisms: &[usize], settings: &[(&str, &str)]) -> Vec<Rows> {
    let none = Tables {
        appended: &[],
        changed: &[],
    };
    let place = Place::new(seed() + 60, FILES, none);
    let savepoints = place.folder.path().join("savepoints").display().to_string();
    let mut from: Option<String> = None;
    let mut number = 0;
    for (turn, parallelism) in parallelisms.iter().enumerate() {
        let (_session, job) = start(&place, *parallelism, from.as_deref(), settings);
        let is_last = turn + 1 == parallelisms.len();
        let until = if is_last { FILES } else { turn + 1 };
        while number < until {
            put(&place.input(), place.seed, number);
            number += 1;
            let begin = Instant::now();
            while passed(&place) < number * FILE_ROWS {
                assert!(begin.elapsed() < PATIENCE, "{} rows have passed", passed(&place));
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        let ending = if is_last {
            SavepointEnding::Drain
        } else {
            SavepointEnding::Stop
        };
        from = Some(job.control().savepoint(&savepoints, ending).unwrap());
        job.wait().unwrap();
    }
    TABLES
        .iter()
        .map(|(name, columns)| place.appended(name, columns))
        .collect()
}

#[test]
fn a_program_goes_on_at_other_parallelisms() {
    let undisturbed = run(&[1], &[]);
    let unaligned = [("execution.checkpointing.unaligned.enabled", "true")];
    for (parallelisms, settings) in [(&[1, 2, 3, 7, 2][..], &[][..]), (&[3, 1, 2][..], &unaligned[..])] {
        let stopped = run(parallelisms, settings);
        for ((name, _), (stopped, undisturbed)) in TABLES.iter().zip(stopped.iter().zip(&undisturbed)) {
            compare(name, stopped, undisturbed);
        }
    }
}
