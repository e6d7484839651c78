//! Simple size estimates: statistics of the scans, fixed selectivities where they say nothing.

use arrow::datatypes::{DataType, Schema};
use datafusion::common::stats::Precision;
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::logical_expr::{BinaryExpr, Expr, JoinType, Operator};
use datafusion::physical_plan::Statistics;

use crate::properties::{Physical, column_index};

/// The share of rows that a condition keeps when nothing is known about it.
const DEFAULT_SELECTIVITY: f64 = 0.2;
/// The share of rows that `column = value` keeps when the number of distinct values is unknown.
const DEFAULT_EQUALITY: f64 = 0.1;
/// Groups per row when the number of distinct keys is unknown.
const DEFAULT_GROUPING: f64 = 0.1;
/// Elements of a list that is unnested.
const DEFAULT_LIST_LENGTH: f64 = 4.0;

/// How large a stream is, as far as is known.
#[derive(Clone, Debug, Default)]
pub(crate) struct Estimate {
    /// Rows over all subtasks.
    pub(crate) rows: Option<f64>,
    /// One per column.
    columns: Vec<ColumnEstimate>,
}

#[derive(Clone, Debug, Default)]
struct ColumnEstimate {
    /// Average bytes of a value.
    width: f64,
    distinct: Option<f64>,
    min: Option<f64>,
    max: Option<f64>,
}

impl ColumnEstimate {
    fn of_type(data_type: &DataType) -> Self {
        Self {
            width: width_of(data_type),
            ..Self::default()
        }
    }
}

impl Estimate {
    /// Nothing known but the schema.
    pub(crate) fn unknown(schema: &Schema) -> Self {
        Self {
            rows: None,
            columns: schema
                .fields()
                .iter()
                .map(|f| ColumnEstimate::of_type(f.data_type()))
                .collect(),
        }
    }

    /// So many rows of `schema`.
    pub(crate) fn exactly(rows: usize, schema: &Schema) -> Self {
        Self {
            rows: Some(rows as f64),
            ..Self::unknown(schema)
        }
    }

    /// What a scan knows. Without a row count, the size of its files tells one.
    pub(crate) fn from_statistics(statistics: &Statistics, file_bytes: Option<u64>, schema: &Schema) -> Self {
        let mut estimate = Self::unknown(schema);
        let counted = number(&statistics.num_rows);
        let guessed = file_bytes.map(|bytes| bytes as f64 / estimate.row_bytes());
        estimate.rows = counted.or(guessed);
        let rows = estimate.rows.unwrap_or(f64::INFINITY);
        for (column, known) in estimate.columns.iter_mut().zip(&statistics.column_statistics) {
            column.min = known.min_value.get_value().and_then(as_number);
            column.max = known.max_value.get_value().and_then(as_number);
            let span = match (column.min, column.max, known.min_value.get_value()) {
                (Some(min), Some(max), Some(value)) if is_discrete(&value.data_type()) => Some(max - min + 1.0),
                _ => None,
            };
            column.distinct = number(&known.distinct_count)
                .or(span)
                .map(|distinct| distinct.clamp(1.0, rows.max(1.0)));
        }
        estimate
    }

    /// Bytes of one row.
    fn row_bytes(&self) -> f64 {
        self.columns.iter().map(|column| column.width).sum::<f64>().max(1.0)
    }

    /// Bytes over all subtasks.
    pub(crate) fn bytes(&self) -> Option<f64> {
        self.rows.map(|rows| rows * self.row_bytes())
    }

    /// About how many values column `index` has: the rows where that is not known.
    pub(crate) fn values_of(&self, index: usize) -> Option<f64> {
        let distinct = self.columns.get(index)?.distinct;
        match (distinct, self.rows) {
            (Some(distinct), Some(rows)) => Some(distinct.min(rows)),
            (known, rows) => known.or(rows),
        }
    }

    /// The number of distinct values of column `index`, where it is known.
    pub(crate) fn distinct_values(&self, index: usize) -> Option<f64> {
        self.columns.get(index)?.distinct
    }

    /// Least and greatest value of column `index`, of a type that counts in whole numbers.
    pub(crate) fn whole_range(&self, index: usize) -> Option<(i64, i64)> {
        let column = self.columns.get(index)?;
        let (min, max) = (column.min?, column.max?);
        // Beyond these a float does not tell all whole numbers apart.
        let is_exact = min.abs() < 9e15 && max.abs() < 9e15 && min <= max;
        is_exact.then_some((min as i64, max as i64))
    }

    /// After a filter.
    pub(crate) fn filter(mut self, predicate: &Expr, schema: &DFSchema) -> Self {
        let share = self.selectivity(predicate, schema);
        self.scale(share);
        self
    }

    /// After each row became `times` rows.
    pub(crate) fn repeat(mut self, times: f64) -> Self {
        self.rows = self.rows.map(|rows| rows * times);
        self
    }

