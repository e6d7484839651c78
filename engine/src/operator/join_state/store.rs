//! The rows of one side of a join, found by the hash of their key.

use std::collections::VecDeque;

use arrow::array::RecordBatchOptions;
use arrow::datatypes::SchemaRef;

use super::index::{Chain, HashIndex, NO_CHAIN};
use super::keys::{JoinKeys, Keyed};
use super::pieces::{NO_ROW, Piece, Pieces, own};
use crate::data::{Batch, Result, hash_rows, without_row_kind};
use crate::plan::JoinInputSpec;

/// Fewer numbers of rows that are gone are not worth the trouble.
const TIDY_ROWS: usize = if cfg!(test) { 16 } else { 1024 };

/// What is kept per row beside the row.
#[derive(Clone, Debug, Default)]
pub(in crate::operator) struct StoreOptions {
    /// Its time.
    pub(in crate::operator) times: bool,
    /// How many rows it matches.
    pub(in crate::operator) counts: bool,
    /// Whether and how it is taken back.
    pub(in crate::operator) removal: Removal,
    /// When it came, in processing time, to be forgotten so many milliseconds later.
    pub(in crate::operator) ttl_ms: Option<u64>,
}

/// How stored rows are taken back.
#[derive(Clone, Debug, Default)]
pub(in crate::operator) enum Removal {
    /// Not at all.
    #[default]
    Never,
    /// By their number.
    ByNumber,
    /// By a row that is equal in these columns.
    ByColumns(Vec<usize>),
}

/// Rows to store. Vectors that the options do not ask for are empty.
pub(in crate::operator) struct Appended<'a> {
    /// The rows, without row kind.
    pub(in crate::operator) rows: &'a Batch,
    /// Their keys.
    pub(in crate::operator) keyed: &'a Keyed,
    /// The hashes of the keys, if known.
    pub(in crate::operator) hashes: Option<&'a [u64]>,
    /// Their times.
    pub(in crate::operator) times: &'a [i64],
    /// How many rows they match.
    pub(in crate::operator) counts: &'a [u32],
    /// Processing time.
    pub(in crate::operator) now_ms: i64,
}

/// How rows that are taken back are found.
pub(super) struct Removals {
    /// `None` when they are known by number.
    pub(super) columns: Option<Vec<usize>>,
    pub(super) hashes: Vec<u64>,
    pub(super) index: HashIndex,
    pub(super) next: Vec<u32>,
    /// The row before, in the chain of its key: to be taken out of it.
    pub(super) key_before: Vec<u32>,
    /// Rows that were taken back.
    pub(super) dead: Vec<bool>,
    pub(super) dead_rows: usize,
}

/// The rows of one side.
pub(in crate::operator) struct RowStore {
    pub(super) schema: SchemaRef,
    pub(super) options: StoreOptions,
    pub(super) pieces: Pieces,
    /// Of the first rows; the others' are computed when somebody asks.
    pub(super) hashes: Vec<u64>,
    pub(super) index: HashIndex,
    /// From a row to the one before it of the same hash. As many as are indexed.
    pub(super) next: Vec<u32>,
    pub(super) removals: Option<Removals>,
    /// Times of the rows.
    pub(super) times: Vec<i64>,
    /// Matches of the rows.
    pub(in crate::operator) counts: Vec<u32>,
    /// Arrival, and the number after the last row that came then.
    pub(super) arrivals: VecDeque<(i64, u32)>,
    /// Rows before this one are forgotten.
    pub(super) first: u32,
    /// What comparing hashes of rows that are not indexed has cost since, in units of indexing a row.
    pub(super) scan_debt: usize,
}

impl RowStore {
    /// An empty store for the rows of `side`.
    pub(in crate::operator) fn new(side: &JoinInputSpec, keys: &JoinKeys, options: StoreOptions) -> Self {
        let schema = without_row_kind(&side.schema.0);
        let row_types = schema.fields().iter().map(|field| field.data_type().clone());
        let key_types = keys.extras.iter().map(|number| keys.types()[*number].clone());
        let columns = match &options.removal {
            Removal::Never => None,
            Removal::ByNumber => Some(None),
            Removal::ByColumns(columns) => Some(Some(columns.clone())),
        };
        let removals = columns.map(|columns| Removals {
            columns,
            hashes: Vec::new(),
            index: HashIndex::default(),
            next: Vec::new(),
            key_before: Vec::new(),
            dead: Vec::new(),
            dead_rows: 0,
        });
        Self {
            pieces: Pieces::new(row_types.chain(key_types).collect()),
            schema,
            options,
            hashes: Vec::new(),
            index: HashIndex::default(),
            next: Vec::new(),
            removals,
            times: Vec::new(),
            counts: Vec::new(),
            arrivals: VecDeque::new(),
            first: 0,
            scan_debt: 0,
        }
    }

