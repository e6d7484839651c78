//! Streams: how many events a second one process takes, with what latency and memory, over generators inside it.
//!
//! ```text
//! cargo bench --bench streaming -- nexmark [all|q0,q5,..] [--events 10000000] [--pushdown false] [--peers flink]
//! cargo bench --bench streaming -- ysb [typed|json] [--campaigns 100] [--events 20000000] [--peers flink]
//! cargo bench --bench streaming -- sliding [--events 40000000] [--keys 1000]
//! cargo bench --bench streaming -- generator [nexmark|ysb-typed|ysb-json]
//! cargo bench --bench streaming -- steady [--minutes 30] [--rate 2000000]
//! ```
//!
//! Every run is a fresh process and prints one JSON line; medians and ratios come last. `--pushdown false` lets the
//! Nexmark source make every field of every event, as the generator of the peers' harness does; `generator` measures
//! the sources alone. Latency is that of markers which travel with the rows from source to sink at full load. Flink
//! runs by the scripts of `PEERS_DIR` (`nexmark/run.sh`, `ysb/run.sh`), which warm it up and subtract its start.

#![allow(missing_docs, reason = "a benchmark is a program")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on panics")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

#[allow(dead_code, reason = "the other benchmarks use the rest")]
mod measure;

use std::collections::HashMap;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::{ArrayRef, AsArray, Int64Array, RecordBatch};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit};
use datafusion::execution::FunctionRegistry;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::prelude::{cast, col, lit};
use measure::{Arguments, child_of, child_with, median, peak_rss_bytes};
use serde_json::{Value, json};
use thalweg::engine::runtime::LatencyHistogram;
use thalweg::stream::{WatermarkStrategy, WindowAssigner};
use thalweg::{Outcome, RuntimeMode, Session, SessionConfig};

const TABLES: &str = include_str!("nexmark/tables.sql");
const QUERIES: &str = include_str!("nexmark/queries.sql");

fn main() {
    let arguments = Arguments::parse(&[
        ("events", ""),
        ("event-time-rate", "100000"),
        ("pushdown", "false"),
        ("campaigns", "100"),
        ("keys", "1000"),
        ("minutes", "30"),
        ("rate", "2000000"),
        ("peer-events", ""),
        ("peer-repeats", "3"),
        ("latency", "true"),
    ]);
    let free: Vec<&str> = arguments.free.iter().map(String::as_str).collect();
    let kind = free.first().copied().unwrap_or("nexmark");
    if kind == "steady" {
        steady(&arguments);
        return;
    }
    let what = free.get(1).copied();
    if arguments.child {
        println!("{}", run(&job_of(kind, what.unwrap_or(""), &arguments), &arguments));
        return;
    }
    for name in names_of(kind, what) {
        compare(kind, &name, &arguments);
    }
}

/// What one run does.
struct Job {
    name: String,
    events: u64,
    setup: Vec<String>,
    statement: String,
}

fn names_of(kind: &str, what: Option<&str>) -> Vec<String> {
    let all: Vec<String> = match kind {
        "nexmark" => queries().into_iter().map(|(name, _)| name).collect(),
        "ysb" => vec!["typed".into(), "json".into()],
        "sliding" => vec!["tumble".into(), "hop".into(), "tumble-max".into(), "hop-max".into()],
        "generator" => vec![
            "nexmark".into(),
            "nexmark-bid".into(),
            "ysb-typed".into(),
            "ysb-json".into(),
        ],
        other => panic!("there is no benchmark '{other}'"),
    };
    match what {
        None | Some("all") => all,
        Some(some) => some.split(',').map(str::to_string).collect(),
    }
}

fn events_of(arguments: &Arguments, default: u64) -> u64 {
    match arguments.own("events") {
        "" => default,
        given => given.parse().unwrap(),
    }
}

