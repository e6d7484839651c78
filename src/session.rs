//! [`Session`]: SQL in, rows out.
//!
//! A statement is parsed and planned by DataFusion, its uncorrelated scalar subqueries are run first and enter as
//! literals, and what remains is lowered to a job graph that runs on our runtime.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use datafusion::catalog::TableProvider;
use datafusion::common::{ScalarValue, TableReference};
use datafusion::execution::SessionState;
use datafusion::execution::context::{SessionConfig as DataFusionConfig, SessionContext};
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::session_state::SessionStateBuilder;
use datafusion::logical_expr::{DdlStatement, LogicalPlan, Statement as LogicalStatement};
use datafusion::sql::parser::Statement as DFStatement;
use object_store::ObjectStore;
use parking_lot::RwLock;
use thalweg_engine::runtime::BudgetPool;
use thalweg_engine::time::SystemClock;
use thalweg_memory::{MemoryManager, SegmentPool, SpillDirectory, sweep};
use thalweg_optimizer::logical::{bind_temporal_joins, tidy_temporal_joins, without_watermarks};
use url::Url;

use crate::config::SessionConfig;
use crate::error::{Error, Result};
use crate::json_value::json_value;
use crate::large_stack::on_large_stack;
use crate::local_store::PooledLocalFileSystem;
use crate::proctime::proctime;
use crate::relations::StreamRelations;
use crate::result::{Outcome, QueryResult};
use crate::row_fields::RowFields;
use crate::script::{self, ScriptStatement};
use crate::settings;
use crate::sql_dialect::{count_copies, refuse_open_distinct_from, refuse_wrong_answers};
use crate::statement::{self, Statement};
use crate::stream_ddl::insert_into_physical;
use crate::streaming::result_schema;

/// Threads for I/O; computation runs on the subtasks' own threads.
const IO_THREADS: usize = 2;
/// Threads for file reads and writes at most; they come on demand and go after ten idle seconds.
const FILE_THREADS: usize = 16;
/// The buffers of readers that are kept for the next read: at most this part of the budget, and so many bytes.
const IDLE_SEGMENTS_IN_BUDGET: usize = 16;
const IDLE_SEGMENT_BYTES_MAX: usize = 128 << 20;

pub(crate) struct Inner {
    pub(crate) context: SessionContext,
    pub(crate) config: RwLock<SessionConfig>,
    pub(crate) memory: MemoryManager,
    pub(crate) clock: Arc<SystemClock>,
    /// Where DataFusion's operators spill.
    _foreign_spill: SpillDirectory,
    // Last: everything above may still use it while it is dropped.
    /// Who is told what users should know of jobs that go on.
    pub(crate) notices: RwLock<Option<Arc<thalweg_engine::runtime::Notices>>>,
    pub(crate) io: tokio::runtime::Runtime,
}

/// An embedded engine: a catalog, a memory budget and the means to run queries. Clones are the same session. The
/// methods block; from asynchronous code, call them on a thread of your own.
#[derive(Clone)]
pub struct Session {
    pub(crate) inner: Arc<Inner>,
}

