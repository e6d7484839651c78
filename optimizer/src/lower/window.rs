//! Window: partitioned, sorted, then DataFusion's window operator.

use std::sync::Arc;

use datafusion::logical_expr::expr::WindowFunctionParams;
use datafusion::logical_expr::utils::generate_sort_key;
use datafusion::logical_expr::{Expr, SortExpr, Window};
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{ExecutionPlan, InputOrderMode};
use datafusion::physical_planner::create_window_expr;
use thalweg_engine::plan::{OperatorSpec, PhysicalPlan, SortKey, SortSpec, WrappedSpec, input_placeholder};
use thalweg_engine::{EngineError, Result};

use super::Lowering;
use crate::properties::{Physical, Stream};

impl Lowering<'_> {
    pub(super) fn window(&mut self, window: &Window, input: Stream) -> Result<Stream> {
        let logical = window.input.schema();
        let params = match window.window_expr.first() {
            Some(first) => window_params(first)?,
            None => return Ok(input),
        };
        let order: Vec<SortExpr> = generate_sort_key(&params.partition_by, &params.order_by)?
            .into_iter()
            .map(|(sort, _)| sort)
            .collect();
        let partition = self.physical_all(&params.partition_by, logical)?;
        let keys = self.sort_keys(&order, logical, &input)?;
        let sorted = self.bring_together(input, &partition, keys);
        let label = format!("Window {}", names(&window.window_expr));
        let plan = self.window_plan(window, &sorted)?;
        let schema = plan.schema();
        let mut output = sorted;
        output.estimate = output.estimate.widen(&schema);
        let operator = OperatorSpec::Wrapped(WrappedSpec {
            label,
            plan: PhysicalPlan(plan),
        });
        // The window operator appends columns and keeps rows, their places and their order.
        Ok(self.gather_if(partition.is_empty(), output, operator, schema))
    }

    /// Rows of one partition in one subtask, in order; does only what is missing.
    fn bring_together(&mut self, input: Stream, partition: &[Physical], keys: Vec<SortKey>) -> Stream {
        if partition.is_empty() {
            return if keys.is_empty() {
                input
            } else {
                self.sort_to_one(input, keys, None)
            };
        }
        if self.may_stay(&input, partition) {
            return self.sort_locally(input, &keys, None);
        }
        let schema = Arc::clone(&input.schema);
        let sort = OperatorSpec::Sort(SortSpec {
            keys: keys.clone(),
            fetch: None,
            by_range: false,
        });
        let mut sorted = self.exchange_hash(input, partition.to_vec(), sort, schema);
        sorted.ordering = keys;
        sorted
    }

    fn gather_if(
        &mut self,
        to_one: bool,
        stream: Stream,
        operator: OperatorSpec,
        schema: arrow::datatypes::SchemaRef,
    ) -> Stream {
        if to_one {
            self.gather(stream, operator, schema)
        } else {
            self.chain(stream, operator, schema)
        }
    }

    fn window_plan(&self, window: &Window, input: &Stream) -> Result<Arc<dyn ExecutionPlan>> {
        let exprs = window
            .window_expr
            .iter()
            .map(|expr| {
                self.check_resolved(expr)?;
                let props = self.session.execution_props();
                Ok(create_window_expr(expr, window.input.schema(), props, &self.planning)?)
            })
            .collect::<Result<Vec<_>>>()?;
        let placeholder = input_placeholder(Arc::clone(&input.schema), &input.ordering)?;
        if exprs.iter().all(|expr| expr.uses_bounded_memory()) {
            let bounded = BoundedWindowAggExec::try_new(exprs, placeholder, InputOrderMode::Sorted, true)?;
            return Ok(Arc::new(bounded));
        }
        Ok(Arc::new(WindowAggExec::try_new(exprs, placeholder, true)?))
    }
}

fn window_params(expr: &Expr) -> Result<&WindowFunctionParams> {
    match expr {
        Expr::WindowFunction(function) => Ok(&function.params),
        Expr::Alias(alias) => window_params(&alias.expr),
        other => Err(EngineError::Internal(format!("'{other}' is no window function"))),
    }
}

fn names(exprs: &[Expr]) -> String {
    let names: Vec<String> = exprs.iter().map(|expr| expr.schema_name().to_string()).collect();
    names.join(", ")
}
