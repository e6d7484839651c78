//! Key columns kept beside their hashes: hashing, and verifying what equal hashes claim.

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryArray, BinaryViewArray, FixedSizeListArray, GenericListArray, LargeBinaryArray,
    OffsetSizeTrait, StructArray,
};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{DataType, FieldRef, Float32Type, Float64Type};
use arrow::row::{RowConverter, SortField};

use crate::data::Result;
use crate::operator::hash_join::keys::{
    HashWord, Wide, canonical, canonical64, narrow, narrow_array, wide, wide_arrays,
};

/// Key columns kept to verify what their hashes claim.
#[derive(Debug)]
pub(super) struct KeyColumns {
    columns: Vec<KeyColumn>,
    nulls_match: bool,
}

#[derive(Debug)]
struct KeyColumn {
    values: Values,
    nulls: Option<NullBuffer>,
}

#[derive(Debug)]
enum Values {
    Narrow(Vec<u64>),
    Wide(Vec<Wide>),
    Bytes(BinaryArray),
    LargeBytes(LargeBinaryArray),
    Views(BinaryViewArray),
}

impl KeyColumns {
    /// No columns, for keys that are not hashed.
    pub(super) fn none() -> Self {
        Self {
            columns: Vec::new(),
            nulls_match: false,
        }
    }

    /// Keeps `arrays`; with `nulls_match`, NULL equals NULL.
    pub(super) fn new(arrays: &[ArrayRef], nulls_match: bool) -> Result<Self> {
        let columns = arrays.iter().map(KeyColumn::new).collect::<Result<_>>()?;
        Ok(Self { columns, nulls_match })
    }

    /// Whether row `row` here equals row `other_row` there.
    pub(super) fn equal(&self, row: u32, other: &KeyColumns, other_row: u32) -> bool {
        let mut bad = Vec::new();
        self.unequal(other, &[(row, other_row)], &mut bad);
        bad.is_empty()
    }

    /// Appends the positions of the pairs (row here, row there) that are not equal; one may appear more than once.
    pub(super) fn unequal(&self, other: &KeyColumns, pairs: &[(u32, u32)], bad: &mut Vec<usize>) {
        for (left, right) in self.columns.iter().zip(&other.columns) {
            match (&left.values, &right.values) {
                (Values::Narrow(l), Values::Narrow(r)) => {
                    self.check(left, right, pairs, bad, |i, j| l[i] == r[j]);
                }
                (Values::Wide(l), Values::Wide(r)) => self.check(left, right, pairs, bad, |i, j| l[i] == r[j]),
                (Values::Bytes(l), Values::Bytes(r)) => {
                    self.check(left, right, pairs, bad, |i, j| l.value(i) == r.value(j));
                }
                (Values::Views(l), Values::Views(r)) => {
                    self.check(left, right, pairs, bad, |i, j| l.value(i) == r.value(j));
                }
                // A build side of more than 2 GB of strings is widened, its probe side is not.
                (l, r) => self.check(left, right, pairs, bad, |i, j| l.bytes(i) == r.bytes(j)),
            }
        }
    }

    #[inline]
    fn check(
        &self,
        left: &KeyColumn,
        right: &KeyColumn,
        pairs: &[(u32, u32)],
        bad: &mut Vec<usize>,
        equal: impl Fn(usize, usize) -> bool,
    ) {
        let nullable = self.nulls_match && (left.nulls.is_some() || right.nulls.is_some());
        for (position, (i, j)) in pairs.iter().enumerate() {
            let (i, j) = (*i as usize, *j as usize);
            let same = match nullable {
                false => equal(i, j),
                true => match (left.is_null(i), right.is_null(j)) {
                    (false, false) => equal(i, j),
                    (l, r) => l == r,
                },
            };
            if !same {
                bad.push(position);
            }
        }
    }

    /// One hash per row.
    pub(super) fn hash(&self, rows: usize) -> Vec<HashWord> {
        let mut hashes = vec![HashWord(0); rows];
        for column in &self.columns {
            match &column.values {
                Values::Narrow(v) => column.fold(&mut hashes, |i| v[i]),
                Values::Wide(v) => column.fold(&mut hashes, |i| mix(v[i][0] ^ SEED_A, v[i][1] ^ SEED_B)),
                Values::Bytes(v) => column.fold(&mut hashes, |i| hash_bytes(v.value(i))),
                Values::LargeBytes(v) => column.fold(&mut hashes, |i| hash_bytes(v.value(i))),
                Values::Views(v) => column.fold(&mut hashes, |i| hash_bytes(v.value(i))),
            }
        }
        hashes
    }

    /// The columns as arrays, equal where the keys are equal.
    pub(super) fn into_arrays(self) -> Vec<ArrayRef> {
        let mut arrays: Vec<ArrayRef> = Vec::with_capacity(self.columns.len());
        for KeyColumn { values, nulls } in self.columns {
            match values {
                Values::Narrow(words) => arrays.push(narrow_array(words, nulls)),
                Values::Wide(words) => arrays.extend(wide_arrays(&words, nulls)),
                // The row format has no NULLs of its own.
                Values::Bytes(bytes) => {
                    let (offsets, values, _) = bytes.into_parts();
                    arrays.push(Arc::new(BinaryArray::new(offsets, values, nulls)));
                }
                // Only a build side can have grown so large; small ones are compared with it byte by byte.
                Values::LargeBytes(bytes) => arrays.push(Arc::new(bytes)),
                Values::Views(views) => arrays.push(Arc::new(views)),
            }
        }
        arrays
    }

