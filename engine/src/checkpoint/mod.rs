//! Checkpoints: what is stored ([`manifest`]), where and how; and the log of what cannot be read again ([`wal`]).

pub mod manifest;
pub mod wal;
