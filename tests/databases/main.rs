//! Sinks into databases, with real servers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../services/mod.rs"]
mod services;

mod jobs;
mod postgres;
mod redis;
