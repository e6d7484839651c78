//! Sort, top-N and merge against a reference that sorts rows with a comparator of its own.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Decimal128Array, DictionaryArray, Float32Array, Float64Array, Int8Array,
    Int32Array, Int64Array, ListArray, NullArray, StringArray, StringViewArray, StructArray, TimestampMicrosecondArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, SchemaRef};
use proptest::prelude::*;

use crate::data::Batch;
use crate::operator::harness::Harness;
use crate::operator::merge::Merge;
use crate::operator::sort::Sort;
use crate::operator::{Operator, ReadNext};
use crate::plan::{MergeSpec, ScalarExpr, SortKey, SortSpec};

/// A row of the reference; every column of [`batch_of`] follows from it.
#[derive(Clone, Debug)]
pub(super) struct Row {
    id: i64,
    int: Option<i64>,
    float: Option<f64>,
    text: Option<String>,
    flag: Option<bool>,
    decimal: Option<i128>,
}

/// Column, descending, NULLs first.
pub(super) type Key = (usize, bool, bool);

const COLUMNS: usize = 11;

pub(super) fn schema() -> SchemaRef {
    batch_of(&[]).schema()
}

pub(super) fn batch_of(rows: &[Row]) -> Batch {
    let ints = || rows.iter().map(|row| row.int);
    let texts = || rows.iter().map(|row| row.text.as_deref());
    let decimals = Decimal128Array::from_iter(rows.iter().map(|row| row.decimal));
    let columns: [(&str, ArrayRef); COLUMNS] = [
        (
            "id",
            Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.id))),
        ),
        ("int", Arc::new(Int64Array::from_iter(ints()))),
        (
            "float",
            Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.float))),
        ),
        ("text", Arc::new(StringArray::from_iter(texts()))),
        (
            "flag",
            Arc::new(BooleanArray::from_iter(rows.iter().map(|row| row.flag))),
        ),
        ("decimal", Arc::new(decimals.with_precision_and_scale(38, 0).unwrap())),
        ("dictionary", Arc::new(texts().collect::<DictionaryArray<Int32Type>>())),
        ("view", Arc::new(StringViewArray::from_iter(texts()))),
        (
            "tiny",
            Arc::new(Int8Array::from_iter(ints().map(|int| int.map(|int| (int % 3) as i8)))),
        ),
        (
            "float32",
            Arc::new(Float32Array::from_iter(
                rows.iter().map(|row| row.float.map(|float| float as f32)),
            )),
        ),
        ("time", Arc::new(TimestampMicrosecondArray::from_iter(ints()))),
    ];
    Batch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap()
}

/// NULL and value order of one column, written without Arrow.
fn compare_cells(column: usize, a: &Row, b: &Row) -> (bool, bool, Ordering) {
    fn cells<T>(a: Option<T>, b: Option<T>, compare: impl Fn(&T, &T) -> Ordering) -> (bool, bool, Ordering) {
        let order = match (&a, &b) {
            (Some(a), Some(b)) => compare(a, b),
            _ => Ordering::Equal,
        };
        (a.is_none(), b.is_none(), order)
    }
    match column {
        0 => cells(Some(a.id), Some(b.id), Ord::cmp),
        1 | 10 => cells(a.int, b.int, Ord::cmp),
        2 => cells(a.float, b.float, f64::total_cmp),
        9 => cells(a.float.map(|f| f as f32), b.float.map(|f| f as f32), f32::total_cmp),
        3 | 6 | 7 => cells(a.text.as_ref(), b.text.as_ref(), |a, b| a.as_bytes().cmp(b.as_bytes())),
        4 => cells(a.flag, b.flag, Ord::cmp),
        5 => cells(a.decimal, b.decimal, Ord::cmp),
        8 => cells(a.int.map(|i| i % 3), b.int.map(|i| i % 3), Ord::cmp),
        _ => unreachable!(),
    }
}

fn compare(keys: &[Key], a: &Row, b: &Row) -> Ordering {
    for (column, descending, nulls_first) in keys {
        let order = match compare_cells(*column, a, b) {
            (true, true, _) => Ordering::Equal,
            (true, false, _) if *nulls_first => Ordering::Less,
            (true, false, _) => Ordering::Greater,
            (false, true, _) if *nulls_first => Ordering::Greater,
            (false, true, _) => Ordering::Less,
            (false, false, order) if *descending => order.reverse(),
            (false, false, order) => order,
        };
        if order.is_ne() {
            return order;
        }
    }
    Ordering::Equal
}

