mod restarts;
mod results;
mod sources;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::config::ConfigOptions;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{ColumnarValue, Operator as BinaryOperator, ScalarUDF, Volatility, create_udf};
use datafusion::physical_expr::expressions::{BinaryExpr, Literal};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr, ScalarFunctionExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning as PlanPartitioning, PlanProperties,
    ReplaceChildrenOptions,
};
use futures::StreamExt;
use parking_lot::Mutex;
use thalweg_memory::MemoryManager;

use super::*;
use crate::data::{Batch, EngineError, Result};
use crate::exchange::BufferTimeout;
use crate::operator::{PreparedSink, SinkConnector, SinkJob, SinkWriter};
use crate::plan::*;
use crate::time::SystemClock;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![Field::new("a", DataType::Int64, true)]))
}

fn batch(values: impl IntoIterator<Item = i64>) -> Batch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(values));
    Batch::try_new(schema(), vec![column]).unwrap()
}

struct Process {
    io: tokio::runtime::Runtime,
    environment: Environment,
    spill: tempfile::TempDir,
}

fn process() -> Process {
    let io = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build()
        .unwrap();
    let spill = tempfile::tempdir().unwrap();
    let environment = Environment {
        memory: MemoryManager::new(1 << 30),
        io: io.handle().clone(),
        clock: Arc::new(SystemClock::new()),
        task: Arc::new(TaskContext::default()),
        sinks: HashMap::new(),
        sources: None,
        checkpointing: None,
        wal_directory: None,
        keep: None,
        notices: None,
        restart: RestartStrategy::None,
        diagnosis: None,
        spill_parent: spill.path().to_path_buf(),
        spill_compression: thalweg_memory::SpillCompression::None,
        batch_size: 64,
        buffer_timeout: BufferTimeout::WhenFull,
        input_credit_bytes: 1 << 20,
        latency_interval: None,
        exchange_bytes: None,
    };
    Process { io, environment, spill }
}

fn scan_of(plan: Arc<dyn ExecutionPlan>) -> OperatorSpec {
    OperatorSpec::Scan(ScanSpec {
        stream: None,
        bounded_by: vec![],
        table: "t".into(),
        plan: PhysicalPlan(plan),
        limit: None,
        read_bytes: 0,
    })
}

/// A scan of `splits` splits with the numbers `0..splits * rows`.
fn numbers(splits: i64, rows: i64) -> OperatorSpec {
    let partitions: Vec<Vec<Batch>> = (0..splits).map(|s| vec![batch(s * rows..(s + 1) * rows)]).collect();
    scan_of(MemorySourceConfig::try_new_exec(&partitions, schema(), None).unwrap())
}

fn vertex(name: &str, parallelism: usize, chain: Vec<OperatorSpec>) -> Vertex {
    Vertex {
        name: name.into(),
        parallelism,
        chain,
        output_schema: schema().into(),
        estimated_rows: None,
        uids: Vec::new(),
    }
}

fn collect() -> OperatorSpec {
    OperatorSpec::Collect(CollectSpec {
        schema: schema().into(),
    })
}

fn a() -> ScalarExpr {
    ScalarExpr::column(0, &schema())
}
fn binary(op: BinaryOperator, value: i64) -> ScalarExpr {
    let literal = Arc::new(Literal::new(ScalarValue::Int64(Some(value))));
    ScalarExpr::new(Arc::new(BinaryExpr::new(a().expr, op, literal)), schema())
}

fn filter(predicate: ScalarExpr) -> OperatorSpec {
    OperatorSpec::Filter(FilterSpec {
        predicate,
        projection: None,
    })
}

fn project(expr: ScalarExpr) -> OperatorSpec {
    OperatorSpec::Project(ProjectSpec {
        exprs: vec![expr],
        schema: schema().into(),
    })
}

fn function(udf: ScalarUDF) -> ScalarExpr {
    let field = Arc::new(Field::new("f", DataType::Int64, true));
    let options = Arc::new(ConfigOptions::default());
    let expr: Arc<dyn PhysicalExpr> = Arc::new(ScalarFunctionExpr::new(
        "f",
        Arc::new(udf),
        vec![a().expr],
        field,
        options,
    ));
    ScalarExpr::new(expr, schema())
}

fn panicking() -> ScalarExpr {
    let body = Arc::new(|_: &[ColumnarValue]| -> DataFusionResult<ColumnarValue> { panic!("the function broke") });
    function(create_udf(
        "f",
        vec![DataType::Int64],
        DataType::Int64,
        Volatility::Volatile,
        body,
    ))
}

