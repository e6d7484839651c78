//! TeraSort: 100-byte records with 10-byte printable keys, as gensort makes them, from files to sorted files.
//!
//! `cargo bench --bench terasort -- [--rows 20000000] [--memory 512MB] [--format parquet] [--parallelism 2]
//! [--repeats 5] [--sync true] [--peers duckdb,datafusion,polars] [--dir DIR]`
//!
//! The input is made once and kept under `target/test-data/terasort`. Time counts from when the session and its
//! table are set up until the files have their final names. The output is checked as valsort does: order, count and
//! the sum of the records' hashes. `--format raw` reads and writes files of bare records; the peers always sort the
//! Parquet files. They leave it to the system when their output reaches the disk; `--sync false` lets ours do so, too.
//! See `benches/measure` for what is printed and `benches/measure/peers.rs` for the peers.

#![allow(missing_docs, reason = "a benchmark is a program")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on panics")]
#![allow(clippy::disallowed_methods, reason = "a benchmark reads the clock")]

#[allow(dead_code, reason = "the other benchmark uses the rest")]
mod measure;

use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray};
use arrow::buffer::{Buffer, OffsetBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema};
use measure::peers::peer_script;
use measure::{Arguments, Contender, Noise, ParquetFile, Workload, compare, in_child, run_session, touch};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::{Value, json};
use xxhash_rust::xxh3::xxh3_64;

const RECORD: usize = 100;
const KEY: usize = 10;

fn main() {
    let arguments = Arguments::parse(&[("rows", "20000000"), ("format", "parquet"), ("sync", "true")]);
    let sort = Sort::new(&arguments);
    if arguments.child {
        println!("{}", run_session(&arguments, &sort.setup(), &sort.query()));
        return;
    }
    let expected = sort.input(sort.format);
    if !arguments.peers.is_empty() {
        sort.input(Format::Parquet);
    }
    let workload = Workload {
        name: "terasort".into(),
        rows: sort.rows,
        bytes: sort.rows * RECORD as u64,
        params: json!({
            "rows": sort.rows, "format": sort.format.name(), "memory_mb": arguments.memory_mb(),
            "parallelism": arguments.parallelism, "sync": sort.sync,
        }),
    };
    let mut contenders = vec![Contender {
        name: "thalweg".into(),
        run: Box::new(|| sort.checked_run(&expected)),
    }];
    for peer in &arguments.peers {
        contenders.push(Contender {
            name: peer.clone(),
            run: Box::new(|| sort.peer(peer, &arguments)),
        });
    }
    if !compare(&workload, &contenders, arguments.repeats) {
        std::process::exit(1);
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Format {
    Parquet,
    Raw,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::Parquet => "parquet",
            Format::Raw => "raw",
        }
    }
}

struct Sort {
    rows: u64,
    format: Format,
    sync: bool,
    /// Of this number of rows: inputs, and the output of the run that is going on.
    folder: PathBuf,
}

impl Sort {
    fn new(arguments: &Arguments) -> Self {
        let rows: u64 = arguments.own("rows").parse().unwrap();
        let format = match arguments.own("format") {
            "parquet" => Format::Parquet,
            "raw" => Format::Raw,
            other => panic!("there is no format '{other}'; the formats are parquet and raw"),
        };
        Self {
            rows,
            format,
            sync: arguments.own("sync").parse().unwrap(),
            folder: arguments.folder(&format!("terasort/rows-{rows}")),
        }
    }

    fn source(&self, format: Format) -> PathBuf {
        self.folder.join(format.name())
    }

    fn out(&self) -> PathBuf {
        self.folder.join("out")
    }

    fn setup(&self) -> Vec<String> {
        let source = self.source(self.format);
        match self.format {
            Format::Parquet => vec![format!(
                "CREATE EXTERNAL TABLE t STORED AS PARQUET LOCATION '{}/'",
                source.display()
            )],
            Format::Raw => [("t", source), ("sorted", self.out())]
                .iter()
                .map(|(name, path)| {
                    format!(
                        "CREATE TABLE {name} (\"key\" BYTEA, payload BYTEA) WITH ('connector' = 'filesystem', \
                         'path' = '{}/', 'format' = 'fixed', 'fixed.lengths' = '{KEY},{}', 'sink.sync' = '{}')",
                        path.display(),
                        RECORD - KEY,
                        self.sync
                    )
                })
                .collect(),
        }
    }

    fn query(&self) -> String {
        match self.format {
            Format::Parquet => format!(
                "COPY (SELECT key, payload FROM t ORDER BY key) TO '{}/' STORED AS PARQUET \
                 OPTIONS (compression uncompressed, 'sink.sync' {})",
                self.out().display(),
                self.sync
            ),
            Format::Raw => "INSERT INTO sorted SELECT key, payload FROM t ORDER BY key".into(),
        }
    }

