//! Radix partitioning: which partition a row belongs to, and gathering the rows of each partition from several batches
//! at once.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, RecordBatchOptions, UInt32Array};
use arrow::compute::{interleave, take};
use arrow::datatypes::SchemaRef;

use crate::data::{Batch, Result};
use crate::operator::hash_join::build::{held_bytes, row_bytes};
use crate::operator::hash_join::columns::{SEED_A, SEED_B, mix};
use crate::operator::hash_join::keys::{Keys, Words};
use crate::operator::sort::without_unused_strings;

/// A row's partition, or another place where it goes.
pub(in crate::operator) type Target = u8;

/// Rows that nobody needs.
pub(super) const DROP: Target = Target::MAX;

/// More partitions than this would be too many open buffers.
pub(super) const PARTITIONS_MAX: usize = 64;

/// From a key to its partition.
#[derive(Debug)]
pub(super) struct Radix {
    bits: u32,
    seed: u64,
    factor: u64,
}

impl Radix {
    /// `1 << bits` partitions. Each `depth` has a hash of its own, unlike that of the tables and that of exchanges:
    /// rows that one of those has put together are spread by the next.
    pub(super) fn new(bits: u32, depth: usize) -> Self {
        let depth = depth as u64 + 1;
        Self {
            bits,
            seed: mix(SEED_B.wrapping_mul(depth), SEED_A),
            factor: mix(SEED_A ^ depth, SEED_B.rotate_left(17)) | 1,
        }
    }

    /// How many partitions there are.
    pub(super) fn partitions(&self) -> usize {
        1 << self.bits
    }

    /// The partition of each row; of no meaning where the key is NULL and matches nothing.
    pub(super) fn of(&self, keys: &Keys) -> Vec<Target> {
        match &keys.words {
            Words::Narrow(words) => words.iter().map(|word| self.target(*word)).collect(),
            Words::Wide(words) => {
                let folded = |word: &[u64; 2]| mix(word[0] ^ SEED_B, word[1] ^ self.seed);
                words.iter().map(|word| self.target(folded(word))).collect()
            }
            Words::Hashed(words) => words.iter().map(|word| self.target(word.0)).collect(),
        }
    }

    #[inline]
    fn target(&self, word: u64) -> Target {
        // Two shifts, as one by 64 is undefined.
        (mix(word ^ self.seed, self.factor) >> 1 >> (63 - self.bits)) as Target
    }
}

/// Batches gathered up until there are enough rows of each partition for a block.
#[derive(Debug)]
pub(in crate::operator) struct Staging {
    schema: SchemaRef,
    batches: Vec<Batch>,
    targets: Vec<Vec<Target>>,
    rows: usize,
    /// Bytes of the rows, and bytes that they keep alive.
    row_bytes: usize,
    held_bytes: usize,
    full_bytes: usize,
}

/// What staging takes per row: its target and its place, sorted.
const STAGED_ROW_BYTES: usize = 1 + size_of::<(u32, u32)>();

/// A batch that keeps alive so many times its own bytes is copied out.
const SPARSE_FACTOR: usize = 2;

impl Staging {
    /// For batches of `schema`; full with `full_bytes`.
    pub(in crate::operator) fn new(schema: SchemaRef, full_bytes: usize) -> Self {
        Self {
            schema,
            batches: Vec::new(),
            targets: Vec::new(),
            rows: 0,
            row_bytes: 0,
            held_bytes: 0,
            full_bytes,
        }
    }

    /// Takes the rows of `batch`, each to go to its target.
    pub(in crate::operator) fn push(&mut self, batch: Batch, targets: Vec<Target>) -> Result<()> {
        let row_bytes = row_bytes(batch.columns());
        let mut held = held_bytes(batch.columns());
        let batch = if held > SPARSE_FACTOR * row_bytes + self.full_bytes / 8 {
            let copied = copied_out(&batch)?;
            held = held_bytes(copied.columns());
            copied
        } else {
            batch
        };
        self.rows += batch.num_rows();
        self.row_bytes += row_bytes;
        self.held_bytes += held;
        self.batches.push(batch);
        self.targets.push(targets);
        Ok(())
    }

    /// Whether the rows should be distributed now.
    pub(in crate::operator) fn is_full(&self) -> bool {
        self.row_bytes.max(self.held_bytes / 2) + self.rows * STAGED_ROW_BYTES >= self.full_bytes
    }

    /// Bytes held, and what distributing will take.
    pub(in crate::operator) fn memory_bytes(&self) -> usize {
        self.held_bytes + self.rows * STAGED_ROW_BYTES + self.block_bytes().min(self.row_bytes)
    }

    /// The largest batch that is gathered.
    fn block_bytes(&self) -> usize {
        self.full_bytes / 2
    }

