mod cases;

use std::sync::Arc;
use std::time::Duration;

use arrow::array::{
    Array, ArrayRef, AsArray, Decimal128Array, Float64Array, Int32Array, Int64Array, StringArray,
    TimestampMicrosecondArray, TimestampMillisecondArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Float64Type, Int32Type, Int64Type, Schema, TimeUnit, UInt64Type};
use datafusion::functions_aggregate::{average, count, first_last, min_max, sum};
use datafusion::logical_expr::{AggregateUDF, Operator as BinaryOperator};
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::physical_expr::expressions::{BinaryExpr, Column, lit};
use proptest::prelude::*;

use super::*;
use crate::operator::harness::Harness;
use crate::operator::keyed::folded::lines;
use crate::operator::rescaling::{self, PARALLELISMS, Placed, Step};
use crate::plan::{ScalarExpr, SchemaSpec};

/// A row of the model.
#[derive(Clone, Debug)]
struct Row {
    key: Option<i32>,
    time: i64,
    v: Option<i64>,
    f: Option<f64>,
    s: Option<String>,
}

fn row(key: i32, time: i64, v: i64) -> Row {
    let (key, v) = (Some(key), Some(v));
    Row {
        key,
        time,
        v,
        f: v.map(|v| v as f64),
        s: v.map(|v| v.to_string()),
    }
}

fn schema() -> SchemaRef {
    let time = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int32, true),
        Field::new("ts", time, true),
        Field::new("v", DataType::Int64, true),
        Field::new("f", DataType::Float64, true),
        Field::new("s", DataType::Utf8, true),
    ]))
}

fn batch(rows: &[Row]) -> Batch {
    let times = TimestampMillisecondArray::from_iter_values(rows.iter().map(|row| row.time));
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from_iter(rows.iter().map(|row| row.key))),
        Arc::new(times.with_timezone("UTC")),
        Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.v))),
        Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.f))),
        Arc::new(StringArray::from_iter(rows.iter().map(|row| row.s.as_deref()))),
    ];
    Batch::try_new(schema(), columns).unwrap()
}

fn column(name: &str, schema: &SchemaRef) -> Arc<dyn PhysicalExpr> {
    Arc::new(Column::new(name, schema.index_of(name).unwrap()))
}

