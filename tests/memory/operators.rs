//! The operators of the matrix: the SQL of each, and what it must give.

use crate::digest::{Digest, OrderKey};
use crate::models::{self, Join, Pair};
use crate::relation::{Keys, Relation, Row, Shape};

/// Which relations an operator is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Input {
    /// All bytes in `t`.
    One,
    /// Half of the bytes in `t`, half in `u`.
    Two,
    /// Many narrow rows in `t`; the payload is not read.
    Narrow,
    /// Few rows of much payload: each row of `t` meets each of `u`.
    Pairs,
    /// Few rows whose key is hot in both.
    HotInBoth,
}

/// An operator of the matrix.
pub(crate) struct Operator {
    pub(crate) name: &'static str,
    pub(crate) input: Input,
    pub(crate) sql: fn(&Pair) -> String,
    pub(crate) model: fn(&Pair) -> Digest,
    /// By which columns of the result it is sorted.
    pub(crate) order: fn(&Pair) -> Vec<OrderKey>,
    /// The bytes that must be kept somewhere before the last row of the result can come out, at least.
    pub(crate) held_bytes: fn(&Pair) -> u64,
}

const ROW_BYTES_NARROW: u64 = 100;
const MOST_ROWS_NARROW: u64 = 1_000_000;
const ROW_BYTES_OF_PAIRS: u64 = 32 << 10;
const MOST_ROWS_OF_PAIRS: u64 = 600;
const ROWS_HOT_IN_BOTH: u64 = 2000;

impl Operator {
    /// The relations of `bytes` bytes in all.
    pub(crate) fn relations(&self, shape: Shape, bytes: u64, payload_bytes: u64, seed: u64) -> Pair {
        let (payload_bytes, rows) = match self.input {
            Input::One => (payload_bytes, bytes / Relation::row_bytes(shape, payload_bytes)),
            Input::Two => (payload_bytes, bytes / Relation::row_bytes(shape, payload_bytes) / 2),
            Input::Narrow if shape == Shape::WideKeys => (payload_bytes, bytes / Relation::row_bytes(shape, 0)),
            Input::Narrow => (payload_bytes, (bytes / ROW_BYTES_NARROW).min(MOST_ROWS_NARROW)),
            Input::Pairs => {
                let rows = bytes / Relation::row_bytes(shape, ROW_BYTES_OF_PAIRS) / 2;
                (ROW_BYTES_OF_PAIRS, rows.min(MOST_ROWS_OF_PAIRS))
            }
            Input::HotInBoth => (
                payload_bytes,
                ROWS_HOT_IN_BOTH.min(bytes / Relation::row_bytes(shape, 0)),
            ),
        };
        let rows = rows.max(4);
        let t = Relation {
            shape,
            keys: Keys::AsShaped,
            seed,
            rows,
            domain: rows,
            payload_bytes,
            first_text: 0,
        };
        let keys = match self.input {
            Input::HotInBoth => Keys::AsShaped,
            _ => Keys::OnceOrTwice,
        };
        let u = Relation {
            keys,
            seed: seed ^ 0x5555,
            first_text: rows / 4,
            ..t.clone()
        };
        Pair { t, u }
    }
}

/// `alias.p`, or all the columns that stand for it.
fn payload(alias: &str, relation: &Relation) -> String {
    let columns = relation.payload_columns();
    columns
        .iter()
        .map(|column| format!("{alias}.{column}"))
        .collect::<Vec<_>>()
        .join(", ")
}

fn first_payload(relation: &Relation) -> String {
    relation.payload_columns().swap_remove(0)
}

/// `SELECT id, k, v, payload FROM t`.
fn rows_of_t(pair: &Pair) -> String {
    format!("SELECT t.id, t.k, t.v, {} FROM t", payload("t", &pair.t))
}

fn joined(pair: &Pair, join: &str, condition: &str) -> String {
    let (t, u) = (payload("t", &pair.t), payload("u", &pair.u));
    format!("SELECT t.id, {t}, u.id, {u} FROM t {join} JOIN u ON {condition}")
}

