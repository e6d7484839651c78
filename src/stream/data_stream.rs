//! [`DataStream`]: what flows between two operators of a program.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, Schema, SchemaRef};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::{Expr, SortExpr};
use thalweg_engine::exchange::{CustomPartition, MAX_PARALLELISM};
use thalweg_engine::operator::process::StateDeclarations;
use thalweg_engine::operator::process::{PerRecord, ProcessFunction, ProcessInput, ProcessSpec, RecordFunction};
use thalweg_engine::plan::{
    AssignWatermarkSpec, FilterSpec, Opaque, OperatorSpec, Partitioning, ProjectSpec, ScalarExpr, SchemaSpec, SinkSpec,
    SortKey,
};

use super::graph::{Chaining, Node, Upstream, with_collector};
use super::map::map_batches;
use super::planning::{column_index, literal, named};
use super::source::StreamBuilder;
use super::{KeyedStream, WatermarkStrategy, WindowAssigner, WindowedStream};
use crate::QueryResult;
use crate::error::{Error, Result};
use crate::resolver::ConnectorResolver;

/// Names a side output. Made once, given to the function that writes to it and to [`DataStream::side_output`].
#[derive(Clone, Debug)]
pub struct OutputTag {
    pub(super) id: usize,
    pub(super) name: String,
}

static NEXT_TAG: AtomicUsize = AtomicUsize::new(0);

impl OutputTag {
    /// A tag that is no other, whatever it is called.
    pub fn new(name: &str) -> Self {
        Self {
            id: NEXT_TAG.fetch_add(1, Ordering::Relaxed),
            name: name.to_string(),
        }
    }

    /// The number by which a process function knows it.
    pub fn id(&self) -> usize {
        self.id
    }
}

/// A stream of rows of one schema. The methods add operators to the program; nothing runs until it is executed.
#[derive(Clone)]
pub struct DataStream {
    pub(super) builder: StreamBuilder,
    pub(super) upstream: Vec<Upstream>,
    pub(super) schema: SchemaRef,
    /// The column of the event time.
    pub(super) time: Option<usize>,
}

pub(super) fn check_parallelism(parallelism: usize) -> Result<()> {
    if (1..=MAX_PARALLELISM as usize).contains(&parallelism) {
        return Ok(());
    }
    Err(Error::statement(format!(
        "an operator cannot have {parallelism} subtasks, but 1 to {MAX_PARALLELISM}"
    )))
}

/// The column that is the event time in another schema: the one of that name, if it still holds timestamps.
fn time_in(old: &DataStream, schema: &SchemaRef) -> Option<usize> {
    let index = schema.index_of(old.schema.field(old.time?).name()).ok()?;
    matches!(schema.field(index).data_type(), DataType::Timestamp(_, _)).then_some(index)
}

impl DataStream {
    /// The columns.
    pub fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    pub(super) fn then(&self, operator: OperatorSpec, name: &str, schema: SchemaRef) -> DataStream {
        let time = time_in(self, &schema);
        let node = Node::new(operator, name, schema).with_input(0, &self.upstream);
        self.builder.add(node, time)
    }

    // ---- rows to rows

    /// Keeps the rows for which `predicate` is true.
    ///
    /// # Errors
    /// When the predicate does not fit the stream.
    pub fn filter(&self, predicate: Expr) -> Result<DataStream> {
        let session = &self.builder.session;
        let predicate = session.plan_typed(predicate, &self.schema, &DataType::Boolean)?;
        let operator = OperatorSpec::Filter(FilterSpec {
            predicate,
            projection: None,
        });
        Ok(self.then(operator, "Filter", self.schema()))
    }

