//! Every type as key and as value, in memory, in a snapshot and on disk.

use arrow::array::RecordBatch;
use arrow::array::{
    BinaryViewArray, BooleanArray, Decimal128Array, Decimal256Array, DictionaryArray, FixedSizeBinaryArray,
    Float32Array, Float64Array, Int16Array, IntervalMonthDayNanoArray, LargeStringArray, ListArray, NullArray,
    StringViewArray, StructArray, TimestampMicrosecondArray, UInt8Array, UInt64Array,
};
use arrow::compute::{SortOptions, concat_batches, take_record_batch};
use arrow::datatypes::{Float64Type, Int32Type, IntervalMonthDayNanoType, i256};

use super::*;
use crate::state::table::merge::{Merge, Sorted};

const ROWS: usize = 300;

fn arrays() -> Vec<(&'static str, ArrayRef)> {
    let number = |row: usize| (!row.is_multiple_of(7)).then_some(row as i64 - 20);
    let numbers: Vec<_> = (0..ROWS).map(number).collect();
    let texts: Vec<_> = numbers.iter().map(|number| number.map(text_of)).collect();
    let bytes: Vec<_> = texts.iter().map(|text| text.as_ref().map(String::as_bytes)).collect();
    let words: DictionaryArray<Int32Type> = texts.iter().map(Option::as_deref).collect();
    let lists = ListArray::from_iter_primitive::<Float64Type, _, _>(
        numbers
            .iter()
            .map(|n| n.map(|n| vec![Some(n as f64), None, Some(f64::NAN)])),
    );
    let field = Arc::new(Field::new("a", DataType::Int64, true));
    let of_width: Vec<_> = numbers.iter().map(|n| n.map(|n| n.to_be_bytes().repeat(2))).collect();
    let inner: ArrayRef = Arc::new(Int64Array::from(numbers.clone()));
    vec![
        (
            "bool",
            Arc::new(numbers.iter().map(|n| n.map(|n| n > 30)).collect::<BooleanArray>()),
        ),
        (
            "u8",
            Arc::new(numbers.iter().map(|n| n.map(|n| n as u8)).collect::<UInt8Array>()),
        ),
        (
            "i16",
            Arc::new(numbers.iter().map(|n| n.map(|n| n as i16)).collect::<Int16Array>()),
        ),
        (
            "f32",
            Arc::new(
                numbers
                    .iter()
                    .map(|n| n.map(|n| n as f32 / 3.0))
                    .collect::<Float32Array>(),
            ),
        ),
        (
            "u64",
            Arc::new(numbers.iter().map(|n| n.map(|n| n as u64)).collect::<UInt64Array>()),
        ),
        (
            "time",
            Arc::new(TimestampMicrosecondArray::from(numbers.clone()).with_timezone("UTC")),
        ),
        (
            "decimal",
            Arc::new(numbers.iter().map(|n| n.map(i128::from)).collect::<Decimal128Array>()),
        ),
        (
            "wide",
            Arc::new(
                numbers
                    .iter()
                    .map(|n| n.map(|n| i256::from_i128(n.into())))
                    .collect::<Decimal256Array>(),
            ),
        ),
        (
            "interval",
            Arc::new(
                numbers
                    .iter()
                    .map(|n| n.map(|n| IntervalMonthDayNanoType::make_value(n as i32, 1, n)))
                    .collect::<IntervalMonthDayNanoArray>(),
            ),
        ),
        (
            "large",
            Arc::new(texts.iter().map(Option::as_deref).collect::<LargeStringArray>()),
        ),
        (
            "view",
            Arc::new(texts.iter().map(Option::as_deref).collect::<StringViewArray>()),
        ),
        ("bytes", Arc::new(bytes.iter().copied().collect::<BinaryViewArray>())),
        (
            "fixed",
            Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(of_width.into_iter(), 16).unwrap()),
        ),
        ("words", Arc::new(words)),
        ("list", Arc::new(lists)),
        ("struct", Arc::new(StructArray::from(vec![(field, inner)]))),
        ("null", Arc::new(NullArray::new(ROWS))),
    ]
}

#[test]
fn every_type_is_a_value() {
    let arrays = arrays();
    let mut fields = vec![Field::new("key", DataType::Int64, true)];
    fields.extend(
        arrays
            .iter()
            .map(|(name, array)| Field::new(*name, array.data_type().clone(), true)),
    );
    let spec = TableSpec::by_key("t", Arc::new(Schema::new(fields)), 1);
    let mut table = KeyedTable::new(spec, None).unwrap();
    let mut disk = Disk::new(1);
    let mut slots = Vec::new();
    let of = some(0..ROWS as i64);
    let more = some(ROWS as i64..3000);
    for round in 0..2 {
        // The second time values are written over.
        table.locate(&keys(&of), ROWS, &mut slots).unwrap();
        for (column, (_, array)) in arrays.iter().enumerate() {
            table.write(&slots, column, array).unwrap();
        }
        table.find(&keys(&of), ROWS, &mut slots).unwrap();
        for (column, (name, array)) in arrays.iter().enumerate() {
            assert_eq!(&table.read(&slots, column).unwrap(), array, "{name}, round {round}");
            let none = table.read(&[NO_SLOT], column).unwrap();
            assert!(none.is_empty() || none.logical_null_count() == 1, "{name}");
        }
        table.locate(&keys(&more), more.len(), &mut slots).unwrap();
        assert!(disk.settle(&mut table) > 0 && table.resident() < 3000);
        table.find(&keys(&of), ROWS, &mut slots).unwrap();
        for (column, (name, array)) in arrays.iter().enumerate() {
            assert_eq!(&table.read(&slots, column).unwrap(), array, "{name} from disk");
        }
    }
    let rows: Vec<_> = table.rows().collect::<Result<_>>().unwrap();
    let rows = concat_batches(&table.spec().schema, &rows).unwrap();
    let order = arrow::compute::sort_to_indices(rows.column(0), Some(SortOptions::default()), Some(ROWS)).unwrap();
    let rows = take_record_batch(&rows, &order).unwrap();
    for (column, (name, array)) in arrays.iter().enumerate() {
        assert_eq!(rows.column(column + 1), array, "{name} in a snapshot");
    }
}

