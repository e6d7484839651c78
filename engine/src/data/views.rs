//! String and binary views, and the buffers behind them.

use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray, GenericByteViewArray};
use arrow::datatypes::{ByteViewType, DataType};

use crate::data::{Batch, Result};

/// Whether values of this type are views.
pub(super) fn is_view(data_type: &DataType) -> bool {
    matches!(data_type, DataType::Utf8View | DataType::BinaryView)
}

/// Whether the buffers behind a column of views are much larger than the strings that it refers to.
fn is_sparse(column: &ArrayRef) -> bool {
    fn of<T: ByteViewType + ?Sized>(views: &GenericByteViewArray<T>) -> bool {
        let held: usize = views.data_buffers().iter().map(|buffer| buffer.capacity()).sum();
        held > 2 * views.total_buffer_bytes_used()
    }
    match column.data_type() {
        DataType::Utf8View => of(column.as_string_view()),
        DataType::BinaryView => of(column.as_binary_view()),
        _ => false,
    }
}

/// Whether a column of the batch has views of buffers much larger than what it refers to.
pub(super) fn has_sparse_views(batch: &Batch) -> bool {
    batch.columns().iter().any(is_sparse)
}

/// Copies the strings of views that refer to buffers much larger than themselves: few rows must not keep the buffers
/// of a whole input alive, nor be counted as large as that by whoever queues them.
pub(crate) fn compact_views(batch: Batch) -> Result<Batch> {
    if !batch.columns().iter().any(|column| is_view(column.data_type())) {
        return Ok(batch);
    }
    let columns = batch.columns().iter().map(|column| -> ArrayRef {
        match column.data_type() {
            DataType::Utf8View if is_sparse(column) => Arc::new(column.as_string_view().gc()),
            DataType::BinaryView if is_sparse(column) => Arc::new(column.as_binary_view().gc()),
            _ => Arc::clone(column),
        }
    });
    Ok(Batch::try_new(batch.schema(), columns.collect())?)
}