fn job_of(kind: &str, name: &str, arguments: &Arguments) -> Job {
    match kind {
        "nexmark" => nexmark(name, arguments),
        "ysb" => ysb(name, arguments),
        "sliding" => sliding(name, arguments),
        "generator" => generator(name, arguments),
        other => panic!("there is no benchmark '{other}'"),
    }
}

/// The queries by name.
fn queries() -> Vec<(String, String)> {
    QUERIES
        .split("\n-- q")
        .skip(1)
        .map(|part| {
            let (title, text) = part.split_once('\n').unwrap();
            let number = title.split(':').next().unwrap();
            (format!("q{number}"), text.trim().to_string())
        })
        .collect()
}

fn nexmark_tables(arguments: &Arguments, events: u64) -> Vec<String> {
    let options = format!(
        "'nexmark.events' = '{events}', 'nexmark.event-time-rate' = '{}', 'nexmark.pushdown' = '{}'",
        arguments.own("event-time-rate"),
        arguments.own("pushdown")
    );
    let text = TABLES.replace("{options}", &options);
    statements(&text)
}

/// The statements of a script that holds no semicolon elsewhere.
fn statements(text: &str) -> Vec<String> {
    let lines = text.lines().filter(|line| !line.starts_with("--"));
    let text: Vec<&str> = lines.collect();
    text.join("\n")
        .split(';')
        .map(|statement| statement.trim().to_string())
        .filter(|statement| !statement.is_empty())
        .collect()
}

fn nexmark(name: &str, arguments: &Arguments) -> Job {
    let events = events_of(arguments, 10_000_000);
    let (_, query) = queries().into_iter().find(|(known, _)| known == name).unwrap();
    let mut setup = nexmark_tables(arguments, events);
    setup.push(
        "CREATE TABLE side_input AS SELECT value AS key, CAST(value AS VARCHAR) AS value FROM generate_series(0, 9999) t(value)"
            .into(),
    );
    Job {
        name: format!("nexmark_{name}"),
        events,
        setup,
        statement: into_blackhole(&query),
    }
}

/// A marker for `run`: the query's own columns make the sink.
fn into_blackhole(query: &str) -> String {
    format!("INSERT INTO BLACKHOLE {query}")
}

fn ysb(form: &str, arguments: &Arguments) -> Job {
    let events = events_of(arguments, 20_000_000);
    let campaigns = arguments.own("campaigns");
    let options =
        format!("'ysb.campaigns' = '{campaigns}', 'ysb.events' = '{events}', 'ysb.event-time-rate' = '500000'");
    let table = match form {
        "typed" => format!(
            "CREATE TABLE events (user_id STRING, page_id STRING, ad_id BIGINT, ad_type STRING, event_type STRING, \
             event_time TIMESTAMP(3), ip_address STRING, pt AS PROCTIME(), \
             WATERMARK FOR event_time AS event_time - INTERVAL '1' MILLISECOND) \
             WITH ('connector' = 'ysb', 'ysb.form' = 'typed', {options})"
        ),
        _ => format!("CREATE TABLE events (line STRING) WITH ('connector' = 'ysb', 'ysb.form' = 'json', {options})"),
    };
    if form != "typed" {
        return Job {
            name: format!("ysb_{form}_{campaigns}"),
            events,
            setup: vec![table],
            statement: "JSON".into(),
        };
    }
    Job {
        name: format!("ysb_{form}_{campaigns}"),
        events,
        setup: vec![
            table,
            format!(
                "CREATE TABLE campaigns (ad_id BIGINT, campaign_id BIGINT) WITH ('connector' = 'ysb-campaigns', 'ysb.campaigns' = '{campaigns}')"
            ),
            "CREATE VIEW hits AS SELECT c.campaign_id AS campaign_id, e.event_time AS event_time \
             FROM events e JOIN campaigns FOR SYSTEM_TIME AS OF e.pt AS c ON e.ad_id = c.ad_id \
             WHERE e.event_type = 'view'"
                .into(),
        ],
        statement: into_blackhole(
            "SELECT campaign_id, COUNT(*) AS views, window_start, window_end \
             FROM TABLE(TUMBLE(TABLE hits, DESCRIPTOR(event_time), INTERVAL '10' SECOND)) \
             GROUP BY campaign_id, window_start, window_end",
        ),
    }
}