pub(super) fn sort_keys(keys: &[Key], schema: &SchemaRef) -> Vec<SortKey> {
    keys.iter()
        .map(|(column, descending, nulls_first)| SortKey {
            expr: ScalarExpr::column(*column, schema),
            descending: *descending,
            nulls_first: *nulls_first,
        })
        .collect()
}

/// The output holds rows of `rows`, each once and whole, in the order and number of the reference.
fn check(rows: &[Row], keys: &[Key], fetch: Option<usize>, batch_size: usize, output: &[Batch]) {
    let mut expected = rows.to_vec();
    expected.sort_by(|a, b| compare(keys, a, b));
    expected.truncate(fetch.unwrap_or(usize::MAX));
    let output_rows: usize = output.iter().map(Batch::num_rows).sum();
    assert_eq!(output_rows, expected.len());
    assert!(
        output.iter().all(|batch| batch.num_rows() <= batch_size),
        "a batch is too large"
    );
    assert!(
        output.iter().rev().skip(1).all(|batch| batch.num_rows() == batch_size),
        "a batch is too small"
    );
    check_rows(rows, keys, fetch, output);
}

/// As `check`, whatever the sizes of the batches.
pub(super) fn check_rows(rows: &[Row], keys: &[Key], fetch: Option<usize>, output: &[Batch]) {
    let mut expected = rows.to_vec();
    expected.sort_by(|a, b| compare(keys, a, b));
    expected.truncate(fetch.unwrap_or(usize::MAX));
    let output_rows: usize = output.iter().map(Batch::num_rows).sum();
    assert_eq!(output_rows, expected.len());
    if output.is_empty() {
        return;
    }
    let output = concat_batches(&output[0].schema(), output).unwrap();
    let ids = output.column(0).as_primitive::<Int64Type>().values().to_vec();
    let found: Vec<Row> = ids.iter().map(|id| rows[*id as usize].clone()).collect();
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(
            compare(keys, found, expected),
            Ordering::Equal,
            "{found:?} where {expected:?} belongs"
        );
    }
    let mut distinct = ids;
    distinct.sort_unstable();
    distinct.dedup();
    assert_eq!(distinct.len(), output_rows, "a row came twice");
    assert_eq!(batch_of(&found), output, "the rows fell apart");
}

pub(super) fn chop(rows: &[Row], sizes: &[usize]) -> Vec<Batch> {
    let (mut rest, mut batches, mut turn) = (rows, Vec::new(), 0);
    while !rest.is_empty() {
        let (batch, others) = rest.split_at(sizes[turn % sizes.len()].min(rest.len()));
        batches.push(batch_of(batch));
        rest = others;
        turn += 1;
    }
    batches
}

fn sort(batches: Vec<Batch>, keys: Vec<SortKey>, fetch: Option<usize>, batch_size: usize) -> Vec<Batch> {
    let mut harness = Harness::new(Sort::new(SortSpec {
        keys,
        fetch,
        by_range: false,
    }));
    harness.context.batch_size = batch_size;
    harness.run(vec![batches]).unwrap()
}

fn texts() -> impl Strategy<Value = String> {
    prop_oneof![
        "[ab\u{0}]{0,3}",
        "[ab]{6,10}",
        "common prefix of many bytes [a-c]{0,2}",
        "\\PC{0,6}",
    ]
}

fn floats() -> impl Strategy<Value = f64> {
    prop_oneof![
        Just(0.0),
        Just(-0.0),
        Just(f64::NAN),
        Just(-f64::NAN),
        Just(f64::INFINITY),
        Just(f64::NEG_INFINITY),
        -2.0..2.0,
        any::<f64>(),
    ]
}

pub(super) fn table() -> impl Strategy<Value = Vec<Row>> {
    let int = prop_oneof![-3_i64..3, Just(i64::MIN), Just(i64::MAX)];
    let decimal = prop_oneof![
        -3_i128..3,
        Just(i128::from(i64::MAX) + 1),
        Just(i128::MIN / 3),
        Just(i128::MAX / 3)
    ];
    let row = (
        proptest::option::of(int),
        proptest::option::of(floats()),
        proptest::option::of(texts()),
        proptest::option::of(any::<bool>()),
        proptest::option::of(decimal),
    );
    proptest::collection::vec(row, 0..150).prop_map(|rows| {
        (0..)
            .zip(rows)
            .map(|(id, (int, float, text, flag, decimal))| Row {
                id,
                int,
                float,
                text,
                flag,
                decimal,
            })
            .collect()
    })
}

