//! Aggregation before the exchange: rows to one state per group and slice, which leave before the watermark that could
//! complete a window with them.
//!
//! There is no state: what is open leaves before a barrier.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::PrimitiveArray;
use arrow::datatypes::{DataType, TimestampMillisecondType};
use datafusion::error::DataFusionError;

use super::cut::{Rows, Selection, cut};
use super::intake::{Intake, SLICE_END_COLUMN, key_types, slicing_of};
use super::output::{Bounds, Output};
use super::slicing::Slicing;
use super::table::Table;
use crate::data::{Batch, EngineError, Result, Watermark};
use crate::operator::aggregate::accumulators::{Accumulators, Take};
use crate::operator::aggregate::group_table::GroupTable;
use crate::operator::{Collector, Context};
use crate::plan::{WindowAggregateSpec, WindowProperty};

/// More groups than this do not stay in the caches: they leave.
const GROUPS_MAX: usize = 64 << 10;
/// Rows to look at before judging whether grouping is worth its work.
const PROBE_ROWS: usize = 100_000;
/// More groups than this per row, and it is not.
const PASS_RATIO: f64 = 0.8;
/// So many rows then pass ungrouped before the judgement is made anew: streams change.
const PASS_ROWS: usize = 2_000_000;

/// Whether it still groups.
enum Adaptive {
    /// It does, having taken so many rows and let go of so many more groups than there were at first.
    Grouping { rows: usize, released: i64 },
    /// It does, and always will.
    Fixed,
    /// It passes so many more rows on as states.
    Passing(usize),
}

/// Aggregates per slice.
pub(super) struct Partial {
    intake: Intake,
    slicing: Slicing,
    lateness_ms: i64,
    /// Windows that end here or before may be complete.
    done: Option<i64>,
    template: Table,
    open: BTreeMap<i64, Table>,
    output: Output,
    slice_type: DataType,
    adaptive: Adaptive,
    /// Nothing is held back between batches: early results must not wait for a watermark.
    eager: bool,
    groups: Vec<usize>,
}

impl Partial {
    /// # Errors
    /// When the spec contradicts itself, or a function refuses its arguments.
    pub(super) fn new(spec: WindowAggregateSpec) -> Result<Self> {
        let slicing = slicing_of(&spec)?;
        let intake = Intake::new(&spec, slicing)?;
        if intake.by_clock() {
            return Err(EngineError::Internal(
                "windows of processing time are aggregated in one step".into(),
            ));
        }
        let accumulators = Accumulators::new(spec.aggregates.functions.clone())?;
        let first = spec.group_by.len() + accumulators.state_fields().count();
        let field = spec.schema.0.fields().get(first);
        let Some(field) = field.filter(|field| field.name() == SLICE_END_COLUMN) else {
            return Err(EngineError::Internal(format!(
                "column {first} of a partial window aggregation is to be {SLICE_END_COLUMN}"
            )));
        };
        let slice_type = field.data_type().clone();
        Ok(Self {
            intake,
            slicing,
            lateness_ms: spec.emit.map_or(0, |emit| emit.allowed_lateness_ms),
            done: None,
            template: Table::new(key_types(&spec), accumulators)?,
            open: BTreeMap::new(),
            output: Output::new(spec.schema.0, vec![WindowProperty::End], first)?,
            slice_type,
            adaptive: Adaptive::Grouping { rows: 0, released: 0 },
            eager: spec.emit.is_some(),
            groups: Vec::new(),
        })
    }

    /// # Errors
    /// When a time is NULL, an expression or function fails, or the budget is exhausted.
    pub(super) fn on_batch(&mut self, batch: &Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let numbers = self.intake.numbers(batch, 0)?;
        let rows = self.intake.rows(batch)?;
        if let Adaptive::Passing(left) = &mut self.adaptive {
            *left = left.saturating_sub(rows.count);
            if *left == 0 {
                self.adaptive = Adaptive::Grouping { rows: 0, released: 0 };
            }
            self.pass(&rows, self.intake.of.ends(&numbers), cx, out)?;
            return self.output.flush(out);
        }
        for (slice_end, selection) in cut(&numbers, self.intake.of, |_| true).slices {
            match selection {
                Selection::All => self.take(slice_end, &rows, cx, out)?,
                part => self.take(slice_end, &rows.select(&part)?, cx, out)?,
            }
        }
        self.adapt(&rows, cx, out)?;
        if self.eager || self.group_count() > GROUPS_MAX || cx.memory.must_spill() {
            self.release(i64::MAX, cx, out)?;
        } else if let Err(EngineError::Memory(_)) = cx.hold(self.held()) {
            self.release(i64::MAX, cx, out)?;
        }
        Ok(())
    }

