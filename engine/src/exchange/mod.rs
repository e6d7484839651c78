//! Exchange: how batches and control events get from the subtasks of one vertex to those of another.

mod cancel;

pub use cancel::CancelToken;
