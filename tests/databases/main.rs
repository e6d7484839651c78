//! Sinks into databases, with real servers.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

#[path = "../services/mod.rs"]
mod services;

mod jobs;
mod postgres;
mod redis;
