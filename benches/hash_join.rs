//! Hash join: a small build side under a large probe side, and two large sides of equal size.
//!
//! `cargo bench --bench hash_join -- small|big|carry [--scale 1] [--memory 512MB] [--parallelism 2] [--repeats 5]
//! [--peers duckdb,datafusion,polars] [--dir DIR]`
//!
//! - `small`: 24 million rows find their partner among 25,600 (a ratio of 940 : 1) and are grouped.
//! - `big`: 12 million rows meet 12 million, each exactly one; lengths are added up.
//! - `carry`: the same two tables, but the answer compares the payloads of both sides, so that each row of 98 bytes
//!   must travel through the join, whatever an optimizer does.
//!
//! The tables are made once and kept under `target/test-data/join`; the answers that are expected are added up while
//! they are made, by counting and not by joining. Without `--memory` the session's default holds. See
//! `benches/measure` for what is printed and `benches/measure/peers.rs` for the peers.

#![allow(missing_docs, reason = "a benchmark is a program")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on panics")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod measure;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, StringArray};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::datatypes::{DataType, Field, Schema};
use measure::peers::{peer_query, peer_script};
use measure::{Arguments, Contender, Noise, ParquetFile, Workload, compare, in_child, run_session, touch};
use serde_json::{Value, json};

const PAYLOAD: usize = 90;
const BUILD_ROWS: u64 = 25_600;
/// Keys of the build side are multiples of it.
const KEY_STEP: i64 = 7919;

// Each column of each table has its own noise.
const ATTRIBUTES: u64 = 1;
const PROBE_KEYS: u64 = 2;
const PROBE_PAYLOADS: u64 = 3;
const BUILD_PAYLOADS: u64 = 4;
const LARGE_KEYS: [u64; 2] = [5, 6];
const LARGE_PAYLOADS: [u64; 2] = [7, 8];

const SMALL: &str = "SELECT attr % 100 AS g, count(*) AS n, sum(length(p.payload)) AS s \
                     FROM probe p JOIN build b ON p.fk = b.pk GROUP BY attr % 100";
const BIG: &str = "SELECT count(*) AS n, sum(length(a.payload) + length(b.payload)) AS s FROM a JOIN b ON a.k = b.k";
const CARRY: &str = "SELECT count(*) AS n, sum(CASE WHEN a.payload < b.payload THEN 1 ELSE 0 END) AS less, \
                     sum(CASE WHEN a.payload < b.payload THEN a.k ELSE 0 END) AS s FROM a JOIN b ON a.k = b.k";

fn main() {
    let arguments = Arguments::parse(&[("scale", "1")]);
    let join = Join::new(&arguments);
    if arguments.child {
        println!("{}", run_session(&arguments, &join.setup(), join.query()));
        return;
    }
    let expected = join.input();
    let rows: u64 = join.tables().iter().map(|table| join.rows(table)).sum();
    let workload = Workload {
        name: format!("join_{}", join.variant),
        rows,
        bytes: rows * (8 + PAYLOAD as u64),
        params: json!({
            "scale": join.scale, "memory_mb": arguments.memory_mb(), "parallelism": arguments.parallelism,
        }),
    };
    let mut contenders = vec![Contender {
        name: "thalweg".into(),
        run: Box::new(|| checked(in_child(), &expected)),
    }];
    for peer in &arguments.peers {
        contenders.push(Contender {
            name: peer.clone(),
            run: Box::new(|| join.peer(peer, &arguments, &expected)),
        });
    }
    if !compare(&workload, &contenders, arguments.repeats) {
        std::process::exit(1);
    }
}

/// A run whose answer is wrong has failed.
fn checked(told: Value, expected: &[Vec<i64>]) -> Value {
    if !told["failed"].is_null() {
        return told;
    }
    let number = |value: &Value| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
        text.parse::<i64>().ok()
    };
    let row = |row: &Value| row.as_array()?.iter().map(number).collect::<Option<Vec<i64>>>();
    let rows = told["answer"].as_array().map(|rows| rows.iter().map(row).collect());
    let found: Option<Vec<Vec<i64>>> = rows.unwrap_or_default();
    let found = found.map(|mut rows| {
        rows.sort();
        rows
    });
    if found.as_deref() == Some(expected) {
        return told;
    }
    json!({"failed": format!("the answer is wrong: {}", told["answer"])})
}