    /// Hands the rows of each target to `emit`, target by target, in batches of their own; [`DROP`] is left out.
    pub(in crate::operator) fn distribute(&mut self, mut emit: impl FnMut(Target, Batch) -> Result<()>) -> Result<()> {
        if self.rows == 0 {
            return Ok(());
        }
        let batches = std::mem::take(&mut self.batches);
        let targets = std::mem::take(&mut self.targets);
        let (starts, places) = sorted_places(&targets, self.rows);
        drop(targets);
        let index_bytes = size_of::<(usize, usize)>();
        let block_rows = (self.block_bytes() / (self.row_bytes / self.rows + index_bytes).max(1)).max(1);
        for (target, range) in starts.windows(2).enumerate() {
            if target == usize::from(DROP) {
                break;
            }
            for places in places[range[0] as usize..range[1] as usize].chunks(block_rows) {
                gather(&self.schema, &batches, places, &mut |batch| {
                    emit(target as Target, batch)
                })?;
            }
        }
        (self.rows, self.row_bytes, self.held_bytes) = (0, 0, 0);
        Ok(())
    }
}

/// The places (batch, row) ordered by target, and where each target's begin.
fn sorted_places(targets: &[Vec<Target>], rows: usize) -> (Vec<u32>, Vec<(u32, u32)>) {
    let mut starts = vec![0u32; usize::from(Target::MAX) + 2];
    for target in targets.iter().flatten() {
        starts[usize::from(*target) + 1] += 1;
    }
    for target in 1..starts.len() {
        starts[target] += starts[target - 1];
    }
    let mut next = starts.clone();
    let mut places = vec![(0, 0); rows];
    for (batch, targets) in targets.iter().enumerate() {
        for (row, target) in targets.iter().enumerate() {
            let next = &mut next[usize::from(*target)];
            places[*next as usize] = (batch as u32, row as u32);
            *next += 1;
        }
    }
    (starts, places)
}

fn gather(
    schema: &SchemaRef,
    batches: &[Batch],
    places: &[(u32, u32)],
    emit: &mut dyn FnMut(Batch) -> Result<()>,
) -> Result<()> {
    let indices: Vec<(usize, usize)> = places.iter().map(|(b, r)| (*b as usize, *r as usize)).collect();
    let mut columns = Vec::with_capacity(schema.fields().len());
    for column in 0..schema.fields().len() {
        let arrays: Vec<&dyn Array> = batches.iter().map(|batch| batch.column(column).as_ref()).collect();
        match interleave(&arrays, &indices) {
            Ok(array) => columns.push(array),
            // A dictionary may be unable to number the values of several batches, while each batch alone is fine.
            Err(_) if batches.len() > 1 => return gather_each(batches, places, emit),
            Err(e) => return Err(e.into()),
        }
    }
    emit(without_unused_strings(whole_batch(schema, columns, places.len())?)?)
}

/// Gathers from one batch after the other. The places are in the order of the batches.
fn gather_each(batches: &[Batch], places: &[(u32, u32)], emit: &mut dyn FnMut(Batch) -> Result<()>) -> Result<()> {
    for places in places.chunk_by(|a, b| a.0 == b.0) {
        let batch = &batches[places[0].0 as usize];
        let rows = UInt32Array::from_iter_values(places.iter().map(|(_, row)| *row));
        let columns = batch.columns().iter().map(|column| Ok(take(column, &rows, None)?));
        let columns = columns.collect::<Result<Vec<_>>>()?;
        emit(without_unused_strings(whole_batch(
            &batch.schema(),
            columns,
            places.len(),
        )?)?)?;
    }
    Ok(())
}

fn whole_batch(schema: &SchemaRef, columns: Vec<ArrayRef>, rows: usize) -> Result<Batch> {
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    Ok(Batch::try_new_with_options(Arc::clone(schema), columns, &options)?)
}

/// A copy of the rows that keeps nothing else alive.
fn copied_out(batch: &Batch) -> Result<Batch> {
    let places: Vec<_> = (0..batch.num_rows() as u32).map(|row| (0, row)).collect();
    let mut copy = None;
    gather_each(std::slice::from_ref(batch), &places, &mut |batch| {
        copy = Some(batch);
        Ok(())
    })?;
    Ok(copy.unwrap_or_else(|| batch.clone()))
}

#[cfg(test)]
mod tests {
    use arrow::array::{AsArray, DictionaryArray, Int64Array};
    use arrow::datatypes::{DataType, Field, Int8Type, Int64Type, Schema};

    use super::*;
    use crate::operator::hash_join::columns::KeyColumns;
    use crate::operator::hash_join::slots::Word;