fn kept(pair: &Pair, condition: &str) -> String {
    format!("SELECT t.id, {} FROM t WHERE {condition}", payload("t", &pair.t))
}

const AGGREGATES: &str = "count(*), count(v), sum(v), min(v), max(v), avg(v)";

fn all_of_t(pair: &Pair) -> Digest {
    models::whole_rows(&pair.t, &pair.t.all_rows())
}

fn bytes_of_t(pair: &Pair) -> u64 {
    pair.t.bytes()
}

/// Where the key is not read: the long keys do not count then.
fn bytes_without_key(relation: &Relation) -> u64 {
    match relation.shape {
        Shape::WideKeys => 0,
        _ => relation.bytes(),
    }
}

fn bytes_of_nested_build(pair: &Pair) -> u64 {
    bytes_without_key(&pair.t).min(bytes_without_key(&pair.u))
}

/// Of the side that is built; rows without a key need not be kept.
fn bytes_of_build(pair: &Pair) -> u64 {
    match pair.t.shape {
        Shape::AllNull => 0,
        _ => pair.t.bytes().min(pair.u.bytes()),
    }
}

fn little(_: &Pair) -> u64 {
    0
}

fn unsorted(_: &Pair) -> Vec<OrderKey> {
    Vec::new()
}

fn by(columns: &[(usize, bool)]) -> Vec<OrderKey> {
    let key = |&(column, descending)| OrderKey { column, descending };
    columns.iter().map(key).collect()
}

/// `t.v < u.v`, where neither is NULL.
fn is_less(t: &Row, u: &Row) -> bool {
    t.v.zip(u.v).is_some_and(|(t, u)| t < u)
}

/// One of so many pairs matches that the result stays small.
fn thinned_by(pair: &Pair) -> u64 {
    let most = if pair.t.shape == Shape::WideRows { 30 } else { 400 };
    (pair.t.rows * pair.u.rows / 2 / most).max(1)
}

fn non_equi_sql(pair: &Pair) -> String {
    format!("t.v < u.v AND (t.id * 7 + u.id * 13) % {} = 0", thinned_by(pair))
}

fn non_equi(pair: &Pair) -> impl Fn(&Row, &Row) -> bool {
    let divisor = thinned_by(pair) as i64;
    move |t, u| is_less(t, u) && (t.id * 7 + u.id * 13) % divisor == 0
}

fn top_large(pair: &Pair) -> (usize, usize) {
    let rows = pair.t.rows as usize;
    (rows / 2, rows / 4)
}

/// ORDER BY, without and with a limit.
pub(crate) const SORTS: &[Operator] = &[
    Operator {
        name: "sort",
        input: Input::One,
        sql: |pair| rows_of_t(pair) + " ORDER BY k",
        model: all_of_t,
        order: |_| by(&[(1, false)]),
        held_bytes: bytes_of_t,
    },
    Operator {
        name: "sort descending",
        input: Input::One,
        sql: |pair| rows_of_t(pair) + " ORDER BY k DESC, id",
        model: all_of_t,
        order: |_| by(&[(1, true), (0, false)]),
        held_bytes: bytes_of_t,
    },
    Operator {
        name: "sort by several keys",
        input: Input::One,
        sql: |pair| rows_of_t(pair) + &format!(" ORDER BY v, k DESC, {}", first_payload(&pair.t)),
        model: all_of_t,
        order: |_| by(&[(2, false), (1, true), (3, false)]),
        held_bytes: bytes_of_t,
    },
    Operator {
        name: "sort by payload",
        input: Input::One,
        sql: |pair| rows_of_t(pair) + &format!(" ORDER BY {} DESC", first_payload(&pair.t)),
        model: all_of_t,
        order: |_| by(&[(3, true)]),
        held_bytes: bytes_of_t,
    },
    Operator {
        name: "top few",
        input: Input::One,
        sql: |pair| rows_of_t(pair) + " ORDER BY k, id LIMIT 10",
        model: |pair| models::first_rows(&pair.t, 0, 10),
        order: |_| by(&[(1, false), (0, false)]),
        held_bytes: little,
    },
    Operator {
        name: "top half",
        input: Input::One,
        sql: |pair| {
            let (limit, offset) = top_large(pair);
            rows_of_t(pair) + &format!(" ORDER BY k, id LIMIT {limit} OFFSET {offset}")
        },
        model: |pair| {
            let (limit, offset) = top_large(pair);
            models::first_rows(&pair.t, offset, limit)
        },
        order: |_| by(&[(1, false), (0, false)]),
        held_bytes: |pair| pair.t.bytes() / 4 * 3,
    },
];

