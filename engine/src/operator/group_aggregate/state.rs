//! The state of a group aggregation as tables: one of groups, and one for each function of which a group has any number of
//! values.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray};
use arrow::datatypes::{DataType, Field, Int64Type, Schema};

use super::GroupAggregate;
use super::rolling::{FrozenEntries, Rolling, field};
use crate::data::{EngineError, Result, is_changelog};
use crate::operator::Context;
use crate::operator::keyed::{Frozen, FrozenKeys, KeyTable, booked, plain_field, table_batch};
use crate::plan::GroupAggregateSpec;
use crate::state::{Restored, Scope, Snapshot, TableSpec, distinct_names};

/// The tables of an aggregation.
pub(super) struct Tables {
    keys: usize,
    /// Per group: its rows, without group columns whether it lives, and the functions' columns.
    groups: KeyTable,
    /// How many columns each function has.
    columns: Vec<usize>,
    /// Of the functions that have one: key and entry.
    entries: Vec<Option<TableSpec>>,
}

impl Tables {
    /// The tables of these functions.
    ///
    /// # Errors
    /// When a function cannot say what its state is.
    pub(super) fn new(spec: &GroupAggregateSpec, functions: &[Box<dyn Rolling>]) -> Result<Self> {
        let keys = spec.schema.0.fields().iter().take(spec.group_by.len());
        let key = |key: &Arc<Field>| {
            let name = format!("key_{}", key.name());
            plain_field(key).with_name(name).with_nullable(true)
        };
        let keys: Vec<Field> = keys.map(key).collect();
        // Columns are found by their names: with other keys, or when rows are taken back, those have another meaning.
        let takes_back = is_changelog(&spec.input_schema.0);
        let version = 1 + 2 * keys.len() as u32 + u32::from(takes_back);
        let names = spec.aggregates.functions.iter();
        let names: Vec<Field> = names.map(|function| field(function.name(), DataType::Null)).collect();
        let names = distinct_names(&Schema::new(names));

        let mut values = vec![field("rows", DataType::Int64)];
        values.extend(keys.is_empty().then(|| field("is_live", DataType::Boolean)));
        let (mut columns, mut entries) = (Vec::new(), Vec::new());
        for (function, name) in functions.iter().zip(names.fields()) {
            let own = function.fields()?;
            columns.push(own.len());
            let own = own.into_iter().map(|own| {
                let full_name = format!("{}.{}", name.name(), own.name());
                own.with_name(full_name)
            });
            values.extend(own);
            let of_entries = function.entry_fields();
            entries.push((!of_entries.is_empty()).then(|| {
                let fields: Vec<Field> = keys.iter().cloned().chain(of_entries).collect();
                let schema = distinct_names(&Schema::new(fields));
                TableSpec {
                    name: format!("values of {}", name.name()),
                    scope: Scope::leading(&schema, keys.len()),
                    schema,
                    unique: 0,
                    version,
                }
            }));
        }
        let has_ttl = spec.ttl_ms.is_some_and(|ttl| ttl > 0);
        Ok(Self {
            keys: keys.len(),
            groups: KeyTable::new("groups", keys, values, has_ttl).with_version(version),
            columns,
            entries,
        })
    }
}

impl GroupAggregate {
    /// Adds all tables to a snapshot.
    pub(super) fn write_state(&mut self, state: &mut Snapshot, cx: &Context) -> Result<()> {
        let mut cut = self.index.cut(state.request());
        if self.is_global() && self.begun {
            // It is known to have had rows, even when it has been forgotten.
            cut.live = vec![0];
        }
        let rows = cut.live.iter().map(|group| self.counts[*group as usize]);
        let mut values = vec![Frozen::numbers::<Int64Type>(DataType::Int64, rows.collect())];
        if self.is_global() {
            let is_live = cut.live.iter().map(|group| self.index.is_live(*group as usize));
            let is_live: Vec<Option<bool>> = is_live.map(Some).collect();
            values.push(Frozen::new(1, move |_| {
                Ok(vec![Arc::new(BooleanArray::from(is_live.clone()))])
            }));
        }
        for function in &mut self.functions {
            values.push(function.freeze(&cut.live)?);
        }
        self.tables.groups.write(state, &self.index, &cut, (values, None), cx)?;
        if self.tables.entries.iter().all(Option::is_none) {
            return Ok(());
        }
        let keys = Arc::new(self.index.freeze()?);
        for (function, table) in self.functions.iter().zip(&self.tables.entries) {
            if let (Some(table), Some(entries)) = (table, function.freeze_entries()?) {
                write_entries(state, table, &keys, entries, cx);
            }
        }
        Ok(())
    }

    /// Takes all tables back.
    pub(super) fn read_state(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        let (functions, counts, begun) = (&mut self.functions, &mut self.counts, &mut self.begun);
        let tables = &self.tables;
        tables
            .groups
            .read(state, &mut self.index, cx, |index, groups, columns, cx| {
                counts.resize(index.len(), 0);
                let mut columns = &columns[tables.keys..];
                let mut next = |count: usize| -> &[ArrayRef] {
                    let (first, rest) = columns.split_at(count);
                    columns = rest;
                    first
                };
                let rows = next(1)[0].as_primitive::<Int64Type>();
                for (group, rows) in groups.iter().zip(rows) {
                    counts[*group] = rows.unwrap_or(0);
                }
                if tables.keys == 0 {
                    *begun = true;
                    if !next(1)[0].as_boolean().value(0) {
                        index.note(0, false, 0);
                    }
                }
                for (function, columns) in functions.iter_mut().zip(&tables.columns) {
                    function.grow(index.len())?;
                    function.thaw(groups, next(*columns))?;
                }
                let functions: usize = functions.iter().map(|function| function.size()).sum();
                cx.hold(index.size() + functions)
            })?;
        for at in 0..self.functions.len() {
            self.read_entries(at, state, cx)?;
        }
        self.tidy(cx)
    }

    /// Takes back the entries of a function.
    fn read_entries(&mut self, at: usize, state: &mut Restored, cx: &mut Context) -> Result<()> {
        let Some(table) = &self.tables.entries[at] else {
            return Ok(());
        };
        for batch in state.take(table)? {
            let batch = batch?;
            let (keys, columns) = batch.columns().split_at(self.tables.keys);
            self.index.intern(keys, batch.num_rows(), &mut self.groups)?;
            if !self.groups.iter().all(|group| self.index.is_live(*group)) {
                return Err(EngineError::Plan(format!(
                    "the state of '{}' does not fit: table '{}' has keys that table 'groups' has not; start without that state",
                    cx.operator, table.name
                )));
            }
            self.functions[at].thaw_entries(&self.groups, columns)?;
            let functions: usize = self.functions.iter().map(|function| function.size()).sum();
            cx.hold(self.index.size() + functions)?;
        }
        Ok(())
    }
}

fn write_entries(
    state: &mut Snapshot,
    table: &TableSpec,
    keys: &Arc<FrozenKeys>,
    entries: FrozenEntries,
    cx: &Context,
) {
    let (keys, schema) = (Arc::clone(keys), Arc::clone(&table.schema));
    let booked = booked(entries.bytes + keys.size(), cx);
    let rows = entries.entries.map(move |entries| {
        let _until_read = &booked;
        let (groups, values) = entries?;
        let mut columns = keys.gather(&groups)?;
        columns.extend(values);
        table_batch(&schema, columns, groups.len())
    });
    state.full(table, rows);
}
