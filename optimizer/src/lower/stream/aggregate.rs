//! Aggregations: per window, where the grouping shows it, else as a changelog.

use std::sync::Arc;

use arrow::datatypes::{Field, FieldRef, Schema};
use datafusion::logical_expr::utils::grouping_set_to_exprlist;
use datafusion::logical_expr::{Aggregate, Expr, LogicalPlan};
use thalweg_engine::Result;
use thalweg_engine::data::with_row_kind;
use thalweg_engine::plan::{
    AggregateMode, Aggregates, GroupAggregateSpec, OperatorSpec, Partitioning, SchemaSpec, WindowAggregateSpec,
    WindowKind, WindowProperty, WindowSource, WindowTime,
};

use super::flow::{Flow, WindowColumns, pull};
use super::refused;
use super::scan::{bound_type, column_of, window_time};
use crate::logical::{WindowTvf, as_node};
use crate::lower::Lowering;
use crate::lower::aggregate::{Grouping, required_order};
use crate::properties::{Physical, column, column_index, leading_columns, scalar_exprs};

/// An aggregation whose groups are per window of the window function below it.
struct Windowed<'p> {
    tvf: &'p WindowTvf,
    /// The group expressions over the window function's output.
    groups: Vec<Expr>,
    functions: Vec<Expr>,
    /// For each group expression the window's bound that it is, if it is one.
    bounds: Vec<Option<WindowProperty>>,
}

impl<'p> Windowed<'p> {
    fn of(aggregate: &'p Aggregate) -> Option<Self> {
        let mut node = aggregate.input.as_ref();
        let mut groups = aggregate.group_expr.clone();
        let mut functions = aggregate.aggr_expr.clone();
        let tvf = loop {
            if let Some(tvf) = as_node::<WindowTvf>(node) {
                break tvf;
            }
            let below = match node {
                LogicalPlan::Projection(projection) => &projection.input,
                LogicalPlan::SubqueryAlias(alias) => &alias.input,
                _ => return None,
            };
            for expr in groups.iter_mut().chain(&mut functions) {
                *expr = pull(expr, node)?;
            }
            node = below;
        };
        let width = tvf.input().schema().fields().len();
        let bounds: Vec<_> = groups
            .iter()
            .map(|group| match column_of(group, node)?.checked_sub(width)? {
                0 => Some(WindowProperty::Start),
                1 => Some(WindowProperty::End),
                _ => Some(WindowProperty::Time),
            })
            .collect();
        let told = |property| bounds.contains(&Some(property));
        let by_end = told(WindowProperty::End) || told(WindowProperty::Time);
        let by_start =
            told(WindowProperty::Start) && matches!(tvf.window(), WindowKind::Tumble { .. } | WindowKind::Hop { .. });
        let whole = match tvf.window() {
            // The end of a session tells nothing of its start, nor the other way round.
            WindowKind::Session { .. } => by_end && told(WindowProperty::Start),
            WindowKind::Cumulate { .. } => by_end,
            _ => by_end || by_start,
        };
        // What else refers to the window's bounds needs the rows themselves.
        let reads_bounds = |expr: &Expr| {
            expr.column_refs().into_iter().any(|reference| {
                node.schema()
                    .maybe_index_of_column(reference)
                    .is_none_or(|index| index >= width)
            })
        };
        let plain = groups
            .iter()
            .zip(&bounds)
            .all(|(group, bound)| bound.is_some() || !reads_bounds(group));
        (whole && plain && !functions.iter().any(reads_bounds)).then_some(Self {
            tvf,
            groups,
            functions,
            bounds,
        })
    }
}

