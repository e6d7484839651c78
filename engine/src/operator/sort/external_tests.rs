//! The sort under budgets that do not hold its input.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{ArrayRef, BinaryViewArray, Int64Array};
use proptest::prelude::*;
use thalweg_memory::MemoryManager;

use super::tests::*;
use crate::data::{Batch, EngineError, Result};
use crate::operator::harness::Harness;
use crate::operator::sort::{SharedRuns, Sort};
use crate::plan::{ScalarExpr, SortKey, SortSpec};

fn spec(keys: Vec<SortKey>) -> SortSpec {
    SortSpec {
        keys,
        fetch: None,
        by_range: false,
    }
}

/// Sorts within `budget` bytes; also the bytes that were spilled.
fn sort_within(budget: usize, batches: Vec<Batch>, keys: Vec<SortKey>) -> (Vec<Batch>, u64) {
    let mut harness = Harness::with_memory(Sort::new(spec(keys)), budget);
    for batch in batches {
        harness.push(0, batch).unwrap();
    }
    harness.end(0).unwrap();
    assert_eq!(harness.memory.reserved_bytes(), 0);
    let spilled = harness.context.metrics.spilled_bytes.load(Ordering::Relaxed);
    (std::mem::take(&mut harness.output.batches), spilled)
}

/// Sorts by range in `subtasks` threads, batches dealt out in turn; the outputs one after the other.
fn sort_by_range(budget: usize, batches: Vec<Batch>, keys: &[SortKey], subtasks: usize) -> Vec<Batch> {
    let shared = Arc::new(SharedRuns::default());
    let memory = MemoryManager::new(budget);
    let job = memory.job();
    let mut threads = Vec::new();
    for subtask in 0..subtasks {
        let mine: Vec<Batch> = batches.iter().skip(subtask).step_by(subtasks).cloned().collect();
        let sort = Sort::of_range(spec(keys.to_vec()), Arc::clone(&shared), subtask, subtasks);
        let reservation = job.spillable("sort");
        threads.push(std::thread::spawn(move || -> Result<Vec<Batch>> {
            let mut harness = Harness::new(sort);
            harness.context.memory = reservation;
            harness.context.parallelism = subtasks;
            mine.into_iter().try_for_each(|batch| harness.push(0, batch))?;
            harness.end(0)?;
            Ok(std::mem::take(&mut harness.output.batches))
        }));
    }
    let output: Vec<Batch> = threads
        .into_iter()
        .flat_map(|thread| thread.join().unwrap().unwrap())
        .collect();
    drop(shared);
    assert_eq!(memory.reserved_bytes(), 0);
    output
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn a_spilling_sort_equals_the_reference(
        rows in table(), keys in keys(), sizes in sizes(), budget in 1usize..60_000,
    ) {
        let (output, _) = sort_within(budget, chop(&rows, &sizes), sort_keys(&keys, &schema()));
        check_rows(&rows, &keys, None, &output);
    }

    #[test]
    fn ranges_put_together_equal_the_reference(
        rows in table(), keys in keys(), sizes in sizes(), budget in 1usize..200_000, subtasks in 1usize..5,
    ) {
        let output = sort_by_range(budget, chop(&rows, &sizes), &sort_keys(&keys, &schema()), subtasks);
        check_rows(&rows, &keys, None, &output);
    }
}

/// `rows` rows of a binary key, made by `key`, and their number.
fn keyed(rows: std::ops::Range<i64>, key: impl Fn(i64) -> Option<Vec<u8>>) -> Batch {
    let keys: ArrayRef = Arc::new(BinaryViewArray::from_iter(rows.clone().map(key)));
    let numbers: ArrayRef = Arc::new(Int64Array::from_iter_values(rows));
    Batch::try_from_iter_with_nullable([("key", keys, true), ("number", numbers, false)]).unwrap()
}

fn mixed(number: i64) -> u64 {
    (number as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29)
}

/// Sorts `rows` rows in batches of 100 by a binary key, one way and the other, alone and by range, and compares.
fn check_keys(rows: i64, budget: usize, key: impl Fn(i64) -> Option<Vec<u8>> + Copy) {
    for (descending, nulls_first) in [(false, false), (true, false), (false, true)] {
        let batches: Vec<Batch> = (0..rows / 100).map(|i| keyed(i * 100..i * 100 + 100, key)).collect();
        let keys = vec![SortKey {
            expr: ScalarExpr::column(0, &batches[0].schema()),
            descending,
            nulls_first,
        }];
        let mut expected: Vec<Option<Vec<u8>>> = (0..rows).map(key).collect();
        expected.sort_by(|a, b| match (a, b) {
            (Some(a), Some(b)) if descending => b.cmp(a),
            (Some(a), Some(b)) => a.cmp(b),
            _ if nulls_first => a.is_some().cmp(&b.is_some()),
            _ => b.is_some().cmp(&a.is_some()),
        });
        let (alone, spilled) = sort_within(budget, batches.clone(), keys.clone());
        assert!(spilled > 0, "nothing was spilled");
        for output in [alone, sort_by_range(3 * budget, batches, &keys, 3)] {
            let mut numbers = Vec::new();
            let mut found = Vec::new();
            for batch in &output {
                use arrow::array::AsArray;
                found.extend(batch.column(0).as_binary_view().iter().map(|k| k.map(<[u8]>::to_vec)));
                numbers.extend_from_slice(batch.column(1).as_primitive::<arrow::datatypes::Int64Type>().values());
            }
            assert!(found == expected, "descending {descending}, nulls first {nulls_first}");
            for (number, found) in numbers.iter().zip(found) {
                assert_eq!(key(*number), found, "a row fell apart");
            }
            numbers.sort_unstable();
            assert!(numbers.iter().copied().eq(0..rows), "a row is missing or came twice");
        }
    }
}

