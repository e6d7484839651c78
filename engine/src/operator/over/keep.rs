//! How the totals of frames are kept: see [`super::fold`].

use super::fold::{Fold, Native, Undo, fit, keep, vec_bytes};
use super::kept::KeptTotals;

/// How the totals of frames are kept.
pub(super) trait Keep<F: Fold>: KeptTotals<F> + Default + Send + Sync + 'static {
    /// Makes room for partitions and slots.
    fn fit(&mut self, groups: usize, slots: usize);
    /// A value comes in; `slot` is there when it will leave.
    fn push(&mut self, group: usize, slot: Option<u32>, value: Native<F>);
    /// The oldest value leaves.
    fn pop(&mut self, group: usize, slot: u32, next: &[u32]);
    /// The total.
    fn total(&self, group: usize) -> Native<F>;
    /// Forgets a partition.
    fn forget(&mut self, group: usize);
    /// Keeps these partitions only.
    fn retain(&mut self, kept: &[usize]);
    /// Bytes held.
    fn bytes(&self) -> usize;
}

/// Totals that only grow.
pub(super) struct Running<F: Fold>(pub(super) Vec<Native<F>>);

impl<F: Fold> Default for Running<F> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<F: Fold> Keep<F> for Running<F> {
    fn fit(&mut self, groups: usize, _slots: usize) {
        fit(&mut self.0, groups, F::NEUTRAL);
    }

    #[inline]
    fn push(&mut self, group: usize, _slot: Option<u32>, value: Native<F>) {
        self.0[group] = F::combine(self.0[group], value);
    }

    #[inline]
    fn pop(&mut self, _group: usize, _slot: u32, _next: &[u32]) {}

    #[inline]
    fn total(&self, group: usize) -> Native<F> {
        self.0[group]
    }

    fn forget(&mut self, group: usize) {
        if let Some(total) = self.0.get_mut(group) {
            *total = F::NEUTRAL;
        }
    }

    fn retain(&mut self, kept: &[usize]) {
        keep(&mut self.0, kept);
    }

    fn bytes(&self) -> usize {
        vec_bytes(&self.0)
    }
}

/// Totals from which what leaves is subtracted.
pub(super) struct Additive<F: Fold> {
    pub(super) totals: Running<F>,
    pub(super) slots: Vec<Native<F>>,
}

impl<F: Fold> Default for Additive<F> {
    fn default() -> Self {
        Self {
            totals: Running::default(),
            slots: Vec::new(),
        }
    }
}

impl<F: Undo> Keep<F> for Additive<F> {
    fn fit(&mut self, groups: usize, slots: usize) {
        self.totals.fit(groups, slots);
        fit(&mut self.slots, slots, F::NEUTRAL);
    }

    #[inline]
    fn push(&mut self, group: usize, slot: Option<u32>, value: Native<F>) {
        if let Some(slot) = slot {
            self.slots[slot as usize] = value;
        }
        self.totals.push(group, slot, value);
    }

    #[inline]
    fn pop(&mut self, group: usize, slot: u32, _next: &[u32]) {
        let total = &mut self.totals.0[group];
        *total = F::without(*total, self.slots[slot as usize]);
    }

    #[inline]
    fn total(&self, group: usize) -> Native<F> {
        self.totals.total(group)
    }

    fn forget(&mut self, group: usize) {
        self.totals.forget(group);
    }

    fn retain(&mut self, kept: &[usize]) {
        self.totals.retain(kept);
    }

    fn bytes(&self) -> usize {
        self.totals.bytes() + vec_bytes(&self.slots)
    }
}

/// Two stacks per partition, see the module.
pub(super) struct TwoStacks<F: Fold> {
    /// Of the older part of a queue the total from the slot to that part's end, of the younger part the slot's value.
    pub(super) slots: Vec<Native<F>>,
    /// The oldest and youngest slot, and how many belong to the older part.
    pub(super) heads: Vec<u32>,
    pub(super) tails: Vec<u32>,
    pub(super) older: Vec<u32>,
    /// The total of the younger part.
    pub(super) younger: Vec<Native<F>>,
    pub(super) path: Vec<u32>,
}

impl<F: Fold> Default for TwoStacks<F> {
    fn default() -> Self {
        Self {
            slots: Vec::new(),
            heads: Vec::new(),
            tails: Vec::new(),
            older: Vec::new(),
            younger: Vec::new(),
            path: Vec::new(),
        }
    }
}

impl<F: Fold> TwoStacks<F> {
    /// Makes the younger part, from `slot` on, the older.
    fn turn(&mut self, group: usize, slot: u32, next: &[u32]) {
        self.path.clear();
        self.path.push(slot);
        let mut last = slot;
        while last != self.tails[group] {
            last = next[last as usize];
            self.path.push(last);
        }
        let mut total = F::NEUTRAL;
        for slot in self.path.iter().rev() {
            total = F::combine(self.slots[*slot as usize], total);
            self.slots[*slot as usize] = total;
        }
        self.older[group] = self.path.len() as u32;
        self.younger[group] = F::NEUTRAL;
    }
}

impl<F: Fold> Keep<F> for TwoStacks<F> {
    fn fit(&mut self, groups: usize, slots: usize) {
        fit(&mut self.slots, slots, F::NEUTRAL);
        fit(&mut self.heads, groups, 0);
        fit(&mut self.tails, groups, 0);
        fit(&mut self.older, groups, 0);
        fit(&mut self.younger, groups, F::NEUTRAL);
    }

    #[inline]
    fn push(&mut self, group: usize, slot: Option<u32>, value: Native<F>) {
        if let Some(slot) = slot {
            self.slots[slot as usize] = value;
            self.tails[group] = slot;
        }
        self.younger[group] = F::combine(self.younger[group], value);
    }

    #[inline]
    fn pop(&mut self, group: usize, slot: u32, next: &[u32]) {
        if self.older[group] == 0 {
            self.turn(group, slot, next);
        }
        self.older[group] -= 1;
        self.heads[group] = next[slot as usize];
    }

    #[inline]
    fn total(&self, group: usize) -> Native<F> {
        match self.older[group] {
            0 => self.younger[group],
            _ => F::combine(self.slots[self.heads[group] as usize], self.younger[group]),
        }
    }

    fn forget(&mut self, group: usize) {
        if let (Some(older), Some(younger)) = (self.older.get_mut(group), self.younger.get_mut(group)) {
            (*older, *younger) = (0, F::NEUTRAL);
        }
    }

    fn retain(&mut self, kept: &[usize]) {
        keep(&mut self.heads, kept);
        keep(&mut self.tails, kept);
        keep(&mut self.older, kept);
        keep(&mut self.younger, kept);
    }

    fn bytes(&self) -> usize {
        let words = [&self.heads, &self.tails, &self.older, &self.path];
        vec_bytes(&self.slots) + vec_bytes(&self.younger) + words.into_iter().map(vec_bytes).sum::<usize>()
    }
}
