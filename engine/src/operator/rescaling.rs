//! For tests: drives an operator, cut at barriers into others of any number that go on from its state.

use std::time::Duration;

use crate::data::{Batch, Result};
use crate::operator::harness::{Harness, parts_of, rescaled};
use crate::operator::keyed::folded::lines;
use crate::operator::{Operator, Port};
use crate::state::{Scope, Snapshot, SnapshotRequest};
use crate::time::Clock;

/// The parallelisms that tests go through.
pub(crate) const PARALLELISMS: [usize; 4] = [1, 2, 3, 7];

/// What happens to the operator.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    /// Rows come.
    Rows(Port, Batch),
    /// Event time goes on.
    Watermark(i64),
    /// Processing time goes by, in milliseconds.
    Wait(u64),
    /// An input ends.
    End(Port),
    /// A barrier, then everything is lost and made anew, so many times.
    Cut(usize),
}

/// How the operator is placed.
pub(crate) struct Placed<'a> {
    /// Of each port, the columns by which rows are dealt; `None`: every subtask is handed all.
    pub(crate) keys: &'a [Option<&'a [usize]>],
    /// Rows of an output batch.
    pub(crate) batch_size: usize,
    /// Whether inputs that have ended end again at once after a cut, rather than in the end.
    pub(crate) ends_again: bool,
}

/// What comes out of all subtasks, in order: all inputs end after the last step. Nothing may be held then.
pub(crate) fn run<O: Operator>(
    make: impl Fn() -> O,
    placed: &Placed,
    parallelism: usize,
    steps: &[Step],
) -> Vec<Batch> {
    let fresh = |subtask: usize, parallelism: usize| {
        let mut harness = Harness::new(make());
        harness.context.streaming = true;
        harness.context.batch_size = placed.batch_size;
        (harness.context.subtask, harness.context.parallelism) = (subtask, parallelism);
        harness
    };
    let mut harnesses: Vec<_> = (0..parallelism).map(|subtask| fresh(subtask, parallelism)).collect();
    let (mut out, mut reached) = (Vec::new(), None);
    let mut ended = vec![false; placed.keys.len()];
    let is_disturbed = steps.iter().any(|step| matches!(step, Step::Cut(_)));
    for step in steps {
        // Most snapshots are never asked for.
        if is_disturbed && !matches!(step, Step::Rows(..)) {
            harnesses
                .iter_mut()
                .for_each(|harness| drop(harness.snapshot(1, None).unwrap()));
        }
        match step {
            Step::Rows(port, rows) => {
                let parts = match placed.keys[*port] {
                    Some(keys) => parts_of(rows, keys, harnesses.len()),
                    None => vec![rows.clone(); harnesses.len()],
                };
                for (harness, part) in harnesses.iter_mut().zip(parts) {
                    harness.push(*port, part).unwrap();
                }
            }
            Step::Watermark(at) => {
                reached = Some(*at);
                harnesses.iter_mut().for_each(|harness| harness.watermark(*at).unwrap());
            }
            Step::Wait(ms) => {
                let by = Duration::from_millis(*ms);
                harnesses.iter_mut().for_each(|harness| harness.advance(by).unwrap());
            }
            Step::End(port) => {
                ended[*port] = true;
                harnesses.iter_mut().for_each(|harness| harness.end(*port).unwrap());
            }
            Step::Cut(parallelism) => {
                harnesses = cut(&mut harnesses, *parallelism, &make);
                for harness in &mut harnesses {
                    harness.context.batch_size = placed.batch_size;
                    // The restored sources say first how far they were.
                    if let Some(reached) = reached {
                        harness.watermark(reached).unwrap();
                    }
                    for port in (0..ended.len()).filter(|port| placed.ends_again && ended[*port]) {
                        harness.end(port).unwrap();
                    }
                }
            }
        }
        for harness in &mut harnesses {
            out.append(&mut harness.output.batches);
        }
    }
    for harness in &mut harnesses {
        (0..ended.len()).for_each(|port| harness.end(port).unwrap());
        out.append(&mut harness.output.batches);
        assert_eq!(harness.context.memory.bytes(), 0, "something is held after the end");
    }
    out
}

fn cut<O: Operator>(before: &mut [Harness<O>], parallelism: usize, make: &impl Fn() -> O) -> Vec<Harness<O>> {
    let now_ms = u64::try_from(before[0].clock.now_ms()).unwrap();
    let snapshots: Vec<Snapshot> = before.iter_mut().map(snapshot).collect();
    let after = rescaled(before, parallelism, make).unwrap();
    let mut stored_rows = 0;
    for (harness, snapshot) in before.iter_mut().zip(snapshots) {
        assert!(harness.output.batches.is_empty(), "a snapshot brought rows out");
        let at_once = harness.snapshot(1, None).unwrap();
        // The operator goes on while rows are drawn.
        harness.watermark(i64::MAX).unwrap();
        for (table, at_once) in snapshot.into_tables().into_iter().zip(at_once) {
            let later: Vec<Batch> = table.rows.collect::<Result<_>>().unwrap();
            let name = &table.spec.name;
            assert_eq!(
                tokens(&later),
                tokens(&at_once.rows),
                "table '{name}' changed after the barrier"
            );
            let is_of_rows = matches!(&table.spec.scope, Scope::Keyed(_)) && table.spec.name != "right_counts";
            let rows = later.iter().map(|batch| batch.num_rows());
            stored_rows += if is_of_rows { rows.sum() } else { 0 };
        }
    }
    let booked: usize = after.iter().map(|harness| harness.context.memory.bytes()).sum();
    assert!(stored_rows == 0 || booked > 0, "{stored_rows} rows are not booked");
    for harness in &after {
        harness.clock.advance(Duration::from_millis(now_ms));
    }
    after
}

fn snapshot<O: Operator>(harness: &mut Harness<O>) -> Snapshot {
    let mut snapshot = Snapshot::new(SnapshotRequest {
        checkpoint: 1,
        since: None,
    });
    let Harness {
        operator,
        context,
        output,
        ..
    } = harness;
    operator.snapshot(&mut snapshot, context, output).unwrap();
    snapshot
}

/// What stands in each row, in whatever order (sets have none).
fn tokens(batches: &[Batch]) -> Vec<Vec<String>> {
    let sorted = |line: String| {
        let mut tokens: Vec<String> = line.split(['|', ',', ' ', '[', ']']).map(String::from).collect();
        tokens.sort();
        tokens
    };
    batches.iter().flat_map(lines).map(sorted).collect()
}
