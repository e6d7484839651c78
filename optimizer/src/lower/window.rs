//! Window: partitioned, sorted, then our operator over whole partitions, or DataFusion's where passing over the rows is
//! enough.

use std::collections::HashSet;
use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef, SchemaRef};
use datafusion::logical_expr::expr::WindowFunctionParams;
use datafusion::logical_expr::utils::generate_sort_key;
use datafusion::logical_expr::{Expr, SortExpr, Window, WindowFrameBound, WindowFrameUnits};
use datafusion::physical_expr::expressions::cast;
use datafusion::physical_expr::window::{PlainAggregateWindowExpr, WindowExpr};
use datafusion::physical_plan::projection::ProjectionExec;
use datafusion::physical_plan::windows::{BoundedWindowAggExec, WindowAggExec};
use datafusion::physical_plan::{ExecutionPlan, InputOrderMode};
use datafusion::physical_planner::create_window_expr;
use thalweg_engine::plan::{
    Aggregates, OperatorSpec, PhysicalPlan, SortKey, SortSpec, WindowSpec, WrappedSpec, input_placeholder,
};
use thalweg_engine::{EngineError, Result};

use super::Lowering;
use crate::properties::{Physical, Stream, column};

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
        let (operator, schema) = self.window_operator(label, window, &sorted)?;
        let mut output = sorted;
        output.estimate = output.estimate.widen(&schema);
        // The window operator appends columns and keeps rows, their places and their order.
        Ok(self.gather_if(partition.is_empty(), output, operator, schema))
    }

    /// Rows of one partition in one subtask, in order; does only what is missing.
    pub(super) fn bring_together(&mut self, input: Stream, partition: &[Physical], keys: Vec<SortKey>) -> Stream {
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

    pub(super) fn gather_if(
        &mut self,
        to_one: bool,
        stream: Stream,
        operator: OperatorSpec,
        schema: SchemaRef,
    ) -> Stream {
        if to_one {
            self.gather(stream, operator, schema)
        } else {
            self.chain(stream, operator, schema)
        }
    }

    /// The operator and the schema of its output.
    fn window_operator(&self, label: String, window: &Window, input: &Stream) -> Result<(OperatorSpec, SchemaRef)> {
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
            let plain = without_views(placeholder, window)?;
            let bounded = BoundedWindowAggExec::try_new(exprs, plain, InputOrderMode::Sorted, true)?;
            let plan = with_views_again(Arc::new(bounded), &input.schema)?;
            let schema = plan.schema();
            let plan = PhysicalPlan(plan);
            return Ok((OperatorSpec::Wrapped(WrappedSpec { label, plan }), schema));
        }
        let whole = self.aggregates_of_partitions(window, &exprs, &input.schema)?;
        let plan = WindowAggExec::try_new(exprs, placeholder, true)?;
        let schema = plan.schema();
        let plan = PhysicalPlan(Arc::new(plan));
        Ok((OperatorSpec::Window(WindowSpec { label, plan, whole }), schema))
    }

    /// The functions as aggregates, when each gives one value for all rows of a partition.
    fn aggregates_of_partitions(
        &self,
        window: &Window,
        exprs: &[Arc<dyn WindowExpr>],
        input: &SchemaRef,
    ) -> Result<Option<Aggregates>> {
        let mut aggregates = Aggregates {
            functions: Vec::with_capacity(exprs.len()),
            filters: Vec::with_capacity(exprs.len()),
            input: Arc::clone(input),
        };
        for (logical, expr) in window.window_expr.iter().zip(exprs) {
            match expr.as_any().downcast_ref::<PlainAggregateWindowExpr>() {
                Some(plain) if is_of_whole_partition(plain) => {
                    aggregates.functions.push(Arc::new(plain.get_aggregate_expr().clone()));
                }
                _ => return Ok(None),
            }
            let filter = window_params(logical)?.filter.as_ref();
            let filter = filter.map(|filter| self.physical(filter, window.input.schema()));
            aggregates.filters.push(filter.transpose()?);
        }
        Ok(Some(aggregates))
    }
}

/// `input` with the string views that no window function reads as plain strings. The operator appends each batch to the
/// rows that it still holds and cuts off those it is done with; of views that keeps the strings of all rows ever seen.
fn without_views(input: Arc<dyn ExecutionPlan>, window: &Window) -> Result<Arc<dyn ExecutionPlan>> {
    let logical = window.input.schema();
    let read: HashSet<usize> = window
        .window_expr
        .iter()
        .flat_map(Expr::column_refs)
        .filter_map(|column| logical.maybe_index_of_column(column))
        .collect();
    let schema = input.schema();
    let plain_type = |index: usize, data_type: &DataType| match data_type {
        DataType::Utf8View if !read.contains(&index) => DataType::LargeUtf8,
        DataType::BinaryView if !read.contains(&index) => DataType::LargeBinary,
        other => other.clone(),
    };
    let fields = schema.fields().iter().enumerate();
    let types: Vec<DataType> = fields
        .map(|(index, field)| plain_type(index, field.data_type()))
        .collect();
    cast_columns(input, &types)
}

/// `plan` with its first columns of the types that they have in `schema`.
fn with_views_again(plan: Arc<dyn ExecutionPlan>, schema: &SchemaRef) -> Result<Arc<dyn ExecutionPlan>> {
    let types: Vec<DataType> = schema.fields().iter().map(|field| field.data_type().clone()).collect();
    cast_columns(plan, &types)
}

/// `plan` with its first columns cast to `types`, the others as they are; itself when there is nothing to cast.
fn cast_columns(plan: Arc<dyn ExecutionPlan>, types: &[DataType]) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = plan.schema();
    let has_type =
        |(index, field): (usize, &FieldRef)| types.get(index).is_none_or(|wanted| wanted == field.data_type());
    if schema.fields().iter().enumerate().all(has_type) {
        return Ok(plan);
    }
    let mut columns = Vec::with_capacity(schema.fields().len());
    for (index, field) in schema.fields().iter().enumerate() {
        let column = column(index, &schema);
        let cast = match types.get(index) {
            Some(wanted) if wanted != field.data_type() => cast(column, &schema, wanted.clone())?,
            _ => column,
        };
        columns.push((cast, field.name().clone()));
    }
    Ok(Arc::new(ProjectionExec::try_new(columns, plan)?))
}

/// Whether the frame of every row is its whole partition.
fn is_of_whole_partition(expr: &PlainAggregateWindowExpr) -> bool {
    let frame = expr.get_window_frame();
    // All rows are peers when there is no order.
    let without_order = frame.units == WindowFrameUnits::Range && expr.order_by().is_empty();
    let reaches_all = |bound: &WindowFrameBound| match bound {
        WindowFrameBound::CurrentRow => without_order,
        bound => bound.is_unbounded(),
    };
    reaches_all(&frame.start_bound) && reaches_all(&frame.end_bound)
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
