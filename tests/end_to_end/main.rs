//! End-to-end tests of the package: real queries over real files through the real runtime, against answers that others
//! computed.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on panics")]

mod answers;
mod bad_input;
mod differential;
mod many_jobs;
mod quickstart;
mod runtime_filters;
mod sql_cases;
mod statements;
mod stream_example;
mod stream_tables;
mod tpcds;
mod tpch;
mod writes;