/// scan -> hash -> middle -> global -> collect
fn three_stages(parallelism: usize, middle: Vec<OperatorSpec>, mode: ExchangeMode) -> JobGraph {
    let mut graph = JobGraph::new("test");
    let scan = graph.add_vertex(vertex(
        "scan",
        parallelism,
        vec![numbers(5, 1000), filter(binary(BinaryOperator::GtEq, 0))],
    ));
    let work = graph.add_vertex(vertex("work", parallelism, middle));
    let sink = graph.add_vertex(vertex("collect", 1, vec![collect()]));
    graph.connect(scan, work, 0, Partitioning::Hash(vec![a()]));
    graph.connect(work, sink, 0, Partitioning::Global);
    graph.edges[0].mode = mode;
    graph
}

fn sorted(batches: Vec<Batch>) -> Vec<i64> {
    let mut rows: Vec<i64> = batches
        .iter()
        .flat_map(|b| b.column(0).as_primitive::<Int64Type>().values().to_vec())
        .collect();
    rows.sort_unstable();
    rows
}

fn run(graph: JobGraph, process: &Process) -> Result<Vec<Batch>> {
    let result = submit(graph, &process.environment)?.collect();
    assert_eq!(process.environment.memory.reserved_bytes(), 0, "memory stays reserved");
    assert_eq!(
        std::fs::read_dir(process.spill.path()).unwrap().count(),
        0,
        "a file stays behind"
    );
    result
}

#[test]
fn a_job_gives_the_same_rows_at_every_parallelism_pipelined_and_blocking() {
    let process = process();
    for mode in [ExchangeMode::Pipelined, ExchangeMode::Blocking] {
        for parallelism in [1, 2, 7] {
            let middle = vec![
                filter(binary(BinaryOperator::Lt, 4500)),
                project(binary(BinaryOperator::Plus, 1)),
            ];
            let rows = sorted(run(three_stages(parallelism, middle, mode), &process).unwrap());
            assert_eq!(rows, (1..=4500).collect::<Vec<_>>(), "{mode:?} {parallelism}");
        }
    }
}

#[test]
fn a_blocking_exchange_spills_when_memory_is_short() {
    let mut process = process();
    process.environment.memory = MemoryManager::new(4096);
    let graph = three_stages(2, vec![filter(binary(BinaryOperator::GtEq, 0))], ExchangeMode::Blocking);
    let mut job = submit(graph, &process.environment).unwrap();
    let rows = sorted(job.by_ref().map(|b| b.unwrap()).collect());
    assert_eq!(rows.len(), 5000);
    let spilled = job.metrics().exchange_spilled_bytes();
    assert!(spilled > 0);
    assert!(job.metrics().progress().spilled_bytes >= spilled);
    drop(job);
    assert_eq!(std::fs::read_dir(process.spill.path()).unwrap().count(), 0);
}

#[test]
fn an_error_ends_the_job_with_the_operators_name_and_the_cause() {
    let process = process();
    let middle = vec![
        filter(binary(BinaryOperator::GtEq, 0)),
        project(binary(BinaryOperator::Divide, 0)),
    ];
    let error = run(three_stages(2, middle, ExchangeMode::Pipelined), &process).unwrap_err();
    let text = error.to_string();
    assert!(
        text.starts_with("operator 'Project [1.") && text.contains("Divide by zero"),
        "{text}"
    );
}

#[test]
fn a_panic_ends_the_job_with_the_operators_name_and_the_message() {
    let process = process();
    let middle = vec![filter(binary(BinaryOperator::GtEq, 0)), project(panicking())];
    let error = run(three_stages(2, middle, ExchangeMode::Pipelined), &process).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("'Project [1.") && text.contains("panicked: the function broke"),
        "{text}"
    );
}

#[test]
fn a_limit_stops_an_endless_source() {
    let process = process();
    let mut graph = JobGraph::new("test");
    let limit = |skip| OperatorSpec::Limit(LimitSpec { skip, fetch: Some(10) });
    let scan = graph.add_vertex(vertex("scan", 2, vec![scan_of(TestScan::endless(2)), limit(0)]));
    let global = graph.add_vertex(vertex("limit", 1, vec![limit(3), collect()]));
    graph.connect(scan, global, 0, Partitioning::Global);
    assert_eq!(sorted(run(graph, &process).unwrap()).len(), 10);
}

#[test]
fn a_limit_behind_an_exchange_stops_an_endless_source() {
    let process = process();
    let mut graph = JobGraph::new("test");
    let scan = graph.add_vertex(vertex("scan", 2, vec![scan_of(TestScan::endless(2))]));
    let work = graph.add_vertex(vertex("work", 3, vec![filter(binary(BinaryOperator::GtEq, 0))]));
    let limit = OperatorSpec::Limit(LimitSpec {
        skip: 0,
        fetch: Some(100),
    });
    let global = graph.add_vertex(vertex("limit", 1, vec![limit, collect()]));
    graph.connect(scan, work, 0, Partitioning::Rebalance);
    graph.connect(work, global, 0, Partitioning::Global);
    assert_eq!(sorted(run(graph, &process).unwrap()).len(), 100);
}