impl Session {
    /// A session of its own catalog and memory budget.
    ///
    /// # Errors
    /// When the configuration is not valid or the I/O threads cannot be started.
    pub fn new(config: SessionConfig) -> Result<Self> {
        settings::set(
            &mut config.clone(),
            "parallelism.default",
            &config.parallelism.to_string(),
        )?;
        let io = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(IO_THREADS)
            .max_blocking_threads(FILE_THREADS)
            .thread_name("tw-io")
            .enable_all()
            .build()
            .map_err(|source| thalweg_engine::EngineError::Io {
                path: "the I/O threads".into(),
                source,
            })?;
        let memory = MemoryManager::new(config.memory_bytes);
        // What processes left that were killed.
        sweep(&config.spill_directory);
        let foreign_spill = SpillDirectory::new(&config.spill_directory, config.spill_compression);
        let foreign_directory = foreign_spill.ensure().map_err(thalweg_engine::EngineError::from)?;
        let runtime = RuntimeEnvBuilder::new()
            .with_memory_pool(Arc::new(BudgetPool::new(&memory)))
            // Where DataFusion's operators spill.
            .with_temp_file_path(foreign_directory)
            // Its cache of listings never expires: files that others write would stay unseen.
            .with_object_list_cache_limit(0)
            .build_arc()?;
        let mut options = DataFusionConfig::new()
            .with_target_partitions(config.parallelism)
            .with_batch_size(config.batch_size)
            .with_information_schema(true);
        // Without this, a file is cut at line ends that may lie inside quotes.
        options.options_mut().catalog.newlines_in_values = true;
        // The statistics of Parquet footers are what the choice of join sides goes by.
        options.options_mut().execution.collect_statistics = true;
        let state = SessionStateBuilder::new()
            .with_config(options)
            .with_runtime_env(runtime)
            .with_expr_planners(vec![Arc::new(RowFields)])
            .with_default_features()
            .with_relation_planners(vec![Arc::new(StreamRelations)])
            .build();
        let clock = Arc::new(SystemClock::new());
        let context = SessionContext::new_with_state(state).enable_url_table();
        context.register_udf(json_value());
        context.register_udf(proctime(Arc::clone(&clock) as _));
        let pool = SegmentPool::new((config.memory_bytes / IDLE_SEGMENTS_IN_BUDGET).min(IDLE_SEGMENT_BYTES_MAX));
        if let Ok(root) = Url::parse("file://") {
            context.register_object_store(&root, Arc::new(PooledLocalFileSystem::new(pool)));
        }
        Ok(Self {
            inner: Arc::new(Inner {
                context,
                config: RwLock::new(config),
                memory,
                clock,
                _foreign_spill: foreign_spill,
                notices: RwLock::new(None),
                io,
            }),
        })
    }

    /// Hands `take` what users should know of jobs that go on, a line each: that one has failed and starts again, or goes on from
    /// a checkpoint.
    pub fn on_notice(&self, take: impl Fn(&str) + Send + Sync + 'static) {
        *self.inner.notices.write() = Some(Arc::new(take));
    }

    /// Splits a script into statements; quotes and comments are respected.
    ///
    /// # Errors
    /// When a quote or comment is not closed.
    pub fn split(text: &str) -> Result<Vec<ScriptStatement>> {
        script::split(text)
    }

    /// Whether `text` ends with the semicolon of its last statement.
    pub fn is_complete(text: &str) -> bool {
        script::is_complete(text)
    }

    /// Plans and starts one statement.
    ///
    /// # Errors
    /// What is wrong with the statement. Errors of the data come with the rows.
    pub fn execute(&self, sql: &str) -> Result<Outcome> {
        on_large_stack(sql, || self.execute_statement(sql))
            .map_err(|error| error.suggest_tables(&self.table_names()).at_end_of(sql))
    }

    /// The same as [`Session::execute`]: `session.sql("..")?.collect()?`.
    ///
    /// # Errors
    /// As for `execute`.
    pub fn sql(&self, sql: &str) -> Result<Outcome> {
        self.execute(sql)
    }

    /// The columns that a query gives, without running it.
    ///
    /// # Errors
    /// What is wrong with the statement.
    pub fn result_schema(&self, sql: &str) -> Result<SchemaRef> {
        on_large_stack(sql, || {
            let Statement::Plain(statement) = statement::parse(sql)? else {
                return Err(Error::unsupported("only a query has columns"));
            };
            Ok(Arc::new(self.plan(*statement)?.schema().as_arrow().clone()))
        })
    }

    /// The plan of one query as text: a tree of operators and exchanges.
    ///
    /// # Errors
    /// What is wrong with the statement.
    pub fn explain(&self, sql: &str) -> Result<String> {
        let explain = || {
            let plan = self.plan(statement::parse_plain(sql)?)?;
            let plan = match plan {
                LogicalPlan::Explain(explain) => Arc::unwrap_or_clone(explain.plan),
                LogicalPlan::Analyze(analyze) => Arc::unwrap_or_clone(analyze.input),
                other => other,
            };
            let graphs = self.explain_plan(&plan)?.into_iter().skip(1);
            Ok(graphs
                .map(|(title, text)| format!("{title}\n{text}"))
                .collect::<Vec<_>>()
                .join("\n"))
        };
        on_large_stack(sql, explain).map_err(|error: Error| error.suggest_tables(&self.table_names()).at_end_of(sql))
    }