    /// Rows that are numbered; some of them may be gone.
    pub(in crate::operator) fn rows(&self) -> usize {
        self.pieces.rows()
    }

    /// Whether no row is left.
    pub(in crate::operator) fn is_empty(&self) -> bool {
        let rows = self.rows();
        self.pieces.gone().max(self.first as usize) == rows || self.dead_rows() == rows
    }

    fn dead_rows(&self) -> usize {
        self.removals.as_ref().map_or(0, |removals| removals.dead_rows)
    }

    /// Bytes held.
    pub(in crate::operator) fn bytes(&self) -> usize {
        let words = self.hashes.capacity() + self.times.capacity();
        let halves = self.next.capacity() + self.counts.capacity();
        let removals = self.removals.as_ref().map_or(0, |removals| {
            let halves = removals.next.capacity() + removals.key_before.capacity();
            removals.hashes.capacity() * size_of::<u64>()
                + halves * size_of::<u32>()
                + removals.dead.capacity()
                + removals.index.bytes()
        });
        let arrivals = self.arrivals.capacity() * size_of::<(i64, u32)>();
        self.pieces.bytes()
            + words * size_of::<u64>()
            + halves * size_of::<u32>()
            + removals
            + arrivals
            + self.index.bytes()
    }

    /// About how many bytes gathering a row takes.
    pub(in crate::operator) fn row_bytes(&self) -> usize {
        self.pieces.bytes() / (self.rows() - self.pieces.gone()).max(1)
    }

    /// The row's time.
    #[inline]
    pub(in crate::operator) fn time(&self, row: u32) -> i64 {
        self.times[row as usize]
    }

    /// Stores rows.
    ///
    /// # Errors
    /// When there are too many, or a kernel fails.
    pub(in crate::operator) fn append(&mut self, keys: &JoinKeys, appended: &Appended) -> Result<()> {
        self.append_rows(keys, appended)?;
        if self.options.ttl_ms.is_some() && appended.rows.num_rows() > 0 {
            self.note_arrival(appended.now_ms, self.rows() as u32);
        }
        Ok(())
    }

    /// The rows up to number `end` that have not come before came at `now_ms`.
    pub(super) fn note_arrival(&mut self, now_ms: i64, end: u32) {
        match self.arrivals.back_mut() {
            Some((at, last)) if *at >= now_ms => *last = end,
            _ => self.arrivals.push_back((now_ms, end)),
        }
    }

    /// Stores rows without a note of when they came.
    pub(super) fn append_rows(&mut self, keys: &JoinKeys, appended: &Appended) -> Result<()> {
        let (rows, before) = (appended.rows.num_rows(), self.rows());
        if rows == 0 {
            return Ok(());
        }
        let mut columns = appended.rows.columns().to_vec();
        columns.extend(keys.extra_columns(appended.keyed));
        let mut span = (i64::MIN, i64::MAX);
        if self.options.times {
            self.times.extend_from_slice(appended.times);
            let (least, most) = (appended.times.iter().min(), appended.times.iter().max());
            span = (least.copied().unwrap_or(i64::MAX), most.copied().unwrap_or(i64::MIN));
        }
        if self.options.counts {
            self.counts.extend_from_slice(appended.counts);
        }
        if let Some(hashes) = appended.hashes.filter(|_| self.hashes.len() == before) {
            self.hashes.extend_from_slice(hashes);
        }
        if let Some(removals) = &mut self.removals {
            if let Some(columns) = &removals.columns {
                removals.hashes.extend(identity_hashes(appended.rows, columns)?);
            }
            removals.dead.resize(before + rows, false);
        }
        self.pieces.push(columns, rows, span)
    }

    /// Forgets all rows.
    pub(in crate::operator) fn clear(&mut self) {
        self.pieces.forget(|_| true);
        self.reset();
    }

    /// Forgets the rows that came too long ago.
    ///
    /// # Errors
    /// When a kernel fails.
    pub(in crate::operator) fn expire(&mut self, now_ms: i64) -> Result<()> {
        let Some(ttl_ms) = self.options.ttl_ms else {
            return Ok(());
        };
        let ttl_ms = i64::try_from(ttl_ms).unwrap_or(i64::MAX);
        let first = self.first;
        while let Some((at, end)) = self.arrivals.front()
            && at.saturating_add(ttl_ms) <= now_ms
        {
            self.first = *end;
            self.arrivals.pop_front();
        }
        if self.first == first {
            return Ok(());
        }
        let bound = self.first as usize;
        self.pieces.forget(|piece| piece.range().end <= bound);
        self.tidy()
    }

