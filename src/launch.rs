//! From a plan to a running job: the settings as the optimizer and the runtime want them.

use std::sync::Arc;
use std::time::Duration;

use datafusion::logical_expr::LogicalPlan;
use thalweg_engine::exchange::BufferTimeout;
use thalweg_engine::operator::SinkJob;
use thalweg_engine::plan::{JobGraph, decode_job_graph, encode_job_graph};
use thalweg_engine::runtime::{Environment, JobHandle, RestartStrategy, submit};
use thalweg_optimizer::LoweringOptions;

use crate::config::SessionConfig;
use crate::error::Result;
use crate::resolver::{ConnectorResolver, ScanDoctor};
use crate::session::Session;
use crate::streaming::STREAM_BUFFER_TIMEOUT_MS;

/// What may wait in the channels of one input of one subtask, in bytes.
const INPUT_CREDIT_BYTES: usize = 8 << 20;

impl Session {
    pub(crate) fn lower(&self, plan: &LogicalPlan, streaming: bool) -> Result<JobGraph> {
        if streaming {
            return self.lower_streaming(std::slice::from_ref(plan));
        }
        let state = self.state();
        let options = self.lowering_options(&self.config());
        Ok(self.block_on(thalweg_optimizer::lower(plan, &state, &options))?)
    }

    /// The settings as they are now.
    pub(crate) fn config(&self) -> SessionConfig {
        self.inner.config.read().clone()
    }

    /// What the optimizer must know of the settings.
    pub(crate) fn lowering_options(&self, config: &SessionConfig) -> LoweringOptions {
        let job = self.planning_job();
        let mut options = LoweringOptions::new(config.parallelism, Arc::new(ConnectorResolver { job }));
        options.broadcast_threshold_bytes = config.broadcast_threshold_bytes;
        options.blocking_exchanges = config.blocking_exchanges;
        options.runtime_filters = config.runtime_filters;
        options.runtime_filter_min_rows = config.runtime_filter_min_rows;
        options
    }

    /// Lowers a plan without scalar subqueries and starts it.
    pub(crate) fn submit(&self, plan: &LogicalPlan, streaming: bool) -> Result<JobHandle> {
        self.block_on(crate::resolver::check_files(plan, self.state().runtime_env()))?;
        let graph = self.lower(plan, streaming)?;
        self.start(graph, streaming)
    }

    /// Starts a job.
    pub(crate) fn start(&self, mut graph: JobGraph, streaming: bool) -> Result<JobHandle> {
        let mut environment = self.environment();
        if streaming {
            let timeout = self.config().buffer_timeout_ms.unwrap_or(STREAM_BUFFER_TIMEOUT_MS);
            environment.buffer_timeout = BufferTimeout::from_ms(timeout);
            environment.exchange_bytes = Some(self.config().segment_bytes);
        }
        if self.inner.config.read().serialize_job_graphs {
            graph = decode_job_graph(&encode_job_graph(&graph)?, Arc::clone(&environment.task))?;
        }
        if streaming {
            return self.start_streaming(graph, environment);
        }
        environment.restart = self.config().checkpoints.restart_strategy(false);
        Ok(submit(graph, &environment)?)
    }

    pub(crate) fn environment(&self) -> Environment {
        let config = self.inner.config.read();
        Environment {
            memory: self.inner.memory.clone(),
            io: self.inner.io.handle().clone(),
            clock: Arc::clone(&self.inner.clock) as _,
            task: self.state().task_ctx(),
            sinks: thalweg_connectors::sinks()
                .into_iter()
                .map(|sink| (sink.name().to_string(), sink))
                .collect(),
            sources: Some(Arc::new(thalweg_connectors::Sources)),
            diagnosis: Some(Arc::new(ScanDoctor {
                io: self.inner.io.handle().clone(),
            })),
            spill_parent: config.spill_directory.clone(),
            spill_compression: config.spill_compression,
            batch_size: config.batch_size,
            buffer_timeout: BufferTimeout::from_ms(config.buffer_timeout_ms.unwrap_or(-1)),
            input_credit_bytes: INPUT_CREDIT_BYTES,
            latency_interval: config.latency_interval_ms.map(Duration::from_millis),
            exchange_bytes: None,
            checkpointing: None,
            wal_directory: None,
            keep: None,
            notices: self.inner.notices.read().clone(),
            restart: RestartStrategy::None,
        }
    }

    /// For connectors, when a plan is made.
    pub(crate) fn planning_job(&self) -> SinkJob {
        SinkJob {
            job: "plan".into(),
            io: self.inner.io.handle().clone(),
            runtime: Arc::clone(self.state().runtime_env()),
            clock: Arc::clone(&self.inner.clock) as _,
            endless: false,
            checkpointed: None,
        }
    }
}
