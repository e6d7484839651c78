//! Tables on their way out and back in.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int32Array, Int64Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};

use super::*;
use crate::data::subtask_of_hash;

fn schema() -> SchemaRef {
    columns([("key", DataType::Int64), ("value", DataType::Int64)])
}

fn rows(pairs: &[(i64, i64)]) -> Batch {
    let column = |values: Vec<i64>| -> ArrayRef { Arc::new(Int64Array::from(values)) };
    let keys = column(pairs.iter().map(|(key, _)| *key).collect());
    let values = column(pairs.iter().map(|(_, value)| *value).collect());
    Batch::try_new(schema(), vec![keys, values]).unwrap()
}

fn run(rows: Batch, deleted: &[i64]) -> Run {
    let keys: ArrayRef = Arc::new(Int64Array::from(deleted.to_vec()));
    let deleted = Batch::try_new(columns([("key", DataType::Int64)]), vec![keys]).unwrap();
    Run {
        schema: rows.schema(),
        version: 1,
        rows: Box::new([Ok(rows)].into_iter()),
        deleted: Some(Box::new([Ok(deleted)].into_iter())),
        is_own: false,
    }
}

fn pairs(restored: RestoredRows) -> Vec<(i64, i64)> {
    let mut pairs: Vec<(i64, i64)> = restored
        .flat_map(|batch| {
            let batch = batch.unwrap();
            let column = |index: usize| batch.column(index).as_primitive::<Int64Type>().values().to_vec();
            column(0).into_iter().zip(column(1)).collect::<Vec<_>>()
        })
        .collect();
    pairs.sort_unstable();
    pairs
}

#[test]
fn the_newest_version_of_a_key_counts() {
    let spec = TableSpec::by_key("t", schema(), 1);
    let mut restored = Restored::new("op", 3, 0, 1);
    restored.add("t", run(rows(&[(1, 10), (2, 20), (3, 30), (4, 40)]), &[]));
    restored.add("t", run(rows(&[(1, 11), (5, 50)]), &[2]));
    restored.add("t", run(rows(&[(2, 22)]), &[5, 4]));
    assert_eq!(pairs(restored.take(&spec).unwrap()), [(1, 11), (2, 22), (3, 30)]);
    assert_eq!(pairs(restored.take(&spec).unwrap()), []);
}

#[test]
fn every_key_has_one_owner() {
    for parallelism in [1, 2, 3, 7, 128] {
        let spec = TableSpec::by_key("t", schema(), 1);
        let all: Vec<(i64, i64)> = (0..1000).map(|key| (key, -key)).collect();
        let mut seen = Vec::new();
        for subtask in 0..parallelism {
            let mut restored = Restored::new("op", 1, subtask, parallelism);
            restored.add("t", run(rows(&all), &[]));
            let own = pairs(restored.take(&spec).unwrap());
            let mut hashes = Vec::new();
            let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(own.iter().map(|(key, _)| *key)));
            hash_rows(&[keys], own.len(), &mut hashes).unwrap();
            let owner = |hash: &u64| subtask_of_hash(*hash, MAX_PARALLELISM, parallelism);
            assert!(hashes.iter().all(|hash| owner(hash) == subtask));
            seen.extend(own);
        }
        seen.sort_unstable();
        assert_eq!(seen, all);
    }
}

#[test]
fn schemas_evolve_by_name_and_never_lose_values() {
    let old: ArrayRef = Arc::new(Int32Array::from(vec![Some(1), None]));
    let stored = Batch::try_from_iter_with_nullable([("was", Arc::clone(&old), true), ("gone", old, true)]).unwrap();
    let evolution = Evolution {
        renamed: [("was".to_string(), "is".to_string())].into(),
    };
    let declared = columns([("new", DataType::Utf8), ("is", DataType::Int64)]);
    let mapping = evolve(&stored.schema(), &declared, &evolution, ("op", "t")).unwrap();
    let now = mapping.apply(&stored).unwrap();
    assert_eq!(now.column(0).null_count(), 2);
    assert_eq!(now.column(1).as_primitive::<Int64Type>().value(0), 1);
    let narrow = columns([("was", DataType::Int16)]);
    let error = evolve(&stored.schema(), &narrow, &Evolution::default(), ("op", "t")).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("column 'was' of table 't' was Int32 and is Int16 now"),
        "{error}"
    );
    let strict: SchemaRef = Arc::new(Schema::new(vec![Field::new("new", DataType::Int64, false)]));
    let error = evolve(&stored.schema(), &strict, &Evolution::default(), ("op", "t")).unwrap_err();
    assert!(error.to_string().contains("is new and not nullable"), "{error}");
}

#[test]
fn another_version_of_a_table_is_refused() {
    let mut spec = TableSpec::by_key("t", schema(), 1);
    spec.version = 2;
    let mut restored = Restored::new("op", 3, 0, 1);
    restored.add("t", run(rows(&[(1, 10)]), &[]));
    let error = restored.take(&spec).err().unwrap();
    assert!(error.to_string().contains("table 't' has version 1"), "{error}");
}