fn sliding(form: &str, arguments: &Arguments) -> Job {
    let events = events_of(arguments, 40_000_000);
    let keys: u64 = arguments.own("keys").parse().unwrap();
    let window = if form.starts_with("hop") {
        "HOP(TABLE readings, DESCRIPTOR(ts), INTERVAL '1' SECOND, INTERVAL '60' MINUTE)"
    } else {
        "TUMBLE(TABLE readings, DESCRIPTOR(ts), INTERVAL '60' MINUTE)"
    };
    let function = if form.ends_with("max") {
        "MAX(v)"
    } else {
        "COUNT(*), SUM(v)"
    };
    Job {
        name: format!("sliding_{form}"),
        events,
        setup: vec![format!(
            "CREATE TABLE readings (k BIGINT, v BIGINT, ts TIMESTAMP(3), WATERMARK FOR ts AS ts) WITH ('connector' = 'datagen', \
             'number-of-rows' = '{events}', 'fields.k.min' = '0', 'fields.k.max' = '{}', 'fields.v.min' = '0', \
             'fields.v.max' = '1000000', 'fields.ts.kind' = 'event-time', 'fields.ts.rate' = '10000')",
            keys - 1
        )],
        statement: into_blackhole(&format!(
            "SELECT k, {function}, window_start, window_end FROM TABLE({window}) GROUP BY k, window_start, window_end"
        )),
    }
}

fn generator(name: &str, arguments: &Arguments) -> Job {
    let events = events_of(arguments, 20_000_000);
    let (setup, query) = match name {
        "nexmark" => (nexmark_tables(arguments, events), "SELECT * FROM nexmark"),
        "nexmark-bid" => (
            nexmark_tables(arguments, events),
            "SELECT event_type, bid, ts FROM nexmark",
        ),
        "ysb-typed" => (
            ysb("typed", arguments).setup,
            "SELECT user_id, page_id, ad_id, ad_type, event_type, event_time, ip_address FROM events",
        ),
        _ => (ysb("json", arguments).setup, "SELECT line FROM events"),
    };
    Job {
        name: format!("generator_{name}"),
        events,
        setup,
        statement: into_blackhole(query),
    }
}

fn session(arguments: &Arguments) -> Session {
    let defaults = SessionConfig::default();
    let spill_directory = arguments.folder("spill");
    std::fs::create_dir_all(&spill_directory).unwrap();
    Session::new(SessionConfig {
        parallelism: arguments.parallelism,
        memory_bytes: arguments.memory_bytes.unwrap_or(defaults.memory_bytes),
        runtime_mode: RuntimeMode::Streaming,
        latency_interval_ms: (arguments.own("latency") == "true").then_some(5),
        spill_directory,
        ..defaults
    })
    .unwrap()
}

/// A table that takes what the query gives.
fn make_sink(session: &Session, query: &str) {
    let schema = session.result_schema(query).unwrap();
    let columns: Vec<String> = schema
        .fields()
        .iter()
        .map(|field| format!("\"{}\" {}", field.name(), sql_type(field.data_type())))
        .collect();
    let create = format!(
        "CREATE TABLE sink ({}) WITH ('connector' = 'blackhole')",
        columns.join(", ")
    );
    session.execute(&create).unwrap().collect().unwrap();
}

fn sql_type(data_type: &arrow::datatypes::DataType) -> String {
    use arrow::datatypes::DataType;
    match data_type {
        DataType::Int32 => "INT".into(),
        DataType::Int64 => "BIGINT".into(),
        DataType::UInt64 => "BIGINT UNSIGNED".into(),
        DataType::Float64 => "DOUBLE".into(),
        DataType::Decimal128(precision, scale) => format!("DECIMAL({precision}, {scale})"),
        DataType::Timestamp(_, _) => "TIMESTAMP(3)".into(),
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|field| format!("{} {}", field.name(), sql_type(field.data_type())))
                .collect();
            format!("ROW<{}>", fields.join(", "))
        }
        _ => "STRING".into(),
    }
}

