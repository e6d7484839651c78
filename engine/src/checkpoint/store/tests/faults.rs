//! A store that fails, delays, doubles and cuts.

use std::time::Duration;

use super::*;
use crate::checkpoint::faulty::{Fault, FaultyStore, Request};

const ALL: [Request; 8] = [
    Request::Put,
    Request::StartParts,
    Request::PutPart,
    Request::CompleteParts,
    Request::Get,
    Request::Delete,
    Request::List,
    Request::Copy,
];

fn faulty() -> (FaultyStore, CheckpointStore) {
    let faulty = FaultyStore::new(Arc::new(InMemory::new()));
    let store = open(Arc::new(faulty.clone()));
    (faulty, store)
}

/// Rows that need an upload in parts.
fn large() -> Batch {
    let texts: StringArray = (0..40).map(|n| Some(format!("{n:02}").repeat(500_000))).collect();
    let keys: ArrayRef = Arc::new(Int64Array::from_iter_values(0..40));
    Batch::try_new(spec().schema, vec![keys, Arc::new(texts)]).unwrap()
}

#[test]
fn what_fails_is_said_and_nothing_is_visible() {
    for request in [
        Request::Put,
        Request::StartParts,
        Request::PutPart,
        Request::CompleteParts,
    ] {
        let (faulty, store) = faulty();
        faulty.at(request, 0, Fault::Fail);
        let batch = match request {
            Request::Put => rows(0..3, 1),
            _ => large(),
        };
        let error = store
            .write("chk-1", "0-0", vec![full(&spec(), vec![batch])], (0, 1))
            .unwrap_err();
        let text = error.to_string();
        assert!(text.starts_with("mem://bucket/jobs/job/chk-1/0-0."), "{text}");
        assert!(text.contains(&format!("{request:?} was told to fail")), "{text}");
        assert_eq!(faulty.fired(), 1);
        assert!(store.contents("").unwrap().files.is_empty(), "{request:?}");
    }
}

#[test]
fn everything_twice_is_everything_once() {
    let (faulty, store) = faulty();
    for request in ALL {
        faulty.always(request, Fault::Double);
    }
    let first = write(&store, 1, vec![full(&spec(), vec![large()])], None).unwrap();
    let second = write(
        &store,
        2,
        vec![delta(&spec(), 1, vec![rows(3..5, 2)], &[7])],
        Some(&first),
    )
    .unwrap();
    assert_eq!(restored(&store, &second).unwrap().len(), 39);
    assert_eq!(store.retain(&[2]).unwrap(), 1);
    assert_eq!(store.latest().unwrap().unwrap().0, second);
    let copy = store.copy_into(&second, &store, "savepoint").unwrap();
    store.commit("savepoint", &copy).unwrap();
    store.remove_all().unwrap();
    assert_eq!(restored(&store, &copy).unwrap().len(), 39);
    assert!(faulty.fired() > 20);
}

#[test]
fn everything_late_is_everything() {
    let (faulty, store) = faulty();
    for request in ALL {
        faulty.always(request, Fault::Delay(Duration::from_millis(3)));
    }
    let manifest = write(&store, 1, vec![full(&spec(), vec![large()])], None).unwrap();
    assert_eq!(restored(&store, &manifest).unwrap(), pairs(&large()));
    store.retain(&[1]).unwrap();
    assert!(faulty.fired() > 5);
}

#[test]
fn an_answer_that_is_lost_leaves_a_whole_checkpoint() {
    let (faulty, store) = faulty();
    let folder = "chk-1";
    let written = store
        .write(folder, "0-0", vec![full(&spec(), vec![rows(0..9, 1)])], (0, 1))
        .unwrap();
    let manifest = manifest_of(1, &written, None);
    faulty.at(Request::Put, 0, Fault::Lose);
    store.commit(folder, &manifest).unwrap();
    assert_eq!(store.latest().unwrap().unwrap().0, manifest);
    // A second time is no conflict with oneself.
    store.commit(folder, &manifest).unwrap();
}

#[test]
fn files_that_were_cut_make_no_checkpoint() {
    for (request, batch) in [(Request::Put, rows(0..9, 1)), (Request::PutPart, large())] {
        let (faulty, store) = faulty();
        faulty.at(request, 0, Fault::Truncate(10));
        let folder = "chk-1";
        let written = store
            .write(folder, "0-0", vec![full(&spec(), vec![batch])], (0, 1))
            .unwrap();
        let error = store.commit(folder, &manifest_of(1, &written, None)).unwrap_err();
        assert!(error.to_string().contains("bytes and should have"), "{error}");
        assert!(store.latest().unwrap().is_none());
        store.discard(folder).unwrap();
        assert!(store.contents("").unwrap().files.is_empty());
    }
}

