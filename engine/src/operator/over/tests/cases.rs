//! By hand: what leaves when, what is refused, what is forgotten.

use super::super::kept::{self, Entered, Room};
use super::*;

/// Hands what functions keep of two partitions, which share a queue, over to others.
fn moved(
    from: &mut [Box<dyn kept::Function>; 2],
    to: &mut [Box<dyn kept::Function>; 2],
    queue: Option<Queue>,
    bound: Option<Bound>,
) -> Option<Queue> {
    let frozen: Vec<_> = from.iter_mut().map(|function| function.freeze().unwrap()).collect();
    for (function, frozen) in to.iter_mut().zip(&frozen) {
        let room = Room { groups: 2, slots: 0 };
        function
            .restore_groups(&[0, 1], &frozen.groups(&[0, 1]).unwrap(), room)
            .unwrap();
    }
    let (old, mut fresh) = (queue?, Queue::new(bound?));
    fresh.grow(2);
    for group in [1, 0] {
        let (mut slots, mut times) = (Vec::new(), Vec::new());
        old.rows_of(group, None, usize::MAX, &mut slots, &mut times);
        let groups = vec![group; slots.len()];
        let (entered, is_first) = fresh.enter(&groups, &times).unwrap();
        let rows = Entered {
            groups: &groups,
            slots: &entered,
            is_first: &is_first,
        };
        let room = Room {
            groups: 2,
            slots: fresh.next().len(),
        };
        for (function, frozen) in to.iter_mut().zip(&frozen) {
            function
                .restore_slots(&rows, &frozen.slots(&slots).unwrap(), room)
                .unwrap();
        }
    }
    Some(fresh)
}

#[test]
fn rows_leave_in_the_order_of_time_with_the_watermark_behind_them() {
    let functions = [(plain(sum::sum_udaf(), "v"), OverFrame::RowsUnbounded)];
    let mut harness = Harness::new(Over::new(spec(&functions, WindowTime::Event(1), 0)).unwrap());
    harness
        .push(0, batch(&[row(1, 5, 50), row(2, 3, 30), row(1, 3, 31), row(1, 9, 90)]))
        .unwrap();
    assert!(appended(&mut harness).is_empty());
    harness.watermark(2).unwrap();
    assert!(appended(&mut harness).is_empty());
    harness.watermark(5).unwrap();
    assert_eq!(appended(&mut harness), ["30", "31", "81"]);
    harness.push(0, batch(&[row(1, 5, 1000), row(1, 6, 60)])).unwrap();
    assert_eq!(harness.context.metrics.late_rows.load(Ordering::Relaxed), 1);
    harness.watermark(i64::MAX).unwrap();
    assert_eq!(appended(&mut harness), ["141", "231"]);
    assert_eq!(harness.output.watermarks, [2, 5, i64::MAX].map(Watermark));
}

#[test]
fn a_null_time_is_an_error_that_names_the_column() {
    let functions = [(plain(count::count_udaf(), "v"), OverFrame::RowsUnbounded)];
    let mut harness = Harness::new(Over::new(spec(&functions, WindowTime::Event(1), 0)).unwrap());
    let good = batch(&[row(1, 5, 50), row(2, 3, 30)]);
    let mut columns = good.columns().to_vec();
    columns[1] = Arc::new(TimestampMillisecondArray::from(vec![Some(1), None]).with_timezone("UTC"));
    let message = harness
        .push(0, Batch::try_new(schema(), columns).unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("'ts'") && message.contains("WHERE ts IS NOT NULL"),
        "{message}"
    );
}

#[test]
fn sums_of_floats_forget_what_has_left() {
    // Subtraction would leave 0 or NaN behind.
    for huge in [1e300, f64::NAN, f64::INFINITY] {
        let functions = [
            (plain(sum::sum_udaf(), "f"), OverFrame::Rows(1)),
            (plain(average::avg_udaf(), "f"), OverFrame::Range(1)),
        ];
        let mut harness = Harness::new(Over::new(spec(&functions, WindowTime::Event(1), 0)).unwrap());
        let mut rows: Vec<Row> = (0..5).map(|n| row(1, n, 1)).collect();
        rows[1].f = Some(huge);
        harness.push(0, batch(&rows)).unwrap();
        harness.watermark(i64::MAX).unwrap();
        assert_eq!(appended(&mut harness)[3..], ["2.0|1.0", "2.0|1.0"]);
    }
}

