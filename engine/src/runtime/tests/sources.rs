//! Sources that a connector knows how to read from a position.

use futures::StreamExt;
use futures::future::BoxFuture;

use super::*;
use crate::operator::{Positioned, SourceResolver, SplitId, SplitReader, SplitSource, SplitStream};
use crate::plan::StreamScanSpec;

/// Two batches of numbers that cannot be read again.
#[derive(Clone, Copy, Debug)]
struct Once;

impl SourceResolver for Once {
    fn split_source(&self, _plan: &Arc<dyn ExecutionPlan>) -> Option<Arc<dyn SplitSource>> {
        Some(Arc::new(*self))
    }
}

impl SplitSource for Once {
    fn splits(&self) -> BoxFuture<'_, Result<Vec<SplitId>>> {
        let split = SplitId {
            name: "once".into(),
            ordinal: 0,
        };
        Box::pin(async { Ok(vec![split]) })
    }

    fn reader(&self, _subtask: usize, _task: Arc<TaskContext>) -> Result<Box<dyn SplitReader>> {
        Ok(Box::new(*self))
    }

    fn needs_log(&self) -> bool {
        true
    }
}

impl SplitReader for Once {
    fn open(&mut self, _split: &SplitId, _position: Option<&[u8]>) -> Result<SplitStream> {
        let batches = [batch(0..3), batch(3..5)].map(|batch| {
            Ok(Positioned {
                batch,
                position: vec![],
            })
        });
        Ok(futures::stream::iter(batches).boxed())
    }
}

fn job() -> JobGraph {
    let mut scan = numbers(1, 1);
    if let OperatorSpec::Scan(spec) = &mut scan {
        spec.stream = Some(StreamScanSpec::default());
    }
    let mut graph = JobGraph::new("test");
    let scan = graph.add_vertex(vertex("scan", 1, vec![scan]));
    let sink = graph.add_vertex(vertex("collect", 1, vec![collect()]));
    graph.connect(scan, sink, 0, Partitioning::Global);
    graph
}

#[test]
fn what_cannot_be_read_again_is_logged_and_refused_where_there_is_no_place_for_it() {
    let mut process = process();
    process.environment.sources = Some(Arc::new(Once));
    let run = |environment: &Environment| -> Result<Vec<Batch>> { submit(job(), environment)?.collect() };
    let refused = run(&process.environment);
    let message = refused.unwrap_err().to_string();
    assert!(
        message.contains("'scan.wal'") && message.contains("execution.checkpointing"),
        "{message}"
    );
    let log = tempfile::tempdir().unwrap();
    process.environment.wal_directory = Some(log.path().into());
    for number in 1..=2 {
        // The second run is one that was started again before there was a checkpoint: it reads the log, and nothing more, as
        // the source had ended.
        let rows = submit(job(), &process.environment)
            .and_then(JobHandle::collect)
            .unwrap();
        assert_eq!(sorted(rows), [0, 1, 2, 3, 4], "run {number}");
        assert!(log.path().join("t-0").is_dir());
    }
}

#[test]
fn a_slow_split_does_not_hold_up_the_others() {
    let mut process = process();
    process.environment.buffer_timeout = BufferTimeout::Immediate;
    let mut graph = JobGraph::new("test");
    // Split 0 never ends; the other subtask must read the nine others.
    let scan = graph.add_vertex(vertex("scan", 2, vec![scan_of(TestScan::one_silent(10))]));
    let end = graph.add_vertex(vertex("end", 1, vec![collect()]));
    graph.connect(scan, end, 0, Partitioning::Global);
    let mut job = submit(graph, &process.environment).unwrap();
    let mut rows = 0;
    while rows < 9 * 3 {
        rows += job.next().unwrap().unwrap().num_rows();
    }
    assert_eq!(job.metrics().progress().splits_taken, 10);
}
