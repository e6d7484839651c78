//! Join: which side is built, and how the two sides meet.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::{Column, DFSchema, JoinSide, JoinType, NullEquality};
use datafusion::logical_expr::{Expr, Join};
use datafusion::physical_plan::joins::utils::build_join_schema;
use thalweg_engine::plan::{
    HashJoinSpec, JoinFilterSpec, NestedLoopJoinSpec, OperatorSpec, Partitioning, ScalarExpr, SchemaSpec,
};
use thalweg_engine::{EngineError, Result};

use super::Lowering;
use crate::estimate::Estimate;
use crate::properties::{Physical, Stream, column, scalar_exprs};

/// Two inputs together below so many bytes are joined in one subtask when both are in one already.
const ONE_SUBTASK_BYTES: f64 = 1_048_576.0;

/// What it costs to ship a row, in units of a row's weight. Chosen by judgement, not fitted to measurements.
const SHIP_COST: f64 = 1.5;
/// What it costs to build a row into a hash table.
const BUILD_COST: f64 = 3.0;
/// A row of so many bytes weighs twice as much as an empty one.
const BYTES_OF_UNIT_WEIGHT: f64 = 32.0;

/// Rows, the wide ones counting more.
fn weight(estimate: &Estimate) -> Option<f64> {
    Some(estimate.rows? + estimate.bytes()? / BYTES_OF_UNIT_WEIGHT)
}

/// A join with its sides in place: `build` is left.
pub(super) struct Oriented {
    pub(super) build: Stream,
    probe: Stream,
    pub(super) join_type: JoinType,
    /// Build key, probe key.
    pub(super) keys: Vec<(Physical, Physical)>,
    filter: Option<JoinFilterSpec>,
    /// Restores the order of the columns when the sides were swapped.
    projection: Option<Vec<usize>>,
    pub(super) null_equals_null: bool,
    null_aware: bool,
    estimate: Estimate,
}

/// How the sides meet.
enum Shipping {
    /// Both are where they belong.
    Forward,
    /// The build side goes to every subtask of the probe side.
    Broadcast,
    /// Rows with equal keys go to the same subtask.
    Hash,
    /// Everything goes to one subtask.
    Global,
}

