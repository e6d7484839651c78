//! Throughput and latency by buffer timeout: 100-character lines from one thread to another, which looks for a word in
//! them (the grep job of the Flink paper, section 3.1 and figure 4).
//!
//! `cargo bench --bench buffer_timeout -- [--timeouts 0,1,5,10,50,100,-1] [--rates 0,200000,5000] [--events 20000000]
//! [--seconds 7] [--repeats 1] [--peers flink]`
//!
//! Rate 0 is saturation. Otherwise each line carries the moment at which it was due, so that latency counts any backlog;
//! the first two seconds are left out, as in the peers' harness (`grep/run.sh`), whose two processes speak through a
//! socket of the loopback while ours are two threads of one process.

#![allow(missing_docs, reason = "a benchmark is a program")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on panics")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod measure;

use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch, StringViewBuilder};
use arrow::compute::filter_record_batch;
use arrow::compute::kernels::comparison::contains;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use measure::{Arguments, child_of, median, peak_rss_bytes};
use serde_json::{Value, json};
use thalweg::engine::runtime::LatencyHistogram;
use thalweg::stream::WatermarkStrategy;
use thalweg::{Session, SessionConfig};

/// Lines in one batch at saturation, and the most at a rate.
const BATCH: usize = 8192;
const TAILS: usize = 256;
/// What is not measured at the beginning of a run at a rate.
const WARM_UP: Duration = Duration::from_secs(2);

fn main() {
    let arguments = Arguments::parse(&[
        ("timeouts", "0,1,5,10,50,100,-1"),
        ("rates", "0,200000,5000"),
        ("events", "20000000"),
        ("seconds", "7"),
    ]);
    if arguments.child {
        let number = |at: usize| arguments.free[at].parse::<i64>().unwrap();
        let events: u64 = arguments.own("events").parse().unwrap();
        let seconds: u64 = arguments.own("seconds").parse().unwrap();
        println!("{}", run(number(0), u64::try_from(number(1)).unwrap(), events, seconds));
        return;
    }
    for peer in &arguments.peers {
        run_peer(peer, &arguments);
    }
    for timeout in arguments.own("timeouts").split(',') {
        for rate in arguments.own("rates").split(',') {
            let runs: Vec<Value> = (0..arguments.repeats).map(|_| child_of(&[timeout, rate])).collect();
            runs.iter().for_each(|told| println!("{told}"));
            let of = |name: &str| {
                let mut values: Vec<f64> = runs.iter().filter_map(|told| told[name].as_f64()).collect();
                (!values.is_empty()).then(|| median(&mut values))
            };
            println!(
                "{}",
                json!({"workload": "buffer_timeout", "median_of": runs.len(), "timeout_ms": timeout, "rate": rate,
                       "events_per_s": of("events_per_s"), "p50_ms": of("p50_ms"), "p99_ms": of("p99_ms"),
                       "peak_rss_mb": of("peak_rss_mb")})
            );
        }
    }
}

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("due", DataType::Int64, false),
        Field::new("line", DataType::Utf8View, false),
    ]))
}

/// Lines, of which three in 256 hold the word.
fn tails() -> Vec<String> {
    let mut state = 9u64;
    let mut letter = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        char::from(b'a' + ((state >> 33) % 26) as u8)
    };
    (0..TAILS)
        .map(|tail| {
            let mut line: String = (0..100).map(|_| letter()).collect();
            if tail < 3 {
                line.replace_range(40..46, "needle");
            }
            line
        })
        .collect()
}

/// The lines that are due, batch by batch.
struct Lines {
    next: u64,
    events: u64,
    rate: u64,
    start: Instant,
    epoch: Instant,
    /// A batch's worth of lines, made once: every line is copied when it is sent.
    lines: ArrayRef,
    schema: SchemaRef,
}

impl Iterator for Lines {
    type Item = RecordBatch;

    fn next(&mut self) -> Option<RecordBatch> {
        if self.next >= self.events {
            return None;
        }
        let left = (self.events - self.next).min(BATCH as u64);
        let due_ns = |line: u64, rate: u64| line.saturating_mul(1_000_000_000) / rate;
        let count = if self.rate == 0 {
            left
        } else {
            // Waits until at least one line is due, then takes all that are.
            let first = Duration::from_nanos(due_ns(self.next, self.rate));
            loop {
                let now = self.start.elapsed();
                if now >= first {
                    let due = (now.as_nanos() as u64).saturating_mul(self.rate) / 1_000_000_000 + 1;
                    break (due - self.next).clamp(1, left);
                }
                std::thread::sleep((first - now).min(Duration::from_micros(50)));
            }
        };
        let offset = (self.start - self.epoch).as_nanos() as i64;
        let now = self.epoch.elapsed().as_nanos() as i64;
        let due = (self.next..self.next + count).map(|line| match self.rate {
            0 => now,
            rate => offset + due_ns(line, rate) as i64,
        });
        let due: ArrayRef = Arc::new(Int64Array::from_iter_values(due));
        let lines = self.lines.slice((self.next as usize * 31) % TAILS, count as usize);
        self.next += count;
        Some(RecordBatch::try_new(Arc::clone(&self.schema), vec![due, lines]).unwrap())
    }
}

