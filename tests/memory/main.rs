//! The memory budget as a promise: a matrix of operators, budgets and data shapes, each cell with right answers, within
//! its bytes and without a file left; and what must hold when spilling goes wrong.
//!
//! Sources generate their rows and results are digested while they stream, so nothing here is held in memory. The
//! tests count the bytes of the whole process: they run one at a time ([`alone`]).
//!
//! `THALWEG_MATRIX=full` multiplies the data; `THALWEG_MATRIX=roomy` gives every cell a large budget, which tests the
//! tests: only the answers and the leftovers count then. `THALWEG_MATRIX_CELL='sort, WideRows, 8 MB'` runs the cells
//! with that text in their name, `THALWEG_MATRIX_TRACE=1` prints what each cell did (with `--nocapture`).

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod allocator;
mod cell;
mod digest;
mod faults;
mod matrix;
mod models;
mod operators;
mod provider;
mod relation;
mod spill_watch;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: allocator::Counting = allocator::Counting;

/// The right to be the only test that runs: bytes and threads are the process's.
fn alone() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

#[expect(clippy::disallowed_methods, reason = "how long a test takes is the machine's time")]
fn now() -> Instant {
    Instant::now()
}
