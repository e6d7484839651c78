//! Aggregate: one phase where the rows of a group already meet, otherwise partial, exchange, final.

use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::logical_expr::utils::grouping_set_to_exprlist;
use datafusion::logical_expr::{Aggregate, Expr};
use datafusion::physical_expr::EquivalenceProperties;
use datafusion::physical_expr::aggregate::{AggregateFunctionExpr, LoweredAggregateBuilder};
use datafusion::physical_plan::aggregates::{
    AggregateMode as DataFusionMode, PhysicalGroupBy, get_finer_aggregate_exprs_requirement,
};
use thalweg_engine::Result;
use thalweg_engine::plan::{
    AggregateMode, AggregateSpec, Aggregates, OperatorSpec, Partitioning, ScalarExpr, SchemaSpec, SortKey, SortSpec,
};

use super::Lowering;
use crate::properties::{Physical, Stream, leading_columns, scalar_exprs};

/// Below so many rows one subtask groups faster than an exchange starts.
const ONE_PHASE_ROWS: f64 = 100_000.0;

/// The keys of a grouping and what they are called in its output.
pub(super) struct Grouping {
    pub(super) keys: Vec<Physical>,
    pub(super) fields: Vec<FieldRef>,
}

impl Grouping {
    /// `keys` over `schema`, named as in the aggregate's logical output.
    pub(super) fn new(keys: Vec<Physical>, logical: &Schema, schema: &Schema) -> Result<Self> {
        let fields = keys
            .iter()
            .zip(logical.fields())
            .map(|(key, named)| {
                let field = key.return_field(schema)?;
                let renamed = Field::new(named.name(), field.data_type().clone(), field.is_nullable());
                Ok(Arc::new(renamed.with_metadata(field.metadata().clone())))
            })
            .collect::<Result<Vec<_>>>()?;
        Ok(Self { keys, fields })
    }

    pub(super) fn partial_schema(&self, aggregates: &Aggregates) -> Result<SchemaRef> {
        let mut fields = self.fields.clone();
        for function in &aggregates.functions {
            fields.extend(function.state_fields()?);
        }
        Ok(Arc::new(Schema::new(fields)))
    }

    fn result_schema(&self, aggregates: &Aggregates) -> SchemaRef {
        let results = aggregates.functions.iter().map(|function| function.field());
        Arc::new(Schema::new(
            self.fields.iter().cloned().chain(results).collect::<Vec<_>>(),
        ))
    }
}

