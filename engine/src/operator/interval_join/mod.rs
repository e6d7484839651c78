//! IntervalJoin: joins rows of equal keys whose times are near each other.
//!
//! Each side keeps its rows until the watermark says that no partner can come any more. With watermark `w` every row to
//! come has a time after `w`: a left row of time `t` may have partners up to `t + upper`, so it is needed while
//! `w < t + upper`; a right row of time `t` while `w < t - lower`. Rows are forgotten batch by batch, and a row that is not
//! needed any more does not take part, though it may still lie in a batch with others: what late rows meet does not depend
//! on how rows came in batches.
//!
//! Rows of outer and anti joins that have found no partner leave when they are not needed any more. A late row takes the
//! partners that it finds; when it finds none and nothing it could meet is to come, it is dropped and counted, or leaves
//! as one without partner.
//!
//! What leaves may be older than the watermark: a pair has the time of the row that waited. So watermarks are handed on
//! with a delay of as much as a row can wait.
//!
//! A snapshot holds of both stores the rows that are needed still, with times and match counts. Those that are not have
//! left, and after a restore, when event time starts anew, must not leave again.

#[cfg(test)]
mod tests;

use std::sync::atomic::Ordering;

use arrow::array::UInt32Array;
use datafusion::common::JoinType;

use crate::data::{Batch, EngineError, Result, RowKind, Watermark, is_changelog};
use crate::operator::join_state::{
    Appended, JoinKeys, JoinOutput, Keyed, Kinds, Probe, RowStore, Seekers, SideRows, StoreOptions, in_order,
    match_rows, take_rows, times_of,
};
use crate::operator::row_table::RowTable;
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::{IntervalJoinSpec, JoinInputSpec, WindowTime};
use crate::state::{Restored, Snapshot};
use crate::time::Timer;

/// Joins two streams within an interval of time.
pub(super) struct IntervalJoin {
    join_type: JoinType,
    sides: [Side; 2],
    output: JoinOutput,
    /// No row up to this time is to come.
    reached_ms: i64,
    /// By how much watermarks are delayed; `None` in processing time.
    delay_ms: Option<i64>,
}

struct Side {
    keys: JoinKeys,
    store: RowStore,
    table: RowTable,
    time: WindowTime,
    /// A row of time `t` has partners from `t + before_ms` to `t + after_ms`.
    before_ms: i64,
    after_ms: i64,
    /// Whether a row without partner leaves when none can come any more.
    tells_unmatched: bool,
    has_ended: bool,
}

impl Side {
    fn new(
        name: &str,
        spec: &JoinInputSpec,
        keys: JoinKeys,
        time: WindowTime,
        from_to: (i64, i64),
        tells_unmatched: bool,
    ) -> Self {
        let options = StoreOptions {
            times: true,
            counts: tells_unmatched,
            ..StoreOptions::default()
        };
        let store = RowStore::new(spec, &keys, options);
        Self {
            table: store.table(name, &spec.keys),
            store,
            keys,
            time,
            before_ms: from_to.0,
            after_ms: from_to.1,
            tells_unmatched,
            has_ended: false,
        }
    }

    /// The last watermark at which a row is not needed any more: its latest partner's time.
    fn last_partner(&self, time: i64) -> i64 {
        time.saturating_add(self.after_ms)
    }

    /// The greatest time of rows that are not needed any more once `reached_ms` is.
    fn needless_through(&self, reached_ms: i64) -> i64 {
        match reached_ms {
            i64::MAX => i64::MAX,
            reached_ms => reached_ms.saturating_sub(self.after_ms),
        }
    }
}

