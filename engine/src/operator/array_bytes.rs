//! What the values of an array weigh, and copies that weigh no more than that.

use arrow::array::{Array, ArrayRef, AsArray, BinaryViewArray, StringViewArray, make_array};
use arrow::array::{ArrayData, GenericByteViewArray};
use arrow::datatypes::{ByteViewType, DataType};

use crate::data::Result;

/// The bytes of the values of an array: of a slice what it shows, of views the strings that they stand for, of a
/// dictionary its values once.
pub(in crate::operator) fn payload_bytes(array: &ArrayRef) -> usize {
    fn of_views<T: ByteViewType>(array: &GenericByteViewArray<T>) -> usize {
        // The low half of a view's first word is the length.
        array.views().iter().map(|view| *view as u32 as usize).sum()
    }
    match array.data_type() {
        DataType::Utf8View => of_views(array.as_string_view()),
        DataType::BinaryView => of_views(array.as_binary_view()),
        DataType::Dictionary(_, _) => array
            .as_any_dictionary_opt()
            .map_or(0, |dictionary| payload_bytes(dictionary.values())),
        _ => slice_bytes(array),
    }
}

/// The bytes of the buffers of an array, of a slice only what it shows.
pub(in crate::operator) fn slice_bytes(array: &ArrayRef) -> usize {
    array
        .to_data()
        .get_slice_memory_size()
        .unwrap_or_else(|_| array.get_array_memory_size())
}

/// The array with the strings of its views copied out of their buffers, at any depth: a few rows taken from many keep
/// the buffers of all of them otherwise.
pub(in crate::operator) fn compact(array: ArrayRef) -> Result<ArrayRef> {
    if !has_views(array.data_type()) {
        return Ok(array);
    }
    Ok(make_array(compact_data(array.to_data())?))
}

fn compact_data(data: ArrayData) -> Result<ArrayData> {
    if !has_views(data.data_type()) {
        return Ok(data);
    }
    Ok(match data.data_type() {
        DataType::Utf8View => StringViewArray::from(data).gc().into_data(),
        DataType::BinaryView => BinaryViewArray::from(data).gc().into_data(),
        _ => {
            let children = data.child_data().iter().cloned().map(compact_data);
            let children = children.collect::<Result<Vec<_>>>()?;
            data.into_builder().child_data(children).build()?
        }
    })
}

fn has_views(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8View | DataType::BinaryView => true,
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _)
        | DataType::RunEndEncoded(_, field) => has_views(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_views(field.data_type())),
        DataType::Union(fields, _) => fields.iter().any(|(_, field)| has_views(field.data_type())),
        DataType::Dictionary(_, values) => has_views(values),
        _ => false,
    }
}

/// Whether values of this type are of one width: arrays of them are plain vectors.
pub(in crate::operator) fn is_flat(data_type: &DataType) -> bool {
    data_type.is_primitive() || matches!(data_type, DataType::Boolean | DataType::Null)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{Int32Array, ListArray, UInt32Array};
    use arrow::buffer::OffsetBuffer;
    use arrow::compute::take;
    use arrow::datatypes::Field;

    use super::*;

    fn strings(rows: usize) -> ArrayRef {
        Arc::new(StringViewArray::from_iter((0..rows).map(|row| {
            (row % 3 != 0).then(|| format!("a string that does not fit into a view {row}"))
        })))
    }

    #[test]
    fn compacting_lets_go_of_buffers_at_any_depth() {
        let values = strings(3000);
        let field = Arc::new(Field::new("item", DataType::Utf8View, true));
        let lists = ListArray::new(field, OffsetBuffer::from_lengths(vec![3; 1000]), values, None);
        let lists: ArrayRef = Arc::new(lists);
        let one = take(&lists, &UInt32Array::from(vec![7]), None).unwrap();
        assert!(one.get_buffer_memory_size() > 100_000);
        let compacted = compact(Arc::clone(&one)).unwrap();
        assert!(compacted.get_buffer_memory_size() < 2000);
        assert_eq!(&compacted, &one);
    }

    #[test]
    fn payload_counts_what_is_shown() {
        let array = strings(3000).slice(10, 1);
        assert_eq!(payload_bytes(&array), "a string that does not fit into a view 10".len());
        let numbers: ArrayRef = Arc::new(Int32Array::from_iter_values(0..1000));
        assert_eq!(payload_bytes(&numbers.slice(5, 10)), 40);
    }
}
