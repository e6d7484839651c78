//! Expressions of a program, planned against the schema of its stream.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, SchemaRef};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, ScalarValue};
use datafusion::datasource::empty::EmptyTable;
use datafusion::datasource::provider_as_source;
use datafusion::logical_expr::physical_planning_context::PhysicalPlanningContext;
use datafusion::logical_expr::{Expr, LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_expr::aggregate::LoweredAggregateBuilder;
use thalweg_engine::plan::{Aggregates, ScalarExpr};

use crate::Session;
use crate::error::{Error, Result};

/// An expression with the column that it makes.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    pub(super) expr: ScalarExpr,
    pub(super) field: Field,
}

impl Session {
    /// Plans an expression over batches of `schema`.
    pub(super) fn plan_expr(&self, expr: Expr, schema: &SchemaRef) -> Result<Planned> {
        let name = expr.schema_name().to_string();
        let logical = DFSchema::try_from(schema.as_ref().clone())?;
        let physical = self.state().create_physical_expr(expr, &logical)?;
        let field = physical.return_field(schema)?.as_ref().clone().with_name(name);
        Ok(Planned {
            expr: ScalarExpr::new(physical, Arc::clone(schema)),
            field,
        })
    }

    /// The same, and fails when it is not of type `wanted`.
    pub(super) fn plan_typed(&self, expr: Expr, schema: &SchemaRef, wanted: &DataType) -> Result<ScalarExpr> {
        let planned = self.plan_expr(expr, schema)?;
        if planned.field.data_type() != wanted {
            return Err(Error::statement(format!(
                "{} is {}, not {wanted}",
                planned.field.name(),
                planned.field.data_type()
            )));
        }
        Ok(planned.expr)
    }

    /// A number as a float.
    pub(super) fn plan_number(&self, expr: Expr, schema: &SchemaRef) -> Result<ScalarExpr> {
        let planned = self.plan_expr(expr.clone(), schema)?;
        if !planned.field.data_type().is_numeric() {
            return Err(Error::statement(format!(
                "a change is measured between numbers; {} is {}",
                planned.field.name(),
                planned.field.data_type()
            )));
        }
        let float = datafusion::logical_expr::cast(expr, DataType::Float64);
        Ok(self.plan_expr(float, schema)?.expr)
    }

    /// Aggregate functions over batches of `schema`, with the types that they want.
    pub(super) fn plan_aggregates(&self, exprs: Vec<Expr>, schema: &SchemaRef) -> Result<Aggregates> {
        if exprs.is_empty() {
            return Err(Error::statement("there is no aggregate function"));
        }
        let names: Vec<String> = exprs.iter().map(|expr| expr.schema_name().to_string()).collect();
        let state = self.state();
        let table = provider_as_source(Arc::new(EmptyTable::new(Arc::clone(schema))));
        let plan = LogicalPlanBuilder::scan("stream", table, None)?
            .aggregate(Vec::<Expr>::new(), exprs)?
            .build()?;
        let plan = state
            .analyzer()
            .execute_and_check(plan, state.config_options(), |_, _| {})?;
        let mut found = None;
        plan.apply(|node| {
            if let LogicalPlan::Aggregate(aggregate) = node {
                found = Some(aggregate.clone());
                return Ok(TreeNodeRecursion::Stop);
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
        let aggregate = found.ok_or_else(|| Error::statement("these are no aggregate functions"))?;
        let props = state.execution_props();
        let planning = PhysicalPlanningContext::default();
        let mut aggregates = Aggregates {
            functions: Vec::new(),
            filters: Vec::new(),
            input: Arc::clone(schema),
        };
        // Results are called what the program calls them.
        for (expr, name) in aggregate.aggr_expr.iter().zip(names) {
            let logical = aggregate.input.schema();
            let lowered = LoweredAggregateBuilder::new(expr, logical, schema, props, &planning)
                .with_name(name)
                .build()?;
            aggregates.functions.push(lowered.aggregate);
            aggregates.filters.push(lowered.filter);
        }
        Ok(aggregates)
    }
}

/// The number of a column.
pub(super) fn column_index(name: &str, schema: &SchemaRef) -> Result<usize> {
    schema.index_of(name).map_err(|_| {
        let known: Vec<_> = schema.fields().iter().map(|field| field.name().as_str()).collect();
        Error::statement(format!("there is no column '{name}'"))
            .with_remedy(format!("the stream has the columns {}", known.join(", ")))
    })
}

/// A column by its exact name.
pub(super) fn named(name: &str) -> Expr {
    Expr::Column(Column::new_unqualified(name))
}

/// A constant as an engine expression.
pub(super) fn literal(value: ScalarValue, schema: &SchemaRef) -> ScalarExpr {
    let literal = datafusion::physical_expr::expressions::Literal::new(value);
    ScalarExpr::new(Arc::new(literal), Arc::clone(schema))
}
