//! A table that makes room while it is being probed: its build rows go to disk, and so do the probe rows that are still
//! to come. The two files are joined in the end.
//!
//! The keys themselves are gone by then, only the form in which the table compares them is left ([`Keys::arrays`]). That
//! is as good: what is equal in that form is equal.

use arrow::array::{Array, ArrayRef, BooleanArray};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{cast, filter_record_batch};
use datafusion::common::JoinType;
use thalweg_memory::{SpillFile, SpillWriter};

use crate::data::{Batch, Result};
use crate::operator::hash_join::keys::{KeyShape, Keys};
use crate::operator::hash_join::narrow::{Narrow, Side};
use crate::operator::hash_join::output::{Layout, Output, Selection};
use crate::operator::hash_join::pairs::{Pair, join_pair};
use crate::operator::hash_join::partitions::{staging_bytes, write};
use crate::operator::hash_join::probe::Prober;
use crate::operator::hash_join::radix::{DROP, Staging};
use crate::operator::sort::without_unused_strings;
use crate::operator::{Collector, Context};
use crate::plan::HashJoinSpec;

/// What evicting takes per row: its key as an array, and whether it has one.
const KEY_BYTES_PER_ROW: usize = 17;

/// The rest of a join whose table has been evicted.
pub(super) struct Late {
    narrow: Narrow,
    build: SpillFile,
    probe: SpillWriter,
    staging: Staging,
    /// Whether probe rows whose key is NULL are not wanted.
    null_aware: bool,
}

/// Whether `prober` can be evicted in mid-probe. Not where a build row that has matched may come out once more: what is
/// on disk does not know that it has.
pub(super) fn can_evict(join_type: JoinType, prober: &Prober) -> bool {
    let marks = matches!(join_type, JoinType::Left | JoinType::Full | JoinType::LeftMark);
    !marks && !prober.table.is_empty()
}

impl Late {
    /// Writes the build rows of `prober` that later probe rows may meet. What they matched so far is handed on where
    /// that is their only output.
    pub(super) fn evict(
        spec: &HashJoinSpec,
        shape: &KeyShape,
        prober: Prober,
        output: &mut Output,
        cx: &mut Context,
        out: &mut dyn Collector,
    ) -> Result<Self> {
        let Prober {
            rows,
            table,
            mut visited,
            ..
        } = prober;
        cx.hold_anyway(cx.memory.bytes() + rows.len() * KEY_BYTES_PER_ROW);
        let key_types = shape.array_types()?;
        let narrow = Narrow::with_keys(spec, &Layout::of(spec)?, &key_types)?;
        output.detach();
        let open = match visited.as_mut().map(|visited| visited.finish()) {
            Some(visited) => {
                if spec.join_type == JoinType::LeftSemi {
                    output.build_where(&rows, &visited, cx, out)?;
                }
                Some(!&visited)
            }
            None => None,
        };
        let keys = table.into_key_arrays(rows.len());
        let bytes = staging_bytes(cx);
        let block_rows = (bytes / (rows.row_width() + KEY_BYTES_PER_ROW)).max(1);
        let mut writer = cx.spill.create(narrow.build.schema().clone())?;
        for start in (0..rows.len()).step_by(block_rows) {
            cx.cancel.check()?;
            let len = block_rows.min(rows.len() - start);
            let slice = Selection::Slice { start, len };
            let kept = rows.kept().map(|column| rows.gather(column, &slice));
            // A column of more than 2 GB has wider offsets, its blocks need none.
            let keys = keys.iter().zip(&key_types).map(|(key, data_type)| {
                let key = key.slice(start, len);
                Ok(if key.data_type() == data_type {
                    key
                } else {
                    cast(&key, data_type)?
                })
            });
            let (kept, keys): (Vec<ArrayRef>, Vec<ArrayRef>) =
                (kept.collect::<Result<_>>()?, keys.collect::<Result<_>>()?);
            let block = narrow.build.of_columns(kept.into_iter(), &keys, len)?;
            let block = only(block, open.as_ref().map(|open| open.slice(start, len)))?;
            if block.num_rows() > 0 {
                write(&mut writer, &without_unused_strings(block)?, cx)?;
            }
        }
        Ok(Self {
            build: writer.finish()?,
            probe: cx.spill.create(narrow.probe.schema().clone())?,
            staging: Staging::new(narrow.probe.schema().clone(), bytes),
            null_aware: spec.null_aware,
            narrow,
        })
    }

    /// Takes a probe batch and its keys.
    pub(super) fn push(&mut self, batch: &Batch, keys: Keys, cx: &Context) -> Result<()> {
        let side: &Side = &self.narrow.probe;
        let mut targets = vec![0; batch.num_rows()];
        if let (true, Some(nulls)) = (self.null_aware, &keys.nulls) {
            (!nulls.inner()).set_indices().for_each(|row| targets[row] = DROP);
        }
        let batch = side.of_columns(side.kept_of(batch), &keys.arrays(), batch.num_rows())?;
        self.staging.push(batch, targets)?;
        if self.staging.is_full() {
            self.flush(cx)?;
        }
        Ok(())
    }

    fn flush(&mut self, cx: &Context) -> Result<()> {
        let writer = &mut self.probe;
        self.staging.distribute(|_, batch| write(writer, &batch, cx))
    }

    /// Bytes held.
    pub(super) fn memory_bytes(&self) -> usize {
        self.staging.memory_bytes()
    }

    /// The probe side has ended; nothing is held any more by whoever calls.
    pub(super) fn finish(mut self, depth: usize, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.flush(cx)?;
        drop(self.staging);
        cx.hold(0)?;
        let pair = Pair {
            build: self.build,
            probe: self.probe.finish()?,
            hot: false,
        };
        join_pair(&self.narrow.spec, pair, depth, cx, out)
    }
}

fn only(batch: Batch, mask: Option<BooleanBuffer>) -> Result<Batch> {
    Ok(match mask {
        Some(mask) => filter_record_batch(&batch, &BooleanArray::new(mask, None))?,
        None => batch,
    })
}