struct Join {
    variant: String,
    scale: f64,
    folder: PathBuf,
}

impl Join {
    fn new(arguments: &Arguments) -> Self {
        let variant = match arguments.free.as_slice() {
            [variant] if ["small", "big", "carry"].contains(&variant.as_str()) => variant.clone(),
            _ => panic!("say which join: small, big or carry"),
        };
        let scale = arguments.own("scale");
        Self {
            variant,
            scale: scale.parse().unwrap(),
            folder: arguments.folder(&format!("join/scale-{scale}")),
        }
    }

    fn tables(&self) -> [&'static str; 2] {
        match self.variant.as_str() {
            "small" => ["probe", "build"],
            _ => ["a", "b"],
        }
    }

    fn rows(&self, table: &str) -> u64 {
        match table {
            "build" => BUILD_ROWS,
            "probe" => (24_000_000.0 * self.scale) as u64,
            _ => (12_000_000.0 * self.scale) as u64,
        }
    }

    fn query(&self) -> &'static str {
        match self.variant.as_str() {
            "small" => SMALL,
            "big" => BIG,
            _ => CARRY,
        }
    }

    fn setup(&self) -> Vec<String> {
        let create = |table| {
            let file = self.folder.join(format!("{table}.parquet"));
            format!(
                "CREATE EXTERNAL TABLE {table} STORED AS PARQUET LOCATION '{}'",
                file.display()
            )
        };
        self.tables().map(create).to_vec()
    }

    fn peer(&self, engine: &str, arguments: &Arguments, expected: &[Vec<i64>]) -> Value {
        let workload = format!("join_{}", self.variant);
        let folder = self.folder.display().to_string();
        let resources = [arguments.parallelism.to_string(), arguments.memory_mb().to_string()];
        if self.variant == "carry" {
            let [left, right] = self.tables();
            let what = [folder, format!("{left},{right}"), self.query().to_string()];
            return checked(
                peer_query(&workload, engine, &[resources.as_slice(), &what].concat()),
                expected,
            );
        }
        let what = [self.variant.clone(), folder];
        let told = peer_script(&workload, engine, "join/join.py", &[what, resources].concat());
        // That script tells the sums of the last two columns.
        let sum = |from_end: usize| expected.iter().map(|row| row[row.len() - from_end]).sum::<i64>();
        let sums = json!([sum(2), sum(1)]);
        if told["failed"].is_null() && told["params"]["check"] != sums {
            return json!({"failed": format!("the answer is wrong: {}", told["params"])});
        }
        told
    }

    /// Makes the tables where they are missing, brings them into the page cache and gives the expected answer.
    fn input(&self) -> Vec<Vec<i64>> {
        let side = if self.variant == "small" { "small" } else { "large" };
        let note = self.folder.join(format!("{side}.json"));
        if !note.exists() {
            std::fs::create_dir_all(&self.folder).unwrap();
            eprintln!("making {} in {}", self.tables().join(" and "), self.folder.display());
            let made = match side {
                "small" => json!({"small": self.make_small()}),
                _ => self.make_large(),
            };
            std::fs::write(&note, made.to_string()).unwrap();
        }
        touch(&self.folder);
        let answers: Value = serde_json::from_str(&std::fs::read_to_string(&note).unwrap()).unwrap();
        serde_json::from_value(answers[&self.variant].clone()).unwrap()
    }

    /// Makes `probe` and `build`; the expected groups.
    fn make_small(&self) -> Vec<Vec<i64>> {
        let path = |table: &str| self.folder.join(format!("{table}.parquet"));
        let attribute = |row: u64| Noise::new(ATTRIBUTES).below(row, 10_000) as i32;
        let build_key = |row: u64| row as i64 * KEY_STEP;
        let partner = |row: u64| Noise::new(PROBE_KEYS).below(row, BUILD_ROWS);

        let mut build = ParquetFile::create(&path("build"), schema(&["pk", "attr", "payload"]));
        build.write(vec![
            Arc::new(Int64Array::from_iter_values((0..BUILD_ROWS).map(build_key))),
            Arc::new(Int32Array::from_iter_values((0..BUILD_ROWS).map(attribute))),
            payloads(BUILD_PAYLOADS, 0..BUILD_ROWS),
        ]);
        build.finish();
        write_table(&path("probe"), "fk", self.rows("probe"), PROBE_PAYLOADS, &|row| {
            build_key(partner(row))
        });

        let mut counts = [0i64; 100];
        for row in 0..self.rows("probe") {
            counts[attribute(partner(row)) as usize % 100] += 1;
        }
        let groups = (0..).zip(counts).filter(|(_, count)| *count > 0);
        groups
            .map(|(group, count)| vec![group, count, count * PAYLOAD as i64])
            .collect()
    }

    /// Makes `a` and `b`; the expected answers of `big` and `carry`.
    fn make_large(&self) -> Value {
        let rows = self.rows("a");
        let keys = LARGE_KEYS.map(|seed| Noise::new(seed).permutation(rows as usize));
        for ((table, keys), seed) in ["a", "b"].iter().zip(&keys).zip(LARGE_PAYLOADS) {
            let path = self.folder.join(format!("{table}.parquet"));
            write_table(&path, "k", rows, seed, &|row| keys[row as usize]);
        }
        // In which row of its table each key is.
        let [a, b] = keys.map(|keys| {
            let mut place = vec![u32::MAX; keys.len()];
            keys.iter().zip(0..).for_each(|(key, row)| place[*key as usize] = row);
            place
        });
        let (mut left, mut right) = ([0; PAYLOAD], [0; PAYLOAD]);
        let (mut less, mut sum) = (0, 0);
        for key in 0..rows as usize {
            payload(LARGE_PAYLOADS[0], u64::from(a[key]), &mut left);
            payload(LARGE_PAYLOADS[1], u64::from(b[key]), &mut right);
            if left < right {
                less += 1;
                sum += key;
            }
        }
        json!({"big": [[rows, rows * 2 * PAYLOAD as u64]], "carry": [[rows, less, sum]]})
    }
}

