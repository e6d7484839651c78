//! Aggregations that do not fit the budget: the same rows as with all the memory in the world, little more than the
//! budget held at any time, no file left.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use arrow::array::{Array, ArrayRef, AsArray, Float64Array, Int64Array, StringArray, StringViewArray, new_null_array};
use arrow::datatypes::{DataType, Field, Float64Type, Schema, SchemaRef};
use datafusion::functions_aggregate::{
    array_agg, bool_and_or, count, first_last, median, min_max, stddev, string_agg, sum,
};
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::physical_expr::expressions::{BinaryExpr, cast, lit};
use proptest::prelude::*;

use super::reference::{
    Filtered, column, cut, expect_usual, function, lines, numbers, ordered, plain, run, specs, usual,
};
use crate::data::{Batch, EngineError, Result};
use crate::operator::aggregate::Aggregate;
use crate::operator::harness::Harness;
use crate::plan::{AggregateMode, AggregateSpec};

const KB: usize = 1 << 10;
/// What one batch and the least that is held may take beyond the budget.
const SLACK: usize = 192 * KB;

struct Outcome {
    batches: Vec<Batch>,
    spilled_bytes: u64,
}

fn within(budget: usize, spec: &AggregateSpec, batches: &[Batch]) -> Result<Outcome> {
    let mut harness = Harness::with_memory(Aggregate::new(spec.clone()).unwrap(), budget);
    for batch in batches {
        harness.push(0, batch.clone())?;
    }
    harness.end(0)?;
    assert_eq!(harness.memory.reserved_bytes(), 0);
    let peak = harness.memory.peak_bytes();
    assert!(
        peak <= budget + SLACK,
        "{peak} of {budget} bytes by {:?}",
        batches[0].schema()
    );
    if let Some(path) = harness.context.spill.path() {
        assert_eq!(std::fs::read_dir(path).unwrap().count(), 0, "a file is left");
    }
    Ok(Outcome {
        batches: std::mem::take(&mut harness.output.batches),
        spilled_bytes: harness.context.metrics.spilled_bytes.load(Ordering::Relaxed),
    })
}

/// Runs in one step and in two; gives back the rows of each and whether it spilled.
fn both_ways(budget: usize, keys: &[&str], functions: &[Filtered], batches: &[Batch]) -> [(&'static str, Outcome); 2] {
    let specs = specs(keys, functions, &batches[0].schema());
    let single = within(budget, &specs.single, batches).unwrap();
    let partial = within(budget, &specs.partial, batches).unwrap();
    assert_eq!(partial.spilled_bytes, 0, "a partial aggregation lets go instead");
    let last = within(budget, &specs.last, &partial.batches).unwrap();
    [("in one step", single), ("in two steps", last)]
}

fn batch(columns: Vec<(&str, ArrayRef)>) -> Batch {
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, array)| Field::new(*name, array.data_type().clone(), true))
        .collect();
    let arrays = columns.into_iter().map(|(_, array)| array).collect();
    Batch::try_new(Arc::new(Schema::new(fields)), arrays).unwrap()
}

/// Sums in another order differ in their last digits.
fn rounded(batches: &[Batch]) -> Vec<String> {
    let round = |column: &ArrayRef| -> ArrayRef {
        match column.as_primitive_opt::<Float64Type>() {
            Some(floats) => Arc::new(floats.unary::<_, Float64Type>(|value| (value * 1e6).round() / 1e6)) as ArrayRef,
            None => Arc::clone(column),
        }
    };
    let batches: Vec<Batch> = batches
        .iter()
        .map(|batch| Batch::try_new(batch.schema(), batch.columns().iter().map(round).collect()).unwrap())
        .collect();
    lines(&batches)
}

/// `ROWS` keys of every shape.
const ROWS: i64 = 40_000;

fn shapes() -> Vec<(&'static str, bool, ArrayRef)> {
    let of = |key: fn(i64) -> i64| -> ArrayRef { Arc::new(Int64Array::from_iter_values((0..ROWS).map(key))) };
    let text: ArrayRef =
        Arc::new(StringViewArray::from_iter((0..ROWS).map(|n| {
            (n % 13 != 0).then(|| format!("customer number {}", n * 7919 % 20_000))
        })));
    vec![
        ("uniform", true, of(|n| n * 7919 % 10_000)),
        ("all distinct", true, of(|n| n)),
        ("one hot key", true, of(|n| if n % 2 == 0 { 7 } else { n })),
        ("all equal", false, of(|_| 1)),
        ("all NULL", false, new_null_array(&DataType::Int64, ROWS as usize)),
        ("text", true, text),
    ]
}

