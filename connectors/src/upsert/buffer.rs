//! [`UpsertBuffer`]: changes that wait to be written; of each key the last one counts.

use std::sync::Arc;

use arrow::array::{Array, UInt8Array, UInt32Array};
use arrow::compute::{CastOptions, cast_with_options, concat, concat_batches, take, take_record_batch};
use arrow::datatypes::SchemaRef;
use arrow::row::{RowConverter, SortField};
use thalweg_engine::data::{RowKind, split_row_kind};
use thalweg_engine::{Batch, EngineError, Result};

/// Below so many rows nothing is gained by looking for keys that changed twice.
const COMPACT_MIN_ROWS: usize = 32 << 10;

/// What is to be written: rows that take the place of those with their keys, and keys that go. No key is in both, or twice.
/// Without a key: rows that are added, in their order.
#[derive(Clone, Debug)]
pub(crate) struct Changes {
    /// Rows with all columns.
    pub(crate) upserts: Batch,
    /// The columns of the key.
    pub(crate) deletes: Batch,
}

impl Changes {
    pub(crate) fn is_empty(&self) -> bool {
        self.upserts.num_rows() == 0 && self.deletes.num_rows() == 0
    }

    /// The names of the key's columns.
    pub(crate) fn key(&self) -> Vec<String> {
        let schema = self.deletes.schema_ref();
        schema.fields().iter().map(|field| field.name().clone()).collect()
    }
}

/// See the module.
#[derive(Debug)]
pub(crate) struct UpsertBuffer {
    schema: SchemaRef,
    key: Vec<usize>,
    converter: RowConverter,
    pending: Vec<(Batch, UInt8Array)>,
    rows: usize,
    bytes: usize,
    compact_at: usize,
}

impl UpsertBuffer {
    /// For rows of `schema`, to which batches are cast, and the key of these columns; without a key rows are only added.
    pub(crate) fn try_new(schema: SchemaRef, key: Vec<usize>) -> Result<Self> {
        let fields = key
            .iter()
            .map(|index| SortField::new(schema.field(*index).data_type().clone()));
        Ok(Self {
            converter: RowConverter::new(fields.collect())?,
            schema,
            key,
            pending: Vec::new(),
            rows: 0,
            bytes: 0,
            compact_at: COMPACT_MIN_ROWS,
        })
    }

    /// Rows that wait.
    pub(crate) fn rows(&self) -> usize {
        self.rows
    }

    /// Bytes that it holds.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Adds the changes of a batch.
    pub(crate) fn push(&mut self, batch: &Batch) -> Result<()> {
        if batch.num_rows() == 0 {
            return Ok(());
        }
        let (rows, kinds) = split_row_kind(batch)?;
        let kinds = kinds.unwrap_or_else(|| UInt8Array::from(vec![RowKind::Insert as u8; rows.num_rows()]));
        let rows = conform(&rows, &self.schema)?;
        for index in &self.key {
            if rows.column(*index).null_count() > 0 {
                return Err(EngineError::BadInput(format!(
                    "column '{}' belongs to the PRIMARY KEY of the sink and is NULL in a row; leave such rows out with WHERE",
                    self.schema.field(*index).name()
                )));
            }
        }
        if self.key.is_empty() && kinds.values().iter().any(|kind| *kind != RowKind::Insert as u8) {
            return Err(EngineError::Internal(
                "a sink without a key was handed an update".into(),
            ));
        }
        self.rows += rows.num_rows();
        self.bytes += bytes_of(&rows)?;
        self.pending.push((rows, kinds));
        if !self.key.is_empty() && self.rows >= self.compact_at {
            self.compact()?;
        }
        Ok(())
    }

    /// Leaves the last change of each key.
    pub(crate) fn compact(&mut self) -> Result<()> {
        if self.key.is_empty() || self.rows == 0 {
            return Ok(());
        }
        let (rows, kinds) = self.joined()?;
        let columns: Vec<_> = self.key.iter().map(|index| Arc::clone(rows.column(*index))).collect();
        let keys = self.converter.convert_columns(&columns)?;
        let mut order: Vec<u32> = (0..rows.num_rows() as u32).collect();
        order.sort_unstable_by(|a, b| {
            let (x, y) = (keys.row(*a as usize), keys.row(*b as usize));
            x.cmp(&y).then(a.cmp(b))
        });
        let mut last: Vec<u32> = Vec::with_capacity(order.len());
        for index in order {
            match last.last_mut() {
                Some(before) if keys.row(*before as usize) == keys.row(index as usize) => *before = index,
                _ => last.push(index),
            }
        }
        if last.len() == rows.num_rows() {
            self.hold(rows, kinds)?;
        } else {
            let last = UInt32Array::from(last);
            let kinds = UInt8Array::from(take(&kinds, &last, None)?.to_data());
            self.hold(take_record_batch(&rows, &last)?, kinds)?;
        }
        self.compact_at = (2 * self.rows).max(COMPACT_MIN_ROWS);
        Ok(())
    }