    fn narrow(words: Vec<u64>) -> Keys {
        Keys {
            words: Words::Narrow(words),
            nulls: None,
            columns: KeyColumns::none(),
        }
    }

    fn shares(keys: &[u64], place: impl Fn(u64) -> usize, places: usize) -> (usize, usize) {
        let mut counts = vec![0; places];
        keys.iter().for_each(|key| counts[place(*key)] += 1);
        (*counts.iter().min().unwrap(), *counts.iter().max().unwrap())
    }

    #[test]
    fn every_depth_and_the_tables_spread_what_the_one_before_put_together() {
        let patterns: [fn(u64) -> u64; 4] = [|i| i, |i| i << 32, |i| i * 1000, |i| (i as f64).to_bits()];
        for pattern in patterns {
            let mut keys: Vec<u64> = (0..200_000).map(pattern).collect();
            for depth in 0..3 {
                let radix = Radix::new(3, depth);
                let expected = keys.len() / 8;
                let (least, most) = shares(&keys, |key| usize::from(radix.target(key)), 8);
                assert!(
                    least * 10 > expected * 8 && most * 10 < expected * 12,
                    "{least} {most} of {expected}"
                );
                keys.retain(|key| radix.target(*key) == 5);
                let slot = |key: u64| (Word::hash(key) >> 61) as usize;
                let expected = keys.len() / 8;
                let (least, most) = shares(&keys, slot, 8);
                assert!(
                    least * 10 > expected * 7 && most * 10 < expected * 13,
                    "{least} {most} of {expected}"
                );
            }
        }
    }

    #[test]
    fn one_partition_and_many() {
        let keys = narrow((0..1000).collect());
        assert!(Radix::new(0, 0).of(&keys).iter().all(|target| *target == 0));
        assert!(Radix::new(6, 0).of(&keys).iter().all(|target| *target < 64));
    }

    fn staging(full_bytes: usize, batches: Vec<Batch>) -> Staging {
        let mut staging = Staging::new(batches[0].schema(), full_bytes);
        for batch in batches {
            let targets = (0..batch.num_rows()).map(|row| [0, 2, DROP][row % 3]).collect();
            staging.push(batch, targets).unwrap();
        }
        staging
    }

    #[test]
    fn rows_come_out_by_target_in_bounded_batches() {
        let batch = |start: i64| {
            let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]));
            Batch::try_new(schema, vec![Arc::new(Int64Array::from_iter_values(start..start + 300))]).unwrap()
        };
        let mut staging = staging(4000, vec![batch(0), batch(300)]);
        assert!(staging.is_full());
        let mut found: [Vec<i64>; 3] = Default::default();
        let mut most = 0;
        staging
            .distribute(|target, batch| {
                found[usize::from(target)].extend(batch.column(0).as_primitive::<Int64Type>().values());
                most = most.max(batch.num_rows());
                Ok(())
            })
            .unwrap();
        let expected = |rest: i64| (0..600).filter(|v| v % 3 == rest).collect::<Vec<_>>();
        assert_eq!(found, [expected(0), vec![], expected(1)]);
        assert!(most < 200, "{most}");
        assert_eq!(staging.memory_bytes(), 0);
        staging.distribute(|_, _| unreachable!()).unwrap();
    }

    /// Together the batches have more values than the dictionary's keys can count.
    #[test]
    fn dictionaries_that_cannot_be_merged_stay_apart() {
        let batch = |number: usize| {
            let texts: Vec<String> = (0..99).map(|row| format!("{number} {row}")).collect();
            let words: DictionaryArray<Int8Type> = texts.iter().map(|text| Some(text.as_str())).collect();
            let array: ArrayRef = Arc::new(words);
            Batch::try_from_iter([("d", array)]).unwrap()
        };
        let mut staging = staging(1 << 20, (0..5).map(batch).collect());
        let (mut rows, mut batches) = (0, 0);
        staging
            .distribute(|_, batch| {
                let texts = arrow::compute::cast(batch.column(0), &DataType::Utf8).unwrap();
                let number = texts.as_string::<i32>().value(0).split(' ').next().unwrap().to_string();
                assert!(
                    texts
                        .as_string::<i32>()
                        .iter()
                        .flatten()
                        .all(|text| text.starts_with(&number))
                );
                rows += batch.num_rows();
                batches += 1;
                Ok(())
            })
            .unwrap();
        assert_eq!((rows, batches), (5 * 66, 10));
    }

    #[test]
    fn a_slice_of_something_large_is_copied_out() {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]));
        let large = Batch::try_new(schema, vec![Arc::new(Int64Array::from_iter_values(0..100_000))]).unwrap();
        let staging = staging(8000, vec![large.slice(500, 10)]);
        assert!(staging.memory_bytes() < 1000, "{}", staging.memory_bytes());
    }
}
