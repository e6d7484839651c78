//! A [`JobGraph`] to bytes and back.
//!
//! Expressions, functions and scans go through DataFusion's protobuf. Reading them back needs a registry of functions,
//! which serde cannot carry as an argument: it is set for the duration of one decode on the decoding thread.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;

use arrow::datatypes::{Schema, SchemaRef};
use datafusion::common::tree_node::TreeNodeRecursion;
use datafusion::error::{DataFusionError, Result as DataFusionResult};
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::physical_expr::{EquivalenceProperties, PhysicalExpr};
use datafusion::physical_plan::execution_plan::{Boundedness, EmissionType};
use datafusion::physical_plan::{
    DisplayAs, DisplayFormatType, ExecutionPlan, Partitioning, PlanProperties, ReplaceChildrenOptions,
};
use datafusion_proto::bytes::{
    physical_plan_from_bytes_with_extension_codec, physical_plan_to_bytes_with_extension_codec,
};
use datafusion_proto::physical_plan::from_proto::parse_physical_expr;
use datafusion_proto::physical_plan::to_proto::serialize_physical_expr;
use datafusion_proto::physical_plan::{PhysicalExtensionCodec, PhysicalProtoConverterExtension};
use datafusion_proto::protobuf::PhysicalExprNode;
use prost::Message;
use serde::{Deserialize, Serialize};

use crate::data::{EngineError, Result};
use crate::plan::{JobGraph, SchemaSpec, SortKey};

thread_local! {
    static REGISTRY: RefCell<Option<Arc<TaskContext>>> = const { RefCell::new(None) };
}

/// Serializes a job graph.
///
/// # Errors
/// When it holds a scan that exists in this process only (a table in memory, a custom source): the error names it.
pub fn encode_job_graph(graph: &JobGraph) -> Result<Vec<u8>> {
    postcard::to_stdvec(graph)
        .map_err(|e| EngineError::Plan(format!("job graph '{}' cannot leave this process: {e}", graph.name)))
}

/// Reads a job graph back; functions are looked up in `registry`.
///
/// # Errors
/// When the bytes are not a job graph or name a function that `registry` does not have.
pub fn decode_job_graph(bytes: &[u8], registry: Arc<TaskContext>) -> Result<JobGraph> {
    struct Scope;
    impl Drop for Scope {
        fn drop(&mut self) {
            REGISTRY.with_borrow_mut(|slot| *slot = None);
        }
    }
    REGISTRY.with_borrow_mut(|slot| *slot = Some(registry));
    let _scope = Scope;
    postcard::from_bytes(bytes).map_err(|e| EngineError::Plan(format!("these bytes are not a job graph: {e}")))
}

fn registry() -> DataFusionResult<Arc<TaskContext>> {
    REGISTRY
        .with_borrow(Clone::clone)
        .ok_or_else(|| DataFusionError::Internal("expressions are read back by decode_job_graph only".into()))
}

pub(crate) fn encode_expr(expr: &Arc<dyn PhysicalExpr>) -> DataFusionResult<Vec<u8>> {
    Ok(serialize_physical_expr(expr, &Codec)?.encode_to_vec())
}

pub(crate) fn decode_expr(bytes: &[u8], input: &Schema) -> DataFusionResult<Arc<dyn PhysicalExpr>> {
    let node = PhysicalExprNode::decode(bytes).map_err(|e| DataFusionError::External(Box::new(e)))?;
    parse_physical_expr(&node, registry()?.as_ref(), input, &Codec)
}

pub(crate) fn encode_plan(plan: &Arc<dyn ExecutionPlan>) -> DataFusionResult<Vec<u8>> {
    Ok(physical_plan_to_bytes_with_extension_codec(Arc::clone(plan), &Codec)?.to_vec())
}

pub(crate) fn decode_plan(bytes: &[u8]) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
    physical_plan_from_bytes_with_extension_codec(bytes, registry()?.as_ref(), &Codec)
}

/// Adds [`InputPlaceholder`] to the plans that DataFusion's protobuf knows.
#[derive(Debug)]
struct Codec;

impl PhysicalExtensionCodec for Codec {
    fn try_decode(
        &self,
        bytes: &[u8],
        _inputs: &[Arc<dyn ExecutionPlan>],
        _context: &TaskContext,
        _converter: &dyn PhysicalProtoConverterExtension,
    ) -> DataFusionResult<Arc<dyn ExecutionPlan>> {
        let portable: PortablePlaceholder =
            postcard::from_bytes(bytes).map_err(|e| DataFusionError::External(Box::new(e)))?;
        Ok(Arc::new(InputPlaceholder::try_new(portable.schema.0, &portable.order)?))
    }

    fn try_encode(
        &self,
        node: Arc<dyn ExecutionPlan>,
        bytes: &mut Vec<u8>,
        _converter: &dyn PhysicalProtoConverterExtension,
    ) -> DataFusionResult<()> {
        let Some(placeholder) = node.downcast_ref::<InputPlaceholder>() else {
            return Err(DataFusionError::NotImplemented(format!(
                "{} exists in this process only",
                node.name()
            )));
        };
        let portable = PortablePlaceholder {
            schema: SchemaSpec(placeholder.schema()),
            order: placeholder.order.clone(),
        };
        let encoded = postcard::to_stdvec(&portable).map_err(|e| DataFusionError::External(Box::new(e)))?;
        bytes.extend_from_slice(&encoded);
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct PortablePlaceholder {
    schema: SchemaSpec,
    order: Vec<SortKey>,
}

/// The leaf of a wrapped plan; the runtime puts the operator's input in its place.
#[derive(Debug)]
pub(crate) struct InputPlaceholder {
    properties: Arc<PlanProperties>,
    order: Vec<SortKey>,
}

impl InputPlaceholder {
    pub(crate) fn try_new(schema: SchemaRef, order: &[SortKey]) -> DataFusionResult<Self> {
        Ok(Self {
            properties: Self::properties_of(schema, order)?,
            order: order.to_vec(),
        })
    }

    /// The properties of one bounded partition of `schema` sorted by `order`.
    pub(crate) fn properties_of(schema: SchemaRef, order: &[SortKey]) -> DataFusionResult<Arc<PlanProperties>> {
        let equivalences = match SortKey::to_ordering(order) {
            Some(ordering) => EquivalenceProperties::new_with_orderings(schema, [ordering]),
            None => EquivalenceProperties::new(schema),
        };
        Ok(Arc::new(PlanProperties::new(
            equivalences,
            Partitioning::UnknownPartitioning(1),
            EmissionType::Incremental,
            Boundedness::Bounded,
        )))
    }
}

impl DisplayAs for InputPlaceholder {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Input")
    }
}

impl ExecutionPlan for InputPlaceholder {
    fn name(&self) -> &str {
        "Input"
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

    fn execute(&self, _partition: usize, _context: Arc<TaskContext>) -> DataFusionResult<SendableRecordBatchStream> {
        Err(DataFusionError::Internal(
            "the placeholder of an operator's input was executed".into(),
        ))
    }
}