    /// Makes `table` known as `name`, in place of what had the name.
    ///
    /// # Errors
    /// When the name is in a schema that does not exist.
    pub fn register_table(&self, name: &str, table: Arc<dyn TableProvider>) -> Result<()> {
        let name = TableReference::parse_str(name);
        self.context().deregister_table(name.clone())?;
        self.context().register_table(name, table)?;
        Ok(())
    }

    /// Makes batches of one schema known as the table `name`.
    ///
    /// # Errors
    /// When a batch has another schema.
    pub fn register_batches(&self, name: &str, schema: SchemaRef, batches: Vec<RecordBatch>) -> Result<()> {
        let table = datafusion::catalog::MemTable::try_new(schema, self.spread(batches))?;
        self.register_table(name, Arc::new(table))
    }

    /// Makes URLs that begin with `url` (scheme and host) go to `store`.
    pub fn register_object_store(&self, url: &Url, store: Arc<dyn ObjectStore>) {
        self.context().register_object_store(url, store);
    }

    /// Names for completion: tables, their columns, and functions.
    pub fn names(&self) -> Vec<String> {
        let state = self.state();
        let mut names = self.table_names();
        for table in names.clone() {
            if let Ok(provider) = self.block_on(self.context().table_provider(table.as_str())) {
                names.extend(provider.schema().fields().iter().map(|field| field.name().clone()));
            }
        }
        names.extend(state.scalar_functions().keys().cloned());
        names.extend(state.aggregate_functions().keys().cloned());
        names.extend(state.window_functions().keys().cloned());
        names.sort_unstable();
        names.dedup();
        names
    }

    /// The tables of the default schema and, qualified, of the others.
    pub fn table_names(&self) -> Vec<String> {
        let context = self.context();
        let mut names = Vec::new();
        for catalog_name in context.catalog_names() {
            let Some(catalog) = context.catalog(&catalog_name) else {
                continue;
            };
            for schema_name in catalog
                .schema_names()
                .into_iter()
                .filter(|name| name != "information_schema")
            {
                let Some(schema) = catalog.schema(&schema_name) else {
                    continue;
                };
                names.extend(
                    schema
                        .table_names()
                        .into_iter()
                        .map(|table| match schema_name.as_str() {
                            "public" => table,
                            _ => format!("{schema_name}.{table}"),
                        }),
                );
            }
        }
        names.sort_unstable();
        names
    }

    /// The memory budget, for looking at what is reserved.
    pub fn memory(&self) -> &MemoryManager {
        &self.inner.memory
    }

    /// DataFusion's context behind the session: its catalog and functions. Queries run through it are DataFusion's own.
    pub fn context(&self) -> &SessionContext {
        &self.inner.context
    }

    fn execute_statement(&self, sql: &str) -> Result<Outcome> {
        if let Some(command) = settings::parse(sql)? {
            return self.execute_setting(command);
        }
        let statement = match statement::parse(sql)? {
            Statement::Plain(statement) => *statement,
            Statement::CreateTable { statement, clauses } => {
                return self.create_stream_table(&statement, &clauses, sql);
            }
            Statement::Set(inserts) => return self.execute_set(inserts),
        };
        if let Some(outcome) = self.create_connector_table(&statement)? {
            return Ok(outcome);
        }
        match self.plan(statement)? {
            LogicalPlan::Ddl(DdlStatement::CreateMemoryTable(create)) => self.create_memory_table(create),
            LogicalPlan::Ddl(ddl) => {
                let done = crate::ddl::done_message(&ddl);
                let name = ddl.name().to_string();
                let location = match &ddl {
                    DdlStatement::CreateExternalTable(create) => create.locations.join(", "),
                    _ => String::new(),
                };
                let rest = self
                    .block_on(self.context().execute_logical_plan(LogicalPlan::Ddl(ddl)))
                    .map_err(|error| Error::from(error).at_location(&location))?;
                match rest.logical_plan() {
                    LogicalPlan::Ddl(_) => Err(Error::unsupported(format!("{name} is not supported"))
                        .with_remedy("docs/sql.md lists the statements")),
                    _ => Ok(Outcome::Done(done)),
                }
            }
            LogicalPlan::Statement(statement) => self.execute_session_statement(statement),
            LogicalPlan::Explain(explain) => Ok(Outcome::Rows(Self::plan_rows(self.explain_plan(&explain.plan)?)?)),
            LogicalPlan::Analyze(analyze) => {
                let rows = self.explain_analyze(Arc::unwrap_or_clone(analyze.input))?;
                Ok(Outcome::Rows(Self::plan_rows(rows)?))
            }
            plan => Ok(Outcome::Rows(self.run(&plan)?)),
        }
    }

