//! Keys to numbers: slots of a table without values. A function without a key has one, which is its subtask.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray, Int32Array};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{DataType, Field, Int32Type, Schema};

use crate::data::{Batch, EngineError, Result};
use crate::state::{FrozenKeys, KeyedTable, Scope, TableSpec, distinct_names};

/// Tables up to this many keys are not searched for those that are gone.
const FEW_KEYS: usize = 4096;

/// The keys that have state.
pub(super) struct KeyNumbers {
    table: KeyedTable,
    fields: Vec<Field>,
    /// The subtask and how many there are, for a function without a key.
    own: Option<[i32; 2]>,
    /// At how many keys to look next how many of them are gone.
    look_at: usize,
    slots: Vec<u32>,
}

impl KeyNumbers {
    /// For keys of `types`, in one subtask of several.
    ///
    /// # Errors
    /// When a type cannot be a key.
    pub(super) fn new(types: Vec<DataType>, (subtask, parallelism): (usize, usize)) -> Result<Self> {
        let own = types.is_empty().then_some([subtask as i32, parallelism as i32]);
        let field = |(name, data_type)| Field::new(name, data_type, true);
        let fields: Vec<Field> = match own {
            Some(_) => [("subtask", DataType::Int32), ("parallelism", DataType::Int32)]
                .map(field)
                .into(),
            // By place: what the program calls its keys may change.
            None => types.into_iter().map(|data_type| field(("key", data_type))).collect(),
        };
        let schema = distinct_names(&Schema::new(fields));
        let mut keys = Self {
            table: KeyedTable::new(
                TableSpec::by_key("keys", Arc::clone(&schema), schema.fields().len()),
                None,
            )?,
            fields: schema.fields().iter().map(|field| field.as_ref().clone()).collect(),
            own,
            look_at: FEW_KEYS,
            slots: Vec::new(),
        };
        if let Some(own) = own {
            // The one key is there from the beginning, as number 0.
            let own = own.map(|value| -> ArrayRef { Arc::new(Int32Array::from(vec![value])) });
            keys.number_stored(&own, 1, &mut Vec::new())?;
        }
        Ok(keys)
    }

    /// Puts into `numbers` the number of each row's key.
    pub(super) fn number_all(&mut self, columns: &[ArrayRef], rows: usize, numbers: &mut Vec<usize>) -> Result<()> {
        if self.own.is_some() {
            numbers.clear();
            numbers.resize(rows, 0);
            return Ok(());
        }
        self.number_stored(columns, rows, numbers)
    }

    /// The same for keys as tables have them.
    pub(super) fn number_stored(&mut self, columns: &[ArrayRef], rows: usize, numbers: &mut Vec<usize>) -> Result<()> {
        self.table.locate(columns, rows, &mut self.slots)?;
        numbers.clear();
        numbers.extend(self.slots.iter().map(|slot| *slot as usize));
        Ok(())
    }

    /// The keys with these numbers, as the program knows them.
    pub(super) fn columns(&self, numbers: &[usize]) -> Result<Vec<ArrayRef>> {
        match self.own {
            Some(_) => Ok(Vec::new()),
            None => self.stored(numbers),
        }
    }

    /// The keys with these numbers, as tables have them.
    pub(super) fn stored(&self, numbers: &[usize]) -> Result<Vec<ArrayRef>> {
        let slots: Vec<u32> = numbers.iter().map(|number| *number as u32).collect();
        self.table.keys(&slots)
    }

    /// One more than the highest number.
    pub(super) fn bound(&self) -> usize {
        self.table.slot_bound()
    }

    /// Whether it is time to look for keys that are gone.
    pub(super) fn is_crowded(&self) -> bool {
        self.table.resident() >= self.look_at
    }

    /// Forgets the keys that are not used; gives their numbers.
    pub(super) fn forget(&mut self, is_used: &[bool]) -> Vec<u32> {
        let is_kept = |slot: &u32| is_used[*slot as usize] || self.own.is_some();
        let gone: Vec<u32> = self.table.slots().filter(|slot| !is_kept(slot)).collect();
        self.table.remove(&gone);
        self.table.tidy();
        self.look_at = (self.table.resident() * 2).max(FEW_KEYS);
        gone
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.table.size()
    }

    /// The keys for another thread.
    pub(super) fn freeze(&mut self) -> FrozenKeys {
        self.table.frozen_keys()
    }

    /// How many columns of a table are the key.
    pub(super) fn width(&self) -> usize {
        self.fields.len()
    }

    /// A table of the keys' columns and `fields`, of which the first `more` are needed to tell the rows of a key apart.
    pub(super) fn spec(&self, name: String, fields: Vec<Field>, more: usize) -> TableSpec {
        let schema = distinct_names(&Schema::new([self.fields.clone(), fields].concat()));
        let scope = match self.own {
            Some(_) => Scope::Union,
            None => Scope::leading(&schema, self.width()),
        };
        TableSpec {
            name,
            scope,
            schema,
            unique: self.width() + more,
            version: 1,
        }
    }

    /// Those of restored rows that are this subtask's.
    ///
    /// # Errors
    /// When the function has no key and there were more or fewer subtasks.
    pub(super) fn own_rows(&self, rows: Batch) -> Result<Batch> {
        let Some([subtask, parallelism]) = self.own else {
            return Ok(rows);
        };
        let column = |at: usize| rows.column(at).as_primitive::<Int32Type>();
        if let Some(other) = column(1).iter().flatten().find(|other| *other != parallelism) {
            return Err(EngineError::Plan(format!(
                "the state of a function without a key belongs to its subtask and cannot be shared out anew: \
                 it is of {other} subtasks, there are {parallelism} now; keep the parallelism, or give the stream a key"
            )));
        }
        let keep: BooleanArray = column(0).iter().map(|of| Some(of == Some(subtask))).collect();
        Ok(filter_record_batch(&rows, &keep)?)
    }
}
