//! Tables of the state of keyed operators: [`KeyTable`] has a row per key, [`RowTable`] the rows of a [`RowStore`].

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, UInt64Type};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::expressions::Column;

use super::frozen::{Frozen, FrozenTable, Order, table_batch, to_type};
use super::{Cut, KeyIndex, RowStore};
use crate::data::{Batch, Result};
use crate::operator::Context;
use crate::operator::aggregate::plain_type;
use crate::state::{KEY_PREFIX, Restored, Snapshot, TableSpec, distinct_names};

/// When a key was accessed, in operators that forget keys.
const ACCESSED: &str = "$accessed";

/// The field without a dictionary: those of two batches differ, and a table is made of many.
pub(in crate::operator) fn plain_field(field: &Field) -> Field {
    field.clone().with_data_type(plain_type(field.data_type()).clone())
}

/// The fields of keys: after columns where they are columns.
///
/// # Errors
/// When an expression has no type.
pub(in crate::operator) fn key_fields(keys: &[Arc<dyn PhysicalExpr>], input: &Schema) -> Result<Vec<Field>> {
    let field = |(at, key): (usize, &Arc<dyn PhysicalExpr>)| {
        let name = match key.downcast_ref::<Column>() {
            Some(column) => format!("{KEY_PREFIX}{}", column.name()),
            None => format!("key_expression_{}", at + 1),
        };
        Ok(plain_field(&Field::new(name, key.data_type(input)?, true)))
    };
    keys.iter().enumerate().map(field).collect()
}

/// A table with a row per key: the key, when it was accessed, and what the operator keeps for it. Written as deltas.
pub(in crate::operator) struct KeyTable {
    spec: TableSpec,
    has_ttl: bool,
}

impl KeyTable {
    /// A table of these columns.
    pub(in crate::operator) fn new(name: &str, keys: Vec<Field>, values: Vec<Field>, has_ttl: bool) -> Self {
        let unique = keys.len();
        let accessed = has_ttl.then(|| Field::new(ACCESSED, DataType::Int64, true));
        let fields: Vec<Field> = keys.into_iter().chain(accessed).chain(values).collect();
        Self {
            spec: TableSpec::by_key(name, distinct_names(&Schema::new(fields)), unique),
            has_ttl,
        }
    }

    /// Of another version than the first: its columns have the same names, and another meaning.
    pub(in crate::operator) fn with_version(mut self, version: u32) -> Self {
        self.spec.version = version;
        self
    }

    /// Adds the table to a snapshot: the keys of `cut`, and what is kept for each of them.
    ///
    /// # Errors
    /// When the keys cannot be copied.
    pub(in crate::operator) fn write(
        &self,
        state: &mut Snapshot,
        index: &KeyIndex,
        cut: &Cut,
        (values, order): (Vec<Frozen>, Option<Order>),
        cx: &Context,
    ) -> Result<()> {
        let mut parts = vec![frozen_keys(index, cut)?];
        let accessed = index.accessed(&cut.live);
        parts.extend(accessed.map(|accessed| Frozen::numbers::<Int64Type>(DataType::Int64, accessed)));
        parts.extend(values);
        let rows = FrozenTable::new(&self.spec.schema, cut.live.len(), parts, order, cx);
        let Some(since) = cut.since else {
            state.full(&self.spec, rows);
            return Ok(());
        };
        let fields = self.spec.schema.fields().iter().take(self.spec.unique).cloned();
        let schema = Arc::new(Schema::new(fields.collect::<Vec<_>>()));
        let deleted = match cut.dead.is_empty() {
            true => None,
            false => Some(table_batch(&schema, index.gather(&cut.dead)?, cut.dead.len())),
        };
        state.delta(&self.spec, since, rows, deleted);
        Ok(())
    }

    /// Takes the table back: calls `take` with the numbers of keys, and the columns of the keys and of what is kept for them.
    ///
    /// # Errors
    /// When the state does not fit, or the budget is exhausted.
    pub(in crate::operator) fn read(
        &self,
        state: &mut Restored,
        index: &mut KeyIndex,
        cx: &mut Context,
        mut take: impl FnMut(&mut KeyIndex, &[usize], &[ArrayRef], &mut Context) -> Result<()>,
    ) -> Result<()> {
        let now_ms = cx.clock.now_ms();
        let mut groups = Vec::new();
        for batch in state.take(&self.spec)? {
            let batch = batch?;
            let mut columns = batch.columns().to_vec();
            let accessed = self.has_ttl.then(|| columns.remove(self.spec.unique));
            let accessed = accessed.as_ref().map(|column| column.as_primitive());
            let keys = &columns[..self.spec.unique];
            index.restore(keys, accessed, now_ms, (batch.num_rows(), true), &mut groups)?;
            take(index, &groups, &columns, cx)?;
        }
        index.restored(Some(state.checkpoint()));
        Ok(())
    }
}

/// The key columns of a cut. Those of all keys are copied as they are stored and gathered later, by the other thread.
fn frozen_keys(index: &KeyIndex, cut: &Cut) -> Result<Frozen> {
    if cut.since.is_some() {
        let keys = index.gather(&cut.live)?;
        let bytes = keys.iter().map(|key| key.get_array_memory_size()).sum();
        return Ok(Frozen::new(bytes, move |positions| {
            let rows = arrow::array::UInt32Array::from(positions.to_vec());
            let keys = keys.iter().map(|key| Ok(arrow::compute::take(key, &rows, None)?));
            keys.collect()
        }));
    }
    let (keys, groups) = (index.freeze()?, cut.live.clone());
    let bytes = keys.size() + groups.capacity() * size_of::<u32>();
    Ok(Frozen::new(bytes, move |positions| {
        let groups: Vec<u32> = positions.iter().map(|position| groups[*position as usize]).collect();
        keys.gather(&groups)
    }))
}

