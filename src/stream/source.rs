//! Where streams come from, and how their sources know how far event time has come.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, RecordBatch};
use arrow::datatypes::{DataType, SchemaRef, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::error::DataFusionError;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{ColumnarValue, Expr, Volatility, cast, create_udf, lit};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use parking_lot::Mutex;
use thalweg_engine::exchange::BufferTimeout;
use thalweg_engine::plan::{OperatorSpec, PhysicalPlan, ScanSpec, StreamScanSpec, WatermarkSpec};
use thalweg_engine::runtime::JobHandle;

use super::DataStream;
use super::graph::{Node, Upstream, check_uids, translate};
use super::planning::{column_index, named};
use crate::error::{Error, Result};
use crate::{QueryResult, Session};

/// How long an exchange of a streaming job may hold rows back, unless set.
const BUFFER_TIMEOUT_MS: i64 = 100;

enum Progress {
    Unknown,
    Bounded(Duration),
    Custom(Expr),
}

/// How a source knows how far event time has come (The Dataflow Model, section 2.3).
pub struct WatermarkStrategy {
    time: Option<String>,
    progress: Progress,
    idle_timeout: Option<Duration>,
    interval: Option<Duration>,
    max_drift: Option<Duration>,
}

impl WatermarkStrategy {
    fn of(time: Option<&str>, progress: Progress) -> Self {
        Self {
            time: time.map(ToString::to_string),
            progress,
            idle_timeout: None,
            interval: None,
            max_drift: None,
        }
    }

    /// No event time: event time ends with the input.
    pub fn none() -> Self {
        Self::of(None, Progress::Unknown)
    }

    /// The column `time` never falls within a split.
    pub fn monotonous(time: &str) -> Self {
        Self::of(Some(time), Progress::Bounded(Duration::ZERO))
    }

    /// No row of a split is older than another before it by more than `delay`.
    pub fn bounded_out_of_orderness(time: &str, delay: Duration) -> Self {
        Self::of(Some(time), Progress::Bounded(delay))
    }

    /// `watermark` gives a timestamp with each row that says so: no row at or before it follows. NULL says nothing. This
    /// is also the punctuated strategy.
    pub fn punctuated(time: &str, watermark: Expr) -> Self {
        Self::of(Some(time), Progress::Custom(watermark))
    }

    /// As [`Self::punctuated`], by a function from the time column, in milliseconds, to such timestamps.
    pub fn custom(
        time: &str,
        watermark: impl Fn(&ArrayRef) -> datafusion::error::Result<ArrayRef> + Send + Sync + 'static,
    ) -> Self {
        let millis = DataType::Timestamp(TimeUnit::Millisecond, None);
        let function = create_udf(
            "watermark",
            vec![millis.clone()],
            millis.clone(),
            Volatility::Volatile,
            Arc::new(move |arguments: &[ColumnarValue]| {
                let arrays = ColumnarValue::values_to_arrays(arguments)?;
                let [time] = arrays.as_slice() else {
                    return Err(DataFusionError::Internal("a watermark is made of one column".into()));
                };
                Ok(ColumnarValue::Array(watermark(time)?))
            }),
        );
        Self::of(
            Some(time),
            Progress::Custom(function.call(vec![cast(named(time), millis)])),
        )
    }

    /// A split that has been silent for so long does not hold back the others.
    pub fn with_idleness(mut self, timeout: Duration) -> Self {
        self.idle_timeout = Some(timeout);
        self
    }

    /// A watermark leaves at most every so often; zero: with each batch.
    pub fn with_interval(mut self, interval: Duration) -> Self {
        self.interval = Some(interval);
        self
    }

    /// A split whose watermark is further ahead of the slowest is not read until that has caught up.
    pub fn with_alignment(mut self, max_drift: Duration) -> Self {
        self.max_drift = Some(max_drift);
        self
    }

    /// The time column and, unless unknown, the watermark over batches of `schema`.
    pub(super) fn plan(&self, session: &Session, schema: &SchemaRef) -> Result<(Option<usize>, Option<WatermarkSpec>)> {
        let Some(time) = &self.time else {
            return Ok((None, None));
        };
        let index = column_index(time, schema)?;
        let DataType::Timestamp(unit, zone) = schema.field(index).data_type() else {
            return Err(Error::statement(format!(
                "the event time '{time}' is {}, not a timestamp",
                schema.field(index).data_type()
            )));
        };
        let watermark = match &self.progress {
            Progress::Unknown => return Ok((Some(index), None)),
            Progress::Custom(watermark) => watermark.clone(),
            Progress::Bounded(delay) => {
                let fine = match unit {
                    TimeUnit::Second => TimeUnit::Millisecond,
                    finer => *finer,
                };
                // Rows of the highest time itself may still come.
                let delay_ms = millis(*delay)?.saturating_add(1);
                let column = cast(named(time), DataType::Timestamp(fine, zone.clone()));
                column - lit(interval(delay_ms))
            }
        };
        let planned = session.plan_expr(watermark, schema)?;
        if !matches!(planned.field.data_type(), DataType::Timestamp(_, _)) {
            return Err(Error::statement(format!(
                "the watermark is {}, not a timestamp",
                planned.field.data_type()
            )));
        }
        let config = session.config();
        let idle = (config.idle_timeout_ms > 0).then(|| Duration::from_millis(config.idle_timeout_ms));
        let interval = self
            .interval
            .unwrap_or(Duration::from_millis(config.watermark_interval_ms));
        let drift = self.max_drift.or(config.max_drift_ms.map(Duration::from_millis));
        let spec = WatermarkSpec {
            expr: planned.expr,
            idle_timeout_ms: self.idle_timeout.or(idle).map(unsigned_millis),
            interval_ms: unsigned_millis(interval),
            max_drift_ms: drift.map(unsigned_millis),
        };
        Ok((Some(index), Some(spec)))
    }
}

fn interval(ms: i64) -> ScalarValue {
    ScalarValue::IntervalMonthDayNano(Some(arrow::datatypes::IntervalMonthDayNano::new(
        0,
        i32::try_from(ms / 86_400_000).unwrap_or(i32::MAX),
        ms % 86_400_000 * 1_000_000,
    )))
}

fn unsigned_millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Milliseconds as the engine counts them.
pub(super) fn millis(duration: Duration) -> Result<i64> {
    i64::try_from(duration.as_millis()).map_err(|_| Error::statement(format!("{duration:?} is too long")))
}

/// A streaming program that is put together: streams are made here, and it is run from here.
#[derive(Clone)]
pub struct StreamBuilder {
    pub(super) session: Session,
    pub(super) nodes: Arc<Mutex<Vec<Node>>>,
    parallelism: Arc<Mutex<usize>>,
}

impl StreamBuilder {
    pub(super) fn new(session: &Session) -> Self {
        Self {
            session: session.clone(),
            nodes: Arc::default(),
            parallelism: Arc::new(Mutex::new(session.config().parallelism)),
        }
    }

    /// How many subtasks operators have that do not say.
    pub fn set_parallelism(&self, parallelism: usize) -> Result<()> {
        super::data_stream::check_parallelism(parallelism)?;
        *self.parallelism.lock() = parallelism;
        Ok(())
    }

    /// The rows of a table of the session.
    ///
    /// # Errors
    /// When there is no such table, or the strategy does not fit it.
    pub fn from_table(&self, name: &str, watermarks: WatermarkStrategy) -> Result<DataStream> {
        let session = &self.session;
        let table = session.block_on(session.context().table_provider(name))?;
        let plan = session.block_on(table.scan(&session.state(), None, &[], None))?;
        self.scan(name, plan, &watermarks)
    }

    /// These batches, in their order.
    ///
    /// # Errors
    /// When a batch has another schema, or the strategy does not fit it.
    pub fn from_batches(
        &self,
        schema: SchemaRef,
        batches: Vec<RecordBatch>,
        watermarks: WatermarkStrategy,
    ) -> Result<DataStream> {
        self.from_splits(schema, vec![batches], watermarks)
    }

    /// Several sequences of batches that are read side by side.
    ///
    /// # Errors
    /// As for [`Self::from_batches`].
    pub fn from_splits(
        &self,
        schema: SchemaRef,
        splits: Vec<Vec<RecordBatch>>,
        watermarks: WatermarkStrategy,
    ) -> Result<DataStream> {
        if splits.iter().flatten().any(|batch| batch.schema() != schema) {
            return Err(Error::statement("a batch has another schema than its stream"));
        }
        let plan = MemorySourceConfig::try_new_exec(&splits, schema, None)?;
        self.scan("batches", plan, &watermarks)
    }

    /// What a function makes: for each split an iterator, which may be endless.
    ///
    /// # Errors
    /// When the strategy does not fit the schema.
    pub fn from_generator<I>(
        &self,
        schema: SchemaRef,
        splits: usize,
        generator: impl Fn(usize) -> I + Send + Sync + 'static,
        watermarks: WatermarkStrategy,
    ) -> Result<DataStream>
    where
        I: Iterator<Item = RecordBatch> + Send + 'static,
    {
        let generator: Arc<Generator> = Arc::new(move |split| Box::new(generator(split)));
        let partitions = (0..splits).map(|split| {
            Arc::new(GeneratedSplit {
                schema: Arc::clone(&schema),
                split,
                generator: Arc::clone(&generator),
            }) as Arc<dyn PartitionStream>
        });
        let plan = StreamingTableExec::try_new(Arc::clone(&schema), partitions.collect(), None, [], true, None)?;
        self.scan("generator", Arc::new(plan), &watermarks)
    }

    fn scan(&self, name: &str, plan: Arc<dyn ExecutionPlan>, watermarks: &WatermarkStrategy) -> Result<DataStream> {
        let schema = plan.schema();
        let (time, watermark) = watermarks.plan(&self.session, &schema)?;
        let splits = plan.properties().output_partitioning().partition_count();
        let operator = OperatorSpec::Scan(ScanSpec {
            table: name.to_string(),
            plan: PhysicalPlan(plan),
            limit: None,
            read_bytes: 0,
            bounded_by: Vec::new(),
            stream: Some(StreamScanSpec { watermark }),
        });
        let mut node = Node::new(operator, format!("Source: {name}"), schema);
        node.parallelism_max = node.parallelism_max.min(splits.max(1));
        Ok(self.add(node, time))
    }

    /// Adds an operator; gives the stream of what it hands on.
    pub(super) fn add(&self, node: Node, time: Option<usize>) -> DataStream {
        let mut nodes = self.nodes.lock();
        let schema = Arc::clone(&node.schema);
        nodes.push(node);
        let upstream = Upstream {
            node: nodes.len() - 1,
            side: None,
            partitioning: None,
            buffer_timeout_ms: None,
        };
        DataStream {
            builder: self.clone(),
            upstream: vec![upstream],
            schema,
            time,
        }
    }

    /// Changes the operator of a node; fails, and leaves everything as it was, when two operators then have one id.
    pub(super) fn change(&self, node: usize, change: impl FnOnce(&mut Node)) -> Result<()> {
        let mut nodes = self.nodes.lock();
        let before = nodes[node].clone();
        change(&mut nodes[node]);
        let checked = check_uids(&nodes);
        if checked.is_err() {
            nodes[node] = before;
        }
        checked
    }

    /// What the program is made into: vertices with their chains, and edges.
    ///
    /// # Errors
    /// When the program is wrong, or has no sink.
    pub fn job_graph(&self, name: &str) -> Result<thalweg_engine::plan::JobGraph> {
        translate(name, &self.nodes.lock(), *self.parallelism.lock())
    }

    /// Starts the program; it runs until its input ends or it is cancelled.
    ///
    /// # Errors
    /// When the program is wrong, or has no sink.
    pub fn start(&self, name: &str) -> Result<StreamJob> {
        let job = self.submit(name, &self.nodes.lock())?;
        Ok(StreamJob { job })
    }

    /// Runs the program until its input ends.
    ///
    /// # Errors
    /// When the program is wrong, or what it fails with.
    pub fn execute(&self, name: &str) -> Result<()> {
        self.start(name)?.wait()
    }

    pub(super) fn submit(&self, name: &str, nodes: &[Node]) -> Result<JobHandle> {
        let graph = translate(name, nodes, *self.parallelism.lock())?;
        let mut environment = self.session.environment();
        let timeout = self.session.config().buffer_timeout_ms.unwrap_or(BUFFER_TIMEOUT_MS);
        environment.buffer_timeout = BufferTimeout::from_ms(timeout);
        environment.exchange_bytes = Some(self.session.config().segment_bytes);
        self.session.start_streaming(graph, environment)
    }

    pub(super) fn collect(&self, nodes: &[Node], schema: &SchemaRef) -> Result<QueryResult> {
        let job = self.submit("collect", nodes)?;
        Ok(QueryResult::of_job(job, Arc::clone(schema)))
    }
}

/// A running streaming program. Dropping it cancels it.
pub struct StreamJob {
    job: JobHandle,
}

impl StreamJob {
    /// Waits for the end of the input.
    ///
    /// # Errors
    /// What the program fails with.
    pub fn wait(self) -> Result<()> {
        Ok(self.job.finish()?)
    }

    /// Takes savepoints of the job, from any thread.
    pub fn control(&self) -> thalweg_engine::runtime::JobControl {
        self.job.control()
    }

    /// What the job counts.
    pub fn metrics(&self) -> Arc<thalweg_engine::runtime::JobMetrics> {
        Arc::clone(self.job.metrics())
    }

    /// Cancels the job from any thread.
    pub fn canceller(&self) -> thalweg_engine::exchange::CancelToken {
        self.job.canceller()
    }
}

type Generator = dyn Fn(usize) -> Box<dyn Iterator<Item = RecordBatch> + Send> + Send + Sync;

struct GeneratedSplit {
    schema: SchemaRef,
    split: usize,
    generator: Arc<Generator>,
}

impl fmt::Debug for GeneratedSplit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "GeneratedSplit {}", self.split)
    }
}

impl PartitionStream for GeneratedSplit {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _context: Arc<TaskContext>) -> SendableRecordBatchStream {
        let batches = futures::stream::iter((self.generator)(self.split).map(Ok));
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches))
    }
}