#[test]
fn decimals_keep_their_scale_and_averages_get_more() {
    let time = DataType::Timestamp(TimeUnit::Microsecond, None);
    let input: SchemaRef = Arc::new(Schema::new(vec![
        Field::new("k", DataType::Int32, true),
        Field::new("ts", time, false),
        Field::new("d", DataType::Decimal128(10, 2), true),
    ]));
    let frame = OverFrame::Range(1);
    let functions = [
        (plain(sum::sum_udaf(), "d"), frame),
        (plain(average::avg_udaf(), "d"), frame),
        (plain(min_max::max_udaf(), "d"), frame),
    ];
    let mut harness = Harness::new(Over::new(spec_over(&input, &functions, WindowTime::Event(1), 0)).unwrap());
    // Microseconds: 1.999 ms is not within 1 ms of 0.
    let times = vec![0, 999, 1000, 1999, 3500];
    let values = vec![Some(100), None, Some(201), Some(-50), None];
    let columns: Vec<ArrayRef> = vec![
        Arc::new(Int32Array::from(vec![None::<i32>; 5])),
        Arc::new(TimestampMicrosecondArray::from(times)),
        Arc::new(Decimal128Array::from(values).with_precision_and_scale(10, 2).unwrap()),
    ];
    harness.push(0, Batch::try_new(input, columns).unwrap()).unwrap();
    harness.watermark(1).unwrap();
    let rows = harness.take(&Arc::clone(&harness.operator.schema));
    let decimals = |column: usize| {
        let column = rows.column(column).as_primitive::<arrow::datatypes::Decimal128Type>();
        (0..column.len())
            .map(|row| column.is_valid(row).then(|| column.value_as_string(row)))
            .collect::<Vec<_>>()
    };
    let texts = |of: &[&str]| of.iter().map(|text| Some(text.to_string())).collect::<Vec<_>>();
    // The row at 1.999 ms belongs to millisecond 1, which the watermark has reached.
    assert_eq!(decimals(3), texts(&["1.00", "1.00", "3.01", "1.51"]));
    assert_eq!(decimals(4), texts(&["1.000000", "1.000000", "1.505000", "0.755000"]));
    assert_eq!(decimals(5), texts(&["1.00", "1.00", "2.01", "2.01"]));
    harness.watermark(i64::MAX).unwrap();
    let rows = harness.take(&Arc::clone(&harness.operator.schema));
    assert!((3..6).all(|column| rows.column(column).is_null(0)));
}

#[test]
fn partitions_of_ranges_go_when_no_row_can_see_theirs_any_more() {
    let functions = [
        (plain(sum::sum_udaf(), "v"), OverFrame::Range(10)),
        (plain(min_max::max_udaf(), "s"), OverFrame::Range(10)),
        (plain(min_max::min_udaf(), "v"), OverFrame::Range(20)),
    ];
    let mut harness = Harness::new(Over::new(spec(&functions, WindowTime::Event(1), 0)).unwrap());
    let mut largest = 0;
    for turn in 0..200_i64 {
        // New keys all the time, and key 7 in between.
        let rows: Vec<Row> = (0..1000)
            .map(|n| row((turn * 1000 + n) as i32, turn * 10, n))
            .chain([row(-7, turn * 10, turn)])
            .collect();
        harness.push(0, batch(&rows)).unwrap();
        harness.watermark(turn * 10).unwrap();
        largest = largest.max(harness.operator.bytes());
        let rows = appended(&mut harness);
        let own = rows.iter().max_by_key(|_| 0).unwrap();
        assert_eq!(rows.len(), 1001);
        let (sum, min) = (turn + (turn - 1).max(0), (turn - 2).max(0));
        assert_eq!(
            *own,
            format!("{sum}|{}|{min}", turn.to_string().max((turn - 1).max(0).to_string()))
        );
    }
    assert!(largest < 8 << 20, "{largest} bytes for about 20 000 rows");
    assert!(harness.operator.partitions.len() < 50_000);
}

