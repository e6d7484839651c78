//! Who is handed which rows, whatever the parallelism was.

use proptest::prelude::*;

use super::*;
use crate::checkpoint::faulty::{FaultyStore, Request};
use crate::data::Batch;
use crate::state::key_groups;
use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;

/// The rows of `batch` that belong to a subtask.
fn own_rows(batch: &Batch, subtask: usize, parallelism: usize) -> Batch {
    let Scope::Keyed(by) = spec().scope else { unreachable!() };
    let own = crate::state::key_groups_of(subtask, parallelism);
    let mask = key_groups(&by, batch)
        .unwrap()
        .into_iter()
        .map(|group| Some(own.contains(&group)));
    filter_record_batch(batch, &mask.collect::<BooleanArray>()).unwrap()
}

/// A checkpoint of `parallelism` subtasks.
fn write_by(
    store: &CheckpointStore,
    checkpoint: u64,
    parallelism: usize,
    table: impl Fn(usize) -> (String, FrozenTable),
    before: Option<&Manifest>,
) -> Manifest {
    let folder = checkpoint_folder(checkpoint);
    let subtasks = 0..parallelism;
    let written = subtasks.flat_map(|subtask| {
        let file = format!("0-{subtask}");
        store
            .write(&folder, &file, vec![table(subtask)], (subtask, parallelism))
            .unwrap()
    });
    let manifest = manifest_of(checkpoint, &written.collect::<Vec<_>>(), before);
    store.commit(&folder, &manifest).unwrap();
    manifest
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn keyed_rows_have_one_owner_after_any_rescaling(
        before in 1usize..9,
        between in 1usize..9,
        after in 1usize..9,
        keys in 0i64..300,
    ) {
        let store = in_memory();
        let (old, new) = (rows(0..keys, 1), rows(keys / 2..keys + 10, 2));
        let gone: Vec<i64> = (0..keys / 2).filter(|key| key % 3 == 0).collect();
        let whole = write_by(&store, 1, before, |subtask| full(&spec(), vec![own_rows(&old, subtask, before)]), None);
        let changed = |subtask: usize| {
            let deleted = own_rows(&rows_of(&gone), subtask, between);
            let deleted: Vec<i64> = pairs(&deleted).into_iter().map(|(key, _)| key).collect();
            delta(&spec(), 1, vec![own_rows(&new, subtask, between)], &deleted)
        };
        let manifest = write_by(&store, 2, between, changed, Some(&whole));
        let mut found = Vec::new();
        for subtask in 0..after {
            found.extend(restored_by(&store, &manifest, &spec(), (subtask, after)).unwrap());
        }
        found.sort();
        let mut expected = pairs(&rows(0..keys / 2, 1));
        expected.retain(|(key, _)| !gone.contains(key));
        expected.extend(pairs(&new));
        expected.sort();
        prop_assert_eq!(found, expected);
    }
}

fn rows_of(keys: &[i64]) -> Batch {
    let batches: Vec<Batch> = keys.iter().map(|key| rows(*key..key + 1, 0)).collect();
    arrow::compute::concat_batches(&spec().schema, &batches).unwrap()
}

#[test]
fn parts_that_cannot_matter_are_not_read() {
    let faulty = FaultyStore::new(Arc::new(InMemory::new()));
    let store = open(Arc::new(faulty.clone()));
    let all = rows(0..1000, 1);
    let manifest = write_by(
        &store,
        1,
        8,
        |subtask| full(&spec(), vec![own_rows(&all, subtask, 8)]),
        None,
    );
    let before = faulty.seen(Request::Get);
    let restored = store.restored(&manifest, &manifest.operators[0], 3, 4).unwrap();
    assert_eq!(
        faulty.seen(Request::Get),
        before,
        "nothing is read before it is asked for"
    );
    drop(restored);
    let own = restored_by(&store, &manifest, &spec(), (3, 4)).unwrap();
    assert_eq!(faulty.seen(Request::Get) - before, 2);
    let mut expected = pairs(&own_rows(&all, 3, 4));
    expected.sort();
    assert_eq!(own, expected);
}

#[test]
fn union_tables_go_to_all_and_broadcast_tables_once() {
    let schema = spec().schema;
    for (spec, expected) in [
        (TableSpec::union("t", schema.clone()), 4),
        (TableSpec::broadcast("t", schema), 2),
    ] {
        let store = in_memory();
        let manifest = write_by(&store, 1, 2, |_| full(&spec, vec![rows(0..2, 1)]), None);
        for subtask in 0..3 {
            let found = restored_by(&store, &manifest, &spec, (subtask, 3)).unwrap();
            assert_eq!(found.len(), expected, "{:?}", spec.scope);
        }
    }
}

#[test]
fn other_key_groups_are_refused() {
    let store = in_memory();
    let mut manifest = write(&store, 1, vec![full(&spec(), vec![rows(0..3, 1)])], None).unwrap();
    manifest.max_parallelism = 256;
    let error = store.restored(&manifest, &manifest.operators[0], 0, 1).err().unwrap();
    assert!(
        error.to_string().contains("has 256 key groups, this program has 128"),
        "{error}"
    );
}