#[test]
fn keys_of_many_kinds_are_sorted_on_disk() {
    let budget = 200_000;
    // Random, one hot key among them, all equal, all NULL, in order, backwards.
    check_keys(20_000, budget, |n| Some(mixed(n).to_be_bytes().to_vec()));
    check_keys(20_000, budget, |n| {
        Some(if n % 2 == 0 {
            b"hot".to_vec()
        } else {
            mixed(n).to_be_bytes().to_vec()
        })
    });
    check_keys(20_000, budget, |_| Some(b"a key that is longer than a view".to_vec()));
    check_keys(20_000, budget, |_| None);
    check_keys(20_000, budget, |n| (n % 3 != 0).then(|| n.to_be_bytes().to_vec()));
    check_keys(20_000, budget, |n| Some((-n).to_be_bytes().to_vec()));
    // Keys that agree in their first bytes, and keys that differ in nothing but the zeros at their ends.
    check_keys(20_000, budget, |n| {
        Some([b"prefix prefix prefix ".as_slice(), &mixed(n).to_be_bytes()].concat())
    });
    check_keys(20_000, budget, |n| Some(vec![0; (mixed(n) % 40) as usize]));
    check_keys(20_000, budget, |n| {
        Some([vec![7; 9], vec![0; (mixed(n) % 9) as usize]].concat())
    });
}

#[test]
fn rows_much_wider_than_a_block_are_sorted_on_disk() {
    check_keys(300, 2_000_000, |n| Some(vec![mixed(n) as u8; 50_000]));
}

#[test]
fn the_budget_holds_but_for_a_batch_and_the_blocks_of_a_merge() {
    let batches: Vec<Batch> = (0..2_000)
        .map(|i| keyed(i * 100..i * 100 + 100, |n| Some(vec![mixed(n) as u8; 100])))
        .collect();
    let budget = 1 << 20;
    let keys = vec![SortKey {
        expr: ScalarExpr::column(0, &batches[0].schema()),
        descending: false,
        nulls_first: false,
    }];
    let mut harness = Harness::with_memory(Sort::new(spec(keys)), budget);
    batches.into_iter().for_each(|batch| harness.push(0, batch).unwrap());
    harness.end(0).unwrap();
    let spilled = harness.context.metrics.spilled_bytes.load(Ordering::Relaxed);
    assert!(spilled > 20_000_000, "{spilled}");
    let peak = harness.memory.peak_bytes();
    assert!(peak < budget * 3 / 2, "{peak}");
}

#[test]
fn a_sort_that_is_asked_to_spill_does() {
    let batch = || keyed(0..1000, |n| Some(mixed(n).to_be_bytes().to_vec()));
    let keys = vec![SortKey {
        expr: ScalarExpr::column(0, &batch().schema()),
        descending: false,
        nulls_first: false,
    }];
    let mut harness = Harness::with_memory(Sort::new(spec(keys)), 1_000_000);
    while harness.memory.reserved_bytes() < 700_000 {
        harness.push(0, batch()).unwrap();
    }
    let mut other = harness.context.memory.sibling();
    assert!(other.try_grow(400_000).is_err(), "the sort has not had its turn yet");
    assert!(harness.context.memory.must_spill());
    harness.push(0, batch()).unwrap();
    assert!(harness.context.metrics.spilled_bytes.load(Ordering::Relaxed) > 0);
    other.try_grow(400_000).unwrap();
}

#[test]
fn cancelling_ends_a_spill_and_leaves_no_file() {
    let batch = || keyed(0..1000, |n| Some(mixed(n).to_be_bytes().to_vec()));
    let keys = vec![SortKey {
        expr: ScalarExpr::column(0, &batch().schema()),
        descending: false,
        nulls_first: false,
    }];
    let mut harness = Harness::with_memory(Sort::new(spec(keys)), 200_000);
    while harness.context.metrics.spilled_bytes.load(Ordering::Relaxed) == 0 {
        harness.push(0, batch()).unwrap();
    }
    let directory = harness.context.spill.path().unwrap();
    assert!(directory.exists());
    harness.context.cancel.cancel();
    assert!(matches!(harness.end(0), Err(EngineError::Cancelled)));
    drop(harness);
    assert!(!directory.exists());
}
