//! [`Tracked`]: which keys have changed since which checkpoint, so that a snapshot can be written as a delta.
//!
//! Between two barriers each key that changes is noted once. Nothing is noted before the first snapshot: a job without
//! checkpoints pays one comparison per change.

use std::collections::VecDeque;

use crate::state::SnapshotRequest;

/// Changes of so many checkpoints are told apart; older ones are taken together. What is said to have changed may then be more
/// than what has, which is right too.
const INTERVALS_MAX: usize = 16;

/// The keys that have changed since some checkpoints.
#[derive(Default)]
pub(super) struct Tracked {
    /// Oldest first. None: nothing is noted.
    intervals: VecDeque<Interval>,
    /// The interval in which each key changed last.
    stamps: Vec<u32>,
    /// The stamp of the last interval; 0 without any.
    current: u32,
    /// The last checkpoint, if it was asked for as a whole.
    whole: Option<u64>,
}

/// From a barrier to the next.
struct Interval {
    /// The barrier's checkpoint.
    since: u64,
    stamp: u32,
    changed: Vec<u32>,
}

impl Tracked {
    /// Makes room for so many keys.
    #[inline]
    pub(super) fn grow(&mut self, keys: usize) {
        if self.current != 0 {
            self.stamps.resize(keys, 0);
        }
    }

    /// Notes that a key has changed.
    #[inline]
    pub(super) fn note(&mut self, key: usize) {
        if self.current == 0 || self.stamps[key] == self.current {
            return;
        }
        self.stamps[key] = self.current;
        if let Some(interval) = self.intervals.back_mut() {
            interval.changed.push(key as u32);
        }
    }

    /// Whether a delta may still have to tell of the key.
    #[inline]
    pub(super) fn is_recent(&self, key: usize) -> bool {
        let oldest = self.intervals.front();
        oldest.is_some_and(|oldest| self.stamps[key] >= oldest.stamp)
    }

    /// At a barrier: the keys, of `keys`, that have changed since the checkpoint on which deltas may build; `None` when that
    /// is not known, or nothing is to build on. What comes now belongs to the next checkpoint.
    pub(super) fn barrier(&mut self, request: SnapshotRequest, keys: usize) -> Option<Vec<u32>> {
        let changed = request.since.and_then(|since| self.changed(since));
        match (request.since, self.whole) {
            (Some(since), _) => self.drop_before(since),
            // Nobody builds deltas: only the last checkpoint may be built on.
            (None, Some(whole)) => self.drop_before(whole),
            (None, None) => {}
        }
        self.whole = request.since.is_none().then_some(request.checkpoint);
        self.begin(request.checkpoint, keys);
        changed
    }

    /// From now on changes are noted as those since this checkpoint.
    pub(super) fn begin(&mut self, checkpoint: u64, keys: usize) {
        match self.current.checked_add(1) {
            Some(stamp) => self.current = stamp,
            None => {
                self.clear();
                self.current = 1;
            }
        }
        self.stamps.resize(keys, 0);
        self.intervals.push_back(Interval {
            since: checkpoint,
            stamp: self.current,
            changed: Vec::new(),
        });
        if self.intervals.len() > INTERVALS_MAX {
            self.join_oldest();
        }
    }

    /// Notes nothing any more, until the next barrier.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// Gives the keys new numbers: `kept` has the old ones, rising. Keys that are not kept are not recent.
    pub(super) fn compact(&mut self, kept: &[usize]) {
        if self.current == 0 {
            return;
        }
        let stamps: Vec<u32> = kept.iter().map(|key| self.stamps[*key]).collect();
        for interval in &mut self.intervals {
            interval.changed.clear();
        }
        let oldest = self.intervals.front().map_or(0, |interval| interval.stamp);
        for (key, stamp) in stamps.iter().enumerate().filter(|(_, stamp)| **stamp >= oldest) {
            let at = self.intervals.partition_point(|interval| interval.stamp < *stamp);
            self.intervals[at].changed.push(key as u32);
        }
        self.stamps = stamps;
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        let changed: usize = self.intervals.iter().map(|interval| interval.changed.capacity()).sum();
        (changed + self.stamps.capacity()) * size_of::<u32>()
    }

