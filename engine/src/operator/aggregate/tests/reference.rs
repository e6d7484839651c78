//! Specs for tests, ways to run them, and the naive reference they are compared with.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::functions_aggregate::{average, count, min_max, sum};
use datafusion::logical_expr::{AggregateUDF, Operator};
use datafusion::physical_expr::aggregate::{AggregateExprBuilder, AggregateFunctionExpr};
use datafusion::physical_expr::expressions::{BinaryExpr, Column, lit};
use datafusion::physical_expr::{PhysicalExpr, PhysicalSortExpr};
use proptest::prelude::*;

use crate::data::{Batch, Result};
use crate::operator::aggregate::Aggregate;
use crate::operator::harness::Harness;
use crate::plan::{AggregateMode, AggregateSpec, Aggregates, ScalarExpr, SchemaSpec};

/// A function with its FILTER.
pub(super) type Filtered = (Arc<AggregateFunctionExpr>, Option<Arc<dyn PhysicalExpr>>);

pub(super) fn column(name: &str, schema: &SchemaRef) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new(name, schema.index_of(name).unwrap()))
}

/// A function of one column.
pub(super) fn function(udf: Arc<AggregateUDF>, argument: &str, schema: &SchemaRef) -> AggregateExprBuilder {
    let name = format!("{}({argument})", udf.name());
    AggregateExprBuilder::new(udf, vec![column(argument, schema)])
        .schema(Arc::clone(schema))
        .alias(name)
}

pub(super) fn plain(builder: AggregateExprBuilder) -> Filtered {
    (Arc::new(builder.build().unwrap()), None)
}

pub(super) fn ordered(builder: AggregateExprBuilder, by: &str, schema: &SchemaRef) -> Filtered {
    plain(builder.order_by(vec![PhysicalSortExpr::new_default(column(by, schema))]))
}

/// The specs of the three modes.
pub(super) struct Specs {
    pub(super) partial: AggregateSpec,
    pub(super) last: AggregateSpec,
    pub(super) single: AggregateSpec,
}

pub(super) fn specs(keys: &[&str], functions: &[Filtered], input: &SchemaRef) -> Specs {
    let of_keys: Vec<Field> = keys
        .iter()
        .map(|key| input.field_with_name(key).unwrap().clone())
        .collect();
    let states = functions
        .iter()
        .flat_map(|(function, _)| function.state_fields().unwrap());
    let states = states.map(|field| field.as_ref().clone());
    let results = functions.iter().map(|(function, _)| function.field().as_ref().clone());
    let partial = Arc::new(Schema::new(of_keys.iter().cloned().chain(states).collect::<Vec<_>>()));
    let result = Arc::new(Schema::new(of_keys.iter().cloned().chain(results).collect::<Vec<_>>()));
    let spec = |mode, input_of_mode: &SchemaRef, schema: &SchemaRef| AggregateSpec {
        mode,
        group_by: keys
            .iter()
            .map(|key| ScalarExpr::new(column(key, input_of_mode), Arc::clone(input_of_mode)))
            .collect(),
        aggregates: Aggregates {
            functions: functions.iter().map(|(function, _)| Arc::clone(function)).collect(),
            filters: functions.iter().map(|(_, filter)| filter.clone()).collect(),
            input: Arc::clone(input),
        },
        schema: SchemaSpec(Arc::clone(schema)),
    };
    Specs {
        partial: spec(AggregateMode::Partial, input, &partial),
        last: spec(AggregateMode::Final, &partial, &result),
        single: spec(AggregateMode::Single, input, &result),
    }
}

/// Runs one operator over batches.
pub(super) fn run(spec: &AggregateSpec, batches: Vec<Batch>) -> Result<Vec<Batch>> {
    Harness::new(Aggregate::new(spec.clone())?).run(vec![batches])
}

/// Spreads the batches over so many partial aggregations, and ends in one final aggregation.
pub(super) fn run_in_two(specs: &Specs, batches: &[Batch], subtasks: usize) -> Result<Vec<Batch>> {
    let mut states = Vec::new();
    for subtask in 0..subtasks {
        let own = batches.iter().skip(subtask).step_by(subtasks).cloned().collect();
        states.extend(run(&specs.partial, own)?);
    }
    run(&specs.last, states)
}

/// Cuts a batch into batches of so many rows.
pub(super) fn cut(batch: &Batch, rows: usize) -> Vec<Batch> {
    (0..batch.num_rows())
        .step_by(rows)
        .map(|at| batch.slice(at, rows.min(batch.num_rows() - at)))
        .collect()
}