    /// Everything that waits, to be written now. The old form of a row whose new form has not come yet is a deletion only at
    /// a barrier (`complete`): else it waits on, so that nobody sees the row missing.
    pub(crate) fn take(&mut self, complete: bool) -> Result<Changes> {
        self.compact()?;
        let (rows, kinds) = self.joined()?;
        let key_rows = rows.project(&self.key)?;
        if self.key.is_empty() {
            return Ok(Changes {
                upserts: rows,
                deletes: Batch::new_empty(key_rows.schema()),
            });
        }
        let (mut upserts, mut deletes, mut waiting) = (Vec::new(), Vec::new(), Vec::new());
        for (row, kind) in kinds.values().iter().enumerate() {
            let side = match RowKind::from_u8(*kind)? {
                RowKind::Insert | RowKind::UpdateAfter => &mut upserts,
                RowKind::UpdateBefore if !complete => &mut waiting,
                RowKind::UpdateBefore | RowKind::Delete => &mut deletes,
            };
            side.push(row as u32);
        }
        if !waiting.is_empty() {
            let waiting = UInt32Array::from(waiting);
            let kinds = UInt8Array::from(vec![RowKind::UpdateBefore as u8; waiting.len()]);
            self.hold(take_record_batch(&rows, &waiting)?, kinds)?;
        }
        let upserts = if upserts.len() == rows.num_rows() {
            rows
        } else {
            take_record_batch(&rows, &UInt32Array::from(upserts))?
        };
        Ok(Changes {
            upserts,
            deletes: take_record_batch(&key_rows, &UInt32Array::from(deletes))?,
        })
    }

    /// All that waits, as one batch; nothing waits after it.
    fn joined(&mut self) -> Result<(Batch, UInt8Array)> {
        (self.rows, self.bytes) = (0, 0);
        let mut pending = std::mem::take(&mut self.pending);
        match pending.len() {
            0 => Ok((
                Batch::new_empty(Arc::clone(&self.schema)),
                UInt8Array::from(Vec::<u8>::new()),
            )),
            1 => Ok(pending.remove(0)),
            _ => {
                let rows = concat_batches(&self.schema, pending.iter().map(|(rows, _)| rows))?;
                let kinds: Vec<&dyn Array> = pending.iter().map(|(_, kinds)| kinds as &dyn Array).collect();
                Ok((rows, UInt8Array::from(concat(&kinds)?.to_data())))
            }
        }
    }

    fn hold(&mut self, rows: Batch, kinds: UInt8Array) -> Result<()> {
        self.rows += rows.num_rows();
        self.bytes += bytes_of(&rows)?;
        self.pending.push((rows, kinds));
        Ok(())
    }
}

fn bytes_of(rows: &Batch) -> Result<usize> {
    let columns = rows.columns().iter();
    let sizes = columns.map(|column| Ok(column.to_data().get_slice_memory_size()?));
    sizes.sum()
}

/// `batch` with exactly the types of `schema`. A value that does not fit is an error, not NULL.
fn conform(batch: &Batch, schema: &SchemaRef) -> Result<Batch> {
    if batch.num_columns() != schema.fields().len() {
        return Err(EngineError::Internal(format!(
            "a sink of {} columns was handed {}",
            schema.fields().len(),
            batch.num_columns()
        )));
    }
    let exact = CastOptions {
        safe: false,
        ..CastOptions::default()
    };
    let columns = batch.columns().iter().zip(schema.fields()).map(|(column, field)| {
        if column.data_type() == field.data_type() {
            Ok(Arc::clone(column))
        } else {
            cast_with_options(column, field.data_type(), &exact)
        }
    });
    Ok(Batch::try_new(
        Arc::clone(schema),
        columns.collect::<std::result::Result<_, _>>()?,
    )?)
}
