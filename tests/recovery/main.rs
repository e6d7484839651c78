//! Jobs that are killed, stopped and changed go on: what they write is what an undisturbed run writes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod damage;
mod events;
mod files;
mod place;
mod process;
mod rescale;
mod savepoints;
mod streams;
