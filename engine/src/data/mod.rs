//! What flows on an edge, and what can go wrong.

mod canonical;
mod element;
mod error;
mod hash;

pub(crate) use canonical::{canonical_floats, has_nested_float};
pub use element::{Barrier, Element, Watermark, batch_bytes};
pub use error::{EngineError, Result};
pub use hash::{hash_rows, key_group, subtask_of_hash};

/// The unit of data: rows in columns.
pub type Batch = arrow::record_batch::RecordBatch;
