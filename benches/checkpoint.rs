//! What checkpoints cost: keyed state of 10 M keys with 100 bytes each, hot keys updated all the time, a checkpoint each second;
//! a full checkpoint, an incremental one, and the time from SIGKILL to the first correct record. Beside it, with
//! `--peers flink`, the same job in Flink (`checkpoint/run.sh` of `PEERS_DIR`).
//!
//! `cargo bench --bench checkpoint -- [--keys 10000000] [--hot 100000] [--rate 20000] [--seconds 12] [--repeats 5] [--only
//! saturated,latency,whole,recovery] [--peers flink]`
//!
//! One run is one process. It fills the state as fast as it can, and from then on counts and measures for `--seconds`. Latency is
//! that of markers from the sources to the sink; they wait in exchanges as rows do.

#![allow(missing_docs, reason = "a benchmark is a program")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on panics")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod measure;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant, SystemTime};

use arrow::array::{Array, ArrayRef, AsArray, BinaryBuilder};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Int64Type, Schema};
use arrow::record_batch::RecordBatch;
use datafusion::prelude::{col, lit};
use measure::{Arguments, median, peak_rss_bytes};
use serde_json::{Value, json};
use thalweg::engine::operator::process::{ColumnState, ProcessContext, ProcessFunction, StateDeclarations};
use thalweg::engine::runtime::{JobMetrics, LatencyHistogram};
use thalweg::stream::WatermarkStrategy;
use thalweg::{CheckpointConfig, RuntimeMode, Session, SessionConfig};

const VALUE_BYTES: usize = 100;

/// Rows of the filling that have arrived.
static FILLED: AtomicU64 = AtomicU64::new(0);
/// Updates that have been made.
static UPDATED: AtomicU64 = AtomicU64::new(0);
/// Updates whose key had no value, or a wrong one.
static WRONG: AtomicU64 = AtomicU64::new(0);
static FIRST: AtomicBool = AtomicBool::new(false);

fn main() {
    let arguments = Arguments::parse(&[
        ("keys", "10000000"),
        ("hot", "100000"),
        ("rate", "20000"),
        ("seconds", "12"),
        ("only", "saturated,latency,whole,recovery"),
    ]);
    if arguments.child {
        child(&arguments);
        return;
    }
    for peer in &arguments.peers {
        for backend in ["rocksdb", "hashmap"] {
            println!("{}", run_peer(peer, backend, &arguments));
        }
    }
    let only = |name: &str| arguments.own("only").split(',').any(|wanted| wanted == name);
    // Kind, rate of updates (0 = as fast as possible), what is compared.
    for (kind, rate) in [("saturated", "0"), ("latency", arguments.own("rate"))] {
        if !only(kind) {
            continue;
        }
        let mut of: Vec<Vec<Value>> = vec![Vec::new(), Vec::new()];
        for _ in 0..arguments.repeats {
            for (at, interval) in ["0", "1000"].into_iter().enumerate() {
                let told = run(&arguments, rate, interval, "incremental");
                println!("{told}");
                of[at].push(told);
            }
        }
        let medians = |name: &str| [middle(&of[0], name), middle(&of[1], name)];
        println!(
            "{}",
            json!({"workload": format!("checkpoint_{kind}"), "median_of": arguments.repeats, "columns": ["without", "each second"],
                   "updates_per_s": medians("updates_per_s"), "p50_ms": medians("p50_ms"), "p99_ms": medians("p99_ms"),
                   "checkpoint_ms": medians("checkpoint_ms"), "written_mb": medians("written_mb"), "state_mb": medians("state_mb"),
                   "peak_rss_mb": medians("peak_rss_mb")})
        );
    }
    if only("whole") {
        let told: Vec<Value> = (0..arguments.repeats)
            .map(|_| run(&arguments, arguments.own("rate"), "2000", "whole"))
            .collect();
        told.iter().for_each(|told| println!("{told}"));
        println!(
            "{}",
            json!({"workload": "checkpoint_whole", "median_of": told.len(), "checkpoint_ms": middle(&told, "checkpoint_ms"),
                   "written_mb": middle(&told, "written_mb"), "p99_ms": middle(&told, "p99_ms")})
        );
    }
    if only("recovery") {
        let told: Vec<Value> = (0..arguments.repeats).map(|_| recovery(&arguments)).collect();
        told.iter().for_each(|told| println!("{told}"));
        println!(
            "{}",
            json!({"workload": "checkpoint_recovery", "median_of": told.len(), "recovery_s": middle(&told, "recovery_s"),
                   "restore_ms": middle(&told, "restore_ms"), "steady_rss_mb": middle(&told, "steady_rss_mb"),
                   "recovery_peak_rss_mb": middle(&told, "recovery_peak_rss_mb")})
        );
    }
}

