//! Thalweg's engine: a dataflow graph as data ([`plan`]), operators over Arrow batches ([`operator`]), exchanges with
//! back-pressure ([`exchange`]), state as tables ([`state`]) that checkpoints keep ([`checkpoint`]), and the runtime that expands
//! and runs a graph in one process ([`runtime`]).
//!
//! Modules may use the ones before them in this order: `data`, `plan`, `time`, `state`, `checkpoint`, `exchange`, `operator`, `runtime`
//! (`tests/architecture.rs` enforces it).

pub mod checkpoint;
pub mod data;
pub mod exchange;
pub mod operator;
pub mod plan;
pub mod runtime;
pub mod state;
pub mod time;

pub use data::{Batch, EngineError, Result};
