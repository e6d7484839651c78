//! Sweeping never removes what a kept manifest needs, and leaves nothing else.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::manifests::needed;
use super::*;

fn table(version: u64, before: Option<&Manifest>) -> Vec<(String, FrozenTable)> {
    let changed = vec![rows(0..(version % 5) as i64 + 1, version as i64)];
    vec![match before {
        Some(before) => delta(&spec(), before.checkpoint, changed, &[]),
        None => full(&spec(), changed),
    }]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn kept_checkpoints_stay_whole(
        // Whether each checkpoint is whole, whether it is completed, how many are kept after it.
        steps in proptest::collection::vec((proptest::bool::weighted(0.3), proptest::bool::weighted(0.8), 1usize..4), 1..14),
    ) {
        let store = in_memory();
        let mut kept: BTreeMap<u64, Manifest> = BTreeMap::new();
        for (step, (whole, complete, keep)) in steps.into_iter().enumerate() {
            let checkpoint = step as u64 + 1;
            let before = kept.values().next_back().filter(|_| !whole).cloned();
            if !complete {
                store.write(&checkpoint_folder(checkpoint), "0-0", table(checkpoint, before.as_ref()), (0, 1)).unwrap();
                continue;
            }
            let manifest = write(&store, checkpoint, table(checkpoint, before.as_ref()), before.as_ref()).unwrap();
            kept.insert(checkpoint, manifest);
            while kept.len() > keep {
                kept.pop_first();
            }
            // One in the making, which a sweep must leave alone.
            let begun = checkpoint_folder(checkpoint + 1);
            let making = store.write(&begun, "0-9", table(99, None), (0, 1)).unwrap();
            store.retain(&kept.keys().copied().collect::<Vec<_>>()).unwrap();
            prop_assert!(store.contents(&begun).unwrap().files.contains_key(&making[0].part.file));
            store.discard(&begun).unwrap();
            prop_assert_eq!(store.list().unwrap(), kept.keys().copied().collect::<Vec<_>>());
            let mut expected: Vec<String> = kept.keys().map(|n| format!("chk-{n}/MANIFEST")).collect();
            for manifest in kept.values() {
                store.verify(manifest).unwrap();
                expected.extend(needed(manifest).into_keys().map(str::to_string));
            }
            expected.sort();
            expected.dedup();
            let files: Vec<String> = store.contents("").unwrap().files.into_keys().collect();
            prop_assert_eq!(files, expected);
        }
        store.sweep_at_start().unwrap();
        prop_assert_eq!(store.list().unwrap(), kept.keys().copied().collect::<Vec<_>>());
        for manifest in kept.values() {
            store.verify(manifest).unwrap();
        }
        store.remove_all().unwrap();
        prop_assert!(store.contents("").unwrap().files.is_empty());
    }
}

#[test]
fn a_manifest_that_cannot_be_read_protects_what_it_may_refer_to() {
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointStore::local(folder.path(), io()).unwrap();
    let first = write(&store, 1, table(1, None), None).unwrap();
    write(&store, 2, table(2, Some(&first)), Some(&first)).unwrap();
    let third = write(&store, 3, table(3, None), None).unwrap();
    let path = folder.path().join("chk-2/MANIFEST");
    let text = std::fs::read(&path).unwrap();
    std::fs::write(&path, b"garbage").unwrap();
    store.retain(&[2, 3]).unwrap();
    std::fs::write(&path, text).unwrap();
    store.verify(&store.load("chk-2").unwrap()).unwrap();
    // All else stays while the newest kept is none that could be restored.
    let sound = std::fs::read(folder.path().join("chk-3/MANIFEST")).unwrap();
    std::fs::write(folder.path().join("chk-3/MANIFEST"), b"garbage").unwrap();
    assert!(store.retain(&[3]).is_err());
    assert_eq!(store.list().unwrap(), [2, 3]);
    std::fs::write(folder.path().join("chk-3/MANIFEST"), sound).unwrap();
    // Once it is not kept it goes with all that was only its own.
    std::fs::write(&path, b"garbage").unwrap();
    store.retain(&[3]).unwrap();
    assert_eq!(store.contents("").unwrap().files.len(), 2);
    store.verify(&third).unwrap();
}

#[test]
fn a_start_removes_what_was_left_and_nothing_of_others() {
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointStore::local(folder.path(), io()).unwrap();
    let manifest = write(&store, 4, table(4, None), None).unwrap();
    store.write("chk-5", "0-0", table(5, None), (0, 1)).unwrap();
    std::fs::create_dir_all(folder.path().join("chk-6")).unwrap();
    std::fs::create_dir_all(folder.path().join("savepoint-1")).unwrap();
    for (name, _) in [("chk-6/0-0.x#1", 0), ("chk-4/0-1.y#12", 0), ("chk-4/left", 0)] {
        std::fs::write(folder.path().join(name), b"half").unwrap();
    }
    for name in ["savepoint-1/MANIFEST", "notes.txt", "chk-x", "chk-07"] {
        std::fs::write(folder.path().join(name), b"not ours").unwrap();
    }
    assert_eq!(store.sweep_at_start().unwrap(), 4);
    let mut names = entries(folder.path());
    names.sort();
    assert_eq!(names, ["chk-07", "chk-4", "chk-x", "notes.txt", "savepoint-1"]);
    assert_eq!(entries(&folder.path().join("chk-4")).len(), 2);
    store.verify(&manifest).unwrap();
    store.remove_all().unwrap();
    assert_eq!(entries(folder.path()).len(), 4);
}

fn entries(folder: &std::path::Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect()
}

#[test]
fn an_incremental_checkpoint_becomes_a_savepoint_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointStore::local(&folder.path().join("job"), io()).unwrap();
    let first = write(&store, 1, vec![full(&spec(), vec![rows(0..2000, 1)])], None).unwrap();
    let second = write(
        &store,
        2,
        vec![delta(&spec(), 1, vec![rows(0..9, 2)], &[11])],
        Some(&first),
    )
    .unwrap();
    let expected = restored(&store, &second).unwrap();
    assert_eq!(expected.len(), 1999);
    // Into a folder of its own, and into a folder among others.
    for (root, within) in [("alone", ""), ("many", "savepoint-7")] {
        let target = CheckpointStore::local(&folder.path().join(root), io()).unwrap();
        let mut copied = store.copy_into(&second, &target, within).unwrap();
        copied.kind = CheckpointKind::Savepoint;
        target.commit(within, &copied).unwrap();
        assert!(target.commit(within, &second).is_err(), "it is there already");
    }
    store.remove_all().unwrap();
    assert!(!folder.path().join("job").exists());
    std::fs::rename(folder.path().join("alone"), folder.path().join("moved")).unwrap();
    for place in ["moved", "many/savepoint-7"] {
        let place = folder.path().join(place).display().to_string();
        let located = CheckpointStore::at(&place, io()).unwrap().locate().unwrap();
        assert_eq!(located.manifest.kind, CheckpointKind::Savepoint);
        assert_eq!(restored(&located.store, &located.manifest).unwrap(), expected);
    }
    let damaged = folder.path().join("moved");
    let file = entries(&damaged).into_iter().find(|name| name != MANIFEST).unwrap();
    std::fs::remove_file(damaged.join(file)).unwrap();
    let error = CheckpointStore::local(&damaged, io()).unwrap().locate().unwrap_err();
    assert!(error.to_string().contains("it is missing"), "{error}");
}
