//! States that expire: seen no more, not in snapshots, and in time not in memory.

use super::*;
use crate::operator::process::cells::{Cells, StateColumn};
use crate::operator::process::contents::{Content, Held, Moment};

const MS: fn(u64) -> Duration = Duration::from_millis;

#[test]
fn each_kind_of_state_expires() {
    let mut states = StateDeclarations::new();
    let value: ValueState<i64> = states.with_ttl(Ttl::on_write(MS(10))).value("value");
    let list: ListState<i64> = states.with_ttl(Ttl::on_write(MS(10))).list("list");
    let map: MapState<i64, i64> = states.with_ttl(Ttl::on_write(MS(10))).map("map");
    let sum = states
        .with_ttl(Ttl::on_write(MS(10)))
        .reducing("sum", |a: &i64, b: &i64| a + b);
    let column = states.with_ttl(Ttl::on_write(MS(10))).column("column", DataType::Int64);
    let kept: ValueState<i64> = states.value("kept");
    let mut stored = open(&states);
    let key: ArrayRef = Arc::new(Int64Array::from(vec![5]));
    let mut numbers = Vec::new();
    stored.keys.number_all(&[key], 1, &mut numbers).unwrap();
    let key = numbers[0];
    for now in [0, 6] {
        stored.set_time(now);
        value.set(&mut stored, key, now).unwrap();
        list.push(&mut stored, key, now).unwrap();
        map.put(&mut stored, key, now, now).unwrap();
        sum.add(&mut stored, key, 1).unwrap();
        kept.set(&mut stored, key, now).unwrap();
        let values: ArrayRef = Arc::new(Int64Array::from(vec![now]));
        column.write(&mut stored, &numbers, &values).unwrap();
    }
    let look = |stored: &mut States| {
        let map: Vec<i64> = map.entries(stored, key).unwrap().map(|(entry, _)| *entry).collect();
        let column = column.read(stored, &[key]).unwrap();
        let column = column.as_primitive::<Int64Type>().iter().next().unwrap();
        (
            value.get(stored, key).unwrap().copied(),
            list.get(stored, key).unwrap().to_vec(),
            map,
            sum.get(stored, key).unwrap().copied(),
            column,
        )
    };
    stored.set_time(9);
    assert_eq!(look(&mut stored), (Some(6), vec![0, 6], vec![0, 6], Some(2), Some(6)));
    // Items and entries expire each for itself.
    stored.set_time(10);
    assert_eq!(look(&mut stored), (Some(6), vec![6], vec![6], Some(2), Some(6)));
    stored.set_time(16);
    assert_eq!(look(&mut stored), (None, vec![], vec![], None, None));
    assert_eq!(map.get(&stored, key, &6).unwrap(), None);
    assert_eq!(map.remove(&mut stored, key, &6).unwrap(), None);
    assert_eq!(list.take(&mut stored, key).unwrap(), Vec::<i64>::new());
    // What has expired is not added to.
    sum.add(&mut stored, key, 5).unwrap();
    assert_eq!(sum.get(&stored, key).unwrap(), Some(&5));
    assert_eq!(kept.get(&stored, key).unwrap(), Some(&6));
}

#[test]
fn reading_prolongs_a_life_if_it_counts() {
    let ttl = Ttl::on_read_and_write(MS(10));
    let mut states = StateDeclarations::new();
    let value: ValueState<i64> = states.with_ttl(ttl).value("value");
    let list: ListState<i64> = states.with_ttl(ttl).list("list");
    let map: MapState<i64, i64> = states.with_ttl(ttl).map("map");
    let mut stored = open(&states);
    stored.set_time(0);
    value.set(&mut stored, 0, 1).unwrap();
    list.push(&mut stored, 0, 1).unwrap();
    map.put(&mut stored, 0, 1, 1).unwrap();
    map.put(&mut stored, 0, 2, 2).unwrap();
    for now in [9, 18, 27] {
        stored.set_time(now);
        assert_eq!(value.get(&stored, 0).unwrap(), Some(&1), "at {now}");
        assert_eq!(list.get(&stored, 0).unwrap(), [1]);
        assert_eq!(map.get(&stored, 0, &1).unwrap(), Some(&1));
    }
    assert_eq!(map.entries(&stored, 0).unwrap().count(), 1, "nobody read the other");
    stored.set_time(36);
    list.push(&mut stored, 0, 2).unwrap();
    stored.set_time(38);
    assert_eq!(list.get(&stored, 0).unwrap(), [2], "pushing is not reading");
    assert_eq!(value.get(&stored, 0).unwrap(), None);
}

#[test]
fn what_has_expired_is_swept() {
    let ttl = Ttl::on_write(MS(10));
    let moment = |now_ms| Moment {
        ttl: Some(ttl),
        now_ms,
        epoch: 0,
    };
    let mut cells = Cells::<Held<String>>::new(Some(ttl));
    for key in 0..3000 {
        cells
            .at(key)
            .set(Some("text".to_string()), &moment(key as i64 / 1000 * 5));
    }
    let freed: usize = (0..4).map(|_| cells.sweep(1000, &moment(15))).sum();
    let left = (0..3000).filter(|key| !cells.get(*key).unwrap().is_empty()).count();
    assert_eq!((left, freed), (1000, 2000 * (size_of::<String>() + 4)));
}

#[test]
fn a_broadcast_state_cannot_expire() {
    let mut states = StateDeclarations::new();
    let _: BroadcastState<i64, i64> = states.with_ttl(Ttl::on_write(MS(10))).broadcast("rules");
    let error = states.check().unwrap_err().to_string();
    assert!(error.contains("'rules' cannot expire"), "{error}");
}
