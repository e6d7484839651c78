//! Joins of two streams: in windows, by nearness in time, and the co-grouping of which every join is a case.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, new_null_array};
use arrow::compute::{filter_record_batch, not};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::common::JoinType;
use datafusion::logical_expr::Expr;
use thalweg_engine::operator::windows::WindowContext;
use thalweg_engine::plan::{
    IntervalJoinSpec, JoinInputSpec, OperatorSpec, Partitioning, ScalarExpr, SchemaSpec, WindowAssignSpec,
    WindowJoinSpec, WindowKind, WindowTime,
};

use super::graph::Node;
use super::planning::{Planned, column_index, named};
use super::window::{WindowAssigner, WindowedStream};
use super::{DataStream, KeyedStream};
use crate::error::{Error, Result};

/// The columns of both sides; those of the right that are called as one of the left get `right_` before their name.
/// A side that may be missing has NULLs.
fn joined_schema(left: &SchemaRef, right: &SchemaRef, join_type: JoinType) -> Result<SchemaRef> {
    let (left_missing, right_missing) = match join_type {
        JoinType::Inner => (false, false),
        JoinType::Left => (false, true),
        JoinType::Right => (true, false),
        JoinType::Full => (true, true),
        JoinType::LeftSemi | JoinType::LeftAnti => return Ok(Arc::clone(left)),
        other => return Err(Error::unsupported(format!("streams are not joined by {other}"))),
    };
    let nullable = |field: &Field, missing: bool| field.clone().with_nullable(field.is_nullable() || missing);
    let mut fields: Vec<Field> = left
        .fields()
        .iter()
        .map(|field| nullable(field, left_missing))
        .collect();
    for field in right.fields() {
        let mut name = field.name().clone();
        while fields.iter().any(|other| *other.name() == name) {
            name = format!("right_{name}");
        }
        fields.push(nullable(field, right_missing).with_name(name));
    }
    Ok(Arc::new(Schema::new(fields)))
}

fn hashed(keys: &[ScalarExpr], stream: &DataStream) -> DataStream {
    stream.partitioned(Partitioning::Hash(keys.to_vec()))
}

fn join_input(keys: Vec<ScalarExpr>, schema: SchemaRef) -> JoinInputSpec {
    JoinInputSpec {
        keys,
        schema: SchemaSpec(schema),
        unique_key: None,
        ttl_ms: None,
    }
}

/// Two keyed streams on the way to an interval join.
pub struct IntervalJoined {
    left: KeyedStream,
    right: KeyedStream,
    bounds: Option<(i64, i64)>,
}

impl IntervalJoined {
    pub(super) fn new(left: KeyedStream, right: KeyedStream) -> Self {
        let bounds = None;
        Self { left, right, bounds }
    }

    /// A pair matches when the right row's time is from `lower_ms` to `upper_ms`, both included, after the left row's.
    ///
    /// # Errors
    /// When the upper bound is below the lower.
    pub fn between(mut self, lower_ms: i64, upper_ms: i64) -> Result<Self> {
        if upper_ms < lower_ms {
            return Err(Error::statement(format!(
                "an interval from {lower_ms} ms to {upper_ms} ms is empty"
            )));
        }
        self.bounds = Some((lower_ms, upper_ms));
        Ok(self)
    }

