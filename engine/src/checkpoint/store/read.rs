//! Reading: parts become streams of batches, and runs of what a subtask is handed.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;

use super::CheckpointStore;
use super::write::KEY_COLUMNS;
use crate::checkpoint::download::{Frames, Source};
use crate::checkpoint::frame;
use crate::checkpoint::manifest::{Manifest, OperatorState, StoredPart, StoredRun, StoredScope, TableState};
use crate::data::{Batch, EngineError, Result};
use crate::state::{Frozen, MAX_PARALLELISM, Restored, Run, Scope, TableSpec, key_groups_of};

impl CheckpointStore {
    /// The schema that a part was written in.
    ///
    /// # Errors
    /// When the manifest is damaged.
    pub fn schema(&self, part: &StoredPart) -> Result<SchemaRef> {
        frame::schema_from_hex(&part.schema)
            .map_err(|what| EngineError::BadInput(format!("the manifest of a checkpoint in {}: {what}", self.url)))
    }

    /// A table as its newest run declares it; `None` when nothing was ever stored of it. This needs no program, so keys that
    /// are not plain columns are not known.
    ///
    /// # Errors
    /// When the manifest is damaged.
    pub fn stored_table(&self, table: &TableState) -> Result<Option<StoredTable>> {
        let Some(part) = table.runs.iter().rev().find_map(|run| run.parts.first()) else {
            return Ok(None);
        };
        let schema = self.schema(part)?;
        let keys = key_columns(&schema);
        let scope = match table.scope {
            StoredScope::Keyed => Scope::Keyed(keys.clone().unwrap_or_default()),
            StoredScope::Union => Scope::Union,
            StoredScope::Broadcast => Scope::Broadcast,
        };
        let spec = TableSpec {
            name: table.name.clone(),
            schema,
            scope,
            unique: table.unique,
            version: table.version,
        };
        Ok(Some(StoredTable { spec, keys }))
    }

    /// The rows of a part, or with `deleted` the keys that went: read ahead, checked frame by frame. The file is opened with the
    /// first batch. A stream that ends without an error has given all rows.
    ///
    /// # Errors
    /// When the manifest is damaged. The stream has the errors of the file.
    pub fn read(&self, part: &StoredPart, deleted: bool) -> Result<Frozen> {
        let schema = self.schema(part)?;
        let (begin, length, rows) = match deleted {
            false => (part.offset, part.length, part.rows),
            true => (part.offset + part.length, part.deleted_length, part.deleted),
        };
        if rows == 0 && length == 0 {
            return Ok(Box::new(std::iter::empty()));
        }
        let source = self.source(&part.file)?;
        Ok(Box::new(PartRows {
            frames: Frames::new(source.clone(), begin..begin + length),
            source,
            schema,
            is_keys: deleted,
            rows_left: Some(rows),
        }))
    }

    /// What subtask `subtask` of `parallelism` starts with: the parts that can have rows of its key groups.
    ///
    /// # Errors
    /// When the checkpoint has another number of key groups, or the manifest is damaged.
    pub fn restored(
        &self,
        manifest: &Manifest,
        operator: &OperatorState,
        subtask: usize,
        parallelism: usize,
    ) -> Result<Restored> {
        if manifest.max_parallelism != MAX_PARALLELISM {
            return Err(EngineError::Plan(format!(
                "checkpoint {} of job '{}' has {} key groups, this program has {MAX_PARALLELISM}; \
                 restore it with the version of the program that wrote it",
                manifest.checkpoint, manifest.job, manifest.max_parallelism
            )));
        }
        let mut restored = Restored::new(&operator.id, manifest.checkpoint, subtask, parallelism);
        let own = key_groups_of(subtask, parallelism);
        for table in &operator.tables {
            for run in &table.runs {
                if let Some(run) = self.run(table, run, &own)? {
                    restored.add(&table.name, run);
                }
            }
        }
        Ok(restored)
    }

