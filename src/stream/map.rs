//! A function of the program over whole batches.

use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use thalweg_engine::operator::{Collector, Context, CustomFactory, CustomOperator, Operator, Port};
use thalweg_engine::plan::OperatorSpec;
use thalweg_engine::{EngineError, Result};

/// A function from batches to batches.
pub(super) type BatchFunction = dyn Fn(&RecordBatch) -> Result<Vec<RecordBatch>> + Send + Sync;

struct MapBatches {
    function: Arc<BatchFunction>,
    schema: SchemaRef,
}

/// The operator that applies `function`, whose rows have `schema`.
pub(super) fn map_batches(label: &str, function: Arc<BatchFunction>, schema: &SchemaRef) -> OperatorSpec {
    let factory = MapBatches {
        function,
        schema: Arc::clone(schema),
    };
    OperatorSpec::Custom(CustomFactory::spec(label, Arc::new(factory)))
}

impl CustomOperator for MapBatches {
    fn create(&self, _subtask: usize, _parallelism: usize) -> Result<Box<dyn Operator>> {
        Ok(Box::new(MapBatches {
            function: Arc::clone(&self.function),
            schema: Arc::clone(&self.schema),
        }))
    }
}

impl Operator for MapBatches {
    fn on_batch(&mut self, _port: Port, batch: RecordBatch, _cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        for result in (self.function)(&batch)? {
            if result.num_rows() == 0 {
                continue;
            }
            let schema = result.schema();
            let types = |schema: &SchemaRef| -> Vec<_> {
                schema.fields().iter().map(|field| field.data_type().clone()).collect()
            };
            if types(&schema) != types(&self.schema) {
                return Err(EngineError::Plan(format!(
                    "a function gave {schema}, not {} as declared",
                    self.schema
                )));
            }
            out.collect(result.with_schema(Arc::clone(&self.schema))?)?;
        }
        Ok(())
    }

    fn on_end(&mut self, _port: Port, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }
}