impl Lowering<'_> {
    pub(super) fn join(&mut self, join: &Join, left: Stream, right: Stream) -> Result<Stream> {
        let keys = self.join_keys(join, &left.schema, &right.schema)?;
        if join.null_aware && (join.filter.is_some() || keys.len() != 1) {
            return Err(EngineError::Plan(
                "a correlated NOT IN is not supported where NULL may occur; write it with NOT EXISTS".into(),
            ));
        }
        let filter = match &join.filter {
            Some(expr) => Some(self.join_filter(expr, join, &left.schema, &right.schema)?),
            None => None,
        };
        let estimate = left
            .estimate
            .join(&right.estimate, &keys, filter.is_some(), join.join_type);
        let mut oriented = Oriented {
            build: left,
            probe: right,
            join_type: join.join_type,
            keys,
            filter,
            projection: None,
            null_equals_null: join.null_equality == NullEquality::NullEqualsNull,
            null_aware: join.null_aware,
            estimate,
        };
        if self.should_swap(&oriented) {
            oriented.swap();
        }
        let shipping = self.shipping(&oriented);
        self.place(oriented, &shipping)
    }

    pub(super) fn join_keys(
        &self,
        join: &Join,
        left: &SchemaRef,
        right: &SchemaRef,
    ) -> Result<Vec<(Physical, Physical)>> {
        join.on
            .iter()
            .map(|(l, r)| {
                let pair = (self.physical(l, join.left.schema())?, self.physical(r, join.right.schema())?);
                let (l_type, r_type) = (pair.0.data_type(left)?, pair.1.data_type(right)?);
                if l_type != r_type {
                    return Err(EngineError::Internal(format!(
                        "the join keys {l} and {r} have the types {l_type} and {r_type}; the analyzer should have made them equal"
                    )));
                }
                Ok(pair)
            })
            .collect()
    }

    pub(super) fn join_filter(
        &self,
        expr: &Expr,
        join: &Join,
        left: &SchemaRef,
        right: &SchemaRef,
    ) -> Result<JoinFilterSpec> {
        let mut columns: Vec<(JoinSide, usize)> = Vec::new();
        for reference in expr.column_refs() {
            let place = side_of(reference, join.left.schema(), join.right.schema()).ok_or_else(|| {
                EngineError::Internal(format!("the join condition reads an unknown column {reference}"))
            })?;
            if !columns.contains(&place) {
                columns.push(place);
            }
        }
        columns.sort_by_key(|(side, index)| (*side != JoinSide::Left, *index));
        let mut qualified = Vec::with_capacity(columns.len());
        let mut fields: Vec<Field> = Vec::with_capacity(columns.len());
        for (side, index) in &columns {
            let (logical, physical) = match side {
                JoinSide::Left => (join.left.schema(), left),
                _ => (join.right.schema(), right),
            };
            let (qualifier, field) = logical.qualified_field(*index);
            qualified.push((qualifier.cloned(), Arc::clone(field)));
            fields.push(physical.field(*index).clone());
        }
        let logical = DFSchema::new_with_metadata(qualified, Default::default())?;
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        Ok(JoinFilterSpec {
            expr: ScalarExpr::new(self.physical(expr, &logical)?, Arc::clone(&schema)),
            columns,
            schema: SchemaSpec(schema),
        })
    }

    /// Whether the right side makes the better build side.
    fn should_swap(&self, join: &Oriented) -> bool {
        // NOT IN must know whether the whole subquery has a NULL before it lets a row through.
        if join.null_aware {
            return join.join_type == JoinType::LeftAnti;
        }
        let swapped = join.join_type.swap();
        let reversed: Vec<_> = join
            .keys
            .iter()
            .map(|(build, probe)| (Arc::clone(probe), Arc::clone(build)))
            .collect();
        let as_written = self.cheapest(&join.build, &join.probe, join.join_type, &join.keys);
        let other_way = self.cheapest(&join.probe, &join.build, swapped, &reversed);
        match (as_written, other_way) {
            (Some((_, as_written)), Some((_, other_way))) => other_way < as_written,
            _ => match (join.build.estimate.bytes(), join.probe.estimate.bytes()) {
                (None, Some(_)) => true,
                // Written order: people put the large table first.
                (None, None) => !join.probe.is_single() || join.build.is_single() == join.probe.is_single(),
                _ => false,
            },
        }
    }

    /// The cheaper way to bring the sides together, and its cost, when both sizes are known: every row that is shipped
    /// is hashed, taken and gathered; every row that is built is inserted, at each place that builds it.
    fn cheapest(
        &self,
        build: &Stream,
        probe: &Stream,
        join_type: JoinType,
        keys: &[(Physical, Physical)],
    ) -> Option<(Shipping, f64)> {
        let (build_weight, probe_weight) = (weight(&build.estimate)?, weight(&probe.estimate)?);
        let places = self.options.parallelism as f64;
        let broadcast = self
            .can_broadcast(build, join_type, keys.is_empty())
            .then_some((Shipping::Broadcast, build_weight * places * (SHIP_COST + BUILD_COST)));
        let (build_keys, probe_keys): (Vec<_>, Vec<_>) = keys.iter().cloned().unzip();
        let ship =
            |side: &Stream, keys: &[Physical], weight: f64| if self.is_placed(side, keys) { 0.0 } else { weight };
        let shipped = ship(build, &build_keys, build_weight) + ship(probe, &probe_keys, probe_weight);
        let way = if keys.is_empty() {
            Shipping::Global
        } else {
            Shipping::Hash
        };
        let hash = (way, shipped * SHIP_COST + build_weight * BUILD_COST);
        Some(match broadcast {
            Some(broadcast) if broadcast.1 <= hash.1 || keys.is_empty() => broadcast,
            _ => hash,
        })
    }

    /// Whether the build side may go to every subtask: no unmatched or semi build row is emitted, and it is small (or
    /// there are no keys to distribute by).
    fn can_broadcast(&self, build: &Stream, join_type: JoinType, keyless: bool) -> bool {
        let emits_probe_rows_only = matches!(
            join_type,
            JoinType::Inner | JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark
        );
        let is_small = build
            .estimate
            .bytes()
            .is_some_and(|bytes| bytes <= self.options.broadcast_threshold_bytes as f64);
        emits_probe_rows_only && (keyless || is_small)
    }

    fn shipping(&self, join: &Oriented) -> Shipping {
        let (build, probe) = (&join.build, &join.probe);
        let both_single = build.is_single() && probe.is_single();
        if self.options.parallelism == 1 {
            return if both_single {
                Shipping::Forward
            } else {
                Shipping::Global
            };
        }
        if join.null_aware {
            return Shipping::Broadcast;
        }
        let small = build.estimate.bytes().zip(probe.estimate.bytes());
        if both_single && small.is_some_and(|(build, probe)| build + probe <= ONE_SUBTASK_BYTES) {
            return Shipping::Forward;
        }
        if let Some((shipping, _)) = self.cheapest(build, probe, join.join_type, &join.keys) {
            return shipping;
        }
        if self.can_broadcast(build, join.join_type, join.keys.is_empty()) {
            return Shipping::Broadcast;
        }
        if join.keys.is_empty() {
            Shipping::Global
        } else {
            Shipping::Hash
        }
    }

    /// Whether a stream is partitioned exactly as a hash edge on `keys` would.
    fn is_placed(&self, stream: &Stream, keys: &[Physical]) -> bool {
        stream.parallelism == self.options.parallelism && stream.is_hashed_by(keys)
    }

    /// Adds the join's vertex and its edges.
    fn place(&mut self, join: Oriented, shipping: &Shipping) -> Result<Stream> {
        let parallelism = match shipping {
            Shipping::Forward | Shipping::Global => 1,
            Shipping::Broadcast => join.probe.parallelism,
            Shipping::Hash => self.options.parallelism,
        };
        let (operator, schema) = join.operator()?;
        let vertex = self.add_vertex(operator, parallelism, &schema);
        match shipping {
            Shipping::Forward => {
                self.connect_forward(&join.build, vertex, 0);
                self.connect_forward(&join.probe, vertex, 1);
            }
            Shipping::Global => {
                self.connect_all(&join.build, vertex, 0, &Partitioning::Global);
                self.connect_all(&join.probe, vertex, 1, &Partitioning::Global);
            }
            Shipping::Broadcast => {
                self.connect_all(&join.build, vertex, 0, &Partitioning::Broadcast);
                self.connect_forward(&join.probe, vertex, 1);
            }
            Shipping::Hash => {
                let (build_keys, probe_keys): (Vec<_>, Vec<_>) = join.keys.iter().cloned().unzip();
                self.connect_by_keys(&join.build, vertex, 0, &build_keys);
                self.connect_by_keys(&join.probe, vertex, 1, &probe_keys);
            }
        }
        let broadcast = matches!(shipping, Shipping::Broadcast);
        self.add_runtime_filters(vertex, &join, broadcast)?;
        let stream = join.output(vertex, parallelism, schema, shipping);
        self.note_estimate(&stream);
        Ok(stream)
    }

    fn connect_by_keys(&mut self, stream: &Stream, to: usize, input: usize, keys: &[Physical]) {
        if self.is_placed(stream, keys) {
            self.connect_forward(stream, to, input);
        } else {
            let partitioning = Partitioning::Hash(scalar_exprs(keys, &stream.schema));
            self.connect_all(stream, to, input, &partitioning);
        }
    }
}