    /// The parts of a run that a subtask with the key groups `own` needs. A run that has none of them still says that there is
    /// such a table, and in which schema.
    fn run(&self, table: &TableState, run: &StoredRun, own: &Range<u32>) -> Result<Option<Run>> {
        let Some(first) = run.parts.first() else {
            return Ok(None);
        };
        let schema = self.schema(first)?;
        let groups = |part: &StoredPart| key_groups_of(part.subtask, part.parallelism);
        let with_rows = run.parts.iter().filter(|part| part.rows + part.deleted > 0);
        let needed: Vec<&StoredPart> = match table.scope {
            StoredScope::Keyed => with_rows.filter(|part| overlap(&groups(part), own)).collect(),
            StoredScope::Union => with_rows.collect(),
            StoredScope::Broadcast => {
                let one = run.parts.iter().map(|part| part.subtask).min();
                with_rows.filter(|part| Some(part.subtask) == one).collect()
            }
        };
        for part in &needed {
            if self.schema(part)?.fields() != schema.fields() {
                return Err(EngineError::BadInput(format!(
                    "the subtasks wrote table '{}' in different schemas in checkpoint {}; restore an older checkpoint",
                    table.name, run.checkpoint
                )));
            }
        }
        let is_within = |part: &&StoredPart| {
            let groups = groups(part);
            own.start <= groups.start && groups.end <= own.end
        };
        Ok(Some(Run {
            is_own: table.scope == StoredScope::Keyed && needed.iter().all(is_within),
            version: table.version,
            rows: self.chain(&needed, false),
            deleted: (run.since.is_some()).then(|| self.chain(&needed, true)),
            schema,
        }))
    }

    /// The rows of several parts, each opened when the one before has ended.
    fn chain(&self, parts: &[&StoredPart], deleted: bool) -> Frozen {
        let store = self.clone();
        let parts: VecDeque<StoredPart> = parts.iter().map(|part| (*part).clone()).collect();
        let opened = parts
            .into_iter()
            .flat_map(move |part| match store.read(&part, deleted) {
                Ok(rows) => rows,
                Err(error) => Box::new(std::iter::once(Err(error))),
            });
        Box::new(opened)
    }
}

/// A table as far as it is known without the program.
#[derive(Clone, Debug)]
pub struct StoredTable {
    /// With it all rows of the table can be taken from what subtask 0 of 1 is handed.
    pub spec: TableSpec,
    /// What the key groups are computed from; `None` when that was not a list of columns, or the table has no keys.
    pub keys: Option<Vec<Arc<dyn PhysicalExpr>>>,
}

fn key_columns(schema: &SchemaRef) -> Option<Vec<Arc<dyn PhysicalExpr>>> {
    let columns = schema.metadata().get(KEY_COLUMNS)?;
    let columns = columns.split(',').filter(|column| !column.is_empty());
    columns
        .map(|column| {
            let index: usize = column.parse().ok()?;
            let field = schema.fields().get(index)?;
            Some(Arc::new(Column::new(field.name(), index)) as Arc<dyn PhysicalExpr>)
        })
        .collect()
}

fn overlap(a: &Range<u32>, b: &Range<u32>) -> bool {
    a.start < b.end && b.start < a.end
}

/// The batches of a part.
struct PartRows {
    source: Source,
    frames: Frames,
    schema: SchemaRef,
    /// Batches have the leading columns only.
    is_keys: bool,
    /// `None` after the end, or an error.
    rows_left: Option<u64>,
}

impl PartRows {
    fn read(&mut self) -> Result<Option<Batch>> {
        let Some(left) = self.rows_left.take() else {
            return Ok(None);
        };
        let Some(frame) = self.frames.next()? else {
            return match left {
                0 => Ok(None),
                left => Err(self.source.damaged(&format!("{left} rows are missing"))),
            };
        };
        let batch = frame::decode(frame.payload).and_then(|batch| self.with_schema(batch));
        let batch = batch.map_err(|what| self.source.damaged(&what))?;
        match left.checked_sub(batch.num_rows() as u64) {
            Some(left) => self.rows_left = Some(left),
            None => return Err(self.source.damaged("it has more rows than were written")),
        }
        Ok(Some(batch))
    }

    fn with_schema(&self, batch: Batch) -> std::result::Result<Batch, String> {
        let columns = batch.num_columns();
        match self.is_keys {
            false => frame::with_schema(&batch, &self.schema),
            true if columns <= self.schema.fields().len() => {
                let fields = self.schema.fields().iter().take(columns).cloned();
                let schema = arrow::datatypes::Schema::new(fields.collect::<Vec<_>>());
                frame::with_schema(&batch, &schema.into())
            }
            true => Err("deleted keys have more columns than the table".into()),
        }
    }
}

impl Iterator for PartRows {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        self.read().transpose()
    }
}
