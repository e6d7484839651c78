//! What happens to the frames of the partitions, decided once for all functions of a frame: which rows come in, which go,
//! and when a value is due. Each function then replays these [`Steps`] over its own column in one loop.

use super::kept::Room;
use crate::data::{EngineError, Result};

/// No slot.
const NOTHING: u32 = u32::MAX;

/// The rows of a batch, step by step. In a step, rows leave the frame of one partition, rows of the batch come in, and
/// the value is that of these rows.
#[derive(Default)]
pub(super) struct Steps {
    /// The partition of each step.
    pub(super) groups: Vec<u32>,
    /// The end of each step's rows in `order`.
    pub(super) row_ends: Vec<u32>,
    /// The rows in the order of the steps, when it is not their own.
    pub(super) order: Option<Vec<u32>>,
    /// The slots that become free, and the end of each step's. Empty when no row leaves.
    pub(super) left: Vec<u32>,
    /// See `left`.
    pub(super) left_ends: Vec<u32>,
    /// The slot of each row, in the order of the steps. Empty when no row leaves.
    pub(super) slots: Vec<u32>,
    /// How many slots there are, at most.
    pub(super) slots_total: usize,
    /// How many partitions there are.
    pub(super) groups_total: usize,
}

impl Steps {
    /// A step for each row.
    pub(super) fn of_rows(groups: &[u32]) -> Self {
        Self {
            groups: groups.to_vec(),
            row_ends: (1..=groups.len() as u32).collect(),
            ..Self::default()
        }
    }

    /// A step for all rows of one partition and one time; the times rise.
    pub(super) fn of_peers(groups: &[u32], times: &[i64]) -> Self {
        let mut order: Vec<u32> = (0..groups.len() as u32).collect();
        let mut steps = Self::default();
        let (mut start, mut moved) = (0, false);
        for peers in times.chunk_by(|one, next| one == next) {
            let end = start + peers.len();
            if peers.len() > 1 && !groups[start..end].is_sorted() {
                order[start..end].sort_by_key(|row| groups[*row as usize]);
                moved = true;
            }
            for rows in order[start..end].chunk_by(|one, next| groups[*one as usize] == groups[*next as usize]) {
                steps.groups.push(groups[rows[0] as usize]);
                start += rows.len();
                steps.row_ends.push(start as u32);
            }
        }
        steps.order = moved.then_some(order);
        steps
    }

    /// How large the columns of functions must be.
    pub(super) fn room(&self) -> Room {
        Room {
            groups: self.groups_total,
            slots: self.slots_total,
        }
    }

    /// How many rows come in.
    pub(super) fn rows(&self) -> usize {
        self.row_ends.last().map_or(0, |end| *end as usize)
    }

    /// The row at a place in the order of the steps.
    #[inline]
    pub(super) fn row(&self, at: usize) -> usize {
        match &self.order {
            None => at,
            Some(order) => order[at] as usize,
        }
    }

    /// The slots that become free in a step.
    #[inline]
    pub(super) fn left_in(&self, step: usize) -> &[u32] {
        if self.left_ends.is_empty() {
            return &[];
        }
        let start = if step == 0 {
            0
        } else {
            self.left_ends[step - 1] as usize
        };
        &self.left[start..self.left_ends[step] as usize]
    }
}

/// When a row leaves a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bound {
    /// When so many have come after it.
    Rows(u64),
    /// When it is so much older, in the unit of the times.
    Time(i64),
}

/// The rows that are in the frames of all partitions: numbered slots, chained per partition from the oldest on. Functions
/// keep a value per slot.
#[derive(Clone)]
pub(super) struct Queue {
    bound: Bound,
    /// Of each slot, the time of its row and the next slot of the partition.
    times: Vec<i64>,
    next: Vec<u32>,
    free: Vec<u32>,
    /// Of each partition.
    heads: Vec<u32>,
    tails: Vec<u32>,
    lengths: Vec<u32>,
}

/// The next slot of a partition's rows, and how many are left.
#[derive(Clone, Copy)]
pub(super) struct Stopped(u32, u32);

impl Queue {
    /// An empty one.
    pub(super) fn new(bound: Bound) -> Self {
        Self {
            bound,
            times: Vec::new(),
            next: Vec::new(),
            free: Vec::new(),
            heads: Vec::new(),
            tails: Vec::new(),
            lengths: Vec::new(),
        }
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        let slots = self.times.capacity() * size_of::<i64>();
        let words = [&self.next, &self.free, &self.heads, &self.tails, &self.lengths];
        slots
            + words
                .iter()
                .map(|words| words.capacity() * size_of::<u32>())
                .sum::<usize>()
    }

    /// The rows in the frames.
    pub(super) fn rows(&self) -> usize {
        self.times.len() - self.free.len()
    }

    /// Whether a partition has no rows in its frame.
    pub(super) fn is_empty(&self, group: usize) -> bool {
        self.lengths[group] == 0
    }

    /// The slots after each other.
    pub(super) fn next(&self) -> &[u32] {
        &self.next
    }

    /// Makes room for partitions up to `total`.
    pub(super) fn grow(&mut self, total: usize) {
        self.heads.resize(total, NOTHING);
        self.tails.resize(total, NOTHING);
        self.lengths.resize(total, 0);
    }

