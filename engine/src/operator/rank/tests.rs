//! Against a naive rank over the folded input, and by hand.

mod snapshots;

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering as Atomic;
use std::time::Duration;

use arrow::array::{ArrayRef, Float64Array, Int64Array, StringViewArray, TimestampMicrosecondArray, UInt8Array};
use arrow::datatypes::{Field, Schema, SchemaRef};
use proptest::prelude::*;

use super::*;
use crate::data::{RowKind, Watermark, with_row_kind};
use crate::operator::harness::Harness;
use crate::operator::keyed::folded::{Folded, changes, lines};
use crate::operator::{Collector, Context, Port};
use crate::plan::{ScalarExpr, SchemaSpec};
use crate::state::{Restored, Snapshot};
use crate::time::Timer;

/// Whatever operator the spec asks for.
struct Any(Box<dyn Operator>);

impl Operator for Any {
    fn on_batch(&mut self, port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.0.on_batch(port, batch, cx, out)
    }
    fn on_watermark(&mut self, watermark: Watermark, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.0.on_watermark(watermark, cx, out)
    }
    fn on_timer(&mut self, timer: Timer, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.0.on_timer(timer, cx, out)
    }
    fn next_timer(&self) -> Option<i64> {
        self.0.next_timer()
    }
    fn on_end(&mut self, port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.0.on_end(port, cx, out)
    }
    fn snapshot(&mut self, state: &mut Snapshot, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.0.snapshot(state, cx, out)
    }
    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        self.0.restore(state, cx)
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Row {
    p: Option<i64>,
    o: Option<i64>,
    f: Option<f64>,
    s: &'static str,
    end_us: Option<i64>,
}

fn row(p: i64, o: i64, s: &'static str) -> Row {
    Row {
        p: Some(p),
        o: Some(o),
        f: None,
        s,
        end_us: Some(0),
    }
}

fn input() -> SchemaRef {
    let time = DataType::Timestamp(arrow::datatypes::TimeUnit::Microsecond, Some("UTC".into()));
    Arc::new(Schema::new(vec![
        Field::new("p", DataType::Int64, true),
        Field::new("o", DataType::Int64, true),
        Field::new("f", DataType::Float64, true),
        Field::new("s", DataType::Utf8View, false),
        Field::new("end", time, true),
    ]))
}

fn columns(rows: &[Row]) -> Vec<ArrayRef> {
    let ends = TimestampMicrosecondArray::from_iter(rows.iter().map(|row| row.end_us));
    vec![
        Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.p))),
        Arc::new(Int64Array::from_iter(rows.iter().map(|row| row.o))),
        Arc::new(Float64Array::from_iter(rows.iter().map(|row| row.f))),
        Arc::new(StringViewArray::from_iter_values(rows.iter().map(|row| row.s))),
        Arc::new(ends.with_timezone("UTC")),
    ]
}

fn batch(rows: &[Row]) -> Batch {
    Batch::try_new(input(), columns(rows)).unwrap()
}

fn changelog(rows: &[(RowKind, Row)]) -> Batch {
    let plain: Vec<Row> = rows.iter().map(|(_, row)| row.clone()).collect();
    let mut columns = columns(&plain);
    columns.push(Arc::new(UInt8Array::from_iter_values(
        rows.iter().map(|(kind, _)| *kind as u8),
    )));
    Batch::try_new(with_row_kind(&input()), columns).unwrap()
}

/// Orders by a column, descending, NULLs first.
type Order = &'static [(usize, bool, bool)];

/// Keys of at most 16 bytes, of at most 32, and longer ones.
const ORDERS: [Order; 5] = [
    &[(1, false, false)],
    &[(1, true, false)],
    &[(1, true, true), (2, false, true)],
    &[(3, true, false), (1, false, false)],
    &[],
];

fn spec(order: Order, first: usize, last: usize, number: bool) -> RankSpec {
    let keys = order.iter().map(|(column, descending, nulls_first)| SortKey {
        expr: ScalarExpr::column(*column, &input()),
        descending: *descending,
        nulls_first: *nulls_first,
    });
    RankSpec {
        partition_by: vec![ScalarExpr::column(0, &input())],
        order_by: keys.collect(),
        first,
        last,
        number,
        window_end: None,
        by_time: false,
        input_schema: SchemaSpec(input()),
        update_before: true,
        ttl_ms: None,
        schema: SchemaSpec(with_row_kind(&output(number))),
    }
}

