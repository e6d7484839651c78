//! Values of any type as something that Rust can compare and keep: numbers as themselves, everything else in arrow's row
//! format.

use std::cmp::Ordering;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, ArrowNativeTypeOp, ArrowPrimitiveType, AsArray, PrimitiveArray, new_null_array};
use arrow::buffer::{NullBuffer, ScalarBuffer};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use arrow::row::{RowConverter, Rows, SortField};

use crate::data::{Result, canonical_floats};

/// From positions to a column.
pub(super) type ColumnOf = Box<dyn Fn(&[u32]) -> Result<ArrayRef> + Send>;

/// Values that were copied at a barrier.
pub(super) struct FrozenValues {
    /// The values at some positions.
    pub(super) column: ColumnOf,
    /// Bytes held.
    pub(super) bytes: usize,
}

/// From columns to values and back.
pub(super) trait Codec: Clone + Send + 'static {
    /// A value, ordered as SQL does.
    type Value: Ord + Clone + Send + 'static;
    /// A column that values can be read from.
    type Column;

    /// Makes a column readable.
    fn encode(&self, column: &ArrayRef) -> Result<Self::Column>;

    /// Compares a value of a column with another.
    fn compare(column: &Self::Column, row: usize, other: &Self::Value) -> Ordering;

    /// A value of a column.
    fn value(column: &Self::Column, row: usize) -> Self::Value;

    /// A column of these values.
    fn decode<'a>(&self, values: impl ExactSizeIterator<Item = Option<&'a Self::Value>>) -> Result<ArrayRef>
    where
        Self: 'a;

    /// Bytes that a value has elsewhere.
    fn heap_bytes(value: &Self::Value) -> usize;

    /// The type of columns of values.
    fn data_type(&self) -> &DataType;

    /// Copies values.
    fn freeze<'a>(&self, values: impl Iterator<Item = Option<&'a Self::Value>>) -> FrozenValues
    where
        Self: 'a;
}

/// A number in its total order.
#[derive(Clone, Copy)]
pub(super) struct Number<N>(N);

impl<N: ArrowNativeTypeOp> PartialEq for Number<N> {
    fn eq(&self, other: &Self) -> bool {
        self.0.is_eq(other.0)
    }
}

impl<N: ArrowNativeTypeOp> Eq for Number<N> {}

impl<N: ArrowNativeTypeOp> PartialOrd for Number<N> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<N: ArrowNativeTypeOp> Ord for Number<N> {
    #[inline]
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.compare(other.0)
    }
}

/// Numbers.
pub(super) struct Numbers<T> {
    data_type: DataType,
    of: std::marker::PhantomData<fn() -> T>,
}

impl<T> Clone for Numbers<T> {
    fn clone(&self) -> Self {
        Self::new(self.data_type.clone())
    }
}

impl<T> Numbers<T> {
    pub(super) fn new(data_type: DataType) -> Self {
        Self {
            data_type,
            of: std::marker::PhantomData,
        }
    }
}

impl<T: ArrowPrimitiveType> Codec for Numbers<T> {
    type Value = Number<T::Native>;
    type Column = PrimitiveArray<T>;

    fn encode(&self, column: &ArrayRef) -> Result<PrimitiveArray<T>> {
        if column.data_type().is_floating() {
            // A negative NaN would be less than all numbers.
            return Ok(canonical_floats(column)?.as_primitive::<T>().clone());
        }
        Ok(column.as_primitive::<T>().clone())
    }

    #[inline]
    fn compare(column: &PrimitiveArray<T>, row: usize, other: &Self::Value) -> Ordering {
        column.values()[row].compare(other.0)
    }

    #[inline]
    fn value(column: &PrimitiveArray<T>, row: usize) -> Self::Value {
        Number(column.values()[row])
    }