pub(super) fn keys() -> impl Strategy<Value = Vec<Key>> {
    proptest::collection::vec((1..COLUMNS, any::<bool>(), any::<bool>()), 1..4)
}

pub(super) fn sizes() -> impl Strategy<Value = Vec<usize>> {
    proptest::collection::vec(1_usize..40, 1..4)
}

pub(super) fn batch_sizes() -> impl Strategy<Value = usize> {
    prop_oneof![Just(1), Just(2), Just(7), Just(64), Just(8192)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn sort_equals_the_reference(rows in table(), keys in keys(), sizes in sizes(), batch_size in batch_sizes()) {
        let output = sort(chop(&rows, &sizes), sort_keys(&keys, &schema()), None, batch_size);
        check(&rows, &keys, None, batch_size, &output);
    }

    #[test]
    fn top_n_equals_sort_and_truncate(
        rows in table(), keys in keys(), sizes in sizes(), batch_size in batch_sizes(),
        fetch in prop_oneof![0_usize..20, Just(149), Just(usize::MAX)],
    ) {
        let output = sort(chop(&rows, &sizes), sort_keys(&keys, &schema()), Some(fetch), batch_size);
        check(&rows, &keys, Some(fetch), batch_size, &output);
    }

    #[test]
    fn merge_equals_the_sort_of_all(
        rows in table(), keys in keys(), sizes in sizes(), batch_size in batch_sizes(), inputs in 2_usize..7,
        fetch in proptest::option::of(0_usize..200),
    ) {
        let mut parts = vec![Vec::new(); inputs];
        for row in &rows {
            parts[(row.id * row.id + 3) as usize % inputs].push(row.clone());
        }
        parts.iter_mut().for_each(|part| part.sort_by(|a, b| compare(&keys, a, b)));
        let merge = Merge::new(MergeSpec { keys: sort_keys(&keys, &schema()), fetch }, inputs);
        let mut harness = Harness::new(merge);
        harness.context.batch_size = batch_size;
        let output = harness.run(parts.iter().map(|part| chop(part, &sizes)).collect()).unwrap();
        check(&rows, &keys, fetch, batch_size, &output);
    }
}

pub(super) fn row(id: i64, int: Option<i64>) -> Row {
    Row {
        id,
        int,
        float: None,
        text: None,
        flag: None,
        decimal: None,
    }
}

fn ints(batch: &Batch) -> Vec<Option<i64>> {
    batch.column(1).as_primitive::<Int64Type>().iter().collect()
}

#[test]
fn nan_is_largest_and_negative_zero_comes_before_zero() {
    let floats = [f64::NAN, 0.0, f64::INFINITY, -0.0, -1.0, f64::NEG_INFINITY];
    let batch = Batch::try_from_iter([("f", Arc::new(Float64Array::from(floats.to_vec())) as ArrayRef)]).unwrap();
    let keys = sort_keys(&[(0, false, false)], &batch.schema());
    let output = sort(vec![batch], keys, None, 100);
    let sorted: Vec<String> = output[0]
        .column(0)
        .as_primitive::<arrow::datatypes::Float64Type>()
        .values()
        .iter()
        .map(|float| format!("{float:?}"))
        .collect();
    assert_eq!(sorted, ["-inf", "-1.0", "-0.0", "0.0", "inf", "NaN"]);
}

#[test]
fn long_texts_with_long_common_prefixes_are_sorted() {
    for length in [0, 7, 8, 9, 500, 2000] {
        let rows: Vec<Row> = (0..400)
            .map(|id| Row {
                text: Some(format!("{}{:03}", "x".repeat(length), id * 7919 % 400)),
                ..row(id, None)
            })
            .collect();
        for keys in [
            vec![(3, false, false)],
            vec![(1, false, true), (3, true, false)],
            vec![(7, true, true)],
        ] {
            let output = sort(chop(&rows, &[30]), sort_keys(&keys, &schema()), None, 64);
            check(&rows, &keys, None, 64, &output);
            let output = sort(chop(&rows, &[30]), sort_keys(&keys, &schema()), Some(11), 64);
            check(&rows, &keys, Some(11), 64, &output);
        }
    }
}

#[test]
fn lists_structs_and_nulls_are_sorted() {
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([
        Some(vec![Some(2)]),
        None,
        Some(vec![Some(1), Some(9)]),
        Some(vec![]),
        Some(vec![Some(1)]),
    ]);
    let structs = StructArray::from(vec![(
        Arc::new(Field::new("a", DataType::Int32, true)),
        Arc::new(Int32Array::from(vec![Some(4), None, Some(3), Some(1), Some(2)])) as ArrayRef,
    )]);
    let ids: ArrayRef = Arc::new(Int32Array::from_iter_values(0..5));
    let columns: [(&str, ArrayRef); 4] = [
        ("list", Arc::new(lists)),
        ("struct", Arc::new(structs)),
        ("null", Arc::new(NullArray::new(5))),
        ("id", ids),
    ];
    let batch =
        Batch::try_from_iter_with_nullable(columns.into_iter().map(|(name, column)| (name, column, true))).unwrap();
    let order = |keys: &[Key]| {
        let halves = vec![batch.slice(0, 3), batch.slice(3, 2)];
        let output = sort(halves, sort_keys(keys, &batch.schema()), None, 100);
        output[0].column(3).as_primitive::<Int32Type>().values().to_vec()
    };
    assert_eq!(order(&[(0, false, true)]), [1, 3, 4, 2, 0]);
    assert_eq!(order(&[(0, true, false)]), [0, 2, 4, 3, 1]);
    assert_eq!(order(&[(1, false, true)]), [1, 3, 4, 2, 0]);
    assert_eq!(order(&[(2, false, true), (0, false, true)]), [1, 3, 4, 2, 0]);
    assert_eq!(order(&[(2, false, true)]), [0, 1, 2, 3, 4]);
}

#[test]
fn a_dictionary_may_hold_nulls_in_its_values_or_nothing_at_all() {
    let with_null = DictionaryArray::<Int32Type>::new(
        Int32Array::from(vec![Some(1), Some(0), None, Some(2)]),
        Arc::new(StringArray::from(vec![None, Some("b"), Some("a")])),
    );
    let empty = DictionaryArray::<Int32Type>::new(
        Int32Array::from(vec![None, None]),
        Arc::new(StringArray::from(Vec::<&str>::new())),
    );
    let batches = [with_null, empty].map(|column| {
        let schema = Schema::new(vec![Field::new("d", column.data_type().clone(), true)]);
        Batch::try_new(Arc::new(schema), vec![Arc::new(column)]).unwrap()
    });
    let keys = sort_keys(&[(0, false, false)], &batches[0].schema());
    let output = sort(batches.to_vec(), keys, None, 100);
    let strings = arrow::compute::cast(output[0].column(0), &DataType::Utf8).unwrap();
    let strings: Vec<_> = strings.as_string::<i32>().iter().collect();
    assert_eq!(strings, [Some("a"), Some("b"), None, None, None, None]);
}

#[test]
fn a_type_without_order_is_named() {
    let lists = ListArray::from_iter_primitive::<Int32Type, _, _>([Some(vec![Some(2)])]);
    let dictionary = DictionaryArray::<Int32Type>::new(Int32Array::from(vec![0]), Arc::new(lists));
    let batch = Batch::try_from_iter([("d", Arc::new(dictionary) as ArrayRef)]).unwrap();
    let keys = sort_keys(&[(0, false, false)], &batch.schema());
    let error = Harness::new(Sort::new(SortSpec {
        keys,
        fetch: None,
        by_range: false,
    }))
    .run(vec![vec![batch]])
    .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot sort by d@0: values of type Dictionary"),
        "{error}"
    );
}