    /// Computes one column per expression. The event time stays where a column of its name is.
    ///
    /// # Errors
    /// When an expression does not fit the stream.
    pub fn select(&self, exprs: Vec<Expr>) -> Result<DataStream> {
        let session = &self.builder.session;
        let planned = exprs.into_iter().map(|expr| session.plan_expr(expr, &self.schema));
        let planned = planned.collect::<Result<Vec<_>>>()?;
        let fields: Vec<_> = planned.iter().map(|planned| planned.field.clone()).collect();
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let operator = OperatorSpec::Project(ProjectSpec {
            exprs: planned.into_iter().map(|planned| planned.expr).collect(),
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        Ok(self.then(operator, "Select", schema))
    }

    /// Applies a function to each batch; what it gives has `schema` and as many rows.
    pub fn map(
        &self,
        schema: SchemaRef,
        function: impl Fn(&RecordBatch) -> thalweg_engine::Result<RecordBatch> + Send + Sync + 'static,
    ) -> DataStream {
        let function = move |batch: &RecordBatch| {
            let result = function(batch)?;
            if result.num_rows() == batch.num_rows() {
                return Ok(vec![result]);
            }
            Err(thalweg_engine::EngineError::Plan(format!(
                "map made {} rows of {}; use flat_map",
                result.num_rows(),
                batch.num_rows()
            )))
        };
        let operator = map_batches("Map", Arc::new(function), &schema);
        self.then(operator, "Map", schema)
    }

    /// Applies a function to each batch; what it gives has `schema` and any number of rows.
    pub fn flat_map(
        &self,
        schema: SchemaRef,
        function: impl Fn(&RecordBatch) -> thalweg_engine::Result<Vec<RecordBatch>> + Send + Sync + 'static,
    ) -> DataStream {
        let operator = map_batches("FlatMap", Arc::new(function), &schema);
        self.then(operator, "FlatMap", schema)
    }

    /// The rows of this stream and of others of the same columns, in no particular order.
    ///
    /// # Errors
    /// When the columns differ.
    pub fn union(&self, others: &[&DataStream]) -> Result<DataStream> {
        let mut all = self.clone();
        for other in others {
            self.check_same_program(other)?;
            let types = |schema: &SchemaRef| -> Vec<_> {
                let fields = schema.fields().iter();
                fields
                    .map(|field| (field.name().clone(), field.data_type().clone()))
                    .collect()
            };
            if types(&self.schema) != types(&other.schema) {
                return Err(Error::statement(format!(
                    "streams of different columns cannot be united: {} and {}",
                    self.schema, other.schema
                )));
            }
            if self.time != other.time {
                all.time = None;
            }
            let fields = self.schema.fields().iter().zip(other.schema.fields());
            if fields
                .clone()
                .any(|(one, other)| one.is_nullable() != other.is_nullable())
            {
                return Err(
                    Error::statement("a column of united streams can be NULL in one and not in the other")
                        .with_remedy("select it with the same nullability"),
                );
            }
            all.upstream.extend(other.upstream.iter().cloned());
        }
        Ok(all)
    }

    pub(super) fn check_same_program(&self, other: &DataStream) -> Result<()> {
        if Arc::ptr_eq(&self.builder.nodes, &other.builder.nodes) {
            return Ok(());
        }
        Err(Error::statement("the streams are of different programs")
            .with_remedy("make both with the same StreamBuilder"))
    }

    /// Says how far event time has come where the source could not.
    ///
    /// # Errors
    /// When the strategy does not fit the stream.
    pub fn assign_watermarks(&self, watermarks: WatermarkStrategy) -> Result<DataStream> {
        let (time, watermark) = watermarks.plan(&self.builder.session, &self.schema)?;
        let mut stream = match watermark {
            None => self.clone(),
            Some(watermark) => {
                let operator = OperatorSpec::AssignWatermark(AssignWatermarkSpec { watermark });
                self.then(operator, "Watermarks", self.schema())
            }
        };
        stream.time = time;
        Ok(stream)
    }

    // ---- keys and windows

    /// Rows of equal values in these columns meet in one subtask, with state of their own.
    ///
    /// # Errors
    /// When there is no such column.
    pub fn key_by(&self, columns: &[&str]) -> Result<KeyedStream> {
        for column in columns {
            column_index(column, &self.schema)?;
        }
        self.key_by_exprs(columns.iter().map(|column| named(column)).collect())
    }

    /// The same by expressions.
    ///
    /// # Errors
    /// When there are none, or one does not fit the stream.
    pub fn key_by_exprs(&self, exprs: Vec<Expr>) -> Result<KeyedStream> {
        KeyedStream::new(self, exprs)
    }

    /// Windows over all rows, in one subtask. For windows per key, see [`KeyedStream::window`].
    pub fn window_all(&self, assigner: WindowAssigner) -> WindowedStream {
        WindowedStream::new(self.global(), Vec::new(), assigner)
    }

    /// Windows are of keyed streams: always an error, which says so.
    ///
    /// # Errors
    /// Always.
    pub fn window(&self, _assigner: WindowAssigner) -> Result<WindowedStream> {
        Err(Error::statement("a window needs a keyed stream")
            .with_remedy("use key_by(..) first, or window_all(..) for one window over all rows"))
    }

    /// Applies a function with timers and side outputs to all rows of a subtask; its state is the subtask's.
    ///
    /// # Errors
    /// When two states have one name.
    pub fn process<F: ProcessFunction + 'static>(
        &self,
        states: StateDeclarations,
        output: SchemaRef,
        function: impl Fn(usize) -> F + Send + Sync + 'static,
    ) -> Result<DataStream> {
        let make = move |subtask: usize| Box::new(function(subtask)) as Box<dyn ProcessFunction>;
        self.process_keyed(Vec::new(), states, output, Arc::new(make))
    }

    /// The same, a row at a time.
    ///
    /// # Errors
    /// When two states have one name.
    pub fn process_records<F: RecordFunction + 'static>(
        &self,
        states: StateDeclarations,
        output: SchemaRef,
        function: impl Fn(usize) -> F + Send + Sync + 'static,
    ) -> Result<DataStream> {
        let schema = Arc::clone(&output);
        self.process(states, output, move |subtask| {
            PerRecord::new(function(subtask), Arc::clone(&schema))
        })
    }

