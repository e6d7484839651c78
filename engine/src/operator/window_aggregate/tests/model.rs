//! Specs for tests and the naive model: all rows of all windows in a map, windows fire by their definition.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, Int32Array, Int64Array, PrimitiveArray, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{
    DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMicrosecondType, TimestampMillisecondType,
};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::functions_aggregate::{array_agg, average, count, min_max, sum};
use datafusion::logical_expr::{AggregateUDF, Operator as BinaryOperator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion::physical_expr::expressions::{BinaryExpr, Column, cast, lit};
use proptest::prelude::*;

use super::super::intake::SLICE_END_COLUMN;
use crate::data::{Batch, with_row_kind};
use crate::operator::window_aggregate::WindowAggregate;
use crate::plan::{
    AggregateMode, Aggregates, EmitSpec, ScalarExpr, SchemaSpec, WindowAggregateSpec, WindowKind, WindowProperty,
    WindowSource, WindowTime,
};

/// Key, time in milliseconds, value.
#[derive(Clone, Debug)]
pub(super) struct Row {
    pub(super) key: Option<i32>,
    pub(super) time: i64,
    pub(super) value: Option<i64>,
}

pub(super) fn row(key: i32, time: i64, value: i64) -> Row {
    Row {
        key: Some(key),
        time,
        value: Some(value),
    }
}

/// What happens to the operator.
#[derive(Clone, Debug)]
pub(super) enum Step {
    Rows(Vec<Row>),
    Watermark(i64),
}

fn zone() -> DataType {
    DataType::Timestamp(TimeUnit::Millisecond, Some("Europe/Berlin".into()))
}

/// Column 0 the time, 1 the key, 2 the key as text, 3 the value, 4 and 5 a window.
pub(super) fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new(
            "ts",
            DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into())),
            true,
        ),
        Field::new("k", DataType::Int32, true),
        Field::new("s", DataType::Utf8, true),
        Field::new("v", DataType::Int64, true),
        Field::new("w_start", zone(), true),
        Field::new("w_end", zone(), true),
    ]))
}

/// Rows with the window that each is said to be in.
pub(super) fn batch_of(rows: &[(Row, (i64, i64))]) -> Batch {
    let times = rows.iter().map(|(row, _)| row.time * 1000 + 7);
    let times = PrimitiveArray::<TimestampMicrosecondType>::from_iter_values(times).with_timezone("UTC");
    let bounds = |of: fn(&(i64, i64)) -> i64| -> ArrayRef {
        let values = rows.iter().map(|(_, window)| of(window));
        Arc::new(PrimitiveArray::<TimestampMillisecondType>::from_iter_values(values).with_data_type(zone()))
    };
    let text = |row: &Row| row.key.map(|key| format!("key {key} of some length {}", key % 3));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(times),
        Arc::new(Int32Array::from_iter(rows.iter().map(|(row, _)| row.key))),
        Arc::new(StringArray::from_iter(rows.iter().map(|(row, _)| text(row)))),
        Arc::new(Int64Array::from_iter(rows.iter().map(|(row, _)| row.value))),
        bounds(|window| window.0),
        bounds(|window| window.1),
    ];
    Batch::try_new(schema(), columns).unwrap()
}

pub(super) fn batch(rows: &[Row]) -> Batch {
    let rows: Vec<_> = rows.iter().map(|row| (row.clone(), (0, 0))).collect();
    batch_of(&rows)
}

pub(super) type Filtered = (Arc<AggregateFunctionExpr>, Option<Arc<dyn PhysicalExpr>>);

fn column(name: &str) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new(name, schema().index_of(name).unwrap()))
}

fn builder(udf: Arc<AggregateUDF>, argument: Arc<dyn PhysicalExpr>, alias: &str) -> AggregateExprBuilder {
    AggregateExprBuilder::new(udf, vec![argument])
        .schema(schema())
        .alias(alias)
}

fn plain(builder: AggregateExprBuilder) -> Filtered {
    (Arc::new(builder.build().unwrap()), None)
}

/// `count(1), count(v), sum(v), sum(v) FILTER (v > 0)`: all can be subtracted.
pub(super) fn sums() -> Vec<Filtered> {
    let positive = Arc::new(BinaryExpr::new(column("v"), BinaryOperator::Gt, lit(0i64)));
    vec![
        plain(builder(count::count_udaf(), lit(1i64), "rows")),
        plain(builder(count::count_udaf(), column("v"), "values")),
        plain(builder(sum::sum_udaf(), column("v"), "sum")),
        (
            plain(builder(sum::sum_udaf(), column("v"), "positive")).0,
            Some(positive),
        ),
    ]
}

