//! Typed states by key number: what a key has of one state is a cell.
//!
//! Cells lie in pages that a snapshot shares and a write copies. Cells of single values know after which barrier they were
//! written, so that snapshots can be deltas; lists and maps are written whole.

use std::any::Any;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};

use super::contents::{Content, Moment};
use super::keys::KeyNumbers;
use crate::data::{Batch, Result};
use crate::state::{Frozen, FrozenKeys, TableSpec, Ttl};

/// Cells in a page.
const PAGE: usize = 1024;

/// One state of all keys.
pub(super) trait StateColumn: Any + Send {
    /// Whether a key has something of it, or must be told to have had; `oldest` is what deltas can ask for.
    fn is_used(&self, key: usize, oldest: Option<u32>) -> bool;
    /// The number will be another key's.
    fn forget(&mut self, key: usize);
    /// Forgets what has expired among the next `limit` keys; gives the bytes.
    fn sweep(&mut self, limit: usize, moment: &Moment) -> usize;
    /// The table, with the columns of `keys` if it has keys.
    fn spec(&self, name: &str, keys: Option<&KeyNumbers>) -> TableSpec;
    fn has_epochs(&self) -> bool;
    /// The rows of the table, or those written since.
    fn rows(&self, keys: Option<FrozenKeys>, schema: SchemaRef, since: u32, moment: Moment) -> Frozen;
    /// The keys of what has gone since.
    fn gone(&self, keys: FrozenKeys, schema: SchemaRef, since: u32) -> Frozen;
    /// Takes back rows whose keys have these numbers; gives their bytes.
    fn restore(&mut self, numbers: &[usize], columns: &[ArrayRef], moment: &Moment) -> Result<usize>;
    fn as_any(&self) -> &dyn Any;
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

pub(super) struct Cells<C> {
    pages: Vec<Arc<Vec<C>>>,
    pub(super) ttl: Option<Ttl>,
    swept: usize,
}

impl<C: Content> Cells<C> {
    pub(super) fn new(ttl: Option<Ttl>) -> Self {
        Self {
            pages: Vec::new(),
            ttl,
            swept: 0,
        }
    }

    pub(super) fn get(&self, key: usize) -> Option<&C> {
        self.pages.get(key / PAGE).map(|page| &page[key % PAGE])
    }

    pub(super) fn at(&mut self, key: usize) -> &mut C {
        while self.pages.len() <= key / PAGE {
            self.pages.push(Arc::new(vec![C::default(); PAGE]));
        }
        &mut Arc::make_mut(&mut self.pages[key / PAGE])[key % PAGE]
    }

    /// Cells page by page, those that `pick` takes, as `make` makes batches of them.
    fn batches(
        &self,
        pick: impl Fn(&C) -> bool + Send + 'static,
        make: impl Fn(&[(u32, &C)]) -> Result<Batch> + Send + 'static,
    ) -> Frozen {
        let pages = self.pages.clone().into_iter().enumerate();
        Box::new(pages.filter_map(move |(page, cells)| {
            let first = (page * PAGE) as u32;
            let picked: Vec<(u32, &C)> = (first..).zip(cells.iter()).filter(|(_, cell)| pick(cell)).collect();
            if picked.is_empty() {
                return None;
            }
            Some(make(&picked)).filter(|batch| batch.as_ref().map_or(true, |batch| batch.num_rows() > 0))
        }))
    }
}

impl<C: Content> StateColumn for Cells<C> {
    fn is_used(&self, key: usize, oldest: Option<u32>) -> bool {
        let is_told = |cell: &C| cell.epoch() > 0 && oldest.is_some_and(|oldest| cell.epoch() >= oldest);
        self.get(key).is_some_and(|cell| !cell.is_empty() || is_told(cell))
    }

    fn forget(&mut self, key: usize) {
        if self.get(key).is_some() {
            *self.at(key) = C::default();
        }
    }

    fn sweep(&mut self, limit: usize, moment: &Moment) -> usize {
        let keys = self.pages.len() * PAGE;
        if self.ttl.is_none() || keys == 0 {
            return 0;
        }
        let mut freed = 0;
        for _ in 0..limit.min(keys) {
            let key = self.swept % keys;
            self.swept = key + 1;
            if self.get(key).is_some_and(|cell| !cell.is_empty()) {
                freed += self.at(key).expire(moment);
            }
        }
        freed
    }

    fn spec(&self, name: &str, keys: Option<&KeyNumbers>) -> TableSpec {
        let mut fields = C::fields();
        if self.ttl.is_some() {
            fields.push(("last used", DataType::Int64));
        }
        let fields = fields
            .into_iter()
            .map(|(name, data_type)| Field::new(name, data_type, true));
        let fields: Vec<Field> = fields.collect();
        match keys {
            Some(keys) => keys.spec(format!("{} {name}", C::KIND), fields, C::UNIQUE),
            None => TableSpec::broadcast(format!("broadcast {name}"), Arc::new(Schema::new(fields))),
        }
    }

    fn has_epochs(&self) -> bool {
        C::HAS_EPOCH
    }

    fn rows(&self, keys: Option<FrozenKeys>, schema: SchemaRef, since: u32, moment: Moment) -> Frozen {
        let has_time = self.ttl.is_some();
        let pick = move |cell: &C| !cell.is_empty() && cell.epoch() >= since;
        self.batches(pick, move |cells| {
            let rows = C::rows(cells, &moment)?;
            let mut columns = match &keys {
                Some(keys) => keys.columns(&rows.numbers)?,
                None => Vec::new(),
            };
            columns.extend(rows.columns);
            if has_time {
                columns.push(Arc::new(Int64Array::from(rows.touched_ms)));
            }
            Ok(Batch::try_new(Arc::clone(&schema), columns)?)
        })
    }

    fn gone(&self, keys: FrozenKeys, schema: SchemaRef, since: u32) -> Frozen {
        let pick = move |cell: &C| cell.is_empty() && cell.epoch() >= since.max(1);
        self.batches(pick, move |cells| {
            let numbers: Vec<u32> = cells.iter().map(|(number, _)| *number).collect();
            Ok(Batch::try_new(Arc::clone(&schema), keys.columns(&numbers)?)?)
        })
    }

    fn restore(&mut self, numbers: &[usize], columns: &[ArrayRef], moment: &Moment) -> Result<usize> {
        let width = C::fields().len();
        let touched = columns.get(width).map(|column| column.as_primitive::<Int64Type>());
        let mut bytes = 0;
        for (row, number) in numbers.iter().enumerate() {
            let touched = touched.filter(|touched| touched.is_valid(row));
            let touched = touched.map_or(moment.now_ms, |touched| touched.value(row));
            if !moment.has_expired(touched) {
                bytes += self.at(*number).restore(&columns[..width], row, touched)?;
            }
        }
        Ok(bytes)
    }

    fn as_any(&self) -> &dyn Any {
        self
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
