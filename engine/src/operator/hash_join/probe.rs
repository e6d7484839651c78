//! Probing: from the runs of matches to output, for every join type.
//!
//! Without a residual condition the runs say everything: semi, anti and mark joins only look whether a run is empty.
//! With one, candidate pairs are made and judged piece by piece. Either way no more than a batch of pairs exists at a
//! time, though one probe row may match millions of build rows.

use arrow::array::{BooleanArray, UInt32Array, new_empty_array};
use arrow::buffer::{BooleanBuffer, NullBuffer};
use datafusion::common::JoinType;

use crate::data::{Batch, Result};
use crate::operator::hash_join::build::{BuildRows, Collected, nullable_rows};
use crate::operator::hash_join::keys::{KeyShape, Keys};
use crate::operator::hash_join::marks::{Marks, emit_build, emits_pairs, keeps_unmatched_probe, visits_build};
use crate::operator::hash_join::output::{Output, Selection, Sides, satisfied};
use crate::operator::hash_join::slots::Run;
use crate::operator::hash_join::table::Table;
use crate::operator::hash_join::widths::PieceLimit;
use crate::operator::{Collector, Context};
use crate::plan::{HashJoinSpec, JoinFilterSpec};

/// In place of a build row: none matches.
const NO_ROW: u32 = u32::MAX;

/// The build side as the probe side meets it.
pub(super) struct Prober {
    pub(super) rows: BuildRows,
    pub(super) table: Table,
    /// The build rows that matched, when the join type asks.
    pub(super) visited: Option<Marks>,
    /// Whether a build key was NULL and so matches nothing.
    pub(super) has_null_key: bool,
}

impl Prober {
    /// The table and the rows of what was collected for the join that `spec` says. What building takes is booked
    /// already; in the end the prober and `other_bytes` are.
    ///
    /// # Errors
    /// When a kernel fails.
    pub(super) fn build(
        spec: &HashJoinSpec,
        shape: &KeyShape,
        mut collected: Collected,
        other_bytes: usize,
        cx: &mut Context,
    ) -> Result<Self> {
        let rows = collected.rows();
        let (chunks, _) = collected.take_extra();
        let mut arrays = Vec::with_capacity(chunks.len());
        if rows > 0 {
            for chunks in chunks {
                arrays.push(KeyShape::concat(&chunks)?);
            }
        } else {
            arrays.extend(shape.types().iter().map(new_empty_array));
        }
        let keys = shape.digest(&arrays, rows)?;
        drop(arrays);
        let has_null_key = keys.nulls.is_some();
        let table = Table::build(keys, shape.is_integer());
        let mut bytes = table.memory_bytes() + other_bytes;
        let visited = visits_build(spec.join_type).then(|| {
            bytes += Marks::memory_bytes(rows);
            Marks::new(rows)
        });
        Ok(Self {
            rows: collected.finish(bytes, cx)?,
            table,
            visited,
            has_null_key,
        })
    }

    /// The probe side has ended: hands on the build rows that wait for that.
    ///
    /// # Errors
    /// When a kernel or the consumer fails.
    pub(super) fn finish(
        mut self,
        join_type: JoinType,
        output: &mut Output,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        match &mut self.visited {
            Some(visited) => emit_build(join_type, &self.rows, &visited.finish(), output, cx, out),
            None => Ok(()),
        }
    }