fn output(number: bool) -> SchemaRef {
    let mut fields: Vec<Field> = input().fields().iter().map(|field| field.as_ref().clone()).collect();
    if number {
        fields.push(Field::new("place", DataType::UInt64, false));
    }
    Arc::new(Schema::new(fields))
}

fn harness(spec: &RankSpec) -> Harness<Any> {
    Harness::new(Any(rank(spec).unwrap()))
}

/// Compares as SQL sorts; NULLs where they are wanted.
fn compare(order: Order, a: &Row, b: &Row) -> Ordering {
    fn values<T>(a: Option<T>, b: Option<T>, by: impl Fn(&T, &T) -> Ordering, key: (bool, bool)) -> Ordering {
        match (a, b) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) if key.1 => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) if key.1 => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(a), Some(b)) if key.0 => by(&b, &a),
            (Some(a), Some(b)) => by(&a, &b),
        }
    }
    order
        .iter()
        .fold(Ordering::Equal, |so_far, (column, descending, nulls_first)| {
            let key = (*descending, *nulls_first);
            so_far.then(match column {
                1 => values(a.o, b.o, Ord::cmp, key),
                2 => values(a.f, b.f, f64::total_cmp, key),
                _ => values(Some(a.s), Some(b.s), Ord::cmp, key),
            })
        })
}

/// The rows that are shown, in order, with their places.
fn shown(table: &[Row], order: Order, spec: &RankSpec) -> Vec<String> {
    let mut partitions: BTreeMap<(Option<i64>, Option<i64>), Vec<Row>> = BTreeMap::new();
    for row in table {
        let window = row.end_us.filter(|_| spec.window_end.is_some());
        partitions.entry((window, row.p)).or_default().push(row.clone());
    }
    let mut result = Vec::new();
    for mut rows in partitions.into_values() {
        rows.sort_by(|a, b| compare(order, a, b));
        for (place, row) in (1..)
            .zip(rows)
            .filter(|(place, _)| (spec.first..=spec.last).contains(place))
        {
            let line = lines(&batch(&[row])).remove(0);
            result.push(if spec.number { format!("{line}|{place}") } else { line });
        }
    }
    result
}

fn rows() -> impl Strategy<Value = Row> {
    const TEXTS: [&str; 4] = ["a", "b", "a longer text, not inlined", "a longer text, not inlined too"];
    (
        prop::option::weighted(0.9, 0..3i64),
        prop::option::weighted(0.9, 0..6i64),
        prop::option::weighted(0.9, (0..4usize).prop_map(|at| [-1.5, 0.0, 2.0, f64::NAN][at])),
        (0..4usize).prop_map(|at| TEXTS[at]),
    )
        .prop_map(|(p, o, f, s)| Row {
            p,
            o,
            f,
            s,
            end_us: Some(0),
        })
}

fn insertions() -> impl Strategy<Value = Vec<Vec<Row>>> {
    prop::collection::vec(prop::collection::vec(rows(), 1..15), 1..12)
}

