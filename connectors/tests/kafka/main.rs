//! The Kafka connector against a real broker.
#![cfg(feature = "kafka")]
#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod broker;
mod formats;
#[path = "../../../tests/services/kafka.rs"]
mod services;
mod sink;
mod source;
mod upsert;
