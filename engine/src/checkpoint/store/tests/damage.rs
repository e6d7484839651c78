//! Files that are not as they were written: an error or an older checkpoint, never other rows.

use bytes::Bytes;
use object_store::ObjectStoreExt;

use super::*;
use crate::checkpoint::download::is_damage;

struct Job {
    objects: Arc<InMemory>,
    store: CheckpointStore,
}

impl Job {
    /// Two checkpoints, the second with changes on top of a whole of its own.
    fn new() -> Self {
        let objects = Arc::new(InMemory::new());
        let store = open(objects.clone());
        write(&store, 1, vec![full(&spec(), vec![rows(0..50, 1)])], None).unwrap();
        let second = write(&store, 2, vec![full(&spec(), vec![rows(0..50, 2)])], None).unwrap();
        let changes = vec![delta(&spec(), 2, vec![rows(0..7, 3)], &[8, 9])];
        write(&store, 3, changes, Some(&second)).unwrap();
        Self { objects, store }
    }

    fn of_third() -> Vec<(i64, String)> {
        let mut expected = pairs(&rows(0..7, 3));
        expected.extend(pairs(&rows(7..8, 2)));
        expected.extend(pairs(&rows(10..50, 2)));
        expected
    }

    /// Files of checkpoints 2 and 3.
    fn files(&self) -> Vec<String> {
        let files = self.store.contents("").unwrap().files.into_keys();
        files.filter(|file| !file.starts_with("chk-1/")).collect()
    }

    fn get(&self, file: &str) -> Bytes {
        let location = self.store.location(file).unwrap();
        let read = async { self.objects.get(&location).await.unwrap().bytes().await.unwrap() };
        io().block_on(read)
    }

    fn put(&self, file: &str, bytes: Bytes) {
        let location = self.store.location(file).unwrap();
        io().block_on(self.objects.put(&location, bytes.into())).unwrap();
    }

    fn delete(&self, file: &str) {
        let location = self.store.location(file).unwrap();
        io().block_on(self.objects.delete(&location)).unwrap();
    }

    /// Restores as the runtime would: the latest, and an older one when reading shows damage. Gives the checkpoint restored.
    fn check(&self, what: &str) -> u64 {
        let mut before = u64::MAX;
        loop {
            let (manifest, passed_over) = match self.store.latest_before(before) {
                Ok(found) => found.unwrap_or_else(|| panic!("{what}: nothing to restore")),
                // The version of a manifest may look newer than this program's.
                Err(EngineError::Plan(error)) if error.contains("is of version") => return 0,
                Err(error) => panic!("{what}: {error}"),
            };
            for reason in &passed_over {
                assert!(
                    reason.contains("is damaged") && reason.contains("mem://bucket/jobs/job/chk-"),
                    "{reason}"
                );
            }
            let expected = match manifest.checkpoint {
                1 => pairs(&rows(0..50, 1)),
                2 => pairs(&rows(0..50, 2)),
                _ => Self::of_third(),
            };
            match restored(&self.store, &manifest) {
                Ok(found) => {
                    assert_eq!(found, expected, "{what}");
                    return manifest.checkpoint;
                }
                Err(error) => {
                    assert!(is_damage(&error), "{what}: {error}");
                    before = manifest.checkpoint;
                }
            }
        }
    }
}

#[test]
fn any_flipped_bit() {
    let job = Job::new();
    assert_eq!(job.check("undamaged"), 3);
    let mut restored = [0; 4];
    for file in job.files() {
        let whole = job.get(&file);
        for at in 0..whole.len() {
            let mut bytes = whole.to_vec();
            bytes[at] ^= 1 << (at % 8);
            job.put(&file, bytes.into());
            restored[job.check(&format!("{file}: byte {at} flipped")) as usize] += 1;
        }
        job.put(&file, whole);
    }
    assert!(restored[1] > 500 && restored[2] > 500, "{restored:?}");
}