#[test]
fn every_shape_of_keys_within_every_budget() {
    let values: Vec<Option<i64>> = (0..ROWS).map(|n| (n % 11 != 0).then_some(n % 1000 - 500)).collect();
    for (shape, spills, key) in shapes() {
        let expected = expect_usual(&[Arc::clone(&key)], &values);
        let input = batch(vec![("k", key), ("v", Arc::new(Int64Array::from(values.clone())))]);
        let functions = usual(&input.schema());
        for budget in [64 * KB, 256 * KB, 1024 * KB] {
            for (way, outcome) in both_ways(budget, &["k"], &functions, &cut(&input, 8192)) {
                assert!(lines(&outcome.batches) == expected, "{shape} {way} within {budget}");
                if budget <= 256 * KB {
                    assert_eq!(outcome.spilled_bytes > 0, spills, "{shape} {way} within {budget}");
                }
            }
        }
    }
}

#[test]
fn without_functions_no_group_is_handed_on_twice() {
    for (shape, spills, key) in shapes() {
        let input = batch(vec![("k", key)]);
        let expected = lines(&run(&specs(&["k"], &[], &input.schema()).single, vec![input.clone()]).unwrap());
        for budget in [64 * KB, 200 * KB] {
            for (way, outcome) in both_ways(budget, &["k"], &[], &cut(&input, 4096)) {
                assert!(lines(&outcome.batches) == expected, "{shape} {way} within {budget}");
                if budget == 64 * KB {
                    assert_eq!(outcome.spilled_bytes > 0, spills, "{shape} {way} within {budget}");
                }
            }
        }
    }
}

fn many_functions(schema: &SchemaRef) -> Vec<Filtered> {
    let double = |name| cast(column(name, schema), schema, DataType::Float64).unwrap();
    let positive = || {
        Arc::new(BinaryExpr::new(
            column("v", schema),
            datafusion::logical_expr::Operator::Gt,
            lit(0i64),
        ))
    };
    let of = |udf, arguments, name: &str| {
        AggregateExprBuilder::new(udf, arguments)
            .schema(Arc::clone(schema))
            .alias(name)
    };
    let mut functions = usual(schema);
    functions.extend([
        plain(function(count::count_udaf(), "v", schema).distinct()),
        plain(function(count::count_udaf(), "s", schema).distinct()),
        plain(function(sum::sum_udaf(), "v", schema).distinct()),
        plain(function(min_max::min_udaf(), "s", schema)),
        plain(function(min_max::max_udaf(), "s", schema)),
        plain(function(median::median_udaf(), "v", schema)),
        plain(of(stddev::stddev_udaf(), vec![double("v")], "stddev")),
        plain(of(bool_and_or::bool_and_udaf(), vec![positive()], "bool_and")),
        plain(function(array_agg::array_agg_udaf(), "s", schema)),
        ordered(function(array_agg::array_agg_udaf(), "n", schema), "n", schema),
        ordered(function(first_last::first_value_udaf(), "s", schema), "n", schema),
        ordered(function(first_last::last_value_udaf(), "v", schema), "n", schema),
        ordered(
            of(
                string_agg::string_agg_udaf(),
                vec![column("s", schema), lit("-")],
                "string_agg",
            ),
            "n",
            schema,
        ),
        (
            plain(function(array_agg::array_agg_udaf(), "v", schema)).0,
            Some(positive()),
        ),
    ]);
    functions
}

fn rows_of(count: i64, groups: i64, view: bool) -> Batch {
    let texts = || (0..count).map(|n| (n % 7 != 0).then(|| format!("a text of group {} with some length", n % 17)));
    let text: ArrayRef = if view {
        Arc::new(StringViewArray::from_iter(texts()))
    } else {
        Arc::new(StringArray::from_iter(texts()))
    };
    batch(vec![
        (
            "k",
            Arc::new(Int64Array::from_iter_values((0..count).map(|n| n * 31 % groups))),
        ),
        (
            "l",
            Arc::new(StringArray::from_iter_values(
                (0..count).map(|n| format!("{}", n * 31 % groups % 5)),
            )),
        ),
        (
            "v",
            Arc::new(Int64Array::from_iter(
                (0..count).map(|n| (n % 5 != 0).then_some(n % 100 - 50)),
            )),
        ),
        ("n", Arc::new(Int64Array::from_iter_values(0..count))),
        ("s", text),
    ])
}