    pub(super) fn process_keyed(
        &self,
        keys: Vec<ScalarExpr>,
        states: StateDeclarations,
        output: SchemaRef,
        function: Arc<thalweg_engine::operator::process::MakeProcessFunction>,
    ) -> Result<DataStream> {
        let spec = ProcessSpec {
            inputs: vec![self.process_input(keys, false)],
            states,
            function,
            output: Arc::clone(&output),
        };
        Ok(self.then(OperatorSpec::Custom(spec.operator("Process")?), "Process", output))
    }

    pub(super) fn process_input(&self, keys: Vec<ScalarExpr>, broadcast: bool) -> ProcessInput {
        ProcessInput {
            schema: self.schema(),
            keys,
            time: self.time,
            broadcast,
        }
    }

    // ---- exchanges

    pub(super) fn partitioned(&self, partitioning: Partitioning) -> DataStream {
        let mut stream = self.clone();
        for upstream in &mut stream.upstream {
            upstream.partitioning = Some(partitioning.clone());
        }
        stream
    }

    /// Subtask `i` to subtask `i` of the next operator, which has as many.
    pub fn forward(&self) -> DataStream {
        self.partitioned(Partitioning::Forward)
    }

    /// Batches in turn to all subtasks of the next operator.
    pub fn rebalance(&self) -> DataStream {
        self.partitioned(Partitioning::Rebalance)
    }

    /// Every row to every subtask of the next operator.
    pub fn broadcast(&self) -> DataStream {
        self.partitioned(Partitioning::Broadcast)
    }

    /// All rows to the first subtask of the next operator.
    pub fn global(&self) -> DataStream {
        self.partitioned(Partitioning::Global)
    }

    /// A function appends the subtask of each row of a batch, of so many.
    pub fn partition_custom(
        &self,
        function: impl Fn(&RecordBatch, usize, &mut Vec<u32>) -> thalweg_engine::Result<()> + Send + Sync + 'static,
    ) -> DataStream {
        let function = CustomPartition(Arc::new(function));
        self.partitioned(Partitioning::Custom(Opaque(Arc::new(function))))
    }

    /// Rows by their place between `bounds`, ascending in the order of `keys`: the next operator has one subtask more
    /// than there are bounds.
    ///
    /// # Errors
    /// When a key does not fit the stream, or a bound the keys.
    pub fn range_partition(&self, keys: Vec<SortExpr>, bounds: Vec<Vec<ScalarValue>>) -> Result<DataStream> {
        let session = &self.builder.session;
        let mut planned = Vec::with_capacity(keys.len());
        for key in keys {
            planned.push(SortKey {
                expr: session.plan_expr(key.expr, &self.schema)?.expr,
                descending: !key.asc,
                nulls_first: key.nulls_first,
            });
        }
        check_parallelism(bounds.len() + 1)?;
        let empty: SchemaRef = Arc::new(Schema::empty());
        let mut literals = Vec::with_capacity(bounds.len());
        for bound in bounds {
            if bound.len() != planned.len() {
                return Err(Error::statement(
                    "a bound of a range partitioning needs one value per key",
                ));
            }
            let mut row = Vec::with_capacity(bound.len());
            for (value, key) in bound.into_iter().zip(&planned) {
                let wanted = key.expr.expr.data_type(&self.schema)?;
                row.push(literal(value.cast_to(&wanted)?, &empty));
            }
            literals.push(row);
        }
        Ok(self.partitioned(Partitioning::Range {
            keys: planned,
            bounds: literals,
        }))
    }

    // ---- the operator that made the stream

    fn operator(&self, what: &str) -> Result<usize> {
        match self.upstream.as_slice() {
            [upstream] if upstream.side.is_none() && upstream.partitioning.is_none() => Ok(upstream.node),
            _ => Err(Error::statement(format!(
                "{what} is of one operator, not of a union, a side output or an exchange"
            ))),
        }
    }

    /// How many subtasks the operator has.
    ///
    /// # Errors
    /// When that is more than it can have, or this is not an operator's stream.
    pub fn set_parallelism(self, parallelism: usize) -> Result<Self> {
        check_parallelism(parallelism)?;
        let node = self.operator("the parallelism")?;
        self.builder.change(node, |node| node.parallelism = Some(parallelism))?;
        Ok(self)
    }

    /// What the operator is called in plans, messages and metrics.
    ///
    /// # Errors
    /// When this is not an operator's stream.
    pub fn name(self, name: &str) -> Result<Self> {
        let node = self.operator("a name")?;
        self.builder.change(node, |node| node.name = name.to_string())?;
        Ok(self)
    }