#[test]
fn no_input_gives_no_output() {
    for fetch in [None, Some(3)] {
        assert!(sort(vec![], sort_keys(&[(1, false, false)], &schema()), fetch, 10).is_empty());
    }
    let merge = Merge::new(
        MergeSpec {
            keys: sort_keys(&[(1, false, false)], &schema()),
            fetch: None,
        },
        3,
    );
    assert!(
        Harness::new(merge)
            .run(vec![vec![], vec![], vec![]])
            .unwrap()
            .is_empty()
    );
}

#[test]
fn a_fetch_of_zero_is_done_before_it_starts() {
    let keys = || sort_keys(&[(1, false, false)], &schema());
    assert!(
        Sort::new(SortSpec {
            keys: keys(),
            fetch: Some(0),
            by_range: false,
        })
        .is_done()
    );
    assert!(
        Merge::new(
            MergeSpec {
                keys: keys(),
                fetch: Some(0)
            },
            2
        )
        .is_done()
    );
}

#[test]
fn the_same_input_gives_the_same_output() {
    let rows: Vec<Row> = (0..500).map(|id| row(id, Some(id % 3))).collect();
    let run = |fetch| {
        sort(
            chop(&rows, &[17, 3]),
            sort_keys(&[(1, true, false)], &schema()),
            fetch,
            50,
        )
    };
    assert_eq!(run(None), run(None));
    assert_eq!(run(Some(40)), run(Some(40)));
}

