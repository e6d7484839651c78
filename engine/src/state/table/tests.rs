//! Tables against a map that does the same a row at a time.

mod expiry;
mod model;
mod types;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array, StringArray};
use arrow::datatypes::{DataType, Int64Type};
use thalweg_memory::{MemoryManager, Reservation, SpillCompression, SpillDirectory};

use super::*;
use crate::data::Batch;
use crate::state::{FrozenTable, Restored, Run, Snapshot, SnapshotRequest, columns};

/// A number and a text by a number.
fn spec() -> TableSpec {
    let schema = columns([
        ("key", DataType::Int64),
        ("number", DataType::Int64),
        ("text", DataType::Utf8),
    ]);
    TableSpec::by_key("t", schema, 1)
}

fn table(ttl: Option<Ttl>) -> KeyedTable {
    let mut table = KeyedTable::new(spec(), ttl).unwrap();
    table.set_time(0);
    table
}

fn keys(keys: &[Option<i64>]) -> [ArrayRef; 1] {
    [Arc::new(Int64Array::from(keys.to_vec()))]
}

fn some(values: impl IntoIterator<Item = i64>) -> Vec<Option<i64>> {
    values.into_iter().map(Some).collect()
}

/// A text that is short for some numbers and long for others.
fn text_of(number: i64) -> String {
    "x".repeat((number.unsigned_abs() % 40) as usize) + &number.to_string()
}

fn put(table: &mut KeyedTable, of: &[Option<i64>], numbers: &[i64]) {
    let mut slots = Vec::new();
    table.locate(&keys(of), of.len(), &mut slots).unwrap();
    let texts: StringArray = numbers.iter().map(|number| Some(text_of(*number))).collect();
    let numbers: ArrayRef = Arc::new(Int64Array::from(numbers.to_vec()));
    table.write(&slots, 0, &numbers).unwrap();
    table.write(&slots, 1, &(Arc::new(texts) as ArrayRef)).unwrap();
}

fn get(table: &mut KeyedTable, of: &[Option<i64>]) -> Vec<Option<i64>> {
    let mut slots = Vec::new();
    table.find(&keys(of), of.len(), &mut slots).unwrap();
    let numbers = table.read(&slots, 0).unwrap();
    let texts = table.read(&slots, 1).unwrap();
    let numbers: Vec<_> = numbers.as_primitive::<Int64Type>().iter().collect();
    let wanted: Vec<_> = numbers.iter().map(|number| number.map(text_of)).collect();
    let texts: Vec<_> = texts
        .as_string::<i32>()
        .iter()
        .map(|text| text.map(str::to_string))
        .collect();
    assert_eq!(texts, wanted);
    numbers
}

fn remove(table: &mut KeyedTable, of: &[Option<i64>]) {
    let mut slots = Vec::new();
    table.find(&keys(of), of.len(), &mut slots).unwrap();
    table.remove(&slots);
}

fn pairs(rows: impl IntoIterator<Item = Result<Batch>>) -> Vec<(Option<i64>, Option<i64>)> {
    let mut pairs = Vec::new();
    for rows in rows {
        let rows = rows.unwrap();
        let column = |at: usize| rows.column(at).as_primitive::<Int64Type>().iter();
        assert!(rows.num_rows() > 0);
        pairs.extend(column(0).zip(column(1)));
    }
    pairs.sort_unstable();
    pairs
}

/// Where tables spill.
struct Disk {
    memory: MemoryManager,
    reservation: Reservation,
    spill: SpillDirectory,
}

impl Disk {
    fn new(budget_bytes: usize) -> Self {
        let memory = MemoryManager::new(budget_bytes);
        Self {
            reservation: memory.job().spillable("table"),
            memory,
            spill: SpillDirectory::new(std::env::temp_dir(), SpillCompression::None),
        }
    }

    fn settle(&mut self, table: &mut KeyedTable) -> u64 {
        table.settle(&mut self.reservation, &self.spill).unwrap()
    }
}

fn snapshot(table: &mut KeyedTable, checkpoint: u64, since: Option<u64>) -> FrozenTable {
    let mut snapshot = Snapshot::new(SnapshotRequest { checkpoint, since });
    table.snapshot(&mut snapshot);
    snapshot.into_tables().swap_remove(0)
}

/// A stored run.
#[derive(Clone)]
struct Written {
    since: Option<u64>,
    rows: Vec<Batch>,
    deleted: Vec<Batch>,
}

