//! Filter, Projection, Unnest, Union: what looks at one batch at a time.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use datafusion::common::DFSchema;
use datafusion::logical_expr::utils::{conjunction, split_conjunction};
use datafusion::logical_expr::{Expr, Filter, LogicalPlan, Projection, Union, Unnest};
use datafusion::physical_expr::expressions::lit;
use thalweg_engine::Result;
use thalweg_engine::data::{RowKind, with_row_kind};
use thalweg_engine::plan::{FilterSpec, OperatorSpec, ProjectSpec, ScalarExpr, SchemaSpec};

use super::flow::Flow;
use super::rank::RankPattern;
use super::refused;
use crate::logical::temporal_at;
use crate::lower::Lowering;
use crate::lower::project::output_schema;
use crate::properties::{Physical, Stream, column, scalar_exprs};

impl Lowering<'_> {
    /// A filter; with a number of rows in it, the first rows of each partition. `numbered`: whether that number is wanted
    /// above the filter.
    pub(super) async fn stream_filter(&mut self, filter: &Filter, numbered: bool) -> Result<Flow> {
        if let Some(pattern) = RankPattern::of(filter) {
            return self.stream_rank(pattern, numbered).await;
        }
        let input = self.flow(&filter.input).await?;
        self.keep(&filter.predicate, filter.input.schema(), input)
    }

    /// Keeps the rows for which `predicate` over `schema` holds.
    pub(super) fn keep(&mut self, predicate: &Expr, schema: &DFSchema, mut flow: Flow) -> Result<Flow> {
        // The mark of a temporal join is true for all rows; the optimizer may have copied it to where it means nothing.
        let mark = temporal_at();
        let is_mark = |expr: &Expr| matches!(expr, Expr::ScalarFunction(call) if call.func.as_ref() == mark.as_ref());
        let parts = split_conjunction(predicate).into_iter().filter(|part| !is_mark(part));
        let Some(predicate) = conjunction(parts.cloned()) else {
            return Ok(flow);
        };
        let expr = self.physical(&predicate, schema)?;
        let operator = OperatorSpec::Filter(FilterSpec {
            predicate: ScalarExpr::new(expr, Arc::clone(&flow.stream.schema)),
            projection: None,
        });
        let schema = Arc::clone(&flow.stream.schema);
        flow.stream = self.chain(flow.stream, operator, schema);
        Ok(flow)
    }

    /// The same for several predicates, none of which may be there.
    pub(super) fn keep_all(&mut self, predicates: Vec<Expr>, schema: &DFSchema, flow: Flow) -> Result<Flow> {
        match conjunction(predicates) {
            Some(predicate) => self.keep(&predicate, schema, flow),
            None => Ok(flow),
        }
    }

    pub(super) async fn stream_projection(&mut self, projection: &Projection) -> Result<Flow> {
        let input = match projection.input.as_ref() {
            LogicalPlan::Filter(filter) if !self.streaming.repeated.contains(projection.input.as_ref()) => {
                let wanted = projection
                    .expr
                    .iter()
                    .flat_map(|expr| expr.column_refs())
                    .any(|reference| RankPattern::of(filter).is_some_and(|pattern| pattern.is_number(reference)));
                self.stream_filter(filter, wanted).await?
            }
            other => self.flow(other).await?,
        };
        self.compute(projection, input)
    }

    /// Computes the columns of a projection.
    pub(super) fn compute(&mut self, projection: &Projection, input: Flow) -> Result<Flow> {
        let exprs = self.physical_all(&projection.expr, projection.input.schema())?;
        self.compute_columns(&projection.expr, exprs, projection.schema.as_arrow(), input)
    }

    /// Computes `physical`, named as in `logical`; `exprs` are the same as logical expressions, where there are such.
    pub(super) fn compute_columns(
        &mut self,
        exprs: &[Expr],
        physical: Vec<Physical>,
        logical: &arrow::datatypes::Schema,
        input: Flow,
    ) -> Result<Flow> {
        let input_schema = Arc::clone(&input.stream.schema);
        let bare = output_schema(&physical, logical, &input_schema)?;
        let schema = input.kinded(&bare);
        let identity = physical.len() == input.width()
            && physical
                .iter()
                .enumerate()
                .all(|(index, expr)| crate::properties::column_index(expr) == Some(index))
            && schema.fields() == input_schema.fields();
        let mut outputs = physical.clone();
        if input.is_changelog() {
            outputs.push(column(input.width(), &input_schema));
        }
        let mut flow = input.moved(input.stream.clone(), exprs, &physical);
        if identity {
            return Ok(flow);
        }
        if let Some(narrowed) = self.narrow_filter(&input, &outputs, &schema)? {
            flow.stream = narrowed;
            return Ok(flow);
        }
        let mut stream = input.stream;
        stream.project_properties(&outputs, &schema);
        let operator = OperatorSpec::Project(ProjectSpec {
            exprs: scalar_exprs(&outputs, &input_schema),
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        flow.stream = self.chain(stream, operator, schema);
        Ok(flow)
    }

    /// Lets a filter that ends the chain drop columns itself, where that is all that a projection does.
    fn narrow_filter(&mut self, input: &Flow, outputs: &[Physical], schema: &SchemaRef) -> Result<Option<Stream>> {
        let [tail] = input.stream.tails[..] else {
            return Ok(None);
        };
        let columns: Option<Vec<usize>> = outputs.iter().map(crate::properties::column_index).collect();
        let (Some(columns), false) = (columns, self.streaming.closed.contains(&tail)) else {
            return Ok(None);
        };
        let filters = matches!(self.graph.vertices[tail].chain.last(), Some(OperatorSpec::Filter(_)));
        let same_names = input.stream.schema.project(&columns)?.fields() == schema.fields();
        if filters && same_names {
            return self.narrow(input.stream.clone(), &columns);
        }
        Ok(None)
    }

    pub(super) async fn stream_unnest(&mut self, unnest: &Unnest) -> Result<Flow> {
        let input = self.flow(&unnest.input).await?;
        if input.is_changelog() {
            return Err(refused("UNNEST of a stream of updates", "unnest before aggregating"));
        }
        let bounded = input.bounded;
        Ok(Flow::new(self.unnest(unnest, input.stream)?, bounded))
    }

    pub(super) async fn stream_union(&mut self, union: &Union) -> Result<Flow> {
        let mut flows = Vec::with_capacity(union.inputs.len());
        for input in &union.inputs {
            flows.push(self.flow(input).await?);
        }
        if flows.iter().any(Flow::is_changelog) {
            for flow in &mut flows {
                if !flow.is_changelog() {
                    *flow = self.as_changelog(flow.clone());
                }
            }
        }
        let mut flows = flows.into_iter();
        let Some(mut all) = flows.next() else {
            return Err(refused("a UNION of nothing", "it has no input"));
        };
        let names = Arc::clone(union.schema.inner());
        for flow in flows {
            // A time stays one where all branches agree.
            all.rowtimes.retain(|column| flow.rowtimes.contains(column));
            all.proctimes.retain(|column| flow.proctimes.contains(column));
            all.window = all.window.filter(|window| flow.window == Some(*window));
            all.bounded &= flow.bounded;
            all.stream.parallelism = all.stream.parallelism.max(flow.stream.parallelism);
            all.stream.tails.extend(flow.stream.tails);
        }
        all.keys.clear();
        all.stream.hashed.clear();
        all.stream.ordering.clear();
        all.stream.schema = all.kinded(&names);
        Ok(all)
    }

    /// Insertions as a changelog.
    pub(super) fn as_changelog(&mut self, mut flow: Flow) -> Flow {
        if flow.is_changelog() {
            return flow;
        }
        let input = Arc::clone(&flow.stream.schema);
        let schema = with_row_kind(&input);
        let mut outputs: Vec<Physical> = (0..input.fields().len()).map(|index| column(index, &input)).collect();
        outputs.push(lit(RowKind::Insert as u8));
        let operator = OperatorSpec::Project(ProjectSpec {
            exprs: scalar_exprs(&outputs, &input),
            schema: SchemaSpec(Arc::clone(&schema)),
        });
        flow.stream = self.chain(flow.stream, operator, schema);
        flow
    }
}