impl Oriented {
    fn swap(&mut self) {
        let emits_both = matches!(
            self.join_type,
            JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full
        );
        if emits_both {
            let left = self.build.schema.fields().len();
            let right = self.probe.schema.fields().len();
            self.projection = Some((right..right + left).chain(0..right).collect());
        }
        std::mem::swap(&mut self.build, &mut self.probe);
        self.join_type = self.join_type.swap();
        for (build, probe) in &mut self.keys {
            std::mem::swap(build, probe);
        }
        if let Some(filter) = &mut self.filter {
            for (side, _) in &mut filter.columns {
                *side = side.negate();
            }
        }
    }

    /// The operator and the schema of what it emits.
    fn operator(&self) -> Result<(OperatorSpec, SchemaRef)> {
        let full = build_join_schema(&self.build.schema, &self.probe.schema, &self.join_type).0;
        let schema: SchemaRef = Arc::new(match &self.projection {
            Some(indices) => full.project(indices)?,
            None => full,
        });
        let build_schema = SchemaSpec(Arc::clone(&self.build.schema));
        let probe_schema = SchemaSpec(Arc::clone(&self.probe.schema));
        let declared = SchemaSpec(Arc::clone(&schema));
        if self.keys.is_empty() {
            let spec = NestedLoopJoinSpec {
                join_type: self.join_type,
                filter: self.filter.clone(),
                projection: self.projection.clone(),
                build_schema,
                probe_schema,
                schema: declared,
            };
            return Ok((OperatorSpec::NestedLoopJoin(spec), schema));
        }
        let (build_keys, probe_keys): (Vec<_>, Vec<_>) = self.keys.iter().cloned().unzip();
        let spec = HashJoinSpec {
            join_type: self.join_type,
            build_keys: scalar_exprs(&build_keys, &self.build.schema),
            probe_keys: scalar_exprs(&probe_keys, &self.probe.schema),
            null_equals_null: self.null_equals_null,
            null_aware: self.null_aware,
            filter: self.filter.clone(),
            projection: self.projection.clone(),
            runtime_filters: Vec::new(),
            build_schema,
            probe_schema,
            schema: declared,
        };
        Ok((OperatorSpec::HashJoin(spec), schema))
    }

