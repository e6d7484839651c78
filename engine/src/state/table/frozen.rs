//! A table at a barrier: written out by another thread while the operator goes on.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, BooleanArray};
use arrow::compute::filter_record_batch;
use arrow::datatypes::{Int64Type, Schema, SchemaRef};
use thalweg_memory::{Reservation, SpillDirectory};

use super::merge::{Merge, Sorted};
use super::run::{DiskRun, whole_hashes};
use super::spill::{epochs_of, touched_of};
use super::store::{BEFORE_KEYS, DEAD, FREE, Store, batch_of};
use super::{KeyedTable, Ttl};
use crate::data::{Batch, Result};
use crate::state::{Restored, Snapshot};

/// Rows of a batch that is written.
const ROWS: usize = 16 << 10;

/// The contents of a table at one moment.
pub(super) struct Frozen {
    store: Store,
    slots: u32,
    runs: Vec<DiskRun>,
    schema: SchemaRef,
    run_schema: SchemaRef,
    keys: usize,
    expiry: Option<(Ttl, i64)>,
}

/// Which rows of a frozen table.
#[derive(Clone, Copy)]
enum Wanted {
    Live,
    Gone,
}

impl KeyedTable {
    /// Adds the table to a snapshot: what has changed, if the table still knows since when, or else all of it.
    pub fn snapshot(&mut self, snapshot: &mut Snapshot) {
        let request = snapshot.request();
        let since = request.since.filter(|_| self.key_count > 0);
        let epoch = since.and_then(|since| self.history.since(since));
        let frozen = self.freeze();
        match (since, epoch) {
            (Some(since), Some(epoch)) => {
                let changed = Frozen::rows(Arc::clone(&frozen), epoch, Wanted::Live);
                let gone = Frozen::rows(frozen, epoch, Wanted::Gone);
                snapshot.delta(&self.spec, since, changed, gone);
            }
            _ => snapshot.full(&self.spec, Frozen::rows(frozen, 0, Wanted::Live)),
        }
        self.history.barrier(request.checkpoint);
        self.purge();
    }

    /// All rows as they are now, in the schema of [`Self::spec`].
    pub fn rows(&mut self) -> impl Iterator<Item = Result<Batch>> + Send + use<> {
        Frozen::rows(self.freeze(), 0, Wanted::Live)
    }

    /// Takes back what `snapshot` added. The next delta may build on that checkpoint.
    ///
    /// # Errors
    /// When it does not fit, or the disk fails.
    pub fn restore(&mut self, state: &mut Restored, memory: &mut Reservation, spill: &SpillDirectory) -> Result<()> {
        for batch in state.take(&self.spec)? {
            self.restore_rows(&batch?)?;
            self.settle(memory, spill)?;
        }
        self.restored(state.checkpoint());
        Ok(())
    }

    /// Takes back rows of the table's spec.
    pub(crate) fn restore_rows(&mut self, rows: &Batch) -> Result<()> {
        let rows = self.unexpired(rows)?;
        let mut slots = Vec::new();
        self.locate(&rows.columns()[..self.key_count], rows.num_rows(), &mut slots)?;
        let columns = &rows.columns()[self.key_count..self.fields.fields().len()];
        for (column, values) in columns.iter().enumerate() {
            self.write(&slots, column, values)?;
        }
        if let Some(touched) = &mut self.store.touched {
            let times = rows.column(rows.num_columns() - 1).as_primitive::<Int64Type>();
            for (slot, time) in slots.iter().zip(times) {
                touched.set(*slot, time.unwrap_or(self.now_ms));
            }
        }
        Ok(())
    }

    /// All rows of a checkpoint are back: deltas may build on it.
    pub(crate) fn restored(&mut self, checkpoint: u64) {
        self.history.barrier(checkpoint);
    }

    /// The keys as they are now, for another thread.
    pub(crate) fn frozen_keys(&mut self) -> FrozenKeys {
        FrozenKeys(self.freeze())
    }

    fn unexpired(&self, rows: &Batch) -> Result<Batch> {
        let Some(ttl) = &self.ttl else {
            return Ok(rows.clone());
        };
        let times = rows.column(rows.num_columns() - 1).as_primitive::<Int64Type>();
        let keep = times
            .iter()
            .map(|time| Some(!time.is_some_and(|time| ttl.has_expired(time, self.now_ms))));
        Ok(filter_record_batch(rows, &keep.collect::<BooleanArray>())?)
    }

    fn freeze(&mut self) -> Arc<Frozen> {
        let frozen = Arc::new(Frozen {
            store: self.store.freeze(),
            slots: self.slots,
            runs: self.runs.clone(),
            schema: Arc::clone(&self.spec.schema),
            run_schema: Arc::clone(&self.run_schema),
            keys: self.key_count,
            expiry: self.ttl.map(|ttl| (ttl, self.now_ms)),
        });
        self.last_frozen = Arc::downgrade(&frozen);
        self.left_bytes = 0;
        frozen
    }
}

/// The keys of a table at one moment.
#[derive(Clone)]
pub(crate) struct FrozenKeys(Arc<Frozen>);

impl FrozenKeys {
    /// The keys at `slots`.
    pub(crate) fn columns(&self, slots: &[u32]) -> Result<Vec<ArrayRef>> {
        self.0.store.keys.iter().map(|column| column.gather(slots)).collect()
    }
}

