//! The rows that windows hold: batches as they came, and per window a list of places in them.
//!
//! A row that is in many windows is stored once. A batch goes when no list refers to it; when most of what is stored is
//! dead, the living rows are copied together.

use std::collections::VecDeque;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, UInt32Array};
use arrow::compute::{interleave, take};

use crate::data::Result;

/// Below so many stored rows nothing is copied together.
const COMPACT_ROWS_MIN: usize = 1 << 16;
/// Rows of a batch that is made of living rows.
const COMPACT_BATCH_ROWS: usize = 1 << 16;
const NONE: u32 = u32::MAX;

/// Where a row is. The order is the order of arrival.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    batch: u32,
    row: u32,
}

impl Place {
    /// A number with the same order.
    pub(super) fn id(self) -> u64 {
        u64::from(self.batch) << 32 | u64::from(self.row)
    }
}

#[derive(Clone, Copy)]
struct Link {
    place: Place,
    next: u32,
}

/// The rows of one window, in the order in which they were added.
#[derive(Clone, Copy, Debug)]
pub(super) struct RowList {
    head: u32,
    tail: u32,
    len: u32,
}

impl Default for RowList {
    fn default() -> Self {
        Self {
            head: NONE,
            tail: NONE,
            len: 0,
        }
    }
}

impl RowList {
    pub(super) fn len(&self) -> usize {
        self.len as usize
    }
}

#[derive(Clone)]
struct Stored {
    columns: Vec<ArrayRef>,
    times: Arc<Vec<i64>>,
    /// How many places in lists are in this batch.
    links: usize,
    bytes: usize,
}

/// Batches, and the lists of places in them.
#[derive(Default)]
pub(super) struct RowStore {
    batches: VecDeque<Stored>,
    /// The number of the first batch that is stored.
    first: u32,
    links: Vec<Link>,
    free: Option<u32>,
    links_used: usize,
    stored_rows: usize,
    stored_bytes: usize,
}

impl RowStore {
    /// Stores columns with a time per row; gives the place of the first row.
    pub(super) fn push(&mut self, columns: Vec<ArrayRef>, times: Vec<i64>, bytes: usize) -> Place {
        let batch = self.first + self.batches.len() as u32;
        self.stored_rows += times.len();
        let bytes = bytes + times.len() * size_of::<i64>();
        self.stored_bytes += bytes;
        self.batches.push_back(Stored {
            columns,
            times: Arc::new(times),
            links: 0,
            bytes,
        });
        Place { batch, row: 0 }
    }

    /// The place `row` rows after `first`, of the same batch.
    pub(super) fn place(first: Place, row: usize) -> Place {
        Place {
            batch: first.batch,
            row: row as u32,
        }
    }

    /// Adds a row to the end of a list.
    pub(super) fn append(&mut self, list: &mut RowList, place: Place) {
        let link = Link { place, next: NONE };
        let index = match self.free {
            Some(index) => {
                let next = self.links[index as usize].next;
                self.free = (next != NONE).then_some(next);
                self.links[index as usize] = link;
                index
            }
            None => {
                self.links.push(link);
                self.links.len() as u32 - 1
            }
        };
        if list.len == 0 {
            list.head = index;
        } else {
            self.links[list.tail as usize].next = index;
        }
        list.tail = index;
        list.len += 1;
        self.links_used += 1;
        self.batches[(place.batch - self.first) as usize].links += 1;
    }

    /// Empties a list. Its rows can be read until the next [`Self::sweep`].
    pub(super) fn release(&mut self, list: &mut RowList) {
        let mut at = list.head;
        for _ in 0..list.len {
            let Link { place, next } = self.links[at as usize];
            self.batches[(place.batch - self.first) as usize].links -= 1;
            self.links[at as usize] = Link {
                place: Place { batch: NONE, row: 0 },
                next: self.free.unwrap_or(NONE),
            };
            self.free = Some(at);
            at = next;
        }
        self.links_used -= list.len();
        *list = RowList::default();
    }

    /// Moves the rows of `from` behind those of `to`.
    pub(super) fn join(&mut self, to: &mut RowList, from: &mut RowList) {
        let from = std::mem::take(from);
        if from.len == 0 {
            return;
        }
        if to.len == 0 {
            *to = from;
            return;
        }
        self.links[to.tail as usize].next = from.head;
        to.tail = from.tail;
        to.len += from.len;
    }

    /// Makes a list of these places; the list's own are given up.
    pub(super) fn replace(&mut self, list: &mut RowList, places: &[Place]) {
        self.release(list);
        places.iter().for_each(|place| self.append(list, *place));
    }