    /// Bytes kept.
    pub(super) fn memory_bytes(&self) -> usize {
        let bytes = |column: &KeyColumn| match &column.values {
            Values::Narrow(v) => v.capacity() * size_of::<u64>(),
            Values::Wide(v) => v.capacity() * size_of::<Wide>(),
            Values::Bytes(v) => v.get_buffer_memory_size(),
            Values::LargeBytes(v) => v.get_buffer_memory_size(),
            Values::Views(v) => v.get_buffer_memory_size(),
        };
        self.columns.iter().map(bytes).sum()
    }
}

impl KeyColumn {
    fn new(array: &ArrayRef) -> Result<Self> {
        let nulls = array.logical_nulls();
        let values = if let Some(values) = narrow(array)? {
            Values::Narrow(values)
        } else if let Some(values) = wide(array) {
            Values::Wide(values)
        } else {
            match array.data_type() {
                DataType::Utf8 => Values::Bytes(array.as_string::<i32>().clone().into()),
                DataType::LargeUtf8 => Values::LargeBytes(array.as_string::<i64>().clone().into()),
                DataType::Utf8View => Values::Views(array.as_string_view().clone().to_binary_view()),
                DataType::Binary => Values::Bytes(array.as_binary::<i32>().clone()),
                DataType::LargeBinary => Values::LargeBytes(array.as_binary::<i64>().clone()),
                DataType::BinaryView => Values::Views(array.as_binary_view().clone()),
                // The rest (nested, decimal256, fixed size binary) is compared in arrow's row format.
                other => {
                    let converter = RowConverter::new(vec![SortField::new(other.clone())])?;
                    let rows = converter.convert_columns(&[canonical_nested(array)?])?;
                    Values::Bytes(rows.try_into_binary()?)
                }
            }
        };
        Ok(Self { values, nulls })
    }

    fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }

    #[inline]
    fn fold(&self, hashes: &mut [HashWord], value: impl Fn(usize) -> u64) {
        match &self.nulls {
            None => {
                for (i, hash) in hashes.iter_mut().enumerate() {
                    hash.0 = mix(hash.0 ^ value(i) ^ SEED_A, SEED_B);
                }
            }
            Some(nulls) => {
                for (i, hash) in hashes.iter_mut().enumerate() {
                    let bits = if nulls.is_null(i) { SEED_C } else { value(i) };
                    hash.0 = mix(hash.0 ^ bits ^ SEED_A, SEED_B);
                }
            }
        }
    }
}

impl Values {
    fn bytes(&self, row: usize) -> Option<&[u8]> {
        match self {
            Values::Bytes(v) => Some(v.value(row)),
            Values::LargeBytes(v) => Some(v.value(row)),
            Values::Views(v) => Some(v.value(row)),
            Values::Narrow(_) | Values::Wide(_) => None,
        }
    }
}

/// Makes the floats inside nested values canonical, as the row format tells zeros and NaNs apart.
fn canonical_nested(array: &ArrayRef) -> Result<ArrayRef> {
    fn list<O: OffsetSizeTrait>(array: &ArrayRef, field: &FieldRef) -> Result<ArrayRef> {
        let list: &GenericListArray<O> = array.as_list::<O>();
        let values = canonical_nested(list.values())?;
        let nulls = list.nulls().cloned();
        Ok(Arc::new(GenericListArray::<O>::try_new(
            Arc::clone(field),
            list.offsets().clone(),
            values,
            nulls,
        )?))
    }
    Ok(match array.data_type() {
        DataType::Float32 => Arc::new(array.as_primitive::<Float32Type>().unary::<_, Float32Type>(canonical)),
        DataType::Float64 => Arc::new(array.as_primitive::<Float64Type>().unary::<_, Float64Type>(canonical64)),
        DataType::List(field) => list::<i32>(array, field)?,
        DataType::LargeList(field) => list::<i64>(array, field)?,
        DataType::FixedSizeList(field, size) => {
            let list = array.as_fixed_size_list();
            let values = canonical_nested(list.values())?;
            Arc::new(FixedSizeListArray::try_new(
                Arc::clone(field),
                *size,
                values,
                list.nulls().cloned(),
            )?)
        }
        DataType::Struct(fields) => {
            let parts = array.as_struct();
            let columns = parts
                .columns()
                .iter()
                .map(canonical_nested)
                .collect::<Result<Vec<_>>>()?;
            let nulls = parts.nulls().cloned();
            Arc::new(StructArray::try_new_with_length(
                fields.clone(),
                columns,
                nulls,
                array.len(),
            )?)
        }
        _ => Arc::clone(array),
    })
}

pub(super) const SEED_A: u64 = 0x9e37_79b9_7f4a_7c15;
pub(super) const SEED_B: u64 = 0xd6e8_feb8_6659_fd93;
const SEED_C: u64 = 0xa076_1d64_78bd_642f;

/// Folded multiplication: every bit of the result depends on every bit of both factors, for one multiplication.
#[inline]
pub(super) fn mix(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    (product as u64) ^ ((product >> 64) as u64)
}

/// Hashes a string: eight bytes a step, the last step overlapping. Only ever compared within one process.
#[inline]
fn hash_bytes(bytes: &[u8]) -> u64 {
    let word = |at: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&bytes[at..at + 8]);
        u64::from_le_bytes(word)
    };
    let len = bytes.len();
    if len >= 8 {
        let mut hash = SEED_C ^ len as u64;
        let mut at = 0;
        while at + 16 < len {
            hash = mix(word(at) ^ hash, word(at + 8) ^ SEED_B);
            at += 16;
        }
        if at + 8 < len {
            hash = mix(word(at) ^ hash, SEED_B);
        }
        return mix(hash ^ word(len - 8), SEED_A);
    }
    let mut last = [0; 8];
    last[..len].copy_from_slice(bytes);
    mix(u64::from_le_bytes(last) ^ SEED_C, SEED_B ^ len as u64)
}
