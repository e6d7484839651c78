//! Spilled groups: rows of keys and states, partitioned by the hash of the keys so that the rows of a group end up in one file.
//!
//! The exchange has brought only some hashes here, and a partition that is partitioned again holds only one value of
//! the hash before: each depth mixes the hash with a seed of its own.

use std::sync::Arc;

use arrow::array::{ArrayRef, UInt32Array};
use arrow::compute::take;
use arrow::datatypes::{Field, Schema, SchemaRef};
use thalweg_memory::{SpillFile, SpillWriter};

use super::accumulators::Accumulators;
use super::group_table::GroupTable;
use crate::data::{Batch, Result, hash_rows};
use crate::operator::Context;
use crate::operator::array_bytes::compact;

/// After so many rounds of partitioning a partition holds one group, or hashes that nothing tells apart.
pub(super) const DEPTH_MAX: u32 = 8;

const FEW: usize = 8;
const MANY: usize = 32;
/// What a partition should have of the share: less makes blocks of too few rows.
const SHARE_PER_PARTITION_BYTES: usize = 512 << 10;

/// A partition on disk.
pub(super) struct Partition {
    /// Its rows, in the order in which they were spilled.
    pub(super) file: SpillFile,
    /// How often its rows have been partitioned.
    pub(super) depth: u32,
}

/// The partitions of one round, being written.
pub(super) struct Partitions {
    schema: SchemaRef,
    key_count: usize,
    depth: u32,
    writers: Vec<Option<SpillWriter>>,
    hashes: Vec<u64>,
}

/// The columns that are spilled: keys as the table stores them, states, and, without functions, whether the group has
/// been handed on.
pub(super) fn spill_schema(table: &GroupTable, accumulators: &Accumulators, distinct_only: bool) -> SchemaRef {
    let keys = table.key_types().iter().enumerate();
    let mut fields: Vec<Field> = keys
        .map(|(index, key)| Field::new(format!("key {index}"), key.clone(), true))
        .collect();
    fields.extend(
        accumulators
            .state_fields()
            .enumerate()
            .map(|(index, state)| Field::new(format!("state {index}"), state.data_type().clone(), true)),
    );
    if distinct_only {
        fields.push(Field::new("emitted", arrow::datatypes::DataType::Boolean, true));
    }
    Arc::new(Schema::new(fields))
}

impl Partitions {
    /// No rows yet; the partitions will be of `depth`.
    pub(super) fn new(schema: SchemaRef, key_count: usize, depth: u32, cx: &Context) -> Self {
        let count = (cx.memory.share_bytes() / SHARE_PER_PARTITION_BYTES).clamp(FEW, MANY);
        Self {
            schema,
            key_count,
            depth,
            writers: (0..count).map(|_| None).collect(),
            hashes: Vec::new(),
        }
    }

    /// Appends rows, columns as in the schema.
    ///
    /// # Errors
    /// When the disk is full or fails.
    pub(super) fn write(&mut self, columns: &[ArrayRef], rows: usize, cx: &mut Context) -> Result<()> {
        hash_rows(&columns[..self.key_count], rows, &mut self.hashes)?;
        let mut members: Vec<Vec<u32>> = vec![Vec::new(); self.writers.len()];
        for (row, hash) in (0_u32..).zip(&self.hashes) {
            members[part_of(*hash, self.depth, self.writers.len())].push(row);
        }
        for (writer, members) in self.writers.iter_mut().zip(members) {
            cx.cancel.check()?;
            if members.is_empty() {
                continue;
            }
            let writer = match writer {
                Some(writer) => writer,
                None => writer.insert(cx.spill.create(Arc::clone(&self.schema))?),
            };
            let members = UInt32Array::from(members);
            let taken = columns.iter().map(|column| compact(take(column, &members, None)?));
            let block = Batch::try_new(Arc::clone(&self.schema), taken.collect::<Result<_>>()?)?;
            let before = writer.bytes();
            writer.write(&block)?;
            cx.note_spilled(writer.bytes() - before);
        }
        Ok(())
    }

    /// The partitions that have rows.
    ///
    /// # Errors
    /// When the disk fails.
    pub(super) fn finish(self) -> Result<Vec<Partition>> {
        let depth = self.depth;
        let partition = |writer: SpillWriter| {
            Ok(Partition {
                file: writer.finish()?,
                depth,
            })
        };
        self.writers.into_iter().flatten().map(partition).collect()
    }
}

fn part_of(hash: u64, depth: u32, parts: usize) -> usize {
    let mut mixed = (hash ^ u64::from(depth).wrapping_mul(0xA076_1D64_78BD_642F)).wrapping_mul(0xE703_7ED1_A0B4_28DB);
    mixed = (mixed ^ (mixed >> 32)).wrapping_mul(0x8EBC_6AF0_9C88_C6E3);
    ((u128::from(mixed ^ (mixed >> 29)) * parts as u128) >> 64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_depth_parts_anew_what_the_exchange_and_the_depths_before_left_together() {
        // What one of 128 key groups holds.
        let mut hashes: Vec<u64> = (0..1_000_000_u64)
            .map(|n| (n.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 7) | 5 << 57)
            .collect();
        for depth in 1..=4 {
            let mut counts = vec![0; 8];
            hashes.iter().for_each(|hash| counts[part_of(*hash, depth, 8)] += 1);
            let fair = hashes.len() / 8;
            assert!(
                counts
                    .iter()
                    .all(|count| *count > fair * 2 / 3 && *count < fair * 3 / 2),
                "{depth}: {counts:?}"
            );
            hashes.retain(|hash| part_of(*hash, depth, 8) == 3);
        }
    }
}
