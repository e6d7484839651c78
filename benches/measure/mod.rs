//! What the macro benchmarks have in common. One run is one fresh process, so that its peak memory is its own.
//! Contenders take turns, so that a slow minute of the machine falls on all of them. Every run prints one JSON line;
//! the medians and their ratios come last.

mod arguments;
mod contender;
mod noise;
pub(crate) mod peers;
mod tables;

pub(crate) use arguments::Arguments;
#[allow(unused_imports, reason = "not every benchmark compares so")]
pub(crate) use contender::{Contender, Workload, compare};
#[allow(unused_imports, reason = "only some benchmarks make files")]
pub(crate) use noise::Noise;
#[allow(unused_imports, reason = "only some benchmarks read files")]
pub(crate) use tables::{ParquetFile, touch};

use std::process::Command;
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::util::display::array_value_to_string;
use serde_json::{Value, json};
use thalweg::{Outcome, Session, SessionConfig};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// As the command has it.
#[cfg(target_os = "linux")]
#[allow(non_upper_case_globals, reason = "jemalloc looks for this name")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static malloc_conf: &[u8] = b"thp:always,percpu_arena:percpu,dirty_decay_ms:1000\0";

/// Runs this benchmark again in a fresh process, with these instead of its unnamed arguments, and reads what it printed.
pub(crate) fn child_of(free: &[&str]) -> Value {
    child_with(free, &[])
}

/// The same with more arguments, which count for those of the same name.
#[allow(dead_code, reason = "only some benchmarks need it")]
pub(crate) fn child_with(free: &[&str], more: &[&str]) -> Value {
    let mut named = Vec::new();
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        if argument == "--bench" {
            named.push(argument);
        } else if argument.starts_with("--") {
            named.push(argument);
            named.extend(arguments.next());
        }
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(free)
        .args(named)
        .args(more)
        .arg("--child")
        .output()
        .unwrap();
    match last_object(&output.stdout) {
        Some(told) if output.status.success() => told,
        _ => json!({"failed": format!("{}: {}", output.status, last_line(&output.stderr))}),
    }
}

/// The median; the values are sorted on the way.
pub(crate) fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// Runs this benchmark again in a fresh process, as the one that does the work, and reads what it printed.
pub(crate) fn in_child() -> Value {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(std::env::args().skip(1))
        .arg("--child")
        .output()
        .unwrap();
    let told = last_object(&output.stdout);
    match told {
        Some(told) if output.status.success() || !told["failed"].is_null() => told,
        _ => json!({"failed": format!("{}: {}", output.status, last_line(&output.stderr))}),
    }
}

/// The child's work: the statements of `setup`, then `query` with the clock running.
pub(crate) fn run_session(arguments: &Arguments, setup: &[String], query: &str) -> Value {
    let mut told = measured(arguments, setup, query).unwrap_or_else(|error| json!({"failed": error.to_string()}));
    told["peak_rss_mb"] = json!(peak_rss_bytes() >> 20);
    told
}

fn measured(arguments: &Arguments, setup: &[String], query: &str) -> thalweg::Result<Value> {
    let defaults = SessionConfig::default();
    let spill_directory = arguments.folder("spill");
    std::fs::create_dir_all(&spill_directory).unwrap();
    let session = Session::new(SessionConfig {
        parallelism: arguments.parallelism,
        memory_bytes: arguments.memory_bytes.unwrap_or(defaults.memory_bytes),
        spill_directory,
        ..defaults
    })?;
    for statement in setup {
        session.execute(statement)?.collect()?;
    }
    let start = Instant::now();
    let Outcome::Rows(rows) = session.execute(query)? else {
        panic!("{query} has no rows");
    };
    let progress = rows.progress();
    let rows = rows.collect::<thalweg::Result<Vec<RecordBatch>>>()?;
    let seconds = start.elapsed().as_secs_f64();
    Ok(json!({
        "version": env!("CARGO_PKG_VERSION"),
        "seconds": seconds,
        "spilled_bytes": progress.snapshot().spilled_bytes,
        "answer": answer(&rows),
    }))
}

/// Rows as text, sorted: what a query gives without ORDER BY has no order.
fn answer(batches: &[RecordBatch]) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for batch in batches {
        for row in 0..batch.num_rows() {
            let columns = batch.columns().iter();
            rows.push(
                columns
                    .map(|column| array_value_to_string(column, row).unwrap())
                    .collect(),
            );
        }
    }
    rows.sort();
    rows
}

/// The most memory that this process has had resident.
pub(crate) fn peak_rss_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}

/// The last line of an output that is a JSON object.
fn last_object(output: &[u8]) -> Option<Value> {
    String::from_utf8_lossy(output)
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str(line).ok().filter(Value::is_object))
}

fn last_line(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let line = text.lines().rev().find(|line| !line.trim().is_empty());
    line.unwrap_or("it said nothing").trim().to_string()
}
