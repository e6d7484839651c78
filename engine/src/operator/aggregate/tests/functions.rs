//! Functions without a grouped form, ordered and distinct ones, and aggregations without rows, keys or functions.

use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::functions_aggregate::{array_agg, count, first_last, median, nth_value, string_agg, sum};
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use datafusion::physical_expr::expressions::lit;

use super::reference::{Filtered, column, cut, function, lines, ordered, plain, run, run_in_two, specs, usual};
use crate::data::Batch;

fn input() -> Batch {
    let schema = Schema::new(vec![
        Field::new("k", DataType::Int32, true),
        Field::new("v", DataType::Int64, true),
        Field::new("s", DataType::Utf8, true),
    ]);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(vec![
            Some(1),
            Some(2),
            Some(1),
            None,
            Some(2),
            Some(1),
            None,
        ])),
        Arc::new(Int64Array::from(vec![
            Some(5),
            Some(7),
            Some(3),
            Some(1),
            Some(7),
            None,
            Some(9),
        ])),
        Arc::new(StringArray::from(vec![
            Some("e"),
            Some("g"),
            Some("c"),
            Some("a"),
            Some("G"),
            None,
            Some("i"),
        ])),
    ];
    Batch::try_new(Arc::new(schema), columns).unwrap()
}

fn both(keys: &[&str], functions: &[Filtered], expected: &[&str]) {
    let batch = input();
    let specs = specs(keys, functions, &batch.schema());
    for rows in [1, 3, 7] {
        let batches = cut(&batch, rows);
        assert_eq!(
            lines(&run(&specs.single, batches.clone()).unwrap()),
            expected,
            "in one step"
        );
        assert_eq!(
            lines(&run_in_two(&specs, &batches, 1).unwrap()),
            expected,
            "in two steps"
        );
    }
}

fn joined(schema: &SchemaRef) -> Filtered {
    let arguments = vec![column("s", schema), lit("-")];
    let builder = AggregateExprBuilder::new(string_agg::string_agg_udaf(), arguments);
    ordered(builder.schema(Arc::clone(schema)).alias("string_agg"), "v", schema)
}

#[test]
fn distinct_and_median() {
    let schema = input().schema();
    let functions = [
        plain(function(count::count_udaf(), "v", &schema).distinct()),
        plain(function(count::count_udaf(), "s", &schema).distinct()),
        plain(function(sum::sum_udaf(), "v", &schema).distinct()),
        plain(function(median::median_udaf(), "v", &schema)),
    ];
    both(&["k"], &functions, &["1|2|2|8|4", "2|1|2|7|7", "NULL|2|2|10|5"]);
    both(&[], &functions, &["5|6|25|6"]);
}

#[test]
fn ordered_functions() {
    let schema = input().schema();
    let nth = AggregateExprBuilder::new(nth_value::nth_value_udaf(), vec![column("s", &schema), lit(2i64)]);
    let functions = [
        ordered(function(array_agg::array_agg_udaf(), "v", &schema), "v", &schema),
        ordered(function(first_last::first_value_udaf(), "s", &schema), "s", &schema),
        ordered(function(first_last::last_value_udaf(), "s", &schema), "s", &schema),
        ordered(nth.schema(Arc::clone(&schema)).alias("nth"), "v", &schema),
        joined(&schema),
    ];
    // Ascending order has NULLs first here. Nothing of these depends on the order of rows, but for `g` and `G`, which
    // the order by `v` leaves tied.
    let batch = input();
    let sorted =
        arrow::compute::take_record_batch(&batch, &arrow::array::UInt32Array::from(vec![5, 3, 2, 0, 1, 4, 6])).unwrap();
    let specs = specs(&["k"], &functions, &schema);
    let expected = ["1|[, 3, 5]|NULL|e|c|c-e", "2|[7, 7]|G|g|G|g-G", "NULL|[1, 9]|a|i|i|a-i"]
        .map(|line| line.replace("[,", "[NULL,"));
    for rows in [1, 3, 7] {
        assert_eq!(
            lines(&run(&specs.single, cut(&sorted, rows)).unwrap()),
            expected,
            "in one step"
        );
        assert_eq!(
            lines(&run_in_two(&specs, &cut(&sorted, rows), 1).unwrap()),
            expected,
            "in two steps"
        );
    }
}

#[test]
fn without_rows_there_is_one_row_without_keys_and_none_with() {
    let schema = input().schema();
    let functions = usual(&schema);
    let expected = ["NULL|0|NULL|NULL|NULL|0|NULL"];
    let ungrouped = specs(&[], &functions, &schema);
    assert_eq!(lines(&run(&ungrouped.single, vec![]).unwrap()), expected);
    assert_eq!(run(&ungrouped.partial, vec![]).unwrap()[0].num_rows(), 1);
    assert_eq!(lines(&run(&ungrouped.last, vec![]).unwrap()), expected);
    assert_eq!(lines(&run_in_two(&ungrouped, &[], 3).unwrap()), expected);
    let grouped = specs(&["k"], &functions, &schema);
    assert!(run(&grouped.single, vec![]).unwrap().is_empty());
    assert!(run(&grouped.partial, vec![]).unwrap().is_empty());
    assert!(run(&grouped.last, vec![]).unwrap().is_empty());
}

#[test]
fn without_functions_groups_are_handed_on_as_they_appear() {
    let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("k", DataType::Int64, false)]));
    let rows = (0..50_000).map(|n| n % 30_000);
    let batch = Batch::try_new(Arc::clone(&schema), vec![Arc::new(Int64Array::from_iter_values(rows))]).unwrap();
    let specs = specs(&["k"], &[], &schema);
    let out = run(&specs.partial, cut(&batch, 5000)).unwrap();
    assert_eq!(
        out.iter().map(Batch::num_rows).collect::<Vec<_>>(),
        [8192, 8192, 8192, 5424]
    );
    assert_eq!(lines(&run_in_two(&specs, &cut(&batch, 5000), 2).unwrap()).len(), 30_000);
}

#[test]
fn a_function_that_fails_names_the_cause() {
    let schema = input().schema();
    let wide = Arc::new(datafusion::physical_expr::expressions::BinaryExpr::new(
        lit(1i64),
        datafusion::logical_expr::Operator::Divide,
        lit(0i64),
    ));
    let builder = AggregateExprBuilder::new(sum::sum_udaf(), vec![wide])
        .schema(Arc::clone(&schema))
        .alias("sum");
    let specs = specs(&["k"], &[plain(builder)], &schema);
    let error = run(&specs.single, vec![input()]).unwrap_err();
    assert!(error.to_string().contains("ivide by zero"), "{error}");
}
