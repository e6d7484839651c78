//! Courses of events.

use super::*;

const A: Task = (0, 0);
const B: Task = (1, 0);

fn coordinator(options: CheckpointOptions) -> Coordinator {
    Coordinator::new(options, [A, B], [A], 5, Duration::ZERO)
}

fn each_second() -> CheckpointOptions {
    CheckpointOptions {
        interval: Some(Duration::from_secs(1)),
        timeout: Duration::from_secs(10),
        ..CheckpointOptions::default()
    }
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn ack(checkpoint: u64, task: Task) -> Fact {
    Fact::Acknowledged { checkpoint, task }
}

fn trigger(checkpoint: u64) -> Decision {
    Decision::Trigger {
        checkpoint,
        savepoint: None,
        stops: false,
    }
}

fn store(checkpoint: u64) -> Decision {
    Decision::Store {
        checkpoint,
        savepoint: None,
        is_final: false,
    }
}

fn complete(checkpoint: u64) -> Decision {
    Decision::Complete {
        checkpoint,
        savepoint: None,
        stops: false,
        is_final: false,
    }
}

#[test]
fn a_checkpoint_is_stored_when_all_have_acknowledged_and_then_complete() {
    let mut coordinator = coordinator(each_second());
    assert_eq!(coordinator.observe(s(0), Fact::Tick), []);
    assert_eq!(coordinator.next_wake(), Some(s(1)));
    assert_eq!(coordinator.observe(s(1), Fact::Tick), [trigger(5)]);
    assert_eq!(coordinator.observe(s(1), ack(5, B)), []);
    assert_eq!(coordinator.observe(s(2), ack(5, A)), [store(5)]);
    assert_eq!(coordinator.observe(s(2), ack(5, A)), []);
    let decisions = coordinator.observe(s(3), Fact::Stored { checkpoint: 5 });
    // One at a time: the next has waited for this one.
    assert_eq!(decisions, [complete(5), trigger(6)]);
}

#[test]
fn pauses_and_concurrency_are_kept() {
    let options = CheckpointOptions {
        min_pause: s(2),
        ..each_second()
    };
    let mut paused = coordinator(options);
    paused.observe(s(1), Fact::Tick);
    paused.observe(s(1), ack(5, A));
    paused.observe(s(1), ack(5, B));
    assert_eq!(paused.observe(s(4), Fact::Stored { checkpoint: 5 }), [complete(5)]);
    assert_eq!(paused.next_wake(), Some(s(6)));
    assert_eq!(paused.observe(s(6), Fact::Tick), [trigger(6)]);
    let options = CheckpointOptions {
        max_concurrent: 2,
        ..each_second()
    };
    let mut two = coordinator(options);
    assert_eq!(two.observe(s(1), Fact::Tick), [trigger(5)]);
    assert_eq!(two.observe(s(2), Fact::Tick), [trigger(6)]);
    assert_eq!(two.observe(s(3), Fact::Tick), []);
    // The later one is complete first and waits for the earlier.
    two.observe(s(3), ack(6, A));
    assert_eq!(two.observe(s(3), ack(6, B)), []);
    two.observe(s(3), ack(5, A));
    assert_eq!(two.observe(s(3), ack(5, B)), [store(5)]);
    let decisions = two.observe(s(3), Fact::Stored { checkpoint: 5 });
    assert_eq!(decisions, [complete(5), store(6), trigger(7)]);
}

#[test]
fn failures_are_borne_until_there_are_too_many_in_a_row() {
    let options = CheckpointOptions {
        tolerable_failures: 1,
        ..each_second()
    };
    let mut coordinator = coordinator(options);
    let declined = |checkpoint| Fact::Declined {
        checkpoint,
        reason: "the disk is full".into(),
    };
    coordinator.observe(s(1), Fact::Tick);
    let decisions = coordinator.observe(s(1), declined(5));
    assert!(matches!(&decisions[..], [Decision::Discard { checkpoint: 5, .. }]));
    // What arrives for it later is of no use.
    assert_eq!(coordinator.observe(s(1), ack(5, A)), []);
    assert_eq!(coordinator.observe(s(2), Fact::Tick), [trigger(6)]);
    let decisions = coordinator.observe(s(12), Fact::Tick);
    assert!(
        matches!(&decisions[..], [Decision::Discard { .. }, Decision::Fail { reason }, ..] if reason.contains("2 in a row"))
    );
}

#[test]
fn a_success_forgives() {
    let options = CheckpointOptions {
        tolerable_failures: 1,
        ..each_second()
    };
    let mut coordinator = coordinator(options);
    for round in 0..3 {
        let (bad, good) = (5 + 2 * round, 6 + 2 * round);
        let reason = "lost".to_string();
        assert_eq!(coordinator.observe(s(1 + 2 * round), Fact::Tick), [trigger(bad)]);
        let decisions = coordinator.observe(
            s(1 + 2 * round),
            Fact::Declined {
                checkpoint: bad,
                reason,
            },
        );
        assert_eq!(decisions.len(), 1);
        assert_eq!(coordinator.observe(s(2 + 2 * round), Fact::Tick), [trigger(good)]);
        coordinator.observe(s(2 + 2 * round), ack(good, A));
        coordinator.observe(s(2 + 2 * round), ack(good, B));
        assert_eq!(
            coordinator.observe(s(2 + 2 * round), Fact::Stored { checkpoint: good }),
            [complete(good)]
        );
    }
}

#[test]
fn tasks_that_finish_count_as_acknowledged_and_the_last_one_brings_the_final_checkpoint() {
    let mut coordinator = coordinator(each_second());
    assert_eq!(coordinator.observe(s(1), Fact::Tick), [trigger(5)]);
    assert_eq!(coordinator.observe(s(1), Fact::Finished { task: A }), []);
    assert_eq!(coordinator.observe(s(1), ack(5, B)), [store(5)]);
    assert_eq!(coordinator.observe(s(2), Fact::Stored { checkpoint: 5 }), [complete(5)]);
    // Without a source there is nobody to send a barrier.
    assert_eq!(coordinator.observe(s(9), Fact::Tick), []);
    let refused = coordinator.observe(
        s(9),
        Fact::SavepointAsked {
            request: 1,
            stops: false,
        },
    );
    assert!(matches!(&refused[..], [Decision::Refuse { request: 1, .. }]));
    let last = Decision::Store {
        checkpoint: 6,
        savepoint: None,
        is_final: true,
    };
    assert_eq!(coordinator.observe(s(9), Fact::Finished { task: B }), [last]);
    assert!(!coordinator.is_over());
    let decisions = coordinator.observe(s(9), Fact::Stored { checkpoint: 6 });
    assert!(matches!(
        &decisions[..],
        [Decision::Complete {
            checkpoint: 6,
            is_final: true,
            ..
        }]
    ));
    assert!(coordinator.is_over());
}

#[test]
fn a_savepoint_that_stops_is_the_last() {
    let mut coordinator = coordinator(each_second());
    let decisions = coordinator.observe(
        s(0),
        Fact::SavepointAsked {
            request: 7,
            stops: true,
        },
    );
    let asked = Decision::Trigger {
        checkpoint: 5,
        savepoint: Some(7),
        stops: true,
    };
    assert_eq!(decisions, [asked]);
    assert_eq!(coordinator.observe(s(5), Fact::Tick), []);
    coordinator.observe(s(5), ack(5, A));
    coordinator.observe(s(5), ack(5, B));
    let decisions = coordinator.observe(s(5), Fact::Stored { checkpoint: 5 });
    assert!(matches!(
        &decisions[..],
        [Decision::Complete {
            savepoint: Some(7),
            stops: true,
            ..
        }]
    ));
}

#[test]
fn chains_stay_short_and_little_is_written_again() {
    // Each interval changes 10 of 10,000 rows.
    let (mut chain, mut written, mut longest) = (vec![(0, 10_000)], 0, 0);
    for checkpoint in 1..=400 {
        match base_of(&chain, 10) {
            Some(base) => {
                let kept = chain.iter().position(|(id, _)| *id == base).unwrap();
                let bytes = chain[kept + 1..].iter().map(|(_, bytes)| bytes).sum::<u64>() + 10;
                chain.truncate(kept + 1);
                chain.push((checkpoint, bytes));
                written += bytes;
            }
            None => {
                assert!(chain[1..].iter().map(|(_, bytes)| bytes).sum::<u64>() >= 4_900);
                chain = vec![(checkpoint, 10_000)];
                written += 10_000;
            }
        }
        longest = longest.max(chain.len());
    }
    assert!(longest <= 10, "{longest}");
    assert!(written <= 400 * 10 * 12, "{written}");
    assert_eq!(base_of(&[], 10), None);
}