    fn changed(&self, since: u64) -> Option<Vec<u32>> {
        let first = self.intervals.partition_point(|interval| interval.since <= since);
        let first = first.checked_sub(1)?;
        let mut changed = Vec::new();
        for interval in self.intervals.iter().skip(first) {
            // A key counts where it changed last.
            let keys = interval.changed.iter().copied();
            changed.extend(keys.filter(|key| self.stamps[*key as usize] == interval.stamp));
        }
        Some(changed)
    }

    fn drop_before(&mut self, since: u64) {
        while self.intervals.get(1).is_some_and(|next| next.since <= since) {
            self.intervals.pop_front();
        }
    }

    fn join_oldest(&mut self) {
        let Some(mut oldest) = self.intervals.pop_front() else {
            return;
        };
        let Some(next) = self.intervals.front_mut() else {
            return;
        };
        let stamps = &mut self.stamps;
        oldest.changed.retain(|key| stamps[*key as usize] == oldest.stamp);
        for key in &oldest.changed {
            stamps[*key as usize] = next.stamp;
        }
        next.changed.append(&mut oldest.changed);
        next.since = oldest.since;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Change(usize),
        /// Builds on the checkpoint so many before, or on none.
        Barrier(Option<usize>),
        /// Forgets every nth key that is not recent.
        Compact(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            6 => (0usize..40).prop_map(Step::Change),
            3 => prop::option::weighted(0.8, 0usize..25).prop_map(Step::Barrier),
            1 => (1usize..4).prop_map(Step::Compact),
        ];
        prop::collection::vec(step, 0..300)
    }

    proptest! {
        /// What has changed is told, once, and what is told of a checkpoint that is not too old changed.
        #[test]
        fn changes_are_those_since_the_checkpoint(steps in steps()) {
            let mut tracked = Tracked::default();
            // The name of each key number, and after which barrier each name changed last.
            let mut names: Vec<usize> = (0..40).collect();
            let mut changed_after: BTreeMap<usize, u64> = BTreeMap::new();
            let (mut last, mut floor) = (0u64, 0u64);
            for step in steps {
                match step {
                    Step::Change(key) => {
                        let key = key % names.len();
                        tracked.note(key);
                        changed_after.insert(names[key], last);
                    }
                    Step::Barrier(back) => {
                        let since = back.map(|back| last.saturating_sub(back as u64)).filter(|since| *since > 0);
                        let request = SnapshotRequest { checkpoint: last + 1, since };
                        let told = tracked.barrier(request, names.len());
                        if let (Some(since), Some(told)) = (since, told) {
                            let told_names: BTreeSet<usize> = told.iter().map(|key| names[*key as usize]).collect();
                            prop_assert_eq!(told_names.len(), told.len());
                            for (name, after) in &changed_after {
                                prop_assert!(*after < since || told_names.contains(name));
                                if since + 14 > last {
                                    prop_assert_eq!(*after >= since, told_names.contains(name));
                                }
                            }
                        } else if let Some(since) = since {
                            prop_assert!(since < floor, "{since} should be known from {floor} on");
                        }
                        floor = match since {
                            Some(since) => floor.max(since),
                            None => floor.max(last),
                        };
                        last += 1;
                    }
                    Step::Compact(nth) => {
                        let kept: Vec<usize> = (0..names.len())
                            .filter(|key| tracked.is_recent(*key) || key % nth != 0 || *key == 0)
                            .collect();
                        for key in (0..names.len()).filter(|key| !kept.contains(key)) {
                            changed_after.remove(&names[key]);
                        }
                        tracked.compact(&kept);
                        names = kept.into_iter().map(|key| names[key]).collect();
                    }
                }
            }
        }
    }
}
