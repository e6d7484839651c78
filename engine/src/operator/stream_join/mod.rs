//! StreamJoin: joins two streams, insertions or changelogs, without bounds in time.
//!
//! Each side keeps its rows. The rows of a batch look for partners among the other side's, the pairs leave at once, and
//! then the rows are stored. A row that is taken back takes its pairs back. Outer, semi and anti joins keep per row how
//! many partners it has: when the first comes or the last goes, what was said of the row before is taken back. Rows that
//! a batch both adds and takes back cancel out, so of the rest all that is taken back comes before all that is added.
//!
//! A snapshot ([`checkpoint`]) holds both stores with their match counts and arrival times, and the counters of
//! [`NullAware`].

mod checkpoint;
mod null_aware;
#[cfg(test)]
mod tests;

use arrow::array::{UInt8Array, UInt32Array};
use datafusion::common::JoinType;

use crate::data::{Batch, EngineError, Result, RowKind, is_changelog, split_row_kind};
use crate::operator::join_state::{
    Appended, JoinKeys, JoinOutput, Keyed, Kinds, Probe, Removal, RowStore, Seekers, SideRows, StoreOptions, fold,
    in_order, match_rows, take_rows,
};
use crate::operator::row_table::RowTable;
use crate::operator::stream_join::null_aware::NullAware;
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::{JoinInputSpec, StreamJoinSpec};
use crate::state::{Restored, Snapshot};
use crate::time::Timer;

/// Joins two streams.
pub(super) struct StreamJoin {
    join_type: JoinType,
    sides: [Side; 2],
    output: JoinOutput,
    null_aware: Option<NullAware>,
}

struct Side {
    keys: JoinKeys,
    store: RowStore,
    table: RowTable,
    /// What tells rows apart, when they are taken back.
    identity: Option<Vec<usize>>,
    /// Whether a row without partners comes out beside NULLs.
    is_outer: bool,
    /// Whether partners are counted.
    is_counted: bool,
    /// Whether rows are forgotten that may still be taken back.
    may_forget: bool,
    has_ended: bool,
}

/// Rows of one batch that are all added or all taken back.
struct Run {
    side: usize,
    rows: Batch,
    keyed: Keyed,
    hashes: Vec<u64>,
    /// The kinds of additions; `None` when all are insertions.
    kinds: Option<Vec<u8>>,
}

impl Run {
    fn seekers(&self) -> Seekers<'_> {
        Seekers {
            side: self.side,
            rows: &self.rows,
            probe: Probe {
                keyed: &self.keyed,
                hashes: &self.hashes,
                times: None,
            },
        }
    }

    fn has_null_key(&self, row: usize) -> bool {
        self.keyed.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }
}

impl StreamJoin {
    /// A join as `spec` says.
    ///
    /// # Errors
    /// When the spec contradicts itself.
    pub(super) fn new(spec: &StreamJoinSpec) -> Result<Self> {
        let output = JoinOutput::new(
            spec.join_type,
            &spec.left,
            &spec.right,
            spec.filter.as_ref(),
            &spec.schema,
        )?;
        let takes_back = [&spec.left, &spec.right]
            .iter()
            .any(|side| is_changelog(&side.schema.0));
        let inserts_only = matches!(spec.join_type, JoinType::Inner | JoinType::LeftSemi) && !takes_back;
        if !inserts_only && !output.is_changelog {
            return Err(EngineError::Internal(format!(
                "a {} join of these streams takes rows back, but its output has no row kind",
                spec.join_type
            )));
        }
        let one_plain_key = spec.left.keys.len() == 1 && spec.filter.is_none() && !spec.null_equals_null;
        if spec.null_aware && !(spec.join_type == JoinType::LeftAnti && one_plain_key) {
            return Err(EngineError::Internal(
                "a null-aware join of streams is a left anti join on one key alone".into(),
            ));
        }
        let [left, right] = JoinKeys::of_sides(&spec.left, &spec.right, spec.null_equals_null)?;
        let null_aware = spec.null_aware.then(|| NullAware::new(&spec.left, &left));
        // Who must see all rows of the right side is alone.
        let in_parts = !spec.null_aware;
        Ok(Self {
            join_type: spec.join_type,
            sides: [
                Side::new(&spec.left, left, spec.join_type, 0, in_parts),
                Side::new(&spec.right, right, spec.join_type, 1, in_parts),
            ],
            output,
            null_aware,
        })
    }

    /// Whether the output is left rows alone.
    fn is_one_sided(&self) -> bool {
        matches!(self.join_type, JoinType::LeftSemi | JoinType::LeftAnti)
    }

    /// The kind with which pairs leave when a row is added: of inner joins the row's own, as in Flink.
    fn has_own_kind(&self) -> bool {
        self.join_type == JoinType::Inner
    }

