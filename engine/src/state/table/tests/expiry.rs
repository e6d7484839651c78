//! What expires is never seen again, wherever it lies.

use super::*;

const MS: fn(u64) -> Duration = Duration::from_millis;

#[test]
fn a_state_expires_after_it_was_written() {
    let mut table = table(Some(Ttl::on_write(MS(10))));
    put(&mut table, &some([1, 2]), &[1, 2]);
    table.set_time(9);
    put(&mut table, &some([2]), &[3]);
    assert_eq!(get(&mut table, &some([1, 2])), some([1, 3]));
    table.set_time(10);
    assert_eq!(get(&mut table, &some([1, 2])), [None, Some(3)]);
    let rows: Vec<_> = table.rows().collect::<Result<_>>().unwrap();
    assert_eq!(rows.iter().map(Batch::num_rows).sum::<usize>(), 1);
    // A new one under the same key has nothing of the old one.
    let mut slots = Vec::new();
    table.locate(&keys(&some([1])), 1, &mut slots).unwrap();
    assert_eq!(table.read(&slots, 0).unwrap().null_count(), 1);
    table.set_time(19);
    assert_eq!(table.resident(), 2);
    table.sweep(1);
    table.sweep(1);
    assert_eq!(table.resident(), 1, "the other was touched at 10");
    assert_eq!(table.slots().collect::<Vec<_>>(), slots);
    table.set_time(20);
    table.sweep(5000);
    assert_eq!(table.resident(), 0);
}

#[test]
fn reading_prolongs_a_life_if_it_counts() {
    let mut table = table(Some(Ttl::on_read_and_write(MS(10))));
    put(&mut table, &some([1, 2]), &[1, 2]);
    for now in [9, 18, 27] {
        table.set_time(now);
        assert_eq!(get(&mut table, &some([1])), some([1]));
    }
    assert_eq!(get(&mut table, &some([1, 2])), [Some(1), None]);
    // What was read is in the delta: it says when.
    let _base = snapshot(&mut table, 1, None);
    table.set_time(30);
    assert_eq!(get(&mut table, &some([1])), some([1]));
    let delta = written(snapshot(&mut table, 2, Some(1)));
    assert_eq!(delta.rows[0].column(3).as_primitive::<Int64Type>().values(), &[30]);
}

#[test]
fn expiry_goes_on_after_a_restore_and_on_disk() {
    let ttl = Some(Ttl::on_write(MS(100)));
    let mut table = table(ttl);
    let mut disk = Disk::new(200 << 10);
    for start in (0..20_000).step_by(1000) {
        table.set_time(start / 1000);
        put(&mut table, &some(start..start + 1000), &[start; 1000]);
        disk.settle(&mut table);
    }
    assert!(!table.runs.is_empty());
    table.set_time(105);
    let base = written(snapshot(&mut table, 1, None));
    assert_eq!(base.rows.iter().map(Batch::num_rows).sum::<usize>(), 14_000);
    assert_eq!(get(&mut table, &some([0, 5999, 6000])), [None, None, Some(6000)]);
    let mut other = Disk::new(200 << 10);
    let mut back = restored(std::slice::from_ref(&base), ttl, 110, &mut other);
    assert_eq!(get(&mut back, &some([10_999, 11_000])), [None, Some(11_000)]);
    back.set_time(119);
    assert_eq!(back.rows().count(), 0);
    let back = restored(&[base], ttl, 1000, &mut other);
    assert_eq!(back.resident(), 0);
}

#[test]
fn a_time_to_live_that_is_new_begins_at_the_restore() {
    let mut table = table(None);
    put(&mut table, &some([1]), &[1]);
    let base = written(snapshot(&mut table, 1, None));
    let mut restored = Restored::new("op", 1, 0, 1);
    let run = Run {
        schema: spec().schema,
        version: 1,
        rows: Box::new(base.rows.into_iter().map(Ok)),
        deleted: None,
        is_own: true,
    };
    restored.add("t", run);
    let mut disk = Disk::new(usize::MAX);
    let mut table = super::table(Some(Ttl::on_write(MS(10))));
    table.set_time(500);
    table
        .restore(&mut restored, &mut disk.reservation, &disk.spill)
        .unwrap();
    table.set_time(509);
    assert_eq!(get(&mut table, &some([1])), some([1]));
    table.set_time(510);
    assert_eq!(get(&mut table, &some([1])), [None]);
}