/// The Yahoo benchmark over JSON lines as a program: views are kept, their advertisements' campaigns are looked up in a
/// table of the process, as in the peers' harness, and counted per campaign and window.
fn count_json_views(session: &Session, ads: HashMap<i64, i64>) -> thalweg::Result<u64> {
    let builder = session.stream();
    let json_value = session.context().udf("json_value")?;
    let field = |name: &str| json_value.call(vec![col("line"), lit(format!("$.{name}"))]);
    let schema = Arc::new(Schema::new(vec![
        Field::new("campaign_id", DataType::Int64, false),
        Field::new("event_time", DataType::Timestamp(TimeUnit::Millisecond, None), true),
    ]));
    let joined = Arc::clone(&schema);
    let counts = builder
        .from_table("events", WatermarkStrategy::none())?
        .filter(field("event_type").eq(lit("view")))?
        .select(vec![
            cast(field("ad_id"), DataType::Int64).alias("ad_id"),
            cast(
                cast(field("event_time"), DataType::Int64),
                schema.field(1).data_type().clone(),
            )
            .alias("event_time"),
        ])?
        .map(schema, move |batch| {
            let found = batch
                .column(0)
                .as_primitive::<Int64Type>()
                .values()
                .iter()
                .map(|ad| ads[ad]);
            let columns: Vec<ArrayRef> = vec![
                Arc::new(Int64Array::from_iter_values(found)),
                Arc::clone(batch.column(1)),
            ];
            Ok(RecordBatch::try_new(Arc::clone(&joined), columns)?)
        })
        .assign_watermarks(WatermarkStrategy::bounded_out_of_orderness(
            "event_time",
            Duration::from_millis(1),
        ))?
        .key_by(&["campaign_id"])?
        .window(WindowAssigner::tumbling(Duration::from_secs(10)))
        .aggregate(vec![count(lit(1i64))])?;
    let mut windows = 0;
    for batch in counts.collect()? {
        windows += batch?.num_rows() as u64;
    }
    Ok(windows)
}

fn ads_of(session: &Session, campaigns: &str) -> thalweg::Result<HashMap<i64, i64>> {
    session.execute(&format!(
        "CREATE TABLE campaigns (ad_id BIGINT, campaign_id BIGINT) WITH ('connector' = 'ysb-campaigns', 'ysb.campaigns' = '{campaigns}')"
    ))?;
    session.execute("SET 'execution.runtime-mode' = 'batch'")?;
    let mut ads = HashMap::new();
    for batch in session.execute("SELECT ad_id, campaign_id FROM campaigns")?.collect()? {
        let column = |index: usize| batch.column(index).as_primitive::<Int64Type>().values().to_vec();
        ads.extend(column(0).into_iter().zip(column(1)));
    }
    session.execute("SET 'execution.runtime-mode' = 'streaming'")?;
    Ok(ads)
}

/// The child's work.
fn run(job: &Job, arguments: &Arguments) -> Value {
    let session = session(arguments);
    for statement in &job.setup {
        session.execute(statement).unwrap().collect().unwrap();
    }
    if job.statement == "JSON" {
        let ads = ads_of(&session, arguments.own("campaigns")).unwrap();
        let start = Instant::now();
        return match count_json_views(&session, ads) {
            Ok(windows) => told(job, arguments, start.elapsed().as_secs_f64(), windows, None),
            Err(error) => json!({"failed": error.to_string()}),
        };
    }
    let query = job.statement.strip_prefix("INSERT INTO BLACKHOLE ").unwrap();
    make_sink(&session, query);
    let start = Instant::now();
    let rows = match session.execute(&format!("INSERT INTO sink {query}")) {
        Ok(Outcome::Rows(rows)) => rows,
        Ok(Outcome::Done(_)) => panic!("an INSERT has a count"),
        Err(error) => return json!({"failed": error.to_string()}),
    };
    let progress = rows.progress();
    let mut written = 0u64;
    for batch in rows {
        match batch {
            Ok(batch) => written += count_of(&batch),
            Err(error) => return json!({"failed": error.to_string()}),
        }
    }
    let seconds = start.elapsed().as_secs_f64();
    told(job, arguments, seconds, written, progress.latency())
}

