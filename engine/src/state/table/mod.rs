//! [`KeyedTable`]: keyed state in columns, for tens of millions of keys.
//!
//! A table gives each key a *slot*; keys and values lie in columns by slot ([`column`]), in pages that a snapshot shares and
//! the writer copies on write ([`pages`]). From a key's hash an open hash table per key group leads to its slot ([`index`]).
//! Everything takes whole batches: hashes first, then all index entries, then the key columns one after the other, so that the
//! misses of many rows are waited for together.
//!
//! **Snapshots** are a swap of pointers. Each slot knows after which barrier it was written, so that a delta is the slots that
//! were written since; a key that has gone keeps its slot as long as a delta may have to tell so ([`history`], [`frozen`]).
//!
//! **Larger than memory.** What is cold goes to sorted runs on disk; a lookup that finds nothing in memory fetches from them by
//! hash, a block at a time ([`spill`], [`run`]). The newest row of a key counts: memory before runs, newer before older runs.
//!
//! A slot is good until the next call of [`KeyedTable::settle`].

mod column;
mod frozen;
mod history;
mod index;
mod lookup;
mod merge;
mod pages;
mod run;
mod source;
mod spill;
mod store;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Weak};
use std::time::Duration;

use arrow::array::ArrayRef;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};

use self::frozen::Frozen;
pub(crate) use self::frozen::FrozenKeys;
pub(crate) use self::history::History;
use self::index::{Index, MAX_SLOTS};
use self::run::DiskRun;
use self::source::{Layout, Source, of_type};
use self::store::{DEAD, FREE, Store, run_schema};
use super::{TableSpec, distinct_names};
use crate::data::{EngineError, Result};

/// Stands for "no such key" where slots are asked for.
pub const NO_SLOT: u32 = u32::MAX;

/// Slots by which a table grows.
const GROWTH: usize = 1024;

/// How long a state is kept that nobody uses, by processing time. An expired state is never seen again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ttl {
    ms: i64,
    on_read: bool,
}

impl Ttl {
    /// Kept for `time` after it was written last.
    pub fn on_write(time: Duration) -> Self {
        Self {
            ms: i64::try_from(time.as_millis()).unwrap_or(i64::MAX),
            on_read: false,
        }
    }

    /// Kept for `time` after it was read or written last.
    pub fn on_read_and_write(time: Duration) -> Self {
        Self {
            on_read: true,
            ..Self::on_write(time)
        }
    }

    /// Whether reading counts as use.
    pub fn counts_reads(&self) -> bool {
        self.on_read
    }

    /// Whether what was used last at `touched_ms` has expired at `now_ms`.
    pub fn has_expired(&self, touched_ms: i64, now_ms: i64) -> bool {
        touched_ms.saturating_add(self.ms) <= now_ms
    }
}

/// Keys and their values.
pub struct KeyedTable {
    spec: TableSpec,
    /// Without the time of last use.
    fields: SchemaRef,
    run_schema: SchemaRef,
    layouts: Vec<Layout>,
    key_count: usize,
    ttl: Option<Ttl>,
    now_ms: i64,
    store: Store,
    index: Index,
    /// Slots given out so far; those of `free` are not in use.
    slots: u32,
    capacity: usize,
    free: Vec<u32>,
    live: usize,
    /// Slots that keep a key which is gone. One may be here that has been revived since.
    dead: Vec<u32>,
    history: History,
    /// The oldest first.
    runs: Vec<DiskRun>,
    /// Where the next sweep goes on.
    swept: u32,
    last_frozen: Weak<Frozen>,
    /// Bytes that were moved to disk while the last snapshot held them.
    left_bytes: usize,
    candidates: Vec<u32>,
}

impl KeyedTable {
    /// An empty table. The first `unique` columns of the spec are the key, the others the values, which should be
    /// nullable: a value that nobody has written is NULL. With `ttl` the spec gets one more column.
    ///
    /// # Errors
    /// When a type cannot be stored.
    pub fn new(mut spec: TableSpec, ttl: Option<Ttl>) -> Result<Self> {
        let fields = Arc::clone(&spec.schema);
        let layouts = fields
            .fields()
            .iter()
            .map(|field| Layout::of(field.data_type()))
            .collect::<Result<Vec<_>>>()?;
        if ttl.is_some() {
            let mut with_time: Vec<Arc<Field>> = fields.fields().to_vec();
            with_time.push(Arc::new(Field::new("last used", DataType::Int64, true)));
            spec.schema = distinct_names(&Schema::new(with_time));
        }
        Ok(Self {
            store: Store::new(&layouts, &fields, spec.unique, ttl.is_some())?,
            run_schema: run_schema(&fields),
            key_count: spec.unique,
            layouts,
            fields,
            spec,
            ttl,
            now_ms: i64::MIN,
            index: Index::new(),
            slots: 0,
            capacity: 0,
            free: Vec::new(),
            live: 0,
            dead: Vec::new(),
            history: History::default(),
            runs: Vec::new(),
            swept: 0,
            last_frozen: Weak::new(),
            left_bytes: 0,
            candidates: Vec::new(),
        })
    }

    /// The table as snapshots have it.
    pub fn spec(&self) -> &TableSpec {
        &self.spec
    }

    /// Sets processing time: what expires, and when a state was used.
    pub fn set_time(&mut self, now_ms: i64) {
        self.now_ms = now_ms;
    }

    /// How many keys are in memory.
    pub fn resident(&self) -> usize {
        self.live
    }

    /// One more than the highest slot that is in use.
    pub fn slot_bound(&self) -> usize {
        self.slots as usize
    }

    /// The slots of the keys in memory.
    pub fn slots(&self) -> impl Iterator<Item = u32> {
        (0..self.slots).filter(|slot| self.is_live(*slot))
    }

