//! From pairs of rows to output batches: which columns, from which side, in batches of the target size.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatchOptions, UInt32Array, new_null_array};
use arrow::buffer::BooleanBuffer;
use arrow::compute::{filter_record_batch, prep_null_mask_filter, take};
use arrow::datatypes::SchemaRef;
use datafusion::common::{JoinSide, JoinType};

use crate::data::{Batch, Coalescer, EngineError, Result};
use crate::operator::hash_join::build::{BuildRows, row_bytes};
use crate::operator::hash_join::widths::{PieceLimit, SMALL_PIECE_BYTES, piece_bytes};
use crate::operator::sort::without_unused_strings;
use crate::operator::{Collector, Context};
use crate::plan::{HashJoinSpec, JoinFilterSpec};

/// Rows of one side.
pub(in crate::operator) enum Selection {
    /// Neighbours: nothing is copied.
    Slice { start: usize, len: usize },
    /// By number; NULL gives a row of NULLs.
    Take(UInt32Array),
    /// Rows of NULLs.
    Nulls(usize),
}

impl Selection {
    /// How many rows.
    pub(in crate::operator) fn len(&self) -> usize {
        match self {
            Selection::Slice { len, .. } | Selection::Nulls(len) => *len,
            Selection::Take(rows) => rows.len(),
        }
    }

    /// These rows of `array`.
    ///
    /// # Errors
    /// When the kernel fails.
    pub(in crate::operator) fn of(&self, array: &ArrayRef) -> Result<ArrayRef> {
        Ok(match self {
            Selection::Slice { start, len } if *start == 0 && *len == array.len() => Arc::clone(array),
            Selection::Slice { start, len } => array.slice(*start, *len),
            Selection::Take(rows) => take(array, rows, None)?,
            Selection::Nulls(len) => new_null_array(array.data_type(), *len),
        })
    }
}

/// The two sides that output is gathered from; the probe side is the batch at hand.
#[derive(Clone, Copy)]
pub(in crate::operator) struct Sides<'a> {
    pub(in crate::operator) build: &'a BuildRows,
    pub(in crate::operator) probe: Option<&'a Batch>,
}

impl Sides<'_> {
    fn probe(&self, index: usize, rows: &Selection) -> Result<ArrayRef> {
        match self.probe {
            Some(batch) => rows.of(batch.column(index)),
            None => Err(EngineError::Internal("there is no probe batch to gather from".into())),
        }
    }
}

/// Where an output column comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::operator) enum Source {
    Build(usize),
    Probe(usize),
    Mark,
}

/// The output's columns.
pub(in crate::operator) struct Layout {
    sources: Vec<Source>,
    schema: SchemaRef,
}

impl Layout {
    /// For the join that `spec` says.
    ///
    /// # Errors
    /// When its projection or schema does not fit.
    pub(in crate::operator) fn of(spec: &HashJoinSpec) -> Result<Self> {
        Self::new(
            spec.join_type,
            spec.build_schema.0.fields().len(),
            spec.probe_schema.0.fields().len(),
            spec.projection.as_deref(),
            spec.schema.0.clone(),
        )
    }

    /// For a join of sides this wide.
    ///
    /// # Errors
    /// When `projection` or `schema` does not fit.
    pub(in crate::operator) fn new(
        join_type: JoinType,
        build_width: usize,
        probe_width: usize,
        projection: Option<&[usize]>,
        schema: SchemaRef,
    ) -> Result<Self> {
        let build = (0..build_width).map(Source::Build);
        let probe = (0..probe_width).map(Source::Probe);
        let all: Vec<Source> = match join_type {
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => build.chain(probe).collect(),
            JoinType::LeftSemi | JoinType::LeftAnti => build.collect(),
            JoinType::RightSemi | JoinType::RightAnti => probe.collect(),
            JoinType::LeftMark => build.chain([Source::Mark]).collect(),
            JoinType::RightMark => probe.chain([Source::Mark]).collect(),
        };
        let sources = match projection {
            None => Some(all),
            Some(columns) => columns.iter().map(|column| all.get(*column).copied()).collect(),
        };
        match sources {
            Some(sources) if sources.len() == schema.fields().len() => Ok(Self { sources, schema }),
            _ => Err(EngineError::Internal(format!(
                "a {join_type} join of {build_width} and {probe_width} columns does not give {schema} by {projection:?}"
            ))),
        }
    }