#[test]
fn every_function_merges_what_was_spilled() {
    for view in [false, true] {
        let input = rows_of(9000, 3000, view);
        let functions = many_functions(&input.schema());
        for function in &functions {
            let specs = specs(&["k", "l"], std::slice::from_ref(function), &input.schema());
            let expected = rounded(&run(&specs.single, vec![input.clone()]).unwrap());
            let outcome = within(64 * KB, &specs.single, &cut(&input, 500))
                .unwrap_or_else(|e| panic!("{}: {e}", function.0.name()));
            assert!(outcome.spilled_bytes > 0);
            assert_eq!(rounded(&outcome.batches), expected, "{}", function.0.name());
        }
        let specs = specs(&["k", "l"], &functions, &input.schema());
        let batches = cut(&input, 1000);
        let expected = rounded(&run(&specs.single, batches.clone()).unwrap());
        for (way, outcome) in both_ways(256 * KB, &["k", "l"], &functions, &batches) {
            assert!(outcome.spilled_bytes > 0);
            assert_eq!(rounded(&outcome.batches), expected, "{way}");
        }
    }
}

#[test]
fn wide_strings_as_keys_and_states() {
    const MB: usize = 1 << 20;
    for view in [false, true] {
        let text = |n: usize| format!("{:06}{}", n % 20, "x".repeat(MB - n % 20));
        let array = |n: usize| -> ArrayRef {
            if view {
                Arc::new(StringViewArray::from_iter_values([text(n)]))
            } else {
                Arc::new(StringArray::from_iter_values([text(n)]))
            }
        };
        let rows: Vec<Batch> = (0..40)
            .map(|n| {
                let number = Int64Array::from_iter_values([n as i64 % 10]);
                batch(vec![
                    ("k", array(n)),
                    ("v", Arc::new(number.clone())),
                    ("g", Arc::new(number)),
                    ("s", array(n)),
                ])
            })
            .collect();
        let schema = rows[0].schema();
        let functions = [plain(function(min_max::max_udaf(), "s", &schema))];
        let counts = [plain(function(count::count_udaf(), "v", &schema))];
        for (keys, functions, groups) in [(["k"], &counts, 20), (["g"], &functions, 10)] {
            let specs = specs(&keys, functions, &schema);
            let mut harness = Harness::with_memory(Aggregate::new(specs.single.clone()).unwrap(), 8 * MB);
            for row in &rows {
                harness.push(0, row.clone()).unwrap();
            }
            harness.end(0).unwrap();
            assert!(harness.context.metrics.spilled_bytes.load(Ordering::Relaxed) > 0);
            assert!(
                harness.memory.peak_bytes() <= 8 * MB + 4 * MB,
                "{}",
                harness.memory.peak_bytes()
            );
            assert!(harness.output.batches.iter().all(|batch| batch.num_rows() <= 2));
            assert!(
                harness
                    .output
                    .batches
                    .iter()
                    .all(|batch| batch.get_array_memory_size() < 3 * MB)
            );
            assert_eq!(
                harness.output.batches.iter().map(Batch::num_rows).sum::<usize>(),
                groups
            );
            let expected = lines(&run(&specs.single, rows.clone()).unwrap());
            assert!(lines(&harness.output.batches) == expected);
        }
    }
}

#[test]
fn one_group_that_is_too_large_is_an_error_that_names_the_operator() {
    let count = 200_000;
    let input = batch(vec![
        ("k", Arc::new(Int64Array::from(vec![1; count]))),
        ("v", Arc::new(Int64Array::from_iter_values(0..count as i64))),
    ]);
    let functions = [plain(function(array_agg::array_agg_udaf(), "v", &input.schema()))];
    let specs = specs(&["k"], &functions, &input.schema());
    let error = within(256 * KB, &specs.single, &cut(&input, 2000)).err().unwrap();
    assert!(
        matches!(&error, EngineError::Memory(_)) && error.to_string().contains("operator under test"),
        "{error}"
    );
}

