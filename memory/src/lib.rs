//! Working memory of the engine: the byte budget of a process, reservations on it, and spill files.
//!
//! Everything large that an operator keeps is booked on a [`Reservation`] of the process's one
//! [`MemoryManager`] before it is kept; what does not fit is written to a [`SpillFile`] or refused with
//! [`MemoryError::Exhausted`].

mod manager;
mod segment;
mod spill;

pub use manager::{JobMemory, MemoryManager, Reservation};
pub use segment::{Segment, SegmentPool};
pub use spill::{SpillCompression, SpillDirectory, SpillFile, SpillReader, SpillWriter, sweep};

/// What can go wrong with working memory and spill files.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// A reservation would exceed the budget.
    #[error(
        "{consumer} needs {requested_bytes} bytes more, but only {available_bytes} of the memory budget of {budget_bytes} bytes are free; raise --memory (taskmanager.memory.managed.size) or lower the parallelism"
    )]
    Exhausted {
        /// Who asked.
        consumer: String,
        /// How many bytes were asked for.
        requested_bytes: usize,
        /// How many bytes were free.
        available_bytes: usize,
        /// The whole budget.
        budget_bytes: usize,
    },
    /// A spill file could not be created, written or read.
    #[error("spill file {path}: {source}; spill files live in io.tmp.dirs, see `SET 'io.tmp.dirs'`")]
    Spill {
        /// The file or directory.
        path: String,
        /// The cause.
        #[source]
        source: std::io::Error,
    },
    /// A spill file holds something other than what was written.
    #[error("spill file {path} is damaged: {detail}")]
    Damaged {
        /// The file.
        path: String,
        /// What does not match.
        detail: String,
    },
}

/// Result of a memory operation.
pub type Result<T> = std::result::Result<T, MemoryError>;
