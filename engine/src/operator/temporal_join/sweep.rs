//! Rows of both sides in the order of time: right rows change what is current, left rows take it.

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::take;

use crate::data::{Batch, Result, RowKind, split_row_kind};
use crate::operator::aggregate::GroupTable;
use crate::operator::join_state::{
    Appended, Expansion, JoinKeys, JoinOutput, Keyed, Kinds, NO_ROW, Probe, RowStore, SideRows,
};
use crate::operator::row_table::RowTable;
use crate::operator::{Collector, Context};
use crate::state::RestoredRows;

/// Rows in the order of their times.
pub(super) struct Timed {
    pub(super) rows: Batch,
    pub(super) times: Vec<i64>,
}

/// The current versions and what is done with them.
pub(super) struct Sweep {
    keys: [JoinKeys; 2],
    /// One row per key.
    pub(super) store: RowStore,
    pub(super) output: JoinOutput,
    is_outer: bool,
}

/// What a sweep finds out.
struct Outcome {
    /// Per left row the stored version, or `NO_ROW`.
    versions: Vec<u32>,
    /// Stored rows that are no version any more.
    dead: Vec<u32>,
}

impl Sweep {
    /// Over `store`, which is empty.
    pub(super) fn new(keys: [JoinKeys; 2], store: RowStore, output: JoinOutput, is_outer: bool) -> Self {
        Self {
            keys,
            store,
            output,
            is_outer,
        }
    }

    /// Takes the current versions of a snapshot.
    ///
    /// # Errors
    /// When a kernel fails.
    pub(super) fn restore(&mut self, table: &RowTable, versions: RestoredRows, now_ms: i64) -> Result<()> {
        self.store.restore(&self.keys[1], table, versions, false, now_ms)
    }

    /// Sweeps over rows none of which is before those of the sweeps before.
    ///
    /// # Errors
    /// When an expression, a kernel or the consumer fails.
    pub(super) fn run(&mut self, left: &Timed, right: &Timed, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        let left_keys = self.keys[0].evaluate(&left.rows)?;
        let outcome = if right.times.is_empty() {
            Outcome {
                versions: without_nulls(self.current(&left_keys, left.times.len())?, &left_keys),
                dead: Vec::new(),
            }
        } else {
            self.sweep(left, &left_keys, right, cx)?
        };
        self.emit(&left.rows, &outcome.versions, cx, out)?;
        self.store.remove_rows(&outcome.dead);
        self.store.tidy()
    }

    fn sweep(&mut self, left: &Timed, left_keys: &Keyed, right: &Timed, cx: &Context) -> Result<Outcome> {
        let (rows, kinds) = split_row_kind(&right.rows)?;
        let right_keys = self.keys[1].evaluate(&rows)?;
        let mut table = GroupTable::new(self.keys[1].types().to_vec())?;
        let (mut right_groups, mut left_groups) = (Vec::new(), Vec::new());
        table.intern_wider(&right_keys.columns, &mut right_groups)?;
        let from_right = table.len();
        if !left.times.is_empty() {
            table.intern_wider(&left_keys.columns, &mut left_groups)?;
        }
        let mut current = self.current_of(&right_keys, &right_groups, 0..from_right)?;
        current.extend(self.current_of(left_keys, &left_groups, from_right..table.len())?);
        let mut since: Vec<i64> = current
            .iter()
            .map(|row| {
                if *row == NO_ROW {
                    i64::MIN
                } else {
                    self.store.time(*row)
                }
            })
            .collect();
        // Every right row gets its number in the store; those that are no version in the end go again.
        let base = self.store.rows() as u32;
        let appended = Appended {
            rows: &rows,
            keyed: &right_keys,
            hashes: None,
            times: &right.times,
            counts: &[],
            now_ms: cx.clock.now_ms(),
        };
        self.store.append(&self.keys[1], &appended)?;
        let kind = |row: usize| kinds.as_ref().map_or(RowKind::Insert as u8, |kinds| kinds.value(row));
        let is_null = |row: usize| right_keys.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
        let mut dead = Vec::new();
        let mut replace = |row: usize, current: &mut [u32]| {
            let (group, number) = (right_groups[row], base + row as u32);
            let says_nothing = kind(row) == RowKind::UpdateBefore as u8 || is_null(row);
            if says_nothing || right.times[row] < since[group] {
                dead.push(number);
                return;
            }
            since[group] = right.times[row];
            let is_end = kind(row) == RowKind::Delete as u8;
            let version = if is_end { NO_ROW } else { number };
            let before = std::mem::replace(&mut current[group], version);
            dead.extend([before].into_iter().filter(|before| *before != NO_ROW));
            dead.extend(is_end.then_some(number));
        };
        let mut next = 0;
        let mut versions = Vec::with_capacity(left.times.len());
        for (row, time) in left.times.iter().enumerate() {
            while next < right.times.len() && right.times[next] <= *time {
                replace(next, &mut current);
                next += 1;
            }
            versions.push(current[left_groups[row]]);
        }
        (next..right.times.len()).for_each(|row| replace(row, &mut current));
        Ok(Outcome {
            versions: without_nulls(versions, left_keys),
            dead,
        })
    }