/// What the reader saw.
#[derive(Default)]
struct Seen {
    histogram: LatencyHistogram,
    first: Option<Instant>,
    last: Option<Instant>,
    lines: u64,
    batches: u64,
    found: u64,
}

fn run(timeout_ms: i64, rate: u64, events: u64, seconds: u64) -> Value {
    let session = Session::new(SessionConfig {
        parallelism: 1,
        ..SessionConfig::default()
    })
    .unwrap();
    let events = if rate > 0 { rate * seconds } else { events };
    let epoch = Instant::now();
    let stream = session.stream();
    let mut builder = StringViewBuilder::new();
    let tails = tails();
    for line in 0..BATCH + TAILS {
        builder.append_value(&tails[line * 31 % TAILS]);
    }
    let lines: ArrayRef = Arc::new(builder.finish());
    let source = stream
        .from_generator(
            schema(),
            1,
            move |_| Lines {
                next: 0,
                events,
                rate,
                start: Instant::now(),
                epoch,
                lines: Arc::clone(&lines),
                schema: schema(),
            },
            WatermarkStrategy::none(),
        )
        .unwrap();
    let seen = Arc::new(Mutex::new(Seen::default()));
    let reader = Arc::clone(&seen);
    let needle = arrow::array::StringViewArray::new_scalar("needle");
    let found = source
        .rebalance()
        .set_buffer_timeout(timeout_ms)
        .flat_map(schema(), move |batch| {
            let now = Instant::now();
            let mut seen = reader.lock().unwrap();
            let first = *seen.first.get_or_insert(now);
            seen.last = Some(now);
            seen.lines += batch.num_rows() as u64;
            seen.batches += 1;
            if rate == 0 || now.duration_since(first) > WARM_UP {
                let now_ns = now.duration_since(epoch).as_nanos() as i64;
                for due in batch.column(0).as_primitive::<Int64Type>().values() {
                    seen.histogram.record(u64::try_from(now_ns - due).unwrap_or(0).max(1));
                }
            }
            let mask = contains(batch.column(1), &needle)?;
            let kept = filter_record_batch(batch, &mask)?;
            seen.found += kept.num_rows() as u64;
            Ok(if kept.num_rows() > 0 { vec![kept] } else { vec![] })
        });
    let rows: usize = found.collect().unwrap().map(|batch| batch.unwrap().num_rows()).sum();
    let seen = seen.lock().unwrap();
    assert_eq!((seen.lines, seen.found), (events, rows as u64));
    let elapsed = seen.last.unwrap().duration_since(seen.first.unwrap()).as_secs_f64();
    let ms = |q: f64| seen.histogram.quantile_ns(q).map(|ns| ns as f64 / 1e6);
    json!({
        "workload": if rate == 0 { "grep_saturation" } else { "grep_latency" },
        "engine": "thalweg",
        "version": env!("CARGO_PKG_VERSION"),
        "timeout_ms": timeout_ms,
        "rate": rate,
        "seconds": elapsed,
        "events_per_s": seen.lines as f64 / elapsed,
        "rows_per_batch": seen.lines as f64 / seen.batches as f64,
        "p50_ms": ms(0.5),
        "p99_ms": ms(0.99),
        "p999_ms": ms(0.999),
        "peak_rss_mb": peak_rss_bytes() >> 20,
    })
}

fn run_peer(peer: &str, arguments: &Arguments) {
    let folder = std::env::var("PEERS_DIR").expect("--peers needs PEERS_DIR, the folder of the peers' scripts");
    let rates = arguments.own("rates").split(',').filter(|rate| *rate != "0");
    let output = Command::new("bash")
        .arg(format!("{folder}/grep/run.sh"))
        .args([
            peer,
            &arguments.own("timeouts").replace(',', " "),
            arguments.own("events"),
        ])
        .args([
            rates.collect::<Vec<_>>().join(" "),
            arguments.own("seconds").to_string(),
        ])
        .output()
        .unwrap();
    print!("{}", String::from_utf8_lossy(&output.stdout));
    if !output.status.success() {
        eprint!("{}", String::from_utf8_lossy(&output.stderr));
    }
}