impl Lowering<'_> {
    pub(super) async fn stream_aggregate(&mut self, aggregate: &Aggregate) -> Result<Flow> {
        if let [Expr::GroupingSet(sets)] = &aggregate.group_expr[..] {
            let input = self.flow(&aggregate.input).await?;
            if input.is_changelog() {
                return Err(refused(
                    "GROUPING SETS over a stream of updates",
                    "write a UNION ALL of one GROUP BY per set",
                ));
            }
            let bounded = input.bounded;
            let (grouping, aggregates, expanded) = self.expanded_sets(aggregate, sets, input.stream)?;
            return self.changing_aggregate(grouping, aggregates, Flow::new(expanded, bounded));
        }
        if let Some(windowed) = Windowed::of(aggregate) {
            return self.window_aggregate(aggregate, windowed).await;
        }
        let input = self.flow(&aggregate.input).await?;
        let logical = aggregate.input.schema();
        let keys = self.physical_all(grouping_set_to_exprlist(&aggregate.group_expr)?, logical)?;
        let grouping = Grouping::new(keys, aggregate.schema.as_arrow(), &input.stream.schema)?;
        let aggregates = self.functions(&aggregate.aggr_expr, logical, &input.stream.schema)?;
        if let Some(window) = input.window
            && !input.is_changelog()
            && grouping.keys.iter().any(|key| column_index(key) == Some(window.end))
        {
            return self.attached_aggregate(grouping, aggregates, input, window);
        }
        self.changing_aggregate(grouping, aggregates, input)
    }

    async fn window_aggregate(&mut self, aggregate: &Aggregate, windowed: Windowed<'_>) -> Result<Flow> {
        let input = self.flow(windowed.tvf.input()).await?;
        if input.is_changelog() {
            return Err(refused(
                "a window aggregation over a stream of updates",
                "aggregate without windows, or deduplicate into insertions first",
            ));
        }
        let time = window_time(windowed.tvf, &input)?;
        let logical = windowed.tvf.input().schema();
        let schema = Arc::clone(&input.stream.schema);
        let mut places = Vec::with_capacity(windowed.groups.len());
        let mut keys: Vec<Physical> = Vec::new();
        let mut fields: Vec<FieldRef> = Vec::new();
        let mut properties: Vec<WindowProperty> = Vec::new();
        for (index, (group, bound)) in windowed.groups.iter().zip(&windowed.bounds).enumerate() {
            match bound {
                Some(property) => {
                    let at = properties
                        .iter()
                        .position(|known| known == property)
                        .unwrap_or_else(|| {
                            properties.push(*property);
                            properties.len() - 1
                        });
                    places.push(Err(at));
                }
                None => {
                    let key = self.physical(group, logical)?;
                    let field = key.return_field(&schema)?;
                    let named = aggregate.schema.field(index);
                    let renamed = Field::new(named.name(), field.data_type().clone(), field.is_nullable());
                    fields.push(Arc::new(renamed.with_metadata(field.metadata().clone())));
                    places.push(Ok(keys.len()));
                    keys.push(key);
                }
            }
        }
        if let WindowKind::Session { .. } = windowed.tvf.window() {
            let wanted = self.physical_all(windowed.tvf.partition_by(), logical)?;
            let same = wanted.len() == keys.len()
                && wanted
                    .iter()
                    .all(|key| keys.iter().any(|other| crate::properties::same(key, other)));
            if !same {
                return Err(refused(
                    "grouping sessions by other columns than those of their PARTITION BY",
                    "group by window_start, window_end and exactly those columns",
                ));
            }
        }
        let grouping = Grouping { keys, fields };
        let mut aggregates = self.functions(&windowed.functions, logical, &schema)?;
        self.check_unordered(&mut aggregates, &grouping, &schema)?;
        let source = WindowSource::Assign {
            window: windowed.tvf.window(),
            time,
        };
        let results = self.window_schema(
            aggregate,
            &grouping,
            &aggregates,
            &properties,
            bound_type(time, &schema),
        );
        let flow = self.ship_window(
            &input,
            grouping,
            aggregates,
            source,
            properties.clone(),
            Arc::clone(&results),
        )?;
        self.in_logical_order(
            aggregate,
            flow,
            &places,
            &properties,
            matches!(time, WindowTime::Event(_)),
        )
    }

    /// Functions whose result depends on an order of the rows have none on a stream.
    fn check_unordered(
        &self,
        aggregates: &mut Aggregates,
        grouping: &Grouping,
        schema: &arrow::datatypes::SchemaRef,
    ) -> Result<()> {
        if required_order(&mut aggregates.functions, grouping, schema)?.is_some() {
            return Err(refused(
                "an aggregate function with ORDER BY",
                "rows of a stream come in no order; leave it out or SET 'execution.runtime-mode' = 'batch'",
            ));
        }
        Ok(())
    }

    /// Keys, results, window bounds.
    fn window_schema(
        &self,
        aggregate: &Aggregate,
        grouping: &Grouping,
        aggregates: &Aggregates,
        properties: &[WindowProperty],
        bound: arrow::datatypes::DataType,
    ) -> Arc<Schema> {
        let groups = aggregate.group_expr.len();
        let mut fields = grouping.fields.clone();
        for (index, function) in aggregates.functions.iter().enumerate() {
            let named = aggregate.schema.field(groups + index);
            fields.push(Arc::new(function.field().as_ref().clone().with_name(named.name())));
        }
        for property in properties {
            let name = match property {
                WindowProperty::Start => "window_start",
                WindowProperty::End => "window_end",
                WindowProperty::Time => "window_time",
            };
            fields.push(Arc::new(Field::new(name, bound.clone(), false)));
        }
        Arc::new(Schema::new(fields))
    }

    /// Brings the rows of each group together, grouped beforehand where that makes fewer of them.
    fn ship_window(
        &mut self,
        input: &Flow,
        grouping: Grouping,
        aggregates: Aggregates,
        source: WindowSource,
        properties: Vec<WindowProperty>,
        results: Arc<Schema>,
    ) -> Result<Flow> {
        let spec = |mode, group_by, aggregates, schema| {
            OperatorSpec::WindowAggregate(WindowAggregateSpec {
                mode,
                window: source,
                group_by,
                aggregates,
                properties: if mode == AggregateMode::Partial {
                    Vec::new()
                } else {
                    properties.clone()
                },
                emit: None,
                schema: SchemaSpec(schema),
            })
        };
        let slices = matches!(
            source,
            WindowSource::Assign {
                window: WindowKind::Tumble { .. } | WindowKind::Hop { .. } | WindowKind::Cumulate { .. },
                time: WindowTime::Event(_),
            }
        );
        let alone = input.stream.is_single() && self.options.parallelism == 1 && !self.options.streaming.checkpointed;
        let in_parts = slices && !alone && aggregates.functions.iter().all(|function| !function.is_distinct());
        let mut flow = input.clone();
        flow.stream = if alone {
            let operator = spec(
                AggregateMode::Single,
                scalar_exprs(&grouping.keys, &input.stream.schema),
                aggregates,
                Arc::clone(&results),
            );
            self.chain(input.stream.clone(), operator, results)
        } else if in_parts {
            let mut fields = grouping.partial_schema(&aggregates)?.fields().to_vec();
            let end = bound_type(WindowTime::Processing, &input.stream.schema);
            fields.push(Arc::new(Field::new("$slice_end", end, false)));
            let states = Arc::new(Schema::new(fields));
            let partial = spec(
                AggregateMode::Partial,
                scalar_exprs(&grouping.keys, &input.stream.schema),
                aggregates.clone(),
                Arc::clone(&states),
            );
            let mut parts = self.chain(input.stream.clone(), partial, Arc::clone(&states));
            parts.hashed.clear();
            parts.ordering.clear();
            let keys = leading_columns(grouping.keys.len(), &states);
            let operator = spec(
                AggregateMode::Final,
                scalar_exprs(&keys, &states),
                aggregates,
                Arc::clone(&results),
            );
            self.ship(parts, keys, operator, results)
        } else {
            let operator = spec(
                AggregateMode::Single,
                scalar_exprs(&grouping.keys, &input.stream.schema),
                aggregates,
                Arc::clone(&results),
            );
            self.ship(input.stream.clone(), grouping.keys.clone(), operator, results)
        };
        Ok(flow)
    }

    /// Rows that agree in `keys` to one subtask, where they are not yet; all rows without keys. The caller knows which columns
    /// of the output the keys are.
    pub(super) fn ship(
        &mut self,
        stream: crate::properties::Stream,
        keys: Vec<Physical>,
        operator: OperatorSpec,
        schema: Arc<Schema>,
    ) -> crate::properties::Stream {
        let there = if keys.is_empty() {
            stream.is_single()
        } else {
            // State belongs to the key groups of all keys, in their order; that equal rows are together is not enough.
            let together = match self.options.streaming.checkpointed {
                true => stream.is_single() || stream.is_hashed_by(&keys),
                false => stream.is_grouped_by(&keys),
            };
            together && (!stream.is_single() || self.options.parallelism == 1)
        };
        let mut shipped = if there {
            self.chain(stream, operator, schema)
        } else if keys.is_empty() {
            self.exchange(stream, Partitioning::Global, 1, operator, schema)
        } else {
            self.exchange_hash(stream, keys, operator, schema)
        };
        shipped.hashed.clear();
        shipped.ordering.clear();
        shipped
    }

    /// Columns as the logical plan has them: group expressions in their order, then the results.
    fn in_logical_order(
        &mut self,
        aggregate: &Aggregate,
        mut flow: Flow,
        places: &[std::result::Result<usize, usize>],
        properties: &[WindowProperty],
        event_time: bool,
    ) -> Result<Flow> {
        let schema = Arc::clone(&flow.stream.schema);
        let keys = places.iter().filter(|place| place.is_ok()).count();
        let functions = aggregate.aggr_expr.len();
        let at = |place: &std::result::Result<usize, usize>| match place {
            Ok(key) => *key,
            Err(property) => keys + functions + property,
        };
        let position = |wanted: WindowProperty| {
            properties
                .iter()
                .position(|p| *p == wanted)
                .map(|p| keys + functions + p)
        };
        let bounds = WindowColumns {
            start: position(WindowProperty::Start),
            end: position(WindowProperty::End)
                .or(position(WindowProperty::Time))
                .or(position(WindowProperty::Start))
                .unwrap_or(0),
        };
        flow.proctimes.clear();
        // Watermarks say nothing of windows of processing time.
        let times = [WindowProperty::Time, WindowProperty::End]
            .into_iter()
            .filter(|_| event_time);
        flow.rowtimes = times.filter_map(position).collect();
        // Only a window's true end tells when it is complete.
        flow.window = position(WindowProperty::End).filter(|_| event_time).map(|_| bounds);
        let outputs: Vec<Physical> = places
            .iter()
            .map(at)
            .chain(keys..keys + functions)
            .map(|index| column(index, &schema))
            .collect();
        let mut key: Vec<usize> = (0..keys).collect();
        key.extend(position(WindowProperty::End).or(position(WindowProperty::Start)));
        flow.keys = vec![key];
        self.compute_columns(&[], outputs, aggregate.schema.as_arrow(), flow)
    }

    /// Groups that have the window's end among their keys.
    fn attached_aggregate(
        &mut self,
        grouping: Grouping,
        mut aggregates: Aggregates,
        input: Flow,
        window: WindowColumns,
    ) -> Result<Flow> {
        let schema = Arc::clone(&input.stream.schema);
        self.check_unordered(&mut aggregates, &grouping, &schema)?;
        let mut results = grouping.fields.clone();
        results.extend(aggregates.functions.iter().map(|function| function.field()));
        let all = Arc::new(Schema::new(results));
        let end = grouping
            .keys
            .iter()
            .position(|key| column_index(key) == Some(window.end));
        let start = window
            .start
            .and_then(|start| grouping.keys.iter().position(|key| column_index(key) == Some(start)));
        // The end is a group column like the others: it tells the window by itself.
        let operator = OperatorSpec::WindowAggregate(WindowAggregateSpec {
            mode: AggregateMode::Single,
            window: WindowSource::Attached {
                start: window.start,
                end: window.end,
            },
            group_by: scalar_exprs(&grouping.keys, &schema),
            aggregates,
            properties: Vec::new(),
            emit: None,
            schema: SchemaSpec(Arc::clone(&all)),
        });
        let count = grouping.keys.len();
        let times: Vec<usize> = grouping
            .keys
            .iter()
            .enumerate()
            .filter(|(_, key)| column_index(key).is_some_and(|index| input.rowtimes.contains(&index)))
            .map(|(position, _)| position)
            .collect();
        let mut stream = self.ship(input.stream.clone(), grouping.keys, operator, all);
        stream.hashed = vec![leading_columns(count, &stream.schema)];
        let mut flow = Flow::new(stream, input.bounded);
        flow.rowtimes = times;
        flow.window = end.map(|end| WindowColumns { start, end });
        flow.keys = vec![(0..count).collect()];
        Ok(flow)
    }

    /// Groups without an end: what changes leaves as a changelog.
    pub(super) fn changing_aggregate(
        &mut self,
        grouping: Grouping,
        mut aggregates: Aggregates,
        input: Flow,
    ) -> Result<Flow> {
        let schema = Arc::clone(&input.stream.schema);
        self.check_unordered(&mut aggregates, &grouping, &schema)?;
        let mut fields = grouping.fields.clone();
        fields.extend(aggregates.functions.iter().map(|function| function.field()));
        let bare = Schema::new(fields);
        let distinct = aggregates.functions.is_empty() && !input.is_changelog() && !grouping.keys.is_empty();
        let output = if distinct { Arc::new(bare) } else { with_row_kind(&bare) };
        let operator = OperatorSpec::GroupAggregate(GroupAggregateSpec {
            group_by: scalar_exprs(&grouping.keys, &schema),
            aggregates,
            input_schema: SchemaSpec(Arc::clone(&schema)),
            update_before: true,
            ttl_ms: self.options.streaming.state_ttl_ms,
            schema: SchemaSpec(Arc::clone(&output)),
        });
        let count = grouping.keys.len();
        let mut stream = self.ship(input.stream, grouping.keys, operator, output);
        if count > 0 {
            stream.hashed = vec![leading_columns(count, &stream.schema)];
        }
        let mut flow = Flow::new(stream, input.bounded);
        flow.keys = vec![(0..count).collect()];
        Ok(flow)
    }
}
