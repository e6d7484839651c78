//! Spill files: batches of one schema in blocks, each an Arrow IPC message of its own behind a header with its length
//! and a checksum over all of it. A block is read alone, wherever it lies; one that is cut short or altered is an
//! error, never other rows.
//!
//! Files live in one directory per job, which goes away with the job however it ends, and is swept by the next process
//! when this one was killed ([`directory`]).

mod directory;
mod file;
#[cfg(test)]
mod tests;

use std::path::Path;

use arrow::error::ArrowError;
use arrow::ipc::CompressionType;

use crate::MemoryError;

pub use directory::{SpillDirectory, sweep};
pub use file::{SpillFile, SpillReader, SpillWriter};

/// How the blocks of spill files are compressed (`taskmanager.memory.spill.compression`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SpillCompression {
    /// Not at all: best where the files stay in the page cache or the disk is fast.
    #[default]
    None,
    /// LZ4 frames.
    Lz4,
    /// Zstandard: smallest, for slow disks.
    Zstd,
}

impl SpillCompression {
    /// The names that users write.
    pub const NAMES: [(&'static str, SpillCompression); 3] = [
        ("none", SpillCompression::None),
        ("lz4", SpillCompression::Lz4),
        ("zstd", SpillCompression::Zstd),
    ];

    /// The name that users write.
    pub fn name(self) -> &'static str {
        match self {
            SpillCompression::None => "none",
            SpillCompression::Lz4 => "lz4",
            SpillCompression::Zstd => "zstd",
        }
    }

    fn to_ipc(self) -> Option<CompressionType> {
        match self {
            SpillCompression::None => None,
            SpillCompression::Lz4 => Some(CompressionType::LZ4_FRAME),
            SpillCompression::Zstd => Some(CompressionType::ZSTD),
        }
    }
}

fn spill_error(path: &Path, source: std::io::Error) -> MemoryError {
    MemoryError::Spill {
        path: path.display().to_string(),
        source,
    }
}

fn arrow_error(path: &Path, error: ArrowError) -> MemoryError {
    match error {
        ArrowError::IoError(_, source) => spill_error(path, source),
        other => spill_error(path, std::io::Error::other(other)),
    }
}

fn damaged(path: &Path, detail: impl ToString) -> MemoryError {
    MemoryError::Damaged {
        path: path.display().to_string(),
        detail: detail.to_string(),
    }
}
