//! Joins of streams: answers by hand, and a join that looks at every pair.

use std::time::Duration;

use datafusion::common::JoinType;
use datafusion::functions_aggregate::expr_fn::count;
use datafusion::logical_expr::when;
use datafusion::prelude::{col, lit};
use proptest::prelude::*;
use thalweg::stream::{DataStream, StreamBuilder, WindowAssigner};

use super::model::Row;
use super::rows::{PARALLELISMS, integers, session};
use super::windows::{source_in, splits};

const JOIN_TYPES: [JoinType; 6] = [
    JoinType::Inner,
    JoinType::Left,
    JoinType::Right,
    JoinType::Full,
    JoinType::LeftSemi,
    JoinType::LeftAnti,
];

type Splits = Vec<Vec<Vec<Row>>>;

/// A column that is NULL, as [`integers`] gives it.
const NULL: i64 = i64::MIN;

fn ms(ms: i64) -> Duration {
    Duration::from_millis(ms.unsigned_abs())
}

/// Rows whose key 0 is NULL.
fn source(builder: &StreamBuilder, splits: &Splits, delay: i64) -> DataStream {
    let key = when(col("key").not_eq(lit(0i64)), col("key")).end().unwrap();
    source_in(builder, splits, delay)
        .select(vec![key.alias("key"), col("value"), col("time")])
        .unwrap()
}

fn interval(sides: [&Splits; 2], delay: i64, bounds: (i64, i64), of: JoinType, parallelism: usize) -> Vec<Vec<i64>> {
    let builder = session(parallelism).stream();
    let [left, right] = sides.map(|splits| source(&builder, splits, delay).key_by(&["key"]).unwrap());
    let joined = left.interval_join(&right).unwrap().between(bounds.0, bounds.1).unwrap();
    integers(&joined.join(of).unwrap().execute_and_collect().unwrap())
}

fn windows(sides: [&Splits; 2], delay: i64, windows: &WindowAssigner, of: JoinType, at: usize) -> Vec<Vec<i64>> {
    let builder = session(at).stream();
    let [left, right] = sides.map(|splits| source(&builder, splits, delay));
    let joined = left.join(&right).unwrap().where_keys(&["key"]).equal_to(&["key"]);
    let joined = joined.window(windows.clone()).unwrap().join(of).unwrap();
    integers(&joined.execute_and_collect().unwrap())
}

/// What a join of all pairs gives: rows as the streams have them, the key first.
fn naive(
    left: &[Vec<i64>],
    right: &[Vec<i64>],
    width: usize,
    of: JoinType,
    matches: impl Fn(&[i64], &[i64]) -> bool,
) -> Vec<Vec<i64>> {
    let pairs = |a: &[i64], b: &[i64]| a[0] != NULL && a[0] == b[0] && matches(a, b);
    let mut all = Vec::new();
    for a in left {
        let partners: Vec<_> = right.iter().filter(|b| pairs(a, b)).collect();
        match of {
            JoinType::LeftSemi | JoinType::LeftAnti => {
                if partners.is_empty() == (of == JoinType::LeftAnti) {
                    all.push(a.clone());
                }
                continue;
            }
            JoinType::Left | JoinType::Full if partners.is_empty() => all.push([a.clone(), vec![NULL; width]].concat()),
            _ => {}
        }
        all.extend(partners.into_iter().map(|b| [a.clone(), b.clone()].concat()));
    }
    if matches!(of, JoinType::Right | JoinType::Full) {
        let alone = right.iter().filter(|b| !left.iter().any(|a| pairs(a, b)));
        all.extend(alone.map(|b| [vec![NULL; width], b.clone()].concat()));
    }
    all.sort();
    all
}

fn rows_of(splits: &Splits) -> Vec<Vec<i64>> {
    let rows = splits.iter().flatten().flatten();
    rows.map(|row| vec![if row.key == 0 { NULL } else { row.key }, row.value, row.time])
        .collect()
}

#[derive(Clone, Copy, Debug)]
enum Windows {
    Tumbling { size: i64, offset: i64 },
    Sliding { slide: i64, slides: i64 },
    Cumulate { step: i64, steps: i64 },
}

impl Windows {
    fn assigner(self) -> WindowAssigner {
        match self {
            Windows::Tumbling { size, offset } => WindowAssigner::tumbling(ms(size)).offset_ms(offset),
            Windows::Sliding { slide, slides } => WindowAssigner::sliding(ms(slide * slides), ms(slide)),
            Windows::Cumulate { step, steps } => WindowAssigner::cumulate(ms(step), ms(step * steps)),
        }
    }

