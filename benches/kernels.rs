//! Kernels: hashing rows, splitting batches, sorting by prefix, merging sorted inputs, probing a hash table, updating
//! keyed state.
//! `cargo bench --bench kernels`. Sort, merge and probe are whole operators without the runtime around them.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on panics")]

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{ArrayRef, BinaryViewArray, Float64Array, Int64Array, RecordBatch, StringViewArray};
use arrow::compute::{lexsort_to_indices, take_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use datafusion::common::JoinType;
use datafusion::execution::TaskContext;
use thalweg::engine::Result;
use thalweg::engine::data::{Watermark, hash_rows};
use thalweg::engine::exchange::{CancelToken, Partitioner, ReadNext};
use thalweg::engine::operator::{Collector, Context, Operator, OperatorMetrics, build_operator};
use thalweg::engine::plan::{
    HashJoinSpec, MergeSpec, OperatorSpec, Partitioning, ScalarExpr, SchemaSpec, SortKey, SortSpec,
};
use thalweg::engine::state::{KeyedTable, Snapshot, SnapshotRequest, TableSpec};
use thalweg::engine::time::ManualClock;
use thalweg_memory::{MemoryManager, SpillCompression, SpillDirectory};

const ROWS: usize = 8192;

fn batch() -> RecordBatch {
    let rows = ROWS as i64;
    let ints: ArrayRef = Arc::new(Int64Array::from_iter_values(
        (0..rows).map(|i| i.wrapping_mul(0x9E37_79B9) % 1000),
    ));
    let floats: ArrayRef = Arc::new(Float64Array::from_iter_values((0..rows).map(|i| i as f64 / 3.0)));
    let words: ArrayRef = Arc::new(StringViewArray::from_iter_values(
        (0..rows).map(|i| format!("Customer#{:09}", i % 512)),
    ));
    RecordBatch::try_from_iter([("i", ints), ("f", floats), ("s", words)]).unwrap()
}

fn hash(c: &mut Criterion) {
    let batch = batch();
    let mut group = c.benchmark_group("hash_rows");
    group.throughput(Throughput::Elements(ROWS as u64));
    for (name, columns) in [
        ("int64", vec![0]),
        ("utf8view", vec![2]),
        ("int64+float64+utf8view", vec![0, 1, 2]),
    ] {
        let columns: Vec<ArrayRef> = columns.into_iter().map(|i| Arc::clone(batch.column(i))).collect();
        let mut hashes = Vec::new();
        group.bench_function(name, |b| {
            b.iter(|| hash_rows(black_box(&columns), ROWS, &mut hashes).unwrap())
        });
    }
    group.finish();
}

fn partition(c: &mut Criterion) {
    let batch = batch();
    let mut group = c.benchmark_group("partition");
    group.throughput(Throughput::Elements(ROWS as u64));
    for channels in [2, 8] {
        let keys = vec![ScalarExpr::column(0, &batch.schema())];
        let mut partitioner = Partitioner::new(&Partitioning::Hash(keys), 0, channels).unwrap();
        group.bench_function(format!("hash int64 to {channels}"), |b| {
            b.iter(|| {
                let mut rows = 0;
                partitioner
                    .partition(black_box(batch.clone()), channels, &mut |_, part| {
                        rows += part.num_rows();
                        Ok(())
                    })
                    .unwrap();
                assert_eq!(rows, ROWS);
            });
        });
    }
    group.finish();
}

/// Rows of the inputs that are sorted and merged.
const SORT_ROWS: usize = 1 << 20;

/// Counts what an operator hands on.
#[derive(Default)]
struct Count(usize);

impl Collector for Count {
    fn collect(&mut self, batch: RecordBatch) -> Result<()> {
        self.0 += black_box(batch).num_rows();
        Ok(())
    }

    fn watermark(&mut self, _watermark: Watermark) -> Result<()> {
        Ok(())
    }

    fn collect_side(&mut self, _tag: usize, batch: RecordBatch) -> Result<()> {
        self.collect(batch)
    }

    fn is_done(&self) -> bool {
        false
    }
}

/// Where operators run.
struct Stage {
    runtime: tokio::runtime::Runtime,
    memory: MemoryManager,
}

impl Stage {
    fn new() -> Self {
        Self {
            runtime: tokio::runtime::Builder::new_multi_thread()
                .worker_threads(1)
                .build()
                .unwrap(),
            memory: MemoryManager::new(usize::MAX),
        }
    }

    fn context(&self) -> Context {
        Context {
            operator: "kernel".into(),
            subtask: 0,
            parallelism: 1,
            batch_size: ROWS,
            batch_bytes: 4 << 20,
            task: Arc::new(TaskContext::default()),
            io: self.runtime.handle().clone(),
            clock: Arc::new(ManualClock::default()),
            memory: self.memory.job().spillable("kernel"),
            spill: Arc::new(SpillDirectory::new(std::env::temp_dir(), SpillCompression::None)),
            metrics: Arc::new(OperatorMetrics::default()),
            filters: Arc::default(),
            streaming: false,
            cancel: CancelToken::new(),
        }
    }

    /// Runs an operator over whole inputs, in the order in which it wants them; how many rows came out.
    fn run(&self, operator: &mut dyn Operator, inputs: &[Vec<RecordBatch>]) -> usize {
        let (mut context, mut count) = (self.context(), Count::default());
        let mut inputs: Vec<_> = inputs.iter().map(|batches| Some(batches.iter())).collect();
        let mut turn = 0;
        while inputs.iter().any(Option::is_some) {
            let port = match operator.reads_next() {
                ReadNext::Only(port) => port,
                ReadNext::Any => (0..inputs.len())
                    .map(|step| (turn + step) % inputs.len())
                    .find(|port| inputs[*port].is_some())
                    .unwrap(),
            };
            turn = port + 1;
            match inputs[port].as_mut().unwrap().next() {
                Some(batch) => operator
                    .on_batch(port, batch.clone(), &mut context, &mut count)
                    .unwrap(),
                None => {
                    inputs[port] = None;
                    operator.on_end(port, &mut context, &mut count).unwrap();
                }
            }
        }
        count.0
    }
}

/// The finalizer of SplitMix64: numbers without order.
fn scattered(row: usize) -> u64 {
    let mut x = (row as u64).wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

fn slices(batch: &RecordBatch, rows: usize) -> Vec<RecordBatch> {
    let starts = (0..batch.num_rows()).step_by(rows);
    starts
        .map(|start| batch.slice(start, rows.min(batch.num_rows() - start)))
        .collect()
}

/// A key to sort by and a payload of 90 bytes: the keys of TeraSort, integers, and texts that begin alike.
fn sort_inputs() -> Vec<(&'static str, RecordBatch)> {
    let bytes = BinaryViewArray::from_iter_values((0..SORT_ROWS).map(|row| {
        let high = scattered(row).to_be_bytes();
        let low = scattered(row + SORT_ROWS).to_be_bytes();
        [&high[..], &low[..2]].concat()
    }));
    let ints = Int64Array::from_iter_values((0..SORT_ROWS).map(|row| scattered(row) as i64));
    let texts = (0..SORT_ROWS).map(|row| format!("Customer#{:012}", scattered(row) % 1_000_000));
    let keys: [(&str, ArrayRef); 3] = [
        ("binary of 10", Arc::new(bytes)),
        ("int64", Arc::new(ints)),
        (
            "utf8view of 21 with a common start",
            Arc::new(StringViewArray::from_iter_values(texts)),
        ),
    ];
    let payload: ArrayRef = Arc::new(BinaryViewArray::from_iter_values(
        (0..SORT_ROWS).map(|row| scattered(row).to_le_bytes().repeat(12)[..90].to_vec()),
    ));
    let batch = |key: ArrayRef| {
        let columns = [("key", key, true), ("payload", Arc::clone(&payload), true)];
        RecordBatch::try_from_iter_with_nullable(columns).unwrap()
    };
    keys.into_iter().map(|(name, key)| (name, batch(key))).collect()
}

fn by_first_column(schema: &SchemaRef) -> Vec<SortKey> {
    vec![SortKey {
        expr: ScalarExpr::column(0, schema),
        descending: false,
        nulls_first: false,
    }]
}

fn sort(c: &mut Criterion) {
    let stage = Stage::new();
    let mut group = c.benchmark_group("sort");
    group.throughput(Throughput::Elements(SORT_ROWS as u64)).sample_size(10);
    for (name, batch) in sort_inputs() {
        let spec = OperatorSpec::Sort(SortSpec {
            keys: by_first_column(&batch.schema()),
            fetch: None,
            by_range: false,
        });
        let inputs = [slices(&batch, ROWS)];
        group.bench_function(format!("{name}, payload of 90"), |b| {
            b.iter_batched_ref(
                || build_operator(&spec, 1).unwrap(),
                |operator| assert_eq!(stage.run(operator.as_mut(), &inputs), SORT_ROWS),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

fn merge(c: &mut Criterion) {
    const INPUTS: usize = 8;
    let stage = Stage::new();
    let mut group = c.benchmark_group("merge");
    group.throughput(Throughput::Elements(SORT_ROWS as u64)).sample_size(10);
    for (name, batch) in sort_inputs() {
        let inputs: Vec<Vec<RecordBatch>> = slices(&batch, SORT_ROWS / INPUTS)
            .iter()
            .map(|run| {
                let key = arrow::compute::SortColumn {
                    values: Arc::clone(run.column(0)),
                    options: None,
                };
                let order = lexsort_to_indices(&[key], None).unwrap();
                slices(&take_record_batch(run, &order).unwrap(), ROWS)
            })
            .collect();
        let spec = OperatorSpec::Merge(MergeSpec {
            keys: by_first_column(&batch.schema()),
            fetch: None,
        });
        group.bench_function(format!("{name}, {INPUTS} inputs"), |b| {
            b.iter_batched_ref(
                || build_operator(&spec, INPUTS).unwrap(),
                |operator| assert_eq!(stage.run(operator.as_mut(), &inputs), SORT_ROWS),
                BatchSize::PerIteration,
            );
        });
    }
    group.finish();
}

/// One batch meets tables of several sizes; each row finds one partner.
fn probe(c: &mut Criterion) {
    let stage = Stage::new();
    let mut group = c.benchmark_group("probe");
    group.throughput(Throughput::Elements(ROWS as u64));
    for table_rows in [1_000, 25_600, 1_000_000] {
        let side = |name: &str, rows: usize, key: &dyn Fn(usize) -> i64| {
            let keys: ArrayRef = Arc::new(Int64Array::from_iter_values((0..rows).map(key)));
            let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(0..rows as i64));
            let names = [format!("{name}_key"), format!("{name}_number")];
            RecordBatch::try_from_iter(names.into_iter().zip([keys, numbers])).unwrap()
        };
        let build = side("build", table_rows, &|row| row as i64 * 7919);
        let probing = side("probe", ROWS, &|row| (scattered(row) % table_rows as u64) as i64 * 7919);
        let fields: Vec<Arc<Field>> = [build.schema(), probing.schema()]
            .iter()
            .flat_map(|schema| schema.fields().iter().cloned().collect::<Vec<_>>())
            .collect();
        let spec = OperatorSpec::HashJoin(HashJoinSpec {
            join_type: JoinType::Inner,
            build_keys: vec![ScalarExpr::column(0, &build.schema())],
            probe_keys: vec![ScalarExpr::column(0, &probing.schema())],
            null_equals_null: false,
            null_aware: false,
            runtime_filters: Vec::new(),
            filter: None,
            projection: None,
            build_schema: SchemaSpec(build.schema()),
            probe_schema: SchemaSpec(probing.schema()),
            schema: SchemaSpec(Arc::new(Schema::new(fields))),
        });
        let mut operator = build_operator(&spec, 2).unwrap();
        let (mut context, mut count) = (stage.context(), Count::default());
        for batch in slices(&build, ROWS) {
            operator.on_batch(0, batch, &mut context, &mut count).unwrap();
        }
        operator.on_end(0, &mut context, &mut count).unwrap();
        let mut probed = 0;
        group.bench_function(format!("int64 in {table_rows} rows"), |b| {
            b.iter(|| {
                operator
                    .on_batch(1, black_box(probing.clone()), &mut context, &mut count)
                    .unwrap();
                probed += ROWS;
            });
        });
        operator.on_end(1, &mut context, &mut count).unwrap();
        assert_eq!(count.0, probed);
    }
    group.finish();
}

/// One batch of keys is looked up in a table of keyed state, and two of its columns are read and written.
fn state(c: &mut Criterion) {
    const KEYS: usize = 1_000_000;
    let mut group = c.benchmark_group("keyed state");
    group.throughput(Throughput::Elements(ROWS as u64));
    let field = |name: &str, data_type: DataType| Field::new(name, data_type, true);
    let schema = Schema::new(vec![
        field("key", DataType::Int64),
        field("sum", DataType::Int64),
        field("name", DataType::Utf8View),
    ]);
    let mut table = KeyedTable::new(TableSpec::by_key("state", Arc::new(schema), 1), None).unwrap();
    let keys_from = |start: usize| -> [ArrayRef; 1] {
        let key = |row: usize| (scattered(row) % KEYS as u64) as i64;
        [Arc::new(Int64Array::from_iter_values((start..start + ROWS).map(key)))]
    };
    let sums: ArrayRef = Arc::new(Int64Array::from_iter_values(0..ROWS as i64));
    let names: ArrayRef = Arc::new(StringViewArray::from_iter_values(
        (0..ROWS).map(|row| format!("a name that is not short {row}")),
    ));
    let mut slots = Vec::new();
    let mut start = 0;
    let mut update = |table: &mut KeyedTable, start: usize| {
        table.locate(&keys_from(start), ROWS, &mut slots).unwrap();
        black_box(table.read(&slots, 0).unwrap());
        table.write(&slots, 0, &sums).unwrap();
        table.write(&slots, 1, &names).unwrap();
    };
    while table.resident() < KEYS * 9 / 10 {
        update(&mut table, start);
        start += ROWS;
    }
    group.bench_function("read and write in 1000000 keys", |b| {
        b.iter(|| {
            update(&mut table, start);
            start += ROWS;
        })
    });
    let mut checkpoint = 0;
    group.bench_function("the same, after a snapshot", |b| {
        b.iter(|| {
            checkpoint += 1;
            let mut snapshot = Snapshot::new(SnapshotRequest {
                checkpoint,
                since: None,
            });
            table.snapshot(&mut snapshot);
            update(&mut table, start);
            start += ROWS;
        })
    });
    group.finish();
}

criterion_group!(kernels, hash, partition, sort, merge, probe, state);
criterion_main!(kernels);
