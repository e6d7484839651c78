//! Two processes that believe they run the same job.

use super::*;

fn table(version: i64) -> Vec<(String, FrozenTable)> {
    vec![full(&spec(), vec![rows(0..10, version)])]
}

#[test]
fn only_one_completes_a_checkpoint_and_the_other_is_told_who() {
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (one, other) = (open(objects.clone()), open(objects));
    let written = [
        one.write("chk-1", "0-0", table(1), (0, 1)),
        other.write("chk-1", "0-0", table(2), (0, 1)),
    ];
    let [ours, theirs] = written.map(|written| manifest_of(1, &written.unwrap(), None));
    one.commit("chk-1", &ours).unwrap();
    let error = other.commit("chk-1", &theirs).unwrap_err().to_string();
    let process = format!("process {}", std::process::id());
    assert!(error.contains(&process) && error.contains(&one.writer.mark), "{error}");
    assert!(error.contains("two processes run this job"), "{error}");
    // Giving up must not take the other's with it.
    other.discard("chk-1").unwrap();
    let (manifest, passed_over) = one.latest().unwrap().unwrap();
    assert_eq!((manifest.clone(), passed_over.len()), (ours, 0));
    assert_eq!(restored(&one, &manifest).unwrap(), pairs(&rows(0..10, 1)));
    assert_eq!(one.contents("").unwrap().files.len(), 2);
}

#[test]
fn of_many_at_once_one_succeeds() {
    let folder = tempfile::tempdir().unwrap();
    let results = std::thread::scope(|scope| {
        let writers = (0..8).map(|version| {
            let store = CheckpointStore::local(folder.path(), io()).unwrap();
            scope.spawn(move || write(&store, 1, table(version), None).map(|manifest| (version, manifest)))
        });
        let writers: Vec<_> = writers.collect();
        writers
            .into_iter()
            .map(|writer| writer.join().unwrap())
            .collect::<Vec<_>>()
    });
    let winners: Vec<_> = results.iter().filter_map(|result| result.as_ref().ok()).collect();
    assert_eq!(winners.len(), 1);
    let store = CheckpointStore::local(folder.path(), io()).unwrap();
    let (manifest, _) = store.latest().unwrap().unwrap();
    assert_eq!(manifest, winners[0].1);
    assert_eq!(restored(&store, &manifest).unwrap(), pairs(&rows(0..10, winners[0].0)));
    assert_eq!(store.retain(&[1]).unwrap(), 7, "what the others wrote");
}

#[test]
fn a_process_that_slept_does_not_go_on() {
    let objects: Arc<dyn ObjectStore> = Arc::new(InMemory::new());
    let (sleeper, other) = (open(objects.clone()), open(objects));
    write(&sleeper, 1, table(1), None).unwrap();
    for checkpoint in 2..6 {
        write(&other, checkpoint, table(2), None).unwrap();
        other.retain(&[checkpoint]).unwrap();
    }
    let error = write(&sleeper, 2, table(1), None).unwrap_err().to_string();
    assert!(
        error.contains("checkpoint 5 has been completed already") && error.contains(&other.writer.mark),
        "{error}"
    );
    // Nor does it sweep what it does not know.
    sleeper.retain(&[2]).unwrap();
    assert_eq!(
        restored(&other, &other.latest().unwrap().unwrap().0).unwrap(),
        pairs(&rows(0..10, 2))
    );
}

#[test]
fn a_checkpoint_is_written_to_its_own_folder() {
    let store = in_memory();
    let written = store.write("chk-1", "0-0", table(1), (0, 1)).unwrap();
    assert!(store.commit("chk-2", &manifest_of(1, &written, None)).is_err());
}
