//! The one representation of equal floats inside nested values, whose row format would tell -0.0 from 0.0.

use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, ArrowPrimitiveType, AsArray, PrimitiveArray, make_array};
use arrow::datatypes::{DataType, Float16Type, Float32Type, Float64Type};
use half::f16;

use crate::data::Result;

/// Whether a nested type holds floats somewhere.
pub(crate) fn has_nested_float(data_type: &DataType) -> bool {
    let holds = |data_type: &DataType| data_type.is_floating() || has_nested_float(data_type);
    match data_type {
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _)
        | DataType::RunEndEncoded(_, field) => holds(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| holds(field.data_type())),
        DataType::Union(fields, _) => fields.iter().any(|(_, field)| holds(field.data_type())),
        DataType::Dictionary(_, values) => holds(values),
        _ => false,
    }
}

/// `array` with every float in canonical form, at any depth.
///
/// # Errors
/// When the rebuilt array is not valid.
pub(crate) fn canonical_floats(array: &ArrayRef) -> Result<ArrayRef> {
    Ok(make_array(canonical_data(array.to_data())?))
}

fn canonical_data(data: ArrayData) -> Result<ArrayData> {
    match data.data_type() {
        DataType::Float16 => {
            return Ok(canonical_column::<Float16Type>(data, |v| {
                if v.is_nan() { f16::NAN } else { v + f16::ZERO }
            }));
        }
        DataType::Float32 => {
            return Ok(canonical_column::<Float32Type>(data, |v| {
                if v.is_nan() { f32::NAN } else { v + 0.0 }
            }));
        }
        DataType::Float64 => {
            return Ok(canonical_column::<Float64Type>(data, |v| {
                if v.is_nan() { f64::NAN } else { v + 0.0 }
            }));
        }
        _ if data.child_data().is_empty() => return Ok(data),
        _ => {}
    }
    let children = data
        .child_data()
        .iter()
        .cloned()
        .map(canonical_data)
        .collect::<Result<Vec<_>>>()?;
    Ok(data.into_builder().child_data(children).build()?)
}

fn canonical_column<T: ArrowPrimitiveType>(data: ArrayData, canonical: impl Fn(T::Native) -> T::Native) -> ArrayData {
    let array = make_array(data);
    let canonical: PrimitiveArray<T> = array.as_primitive::<T>().unary(canonical);
    let canonical: ArrayRef = Arc::new(canonical);
    canonical.to_data()
}