    /// Where each output column comes from.
    pub(in crate::operator) fn sources(&self) -> &[Source] {
        &self.sources
    }

    /// The build columns that the output or `filter` needs, rising.
    pub(in crate::operator) fn build_columns(&self, filter: Option<&JoinFilterSpec>) -> Vec<usize> {
        self.columns(filter, JoinSide::Left)
    }

    /// The probe columns that the output or `filter` needs, rising.
    pub(in crate::operator) fn probe_columns(&self, filter: Option<&JoinFilterSpec>) -> Vec<usize> {
        self.columns(filter, JoinSide::Right)
    }

    fn columns(&self, filter: Option<&JoinFilterSpec>, wanted: JoinSide) -> Vec<usize> {
        let output = self.sources.iter().filter_map(|source| match (source, wanted) {
            (Source::Build(column), JoinSide::Left) | (Source::Probe(column), JoinSide::Right) => Some(*column),
            _ => None,
        });
        let filter = filter.iter().flat_map(|filter| &filter.columns);
        let filter = filter.filter(|(side, _)| *side == wanted).map(|(_, column)| *column);
        let mut columns: Vec<usize> = output.chain(filter).collect();
        columns.sort_unstable();
        columns.dedup();
        columns
    }

    fn batch(&self, sides: Sides, build: &Selection, probe: &Selection, mark: Option<&ArrayRef>) -> Result<Batch> {
        let mut columns = Vec::with_capacity(self.sources.len());
        for (source, field) in self.sources.iter().zip(self.schema.fields()) {
            columns.push(match source {
                Source::Build(column) => sides.build.gather(*column, build)?,
                Source::Probe(_) if sides.probe.is_none() => new_null_array(field.data_type(), probe.len()),
                Source::Probe(column) => sides.probe(*column, probe)?,
                Source::Mark => mark
                    .cloned()
                    .ok_or_else(|| EngineError::Internal("no mark was computed".into()))?,
            });
        }
        let options = RecordBatchOptions::new().with_row_count(Some(build.len()));
        Ok(Batch::try_new_with_options(
            Arc::clone(&self.schema),
            columns,
            &options,
        )?)
    }
}

/// Gathers and hands on output batches. Small ones are gathered up while large ones pass, so the order of the probe
/// side is not kept.
pub(in crate::operator) struct Output {
    layout: Layout,
    coalescer: Option<Coalescer>,
    /// Rows not yet handed on, when the output has no columns.
    bare_rows: usize,
    /// Bytes of the wide pieces gathered up since the last batch was ended for their sake.
    wide_bytes: usize,
    /// Whether what is handed on must keep no build rows alive.
    detached: bool,
}

impl Output {
    pub(in crate::operator) fn new(layout: Layout) -> Self {
        Self {
            layout,
            coalescer: None,
            bare_rows: 0,
            wide_bytes: 0,
            detached: false,
        }
    }

    /// For a build side that makes room for another before the output is used up: rows are copied out.
    pub(in crate::operator) fn detached(layout: Layout) -> Self {
        Self {
            detached: true,
            ..Self::new(layout)
        }
    }

    /// From now on what is handed on keeps no build rows alive.
    pub(in crate::operator) fn detach(&mut self) {
        self.detached = true;
    }

    /// Whether rows are all that is asked for (`count(*)`).
    pub(in crate::operator) fn is_bare(&self) -> bool {
        self.layout.sources.is_empty()
    }