    /// The pairs; of an outer join also the rows without a match, when none can come any more.
    ///
    /// # Errors
    /// When there are no bounds, a stream has no event time, or the type of the join is none of streams.
    pub fn join(&self, join_type: JoinType) -> Result<DataStream> {
        let (lower_ms, upper_ms) = self
            .bounds
            .ok_or_else(|| Error::statement("an interval join needs its bounds").with_remedy("say between(..)"))?;
        let (left, right) = (&self.left.stream, &self.right.stream);
        let time = |stream: &DataStream| {
            let time = stream.time.map(WindowTime::Event);
            time.ok_or_else(|| Error::statement("an interval join needs the event time of both streams"))
        };
        let schema = joined_schema(&left.schema, &right.schema, join_type)?;
        let operator = OperatorSpec::IntervalJoin(IntervalJoinSpec {
            join_type,
            left: join_input(self.left.key_exprs(), left.schema()),
            right: join_input(self.right.key_exprs(), right.schema()),
            left_time: time(left)?,
            right_time: time(right)?,
            lower_ms,
            upper_ms,
            filter: None,
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        let node = Node::new(operator, "IntervalJoin", schema)
            .with_input(0, &left.upstream)
            .with_input(1, &right.upstream);
        Ok(left.builder.add(node, None))
    }
}

impl DataStream {
    /// This stream and another, to be joined in windows.
    ///
    /// # Errors
    /// When the streams are of different programs.
    pub fn join(&self, other: &DataStream) -> Result<JoinBuilder> {
        self.check_same_program(other)?;
        Ok(JoinBuilder {
            left: self.clone(),
            right: other.clone(),
            left_keys: Vec::new(),
            right_keys: Vec::new(),
        })
    }

    /// This stream and another, whose rows of equal keys and windows go to one function.
    ///
    /// # Errors
    /// When the streams are of different programs.
    pub fn co_group(&self, other: &DataStream) -> Result<CoGroupBuilder> {
        Ok(CoGroupBuilder(self.join(other)?))
    }
}

/// Two streams and the keys by which their rows meet.
pub struct JoinBuilder {
    left: DataStream,
    right: DataStream,
    left_keys: Vec<Expr>,
    right_keys: Vec<Expr>,
}

/// As [`JoinBuilder`], for [`DataStream::co_group`].
pub struct CoGroupBuilder(JoinBuilder);

fn columns(names: &[&str]) -> Vec<Expr> {
    names.iter().map(|name| named(name)).collect()
}

impl JoinBuilder {
    /// The keys of the first stream.
    pub fn where_keys(mut self, names: &[&str]) -> Self {
        self.left_keys = columns(names);
        self
    }

    /// The keys of the second stream, as many and of the same types.
    pub fn equal_to(mut self, names: &[&str]) -> Self {
        self.right_keys = columns(names);
        self
    }

    /// The windows in which rows meet: tumbling, sliding or cumulating ones in event time.
    ///
    /// # Errors
    /// When a key is unknown or the two sides' differ in type, or the windows are of another kind.
    pub fn window(self, assigner: WindowAssigner) -> Result<JoinedWindows> {
        self.keyed()?;
        let kind = assigner.kind_of_time()?;
        Ok(JoinedWindows { join: self, kind })
    }

    /// Both streams by their keys.
    fn keyed(&self) -> Result<(KeyedStream, KeyedStream)> {
        let left = self.left.key_by_exprs(self.left_keys.clone())?;
        let right = self.right.key_by_exprs(self.right_keys.clone())?;
        left.check_keys(&right)?;
        Ok((left, right))
    }
}

/// Two streams in windows, on the way to their join.
pub struct JoinedWindows {
    join: JoinBuilder,
    kind: WindowKind,
}

impl JoinedWindows {
    /// The pairs of each window when it is complete, of an outer join also the rows without a match: the columns of both
    /// sides, each followed by its `window_start`, `window_end` and `window_time`.
    ///
    /// # Errors
    /// When a stream has no event time, or the type of the join is none of streams.
    pub fn join(&self, join_type: JoinType) -> Result<DataStream> {
        let (left, left_keys, left_end) = self.side(&self.join.left, &self.join.left_keys)?;
        let (right, right_keys, right_end) = self.side(&self.join.right, &self.join.right_keys)?;
        let schema = joined_schema(&left.schema, &right.schema, join_type)?;
        let operator = OperatorSpec::WindowJoin(WindowJoinSpec {
            join_type,
            left: join_input(left_keys, left.schema()),
            right: join_input(right_keys, right.schema()),
            left_end,
            right_end,
            filter: None,
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        let node = Node::new(operator, "WindowJoin", Arc::clone(&schema))
            .with_input(0, &left.upstream)
            .with_input(1, &right.upstream);
        // The event time of the result is the window's, on the side that is never missing.
        let time = match join_type {
            JoinType::Right => Some(left.schema.fields().len() + right_end + 1),
            JoinType::Full => None,
            _ => Some(left_end + 1),
        };
        Ok(left.builder.add(node, time))
    }

    /// A side with its windows, hashed by its keys; the keys with the window's start; the column of the window's end.
    fn side(&self, stream: &DataStream, keys: &[Expr]) -> Result<(DataStream, Vec<ScalarExpr>, usize)> {
        let time = stream
            .time
            .ok_or_else(|| Error::statement("a window join needs the event time of both streams"))?;
        let DataType::Timestamp(_, zone) = stream.schema.field(time).data_type() else {
            return Err(Error::statement("an event time is not a timestamp"));
        };
        let bound = DataType::Timestamp(TimeUnit::Millisecond, zone.clone());
        let mut fields: Vec<Field> = stream
            .schema
            .fields()
            .iter()
            .map(|field| field.as_ref().clone())
            .collect();
        let start = fields.len();
        fields.extend(["window_start", "window_end", "window_time"].map(|name| Field::new(name, bound.clone(), false)));
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let operator = OperatorSpec::WindowAssign(WindowAssignSpec {
            window: self.kind,
            time: WindowTime::Event(time),
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        let assigned = stream.then(operator, "WindowAssign", Arc::clone(&schema));
        let session = &stream.builder.session;
        let planned = keys.iter().map(|key| session.plan_expr(key.clone(), &schema));
        let mut keys: Vec<ScalarExpr> = planned.map(|key| key.map(|key| key.expr)).collect::<Result<_>>()?;
        let hashed = hashed(&keys, &assigned);
        keys.push(ScalarExpr::column(start, &schema));
        Ok((hashed, keys, start + 1))
    }
}

const SIDE: &str = "$side";
const TIME: &str = "$time";

impl CoGroupBuilder {
    /// The keys of the first stream.
    pub fn where_keys(self, names: &[&str]) -> Self {
        Self(self.0.where_keys(names))
    }

    /// The keys of the second stream, as many and of the same types.
    pub fn equal_to(self, names: &[&str]) -> Self {
        Self(self.0.equal_to(names))
    }

    /// Windows of any kind; `function` is called per key and window with the rows of both sides, of which one may have
    /// none, in the order in which they came. What it gives has `schema`. `windows` may set trigger, evictor and the
    /// rest.
    ///
    /// # Errors
    /// When a key is unknown or the two sides' differ in type, or so do their event times.
    pub fn window_apply(
        self,
        assigner: WindowAssigner,
        windows: impl FnOnce(WindowedStream) -> WindowedStream,
        schema: SchemaRef,
        function: impl Fn(&WindowContext<'_>, &RecordBatch, &RecordBatch) -> thalweg_engine::Result<RecordBatch>
        + Send
        + Sync
        + 'static,
    ) -> Result<DataStream> {
        let (left, right) = self.0.keyed()?;
        let (first, second) = (&left.stream, &right.stream);
        let time_type = |stream: &DataStream| stream.time.map(|time| stream.schema.field(time).data_type().clone());
        let time = time_type(first);
        if time != time_type(second) {
            return Err(Error::statement("the event times of the two streams differ in type"));
        }
        let mut fields = vec![Field::new(SIDE, DataType::Boolean, false)];
        fields.push(Field::new(TIME, time.clone().unwrap_or(DataType::Null), true));
        let names: Vec<String> = (0..left.keys.len()).map(|key| format!("$key{key}")).collect();
        for (name, key) in names.iter().zip(&left.keys) {
            fields.push(Field::new(name, key.field.data_type().clone(), true));
        }
        let widths = [first.schema.fields().len(), second.schema.fields().len()];
        let both = first.schema.fields().iter().chain(second.schema.fields());
        fields.extend(
            both.zip(0..)
                .map(|(field, number)| Field::new(format!("${number}"), field.data_type().clone(), true)),
        );
        let merged: SchemaRef = Arc::new(Schema::new(fields));
        let first_rows = tagged(&self.0.left, &left.keys, true, &merged, widths);
        let second_rows = tagged(&self.0.right, &right.keys, false, &merged, widths);
        let mut union = first_rows.union(&[&second_rows])?;
        union.time = time.map(|_| 1);
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        for name in &names {
            column_index(name, &merged)?;
        }
        let keyed = union.key_by(&names)?;
        let begin = 2 + names.len();
        let (first_schema, second_schema) = (first.schema(), second.schema());
        let windowed = windows(keyed.window(assigner));
        windowed.apply(schema, move |context, rows| {
            let side = rows.column(0).as_boolean();
            let pick = |mask: &BooleanArray, from: usize, schema: &SchemaRef| {
                let columns: Vec<usize> = (from..from + schema.fields().len()).collect();
                let rows = filter_record_batch(&rows.project(&columns)?, mask)?;
                RecordBatch::try_new(Arc::clone(schema), rows.columns().to_vec())
            };
            let left = pick(side, begin, &first_schema)?;
            let right = pick(&not(side)?, begin + widths[0], &second_schema)?;
            function(context, &left, &right)
        })
    }
}

/// The rows of one side in the columns of both.
fn tagged(stream: &DataStream, keys: &[Planned], is_first: bool, merged: &SchemaRef, widths: [usize; 2]) -> DataStream {
    let keys: Vec<ScalarExpr> = keys.iter().map(|key| key.expr.clone()).collect();
    let (schema, time) = (Arc::clone(merged), stream.time);
    let own = if is_first { 0 } else { widths[0] };
    stream.map(Arc::clone(merged), move |batch| {
        let rows = batch.num_rows();
        let mut columns: Vec<ArrayRef> = Vec::with_capacity(schema.fields().len());
        columns.push(Arc::new(BooleanArray::from(vec![is_first; rows])));
        columns.push(match time {
            Some(time) => Arc::clone(batch.column(time)),
            None => new_null_array(&DataType::Null, rows),
        });
        for key in &keys {
            columns.push(key.expr.evaluate(batch)?.into_array(rows)?);
        }
        let begin = columns.len();
        for column in 0..widths[0] + widths[1] {
            columns.push(match batch.columns().get(column.wrapping_sub(own)) {
                Some(values) => Arc::clone(values),
                None => new_null_array(schema.field(begin + column).data_type(), rows),
            });
        }
        debug_assert!(columns.iter().all(|column| column.len() == rows));
        Ok(RecordBatch::try_new(Arc::clone(&schema), columns)?)
    })
}
