//! [`Touched`]: the groups of a batch, each once.

/// The groups of a batch, in the order of their first rows.
#[derive(Default)]
pub(in crate::operator) struct Touched {
    /// The groups.
    pub(in crate::operator) groups: Vec<usize>,
    /// The first row of each.
    pub(in crate::operator) first_rows: Vec<u32>,
    /// Whether some row of the batch made a difference.
    pub(in crate::operator) effective: bool,
    /// The last batch that touched a group.
    stamps: Vec<u32>,
    epoch: u32,
}

impl Touched {
    /// Finds the groups of a batch, of `total` groups.
    pub(in crate::operator) fn begin(&mut self, groups: &[usize], total: usize) {
        self.start(total);
        for (row, group) in groups.iter().enumerate() {
            self.touch(*group, row);
        }
    }

    /// Begins a batch that has touched nothing yet.
    pub(in crate::operator) fn start(&mut self, total: usize) {
        self.groups.clear();
        self.first_rows.clear();
        self.stamps.resize(total, 0);
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            self.stamps.fill(0);
            self.epoch = 1;
        }
    }

    /// Notes that a row touches a group. Says whether it is the first.
    #[inline]
    pub(in crate::operator) fn touch(&mut self, group: usize, row: usize) -> bool {
        let stamp = &mut self.stamps[group];
        let first = *stamp != self.epoch;
        if first {
            *stamp = self.epoch;
            self.groups.push(group);
            self.first_rows.push(row as u32);
        }
        first
    }

    /// Forgets all groups: they have got other numbers.
    pub(in crate::operator) fn clear(&mut self) {
        self.groups.clear();
        self.first_rows.clear();
        self.stamps.clear();
    }

    /// Bytes held.
    pub(in crate::operator) fn size(&self) -> usize {
        self.stamps.capacity() * size_of::<u32>()
            + self.groups.capacity() * size_of::<usize>()
            + self.first_rows.capacity() * size_of::<u32>()
    }
}