#[test]
fn a_silent_partition_is_forgotten() {
    let frames = [OverFrame::RowsUnbounded, OverFrame::Rows(9), OverFrame::RangeUnbounded];
    for way in frames {
        let functions = [
            (plain(sum::sum_udaf(), "v"), way),
            (plain(min_max::max_udaf(), "v"), way),
            (plain(min_max::max_udaf(), "s"), way),
            (plain(first_last::first_value_udaf(), "v"), way),
        ];
        let mut spec = spec(&functions, WindowTime::Processing, 1);
        spec.ttl_ms = Some(100);
        let mut harness = Harness::new(Over::new(spec).unwrap());
        harness.push(0, batch(&[row(1, 0, 9), row(2, 0, 7)])).unwrap();
        harness.advance(Duration::from_millis(60)).unwrap();
        harness.push(0, batch(&[row(1, 0, 1)])).unwrap();
        // 99 ms after its last row key 1 is known, 100 ms after its own key 2 is not.
        harness.advance(Duration::from_millis(99)).unwrap();
        assert_eq!(harness.operator.partitions.alive(), 1);
        harness.push(0, batch(&[row(1, 0, 2), row(2, 0, 3)])).unwrap();
        assert_eq!(
            appended(&mut harness),
            ["9|9|9|9|1", "7|7|7|7|1", "10|9|9|9|2", "12|9|9|9|3", "3|3|3|3|1"]
        );
        harness.advance(Duration::from_millis(300)).unwrap();
        assert_eq!(harness.operator.next_timer(), None);
        assert_nothing_held(&harness);
    }
}

#[test]
fn what_is_held_is_booked_and_must_fit() {
    let functions = [(plain(sum::sum_udaf(), "v"), OverFrame::RowsUnbounded)];
    let over = || Over::new(spec(&functions, WindowTime::Event(1), 0)).unwrap();
    let rows: Vec<Row> = (0..5000).map(|n| row(n % 10, i64::from(n), 1)).collect();
    let mut harness = Harness::with_memory(over(), 100 << 10);
    let refused = harness.push(0, batch(&rows)).unwrap_err().to_string();
    assert!(refused.contains("operator under test"), "{refused}");
    let mut harness = Harness::with_memory(over(), 4 << 20);
    harness.push(0, batch(&rows)).unwrap();
    harness.watermark(i64::MAX).unwrap();
    assert_eq!(appended(&mut harness).len(), 5000);
    // An empty table of keys.
    assert!(harness.memory.reserved_bytes() < 16 << 10);
    harness.end(0).unwrap();
    assert_eq!(harness.memory.reserved_bytes(), 0);
}

#[test]
fn what_cannot_be_is_refused_when_it_is_planned() {
    let range = [(plain(sum::sum_udaf(), "v"), OverFrame::Range(-5))];
    assert!(Over::new(spec(&range, WindowTime::Event(1), 0)).is_err());
    let sum = [(plain(sum::sum_udaf(), "v"), OverFrame::Rows(1))];
    let message = Over::new(spec(&sum, WindowTime::Event(2), 0))
        .err()
        .unwrap()
        .to_string();
    assert!(message.contains("'v' is Int64, not a timestamp"), "{message}");
}

#[test]
fn without_partitions_all_rows_are_one() {
    let functions = [(plain(sum::sum_udaf(), "v"), OverFrame::Rows(1))];
    let mut spec = spec(&functions, WindowTime::Event(1), 1);
    spec.partition_by.clear();
    let mut harness = Harness::new(Over::new(spec).unwrap());
    harness
        .push(0, batch(&[row(1, 5, 50), row(2, 3, 30), row(3, 9, 90)]))
        .unwrap();
    harness.watermark(6).unwrap();
    harness.push(0, batch(&[row(4, 8, 80)])).unwrap();
    harness.watermark(i64::MAX).unwrap();
    assert_nothing_held(&harness);
    assert_eq!(appended(&mut harness), ["30|1", "80|2", "130|3", "170|4"]);
}

