//! Arrays made ready to be stored: plain values of their width, or bytes.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, BinaryArray, BinaryViewArray, FixedSizeBinaryArray, LargeBinaryArray};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::{ArrowNativeType, DataType};
use arrow::row::{RowConverter, SortField};

use crate::data::{EngineError, Result, canonical_floats, has_nested_float};

/// How values of a type are stored.
#[derive(Clone)]
pub(super) enum Layout {
    Boolean,
    /// Plain values of so many bytes.
    Fixed(usize),
    Bytes,
    /// The row format stands for the value.
    Rows(Arc<RowConverter>),
}

impl Layout {
    /// The layout of a type.
    pub(super) fn of(data_type: &DataType) -> Result<Self> {
        use DataType::*;
        Ok(match data_type {
            Boolean => Layout::Boolean,
            Int8 | UInt8 => Layout::Fixed(1),
            Int16 | UInt16 | Float16 => Layout::Fixed(2),
            Int32 | UInt32 | Float32 | Date32 | Time32(_) | Decimal32(_, _) => Layout::Fixed(4),
            Int64 | UInt64 | Float64 | Date64 | Time64(_) | Timestamp(_, _) | Duration(_) | Decimal64(_, _) => {
                Layout::Fixed(8)
            }
            Decimal128(_, _) => Layout::Fixed(16),
            Utf8 | LargeUtf8 | Utf8View | Binary | LargeBinary | BinaryView | FixedSizeBinary(_) => Layout::Bytes,
            other => {
                let fields = vec![SortField::new(other.clone())];
                if !RowConverter::supports_fields(&fields) {
                    return Err(EngineError::Plan(format!(
                        "a column of type {other} cannot be kept in a state table; cast it to another type"
                    )));
                }
                Layout::Rows(Arc::new(RowConverter::new(fields)?))
            }
        })
    }
}

/// The values of an array.
pub(super) enum Values {
    W1(ScalarBuffer<u8>),
    W2(ScalarBuffer<u16>),
    W4(ScalarBuffer<u32>),
    W8(ScalarBuffer<u64>),
    W16(ScalarBuffer<i128>),
    Bytes(Bytes),
}

/// Bytes by row.
pub(super) enum Bytes {
    Small(BinaryArray),
    Large(LargeBinaryArray),
    View(BinaryViewArray),
    Fixed(FixedSizeBinaryArray),
}

impl Bytes {
    #[inline]
    pub(super) fn get(&self, row: usize) -> &[u8] {
        match self {
            Bytes::Small(array) => array.value(row),
            Bytes::Large(array) => array.value(row),
            Bytes::View(array) => array.value(row),
            Bytes::Fixed(array) => array.value(row),
        }
    }
}

/// An array that is ready to be stored or compared.
pub(super) struct Source {
    pub(super) values: Values,
    pub(super) nulls: Option<NullBuffer>,
}

impl Source {
    /// Makes an array of the column's type ready.
    pub(super) fn new(layout: &Layout, array: &ArrayRef) -> Result<Self> {
        fn fixed<T: ArrowNativeType>(array: &ArrayRef) -> ScalarBuffer<T> {
            let data = array.to_data();
            ScalarBuffer::new(data.buffers()[0].clone(), data.offset(), data.len())
        }
        let mut nulls = array.nulls().filter(|nulls| nulls.null_count() > 0).cloned();
        let values = match layout {
            Layout::Boolean => {
                let bits = array.as_boolean().values();
                Values::W1(bits.iter().map(u8::from).collect())
            }
            Layout::Fixed(1) => Values::W1(fixed(array)),
            Layout::Fixed(2) => Values::W2(fixed(array)),
            Layout::Fixed(4) => Values::W4(fixed(array)),
            Layout::Fixed(8) => Values::W8(fixed(array)),
            Layout::Fixed(_) => Values::W16(fixed(array)),
            Layout::Bytes => Values::Bytes(match array.data_type() {
                DataType::Utf8 => Bytes::Small(array.as_string::<i32>().clone().into()),
                DataType::LargeUtf8 => Bytes::Large(array.as_string::<i64>().clone().into()),
                DataType::Utf8View => Bytes::View(array.as_string_view().clone().to_binary_view()),
                DataType::Binary => Bytes::Small(array.as_binary::<i32>().clone()),
                DataType::LargeBinary => Bytes::Large(array.as_binary::<i64>().clone()),
                DataType::BinaryView => Bytes::View(array.as_binary_view().clone()),
                _ => Bytes::Fixed(array.as_fixed_size_binary().clone()),
            }),
            Layout::Rows(converter) => {
                // A NULL is a row like any other.
                nulls = None;
                let rows = converter.convert_columns(std::slice::from_ref(array))?;
                Values::Bytes(Bytes::Small(rows.try_into_binary()?))
            }
        };
        Ok(Self { values, nulls })
    }

    #[inline]
    pub(super) fn is_null(&self, row: usize) -> bool {
        self.nulls.as_ref().is_some_and(|nulls| nulls.is_null(row))
    }
}

/// `array` in the column's type.
pub(super) fn of_type(array: &ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    if array.data_type() == data_type {
        return Ok(Arc::clone(array));
    }
    Ok(cast(array, data_type)?)
}

/// `array` in the key's type, with one form of equal floats.
pub(super) fn key_of_type(array: &ArrayRef, data_type: &DataType) -> Result<ArrayRef> {
    let array = of_type(array, data_type)?;
    if data_type.is_floating() || has_nested_float(data_type) {
        return canonical_floats(&array);
    }
    Ok(array)
}