    fn run(&self, side: usize, rows: Batch, kinds: Option<Vec<u8>>) -> Result<Run> {
        let keyed = self.sides[side].keys.evaluate(&rows)?;
        let hashes = keyed.hashes(rows.num_rows())?;
        Ok(Run {
            side,
            rows,
            keyed,
            hashes,
            kinds,
        })
    }

    /// Rows that come.
    fn add(&mut self, run: &Run, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        let one_sided = self.is_one_sided();
        let own_kind = self.has_own_kind();
        let says_other = self.null_aware.as_ref().is_none_or(NullAware::shows);
        let join_type = self.join_type;
        let [left, right] = &mut self.sides;
        let (own, other) = if run.side == 0 { (left, right) } else { (right, left) };
        let mut counts = vec![0u32; if own.is_counted { run.rows.num_rows() } else { 0 }];
        let (own_counted, other_counted) = (own.is_counted, other.is_counted);
        match_rows(
            run.seekers(),
            &mut other.store,
            &other.keys,
            &mut self.output,
            cx,
            out,
            &mut |store, output, pairs, out| {
                if own_counted {
                    pairs.probe.iter().for_each(|row| counts[*row as usize] += 1);
                }
                if other_counted {
                    let turned = count_up(&mut store.counts, &pairs.stored);
                    if !turned.is_empty() && says_other {
                        let kind = if join_type == JoinType::LeftSemi {
                            RowKind::Insert
                        } else {
                            RowKind::Delete
                        };
                        let (stored, nulls) = (SideRows::stored(store, &turned), SideRows::Nulls(turned.len()));
                        output.emit(in_order(1 - run.side, &stored, &nulls), Kinds::All(kind), cx, out)?;
                    }
                }
                if one_sided {
                    return Ok(());
                }
                let own = SideRows::batch(&run.rows, &pairs.probe);
                let other = SideRows::stored(store, &pairs.stored);
                let kinds = run.kinds.as_ref().filter(|_| own_kind);
                let kinds: Option<Vec<u8>> =
                    kinds.map(|kinds| pairs.probe.iter().map(|row| kinds[*row as usize]).collect());
                let kinds = kinds.as_deref().map_or(Kinds::All(RowKind::Insert), Kinds::Each);
                output.emit(in_order(run.side, &own, &other), kinds, cx, out)
            },
        )?;
        self.tell_own(run, &counts, RowKind::Insert, cx, out)?;
        self.store(run, &counts, cx)
    }

    /// What is said of the rows of a run alone: that they have no partner, or that they have one.
    fn tell_own(
        &mut self,
        run: &Run,
        counts: &[u32],
        kind: RowKind,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let has_partner = match (self.join_type, run.side) {
            (JoinType::LeftSemi, 0) => true,
            (JoinType::LeftAnti, 0) => false,
            _ if self.sides[run.side].is_outer => false,
            _ => return Ok(()),
        };
        let null_aware = self.null_aware.as_ref();
        let is_told = |row: usize| {
            (counts[row] > 0) == has_partner && null_aware.is_none_or(|state| state.shows_left(run.has_null_key(row)))
        };
        let rows = (0..run.rows.num_rows()).filter(|row| is_told(*row));
        let rows: Vec<u32> = rows.map(|row| row as u32).collect();
        for rows in rows.chunks(cx.batch_size.max(1)) {
            let (own, nulls) = (SideRows::batch(&run.rows, rows), SideRows::Nulls(rows.len()));
            self.output
                .emit(in_order(run.side, &own, &nulls), Kinds::All(kind), cx, out)?;
        }
        Ok(())
    }

    /// Stores added rows, those that anybody will ask for.
    fn store(&mut self, run: &Run, counts: &[u32], cx: &Context) -> Result<()> {
        // Nobody looks for these rows any more, and what they are joined with when they are taken back is on the other side.
        if self.sides[1 - run.side].has_ended {
            return Ok(());
        }
        let now_ms = cx.clock.now_ms();
        if let Some(state) = self.null_aware.as_mut().filter(|_| run.side == 0) {
            state.store_left(run, &self.sides[0].keys, now_ms)?;
        }
        let inserts_only = self.sides.iter().all(|side| side.identity.is_none());
        let settled = self.join_type == JoinType::LeftSemi && run.side == 0 && inserts_only;
        let is_kept = |row: usize| !(run.has_null_key(row) || (settled && counts[row] > 0));
        let own = &mut self.sides[run.side];
        if !settled && run.keyed.nulls.is_none() {
            return own.store.append(
                &own.keys,
                &Appended {
                    rows: &run.rows,
                    keyed: &run.keyed,
                    hashes: Some(&run.hashes),
                    times: &[],
                    counts,
                    now_ms,
                },
            );
        }
        let kept: Vec<u32> = (0..run.rows.num_rows())
            .filter(|row| is_kept(*row))
            .map(|row| row as u32)
            .collect();
        let of = |values: &[u32]| kept.iter().map(|row| values[*row as usize]).collect::<Vec<_>>();
        let hashes: Vec<u64> = kept.iter().map(|row| run.hashes[*row as usize]).collect();
        let counts = if own.is_counted { of(counts) } else { Vec::new() };
        let rows = take_rows(&run.rows, &UInt32Array::from(kept))?;
        own.store.append(
            &own.keys,
            &Appended {
                keyed: &own.keys.evaluate(&rows)?,
                rows: &rows,
                hashes: Some(&hashes),
                times: &[],
                counts: &counts,
                now_ms,
            },
        )
    }

