use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Float64Array, Int64Array, TimestampMillisecondArray, TimestampNanosecondArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Float64Type, Int64Type, Schema, SchemaRef, TimeUnit};
use proptest::prelude::*;

use super::*;
use crate::data::with_row_kind;
use crate::operator::harness::Harness;
use crate::operator::rescaling::{self, PARALLELISMS, Placed, Step};
use crate::plan::{ScalarExpr, SchemaSpec, SortKey};

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("ts", DataType::Timestamp(TimeUnit::Millisecond, None), true),
        Field::new("f", DataType::Float64, true),
        Field::new("n", DataType::Int64, false),
    ]))
}

/// Time, key, number.
type Row = (i64, Option<f64>, i64);

fn batch(rows: &[Row]) -> Batch {
    let columns: Vec<ArrayRef> = vec![
        Arc::new(TimestampMillisecondArray::from_iter_values(
            rows.iter().map(|row| row.0),
        )),
        Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.1))),
        Arc::new(Int64Array::from_iter_values(rows.iter().map(|row| row.2))),
    ];
    Batch::try_new(schema(), columns).unwrap()
}

fn harness(descending: bool, nulls_first: bool) -> Harness<StreamSort> {
    let key = SortKey {
        expr: ScalarExpr::column(1, &schema()),
        descending,
        nulls_first,
    };
    let spec = StreamSortSpec {
        time: 0,
        keys: vec![key],
        schema: SchemaSpec(schema()),
    };
    Harness::new(StreamSort::new(&spec).unwrap())
}

fn numbers(rows: &Batch) -> Vec<i64> {
    rows.column(2).as_primitive::<Int64Type>().values().to_vec()
}

proptest! {
    #[test]
    fn goes_on_after_a_cut_in_the_same_order(
        steps in proptest::collection::vec((0..4_usize, proptest::collection::vec((0_i64..15, 0_usize..4), 1..20), 0_i64..8), 1..16),
        batch_size in 1_usize..12,
    ) {
        let keys = [None, Some(f64::NAN), Some(0.0), Some(7.0)];
        let (mut reached, mut number) = (0, 0);
        let steps = steps.into_iter().map(|(step, rows, by)| match step {
            0 | 1 => {
                let rows: Vec<Row> = rows.iter().map(|(time, key)| {
                    number += 1;
                    (reached + time - 2, keys[*key], number)
                }).collect();
                Step::Rows(0, batch(&rows))
            }
            2 => {
                reached += by;
                Step::Watermark(reached)
            }
            _ => Step::Cut(PARALLELISMS[by as usize % 4]),
        });
        let mut steps: Vec<_> = steps.collect();
        // All rows to the first subtask, as the planner says.
        let placed = Placed { keys: &[Some(&[])], batch_size, ends_again: true };
        let make = || harness(true, false).operator;
        let disturbed = rescaling::run(make, &placed, 1, &steps);
        steps.retain(|step| !matches!(step, Step::Cut(_)));
        let undisturbed = rescaling::run(make, &placed, 1, &steps);
        let [disturbed, undisturbed] = [disturbed, undisturbed].map(|batches| numbers(&concat_batches(&schema(), &batches).unwrap()));
        prop_assert_eq!(disturbed, undisturbed);
    }

    #[test]
    fn agrees_with_a_sort_of_all_that_is_not_late(
        batches in proptest::collection::vec((proptest::collection::vec((0_i64..15, 0_usize..6), 1..10), proptest::option::of(0_i64..15)), 1..10),
        descending: bool,
        nulls_first: bool,
        batch_size in 1_usize..12,
    ) {
        let keys = [None, Some(-1.5), Some(f64::NAN), Some(0.0), Some(f64::INFINITY), Some(7.0)];
        let mut harness = harness(descending, nulls_first);
        harness.context.batch_size = batch_size;
        let (mut expected, mut late, mut reached, mut number) = (Vec::new(), 0, i64::MIN, 0);
        for (at, (rows, watermark)) in batches.iter().enumerate() {
            let shift = at as i64 * 4;
            let rows: Vec<Row> = rows.iter().map(|(time, key)| {
                number += 1;
                (time + shift, keys[*key], number)
            }).collect();
            harness.push(0, batch(&rows)).unwrap();
            let in_time = rows.iter().filter(|row| row.0 > reached);
            late += rows.len() - in_time.clone().count();
            expected.extend(in_time.copied());
            if let Some(watermark) = watermark.map(|watermark| watermark + shift - 5).filter(|watermark| *watermark > reached) {
                harness.watermark(watermark).unwrap();
                reached = watermark;
                prop_assert!(harness.output.batches.iter().all(|batch| batch.num_rows() <= batch_size));
            }
        }
        harness.watermark(i64::MAX).unwrap();
        prop_assert_eq!(harness.memory.reserved_bytes(), 0);
        harness.end(0).unwrap();
        let by_key = |one: &Row, other: &Row| match (one.1, other.1) {
            (None, None) => std::cmp::Ordering::Equal,
            (None, Some(_)) => if nulls_first { std::cmp::Ordering::Less } else { std::cmp::Ordering::Greater },
            (Some(_), None) => if nulls_first { std::cmp::Ordering::Greater } else { std::cmp::Ordering::Less },
            (Some(one), Some(other)) => if descending { other.total_cmp(&one) } else { one.total_cmp(&other) },
        };
        expected.sort_by(|one, other| one.0.cmp(&other.0).then_with(|| by_key(one, other)));
        let rows = harness.take(&schema());
        prop_assert_eq!(numbers(&rows), expected.iter().map(|row| row.2).collect::<Vec<_>>());
        prop_assert_eq!(harness.context.metrics.late_rows.load(Ordering::Relaxed) as usize, late);
    }
}

