//! State as tables of rows: how what an operator keeps leaves it for a checkpoint, and how it comes back.
//!
//! An operator keeps its state in whatever structure makes it fast. What it *declares* is a list of tables
//! ([`TableSpec`]): names, Arrow schemas, and how rows belong to subtasks. At a barrier it hands the runtime a frozen view of each
//! table ([`Snapshot`]): cheap to make (shared columns, copied vectors), turned into rows by a background thread. After a
//! failure, or from a savepoint, each subtask is handed the rows of its key groups ([`Restored`]), whatever the parallelism was
//! before, in the schema that it declares now.
//!
//! A table may be written incrementally: a *delta* holds the rows that have changed since an earlier checkpoint and the keys
//! that are gone (asynchronous, incremental barrier snapshots: Carbone et al., "State Management in Apache Flink", VLDB 2017,
//! section 3). What the runtime stores is then a chain of runs, of which the newest version of a key counts.

mod evolution;
mod restored;
mod snapshot;
mod table;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;

use crate::data::{Batch, Result, hash_rows, key_group};

pub(crate) use evolution::KEY_PREFIX;
pub use evolution::{Evolution, evolve};
pub use restored::{Restored, RestoredRows, Run};
pub use snapshot::{Frozen, FrozenTable, Snapshot, SnapshotRequest};
pub(crate) use table::{FrozenKeys, History};
pub use table::{KeyedTable, NO_SLOT, Ttl};

/// Number of key groups: the most subtasks that a keyed vertex can ever have.
pub const MAX_PARALLELISM: u32 = 128;

/// How the rows of a table belong to the subtasks of its operator.
#[derive(Clone, Debug)]
pub enum Scope {
    /// By key: a row belongs to the key group of these expressions over the table's schema. They must give the values that the
    /// exchange before the operator partitions by, in its order. Without any, all rows belong to key group 0.
    Keyed(Vec<Arc<dyn PhysicalExpr>>),
    /// Every subtask has rows of its own. When restored, each subtask is handed the rows of all and takes what it needs.
    Union,
    /// The same rows in every subtask; those of one of them are handed to all.
    Broadcast,
}

/// A table of an operator's state.
#[derive(Clone, Debug)]
pub struct TableSpec {
    /// What tells the table from the operator's others.
    pub name: String,
    /// The columns. Names must differ: [`distinct_names`] makes them so.
    pub schema: SchemaRef,
    /// Whose the rows are.
    pub scope: Scope,
    /// So many leading columns tell a row from all others of the table; 0 when nothing does. A table with such a key can be
    /// written as deltas.
    pub unique: usize,
    /// Raised when the meaning of the columns changes while their names and types do not. Versions that differ do not fit.
    pub version: u32,
}

impl TableSpec {
    /// A table whose first `keys` columns are the key of the exchange before the operator, and unique.
    pub fn by_key(name: impl Into<String>, schema: SchemaRef, keys: usize) -> Self {
        Self {
            name: name.into(),
            scope: Scope::leading(&schema, keys),
            schema,
            unique: keys,
            version: 1,
        }
    }

    /// A table of rows that belong where `keys`, over the table's schema, lead; nothing tells the rows apart.
    pub fn of_rows(name: impl Into<String>, schema: SchemaRef, keys: Vec<Arc<dyn PhysicalExpr>>) -> Self {
        Self {
            name: name.into(),
            scope: Scope::Keyed(keys),
            schema,
            unique: 0,
            version: 1,
        }
    }

    /// A table of which every subtask has rows of its own and is handed those of all.
    pub fn union(name: impl Into<String>, schema: SchemaRef) -> Self {
        Self {
            name: name.into(),
            scope: Scope::Union,
            schema,
            unique: 0,
            version: 1,
        }
    }

    /// A table that is the same in every subtask.
    pub fn broadcast(name: impl Into<String>, schema: SchemaRef) -> Self {
        Self {
            name: name.into(),
            scope: Scope::Broadcast,
            schema,
            unique: 0,
            version: 1,
        }
    }
}

impl Scope {
    /// By the first `keys` columns.
    pub fn leading(schema: &Schema, keys: usize) -> Self {
        let column = |index: usize| Arc::new(Column::new(schema.field(index).name(), index)) as Arc<dyn PhysicalExpr>;
        Scope::Keyed((0..keys).map(column).collect())
    }
}

/// The key group of each row of `rows` by `keys`.
///
/// # Errors
/// When an expression fails.
pub fn key_groups(keys: &[Arc<dyn PhysicalExpr>], rows: &Batch) -> Result<Vec<u32>> {
    if keys.is_empty() {
        return Ok(vec![0; rows.num_rows()]);
    }
    let columns = keys
        .iter()
        .map(|key| Ok(key.evaluate(rows)?.into_array(rows.num_rows())?))
        .collect::<Result<Vec<_>>>()?;
    let mut hashes = Vec::new();
    hash_rows(&columns, rows.num_rows(), &mut hashes)?;
    Ok(hashes
        .into_iter()
        .map(|hash| key_group(hash, MAX_PARALLELISM))
        .collect())
}

/// The key groups that subtask `subtask` of `parallelism` owns: the inverse of [`crate::data::subtask_of_hash`].
pub fn key_groups_of(subtask: usize, parallelism: usize) -> Range<u32> {
    let bound = |subtask: usize| (subtask * MAX_PARALLELISM as usize).div_ceil(parallelism) as u32;
    bound(subtask)..bound(subtask + 1)
}

/// `schema` with names that differ: the second `a` becomes `a#2`. State tables find their columns by name.
pub fn distinct_names(schema: &Schema) -> SchemaRef {
    let mut fields: Vec<Field> = Vec::with_capacity(schema.fields().len());
    for field in schema.fields() {
        let taken = |name: &str| fields.iter().any(|other| other.name() == name);
        let mut name = field.name().clone();
        let mut number = 2;
        while taken(&name) {
            name = format!("{}#{number}", field.name());
            number += 1;
        }
        fields.push(field.as_ref().clone().with_name(name));
    }
    Arc::new(Schema::new(fields))
}

/// A schema of `fields` by name and type, nullable.
pub fn columns<const N: usize>(fields: [(&str, DataType); N]) -> SchemaRef {
    let fields = fields.map(|(name, data_type)| Field::new(name, data_type, true));
    Arc::new(Schema::new(fields.to_vec()))
}
