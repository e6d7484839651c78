//! Top-N: keeps the first N rows without sorting the others. Once N rows are held, the last of them is a limit, and a
//! batch is first measured against it by its first key alone: almost all rows of a long input end there.

use std::cmp::Ordering;

use arrow::array::UInt32Array;
use arrow::compute::{interleave_record_batch, take_record_batch};
use datafusion::common::utils::memory::RecordBatchMemoryCounter;

use crate::data::{Batch, Result, compact_views};
use crate::operator::sort::keys::{BatchKeys, KeyEncoder};
use crate::operator::{Collector, Context};
use crate::plan::SortKey;

/// Pieces held before they are compacted into one, however small they are.
const PIECES_MAX: usize = 512;

struct Piece {
    batch: Batch,
    keys: BatchKeys,
}

/// Piece and row.
type Place = (usize, usize);

/// Keeps the first `fetch` rows.
pub(in crate::operator) struct TopN {
    keys: Vec<SortKey>,
    fetch: usize,
    encoder: Option<KeyEncoder>,
    pieces: Vec<Piece>,
    held_rows: usize,
    batch_bytes: RecordBatchMemoryCounter,
    key_bytes: usize,
    /// The last of `fetch` rows that are held: what does not come before it is not wanted.
    limit: Option<Place>,
}

impl TopN {
    pub(super) fn new(keys: Vec<SortKey>, fetch: usize) -> Self {
        Self {
            keys,
            fetch,
            encoder: None,
            pieces: Vec::new(),
            held_rows: 0,
            batch_bytes: RecordBatchMemoryCounter::new(),
            key_bytes: 0,
            limit: None,
        }
    }

    pub(super) fn wants_nothing(&self) -> bool {
        self.fetch == 0
    }

    pub(super) fn add(&mut self, batch: Batch, cx: &mut Context) -> Result<()> {
        if self.fetch == 0 {
            return Ok(());
        }
        let encoder = match self.encoder.take() {
            Some(encoder) => encoder,
            None => KeyEncoder::try_new(&self.keys, &batch.schema())?,
        };
        let piece = self.wanted(&encoder, batch)?;
        if let Some(piece) = piece {
            self.push(piece, cx)?;
            let enough = if self.limit.is_none() {
                self.fetch
            } else {
                self.fetch.saturating_mul(2)
            };
            let scattered = self.pieces.len() >= PIECES_MAX && self.held_rows > self.fetch;
            if self.held_rows >= enough || scattered {
                self.compact(&encoder, cx)?;
            }
        }
        self.encoder = Some(encoder);
        Ok(())
    }

    /// The rows of `batch` that may be among the first: at most `fetch`.
    fn wanted(&self, encoder: &KeyEncoder, batch: Batch) -> Result<Option<Piece>> {
        let Some(batch) = self.pruned_by_head(encoder, batch)? else {
            return Ok(None);
        };
        let keys = encoder.encode(&batch)?;
        let mut rows: Vec<usize> = (0..batch.num_rows()).collect();
        if let Some((piece, limit)) = self.limit {
            rows.retain(|row| keys.compare(*row, &self.pieces[piece].keys, limit) == Ordering::Less);
        }
        if rows.len() > self.fetch {
            rows.select_nth_unstable_by(self.fetch - 1, |a, b| keys.compare(*a, &keys, *b).then(a.cmp(b)));
            rows.truncate(self.fetch);
            rows.sort_unstable();
        }
        if rows.is_empty() {
            return Ok(None);
        }
        if rows.len() == batch.num_rows() {
            return Ok(Some(Piece { batch, keys }));
        }
        let rows: UInt32Array = rows.into_iter().map(|row| row as u32).collect();
        let batch = compact_views(take_record_batch(&batch, &rows)?)?;
        let keys = encoder.encode(&batch)?;
        Ok(Some(Piece { batch, keys }))
    }

    /// `batch` without the rows that the first key's prefix rules out.
    fn pruned_by_head(&self, encoder: &KeyEncoder, batch: Batch) -> Result<Option<Batch>> {
        let Some((piece, limit)) = self.limit else {
            return Ok(Some(batch));
        };
        let Some(head) = encoder.encode_head(&batch)? else {
            return Ok(Some(batch));
        };
        let limit = self.pieces[piece].keys.head.at(limit);
        let rows = head.rows_before(limit, !encoder.head_decides());
        Ok(match rows.len() {
            0 => None,
            count if count == batch.num_rows() => Some(batch),
            _ => Some(take_record_batch(&batch, &UInt32Array::from(rows))?),
        })
    }

    fn push(&mut self, piece: Piece, cx: &mut Context) -> Result<()> {
        self.batch_bytes.count_batch(&piece.batch);
        self.key_bytes += piece.keys.byte_size();
        cx.hold(self.batch_bytes.memory_usage() + self.key_bytes)?;
        self.held_rows += piece.batch.num_rows();
        self.pieces.push(piece);
        Ok(())
    }

    /// The first rows held, in no order but with the last of them last.
    fn first_places(&self) -> Vec<Place> {
        let mut places: Vec<Place> = Vec::with_capacity(self.held_rows);
        for (number, piece) in self.pieces.iter().enumerate() {
            places.extend((0..piece.batch.num_rows()).map(|row| (number, row)));
        }
        if places.len() >= self.fetch {
            places.select_nth_unstable_by(self.fetch - 1, |a, b| self.compare(*a, *b));
            places.truncate(self.fetch);
        }
        places
    }

    fn compare(&self, a: Place, b: Place) -> Ordering {
        self.pieces[a.0]
            .keys
            .compare(a.1, &self.pieces[b.0].keys, b.1)
            .then(a.cmp(&b))
    }

    /// Drops all but the first rows, and sets the limit to the last of these.
    fn compact(&mut self, encoder: &KeyEncoder, cx: &mut Context) -> Result<()> {
        let batch = self.gather(&self.first_places())?;
        let keys = encoder.encode(&batch)?;
        self.pieces.clear();
        self.held_rows = 0;
        self.batch_bytes = RecordBatchMemoryCounter::new();
        self.key_bytes = 0;
        self.limit = Some((0, self.fetch - 1));
        self.push(Piece { batch, keys }, cx)
    }

    fn gather(&self, places: &[Place]) -> Result<Batch> {
        let batches: Vec<&Batch> = self.pieces.iter().map(|piece| &piece.batch).collect();
        compact_views(interleave_record_batch(&batches, places)?)
    }

    pub(super) fn finish(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if self.held_rows == 0 {
            return Ok(());
        }
        let mut places = self.first_places();
        places.sort_unstable_by(|a, b| self.compare(*a, *b));
        for places in places.chunks(cx.batch_size) {
            cx.cancel.check()?;
            out.collect(self.gather(places)?)?;
            if out.is_done() {
                break;
            }
        }
        self.pieces.clear();
        self.held_rows = 0;
        self.batch_bytes = RecordBatchMemoryCounter::new();
        Ok(())
    }
}
