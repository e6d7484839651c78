//! Joins: with the version at a time, within a window, within an interval of time, or of everything so far.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::{JoinType, NullEquality};
use datafusion::logical_expr::{Expr, Join};
use datafusion::physical_plan::joins::utils::build_join_schema;
use thalweg_engine::Result;
use thalweg_engine::data::{with_row_kind, without_row_kind};
use thalweg_engine::plan::{
    IntervalJoinSpec, JoinFilterSpec, JoinInputSpec, OperatorSpec, Partitioning, SchemaSpec, StreamJoinSpec,
    TemporalJoinSpec, TemporalTime, WindowJoinSpec, WindowTime,
};

use super::flow::{Flow, WindowColumns};
use super::interval::interval_of;
use super::refused;
use super::scan::column_of;
use crate::logical::split_temporal;
use crate::lower::Lowering;
use crate::properties::{Physical, Stream, column, column_index, scalar_exprs};

/// A join whose sides are lowered.
struct Sides {
    join_type: JoinType,
    left: Flow,
    right: Flow,
    keys: Vec<(Physical, Physical)>,
    filter: Option<JoinFilterSpec>,
    /// Left columns, then right ones, or those of the left alone.
    output: SchemaRef,
}

impl Lowering<'_> {
    pub(super) async fn stream_join(&mut self, join: &Join) -> Result<Flow> {
        if let Some(swapped) = left_handed(join.join_type) {
            return self.swapped_join(join, swapped).await;
        }
        if !matches!(
            join.join_type,
            JoinType::Inner | JoinType::Left | JoinType::Full | JoinType::LeftSemi | JoinType::LeftAnti
        ) {
            return Err(refused(
                &format!("a {} join (EXISTS or IN below OR)", join.join_type),
                "write it as a UNION of queries, or as a LEFT JOIN",
            ));
        }
        let left = self.flow(&join.left).await?;
        let right = if join.filter.as_ref().and_then(split_temporal).is_some() {
            self.flow_apart(&join.right).await?
        } else {
            self.flow(&join.right).await?
        };
        if let Some((time, rest)) = join.filter.as_ref().and_then(split_temporal) {
            return match join.join_type {
                JoinType::Inner | JoinType::Left => self.temporal_join(join, left, right, &time, rest.as_ref()),
                JoinType::LeftSemi => self.temporal_semi_join(join, left, right, &time, rest.as_ref()),
                other => Err(refused(
                    &format!("a temporal {other} join"),
                    "write an inner or a left join",
                )),
            };
        }
        let filter = match &join.filter {
            Some(expr) => {
                let (l, r) = (
                    without_row_kind(&left.stream.schema),
                    without_row_kind(&right.stream.schema),
                );
                Some(self.join_filter(expr, join, &l, &r)?)
            }
            None => None,
        };
        let sides = self.sides(join, left, right, filter)?;
        let insertions = !sides.left.is_changelog() && !sides.right.is_changelog();
        if insertions && let Some((left, right)) = same_window(&sides) {
            return self.window_join(sides, left, right);
        }
        if insertions && let Some(interval) = interval_of(join, &sides.left, &sides.right) {
            return self.interval_join(sides, interval);
        }
        self.regular_join(join, sides)
    }

    /// A right join as a left join of the sides the other way round.
    async fn swapped_join(&mut self, join: &Join, join_type: JoinType) -> Result<Flow> {
        let mut swapped = join.clone();
        std::mem::swap(&mut swapped.left, &mut swapped.right);
        swapped.on = join.on.iter().map(|(l, r)| (r.clone(), l.clone())).collect();
        swapped.join_type = join_type;
        swapped.schema = Arc::new(datafusion::logical_expr::builder::build_join_schema(
            swapped.left.schema(),
            swapped.right.schema(),
            &join_type,
        )?);
        let flow = Box::pin(self.stream_join(&swapped)).await?;
        if !matches!(join.join_type, JoinType::Right) {
            return Ok(flow);
        }
        let (left, right) = (join.left.schema().fields().len(), join.right.schema().fields().len());
        let outputs = (right..right + left)
            .chain(0..right)
            .map(|index| column(index, &flow.stream.schema))
            .collect();
        self.compute_columns(&[], outputs, join.schema.as_arrow(), flow)
    }

    fn sides(&self, join: &Join, left: Flow, right: Flow, filter: Option<JoinFilterSpec>) -> Result<Sides> {
        let (l, r) = (
            without_row_kind(&left.stream.schema),
            without_row_kind(&right.stream.schema),
        );
        let keys = self.join_keys(join, &l, &r)?;
        let (output, _) = build_join_schema(&l, &r, &join.join_type);
        Ok(Sides {
            join_type: join.join_type,
            left,
            right,
            keys,
            filter,
            output: Arc::new(output),
        })
    }

    fn input(&self, flow: &Flow, keys: &[Physical]) -> JoinInputSpec {
        JoinInputSpec {
            keys: scalar_exprs(keys, &flow.stream.schema),
            schema: SchemaSpec(Arc::clone(&flow.stream.schema)),
            unique_key: flow.keys.first().cloned(),
            ttl_ms: self.options.streaming.state_ttl_ms,
        }
    }

    fn regular_join(&mut self, join: &Join, sides: Sides) -> Result<Flow> {
        let changing = sides.left.is_changelog()
            || sides.right.is_changelog()
            || matches!(sides.join_type, JoinType::Left | JoinType::Full | JoinType::LeftAnti);
        let output = if changing {
            with_row_kind(&sides.output)
        } else {
            Arc::clone(&sides.output)
        };
        let (left_keys, right_keys): (Vec<_>, Vec<_>) = sides.keys.iter().cloned().unzip();
        let operator = OperatorSpec::StreamJoin(StreamJoinSpec {
            join_type: sides.join_type,
            left: self.input(&sides.left, &left_keys),
            right: self.input(&sides.right, &right_keys),
            null_equals_null: join.null_equality == NullEquality::NullEqualsNull,
            null_aware: join.null_aware,
            filter: sides.filter.clone(),
            schema: SchemaSpec(Arc::clone(&output)),
        });
        let keys = joined_keys(&sides);
        // NOT IN must see every row of the right side.
        let in_parts = !join.null_aware;
        let mut flow = self.meet(&sides, operator, output, in_parts);
        flow.keys = keys;
        Ok(flow)
    }

    fn window_join(&mut self, mut sides: Sides, left: WindowColumns, right: WindowColumns) -> Result<Flow> {
        let rest: Vec<(Physical, Physical)> = sides
            .keys
            .iter()
            .filter(|(l, _)| column_index(l) != Some(left.end))
            .cloned()
            .collect();
        let (left_keys, right_keys): (Vec<_>, Vec<_>) = rest.iter().cloned().unzip();
        let output = Arc::clone(&sides.output);
        let operator = OperatorSpec::WindowJoin(WindowJoinSpec {
            join_type: sides.join_type,
            left: self.input(&sides.left, &left_keys),
            right: self.input(&sides.right, &right_keys),
            left_end: left.end,
            right_end: right.end,
            filter: sides.filter.clone(),
            schema: SchemaSpec(Arc::clone(&output)),
        });
        let keys = joined_keys(&sides);
        if self.options.streaming.checkpointed {
            // The operator's state belongs to the key groups of the keys that it knows, which are all but the window's end.
            sides.keys = rest;
        }
        let mut flow = self.meet(&sides, operator, output, true);
        flow.keys = keys;
        if matches!(
            sides.join_type,
            JoinType::Inner | JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti
        ) {
            flow.window = Some(left);
            flow.rowtimes.clone_from(&sides.left.rowtimes);
        }
        Ok(flow)
    }

    fn interval_join(&mut self, sides: Sides, interval: super::interval::Interval) -> Result<Flow> {
        let (left_keys, right_keys): (Vec<_>, Vec<_>) = sides.keys.iter().cloned().unzip();
        let output = Arc::clone(&sides.output);
        let time = |column| {
            if interval.processing {
                WindowTime::Processing
            } else {
                WindowTime::Event(column)
            }
        };
        let operator = OperatorSpec::IntervalJoin(IntervalJoinSpec {
            join_type: sides.join_type,
            left: self.input(&sides.left, &left_keys),
            right: self.input(&sides.right, &right_keys),
            left_time: time(interval.left),
            right_time: time(interval.right),
            lower_ms: interval.lower_ms,
            upper_ms: interval.upper_ms,
            filter: sides.filter.clone(),
            schema: SchemaSpec(Arc::clone(&output)),
        });
        let mut flow = self.meet(&sides, operator, output, true);
        // The operator holds the watermark back by as much as pairs come late; padded sides have no time.
        let (left, right) = (&sides.left.rowtimes, &sides.right.rowtimes);
        let width = sides.left.width();
        flow.rowtimes = match sides.join_type {
            JoinType::Inner => left
                .iter()
                .copied()
                .chain(right.iter().map(|time| width + time))
                .collect(),
            JoinType::Full => Vec::new(),
            _ => left.clone(),
        };
        Ok(flow)
    }

    fn temporal_join(
        &mut self,
        join: &Join,
        left: Flow,
        right: Flow,
        time: &Expr,
        rest: Option<&Expr>,
    ) -> Result<Flow> {
        if left.is_changelog() {
            return Err(refused(
                "a temporal join of a stream of updates",
                "its left side must be insertions only",
            ));
        }
        let (l, r) = (
            without_row_kind(&left.stream.schema),
            without_row_kind(&right.stream.schema),
        );
        let filter = rest.map(|expr| self.join_filter(expr, join, &l, &r)).transpose()?;
        let Some(left_time) = column_of(time, &join.left) else {
            return Err(refused(
                "FOR SYSTEM_TIME AS OF an expression",
                "name the left side's time column itself",
            ));
        };
        let time = if left.proctimes.contains(&left_time) {
            TemporalTime::Processing { bounded: right.bounded }
        } else if let (true, Some(version)) = (left.rowtimes.contains(&left_time), right.rowtimes.first()) {
            TemporalTime::Event {
                left: left_time,
                right: *version,
            }
        } else {
            return Err(refused(
                "this temporal join",
                "in event time both tables need a WATERMARK; otherwise name a PROCTIME() column of the left side",
            ));
        };
        let sides = self.sides(join, left, right, filter)?;
        if sides.keys.is_empty() {
            return Err(refused(
                "a temporal join without an equality",
                "compare the primary key of the versioned table",
            ));
        }
        let (left_keys, right_keys): (Vec<_>, Vec<_>) = sides.keys.iter().cloned().unzip();
        let output = Arc::clone(&sides.output);
        let operator = OperatorSpec::TemporalJoin(TemporalJoinSpec {
            join_type: sides.join_type,
            left: self.input(&sides.left, &left_keys),
            right: self.input(&sides.right, &right_keys),
            time,
            filter: sides.filter.clone(),
            schema: SchemaSpec(Arc::clone(&output)),
        });
        let mut flow = if let TemporalTime::Processing { bounded: true } = time {
            self.look_up(&sides, operator, output)
        } else {
            self.meet(&sides, operator, output, true)
        };
        flow.rowtimes.clone_from(&sides.left.rowtimes);
        flow.proctimes.clone_from(&sides.left.proctimes);
        Ok(flow)
    }

    /// What the optimizer makes of an inner join when nobody looks at the right side, of which one version at most matches.
    fn temporal_semi_join(
        &mut self,
        join: &Join,
        left: Flow,
        right: Flow,
        time: &Expr,
        rest: Option<&Expr>,
    ) -> Result<Flow> {
        let mut inner = join.clone();
        inner.join_type = JoinType::Inner;
        inner.schema = Arc::new(datafusion::logical_expr::builder::build_join_schema(
            join.left.schema(),
            join.right.schema(),
            &JoinType::Inner,
        )?);
        let width = left.width();
        let flow = self.temporal_join(&inner, left, right, time, rest)?;
        let outputs = (0..width).map(|index| column(index, &flow.stream.schema)).collect();
        self.compute_columns(&[], outputs, join.schema.as_arrow(), flow)
    }

    /// The right side to every subtask of the left, which stays where it is: what is looked up in is small.
    fn look_up(&mut self, sides: &Sides, operator: OperatorSpec, output: SchemaRef) -> Flow {
        let parallelism = sides.left.stream.parallelism;
        let vertex = self.add_vertex(operator, parallelism, &output);
        self.connect_forward(&sides.left.stream, vertex, 0);
        self.connect_all(&sides.right.stream, vertex, 1, &Partitioning::Broadcast);
        let stream = Stream {
            tails: vec![vertex],
            schema: output,
            parallelism,
            hashed: Vec::new(),
            ordering: Vec::new(),
            estimate: sides.left.stream.estimate.clone(),
            handled_filters: Vec::new(),
        };
        Flow::new(stream, sides.left.bounded && sides.right.bounded)
    }

    /// Both sides to a vertex that starts with `operator`: by their keys, or all to one subtask.
    fn meet(&mut self, sides: &Sides, operator: OperatorSpec, output: SchemaRef, in_parts: bool) -> Flow {
        let by_keys = in_parts && !sides.keys.is_empty();
        let parallelism = if by_keys { self.options.parallelism } else { 1 };
        let vertex = self.add_vertex(operator, parallelism, &output);
        let (left_keys, right_keys): (Vec<_>, Vec<_>) = sides.keys.iter().cloned().unzip();
        for (input, flow, keys) in [(0, &sides.left, &left_keys), (1, &sides.right, &right_keys)] {
            let partitioning = if by_keys {
                Partitioning::Hash(scalar_exprs(keys, &flow.stream.schema))
            } else {
                Partitioning::Global
            };
            self.connect_all(&flow.stream, vertex, input, &partitioning);
        }
        let stream = Stream {
            tails: vec![vertex],
            schema: output,
            parallelism,
            hashed: if by_keys { together(sides) } else { Vec::new() },
            ordering: Vec::new(),
            estimate: sides.left.stream.estimate.clone(),
            handled_filters: Vec::new(),
        };
        Flow::new(stream, sides.left.bounded && sides.right.bounded)
    }
}

