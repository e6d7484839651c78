//! Who reads the result of a job.

use std::sync::Arc;

use super::*;

#[test]
fn a_result_may_be_read_after_the_job_has_ended() {
    let mut process = process();
    let alive = Arc::new(());
    let ended = Arc::downgrade(&alive);
    process.environment.keep = Some(alive);
    let graph = three_stages(
        2,
        vec![filter(binary(BinaryOperator::GtEq, 0))],
        ExchangeMode::Pipelined,
    );
    let job = submit(graph, &process.environment).unwrap();
    process.environment.keep = None;
    // Nobody reads until everything is over.
    while ended.upgrade().is_some() {
        std::thread::yield_now();
    }
    let rows: usize = job.map(|batch| batch.unwrap().num_rows()).sum();
    assert_eq!(rows, 5000);
}
