//! Aggregates of windows that need no rows kept: under the default trigger the engine's slices say the same as its
//! buffers, at a fraction of the cost. What slices cannot say exactly stays with the buffers.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};
use arrow::row::{RowConverter, SortField};
use thalweg_engine::data::{is_changelog, with_row_kind};
use thalweg_engine::operator::windows::AccumulationMode;
use thalweg_engine::plan::{
    AggregateMode, Aggregates, EmitSpec, OperatorSpec, Partitioning, ScalarExpr, SchemaSpec, WindowAggregateSpec,
    WindowKind, WindowProperty, WindowSource, WindowTime,
};

use super::{Kind, WindowAssigner, WindowTrigger, WindowedStream};
use crate::error::Result;
use crate::stream::graph::{Combiner, Node};
use crate::stream::source::millis;

/// Functions whose result tells of the order in which rows come. Slices put rows into the order of their time.
const ORDERED: [&str; 6] = [
    "any_value",
    "array_agg",
    "first_value",
    "last_value",
    "nth_value",
    "string_agg",
];

/// The column by which a state tells its slice.
const SLICE_END: &str = "$slice_end";

impl WindowAssigner {
    /// The windows as the engine's plans have them, unchecked; `None` when they are of another kind.
    pub(super) fn kind_of_slices(&self) -> Result<Option<WindowKind>> {
        let offset_ms = |longest: i64| self.offset_ms.checked_rem_euclid(longest).unwrap_or(0);
        Ok(Some(match self.kind {
            Kind::Tumbling(size) => {
                let size_ms = millis(size)?;
                let offset_ms = offset_ms(size_ms);
                WindowKind::Tumble { size_ms, offset_ms }
            }
            Kind::Sliding(size, slide) => WindowKind::Hop {
                size_ms: millis(size)?,
                slide_ms: millis(slide)?,
                offset_ms: offset_ms(millis(slide)?),
            },
            Kind::Cumulate(step, max) => WindowKind::Cumulate {
                max_ms: millis(max)?,
                step_ms: millis(step)?,
                offset_ms: offset_ms(millis(max)?),
            },
            Kind::Session(gap) => WindowKind::Session { gap_ms: millis(gap)? },
            _ => return Ok(None),
        }))
    }
}

/// Whether two runs over the same rows in another order give the same.
fn is_unordered(aggregates: &Aggregates) -> bool {
    let mut functions = aggregates.functions.iter();
    functions.all(|function| function.order_bys().is_empty() && !ORDERED.contains(&function.fun().name()))
}

/// Whether a later result can be told from an earlier one.
fn is_comparable(aggregates: &Aggregates) -> bool {
    let functions = aggregates.functions.iter();
    let fields: Vec<SortField> = functions
        .map(|function| SortField::new(function.field().data_type().clone()))
        .collect();
    RowConverter::supports_fields(&fields)
}

impl WindowedStream {
    /// The operator that aggregates in slices, whose results have `schema`; `None` where the buffers have to.
    pub(super) fn in_slices(&self, aggregates: &Aggregates, schema: &SchemaRef) -> Result<Option<Node>> {
        let window = self.assigner.kind_of_slices()?.filter(|window| window.check().is_ok());
        let (Some(window), Some(time)) = (window, self.time()) else {
            return Ok(None);
        };
        self.assigner.check()?;
        let is_event = matches!(time, WindowTime::Event(_));
        let is_default = match self.trigger {
            None => true,
            Some(WindowTrigger::EventTime) => is_event,
            Some(WindowTrigger::ProcessingTime) => !is_event,
            _ => false,
        };
        let keeps_rows = self.evictor.is_some() || self.late_output.is_some() || is_changelog(&self.stream.schema);
        if !is_default || keeps_rows || !is_unordered(aggregates) {
            return Ok(None);
        }
        let is_session = matches!(window, WindowKind::Session { .. });
        // In processing time nothing is late.
        let allowed_lateness_ms = if is_event { millis(self.allowed_lateness)? } else { 0 };
        let emit = match self.mode {
            AccumulationMode::AccumulatingAndRetracting if is_session || !is_comparable(aggregates) => return Ok(None),
            AccumulationMode::AccumulatingAndRetracting => Some(EmitSpec {
                early_ms: None,
                late_ms: Some(0),
                allowed_lateness_ms,
            }),
            // Results of late rows that stand beside the first are no changelog.
            _ if allowed_lateness_ms > 0 => return Ok(None),
            _ => None,
        };
        let results = match emit {
            Some(_) => with_row_kind(schema),
            None => Arc::clone(schema),
        };
        let of = |mode, group_by, properties, schema: &SchemaRef| {
            OperatorSpec::WindowAggregate(WindowAggregateSpec {
                mode,
                window: WindowSource::Assign { window, time },
                group_by,
                aggregates: aggregates.clone(),
                properties,
                emit,
                schema: SchemaSpec(Arc::clone(schema)),
            })
        };
        let told = vec![WindowProperty::Start, WindowProperty::End, WindowProperty::Time];
        let keys: Vec<ScalarExpr> = self.keys.iter().map(|key| key.expr.clone()).collect();
        let single = of(AggregateMode::Single, keys.clone(), told.clone(), &results);
        let mut node = Node::new(single, "Window", Arc::clone(&results)).with_input(0, &self.stream.upstream);
        if keys.is_empty() {
            node = node.single();
        }
        let splits = aggregates.functions.iter().all(|function| !function.is_distinct());
        if is_event && !is_session && splits {
            let states = self.states(aggregates)?;
            let merged: Vec<ScalarExpr> = (0..keys.len()).map(|key| ScalarExpr::column(key, &states)).collect();
            node.combiner = Some(Box::new(Combiner {
                before: of(AggregateMode::Partial, keys, Vec::new(), &states),
                partitioning: match merged.is_empty() {
                    true => Partitioning::Global,
                    false => Partitioning::Hash(merged.clone()),
                },
                after: of(AggregateMode::Final, merged, told, &results),
                states,
            }));
        }
        Ok(Some(node))
    }

    /// The time that the windows are of; `None` when the stream does not have it.
    fn time(&self) -> Option<WindowTime> {
        if self.assigner.processing {
            return Some(WindowTime::Processing);
        }
        self.stream.time.map(WindowTime::Event)
    }

    /// What a partial aggregation hands on: keys, states, the slice.
    fn states(&self, aggregates: &Aggregates) -> Result<SchemaRef> {
        let mut fields: Vec<Arc<Field>> = self.keys.iter().map(|key| Arc::new(key.field.clone())).collect();
        for function in &aggregates.functions {
            fields.extend(function.state_fields()?);
        }
        let end = DataType::Timestamp(TimeUnit::Millisecond, None);
        fields.push(Arc::new(Field::new(SLICE_END, end, false)));
        Ok(Arc::new(Schema::new(fields)))
    }
}
