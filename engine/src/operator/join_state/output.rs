//! From pairs of rows to output: the residual condition, the columns of both sides, the kind of each row.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, RecordBatchOptions, UInt8Array, UInt32Array, new_null_array,
};
use arrow::compute::{concat_batches, prep_null_mask_filter};
use arrow::datatypes::{DataType, SchemaRef};
use datafusion::common::{JoinSide, JoinType};

use super::pieces::Located;
use super::store::RowStore;
use crate::data::{Batch, EngineError, Result, RowKind, batch_bytes, is_changelog};
use crate::operator::hash_join::output::Selection;
use crate::operator::{Collector, Context};
use crate::plan::{JoinFilterSpec, JoinInputSpec, SchemaSpec};

/// Rows of one side that output is gathered from.
pub(in crate::operator) enum SideRows<'a> {
    /// Of a batch.
    Batch(&'a Batch, Selection),
    /// Of a store.
    Store(&'a RowStore, Located),
    /// Rows of NULLs.
    Nulls(usize),
}

impl<'a> SideRows<'a> {
    /// Rows of a batch by number; nothing is copied when they are neighbours.
    pub(in crate::operator) fn batch(batch: &'a Batch, rows: &[u32]) -> Self {
        let first = rows.first().copied().unwrap_or(0);
        let is_run = rows.iter().zip(first..).all(|(row, expected)| *row == expected);
        Self::Batch(
            batch,
            match is_run {
                true => Selection::Slice {
                    start: first as usize,
                    len: rows.len(),
                },
                false => Selection::Take(UInt32Array::from(rows.to_vec())),
            },
        )
    }

    /// Rows of a store by number.
    pub(in crate::operator) fn stored(store: &'a RowStore, rows: &[u32]) -> Self {
        Self::Store(store, store.pieces.locate_all(rows))
    }

    fn len(&self) -> usize {
        match self {
            SideRows::Batch(_, rows) => rows.len(),
            SideRows::Store(_, located) => located.len(),
            SideRows::Nulls(rows) => *rows,
        }
    }

    fn column(&self, index: usize, data_type: &DataType) -> Result<ArrayRef> {
        Ok(match self {
            SideRows::Batch(batch, rows) => rows.of(batch.column(index))?,
            SideRows::Store(store, located) => store.pieces.gather(index, located)?,
            SideRows::Nulls(rows) => new_null_array(data_type, *rows),
        })
    }
}

/// The kinds of output rows.
#[derive(Clone, Copy)]
pub(in crate::operator) enum Kinds<'a> {
    /// One for all.
    All(RowKind),
    /// One each, by number.
    Each(&'a [u8]),
}

/// Judges pairs and builds output.
pub(in crate::operator) struct JoinOutput {
    schema: SchemaRef,
    /// Side (0 left, 1 right) and column of each output column, but for the row kind.
    sources: Vec<(usize, usize)>,
    pub(in crate::operator) is_changelog: bool,
    pub(in crate::operator) filter: Option<JoinFilterSpec>,
    pending: Vec<Batch>,
    pending_rows: usize,
}

impl JoinOutput {
    /// For a join of `left` and `right` into rows of `schema`.
    ///
    /// # Errors
    /// When the join type is none of streams, or the schema does not fit.
    pub(in crate::operator) fn new(
        join_type: JoinType,
        left: &JoinInputSpec,
        right: &JoinInputSpec,
        filter: Option<&JoinFilterSpec>,
        schema: &SchemaSpec,
    ) -> Result<Self> {
        let schema = Arc::clone(&schema.0);
        let width = |side: &JoinInputSpec| side.schema.0.fields().len() - usize::from(is_changelog(&side.schema.0));
        let left = (0..width(left)).map(|column| (0, column));
        let sources: Vec<_> = match join_type {
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
                left.chain((0..width(right)).map(|column| (1, column))).collect()
            }
            JoinType::LeftSemi | JoinType::LeftAnti => left.collect(),
            other => return Err(EngineError::Plan(format!("streams are not joined by a {other} join"))),
        };
        let is_changelog = is_changelog(&schema);
        if schema.fields().len() != sources.len() + usize::from(is_changelog) {
            return Err(EngineError::Internal(format!(
                "a {join_type} join has {} columns, not those of {schema}",
                sources.len()
            )));
        }
        Ok(Self {
            schema,
            sources,
            is_changelog,
            filter: filter.cloned(),
            pending: Vec::new(),
            pending_rows: 0,
        })
    }

    /// How many pairs may be gathered at once when rows are so wide.
    pub(in crate::operator) fn pairs_max(&self, row_bytes: usize, cx: &Context) -> usize {
        (cx.batch_bytes / row_bytes.max(1)).clamp(1, cx.batch_size.max(1))
    }

    /// Which pairs satisfy the residual condition; `None` when all do.
    ///
    /// # Errors
    /// When the condition fails.
    pub(in crate::operator) fn passes(&self, sides: [&SideRows; 2]) -> Result<Option<BooleanArray>> {
        let Some(filter) = &self.filter else { return Ok(None) };
        let rows = sides[0].len();
        let mut columns = Vec::with_capacity(filter.columns.len());
        for ((side, column), field) in filter.columns.iter().zip(filter.schema.0.fields()) {
            let side = match side {
                JoinSide::Left => sides[0],
                JoinSide::Right => sides[1],
                JoinSide::None => return Err(EngineError::Internal("a join condition refers to a mark".into())),
            };
            columns.push(side.column(*column, field.data_type())?);
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = Batch::try_new_with_options(Arc::clone(&filter.schema.0), columns, &options)?;
        let mask = filter.expr.expr.evaluate(&batch)?.into_array(rows)?;
        let mask = mask
            .as_boolean_opt()
            .ok_or_else(|| EngineError::Internal(format!("the join condition {} is not boolean", filter.expr)))?;
        let mask = if mask.null_count() > 0 {
            prep_null_mask_filter(mask)
        } else {
            mask.clone()
        };
        Ok((mask.true_count() < rows).then_some(mask))
    }

    /// Puts out pairs; of a semi or anti join the left rows.
    ///
    /// # Errors
    /// When a kernel or the consumer fails.
    pub(in crate::operator) fn emit(
        &mut self,
        sides: [&SideRows; 2],
        kinds: Kinds,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let rows = sides[0].len();
        if rows == 0 {
            return Ok(());
        }
        let mut columns = Vec::with_capacity(self.schema.fields().len());
        for ((side, column), field) in self.sources.iter().zip(self.schema.fields()) {
            columns.push(sides[*side].column(*column, field.data_type())?);
        }
        if self.is_changelog {
            columns.push(Arc::new(match kinds {
                Kinds::All(kind) => UInt8Array::from_value(kind as u8, rows),
                Kinds::Each(kinds) => UInt8Array::from(kinds.to_vec()),
            }));
        }
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        let batch = Batch::try_new_with_options(Arc::clone(&self.schema), columns, &options)?;
        // Rows keep their order, as a row may take back one that came out before it.
        if self.pending_rows > 0 && self.pending_rows + rows > cx.batch_size {
            self.flush(out)?;
        }
        self.pending_rows += rows;
        self.pending.push(batch);
        if self.pending_rows * 2 > cx.batch_size {
            self.flush(out)?;
        }
        Ok(())
    }

    /// Hands on what is gathered up: at the end of each call of the operator.
    ///
    /// # Errors
    /// When a kernel or the consumer fails.
    pub(in crate::operator) fn flush(&mut self, out: &mut dyn Collector) -> Result<()> {
        let rows = std::mem::take(&mut self.pending_rows);
        let mut pending = std::mem::take(&mut self.pending);
        match pending.len() {
            0 => Ok(()),
            1 => pending.pop().map_or(Ok(()), |batch| out.collect(batch)),
            _ if self.schema.fields().is_empty() => {
                let options = RecordBatchOptions::new().with_row_count(Some(rows));
                out.collect(Batch::try_new_with_options(Arc::clone(&self.schema), vec![], &options)?)
            }
            _ => out.collect(concat_batches(&self.schema, &pending)?),
        }
    }
}

/// About how many bytes a row of `batch` has.
pub(in crate::operator) fn row_bytes(batch: &Batch) -> usize {
    batch_bytes(batch) / batch.num_rows().max(1)
}
