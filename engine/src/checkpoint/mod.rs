//! Checkpoints: when they are taken ([`coordinator`]), what is stored ([`manifest`]), where and how ([`CheckpointStore`]).
//!
//! A job has a folder; each checkpoint has a folder `chk-<n>` in it. The subtasks write files of frames there, each frame a
//! batch of rows with a checksum of its own. The coordinator writes `MANIFEST` last: a folder without one is no checkpoint. An
//! incremental checkpoint's manifest also refers to files in the folders of earlier ones, so a file stays until no manifest
//! needs it.
//!
//! ```text
//! job/chk-41/MANIFEST        what the checkpoint consists of, as JSON after a line with a checksum
//! job/chk-41/0-1.5ad3..      rows of subtask 1, possibly of several operators
//! job/chk-42/MANIFEST        may name job/chk-41/0-1.5ad3.. too
//! ```
//!
//! Several processes may believe that they run the job. They never write the same file (names carry a mark of the writer), and
//! only one of them completes a checkpoint of a number (a conditional write); the others are told so.

mod compact;
pub mod coordinator;
mod download;
pub mod fault;
pub mod faulty;
mod frame;
pub mod manifest;
mod store;
mod upload;
pub mod wal;

pub use frame::Compression;
pub use store::{CheckpointStore, Located, StoredTable, WrittenTable, checkpoint_folder};