/// Those and `min(v), max(v), avg(v), count(DISTINCT v), array_agg(v)`: the last two have no grouped form here.
pub(super) fn all() -> Vec<Filtered> {
    let double = cast(column("v"), &schema(), DataType::Float64).unwrap();
    let mut functions = sums();
    functions.extend([
        plain(builder(min_max::min_udaf(), column("v"), "min")),
        plain(builder(min_max::max_udaf(), column("v"), "max")),
        plain(builder(average::avg_udaf(), double, "avg")),
        plain(builder(count::count_udaf(), column("v"), "distinct").distinct()),
        plain(builder(array_agg::array_agg_udaf(), column("v"), "list")),
    ]);
    functions
}

/// `sum` and `avg` of decimals: they can be subtracted, and so can their NULLs.
pub(super) fn decimals() -> Vec<Filtered> {
    let decimal = || cast(column("v"), &schema(), DataType::Decimal128(12, 2)).unwrap();
    vec![
        plain(builder(sum::sum_udaf(), decimal(), "sum")),
        plain(builder(average::avg_udaf(), decimal(), "avg")),
        plain(builder(count::count_udaf(), column("v"), "values")),
    ]
}

/// What the first functions of `all` must give.
fn results(values: &[Option<i64>], functions: usize) -> Vec<String> {
    let text = |value: Option<i64>| value.map_or("NULL".to_string(), |value| value.to_string());
    let known: Vec<i64> = values.iter().copied().flatten().collect();
    let sum = known.iter().copied().reduce(|a, b| a + b);
    let positive = known.iter().copied().filter(|value| *value > 0).reduce(|a, b| a + b);
    let average = sum.map_or("NULL".to_string(), |sum| {
        format!("{:?}", sum as f64 / known.len() as f64)
    });
    let distinct: std::collections::BTreeSet<i64> = known.iter().copied().collect();
    let mut list: Vec<String> = values.iter().map(|value| text(*value)).collect();
    list.sort();
    let all = [
        values.len().to_string(),
        known.len().to_string(),
        text(sum),
        text(positive),
        text(known.iter().copied().min()),
        text(known.iter().copied().max()),
        average,
        distinct.len().to_string(),
        format!("[{}]", list.join(", ")),
    ];
    all[..functions].to_vec()
}

/// A spec for every mode.
pub(super) struct Specs {
    pub(super) single: WindowAggregateSpec,
    pub(super) partial: WindowAggregateSpec,
    pub(super) last: WindowAggregateSpec,
}

/// `keys` are names of columns.
pub(super) fn specs(window: WindowSource, keys: &[&str], functions: &[Filtered], emit: Option<EmitSpec>) -> Specs {
    let properties = vec![WindowProperty::Start, WindowProperty::End, WindowProperty::Time];
    let fields = |names: &[&str]| -> Vec<Field> {
        let field = |name: &&str| schema().field_with_name(name).unwrap().clone();
        names.iter().map(field).collect()
    };
    let states = functions
        .iter()
        .flat_map(|(function, _)| function.state_fields().unwrap());
    let slice_end = Field::new(
        SLICE_END_COLUMN,
        DataType::Timestamp(TimeUnit::Millisecond, None),
        false,
    );
    let states = states.map(|field| field.as_ref().clone()).chain([slice_end]);
    let results = functions.iter().map(|(function, _)| function.field().as_ref().clone());
    let bounds = ["window_start", "window_end", "window_time"].map(|name| Field::new(name, zone(), false));
    let of_states = Arc::new(Schema::new(fields(keys).into_iter().chain(states).collect::<Vec<_>>()));
    let of_results = fields(keys).into_iter().chain(results).chain(bounds);
    let mut of_results = Arc::new(Schema::new(of_results.collect::<Vec<_>>()));
    if emit.is_some() {
        of_results = with_row_kind(&of_results);
    }
    let spec = |mode, input: &SchemaRef, output: &SchemaRef, properties: Vec<WindowProperty>| WindowAggregateSpec {
        mode,
        window,
        group_by: keys
            .iter()
            .map(|key| ScalarExpr::column(input.index_of(key).unwrap(), input))
            .collect(),
        aggregates: Aggregates {
            functions: functions.iter().map(|(function, _)| Arc::clone(function)).collect(),
            filters: functions.iter().map(|(_, filter)| filter.clone()).collect(),
            input: schema(),
        },
        properties,
        emit,
        schema: SchemaSpec(Arc::clone(output)),
    };
    Specs {
        single: spec(AggregateMode::Single, &schema(), &of_results, properties.clone()),
        partial: spec(AggregateMode::Partial, &schema(), &of_states, Vec::new()),
        last: spec(AggregateMode::Final, &of_states, &of_results, properties),
    }
}