#[test]
fn a_top_n_that_does_not_fit_goes_to_disk() {
    let rows: Vec<Row> = (0..3_000).map(|id| row(id, Some(id * 7 % 3_000))).collect();
    let keys = [(1, false, false)];
    for fetch in [2_000, 100_000] {
        let sort = Sort::new(SortSpec {
            keys: sort_keys(&keys, &schema()),
            fetch: Some(fetch),
            by_range: false,
        });
        let mut harness = Harness::with_memory(sort, 50_000);
        for batch in chop(&rows, &[100]) {
            harness.push(0, batch).unwrap();
        }
        harness.end(0).unwrap();
        assert!(
            harness
                .context
                .metrics
                .spilled_bytes
                .load(std::sync::atomic::Ordering::Relaxed)
                > 0
        );
        check_rows(&rows, &keys, Some(fetch), &harness.output.batches);
        assert_eq!(harness.memory.reserved_bytes(), 0);
    }
}

#[test]
fn all_memory_is_given_back_at_the_end() {
    for fetch in [None, Some(10)] {
        let sort = Sort::new(SortSpec {
            keys: sort_keys(&[(3, false, false)], &schema()),
            fetch,
            by_range: false,
        });
        let mut harness = Harness::new(sort);
        harness.push(0, batch_of(&[row(0, Some(1)), row(1, None)])).unwrap();
        assert!(harness.memory.reserved_bytes() > 0);
        harness.end(0).unwrap();
        assert_eq!(harness.memory.reserved_bytes(), 0);
    }
}

#[test]
fn a_sort_whose_columns_do_not_fit_twice_still_ends() {
    let keys = || sort_keys(&[(1, true, false)], &schema());
    let rows: Vec<Row> = (0..300)
        .map(|id| Row {
            text: Some(format!("{id}")),
            ..row(id, Some(id * 7 % 300))
        })
        .collect();
    let mut roomy = Harness::new(Sort::new(SortSpec {
        keys: keys(),
        fetch: None,
        by_range: false,
    }));
    chop(&rows, &[50])
        .into_iter()
        .for_each(|batch| roomy.push(0, batch).unwrap());
    let tight = Harness::with_memory(
        Sort::new(SortSpec {
            keys: keys(),
            fetch: None,
            by_range: false,
        }),
        roomy.memory.peak_bytes(),
    );
    let output = tight.run(vec![chop(&rows, &[50])]).unwrap();
    check(&rows, &[(1, true, false)], None, 8192, &output);
}

#[test]
fn sorted_views_do_not_keep_the_strings_of_the_whole_input() {
    let long = "a text that is too long to be inline, ".repeat(10);
    let rows: Vec<Row> = (0..2000)
        .map(|id| Row {
            text: Some(format!("{id:04}{long}")),
            ..row(id, None)
        })
        .collect();
    let output = sort(
        chop(&rows, &[100]),
        sort_keys(&[(7, true, false)], &schema()),
        None,
        100,
    );
    check(&rows, &[(7, true, false)], None, 100, &output);
    let bytes = output
        .iter()
        .map(|batch| batch.column(7).get_array_memory_size())
        .max()
        .unwrap();
    assert!(bytes < 200 * 400, "{bytes} bytes for 100 texts of 400");
}