    fn execute_session_statement(&self, statement: LogicalStatement) -> Result<Outcome> {
        match statement {
            LogicalStatement::Execute(_) => {
                let prepared = self.context().execute_logical_plan(LogicalPlan::Statement(statement));
                Ok(Outcome::Rows(
                    self.run(&self.block_on(prepared)?.into_unoptimized_plan())?,
                ))
            }
            LogicalStatement::SetVariable(ref set) if !set.variable.starts_with("datafusion.") => {
                let value = set.value.clone();
                self.execute_setting(settings::Command::Set {
                    key: set.variable.clone(),
                    value,
                })
            }
            LogicalStatement::SetVariable(_)
            | LogicalStatement::ResetVariable(_)
            | LogicalStatement::Prepare(_)
            | LogicalStatement::Deallocate(_) => {
                self.block_on(self.context().execute_logical_plan(LogicalPlan::Statement(statement)))?;
                Ok(Outcome::Done(String::new()))
            }
            LogicalStatement::TransactionStart(_) | LogicalStatement::TransactionEnd(_) => {
                Err(Error::unsupported("transactions are not supported")
                    .with_remedy("each statement stands for itself"))
            }
        }
    }

    fn execute_setting(&self, command: settings::Command) -> Result<Outcome> {
        match command {
            settings::Command::ShowAll => {
                let rows = settings::all(&self.inner.config.read());
                let rows = rows.into_iter().map(|(key, value)| (key.to_string(), value)).collect();
                Ok(Outcome::Rows(Self::setting_rows(rows)?))
            }
            settings::Command::Set { key, value } => {
                let mut config = self.inner.config.write();
                if !settings::set(&mut config, &key, &value)? {
                    drop(config);
                    self.context()
                        .state_ref()
                        .write()
                        .config_mut()
                        .options_mut()
                        .set(&key, &value)?;
                    return Ok(Outcome::Done(String::new()));
                }
                self.follow(&config)?;
                Ok(Outcome::Done(String::new()))
            }
            settings::Command::Reset { key } => {
                let mut config = self.inner.config.write();
                let defaults = settings::all(&SessionConfig::default());
                if let Some((_, value)) = defaults.into_iter().find(|(name, _)| *name == key) {
                    settings::set(&mut config, &key, &value)?;
                    self.follow(&config)?;
                    return Ok(Outcome::Done(String::new()));
                }
                settings::set(&mut config, &key, "").map(|_| Outcome::Done(String::new()))
            }
        }
    }

    /// Tells DataFusion's planner what it must know of our settings.
    fn follow(&self, config: &SessionConfig) -> Result<()> {
        let state = self.context().state_ref();
        let mut state = state.write();
        let options = state.config_mut().options_mut();
        options.execution.target_partitions = config.parallelism;
        options.set("datafusion.execution.batch_size", &config.batch_size.to_string())?;
        Ok(())
    }

    pub(crate) fn plan(&self, mut statement: DFStatement) -> Result<LogicalPlan> {
        let state = self.state();
        self.name_inserted_columns(&mut statement)?;
        if let DFStatement::Statement(statement) = &statement {
            refuse_open_distinct_from(statement)?;
        }
        let tables = state.resolve_table_references(&statement).unwrap_or_default();
        let plan = self.block_on(state.statement_to_plan(statement)).and_then(count_copies);
        let plan = plan.and_then(bind_temporal_joins);
        let plan = plan.map_err(|error| {
            // A file in FROM is opened while the statement is planned.
            let file = tables
                .iter()
                .map(TableReference::table)
                .find(|name| name.contains(['/', '.']));
            let error = Error::from(error);
            match file {
                Some(file) => error.at_location(file),
                None => error,
            }
        })?;
        refuse_wrong_answers(&plan)?;
        insert_into_physical(plan)
    }

