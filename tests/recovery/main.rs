//! Jobs that are killed and go on: what they write is what an undisturbed run writes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod events;
mod files;
mod process;
