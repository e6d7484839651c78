//! Random tables: NULLs, NaN, both zeros, infinities, empty batches, empty partitions, dictionaries, nested values,
//! decimals of 256 bits, intervals, timestamps with a zone and very long strings.

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BooleanArray, Date32Array, Decimal128Array, Decimal256Array, DictionaryArray, Float64Array, Int32Array,
    Int64Array, IntervalMonthDayNanoArray, ListArray, RecordBatch, StringArray, StringViewArray, StructArray,
    TimestampMicrosecondArray, UInt8Array,
};
use arrow::datatypes::{DataType, Field, Fields, Int8Type, Int64Type, IntervalMonthDayNano, Schema, SchemaRef, i256};
use rand::Rng;
use rand::rngs::StdRng;

pub(crate) type Table = (&'static str, SchemaRef, Vec<Vec<RecordBatch>>);

/// Three tables of one shape but different sizes; the last is empty.
pub(crate) fn tables(random: &mut StdRng) -> Vec<Table> {
    let rows = random.random_range(50..400);
    let few = random.random_range(1..30);
    vec![
        ("t", schema(), partitions(random, rows)),
        ("u", schema(), partitions(random, few)),
        ("e", schema(), vec![vec![], vec![RecordBatch::new_empty(schema())]]),
    ]
}

fn schema() -> SchemaRef {
    let structure = Fields::from(vec![
        Field::new("x", DataType::Int64, true),
        Field::new("y", DataType::Utf8, true),
    ]);
    Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int32, true),
        Field::new("n", DataType::Int64, false),
        Field::new("b", DataType::UInt8, true),
        Field::new("s", DataType::Utf8, true),
        Field::new("v", DataType::Utf8View, true),
        Field::new(
            "g",
            DataType::Dictionary(Box::new(DataType::Int8), Box::new(DataType::Utf8)),
            true,
        ),
        Field::new("f", DataType::Float64, true),
        Field::new("d", DataType::Decimal128(12, 2), true),
        Field::new("h", DataType::Decimal256(50, 3), true),
        Field::new("o", DataType::Boolean, true),
        Field::new(
            "ts",
            DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("UTC".into())),
            true,
        ),
        Field::new("dt", DataType::Date32, true),
        Field::new(
            "iv",
            DataType::Interval(arrow::datatypes::IntervalUnit::MonthDayNano),
            true,
        ),
        Field::new(
            "l",
            DataType::List(Arc::new(Field::new_list_field(DataType::Int64, true))),
            true,
        ),
        Field::new("st", DataType::Struct(structure), true),
    ]))
}

fn partitions(random: &mut StdRng, rows: usize) -> Vec<Vec<RecordBatch>> {
    let count = random.random_range(1..5);
    let mut partitions = vec![Vec::new(); count];
    let mut made = 0;
    while made < rows {
        // Some partitions stay empty, some batches have no row.
        let size = if random.random_bool(0.1) {
            0
        } else {
            random.random_range(1..60).min(rows - made)
        };
        let index = random.random_range(0..count);
        partitions[index].push(batch(random, size, made as i64));
        made += size;
    }
    partitions
}

fn some<T>(random: &mut StdRng, rows: usize, mut make: impl FnMut(&mut StdRng) -> T) -> Vec<Option<T>> {
    (0..rows)
        .map(|_| (!random.random_bool(0.15)).then(|| make(random)))
        .collect()
}

fn word(random: &mut StdRng) -> String {
    const WORDS: [&str; 8] = ["", "a", "b", "ab", "longer than twelve bytes", "ü", "NULL", "a'b"];
    if random.random_bool(0.02) {
        return "x".repeat(random.random_range(1..20_000));
    }
    WORDS[random.random_range(0..WORDS.len())].to_string()
}

/// Multiples of a quarter add up exactly in any order.
fn float(random: &mut StdRng) -> f64 {
    match random.random_range(0..20) {
        0 => f64::NAN,
        1 => -0.0,
        2 => 0.0,
        3 => f64::INFINITY,
        _ => f64::from(random.random_range(-20..20)) / 4.0,
    }
}

fn batch(random: &mut StdRng, rows: usize, first: i64) -> RecordBatch {
    let words: Vec<_> = some(random, rows, word);
    let views: Vec<_> = some(random, rows, word);
    let groups: DictionaryArray<Int8Type> = some(random, rows, |r| ["red", "green", "blue"][r.random_range(0..3)])
        .into_iter()
        .collect();
    let lists = some(random, rows, |r| {
        (0..r.random_range(0..4))
            .map(|i| (i != 2).then_some(i))
            .collect::<Vec<_>>()
    });
    let structure = StructArray::from(vec![
        (
            Arc::new(Field::new("x", DataType::Int64, true)),
            Arc::new(Int64Array::from(some(random, rows, |r| r.random_range(0..3)))) as ArrayRef,
        ),
        (
            Arc::new(Field::new("y", DataType::Utf8, true)),
            Arc::new(StringArray::from(some(random, rows, word))) as ArrayRef,
        ),
    ]);
    let interval = |r: &mut StdRng| IntervalMonthDayNano::new(r.random_range(0..3), r.random_range(0..3), 0);
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(some(random, rows, |r| r.random_range(-5..15)))),
        Arc::new(Int64Array::from_iter_values(first..first + rows as i64)),
        Arc::new(UInt8Array::from(some(random, rows, |r| r.random_range(0..200)))),
        Arc::new(StringArray::from(words)),
        Arc::new(StringViewArray::from_iter(views)),
        Arc::new(groups),
        Arc::new(Float64Array::from(some(random, rows, float))),
        Arc::new(
            Decimal128Array::from(some(random, rows, |r| r.random_range(-500..500)))
                .with_precision_and_scale(12, 2)
                .unwrap(),
        ),
        Arc::new(
            Decimal256Array::from(some(random, rows, |r| i256::from_i128(r.random_range(-9..9))))
                .with_precision_and_scale(50, 3)
                .unwrap(),
        ),
        Arc::new(BooleanArray::from(some(random, rows, |r| r.random_bool(0.5)))),
        Arc::new(
            TimestampMicrosecondArray::from(some(random, rows, |r| r.random_range(0..10) * 3_600_000_000))
                .with_timezone("UTC"),
        ),
        Arc::new(Date32Array::from(some(random, rows, |r| {
            r.random_range(15_000..15_010)
        }))),
        Arc::new(IntervalMonthDayNanoArray::from(some(random, rows, interval))),
        Arc::new(ListArray::from_iter_primitive::<Int64Type, _, _>(lists)),
        Arc::new(structure),
    ];
    RecordBatch::try_new(schema(), columns).unwrap()
}
