//! TPC-H beside DataFusion on the same files, in the same process, query by query in turn.
//!
//! `cargo bench --bench tpch -- [--sf 1] [--parallelism 2] [--repeats 5] [--queries 1,6,21] [--engine both] [--verify]
//! [--memory-mb 1000] [--set table.optimizer.runtime-filter.enabled=false]`
//!
//! Prints one JSON line per query with the medians and their ratio, and one with the totals. `--engine thalweg` or
//! `datafusion` runs one alone, so that its peak memory can be read. `--verify` compares Thalweg's answers at
//! parallelism 1, 2 and 7 with DuckDB's, or, with `--memory-mb`, at one parallelism within that budget. The data is made by `scripts/test_data.sh tpch --sf 1`.

#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on panics")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

#[path = "../tests/end_to_end/answers.rs"]
#[allow(dead_code, unreachable_pub, reason = "the tests use what the benchmark does not")]
mod answers;

use std::path::Path;
use std::time::Instant;

use datafusion::execution::context::{SessionConfig as DataFusionConfig, SessionContext};
use datafusion::execution::options::ParquetReadOptions;
use thalweg::{Session, SessionConfig};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// As the command has it.
#[cfg(target_os = "linux")]
#[allow(non_upper_case_globals, reason = "jemalloc looks for this name")]
#[unsafe(export_name = "_rjem_malloc_conf")]
static malloc_conf: &[u8] = b"thp:always,percpu_arena:percpu,dirty_decay_ms:1000\0";

struct Arguments {
    sf: String,
    parallelism: usize,
    repeats: usize,
    queries: Vec<usize>,
    engine: String,
    verify: bool,
    memory_bytes: Option<usize>,
    /// Settings of Thalweg's session.
    settings: Vec<(String, String)>,
}

impl Arguments {
    fn parse() -> Self {
        let mut parsed = Self {
            sf: "1".into(),
            parallelism: 2,
            repeats: 5,
            queries: (1..=22).collect(),
            engine: "both".into(),
            verify: false,
            memory_bytes: None,
            settings: Vec::new(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().unwrap_or_else(|| panic!("{argument} needs a value"));
            match argument.as_str() {
                "--sf" => parsed.sf = value(),
                "--parallelism" => parsed.parallelism = value().parse().unwrap(),
                "--repeats" => parsed.repeats = value().parse().unwrap(),
                "--queries" => parsed.queries = value().split(',').map(|q| q.parse().unwrap()).collect(),
                "--engine" => parsed.engine = value(),
                "--set" => {
                    let setting = value();
                    let (key, value) = setting.split_once('=').unwrap();
                    parsed.settings.push((key.into(), value.into()));
                }
                "--verify" => parsed.verify = true,
                "--memory-mb" => parsed.memory_bytes = Some(value().parse::<usize>().unwrap() * 1_000_000),
                // Cargo's own.
                "--bench" => {}
                other => panic!("unknown argument {other}"),
            }
        }
        parsed
    }
}

impl Arguments {
    fn session(&self, parallelism: usize) -> Session {
        let defaults = SessionConfig::default();
        Session::new(SessionConfig {
            parallelism,
            memory_bytes: self.memory_bytes.unwrap_or(defaults.memory_bytes),
            ..defaults
        })
        .unwrap()
    }
}

struct Engines {
    thalweg: Session,
    datafusion: SessionContext,
    runtime: tokio::runtime::Runtime,
}

impl Engines {
    fn open(folder: &Path, arguments: &Arguments) -> Self {
        let parallelism = arguments.parallelism;
        let thalweg = arguments.session(parallelism);
        answers::register_folder(&thalweg, folder);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(parallelism)
            .enable_all()
            .build()
            .unwrap();
        let datafusion = SessionContext::new_with_config(DataFusionConfig::new().with_target_partitions(parallelism));
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "parquet") {
                let name = path.file_stem().unwrap().to_str().unwrap();
                let read = datafusion.register_parquet(name, path.to_str().unwrap(), ParquetReadOptions::default());
                runtime.block_on(read).unwrap();
            }
        }
        Self {
            thalweg,
            datafusion,
            runtime,
        }
    }

    fn run(&self, engine: &str, sql: &str) -> f64 {
        let start = Instant::now();
        match engine {
            "thalweg" => drop(self.thalweg.execute(sql).unwrap().collect().unwrap()),
            _ => {
                let query = async { self.datafusion.sql(sql).await?.collect().await };
                drop(self.runtime.block_on(query).unwrap());
            }
        }
        start.elapsed().as_secs_f64()
    }
}