    /// Adds to `steps` what leaves, and where rows go. Slots that become free may be used again only after
    /// [`Queue::settle`], so that functions still see which came after which.
    ///
    /// # Errors
    /// When the rows are too many to be counted.
    pub(super) fn plan(&mut self, steps: &mut Steps, times: &[i64]) -> Result<()> {
        steps.left_ends.reserve(steps.groups.len());
        steps.slots.reserve(times.len());
        let mut start = 0;
        for step in 0..steps.groups.len() {
            let (group, end) = (steps.groups[step] as usize, steps.row_ends[step] as usize);
            match self.bound {
                Bound::Rows(before) => {
                    while u64::from(self.lengths[group]) > before {
                        steps.left.push(self.pop(group));
                    }
                }
                Bound::Time(span) => {
                    let oldest = times[steps.row(start)].saturating_sub(span);
                    self.pop_older(group, oldest, &mut steps.left);
                }
            }
            steps.left_ends.push(steps.left.len() as u32);
            for at in start..end {
                let slot = self.push(group, times[steps.row(at)])?;
                steps.slots.push(slot);
            }
            start = end;
        }
        self.note(steps);
        Ok(())
    }

    /// Steps without rows in which all rows older than `oldest` leave.
    pub(super) fn plan_eviction(&mut self, oldest: i64) -> Steps {
        let mut steps = Steps::default();
        for group in 0..self.heads.len() {
            let before = steps.left.len();
            self.pop_older(group, oldest, &mut steps.left);
            if steps.left.len() > before {
                steps.step_without_rows(group);
            }
        }
        self.note(&mut steps);
        steps
    }

    /// Steps without rows in which all rows of these partitions leave.
    pub(super) fn plan_end(&mut self, groups: &[usize]) -> Steps {
        let mut steps = Steps::default();
        for group in groups {
            while self.lengths[*group] > 0 {
                steps.left.push(self.pop(*group));
            }
            steps.step_without_rows(*group);
        }
        self.note(&mut steps);
        steps
    }

    /// The slots of a partition's rows and their times, from the oldest on or from where an earlier call stopped, until
    /// there are `limit` slots. Gives back where it stopped, if rows are left.
    pub(super) fn rows_of(
        &self,
        group: usize,
        from: Option<Stopped>,
        limit: usize,
        slots: &mut Vec<u32>,
        times: &mut Vec<i64>,
    ) -> Option<Stopped> {
        let length = self.lengths.get(group).copied().unwrap_or(0);
        let mut at = from.or_else(|| (length > 0).then(|| Stopped(self.heads[group], length)))?;
        while at.1 > 0 && slots.len() < limit {
            slots.push(at.0);
            times.push(self.times[at.0 as usize]);
            at = Stopped(self.next[at.0 as usize], at.1 - 1);
        }
        (at.1 > 0).then_some(at)
    }

    /// Rows of partitions come in, none leaves: their slots, and whether each is its partition's oldest.
    ///
    /// # Errors
    /// When the rows are too many to be counted.
    pub(super) fn enter(&mut self, groups: &[usize], times: &[i64]) -> Result<(Vec<u32>, Vec<bool>)> {
        let (mut slots, mut is_first) = (Vec::with_capacity(groups.len()), Vec::with_capacity(groups.len()));
        for (group, time) in groups.iter().zip(times) {
            is_first.push(self.is_empty(*group));
            slots.push(self.push(*group, *time)?);
        }
        Ok((slots, is_first))
    }

    /// All functions have seen the steps.
    pub(super) fn settle(&mut self, steps: &Steps) {
        self.free.extend_from_slice(&steps.left);
        if self.free.len() == self.times.len() {
            (self.times, self.next, self.free) = (Vec::new(), Vec::new(), Vec::new());
        }
    }

    /// Keeps these partitions only; they are numbered anew.
    pub(super) fn retain(&mut self, kept: &[usize]) {
        for column in [&mut self.heads, &mut self.tails, &mut self.lengths] {
            *column = kept.iter().map(|group| column[*group]).collect();
        }
    }

    fn note(&self, steps: &mut Steps) {
        steps.slots_total = self.times.len();
        steps.groups_total = self.heads.len();
    }

    fn pop_older(&mut self, group: usize, oldest: i64, left: &mut Vec<u32>) {
        while self.lengths[group] > 0 && self.times[self.heads[group] as usize] < oldest {
            left.push(self.pop(group));
        }
    }

    fn pop(&mut self, group: usize) -> u32 {
        let slot = self.heads[group];
        self.heads[group] = self.next[slot as usize];
        self.lengths[group] -= 1;
        slot
    }

    fn push(&mut self, group: usize, time: i64) -> Result<u32> {
        let slot = match self.free.pop() {
            Some(slot) => {
                self.times[slot as usize] = time;
                self.next[slot as usize] = NOTHING;
                slot
            }
            None => {
                let slot = u32::try_from(self.times.len())
                    .ok()
                    .filter(|slot| *slot < NOTHING)
                    .ok_or_else(|| EngineError::Plan("an OVER frame holds more than 4 billion rows".into()))?;
                self.times.push(time);
                self.next.push(NOTHING);
                slot
            }
        };
        if self.lengths[group] == 0 {
            self.heads[group] = slot;
        } else {
            self.next[self.tails[group] as usize] = slot;
        }
        self.tails[group] = slot;
        self.lengths[group] += 1;
        Ok(slot)
    }
}

impl Steps {
    fn step_without_rows(&mut self, group: usize) {
        self.groups.push(group as u32);
        self.row_ends.push(0);
        self.left_ends.push(self.left.len() as u32);
    }
}