impl IntervalJoin {
    /// A join as `spec` says.
    ///
    /// # Errors
    /// When the spec contradicts itself.
    pub(super) fn new(spec: &IntervalJoinSpec) -> Result<Self> {
        let schemas = [&spec.left.schema, &spec.right.schema, &spec.schema];
        if schemas.iter().any(|schema| is_changelog(&schema.0)) {
            return Err(EngineError::Plan(
                "an interval join takes insertions only; one of its inputs takes rows back".into(),
            ));
        }
        let (by_clock, both) = match (spec.left_time, spec.right_time) {
            (WindowTime::Event(_), WindowTime::Event(_)) => (false, true),
            (WindowTime::Processing, WindowTime::Processing) => (true, true),
            _ => (false, false),
        };
        if !both {
            return Err(EngineError::Plan(
                "an interval join compares event time with event time, or processing time with processing time".into(),
            ));
        }
        let output = JoinOutput::new(
            spec.join_type,
            &spec.left,
            &spec.right,
            spec.filter.as_ref(),
            &spec.schema,
        )?;
        let [left, right] = JoinKeys::of_sides(&spec.left, &spec.right, false)?;
        let tells_left = matches!(
            spec.join_type,
            JoinType::Left | JoinType::Full | JoinType::LeftAnti | JoinType::LeftSemi
        );
        let tells_right = matches!(spec.join_type, JoinType::Right | JoinType::Full);
        let (lower, upper) = (spec.lower_ms, spec.upper_ms);
        let right_waits = lower.saturating_neg();
        let one_sided = matches!(spec.join_type, JoinType::LeftSemi | JoinType::LeftAnti);
        let waits = if one_sided { upper } else { upper.max(right_waits) };
        Ok(Self {
            join_type: spec.join_type,
            sides: [
                Side::new("left", &spec.left, left, spec.left_time, (lower, upper), tells_left),
                Side::new(
                    "right",
                    &spec.right,
                    right,
                    spec.right_time,
                    (upper.saturating_neg(), right_waits),
                    tells_right,
                ),
            ],
            output,
            reached_ms: i64::MIN,
            delay_ms: (!by_clock).then_some(waits.max(0)),
        })
    }

    fn is_one_sided(&self) -> bool {
        matches!(self.join_type, JoinType::LeftSemi | JoinType::LeftAnti)
    }

    fn handle(&mut self, side: usize, rows: Batch, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        let times = times_of(&rows, self.sides[side].time, cx)?;
        let keyed = self.sides[side].keys.evaluate(&rows)?;
        // What of the other side such rows may meet: nothing that is not needed any more.
        let own = &self.sides[side];
        let next_ms = self.reached_ms.saturating_add(1);
        let from = |time: i64| time.max(next_ms).saturating_add(own.before_ms);
        let to = |time: i64| time.saturating_add(own.after_ms);
        let least = from(times.iter().copied().min().unwrap_or(i64::MAX));
        let most = to(times.iter().copied().max().unwrap_or(i64::MIN));
        let mut matched = vec![0u32; rows.num_rows()];
        let mut hashes = None;
        let other = self.sides[1 - side].store.time_span();
        if other.is_some_and(|(first, last)| first <= most && last >= least) {
            let known = keyed.hashes(rows.num_rows())?;
            let from: Vec<i64> = times.iter().copied().map(from).collect();
            let to: Vec<i64> = times.iter().copied().map(to).collect();
            self.meet(side, &rows, &keyed, &known, (&from, &to), &mut matched, cx, out)?;
            hashes = Some(known);
        }
        self.settle(side, &rows, &keyed, hashes, &times, &matched, cx, out)
    }

