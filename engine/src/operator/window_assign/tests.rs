//! Windows and sessions against row-at-a-time models.

use std::collections::BTreeMap;

use arrow::array::{Int32Array, TimestampNanosecondArray};
use arrow::datatypes::{Field, Schema};
use proptest::prelude::*;

use super::*;
use crate::operator::harness::Harness;
use crate::operator::session_assign::SessionAssign;
use crate::plan::{ScalarExpr, SchemaSpec, SessionAssignSpec};

/// A row: key, time, window start, window end.
type Row = (Option<i32>, i64, i64, i64);

fn input_schema(unit: TimeUnit) -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int32, true),
        Field::new("ts", DataType::Timestamp(unit, Some("UTC".into())), true),
    ]))
}

fn output_schema(input: &SchemaRef) -> SchemaSpec {
    let mut fields: Vec<Field> = input.fields().iter().map(|field| field.as_ref().clone()).collect();
    for name in ["window_start", "window_end", "window_time"] {
        let data_type = DataType::Timestamp(TimeUnit::Millisecond, Some("UTC".into()));
        fields.push(Field::new(name, data_type, false));
    }
    SchemaSpec(Arc::new(Schema::new(fields)))
}

fn batches(rows: &[(Option<i32>, i64)], size: usize) -> Vec<Batch> {
    let cut = rows.chunks(size.max(1));
    cut.map(|rows| {
        let keys = Int32Array::from_iter(rows.iter().map(|(key, _)| *key));
        let times = TimestampMillisecondArray::from_iter_values(rows.iter().map(|(_, time)| *time));
        let columns: Vec<ArrayRef> = vec![Arc::new(keys), Arc::new(times.with_timezone("UTC"))];
        Batch::try_new(input_schema(TimeUnit::Millisecond), columns).unwrap()
    })
    .collect()
}

fn rows_of(output: &[Batch]) -> Vec<Row> {
    let mut rows = Vec::new();
    for batch in output {
        let keys = batch.column(0).as_primitive::<arrow::datatypes::Int32Type>();
        let time = |column: usize| batch.column(column).as_primitive::<TimestampMillisecondType>();
        for row in 0..batch.num_rows() {
            assert_eq!(time(4).value(row), time(3).value(row) - 1);
            let key = keys.is_valid(row).then(|| keys.value(row));
            rows.push((key, time(1).value(row), time(2).value(row), time(3).value(row)));
        }
    }
    rows.sort_unstable();
    rows
}

fn assign(window: WindowKind, rows: &[(Option<i32>, i64)], size: usize) -> Vec<Row> {
    let input = input_schema(TimeUnit::Millisecond);
    let spec = WindowAssignSpec {
        window,
        time: WindowTime::Event(1),
        schema: output_schema(&input),
    };
    let operator = WindowAssign::new(spec).unwrap();
    rows_of(&Harness::new(operator).run(vec![batches(rows, size)]).unwrap())
}

/// Tries every window that could hold the time.
fn model(window: WindowKind, rows: &[(Option<i32>, i64)]) -> Vec<Row> {
    let mut expected = Vec::new();
    for (key, time) in rows {
        let (period, offset, lengths): (i64, i64, Vec<i64>) = match window {
            WindowKind::Tumble { size_ms, offset_ms } => (size_ms, offset_ms, vec![size_ms]),
            WindowKind::Hop {
                size_ms,
                slide_ms,
                offset_ms,
            } => (slide_ms, offset_ms, vec![size_ms]),
            WindowKind::Cumulate {
                max_ms,
                step_ms,
                offset_ms,
            } => (max_ms, offset_ms, (1..=max_ms / step_ms).map(|n| n * step_ms).collect()),
            WindowKind::Session { .. } => unreachable!(),
        };
        let longest = lengths.iter().max().unwrap();
        for start in time - longest..=*time {
            if (start - offset) % period != 0 {
                continue;
            }
            for length in &lengths {
                if *time < start + length && start <= *time {
                    expected.push((*key, *time, start, start + length));
                }
            }
        }
    }
    expected.sort_unstable();
    expected
}

fn sessions(rows: &[(Option<i32>, i64)], gap_ms: i64, size: usize, keyed: bool) -> Vec<Row> {
    let mut sorted = rows.to_vec();
    sorted.sort_unstable_by_key(|(key, time)| (if keyed { *key } else { None }, *time));
    let input = input_schema(TimeUnit::Millisecond);
    let spec = SessionAssignSpec {
        partition_by: if keyed {
            vec![ScalarExpr::column(0, &input)]
        } else {
            vec![]
        },
        time: 1,
        gap_ms,
        schema: output_schema(&input),
    };
    let operator = SessionAssign::new(spec);
    rows_of(&Harness::new(operator).run(vec![batches(&sorted, size)]).unwrap())
}

/// Merges windows `[time, time + gap)` that overlap, pair by pair, until none do.
fn session_model(rows: &[(Option<i32>, i64)], gap_ms: i64, keyed: bool) -> Vec<Row> {
    let mut windows: BTreeMap<Option<i32>, Vec<(i64, i64)>> = BTreeMap::new();
    let key_of = |key: &Option<i32>| if keyed { *key } else { None };
    for (key, time) in rows {
        let of_key = windows.entry(key_of(key)).or_default();
        let mut new = (*time, time + gap_ms);
        while let Some(touching) = of_key.iter().position(|w| w.0 < new.1 && w.1 > new.0) {
            let other = of_key.remove(touching);
            new = (new.0.min(other.0), new.1.max(other.1));
        }
        of_key.push(new);
    }
    let mut expected: Vec<Row> = rows
        .iter()
        .map(|(key, time)| {
            let of_key = &windows[&key_of(key)];
            let window = of_key.iter().find(|w| w.0 <= *time && *time < w.1).unwrap();
            (*key, *time, window.0, window.1)
        })
        .collect();
    expected.sort_unstable();
    expected
}