/// Joins on equal keys.
pub(crate) const JOINS: &[Operator] = &[
    Operator {
        name: "inner join",
        input: Input::Two,
        sql: |pair| joined(pair, "INNER", "t.k = u.k"),
        model: |pair| models::equi_join(pair, Join::Inner, |_, _| true),
        order: unsorted,
        held_bytes: bytes_of_build,
    },
    Operator {
        name: "inner join with a condition",
        input: Input::Two,
        sql: |pair| joined(pair, "INNER", "t.k = u.k AND t.v < u.v"),
        model: |pair| models::equi_join(pair, Join::Inner, is_less),
        order: unsorted,
        held_bytes: bytes_of_build,
    },
    Operator {
        name: "left join",
        input: Input::Two,
        sql: |pair| joined(pair, "LEFT", "t.k = u.k AND t.v < u.v"),
        model: |pair| models::equi_join(pair, Join::Left, is_less),
        order: unsorted,
        held_bytes: bytes_of_build,
    },
    Operator {
        name: "right join",
        input: Input::Two,
        sql: |pair| joined(pair, "RIGHT", "t.k = u.k AND t.v < u.v"),
        model: |pair| models::equi_join(pair, Join::Right, is_less),
        order: unsorted,
        held_bytes: bytes_of_build,
    },
    Operator {
        name: "full join",
        input: Input::Two,
        sql: |pair| joined(pair, "FULL", "t.k = u.k"),
        model: |pair| models::equi_join(pair, Join::Full, |_, _| true),
        order: unsorted,
        held_bytes: bytes_of_build,
    },
    Operator {
        name: "semi join",
        input: Input::Two,
        sql: |pair| kept(pair, "EXISTS (SELECT 1 FROM u WHERE u.k = t.k)"),
        model: |pair| models::kept_by_key(pair, |_, matches| !matches.is_empty()),
        order: unsorted,
        held_bytes: little,
    },
    Operator {
        name: "semi join with a condition",
        input: Input::Two,
        sql: |pair| {
            let p = first_payload(&pair.t);
            kept(
                pair,
                &format!("EXISTS (SELECT 1 FROM u WHERE u.k = t.k AND u.v > t.v AND u.{p} IS NOT NULL)"),
            )
        },
        model: |pair| {
            let has_payload = first_payload_is_there(pair);
            models::kept_by_key(pair, |t, matches| {
                matches.iter().any(|u| is_less(t, u) && has_payload(u))
            })
        },
        order: unsorted,
        held_bytes: little,
    },
    Operator {
        name: "anti join",
        input: Input::Two,
        sql: |pair| kept(pair, "NOT EXISTS (SELECT 1 FROM u WHERE u.k = t.k)"),
        model: |pair| models::kept_by_key(pair, |_, matches| matches.is_empty()),
        order: unsorted,
        held_bytes: little,
    },
    Operator {
        name: "not in",
        input: Input::Two,
        sql: |pair| kept(pair, "t.k NOT IN (SELECT u.k FROM u WHERE u.k IS NOT NULL)"),
        model: |pair| {
            // Nothing is in an empty set, and nothing is not in it but all rows.
            let is_empty = pair.u.all_rows().iter().all(|row| row.k.is_none());
            models::kept_by_key(pair, |t, matches| is_empty || (t.k.is_some() && matches.is_empty()))
        },
        order: unsorted,
        held_bytes: little,
    },
    Operator {
        name: "mark join",
        input: Input::Two,
        sql: |pair| kept(pair, "EXISTS (SELECT 1 FROM u WHERE u.k = t.k) OR t.v < 100"),
        model: |pair| models::kept_by_key(pair, |t, matches| !matches.is_empty() || t.v.is_some_and(|v| v < 100)),
        order: unsorted,
        held_bytes: little,
    },
    Operator {
        name: "join of keys hot in both",
        input: Input::HotInBoth,
        sql: |_| "SELECT count(*), sum(t.id * 3 + u.id) FROM t JOIN u ON t.k = u.k".into(),
        model: models::count_of_join,
        order: unsorted,
        held_bytes: little,
    },
];

