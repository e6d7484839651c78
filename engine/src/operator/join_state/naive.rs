//! What the tests of the joins share: rows of two sides, and naive answers to compare with.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int32Array, Int64Array, StringViewArray, TimestampMicrosecondArray, UInt8Array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use datafusion::common::JoinType;
use proptest::prelude::*;

use crate::data::{Batch, split_row_kind, with_row_kind};
use crate::operator::hash_join::naive::{cells, full_schema, less_filter, naive};
use crate::plan::{JoinFilterSpec, JoinInputSpec, ScalarExpr, SchemaSpec};

/// The join types of streams.
pub(in crate::operator) const JOIN_TYPES: [JoinType; 6] = [
    JoinType::Inner,
    JoinType::Left,
    JoinType::Right,
    JoinType::Full,
    JoinType::LeftSemi,
    JoinType::LeftAnti,
];

/// Which columns are keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::operator) enum KeyKind {
    /// A number: equal hashes are equal keys.
    Number,
    /// A string.
    Text,
    /// Both.
    Both,
    /// None.
    None,
}

/// All of them.
pub(in crate::operator) const KEY_KINDS: [KeyKind; 4] = [KeyKind::Number, KeyKind::Text, KeyKind::Both, KeyKind::None];

impl KeyKind {
    /// The columns by which rows are dealt to subtasks.
    pub(in crate::operator) fn columns(self) -> &'static [usize] {
        match self {
            KeyKind::Number => &[0],
            KeyKind::Text => &[1],
            KeyKind::Both => &[0, 1],
            KeyKind::None => &[],
        }
    }
}

/// A row of either side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::operator) struct Row {
    pub(in crate::operator) key: Option<u8>,
    pub(in crate::operator) value: i32,
    pub(in crate::operator) time: i64,
}

/// The prefixes of the columns of both sides.
pub(in crate::operator) const PREFIXES: [&str; 2] = ["b", "p"];

/// Key, key as text, value, time.
pub(in crate::operator) const WIDTH: usize = 4;

/// The schema of side `side`, without row kind.
pub(in crate::operator) fn schema(side: usize) -> SchemaRef {
    let prefix = PREFIXES[side];
    let time = DataType::Timestamp(TimeUnit::Microsecond, None);
    Arc::new(Schema::new(vec![
        Field::new(format!("{prefix}_k"), DataType::Int64, true),
        Field::new(format!("{prefix}_text"), DataType::Utf8View, true),
        Field::new(format!("{prefix}_v"), DataType::Int32, true),
        Field::new(format!("{prefix}_t"), time, true),
    ]))
}

/// Rows as a batch; of a changelog when there are kinds.
pub(in crate::operator) fn batch(side: usize, rows: &[Row], kinds: Option<&[u8]>) -> Batch {
    let key = |row: &Row| row.key.map(i64::from);
    let text = |row: &Row| row.key.map(|key| format!("a text beyond what a view holds {key}"));
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(Int64Array::from_iter(rows.iter().map(key))),
        Arc::new(StringViewArray::from_iter(rows.iter().map(text))),
        Arc::new(Int32Array::from_iter_values(rows.iter().map(|row| row.value))),
        // The last microsecond of the millisecond, which counts as the millisecond.
        Arc::new(TimestampMicrosecondArray::from_iter_values(
            rows.iter().map(|row| row.time * 1000 + 999),
        )),
    ];
    let schema = match kinds {
        None => schema(side),
        Some(kinds) => {
            columns.push(Arc::new(UInt8Array::from(kinds.to_vec())));
            with_row_kind(&schema(side))
        }
    };
    Batch::try_new(schema, columns).unwrap()
}