    /// The values of a column at `slots`: NULL for [`NO_SLOT`].
    ///
    /// # Errors
    /// When they do not fit one array.
    pub fn read(&self, slots: &[u32], column: usize) -> Result<ArrayRef> {
        self.store.values[column].gather(slots)
    }

    /// The keys at `slots`.
    ///
    /// # Errors
    /// When they do not fit one array.
    pub fn keys(&self, slots: &[u32]) -> Result<Vec<ArrayRef>> {
        self.store.keys.iter().map(|column| column.gather(slots)).collect()
    }

    /// Sets the values of a column at `slots`, a row each; of a slot that is there twice the last value counts, and
    /// [`NO_SLOT`] is passed over.
    ///
    /// # Errors
    /// When the values cannot be brought to the column's type.
    pub fn write(&mut self, slots: &[u32], column: usize, values: &ArrayRef) -> Result<()> {
        if values.len() != slots.len() {
            return Err(EngineError::Internal(format!(
                "{} values for {} slots of table '{}'",
                values.len(),
                slots.len(),
                self.spec.name
            )));
        }
        let at = self.key_count + column;
        let values = of_type(values, self.fields.field(at).data_type())?;
        let source = Source::new(&self.layouts[at], &values)?;
        self.store.values[column].scatter(slots, &source);
        for slot in slots.iter().filter(|slot| **slot != NO_SLOT) {
            self.touch(*slot);
        }
        Ok(())
    }

    /// Forgets the keys at `slots`.
    pub fn remove(&mut self, slots: &[u32]) {
        for slot in slots.iter().copied().filter(|slot| *slot != NO_SLOT) {
            if !self.is_live(slot) {
                continue;
            }
            self.live -= 1;
            if self.must_tell(self.store.hashes.get(slot)) {
                self.store.values.iter_mut().for_each(|column| column.clear(slot));
                self.store.epochs.set(slot, self.history.current() | DEAD);
                self.dead.push(slot);
            } else {
                self.release(slot);
            }
        }
    }

    /// Forgets what has expired among the next `limit` slots.
    pub fn sweep(&mut self, limit: usize) {
        if self.ttl.is_none() {
            return;
        }
        for _ in 0..limit.min(self.slots as usize) {
            let slot = self.swept % self.slots;
            self.swept = slot + 1;
            if self.is_live(slot) && self.is_expired(slot) {
                // A snapshot says when the state was used: whoever reads that sees that it has expired.
                self.live -= 1;
                self.release(slot);
            }
        }
    }

    /// Bytes held, with what snapshots still hold of earlier contents.
    pub fn size(&self) -> usize {
        let runs: usize = self.runs.iter().map(DiskRun::memory_bytes).sum();
        let lists = (self.free.capacity() + self.dead.capacity() + self.candidates.capacity()) * size_of::<u32>();
        self.store.bytes() + self.held_bytes() + self.index.bytes() + runs + lists
    }

    /// Bytes that only the last snapshot still needs.
    fn held_bytes(&self) -> usize {
        match self.last_frozen.strong_count() {
            0 => 0,
            _ => self.store.copied_bytes() + self.left_bytes,
        }
    }

    fn is_live(&self, slot: u32) -> bool {
        self.store.epochs.get(slot) & DEAD == 0
    }

    fn is_expired(&self, slot: u32) -> bool {
        match (&self.ttl, &self.store.touched) {
            (Some(ttl), Some(touched)) => ttl.has_expired(touched.get(slot), self.now_ms),
            _ => false,
        }
    }

    /// Notes that a slot was written.
    fn touch(&mut self, slot: u32) {
        let (epoch, current) = (self.store.epochs.get(slot), self.history.current());
        if epoch & DEAD != 0 {
            return;
        }
        if epoch != current {
            self.store.epochs.set(slot, current);
        }
        if let Some(touched) = &mut self.store.touched
            && touched.get(slot) != self.now_ms
        {
            touched.set(slot, self.now_ms);
        }
    }

    /// Whether somebody must be told that a key is gone: a delta, or whoever finds it in a run.
    fn must_tell(&self, hash: u64) -> bool {
        self.history.oldest().is_some() || self.runs.iter().any(|run| run.may_have(hash))
    }

    /// A slot for a new key.
    fn allocate(&mut self) -> Result<u32> {
        if let Some(slot) = self.free.pop() {
            return Ok(slot);
        }
        if self.slots == MAX_SLOTS {
            return Err(EngineError::Plan(format!(
                "table '{}' holds more than {MAX_SLOTS} keys in memory; raise the parallelism",
                self.spec.name
            )));
        }
        if self.slots as usize == self.capacity {
            self.capacity += GROWTH;
            self.store.grow(self.capacity);
        }
        self.slots += 1;
        Ok(self.slots - 1)
    }

    fn release(&mut self, slot: u32) {
        self.index.remove(self.store.hashes.get(slot), slot);
        self.store.columns().for_each(|column| column.release(slot));
        self.store.epochs.set(slot, FREE);
        self.free.push(slot);
    }

    /// Lets go of the keys of which nobody must be told any more that they are gone.
    fn purge(&mut self) {
        let oldest = self.history.oldest();
        for slot in std::mem::take(&mut self.dead) {
            let epoch = self.store.epochs.get(slot);
            if epoch & DEAD == 0 || epoch == FREE {
                continue;
            }
            let hash = self.store.hashes.get(slot);
            let is_asked = oldest.is_some_and(|oldest| epoch & !DEAD >= oldest);
            if is_asked || self.runs.iter().any(|run| run.may_have(hash)) {
                self.dead.push(slot);
            } else {
                self.release(slot);
            }
        }
    }
}
