//! Streaming programs through the DataStream API and the real runtime, against a naive model and computed answers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod api;
mod examples;
mod joins;
mod model;
mod rows;
mod slices;
mod windows;
