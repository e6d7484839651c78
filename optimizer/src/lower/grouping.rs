//! GROUPING SETS, CUBE, ROLLUP: each row once per grouping set, then an ordinary grouping by the columns and the set's id.

use std::collections::HashMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, FieldRef, Schema, SchemaRef};
use datafusion::common::{DFSchema, ScalarValue};
use datafusion::datasource::memory::MemorySourceConfig;
use datafusion::logical_expr::{Aggregate, Expr, GroupingSet};
use datafusion::physical_expr::expressions::{Literal, lit};
use thalweg_engine::plan::{Aggregates, ExpandSpec, OperatorSpec, PhysicalPlan, ScanSpec, SchemaSpec};
use thalweg_engine::{EngineError, Result};

use super::Lowering;
use super::aggregate::{Grouping, required_order};
use crate::estimate::Estimate;
use crate::properties::{Physical, Stream, column, scalar_exprs};

/// Grouping sets over distinct columns: `masks[s][c]` tells that set `s` leaves out column `c`.
struct Sets<'e> {
    columns: Vec<&'e Expr>,
    masks: Vec<Vec<bool>>,
    /// The value of `__grouping_id` of each set.
    ids: Vec<ScalarValue>,
}

impl Lowering<'_> {
    pub(super) fn grouping_sets(&mut self, aggregate: &Aggregate, sets: &GroupingSet, input: Stream) -> Result<Stream> {
        let sets = Sets::new(sets)?;
        let logical_input = aggregate.input.schema();
        let kept = kept_columns(&aggregate.aggr_expr, logical_input);
        let expanded = self.expand(aggregate, &sets, &kept, input)?;
        let key_count = sets.columns.len() + 1;
        let keys: Vec<Physical> = (0..key_count)
            .map(|i| column(kept.len() + i, &expanded.schema))
            .collect();
        let grouping = Grouping::new(keys, aggregate.schema.as_arrow(), &expanded.schema)?;
        let kept_fields = kept.iter().map(|index| {
            let (qualifier, field) = logical_input.qualified_field(*index);
            (qualifier.cloned(), Arc::clone(field))
        });
        let logical = DFSchema::new_with_metadata(kept_fields.collect(), HashMap::new())?;
        let mut aggregates = self.functions(&aggregate.aggr_expr, &logical, &expanded.schema)?;
        if !sets.masks.iter().any(|mask| all_left_out(mask)) {
            return self.group(&grouping, aggregates, expanded);
        }
        let order = required_order(&mut aggregates.functions, &grouping, &expanded.schema)?;
        let expanded = match order {
            Some(order) => self.exchange_sorted(&grouping, expanded, order),
            None => expanded,
        };
        let empty = self.empty_groups(&sets, &grouping, &aggregates, &expanded.schema)?;
        let mut partial = self.partial(&grouping, &aggregates, expanded)?;
        partial.tails.extend(empty.tails);
        Ok(self.finish(&grouping, aggregates, partial))
    }

    /// The rows of all grouping sets, their grouping and the functions over them: what is left is an ordinary grouping.
    pub(super) fn expanded_sets(
        &mut self,
        aggregate: &Aggregate,
        sets: &GroupingSet,
        input: Stream,
    ) -> Result<(Grouping, Aggregates, Stream)> {
        let sets = Sets::new(sets)?;
        let logical_input = aggregate.input.schema();
        let kept = kept_columns(&aggregate.aggr_expr, logical_input);
        let expanded = self.expand(aggregate, &sets, &kept, input)?;
        let keys = (0..=sets.columns.len())
            .map(|i| column(kept.len() + i, &expanded.schema))
            .collect();
        let grouping = Grouping::new(keys, aggregate.schema.as_arrow(), &expanded.schema)?;
        let kept_fields = kept.iter().map(|index| {
            let (qualifier, field) = logical_input.qualified_field(*index);
            (qualifier.cloned(), Arc::clone(field))
        });
        let logical = DFSchema::new_with_metadata(kept_fields.collect(), HashMap::new())?;
        let aggregates = self.functions(&aggregate.aggr_expr, &logical, &expanded.schema)?;
        Ok((grouping, aggregates, expanded))
    }

    /// Emits each row once per set: the columns `kept` for the aggregates, the group columns, the set's id.
    fn expand(&mut self, aggregate: &Aggregate, sets: &Sets<'_>, kept: &[usize], mut input: Stream) -> Result<Stream> {
        let groups = self.physical_all(sets.columns.iter().copied(), aggregate.input.schema())?;
        let mut fields: Vec<FieldRef> = kept
            .iter()
            .map(|index| Arc::clone(&input.schema.fields()[*index]))
            .collect();
        for (group, named) in groups.iter().zip(aggregate.schema.fields()) {
            let data_type = group.data_type(&input.schema)?;
            fields.push(Arc::new(Field::new(named.name(), data_type, true)));
        }
        let id = Field::new(Aggregate::INTERNAL_GROUPING_ID, sets.id_type(), false);
        fields.push(Arc::new(id));
        let schema = Arc::new(Schema::new(fields));
        let mut projections = Vec::with_capacity(sets.masks.len());
        for (mask, id) in sets.masks.iter().zip(&sets.ids) {
            let mut exprs: Vec<Physical> = kept.iter().map(|index| column(*index, &input.schema)).collect();
            for (group, left_out) in groups.iter().zip(mask) {
                exprs.push(if *left_out {
                    null_of(&group.data_type(&input.schema)?)?
                } else {
                    Arc::clone(group)
                });
            }
            exprs.push(Arc::new(Literal::new(id.clone())));
            projections.push(scalar_exprs(&exprs, &input.schema));
        }
        input.hashed.clear();
        input.ordering.clear();
        input.estimate = input.estimate.expand(sets.masks.len(), &schema);
        let operator = OperatorSpec::Expand(ExpandSpec {
            projections,
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        Ok(self.chain(input, operator, schema))
    }

    /// SQL wants a row for the empty set `()` even when there is no input. A branch of one row, which every aggregate
    /// filters out, makes that group exist without adding to it.
    fn empty_groups(
        &mut self,
        sets: &Sets<'_>,
        grouping: &Grouping,
        aggregates: &Aggregates,
        expanded: &Schema,
    ) -> Result<Stream> {
        let fields: Vec<Field> = expanded
            .fields()
            .iter()
            .map(|f| f.as_ref().clone().with_nullable(true))
            .collect();
        let schema: SchemaRef = Arc::new(Schema::new(fields));
        let mut rows = Vec::new();
        for (_, id) in sets.masks.iter().zip(&sets.ids).filter(|(mask, _)| all_left_out(mask)) {
            let mut row = Vec::with_capacity(schema.fields().len());
            for field in schema.fields().iter().take(schema.fields().len() - 1) {
                row.push(null_of(field.data_type())?);
            }
            row.push(Arc::new(Literal::new(id.clone())) as Physical);
            rows.push(row);
        }
        let estimate = Estimate::exactly(rows.len(), &schema);
        let plan = MemorySourceConfig::try_new_as_values(Arc::clone(&schema), rows)?;
        let scan = OperatorSpec::Scan(ScanSpec {
            stream: None,
            bounded_by: Vec::new(),
            table: "the empty grouping set".into(),
            plan: PhysicalPlan(plan),
            limit: None,
            read_bytes: 0,
        });
        let source = self.source(scan, 1, Arc::clone(&schema), estimate);
        let nothing = Aggregates {
            functions: aggregates.functions.clone(),
            filters: vec![Some(lit(false)); aggregates.functions.len()],
            input: schema,
        };
        self.partial(grouping, &nothing, source)
    }
}

impl<'e> Sets<'e> {
    fn new(sets: &'e GroupingSet) -> Result<Self> {
        let (columns, masks) = match sets {
            GroupingSet::GroupingSets(sets) => {
                let mut columns: Vec<&Expr> = Vec::new();
                for expr in sets.iter().flatten() {
                    if !columns.contains(&expr) {
                        columns.push(expr);
                    }
                }
                let masks = sets
                    .iter()
                    .map(|set| columns.iter().map(|column| !set.contains(column)).collect());
                let masks = masks.collect();
                (columns, masks)
            }
            GroupingSet::Cube(exprs) => (exprs.iter().collect(), cube_masks(exprs.len())?),
            GroupingSet::Rollup(exprs) => {
                let masks = (0..=exprs.len()).map(|kept| (0..exprs.len()).map(|i| i >= kept).collect());
                (exprs.iter().collect(), masks.collect())
            }
        };
        let ids = grouping_ids(columns.len(), &masks)?;
        Ok(Self { columns, masks, ids })
    }

    fn id_type(&self) -> DataType {
        self.ids.first().map_or(DataType::UInt8, ScalarValue::data_type)
    }
}

fn cube_masks(columns: usize) -> Result<Vec<Vec<bool>>> {
    if columns > 16 {
        return Err(EngineError::Plan(format!(
            "CUBE of {columns} columns has 2^{columns} grouping sets; name the sets you need in GROUPING SETS"
        )));
    }
    let masks = (0..1usize << columns).map(|set| (0..columns).map(|column| set >> column & 1 == 1).collect());
    Ok(masks.collect())
}

/// DataFusion's `__grouping_id`: one bit per column, the last column lowest, set when the column is left out; above them
/// how many equal sets came before.
fn grouping_ids(columns: usize, masks: &[Vec<bool>]) -> Result<Vec<ScalarValue>> {
    let mut seen: HashMap<&[bool], u64> = HashMap::new();
    let ordinals: Vec<u64> = masks
        .iter()
        .map(|mask| {
            let count = seen.entry(mask).or_default();
            *count += 1;
            *count - 1
        })
        .collect();
    let last = ordinals.iter().max().copied().unwrap_or(0);
    let ordinal_bits = (u64::BITS - last.leading_zeros()) as usize;
    if columns + ordinal_bits > 64 {
        return Err(EngineError::Plan(format!(
            "grouping sets over {columns} columns do not fit the 64 bits of a grouping id; use fewer columns"
        )));
    }
    let id_type = Aggregate::grouping_id_type(columns, last as usize);
    let ids = masks.iter().zip(ordinals).map(|(mask, ordinal)| {
        let bits = mask
            .iter()
            .fold(0u64, |bits, left_out| bits << 1 | u64::from(*left_out));
        let high = if columns == 64 { 0 } else { ordinal << columns };
        Ok(ScalarValue::UInt64(Some(bits | high)).cast_to(&id_type)?)
    });
    ids.collect()
}

fn all_left_out(mask: &[bool]) -> bool {
    mask.iter().all(|left_out| *left_out)
}

fn null_of(data_type: &DataType) -> Result<Physical> {
    Ok(Arc::new(Literal::new(ScalarValue::try_from(data_type)?)))
}

/// The input columns that the aggregates read.
fn kept_columns(aggregates: &[Expr], input: &DFSchema) -> Vec<usize> {
    let mut kept: Vec<usize> = aggregates
        .iter()
        .flat_map(Expr::column_refs)
        .filter_map(|column| input.maybe_index_of_column(column))
        .collect();
    kept.sort_unstable();
    kept.dedup();
    kept
}