fn median(times: &mut [f64]) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

fn peak_rss_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap_or_default();
    line.split_whitespace()
        .nth(1)
        .and_then(|kib| kib.parse::<f64>().ok())
        .unwrap_or(0.0)
        / 1024.0
}

fn verify(folder: &Path, arguments: &Arguments) {
    let parallelisms = match arguments.memory_bytes {
        Some(_) => vec![arguments.parallelism],
        None => vec![1, 2, 7],
    };
    for parallelism in parallelisms {
        let session = arguments.session(parallelism);
        answers::register_folder(&session, folder);
        for number in 1..=22 {
            let sql = std::fs::read_to_string(folder.join(format!("q{number:02}.sql"))).unwrap();
            let expected = answers::read_answer(&folder.join(format!("q{number:02}.csv")), r"\N");
            let actual = answers::rows(&session, &sql).unwrap_or_else(|e| panic!("q{number:02}: {e}"));
            let difference = answers::difference(actual, expected, true);
            assert_eq!(difference, None, "q{number:02} at parallelism {parallelism}");
        }
        println!(
            "{{\"workload\":\"tpch\",\"verified\":22,\"parallelism\":{parallelism},\"peak_rss_mb\":{:.0}}}",
            peak_rss_mb()
        );
    }
}

fn main() {
    let arguments = Arguments::parse();
    let folder = answers::test_data(&format!("tpch/sf{}", arguments.sf));
    if arguments.verify {
        return verify(&folder, &arguments);
    }
    let engines = Engines::open(&folder, &arguments);
    for (key, value) in &arguments.settings {
        answers::done(&engines.thalweg, &format!("SET '{key}' = '{value}'"));
    }
    let both = ["thalweg", "datafusion"];
    let names: Vec<&str> = both
        .into_iter()
        .filter(|name| ["both", name].contains(&arguments.engine.as_str()))
        .collect();
    let mut totals = vec![0.0; names.len()];
    let mut logarithms = 0.0;
    for number in &arguments.queries {
        let sql = std::fs::read_to_string(folder.join(format!("q{number:02}.sql"))).unwrap();
        let mut times = vec![Vec::new(); names.len()];
        // The first round warms up and is not counted.
        for round in 0..=arguments.repeats {
            for (engine, times) in names.iter().zip(&mut times) {
                let seconds = engines.run(engine, &sql);
                if round > 0 {
                    times.push(seconds);
                }
            }
        }
        let medians: Vec<f64> = times.iter_mut().map(|times| median(times)).collect();
        let fields: Vec<String> = names
            .iter()
            .zip(&medians)
            .map(|(name, seconds)| format!("\"{name}_s\":{seconds:.4}"))
            .collect();
        let ratio = if medians.len() == 2 {
            format!(",\"ratio\":{:.3}", medians[0] / medians[1])
        } else {
            String::new()
        };
        println!(
            "{{\"workload\":\"tpch\",\"query\":{number},{}{ratio}}}",
            fields.join(",")
        );
        totals
            .iter_mut()
            .zip(&medians)
            .for_each(|(total, seconds)| *total += seconds);
        logarithms += if medians.len() == 2 {
            (medians[0] / medians[1]).ln()
        } else {
            0.0
        };
    }
    let fields: Vec<String> = names
        .iter()
        .zip(&totals)
        .map(|(name, seconds)| format!("\"{name}_total_s\":{seconds:.3}"))
        .collect();
    let mean = (logarithms / arguments.queries.len() as f64).exp();
    let mean = if names.len() == 2 {
        format!(",\"geometric_mean_ratio\":{mean:.3}")
    } else {
        String::new()
    };
    println!(
        "{{\"workload\":\"tpch\",\"sf\":{},\"parallelism\":{},\"repeats\":{},{}{mean},\"peak_rss_mb\":{:.0}}}",
        arguments.sf,
        arguments.parallelism,
        arguments.repeats,
        fields.join(","),
        peak_rss_mb()
    );
}