    /// When the oldest row is to be forgotten, in processing time.
    pub(in crate::operator) fn next_expiry(&self) -> Option<i64> {
        let ttl_ms = i64::try_from(self.options.ttl_ms?).unwrap_or(i64::MAX);
        self.arrivals.front().map(|(at, _)| at.saturating_add(ttl_ms))
    }

    /// Forgets the pieces of which no row's time is after `time`. Rows of other pieces that are as old stay; nobody looks
    /// for them.
    ///
    /// # Errors
    /// When a kernel fails.
    pub(in crate::operator) fn forget_through(&mut self, time: i64) -> Result<()> {
        let debt: usize = self
            .pieces
            .iter()
            .filter(|piece| piece.columns.is_some() && piece.times.1 <= time)
            .map(|piece| piece.scanned)
            .sum();
        if self.pieces.forget(|piece| piece.times.1 <= time) == 0 {
            return Ok(());
        }
        self.scan_debt = self.scan_debt.saturating_sub(debt);
        self.tidy()
    }

    /// The rows, in the order of arrival, for which `wanted` is true and which are there, of pieces that may have times
    /// from `times.0` to `times.1`.
    pub(in crate::operator) fn rows_where(&self, times: (i64, i64), wanted: impl Fn(usize) -> bool) -> Vec<u32> {
        let mut rows = Vec::new();
        let pieces = self.pieces.iter().filter(|piece| piece.columns.is_some());
        for piece in pieces.filter(|piece| piece.times.0 <= times.1 && piece.times.1 >= times.0) {
            let range = piece.range().start.max(self.first as usize)..piece.range().end;
            rows.extend(
                range
                    .filter(|row| self.is_live(*row) && wanted(*row))
                    .map(|row| row as u32),
            );
        }
        rows
    }

    /// Whether a row of a piece that is there has neither been taken back nor come too long ago.
    #[inline]
    pub(super) fn is_live(&self, row: usize) -> bool {
        row >= self.first as usize && self.removals.as_ref().is_none_or(|removals| !removals.dead[row])
    }

    /// Rows that are numbered but not there any more.
    fn lost(&self) -> usize {
        (self.pieces.gone().max(self.first as usize) + self.dead_rows()).min(self.rows())
    }

    /// Makes the numbers of rows that are not there free again once they are the greater part.
    ///
    /// # Errors
    /// When a kernel fails.
    pub(in crate::operator) fn tidy(&mut self) -> Result<()> {
        let (lost, rows) = (self.lost(), self.rows());
        if self.is_empty() {
            if rows > 0 {
                self.reset();
            }
            return Ok(());
        }
        if lost * 2 <= rows || lost < TIDY_ROWS {
            return Ok(());
        }
        let mut live = vec![false; rows];
        for piece in self.pieces.iter().filter(|piece| piece.columns.is_some()) {
            for row in piece.range() {
                live[row] = self.is_live(row);
            }
        }
        self.pieces.compact(&live)?;
        retain(&mut self.hashes, &live);
        retain(&mut self.times, &live);
        retain(&mut self.counts, &live);
        if let Some(removals) = &mut self.removals {
            retain(&mut removals.hashes, &live);
            removals.dead = vec![false; self.pieces.rows()];
            removals.dead_rows = 0;
        }
        let (mut from, mut kept) = (0, 0);
        for (_, end) in &mut self.arrivals {
            kept += live[from..*end as usize].iter().filter(|live| **live).count();
            from = *end as usize;
            *end = kept as u32;
        }
        self.first = 0;
        self.scan_debt = 0;
        self.forget_index();
        Ok(())
    }

    fn forget_index(&mut self) {
        self.index.clear();
        self.next = Vec::new();
        if let Some(removals) = &mut self.removals {
            removals.index.clear();
            removals.next = Vec::new();
            removals.key_before = Vec::new();
        }
    }

    /// An empty store again, its memory given back.
    fn reset(&mut self) {
        self.pieces = Pieces::new(self.pieces.take_types());
        (self.hashes, self.times, self.counts) = (Vec::new(), Vec::new(), Vec::new());
        if let Some(removals) = &mut self.removals {
            (removals.hashes, removals.dead, removals.dead_rows) = (Vec::new(), Vec::new(), 0);
        }
        self.arrivals = VecDeque::new();
        (self.first, self.scan_debt) = (0, 0);
        self.forget_index();
    }

