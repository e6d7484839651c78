//! Sort keys in comparable form: per row a rank (NULL or value), a prefix of the first key, and, where these do not
//! decide, bytes that do: the value itself where the only key is a string, otherwise the remaining keys in Arrow's row
//! format, which compares as bytes.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, Schema};
use arrow::row::{RowConverter, Rows, SortField};

use crate::data::{Batch, EngineError, Result};
use crate::operator::sort::prefix::{Precision, Prefixes, bytes_at};
use crate::plan::SortKey;

/// Turns the key columns of batches into [`BatchKeys`].
pub(in crate::operator) struct KeyEncoder {
    keys: Vec<SortKey>,
    precision: Precision,
    rest: RestOf,
}

/// Where the keys come from that a prefix does not decide.
enum RestOf {
    /// There are none.
    Nothing,
    /// The only key is a string or binary: its values compare as they are.
    OnlyKey,
    /// All keys, or all but the first.
    Keys(RowConverter),
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
        let rest = match keys {
            _ if fields.is_empty() => RestOf::Nothing,
            [only] if is_bytes(&only.expr.expr.data_type(schema)?) => RestOf::OnlyKey,
            _ => RestOf::Keys(RowConverter::new(fields)?),
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
        let rest = match (&self.rest, columns.first()) {
            (RestOf::Keys(rest), _) => Rest::Rows(rest.convert_columns(&columns[decided..])?),
            (RestOf::OnlyKey, Some(only)) => Rest::Values {
                values: Arc::clone(only),
                descending: self.keys.first().is_some_and(|key| key.descending),
            },
            _ => Rest::Nothing,
        };
        let head = match (self.head_of(columns.first()), &rest) {
            (Some(head), _) => head,
            (None, Rest::Rows(rows)) => Head {
                prefixes: rows.iter().map(|row| bytes_at(row.data(), 0)).collect(),
                nulls: None,
                null_rank: 0,
            },
            (None, _) => Head {
                prefixes: vec![0; batch.num_rows()],
                nulls: None,
                null_rank: 0,
            },
        };
        Ok(BatchKeys { head, rest })
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
        matches!(self.rest, RestOf::Nothing)
    }

    /// Whether NULLs of the first key come before its values.
    pub(in crate::operator) fn nulls_first(&self) -> bool {
        self.keys.first().is_some_and(|key| key.nulls_first)
    }

    /// Orders two keys of this encoder that were kept beyond their batches.
    pub(in crate::operator) fn compare(&self, one: &OwnedKey, other: &OwnedKey) -> Ordering {
        one.head.cmp(&other.head).then_with(|| {
            let ordering = one.rest.cmp(&other.rest);
            let reversed = matches!(self.rest, RestOf::OnlyKey) && self.keys.first().is_some_and(|key| key.descending);
            if reversed { ordering.reverse() } else { ordering }
        })
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

fn is_bytes(data_type: &DataType) -> bool {
    use DataType::*;
    matches!(
        data_type,
        Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView | FixedSizeBinary(_)
    )
}

/// What decides between rows of equal heads.
pub(in crate::operator) enum Rest {
    /// Nothing: they are equal.
    Nothing,
    /// The values of the only key, compared as bytes.
    Values {
        /// The key's column.
        values: ArrayRef,
        /// Whether greater values come first.
        descending: bool,
    },
    /// The keys in Arrow's row format, in their directions.
    Rows(Rows),
}

impl Rest {
    /// The bytes that decide, of `row`.
    pub(in crate::operator) fn bytes(&self, row: usize) -> &[u8] {
        match self {
            Rest::Nothing => &[],
            Rest::Rows(rows) => rows.row(row).data(),
            Rest::Values { values, .. } => match values.data_type() {
                DataType::Utf8 => values.as_string::<i32>().value(row).as_bytes(),
                DataType::LargeUtf8 => values.as_string::<i64>().value(row).as_bytes(),
                DataType::Utf8View => values.as_string_view().value(row).as_bytes(),
                DataType::Binary => values.as_binary::<i32>().value(row),
                DataType::LargeBinary => values.as_binary::<i64>().value(row),
                DataType::BinaryView => values.as_binary_view().value(row),
                _ => values.as_fixed_size_binary().value(row),
            },
        }
    }

    /// Whether greater bytes come first.
    pub(in crate::operator) fn is_descending(&self) -> bool {
        matches!(self, Rest::Values { descending: true, .. })
    }

    /// Whether there is nothing to look at.
    pub(in crate::operator) fn is_nothing(&self) -> bool {
        matches!(self, Rest::Nothing)
    }

    fn order(&self, ordering: Ordering) -> Ordering {
        if self.is_descending() {
            ordering.reverse()
        } else {
            ordering
        }
    }

    /// Bytes in memory, beyond the batch's own.
    pub(in crate::operator) fn byte_size(&self) -> usize {
        match self {
            Rest::Rows(rows) => rows.size(),
            Rest::Nothing | Rest::Values { .. } => 0,
        }
    }
}

/// The keys of one batch's rows.
pub(in crate::operator) struct BatchKeys {
    /// What decides most comparisons.
    pub(in crate::operator) head: Head,
    /// What decides the others.
    pub(in crate::operator) rest: Rest,
}

/// Bytes of the rest that a kept key has at most: keys may be megabytes, and there is one for each block of a run.
const KEPT_BYTES: usize = 64;

/// The beginning of one row's key, kept beyond its batch. It orders against others as the whole key does, except that
/// it may be equal where the whole key is not.
#[derive(Clone, Debug)]
pub(in crate::operator) struct OwnedKey {
    head: HeadKey,
    rest: Box<[u8]>,
}

impl OwnedKey {
    /// Bytes in memory.
    pub(in crate::operator) fn byte_size(&self) -> usize {
        size_of::<Self>() + self.rest.len()
    }
}

impl BatchKeys {
    /// Orders `row` of these keys against `other_row` of `other`, by the same encoder.
    pub(in crate::operator) fn compare(&self, row: usize, other: &BatchKeys, other_row: usize) -> Ordering {
        let (head, other_head) = (self.head.at(row), other.head.at(other_row));
        head.cmp(&other_head).then_with(|| match self.decides(head) {
            true => self.rest.order(self.rest.bytes(row).cmp(other.rest.bytes(other_row))),
            false => Ordering::Equal,
        })
    }

    /// Orders `row` of these keys against a key that was kept.
    pub(in crate::operator) fn compare_owned(&self, row: usize, other: &OwnedKey) -> Ordering {
        let head = self.head.at(row);
        head.cmp(&other.head).then_with(|| match self.decides(head) {
            true => self.rest.order(self.rest.bytes(row).cmp(&other.rest)),
            false => Ordering::Equal,
        })
    }

    /// The beginning of the key of `row`, to keep.
    pub(in crate::operator) fn owned(&self, row: usize) -> OwnedKey {
        let head = self.head.at(row);
        let rest = if self.decides(head) { self.rest.bytes(row) } else { &[] };
        OwnedKey {
            head,
            rest: rest[..rest.len().min(KEPT_BYTES)].into(),
        }
    }

    /// Whether the rest has a say among rows of this head: the value behind a NULL has none.
    fn decides(&self, head: HeadKey) -> bool {
        match self.rest {
            Rest::Nothing => false,
            Rest::Values { .. } => head.0 == VALUE_RANK,
            Rest::Rows(_) => true,
        }
    }

    /// Bytes in memory.
    pub(in crate::operator) fn byte_size(&self) -> usize {
        self.head.prefixes.capacity() * size_of::<u64>() + self.rest.byte_size()
    }
}