    fn take(&mut self, slice_end: i64, rows: &Rows, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let last = self.slicing.last_window_end(slice_end).saturating_add(self.lateness_ms);
        if self.done.is_none_or(|done| last > done) {
            return self.take_rows(slice_end, rows);
        }
        // What is late is dropped behind the exchange, and counted row by row.
        match self.pass(rows, vec![slice_end; rows.count], cx, out) {
            Err(EngineError::DataFusion(DataFusionError::NotImplemented(_))) => self.take_rows(slice_end, rows),
            passed => passed,
        }
    }

    fn take_rows(&mut self, slice_end: i64, rows: &Rows) -> Result<()> {
        if !self.open.contains_key(&slice_end) {
            let youngest = self.open.values().next_back().unwrap_or(&self.template);
            let table = youngest.successor()?;
            self.open.insert(slice_end, table);
        }
        match self.open.get_mut(&slice_end) {
            Some(table) => table.take_rows(rows, false, &mut self.groups),
            None => Ok(()),
        }
    }

    fn group_count(&self) -> usize {
        self.open.values().map(Table::len).sum()
    }

    /// Once enough rows have come, decides whether to go on grouping.
    fn adapt(&mut self, taken: &Rows, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let open = self.group_count() as i64;
        let Adaptive::Grouping { rows, released } = &mut self.adaptive else {
            return Ok(());
        };
        *rows += taken.count;
        if *rows < PROBE_ROWS {
            return Ok(());
        }
        let poor = (*released + open) as f64 > PASS_RATIO * *rows as f64;
        (*rows, *released) = (0, -open);
        if !poor {
            return Ok(());
        }
        match self.template.accumulators().convert(&taken.inputs) {
            Ok(_) => {
                self.release(i64::MAX, cx, out)?;
                self.adaptive = Adaptive::Passing(PASS_ROWS);
                Ok(())
            }
            // There is no way to ask a function but to try.
            Err(EngineError::DataFusion(DataFusionError::NotImplemented(_))) => {
                self.adaptive = Adaptive::Fixed;
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Hands on each row as a state.
    fn pass(&mut self, rows: &Rows, ends: Vec<i64>, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let mut columns = self
            .template
            .keys()
            .map_or(Ok(Vec::new()), |keys: &GroupTable| keys.declared(rows.keys.clone()))?;
        columns.extend(self.template.accumulators().convert(&rows.inputs)?);
        let ends = PrimitiveArray::<TimestampMillisecondType>::new(ends.into(), None);
        columns.push(Arc::new(ends.with_data_type(self.slice_type.clone())));
        self.output.rows(columns, rows.count, cx, out)
    }

    /// Hands on the groups of the slices that end at `last` or before.
    fn release(&mut self, last: i64, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        while let Some(first) = self.open.first_entry().filter(|entry| *entry.key() <= last) {
            let (slice_end, table) = first.remove_entry();
            self.template = table.successor()?;
            let rows = table.len();
            if let Adaptive::Grouping { released, .. } = &mut self.adaptive {
                *released += rows as i64;
            }
            let (mut columns, states) = table.into_columns(Take::States)?;
            columns.extend(states);
            let bounds = Bounds {
                start: slice_end,
                end: slice_end,
            };
            self.output.window(columns, rows, bounds, None, cx, out)?;
        }
        self.output.flush(out)?;
        cx.hold(self.held())
    }

    /// # Errors
    /// When a function or the consumer fails.
    pub(super) fn on_watermark(
        &mut self,
        watermark: Watermark,
        cx: &mut Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let done = watermark.0.saturating_add(1);
        self.done = self.done.max(Some(done));
        self.release(done, cx, out)?;
        out.watermark(watermark)
    }

    /// # Errors
    /// As for `on_watermark`.
    pub(super) fn on_end(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.release(i64::MAX, cx, out)
    }

    /// Hands on what is open: it belongs before the barrier.
    ///
    /// # Errors
    /// As for `on_watermark`.
    pub(super) fn snapshot(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.release(i64::MAX, cx, out)
    }

    /// Bytes held.
    pub(super) fn held(&self) -> usize {
        self.open.values().map(Table::size).sum::<usize>() + self.output.held_bytes()
    }
}
