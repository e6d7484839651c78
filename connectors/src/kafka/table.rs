//! The table over topics, and the plan of its scan.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::common::{DataFusionError, internal_err, plan_err};
use datafusion::datasource::TableType;
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Expr;
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType, ReplaceChildrenOptions};
use datafusion::physical_plan::metrics::{ExecutionPlanMetricsSet, MetricBuilder, MetricsSet};
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::{DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties};
use futures::StreamExt;
use parking_lot::Mutex;
use rdkafka::consumer::BaseConsumer;
use thalweg_engine::data::with_row_kind;
use thalweg_engine::operator::{SplitId, SplitSource};
use thalweg_engine::plan::{SchemaSpec, SinkSpec};
use thalweg_engine::{EngineError, Result};

use crate::kafka::client::{KafkaContext, consumer};
use crate::kafka::columns::Columns;
use crate::kafka::options::{Flavor, KafkaOptions, Payload, Topics};
use crate::kafka::registry::Registry;
use crate::kafka::rows::Rows;
use crate::kafka::source::{KafkaSource, is_bounded, splits};
use crate::kafka::start::{Bound, Start};

/// All that is declared of a table.
pub(super) struct KafkaSpec {
    pub(super) options: KafkaOptions,
    pub(super) columns: Columns,
    /// The columns, and the row kind when the format is a changelog.
    pub(super) schema: SchemaRef,
    pub(super) registry: Option<Arc<Registry>>,
    /// Asks about topics; made when it is first needed.
    asking: Mutex<Option<Arc<BaseConsumer<KafkaContext>>>>,
}

impl fmt::Debug for KafkaSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "KafkaSpec({})", self.name())
    }
}

impl KafkaSpec {
    /// Reads what is declared.
    ///
    /// # Errors
    /// When an option or a column is wrong.
    pub(super) fn parse(flavor: Flavor, schema: &SchemaRef, options: &BTreeMap<String, String>) -> Result<Self> {
        let options = KafkaOptions::parse(flavor, options)?;
        let columns = Columns::try_new(schema, &options)?;
        if options.value.is_changelog() {
            if let Some((column, about)) = columns.metadata.first() {
                return Err(EngineError::Plan(format!(
                    "column '{}': metadata ('{}') is not supported with format '{}'",
                    columns.declared.field(*column).name(),
                    about.name(),
                    options.value.name()
                )));
            }
            if options.value_without_key {
                return Err(EngineError::Plan(format!(
                    "'value.fields-include' = 'EXCEPT_KEY' is not supported with format '{}'",
                    options.value.name()
                )));
            }
        }
        let schema = match options.value.is_changelog() {
            true => with_row_kind(&columns.declared),
            false => Arc::clone(&columns.declared),
        };
        let registry = match &options.value {
            Payload::AvroConfluent { url, .. } => Some(Arc::new(Registry::new(url))),
            _ => None,
        };
        let spec = Self {
            options,
            columns,
            schema,
            registry,
            asking: Mutex::default(),
        };
        // To make a decoder is to check the columns.
        let all: Vec<usize> = (0..spec.schema.fields().len()).collect();
        Rows::try_new(&spec, &all, spec.name())?;
        Ok(spec)
    }

    /// The topics, as errors and plans name them.
    pub(super) fn name(&self) -> String {
        match &self.options.topics {
            Topics::Named(names) => names.join(";"),
            Topics::Matching(pattern) => pattern.to_string(),
        }
    }

    /// A client to ask about topics with.
    pub(super) fn asking(&self) -> Result<Arc<BaseConsumer<KafkaContext>>> {
        let mut asking = self.asking.lock();
        if let Some(consumer) = asking.as_ref() {
            return Ok(Arc::clone(consumer));
        }
        Ok(Arc::clone(asking.insert(consumer(&self.options)?)))
    }
}

/// A table over topics. It is a changelog (`is_changelog` of its schema) when its format is one.
#[derive(Debug)]
pub struct KafkaTable {
    name: String,
    spec: Arc<KafkaSpec>,
    /// As given.
    options: BTreeMap<String, String>,
    /// As given, with the marks for connectors.
    given: SchemaRef,
}

impl KafkaTable {
    pub(super) fn try_new(
        flavor: Flavor,
        name: &str,
        given: SchemaRef,
        options: &BTreeMap<String, String>,
    ) -> Result<Self> {
        Ok(Self {
            name: name.to_string(),
            spec: Arc::new(KafkaSpec::parse(flavor, &given, options)?),
            options: options.clone(),
            given,
        })
    }

    /// Where `INSERT INTO` writes.
    ///
    /// # Errors
    /// When the table is over several topics.
    pub fn sink(&self) -> Result<SinkSpec> {
        self.spec.options.sink_topic()?;
        let mut options = self.options.clone();
        options.retain(|key, _| !key.eq_ignore_ascii_case("connector"));
        let flavor = self.spec.options.flavor;
        let takes_kinds = flavor == Flavor::Upsert || self.spec.options.value.is_changelog();
        Ok(SinkSpec {
            connector: flavor.name().into(),
            options,
            schema: SchemaSpec(match takes_kinds {
                true => with_row_kind(&self.given),
                false => Arc::clone(&self.given),
            }),
        })
    }

