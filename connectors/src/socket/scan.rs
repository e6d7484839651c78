//! The endless scan of a socket: one split.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::DataFusionError;
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::metrics::{Count, ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use thalweg_engine::EngineError;

use crate::formats::Decoder;
use crate::socket::Socket;
use crate::socket::read::{Connection, records};

/// Reads a socket. Its metric `bad_records` counts the records that were set aside.
#[derive(Debug)]
pub(super) struct SocketScan {
    socket: Arc<Socket>,
    projection: Vec<usize>,
    schema: SchemaRef,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl SocketScan {
    /// Of these columns of the table; all when `None`.
    pub(super) fn try_new(socket: Arc<Socket>, projection: Option<&Vec<usize>>) -> Result<Self> {
        let all = || (0..socket.schema.fields().len()).collect();
        let projection: Vec<usize> = projection.cloned().unwrap_or_else(all);
        let schema = Arc::new(socket.schema.project(&projection)?);
        let properties = PlanProperties::new(
            EquivalenceProperties::new(Arc::clone(&schema)),
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Unbounded {
                requires_infinite_memory: false,
            },
        );
        Ok(Self {
            socket,
            projection,
            schema,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }
}

impl DisplayAs for SocketScan {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Socket { address, format, .. } = self.socket.as_ref();
        write!(f, "Socket: address={address}, format={}", format.format.name())
    }
}

impl ExecutionPlan for SocketScan {
    fn name(&self) -> &str {
        "Socket"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![]
    }

    fn apply_expressions(
        &self,
        _f: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn with_new_children(self: Arc<Self>, _children: Vec<Arc<dyn ExecutionPlan>>) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn replace_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, task: Arc<TaskContext>) -> Result<SendableRecordBatchStream> {
        let socket = self.socket.as_ref();
        let reading = Reading {
            decoder: socket.decoder().map_err(external)?,
            connection: Connection::open(socket.address.clone(), socket.delimiter),
            delimiter: socket.delimiter,
            projection: self.projection.clone(),
            batch_rows: task.session_config().batch_size().max(1),
            ready: VecDeque::new(),
            bad_records: MetricBuilder::new(&self.metrics).counter("bad_records", partition),
        };
        let batches = futures::stream::try_unfold(reading, |mut reading| async move {
            let batch = reading.next().await?;
            Ok(batch.map(|batch| (batch, reading)))
        });
        Ok(Box::pin(RecordBatchStreamAdapter::new(
            Arc::clone(&self.schema),
            batches,
        )))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}

/// A connection being read.
struct Reading {
    decoder: Decoder,
    connection: Connection,
    delimiter: u8,
    projection: Vec<usize>,
    batch_rows: usize,
    /// Decoded and not yet taken, where more rows came at once than go in a batch.
    ready: VecDeque<RecordBatch>,
    bad_records: Count,
}

impl Reading {
    async fn next(&mut self) -> Result<Option<RecordBatch>> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(batch));
            }
            match self.connection.next().await? {
                Some(bytes) => self.decode(&bytes)?,
                None => return Ok(None),
            }
        }
    }

    fn decode(&mut self, bytes: &[u8]) -> Result<()> {
        let records: Vec<&[u8]> = records(bytes, self.delimiter).collect();
        let before = self.decoder.bad_records();
        for records in records.chunks(self.batch_rows) {
            let batch = self.decoder.decode(records).map_err(external)?;
            // A message of a changelog may hold several rows.
            for start in (0..batch.num_rows()).step_by(self.batch_rows) {
                let rows = self.batch_rows.min(batch.num_rows() - start);
                self.ready
                    .push_back(batch.slice(start, rows).project(&self.projection)?);
            }
        }
        self.bad_records.add((self.decoder.bad_records() - before) as usize);
        Ok(())
    }
}

fn external(error: EngineError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}