    /// Start and end of each window that a time is in, found by looking at many.
    fn of(self, time: i64) -> Vec<(i64, i64)> {
        let numbers = -400..400i64;
        let all: Vec<(i64, i64)> = match self {
            Windows::Tumbling { size, offset } => {
                numbers.map(|n| (n * size + offset, (n + 1) * size + offset)).collect()
            }
            Windows::Sliding { slide, slides } => numbers.map(|n| (n * slide, (n + slides) * slide)).collect(),
            Windows::Cumulate { step, steps } => numbers
                .flat_map(|n| (1..=steps).map(move |m| (n * step * steps, (n * steps + m) * step)))
                .collect(),
        };
        let holds = |(start, end): &(i64, i64)| (*start..*end).contains(&time);
        all.into_iter().filter(holds).collect()
    }

    fn rows(self, splits: &Splits) -> Vec<Vec<i64>> {
        let in_windows = |row: Vec<i64>| {
            let windows = self.of(row[2]).into_iter();
            windows
                .map(|(start, end)| [row.clone(), vec![start, end, end - 1]].concat())
                .collect::<Vec<_>>()
        };
        rows_of(splits).into_iter().flat_map(in_windows).collect()
    }
}

fn kinds() -> impl Strategy<Value = Windows> {
    prop_oneof![
        (1..40i64, -90..90i64).prop_map(|(size, offset)| Windows::Tumbling { size, offset }),
        (1..15i64, 1..5i64).prop_map(|(slide, slides)| Windows::Sliding { slide, slides }),
        (1..15i64, 1..5i64).prop_map(|(step, steps)| Windows::Cumulate { step, steps }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn an_interval_join_is_that_of_all_pairs(
        (left, delay) in splits(),
        (right, other_delay) in splits(),
        lower in -40..40i64,
        length in 0..50i64,
        of in prop::sample::select(&JOIN_TYPES[..]),
    ) {
        let upper = lower + length;
        let expected = naive(&rows_of(&left), &rows_of(&right), 3, of, |a, b| (lower..=upper).contains(&(b[2] - a[2])));
        for parallelism in PARALLELISMS {
            let joined = interval([&left, &right], delay.max(other_delay), (lower, upper), of, parallelism);
            prop_assert_eq!(&joined, &expected, "{:?} [{}, {}] at {}", of, lower, upper, parallelism);
        }
    }

    #[test]
    fn a_window_join_is_that_of_all_pairs(
        (left, delay) in splits(),
        (right, other_delay) in splits(),
        kind in kinds(),
        of in prop::sample::select(&JOIN_TYPES[..]),
    ) {
        let expected = naive(&kind.rows(&left), &kind.rows(&right), 6, of, |a, b| a[3..] == b[3..]);
        for parallelism in PARALLELISMS {
            let joined = windows([&left, &right], delay.max(other_delay), &kind.assigner(), of, parallelism);
            prop_assert_eq!(&joined, &expected, "{:?} {:?} at {}", of, kind, parallelism);
        }
    }
}

fn row(key: i64, value: i64, time: i64) -> Row {
    Row { key, value, time }
}

/// Orders and payments: out of order, one without a partner on either side, one whose key is NULL on both.
fn by_hand() -> [Splits; 2] {
    [
        vec![vec![
            vec![row(1, 10, 5), row(2, 20, 1)],
            vec![row(1, 11, 9), row(0, 30, 7), row(4, 40, 12)],
        ]],
        vec![vec![
            vec![row(1, 100, 6), row(3, 300, 2), row(1, 101, 4)],
            vec![row(0, 400, 7), row(4, 401, 22)],
        ]],
    ]
}

#[test]
fn interval_joins_by_hand() {
    let [left, right] = by_hand();
    // A right row up to 2 ms before, up to 1 ms after.
    let pairs = [vec![1, 10, 5, 1, 100, 6], vec![1, 10, 5, 1, 101, 4]];
    let left_alone = [
        vec![NULL, 30, 7, NULL, NULL, NULL],
        vec![1, 11, 9, NULL, NULL, NULL],
        vec![2, 20, 1, NULL, NULL, NULL],
        vec![4, 40, 12, NULL, NULL, NULL],
    ];
    let right_alone = [
        vec![NULL, NULL, NULL, NULL, 400, 7],
        vec![NULL, NULL, NULL, 3, 300, 2],
        vec![NULL, NULL, NULL, 4, 401, 22],
    ];
    for parallelism in PARALLELISMS {
        let joined = |of| interval([&left, &right], 10, (-2, 1), of, parallelism);
        let sorted = |parts: &[&[Vec<i64>]]| {
            let mut all = parts.concat();
            all.sort();
            all
        };
        assert_eq!(joined(JoinType::Inner), pairs);
        assert_eq!(joined(JoinType::Left), sorted(&[&pairs, &left_alone]));
        assert_eq!(joined(JoinType::Right), sorted(&[&pairs, &right_alone]));
        assert_eq!(joined(JoinType::Full), sorted(&[&pairs, &left_alone, &right_alone]));
        assert_eq!(joined(JoinType::LeftSemi), [vec![1, 10, 5]]);
        assert_eq!(joined(JoinType::LeftAnti).len(), 4);
    }
}

#[test]
fn window_joins_by_hand() {
    let [left, right] = by_hand();
    let tens = WindowAssigner::tumbling(ms(10));
    let pair = |left: [i64; 3], right: [i64; 3]| [left.as_slice(), &[0, 10, 9], &right, &[0, 10, 9]].concat();
    let pairs = [
        pair([1, 10, 5], [1, 100, 6]),
        pair([1, 10, 5], [1, 101, 4]),
        pair([1, 11, 9], [1, 100, 6]),
        pair([1, 11, 9], [1, 101, 4]),
    ];
    for parallelism in PARALLELISMS {
        let joined = |of| windows([&left, &right], 10, &tens, of, parallelism);
        assert_eq!(joined(JoinType::Inner), pairs);
        let outer = joined(JoinType::Full);
        assert_eq!(outer.len(), 4 + 3 + 3);
        assert!(outer.contains(&[vec![4, 40, 12, 10, 20, 19], vec![NULL; 6]].concat()));
        assert!(outer.contains(&[vec![NULL; 6], vec![4, 401, 22, 20, 30, 29]].concat()));
        assert_eq!(
            joined(JoinType::LeftSemi),
            [vec![1, 10, 5, 0, 10, 9], vec![1, 11, 9, 0, 10, 9]]
        );
    }
}

/// A late row meets what is still there, and changes nothing of what the others meet.
#[test]
fn late_rows_disturb_no_others() {
    let left: Splits = vec![vec![
        vec![row(1, 1, 5)],
        vec![row(1, 2, 100)],
        vec![row(1, 3, 6)],
        vec![row(1, 4, 101)],
    ]];
    let right: Splits = vec![vec![vec![row(1, 7, 5), row(1, 8, 100)]]];
    for parallelism in PARALLELISMS {
        let joined = windows(
            [&left, &right],
            0,
            &WindowAssigner::tumbling(ms(10)),
            JoinType::Inner,
            parallelism,
        );
        let mut values: Vec<(i64, i64)> = joined.iter().map(|row| (row[1], row[7])).collect();
        // Whether 3 is late depends on how far the right side is.
        if let Some(late) = values.iter().position(|pair| *pair == (3, 7)) {
            values.remove(late);
        }
        assert_eq!(values, [(1, 7), (2, 8), (4, 8)]);
    }
}

/// The result of a window join has the windows' time as its event time, of the side that is never missing.
#[test]
fn windows_follow_a_join_of_windows() {
    let [left, right] = by_hand();
    for parallelism in PARALLELISMS {
        for (of, key, expected) in [
            (
                JoinType::Left,
                "key",
                vec![vec![4, 1, 0, 20, 19], vec![1, 4, 0, 20, 19]],
            ),
            (
                JoinType::Right,
                "right_key",
                vec![vec![3, 1, 0, 20, 19], vec![1, 4, 0, 20, 19], vec![4, 1, 20, 40, 39]],
            ),
        ] {
            let builder = session(parallelism).stream();
            let [left, right] = [&left, &right].map(|splits| source(&builder, splits, 10));
            let joined = left.join(&right).unwrap().where_keys(&["key"]).equal_to(&["key"]);
            let joined = joined
                .window(WindowAssigner::tumbling(ms(10)))
                .unwrap()
                .join(of)
                .unwrap();
            let counted = joined
                .key_by(&[key])
                .unwrap()
                .window(WindowAssigner::tumbling(ms(20)))
                .aggregate(vec![count(lit(1i64)).alias("c")])
                .unwrap();
            let rows = integers(&counted.execute_and_collect().unwrap());
            assert!(
                expected.iter().all(|row| rows.contains(row)),
                "{of:?} at {parallelism}: {rows:?}"
            );
            assert!(rows.len() <= 4);
        }
    }
}