    /// Rows that go.
    fn take_back(&mut self, run: &Run, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        let one_sided = self.is_one_sided();
        let says_other = self.null_aware.as_ref().is_none_or(NullAware::shows);
        let join_type = self.join_type;
        let [left, right] = &mut self.sides;
        let (own, other) = if run.side == 0 { (left, right) } else { (right, left) };
        let mut counts = vec![0u32; if own.is_counted { run.rows.num_rows() } else { 0 }];
        let (own_counted, other_counted) = (own.is_counted, other.is_counted);
        match_rows(
            run.seekers(),
            &mut other.store,
            &other.keys,
            &mut self.output,
            cx,
            out,
            &mut |store, output, pairs, out| {
                if own_counted {
                    pairs.probe.iter().for_each(|row| counts[*row as usize] += 1);
                }
                if !one_sided {
                    let own = SideRows::batch(&run.rows, &pairs.probe);
                    let other = SideRows::stored(store, &pairs.stored);
                    output.emit(in_order(run.side, &own, &other), Kinds::All(RowKind::Delete), cx, out)?;
                }
                if other_counted {
                    let turned = count_down(&mut store.counts, &pairs.stored);
                    if !turned.is_empty() && says_other {
                        let kind = if join_type == JoinType::LeftSemi {
                            RowKind::Delete
                        } else {
                            RowKind::Insert
                        };
                        let (stored, nulls) = (SideRows::stored(store, &turned), SideRows::Nulls(turned.len()));
                        output.emit(in_order(1 - run.side, &stored, &nulls), Kinds::All(kind), cx, out)?;
                    }
                }
                Ok(())
            },
        )?;
        self.tell_own(run, &counts, RowKind::Delete, cx, out)
    }

    /// Removes the rows of a run from their store. Those that were never there are left out of the run, unless they may
    /// have been forgotten.
    fn remove(&mut self, run: Run) -> Result<Run> {
        if self.sides[1 - run.side].has_ended {
            return Ok(run);
        }
        if let Some(state) = self.null_aware.as_mut().filter(|_| run.side == 0) {
            state.remove_left(&run, &self.sides[0].keys)?;
        }
        let own = &mut self.sides[run.side];
        let found = own.store.remove(&own.keys, &run.rows)?;
        let stays = |row: usize| found[row] || own.may_forget || run.has_null_key(row);
        let kept: Vec<u32> = (0..found.len())
            .filter(|row| stays(*row))
            .map(|row| row as u32)
            .collect();
        if kept.len() == found.len() {
            return Ok(run);
        }
        let rows = take_rows(&run.rows, &UInt32Array::from(kept))?;
        self.run(run.side, rows, None)
    }

    /// One batch's rows of one sign, with what they mean for `NOT IN`.
    fn handle(&mut self, run: Run, is_addition: bool, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        if run.rows.num_rows() == 0 {
            return Ok(());
        }
        let run = if is_addition { run } else { self.remove(run)? };
        if run.rows.num_rows() == 0 {
            return Ok(());
        }
        if is_addition {
            if let Some(state) = self.null_aware.as_mut().filter(|_| run.side == 1) {
                state.before_right_comes(&run, &self.sides[0].store, &mut self.output, cx, out)?;
            }
            self.add(&run, cx, out)
        } else {
            self.take_back(&run, cx, out)?;
            match self.null_aware.as_mut().filter(|_| run.side == 1) {
                Some(state) => state.after_right_went(&run, &self.sides[0].store, &mut self.output, cx, out),
                None => Ok(()),
            }
        }
    }

    fn handle_batch(&mut self, side: usize, batch: &Batch, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        let (rows, kinds) = split_row_kind(batch)?;
        let Some(kinds) = kinds.filter(|kinds| kinds.values().iter().any(|kind| *kind != RowKind::Insert as u8)) else {
            let run = self.run(side, rows, None)?;
            return self.handle(run, true, cx, out);
        };
        let identity = self.sides[side].identity.clone().unwrap_or_default();
        let (gone, come) = signs(&rows, &kinds, &identity)?;
        if gone.is_empty() && come.len() == rows.num_rows() {
            let run = self.run(side, rows, Some(kinds.values().to_vec()))?;
            return self.handle(run, true, cx, out);
        }
        let gone = self.run(side, take_rows(&rows, &UInt32Array::from(gone))?, None)?;
        self.handle(gone, false, cx, out)?;
        let kinds = come.iter().map(|row| kinds.value(*row as usize)).collect();
        let come = self.run(side, take_rows(&rows, &UInt32Array::from(come))?, Some(kinds))?;
        self.handle(come, true, cx, out)
    }