#[test]
fn any_length() {
    let job = Job::new();
    for file in job.files() {
        let whole = job.get(&file);
        for length in (0..whole.len()).step_by(7) {
            job.put(&file, whole.slice(..length));
            let checkpoint = job.check(&format!("{file}: cut at {length}"));
            // The third needs files of the second, not its manifest.
            assert!(checkpoint < 3 || file == "chk-2/MANIFEST", "{file} cut at {length}");
        }
        let mut longer = whole.to_vec();
        longer.extend([7; 100]);
        job.put(&file, longer.into());
        job.check(&format!("{file}: longer"));
        job.delete(&file);
        assert!(job.check(&format!("{file}: missing")) < 3 || file == "chk-2/MANIFEST");
        job.put(&file, whole);
    }
    assert_eq!(job.check("mended"), 3);
}

#[test]
fn regions_of_zeros_and_of_other_data() {
    let job = Job::new();
    for file in job.files() {
        let whole = job.get(&file);
        for begin in (0..whole.len()).step_by(64) {
            let end = whole.len().min(begin + 128);
            for fill in [0, 0xff] {
                let mut bytes = whole.to_vec();
                bytes[begin..end].fill(fill);
                job.put(&file, bytes.into());
                job.check(&format!("{file}: {begin}..{end} filled with {fill}"));
            }
            // A block that was written to the wrong place.
            let mut bytes = whole.to_vec();
            bytes.copy_within(begin..end, 0);
            job.put(&file, bytes.into());
            job.check(&format!("{file}: {begin}..{end} at the beginning too"));
        }
        job.put(&file, whole);
    }
}

#[test]
fn a_file_of_another_checkpoint() {
    let job = Job::new();
    let files = job.files();
    let rows: Vec<&String> = files.iter().filter(|file| !file.ends_with(MANIFEST)).collect();
    let manifests: Vec<&String> = files.iter().filter(|file| file.ends_with(MANIFEST)).collect();
    for pair in [rows, manifests] {
        let (first, second) = (job.get(pair[0]), job.get(pair[1]));
        job.put(pair[1], first);
        assert!(job.check("swapped") < 3);
        job.put(pair[1], second);
    }
}

#[test]
fn when_all_are_damaged_nothing_is_begun_anew() {
    let job = Job::new();
    for checkpoint in 1..=3 {
        job.put(&format!("chk-{checkpoint}/MANIFEST"), Bytes::from_static(b"\xff\xff"));
    }
    let error = job.store.latest().unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("no checkpoint in mem://bucket/jobs/job can be restored"),
        "{text}"
    );
    assert!(text.contains("chk-2/MANIFEST is damaged"), "{text}");
}

#[test]
fn a_manifest_of_a_newer_program_is_not_passed_over() {
    let job = Job::new();
    let text = job.get("chk-3/MANIFEST");
    let text = String::from_utf8(text.to_vec()).unwrap();
    job.put("chk-3/MANIFEST", text.replacen(" 1 ", " 2 ", 1).into());
    let error = job.store.latest().unwrap_err();
    assert!(
        matches!(&error, EngineError::Plan(text) if text.contains("is of version 2")),
        "{error}"
    );
}

#[test]
fn a_damaged_file_is_not_copied_into_a_savepoint() {
    let job = Job::new();
    let manifest = job.store.load("chk-3").unwrap();
    let file = job
        .files()
        .into_iter()
        .find(|file| file.starts_with("chk-2/0-0"))
        .unwrap();
    let mut bytes = job.get(&file).to_vec();
    bytes[400] ^= 4;
    job.put(&file, bytes.into());
    let target = open(Arc::new(InMemory::new()));
    let error = job.store.copy_into(&manifest, &target, "savepoint").unwrap_err();
    assert!(is_damage(&error), "{error}");
    assert!(job.store.verify(&manifest).is_err());
}