    pub(crate) fn optimize(&self, plan: &LogicalPlan, streaming: bool) -> Result<LogicalPlan> {
        if streaming {
            return self.optimize_streaming(plan);
        }
        // In batch mode all rows are there: filters may pass where watermarks would be taken.
        let plan = without_watermarks(plan.clone())?;
        Ok(tidy_temporal_joins(self.state().optimize(&plan)?)?)
    }

    /// Optimizes and starts a query.
    pub(crate) fn run(&self, plan: &LogicalPlan) -> Result<QueryResult> {
        self.run_in_mode(plan, self.is_streaming(plan)?)
    }

    /// Starts a query whose complete answer is needed before anything else can happen: in batch mode, whatever the mode.
    pub(crate) fn run_complete(&self, plan: &LogicalPlan, what: &str) -> Result<QueryResult> {
        if self.is_unbounded(plan)? {
            return Err(
                Error::unsupported(format!("{what} reads a table without end: it would never be complete"))
                    .with_remedy("write it as a JOIN or with windows, or give the table an end"),
            );
        }
        self.run_in_mode(plan, false)
    }

    fn run_in_mode(&self, plan: &LogicalPlan, streaming: bool) -> Result<QueryResult> {
        let optimized = self.optimize(plan, streaming)?;
        let schema: SchemaRef = Arc::new(optimized.schema().as_arrow().clone());
        let resolved = self.resolve_scalar_subqueries(optimized, streaming)?;
        let job = self.submit(&resolved, streaming)?;
        let schema = result_schema(job.graph(), &schema);
        Ok(QueryResult::of_job(job, schema))
    }

    /// Runs the uncorrelated scalar subqueries of a plan, innermost first, and puts their values in their place.
    pub(crate) fn resolve_scalar_subqueries(&self, plan: LogicalPlan, streaming: bool) -> Result<LogicalPlan> {
        let subqueries = thalweg_optimizer::uncorrelated_scalar_subqueries(&plan);
        if subqueries.is_empty() {
            return Ok(plan);
        }
        let mut values = HashMap::new();
        for subquery in subqueries {
            let value = self.scalar(subquery.subquery.as_ref())?;
            values.insert(subquery, value);
        }
        let plan = thalweg_optimizer::substitute(plan, &values)?;
        // A value may let a filter move into a scan, or show that a branch is empty.
        self.optimize(&plan, streaming)
    }

    fn scalar(&self, plan: &LogicalPlan) -> Result<ScalarValue> {
        let mut value = None;
        let rows = self.run_complete(plan, "a scalar subquery")?;
        let data_type = rows.schema().field(0).data_type().clone();
        for batch in rows {
            let batch = batch?;
            if batch.num_rows() > 1 || (value.is_some() && batch.num_rows() > 0) {
                return Err(Error::new(
                    crate::error::ErrorKind::Execution,
                    "a scalar subquery returned more than one row",
                )
                .with_remedy("add LIMIT 1 or an aggregate, or use IN"));
            }
            if batch.num_rows() == 1 {
                value = Some(ScalarValue::try_from_array(batch.column(0), 0)?);
            }
        }
        Ok(match value {
            Some(value) => value,
            None => ScalarValue::try_new_null(&data_type)?,
        })
    }
    pub(crate) fn state(&self) -> SessionState {
        self.context().state()
    }

    pub(crate) fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.inner.io.block_on(future)
    }

    /// Batches in as many partitions as there are subtasks to read them.
    pub(crate) fn spread(&self, batches: Vec<RecordBatch>) -> Vec<Vec<RecordBatch>> {
        let count = self.inner.config.read().parallelism.max(1);
        let mut partitions = vec![Vec::new(); count];
        for (index, batch) in batches.into_iter().enumerate() {
            partitions[index % count].push(batch);
        }
        partitions
    }
}
