//! For tests: drives an operator, cut at barriers into others of any number that go on from its state.

use std::time::Duration;

use crate::data::Batch;
use crate::operator::harness::{Harness, parts_of, rescaled};
use crate::operator::{Operator, Port};
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
    for step in steps {
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
    let after = rescaled(before, parallelism, make).unwrap();
    for harness in before {
        // To hand over the state must not change it.
        assert!(harness.output.batches.is_empty(), "a snapshot brought rows out");
    }
    for harness in &after {
        harness.clock.advance(Duration::from_millis(now_ms));
    }
    after
}