    /// Joins one probe batch.
    ///
    /// # Errors
    /// When an expression, a kernel or the consumer fails.
    pub(super) fn join(
        &mut self,
        spec: &HashJoinSpec,
        batch: &Batch,
        keys: &Keys,
        output: &mut Output,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let runs = self.table.lookup(keys);
        if let Some(filter) = &spec.filter {
            return self.join_filtered(spec.join_type, filter, batch, &runs, output, cx, out);
        }
        if let Some(visited) = &mut self.visited {
            visit(visited, &self.table, &runs);
        }
        let sides = Sides {
            build: &self.rows,
            probe: Some(batch),
        };
        let hits = || BooleanBuffer::collect_bool(runs.len(), |i| runs[i].len != 0);
        match spec.join_type {
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
                let keep_unmatched = keeps_unmatched_probe(spec.join_type);
                if output.is_bare() {
                    let least = u32::from(keep_unmatched);
                    return output.bare(runs.iter().map(|run| run.len.max(least) as usize).sum(), cx, out);
                }
                let mut expansion = Expansion::new(&runs, &self.table, keep_unmatched);
                let limit = output.piece_limit(sides, None, cx);
                while let Some(pairs) = expansion.piece(&limit, |_| false) {
                    cx.cancel.check()?;
                    let (build, probe) = pairs.into_selections(self.table.is_unique);
                    output.pairs(sides, &build, &probe, cx, out)?;
                    if out.is_done() {
                        break;
                    }
                }
                Ok(())
            }
            JoinType::RightSemi => output.probe_where(sides, &hits(), cx, out),
            JoinType::RightAnti => {
                let nulls = if spec.null_aware && self.rows.len() > 0 {
                    keys.nulls.as_ref()
                } else {
                    None
                };
                output.probe_where(sides, &unmatched(&hits(), nulls), cx, out)
            }
            JoinType::RightMark => output.marked(sides, &hits(), cx, out),
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => Ok(()),
        }
    }

    #[expect(
        clippy::too_many_arguments,
        reason = "one call, and a struct of them would be another name for it"
    )]
    fn join_filtered(
        &mut self,
        join_type: JoinType,
        filter: &JoinFilterSpec,
        batch: &Batch,
        runs: &[Run],
        output: &mut Output,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let sides = Sides {
            build: &self.rows,
            probe: Some(batch),
        };
        let unique = self.table.is_unique;
        let all_matches = emits_pairs(join_type) || visits_build(join_type);
        let mut matched = Marks::new(runs.len());
        let mut expansion = Expansion::new(runs, &self.table, false);
        let limit = output.piece_limit(sides, Some(filter), cx);
        // A probe row that is known to match needs no further candidates where one match is all that is asked for.
        while let Some(mut pairs) = expansion.piece(&limit, |row| !all_matches && matched.get(row)) {
            cx.cancel.check()?;
            if !emits_pairs(join_type)
                && let Some(visited) = &self.visited
            {
                pairs.retain(|build, _| !visited.get(build as usize));
            }
            if pairs.build.is_empty() {
                continue;
            }
            let (build, probe) = pairs.selections(unique);
            let mask = satisfied(filter, sides, &build, &probe)?;
            pairs.filter(&mask);
            for row in &pairs.probe {
                matched.set(*row as usize);
            }
            if let Some(visited) = &mut self.visited {
                for row in &pairs.build {
                    visited.set(*row as usize);
                }
            }
            if emits_pairs(join_type) && !pairs.build.is_empty() {
                // When all pairs passed, what was gathered for the condition serves again.
                let (build, probe) = if pairs.build.len() == mask.len() {
                    (build, probe)
                } else {
                    pairs.selections(unique)
                };
                output.pairs(sides, &build, &probe, cx, out)?;
                if out.is_done() {
                    return Ok(());
                }
            }
        }
        let matched = matched.finish();
        match join_type {
            JoinType::Right | JoinType::Full | JoinType::RightAnti => output.probe_where(sides, &!&matched, cx, out),
            JoinType::RightSemi => output.probe_where(sides, &matched, cx, out),
            JoinType::RightMark => output.marked(sides, &matched, cx, out),
            JoinType::Inner | JoinType::Left => Ok(()),
            JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => Ok(()),
        }
    }
}

/// Marks all rows of the runs. Runs of one key are marked as a whole, so the first row speaks for the others.
fn visit(visited: &mut Marks, table: &Table, runs: &[Run]) {
    for run in runs.iter().filter(|run| run.len != 0) {
        if !visited.get(table.row(run.start) as usize) {
            for position in run.start..run.start + run.len {
                visited.set(table.row(position) as usize);
            }
        }
    }
}

/// The rows without a match, less those whose key is NULL when `nulls` is given.
fn unmatched(hits: &BooleanBuffer, nulls: Option<&NullBuffer>) -> BooleanBuffer {
    match nulls {
        None => !hits,
        Some(nulls) => &!hits & nulls.inner(),
    }
}

/// Candidate pairs: row numbers of equal length.
#[derive(Clone)]
struct Pairs {
    build: Vec<u32>,
    probe: Vec<u32>,
    has_unmatched: bool,
}

impl Pairs {
    /// The rows to gather; `unique` when no probe row appears twice.
    fn selections(&self, unique: bool) -> (Selection, Selection) {
        self.clone().into_selections(unique)
    }

    fn into_selections(self, unique: bool) -> (Selection, Selection) {
        let build = if !self.has_unmatched {
            Selection::Take(UInt32Array::from(self.build))
        } else if self.build.iter().all(|row| *row == NO_ROW) {
            Selection::Nulls(self.build.len())
        } else {
            Selection::Take(nullable_rows(&self.build, NO_ROW))
        };
        // Rising and without gaps: the probe columns pass as they are, nothing is copied.
        let probe = match (self.probe.first(), self.probe.last()) {
            (Some(first), Some(last)) if unique && (last - first) as usize + 1 == self.probe.len() => {
                Selection::Slice {
                    start: *first as usize,
                    len: self.probe.len(),
                }
            }
            _ => Selection::Take(UInt32Array::from(self.probe)),
        };
        (build, probe)
    }

    /// Takes off the pairs from `count` on.
    fn split_off(&mut self, count: usize) -> Pairs {
        Pairs {
            build: self.build.split_off(count),
            probe: self.probe.split_off(count),
            has_unmatched: self.has_unmatched,
        }
    }

