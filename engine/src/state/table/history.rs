//! Which checkpoints can still be asked "what has changed since".

use std::collections::VecDeque;

/// Older checkpoints than that many ago are not built upon: the whole table is written then.
const REMEMBERED: usize = 16;

/// The barriers that a table has seen. A row that was written after a barrier has its epoch or a later one.
#[derive(Default)]
pub(crate) struct History {
    barriers: VecDeque<(u64, u32)>,
    current: u32,
}

impl History {
    /// What is written now gets this epoch.
    pub(crate) fn current(&self) -> u32 {
        self.current
    }

    /// The barrier of a checkpoint passes.
    pub(crate) fn barrier(&mut self, checkpoint: u64) {
        self.current += 1;
        // A number that comes again is of a new beginning.
        self.barriers.retain(|(older, _)| *older < checkpoint);
        self.barriers.push_back((checkpoint, self.current));
        if self.barriers.len() > REMEMBERED {
            self.barriers.pop_front();
        }
    }

    /// From which epoch on rows have changed since a checkpoint. Nobody will ask for older ones any more.
    pub(crate) fn since(&mut self, checkpoint: u64) -> Option<u32> {
        self.barriers.retain(|(older, _)| *older >= checkpoint);
        let (found, epoch) = self.barriers.front()?;
        (*found == checkpoint).then_some(*epoch)
    }

    /// The oldest epoch that somebody can ask for; none while there was no barrier.
    pub(crate) fn oldest(&self) -> Option<u32> {
        self.barriers.front().map(|(_, epoch)| *epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_old_is_not_known() {
        let mut history = History::default();
        assert_eq!((history.current(), history.oldest(), history.since(1)), (0, None, None));
        (1..=20).for_each(|checkpoint| history.barrier(checkpoint * 10));
        assert_eq!(history.oldest(), Some(5));
        assert_eq!(history.since(35), None, "there was none of that number");
        assert_eq!(history.since(70), Some(7));
        assert_eq!(history.oldest(), Some(7));
        assert_eq!(history.since(40), None, "given up");
        history.barrier(100);
        assert_eq!(history.since(100), Some(21), "and not the one before");
    }
}