    /// The places of a list.
    pub(super) fn places(&self, list: RowList) -> impl Iterator<Item = Place> + '_ {
        let mut at = list.head;
        (0..list.len).map(move |_| {
            let link = self.links[at as usize];
            at = link.next;
            link.place
        })
    }

    /// The time of a row.
    pub(super) fn time(&self, place: Place) -> i64 {
        self.batches[(place.batch - self.first) as usize].times[place.row as usize]
    }

    /// The columns `columns` of the rows at `places`.
    ///
    /// # Errors
    /// When the rows do not fit one array.
    pub(super) fn gather(&self, places: &[Place], columns: std::ops::Range<usize>) -> Result<Vec<ArrayRef>> {
        let Some(first) = places.first() else {
            return Ok(Vec::new());
        };
        let batch = |number: u32| &self.batches[(number - self.first) as usize];
        if places.iter().all(|place| place.batch == first.batch) {
            let source = &batch(first.batch).columns[columns];
            let consecutive = places.iter().zip(first.row..).all(|(place, row)| place.row == row);
            if consecutive {
                return Ok(source
                    .iter()
                    .map(|column| column.slice(first.row as usize, places.len()))
                    .collect());
            }
            let rows: UInt32Array = places.iter().map(|place| place.row).collect();
            return source.iter().map(|column| Ok(take(column, &rows, None)?)).collect();
        }
        let mut index_of = vec![NONE; self.batches.len()];
        let mut used = Vec::new();
        let indices: Vec<(usize, usize)> = places
            .iter()
            .map(|place| {
                let index = &mut index_of[(place.batch - self.first) as usize];
                if *index == NONE {
                    *index = used.len() as u32;
                    used.push(place.batch);
                }
                (*index as usize, place.row as usize)
            })
            .collect();
        columns
            .map(|column| {
                let arrays: Vec<&dyn Array> = used
                    .iter()
                    .map(|number| batch(*number).columns[column].as_ref())
                    .collect();
                Ok(interleave(&arrays, &indices)?)
            })
            .collect()
    }

    /// Gives up the batches that no list refers to; copies the living rows together when they are few.
    ///
    /// # Errors
    /// When the copy does not fit one array.
    pub(super) fn sweep(&mut self) -> Result<()> {
        while self.batches.front().is_some_and(|batch| batch.links == 0) {
            let Some(gone) = self.batches.pop_front() else { break };
            self.stored_rows -= gone.times.len();
            self.stored_bytes -= gone.bytes;
            self.first += 1;
        }
        if self.batches.is_empty() {
            self.first = 0;
        }
        for batch in self.batches.iter_mut().filter(|batch| batch.links == 0) {
            self.stored_rows -= batch.times.len();
            self.stored_bytes -= batch.bytes;
            batch.columns = Vec::new();
            batch.times = Arc::default();
            batch.bytes = 0;
        }
        if self.links_used == 0 {
            self.links = Vec::new();
            self.free = None;
        }
        let many = self.stored_rows > COMPACT_ROWS_MIN || self.batches.len() > COMPACT_ROWS_MIN / 8;
        if many && self.stored_rows + self.batches.len() > 4 * self.links_used || self.first > NONE / 2 {
            self.compact()?;
        }
        Ok(())
    }

    fn compact(&mut self) -> Result<()> {
        let mut living: Vec<Place> = self.links.iter().map(|link| link.place).collect();
        living.retain(|place| place.batch != NONE);
        living.sort_unstable();
        living.dedup();
        let width = living.first().map_or(0, |place| {
            self.batches[(place.batch - self.first) as usize].columns.len()
        });
        let mut compact = Self::default();
        for places in living.chunks(COMPACT_BATCH_ROWS) {
            let columns = self.gather(places, 0..width)?;
            let times = places.iter().map(|place| self.time(*place)).collect();
            let bytes = columns.iter().map(|column| column.get_array_memory_size()).sum();
            compact.push(columns, times, bytes);
        }
        let mut links = std::mem::take(&mut self.links);
        for link in links.iter_mut().filter(|link| link.place.batch != NONE) {
            let index = living.partition_point(|place| *place < link.place);
            let batch = index / COMPACT_BATCH_ROWS;
            compact.batches[batch].links += 1;
            link.place = Place {
                batch: batch as u32,
                row: (index % COMPACT_BATCH_ROWS) as u32,
            };
        }
        compact.links = links;
        compact.free = self.free;
        compact.links_used = self.links_used;
        *self = compact;
        Ok(())
    }

    /// The same rows, without lists: for a thread that reads them while the operator goes on.
    pub(super) fn shared(&self) -> Self {
        Self {
            batches: self.batches.clone(),
            first: self.first,
            ..Self::default()
        }
    }

    /// Whether nothing is stored.
    #[cfg(test)]
    pub(super) fn is_empty(&self) -> bool {
        self.stored_rows == 0 && self.links.is_empty()
    }

    /// Bytes held.
    pub(super) fn size(&self) -> usize {
        self.stored_bytes + self.links.capacity() * size_of::<Link>() + self.batches.capacity() * size_of::<Stored>()
    }
}
