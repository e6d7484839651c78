//! Checkpoints: what is stored ([`manifest`]), where and how.

pub mod manifest;