#[test]
fn own_code_and_datafusions_agree_on_every_type() {
    use arrow::compute::cast;
    use arrow::datatypes::DataType::*;

    let second = TimeUnit::Second;
    let types = [
        Int8,
        Int16,
        Int32,
        Int64,
        UInt8,
        UInt16,
        UInt32,
        UInt64,
        Float32,
        Float64,
        Date32,
        Date64,
        Time32(second),
        Time64(TimeUnit::Nanosecond),
        Timestamp(second, Some("UTC".into())),
        Timestamp(TimeUnit::Nanosecond, None),
        Duration(second),
        Decimal128(12, 3),
        Utf8,
    ];
    let numbers = [
        Some(7),
        None,
        Some(3),
        Some(9),
        Some(9),
        None,
        None,
        None,
        Some(1),
        Some(100),
        Some(2),
    ];
    let udafs = [
        sum::sum_udaf(),
        average::avg_udaf(),
        min_max::min_udaf(),
        min_max::max_udaf(),
        count::count_udaf(),
    ];
    let mut compared = 0;
    for data_type in types {
        let values: ArrayRef = Arc::new(Int64Array::from(numbers.to_vec()));
        let values = match data_type {
            Time32(_) => cast(&values, &Int32).unwrap(),
            _ => values,
        };
        let values = cast(&values, &data_type).unwrap();
        let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("x", data_type.clone(), true)]));
        for udaf in &udafs {
            let builder = AggregateExprBuilder::new(Arc::clone(udaf), vec![column("x", &schema)]);
            // Not every function takes every type: the planner casts.
            let Ok(function) = builder.schema(Arc::clone(&schema)).alias("f").build() else {
                continue;
            };
            if function.create_accumulator().is_err() {
                continue;
            }
            let function = Arc::new(function);
            let result = function.field().data_type().clone();
            for bound in [None, Some(Bound::Rows(2)), Some(Bound::Time(3))] {
                let make = || -> [Box<dyn kept::Function>; 2] {
                    let arguments = std::slice::from_ref(&data_type);
                    let general = general::General::new(
                        Arc::clone(&function),
                        arguments.to_vec(),
                        result.clone(),
                        bound.is_some(),
                    );
                    let own = over_function(&function, arguments, &result, bound.is_some());
                    [own, Box::new(general)]
                };
                let mut functions = make();
                let groups = [0, 1, 0, 0, 1, 1, 1, 1, 1, 0, 1];
                let times: Vec<i64> = (0..11).collect();
                let mut queue = bound.map(Queue::new);
                // Again and again: what is kept goes on, in others as well.
                for turn in 0..4 {
                    if turn > 1 {
                        let mut others = make();
                        queue = moved(&mut functions, &mut others, queue, bound);
                        functions = others;
                    }
                    let mut steps = Steps::of_rows(&groups);
                    steps.groups_total = 2;
                    if let Some(queue) = &mut queue {
                        queue.grow(2);
                        let times: Vec<i64> = times.iter().map(|time| time + 11 * turn).collect();
                        queue.plan(&mut steps, &times).unwrap();
                    }
                    let input = fold::Input {
                        values: vec![Arc::clone(&values)],
                        filter: None,
                    };
                    let next = queue.as_ref().map_or(&[][..], Queue::next);
                    let [one, other] = functions
                        .each_mut()
                        .map(|function| function.run(&input, &steps, next).unwrap());
                    assert_eq!(&one, &other, "{} of {data_type} over {bound:?}", udaf.name());
                    assert_eq!(one.data_type(), &result);
                    if let Some(queue) = &mut queue {
                        queue.settle(&steps);
                    }
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 300, "{compared}");
}

#[test]
fn a_function_whose_past_is_not_known_is_refused_by_name() {
    let frame = OverFrame::Rows(2);
    let old = spec(&[(plain(sum::sum_udaf(), "v"), frame)], WindowTime::Event(1), 0);
    let both = [
        (plain(sum::sum_udaf(), "v"), frame),
        (plain(count::count_udaf(), "v"), frame),
    ];
    let new = spec(&both, WindowTime::Event(1), 0);
    let mut before = Harness::new(Over::new(old.clone()).unwrap());
    before.push(0, batch(&[row(1, 5, 50)])).unwrap();
    before.watermark(5).unwrap();
    let stored = [vec![before.snapshot(1, None).unwrap()]];
    let mut after = Harness::new(Over::new(new.clone()).unwrap());
    let error = after.restore((0, 1), &stored).unwrap_err().to_string();
    assert!(
        error.contains("'count over 2 rows: count' of table 'partitions' is new"),
        "{error}"
    );
    // One that is gone takes its state with it.
    let mut before = Harness::new(Over::new(new).unwrap());
    before.push(0, batch(&[row(1, 5, 50)])).unwrap();
    before.watermark(5).unwrap();
    let stored = [vec![before.snapshot(1, None).unwrap()]];
    let mut after = Harness::new(Over::new(old).unwrap());
    after.restore((0, 1), &stored).unwrap();
    after.push(0, batch(&[row(1, 6, 1)])).unwrap();
    after.watermark(6).unwrap();
    assert_eq!(appended(&mut after), ["51"]);
}
