//! GroupAggregate: groups and aggregates a stream without end; after each batch what has changed leaves as a changelog.
//!
//! The batch is the micro-batch: however many rows of a group it has, the group leaves once. The results of the groups that the
//! batch touches are read before and after the update, both as columns, and compared; only groups that differ leave. Keys
//! are taken from the batch itself, so that the group table is only asked for numbers.
//!
//! A group whose rows have all been taken back is dead: it leaves as a deletion, its state is emptied, and when most groups
//! are dead the rest is copied together. Rows taken back from a group that is not there are dropped (its state has
//! expired). A snapshot is the live keys with their access times, the row counts, and the columns of each function: sums
//! and counts as they are, ordered values and distinct pairs as rows of group, value and number, accumulators by
//! their states.

mod boxed;
mod counts;
mod distinct;
mod extremes;
mod first_last;
mod rolling;
mod state;
mod sums;
#[cfg(test)]
mod tests;
mod values;

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatchOptions, UInt8Array, UInt32Array};
use arrow::compute::{cast, interleave, take};
use arrow::datatypes::SchemaRef;
use datafusion::physical_expr::PhysicalExpr;

use crate::data::{Batch, EngineError, Result, RowKind, is_changelog, split_row_kind};
use crate::operator::aggregate::{Input, Inputs};
use crate::operator::keyed::{KeyIndex, Touched, evaluate_keys, same_rows};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::{AggregateMode, AggregateSpec, GroupAggregateSpec};
use crate::state::{Restored, Snapshot};
use crate::time::Timer;
use rolling::{Rolling, Rows, rolling_for};
use state::Tables;

/// See the module.
pub(super) struct GroupAggregate {
    schema: SchemaRef,
    /// Whether the output says what becomes of a row.
    changelog: bool,
    update_before: bool,
    group_by: Vec<Arc<dyn PhysicalExpr>>,
    inputs: Inputs,
    functions: Vec<Box<dyn Rolling>>,
    index: KeyIndex,
    /// The rows of each group.
    counts: Vec<i64>,
    groups: Vec<usize>,
    touched: Touched,
    /// Without group columns: whether the one group has ever had a row.
    begun: bool,
    tables: Tables,
}

impl GroupAggregate {
    /// An aggregation of this spec.
    ///
    /// # Errors
    /// When the spec contradicts itself, a function cannot take rows back, or a key's type cannot be grouped by.
    pub(super) fn new(spec: GroupAggregateSpec) -> Result<Self> {
        let (functions, filters) = (spec.aggregates.functions.len(), spec.aggregates.filters.len());
        if functions != filters {
            return Err(EngineError::Internal(format!(
                "{functions} aggregate functions have {filters} filters"
            )));
        }
        let (takes_back, changelog) = (is_changelog(&spec.input_schema.0), is_changelog(&spec.schema.0));
        if !changelog && (takes_back || functions > 0 || spec.group_by.is_empty()) {
            return Err(EngineError::Internal(
                "the results of an aggregation change, but its output has no row kind".into(),
            ));
        }
        let fields = spec.schema.0.fields();
        let types = fields.iter().take(spec.group_by.len());
        let index = KeyIndex::new(types.map(|field| field.data_type().clone()).collect(), spec.ttl_ms)?;
        let input = Arc::clone(&spec.aggregates.input);
        let functions = spec.aggregates.functions.iter();
        let functions = functions.map(|function| rolling_for(function, &input, takes_back));
        let functions = functions.collect::<Result<Vec<_>>>()?;
        Ok(Self {
            tables: Tables::new(&spec, &functions)?,
            changelog,
            update_before: spec.update_before,
            group_by: spec.group_by.iter().map(|key| Arc::clone(&key.expr)).collect(),
            functions,
            inputs: Inputs::new(&AggregateSpec {
                mode: AggregateMode::Single,
                group_by: Vec::new(),
                aggregates: spec.aggregates.clone(),
                schema: spec.schema.clone(),
            })?,
            schema: spec.schema.0,
            index,
            counts: Vec::new(),
            groups: Vec::new(),
            touched: Touched::default(),
            begun: false,
        })
    }