fn told(job: &Job, arguments: &Arguments, seconds: f64, written: u64, latency: Option<LatencyHistogram>) -> Value {
    let ms = |q: f64| {
        latency
            .as_ref()
            .and_then(|latency| latency.quantile_ns(q))
            .map(|ns| ns as f64 / 1e6)
    };
    json!({
        "workload": job.name,
        "engine": "thalweg",
        "version": env!("CARGO_PKG_VERSION"),
        "seconds": seconds,
        "events_per_s": job.events as f64 / seconds,
        "events_per_s_per_core": job.events as f64 / seconds / arguments.parallelism as f64,
        "p50_ms": ms(0.5),
        "p99_ms": ms(0.99),
        "peak_rss_mb": peak_rss_bytes() >> 20,
        "params": {"events": job.events, "rows_out": written, "parallelism": arguments.parallelism,
                   "pushdown": arguments.own("pushdown")},
    })
}

fn count_of(batch: &RecordBatch) -> u64 {
    use arrow::datatypes::UInt64Type;
    batch.column(0).as_primitive::<UInt64Type>().values().iter().sum()
}

/// Runs of ours, then the peers', and what they come to.
fn compare(kind: &str, name: &str, arguments: &Arguments) {
    let mut rates = Vec::new();
    let mut memory = Vec::new();
    let start_up = start_up(kind, name, arguments);
    for _ in 0..arguments.repeats {
        let mut told = child_of(&[kind, name]);
        if let (Some(start_up), Some(seconds)) = (start_up, told["seconds"].as_f64()) {
            let events = told["params"]["events"].as_f64().unwrap_or(0.0);
            told["start_up_s"] = json!(start_up);
            told["events_per_s"] = json!(events * 0.99 / (seconds - start_up));
        }
        println!("{told}");
        if let Some(rate) = told["events_per_s"].as_f64() {
            rates.push(rate);
            memory.push(told["peak_rss_mb"].as_f64().unwrap_or(0.0));
        }
    }
    let mut summary = json!({"workload": format!("{kind}_{name}"), "runs": rates.len()});
    if !rates.is_empty() {
        summary["events_per_s"] = json!(median(&mut rates));
        summary["peak_rss_mb"] = json!(median(&mut memory));
    }
    for peer in &arguments.peers {
        let told = peer_run(peer, kind, name, arguments);
        println!("{told}");
        if let (Some(theirs), Some(ours)) = (told["events_per_s"].as_f64(), summary["events_per_s"].as_f64()) {
            summary[format!("{peer}_events_per_s")] = json!(theirs);
            summary[format!("ratio_to_{peer}")] = json!(ours / theirs);
        }
        if let (Some(theirs), Some(ours)) = (told["peak_rss_mb"].as_f64(), summary["peak_rss_mb"].as_f64()) {
            summary[format!("rss_ratio_to_{peer}")] = json!(ours / theirs);
        }
    }
    println!("{summary}");
}

/// The time of a run over 1 % of the events, which loads the table of advertisements: as in the peers' harness, it does not
/// count in the rate of the Yahoo benchmark. The lesser of two.
fn start_up(kind: &str, name: &str, arguments: &Arguments) -> Option<f64> {
    if kind != "ysb" {
        return None;
    }
    let events = (events_of(arguments, 20_000_000) / 100).to_string();
    let runs = (0..2).filter_map(|_| child_with(&[kind, name], &["--events", &events])["seconds"].as_f64());
    runs.reduce(f64::min)
}