    /// The current version for the first row of each group in `range`; group numbers rise with their first rows.
    fn current_of(&mut self, keyed: &Keyed, groups: &[usize], range: std::ops::Range<usize>) -> Result<Vec<u32>> {
        let mut first = Vec::with_capacity(range.len());
        for (row, group) in groups.iter().enumerate() {
            if *group == range.start + first.len() && range.contains(group) {
                first.push(row as u32);
            }
        }
        let rows = UInt32Array::from(first);
        let columns = keyed.columns.iter().map(|column| Ok(take(column, &rows, None)?));
        let keyed = Keyed {
            columns: columns.collect::<Result<Vec<ArrayRef>>>()?,
            nulls: None,
        };
        self.current(&keyed, rows.len())
    }

    /// The current version for each row.
    fn current(&mut self, keyed: &Keyed, rows: usize) -> Result<Vec<u32>> {
        let mut versions = vec![NO_ROW; rows];
        if self.store.is_empty() || rows == 0 {
            return Ok(versions);
        }
        let hashes = keyed.hashes(rows)?;
        let probe = Probe {
            keyed,
            hashes: &hashes,
            times: None,
        };
        let mut expansion = Expansion::new(&mut self.store, &self.keys[1], probe)?;
        while let Some(pairs) = expansion.next(&self.store, rows)? {
            for (row, stored) in pairs.probe.iter().zip(&pairs.stored) {
                versions[*row as usize] = *stored;
            }
        }
        Ok(versions)
    }

    /// Puts out the left rows with their versions, in order.
    fn emit(&mut self, left: &Batch, versions: &[u32], cx: &Context, out: &mut dyn Collector) -> Result<()> {
        let mut pairs: Vec<(u32, u32)> = (0..).zip(versions.iter().copied()).collect();
        if !self.is_outer {
            pairs.retain(|(_, version)| *version != NO_ROW);
        }
        let width = self.store.row_bytes() + crate::data::batch_bytes(left) / left.num_rows().max(1);
        for pairs in pairs.chunks(self.output.pairs_max(width, cx)) {
            cx.cancel.check()?;
            let (mut rows, mut versions): (Vec<u32>, Vec<u32>) = pairs.iter().copied().unzip();
            if self.output.filter.is_some() {
                let sides = (SideRows::batch(left, &rows), SideRows::stored(&self.store, &versions));
                if let Some(mask) = self.output.passes([&sides.0, &sides.1])? {
                    drop(sides);
                    if self.is_outer {
                        let judged = versions.iter_mut().zip(mask.values().iter());
                        judged
                            .filter(|(_, passes)| !passes)
                            .for_each(|(version, _)| *version = NO_ROW);
                    } else {
                        let mut passes = mask.values().iter();
                        rows.retain(|_| passes.next().unwrap_or(false));
                        let mut passes = mask.values().iter();
                        versions.retain(|_| passes.next().unwrap_or(false));
                    }
                }
            }
            let sides = (SideRows::batch(left, &rows), SideRows::stored(&self.store, &versions));
            self.output
                .emit([&sides.0, &sides.1], Kinds::All(RowKind::Insert), cx, out)?;
        }
        Ok(())
    }
}

/// NULL keys have no version.
fn without_nulls(mut versions: Vec<u32>, keyed: &Keyed) -> Vec<u32> {
    if let Some(nulls) = &keyed.nulls {
        for (row, version) in versions.iter_mut().enumerate() {
            if nulls.is_null(row) {
                *version = NO_ROW;
            }
        }
    }
    versions
}