    /// Finds the partners that are there.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call, and a struct of them would be another name for it"
    )]
    fn meet(
        &mut self,
        side: usize,
        rows: &Batch,
        keyed: &Keyed,
        hashes: &[u64],
        times: (&[i64], &[i64]),
        matched: &mut [u32],
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let (join_type, one_sided) = (self.join_type, self.is_one_sided());
        let other = &mut self.sides[1 - side];
        let other_counted = other.tells_unmatched;
        let seekers = Seekers {
            side,
            rows,
            probe: Probe {
                keyed,
                hashes,
                times: Some(times),
            },
        };
        match_rows(
            seekers,
            &mut other.store,
            &other.keys,
            &mut self.output,
            cx,
            out,
            &mut |store, output, pairs, out| {
                pairs.probe.iter().for_each(|row| matched[*row as usize] = 1);
                if other_counted {
                    let mut turned = Vec::new();
                    for row in &pairs.stored {
                        if std::mem::replace(&mut store.counts[*row as usize], 1) == 0 {
                            turned.push(*row);
                        }
                    }
                    if join_type == JoinType::LeftSemi && !turned.is_empty() {
                        let (left, right) = (SideRows::stored(store, &turned), SideRows::Nulls(turned.len()));
                        output.emit([&left, &right], Kinds::All(RowKind::Insert), cx, out)?;
                    }
                }
                if one_sided {
                    return Ok(());
                }
                let own = SideRows::batch(rows, &pairs.probe);
                let other = SideRows::stored(store, &pairs.stored);
                output.emit(in_order(side, &own, &other), Kinds::All(RowKind::Insert), cx, out)
            },
        )
    }

    /// Keeps the rows that may find partners yet; lets go the others.
    #[expect(
        clippy::too_many_arguments,
        reason = "one call, and a struct of them would be another name for it"
    )]
    fn settle(
        &mut self,
        side: usize,
        rows: &Batch,
        keyed: &Keyed,
        hashes: Option<Vec<u64>>,
        times: &[i64],
        matched: &[u32],
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let (join_type, reached_ms) = (self.join_type, self.reached_ms);
        let other_ended = self.sides[1 - side].has_ended;
        let own = &mut self.sides[side];
        let is_null = |row: usize| keyed.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row));
        let left_only = matches!(join_type, JoinType::LeftSemi | JoinType::LeftAnti) && side == 0;
        let waits = |row: usize| {
            let is_settled = other_ended || is_null(row) || (left_only && matched[row] > 0);
            !is_settled && own.last_partner(times[row]) > reached_ms
        };
        let least = times.iter().copied().min().unwrap_or(i64::MAX);
        if !other_ended && !left_only && keyed.nulls.is_none() && own.last_partner(least) > reached_ms {
            let appended = Appended {
                rows,
                keyed,
                hashes: hashes.as_deref(),
                times,
                counts: if own.tells_unmatched { matched } else { &[] },
                now_ms: 0,
            };
            return own.store.append(&own.keys, &appended);
        }
        let (mut kept, mut alone, mut partnered, mut late) = (Vec::new(), Vec::new(), Vec::new(), 0u64);
        for row in 0..rows.num_rows() {
            if matched[row] > 0 && left_only {
                partnered.push(row as u32);
            }
            if waits(row) {
                kept.push(row as u32);
            } else if matched[row] == 0 {
                alone.push(row as u32);
                late += u64::from(times[row].max(own.last_partner(times[row])) <= reached_ms);
            }
        }
        if !kept.is_empty() {
            append_some(own, rows, &kept, hashes.as_deref(), times, matched)?;
        }
        let told = match join_type {
            JoinType::LeftSemi => partnered,
            _ if own.tells_unmatched => alone,
            _ => Vec::new(),
        };
        let is_told = own.tells_unmatched && join_type != JoinType::LeftSemi;
        if late > 0 && !is_told && matches!(own.time, WindowTime::Event(_)) {
            cx.metrics.late_rows.fetch_add(late, Ordering::Relaxed);
        }
        for told in told.chunks(cx.batch_size.max(1)) {
            let (own, nulls) = (SideRows::batch(rows, told), SideRows::Nulls(told.len()));
            self.output
                .emit(in_order(side, &own, &nulls), Kinds::All(RowKind::Insert), cx, out)?;
        }
        Ok(())
    }

    /// No row up to `reached_ms` is to come: what waited for one leaves.
    fn reach(&mut self, reached_ms: i64, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let before = self.reached_ms;
        self.reached_ms = before.max(reached_ms);
        if self.reached_ms == before {
            return Ok(());
        }
        for number in 0..2 {
            let side = &mut self.sides[number];
            let through = side.needless_through(reached_ms);
            if side.tells_unmatched && self.join_type != JoinType::LeftSemi {
                let from = if before == i64::MIN {
                    i64::MIN
                } else {
                    side.needless_through(before)
                };
                let store = &side.store;
                let leaves = |row: usize| {
                    let time = store.time(row as u32);
                    store.counts[row] == 0 && time <= through && (time > from || before == i64::MIN)
                };
                let rows = store.rows_where((from, through), leaves);
                for rows in rows.chunks(self.output.pairs_max(store.row_bytes(), cx)) {
                    cx.cancel.check()?;
                    let (own, nulls) = (SideRows::stored(store, rows), SideRows::Nulls(rows.len()));
                    self.output
                        .emit(in_order(number, &own, &nulls), Kinds::All(RowKind::Insert), cx, out)?;
                }
            }
            side.store.forget_through(through)?;
        }
        self.output.flush(out)?;
        self.hold(cx)
    }

    fn hold(&self, cx: &mut Context) -> Result<()> {
        cx.hold(self.sides.iter().map(|side| side.store.bytes()).sum())
    }

    fn is_by_clock(&self) -> bool {
        self.delay_ms.is_none()
    }

    /// By the clock rows of this very millisecond are still to come.
    fn read_clock(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if self.is_by_clock() {
            self.reach(cx.clock.now_ms().saturating_sub(1), cx, out)?;
        }
        Ok(())
    }
}