/// The side's part of a spec.
pub(in crate::operator) fn input(side: usize, keys: KeyKind, changelog: bool) -> JoinInputSpec {
    let schema = if changelog {
        with_row_kind(&schema(side))
    } else {
        schema(side)
    };
    JoinInputSpec {
        keys: keys
            .columns()
            .iter()
            .map(|column| ScalarExpr::column(*column, &schema))
            .collect(),
        schema: schema.into(),
        unique_key: None,
        ttl_ms: None,
    }
}

/// The output's schema.
pub(in crate::operator) fn output_schema(join_type: JoinType, changelog: bool) -> SchemaSpec {
    let full = full_schema(join_type, &schema(0), &schema(1));
    if changelog {
        with_row_kind(&full).into()
    } else {
        Arc::new(full).into()
    }
}

/// `left.v < right.v`.
pub(in crate::operator) fn filter() -> JoinFilterSpec {
    less_filter(&schema(0), &schema(1))
}

/// The rows of a batch as text, in order.
pub(in crate::operator) fn lines(batch: &Batch) -> Vec<String> {
    cells(std::slice::from_ref(batch))
        .into_iter()
        .map(|row| row.join("|"))
        .collect()
}

/// The rows as text, sorted.
pub(in crate::operator) fn sorted(batch: &Batch) -> Vec<String> {
    let mut lines = lines(batch);
    lines.sort();
    lines
}

/// The rows of batches as text, sorted.
pub(in crate::operator) fn all_sorted(schema: &SchemaRef, batches: &[Batch]) -> Vec<String> {
    sorted(&concat_batches(schema, batches).unwrap())
}

/// Applies a changelog to the table that it describes; fails when it takes back what is not there.
pub(in crate::operator) fn apply(table: &mut BTreeMap<String, usize>, batch: &Batch) {
    let (rows, kinds) = split_row_kind(batch).unwrap();
    for (i, line) in lines(&rows).into_iter().enumerate() {
        let kind = kinds.as_ref().map_or(0, |kinds| kinds.value(i));
        if kind == 0 || kind == 2 {
            *table.entry(line).or_default() += 1;
            continue;
        }
        let count = table
            .get_mut(&line)
            .unwrap_or_else(|| panic!("'{line}' is taken back but is not there"));
        *count -= 1;
        if *count == 0 {
            table.remove(&line);
        }
    }
}

/// The rows of a table, sorted.
pub(in crate::operator) fn contents(table: &BTreeMap<String, usize>) -> Vec<String> {
    table
        .iter()
        .flat_map(|(line, count)| std::iter::repeat_n(line.clone(), *count))
        .collect()
}

/// Whether the keys of two rows are equal.
pub(in crate::operator) fn keys_match(keys: KeyKind, left: &Row, right: &Row) -> bool {
    keys == KeyKind::None || (left.key.is_some() && left.key == right.key)
}

/// The join by its definition.
pub(in crate::operator) fn expected(
    join_type: JoinType,
    left: &[Row],
    right: &[Row],
    matches: impl Fn(&Row, &Row) -> bool,
) -> Vec<String> {
    let (left_cells, right_cells) = (cells(&[batch(0, left, None)]), cells(&[batch(1, right, None)]));
    naive(join_type, &left_cells, &right_cells, (WIDTH, WIDTH), None, |l, r| {
        matches(&left[l], &right[r])
    })
}

/// A key that often meets others, now and then NULL.
pub(in crate::operator) fn key() -> impl Strategy<Value = Option<u8>> {
    prop_oneof![1 => Just(None), 6 => (0..4u8).prop_map(Some), 2 => (0..30u8).prop_map(Some)]
}

/// Rows with times in `times`.
pub(in crate::operator) fn rows(times: std::ops::Range<i64>, count: usize) -> impl Strategy<Value = Vec<Row>> {
    let row = (key(), 0..4i32, times)
        .prop_map(|(key, value, time)| Row { key, value, time })
        .boxed();
    // Few rows are looked up in another way than many.
    prop_oneof![3 => prop::collection::vec(row.clone(), 1..6), 1 => prop::collection::vec(row, 1..count)]
}