fn schema(columns: &[&str]) -> Arc<Schema> {
    let field = |name: &&str| {
        let data_type = match *name {
            "attr" => DataType::Int32,
            "payload" => DataType::Utf8,
            _ => DataType::Int64,
        };
        Field::new(*name, data_type, true)
    };
    Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()))
}

fn write_table(path: &Path, key: &str, rows: u64, payload_seed: u64, key_of: &dyn Fn(u64) -> i64) {
    let mut file = ParquetFile::create(path, schema(&[key, "payload"]));
    for start in (0..rows).step_by(ParquetFile::GROUP_ROWS as usize) {
        let group = start..rows.min(start + ParquetFile::GROUP_ROWS);
        let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(group.clone().map(key_of)));
        file.write(vec![keys, payloads(payload_seed, group)]);
    }
    file.finish();
}

fn payload(seed: u64, row: u64, bytes: &mut [u8; PAYLOAD]) {
    Noise::new(seed).fill(row, bytes, b'a', 26);
}

fn payloads(seed: u64, rows: Range<u64>) -> ArrayRef {
    let count = (rows.end - rows.start) as usize;
    let mut bytes = Vec::with_capacity(count * PAYLOAD);
    let mut one = [0; PAYLOAD];
    for row in rows {
        payload(seed, row, &mut one);
        bytes.extend_from_slice(&one);
    }
    let offsets: Vec<i32> = (0..=count).map(|row| (row * PAYLOAD) as i32).collect();
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    Arc::new(StringArray::new(offsets, Buffer::from_vec(bytes), None))
}