    /// Whether the one group of an aggregation without group columns.
    fn is_global(&self) -> bool {
        self.group_by.is_empty()
    }

    fn grow(&mut self) -> Result<()> {
        let groups = self.index.len();
        self.counts.resize(groups, 0);
        self.functions.iter_mut().try_for_each(|function| function.grow(groups))
    }

    fn forget(&mut self, groups: &[usize]) {
        groups.iter().for_each(|group| self.counts[*group] = 0);
        self.functions.iter_mut().for_each(|function| function.forget(groups));
    }

    /// Finds the groups of the batch, and forgets those of them that have expired.
    fn touch(&mut self, now_ms: i64) {
        self.touched.begin(&self.groups, self.index.len());
        let is_expired = |group: &usize| self.index.is_expired(*group, now_ms);
        let expired: Vec<usize> = self.touched.groups.iter().copied().filter(is_expired).collect();
        if !expired.is_empty() {
            expired.iter().for_each(|group| self.index.note(*group, false, now_ms));
            self.forget(&expired);
        }
    }

    /// Counts the rows of the groups. Gives back what each row does; `None` when all of them come.
    fn count_rows(&mut self, kinds: Option<&UInt8Array>) -> Result<Option<Vec<i8>>> {
        let Some(kinds) = kinds else {
            self.groups.iter().for_each(|group| self.counts[*group] += 1);
            return Ok(None);
        };
        let mut signs = Vec::with_capacity(self.groups.len());
        for (group, kind) in self.groups.iter().zip(kinds.values()) {
            let count = &mut self.counts[*group];
            let sign = match RowKind::from_u8(*kind)?.is_addition() {
                true => 1,
                false if *count > 0 => -1,
                false => 0,
            };
            *count += i64::from(sign);
            signs.push(sign);
        }
        Ok(Some(signs))
    }

    /// The results of the groups that the batch touches.
    fn results(&self) -> Result<Vec<ArrayRef>> {
        let fields = &self.schema.fields()[self.group_by.len()..];
        self.functions
            .iter()
            .zip(fields)
            .map(|(function, field)| {
                let column = function.gather(&self.touched.groups)?;
                Ok(match column.data_type() == field.data_type() {
                    true => column,
                    false => cast(&column, field.data_type())?,
                })
            })
            .collect()
    }

    fn update(&mut self, inputs: &[Input], signs: Option<&[i8]>) -> Result<()> {
        let rows = Rows {
            groups: &self.groups,
            signs,
        };
        for (function, input) in self.functions.iter_mut().zip(inputs) {
            function.update(input, &rows)?;
        }
        let touched = self.touched.groups.iter().copied();
        let dead: Vec<usize> = touched.filter(|group| self.counts[*group] == 0).collect();
        if signs.is_some() && !dead.is_empty() {
            self.forget(&dead);
        }
        Ok(())
    }

    /// What becomes of each group that the batch touches: which of the old and new results leave, as what.
    fn changes(&mut self, old: &[ArrayRef], new: &[ArrayRef], now_ms: i64) -> Result<Leaving> {
        let mut leaving = Leaving::default();
        let rows = self.touched.groups.len();
        let same = same_rows(old, new, rows)?;
        for (at, group) in self.touched.groups.iter().enumerate() {
            let was = self.index.is_live(*group);
            // Without group columns there is one group, from the first row on.
            let is = self.counts[*group] > 0 || (self.is_global() && (was || self.touched.effective));
            match (was, is) {
                (false, true) => leaving.add(1, at, RowKind::Insert),
                (true, false) => leaving.add(0, at, RowKind::Delete),
                (true, true) if !self.changelog || (same.value(at) && !self.index.has_ttl()) => {}
                (true, true) => {
                    if self.update_before {
                        leaving.add(0, at, RowKind::UpdateBefore);
                    }
                    leaving.add(1, at, RowKind::UpdateAfter);
                }
                (false, false) => {}
            }
            if was || is {
                self.index.note(*group, is, now_ms);
            }
        }
        Ok(leaving)
    }

