//! [`Restored`]: the tables that an operator gets back.

use std::collections::{BTreeMap, HashSet};
use std::ops::Range;
use std::sync::Arc;

use arrow::array::BooleanArray;
use arrow::compute::filter_record_batch;
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use datafusion::physical_expr::utils::collect_columns;

use super::{Evolution, Frozen, Scope, TableSpec, evolve, key_groups, key_groups_of};
use crate::data::{Batch, EngineError, Result};

/// A part of a stored table: the whole of it, or what changed after an earlier run.
pub struct Run {
    /// The schema that the rows were written in.
    pub schema: SchemaRef,
    /// The table's version when it was written.
    pub version: u32,
    /// The rows.
    pub rows: Frozen,
    /// The keys that went.
    pub deleted: Option<Frozen>,
    /// Whether only rows of the subtask's own key groups can be in it.
    pub is_own: bool,
}

/// The state that one subtask of an operator starts with.
pub struct Restored {
    operator: String,
    checkpoint: u64,
    key_groups: Range<u32>,
    /// The runs of each table, oldest first.
    tables: BTreeMap<String, Vec<Run>>,
    evolution: Evolution,
}

impl Restored {
    /// For subtask `subtask` of `parallelism` of the operator, from checkpoint `checkpoint`.
    pub fn new(operator: &str, checkpoint: u64, subtask: usize, parallelism: usize) -> Self {
        Self {
            operator: operator.to_string(),
            checkpoint,
            key_groups: key_groups_of(subtask, parallelism),
            tables: BTreeMap::new(),
            evolution: Evolution::default(),
        }
    }

    /// With columns that the user has renamed.
    pub fn with_evolution(mut self, evolution: Evolution) -> Self {
        self.evolution = evolution;
        self
    }

    /// Adds a run to a table, newer than those that it has.
    pub fn add(&mut self, table: &str, run: Run) {
        self.tables.entry(table.to_string()).or_default().push(run);
    }

    /// The checkpoint that the state is of.
    pub fn checkpoint(&self) -> u64 {
        self.checkpoint
    }

    /// Whether there is anything of this table.
    pub fn has(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }

    /// Takes out the rows of a table, in the schema that the operator declares now: those of this subtask's key groups for
    /// a keyed table, all for the others. A table that was not there has no rows. Keys that expressions of the spec compute
    /// must not change with the schema.
    ///
    /// # Errors
    /// When the stored schema does not fit the declared one; the error names operator, table and column.
    pub fn take(&mut self, spec: &TableSpec) -> Result<RestoredRows> {
        let mut runs = self.tables.remove(&spec.name).unwrap_or_default();
        for run in &runs {
            if run.version != spec.version {
                return Err(EngineError::Plan(format!(
                    "the state of operator '{}' does not fit: table '{}' has version {} in checkpoint {}, the program has version {}; \
                     start without that state, or with the version of the program that wrote it",
                    self.operator, spec.name, run.version, self.checkpoint, spec.version
                )));
            }
            let mapping = evolve(&run.schema, &spec.schema, &self.evolution, (&self.operator, &spec.name))?;
            // Rows without their key would all be of one.
            if let Some(column) = mapping.missing(key_columns(spec)) {
                return Err(EngineError::Plan(format!(
                    "the state of operator '{}' does not fit: key column '{column}' of table '{}' is not in checkpoint {}; tell its old \
                     name with SET 'execution.state-recovery.renamed-columns' = 'old:new', or start without that state",
                    self.operator, spec.name, self.checkpoint
                )));
            }
        }
        let keys = match runs.len() > 1 && spec.unique > 0 {
            true => {
                let fields = spec.schema.fields().iter().take(spec.unique);
                let fields = fields.map(|field| SortField::new(field.data_type().clone()));
                Some(RowConverter::new(fields.collect())?)
            }
            false => None,
        };
        // The newest run is read first.
        runs.reverse();
        Ok(RestoredRows {
            operator: self.operator.clone(),
            spec: spec.clone(),
            key_groups: self.key_groups.clone(),
            evolution: self.evolution.clone(),
            runs: runs.into_iter().collect::<std::collections::VecDeque<_>>(),
            current: None,
            keys,
            seen: HashSet::new(),
        })
    }

