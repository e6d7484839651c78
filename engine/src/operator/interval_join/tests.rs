//! Every join type against a row-at-a-time model, late rows included, and against the join by its definition.

use std::sync::atomic::Ordering;
use std::time::Duration;

use arrow::array::{Array, AsArray};
use arrow::datatypes::TimestampMicrosecondType;
use datafusion::common::JoinType;
use proptest::prelude::*;

use super::IntervalJoin;
use crate::data::Batch;
use crate::operator::Operator;
use crate::operator::harness::{Harness, parts_of, rescaled};
use crate::operator::join_state::naive::{
    JOIN_TYPES, KEY_KINDS, KeyKind, Row, all_sorted, batch, expected, filter, input, keys_match, output_schema, rows,
    sorted,
};
use crate::operator::rescaling::{self, PARALLELISMS, Placed};
use crate::plan::{IntervalJoinSpec, WindowTime};
use crate::time::Clock;

fn spec(join_type: JoinType, keys: KeyKind, filtered: bool, bounds: (i64, i64), time: WindowTime) -> IntervalJoinSpec {
    IntervalJoinSpec {
        join_type,
        left: input(0, keys, false),
        right: input(1, keys, false),
        left_time: time,
        right_time: time,
        lower_ms: bounds.0,
        upper_ms: bounds.1,
        filter: filtered.then(filter),
        schema: output_schema(join_type, false),
    }
}

#[derive(Clone, Debug)]
enum Step {
    Rows(usize, Vec<Row>),
    Watermark(i64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (0..2usize, rows(0..60, 60)).prop_map(|(side, rows)| Step::Rows(side, rows)),
        1 => (1..25i64).prop_map(Step::Watermark),
    ];
    prop::collection::vec(step, 1..20)
}

/// Row by row.
struct Model<'a> {
    join_type: JoinType,
    bounds: (i64, i64),
    matches: &'a dyn Fn(&Row, &Row) -> bool,
    reached: i64,
    /// The rows that wait, and whether they found a partner.
    waiting: [Vec<(Row, bool)>; 2],
    pairs: Vec<(Option<Row>, Option<Row>)>,
    late: u64,
}

