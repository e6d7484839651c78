//! Many queries at once on one budget: all end, with right answers.

use std::collections::BTreeSet;
use std::sync::mpsc::channel;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use thalweg::Canceller;

use super::{MB, assert_none};
use crate::allocator::{Watch, live_bytes};
use crate::cell::{register, session, start};
use crate::digest::OrderCheck;
use crate::models::Pair;
use crate::operators::{AGGREGATIONS, JOINS, Operator, SORTS, WINDOWS};
use crate::relation::{Shape, prepare};
use crate::spill_watch::{left, spill_files};

const QUERIES: usize = 50;
const BUDGET_BYTES: usize = 64 * MB;
const DATA_BYTES: u64 = 12 << 20;
/// When those that are not done are stuck.
const PATIENCE: Duration = Duration::from_secs(120);

const OPERATORS: [&Operator; 6] = [
    &SORTS[0],
    &JOINS[0],
    &AGGREGATIONS[1],
    &SORTS[5],
    &JOINS[4],
    &WINDOWS[0],
];

#[test]
fn fifty_queries_on_one_budget_all_end() {
    let _alone = crate::alone();
    prepare();
    let folder = tempfile::tempdir().unwrap();
    let pair = Arc::new(JOINS[0].relations(Shape::Uniform, DATA_BYTES, 500, 1));
    let expected = OPERATORS.map(|operator| (operator.model)(&pair));
    let session = session(BUDGET_BYTES, 2, folder.path());
    register(&session, &pair);
    let watch = Watch::start(session.memory(), live_bytes());
    let (tell, told) = channel();
    let cancellers: Arc<Mutex<Vec<Canceller>>> = Arc::default();
    let start_query = |number: usize| {
        let (session, pair, tell) = (session.clone(), Arc::clone(&pair), tell.clone());
        let cancellers = Arc::clone(&cancellers);
        std::thread::spawn(move || {
            let operator = OPERATORS[number % OPERATORS.len()];
            let result = start(&session, &(operator.sql)(&pair)).and_then(|mut rows| {
                cancellers.lock().unwrap().push(rows.canceller());
                let mut order = OrderCheck::new((operator.order)(&pair));
                crate::cell::digest(&mut rows, &mut order)
            });
            drop(session);
            let _ = tell.send((number, result));
        })
    };
    let threads: Vec<_> = (0..QUERIES).map(start_query).collect();
    let started = crate::now();
    let mut running: BTreeSet<usize> = (0..QUERIES).collect();
    let mut failed = Vec::new();
    while !running.is_empty() {
        let Ok((number, result)) = told.recv_timeout(PATIENCE.saturating_sub(started.elapsed())) else {
            cancellers.lock().unwrap().iter().for_each(Canceller::cancel);
            let stuck: Vec<_> = running.iter().map(|number| name(*number)).collect();
            panic!(
                "{} of {QUERIES} queries have not ended after {PATIENCE:?}: {stuck:?}",
                stuck.len()
            );
        };
        running.remove(&number);
        match result {
            Ok(digest) if digest == expected[number % OPERATORS.len()] => {}
            Ok(digest) => failed.push(format!("{}: a wrong answer, {digest:?}", name(number))),
            Err(error) => failed.push(format!("{}: {error}", name(number))),
        }
    }
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    // Each query has a headroom of its own: shown, not asserted.
    println!("{QUERIES} queries: {:?}", watch.stop());
    assert_none(&failed);
    assert_eq!(session.memory().reserved_bytes(), 0);
    assert_eq!(spill_files(folder.path()), []);
    drop(session);
    assert_eq!(left(folder.path()), [] as [String; 0]);
}

fn name(number: usize) -> String {
    format!("query {number} ({})", OPERATORS[number % OPERATORS.len()].name)
}

#[test]
fn the_queries_together_do_not_fit() {
    let pair: Pair = JOINS[0].relations(Shape::Uniform, DATA_BYTES, 500, 1);
    assert!(pair.t.bytes() * QUERIES as u64 > 2 * BUDGET_BYTES as u64);
}