impl Frozen {
    /// The rows that were written at `since` or later.
    fn rows(self: Arc<Self>, since: u32, wanted: Wanted) -> Box<dyn Iterator<Item = Result<Batch>> + Send> {
        if self.runs.is_empty() {
            let mut next = 0;
            return Box::new(std::iter::from_fn(move || {
                let slots = self.next_slots(&mut next, since, wanted);
                (!slots.is_empty()).then(|| self.batch(&slots, wanted))
            }));
        }
        Box::new(self.merged(since, wanted))
    }

    fn is_wanted(&self, slot: u32, since: u32, wanted: Wanted) -> bool {
        let epoch = self.store.epochs.get(slot);
        if epoch == FREE || epoch & !DEAD < since {
            return false;
        }
        match wanted {
            Wanted::Gone => epoch & DEAD != 0,
            Wanted::Live => epoch & DEAD == 0 && !self.has_expired(self.touched(slot)),
        }
    }

    fn touched(&self, slot: u32) -> i64 {
        self.store.touched.as_ref().map_or(0, |touched| touched.get(slot))
    }

    fn has_expired(&self, touched_ms: i64) -> bool {
        self.expiry
            .is_some_and(|(ttl, now_ms)| ttl.has_expired(touched_ms, now_ms))
    }

    fn next_slots(&self, next: &mut u32, since: u32, wanted: Wanted) -> Vec<u32> {
        let mut slots = Vec::new();
        while *next < self.slots && slots.len() < ROWS {
            if self.is_wanted(*next, since, wanted) {
                slots.push(*next);
            }
            *next += 1;
        }
        slots
    }

    fn batch(&self, slots: &[u32], wanted: Wanted) -> Result<Batch> {
        match wanted {
            Wanted::Live => self.store.rows(slots, &self.schema),
            Wanted::Gone => {
                let keys = self.store.keys.iter().map(|column| column.gather(slots));
                batch_of(&self.key_schema(), keys.collect::<Result<Vec<_>>>()?, slots.len())
            }
        }
    }

    fn key_schema(&self) -> SchemaRef {
        Arc::new(Schema::new(self.schema.fields()[..self.keys].to_vec()))
    }

    /// Memory and runs: what is newer hides what is older, whether wanted or not.
    fn merged(self: Arc<Self>, since: u32, wanted: Wanted) -> impl Iterator<Item = Result<Batch>> + Send {
        let mut sources: Vec<Sorted> = vec![Box::new(Arc::clone(&self).by_hash(since))];
        // A row can be hidden by a newer one only, so runs that are older than all that is wanted hide nothing.
        let runs = self.runs.iter().rev().filter(|run| run.newest() >= since).cloned();
        sources.extend(runs.map(|run| Box::new(run.blocks()) as Sorted));
        let keys = BEFORE_KEYS..BEFORE_KEYS + self.keys;
        Merge::new(sources, keys).filter_map(
            move |rows| match rows.and_then(|rows| self.pick(&rows, since, wanted)) {
                Ok(rows) if rows.num_rows() == 0 => None,
                rows => Some(rows),
            },
        )
    }

    /// The slots in use as a run would have them.
    fn by_hash(self: Arc<Self>, since: u32) -> impl Iterator<Item = Result<Batch>> + Send {
        let mut order: Option<(Vec<u64>, Vec<u32>)> = None;
        let mut start = 0;
        std::iter::from_fn(move || {
            // Sorted at the first call: by the thread that writes, not by the operator.
            let (hashes, slots) = order.get_or_insert_with(|| {
                let in_use = |slot: &u32| {
                    let epoch = self.store.epochs.get(*slot);
                    epoch != FREE && epoch & !DEAD >= since
                };
                let mut slots: Vec<u32> = (0..self.slots).filter(in_use).collect();
                slots.sort_unstable_by_key(|slot| self.store.hashes.get(*slot));
                let hashes = slots.iter().map(|slot| self.store.hashes.get(*slot)).collect();
                (hashes, slots)
            });
            if start == slots.len() {
                return None;
            }
            let end = whole_hashes(hashes, start, ROWS);
            let rows = self.store.run_rows(&slots[start..end], &self.run_schema);
            start = end;
            Some(rows)
        })
    }

    /// The wanted rows of merged ones, in the table's schema.
    fn pick(&self, rows: &Batch, since: u32, wanted: Wanted) -> Result<Batch> {
        let (epochs, touched) = (epochs_of(rows), touched_of(rows));
        let keep = epochs.iter().zip(touched).map(|(epoch, touched)| {
            let is_dead = epoch & DEAD != 0;
            let fits = match wanted {
                Wanted::Gone => is_dead,
                Wanted::Live => !is_dead && !self.has_expired(*touched),
            };
            Some(fits && epoch & !DEAD >= since)
        });
        let rows = filter_record_batch(rows, &keep.collect::<BooleanArray>())?;
        let columns: &[ArrayRef] = &rows.columns()[BEFORE_KEYS..];
        match wanted {
            Wanted::Gone => batch_of(&self.key_schema(), columns[..self.keys].to_vec(), rows.num_rows()),
            Wanted::Live => {
                let mut columns = columns.to_vec();
                if self.expiry.is_some() {
                    columns.push(Arc::clone(rows.column(2)));
                }
                batch_of(&self.schema, columns, rows.num_rows())
            }
        }
    }
}