/// A table of rows of a [`RowStore`]: the rows' columns, numbers that go with them, and when their key was accessed.
pub(in crate::operator) struct RowTable {
    spec: TableSpec,
    rows: SchemaRef,
    keys: Vec<Arc<dyn PhysicalExpr>>,
    numbers: usize,
    has_ttl: bool,
}

impl RowTable {
    /// A table of rows of this schema, which belong where `keys` over it lead, with further columns of numbers.
    pub(in crate::operator) fn new(
        name: &str,
        rows: SchemaRef,
        keys: &[Arc<dyn PhysicalExpr>],
        numbers: &[&str],
        has_ttl: bool,
    ) -> Self {
        let numbers: Vec<Field> = numbers
            .iter()
            .map(|name| Field::new(*name, DataType::UInt64, false))
            .collect();
        let accessed = has_ttl.then(|| Field::new(ACCESSED, DataType::Int64, true));
        let own = rows.fields().iter().map(|field| plain_field(field));
        let count = numbers.len();
        let fields: Vec<Field> = own.chain(numbers).chain(accessed).collect();
        Self {
            spec: TableSpec::of_rows(name, distinct_names(&Schema::new(fields)), keys.to_vec()),
            rows,
            keys: keys.to_vec(),
            numbers: count,
            has_ttl,
        }
    }

    /// Of another version than the first.
    pub(in crate::operator) fn with_version(mut self, version: u32) -> Self {
        self.spec.version = version;
        self
    }

    /// Adds the whole table to a snapshot: the rows in `slots` with their keys' numbers and further numbers.
    pub(in crate::operator) fn write(
        &self,
        state: &mut Snapshot,
        (index, store): (&KeyIndex, &RowStore),
        (groups, slots): (Vec<u32>, &[u32]),
        numbers: Vec<Vec<u64>>,
        cx: &Context,
    ) {
        let (rows, order) = frozen_rows(store, slots, (0..self.rows.fields().len()).collect());
        let numbers = numbers
            .into_iter()
            .map(|numbers| Frozen::numbers::<UInt64Type>(DataType::UInt64, numbers));
        let accessed = index.accessed(&groups);
        let accessed = accessed.map(|accessed| Frozen::numbers::<Int64Type>(DataType::Int64, accessed));
        let parts = std::iter::once(rows).chain(numbers).chain(accessed).collect();
        let table = FrozenTable::new(&self.spec.schema, slots.len(), parts, Some(order), cx);
        state.full(&self.spec, table);
    }

    /// Takes the table back, batch by batch: the rows, further numbers, and when the rows' keys were accessed.
    ///
    /// # Errors
    /// When the state does not fit.
    pub(in crate::operator) fn read(
        &self,
        state: &mut Restored,
    ) -> Result<impl Iterator<Item = Result<RestoredBatch>>> {
        let batches = state.take(&self.spec)?;
        Ok(batches.map(|batch| {
            let batch = batch?;
            let own = self.rows.fields().len();
            let rows = with_types(&self.rows, &batch.columns()[..own], batch.num_rows())?;
            let numbers = &batch.columns()[own..own + self.numbers];
            let numbers = numbers
                .iter()
                .map(|column| column.as_primitive::<UInt64Type>().values().to_vec());
            let accessed = batch.columns().last().filter(|_| self.has_ttl);
            Ok(RestoredBatch {
                keys: super::evaluate_keys(&self.keys, &rows)?,
                numbers: numbers.collect(),
                accessed: accessed.map(|accessed| accessed.as_primitive().clone()),
                rows,
            })
        }))
    }
}

/// Rows that have come back.
pub(in crate::operator) struct RestoredBatch {
    pub(in crate::operator) rows: Batch,
    /// The columns of their keys.
    pub(in crate::operator) keys: Vec<ArrayRef>,
    pub(in crate::operator) numbers: Vec<Vec<u64>>,
    pub(in crate::operator) accessed: Option<Int64Array>,
}

/// Rows of a table as rows of the operator: with dictionaries where it has them.
///
/// # Errors
/// When a value does not fit.
pub(in crate::operator) fn with_types(schema: &SchemaRef, columns: &[ArrayRef], rows: usize) -> Result<Batch> {
    let columns = columns.iter().zip(schema.fields());
    let columns = columns.map(|(column, field)| to_type(Arc::clone(column), field.data_type()));
    let options = arrow::array::RecordBatchOptions::new().with_row_count(Some(rows));
    let columns = columns.collect::<Result<_>>()?;
    Ok(Batch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

/// Some columns of the rows in `slots`, and the order in which they lie.
pub(in crate::operator) fn frozen_rows(store: &RowStore, slots: &[u32], columns: Vec<usize>) -> (Frozen, Order) {
    let rows = Arc::new(store.freeze(slots));
    let order = Arc::clone(&rows);
    let frozen = Frozen::new(rows.size(), move |positions| rows.gather(positions, &columns));
    (frozen, Box::new(move || order.order()))
}
