//! Filter, Projection, Unnest: operators that look at one batch at a time.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema, SchemaRef};
use datafusion::common::DFSchema;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{Expr, Filter, Projection, Unnest};
use datafusion::physical_plan::unnest::{ListUnnest, UnnestExec};
use thalweg_engine::Result;
use thalweg_engine::plan::{
    FilterSpec, OperatorSpec, PhysicalPlan, ProjectSpec, ScalarExpr, SchemaSpec, WrappedSpec, input_placeholder,
};

use super::Lowering;
use crate::properties::{Physical, Stream, column, column_index, columns_of, move_columns, scalar_exprs};

impl Lowering<'_> {
    pub(super) fn filter(&mut self, filter: &Filter, input: Stream) -> Result<Stream> {
        let remaining: Vec<Expr> = split_conjunction(&filter.predicate)
            .into_iter()
            .filter(|conjunct| !input.handled_filters.contains(conjunct))
            .cloned()
            .collect();
        let Some(predicate) = conjunction(remaining) else {
            return Ok(input);
        };
        self.filter_by(&predicate, filter.input.schema(), input)
    }

    fn filter_by(&mut self, predicate: &Expr, schema: &DFSchema, mut input: Stream) -> Result<Stream> {
        let expr = self.physical(predicate, schema)?;
        input.estimate = input.estimate.filter(predicate, schema);
        let operator = OperatorSpec::Filter(FilterSpec {
            predicate: ScalarExpr::new(expr, Arc::clone(&input.schema)),
            projection: None,
        });
        let schema = Arc::clone(&input.schema);
        Ok(self.chain(input, operator, schema))
    }

    pub(super) fn projection(&mut self, projection: &Projection, input: Stream) -> Result<Stream> {
        let exprs = self.physical_all(&projection.expr, projection.input.schema())?;
        self.project(exprs, projection.schema.as_arrow(), input)
    }

    /// Computes `exprs`; names and metadata of the output come from `logical`, types and nullability from the input.
    pub(super) fn project(&mut self, exprs: Vec<Physical>, logical: &Schema, input: Stream) -> Result<Stream> {
        let (exprs, input) = self.narrow_for(exprs, input)?;
        let schema = output_schema(&exprs, logical, &input.schema)?;
        let is_identity = exprs.len() == input.schema.fields().len()
            && exprs.iter().enumerate().all(|(i, expr)| column_index(expr) == Some(i));
        if is_identity && self.rename(&input, &schema) {
            let mut renamed = input;
            renamed.project_properties(&exprs, &schema);
            renamed.schema = schema;
            return Ok(renamed);
        }
        let operator = OperatorSpec::Project(ProjectSpec {
            exprs: scalar_exprs(&exprs, &input.schema),
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        let mut projected = input;
        projected.project_properties(&exprs, &schema);
        projected.estimate = projected.estimate.project(&exprs, &schema);
        Ok(self.chain(projected, operator, schema))
    }

    /// Makes the last filter or join emit only what `exprs` read, so that it does not copy columns nobody wants.
    fn narrow_for(&mut self, exprs: Vec<Physical>, input: Stream) -> Result<(Vec<Physical>, Stream)> {
        let picks: Option<Vec<usize>> = exprs.iter().map(column_index).collect();
        let wanted = picks.unwrap_or_else(|| columns_of(&exprs));
        let is_all = wanted.len() == input.schema.fields().len() && wanted.iter().enumerate().all(|(i, w)| i == *w);
        if is_all || wanted.is_empty() {
            return Ok((exprs, input));
        }
        let Some(narrowed) = self.narrow(input.clone(), &wanted)? else {
            return Ok((exprs, input));
        };
        let exprs = if exprs.iter().all(|expr| column_index(expr).is_some()) {
            (0..wanted.len()).map(|i| column(i, &narrowed.schema)).collect()
        } else {
            exprs
                .into_iter()
                .map(|expr| move_columns(expr, &wanted, &narrowed.schema))
                .collect::<Result<_>>()?
        };
        Ok((exprs, narrowed))
    }

    /// Restricts the last operator's output to `wanted`; `None` when it cannot drop columns by itself.
    pub(super) fn narrow(&mut self, mut stream: Stream, wanted: &[usize]) -> Result<Option<Stream>> {
        let [tail] = stream.tails[..] else {
            return Ok(None);
        };
        let schema = Arc::new(stream.schema.project(wanted)?);
        let vertex = &mut self.graph.vertices[tail];
        let (projection, declared) = match vertex.chain.last_mut() {
            Some(OperatorSpec::Filter(filter)) => (&mut filter.projection, None),
            Some(OperatorSpec::HashJoin(join)) => (&mut join.projection, Some(&mut join.schema)),
            Some(OperatorSpec::NestedLoopJoin(join)) => (&mut join.projection, Some(&mut join.schema)),
            _ => return Ok(None),
        };
        *projection = Some(match projection.take() {
            Some(before) => wanted.iter().map(|index| before[*index]).collect(),
            None => wanted.to_vec(),
        });
        if let Some(declared) = declared {
            *declared = SchemaSpec(Arc::clone(&schema));
        }
        vertex.output_schema = SchemaSpec(Arc::clone(&schema));
        let picks: Vec<Physical> = wanted.iter().map(|index| column(*index, &stream.schema)).collect();
        stream.project_properties(&picks, &schema);
        stream.estimate = stream.estimate.project(&picks, &schema);
        stream.schema = schema;
        Ok(Some(stream))
    }

    /// Lets the last operator emit `schema` instead of its own names; whether that was possible.
    fn rename(&mut self, stream: &Stream, schema: &SchemaRef) -> bool {
        if stream.schema.fields() == schema.fields() {
            return true;
        }
        let [tail] = stream.tails[..] else {
            return false;
        };
        let vertex = &mut self.graph.vertices[tail];
        let declared = match vertex.chain.last_mut() {
            Some(OperatorSpec::HashJoin(join)) => &mut join.schema,
            Some(OperatorSpec::NestedLoopJoin(join)) => &mut join.schema,
            Some(OperatorSpec::Project(project)) => &mut project.schema,
            _ => return false,
        };
        *declared = SchemaSpec(Arc::clone(schema));
        vertex.output_schema = SchemaSpec(Arc::clone(schema));
        true
    }

    pub(super) fn unnest(&mut self, unnest: &Unnest, mut input: Stream) -> Result<Stream> {
        let lists = unnest
            .list_type_columns
            .iter()
            .map(|(index, unnesting)| ListUnnest {
                index_in_input_schema: *index,
                depth: unnesting.depth,
            })
            .collect();
        let schema = Arc::clone(unnest.schema.inner());
        let plan = UnnestExec::new(
            input_placeholder(Arc::clone(&input.schema), &[])?,
            lists,
            unnest.struct_type_columns.clone(),
            Arc::clone(&schema),
            unnest.options.clone(),
        )?;
        input.hashed.clear();
        input.ordering.clear();
        input.estimate = input.estimate.unnest(&schema);
        let operator = OperatorSpec::Wrapped(WrappedSpec {
            label: "Unnest".into(),
            plan: PhysicalPlan(Arc::new(plan)),
        });
        Ok(self.chain(input, operator, schema))
    }
}

/// The schema that `exprs` over `input` have: the logical names, the physical types and nullability.
pub(super) fn output_schema(exprs: &[Physical], logical: &Schema, input: &Schema) -> Result<SchemaRef> {
    let fields = exprs
        .iter()
        .zip(logical.fields())
        .map(|(expr, named)| {
            let field = expr.return_field(input)?;
            let mut metadata = field.metadata().clone();
            metadata.extend(named.metadata().clone());
            Ok(Field::new(named.name(), field.data_type().clone(), field.is_nullable()).with_metadata(metadata))
        })
        .collect::<Result<Vec<_>>>()?;
    Ok(Arc::new(Schema::new_with_metadata(fields, logical.metadata().clone())))
}
