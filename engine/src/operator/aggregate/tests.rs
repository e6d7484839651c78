//! Aggregation against a naive reference, in one step and in two.

mod functions;
mod keys;
mod memory;
mod reference;
mod spilling;
mod timing;
