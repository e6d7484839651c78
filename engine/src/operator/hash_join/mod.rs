//! Hash join: input 0 is built into a table, then input 1 probes it.
//!
//! The build side is collected batch by batch, only the columns that the output or the residual condition needs. At
//! its end the table is built over all its keys, its size known, and the columns are joined into one array each, from
//! which output is gathered by row number. A probe batch is joined in three vectorized steps: keys to words
//! ([`keys`]), words to runs of matching build rows ([`table`]), runs to output ([`probe`], [`output`]).
//!
//! [`build`] and [`output`] and [`marks`] serve the nested loop join too.

pub(super) mod build;
mod columns;
mod keys;
pub(super) mod marks;
#[cfg(test)]
pub(super) mod naive;
pub(super) mod output;
mod probe;
mod slots;
mod table;
#[cfg(test)]
mod tests;

use datafusion::common::{JoinType, ScalarValue};

use crate::data::{Batch, EngineError, Result};
use crate::operator::hash_join::build::Collected;
use crate::operator::hash_join::keys::KeyShape;
use crate::operator::hash_join::marks::{Marks, emit_build, needs_build, visits_build};
use crate::operator::hash_join::output::{Layout, Output};
use crate::operator::hash_join::probe::Prober;
use crate::operator::hash_join::table::Table;
use crate::operator::runtime_filter::Publisher;
use crate::operator::{Collector, Context, Operator, Port, ReadNext};
use crate::plan::HashJoinSpec;

const BUILD: Port = 0;

/// What building takes per row at most, roughly: slots, words, first rows, counts, starts and order.
const BUILDING_BYTES_PER_ROW: usize = 64;

/// Joins two inputs on equal keys.
pub(super) struct HashJoin {
    spec: HashJoinSpec,
    shape: KeyShape,
    phase: Phase,
    output: Output,
    publisher: Publisher,
}

enum Phase {
    Build(Collected),
    Probe(Prober),
    /// Nothing more can come out.
    Done,
}

impl HashJoin {
    /// A join as `spec` says.
    ///
    /// # Errors
    /// When the spec contradicts itself.
    pub(super) fn new(spec: HashJoinSpec) -> Result<Self> {
        if spec.build_keys.is_empty() || spec.build_keys.len() != spec.probe_keys.len() {
            return Err(EngineError::Internal(
                "a hash join needs as many probe keys as build keys, and one".into(),
            ));
        }
        let one_plain_key = spec.build_keys.len() == 1 && spec.filter.is_none() && !spec.null_equals_null;
        if spec.null_aware && !(spec.join_type == JoinType::RightAnti && one_plain_key) {
            return Err(EngineError::Internal(
                "a null-aware join is a RightAnti join on one key alone".into(),
            ));
        }
        let (build_schema, probe_schema) = (&spec.build_schema.0, &spec.probe_schema.0);
        let types = spec.build_keys.iter().map(|key| Ok(key.expr.data_type(build_schema)?));
        let shape = KeyShape::new(types.collect::<Result<_>>()?, spec.null_equals_null);
        let layout = Layout::new(
            spec.join_type,
            build_schema.fields().len(),
            probe_schema.fields().len(),
            spec.projection.as_deref(),
            spec.schema.0.clone(),
        )?;
        let kept = layout.build_columns(spec.filter.as_ref());
        let collected = Collected::new(build_schema.clone(), kept, spec.build_keys.len());
        Ok(Self {
            shape,
            phase: Phase::Build(collected),
            output: Output::new(layout),
            publisher: Publisher::new(&spec.runtime_filters),
            spec,
        })
    }

