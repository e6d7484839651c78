//! Keys of every type, alone and together, in one step and in two.

use std::sync::Arc;

use arrow::array::types::{Int8Type, Int32Type, IntervalDayTime, IntervalMonthDayNano};
use arrow::array::{
    Array, ArrayRef, BooleanArray, DictionaryArray, FixedSizeBinaryArray, Float16Array, Float32Array, Float64Array,
    Int32Array, Int64Array, IntervalDayTimeArray, IntervalMonthDayNanoArray, ListArray, NullArray, StringArray,
    StructArray,
};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, IntervalUnit, Schema, TimeUnit};
use half::f16;
use proptest::prelude::*;

use super::reference::{cut, expect_usual, lines, numbers, run, run_in_two, specs, usual};
use crate::data::Batch;

/// Arrays of every type that can be a key, from numbers of -6 to 6.
fn keys_of_every_type(numbers: &[Option<i32>]) -> Vec<ArrayRef> {
    let base: ArrayRef = Arc::new(Int32Array::from(numbers.to_vec()));
    let casts = [
        DataType::Int8,
        DataType::Int16,
        DataType::Int32,
        DataType::Int64,
        DataType::Decimal32(9, 2),
        DataType::Decimal64(18, 2),
        DataType::Decimal128(20, 2),
        DataType::Decimal256(50, 2),
        DataType::Date32,
        DataType::Utf8,
        DataType::LargeUtf8,
        DataType::Utf8View,
    ];
    let mut keys: Vec<ArrayRef> = casts.iter().map(|to| cast(&base, to).unwrap()).collect();
    let wide = cast(&base, &DataType::Int64).unwrap();
    let from_wide = [
        DataType::Date64,
        DataType::Time64(TimeUnit::Nanosecond),
        DataType::Timestamp(TimeUnit::Millisecond, Some("Europe/Berlin".into())),
        DataType::Timestamp(TimeUnit::Nanosecond, None),
        DataType::Duration(TimeUnit::Second),
    ];
    keys.extend(
        from_wide
            .iter()
            .map(|to| cast(&wide, to).unwrap())
            .filter(|key| !matches!(key.data_type(), DataType::Time64(_))),
    );
    let long: StringArray = numbers
        .iter()
        .map(|n| n.map(|n| format!("a string longer than a view holds: {n}")))
        .collect();
    let long: ArrayRef = Arc::new(long);
    for to in [
        DataType::Utf8,
        DataType::Utf8View,
        DataType::Binary,
        DataType::LargeBinary,
        DataType::BinaryView,
    ] {
        keys.push(cast(&long, &to).unwrap());
    }
    for value in [DataType::Utf8, DataType::Int64, DataType::Utf8View] {
        let values = if value == DataType::Int64 { &wide } else { &long };
        keys.push(
            cast(
                values,
                &DataType::Dictionary(Box::new(DataType::Int16), Box::new(value)),
            )
            .unwrap(),
        );
    }
    let of_i32 = |n: &Option<i32>| n.map(|n| IntervalMonthDayNano::new(n, -n, i64::from(n) << 40));
    keys.push(Arc::new(IntervalMonthDayNanoArray::from_iter(
        numbers.iter().map(of_i32),
    )));
    let of_i32 = |n: &Option<i32>| n.map(|n| IntervalDayTime::new(n, -n));
    keys.push(Arc::new(IntervalDayTimeArray::from_iter(numbers.iter().map(of_i32))));
    keys.push(cast(&base, &DataType::Interval(IntervalUnit::YearMonth)).unwrap());
    keys.push(Arc::new(BooleanArray::from_iter(
        numbers.iter().map(|n| n.map(|n| n > 0)),
    )));
    let three = numbers.iter().map(|n| n.map(|n| [n as u8, 0, 1]));
    keys.push(Arc::new(
        FixedSizeBinaryArray::try_from_sparse_iter_with_size(three, 3).unwrap(),
    ));
    keys.extend(float_keys(numbers));
    keys.extend(nested_keys(numbers));
    keys
}

/// Floats in which -6 and 6 are the two zeros, and 3 and 4 are two NaNs.
fn float(n: i32) -> f64 {
    match n {
        -6 => -0.0,
        6 => 0.0,
        3 => f64::NAN,
        4 => -f64::NAN,
        n => f64::from(n) / 4.0,
    }
}

