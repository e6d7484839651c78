//! Checkpoints: when they are taken ([`coordinator`]), what is stored ([`manifest`]), where and how.

pub mod coordinator;
pub mod fault;
pub mod manifest;
pub mod store;
pub use store::{CheckpointStore, WrittenTable};