fn written(table: FrozenTable) -> Written {
    Written {
        since: table.since,
        rows: table.rows.collect::<Result<_>>().unwrap(),
        deleted: table
            .deleted
            .map_or(Ok(Vec::new()), Iterator::collect::<Result<_>>)
            .unwrap(),
    }
}

/// What the runs since the last whole one come to.
fn restored(chain: &[Written], ttl: Option<Ttl>, now_ms: i64, disk: &mut Disk) -> KeyedTable {
    let mut restored = Restored::new("op", chain.len() as u64, 0, 1);
    let whole = chain.iter().rposition(|run| run.since.is_none()).unwrap();
    let mut table = KeyedTable::new(spec(), ttl).unwrap();
    table.set_time(now_ms);
    for run in chain[whole..].iter().cloned() {
        restored.add(
            "t",
            Run {
                schema: Arc::clone(&table.spec().schema),
                version: 1,
                rows: Box::new(run.rows.into_iter().map(Ok)),
                deleted: Some(Box::new(run.deleted.into_iter().map(Ok))),
                is_own: false,
            },
        );
    }
    table
        .restore(&mut restored, &mut disk.reservation, &disk.spill)
        .unwrap();
    table
}

#[test]
fn a_snapshot_is_of_its_moment() {
    let mut table = table(None);
    put(&mut table, &some(0..5000), &(0..5000).collect::<Vec<_>>());
    let first = snapshot(&mut table, 1, None);
    put(&mut table, &some(0..2500), &[7; 2500]);
    remove(&mut table, &some(4000..5000));
    put(&mut table, &some(6000..7000), &[8; 1000]);
    let second = snapshot(&mut table, 2, Some(1));
    put(&mut table, &some(4000..4500), &[9; 500]);
    remove(&mut table, &some(0..10));
    assert_eq!(
        pairs(first.rows),
        (0..5000).map(|n| (Some(n), Some(n))).collect::<Vec<_>>()
    );
    let changed = pairs(second.rows);
    assert_eq!(changed.len(), 3500, "and nothing else");
    assert!(changed.iter().all(|(key, value)| match key.unwrap() {
        key if key < 2500 => *value == Some(7),
        _ => *value == Some(8),
    }));
    let gone: usize = second.deleted.unwrap().map(|keys| keys.unwrap().num_rows()).sum();
    assert_eq!(gone, 1000);
    let third = written(snapshot(&mut table, 3, Some(2)));
    assert_eq!(third.rows.iter().map(Batch::num_rows).sum::<usize>(), 500);
    assert_eq!(third.deleted.iter().map(Batch::num_rows).sum::<usize>(), 10);
    let nothing = written(snapshot(&mut table, 4, Some(3)));
    assert!(nothing.rows.is_empty() && nothing.deleted.is_empty() && nothing.since == Some(3));
    // Of a checkpoint that it does not know it tells everything.
    assert_eq!(snapshot(&mut table, 5, Some(77)).since, None);
}

#[test]
fn keys_that_are_gone_leave_nothing_behind() {
    let mut table = table(None);
    for round in 0..50 {
        let of = some(round * 1000..(round + 1) * 1000);
        put(&mut table, &of, &[round; 1000]);
        remove(&mut table, &of);
        // Every second checkpoint is built upon.
        let _ = snapshot(
            &mut table,
            round as u64 + 1,
            (round > 1).then_some(round as u64 / 2 * 2),
        );
    }
    assert_eq!(table.resident(), 0);
    assert!(table.slot_bound() <= 5000, "{} slots", table.slot_bound());
    assert!(table.rows().next().is_none());
    let mut never = super::tests::table(None);
    put(&mut never, &some(0..10), &[1; 10]);
    remove(&mut never, &some(0..10));
    put(&mut never, &some(10..20), &[1; 10]);
    assert_eq!(never.slot_bound(), 10, "without checkpoints nobody need be told");
}

#[test]
fn values_that_are_written_over_and_over_do_not_pile_up() {
    let mut table = table(None);
    let mut disk = Disk::new(usize::MAX);
    let of = some(0..2000);
    for round in 0..200 {
        put(&mut table, &of, &(round..round + 2000).collect::<Vec<_>>());
        let _held = snapshot(&mut table, round as u64, None);
        put(&mut table, &of, &(round + 1..round + 2001).collect::<Vec<_>>());
        disk.settle(&mut table);
    }
    assert!(
        disk.memory.reserved_bytes() < 2 << 20,
        "{}",
        disk.memory.reserved_bytes()
    );
    assert_eq!(get(&mut table, &some([0, 1999])), some([200, 2199]));
}