    /// The stream behind the join, with what is known of its partitioning.
    fn output(self, vertex: usize, parallelism: usize, schema: SchemaRef, shipping: &Shipping) -> Stream {
        let (build_keys, probe_keys): (Vec<_>, Vec<_>) = self.keys.iter().cloned().unzip();
        // Rows of a side that an outer join fills with NULLs are where the other side's keys put them.
        let (keeps_build, keeps_probe) = match self.join_type {
            JoinType::Inner => (true, true),
            JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => (true, false),
            JoinType::Right | JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => (false, true),
            JoinType::Full => (false, false),
        };
        let mut by_build = Vec::new();
        let mut by_probe = Vec::new();
        match shipping {
            Shipping::Hash => {
                by_build.extend(keeps_build.then_some(build_keys));
                by_probe.extend(keeps_probe.then_some(probe_keys));
            }
            Shipping::Broadcast if keeps_probe => by_probe.clone_from(&self.probe.hashed),
            _ => {}
        }
        let build_columns = self.build.schema.fields().len();
        let probe_columns = self.probe.schema.fields().len();
        let has_build = !matches!(
            self.join_type,
            JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark
        );
        let probe_offset = if has_build { build_columns } else { 0 };
        let at = |full: usize| match &self.projection {
            Some(indices) => indices.iter().position(|index| *index == full),
            None => Some(full),
        };
        let mut hashed = place_keys(&by_build, build_columns, &schema, at);
        hashed.extend(place_keys(&by_probe, probe_columns, &schema, |i| at(i + probe_offset)));
        Stream {
            tails: vec![vertex],
            schema,
            parallelism,
            hashed,
            ordering: Vec::new(),
            estimate: self.estimate,
            handled_filters: Vec::new(),
        }
    }
}

/// The keys of one side as columns of the join's output; lists with a key that is no plain column are dropped.
fn place_keys(
    lists: &[Vec<Physical>],
    side_columns: usize,
    schema: &SchemaRef,
    at: impl Fn(usize) -> Option<usize>,
) -> Vec<Vec<Physical>> {
    let place = |key: &Physical| {
        let index = crate::properties::column_index(key)?;
        let position = at(index).filter(|position| index < side_columns && *position < schema.fields().len())?;
        Some(column(position, schema))
    };
    lists
        .iter()
        .filter_map(|keys| keys.iter().map(place).collect())
        .collect()
}

/// Which side a column of the join's condition belongs to; an exact match of the qualifier decides.
fn side_of(reference: &Column, left: &DFSchema, right: &DFSchema) -> Option<(JoinSide, usize)> {
    let exact = |schema: &DFSchema| {
        schema
            .iter()
            .position(|(qualifier, field)| qualifier == reference.relation.as_ref() && field.name() == &reference.name)
    };
    let left_of = |index| (JoinSide::Left, index);
    let right_of = |index| (JoinSide::Right, index);
    exact(left)
        .map(left_of)
        .or_else(|| exact(right).map(right_of))
        .or_else(|| left.maybe_index_of_column(reference).map(left_of))
        .or_else(|| right.maybe_index_of_column(reference).map(right_of))
}
