//! What flows on an edge, and what can go wrong.

mod element;
mod error;
mod hash;

pub use element::{Barrier, Element, Watermark, batch_bytes};
pub use error::{EngineError, Result};
pub use hash::{hash_rows, key_group, subtask_of_hash};

/// The unit of data: rows in columns.
pub type Batch = arrow::record_batch::RecordBatch;