#[test]
fn groups_are_spilled_when_another_operator_needs_the_memory() {
    let input = batch(vec![("k", Arc::new(Int64Array::from_iter_values(0..20_000)))]);
    let functions = [plain(function(count::count_udaf(), "k", &input.schema()))];
    for mode in [AggregateMode::Single, AggregateMode::Partial] {
        let specs = specs(&["k"], &functions, &input.schema());
        let spec = if mode == AggregateMode::Single {
            &specs.single
        } else {
            &specs.partial
        };
        let mut harness = Harness::with_memory(Aggregate::new(spec.clone()).unwrap(), 4096 * KB);
        let mut other = harness.context.memory.sibling();
        let batches = cut(&input, 5000);
        harness.push(0, batches[0].clone()).unwrap();
        harness.push(0, batches[1].clone()).unwrap();
        let held = harness.context.memory.bytes();
        harness.context.hold_anyway(3000 * KB);
        assert!(other.try_grow(2000 * KB).is_err());
        assert!(harness.context.memory.must_spill());
        harness.push(0, batches[2].clone()).unwrap();
        assert!(!harness.context.memory.must_spill() && harness.context.memory.bytes() < held);
        other.try_grow(2000 * KB).unwrap();
        harness.push(0, batches[3].clone()).unwrap();
        harness.end(0).unwrap();
        let spilled = harness.context.metrics.spilled_bytes.load(Ordering::Relaxed);
        assert_eq!(spilled > 0, mode == AggregateMode::Single);
        assert_eq!(
            harness.output.batches.iter().map(Batch::num_rows).sum::<usize>(),
            20_000
        );
    }
}

#[test]
fn a_cancelled_job_ends_in_the_middle_of_spilling() {
    let input = batch(vec![("k", Arc::new(Int64Array::from_iter_values(0..20_000)))]);
    let functions = [plain(function(count::count_udaf(), "k", &input.schema()))];
    let specs = specs(&["k"], &functions, &input.schema());
    let mut harness = Harness::with_memory(Aggregate::new(specs.single.clone()).unwrap(), 256 * KB);
    let mut batches = cut(&input, 1000).into_iter();
    while harness.context.metrics.spilled_bytes.load(Ordering::Relaxed) == 0 {
        harness.push(0, batches.next().unwrap()).unwrap();
    }
    harness.context.cancel.cancel();
    let pushed = batches.find_map(|batch| harness.push(0, batch).err());
    assert!(matches!(pushed, Some(EngineError::Cancelled)));
    let path = harness.context.spill.path().unwrap();
    assert!(path.exists());
    drop(harness);
    assert!(!path.exists());
}

#[test]
fn a_full_disk_is_an_error() {
    let input = batch(vec![("k", Arc::new(Int64Array::from_iter_values(0..20_000)))]);
    let functions = [plain(function(count::count_udaf(), "k", &input.schema()))];
    let specs = specs(&["k"], &functions, &input.schema());
    let mut harness = Harness::with_memory(Aggregate::new(specs.single.clone()).unwrap(), 256 * KB);
    let nowhere = std::path::Path::new("/dev/null/nowhere");
    let none = thalweg_memory::SpillCompression::None;
    harness.context.spill = Arc::new(thalweg_memory::SpillDirectory::new(nowhere, none));
    let failed = cut(&input, 5000)
        .into_iter()
        .find_map(|batch| harness.push(0, batch).err());
    assert!(failed.is_some_and(|error| error.to_string().contains("/dev/null/nowhere")));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn any_rows_in_any_pieces_within_any_budget(
        rows in numbers(), repeat in 1usize..60, size in 1usize..3000, budget in 64usize..400, keys in 1usize..4
    ) {
        let rows: Vec<_> = (0..repeat).flat_map(|turn| {
            rows.iter().map(move |row| (row.0.map(|k| i64::from(k) + turn as i64 * 10), row.1, row.2))
        }).collect();
        prop_assume!(!rows.is_empty());
        let values: Vec<Option<i64>> = rows.iter().map(|row| row.2).collect();
        let all: Vec<(&str, ArrayRef)> = vec![
            ("a", Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.0)))),
            ("b", Arc::new(StringArray::from_iter(rows.iter().map(|row| row.1.map(|n| format!("a longer text {n}")))))),
            ("c", Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.0.map(|n| n as f64 / 4.0))))),
        ];
        let columns: Vec<_> = all[..keys].to_vec();
        let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
        let arrays: Vec<ArrayRef> = columns.iter().map(|(_, array)| Arc::clone(array)).collect();
        let expected = expect_usual(&arrays, &values);
        let mut columns = columns;
        columns.push(("v", Arc::new(Int64Array::from(values))));
        let input = batch(columns);
        let functions = usual(&input.schema());
        for (way, outcome) in both_ways(budget * KB, &names, &functions, &cut(&input, size)) {
            prop_assert_eq!(lines(&outcome.batches), expected.clone(), "{}", way);
        }
        let distinct = specs(&names, &[], &input.schema());
        let expected = lines(&run(&distinct.single, cut(&input, size)).unwrap());
        let outcome = within(budget * KB, &distinct.single, &cut(&input, size)).unwrap();
        prop_assert_eq!(lines(&outcome.batches), expected);
    }
}
