//! Tests of streaming SQL: the changelog of a streaming query, folded, is the answer that others computed (DuckDB, batch
//! mode, a person); and what streams cannot say is refused.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod batch_equals_streaming;
mod cases;
mod changelog;
mod debezium;
mod explain;
mod late;
mod lookup;
mod nexmark;
mod random;
mod rolling;