/// A join type that is another one with its sides the other way round.
fn left_handed(join_type: JoinType) -> Option<JoinType> {
    match join_type {
        JoinType::Right => Some(JoinType::Left),
        JoinType::RightSemi => Some(JoinType::LeftSemi),
        JoinType::RightAnti => Some(JoinType::LeftAnti),
        _ => None,
    }
}

/// The windows of both sides, when the join compares their ends.
fn same_window(sides: &Sides) -> Option<(WindowColumns, WindowColumns)> {
    let (left, right) = (sides.left.window?, sides.right.window?);
    sides
        .keys
        .iter()
        .any(|(l, r)| column_index(l) == Some(left.end) && column_index(r) == Some(right.end))
        .then_some((left, right))
}

/// What tells one row of an inner join from the others: a key of each side together.
fn joined_keys(sides: &Sides) -> Vec<Vec<usize>> {
    match sides.join_type {
        JoinType::LeftSemi | JoinType::LeftAnti => sides.left.keys.clone(),
        JoinType::Inner => match (sides.left.keys.first(), sides.right.keys.first()) {
            (Some(left), Some(right)) => {
                let width = sides.left.width();
                vec![
                    left.iter()
                        .copied()
                        .chain(right.iter().map(|column| width + column))
                        .collect(),
                ]
            }
            _ => Vec::new(),
        },
        _ => Vec::new(),
    }
}

/// The columns by which the output of a join is partitioned as its inputs were.
fn together(sides: &Sides) -> Vec<Vec<Physical>> {
    let width = sides.left.width();
    let side = |right: bool| -> Option<Vec<Physical>> {
        let keys = sides.keys.iter().map(|(l, r)| if right { r } else { l });
        keys.map(|key| {
            let index = column_index(key)? + if right { width } else { 0 };
            Some(column(index, &sides.output))
        })
        .collect()
    };
    match sides.join_type {
        JoinType::Inner => [side(false), side(true)].into_iter().flatten().collect(),
        JoinType::Left | JoinType::LeftSemi | JoinType::LeftAnti => side(false).into_iter().collect(),
        _ => Vec::new(),
    }
}