    /// Computes the hashes that are missing.
    ///
    /// # Errors
    /// When a key's expression fails.
    pub(super) fn hash_all(&mut self, keys: &JoinKeys) -> Result<()> {
        let width = self.schema.fields().len();
        for piece in self.pieces.iter() {
            let known = self.hashes.len().max(piece.range().start);
            if known >= piece.range().end {
                continue;
            }
            let rows = piece.range().end - known;
            let Some(columns) = &piece.columns else {
                self.hashes.resize(piece.range().end, 0);
                continue;
            };
            let columns = columns[..width]
                .iter()
                .map(|column| column.slice(piece.rows - rows, rows));
            let options = RecordBatchOptions::new().with_row_count(Some(rows));
            let batch = Batch::try_new_with_options(self.schema.clone(), columns.collect(), &options)?;
            self.hashes.extend(keys.evaluate(&batch)?.hashes(rows)?);
        }
        Ok(())
    }

    /// Indexes the rows that are not.
    ///
    /// # Errors
    /// When a key's expression fails.
    pub(in crate::operator) fn index_all(&mut self, keys: &JoinKeys) -> Result<()> {
        let (from, rows) = (self.next.len(), self.rows());
        if from == rows {
            return Ok(());
        }
        self.hash_all(keys)?;
        self.scan_debt = 0;
        self.next.resize(rows, NO_ROW);
        match &mut self.removals {
            None => {
                for row in from.max(self.first as usize)..rows {
                    self.next[row] = self.index.push(self.hashes[row], row as u32);
                }
            }
            Some(removals) => {
                if removals.columns.is_some() {
                    removals.next.resize(rows, NO_ROW);
                }
                removals.key_before.resize(rows, NO_ROW);
                for row in from.max(self.first as usize)..rows {
                    if removals.dead[row] {
                        continue;
                    }
                    let older = self.index.push(self.hashes[row], row as u32);
                    self.next[row] = older;
                    if older != NO_ROW {
                        removals.key_before[older as usize] = row as u32;
                    }
                    if removals.columns.is_some() {
                        removals.next[row] = removals.index.push(removals.hashes[row], row as u32);
                    }
                }
            }
        }
        Ok(())
    }

    /// The chain of each hash; none where `is_null`.
    pub(super) fn chains(&self, hashes: &[u64], is_null: impl Fn(usize) -> bool) -> Vec<Chain> {
        let chain = |(row, hash): (usize, &u64)| if is_null(row) { NO_CHAIN } else { self.index.find(*hash) };
        hashes.iter().enumerate().map(chain).collect()
    }

    /// The first time after `time` when rows come in the order of time.
    pub(in crate::operator) fn first_time_after(&self, time: i64) -> Option<i64> {
        self.times.get(self.times.partition_point(|t| *t <= time)).copied()
    }

    /// The least and the greatest time there may be; `None` when no row is left.
    pub(in crate::operator) fn time_span(&self) -> Option<(i64, i64)> {
        let pieces = self.pieces.iter().filter(|piece| piece.columns.is_some());
        let span = |(a, b): (i64, i64), piece: &Piece| (a.min(piece.times.0), b.max(piece.times.1));
        let span = pieces.fold((i64::MAX, i64::MIN), span);
        (span.0 <= span.1).then_some(span)
    }
}

/// The hashes of what tells rows apart.
pub(super) fn identity_hashes(rows: &Batch, columns: &[usize]) -> Result<Vec<u64>> {
    let columns: Vec<_> = columns.iter().map(|column| rows.column(*column).clone()).collect();
    let mut hashes = Vec::new();
    hash_rows(&columns, rows.num_rows(), &mut hashes)?;
    Ok(hashes)
}

/// Keeps the live ones of the first rows.
fn retain<T: Copy>(values: &mut Vec<T>, live: &[bool]) {
    let mut flags = live.iter();
    values.retain(|_| flags.next().is_some_and(|live| *live));
    values.shrink_to_fit();
}

/// A batch whose columns keep nothing alive but themselves.
///
/// # Errors
/// When a kernel fails.
pub(super) fn own_batch(batch: &Batch) -> Result<Batch> {
    let columns = batch.columns().iter().cloned().map(own).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(Batch::try_new_with_options(batch.schema(), columns, &options)?)
}