fn float_keys(numbers: &[Option<i32>]) -> Vec<ArrayRef> {
    let floats = || numbers.iter().map(|n| n.map(float));
    vec![
        Arc::new(Float64Array::from_iter(floats())),
        Arc::new(Float32Array::from_iter(floats().map(|f| f.map(|f| f as f32)))),
        Arc::new(Float16Array::from_iter(floats().map(|f| f.map(f16::from_f64)))),
    ]
}

fn nested_keys(numbers: &[Option<i32>]) -> Vec<ArrayRef> {
    let list = |n: &Option<i32>| n.map(|n| (0..n.abs() % 3).map(|_| Some(n)).collect::<Vec<_>>());
    let integers: ArrayRef = Arc::new(ListArray::from_iter_primitive::<Int32Type, _, _>(
        numbers.iter().map(list),
    ));
    let list = |n: &Option<i32>| n.map(|n| vec![Some(float(n)), None]);
    let floats = ListArray::from_iter_primitive::<arrow::datatypes::Float64Type, _, _>(numbers.iter().map(list));
    let strings: ArrayRef = Arc::new(StringArray::from_iter(numbers.iter().map(|n| n.map(|n| n.to_string()))));
    let strings = cast(
        &strings,
        &DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8)),
    )
    .unwrap();
    let fields = vec![
        Field::new("l", integers.data_type().clone(), true),
        Field::new("s", strings.data_type().clone(), true),
    ];
    let nested = StructArray::new(fields.into(), vec![Arc::clone(&integers), strings], None);
    vec![
        integers,
        Arc::new(floats),
        Arc::new(nested),
        Arc::new(NullArray::new(numbers.len())),
    ]
}