fn rows_strategy() -> impl Strategy<Value = Vec<(Option<i32>, i64)>> {
    proptest::collection::vec((proptest::option::of(0..3), -60i64..60), 0..60)
}

proptest! {
    #[test]
    fn every_row_is_in_the_windows_that_hold_it(
        rows in rows_strategy(), times in 1i64..6, short in 1i64..8, offset in -7i64..8, batch in 1usize..20,
    ) {
        let offset_ms = offset % short;
        let kinds = [
            WindowKind::Tumble { size_ms: short, offset_ms },
            WindowKind::Hop { size_ms: short * times, slide_ms: short, offset_ms },
            WindowKind::Cumulate { max_ms: short * times, step_ms: short, offset_ms },
        ];
        for window in kinds {
            window.check().unwrap();
            prop_assert_eq!(assign(window, &rows, batch), model(window, &rows), "{}", window);
        }
    }

    #[test]
    fn sessions_are_those_that_merging_gives(
        rows in rows_strategy(), gap_ms in 1i64..12, batch in 1usize..20, keyed: bool,
    ) {
        prop_assert_eq!(sessions(&rows, gap_ms, batch, keyed), session_model(&rows, gap_ms, keyed));
    }
}

#[test]
fn rows_exactly_a_gap_apart_are_two_sessions() {
    let rows = [(Some(1), 0), (Some(1), 9), (Some(1), 19)];
    let expected = [(Some(1), 0, 0, 19), (Some(1), 9, 0, 19), (Some(1), 19, 19, 29)];
    assert_eq!(sessions(&rows, 10, 8, true), expected);
}

#[test]
fn finer_times_round_down_also_before_1970() {
    let input = input_schema(TimeUnit::Nanosecond);
    let times = TimestampNanosecondArray::from(vec![-1, 999_999, 1_000_000]).with_timezone("UTC");
    let keys = Int32Array::from(vec![1, 2, 3]);
    let batch = Batch::try_new(Arc::clone(&input), vec![Arc::new(keys), Arc::new(times)]).unwrap();
    assert_eq!(times_ms(&batch, 1).unwrap(), [-1, 0, 1]);
}

#[test]
fn a_missing_time_is_an_error_that_names_the_column() {
    let input = input_schema(TimeUnit::Millisecond);
    let times = TimestampMillisecondArray::from(vec![Some(1), None]).with_timezone("UTC");
    let keys = Int32Array::from(vec![1, 2]);
    let batch = Batch::try_new(Arc::clone(&input), vec![Arc::new(keys), Arc::new(times)]).unwrap();
    let spec = WindowAssignSpec {
        window: WindowKind::Tumble {
            size_ms: 10,
            offset_ms: 0,
        },
        time: WindowTime::Event(1),
        schema: output_schema(&input),
    };
    let error = Harness::new(WindowAssign::new(spec).unwrap())
        .run(vec![vec![batch]])
        .unwrap_err();
    assert!(error.to_string().contains("column 'ts' is NULL"), "{error}");
}

#[test]
fn times_at_the_end_of_the_world_are_refused() {
    let rows = [(Some(1), i64::MAX - 5)];
    let input = input_schema(TimeUnit::Millisecond);
    let spec = WindowAssignSpec {
        window: WindowKind::Tumble {
            size_ms: 10,
            offset_ms: 0,
        },
        time: WindowTime::Event(1),
        schema: output_schema(&input),
    };
    let error = Harness::new(WindowAssign::new(spec).unwrap())
        .run(vec![batches(&rows, 1)])
        .unwrap_err();
    assert!(error.to_string().contains("no window can hold"), "{error}");
}

#[test]
fn a_session_that_does_not_fit_is_an_error() {
    let rows: Vec<(Option<i32>, i64)> = (0..20_000).map(|time| (Some(1), time)).collect();
    let input = input_schema(TimeUnit::Millisecond);
    let spec = SessionAssignSpec {
        partition_by: vec![ScalarExpr::column(0, &input)],
        time: 1,
        gap_ms: 10,
        schema: output_schema(&input),
    };
    let harness = Harness::with_memory(SessionAssign::new(spec), 64 << 10);
    assert!(harness.run(vec![batches(&rows, 1000)]).is_err());
}

#[test]
fn lengths_that_contradict_each_other_are_refused() {
    let hop = |size_ms, slide_ms| {
        WindowKind::Hop {
            size_ms,
            slide_ms,
            offset_ms: 0,
        }
        .check()
    };
    assert!(hop(10, 5).is_ok());
    assert_eq!(
        hop(10, 3).unwrap_err(),
        "the size (10 ms) is not a multiple of the slide (3 ms); make it one"
    );
    assert!(hop(10, 0).unwrap_err().contains("the slide is 0 ms"));
    assert!(hop(-10, 5).unwrap_err().contains("the size is -10 ms"));
    assert!(WindowKind::Session { gap_ms: 0 }.check().is_err());
    assert!(
        WindowKind::Tumble {
            size_ms: i64::MAX,
            offset_ms: 0
        }
        .check()
        .is_err()
    );
    assert!(
        WindowKind::Tumble {
            size_ms: 10,
            offset_ms: 10
        }
        .check()
        .is_err()
    );
    assert!(
        WindowKind::Tumble {
            size_ms: 10,
            offset_ms: i64::MIN
        }
        .check()
        .is_err()
    );
    assert!(
        WindowKind::Tumble {
            size_ms: 10,
            offset_ms: -9
        }
        .check()
        .is_ok()
    );
}
