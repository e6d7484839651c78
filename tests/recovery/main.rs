//! Jobs that are killed, stopped and changed go on: what they write is what an undisturbed run writes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![expect(
    clippy::disallowed_methods,
    reason = "processes are killed and waited for in the machine's time"
)]

mod counter;
mod damage;
mod events;
mod files;
mod kafka;
mod outputs;
mod place;
mod process;
mod rescale;
mod savepoints;
#[allow(dead_code, reason = "other tests use the rest")]
#[path = "../services/mod.rs"]
mod services;
mod streams;
mod topics;
