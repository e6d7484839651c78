//! Batches that weigh no more than their rows: a frame is written for itself, so what its columns share with other batches
//! (the buffers behind views, the values of dictionaries) would be written again with every frame.

use std::sync::Arc;

use arrow::array::{Array, ArrayData, ArrayRef, AsArray, BinaryViewArray, StringViewArray, UInt64Array, make_array};
use arrow::array::{GenericByteViewArray, RecordBatchOptions};
use arrow::compute::{can_cast_types, cast, take};
use arrow::datatypes::{ByteViewType, DataType};

use crate::data::{Batch, Result};

/// A dictionary with more values than this per row is written anew.
const DICTIONARY_VALUES_PER_ROW_MAX: usize = 2;

/// The batch with columns of its own where the ones it has are much larger than its rows.
pub(super) fn compact(batch: Batch) -> Result<Batch> {
    if !batch.columns().iter().any(|column| is_shared(column.data_type())) {
        return Ok(batch);
    }
    let columns = batch.columns().iter().map(column).collect::<Result<Vec<_>>>()?;
    let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
    Ok(Batch::try_new_with_options(batch.schema(), columns, &options)?)
}

fn column(array: &ArrayRef) -> Result<ArrayRef> {
    Ok(match array.data_type() {
        DataType::Utf8View => match is_sparse(array.as_string_view()) {
            true => Arc::new(array.as_string_view().gc()),
            false => Arc::clone(array),
        },
        DataType::BinaryView => match is_sparse(array.as_binary_view()) {
            true => Arc::new(array.as_binary_view().gc()),
            false => Arc::clone(array),
        },
        DataType::Dictionary(_, values) => dictionary(array, values)?,
        other if is_shared(other) => {
            // Only a copy of the rows leaves out what a slice of nested values does not show.
            let rows = UInt64Array::from_iter_values(0..array.len() as u64);
            make_array(views(take(array, &rows, None)?.to_data())?)
        }
        _ => Arc::clone(array),
    })
}

/// Whether the buffers are much larger than the strings that the views refer to.
fn is_sparse<T: ByteViewType + ?Sized>(views: &GenericByteViewArray<T>) -> bool {
    let held: usize = views.data_buffers().iter().map(|buffer| buffer.len()).sum();
    held > 64 && held > 2 * views.total_buffer_bytes_used()
}

fn dictionary(array: &ArrayRef, values: &DataType) -> Result<ArrayRef> {
    let held = array
        .as_any_dictionary_opt()
        .map_or(0, |dictionary| dictionary.values().len());
    let is_small = held <= DICTIONARY_VALUES_PER_ROW_MAX * array.len();
    if is_small || !can_cast_types(array.data_type(), values) || !can_cast_types(values, array.data_type()) {
        return Ok(Arc::clone(array));
    }
    Ok(cast(&cast(array, values)?, array.data_type())?)
}

fn views(data: ArrayData) -> Result<ArrayData> {
    Ok(match data.data_type() {
        DataType::Utf8View => StringViewArray::from(data).gc().into_data(),
        DataType::BinaryView => BinaryViewArray::from(data).gc().into_data(),
        _ if data.child_data().is_empty() => data,
        _ => {
            let children = data.child_data().iter().cloned().map(views);
            let children = children.collect::<Result<Vec<_>>>()?;
            data.into_builder().child_data(children).build()?
        }
    })
}

/// Whether columns of this type refer to values that other columns may refer to as well.
fn is_shared(data_type: &DataType) -> bool {
    match data_type {
        DataType::Utf8View | DataType::BinaryView | DataType::Dictionary(_, _) => true,
        DataType::List(field)
        | DataType::LargeList(field)
        | DataType::ListView(field)
        | DataType::LargeListView(field)
        | DataType::FixedSizeList(field, _)
        | DataType::Map(field, _)
        | DataType::RunEndEncoded(_, field) => has_views(field.data_type()),
        DataType::Struct(fields) => fields.iter().any(|field| has_views(field.data_type())),
        DataType::Union(fields, _) => fields.iter().any(|(_, field)| has_views(field.data_type())),
        _ => false,
    }
}

fn has_views(data_type: &DataType) -> bool {
    match data_type {
        DataType::Dictionary(_, values) => has_views(values),
        other => is_shared(other),
    }
}

#[cfg(test)]
mod tests {
    use arrow::array::{DictionaryArray, StructArray};
    use arrow::datatypes::Int32Type;

    use super::*;
    use crate::data::batch_bytes;

    #[test]
    fn a_slice_of_shared_values_weighs_what_it_shows() {
        let texts: Vec<String> = (0..10_000)
            .map(|n| format!("a text longer than a view holds: {n}"))
            .collect();
        let views: ArrayRef = Arc::new(StringViewArray::from_iter_values(&texts));
        let words: DictionaryArray<Int32Type> = texts.iter().map(String::as_str).collect();
        let nested = StructArray::try_from(vec![("view", Arc::clone(&views))]).unwrap();
        let batch = Batch::try_from_iter([
            ("view", views),
            ("word", Arc::new(words) as ArrayRef),
            ("nested", Arc::new(nested) as ArrayRef),
        ])
        .unwrap();
        let slice = batch.slice(5000, 10);
        let compacted = compact(slice.clone()).unwrap();
        assert_eq!(compacted, slice);
        let held: usize = compacted.columns().iter().map(|c| c.get_buffer_memory_size()).sum();
        assert!(held < 10_000, "{held} bytes");
        assert!(batch_bytes(&slice) > 0);
        let whole = compact(batch.clone()).unwrap();
        assert_eq!(whole, batch);
        let empty = compact(batch.slice(3, 0)).unwrap();
        assert_eq!(empty.num_rows(), 0);
    }
}
