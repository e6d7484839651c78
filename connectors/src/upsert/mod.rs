//! Sinks into databases that keep one row for each key: what Redis and PostgreSQL have in common.
//!
//! A changelog becomes upserts and deletions of keys. Of the changes that wait to be written only the last of each key
//! counts ([`UpsertBuffer`]). There are two isolation levels. *Read uncommitted*: changes are written as they come; after a
//! failure they are written again, which changes nothing, as the same key gets the same row. *Read committed*: the changes of
//! a checkpoint travel in the committable and are written in one transaction once the checkpoint is complete. The transaction
//! also records the [`Mark`] of the committable, so that publishing it again does nothing.
//!
//! Why not a prepared transaction in the database for the second: it holds the locks of its rows until it is committed. When
//! its checkpoint fails, it is committed with the next one, for which the writer must change the same rows: it would wait
//! for itself.

mod buffer;
mod committable;
mod options;
mod sink;
#[cfg(test)]
mod tests;

pub(crate) use buffer::{Changes, UpsertBuffer};
pub(crate) use committable::{Mark, Prepared};
pub(crate) use options::{Isolation, UpsertOptions, key_columns, sink_options, split_key};
pub(crate) use sink::{Failure, Session, Store, UpsertSink};
