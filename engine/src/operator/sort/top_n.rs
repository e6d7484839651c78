//! Top-N: keeps the first N rows without sorting the others. Once N rows are held, the last of them is a limit, and a
//! batch is first measured against it by its first key alone: almost all rows of a long input end there.
//!
//! What is held is bounded by N, which may still be more than the budget: then the rows are handed over to the full
//! sort, which spills.

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

/// What became of a batch.
#[derive(Debug)]
pub(in crate::operator) enum Added {
    /// Its first rows are held, as far as they may be among the first of all.
    Kept,
    /// Memory is short, and dropping rows that are not wanted does not help: what is held
    /// ([`TopN::into_batches`]) and this batch (without the rows that are not wanted) go to a sort that can spill.
    Overflow(Batch),
}

/// What is held up to this size, and as much as one compaction copies, is held even when memory is short.
const LITTLE_BYTES: usize = 32 << 10;
/// A compaction that copies no more than this part of the share goes on even when memory is short.
const COMPACTION_PART: usize = 8;
/// Output batches have at most this part of the share.
const OUTPUT_PART: usize = 8;

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

    /// Takes a batch.
    ///
    /// # Errors
    /// When a key expression fails or a key's type has no order.
    pub(super) fn add(&mut self, batch: Batch, cx: &mut Context) -> Result<Added> {
        if self.fetch == 0 {
            return Ok(Added::Kept);
        }
        let encoder = match self.encoder.take() {
            Some(encoder) => encoder,
            None => KeyEncoder::try_new(&self.keys, &batch.schema())?,
        };
        let added = match self.wanted(&encoder, batch)? {
            Some(piece) => self.keep(piece, &encoder, cx)?,
            None => Added::Kept,
        };
        self.encoder = Some(encoder);
        Ok(added)
    }

    /// The rows held, at least those that are wanted, in no order.
    pub(super) fn into_batches(self) -> Vec<Batch> {
        self.pieces.into_iter().map(|piece| piece.batch).collect()
    }

    fn keep(&mut self, piece: Piece, encoder: &KeyEncoder, cx: &mut Context) -> Result<Added> {
        let asked = cx.memory.must_spill() && self.held_bytes() > LITTLE_BYTES;
        if (asked || !self.fits(&piece, cx)) && !(self.shrink(encoder, cx)? && self.fits(&piece, cx)) {
            return Ok(Added::Overflow(piece.batch));
        }
        self.push(piece);
        let enough = if self.limit.is_none() {
            self.fetch
        } else {
            self.fetch.saturating_mul(2)
        };
        let scattered = self.pieces.len() >= PIECES_MAX && self.held_rows > self.fetch;
        if self.held_rows >= enough || scattered {
            self.compact(encoder, cx)?;
        }
        Ok(Added::Kept)
    }

    /// Books what is held and this piece, if that is possible or little.
    fn fits(&self, piece: &Piece, cx: &mut Context) -> bool {
        let mut batch_bytes = RecordBatchMemoryCounter::new();
        batch_bytes.count_batch(&piece.batch);
        let bytes = self.held_bytes() + batch_bytes.memory_usage() + piece.keys.byte_size();
        if cx.hold(bytes).is_ok() {
            return true;
        }
        let little = bytes <= LITTLE_BYTES;
        if little {
            cx.hold_anyway(bytes);
        }
        little
    }

    /// Drops rows that are not wanted, if there are enough to make a difference. Says whether it did.
    fn shrink(&mut self, encoder: &KeyEncoder, cx: &mut Context) -> Result<bool> {
        if self.held_rows <= self.fetch.saturating_add(self.fetch / 4) {
            return Ok(false);
        }
        self.compact(encoder, cx)
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

    /// Holds a piece that is booked.
    fn push(&mut self, piece: Piece) {
        self.batch_bytes.count_batch(&piece.batch);
        self.key_bytes += piece.keys.byte_size();
        self.held_rows += piece.batch.num_rows();
        self.pieces.push(piece);
    }

    fn held_bytes(&self) -> usize {
        self.batch_bytes.memory_usage() + self.key_bytes
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

    /// Drops all but the first rows, and sets the limit to the last of these. Does nothing, and says so, when there is
    /// no memory for the copy.
    fn compact(&mut self, encoder: &KeyEncoder, cx: &mut Context) -> Result<bool> {
        let copied = self.bytes_of(self.fetch) + self.held_rows * size_of::<Place>();
        let small = (cx.memory.share_bytes() / COMPACTION_PART).max(LITTLE_BYTES);
        let both = self.held_bytes() + copied;
        match cx.hold(both) {
            Err(_) if copied > small => return Ok(false),
            Err(_) => cx.hold_anyway(both),
            Ok(()) => {}
        }
        let batch = self.gather(&self.first_places())?;
        let keys = encoder.encode(&batch)?;
        self.pieces.clear();
        self.held_rows = 0;
        self.batch_bytes = RecordBatchMemoryCounter::new();
        self.key_bytes = 0;
        self.limit = Some((0, self.fetch - 1));
        self.push(Piece { batch, keys });
        cx.hold_anyway(self.held_bytes());
        Ok(true)
    }

    /// What so many rows take, when all take the same.
    fn bytes_of(&self, rows: usize) -> usize {
        self.held_bytes() / self.held_rows.max(1) * rows.min(self.held_rows)
    }

    fn gather(&self, places: &[Place]) -> Result<Batch> {
        let batches: Vec<&Batch> = self.pieces.iter().map(|piece| &piece.batch).collect();
        compact_views(interleave_record_batch(&batches, places)?)
    }

    pub(super) fn finish(&mut self, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        if self.held_rows == 0 {
            return Ok(());
        }
        cx.memory.grow(self.held_rows * size_of::<Place>());
        let mut places = self.first_places();
        places.sort_unstable_by(|a, b| self.compare(*a, *b));
        let output_bytes = (cx.memory.share_bytes() / OUTPUT_PART).max(LITTLE_BYTES);
        let rows = output_bytes / self.bytes_of(1).max(1);
        for places in places.chunks(rows.clamp(1, cx.batch_size)) {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Array, Int64Array, StringViewArray};
    use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
    use proptest::prelude::*;

    use super::*;
    use crate::operator::harness::Harness;
    use crate::operator::sort::Sort;
    use crate::plan::ScalarExpr;
    use crate::plan::SortSpec;

    fn schema() -> SchemaRef {
        Arc::new(Schema::new(vec![
            Field::new("n", DataType::Int64, true),
            Field::new("text", DataType::Utf8View, false),
        ]))
    }

    fn keys() -> Vec<SortKey> {
        vec![SortKey {
            expr: ScalarExpr::column(0, &schema()),
            descending: false,
            nulls_first: false,
        }]
    }

    fn batch(numbers: &[Option<i64>], width: usize) -> Batch {
        let texts = numbers.iter().map(|n| format!("{n:?} {}", "x".repeat(width)));
        let columns: Vec<Arc<dyn Array>> = vec![
            Arc::new(Int64Array::from(numbers.to_vec())),
            Arc::new(StringViewArray::from_iter_values(texts)),
        ];
        Batch::try_new(schema(), columns).unwrap()
    }

    fn numbers_of(batches: &[Batch]) -> Vec<Option<i64>> {
        use arrow::array::AsArray;
        let columns = batches.iter().map(|batch| batch.column(0).as_primitive::<Int64Type>());
        columns.flat_map(|column| column.iter().collect::<Vec<_>>()).collect()
    }

    /// NULLs last.
    fn sorted(mut numbers: Vec<Option<i64>>, fetch: usize) -> Vec<Option<i64>> {
        numbers.sort_by_key(|n| (n.is_none(), *n));
        numbers.truncate(fetch);
        numbers
    }

    /// Feeds a top-N until it overflows; the first of what it held then, of the batch that overflowed and of the rest must
    /// be the first of all.
    fn check(numbers: &[Option<i64>], fetch: usize, size: usize, width: usize, budget: usize) -> bool {
        let mut harness = Harness::with_memory(
            Sort::new(SortSpec {
                keys: keys(),
                fetch: Some(fetch),
                by_range: false,
            }),
            budget,
        );
        let mut top = TopN::new(keys(), fetch);
        let mut input = numbers.chunks(size);
        let expected = sorted(numbers.to_vec(), fetch);
        while let Some(chunk) = input.next() {
            match top.add(batch(chunk, width), &mut harness.context).unwrap() {
                Added::Kept => {
                    let slack = LITTLE_BYTES.max(budget / COMPACTION_PART) * 2;
                    assert!(harness.memory.reserved_bytes() <= budget.saturating_add(slack));
                }
                Added::Overflow(left) => {
                    let mut all = numbers_of(&top.into_batches());
                    all.extend(numbers_of(&[left]));
                    all.extend(input.flatten());
                    assert_eq!(sorted(all, fetch), expected);
                    return true;
                }
            }
        }
        top.finish(&mut harness.context, &mut harness.output).unwrap();
        assert_eq!(numbers_of(&harness.output.batches), expected);
        false
    }

    #[test]
    fn rows_that_do_not_fit_are_handed_over() {
        let rising: Vec<Option<i64>> = (0..20_000).map(Some).collect();
        let falling: Vec<Option<i64>> = rising.iter().rev().copied().collect();
        let (equal, none) = (vec![Some(7); 20_000], vec![None; 20_000]);
        for numbers in [rising, falling, equal, none] {
            assert!(check(&numbers, 10_000, 500, 20, 200_000));
            assert!(!check(&numbers, 100, 500, 20, 200_000));
            assert!(!check(&numbers, 10_000, 500, 20, usize::MAX));
        }
    }

    #[test]
    fn wide_rows_leave_in_small_batches() {
        let numbers: Vec<Option<i64>> = (0..60).rev().map(Some).collect();
        let mut harness = Harness::with_memory(
            Sort::new(SortSpec {
                keys: keys(),
                fetch: Some(10),
                by_range: false,
            }),
            64 << 20,
        );
        for chunk in numbers.chunks(4) {
            harness.push(0, batch(chunk, 1 << 20)).unwrap();
        }
        harness.end(0).unwrap();
        assert_eq!(
            numbers_of(&harness.output.batches),
            (0..10).map(Some).collect::<Vec<_>>()
        );
        assert!(
            harness
                .output
                .batches
                .iter()
                .all(|batch| batch.get_array_memory_size() <= 9 << 20)
        );
        assert!(check(&numbers, 10, 4, 1 << 20, 8 << 20));
        assert!(!check(&numbers, 2, 4, 1 << 20, 16 << 20));
    }

    #[test]
    fn one_that_is_asked_to_spill_drops_what_it_can_or_hands_over() {
        for (fetch, overflows) in [(1000, false), (50_000, true)] {
            let mut harness = Harness::with_memory(
                Sort::new(SortSpec {
                    keys: keys(),
                    fetch: Some(fetch),
                    by_range: false,
                }),
                4 << 20,
            );
            let mut top = TopN::new(keys(), fetch);
            let mut other = harness.context.memory.sibling();
            for n in (0..4).rev() {
                let numbers: Vec<_> = (n * 450..(n + 1) * 450).rev().map(Some).collect();
                assert!(matches!(
                    top.add(batch(&numbers, 100), &mut harness.context).unwrap(),
                    Added::Kept
                ));
            }
            harness.context.hold_anyway(3 << 20);
            assert!(other.try_grow(2 << 20).is_err() && harness.context.memory.must_spill());
            let added = top.add(batch(&[Some(-1)], 10), &mut harness.context).unwrap();
            assert_eq!(matches!(added, Added::Overflow(_)), overflows);
            assert!(overflows || !harness.context.memory.must_spill());
        }
    }

    proptest! {
        #[test]
        fn whatever_the_budget_the_first_rows_are_kept_or_handed_over(
            numbers in prop::collection::vec(prop::option::weighted(0.9, -500i64..500), 0..4000),
            fetch in 1usize..3000, size in 1usize..700, width in 0usize..60, budget in 20_000usize..300_000,
        ) {
            check(&numbers, fetch, size, width, budget);
        }
    }
}