#[test]
fn cancelling_wakes_a_source_that_waits_forever_and_dropping_does_too() {
    let process = process();
    for drop_it in [false, true] {
        let mut graph = JobGraph::new("test");
        let scan = graph.add_vertex(vertex("scan", 2, vec![scan_of(TestScan::silent(2))]));
        let end = graph.add_vertex(vertex("end", 1, vec![collect()]));
        graph.connect(scan, end, 0, Partitioning::Global);
        let mut job = submit(graph, &process.environment).unwrap();
        if drop_it {
            drop(job);
            continue;
        }
        job.canceller().cancel();
        assert!(matches!(job.next(), Some(Err(EngineError::Cancelled))));
        assert!(job.next().is_none());
    }
}

#[test]
fn nothing_grows_over_many_jobs() {
    let process = process();
    let threads = || std::fs::read_dir("/proc/self/task").map(Iterator::count).unwrap_or(0);
    let run_one = |i: usize| match i % 4 {
        0 => drop(run(
            three_stages(3, vec![project(panicking())], ExchangeMode::Pipelined),
            &process,
        )),
        1 => drop(submit(
            three_stages(3, vec![project(a())], ExchangeMode::Blocking),
            &process.environment,
        )),
        _ => drop(run(
            three_stages(3, vec![project(a())], ExchangeMode::Pipelined),
            &process,
        )),
    };
    (0..8).for_each(run_one);
    let before = threads();
    (0..100).for_each(run_one);
    // Tests beside this one start and end threads of their own; a leak would be hundreds.
    assert!(threads() < before + 50, "{before} threads became {}", threads());
}

#[test]
fn graphs_that_cannot_run_are_refused() {
    let process = process();
    let refused = |graph: JobGraph| match submit(graph, &process.environment) {
        Ok(_) => panic!("accepted"),
        Err(error) => error.to_string(),
    };
    let mut graph = three_stages(
        2,
        vec![filter(binary(BinaryOperator::GtEq, 0))],
        ExchangeMode::Pipelined,
    );
    graph.edges[1].partitioning = Partitioning::Forward;
    assert!(refused(graph).contains("is Forward between parallelism 2 and 1"));
    let mut graph = three_stages(
        2,
        vec![filter(binary(BinaryOperator::GtEq, 0))],
        ExchangeMode::Pipelined,
    );
    graph.connect(1, 1, 0, Partitioning::Rebalance);
    assert!(refused(graph).contains("has a cycle"));
    let mut graph = three_stages(2, vec![filter(binary(BinaryOperator::GtEq, 0))], ExchangeMode::Blocking);
    graph.connect(0, 2, 0, Partitioning::Global);
    assert!(refused(graph).contains("bypassed by a pipelined one"));
    let sink = SinkSpec {
        connector: "nowhere".into(),
        options: Default::default(),
        schema: schema().into(),
    };
    let graph = three_stages(1, vec![OperatorSpec::Sink(sink)], ExchangeMode::Pipelined);
    assert!(refused(graph).contains("there is no sink connector 'nowhere'"));
}

#[test]
fn a_graph_survives_serialization() {
    let process = process();
    let mut graph = JobGraph::new("test");
    let spec = SortKey {
        expr: a(),
        descending: true,
        nulls_first: false,
    };
    let placeholder = input_placeholder(schema(), &[spec]).unwrap();
    graph.add_vertex(vertex(
        "v",
        3,
        vec![
            filter(binary(BinaryOperator::Lt, 5)),
            OperatorSpec::Wrapped(WrappedSpec {
                label: "nothing".into(),
                plan: PhysicalPlan(placeholder),
            }),
        ],
    ));
    let bytes = encode_job_graph(&graph).unwrap();
    let back = decode_job_graph(&bytes, Arc::clone(&process.environment.task)).unwrap();
    assert_eq!(format!("{graph:?}"), format!("{back:?}"));
    assert!(decode_job_graph(&bytes[..bytes.len() / 2], Arc::clone(&process.environment.task)).is_err());
    let local = three_stages(1, vec![project(a())], ExchangeMode::Pipelined);
    let mut local_scan = local.clone();
    local_scan.vertices[0].chain[0] = scan_of(TestScan::endless(1));
    let error = encode_job_graph(&local_scan).unwrap_err().to_string();
    assert!(error.contains("cannot leave this process"), "{error}");
}

/// Remembers what became of it.
#[derive(Debug, Default)]
struct TestSink {
    rows: Mutex<usize>,
    finished: AtomicUsize,
    committed: AtomicUsize,
    aborted: AtomicUsize,
}

#[derive(Debug, Clone)]
struct TestConnector(Arc<TestSink>);