    fn clear(&self) {
        for path in [self.out(), self.folder.join("out.tmp")] {
            let _ = std::fs::remove_dir_all(&path).or_else(|_| std::fs::remove_file(&path));
        }
    }

    fn checked_run(&self, expected: &Sums) -> Value {
        self.clear();
        let told = in_child();
        if !told["failed"].is_null() {
            self.clear();
            return told;
        }
        let checked = check_output(&self.out(), self.format).and_then(|found| found.compare(expected));
        self.clear();
        match checked {
            Ok(()) => told,
            Err(problem) => json!({"failed": problem}),
        }
    }

    fn peer(&self, engine: &str, arguments: &Arguments) -> Value {
        self.clear();
        let told = peer_script(
            "terasort",
            engine,
            "terasort/sort.py",
            &[
                self.source(Format::Parquet).display().to_string(),
                self.out().display().to_string(),
                arguments.parallelism.to_string(),
                arguments.memory_mb().to_string(),
            ],
        );
        self.clear();
        told
    }

    /// Makes the input where it is missing, brings it into the page cache and gives what it adds up to.
    fn input(&self, format: Format) -> Sums {
        let folder = self.source(format);
        let note = self.folder.join(format!("{}.json", format.name()));
        if !note.exists() {
            let _ = std::fs::remove_dir_all(&folder);
            std::fs::create_dir_all(&folder).unwrap();
            eprintln!("making {} rows in {}", self.rows, folder.display());
            let made = generate(&folder, self.rows, format);
            std::fs::write(&note, made.to_json().to_string()).unwrap();
        }
        touch(&folder);
        Sums::from_json(&serde_json::from_str(&std::fs::read_to_string(&note).unwrap()).unwrap())
    }
}

/// What sorting must not change.
#[derive(Clone, Copy, Default)]
struct Sums {
    rows: u64,
    /// The sum of the hashes of all records.
    checksum: u128,
}

impl Sums {
    fn add(&mut self, record: &[u8]) {
        self.rows += 1;
        self.checksum += u128::from(xxh3_64(record));
    }

    fn plus(self, other: Self) -> Self {
        Self {
            rows: self.rows + other.rows,
            checksum: self.checksum + other.checksum,
        }
    }

    fn compare(self, expected: &Self) -> Result<(), String> {
        if self.rows != expected.rows {
            return Err(format!(
                "the output has {} rows, the input {}",
                self.rows, expected.rows
            ));
        }
        if self.checksum != expected.checksum {
            return Err("the records of the output are not those of the input: their checksums differ".into());
        }
        Ok(())
    }

    fn to_json(self) -> Value {
        json!({"rows": self.rows, "checksum": format!("{:x}", self.checksum)})
    }

    fn from_json(value: &Value) -> Self {
        Self {
            rows: value["rows"].as_u64().unwrap(),
            checksum: u128::from_str_radix(value["checksum"].as_str().unwrap(), 16).unwrap(),
        }
    }
}

/// Writes the same records in either format: four Parquet files, or two files of bare records.
fn generate(folder: &Path, rows: u64, format: Format) -> Sums {
    let files = match format {
        Format::Parquet => 4,
        Format::Raw => 2,
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..files)
            .map(|file| {
                let range = rows * file / files..rows * (file + 1) / files;
                scope.spawn(move || match format {
                    Format::Parquet => write_parquet(&folder.join(format!("part-{file}.parquet")), range),
                    Format::Raw => write_raw(&folder.join(format!("part-{file}.bin")), range),
                })
            })
            .collect();
        let sums = threads.into_iter().map(|thread| thread.join().unwrap());
        sums.fold(Sums::default(), Sums::plus)
    })
}

fn record(row: u64, bytes: &mut [u8; RECORD]) {
    // The printable characters, from space to tilde.
    Noise::new(1).fill(row, bytes, b' ', 95);
}

fn write_raw(path: &Path, rows: Range<u64>) -> Sums {
    let mut file = BufWriter::with_capacity(1 << 20, File::create(path).unwrap());
    let mut sums = Sums::default();
    let mut bytes = [0; RECORD];
    for row in rows {
        record(row, &mut bytes);
        sums.add(&bytes);
        file.write_all(&bytes).unwrap();
    }
    file.flush().unwrap();
    sums
}