    fn decode<'a>(&self, values: impl ExactSizeIterator<Item = Option<&'a Self::Value>>) -> Result<ArrayRef>
    where
        Self: 'a,
    {
        let mut numbers = Vec::with_capacity(values.len());
        let mut known = Vec::with_capacity(values.len());
        for value in values {
            numbers.push(value.map_or_else(T::Native::default, |value| value.0));
            known.push(value.is_some());
        }
        let array = PrimitiveArray::<T>::new(ScalarBuffer::from(numbers), Some(NullBuffer::from(known)));
        Ok(Arc::new(array.with_data_type(self.data_type.clone())))
    }

    fn heap_bytes(_value: &Self::Value) -> usize {
        0
    }

    fn data_type(&self) -> &DataType {
        &self.data_type
    }

    fn freeze<'a>(&self, values: impl Iterator<Item = Option<&'a Self::Value>>) -> FrozenValues
    where
        Self: 'a,
    {
        let values: Vec<Option<Self::Value>> = values.map(Option::<&Self::Value>::copied).collect();
        let bytes = values.capacity() * size_of::<Option<Self::Value>>();
        let codec = self.clone();
        let column = move |positions: &[u32]| codec.decode(positions.iter().map(|at| values[*at as usize].as_ref()));
        FrozenValues {
            column: Box::new(column),
            bytes,
        }
    }
}

/// Values in arrow's row format, whose bytes have their order.
#[derive(Clone)]
pub(super) struct Encoded {
    converter: Arc<RowConverter>,
    data_type: DataType,
    null: Arc<[u8]>,
}

impl Encoded {
    /// For values of this type; those of dictionaries come out as plain values.
    ///
    /// # Errors
    /// When the type has no row format.
    pub(super) fn new(declared: &DataType) -> Result<Self> {
        let data_type = match declared {
            DataType::Dictionary(_, values) => values.as_ref().clone(),
            DataType::RunEndEncoded(_, values) => values.data_type().clone(),
            other => other.clone(),
        };
        let converter = RowConverter::new(vec![SortField::new(data_type.clone())])?;
        let null = converter.convert_columns(&[new_null_array(&data_type, 1)])?;
        let null = null.row(0).as_ref().into();
        Ok(Self {
            converter: Arc::new(converter),
            data_type,
            null,
        })
    }
}

impl Codec for Encoded {
    type Value = Box<[u8]>;
    type Column = Rows;

    fn encode(&self, column: &ArrayRef) -> Result<Rows> {
        if column.data_type() == &self.data_type {
            return Ok(self.converter.convert_columns(&[Arc::clone(column)])?);
        }
        Ok(self.converter.convert_columns(&[cast(column, &self.data_type)?])?)
    }

    #[inline]
    fn compare(column: &Rows, row: usize, other: &Box<[u8]>) -> Ordering {
        column.row(row).as_ref().cmp(other.as_ref())
    }

    fn value(column: &Rows, row: usize) -> Box<[u8]> {
        column.row(row).as_ref().into()
    }

    fn decode<'a>(&self, values: impl ExactSizeIterator<Item = Option<&'a Box<[u8]>>>) -> Result<ArrayRef>
    where
        Self: 'a,
    {
        let parser = self.converter.parser();
        let rows = values.map(|value| parser.parse(value.map_or(self.null.as_ref(), |value| value)));
        let columns = self.converter.convert_rows(rows)?;
        Ok(Arc::clone(&columns[0]))
    }

    fn heap_bytes(value: &Box<[u8]>) -> usize {
        value.len()
    }

    fn data_type(&self) -> &DataType {
        &self.data_type
    }

    fn freeze<'a>(&self, values: impl Iterator<Item = Option<&'a Box<[u8]>>>) -> FrozenValues {
        let (mut bytes, mut ends) = (Vec::new(), vec![0]);
        for value in values {
            bytes.extend_from_slice(value.map_or(self.null.as_ref(), |value| value));
            ends.push(bytes.len());
        }
        let held = bytes.capacity() + ends.capacity() * size_of::<usize>();
        let converter = Arc::clone(&self.converter);
        let column = move |positions: &[u32]| {
            let parser = converter.parser();
            let value = |at: &u32| &bytes[ends[*at as usize]..ends[*at as usize + 1]];
            let columns = converter.convert_rows(positions.iter().map(|at| parser.parse(value(at))))?;
            Ok(Arc::clone(&columns[0]))
        };
        FrozenValues {
            column: Box::new(column),
            bytes: held,
        }
    }
}
