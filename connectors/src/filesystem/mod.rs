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
mod records;
mod rolling;
mod sink;
mod storage;
mod table;
#[cfg(test)]
mod tests;
mod watch;

pub use convert::{copy_sink, listing_sink};
pub use diagnose::locate_bad_record;
pub use format::Format;
pub use options::FileOptions;
pub use records::RecordTable;
pub use rolling::{DeliveryGuarantee, RollingOptions};
pub use sink::FileSinkConnector;
pub use table::{FileTable, create_table, table_provider};
