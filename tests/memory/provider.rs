//! A table over a generated relation: several partitions, a batch at a time.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use async_trait::async_trait;
use datafusion::catalog::{Session, TableProvider};
use datafusion::error::Result;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::{Expr, TableType};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};

use crate::relation::Relation;

const PARTITIONS: u64 = 4;

/// The relation as a table.
#[derive(Debug)]
pub(crate) struct Generated(pub(crate) Arc<Relation>);

#[derive(Debug)]
struct Partition {
    relation: Arc<Relation>,
    number: u64,
    projection: Vec<usize>,
    schema: SchemaRef,
}

#[async_trait]
impl TableProvider for Generated {
    fn schema(&self) -> SchemaRef {
        self.0.schema()
    }

    fn table_type(&self) -> TableType {
        TableType::Base
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let schema = self.schema();
        let projection = projection.map_or_else(|| (0..schema.fields().len()).collect(), Vec::clone);
        let schema = Arc::new(schema.project(&projection)?);
        let partition = |number| {
            Arc::new(Partition {
                relation: Arc::clone(&self.0),
                number,
                projection: projection.clone(),
                schema: Arc::clone(&schema),
            }) as Arc<dyn PartitionStream>
        };
        let partitions = (0..PARTITIONS).map(partition).collect();
        let exec = StreamingTableExec::try_new(Arc::clone(&schema), partitions, None, [], false, limit)?;
        Ok(Arc::new(exec))
    }
}

impl PartitionStream for Partition {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _task: Arc<TaskContext>) -> SendableRecordBatchStream {
        let relation = Arc::clone(&self.relation);
        let (projection, schema) = (self.projection.clone(), Arc::clone(&self.schema));
        let end = relation.rows * (self.number + 1) / PARTITIONS;
        let mut next = relation.rows * self.number / PARTITIONS;
        let batch_rows = relation.batch_rows(&projection);
        let batches = std::iter::from_fn(move || {
            let start = next;
            next = end.min(start + batch_rows);
            (start < next).then(|| Ok(relation.batch(start..next, &projection, &schema)))
        });
        let stream = futures::stream::iter(batches);
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), stream))
    }
}
