//! The formats of streams: bytes to rows and back, record by record, for sources and sinks that do not read whole files
//! (sockets, messages, changelog files).
//!
//! A [`Decode`] turns records (lines, messages) into a batch, all of them or none. A [`Decoder`] puts the table's policy
//! around it: a record that cannot be read is an error, or is skipped and counted, or goes to a dead-letter file. All
//! records of a batch are decoded at once; only when that fails are the bad ones searched for.

mod changelog;
mod decoder;
mod encode;
mod lines;
mod options;
#[cfg(test)]
mod tests;
mod text;

use thalweg_engine::Batch;

pub use decoder::{DecodedRange, Decoder};
pub use encode::{Encode, encoder};
pub use lines::Lines;
pub use options::{CsvOptions, FormatOptions, StreamFormat, changelog_schema};

/// Why records could not be decoded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadRecord {
    /// Which of them it was, when that is known.
    pub record: Option<usize>,
    /// What is wrong with it.
    pub why: String,
}

impl BadRecord {
    /// It was this one.
    pub(crate) fn at(record: usize, why: impl Into<String>) -> Self {
        Self {
            record: Some(record),
            why: why.into(),
        }
    }

    /// It was one of them.
    pub(crate) fn somewhere(why: impl std::fmt::Display) -> Self {
        Self {
            record: None,
            why: why.to_string(),
        }
    }
}

/// Records to rows.
pub trait Decode: Send {
    /// The rows of all records, in their order.
    ///
    /// # Errors
    /// When one cannot be read; there are no rows then.
    fn decode(&mut self, records: &[&[u8]]) -> Result<Batch, BadRecord>;

    /// Whether a record without content says nothing, rather than being a value.
    fn skips_blank(&self) -> bool {
        true
    }
}