impl Lowering<'_> {
    pub(super) fn aggregate(&mut self, aggregate: &Aggregate, input: Stream) -> Result<Stream> {
        if let [Expr::GroupingSet(sets)] = &aggregate.group_expr[..] {
            return self.grouping_sets(aggregate, sets, input);
        }
        let logical_input = aggregate.input.schema();
        let keys = self.physical_all(grouping_set_to_exprlist(&aggregate.group_expr)?, logical_input)?;
        let grouping = Grouping::new(keys, aggregate.schema.as_arrow(), &input.schema)?;
        let aggregates = self.functions(&aggregate.aggr_expr, logical_input, &input.schema)?;
        self.group(&grouping, aggregates, input)
    }

    /// The aggregate functions over batches of schema `input`.
    pub(super) fn functions(&self, exprs: &[Expr], logical: &DFSchema, input: &SchemaRef) -> Result<Aggregates> {
        let mut functions = Vec::with_capacity(exprs.len());
        let mut filters = Vec::with_capacity(exprs.len());
        for expr in exprs {
            self.check_resolved(expr)?;
            let props = self.session.execution_props();
            let lowered = LoweredAggregateBuilder::new(expr, logical, input, props, &self.planning).build()?;
            functions.push(lowered.aggregate);
            filters.push(lowered.filter);
        }
        Ok(Aggregates {
            functions,
            filters,
            input: Arc::clone(input),
        })
    }

    pub(super) fn group(&mut self, grouping: &Grouping, mut aggregates: Aggregates, input: Stream) -> Result<Stream> {
        if let Some(order) = required_order(&mut aggregates.functions, grouping, &input.schema)? {
            let ordered = self.exchange_sorted(grouping, input, order);
            return Ok(self.in_one_phase(grouping, aggregates, ordered));
        }
        if self.groups_meet(grouping, &input) {
            return Ok(self.in_one_phase(grouping, aggregates, input));
        }
        let partial = self.partial(grouping, &aggregates, input)?;
        Ok(self.finish(grouping, aggregates, partial))
    }

    /// Whether the rows of each group are in one subtask, and it pays to leave them there.
    fn groups_meet(&self, grouping: &Grouping, input: &Stream) -> bool {
        if grouping.keys.is_empty() {
            return input.is_single();
        }
        self.may_stay(input, &grouping.keys)
    }

    /// Whether rows that agree in `keys` are in one subtask, and not only because all rows are while there are many.
    pub(super) fn may_stay(&self, input: &Stream, keys: &[Physical]) -> bool {
        let few = input.estimate.rows.is_some_and(|rows| rows <= ONE_PHASE_ROWS);
        input.is_grouped_by(keys) && (!input.is_single() || few || self.options.parallelism == 1)
    }

    fn in_one_phase(&mut self, grouping: &Grouping, aggregates: Aggregates, mut input: Stream) -> Stream {
        let schema = grouping.result_schema(&aggregates);
        let operator = OperatorSpec::Aggregate(AggregateSpec {
            mode: AggregateMode::Single,
            group_by: scalar_exprs(&grouping.keys, &input.schema),
            aggregates,
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        input.estimate = input.estimate.group(&grouping.keys, &schema);
        input.project_properties(&grouping.keys, &schema);
        input.ordering.clear();
        self.chain(input, operator, schema)
    }

    /// Groups what each subtask has; emits states.
    pub(super) fn partial(
        &mut self,
        grouping: &Grouping,
        aggregates: &Aggregates,
        mut input: Stream,
    ) -> Result<Stream> {
        let schema = grouping.partial_schema(aggregates)?;
        let operator = OperatorSpec::Aggregate(AggregateSpec {
            mode: AggregateMode::Partial,
            group_by: scalar_exprs(&grouping.keys, &input.schema),
            aggregates: aggregates.clone(),
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        input.estimate = input.estimate.group(&grouping.keys, &schema);
        input.project_properties(&grouping.keys, &schema);
        input.ordering.clear();
        Ok(self.chain(input, operator, schema))
    }

    /// Merges the states of `partial`.
    pub(super) fn finish(&mut self, grouping: &Grouping, aggregates: Aggregates, partial: Stream) -> Stream {
        let schema = grouping.result_schema(&aggregates);
        let keys = leading_columns(grouping.keys.len(), &partial.schema);
        let operator = OperatorSpec::Aggregate(AggregateSpec {
            mode: AggregateMode::Final,
            group_by: scalar_exprs(&keys, &partial.schema),
            aggregates,
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        let mut finished = if keys.is_empty() {
            self.exchange(partial, Partitioning::Global, 1, operator, Arc::clone(&schema))
        } else {
            self.exchange_hash(partial, keys.clone(), operator, Arc::clone(&schema))
        };
        finished.estimate = finished.estimate.group(&keys, &schema);
        self.note_estimate(&finished);
        finished
    }

    /// Brings the rows of each group together, sorted by `order`.
    pub(super) fn exchange_sorted(&mut self, grouping: &Grouping, input: Stream, order: Vec<SortKey>) -> Stream {
        if grouping.keys.is_empty() {
            return self.sort_to_one(input, order, None);
        }
        if self.may_stay(&input, &grouping.keys) {
            return self.sort_locally(input, &order, None);
        }
        let schema = Arc::clone(&input.schema);
        let sort = OperatorSpec::Sort(SortSpec {
            keys: order.clone(),
            fetch: None,
            by_range: false,
        });
        let mut sorted = self.exchange_hash(input, grouping.keys.clone(), sort, schema);
        sorted.ordering = order;
        sorted
    }
}

/// The order in which the functions must see their rows; `None` when none of them depends on it. May replace a function
/// by its reverse, to make one order do for all.
pub(super) fn required_order(
    functions: &mut [Arc<AggregateFunctionExpr>],
    grouping: &Grouping,
    input: &SchemaRef,
) -> Result<Option<Vec<SortKey>>> {
    if !functions
        .iter()
        .any(|function| function.order_sensitivity().hard_requires())
    {
        return Ok(None);
    }
    let keys = grouping.keys.iter().zip(&grouping.fields);
    let group_by = PhysicalGroupBy::new_single(keys.map(|(key, f)| (Arc::clone(key), f.name().clone())).collect());
    let unordered = EquivalenceProperties::new(Arc::clone(input));
    let required = get_finer_aggregate_exprs_requirement(functions, &group_by, &unordered, &DataFusionMode::Single)?;
    let order = required
        .into_iter()
        .map(|requirement| {
            let options = requirement.options.unwrap_or_default();
            SortKey {
                expr: ScalarExpr::new(requirement.expr, Arc::clone(input)),
                descending: options.descending,
                nulls_first: options.nulls_first,
            }
        })
        .collect();
    Ok(Some(order))
}