    fn scale(&mut self, share: f64) {
        self.rows = self.rows.map(|rows| (rows * share).max(1.0));
        if let Some(rows) = self.rows {
            for column in &mut self.columns {
                column.distinct = column.distinct.map(|distinct| distinct.min(rows));
            }
        }
    }

    /// After computing `exprs` into `schema`.
    pub(crate) fn project(self, exprs: &[Physical], schema: &Schema) -> Self {
        let columns = exprs
            .iter()
            .zip(schema.fields())
            .map(|(expr, field)| {
                let known = column_index(expr).and_then(|index| self.columns.get(index).cloned());
                known.unwrap_or_else(|| ColumnEstimate::of_type(field.data_type()))
            })
            .collect();
        Self {
            rows: self.rows,
            columns,
        }
    }

    /// After a limit.
    pub(crate) fn limit(mut self, fetch: Option<usize>) -> Self {
        if let Some(fetch) = fetch {
            self.rows = Some(self.rows.map_or(fetch as f64, |rows| rows.min(fetch as f64)));
        }
        self
    }

    /// After unnesting lists into `schema`.
    pub(crate) fn unnest(self, schema: &Schema) -> Self {
        Self {
            rows: self.rows.map(|rows| rows * DEFAULT_LIST_LENGTH),
            ..Self::unknown(schema)
        }
    }

    /// With more columns, as computed by an operator that keeps the rows and the leading columns.
    pub(crate) fn widen(mut self, schema: &Schema) -> Self {
        let known = self.columns.len();
        self.columns.extend(
            schema
                .fields()
                .iter()
                .skip(known)
                .map(|f| ColumnEstimate::of_type(f.data_type())),
        );
        self
    }

    /// Each row `copies` times, of another schema.
    pub(crate) fn expand(self, copies: usize, schema: &Schema) -> Self {
        Self {
            rows: self.rows.map(|rows| rows * copies as f64),
            ..Self::unknown(schema)
        }
    }