pub(super) fn assign(window: WindowKind) -> WindowSource {
    WindowSource::Assign {
        window,
        time: WindowTime::Event(0),
    }
}

pub(super) fn operator(spec: &WindowAggregateSpec) -> WindowAggregate {
    WindowAggregate::new(spec.clone()).unwrap()
}

/// Rows as text, in their order; lists are sorted, times are milliseconds.
pub(super) fn lines(batches: &[Batch]) -> Vec<String> {
    let Some(first) = batches.first() else {
        return Vec::new();
    };
    let batch = concat_batches(&first.schema(), batches).unwrap();
    let columns: Vec<Vec<String>> = batch.columns().iter().map(texts).collect();
    let line = |row: usize| columns.iter().map(|column| column[row].clone()).collect::<Vec<_>>();
    (0..batch.num_rows()).map(|row| line(row).join("|")).collect()
}

fn texts(array: &ArrayRef) -> Vec<String> {
    let array = match array.data_type() {
        DataType::Timestamp(..) => arrow::compute::cast(array, &DataType::Int64).unwrap(),
        _ => Arc::clone(array),
    };
    let options = FormatOptions::new().with_null("NULL");
    let formatter = ArrayFormatter::try_new(array.as_ref(), &options).unwrap();
    let text = |row: usize| {
        let text = formatter.value(row).to_string();
        let Some(list) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) else {
            return text;
        };
        let mut items: Vec<&str> = list
            .split(',')
            .map(|item| match item.trim() {
                "" => "NULL",
                item => item,
            })
            .collect();
        items.sort_unstable();
        format!("[{}]", items.join(", "))
    };
    (0..array.len()).map(text).collect()
}

/// The windows that a time is in, by definition.
pub(super) fn windows_of(kind: WindowKind, time: i64) -> Vec<(i64, i64)> {
    let floor = |time: i64, size: i64, offset: i64| (time - offset).div_euclid(size) * size + offset;
    let mut windows = Vec::new();
    match kind {
        WindowKind::Tumble { size_ms, offset_ms } => {
            let start = floor(time, size_ms, offset_ms);
            windows.push((start, start + size_ms));
        }
        WindowKind::Hop {
            size_ms,
            slide_ms,
            offset_ms,
        } => {
            let mut start = floor(time, slide_ms, offset_ms);
            while start > time - size_ms {
                windows.push((start, start + size_ms));
                start -= slide_ms;
            }
        }
        WindowKind::Cumulate {
            max_ms,
            step_ms,
            offset_ms,
        } => {
            let start = floor(time, max_ms, offset_ms);
            let ends = (1..=max_ms / step_ms).map(|step| start + step * step_ms);
            windows.extend(ends.filter(|end| time < *end).map(|end| (start, end)));
        }
        WindowKind::Session { .. } => panic!("a session is not told by one row"),
    }
    windows
}

/// Which keys the model groups by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Keys {
    None,
    One,
    Two,
}

impl Keys {
    pub(super) fn names(self) -> &'static [&'static str] {
        match self {
            Keys::None => &[],
            Keys::One => &["k"],
            Keys::Two => &["k", "s"],
        }
    }

    fn of(self, row: &Row) -> Vec<String> {
        let text = |text: Option<String>| text.unwrap_or("NULL".into());
        let number = text(row.key.map(|key| key.to_string()));
        let long = text(row.key.map(|key| format!("key {key} of some length {}", key % 3)));
        match self {
            Keys::None => vec![],
            Keys::One => vec![number],
            Keys::Two => vec![number, long],
        }
    }
}

/// A window and a key.
type Group = ((i64, i64), Vec<String>);
type Contents = BTreeMap<Group, Vec<Option<i64>>>;

/// The naive model.
pub(super) struct Model {
    kind: WindowKind,
    keys: Keys,
    functions: usize,
    watermark: i64,
    open: Contents,
    pub(super) late: u64,
}