/// Each row as text, sorted: what two results have to have in common.
pub(super) fn lines(batches: &[Batch]) -> Vec<String> {
    let Some(first) = batches.first() else {
        return Vec::new();
    };
    let batch = concat_batches(&first.schema(), batches).unwrap();
    let texts: Vec<Vec<String>> = batch.columns().iter().map(texts).collect();
    let mut lines: Vec<String> = (0..batch.num_rows())
        .map(|row| {
            texts
                .iter()
                .map(|column| column[row].clone())
                .collect::<Vec<_>>()
                .join("|")
        })
        .collect();
    lines.sort();
    lines
}

/// The values as text; -0.0 is 0.0.
pub(super) fn texts(array: &ArrayRef) -> Vec<String> {
    let options = FormatOptions::new().with_null("NULL");
    let formatter = ArrayFormatter::try_new(array.as_ref(), &options).unwrap();
    (0..array.len())
        .map(|row| formatter.value(row).to_string())
        .map(|text| match text.as_str() {
            "-0" => "0".into(),
            _ => without_negative_zeros(&text),
        })
        .collect()
}

/// -0.0 as 0.0, also within lists, but not -0.07 as 0.07.
fn without_negative_zeros(text: &str) -> String {
    let mut parts = text.split("-0.0");
    let mut result = parts.next().unwrap_or_default().to_string();
    for part in parts {
        let sign = if part.starts_with(|next: char| next.is_ascii_digit()) {
            "-"
        } else {
            ""
        };
        result.extend([sign, "0.0", part]);
    }
    result
}

/// `sum(v), count(v), min(v), max(v), avg(v), count(1)` and `sum(v) FILTER (v > 0)`.
pub(super) fn usual(schema: &SchemaRef) -> Vec<Filtered> {
    let positive = Arc::new(BinaryExpr::new(column("v", schema), Operator::Gt, lit(0i64)));
    let every = AggregateExprBuilder::new(count::count_udaf(), vec![lit(1i64)]).schema(Arc::clone(schema));
    // avg is planned over a cast to double.
    let double = datafusion::physical_expr::expressions::cast(column("v", schema), schema, DataType::Float64).unwrap();
    let average = AggregateExprBuilder::new(average::avg_udaf(), vec![double]).schema(Arc::clone(schema));
    vec![
        plain(function(sum::sum_udaf(), "v", schema)),
        plain(function(count::count_udaf(), "v", schema)),
        plain(function(min_max::min_udaf(), "v", schema)),
        plain(function(min_max::max_udaf(), "v", schema)),
        plain(average.alias("avg(v)")),
        plain(every.alias("count(1)")),
        (
            plain(function(sum::sum_udaf(), "v", schema).alias("sum(v) FILTER (v > 0)")).0,
            Some(positive),
        ),
    ]
}

/// What `usual` must give, by hand.
pub(super) fn expect_usual(keys: &[ArrayRef], values: &[Option<i64>]) -> Vec<String> {
    let columns: Vec<Vec<String>> = keys.iter().map(texts).collect();
    let mut groups: BTreeMap<Vec<String>, Vec<Option<i64>>> = BTreeMap::new();
    if keys.is_empty() {
        groups.insert(Vec::new(), Vec::new());
    }
    for (row, value) in values.iter().enumerate() {
        let key = columns.iter().map(|column| column[row].clone()).collect();
        groups.entry(key).or_default().push(*value);
    }
    let text = |value: Option<i64>| value.map_or("NULL".to_string(), |value| value.to_string());
    let line = |(key, values): (Vec<String>, Vec<Option<i64>>)| {
        let known: Vec<i64> = values.iter().copied().flatten().collect();
        let sum = (!known.is_empty()).then(|| known.iter().sum::<i64>());
        let positive = known.iter().copied().filter(|value| *value > 0).reduce(|a, b| a + b);
        let average = sum.map_or("NULL".to_string(), |sum| {
            format!("{:?}", sum as f64 / known.len() as f64)
        });
        let results = [
            text(sum),
            known.len().to_string(),
            text(known.iter().copied().min()),
            text(known.iter().copied().max()),
            average,
            values.len().to_string(),
            text(positive),
        ];
        key.into_iter().chain(results).collect::<Vec<_>>().join("|")
    };
    let mut lines: Vec<String> = groups.into_iter().map(line).collect();
    lines.sort();
    lines
}

/// Some small numbers, with NULLs.
pub(super) fn numbers() -> impl Strategy<Value = Vec<(Option<i32>, Option<i32>, Option<i64>)>> {
    let number = || prop::option::weighted(0.9, -6i32..7);
    prop::collection::vec(
        (number(), number(), prop::option::weighted(0.9, -1000i64..1000)),
        0..300,
    )
}
