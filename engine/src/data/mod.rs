//! What flows on an edge, and what can go wrong.

mod canonical;
mod coalescer;
mod element;
mod error;
mod hash;
mod row_kind;
mod views;

pub(crate) use canonical::{canonical_floats, has_nested_float};
pub(crate) use coalescer::Coalescer;
pub use element::{Alignment, Barrier, Element, LatencyMarker, Watermark, batch_bytes};
pub use error::{EngineError, Result};
pub use hash::{hash_rows, key_group, subtask_of_hash};
pub use row_kind::{ROW_KIND_COLUMN, RowKind, is_changelog, split_row_kind, with_row_kind, without_row_kind};
pub(crate) use views::compact_views;

/// The unit of data: rows in columns.
pub type Batch = arrow::record_batch::RecordBatch;