/// Whether the column that stands for the payload is not NULL: of many columns, the first may be.
fn first_payload_is_there(pair: &Pair) -> impl Fn(&Row) -> bool {
    let relation = pair.u.clone();
    move |row| relation.shape != Shape::ManyColumns || relation.payload_images(row.text)[0] != crate::digest::NULL
}

/// Joins on other conditions.
pub(crate) const NESTED_LOOPS: &[Operator] = &[
    Operator {
        name: "nested loop inner join",
        input: Input::Pairs,
        sql: |pair| joined(pair, "INNER", &non_equi_sql(pair)),
        model: |pair| models::any_join(pair, Join::Inner, non_equi(pair)),
        order: unsorted,
        held_bytes: bytes_of_nested_build,
    },
    Operator {
        name: "nested loop left join",
        input: Input::Pairs,
        sql: |pair| joined(pair, "LEFT", &non_equi_sql(pair)),
        model: |pair| models::any_join(pair, Join::Left, non_equi(pair)),
        order: unsorted,
        held_bytes: bytes_of_nested_build,
    },
    Operator {
        name: "nested loop right join",
        input: Input::Pairs,
        sql: |pair| joined(pair, "RIGHT", &non_equi_sql(pair)),
        model: |pair| models::any_join(pair, Join::Right, non_equi(pair)),
        order: unsorted,
        held_bytes: bytes_of_nested_build,
    },
    Operator {
        name: "nested loop full join",
        input: Input::Pairs,
        sql: |pair| joined(pair, "FULL", &non_equi_sql(pair)),
        model: |pair| models::any_join(pair, Join::Full, non_equi(pair)),
        order: unsorted,
        held_bytes: bytes_of_nested_build,
    },
    Operator {
        name: "nested loop semi join",
        input: Input::Pairs,
        sql: |pair| kept(pair, &format!("EXISTS (SELECT 1 FROM u WHERE {})", non_equi_sql(pair))),
        model: |pair| models::kept_by_any(pair, true, non_equi(pair)),
        order: unsorted,
        held_bytes: little,
    },
    Operator {
        name: "nested loop anti join",
        input: Input::Pairs,
        sql: |pair| {
            kept(
                pair,
                &format!("NOT EXISTS (SELECT 1 FROM u WHERE {})", non_equi_sql(pair)),
            )
        },
        model: |pair| models::kept_by_any(pair, false, non_equi(pair)),
        order: unsorted,
        held_bytes: little,
    },
];