/// Folds what comes out after each batch and compares it with the naive rank.
fn check_insertions(spec: &RankSpec, order: Order, input: &[Vec<Row>]) {
    let mut harness = harness(spec);
    let (mut table, mut folded) = (Vec::new(), Folded::default());
    for rows in input {
        table.extend(rows.iter().cloned());
        harness.push(0, batch(rows)).unwrap();
        let output = harness.take(&spec.schema.0);
        let now = if spec.update_before {
            folded.fold(&output);
            folded.clone()
        } else {
            let place = spec.number.then_some(5);
            folded.upsert(&output, &[0].into_iter().chain(place).collect::<Vec<_>>());
            folded.without_keys()
        };
        assert_eq!(now, Folded::of(shown(&table, order, spec)), "{order:?}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_best_of_insertions(input in insertions(), first in 1usize..3, more in 0usize..4, number: bool) {
        for order in ORDERS {
            let spec = spec(order, first, first + more, number);
            check_insertions(&spec, order, &input);
            if number || more == 0 {
                check_insertions(&RankSpec { update_before: false, ..spec }, order, &input);
            }
        }
    }

    #[test]
    fn the_best_of_a_changelog(
        input in prop::collection::vec(
            prop::collection::vec((rows(), prop::option::weighted(0.45, any::<prop::sample::Index>())), 1..15), 1..12),
        first in 1usize..3, more in 0usize..4, number: bool,
    ) {
        for order in ORDERS {
            let mut spec = spec(order, first, first + more, number);
            spec.input_schema = SchemaSpec(with_row_kind(&super::tests::input()));
            let mut harness = harness(&spec);
            let (mut table, mut folded) = (Vec::<Row>::new(), Folded::default());
            for steps in &input {
                let mut log = Vec::new();
                for (row, taken) in steps {
                    match taken {
                        Some(at) if !table.is_empty() => {
                            // Of equal rows the first goes.
                            let row = table[at.index(table.len())].clone();
                            let at = table.iter().position(|other| format!("{other:?}") == format!("{row:?}"));
                            table.remove(at.unwrap());
                            log.push((RowKind::Delete, row));
                        }
                        Some(_) => log.push((RowKind::UpdateBefore, Row { p: Some(99), ..row.clone() })),
                        None => {
                            table.push(row.clone());
                            log.push((RowKind::UpdateAfter, row.clone()));
                        }
                    }
                }
                harness.push(0, changelog(&log)).unwrap();
                folded.fold(&harness.take(&spec.schema.0));
                prop_assert_eq!(&folded, &Folded::of(shown(&table, order, &spec)), "{:?}", order);
            }
            // When all are taken back nothing is kept.
            let log: Vec<_> = table.into_iter().map(|row| (RowKind::Delete, row)).collect();
            harness.push(0, changelog(&log)).unwrap();
            folded.fold(&harness.take(&spec.schema.0));
            prop_assert_eq!(folded, Folded::default());
        }
    }

    #[test]
    fn one_row_by_time(input in insertions(), last: bool, number: bool, update_before: bool) {
        let order: Order = if last { ORDERS[1] } else { ORDERS[0] };
        let spec = RankSpec { by_time: true, update_before, ..spec(order, 1, 1, number) };
        let mut harness = harness(&spec);
        let mut folded = Folded::default();
        let mut model: BTreeMap<Option<i64>, Row> = BTreeMap::new();
        for rows in &input {
            harness.push(0, batch(rows)).unwrap();
            let output = harness.take(&spec.schema.0);
            let now = if update_before {
                folded.fold(&output);
                folded.clone()
            } else {
                folded.upsert(&output, &[0]);
                folded.without_keys()
            };
            for row in rows {
                let kept = model.entry(row.p).or_insert_with(|| row.clone());
                let better = compare(order, row, kept);
                // The last row in time: of equal ones the last that came.
                if better == Ordering::Less || (last && better == Ordering::Equal) {
                    *kept = row.clone();
                }
            }
            let expected: Vec<Row> = model.values().cloned().collect();
            prop_assert_eq!(now, Folded::of(shown(&expected, order, &spec)));
        }
    }

    #[test]
    fn the_first_that_came(input in insertions(), number: bool) {
        let spec = RankSpec {
            by_time: true,
            schema: SchemaSpec(output(number)),
            ..spec(ORDERS[0], 1, 1, number)
        };
        let mut harness = harness(&spec);
        let mut model: Vec<Row> = Vec::new();
        let mut folded = Folded::default();
        for rows in &input {
            for row in rows {
                if model.iter().all(|known| known.p != row.p) {
                    model.push(row.clone());
                }
            }
            harness.push(0, batch(rows)).unwrap();
            folded.fold(&harness.take(&spec.schema.0));
            prop_assert_eq!(&folded, &Folded::of(shown(&model, ORDERS[0], &spec)));
        }
    }

    #[test]
    fn the_best_of_windows(
        input in prop::collection::vec((prop::collection::vec((rows(), -3i64..8), 1..15), -3i64..8), 1..12),
        first in 1usize..3, more in 0usize..4, number: bool,
    ) {
        for order in ORDERS {
            let spec = RankSpec {
                window_end: Some(4),
                schema: SchemaSpec(output(number)),
                ..spec(order, first, first + more, number)
            };
            let mut harness = harness(&spec);
            let (mut table, mut watermark, mut late, mut out) = (Vec::<Row>::new(), i64::MIN, 0, Vec::new());
            for (rows, next) in &input {
                let rows: Vec<Row> = rows
                    .iter()
                    .map(|(row, second)| Row { end_us: Some(second * 1_000_000), ..row.clone() })
                    .collect();
                for row in &rows {
                    if row.end_us.unwrap() / 1000 - 1 <= watermark {
                        late += 1;
                    } else {
                        table.push(row.clone());
                    }
                }
                harness.push(0, batch(&rows)).unwrap();
                prop_assert!(harness.output.batches.is_empty());
                watermark = watermark.max(next * 1000 - 1);
                harness.watermark(watermark).unwrap();
                out.extend(lines(&harness.take(&spec.schema.0)));
                let complete = |row: &Row| row.end_us.unwrap() / 1000 - 1 <= watermark;
                let done: Vec<Row> = table.iter().filter(|row| complete(row)).cloned().collect();
                table.retain(|row| !complete(row));
                let expected = shown(&done, order, &spec);
                if !number {
                    prop_assert_eq!(Folded::of(out.drain(..)), Folded::of(expected));
                    continue;
                }
                // Each partition's rows leave in order.
                let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
                for line in out.drain(..) {
                    let values: Vec<&str> = line.split('|').collect();
                    groups.entry(format!("{} {}", values[4], values[0])).or_default().push(line.clone());
                }
                let mut of_model: BTreeMap<String, Vec<String>> = BTreeMap::new();
                for line in expected {
                    let values: Vec<&str> = line.split('|').collect();
                    of_model.entry(format!("{} {}", values[4], values[0])).or_default().push(line.clone());
                }
                prop_assert_eq!(groups, of_model);
            }
            harness.watermark(i64::MAX).unwrap();
            harness.end(0).unwrap();
            let rest = lines(&harness.take(&spec.schema.0));
            prop_assert_eq!(Folded::of(rest), Folded::of(shown(&table, order, &spec)));
            prop_assert_eq!(harness.context.metrics.late_rows.load(Atomic::Relaxed), late);
        }
    }
}

fn pushed(harness: &mut Harness<Any>, spec: &RankSpec, rows: &[Row]) -> Vec<String> {
    harness.push(0, batch(rows)).unwrap();
    changes(&harness.take(&spec.schema.0))
        .into_iter()
        .map(|line| line.replace("|NULL|", "|").replace("|1970-01-01T00:00:00Z", ""))
        .collect()
}

#[test]
fn with_numbers_every_row_whose_place_changes_leaves() {
    let spec = spec(ORDERS[0], 1, 3, true);
    let mut harness = harness(&spec);
    let rows = [row(1, 5, "a"), row(1, 7, "b"), row(1, 9, "c"), row(1, 9, "d")];
    assert_eq!(
        pushed(&mut harness, &spec, &rows),
        ["+I 1|5|a|1", "+I 1|7|b|2", "+I 1|9|c|3"]
    );
    assert_eq!(pushed(&mut harness, &spec, &[row(1, 9, "e")]), Vec::<String>::new());
    assert_eq!(
        pushed(&mut harness, &spec, &[row(1, 6, "f")]),
        ["-U 1|7|b|2", "+U 1|6|f|2", "-U 1|9|c|3", "+U 1|7|b|3"]
    );
}

#[test]
fn without_numbers_only_rows_that_come_and_go_leave() {
    let spec = spec(ORDERS[0], 1, 2, false);
    let mut harness = harness(&spec);
    pushed(&mut harness, &spec, &[row(1, 5, "a"), row(1, 7, "b"), row(2, 1, "x")]);
    // What comes and goes within the batch is not told.
    let rows = [row(1, 6, "c"), row(1, 4, "d"), row(2, 3, "y")];
    let expected = ["-D 1|7|b", "+I 1|4|d", "+I 2|3|y"];
    assert_eq!(pushed(&mut harness, &spec, &rows), expected);
}

#[test]
fn a_partition_is_forgotten_when_its_time_is_over() {
    let specs = [
        RankSpec {
            ttl_ms: Some(1000),
            ..spec(ORDERS[0], 1, 2, false)
        },
        RankSpec {
            ttl_ms: Some(1000),
            by_time: true,
            ..spec(ORDERS[0], 1, 1, false)
        },
        RankSpec {
            ttl_ms: Some(1000),
            by_time: true,
            schema: SchemaSpec(output(false)),
            ..spec(ORDERS[0], 1, 1, false)
        },
    ];
    for spec in specs {
        let mut harness = harness(&spec);
        assert_eq!(pushed(&mut harness, &spec, &[row(1, 5, "a")]), ["+I 1|5|a"]);
        harness.clock.advance(Duration::from_millis(999));
        // No change, so no access.
        let kept = [row(1, 5, "a"), row(1, 5, "b")];
        let rows = if spec.last == 2 { &[] } else { &kept[..] };
        assert_eq!(pushed(&mut harness, &spec, rows), Vec::<String>::new());
        harness.clock.advance(Duration::from_millis(1));
        assert_eq!(pushed(&mut harness, &spec, &[row(1, 7, "b")]), ["+I 1|7|b"]);
        harness.advance(Duration::from_millis(2000)).unwrap();
        assert_eq!(harness.operator.next_timer(), None);
        assert_eq!(pushed(&mut harness, &spec, &[row(1, 9, "c")]), ["+I 1|9|c"]);
    }
    let mut changelog_spec = RankSpec {
        ttl_ms: Some(1000),
        ..spec(ORDERS[0], 1, 2, false)
    };
    changelog_spec.input_schema = SchemaSpec(with_row_kind(&input()));
    let mut harness = harness(&changelog_spec);
    harness
        .push(0, changelog(&[(RowKind::Insert, row(1, 5, "a"))]))
        .unwrap();
    harness.advance(Duration::from_millis(1000)).unwrap();
    harness
        .push(0, changelog(&[(RowKind::Delete, row(1, 5, "a"))]))
        .unwrap();
    assert_eq!(harness.output.batches.len(), 1);
}

#[test]
fn many_partitions_and_windows_give_their_memory_back() {
    let spec = RankSpec {
        window_end: Some(4),
        schema: SchemaSpec(output(false)),
        ..spec(ORDERS[2], 1, 2, false)
    };
    let mut harness = harness(&spec);
    let mut largest = 0;
    for second in 1..60i64 {
        let rows = (0..2000).map(|n| Row {
            end_us: Some(second * 1_000_000),
            ..row(n % 700, n, "a text that is not inlined")
        });
        harness.push(0, batch(&rows.collect::<Vec<_>>())).unwrap();
        largest = largest.max(harness.memory.reserved_bytes());
        harness.watermark(second * 1000 - 1).unwrap();
        assert_eq!(harness.take(&spec.schema.0).num_rows(), 1400);
    }
    assert!(largest < 2 << 20, "{largest} bytes");
}

#[test]
fn a_window_without_an_end_is_refused() {
    let spec = RankSpec {
        window_end: Some(4),
        schema: SchemaSpec(output(false)),
        ..spec(ORDERS[0], 1, 2, false)
    };
    let error = harness(&spec)
        .push(
            0,
            batch(&[Row {
                end_us: None,
                ..row(1, 1, "a")
            }]),
        )
        .unwrap_err();
    assert!(matches!(error, EngineError::BadInput(_)), "{error}");
    assert!(error.to_string().contains("'end'"), "{error}");
    let text = RankSpec {
        window_end: Some(3),
        ..spec
    };
    assert!(matches!(rank(&text), Err(EngineError::Plan(_))));
}

#[test]
fn a_rank_of_no_rows_is_refused() {
    for (first, last) in [(0, 3), (3, 2)] {
        assert!(matches!(
            rank(&spec(ORDERS[0], first, last, false)),
            Err(EngineError::Plan(_))
        ));
    }
}

#[test]
fn without_partitions_there_is_one() {
    let mut spec = spec(ORDERS[0], 1, 2, true);
    spec.partition_by.clear();
    let mut harness = harness(&spec);
    let rows = [row(1, 5, "a"), row(2, 4, "b"), row(3, 6, "c")];
    assert_eq!(pushed(&mut harness, &spec, &rows), ["+I 2|4|b|1", "+I 1|5|a|2"]);
    assert_eq!(
        pushed(&mut harness, &spec, &[row(1, 4, "d")]),
        ["-U 1|5|a|2", "+U 1|4|d|2"]
    );
}
