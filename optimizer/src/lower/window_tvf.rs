//! Windows as tables over bounded input, where watermarks are of no use: all rows are there.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::logical_expr::{Extension, SortExpr};
use thalweg_engine::plan::{OperatorSpec, SchemaSpec, SessionAssignSpec, WindowAssignSpec, WindowKind, WindowTime};
use thalweg_engine::{EngineError, Result};

use super::{Lowering, one};
use crate::logical::{TemporalTable, WatermarkNode, WindowTvf};
use crate::properties::{Stream, scalar_exprs};

impl Lowering<'_> {
    pub(super) fn streaming_node(&mut self, extension: &Extension, inputs: Vec<Stream>) -> Result<Stream> {
        let node = extension.node.as_any();
        if node.is::<WatermarkNode>() {
            return one(inputs);
        }
        if let Some(window) = node.downcast_ref::<WindowTvf>() {
            return self.window_tvf(window, one(inputs)?);
        }
        if node.is::<TemporalTable>() {
            return Err(EngineError::Plan(
                "FOR SYSTEM_TIME AS OF needs streaming mode; SET 'execution.runtime-mode' = 'streaming'".into(),
            ));
        }
        Err(EngineError::Plan(format!(
            "the plan node '{}' comes from an extension and has no operator here; remove the extension that adds it",
            extension.node.name()
        )))
    }

    fn window_tvf(&mut self, node: &WindowTvf, input: Stream) -> Result<Stream> {
        let time = node.input().schema().index_of_column(node.time())?;
        let schema = appended(&input.schema, node);
        if let WindowKind::Session { gap_ms } = node.window() {
            return self.sessions(node, input, time, gap_ms, schema);
        }
        let mut output = input;
        output.estimate = output.estimate.widen(&schema);
        if node.window().windows_per_row() > 1 {
            // A batch is emitted once per window.
            output.ordering.clear();
            output.estimate = output.estimate.repeat(node.window().windows_per_row() as f64);
        }
        let operator = OperatorSpec::WindowAssign(WindowAssignSpec {
            window: node.window(),
            time: WindowTime::Event(time),
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        Ok(self.chain(output, operator, schema))
    }

    /// The rows of a key together and in order of time, then one pass over them.
    fn sessions(
        &mut self,
        node: &WindowTvf,
        input: Stream,
        time: usize,
        gap_ms: i64,
        schema: SchemaRef,
    ) -> Result<Stream> {
        let logical = node.input().schema();
        let keys = self.physical_all(node.partition_by(), logical)?;
        let time_column = datafusion::logical_expr::Expr::Column(node.time().clone());
        let order: Vec<SortExpr> = node
            .partition_by()
            .iter()
            .cloned()
            .chain([time_column])
            .map(|expr| expr.sort(true, false))
            .collect();
        let order = self.sort_keys(&order, logical, &input)?;
        let mut sorted = self.bring_together(input, &keys, order);
        let operator = OperatorSpec::SessionAssign(SessionAssignSpec {
            partition_by: scalar_exprs(&keys, &sorted.schema),
            time,
            gap_ms,
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        sorted.estimate = sorted.estimate.widen(&schema);
        Ok(self.gather_if(keys.is_empty(), sorted, operator, schema))
    }
}

/// The input's columns as they come, and the window's.
fn appended(input: &SchemaRef, node: &WindowTvf) -> SchemaRef {
    use datafusion::logical_expr::UserDefinedLogicalNodeCore;
    let width = input.fields().len();
    let fields: Vec<Arc<Field>> = input
        .fields()
        .iter()
        .chain(node.schema().fields().iter().skip(width))
        .cloned()
        .collect();
    Arc::new(Schema::new_with_metadata(fields, input.metadata().clone()))
}