impl Model {
    pub(super) fn new(kind: WindowKind, keys: Keys, functions: usize) -> Self {
        Self {
            kind,
            keys,
            functions,
            watermark: i64::MIN,
            open: BTreeMap::new(),
            late: 0,
        }
    }

    pub(super) fn rows(&mut self, rows: &[Row]) {
        for row in rows {
            if let WindowKind::Session { gap_ms } = self.kind {
                self.join(row, gap_ms);
                continue;
            }
            let mut windows = windows_of(self.kind, row.time);
            windows.retain(|(_, end)| end - 1 > self.watermark);
            self.late += u64::from(windows.is_empty());
            for window in windows {
                let group = (window, self.keys.of(row));
                self.open.entry(group).or_default().push(row.value);
            }
        }
    }

    fn join(&mut self, row: &Row, gap: i64) {
        let key = self.keys.of(row);
        let near =
            |((start, end), of): &((i64, i64), Vec<String>)| *of == key && row.time < *end && row.time + gap > *start;
        let joined: Vec<_> = self.open.keys().filter(|group| near(group)).cloned().collect();
        let (mut start, mut end, mut values) = (row.time, row.time + gap, Vec::new());
        if joined.is_empty() && end - 1 <= self.watermark {
            self.late += 1;
            return;
        }
        for group in joined {
            start = start.min(group.0.0);
            end = end.max(group.0.1);
            values.extend(self.open.remove(&group).unwrap());
        }
        values.push(row.value);
        assert!(self.open.insert(((start, end), key), values).is_none());
    }

    /// What leaves, sorted.
    pub(super) fn watermark(&mut self, watermark: i64) -> Vec<String> {
        self.watermark = self.watermark.max(watermark);
        let (done, open): (Contents, Contents) = std::mem::take(&mut self.open)
            .into_iter()
            .partition(|((window, _), _)| window.1 - 1 <= self.watermark);
        self.open = open;
        let mut lines: Vec<String> = done.into_iter().map(|group| self.line(group)).collect();
        lines.sort();
        lines
    }

    fn line(&self, ((window, key), values): (Group, Vec<Option<i64>>)) -> String {
        let bounds = [window.0, window.1, window.1 - 1].map(|bound| bound.to_string());
        let line: Vec<String> = key
            .into_iter()
            .chain(results(&values, self.functions))
            .chain(bounds)
            .collect();
        line.join("|")
    }
}

/// Batches and watermarks: rows are up to `behind` ms older than the watermark, or later by `ahead`.
pub(super) fn steps(behind: i64, ahead: i64) -> impl Strategy<Value = Vec<Step>> {
    let row = (
        prop::option::weighted(0.9, -4i32..5),
        -behind..ahead,
        prop::option::weighted(0.85, -20i64..21),
    );
    let batch = prop::collection::vec(row, 1..40);
    let step = (prop::collection::vec(batch, 0..4), 0..ahead * 3 / 4);
    (prop::collection::vec(step, 1..12), -500i64..500).prop_map(|(steps, start)| {
        let mut watermark = start;
        let mut all = Vec::new();
        for (batches, advance) in steps {
            for rows in batches {
                let row = |(key, time, value)| Row {
                    key,
                    time: watermark + time,
                    value,
                };
                all.push(Step::Rows(rows.into_iter().map(row).collect()));
            }
            watermark += advance;
            all.push(Step::Watermark(watermark));
        }
        all.push(Step::Watermark(i64::MAX));
        all
    })
}

pub(super) fn keys() -> impl Strategy<Value = Keys> {
    prop_oneof![Just(Keys::None), Just(Keys::One), Just(Keys::Two)]
}

/// Windows of every kind but sessions.
pub(super) fn kinds() -> impl Strategy<Value = WindowKind> {
    let slices = prop_oneof![Just(1i64), Just(2), Just(3), Just(5), Just(16), Just(33)];
    (0..4, 1i64..25, slices, -60i64..60).prop_map(|(kind, slide_ms, slices, offset_ms)| match kind {
        0 => WindowKind::Tumble {
            size_ms: slide_ms * 3,
            offset_ms,
        },
        1 => WindowKind::Cumulate {
            max_ms: slide_ms * slices,
            step_ms: slide_ms,
            offset_ms,
        },
        _ => WindowKind::Hop {
            size_ms: slide_ms * slices,
            slide_ms,
            offset_ms,
        },
    })
}
