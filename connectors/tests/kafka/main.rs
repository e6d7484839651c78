//! The Kafka connector against a real broker.
#![cfg(feature = "kafka")]
#![allow(clippy::unwrap_used)]

mod broker;
mod formats;
#[path = "../../../tests/services/mod.rs"]
mod services;
mod sink;
mod source;
mod upsert;
