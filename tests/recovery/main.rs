//! Jobs that are killed and go on: what they write is what an undisturbed run writes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
#![allow(
    clippy::disallowed_methods,
    reason = "other processes are waited for, and killed at some time"
)]

mod events;
mod files;
mod process;
