//! Thalweg's engine: a dataflow graph as data ([`plan`]), operators over Arrow batches ([`operator`]), exchanges with
//! back-pressure ([`exchange`]) and the runtime that expands and runs a graph in one process ([`runtime`]).
//!
//! Modules may use the ones before them in this order: `data`, `plan`, `time`, `exchange`, `operator`, `runtime`
//! (`tests/architecture.rs` enforces it).

pub mod data;
pub mod exchange;
pub mod operator;
pub mod plan;
pub mod runtime;
pub mod time;

pub use data::{Batch, EngineError, Result};
