//! Window aggregation against a naive model, row at a time.

mod emit;
mod model;
mod restore;
mod sessions;
mod slices;
mod state;
mod timing;