fn peer_run(peer: &str, kind: &str, name: &str, arguments: &Arguments) -> Value {
    let folder = std::env::var("PEERS_DIR").expect("--peers needs PEERS_DIR, the folder of the peers' scripts");
    let events = match (arguments.own("peer-events"), kind, name) {
        ("", "nexmark", "q4" | "q7" | "q9" | "q20") => "5000000",
        ("", "nexmark", _) => "10000000",
        ("", _, _) => "20000000",
        (given, _, _) => given,
    };
    let repeats = arguments.own("peer-repeats");
    let mut command = Command::new("bash");
    match kind {
        "nexmark" => {
            command
                .arg(format!("{folder}/nexmark/run.sh"))
                .args([peer, name, events, "false", repeats]);
            if matches!(name, "q4" | "q7" | "q9" | "q20") {
                command.env("HEAP", "10g");
            }
        }
        "ysb" => {
            let form = if name == "typed" { "pojo" } else { name };
            command
                .arg(format!("{folder}/ysb/run.sh"))
                .args([peer, form, arguments.own("campaigns"), events, repeats]);
        }
        other => return json!({"failed": format!("the peers have no '{other}'")}),
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let last = text
        .lines()
        .rev()
        .find_map(|line| serde_json::from_str::<Value>(line).ok());
    last.unwrap_or_else(
        || json!({"failed": String::from_utf8_lossy(&output.stderr).lines().last().unwrap_or("").to_string()}),
    )
}

/// Half of what it could take, for long: memory each ten seconds.
fn steady(arguments: &Arguments) {
    let minutes: f64 = arguments.own("minutes").parse().unwrap();
    let rate: u64 = arguments.own("rate").parse().unwrap();
    let session = session(arguments);
    let options = format!(
        "'nexmark.event-time-rate' = '{rate}', 'rows-per-second' = '{rate}', 'nexmark.splits' = '2', 'nexmark.out-of-order-ms' = '500'"
    );
    for statement in statements(&TABLES.replace("{options}", &options)) {
        session.execute(&statement).unwrap().collect().unwrap();
    }
    let query = "SELECT bidder, COUNT(*) AS n, MAX(price) AS top, window_start, window_end \
                 FROM TABLE(HOP(TABLE bid, DESCRIPTOR(ts), INTERVAL '1' SECOND, INTERVAL '10' SECOND)) \
                 GROUP BY bidder, window_start, window_end";
    make_sink(&session, query);
    let Outcome::Rows(rows) = session.execute(&format!("INSERT INTO sink {query}")).unwrap() else {
        panic!("an INSERT has a count");
    };
    let (progress, canceller) = (rows.progress(), rows.canceller());
    let reader = std::thread::spawn(move || rows.collect::<thalweg::Result<Vec<_>>>());
    let start = Instant::now();
    let mut samples = Vec::new();
    while start.elapsed().as_secs_f64() < minutes * 60.0 {
        std::thread::sleep(Duration::from_secs(10));
        let told = progress.snapshot();
        let rss = resident_bytes() >> 20;
        samples.push(rss);
        println!(
            "{}",
            json!({"seconds": start.elapsed().as_secs(), "rss_mb": rss, "rows_read": told.rows_read,
                   "rows_per_s": told.rows_read as f64 / start.elapsed().as_secs_f64(),
                   "reserved_mb": session.memory().reserved_bytes() >> 20})
        );
    }
    canceller.cancel();
    let _ = reader.join();
    let (first, second) = samples.split_at(samples.len() / 2);
    let latency = progress.latency();
    println!(
        "{}",
        json!({"workload": "steady", "minutes": minutes, "rate": rate, "max_rss_mb_first_half": first.iter().max(),
               "max_rss_mb_second_half": second.iter().max(),
               "p99_ms": latency.and_then(|l| l.quantile_ns(0.99)).map(|ns| ns as f64 / 1e6)})
    );
}

fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap_or(0) << 10
}