/// GROUP BY and DISTINCT.
pub(crate) const AGGREGATIONS: &[Operator] = &[
    Operator {
        name: "group by key",
        input: Input::Narrow,
        sql: |_| format!("SELECT k, {AGGREGATES} FROM t GROUP BY k"),
        model: |pair| models::groups_of_key(&pair.t),
        order: unsorted,
        held_bytes: little,
    },
    Operator {
        name: "group by payload",
        input: Input::One,
        sql: |pair| {
            let columns = payload("t", &pair.t);
            format!("SELECT {columns}, {AGGREGATES} FROM t GROUP BY {columns}")
        },
        model: |pair| models::groups_of_text(&pair.t),
        order: unsorted,
        held_bytes: |pair| bytes_without_key(&pair.t) / 2,
    },
    Operator {
        name: "distinct keys",
        input: Input::Narrow,
        sql: |_| "SELECT DISTINCT k, v FROM t".into(),
        model: |pair| models::distinct_keys(&pair.t),
        order: unsorted,
        held_bytes: little,
    },
    Operator {
        name: "distinct",
        input: Input::One,
        sql: |pair| format!("SELECT DISTINCT k, {} FROM t", payload("t", &pair.t)),
        model: |pair| models::distinct_rows(&pair.t, pair.t.all_rows()),
        order: unsorted,
        held_bytes: |pair| pair.t.bytes() / 2,
    },
    Operator {
        name: "count distinct",
        input: Input::One,
        sql: |pair| format!("SELECT count(DISTINCT {}) FROM t", first_payload(&pair.t)),
        model: |pair| {
            let there = first_payload_is_there(pair);
            let rows: std::collections::HashSet<u64> = pair
                .t
                .all_rows()
                .iter()
                .filter(|row| there(row))
                .map(|row| row.text)
                .collect();
            models::count(rows.len())
        },
        order: unsorted,
        held_bytes: |pair| match pair.t.shape {
            // Of one of the columns.
            Shape::ManyColumns => 0,
            _ => bytes_without_key(&pair.t) / 2,
        },
    },
];

/// OVER.
pub(crate) const WINDOWS: &[Operator] = &[
    Operator {
        name: "row number",
        input: Input::One,
        sql: |pair| over(pair, "row_number()", "PARTITION BY k ORDER BY id"),
        model: |pair| models::window(&pair.t, |running, _| running.rows()),
        order: unsorted,
        held_bytes: bytes_of_t,
    },
    Operator {
        name: "sum of the partition",
        input: Input::One,
        sql: |pair| over(pair, "sum(v)", "PARTITION BY k"),
        model: |pair| models::window(&pair.t, |_, whole| whole.sum()),
        order: unsorted,
        held_bytes: bytes_of_t,
    },
    Operator {
        name: "running sum",
        input: Input::One,
        sql: |pair| over(pair, "sum(v)", "PARTITION BY k ORDER BY id"),
        model: |pair| models::window(&pair.t, |running, _| running.sum()),
        order: unsorted,
        held_bytes: bytes_of_t,
    },
];

fn over(pair: &Pair, function: &str, window: &str) -> String {
    format!(
        "SELECT id, {}, {function} OVER ({window}) FROM t",
        payload("t", &pair.t)
    )
}

/// UNION.
pub(crate) const UNIONS: &[Operator] = &[
    Operator {
        name: "union all",
        input: Input::Two,
        sql: |pair| {
            let columns = |alias, relation| format!("{alias}.id, {alias}.k, {alias}.v, {}", payload(alias, relation));
            let (t, u) = (columns("t", &pair.t), columns("u", &pair.u));
            format!("SELECT {t} FROM t UNION ALL SELECT {u} FROM u")
        },
        model: |pair| {
            let rows: Vec<Row> = pair.t.all_rows().into_iter().chain(pair.u.all_rows()).collect();
            models::whole_rows(&pair.t, &rows)
        },
        order: unsorted,
        held_bytes: little,
    },
    Operator {
        name: "union",
        input: Input::Two,
        sql: |pair| {
            let (t, u) = (payload("t", &pair.t), payload("u", &pair.u));
            format!("SELECT k, {t} FROM t UNION SELECT k, {u} FROM u")
        },
        model: |pair| {
            let rows = pair.t.all_rows().into_iter().chain(pair.u.all_rows());
            models::distinct_rows(&pair.t, rows)
        },
        order: unsorted,
        held_bytes: |pair| pair.t.bytes().min(pair.u.bytes()),
    },
];