#[test]
fn rows_leave_when_the_watermark_has_reached_them() {
    let mut harness = harness(true, false);
    harness
        .push(
            0,
            batch(&[(5, Some(1.0), 1), (3, Some(1.0), 2), (3, Some(2.0), 3), (9, None, 4)]),
        )
        .unwrap();
    harness.watermark(4).unwrap();
    assert_eq!(numbers(&harness.take(&schema())), [3, 2]);
    harness.push(0, batch(&[(4, None, 5), (5, Some(8.0), 6)])).unwrap();
    harness.end(0).unwrap();
    let rest = harness.take(&schema());
    assert_eq!(numbers(&rest), [6, 1, 4]);
    assert_eq!(rest.column(1).as_primitive::<Float64Type>().value(0), 8.0);
    assert_eq!(harness.memory.reserved_bytes(), 0);
}

#[test]
fn times_are_compared_in_their_own_unit() {
    let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new(
        "ts",
        DataType::Timestamp(TimeUnit::Nanosecond, None),
        false,
    )]));
    let spec = StreamSortSpec {
        time: 0,
        keys: vec![],
        schema: SchemaSpec(Arc::clone(&schema)),
    };
    let mut harness = Harness::new(StreamSort::new(&spec).unwrap());
    // One nanosecond before the epoch is in millisecond -1.
    let times: ArrayRef = Arc::new(TimestampNanosecondArray::from(vec![7, 999_999, 5, -1, 1_000_000]));
    harness
        .push(0, Batch::try_new(Arc::clone(&schema), vec![times]).unwrap())
        .unwrap();
    let taken = |harness: &mut Harness<StreamSort>| {
        let rows = harness.take(&schema);
        rows.column(0)
            .as_primitive::<arrow::datatypes::TimestampNanosecondType>()
            .values()
            .to_vec()
    };
    harness.watermark(-1).unwrap();
    assert_eq!(taken(&mut harness), [-1]);
    harness.watermark(0).unwrap();
    assert_eq!(taken(&mut harness), [5, 7, 999_999]);
    harness.watermark(1).unwrap();
    assert_eq!(taken(&mut harness), [1_000_000]);
}

#[test]
fn a_batch_of_which_little_waits_is_let_go() {
    let mut harness = harness(false, false);
    for turn in 0..100_i64 {
        // One row of each batch waits until the end.
        let mut rows: Vec<Row> = (0..1000).map(|n| (turn, None, n)).collect();
        rows[500].0 = 1_000_000 - turn;
        harness.push(0, batch(&rows)).unwrap();
        harness.watermark(turn).unwrap();
    }
    assert!(
        harness.memory.reserved_bytes() < 100 << 10,
        "{}",
        harness.memory.reserved_bytes()
    );
    harness.take(&schema());
    harness.watermark(i64::MAX).unwrap();
    assert_eq!(harness.take(&schema()).num_rows(), 100);
}

#[test]
fn a_changelog_is_refused() {
    let spec = StreamSortSpec {
        time: 0,
        keys: vec![],
        schema: SchemaSpec(with_row_kind(&schema())),
    };
    let message = StreamSort::new(&spec).err().unwrap().to_string();
    assert!(message.contains("taken back"), "{message}");
}