fn middle(told: &[Value], name: &str) -> Option<f64> {
    let mut values: Vec<f64> = told.iter().filter_map(|told| told[name].as_f64()).collect();
    (!values.is_empty()).then(|| median(&mut values))
}

/// A running child and what it says.
struct Running {
    child: Child,
    lines: Receiver<Value>,
}

fn start(arguments: &Arguments, rate: &str, interval: &str, form: &str, directory: &Path) -> Running {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args([rate, interval, form, directory.to_str().unwrap()])
        .args(["--keys", arguments.own("keys"), "--hot", arguments.own("hot")])
        .args(["--seconds", arguments.own("seconds")])
        .args(["--parallelism", &arguments.parallelism.to_string(), "--child"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = BufReader::new(child.stdout.take().unwrap());
    let (sender, lines) = channel();
    std::thread::spawn(move || {
        for line in output.lines().map_while(Result::ok) {
            if let Ok(value) = serde_json::from_str(&line)
                && sender.send(value).is_err()
            {
                break;
            }
        }
    });
    Running { child, lines }
}

impl Running {
    fn wait_for(&self, event: &str) -> Value {
        loop {
            let told = self.lines.recv_timeout(Duration::from_secs(300)).unwrap();
            if told["event"] == event {
                return told;
            }
        }
    }

    fn rss_mb(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap_or_default();
        let line = status
            .lines()
            .find_map(|line| line.strip_prefix("VmRSS:"))
            .unwrap_or("0");
        line.split_whitespace().next().unwrap().parse::<u64>().unwrap() >> 10
    }

    fn end(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One run in a process of its own.
fn run(arguments: &Arguments, rate: &str, interval: &str, form: &str) -> Value {
    let folder = Folder::new(arguments);
    let running = start(arguments, rate, interval, form, &folder.0);
    let mut told = running.wait_for("measured");
    running.end();
    told["rate"] = json!(rate);
    told["interval_ms"] = json!(interval);
    told
}

/// Fills the state, kills the process, starts it again and waits for the first correct record.
fn recovery(arguments: &Arguments) -> Value {
    let folder = Folder::new(arguments);
    let rate = arguments.own("rate");
    let running = start(arguments, rate, "1000", "incremental", &folder.0);
    running.wait_for("measured");
    let steady = running.rss_mb();
    let killed = now_ms();
    running.end();
    let again = start(arguments, rate, "1000", "incremental", &folder.0);
    let first = again.wait_for("first");
    let told = json!({
        "event": "recovered",
        "recovery_s": (first["ms"].as_f64().unwrap() - killed) / 1000.0,
        "restore_ms": first["restore_ms"],
        "steady_rss_mb": steady,
        "recovery_peak_rss_mb": first["peak_rss_mb"],
    });
    let measured = again.wait_for("measured");
    assert_eq!(measured["wrong"], 0, "updates found wrong state after the restart");
    again.end();
    told
}

/// The folder of a run's checkpoints; removed with it.
struct Folder(PathBuf);

impl Folder {
    fn new(arguments: &Arguments) -> Self {
        let folder = arguments.folder("checkpoint-bench");
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn now_ms() -> f64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .unwrap()
        .as_secs_f64()
        * 1000.0
}

/// Keeps 100 bytes for each key.
struct Keep {
    value: ColumnState,
}

/// The bytes that filling gives a key: all but the first eight never change.
fn bytes_of(key: i64, first: i64, bytes: &mut [u8; VALUE_BYTES]) {
    bytes[..8].copy_from_slice(&first.to_le_bytes());
    for (at, chunk) in bytes[8..].chunks_mut(8).enumerate() {
        let word = (key as u64 + at as u64 + 1)
            .wrapping_mul(0x9E37_79B9_7F4A_7C15)
            .to_le_bytes();
        let length = chunk.len();
        chunk.copy_from_slice(&word[..length]);
    }
}

impl ProcessFunction for Keep {
    fn on_batch(
        &mut self,
        _port: usize,
        batch: &RecordBatch,
        cx: &mut ProcessContext<'_>,
    ) -> thalweg::engine::Result<()> {
        let keys = batch.column(0).as_primitive::<Int64Type>().values();
        let updates = batch.column(1).as_boolean();
        let known = if updates.true_count() > 0 {
            Some(self.value.read(cx.states, cx.keys)?)
        } else {
            None
        };
        let known = known.as_ref().map(|known| known.as_binary::<i32>());
        let mut values = BinaryBuilder::with_capacity(batch.num_rows(), batch.num_rows() * VALUE_BYTES);
        let mut bytes = [0; VALUE_BYTES];
        let mut made = 0;
        for (row, key) in keys.iter().enumerate() {
            if !updates.value(row) {
                bytes_of(*key, 0, &mut bytes);
                values.append_value(bytes);
                continue;
            }
            made += 1;
            match known.filter(|known| known.is_valid(row)) {
                Some(known) => {
                    bytes.copy_from_slice(known.value(row));
                    let count = i64::from_le_bytes(bytes[..8].try_into().unwrap_or_default());
                    // The tail tells whether it is what was stored for this key.
                    let expected = (*key as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).to_le_bytes();
                    if bytes[8..16] != expected {
                        WRONG.fetch_add(1, Ordering::Relaxed);
                    }
                    bytes[..8].copy_from_slice(&(count + 1).to_le_bytes());
                }
                // While it is being filled.
                None => bytes_of(*key, 1, &mut bytes),
            }
            values.append_value(bytes);
        }
        let values: ArrayRef = Arc::new(values.finish());
        self.value.write(cx.states, cx.keys, &values)?;
        FILLED.fetch_add((batch.num_rows() - made) as u64, Ordering::Relaxed);
        if made > 0 {
            if known.is_some_and(|known| known.null_count() < known.len()) {
                FIRST.store(true, Ordering::Relaxed);
            }
            UPDATED.fetch_add(made as u64, Ordering::Relaxed);
            let changed = if made == batch.num_rows() {
                batch.clone()
            } else {
                filter_record_batch(batch, updates)?
            };
            cx.emit(changed.project(&[0])?)?;
        }
        Ok(())
    }
}

fn child(arguments: &Arguments) {
    let [rate, interval, form, directory] = &arguments.free[..] else {
        panic!("a child is told rate, interval, form and directory");
    };
    let keys: u64 = arguments.own("keys").parse().unwrap();
    let seconds: u64 = arguments.own("seconds").parse().unwrap();
    let session = Session::new(SessionConfig {
        parallelism: arguments.parallelism,
        runtime_mode: RuntimeMode::Streaming,
        latency_interval_ms: Some(1),
        buffer_timeout_ms: Some(1),
        checkpoints: CheckpointConfig {
            directory: (interval != "0").then(|| directory.clone()),
            interval_ms: interval.parse().unwrap(),
            incremental: form == "incremental",
            job_name: Some("state".into()),
            ..CheckpointConfig::default()
        },
        ..SessionConfig::default()
    })
    .unwrap();
    let pace = if rate == "0" {
        String::new()
    } else {
        format!(", 'rows-per-second' = '{rate}'")
    };
    for sql in [
        format!(
            "CREATE TABLE fill (n BIGINT) WITH ('connector' = 'datagen', 'number-of-rows' = '{keys}', 'fields.n.kind' = 'sequence')"
        ),
        format!("CREATE TABLE updates (n BIGINT) WITH ('connector' = 'datagen', 'fields.n.kind' = 'sequence'{pace})"),
        "CREATE TABLE nowhere (k BIGINT) WITH ('connector' = 'blackhole')".to_string(),
    ] {
        session.execute(&sql).unwrap();
    }
    let hot: i64 = arguments.own("hot").parse().unwrap();
    let builder = session.stream();
    let fill = builder.from_table("fill", WatermarkStrategy::none()).unwrap();
    let fill = fill.select(vec![col("n").alias("k"), lit(false).alias("u")]).unwrap();
    let updates = builder.from_table("updates", WatermarkStrategy::none()).unwrap();
    // A prime spreads the numbers over the hot keys.
    let key = (col("n") * lit(1_000_003i64)) % lit(hot);
    let updates = updates.select(vec![key.alias("k"), lit(true).alias("u")]).unwrap();
    let mut states = StateDeclarations::new();
    let value = states.column("value", DataType::Binary);
    let output = Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, true)]));
    let kept = fill
        .union(&[&updates])
        .unwrap()
        .key_by(&["k"])
        .unwrap()
        .process(states, output, move |_| Keep { value })
        .unwrap();
    kept.sink_to_table("nowhere").unwrap();
    let job = builder.start("state").unwrap();
    let metrics = job.metrics();
    let began = Instant::now();
    watch(&metrics, keys, began);
    let seen = latencies(&metrics);
    let (updates, checkpoints) = (UPDATED.load(Ordering::Relaxed), metrics.checkpoints().completed);
    let start = Instant::now();
    let mut durations = Vec::new();
    let mut written = Vec::new();
    let mut last = metrics.checkpoints().last.map_or(0, |last| last.checkpoint);
    while start.elapsed() < Duration::from_secs(seconds) {
        std::thread::sleep(Duration::from_millis(20));
        if let Some(done) = metrics.checkpoints().last.filter(|done| done.checkpoint > last) {
            last = done.checkpoint;
            durations.push(done.duration_ms as f64);
            written.push(done.written_bytes as f64 / 1e6);
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    let latency = latencies(&metrics).since(&seen);
    let ms = |q: f64| latency.quantile_ns(q).map(|ns| ns as f64 / 1e6);
    let stats = metrics.checkpoints();
    println!(
        "{}",
        json!({
            "event": "measured",
            "updates_per_s": (UPDATED.load(Ordering::Relaxed) - updates) as f64 / elapsed,
            "p50_ms": ms(0.5), "p99_ms": ms(0.99),
            "checkpoints": stats.completed - checkpoints,
            "failed": stats.failed,
            "checkpoint_ms": (!durations.is_empty()).then(|| median(&mut durations)),
            "written_mb": (!written.is_empty()).then(|| median(&mut written)),
            "state_mb": stats.last.map(|last| last.state_bytes as f64 / 1e6),
            "wrong": WRONG.load(Ordering::Relaxed),
            "peak_rss_mb": peak_rss_bytes() >> 20,
        })
    );
    // What follows is the parent's to end, at whatever instant.
    std::thread::sleep(Duration::from_secs(600));
}

/// Waits until the state is full, or has been restored; tells of the first record.
fn watch(metrics: &JobMetrics, keys: u64, began: Instant) {
    let mut told = false;
    loop {
        if !told && FIRST.load(Ordering::Relaxed) {
            told = true;
            println!(
                "{}",
                json!({"event": "first", "ms": now_ms(), "restore_ms": metrics.checkpoints().restore_ms,
                       "peak_rss_mb": peak_rss_bytes() >> 20})
            );
        }
        let restored = metrics.checkpoints().restored.is_some();
        if told && (restored || FILLED.load(Ordering::Relaxed) >= keys) {
            println!(
                "{}",
                json!({"event": "filled", "after_s": began.elapsed().as_secs_f64()})
            );
            // Let a first, whole checkpoint of all of it pass.
            std::thread::sleep(Duration::from_secs(if restored { 0 } else { 3 }));
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn latencies(metrics: &JobMetrics) -> LatencyHistogram {
    let mut all = LatencyHistogram::default();
    for histogram in metrics.latencies().all().values() {
        all.merge(histogram);
    }
    all
}

/// The peers' own driver: one full and one incremental checkpoint, then recovery.
fn run_peer(peer: &str, backend: &str, arguments: &Arguments) -> Value {
    let folder = std::env::var_os("PEERS_DIR")
        .map(PathBuf::from)
        .unwrap_or_else(|| panic!("--peers needs PEERS_DIR"));
    let output = Command::new("bash")
        .arg(folder.join("checkpoint/run.sh"))
        .args([
            peer,
            backend,
            arguments.own("keys"),
            arguments.own("rate"),
            arguments.own("hot"),
        ])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let told = text
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str::<Value>(line).ok());
    told.unwrap_or_else(|| json!({"failed": String::from_utf8_lossy(&output.stderr).lines().last()}))
}