    /// One after the other.
    pub(crate) fn union<'e>(inputs: impl Iterator<Item = &'e Estimate>) -> Self {
        inputs
            .cloned()
            .reduce(|a, b| Self {
                rows: a.rows.zip(b.rows).map(|(a, b)| a + b),
                columns: a
                    .columns
                    .into_iter()
                    .zip(b.columns)
                    .map(|(a, b)| ColumnEstimate {
                        width: a.width.max(b.width),
                        distinct: a.distinct.zip(b.distinct).map(|(a, b)| a.max(b)),
                        min: a.min.zip(b.min).map(|(a, b)| a.min(b)),
                        max: a.max.zip(b.max).map(|(a, b)| a.max(b)),
                    })
                    .collect(),
            })
            .unwrap_or_default()
    }

    /// After grouping by `keys` into `schema`.
    pub(crate) fn group(&self, keys: &[Physical], schema: &Schema) -> Self {
        let grouped = self.rows.map(|rows| {
            let known: Option<f64> = keys.iter().map(|key| self.distinct_of(key)).product();
            known.unwrap_or((rows * DEFAULT_GROUPING).max(1.0)).min(rows).max(1.0)
        });
        let mut estimate = Self::unknown(schema);
        estimate.rows = if keys.is_empty() { Some(1.0) } else { grouped };
        for (column, key) in estimate.columns.iter_mut().zip(keys) {
            if let Some(known) = column_index(key).and_then(|index| self.columns.get(index)) {
                *column = known.clone();
            }
        }
        estimate
    }

    /// The number of distinct values of a key.
    fn distinct_of(&self, key: &Physical) -> Option<f64> {
        column_index(key).and_then(|index| self.columns.get(index)?.distinct)
    }

    /// After a join on `keys`, `self` left; both sides' columns, before any projection.
    pub(crate) fn join(&self, right: &Self, keys: &[(Physical, Physical)], filtered: bool, kind: JoinType) -> Self {
        let matches = self.rows.zip(right.rows).map(|(l, r)| {
            let pairs = if keys.is_empty() {
                l * r
            } else {
                l * r / self.key_cardinality(right, keys, l, r)
            };
            (if filtered { pairs * DEFAULT_SELECTIVITY } else { pairs }).max(1.0)
        });
        let at_least = |rows: Option<f64>| matches.zip(rows).map(|(matches, rows)| matches.max(rows));
        let part = |rows: Option<f64>| {
            matches
                .zip(rows)
                .map(|(matches, rows)| (rows * 0.5).min(matches).max(1.0))
        };
        let (rows, both) = match kind {
            JoinType::Inner => (matches, true),
            JoinType::Left => (at_least(self.rows), true),
            JoinType::Right => (at_least(right.rows), true),
            JoinType::Full => (at_least(self.rows.zip(right.rows).map(|(l, r)| l.max(r))), true),
            JoinType::LeftSemi | JoinType::LeftAnti => (part(self.rows), false),
            JoinType::RightSemi | JoinType::RightAnti => (part(right.rows), false),
            JoinType::LeftMark => (self.rows, false),
            JoinType::RightMark => (right.rows, false),
        };
        let columns = match kind {
            _ if both => self.columns.iter().chain(&right.columns).cloned().collect(),
            JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => right.columns.clone(),
            _ => self.columns.clone(),
        };
        Self { rows, columns }
    }

    /// Distinct key combinations: the known ones, or one per row of the smaller side (a primary key).
    fn key_cardinality(&self, right: &Self, keys: &[(Physical, Physical)], l: f64, r: f64) -> f64 {
        let known: Option<f64> = keys
            .iter()
            .map(|(a, b)| Some(self.distinct_of(a)?.max(right.distinct_of(b)?)))
            .product();
        known.unwrap_or(l.min(r)).clamp(1.0, l.max(r).max(1.0))
    }

    fn selectivity(&self, predicate: &Expr, schema: &DFSchema) -> f64 {
        match predicate {
            Expr::BinaryExpr(BinaryExpr { left, op, right }) => match op {
                Operator::And => self.selectivity(left, schema) * self.selectivity(right, schema),
                Operator::Or => {
                    let (a, b) = (self.selectivity(left, schema), self.selectivity(right, schema));
                    a + b - a * b
                }
                _ => self.comparison(left, *op, right, schema).unwrap_or(DEFAULT_SELECTIVITY),
            },
            Expr::Not(inner) => 1.0 - self.selectivity(inner, schema),
            Expr::IsNotNull(_) => 0.9,
            Expr::IsNull(_) => DEFAULT_EQUALITY,
            Expr::Literal(ScalarValue::Boolean(Some(true)), _) => 1.0,
            Expr::InList(list) => {
                let one = self.equality(&list.expr, schema);
                let share = (one * list.list.len() as f64).min(1.0);
                if list.negated { 1.0 - share } else { share }
            }
            _ => DEFAULT_SELECTIVITY,
        }
    }

    fn comparison(&self, left: &Expr, op: Operator, right: &Expr, schema: &DFSchema) -> Option<f64> {
        let (column, op, value) = match (left, right) {
            (column, Expr::Literal(value, _)) => (column, op, value),
            (Expr::Literal(value, _), column) => (column, op.swap()?, value),
            _ => return None,
        };
        match op {
            Operator::Eq => Some(self.equality(column, schema)),
            Operator::NotEq => Some(1.0 - self.equality(column, schema)),
            Operator::Lt | Operator::LtEq | Operator::Gt | Operator::GtEq => {
                let known = self.column(column, schema)?;
                let (min, max, value) = (known.min?, known.max?, as_number(value)?);
                let below = if max > min {
                    ((value - min) / (max - min)).clamp(0.0, 1.0)
                } else {
                    0.5
                };
                Some(if matches!(op, Operator::Lt | Operator::LtEq) {
                    below
                } else {
                    1.0 - below
                })
            }
            _ => None,
        }
    }

    fn equality(&self, column: &Expr, schema: &DFSchema) -> f64 {
        let distinct = self.column(column, schema).and_then(|known| known.distinct);
        distinct.map_or(DEFAULT_EQUALITY, |distinct| 1.0 / distinct.max(1.0))
    }

    fn column(&self, expr: &Expr, schema: &DFSchema) -> Option<&ColumnEstimate> {
        let column = match expr {
            Expr::Column(column) => column,
            Expr::Cast(cast) => return self.column(&cast.expr, schema),
            _ => return None,
        };
        self.columns.get(schema.maybe_index_of_column(column)?)
    }
}

fn number(precision: &Precision<usize>) -> Option<f64> {
    precision.get_value().map(|value| *value as f64)
}

fn as_number(value: &ScalarValue) -> Option<f64> {
    match value {
        ScalarValue::Date32(days) => days.map(f64::from),
        ScalarValue::Date64(ms) => ms.map(|ms| ms as f64),
        ScalarValue::TimestampSecond(t, _)
        | ScalarValue::TimestampMillisecond(t, _)
        | ScalarValue::TimestampMicrosecond(t, _)
        | ScalarValue::TimestampNanosecond(t, _) => t.map(|t| t as f64),
        value if value.data_type().is_numeric() => match value.cast_to(&DataType::Float64) {
            Ok(ScalarValue::Float64(number)) => number,
            _ => None,
        },
        _ => None,
    }
}

fn is_discrete(data_type: &DataType) -> bool {
    data_type.is_integer() || matches!(data_type, DataType::Date32)
}

/// Bytes of a value: exact for fixed widths, a habit for the others.
fn width_of(data_type: &DataType) -> f64 {
    match data_type {
        DataType::Null => 0.0,
        DataType::Boolean => 0.125,
        DataType::FixedSizeBinary(width) => f64::from(*width),
        DataType::Dictionary(key, _) => width_of(key),
        DataType::Struct(fields) => fields.iter().map(|field| width_of(field.data_type())).sum(),
        DataType::List(item) | DataType::LargeList(item) => DEFAULT_LIST_LENGTH * width_of(item.data_type()),
        DataType::FixedSizeList(item, length) => f64::from(*length) * width_of(item.data_type()),
        other => other.primitive_width().map_or(24.0, |width| width as f64),
    }
}