    /// Whether the table ends.
    pub fn is_bounded(&self) -> bool {
        is_bounded(&self.spec)
    }
}

#[async_trait]
impl TableProvider for KafkaTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.spec.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        if self.spec.options.flavor == Flavor::Upsert {
            return plan_err!(
                "table {} is of 'connector' = 'upsert-kafka', which can be written and not be read yet; read its topic with \
                 'connector' = 'kafka', where each record is a row",
                self.name
            );
        }
        let source = &self.spec.options.source;
        if (source.start == Start::Group || source.bound == Bound::Group)
            && !self.spec.options.properties.contains_key("group.id")
        {
            return plan_err!(
                "table {} is to be read by the offsets of a consumer group, but names none: set 'properties.group.id', or \
                 'scan.startup.mode' to earliest-offset or latest-offset",
                self.name
            );
        }
        let spec = Arc::clone(&self.spec);
        let found = tokio::task::spawn_blocking(move || splits(&spec, spec.asking()?.as_ref()));
        let found = found.await.map_err(|e| DataFusionError::External(Box::new(e)))?;
        Ok(Arc::new(KafkaScan::try_new(
            Arc::clone(&self.spec),
            projection,
            found.map_err(external)?,
        )?))
    }
}

fn external(error: EngineError) -> DataFusionError {
    DataFusionError::External(Box::new(error))
}

/// Reads topics: a partition of the plan is one of Kafka's. Its metric `bad_records` counts the records that were set aside.
#[derive(Debug)]
pub(super) struct KafkaScan {
    spec: Arc<KafkaSpec>,
    projection: Vec<usize>,
    splits: Vec<SplitId>,
    properties: Arc<PlanProperties>,
    metrics: ExecutionPlanMetricsSet,
}

impl KafkaScan {
    fn try_new(spec: Arc<KafkaSpec>, projection: Option<&Vec<usize>>, splits: Vec<SplitId>) -> DataFusionResult<Self> {
        let all = || (0..spec.schema.fields().len()).collect();
        let projection: Vec<usize> = projection.cloned().unwrap_or_else(all);
        let schema = Arc::new(spec.schema.project(&projection)?);
        let boundedness = match is_bounded(&spec) {
            true => Boundedness::Bounded,
            false => Boundedness::Unbounded {
                requires_infinite_memory: false,
            },
        };
        let properties = PlanProperties::new(
            EquivalenceProperties::new(schema),
            // A pattern may match no topic yet.
            Partitioning::UnknownPartitioning(splits.len().max(1)),
            EmissionType::Incremental,
            boundedness,
        );
        Ok(Self {
            spec,
            projection,
            splits,
            properties: Arc::new(properties),
            metrics: ExecutionPlanMetricsSet::new(),
        })
    }

    /// What can be read from noted positions.
    pub(super) fn source(&self, partition: usize) -> KafkaSource {
        KafkaSource {
            spec: Arc::clone(&self.spec),
            projection: self.projection.clone(),
            bad_records: MetricBuilder::new(&self.metrics).counter("bad_records", partition),
            restored: Arc::default(),
            first: Arc::default(),
        }
    }
}

impl DisplayAs for KafkaScan {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (topics, format) = (self.spec.name(), self.spec.options.value.name());
        write!(
            f,
            "Kafka: topic={topics}, partitions={}, format={format}",
            self.splits.len()
        )
    }
}

impl ExecutionPlan for KafkaScan {
    fn name(&self) -> &str {
        "Kafka"
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

    fn with_new_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn replace_children(
        self: Arc<Self>,
        _children: Vec<Arc<dyn ExecutionPlan>>,
        _options: ReplaceChildrenOptions,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        Ok(self)
    }

    fn execute(&self, partition: usize, task: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        let schema = Arc::clone(self.properties.eq_properties.schema());
        let Some(split) = self.splits.get(partition) else {
            return match self.splits.is_empty() && partition == 0 {
                true => Ok(Box::pin(RecordBatchStreamAdapter::new(
                    schema,
                    futures::stream::empty(),
                ))),
                false => internal_err!("the scan of {} has no partition {partition}", self.spec.name()),
            };
        };
        let mut reader = self.source(partition).reader(partition, task).map_err(external)?;
        let rows = reader.open(split, None).map_err(external)?;
        let rows = rows.map(|read| read.map(|read| read.batch).map_err(external));
        Ok(Box::pin(RecordBatchStreamAdapter::new(schema, rows)))
    }

    fn metrics(&self) -> Option<MetricsSet> {
        Some(self.metrics.clone_inner())
    }
}
