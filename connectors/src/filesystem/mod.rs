//! Files: Parquet, CSV, JSON lines, Arrow IPC, Avro and records of fixed length, on local disks and in object stores;
//! those that are there, or also those that appear.

mod compress;
mod convert;
mod diagnose;
mod encode;
mod fixed;
mod format;
mod hive;
mod options;
mod partition;
mod progress;
mod records;
mod rolling;
mod sink;
mod source;
mod storage;
mod table;
#[cfg(test)]
mod tests;
mod watch;

pub use convert::{copy_sink, listing_sink};
pub use diagnose::locate_bad_record;
pub use format::Format;
pub use options::FileOptions;
pub(crate) use records::RecordSource;
pub use records::RecordTable;
pub use rolling::{DeliveryGuarantee, RollingOptions};
pub use sink::FileSinkConnector;
pub(crate) use source::FileSource;
pub use table::{FileTable, create_table, table_provider};
pub(crate) use watch::WatchSource;

/// Files, or parts of them, that a subtask reads side by side.
const OPEN_AT_ONCE: usize = 8;