fn write_parquet(path: &Path, rows: Range<u64>) -> Sums {
    let fields = ["key", "payload"].map(|name| Field::new(name, DataType::Binary, true));
    let mut file = ParquetFile::create(path, Arc::new(Schema::new(fields.to_vec())));
    let mut sums = Sums::default();
    let mut bytes = [0; RECORD];
    for start in rows.clone().step_by(ParquetFile::GROUP_ROWS as usize) {
        let group = start..rows.end.min(start + ParquetFile::GROUP_ROWS);
        let count = (group.end - group.start) as usize;
        let (mut keys, mut payloads) = (
            Vec::with_capacity(count * KEY),
            Vec::with_capacity(count * (RECORD - KEY)),
        );
        for row in group {
            record(row, &mut bytes);
            sums.add(&bytes);
            keys.extend_from_slice(&bytes[..KEY]);
            payloads.extend_from_slice(&bytes[KEY..]);
        }
        file.write(vec![binary(keys, KEY), binary(payloads, RECORD - KEY)]);
    }
    file.finish();
    sums
}

/// Values of one length, one after the other.
fn binary(bytes: Vec<u8>, length: usize) -> ArrayRef {
    let offsets: Vec<i32> = (0..=bytes.len() / length).map(|row| (row * length) as i32).collect();
    let offsets = OffsetBuffer::new(ScalarBuffer::from(offsets));
    Arc::new(BinaryArray::new(offsets, Buffer::from_vec(bytes), None))
}

/// Reads records in the order of the output.
#[derive(Default)]
struct Valsort {
    sums: Sums,
    previous: [u8; KEY],
}

impl Valsort {
    fn take(&mut self, record: &[u8; RECORD]) -> Result<(), String> {
        let key = &record[..KEY];
        if key < self.previous.as_slice() {
            return Err(format!(
                "row {} of the output has a smaller key than the row before it",
                self.sums.rows
            ));
        }
        self.previous.copy_from_slice(key);
        self.sums.add(record);
        Ok(())
    }
}

/// Checks the order within the files and across them, in the order of their names, and adds up their records.
fn check_output(folder: &Path, format: Format) -> Result<Sums, String> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(folder)
        .map_err(|e| format!("{}: {e}", folder.display()))?
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort_by_key(|path| numbers_apart(&path.file_name().unwrap().to_string_lossy()));
    let mut valsort = Valsort::default();
    for file in &files {
        match format {
            Format::Parquet => check_parquet(file, &mut valsort),
            Format::Raw => check_raw(file, &mut valsort),
        }
        .map_err(|problem| format!("{}: {problem}", file.display()))?;
    }
    Ok(valsort.sums)
}

/// A name as texts and numbers in turn, so that part 10 comes after part 9.
fn numbers_apart(name: &str) -> Vec<(String, u64)> {
    let mut parts = Vec::new();
    let mut rest = name;
    while !rest.is_empty() {
        let text = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let number = rest[text..]
            .find(|c: char| !c.is_ascii_digit())
            .map_or(rest.len(), |end| text + end);
        parts.push((rest[..text].to_string(), rest[text..number].parse().unwrap_or(0)));
        rest = &rest[number..];
    }
    parts
}

fn check_raw(path: &Path, valsort: &mut Valsort) -> Result<(), String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let records = file.metadata().map_err(|e| e.to_string())?.len() / RECORD as u64;
    let mut file = BufReader::with_capacity(1 << 20, file);
    let mut record = [0; RECORD];
    for _ in 0..records {
        file.read_exact(&mut record).map_err(|e| e.to_string())?;
        valsort.take(&record)?;
    }
    match file.read(&mut record).map_err(|e| e.to_string())? {
        0 => Ok(()),
        _ => Err("the file ends within a record".into()),
    }
}

fn check_parquet(path: &Path, valsort: &mut Valsort) -> Result<(), String> {
    let file = File::open(path).map_err(|e| e.to_string())?;
    let reader = ParquetRecordBatchReaderBuilder::try_new(file).map_err(|e| e.to_string())?;
    let mut record = [0; RECORD];
    for batch in reader.with_batch_size(8192).build().map_err(|e| e.to_string())? {
        let batch = batch.map_err(|e| e.to_string())?;
        let column = |name: &str| {
            let column = batch
                .column_by_name(name)
                .ok_or_else(|| format!("there is no column {name}"))?;
            cast(column, &DataType::Binary).map_err(|e| e.to_string())
        };
        let (keys, payloads) = (column("key")?, column("payload")?);
        let (keys, payloads) = (keys.as_binary::<i32>(), payloads.as_binary::<i32>());
        for row in 0..batch.num_rows() {
            let (key, payload) = (keys.value(row), payloads.value(row));
            if keys.is_null(row) || payloads.is_null(row) || key.len() != KEY || payload.len() != RECORD - KEY {
                return Err(format!("row {row} of a batch is not a record"));
            }
            record[..KEY].copy_from_slice(key);
            record[KEY..].copy_from_slice(payload);
            valsort.take(&record)?;
        }
    }
    Ok(())
}