/// A function, of a column, of distinct values, of the rows whose `v` is positive.
struct Function(Arc<AggregateUDF>, &'static str, bool, bool);

fn plain(udf: Arc<AggregateUDF>, argument: &'static str) -> Function {
    Function(udf, argument, false, false)
}

fn spec(functions: &[(Function, OverFrame)], time: WindowTime, row_numbers: usize) -> OverSpec {
    spec_over(&schema(), functions, time, row_numbers)
}

fn spec_over(input: &SchemaRef, functions: &[(Function, OverFrame)], time: WindowTime, row_numbers: usize) -> OverSpec {
    let built = functions.iter().map(|(Function(udf, argument, distinct, _), _)| {
        AggregateExprBuilder::new(Arc::clone(udf), vec![column(argument, input)])
            .schema(Arc::clone(input))
            .alias(udf.name())
            .with_distinct(*distinct)
            .build()
            .map(Arc::new)
            .unwrap()
    });
    let aggregates = Aggregates {
        functions: built.collect(),
        filters: functions
            .iter()
            .map(|(Function(.., filtered), _)| {
                filtered.then(|| -> Arc<dyn PhysicalExpr> {
                    Arc::new(BinaryExpr::new(column("v", input), BinaryOperator::Gt, lit(0_i64)))
                })
            })
            .collect(),
        input: Arc::clone(input),
    };
    let results = aggregates
        .functions
        .iter()
        .map(|function| function.field().as_ref().clone());
    let numbers = (0..row_numbers).map(|number| Field::new(format!("rn{number}"), DataType::UInt64, false));
    let fields = input.fields().iter().map(|field| field.as_ref().clone());
    let fields: Vec<Field> = fields.chain(results).chain(numbers).collect();
    OverSpec {
        partition_by: vec![ScalarExpr::column(0, input)],
        time,
        frames: functions.iter().map(|(_, frame)| *frame).collect(),
        aggregates,
        row_numbers,
        ttl_ms: None,
        schema: SchemaSpec(Arc::new(Schema::new(fields))),
    }
}

fn text(array: &ArrayRef, row: usize) -> String {
    if array.is_null(row) {
        return "NULL".into();
    }
    match array.data_type() {
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).to_string(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::UInt64 => array.as_primitive::<UInt64Type>().value(row).to_string(),
        DataType::Float64 => format!("{:?}", array.as_primitive::<Float64Type>().value(row)),
        DataType::Utf8 => array.as_string::<i32>().value(row).to_string(),
        other => panic!("{other}"),
    }
}

/// Row by row the columns after those of the input.
fn appended(harness: &mut Harness<Over>) -> Vec<String> {
    let schema = Arc::clone(&harness.operator.schema);
    let first = harness.operator.input_columns;
    let batch = harness.take(&schema);
    let rows = (0..batch.num_rows()).map(|row| {
        let cells: Vec<String> = batch.columns()[first..]
            .iter()
            .map(|column| text(column, row))
            .collect();
        cells.join("|")
    });
    rows.collect()
}

/// What a function gives for the rows of a frame, oldest first.
type Naive = fn(&[&Row]) -> String;

fn shown<T: std::fmt::Debug>(value: Option<T>) -> String {
    value.map_or("NULL".into(), |value| format!("{value:?}"))
}

fn ints(rows: &[&Row]) -> Vec<i64> {
    rows.iter().filter_map(|row| row.v).collect()
}

fn floats(rows: &[&Row]) -> Vec<f64> {
    rows.iter().filter_map(|row| row.f).collect()
}

fn sum_of(values: &[f64]) -> Option<f64> {
    values.iter().copied().reduce(|one, other| one + other)
}

/// All functions with their definitions.
fn functions() -> Vec<(Function, Naive)> {
    vec![
        (plain(count::count_udaf(), "v"), |rows| ints(rows).len().to_string()),
        (plain(sum::sum_udaf(), "v"), |rows| {
            shown((!ints(rows).is_empty()).then(|| ints(rows).iter().sum::<i64>()))
        }),
        (Function(sum::sum_udaf(), "v", false, true), |rows| {
            let positive: Vec<i64> = ints(rows).into_iter().filter(|v| *v > 0).collect();
            shown((!positive.is_empty()).then(|| positive.iter().sum::<i64>()))
        }),
        (plain(min_max::min_udaf(), "v"), |rows| {
            shown(ints(rows).into_iter().min())
        }),
        (plain(min_max::max_udaf(), "v"), |rows| {
            shown(ints(rows).into_iter().max())
        }),
        (plain(sum::sum_udaf(), "f"), |rows| shown(sum_of(&floats(rows)))),
        (plain(average::avg_udaf(), "f"), |rows| {
            shown(sum_of(&floats(rows)).map(|sum| sum / floats(rows).len() as f64))
        }),
        (plain(min_max::min_udaf(), "f"), |rows| {
            shown(floats(rows).into_iter().min_by(f64::total_cmp))
        }),
        (plain(min_max::max_udaf(), "f"), |rows| {
            shown(floats(rows).into_iter().max_by(f64::total_cmp))
        }),
        // Through DataFusion's accumulators.
        (plain(min_max::max_udaf(), "s"), |rows| {
            rows.iter()
                .filter_map(|row| row.s.clone())
                .max()
                .unwrap_or("NULL".into())
        }),
        (Function(count::count_udaf(), "v", true, false), |rows| {
            let distinct: std::collections::BTreeSet<i64> = ints(rows).into_iter().collect();
            distinct.len().to_string()
        }),
        (plain(first_last::first_value_udaf(), "v"), |rows| shown(rows[0].v)),
        (Function(first_last::first_value_udaf(), "v", false, true), |rows| {
            shown(ints(rows).into_iter().find(|v| *v > 0))
        }),
        (Function(min_max::min_udaf(), "s", false, true), |rows| {
            let positive = rows.iter().filter(|row| row.v.is_some_and(|v| v > 0));
            positive.filter_map(|row| row.s.clone()).min().unwrap_or("NULL".into())
        }),
    ]
}

/// The definition: for each row the rows of its partition that its frame takes in.
fn naive(rows: &[Row], frame: OverFrame, of: &[Naive]) -> Vec<String> {
    let each = (0..rows.len()).map(|at| {
        let own: Vec<(usize, &Row)> = rows
            .iter()
            .enumerate()
            .filter(|(_, row)| row.key == rows[at].key)
            .collect();
        let before = own.iter().filter(|(place, _)| *place <= at).count();
        let time = rows[at].time;
        let taken: Vec<&Row> = match frame {
            OverFrame::RowsUnbounded => own[..before].iter().map(|(_, row)| *row).collect(),
            OverFrame::Rows(n) => own[before.saturating_sub(n as usize + 1)..before]
                .iter()
                .map(|(_, row)| *row)
                .collect(),
            OverFrame::RangeUnbounded => own.iter().map(|(_, row)| *row).filter(|row| row.time <= time).collect(),
            OverFrame::Range(ms) => own
                .iter()
                .map(|(_, row)| *row)
                .filter(|row| row.time <= time && row.time >= time - ms)
                .collect(),
        };
        of.iter().map(|of| of(&taken)).collect::<Vec<_>>().join("|")
    });
    each.collect()
}

/// Batches, each with the watermark that follows it.
#[derive(Clone, Debug)]
struct Input(Vec<(Vec<Row>, Option<i64>)>);

impl Input {
    /// The rows that are not late, in the order of time and then of arrival, and how many are.
    fn in_time(&self) -> (Vec<Row>, usize) {
        let (mut rows, mut late, mut reached) = (Vec::new(), 0, i64::MIN);
        for (batch, watermark) in &self.0 {
            for row in batch {
                match row.time <= reached {
                    true => late += 1,
                    false => rows.push(row.clone()),
                }
            }
            reached = reached.max(watermark.unwrap_or(i64::MIN));
        }
        rows.sort_by_key(|row| row.time);
        (rows, late)
    }
}

fn any_row() -> impl Strategy<Value = Row> {
    let float =
        prop_oneof![4 => (-8_i32..8).prop_map(|n| f64::from(n) / 4.0), 1 => Just(f64::NAN), 1 => Just(f64::INFINITY)];
    (
        proptest::option::weighted(0.8, 0..3),
        0_i64..12,
        proptest::option::weighted(0.8, -5_i64..5),
        proptest::option::weighted(0.8, float),
        proptest::option::weighted(0.8, "[a-c]{0,2}"),
    )
        .prop_map(|(key, time, v, f, s)| Row { key, time, v, f, s })
}

fn any_input() -> impl Strategy<Value = Input> {
    let batch = (
        proptest::collection::vec(any_row(), 1..12),
        proptest::option::of(0_i64..20),
    );
    proptest::collection::vec(batch, 1..8).prop_map(|batches| {
        let (mut shift, mut reached) = (0, i64::MIN);
        let batches = batches.into_iter().map(|(mut rows, watermark)| {
            rows.iter_mut().for_each(|row| row.time += shift);
            let watermark = watermark
                .map(|watermark| shift + watermark - 8)
                .filter(|watermark| *watermark > reached);
            reached = reached.max(watermark.unwrap_or(reached));
            shift += 5;
            (rows, watermark)
        });
        Input(batches.collect())
    })
}

fn any_frame() -> impl Strategy<Value = OverFrame> {
    prop_oneof![
        Just(OverFrame::RowsUnbounded),
        Just(OverFrame::RangeUnbounded),
        (0_u64..6).prop_map(OverFrame::Rows),
        (0_i64..15).prop_map(OverFrame::Range),
    ]
}

/// Feeds all, ends, and checks that nothing is held.
fn run(harness: &mut Harness<Over>, input: &Input) {
    for (rows, watermark) in &input.0 {
        harness.push(0, batch(rows)).unwrap();
        if let Some(watermark) = watermark {
            harness.watermark(*watermark).unwrap();
        }
    }
    harness.watermark(i64::MAX).unwrap();
    assert_nothing_held(harness);
    harness.end(0).unwrap();
}

fn assert_nothing_held(harness: &Harness<Over>) {
    let over = &harness.operator;
    assert_eq!((over.partitions.len(), over.numbers.len()), (0, 0));
    for queue in over.frames.iter().filter_map(|frame| frame.queue.as_ref()) {
        assert_eq!((queue.rows(), queue.next().len()), (0, 0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn event_time_agrees_with_the_definition(
        input in any_input(), frame in any_frame(), other in any_frame(), batch_size in 1_usize..20,
    ) {
        let of: Vec<Naive> = functions().into_iter().map(|(_, naive)| naive).collect();
        let with = |frame: OverFrame| functions().into_iter().map(move |(function, _)| (function, frame));
        let all: Vec<_> = with(frame).chain(with(other)).collect();
        let mut harness = Harness::new(Over::new(spec(&all, WindowTime::Event(1), 1)).unwrap());
        harness.context.batch_size = batch_size;
        run(&mut harness, &input);
        let late = harness.context.metrics.late_rows.load(Ordering::Relaxed);
        let (rows, expected_late) = input.in_time();
        prop_assert_eq!(late as usize, expected_late);
        let numbers = naive(&rows, OverFrame::RowsUnbounded, &[|rows| rows.len().to_string()]);
        let expected: Vec<String> = naive(&rows, frame, &of).into_iter().zip(naive(&rows, other, &of)).zip(numbers)
            .map(|((one, other), number)| format!("{one}|{other}|{number}")).collect();
        prop_assert_eq!(appended(&mut harness), expected);
    }

    #[test]
    fn goes_on_after_a_cut_at_any_parallelism(
        input in any_input(),
        cuts in proptest::collection::vec(proptest::option::of((0..PARALLELISMS.len(), 0_u64..30)), 8),
        frame in any_frame(),
        other in any_frame(),
        by_clock: bool,
        in_parts: bool,
        ttl in proptest::option::of(1_u64..60),
        batch_size in 1_usize..20,
    ) {
        let with = |frame: OverFrame| functions().into_iter().map(move |(function, _)| (function, frame));
        let all: Vec<_> = with(frame).chain(with(other)).collect();
        let time = if by_clock { WindowTime::Processing } else { WindowTime::Event(1) };
        let mut spec = spec(&all, time, 1);
        spec.ttl_ms = ttl;
        let mut keys: &[usize] = &[0];
        if !in_parts {
            (spec.partition_by, keys) = (Vec::new(), &[]);
        }
        let mut steps = Vec::new();
        for ((rows, watermark), cut) in input.0.iter().zip(cuts) {
            steps.push(Step::Rows(0, batch(rows)));
            steps.extend(watermark.map(Step::Watermark));
            if let Some((parallelism, wait)) = cut {
                steps.extend([Step::Wait(wait), Step::Cut(PARALLELISMS[parallelism])]);
            }
        }
        let placed = Placed { keys: &[Some(keys)], batch_size, ends_again: true };
        let make = || Over::new(spec.clone()).unwrap();
        let disturbed = rescaling::run(make, &placed, 1, &steps);
        let in_order = !in_parts || steps.iter().all(|step| !matches!(step, Step::Cut(2..)));
        steps.retain(|step| !matches!(step, Step::Cut(_)));
        let undisturbed = rescaling::run(make, &placed, 1, &steps);
        // The text of a float is the float.
        let [mut disturbed, mut undisturbed] = [disturbed, undisturbed].map(|batches| lines(&concat_batches(&spec.schema.0, &batches).unwrap()));
        if !in_order {
            disturbed.sort();
            undisturbed.sort();
        }
        prop_assert_eq!(disturbed, undisturbed);
    }

    #[test]
    fn processing_time_takes_rows_as_they_come(batches in proptest::collection::vec((proptest::collection::vec(any_row(), 1..9), 0_u64..6), 1..8), frame in any_frame()) {
        let of: Vec<Naive> = functions().into_iter().map(|(_, naive)| naive).collect();
        let all: Vec<_> = functions().into_iter().map(|(function, _)| (function, frame)).collect();
        let mut harness = Harness::new(Over::new(spec(&all, WindowTime::Processing, 1)).unwrap());
        let (mut rows, mut ends) = (Vec::new(), Vec::new());
        for (rows_of_batch, wait) in &batches {
            harness.advance(Duration::from_millis(*wait)).unwrap();
            harness.push(0, batch(rows_of_batch)).unwrap();
            let now = harness.context.clock.now_ms();
            rows.extend(rows_of_batch.iter().map(|row| Row { time: now, ..row.clone() }));
            ends.push(rows.len());
        }
        // A batch sees the rows up to its end. An unbounded range goes row by row.
        let frame = if frame == OverFrame::RangeUnbounded { OverFrame::RowsUnbounded } else { frame };
        let mut expected = Vec::new();
        for end in ends {
            let seen = naive(&rows[..end], frame, &of);
            expected.extend_from_slice(&seen[expected.len()..]);
        }
        let numbers = naive(&rows, OverFrame::RowsUnbounded, &[|rows| rows.len().to_string()]);
        let expected: Vec<String> = expected.into_iter().zip(numbers).map(|(one, number)| format!("{one}|{number}")).collect();
        harness.end(0).unwrap();
        assert_nothing_held(&harness);
        prop_assert_eq!(appended(&mut harness), expected);
    }
}
