use super::*;

fn payload(number: u64) -> Vec<u8> {
    (0..number * 7 % 40).map(|byte| (byte * number) as u8).collect()
}

/// A log of `count` frames.
fn written(directory: &Path, count: u64) -> Log {
    let mut log = Log::open(directory).unwrap().with_segment_bytes(200);
    for _ in 0..count {
        let number = log.next();
        assert_eq!(log.append(FrameKind::Rows, &payload(number)).unwrap(), number);
    }
    log
}

fn numbers(log: &Log, after: u64) -> Vec<u64> {
    let frames = log.replay(after).unwrap().map(|frame| {
        let frame = frame.unwrap();
        assert_eq!((frame.kind, &frame.payload), (FrameKind::Rows, &payload(frame.number)));
        frame.number
    });
    frames.collect()
}

/// The segments, oldest first.
fn segments(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> = entries.filter(|path| path.extension().is_some()).collect();
    files.sort();
    files
}

#[test]
fn frames_come_back_from_any_position_and_numbers_go_on() {
    let temp = tempfile::tempdir().unwrap();
    let mut count = 0;
    for more in [0, 1, 20, 0, 5] {
        let log = written(temp.path(), more);
        count += more;
        assert_eq!((log.first(), log.next()), (1, count + 1));
        for after in 0..=count {
            assert_eq!(numbers(&log, after), (after + 1..=count).collect::<Vec<_>>());
        }
        let error = log.replay(count + 1).unwrap_err().to_string();
        assert!(
            error.contains(&format!("was taken after frame {}", count + 1)),
            "{error}"
        );
    }
    assert!(segments(temp.path()).len() > 4);
}

#[test]
fn what_lies_before_a_checkpoint_goes_and_the_rest_stays() {
    let temp = tempfile::tempdir().unwrap();
    let mut log = written(temp.path(), 40);
    let before = segments(temp.path()).len();
    for upto in [0, 7, 7, 23, 39] {
        log.release(upto).unwrap();
        assert!(log.first() <= upto + 1, "frame {} is still needed", upto + 1);
        assert_eq!(numbers(&log, upto), (upto + 1..=40).collect::<Vec<_>>());
    }
    assert!(segments(temp.path()).len() < before / 2);
    // All of it.
    log.release(40).unwrap();
    assert_eq!((log.first(), log.next()), (41, 41));
    assert_eq!(numbers(&log, 40), Vec::<u64>::new());
    let error = log.replay(39).unwrap_err().to_string();
    assert!(error.contains("start from another checkpoint"), "{error}");
    // The numbers go on, also for the next process.
    drop(log);
    let log = written(temp.path(), 2);
    assert_eq!(numbers(&log, 40), [41, 42]);
}

#[test]
fn a_torn_end_is_cut_wherever_it_was_torn() {
    let temp = tempfile::tempdir().unwrap();
    drop(written(temp.path(), 3));
    let file = segments(temp.path()).pop().unwrap();
    let whole = std::fs::read(&file).unwrap();
    let ends: Vec<usize> = (1..=3)
        .map(|last| (1..=last).map(|number| HEADER_BYTES + payload(number).len()).sum())
        .collect();
    assert_eq!(ends[2], whole.len());
    for length in 0..whole.len() {
        std::fs::write(&file, &whole[..length]).unwrap();
        let left = ends.iter().filter(|end| **end <= length).count() as u64;
        let log = Log::open(temp.path()).unwrap();
        assert_eq!(numbers(&log, 0), (1..=left).collect::<Vec<_>>(), "cut at {length}");
        drop(log);
        let log = written(temp.path(), 1);
        assert_eq!(numbers(&log, 0), (1..=left + 1).collect::<Vec<_>>(), "cut at {length}");
        drop(log);
        segments(temp.path())
            .iter()
            .for_each(|file| std::fs::remove_file(file).unwrap());
    }
}

#[test]
fn a_flipped_bit_is_an_error_and_never_another_frame() {
    let temp = tempfile::tempdir().unwrap();
    drop(written(temp.path(), 3));
    let file = segments(temp.path()).pop().unwrap();
    let whole = std::fs::read(&file).unwrap();
    for byte in 0..whole.len() {
        for bit in [0, 3, 7] {
            let mut flipped = whole.clone();
            flipped[byte] ^= 1 << bit;
            std::fs::write(&file, &flipped).unwrap();
            let read = Log::open(temp.path()).and_then(|log| log.replay(0)?.collect::<Result<Vec<_>>>());
            let error = read.unwrap_err().to_string();
            assert!(error.contains("it is damaged") && error.contains(".wal"), "{error}");
            assert_eq!(
                std::fs::read(&file).unwrap().len(),
                whole.len(),
                "a damaged log is left as it is"
            );
        }
    }
}

#[test]
fn a_segment_that_is_gone_or_short_in_the_middle_is_an_error() {
    let temp = tempfile::tempdir().unwrap();
    drop(written(temp.path(), 40));
    let files = segments(temp.path());
    let middle = &files[files.len() / 2];
    let whole = std::fs::read(middle).unwrap();
    let replayed = || Log::open(temp.path()).and_then(|log| log.replay(0)?.collect::<Result<Vec<_>>>());
    assert_eq!(replayed().unwrap().len(), 40);
    std::fs::write(middle, &whole[..whole.len() - 1]).unwrap();
    let error = replayed().unwrap_err().to_string();
    assert!(error.contains("ends in the middle of frame"), "{error}");
    std::fs::remove_file(middle).unwrap();
    let error = replayed().unwrap_err().to_string();
    assert!(error.contains("is gone"), "{error}");
}

#[test]
fn two_runs_cannot_write_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let log = written(temp.path(), 1);
    let error = Log::open(temp.path()).unwrap_err().to_string();
    assert!(error.contains("in use by another run"), "{error}");
    drop(log);
    Log::open(temp.path()).unwrap();
}