#[test]
fn a_table_without_a_key_has_one_row() {
    let schema = columns([("value", DataType::Int64)]);
    let mut table = KeyedTable::new(TableSpec::by_key("t", schema, 0), None).unwrap();
    let mut slots = Vec::new();
    table.locate(&[], 3, &mut slots).unwrap();
    assert_eq!(slots, [0, 0, 0]);
    table
        .write(&slots, 0, &(Arc::new(Int64Array::from(vec![1, 2, 3])) as ArrayRef))
        .unwrap();
    let read = table.read(&slots[..1], 0).unwrap();
    assert_eq!(read.as_primitive::<Int64Type>().value(0), 3);
    let frozen = snapshot(&mut table, 2, Some(1));
    assert!(frozen.since.is_none() && frozen.rows.count() == 1);
}

#[test]
fn what_does_not_fit_goes_to_disk_and_comes_back() {
    let mut table = table(None);
    let mut disk = Disk::new(400 << 10);
    let mut spilled = 0;
    for start in (0..40_000).step_by(1000) {
        let of: Vec<i64> = (start..start + 1000).collect();
        put(&mut table, &some(of.iter().copied()), &of);
        spilled += disk.settle(&mut table);
    }
    assert!(
        spilled > 0 && table.resident() < 10_000,
        "{} in memory",
        table.resident()
    );
    assert!(table.runs.len() < 12, "{} runs", table.runs.len());
    assert_eq!(
        get(&mut table, &some([5, 39_999, 40_000, 5])),
        [Some(5), Some(39_999), None, Some(5)]
    );
    remove(&mut table, &some(0..100));
    put(&mut table, &some(100..200), &[-1; 100]);
    disk.settle(&mut table);
    assert_eq!(get(&mut table, &some([99, 100, 200])), [None, Some(-1), Some(200)]);
    let rows = pairs(table.rows());
    assert_eq!(rows.len(), 39_900);
    let base = written(snapshot(&mut table, 1, None));
    put(&mut table, &some(300..400), &[-2; 100]);
    remove(&mut table, &some(500..600));
    // Push it all out before the delta is asked for.
    for start in (50_000..70_000).step_by(1000) {
        put(&mut table, &some(start..start + 1000), &[3; 1000]);
        disk.settle(&mut table);
    }
    let delta = written(snapshot(&mut table, 2, Some(1)));
    assert_eq!(delta.rows.iter().map(Batch::num_rows).sum::<usize>(), 20_100);
    assert_eq!(delta.deleted.iter().map(Batch::num_rows).sum::<usize>(), 100);
    let mut other = Disk::new(400 << 10);
    let mut back = restored(&[base, delta], None, 0, &mut other);
    assert_eq!(pairs(back.rows()), pairs(table.rows()));
    assert!(!back.runs.is_empty(), "it does not fit there either");
}

#[test]
fn what_a_snapshot_holds_is_counted() {
    let mut table = table(None);
    put(&mut table, &some(0..20_000), &(0..20_000).collect::<Vec<_>>());
    let frozen = snapshot(&mut table, 1, None);
    let before = table.size();
    put(&mut table, &some(0..20_000), &[1; 20_000]);
    assert!(table.size() > before + 20_000 * 8, "the pages are there twice");
    table.evict(0, &Disk::new(1).spill).unwrap();
    assert!(table.size() > before / 2, "and go when the snapshot does");
    drop(frozen);
    assert!(table.size() < before / 4, "{} of {before}", table.size());
}

#[test]
#[ignore = "takes time: prints nanoseconds per key"]
#[expect(clippy::disallowed_methods, reason = "it measures")]
fn nanoseconds_per_key() {
    for total in [1_000_000i64, 10_000_000] {
        let mut table = table(None);
        let mut slots = Vec::new();
        let batch = |n: i64| some((0..8192).map(|row| (n * 8192 + row).wrapping_mul(0x9E37_79B9) % total));
        let numbers: ArrayRef = Arc::new(Int64Array::from(vec![1; 8192]));
        for phase in ["fill", "update"] {
            let start = std::time::Instant::now();
            for n in 0..total / 8192 {
                table.locate(&keys(&batch(n)), 8192, &mut slots).unwrap();
                table.write(&slots, 0, &numbers).unwrap();
            }
            let ns = start.elapsed().as_nanos() as f64 / total as f64;
            println!(
                "{phase} {total} keys: {ns:.0} ns per key, {} bytes per key",
                table.size() / total as usize
            );
        }
        let start = std::time::Instant::now();
        let frozen = snapshot(&mut table, 1, None);
        println!("snapshot of {total} keys: {:?}", start.elapsed());
        drop(frozen);
    }
}