    /// How large a piece of output may be, so that neither it nor what `filter` is judged on takes much memory.
    pub(in crate::operator) fn piece_limit<'a>(
        &self,
        sides: Sides<'a>,
        filter: Option<&JoinFilterSpec>,
        cx: &Context,
    ) -> PieceLimit<'a> {
        PieceLimit::new(&self.layout, sides, filter, cx)
    }

    /// Hands on the pairs of `build` and `probe` rows; at most about a batch of them.
    ///
    /// # Errors
    /// When a kernel or the consumer fails.
    pub(in crate::operator) fn pairs(
        &mut self,
        sides: Sides,
        build: &Selection,
        probe: &Selection,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let rows = build.len();
        debug_assert_eq!(rows, probe.len());
        if self.is_bare() {
            return self.bare(rows, cx, out);
        }
        if rows == 0 {
            return Ok(());
        }
        let batch = self.layout.batch(sides, build, probe, None)?;
        self.pass(batch, cx, out)
    }

    /// Hands on the rows of the probe batch for which `mask` is true, beside NULLs where the join has build columns.
    ///
    /// # Errors
    /// When a kernel or the consumer fails.
    pub(in crate::operator) fn probe_where(
        &mut self,
        sides: Sides,
        mask: &BooleanBuffer,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let rows_max = self.piece_limit(sides, None, cx).rows_max;
        self.each_piece(mask, rows_max, cx, out, |layout, start, len| {
            layout.batch(sides, &Selection::Nulls(len), &Selection::Slice { start, len }, None)
        })
    }

    /// Hands on the rows of the build side for which `mask` is true, beside NULLs where the join has probe columns.
    ///
    /// # Errors
    /// When a kernel or the consumer fails.
    pub(in crate::operator) fn build_where(
        &mut self,
        build: &BuildRows,
        mask: &BooleanBuffer,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let sides = Sides { build, probe: None };
        let rows = self.neighbours(sides);
        let rows_max = self.piece_limit(sides, None, cx).rows_max;
        self.each_piece(mask, rows_max, cx, out, |layout, start, len| {
            layout.batch(sides, &rows(start, len), &Selection::Nulls(len), None)
        })
    }

    /// Hands on all rows of one side (the probe batch's when there is one) with `marks`.
    ///
    /// # Errors
    /// When a kernel or the consumer fails.
    pub(in crate::operator) fn marked(
        &mut self,
        sides: Sides,
        marks: &BooleanBuffer,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        let all = BooleanBuffer::new_set(marks.len());
        let rows = self.neighbours(sides);
        let rows_max = self.piece_limit(sides, None, cx).rows_max;
        self.each_piece(&all, rows_max, cx, out, |layout, start, len| {
            let mark: ArrayRef = Arc::new(BooleanArray::new(marks.slice(start, len), None));
            let rows = rows(start, len);
            layout.batch(sides, &rows, &rows, Some(&mark))
        })
    }

    /// How to gather neighbouring rows: as a slice, unless that would keep the build side alive.
    fn neighbours(&self, sides: Sides) -> impl Fn(usize, usize) -> Selection + use<> {
        let copied = self.detached && sides.probe.is_none();
        move |start, len| match copied {
            true => Selection::Take((start as u32..(start + len) as u32).collect::<Vec<_>>().into()),
            false => Selection::Slice { start, len },
        }
    }

    fn hand_on(&self, batch: Batch, out: &mut dyn Collector) -> Result<()> {
        out.collect(if self.detached {
            without_unused_strings(batch)?
        } else {
            batch
        })
    }

    fn each_piece(
        &mut self,
        mask: &BooleanBuffer,
        rows_max: usize,
        cx: &Context,
        out: &mut dyn Collector,
        piece: impl Fn(&Layout, usize, usize) -> Result<Batch>,
    ) -> Result<()> {
        if self.is_bare() {
            return self.bare(mask.count_set_bits(), cx, out);
        }
        let mut start = 0;
        while start < mask.len() && !out.is_done() {
            cx.cancel.check()?;
            let len = rows_max.min(mask.len() - start);
            let mask = mask.slice(start, len);
            let kept = mask.count_set_bits();
            if kept > 0 {
                let batch = piece(&self.layout, start, len)?;
                let mask = BooleanArray::new(mask, None);
                if kept == len {
                    self.pass(batch, cx, out)?;
                } else if kept * 2 >= cx.batch_size {
                    self.hand_on(filter_record_batch(&batch, &mask)?, out)?;
                } else if rows_max < cx.batch_size {
                    self.pass(filter_record_batch(&batch, &mask)?, cx, out)?;
                } else {
                    self.coalescer(cx).push_filtered(batch, &mask)?;
                    self.completed(out)?;
                }
            }
            start += len;
        }
        Ok(())
    }

    /// A large batch goes on as it is; small ones are gathered up.
    fn pass(&mut self, batch: Batch, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        if batch.num_rows() * 2 >= cx.batch_size {
            return self.hand_on(batch, out);
        }
        let bytes = row_bytes(batch.columns());
        if bytes <= SMALL_PIECE_BYTES / 2 {
            self.coalescer(cx).push(batch)?;
            return self.completed(out);
        }
        // Rows are wide: the gathered batch must not grow to many times what one piece may be.
        let full_bytes = piece_bytes(cx);
        if bytes * 2 >= full_bytes {
            return self.hand_on(batch, out);
        }
        self.wide_bytes += bytes;
        self.coalescer(cx).push(batch)?;
        if self.wide_bytes >= full_bytes {
            self.wide_bytes = 0;
            self.coalescer(cx).flush()?;
        }
        self.completed(out)
    }

    fn coalescer(&mut self, cx: &Context) -> &mut Coalescer {
        self.coalescer
            .get_or_insert_with(|| Coalescer::new(cx.batch_size, cx.batch_bytes))
    }

    fn completed(&mut self, out: &mut dyn Collector) -> Result<()> {
        loop {
            let next = self.coalescer.as_mut().map(Coalescer::next).transpose()?;
            let Some(batch) = next.flatten() else { return Ok(()) };
            self.hand_on(batch, out)?;
        }
    }

    /// Hands on `rows` rows without columns.
    ///
    /// # Errors
    /// When the consumer fails.
    pub(in crate::operator) fn bare(&mut self, rows: usize, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        self.bare_rows += rows;
        while self.bare_rows >= cx.batch_size && !out.is_done() {
            cx.cancel.check()?;
            self.bare_rows -= cx.batch_size;
            out.collect(self.bare_batch(cx.batch_size)?)?;
        }
        Ok(())
    }

    fn bare_batch(&self, rows: usize) -> Result<Batch> {
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        Ok(Batch::try_new_with_options(
            Arc::clone(&self.layout.schema),
            vec![],
            &options,
        )?)
    }

    /// Hands on what is still gathered up.
    ///
    /// # Errors
    /// When a kernel or the consumer fails.
    pub(in crate::operator) fn finish(&mut self, out: &mut dyn Collector) -> Result<()> {
        if out.is_done() {
            return Ok(());
        }
        if let Some(coalescer) = &mut self.coalescer {
            coalescer.flush()?;
        }
        self.completed(out)?;
        match std::mem::take(&mut self.bare_rows) {
            0 => Ok(()),
            rows => out.collect(self.bare_batch(rows)?),
        }
    }
}

/// Which pairs satisfy the residual condition (true, not NULL).
///
/// # Errors
/// When the condition fails.
pub(in crate::operator) fn satisfied(
    filter: &JoinFilterSpec,
    sides: Sides,
    build: &Selection,
    probe: &Selection,
) -> Result<BooleanArray> {
    let mut columns = Vec::with_capacity(filter.columns.len());
    for (side, column) in &filter.columns {
        columns.push(match side {
            JoinSide::Left => sides.build.gather(*column, build)?,
            JoinSide::Right => sides.probe(*column, probe)?,
            JoinSide::None => return Err(EngineError::Internal("a join condition refers to a mark".into())),
        });
    }
    let rows = build.len();
    let options = RecordBatchOptions::new().with_row_count(Some(rows));
    let batch = Batch::try_new_with_options(Arc::clone(&filter.schema.0), columns, &options)?;
    let mask = filter.expr.expr.evaluate(&batch)?.into_array(rows)?;
    let mask = mask
        .as_boolean_opt()
        .ok_or_else(|| EngineError::Internal(format!("the join condition {} is not boolean", filter.expr)))?;
    Ok(if mask.null_count() > 0 {
        prep_null_mask_filter(mask)
    } else {
        mask.clone()
    })
}