impl Model<'_> {
    fn last_partner(&self, side: usize, row: &Row) -> i64 {
        row.time + if side == 0 { self.bounds.1 } else { -self.bounds.0 }
    }

    fn tells(&self, side: usize) -> bool {
        match self.join_type {
            JoinType::Full => true,
            JoinType::Left | JoinType::LeftAnti => side == 0,
            JoinType::Right => side == 1,
            _ => false,
        }
    }

    fn alone(&mut self, side: usize, row: Row) {
        if self.tells(side) {
            self.pairs.push(if side == 0 {
                (Some(row), None)
            } else {
                (None, Some(row))
            });
        }
    }

    fn row(&mut self, side: usize, row: Row) {
        let mut others = std::mem::take(&mut self.waiting[1 - side]);
        let mut found = false;
        for (other, was_found) in &mut others {
            let (l, r) = if side == 0 { (row, *other) } else { (*other, row) };
            let near = l.time + self.bounds.0 <= r.time && r.time <= l.time + self.bounds.1;
            if !near || !(self.matches)(&l, &r) {
                continue;
            }
            let first = if side == 0 { !found } else { !*was_found };
            (found, *was_found) = (true, true);
            match self.join_type {
                JoinType::LeftAnti => {}
                JoinType::LeftSemi => self.pairs.extend(first.then_some((Some(l), None))),
                _ => self.pairs.push((Some(l), Some(r))),
            }
        }
        self.waiting[1 - side] = others;
        // A left row that only had to find one partner is done.
        let one_sided = matches!(self.join_type, JoinType::LeftSemi | JoinType::LeftAnti);
        if one_sided && side == 0 && found {
            return;
        }
        if self.last_partner(side, &row) > self.reached {
            self.waiting[side].push((row, found));
        } else if !found {
            self.late += u64::from(row.time <= self.reached && !self.tells(side));
            self.alone(side, row);
        }
    }

    fn watermark(&mut self, reached: i64) {
        self.reached = reached;
        for side in 0..2 {
            for (row, found) in std::mem::take(&mut self.waiting[side]) {
                if self.last_partner(side, &row) > reached {
                    self.waiting[side].push((row, found));
                } else if !found {
                    self.alone(side, row);
                }
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        let line = |side: usize, row: &Option<Row>| match row {
            Some(row) => sorted(&batch(side, &[*row], None)).remove(0),
            None => "NULL|NULL|NULL|NULL".to_string(),
        };
        let one_sided = matches!(self.join_type, JoinType::LeftSemi | JoinType::LeftAnti);
        let pair = |(l, r): &(Option<Row>, Option<Row>)| match one_sided {
            true => line(0, l),
            false => format!("{}|{}", line(0, l), line(1, r)),
        };
        let mut lines: Vec<_> = self.pairs.iter().map(pair).collect();
        lines.sort();
        lines
    }
}

/// The times of the rows, both sides', in milliseconds.
fn times(batch: &Batch) -> Vec<i64> {
    let columns = (3..batch.num_columns()).step_by(4).map(|column| batch.column(column));
    let times = columns.flat_map(|column| {
        let column = column.as_primitive::<TimestampMicrosecondType>();
        column.iter().flatten().map(|time| time / 1000).collect::<Vec<_>>()
    });
    times.collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_a_row_at_a_time_model(
        steps in steps(),
        join_type in 0..JOIN_TYPES.len(),
        keys in 0..KEY_KINDS.len(),
        filtered in any::<bool>(),
        bounds in (-20..20i64, -5..30i64).prop_map(|(lower, len)| (lower, lower + len)),
        batch_size in 1..40usize,
        in_time in any::<bool>(),
    ) {
        let (join_type, keys) = (JOIN_TYPES[join_type], KEY_KINDS[keys]);
        let spec = spec(join_type, keys, filtered, bounds, WindowTime::Event(3));
        let schema = spec.schema.0.clone();
        let mut harness = Harness::new(IntervalJoin::new(&spec).unwrap());
        harness.context.batch_size = batch_size;
        let matches = |l: &Row, r: &Row| keys_match(keys, l, r) && (!filtered || l.value < r.value);
        let mut model = Model {
            join_type, bounds, matches: &matches, reached: -100, waiting: [vec![], vec![]], pairs: vec![], late: 0,
        };
        harness.watermark(-100).unwrap();
        let (mut all, mut told) = ([vec![], vec![]], -1000);
        for step in steps {
            match step {
                Step::Rows(side, mut rows) => {
                    if in_time {
                        rows.iter_mut().for_each(|row| row.time += model.reached.max(0) + 1);
                    }
                    // All of a batch first looks for partners, then waits; they are of one side, so that is the same.
                    rows.iter().for_each(|row| model.row(side, *row));
                    harness.push(side, batch(side, &rows, None)).unwrap();
                    all[side].extend(rows);
                }
                Step::Watermark(by) => {
                    model.watermark(model.reached.max(0) + by);
                    harness.watermark(model.reached).unwrap();
                }
            }
            if in_time {
                let oldest = harness.output.batches.iter().flat_map(times).min();
                prop_assert!(oldest.is_none_or(|time| time > told), "{oldest:?} comes after watermark {told}");
                told = harness.output.watermarks.last().unwrap().0;
                let emitted = harness.take(&schema);
                if emitted.num_rows() > 0 {
                    harness.output.side.push((0, emitted));
                }
            }
        }
        model.watermark(i64::MAX);
        harness.watermark(i64::MAX).unwrap();
        prop_assert_eq!(harness.context.memory.bytes(), 0);
        harness.end(0).unwrap();
        harness.end(1).unwrap();
        let emitted: Vec<_> = harness.output.side.drain(..).map(|(_, batch)| batch).collect();
        harness.output.batches.extend(emitted);
        let got = sorted(&harness.rows(&schema));
        prop_assert_eq!(&got, &model.lines());
        prop_assert_eq!(harness.context.metrics.late_rows.load(Ordering::Relaxed), model.late);
        if in_time {
            let near = |l: &Row, r: &Row| l.time + bounds.0 <= r.time && r.time <= l.time + bounds.1;
            let by_definition = expected(join_type, &all[0], &all[1], |l, r| near(l, r) && matches(l, r));
            prop_assert_eq!(&got, &by_definition);
            prop_assert_eq!(model.late, 0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    #[test]
    fn goes_on_after_a_cut_at_any_parallelism(
        steps in prop::collection::vec((steps(), prop::option::of(0..PARALLELISMS.len())), 1..4),
        join_type in 0..JOIN_TYPES.len(),
        keys in 0..KEY_KINDS.len(),
        filtered in any::<bool>(),
        bounds in (-20..20i64, -5..30i64).prop_map(|(lower, len)| (lower, lower + len)),
        by_clock in any::<bool>(),
        parallelism in 0..PARALLELISMS.len(),
        batch_size in 1..40usize,
    ) {
        let (join_type, keys) = (JOIN_TYPES[join_type], KEY_KINDS[keys]);
        let time = if by_clock { WindowTime::Processing } else { WindowTime::Event(3) };
        let spec = spec(join_type, keys, filtered, bounds, time);
        let (mut todo, mut reached) = (Vec::new(), 0);
        for (part, cut) in steps {
            for step in part {
                todo.push(match step {
                    Step::Rows(side, mut rows) => {
                        // Some are late.
                        rows.iter_mut().for_each(|row| row.time += reached - 10);
                        rescaling::Step::Rows(side, batch(side, &rows, None))
                    }
                    Step::Watermark(by) if by_clock => rescaling::Step::Wait(by as u64),
                    Step::Watermark(by) => {
                        reached += by;
                        rescaling::Step::Watermark(reached)
                    }
                });
            }
            todo.extend(cut.map(|cut| rescaling::Step::Cut(PARALLELISMS[cut])));
        }
        let placed = Placed { keys: &[Some(keys.columns()); 2], batch_size, ends_again: true };
        let make = || IntervalJoin::new(&spec).unwrap();
        let disturbed = rescaling::run(make, &placed, PARALLELISMS[parallelism], &todo);
        todo.retain(|step| !matches!(step, rescaling::Step::Cut(_)));
        let undisturbed = rescaling::run(make, &placed, 1, &todo);
        prop_assert_eq!(all_sorted(&spec.schema.0, &disturbed), all_sorted(&spec.schema.0, &undisturbed));
    }
}

fn row(key: u8, value: i32, time: i64) -> Row {
    Row {
        key: Some(key),
        value,
        time,
    }
}

#[test]
fn by_the_clock_rows_wait_as_long_as_the_interval_says() {
    let spec = spec(
        JoinType::Left,
        KeyKind::Number,
        false,
        (-10, 20),
        WindowTime::Processing,
    );
    let schema = spec.schema.0.clone();
    let mut harness = Harness::new(IntervalJoin::new(&spec).unwrap());
    harness.advance(Duration::from_millis(100)).unwrap();
    harness.push(0, batch(0, &[row(1, 0, 0), row(2, 0, 0)], None)).unwrap();
    harness.advance(Duration::from_millis(20)).unwrap();
    harness.push(1, batch(1, &[row(1, 5, 0)], None)).unwrap();
    assert_eq!(harness.take(&schema).num_rows(), 1);
    harness.advance(Duration::from_millis(1)).unwrap();
    let left = harness.take(&schema);
    assert_eq!(
        (left.num_rows(), left.column(4).null_count()),
        (1, 1),
        "key 2 found nothing in 20 ms"
    );
    harness.push(1, batch(1, &[row(1, 5, 0), row(2, 5, 0)], None)).unwrap();
    assert_eq!(harness.take(&schema).num_rows(), 0);
    harness.watermark(i64::MAX).unwrap();
    harness.end(0).unwrap();
    harness.end(1).unwrap();
    assert_eq!(harness.context.memory.bytes(), 0);
    assert_eq!(harness.operator.next_timer(), None);
    assert_eq!(harness.output.watermarks.len(), 1);
}

#[test]
fn by_the_clock_rows_of_several_subtasks_leave_each_in_its_time() {
    let spec = spec(JoinType::Left, KeyKind::Number, false, (0, 20), WindowTime::Processing);
    let make = || IntervalJoin::new(&spec).unwrap();
    let rows: Vec<_> = (0..60).map(|key| row(key, 0, 0)).collect();
    let parts = parts_of(&batch(0, &rows, None), &[0], 3);
    let mut three: Vec<_> = (0..3).map(|_| Harness::new(make())).collect();
    for (part, (harness, second)) in parts.iter().zip(three.iter_mut().zip([130, 110, 120])) {
        for at in [100, second] {
            let by = at - harness.clock.now_ms() as u64;
            harness.advance(Duration::from_millis(by)).unwrap();
            harness.push(0, part.clone()).unwrap();
        }
        harness.output.batches.clear();
    }
    // Those of the first subtask have left already.
    let at_once = parts[1].num_rows() + parts[2].num_rows();
    let mut one = rescaled(&mut three, 1, make).unwrap().remove(0);
    let [last, first, second] = [0, 1, 2].map(|subtask: usize| parts[subtask].num_rows());
    for (at, leave) in [
        (120, 0),
        (121, at_once),
        (130, 0),
        (131, first),
        (141, second),
        (150, 0),
        (151, last),
    ] {
        let by = at - one.clock.now_ms() as u64;
        one.advance(Duration::from_millis(by)).unwrap();
        assert_eq!(one.take(&spec.schema.0).num_rows(), leave, "at {at}");
    }
    assert_eq!(one.context.memory.bytes(), 0);
}

#[test]
fn one_row_of_the_far_future_keeps_no_others() {
    let spec = spec(JoinType::Inner, KeyKind::Number, false, (-10, 0), WindowTime::Event(3));
    let mut harness = Harness::new(IntervalJoin::new(&spec).unwrap());
    harness.push(0, batch(0, &[row(1, 0, 1 << 40)], None)).unwrap();
    for at in 0..200 {
        let rows: Vec<_> = (0..50).map(|value| row(2, value, at * 100)).collect();
        harness.push(1, batch(1, &rows, None)).unwrap();
        harness.watermark(at * 100 - 1).unwrap();
    }
    assert!(
        harness.context.memory.bytes() < 50_000,
        "{}",
        harness.context.memory.bytes()
    );
}

#[test]
fn a_time_of_null_is_an_error_that_names_the_column() {
    let spec = spec(JoinType::Inner, KeyKind::Number, false, (-10, 0), WindowTime::Event(3));
    let mut harness = Harness::new(IntervalJoin::new(&spec).unwrap());
    let rows = batch(0, &[row(1, 0, 1)], None);
    let mut columns = rows.columns().to_vec();
    columns[3] = arrow::array::new_null_array(columns[3].data_type(), 1);
    let error = harness
        .push(0, Batch::try_new(rows.schema(), columns).unwrap())
        .unwrap_err();
    assert!(error.to_string().contains("b_t"), "{error}");
}