#[test]
fn every_type_is_a_key() {
    for (name, array) in arrays() {
        let schema = Schema::new(vec![
            Field::new("key", array.data_type().clone(), true),
            Field::new("value", DataType::Int64, true),
        ]);
        let mut table = KeyedTable::new(TableSpec::by_key("t", Arc::new(schema), 1), None).unwrap();
        let (mut slots, mut again) = (Vec::new(), Vec::new());
        table.locate(&[Arc::clone(&array)], ROWS, &mut slots).unwrap();
        assert_eq!(&table.keys(&slots).unwrap()[0], &array, "{name}");
        table.find(&[Arc::clone(&array)], ROWS, &mut again).unwrap();
        assert_eq!(slots, again, "{name}");
        let distinct = slots.iter().collect::<std::collections::BTreeSet<_>>().len();
        assert_eq!(distinct, table.resident(), "{name}");
        assert_eq!(slots[0], slots[7], "NULL is one key of {name}");
        let values: ArrayRef = Arc::new(Int64Array::from_iter_values(slots.iter().map(|slot| i64::from(*slot))));
        table.write(&slots, 0, &values).unwrap();
        table.evict(0, &Disk::new(1).spill).unwrap();
        assert_eq!(table.resident(), 0);
        table.find(&[array], ROWS, &mut again).unwrap();
        assert_eq!(&table.read(&again, 0).unwrap(), &values, "{name} from disk");
    }
}

#[test]
fn equal_floats_are_one_key() {
    let schema = columns([("key", DataType::Float64), ("value", DataType::Int64)]);
    let mut table = KeyedTable::new(TableSpec::by_key("t", schema, 1), None).unwrap();
    let floats: ArrayRef = Arc::new(Float64Array::from(vec![0.0, -0.0, f64::NAN, -f64::NAN, 1.0]));
    let mut slots = Vec::new();
    table.locate(&[floats], 5, &mut slots).unwrap();
    assert_eq!(slots, [0, 0, 1, 1, 2]);
}

#[test]
fn a_type_that_cannot_be_stored_is_refused() {
    let fields = arrow::datatypes::UnionFields::from_fields(vec![Field::new("a", DataType::Int8, true)]);
    let union = DataType::Union(fields, arrow::datatypes::UnionMode::Dense);
    let schema = columns([("key", DataType::Int64), ("value", DataType::new_list(union, true))]);
    if let Err(error) = KeyedTable::new(TableSpec::by_key("t", schema, 1), None) {
        assert!(error.to_string().contains("cannot be kept in a state table"), "{error}");
    }
}

/// Rows as runs have them.
fn run_rows(rows: &[(u64, i64, i64)]) -> RecordBatch {
    let fields = columns([("key", DataType::Int64), ("value", DataType::Int64)]);
    let column = |values: Vec<i64>| -> ArrayRef { Arc::new(Int64Array::from(values)) };
    let all: Vec<ArrayRef> = vec![
        Arc::new(rows.iter().map(|row| Some(row.0)).collect::<UInt64Array>()),
        Arc::new(arrow::array::UInt32Array::from(vec![0; rows.len()])),
        column(vec![0; rows.len()]),
        column(rows.iter().map(|row| row.1).collect()),
        column(rows.iter().map(|row| row.2).collect()),
    ];
    RecordBatch::try_new(run_schema(&fields), all).unwrap()
}

#[test]
fn keys_of_one_hash_are_told_apart() {
    let newer = vec![Ok(run_rows(&[(1, 10, 1), (5, 50, 1), (5, 51, 1)]))];
    let older = vec![
        Ok(run_rows(&[(0, 1, 2), (1, 11, 2)])),
        Ok(run_rows(&[(5, 51, 2), (5, 52, 2), (9, 90, 2)])),
    ];
    let sources: Vec<Sorted> = vec![Box::new(newer.into_iter()), Box::new(older.into_iter())];
    let mut merged = Vec::new();
    for rows in Merge::new(sources, 3..4) {
        let rows = rows.unwrap();
        let column = |at: usize| rows.column(at).as_primitive::<Int64Type>().values().to_vec();
        merged.extend(column(3).into_iter().zip(column(4)));
    }
    assert_eq!(merged, [(1, 2), (10, 1), (11, 2), (50, 1), (51, 1), (52, 2), (90, 2)]);
    let mut index = Index::new();
    (0..3).for_each(|slot| index.insert(7, slot));
    let mut candidates = Vec::new();
    index.candidates(&[7, 8], true, &mut candidates);
    assert!(candidates[0] < 3 && candidates[1] == NO_SLOT);
    assert!((0..3).all(|slot| index.find(7, |other| other == slot) == Some(slot)));
    index.remove(7, 1);
    assert_eq!(index.find(7, |slot| slot == 1), None);
}