impl SinkConnector for TestConnector {
    fn name(&self) -> &str {
        "test"
    }

    fn prepare(&self, _spec: &SinkSpec, _job: &SinkJob) -> Result<Arc<dyn PreparedSink>> {
        Ok(Arc::new(self.clone()))
    }
}

impl PreparedSink for TestConnector {
    fn max_parallelism(&self) -> Option<usize> {
        None
    }

    fn writer(&self, _subtask: usize, _parallelism: usize) -> Result<Box<dyn SinkWriter>> {
        Ok(Box::new(self.clone()))
    }

    fn commit(&self) -> Result<()> {
        self.0.committed.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn abort(&self) {
        self.0.aborted.fetch_add(1, Ordering::SeqCst);
    }
}

impl SinkWriter for TestConnector {
    fn write(&mut self, batch: &Batch) -> Result<()> {
        *self.0.rows.lock() += batch.num_rows();
        Ok(())
    }

    fn held_bytes(&self) -> usize {
        0
    }

    fn relieve(&mut self) -> Result<()> {
        Ok(())
    }

    fn finish(&mut self) -> Result<()> {
        self.0.finished.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn next_roll_ms(&self) -> Option<i64> {
        None
    }

    fn roll(&mut self) -> Result<()> {
        Ok(())
    }
}

#[test]
fn a_sink_commits_once_when_all_have_finished_and_aborts_once_otherwise() {
    for (fails, cancelled) in [(false, false), (true, false), (false, true)] {
        let mut process = process();
        let sink = Arc::new(TestSink::default());
        let connector = Arc::new(TestConnector(Arc::clone(&sink)));
        process.environment.sinks.insert("test".into(), connector);
        let spec = SinkSpec {
            connector: "test".into(),
            options: Default::default(),
            schema: schema().into(),
        };
        let before = if fails { panicking() } else { a() };
        let count = Arc::new(Schema::new(vec![Field::new("count", DataType::UInt64, false)]));
        let mut graph = three_stages(
            3,
            vec![project(before), OperatorSpec::Sink(spec)],
            ExchangeMode::Pipelined,
        );
        if cancelled {
            graph.vertices[0].chain[0] = scan_of(TestScan::endless(2));
        }
        graph.vertices[1].output_schema = count.into();
        let mut job = submit(graph, &process.environment).unwrap();
        if cancelled {
            job.canceller().cancel();
        }
        let ok = job.by_ref().all(|batch| batch.is_ok());
        assert_eq!(ok, !fails && !cancelled);
        let state = (
            sink.committed.load(Ordering::SeqCst),
            sink.aborted.load(Ordering::SeqCst),
        );
        assert_eq!(state, if ok { (1, 0) } else { (0, 1) });
        if ok {
            assert_eq!((*sink.rows.lock(), sink.finished.load(Ordering::SeqCst)), (5000, 3));
        }
    }
}

/// A scan whose splits give three rows each, at once, for ever, or never.
#[derive(Debug)]
struct TestScan {
    properties: Arc<PlanProperties>,
    endless: bool,
    silent: fn(usize) -> bool,
}

impl TestScan {
    fn make(splits: usize, endless: bool, silent: fn(usize) -> bool) -> Arc<dyn ExecutionPlan> {
        let properties = Arc::new(PlanProperties::new(
            EquivalenceProperties::new(schema()),
            PlanPartitioning::UnknownPartitioning(splits),
            EmissionType::Incremental,
            Boundedness::Bounded,
        ));
        Arc::new(Self {
            properties,
            endless,
            silent,
        })
    }

    fn endless(splits: usize) -> Arc<dyn ExecutionPlan> {
        Self::make(splits, true, |_| false)
    }

    fn silent(splits: usize) -> Arc<dyn ExecutionPlan> {
        Self::make(splits, false, |_| true)
    }

    fn one_silent(splits: usize) -> Arc<dyn ExecutionPlan> {
        Self::make(splits, false, |split| split == 0)
    }
}

impl DisplayAs for TestScan {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TestScan")
    }
}

impl ExecutionPlan for TestScan {
    fn name(&self) -> &str {
        "TestScan"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> DataFusionResult<TreeNodeRecursion>,
    ) -> DataFusionResult<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _: Vec<Arc<dyn ExecutionPlan>>) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn replace_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, split: usize, _context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let stream = if (self.silent)(split) {
            futures::stream::pending().boxed()
        } else if self.endless {
            futures::stream::repeat_with(|| Ok(batch(0..100))).boxed()
        } else {
            futures::stream::iter([Ok(batch(0..3))]).boxed()
        };
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema(), stream)))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Nothing of a job may still run on the I/O threads.
        assert_eq!(self.io.metrics().num_alive_tasks(), 0);
    }
}