    /// Keeps the pairs for which `mask` is true.
    fn filter(&mut self, mask: &BooleanArray) {
        let mut kept = 0;
        for position in mask.values().set_indices() {
            self.build[kept] = self.build[position];
            self.probe[kept] = self.probe[position];
            kept += 1;
        }
        self.build.truncate(kept);
        self.probe.truncate(kept);
    }

    fn retain(&mut self, keep: impl Fn(u32, u32) -> bool) {
        let mut kept = 0;
        for position in 0..self.build.len() {
            let (build, probe) = (self.build[position], self.probe[position]);
            self.build[kept] = build;
            self.probe[kept] = probe;
            kept += usize::from(keep(build, probe));
        }
        self.build.truncate(kept);
        self.probe.truncate(kept);
    }
}

/// Turns runs into pairs, a piece at a time.
struct Expansion<'a> {
    runs: &'a [Run],
    table: &'a Table,
    keep_unmatched: bool,
    /// The next probe row, and how much of its run is done.
    row: usize,
    offset: u32,
    /// Pairs that were too wide to come with those before them.
    rest: Option<Pairs>,
}

impl<'a> Expansion<'a> {
    fn new(runs: &'a [Run], table: &'a Table, keep_unmatched: bool) -> Self {
        Self {
            runs,
            table,
            keep_unmatched,
            row: 0,
            offset: 0,
            rest: None,
        }
    }

    /// The next pairs within `limit`. The `settled` probe rows are left out where that is easy.
    fn piece(&mut self, limit: &PieceLimit, settled: impl Fn(usize) -> bool) -> Option<Pairs> {
        let mut pairs = match self.rest.take() {
            Some(rest) => rest,
            None => self.next(limit.rows_max, settled)?,
        };
        let count = limit.piece(&pairs.build, &pairs.probe);
        if count < pairs.build.len() {
            self.rest = Some(pairs.split_off(count));
        }
        Some(pairs)
    }

    /// At most `limit` further pairs, without the rest of the probe rows that are `settled`. May be none before the end.
    fn next(&mut self, limit: usize, settled: impl Fn(usize) -> bool) -> Option<Pairs> {
        if self.row == self.runs.len() {
            return None;
        }
        // A unique table cannot revisit a probe row, so none is settled before its turn.
        Some(match (self.table.is_unique, self.keep_unmatched) {
            (true, false) => self.next_unique(limit),
            (true, true) => self.next_unique_outer(limit),
            (false, _) => self.next_runs(limit, settled),
        })
    }

    fn next_unique(&mut self, limit: usize) -> Pairs {
        let end = self.runs.len().min(self.row + limit);
        let piece = &self.runs[self.row..end];
        let (mut build, mut probe) = (vec![0; piece.len()], vec![0; piece.len()]);
        let mut count = 0;
        // No branch: whether a row matches is often a coin toss.
        for (i, run) in piece.iter().enumerate() {
            build[count] = run.start;
            probe[count] = (self.row + i) as u32;
            count += run.len as usize;
        }
        build.truncate(count);
        probe.truncate(count);
        self.row = end;
        Pairs {
            build,
            probe,
            has_unmatched: false,
        }
    }

    fn next_unique_outer(&mut self, limit: usize) -> Pairs {
        let end = self.runs.len().min(self.row + limit);
        let piece = &self.runs[self.row..end];
        let build: Vec<u32> = piece
            .iter()
            .map(|run| if run.len == 0 { NO_ROW } else { run.start })
            .collect();
        let probe = (self.row as u32..end as u32).collect();
        self.row = end;
        Pairs {
            has_unmatched: build.contains(&NO_ROW),
            build,
            probe,
        }
    }

    fn next_runs(&mut self, limit: usize, settled: impl Fn(usize) -> bool) -> Pairs {
        let mut pairs = Pairs {
            build: Vec::with_capacity(limit),
            probe: Vec::with_capacity(limit),
            has_unmatched: false,
        };
        while self.row < self.runs.len() && pairs.build.len() < limit {
            let (run, row) = (self.runs[self.row], self.row as u32);
            if run.len == 0 {
                if self.keep_unmatched {
                    pairs.build.push(NO_ROW);
                    pairs.probe.push(row);
                    pairs.has_unmatched = true;
                }
                self.row += 1;
                continue;
            }
            if self.offset > 0 && settled(self.row) {
                (self.row, self.offset) = (self.row + 1, 0);
                continue;
            }
            let len = (run.len - self.offset).min((limit - pairs.build.len()) as u32);
            if len == 1 {
                pairs.build.push(self.table.row(run.start + self.offset));
                pairs.probe.push(row);
            } else {
                self.table.rows(run.start + self.offset, len, &mut pairs.build);
                pairs.probe.resize(pairs.build.len(), row);
            }
            self.offset += len;
            if self.offset == run.len {
                (self.row, self.offset) = (self.row + 1, 0);
            }
        }
        pairs
    }
}
