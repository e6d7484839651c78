//! COPY and INSERT.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::datasource::source_as_provider;
use datafusion::functions_aggregate::sum::sum_udaf;
use datafusion::logical_expr::dml::CopyTo;
use datafusion::logical_expr::dml::InsertOp;
use datafusion::logical_expr::{DmlStatement, WriteOp};
use datafusion::physical_expr::aggregate::AggregateExprBuilder;
use thalweg_engine::plan::{
    AggregateMode, AggregateSpec, Aggregates, OperatorSpec, PhysicalPlan, SchemaSpec, SinkSpec, SortKey, WrappedSpec,
    input_placeholder,
};
use thalweg_engine::{EngineError, Result};

use super::Lowering;
use crate::estimate::Estimate;
use crate::properties::{Stream, column};

impl Lowering<'_> {
    pub(super) fn copy_to(&mut self, copy: &CopyTo, input: Stream) -> Result<Stream> {
        let sink = self.options.sink_resolver.copy(copy)?;
        self.write_to(sink, input)
    }

    pub(super) async fn dml(&mut self, dml: &DmlStatement, input: Stream) -> Result<Stream> {
        let WriteOp::Insert(op) = &dml.op else {
            return Err(EngineError::Plan(format!(
                "{} on table '{}' is not supported; write the wanted rows to a new table with INSERT",
                dml.op, dml.table_name
            )));
        };
        let provider = source_as_provider(&dml.target)?;
        match self
            .options
            .sink_resolver
            .insert(&dml.table_name, &provider, &input.schema)?
        {
            Some(sink) => self.write_to(sink, input),
            None => {
                self.insert_foreign(provider.as_ref(), *op, &dml.table_name.to_string(), input)
                    .await
            }
        }
    }

    /// Every subtask writes its rows; the counts are summed up.
    pub(super) fn write_to(&mut self, sink: SinkSpec, input: Stream) -> Result<Stream> {
        let counts: SchemaRef = Arc::new(Schema::new(vec![Field::new("count", DataType::UInt64, false)]));
        let writers = self.options.sink_resolver.max_writers(&sink)?;
        let mut input = input;
        // Part files are numbered by subtask, so that their names keep the order.
        if sink.connector == "filesystem"
            && let Some(ranges) = self.sorted_by_range(&input, writers)
        {
            input = ranges;
        }
        let key = self.options.sink_resolver.key(&sink)?;
        let key: Vec<_> = key.into_iter().map(|index| column(index, &input.schema)).collect();
        // Two writers of one key would overwrite one another in any order.
        let by_key = !key.is_empty() && !input.is_single() && !input.is_grouped_by(&key);
        input.hashed.clear();
        input.ordering.clear();
        input.estimate = Estimate::exactly(input.parallelism, &counts);
        if writers.is_some_and(|most| most < input.parallelism) {
            return Ok(self.gather(input, OperatorSpec::Sink(sink), counts));
        }
        let written = if by_key {
            self.exchange_hash(input, key, OperatorSpec::Sink(sink), Arc::clone(&counts))
        } else {
            self.chain(input, OperatorSpec::Sink(sink), Arc::clone(&counts))
        };
        if written.is_single() {
            return Ok(written);
        }
        let sum = AggregateExprBuilder::new(sum_udaf(), vec![column(0, &counts)])
            .schema(Arc::clone(&counts))
            .alias("count")
            .build()?;
        let schema: SchemaRef = Arc::new(Schema::new(vec![sum.field()]));
        let total = OperatorSpec::Aggregate(AggregateSpec {
            mode: AggregateMode::Single,
            group_by: Vec::new(),
            aggregates: Aggregates {
                functions: vec![Arc::new(sum)],
                filters: vec![None],
                input: counts,
            },
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        Ok(self.gather(written, total, schema))
    }

    /// A table that is not ours inserts by itself, in one subtask.
    async fn insert_foreign(
        &mut self,
        provider: &dyn TableProvider,
        op: InsertOp,
        table: &str,
        input: Stream,
    ) -> Result<Stream> {
        let placeholder = input_placeholder(Arc::clone(&input.schema), &[])?;
        let mut plan = provider.insert_into(self.session, placeholder, op).await?;
        let mut input = input;
        let order = required_order(plan.as_ref(), &input.schema);
        if !order.is_empty() {
            input = self.sort_to_one(input, order, None);
            let placeholder = input_placeholder(Arc::clone(&input.schema), &input.ordering)?;
            plan = provider.insert_into(self.session, placeholder, op).await?;
        }
        input.hashed.clear();
        let schema = plan.schema();
        input.estimate = Estimate::exactly(1, &schema);
        let operator = OperatorSpec::Wrapped(WrappedSpec {
            label: format!("Insert into {table}"),
            plan: PhysicalPlan(plan),
        });
        let mut written = self.gather(input, operator, schema);
        written.ordering.clear();
        Ok(written)
    }
}

/// The order in which the plan wants its input.
fn required_order(plan: &dyn datafusion::physical_plan::ExecutionPlan, input: &SchemaRef) -> Vec<SortKey> {
    let Some(Some(requirement)) = plan.required_input_ordering().into_iter().next() else {
        return Vec::new();
    };
    requirement
        .into_single()
        .into_iter()
        .map(|key| {
            let key: datafusion::physical_expr::PhysicalSortExpr = key.into();
            SortKey::from_physical(&key, input)
        })
        .collect()
}