    fn emit(
        &self,
        leaving: &Leaving,
        keys: &[ArrayRef],
        results: [&[ArrayRef]; 2],
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let size = cx.batch_size.max(1);
        for (places, kinds) in leaving.places.chunks(size).zip(leaving.kinds.chunks(size)) {
            let rows = places.iter().map(|(_, at)| self.touched.first_rows[*at]);
            let rows = UInt32Array::from_iter_values(rows);
            let mut columns = Vec::with_capacity(self.schema.fields().len());
            for (key, field) in keys.iter().zip(self.schema.fields()) {
                let column = take(key, &rows, None)?;
                columns.push(match column.data_type() == field.data_type() {
                    true => column,
                    false => cast(&column, field.data_type())?,
                });
            }
            for (old, new) in results[0].iter().zip(results[1]) {
                columns.push(interleave(&[old.as_ref(), new.as_ref()], places)?);
            }
            if self.changelog {
                columns.push(Arc::new(UInt8Array::from(kinds.to_vec())));
            }
            let options = RecordBatchOptions::new().with_row_count(Some(places.len()));
            out.collect(Batch::try_new_with_options(
                Arc::clone(&self.schema),
                columns,
                &options,
            )?)?;
        }
        Ok(())
    }

    fn tidy(&mut self, cx: &mut Context) -> Result<()> {
        if self.index.is_sparse() {
            let kept = self.index.compact()?;
            rolling::keep(&mut self.counts, &kept);
            for function in &mut self.functions {
                function.compact(&kept)?;
            }
            self.touched.clear();
        }
        let functions: usize = self.functions.iter().map(|function| function.size()).sum();
        let vectors = self.counts.capacity() * size_of::<i64>() + self.groups.capacity() * size_of::<usize>();
        cx.hold(self.index.size() + functions + vectors + self.touched.size())
    }
}

/// Rows on their way out: of the old (0) or the new results (1), at which place.
#[derive(Default)]
struct Leaving {
    places: Vec<(usize, usize)>,
    kinds: Vec<u8>,
}

impl Leaving {
    fn add(&mut self, version: usize, at: usize, kind: RowKind) {
        self.places.push((version, at));
        self.kinds.push(kind as u8);
    }
}

impl Operator for GroupAggregate {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let now_ms = cx.clock.now_ms();
        let (rows, kinds) = split_row_kind(&batch)?;
        let keys = evaluate_keys(&self.group_by, &rows)?;
        let inputs = self.inputs.evaluate(&rows)?;
        self.index.intern(&keys, rows.num_rows(), &mut self.groups)?;
        self.grow()?;
        self.touch(now_ms);
        let old = self.results()?;
        let signs = self.count_rows(kinds.as_ref())?;
        self.touched.effective = signs.as_ref().is_none_or(|signs| signs.iter().any(|sign| *sign != 0));
        self.update(&inputs, signs.as_deref())?;
        let new = self.results()?;
        let leaving = self.changes(&old, &new, now_ms)?;
        self.begun |= self.touched.effective;
        self.emit(&leaving, &keys, [&old, &new], cx, out)?;
        self.tidy(cx)
    }

    fn on_timer(&mut self, _timer: Timer, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        let expired = self.index.sweep(cx.clock.now_ms());
        self.forget(&expired);
        self.tidy(cx)
    }

    fn next_timer(&self) -> Option<i64> {
        self.index.sweep_at()
    }

    fn on_end(&mut self, _port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if !self.is_global() || self.begun {
            return Ok(());
        }
        // As a batch query does, one without any row has a result.
        self.index.intern(&[], 1, &mut self.groups)?;
        self.grow()?;
        self.touched.begin(&self.groups, 1);
        let results = self.results()?;
        let mut leaving = Leaving::default();
        leaving.add(1, 0, RowKind::Insert);
        self.begun = true;
        self.emit(&leaving, &[], [&results, &results], cx, out)
    }

    fn snapshot(&mut self, state: &mut Snapshot, cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        self.write_state(state, cx)
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        self.read_state(state, cx)
    }
}
