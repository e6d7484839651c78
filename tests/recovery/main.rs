//! Jobs that are killed and go on: what they write is what an undisturbed run writes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "processes are killed and waited for in the machine's time"
)]

mod counter;
mod events;
mod files;
mod kafka;
mod outputs;
mod process;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../services/mod.rs"]
mod services;
mod topics;