    /// The operator's id, which stays when the program changes: by it, its state is found again.
    ///
    /// # Errors
    /// When another operator has it, or this is not an operator's stream.
    pub fn uid(self, uid: &str) -> Result<Self> {
        let node = self.operator("a uid")?;
        self.builder.change(node, |node| node.uid = Some(uid.to_string()))?;
        Ok(self)
    }

    /// The operator runs in threads of its own.
    ///
    /// # Errors
    /// When this is not an operator's stream.
    pub fn disable_chaining(self) -> Result<Self> {
        let node = self.operator("chaining")?;
        self.builder.change(node, |node| node.chaining = Chaining::Never)?;
        Ok(self)
    }

    /// The operator does not run in the threads of the one before it.
    ///
    /// # Errors
    /// When this is not an operator's stream.
    pub fn start_new_chain(self) -> Result<Self> {
        let node = self.operator("chaining")?;
        self.builder.change(node, |node| node.chaining = Chaining::Head)?;
        Ok(self)
    }

    /// How long the exchange to the next operator may hold rows back, in ms: 0 = not at all, -1 = until a batch is full.
    /// The two operators are not chained.
    pub fn set_buffer_timeout(mut self, timeout_ms: i64) -> Self {
        for upstream in &mut self.upstream {
            upstream.buffer_timeout_ms = Some(timeout_ms);
        }
        self
    }

    /// What the operator hands to a side output; it has `schema`, for late rows the operator's input's.
    ///
    /// # Errors
    /// When this is not an operator's stream.
    pub fn side_output(&self, tag: &OutputTag, schema: SchemaRef) -> Result<DataStream> {
        let node = self.operator(&format!("the side output '{}'", tag.name))?;
        let upstream = Upstream {
            node,
            side: Some(tag.id),
            partitioning: None,
            buffer_timeout_ms: None,
        };
        let mut stream = DataStream {
            builder: self.builder.clone(),
            upstream: vec![upstream],
            time: None,
            schema,
        };
        stream.time = time_in(self, &stream.schema);
        Ok(stream)
    }

    // ---- ends

    fn sink(&self, sink: SinkSpec, name: &str) -> Result<DataStream> {
        let resolver = ConnectorResolver {
            job: self.builder.session.planning_job(),
        };
        let writers = thalweg_optimizer::SinkResolver::max_writers(&resolver, &sink)?;
        let mut node = Node::new(OperatorSpec::Sink(sink), name, self.schema()).with_input(0, &self.upstream);
        node.parallelism_max = writers.unwrap_or(node.parallelism_max);
        Ok(self.builder.add(node, None))
    }

    /// Prints the rows. The stream that is given back is the sink, to be named or given a parallelism.
    ///
    /// # Errors
    /// When the rows cannot be printed.
    pub fn print(&self) -> Result<DataStream> {
        let sink = SinkSpec {
            connector: "print".into(),
            options: Default::default(),
            schema: SchemaSpec(self.schema()),
        };
        self.sink(sink, "Sink: print")
    }

    /// Writes the rows to a table of the session whose connector can be written to.
    ///
    /// # Errors
    /// When there is no such table, it cannot be written to, or has other columns.
    pub fn sink_to_table(&self, name: &str) -> Result<DataStream> {
        let session = &self.builder.session;
        let table = session.block_on(session.context().table_provider(name))?;
        let types =
            |schema: &SchemaRef| -> Vec<_> { schema.fields().iter().map(|field| field.data_type().clone()).collect() };
        if types(&table.schema()) != types(&self.schema) {
            return Err(Error::statement(format!(
                "the table '{name}' has the columns {}, the stream {}",
                table.schema(),
                self.schema
            )));
        }
        let sink = thalweg_connectors::sink_of(table.as_ref())?.ok_or_else(|| {
            Error::unsupported(format!("a stream cannot be written to the table '{name}'"))
                .with_remedy("write to a table of a connector: CREATE TABLE .. WITH ('connector' = ..)")
        })?;
        self.sink(sink, &format!("Sink: {name}"))
    }

    /// Runs the program, with all its sinks, and gives this stream's rows as they come.
    ///
    /// # Errors
    /// When the program is wrong.
    pub fn collect(&self) -> Result<QueryResult> {
        let nodes = with_collector(&self.builder.nodes.lock(), &self.upstream, &self.schema);
        self.builder.collect(&nodes, &self.schema)
    }

    /// Runs the program until its input ends and gives this stream's rows.
    ///
    /// # Errors
    /// When the program is wrong, or what it fails with.
    pub fn execute_and_collect(&self) -> Result<Vec<RecordBatch>> {
        self.collect()?.collect()
    }
}