#[test]
fn a_manifest_that_was_cut_is_found_out_at_once() {
    let (faulty, store) = faulty();
    let first = write(&store, 1, vec![full(&spec(), vec![rows(0..9, 1)])], None).unwrap();
    let written = store
        .write("chk-2", "0-0", vec![full(&spec(), vec![rows(0..9, 2)])], (0, 1))
        .unwrap();
    faulty.at(Request::Put, 0, Fault::Truncate(10));
    let error = store.commit("chk-2", &manifest_of(2, &written, None)).unwrap_err();
    assert!(error.to_string().contains("did not keep it"), "{error}");
    assert!(store.retain(&[2]).is_err());
    assert_eq!(store.latest().unwrap().unwrap().0, first);
}

#[test]
fn a_store_that_fails_is_no_reason_for_an_older_checkpoint() {
    let (faulty, store) = faulty();
    for checkpoint in 1..=2 {
        write(&store, checkpoint, vec![full(&spec(), vec![rows(0..9, 1)])], None).unwrap();
    }
    faulty.at(Request::Get, 0, Fault::Fail);
    let error = store.latest().unwrap_err();
    assert!(matches!(error, EngineError::Io { .. }), "{error}");
    faulty.at(Request::List, 0, Fault::Fail);
    assert!(matches!(store.latest().unwrap_err(), EngineError::Io { .. }));
    let manifest = store.latest().unwrap().unwrap().0;
    assert_eq!(manifest.checkpoint, 2);
    faulty.at(Request::Get, 0, Fault::Truncate(5));
    let error = restored(&store, &manifest).unwrap_err();
    assert!(error.to_string().contains("reading it ended at byte"), "{error}");
    // The range, then the length that is asked for to say why.
    faulty.at(Request::Get, 0, Fault::Fail);
    let error = restored(&store, &manifest).unwrap_err();
    assert!(matches!(error, EngineError::Io { .. }), "{error}");
    assert_eq!(restored(&store, &manifest).unwrap(), pairs(&rows(0..9, 1)));
}

/// A job's life up to the first error; the checkpoints that were said to be complete.
fn live(store: &CheckpointStore) -> (Vec<u64>, Result<()>) {
    let mut complete = vec![];
    let mut lived = || -> Result<()> {
        store.sweep_at_start()?;
        let mut before = store.latest()?.map(|(manifest, _)| manifest);
        let first = store.next_checkpoint()?;
        for checkpoint in first..first + 3 {
            let whole = checkpoint % 2 == 1 || before.is_none();
            let version = checkpoint as i64;
            let table = match (&before, whole) {
                (Some(before), false) => delta(&spec(), before.checkpoint, vec![rows(0..20, version)], &[]),
                _ => full(&spec(), vec![rows(0..20, version)]),
            };
            let manifest = write(store, checkpoint, vec![table], before.as_ref())?;
            complete.push(checkpoint);
            store.retain(&[checkpoint])?;
            before = Some(manifest);
        }
        Ok(())
    };
    let result = lived();
    (complete, result)
}

#[test]
fn any_request_may_fail_or_lose_its_answer() {
    let mut fired = 0;
    for request in [Request::Put, Request::Get, Request::Delete, Request::List] {
        for fault in [Fault::Fail, Fault::Lose, Fault::Truncate(3)] {
            for number in 0..20 {
                let (faulty, store) = faulty();
                let (complete, first) = live(&store);
                first.unwrap();
                assert_eq!(complete, [1, 2, 3]);
                let before = faulty.fired();
                faulty.at(request, number, fault);
                // As a new process would be.
                let store = open(Arc::new(faulty.clone()));
                let (complete, _) = live(&store);
                fired += faulty.fired() - before;
                faulty.heal();
                let (manifest, passed_over) = store.latest().unwrap().unwrap();
                let what = format!("{request:?} {number} {fault:?}: {passed_over:?}");
                assert!(manifest.checkpoint >= complete.last().copied().unwrap_or(3), "{what}");
                let found = restored(&store, &manifest).unwrap();
                assert_eq!(found, pairs(&rows(0..20, manifest.checkpoint as i64)), "{what}");
                let (_, again) = live(&open(Arc::new(faulty.clone())));
                again.unwrap();
            }
        }
    }
    assert!(fired > 100, "{fired} faults");
}