/// Stores some rows of a batch.
fn append_some(
    own: &mut Side,
    rows: &Batch,
    kept: &[u32],
    hashes: Option<&[u64]>,
    times: &[i64],
    matched: &[u32],
) -> Result<()> {
    let kept_rows = take_rows(rows, &UInt32Array::from(kept.to_vec()))?;
    let hashes = hashes.map(|hashes| kept.iter().map(|row| hashes[*row as usize]).collect::<Vec<_>>());
    let times: Vec<i64> = kept.iter().map(|row| times[*row as usize]).collect();
    let counts: Vec<u32> = match own.tells_unmatched {
        true => kept.iter().map(|row| matched[*row as usize]).collect(),
        false => Vec::new(),
    };
    let appended = Appended {
        keyed: &own.keys.evaluate(&kept_rows)?,
        rows: &kept_rows,
        hashes: hashes.as_deref(),
        times: &times,
        counts: &counts,
        now_ms: 0,
    };
    own.store.append(&own.keys, &appended)
}

impl Operator for IntervalJoin {
    fn on_batch(&mut self, port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.read_clock(cx, out)?;
        self.handle(port, batch, cx, out)?;
        self.output.flush(out)?;
        self.hold(cx)
    }

    fn on_watermark(&mut self, watermark: Watermark, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let Some(delay_ms) = self.delay_ms else {
            return out.watermark(watermark);
        };
        self.reach(watermark.0, cx, out)?;
        out.watermark(match watermark {
            Watermark::MAX => watermark,
            Watermark(at) => Watermark(at.saturating_sub(delay_ms)),
        })
    }

    fn on_timer(&mut self, _timer: Timer, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.read_clock(cx, out)
    }

    fn next_timer(&self) -> Option<i64> {
        if !self.is_by_clock() {
            return None;
        }
        let due = |side: &Side| {
            let time = side.store.first_time_after(side.needless_through(self.reached_ms))?;
            Some(side.last_partner(time).saturating_add(1))
        };
        self.sides.iter().filter_map(due).min()
    }

    fn snapshot(&mut self, state: &mut Snapshot, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        for side in &self.sides {
            let needless = match self.reached_ms {
                i64::MIN => i64::MIN,
                reached_ms => side.needless_through(reached_ms),
            };
            state.full(side.table.spec(), side.store.freeze_after(&side.table, needless));
        }
        Ok(())
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        // By the clock rows are in the order of time, which tells when the next one is due.
        let (by_time, now_ms) = (self.is_by_clock(), cx.clock.now_ms());
        for side in &mut self.sides {
            let rows = state.take(side.table.spec())?;
            side.store.restore(&side.keys, &side.table, rows, by_time, now_ms)?;
        }
        self.hold(cx)
    }

    fn on_end(&mut self, port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.sides[port].has_ended = true;
        if self.sides.iter().all(|side| side.has_ended) {
            return self.reach(i64::MAX, cx, out);
        }
        // Nobody looks for the other side's rows any more; those that tell that they found no partner do so in time.
        let other = &mut self.sides[1 - port];
        if !other.tells_unmatched {
            other.store.clear();
        }
        self.hold(cx)
    }
}
