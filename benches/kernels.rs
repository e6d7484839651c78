//! Kernels of the exchange: hashing rows, splitting batches. `cargo bench --bench kernels`.

#![allow(missing_docs, reason = "criterion's macros make undocumented items")]
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on panics")]

use std::hint::black_box;
use std::sync::Arc;

use arrow::array::{ArrayRef, Float64Array, Int64Array, RecordBatch, StringViewArray};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use thalweg::engine::data::hash_rows;
use thalweg::engine::exchange::Partitioner;
use thalweg::engine::plan::{Partitioning, ScalarExpr};

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

criterion_group!(kernels, hash, partition);
criterion_main!(kernels);