fn batch_of(keys: &[ArrayRef], values: &[Option<i64>]) -> Batch {
    let mut fields: Vec<Field> = keys
        .iter()
        .enumerate()
        .map(|(i, key)| Field::new(format!("k{i}"), key.data_type().clone(), true))
        .collect();
    fields.push(Field::new("v", DataType::Int64, true));
    let mut columns = keys.to_vec();
    columns.push(Arc::new(Int64Array::from(values.to_vec())));
    Batch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

fn check(keys: &[ArrayRef], values: &[Option<i64>], rows: usize) {
    let batch = batch_of(keys, values);
    let names: Vec<String> = (0..keys.len()).map(|i| format!("k{i}")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let specs = specs(&names, &usual(&batch.schema()), &batch.schema());
    let types: Vec<&DataType> = keys.iter().map(|key| key.data_type()).collect();
    let expected = expect_usual(keys, values);
    let batches = cut(&batch, rows);
    let single = lines(&run(&specs.single, batches.clone()).unwrap());
    assert_eq!(single, expected, "in one step by {types:?}");
    for subtasks in [1, 3] {
        let two = lines(&run_in_two(&specs, &batches, subtasks).unwrap());
        assert_eq!(two, expected, "over {subtasks} partial aggregations by {types:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn every_type_alone(rows in numbers(), size in 1usize..64) {
        let numbers: Vec<_> = rows.iter().map(|row| row.0).collect();
        let values: Vec<_> = rows.iter().map(|row| row.2).collect();
        for key in keys_of_every_type(&numbers) {
            check(&[key], &values, size);
        }
    }

    #[test]
    fn every_type_with_every_other(rows in numbers(), size in 1usize..64, other in 0usize..30) {
        let values: Vec<_> = rows.iter().map(|row| row.2).collect();
        let first = keys_of_every_type(&rows.iter().map(|row| row.0).collect::<Vec<_>>());
        let second = keys_of_every_type(&rows.iter().map(|row| row.1).collect::<Vec<_>>());
        for (i, key) in first.iter().enumerate() {
            check(&[Arc::clone(key), Arc::clone(&second[(i + other) % second.len()])], &values, size);
        }
    }

    #[test]
    fn no_keys_and_many(rows in numbers(), size in 1usize..64) {
        let values: Vec<_> = rows.iter().map(|row| row.2).collect();
        check(&[], &values, size);
        let keys = keys_of_every_type(&rows.iter().map(|row| row.1).collect::<Vec<_>>());
        check(&[0, 8, 9, 12, 20].map(|i| Arc::clone(&keys[i])), &values, size);
        check(&[0, 1, 8].map(|i| Arc::clone(&keys[i])), &values, size);
    }

    #[test]
    fn many_groups(keys in prop::collection::vec(any::<(i64, i32)>(), 1..20_000), size in 1usize..9000) {
        let values: Vec<_> = keys.iter().map(|key| Some(i64::from(key.1))).collect();
        let wide: ArrayRef = Arc::new(Int64Array::from_iter_values(keys.iter().map(|key| key.0)));
        let narrow: ArrayRef = Arc::new(Int32Array::from_iter_values(keys.iter().map(|key| key.1 % 100)));
        let text: ArrayRef = Arc::new(StringArray::from_iter_values(keys.iter().map(|key| (key.0 % 5000).to_string())));
        check(&[Arc::clone(&wide)], &values, size);
        check(&[Arc::clone(&text)], &values, size);
        check(&[wide, narrow, text], &values, size);
    }
}

#[test]
fn a_null_that_comes_late_does_not_disturb_the_groups() {
    let keys: Vec<Option<i32>> = (0..40).map(|n| (n < 30 || n % 3 == 0).then_some(n % 7)).collect();
    let key: ArrayRef = Arc::new(Int32Array::from(keys));
    let values: Vec<_> = (0..40).map(Some).collect();
    check(&[Arc::clone(&key), key], &values, 10);
}

#[test]
fn strings_that_grow_and_nulls_among_them_do_not_disturb_the_groups() {
    let lengths = [0usize, 1, 1, 3, 4, 7, 8, 12, 13, 15, 16, 40];
    let text = |n: usize| {
        (n % 11 != 5)
            .then(|| "a\0bc".repeat(12)[..lengths[n / 20]].to_string() + if n.is_multiple_of(3) { "\0" } else { "" })
    };
    let strings: ArrayRef = Arc::new(StringArray::from_iter((0..240).map(text)));
    let values: Vec<_> = (0..240).map(Some).collect();
    for to in [
        DataType::Utf8,
        DataType::LargeUtf8,
        DataType::Utf8View,
        DataType::Binary,
        DataType::BinaryView,
    ] {
        let key = cast(&strings, &to).unwrap();
        for rows in [7, 20, 240] {
            check(&[Arc::clone(&key)], &values, rows);
            check(&[Arc::clone(&key), Arc::clone(&key)], &values, rows);
            check(
                &[Arc::new(Int32Array::from_iter_values(0..240)), Arc::clone(&key)],
                &values,
                rows,
            );
        }
    }
}

#[test]
fn a_dictionary_with_unused_doubled_and_null_values_groups_by_value() {
    let values = StringArray::from(vec![Some("a"), Some("unused"), Some("a"), None, Some("b")]);
    let indices = [Some(0i8), Some(2), None, Some(3), Some(4), Some(0), Some(2), Some(4)];
    let of = |indices: &[Option<i8>], values: StringArray| -> ArrayRef {
        Arc::new(DictionaryArray::<Int8Type>::new(
            indices.to_vec().into(),
            Arc::new(values),
        ))
    };
    check(
        &[of(&indices, values.clone())],
        &(0..8).map(Some).collect::<Vec<_>>(),
        8,
    );
    let without = [Some(0i8), Some(2), Some(4), Some(4), Some(0), Some(2), Some(0), Some(0)];
    let plain = StringArray::from(vec!["a", "unused", "a", "", "b"]);
    check(&[of(&without, plain)], &(0..8).map(Some).collect::<Vec<_>>(), 8);
}

#[test]
fn zero_and_nan_come_out_as_one_each() {
    let key: ArrayRef = Arc::new(Float64Array::from(vec![-0.0, 0.0, f64::NAN, -f64::NAN]));
    let batch = batch_of(&[key], &[Some(1), Some(2), Some(3), Some(4)]);
    let specs = specs(&["k0"], &[], &batch.schema());
    let out = run(&specs.single, vec![batch]).unwrap();
    let key = out[0].column(0).as_any().downcast_ref::<Float64Array>().unwrap();
    assert_eq!(key.len(), 2);
    assert!(key.value(0).to_bits() == 0 && key.value(1).is_nan());
}
