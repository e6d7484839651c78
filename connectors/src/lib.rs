//! Thalweg's connectors: one folder a system, each behind a cargo feature. [`sinks`] is what the runtime's registry
//! holds; [`create_table`] is what `CREATE TABLE .. WITH ('connector' = '..')` makes; [`sink_of`] is where
//! `INSERT INTO` writes.

#[cfg(feature = "blackhole")]
pub mod blackhole;
mod changelog_table;
#[cfg(feature = "datagen")]
pub mod datagen;
#[cfg(feature = "filesystem")]
pub mod filesystem;
pub mod formats;
#[cfg(any(feature = "datagen", feature = "nexmark", feature = "ysb"))]
mod generate;
#[cfg(feature = "kafka")]
pub mod kafka;
#[cfg(feature = "nexmark")]
pub mod nexmark;
mod options;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "print")]
pub mod print;
#[cfg(feature = "redis")]
pub mod redis;
mod registry;
mod row_wise;
#[cfg(any(feature = "filesystem", feature = "redis", feature = "postgres"))]
mod run_token;
#[cfg(any(feature = "print", feature = "blackhole", feature = "redis", feature = "postgres"))]
mod sink_table;
#[cfg(feature = "socket")]
pub mod socket;
#[cfg(any(feature = "redis", feature = "postgres"))]
mod upsert;
#[cfg(feature = "ysb")]
pub mod ysb;

/// What the metadata of a declared column's field says of one that is `METADATA`: its key at the connector.
pub const METADATA_KEY: &str = "thalweg.metadata.key";
/// The option that tells a connector the table's primary key, as a JSON list: put there by `CREATE TABLE`, not by users.
pub const PRIMARY_KEY: &str = "thalweg.primary-key";

pub use changelog_table::ChangelogTable;
pub use options::{Options, parse_bool, parse_bytes, parse_duration};
pub use registry::{
    Sources, create_table, may_be_unbounded, sink_key, sink_of, sinks, split_source, takes_changelog, with_primary_key,
};
#[cfg(any(feature = "print", feature = "blackhole", feature = "redis", feature = "postgres"))]
pub use sink_table::SinkTable;