#[test]
fn top_n_holds_a_few_rows_whatever_comes() {
    let keys = sort_keys(&[(7, true, false)], &schema());
    let mut harness = Harness::new(Sort::new(SortSpec {
        keys,
        fetch: Some(5),
        by_range: false,
    }));
    for turn in 0..200_i64 {
        // Every batch beats all before it: the worst case.
        let rows: Vec<Row> = (0..500)
            .map(|id| Row {
                text: Some(format!("{:08} and something that is not inline", turn * 500 + id)),
                ..row(id, None)
            })
            .collect();
        harness.push(0, batch_of(&rows)).unwrap();
    }
    let peak = harness.memory.peak_bytes();
    assert!(peak < 200_000, "{peak} bytes for 15 rows");
    harness.end(0).unwrap();
    assert_eq!(harness.rows(&schema()).num_rows(), 5);
    let first = harness.output.batches[0].column(7).as_string_view().value(0);
    assert!(first.starts_with("00099999"), "{first}");
}

#[test]
fn merge_asks_for_the_input_it_misses_and_stops_early() {
    let keys = sort_keys(&[(1, false, false)], &schema());
    let mut harness = Harness::new(Merge::new(MergeSpec { keys, fetch: Some(3) }, 3));
    assert_eq!(harness.operator.reads_next(), ReadNext::Only(0));
    harness.push(0, batch_of(&[row(0, Some(1)), row(1, Some(5))])).unwrap();
    assert_eq!(harness.operator.reads_next(), ReadNext::Only(1));
    harness.end(1).unwrap();
    assert_eq!(harness.operator.reads_next(), ReadNext::Only(2));
    harness.push(2, batch_of(&[row(2, Some(2))])).unwrap();
    assert_eq!(harness.operator.reads_next(), ReadNext::Only(2));
    assert!(!harness.operator.is_done());
    harness.push(2, batch_of(&[row(3, Some(2)), row(4, Some(2))])).unwrap();
    assert!(harness.operator.is_done());
    assert_eq!(ints(&harness.rows(&schema())), [Some(1), Some(2), Some(2)]);
    assert_eq!(harness.memory.reserved_bytes(), 0);
}

#[test]
fn merge_hands_on_the_last_rows_of_a_fetch_that_ends_with_a_batch() {
    let keys = sort_keys(&[(1, false, false)], &schema());
    let mut harness = Harness::new(Merge::new(MergeSpec { keys, fetch: Some(1) }, 2));
    harness.push(0, batch_of(&[row(0, Some(1))])).unwrap();
    harness.push(1, batch_of(&[row(1, Some(2))])).unwrap();
    assert!(harness.operator.is_done());
    assert_eq!(ints(&harness.rows(&schema())), [Some(1)]);
}

#[test]
fn equal_rows_are_merged_in_the_order_of_the_ports() {
    let keys = sort_keys(&[(1, false, false)], &schema());
    let merge = Merge::new(MergeSpec { keys, fetch: None }, 3);
    let inputs = (0..3)
        .map(|port| vec![batch_of(&[row(port, Some(7))]), batch_of(&[row(port + 3, Some(8))])])
        .collect();
    let output = Harness::new(merge).run(inputs).unwrap();
    let ids = concat_batches(&schema(), &output)
        .unwrap()
        .column(0)
        .as_primitive::<Int64Type>()
        .values()
        .to_vec();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn one_sorted_input_passes_untouched() {
    let keys = sort_keys(&[(1, false, false)], &schema());
    let merge = Merge::new(MergeSpec { keys, fetch: Some(3) }, 1);
    let batches = vec![
        batch_of(&[row(0, Some(1)), row(1, Some(2))]),
        batch_of(&[row(2, Some(3)), row(3, Some(4))]),
    ];
    let output = Harness::new(merge).run(vec![batches.clone()]).unwrap();
    assert_eq!(output, [batches[0].clone(), batches[1].slice(0, 1)]);
}

#[test]
fn merge_holds_a_batch_or_two_of_each_input() {
    let keys = sort_keys(&[(1, false, false)], &schema());
    let mut harness = Harness::new(Merge::new(MergeSpec { keys, fetch: None }, 2));
    harness.context.batch_size = 100;
    let batch = |from: i64| batch_of(&(from..from + 100).map(|id| row(id, Some(id))).collect::<Vec<_>>());
    let one = batch(0).get_array_memory_size();
    for turn in 0..50 {
        while let ReadNext::Only(port) = harness.operator.reads_next() {
            if turn == 49 {
                break;
            }
            harness.push(port, batch(turn * 100)).unwrap();
            if port == 1 {
                break;
            }
        }
    }
    assert!(
        harness.memory.peak_bytes() < 6 * one,
        "{} of {one}",
        harness.memory.peak_bytes()
    );
}
