//! Jobs that fail and start again.

use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use super::*;
use crate::operator::{Collector, Context, CustomFactory, CustomOperator, Operator, Port};

/// Hands rows on; counts how often it was made, and fails its first batch so often.
#[derive(Default)]
struct Flaky {
    made: AtomicUsize,
    failures_left: AtomicUsize,
}

struct FlakyOperator(Arc<Flaky>);

#[derive(Clone, Default)]
struct FlakyFactory(Arc<Flaky>);

impl CustomOperator for FlakyFactory {
    fn create(&self, _subtask: usize, _parallelism: usize) -> Result<Box<dyn Operator>> {
        self.0.made.fetch_add(1, Ordering::SeqCst);
        Ok(Box::new(FlakyOperator(Arc::clone(&self.0))))
    }
}

impl Operator for FlakyOperator {
    fn on_batch(&mut self, _port: Port, batch: Batch, _cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let left = &self.0.failures_left;
        let failing = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        if failing.is_ok() {
            return Err(EngineError::BadInput("the function broke".into()));
        }
        out.collect(batch)
    }

    fn on_end(&mut self, _port: Port, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }
}

impl FlakyFactory {
    fn failing(times: usize) -> Self {
        let factory = Self::default();
        factory.0.failures_left.store(times, Ordering::SeqCst);
        factory
    }

    fn operator(&self) -> OperatorSpec {
        OperatorSpec::Custom(CustomFactory::spec("flaky", Arc::new(self.clone())))
    }
}

fn process_with(attempts: u32) -> Process {
    let mut process = process();
    process.environment.restart = RestartStrategy::FixedDelay {
        attempts,
        delay: Duration::ZERO,
    };
    process
}

#[test]
fn a_stage_that_fails_runs_again_and_those_before_it_do_not() {
    let process = process_with(3);
    let (first, second) = (FlakyFactory::default(), FlakyFactory::failing(2));
    let mut graph = three_stages(2, vec![second.operator()], ExchangeMode::Blocking);
    graph.vertices[0].chain.push(first.operator());
    graph.edges[1].mode = ExchangeMode::Blocking;
    let mut job = submit(graph, &process.environment).unwrap();
    let rows = sorted(job.by_ref().map(|batch| batch.unwrap()).collect());
    assert_eq!(rows, (0..5000).collect::<Vec<_>>());
    assert_eq!(first.0.made.load(Ordering::SeqCst), 2, "the first stage ran twice");
    assert_eq!(second.0.made.load(Ordering::SeqCst), 6);
    assert_eq!(job.metrics().checkpoints().restarts, 2);
    drop(job);
    assert_eq!(std::fs::read_dir(process.spill.path()).unwrap().count(), 0);
}

#[test]
fn attempts_run_out_and_the_last_error_is_told() {
    let process = process_with(2);
    let broken = FlakyFactory::failing(100);
    let mut graph = three_stages(1, vec![broken.operator()], ExchangeMode::Blocking);
    graph.edges[1].mode = ExchangeMode::Blocking;
    let error = run(graph, &process).unwrap_err();
    assert!(error.to_string().contains("the function broke"), "{error}");
    assert_eq!(broken.0.made.load(Ordering::SeqCst), 3);
}

#[test]
fn rows_that_may_have_been_pulled_are_not_given_again() {
    let process = process_with(5);
    let broken = FlakyFactory::failing(1);
    let graph = three_stages(1, vec![broken.operator()], ExchangeMode::Pipelined);
    assert!(run(graph, &process).is_err());
    assert_eq!(broken.0.made.load(Ordering::SeqCst), 1);
}