    fn expire(&mut self, cx: &mut Context) -> Result<()> {
        let now_ms = cx.clock.now_ms();
        for side in &mut self.sides {
            side.store.expire(now_ms)?;
        }
        match &mut self.null_aware {
            Some(state) => state.expire(now_ms),
            None => Ok(()),
        }
    }

    fn hold(&self, cx: &mut Context) -> Result<()> {
        let null_aware = self.null_aware.as_ref().map_or(0, NullAware::bytes);
        let sides: usize = self.sides.iter().map(|side| side.store.bytes()).sum();
        cx.hold(sides + null_aware)
    }
}

impl Side {
    fn new(spec: &JoinInputSpec, keys: JoinKeys, join_type: JoinType, side: usize, in_parts: bool) -> Self {
        let is_outer = match join_type {
            JoinType::Full => true,
            JoinType::Left => side == 0,
            JoinType::Right => side == 1,
            _ => false,
        };
        let one_sided = matches!(join_type, JoinType::LeftSemi | JoinType::LeftAnti);
        let is_counted = is_outer || (one_sided && side == 0);
        let removal = Removal::of(spec);
        let identity = match &removal {
            Removal::ByColumns(columns) => Some(columns.clone()),
            Removal::Never | Removal::ByNumber => None,
        };
        let options = StoreOptions {
            times: false,
            counts: is_counted,
            removal,
            ttl_ms: spec.ttl_ms,
        };
        let store = RowStore::new(spec, &keys, options);
        let name = if side == 0 { "left" } else { "right" };
        Self {
            table: store.table(name, if in_parts { &spec.keys } else { &[] }),
            store,
            keys,
            identity,
            is_outer,
            is_counted,
            may_forget: spec.ttl_ms.is_some(),
            has_ended: false,
        }
    }
}

/// The rows that are taken back and those that are added, without those that cancel out.
fn signs(rows: &Batch, kinds: &UInt8Array, identity: &[usize]) -> Result<(Vec<u32>, Vec<u32>)> {
    let is_addition = |row: &u32| RowKind::from_u8(kinds.value(*row as usize)).map(RowKind::is_addition);
    let mut all = (Vec::new(), Vec::new());
    for row in 0..kinds.len() as u32 {
        if is_addition(&row)? {
            all.1.push(row);
        } else {
            all.0.push(row);
        }
    }
    if all.0.is_empty() || all.1.is_empty() {
        return Ok(all);
    }
    fold(rows, kinds, identity)
}

/// Counts a partner for each of `rows`; gives back those that had none.
fn count_up(counts: &mut [u32], rows: &[u32]) -> Vec<u32> {
    let mut turned = Vec::new();
    for row in rows {
        let count = &mut counts[*row as usize];
        if *count == 0 {
            turned.push(*row);
        }
        *count = count.saturating_add(1);
    }
    turned
}

/// Counts a partner less for each of `rows`; gives back those that have none left.
fn count_down(counts: &mut [u32], rows: &[u32]) -> Vec<u32> {
    let mut turned = Vec::new();
    for row in rows {
        let count = &mut counts[*row as usize];
        if *count == 1 {
            turned.push(*row);
        }
        *count = count.saturating_sub(1);
    }
    turned
}

impl Operator for StreamJoin {
    fn on_batch(&mut self, port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.expire(cx)?;
        self.handle_batch(port, &batch, cx, out)?;
        self.output.flush(out)?;
        self.hold(cx)
    }

    fn on_timer(&mut self, _timer: Timer, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        self.expire(cx)?;
        self.hold(cx)
    }

    fn next_timer(&self) -> Option<i64> {
        let sides = self.sides.iter().filter_map(|side| side.store.next_expiry());
        sides
            .chain(self.null_aware.as_ref().and_then(NullAware::next_expiry))
            .min()
    }

    fn snapshot(&mut self, state: &mut Snapshot, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        self.freeze(state)
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        self.thaw(state, cx)?;
        self.hold(cx)
    }

    fn on_end(&mut self, port: Port, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        self.sides[port].has_ended = true;
        // Nobody looks for the other side's rows any more.
        self.sides[1 - port].store.clear();
        if let Some(state) = self.null_aware.as_mut().filter(|_| port == 1) {
            state.clear();
        }
        self.hold(cx)
    }
}
