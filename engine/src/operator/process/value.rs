//! What typed states can hold, and how a snapshot stores it.

use std::fmt::Debug;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BinaryBuilder, BooleanArray, Float32Array, Float64Array, Int32Array, Int64Array,
    StringArray, UInt32Array, UInt64Array, new_empty_array,
};
use arrow::compute::cast;
use arrow::datatypes::DataType;
use datafusion::common::ScalarValue;
use datafusion_proto::protobuf;
use prost::Message;

use crate::data::{EngineError, Result};

/// What a state can hold.
pub trait StateValue: Clone + Debug + Send + Sync + 'static {
    /// The type of the column in which a snapshot stores it.
    fn data_type() -> DataType;

    /// The value in Arrow's types, as a snapshot stores it.
    fn to_scalar(&self) -> ScalarValue;

    /// The value that [`Self::to_scalar`] gave.
    ///
    /// # Errors
    /// When it is another one's.
    fn from_scalar(value: &ScalarValue) -> Result<Self>;

    /// Values as a column of [`Self::data_type`].
    ///
    /// # Errors
    /// When [`Self::to_scalar`] gives another type.
    fn to_array(values: &[&Self]) -> Result<ArrayRef> {
        if values.is_empty() {
            return Ok(new_empty_array(&Self::data_type()));
        }
        let array = ScalarValue::iter_to_array(values.iter().map(|value| value.to_scalar()))?;
        if array.data_type() == &Self::data_type() {
            return Ok(array);
        }
        Ok(cast(&array, &Self::data_type())?)
    }

    /// One value of such a column.
    ///
    /// # Errors
    /// As for `from_scalar`.
    fn from_array(array: &ArrayRef, row: usize) -> Result<Self> {
        Self::from_scalar(&ScalarValue::try_from_array(array, row)?)
    }

    /// Bytes that the value holds beside itself.
    fn heap_bytes(&self) -> usize {
        0
    }
}

fn foreign(value: &ScalarValue, wanted: &DataType) -> EngineError {
    EngineError::Plan(format!(
        "a state of type {wanted} cannot take the stored value {value} of type {}; \
         keep the state's type, or give the state another name",
        value.data_type()
    ))
}

macro_rules! plain_value {
    ($($rust:ty => $scalar:ident, $array:ident);*) => {
        $(impl StateValue for $rust {
            fn data_type() -> DataType {
                DataType::$scalar
            }

            fn to_scalar(&self) -> ScalarValue {
                ScalarValue::$scalar(Some(*self))
            }

            fn from_scalar(value: &ScalarValue) -> Result<Self> {
                match value {
                    ScalarValue::$scalar(Some(value)) => Ok(*value),
                    other => Err(foreign(other, &DataType::$scalar)),
                }
            }

            fn to_array(values: &[&Self]) -> Result<ArrayRef> {
                let values: Vec<Self> = values.iter().map(|value| **value).collect();
                Ok(Arc::new($array::from(values)))
            }
        })*
    };
}

plain_value!(
    bool => Boolean, BooleanArray;
    i32 => Int32, Int32Array;
    i64 => Int64, Int64Array;
    u32 => UInt32, UInt32Array;
    u64 => UInt64, UInt64Array;
    f32 => Float32, Float32Array;
    f64 => Float64, Float64Array
);

impl StateValue for String {
    fn data_type() -> DataType {
        DataType::Utf8
    }

    fn to_scalar(&self) -> ScalarValue {
        ScalarValue::Utf8(Some(self.clone()))
    }

    fn from_scalar(value: &ScalarValue) -> Result<Self> {
        match value {
            ScalarValue::Utf8(Some(value)) => Ok(value.clone()),
            other => Err(foreign(other, &DataType::Utf8)),
        }
    }

    fn to_array(values: &[&Self]) -> Result<ArrayRef> {
        Ok(Arc::new(StringArray::from_iter_values(values)))
    }

    fn heap_bytes(&self) -> usize {
        self.capacity()
    }
}

/// Values of any type, also of several in one state: each is stored with its type.
impl StateValue for ScalarValue {
    fn data_type() -> DataType {
        DataType::Binary
    }

    fn to_scalar(&self) -> ScalarValue {
        self.clone()
    }

    fn from_scalar(value: &ScalarValue) -> Result<Self> {
        Ok(value.clone())
    }

    fn to_array(values: &[&Self]) -> Result<ArrayRef> {
        let mut builder = BinaryBuilder::new();
        for value in values {
            let message = protobuf::ScalarValue::try_from(*value)
                .map_err(|error| EngineError::Plan(format!("the state {value} cannot be stored: {error}")))?;
            builder.append_value(message.encode_to_vec());
        }
        Ok(Arc::new(builder.finish()))
    }

    fn from_array(array: &ArrayRef, row: usize) -> Result<Self> {
        let damaged = |error: &dyn std::fmt::Display| {
            EngineError::BadInput(format!("a stored state is not one that was written: {error}"))
        };
        let bytes = array.as_binary_opt::<i32>().filter(|array| array.is_valid(row));
        let bytes = bytes.ok_or_else(|| damaged(&"it is NULL"))?.value(row);
        let message = protobuf::ScalarValue::decode(bytes).map_err(|error| damaged(&error))?;
        ScalarValue::try_from(&message).map_err(|error| damaged(&error))
    }

    fn heap_bytes(&self) -> usize {
        self.size().saturating_sub(size_of::<ScalarValue>())
    }
}

/// Bytes of a value in all.
pub(super) fn bytes_of<T: StateValue>(value: &T) -> usize {
    size_of::<T>() + value.heap_bytes()
}