    /// Tables that nobody has taken: state that the operator no longer declares.
    pub fn left(&self) -> impl Iterator<Item = &str> {
        self.tables.keys().map(String::as_str)
    }
}

/// The columns that tell rows apart and where they belong.
fn key_columns(spec: &TableSpec) -> impl Iterator<Item = usize> {
    let keys: &[_] = match &spec.scope {
        Scope::Keyed(keys) => keys,
        _ => &[],
    };
    let of_keys = keys.iter().flat_map(collect_columns);
    (0..spec.unique).chain(of_keys.map(|column| column.index()))
}

/// The rows of a restored table, batch by batch.
pub struct RestoredRows {
    operator: String,
    spec: TableSpec,
    key_groups: Range<u32>,
    evolution: Evolution,
    runs: std::collections::VecDeque<Run>,
    current: Option<Run>,
    keys: Option<RowConverter>,
    /// Keys of newer runs.
    seen: HashSet<Box<[u8]>>,
}

impl RestoredRows {
    fn read(&mut self) -> Result<Option<Batch>> {
        loop {
            let Some(run) = &mut self.current else {
                match self.runs.pop_front() {
                    Some(run) => self.current = Some(run),
                    None => return Ok(None),
                }
                continue;
            };
            let Some(batch) = run.rows.next().transpose()? else {
                self.close_run()?;
                continue;
            };
            let (schema, is_own) = (Arc::clone(&run.schema), run.is_own);
            let place = (self.operator.as_str(), self.spec.name.as_str());
            let batch = evolve(&schema, &self.spec.schema, &self.evolution, place)?.apply(&batch)?;
            let batch = match &self.spec.scope {
                Scope::Keyed(keys) if !is_own => {
                    let groups = key_groups(keys, &batch)?;
                    keep(&batch, groups.iter().map(|group| self.key_groups.contains(group)))?
                }
                _ => batch,
            };
            let batch = self.newest(batch)?;
            if batch.num_rows() > 0 {
                return Ok(Some(batch));
            }
        }
    }

    /// Leaves out what newer runs have, and remembers the keys where older runs follow.
    fn newest(&mut self, batch: Batch) -> Result<Batch> {
        let Some(converter) = &self.keys else {
            return Ok(batch);
        };
        let rows = converter.convert_columns(&batch.columns()[..self.spec.unique])?;
        let fresh: Vec<bool> = rows.iter().map(|row| !self.seen.contains(row.as_ref())).collect();
        if !self.runs.is_empty() {
            self.seen.extend(rows.iter().map(|row| Box::from(row.as_ref())));
        }
        keep(&batch, fresh.into_iter())
    }

    /// The keys that went in the run that has been read count against the older ones only.
    fn close_run(&mut self) -> Result<()> {
        let Some(run) = self.current.take() else {
            return Ok(());
        };
        let (Some(deleted), Some(converter)) = (run.deleted, &self.keys) else {
            return Ok(());
        };
        let fields = self.spec.schema.fields().iter().take(self.spec.unique).cloned();
        let to = Arc::new(arrow::datatypes::Schema::new(fields.collect::<Vec<_>>()));
        for batch in deleted {
            let batch = batch?;
            let place = (self.operator.as_str(), self.spec.name.as_str());
            let batch = evolve(batch.schema_ref(), &to, &self.evolution, place)?.apply(&batch)?;
            let rows = converter.convert_columns(batch.columns())?;
            self.seen.extend(rows.iter().map(|row| Box::from(row.as_ref())));
        }
        Ok(())
    }
}

impl Iterator for RestoredRows {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}

fn keep(batch: &Batch, keep: impl Iterator<Item = bool>) -> Result<Batch> {
    let keep: BooleanArray = keep.map(Some).collect();
    if keep.true_count() == batch.num_rows() {
        return Ok(batch.clone());
    }
    Ok(filter_record_batch(batch, &keep)?)
}