    /// Least and greatest build key, when there is one key of an integer-like type and the build side has ended: no
    /// probe row outside can match.
    #[cfg_attr(
        not(test),
        expect(dead_code, reason = "for filters pushed into the probe side's scan")
    )]
    pub(super) fn build_bounds(&self) -> Option<(ScalarValue, ScalarValue)> {
        let Phase::Probe(prober) = &self.phase else { return None };
        let (min, max) = prober.table.bounds?;
        let data_type = self.shape.only_type()?;
        let scalar = |word: i64| {
            let value = if data_type.is_unsigned_integer() {
                ScalarValue::UInt64(Some(word as u64))
            } else {
                ScalarValue::Int64(Some(word))
            };
            value.cast_to(data_type).ok()
        };
        // Words are ordered as signed; unsigned keys beyond the signed range have no order here.
        let ordered = min >= 0 || !data_type.is_unsigned_integer();
        if ordered && !data_type.is_decimal() {
            Some((scalar(min)?, scalar(max)?))
        } else {
            None
        }
    }

    /// The build side has ended: builds the table.
    fn build(&self, mut collected: Collected, cx: &mut Context) -> Result<Phase> {
        let rows = collected.rows();
        let (chunks, key_bytes) = collected.take_extra();
        cx.hold(collected.bytes() + 2 * key_bytes + rows * BUILDING_BYTES_PER_ROW)?;
        let mut arrays = Vec::with_capacity(chunks.len());
        if rows > 0 {
            for chunks in chunks {
                arrays.push(KeyShape::concat(&chunks)?);
            }
        } else {
            for data_type in self.shape.types() {
                arrays.push(arrow::array::new_empty_array(data_type));
            }
        }
        let keys = self.shape.digest(&arrays, rows)?;
        drop(arrays);
        let has_null_key = keys.nulls.is_some();
        let table = Table::build(keys, self.shape.is_integer());
        if (table.is_empty() && self.is_idle_without_matches(rows)) || (self.spec.null_aware && has_null_key) {
            cx.hold(0)?;
            return Ok(Phase::Done);
        }
        let mut bytes = table.memory_bytes();
        let visited = visits_build(self.spec.join_type).then(|| {
            bytes += Marks::memory_bytes(rows);
            Marks::new(rows)
        });
        let rows = collected.finish(bytes, cx)?;
        Ok(Phase::Probe(Prober { rows, table, visited }))
    }

    /// Whether no output can come from `rows` build rows of which none can match.
    fn is_idle_without_matches(&self, rows: usize) -> bool {
        let awaits_end = matches!(
            self.spec.join_type,
            JoinType::Left | JoinType::LeftAnti | JoinType::LeftMark
        );
        needs_build(self.spec.join_type) && !(awaits_end && rows > 0)
    }
}

impl Operator for HashJoin {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        match &mut self.phase {
            Phase::Build(collected) => {
                let keys = self.shape.evaluate(&self.spec.build_keys, &batch)?;
                self.publisher.add(&keys, cx)?;
                collected.push(&batch, keys, cx)
            }
            Phase::Probe(prober) => {
                let keys = self.shape.evaluate(&self.spec.probe_keys, &batch)?;
                let keys = self.shape.digest(&keys, batch.num_rows())?;
                prober.join(&self.spec, &batch, &keys, &mut self.output, cx, out)
            }
            Phase::Done => Ok(()),
        }
    }

    fn on_end(&mut self, port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        match (std::mem::replace(&mut self.phase, Phase::Done), port) {
            (Phase::Build(collected), BUILD) => {
                self.publisher.finish(cx);
                self.phase = self.build(collected, cx)?;
                Ok(())
            }
            (Phase::Build(_), _) => Err(EngineError::Internal(
                "the probe side ended before the build side".into(),
            )),
            (Phase::Probe(prober), BUILD) => {
                self.phase = Phase::Probe(prober);
                Ok(())
            }
            (Phase::Probe(mut prober), _) => {
                if let Some(visited) = &mut prober.visited {
                    let visited = visited.finish();
                    emit_build(self.spec.join_type, &prober.rows, &visited, &mut self.output, cx, out)?;
                }
                drop(prober);
                self.output.finish(out)?;
                cx.hold(0)
            }
            (Phase::Done, _) => Ok(()),
        }
    }

    fn reads_next(&self) -> ReadNext {
        ReadNext::Only(if matches!(self.phase, Phase::Build(_)) {
            BUILD
        } else {
            1
        })
    }

    fn is_done(&self) -> bool {
        matches!(self.phase, Phase::Done)
    }
}
