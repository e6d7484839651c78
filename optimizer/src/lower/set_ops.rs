//! Union, Distinct, Repartition.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::logical_expr::{Aggregate, Distinct, Expr, Partitioning as LogicalPartitioning, Repartition, Union};
use datafusion::physical_expr::expressions::cast;
use thalweg_engine::plan::{OperatorSpec, Partitioning, ProjectSpec, SchemaSpec};
use thalweg_engine::{EngineError, Result};

use super::Lowering;
use crate::estimate::Estimate;
use crate::properties::{Physical, Stream, column, leading_columns, scalar_exprs};

impl Lowering<'_> {
    /// The branches stay open side by side; they meet at the next operator, or at the next exchange without meeting
    /// before it.
    pub(super) fn union(&mut self, union: &Union, inputs: Vec<Stream>) -> Result<Stream> {
        let schema = union_schema(union.schema.as_arrow(), &inputs)?;
        let estimate = Estimate::union(inputs.iter().map(|input| &input.estimate));
        let parallelism = inputs.iter().map(|input| input.parallelism).max().unwrap_or(1);
        let mut tails = Vec::new();
        for input in inputs {
            tails.extend(self.conform(input, &schema)?.tails);
        }
        Ok(Stream {
            tails,
            schema,
            parallelism,
            hashed: Vec::new(),
            ordering: Vec::new(),
            estimate,
            handled_filters: Vec::new(),
        })
    }

    /// Gives the stream exactly `schema`: names, types, nullability.
    pub(super) fn conform(&mut self, input: Stream, schema: &SchemaRef) -> Result<Stream> {
        if input.schema.fields() == schema.fields() {
            return Ok(input);
        }
        let exprs = schema
            .fields()
            .iter()
            .enumerate()
            .map(|(index, field)| {
                let expr = column(index, &input.schema);
                if input.schema.field(index).data_type() == field.data_type() {
                    return Ok(expr);
                }
                Ok(cast(expr, &input.schema, field.data_type().clone())?)
            })
            .collect::<Result<Vec<Physical>>>()?;
        let operator = OperatorSpec::Project(ProjectSpec {
            exprs: scalar_exprs(&exprs, &input.schema),
            schema: SchemaSpec(Arc::clone(schema)),
        });
        let mut conformed = input;
        conformed.project_properties(&exprs, schema);
        Ok(self.chain(conformed, operator, Arc::clone(schema)))
    }

    /// What is left of DISTINCT after the logical optimizer.
    pub(super) fn distinct(&mut self, distinct: &Distinct, input: Stream) -> Result<Stream> {
        let Distinct::All(plan) = distinct else {
            return Err(EngineError::Plan(
                "DISTINCT ON was not rewritten; enable the optimizer rule 'replace_distinct_aggregate'".into(),
            ));
        };
        let groups = plan.schema().iter().map(Expr::from).collect();
        let aggregate = Aggregate::try_new(Arc::clone(plan), groups, Vec::new())?;
        self.aggregate(&aggregate, input)
    }

    pub(super) fn repartition(&mut self, repartition: &Repartition, input: Stream) -> Result<Stream> {
        let schema = Arc::clone(&input.schema);
        let identity = OperatorSpec::Project(ProjectSpec {
            exprs: scalar_exprs(&leading_columns(schema.fields().len(), &schema), &schema),
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        match &repartition.partitioning_scheme {
            LogicalPartitioning::RoundRobinBatch(subtasks) => {
                Ok(self.exchange(input, Partitioning::Rebalance, (*subtasks).max(1), identity, schema))
            }
            LogicalPartitioning::Hash(exprs, subtasks) => {
                let keys = self.physical_all(exprs, repartition.input.schema())?;
                let partitioning = Partitioning::Hash(scalar_exprs(&keys, &schema));
                let mut hashed = self.exchange(input, partitioning, (*subtasks).max(1), identity, schema);
                hashed.hashed = vec![keys];
                Ok(hashed)
            }
            LogicalPartitioning::DistributeBy(exprs) => {
                let keys = self.physical_all(exprs, repartition.input.schema())?;
                Ok(self.exchange_hash(input, keys, identity, schema))
            }
            LogicalPartitioning::Range(_) => Err(EngineError::Plan(
                "repartitioning by range is not supported; sort, or repartition by hash".into(),
            )),
        }
    }
}

/// The names of the logical schema, the types of the first input, nullable where any input is.
fn union_schema(logical: &Schema, inputs: &[Stream]) -> Result<SchemaRef> {
    let fields: Vec<Field> = logical
        .fields()
        .iter()
        .enumerate()
        .map(|(index, named)| {
            let nullable = inputs.iter().any(|input| input.schema.field(index).is_nullable());
            named.as_ref().clone().with_nullable(nullable)
        })
        .collect();
    Ok(Arc::new(Schema::new_with_metadata(fields, logical.metadata().clone())))
}
