//! Sort keys in comparable form: per row a rank (NULL or value), a prefix of the first key, and, where these do not
//! decide, the remaining keys in Arrow's row format, which compares as bytes.

use std::cmp::Ordering;

use arrow::array::ArrayRef;
use arrow::buffer::NullBuffer;
use arrow::datatypes::Schema;
use arrow::row::{RowConverter, Rows, SortField};

use crate::data::{Batch, EngineError, Result};
use crate::operator::sort::prefix::{Precision, Prefixes, bytes_at};
use crate::plan::SortKey;

/// Turns the key columns of batches into [`BatchKeys`].
pub(in crate::operator) struct KeyEncoder {
    keys: Vec<SortKey>,
    precision: Precision,
    /// The keys that a prefix does not decide: all, or all but the first.
    rest: Option<RowConverter>,
}

impl KeyEncoder {
    /// An encoder of `keys` over batches of `schema`.
    ///
    /// # Errors
    /// When a key's type has no order.
    pub(in crate::operator) fn try_new(keys: &[SortKey], schema: &Schema) -> Result<Self> {
        let mut fields = Vec::with_capacity(keys.len());
        for key in keys {
            let field = SortField::new_with_options(key.expr.expr.data_type(schema)?, key.options());
            if !RowConverter::supports_fields(std::slice::from_ref(&field)) {
                let data_type = key.expr.expr.data_type(schema)?;
                return Err(EngineError::Plan(format!(
                    "cannot sort by {}: values of type {data_type} have no order; sort by a part of it or cast it",
                    key.expr
                )));
            }
            fields.push(field);
        }
        let precision = match keys.first() {
            Some(first) => Precision::of(&first.expr.expr.data_type(schema)?),
            None => Precision::None,
        };
        if precision == Precision::Exact {
            fields.remove(0);
        }
        let rest = if fields.is_empty() {
            None
        } else {
            Some(RowConverter::new(fields)?)
        };
        Ok(Self {
            keys: keys.to_vec(),
            precision,
            rest,
        })
    }

    /// The keys of `batch`.
    ///
    /// # Errors
    /// When a key expression fails.
    pub(in crate::operator) fn encode(&self, batch: &Batch) -> Result<BatchKeys> {
        let columns = self
            .keys
            .iter()
            .map(|key| evaluate(key, batch))
            .collect::<Result<Vec<_>>>()?;
        let decided = usize::from(self.precision == Precision::Exact);
        let rows = match &self.rest {
            Some(rest) => Some(rest.convert_columns(&columns[decided..])?),
            None => None,
        };
        let head = match (self.head_of(columns.first()), &rows) {
            (Some(head), _) => head,
            (None, Some(rows)) => Head {
                prefixes: rows.iter().map(|row| bytes_at(row.data(), 0)).collect(),
                nulls: None,
                null_rank: 0,
            },
            (None, None) => Head {
                prefixes: vec![0; batch.num_rows()],
                nulls: None,
                null_rank: 0,
            },
        };
        Ok(BatchKeys { head, rows })
    }

    /// The first key of `batch` alone, as far as a prefix tells it; `None` when its type has no prefix.
    ///
    /// # Errors
    /// When the key expression fails.
    pub(in crate::operator) fn encode_head(&self, batch: &Batch) -> Result<Option<Head>> {
        match self.keys.first() {
            Some(key) if self.precision != Precision::None => Ok(self.head_of(Some(&evaluate(key, batch)?))),
            _ => Ok(None),
        }
    }

    /// Whether a head is the whole key: rows of equal heads are equal.
    pub(in crate::operator) fn head_decides(&self) -> bool {
        self.rest.is_none()
    }

    /// Whether NULLs of the first key come before its values.
    pub(in crate::operator) fn nulls_first(&self) -> bool {
        self.keys.first().is_some_and(|key| key.nulls_first)
    }

    fn head_of(&self, first: Option<&ArrayRef>) -> Option<Head> {
        let options = self.keys.first()?.options();
        let Prefixes { values, nulls } = Prefixes::of(first?, options)?;
        let null_rank = if options.nulls_first { 0 } else { 2 };
        Some(Head {
            prefixes: values,
            nulls,
            null_rank,
        })
    }
}

fn evaluate(key: &SortKey, batch: &Batch) -> Result<ArrayRef> {
    Ok(key.expr.expr.evaluate(batch)?.into_array(batch.num_rows())?)
}

/// Rank and prefix of each row's first key.
pub(in crate::operator) struct Head {
    prefixes: Vec<u64>,
    nulls: Option<NullBuffer>,
    null_rank: u8,
}

/// Rank and prefix of one row: compares as the first keys do, as far as it tells.
pub(in crate::operator) type HeadKey = (u8, u64);

const VALUE_RANK: u8 = 1;

impl Head {
    /// The head of `row`.
    pub(in crate::operator) fn at(&self, row: usize) -> HeadKey {
        let rank = if self.is_null(row) { self.null_rank } else { VALUE_RANK };
        (rank, self.prefixes[row])
    }

    /// Whether the first key of `row` is NULL.
    pub(in crate::operator) fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    /// The prefixes alone.
    pub(in crate::operator) fn prefixes(&self) -> &[u64] {
        &self.prefixes
    }

    /// The rows that may come before `limit`, or, when `inclusive`, before it or with it.
    pub(in crate::operator) fn rows_before(&self, limit: HeadKey, inclusive: bool) -> Vec<u32> {
        let bound = if inclusive {
            limit.1.checked_add(1)
        } else {
            Some(limit.1)
        };
        match (&self.nulls, limit.0, bound) {
            // The common case is one comparison a row.
            (None, VALUE_RANK, Some(bound)) => {
                let mut found = Vec::new();
                for (row, prefix) in (0_u32..).zip(&self.prefixes) {
                    if *prefix < bound {
                        found.push(row);
                    }
                }
                found
            }
            _ => (0_u32..)
                .zip(0..self.prefixes.len())
                .filter(|(_, row)| {
                    let head = self.at(*row);
                    head < limit || (inclusive && head == limit)
                })
                .map(|(row, _)| row)
                .collect(),
        }
    }
}

/// The keys of one batch's rows.
pub(in crate::operator) struct BatchKeys {
    /// What decides most comparisons.
    pub(in crate::operator) head: Head,
    /// What decides the others; `None` when the head is the whole key.
    pub(in crate::operator) rows: Option<Rows>,
}

impl BatchKeys {
    /// Orders `row` of these keys against `other_row` of `other`, by the same encoder.
    pub(in crate::operator) fn compare(&self, row: usize, other: &BatchKeys, other_row: usize) -> Ordering {
        self.head
            .at(row)
            .cmp(&other.head.at(other_row))
            .then_with(|| match (&self.rows, &other.rows) {
                (Some(rows), Some(others)) => rows.row(row).cmp(&others.row(other_row)),
                _ => Ordering::Equal,
            })
    }

    /// Bytes in memory.
    pub(in crate::operator) fn byte_size(&self) -> usize {
        self.head.prefixes.capacity() * size_of::<u64>() + self.rows.as_ref().map_or(0, Rows::size)
    }
}
