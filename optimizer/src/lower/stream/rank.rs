//! `ROW_NUMBER() OVER (PARTITION BY .. ORDER BY ..) <= n`: the first rows of each partition, and deduplication.

use std::sync::Arc;

use arrow::datatypes::{Field, Schema};
use datafusion::common::{Column, ScalarValue};
use datafusion::logical_expr::expr::WindowFunctionParams;
use datafusion::logical_expr::utils::split_conjunction;
use datafusion::logical_expr::{
    EmptyRelation, Expr, Filter, LogicalPlan, Operator, SortExpr, Window, WindowFunctionDefinition,
};
use datafusion::physical_expr::expressions::Literal;
use thalweg_engine::Result;
use thalweg_engine::data::{with_row_kind, without_row_kind};
use thalweg_engine::plan::{OperatorSpec, RankSpec, ScalarExpr, SchemaSpec, SortKey};

use super::flow::{Flow, pull};
use super::{refused, scan::column_of};
use crate::lower::Lowering;
use crate::properties::{Physical, column, column_index, scalar_exprs};

/// A filter on a row number.
pub(super) struct RankPattern<'p> {
    filter: &'p Filter,
    /// What is between the filter and the numbering, from the filter down.
    between: Vec<&'p LogicalPlan>,
    window: &'p Window,
    params: &'p WindowFunctionParams,
    first: usize,
    last: usize,
    /// The conditions of the filter that are not on the number.
    rest: Vec<Expr>,
}

impl<'p> RankPattern<'p> {
    pub(super) fn of(filter: &'p Filter) -> Option<Self> {
        let mut between = Vec::new();
        let mut node = filter.input.as_ref();
        let window = loop {
            match node {
                LogicalPlan::Window(window) => break window,
                LogicalPlan::Projection(projection) => {
                    between.push(node);
                    node = &projection.input;
                }
                LogicalPlan::SubqueryAlias(alias) => {
                    between.push(node);
                    node = &alias.input;
                }
                _ => return None,
            }
        };
        let [function] = &window.window_expr[..] else {
            return None;
        };
        let params = row_number(function)?;
        let number = window.schema.fields().len() - 1;
        let (mut first, mut last, mut rest) = (1, usize::MAX, Vec::new());
        for conjunct in split_conjunction(&filter.predicate) {
            let bounds = number_bounds(conjunct, |expr| {
                let mut pulled = expr.clone();
                for node in &between {
                    pulled = pull(&pulled, node)?;
                }
                (column_of(&pulled, node)? == number).then_some(())
            });
            match bounds {
                Some((least, most)) => {
                    first = first.max(least);
                    last = last.min(most);
                }
                None => rest.push(conjunct.clone()),
            }
        }
        (last < usize::MAX).then_some(Self {
            filter,
            between,
            window,
            params,
            first,
            last,
            rest,
        })
    }

    /// Whether a column of the filter's output is the row number.
    pub(super) fn is_number(&self, reference: &Column) -> bool {
        let mut expr = Expr::Column(reference.clone());
        for node in &self.between {
            match pull(&expr, node) {
                Some(pulled) => expr = pulled,
                None => return true,
            }
        }
        let number = self.window.schema.fields().len() - 1;
        expr.column_refs()
            .into_iter()
            .any(|column| self.window.schema.maybe_index_of_column(column) == Some(number))
    }
}

/// The parameters of a `ROW_NUMBER()`.
pub(super) fn row_number(expr: &Expr) -> Option<&WindowFunctionParams> {
    match expr {
        Expr::Alias(alias) => row_number(&alias.expr),
        Expr::WindowFunction(function) => match &function.fun {
            WindowFunctionDefinition::WindowUDF(udf) if udf.name().eq_ignore_ascii_case("row_number") => {
                Some(&function.params)
            }
            _ => None,
        },
        _ => None,
    }
}

/// The places that `number <= n`, `n >= number`, `number = n` and the like admit.
fn number_bounds(expr: &Expr, is_number: impl Fn(&Expr) -> Option<()>) -> Option<(usize, usize)> {
    let Expr::BinaryExpr(binary) = expr else { return None };
    let (op, literal) = if let Some(literal) = whole(&binary.right) {
        is_number(&binary.left)?;
        (binary.op, literal)
    } else {
        let literal = whole(&binary.left)?;
        is_number(&binary.right)?;
        (binary.op.swap()?, literal)
    };
    Some(match op {
        Operator::LtEq => (1, literal),
        Operator::Lt => (1, literal.checked_sub(1)?),
        Operator::Eq => (literal, literal),
        Operator::GtEq => (literal.max(1), usize::MAX),
        Operator::Gt => (literal + 1, usize::MAX),
        _ => return None,
    })
}

fn whole(expr: &Expr) -> Option<usize> {
    match expr {
        Expr::Literal(value, _) => match value.cast_to(&arrow::datatypes::DataType::UInt64).ok()? {
            ScalarValue::UInt64(Some(number)) => usize::try_from(number).ok(),
            _ => None,
        },
        _ => None,
    }
}

impl Lowering<'_> {
    pub(super) async fn stream_rank(&mut self, pattern: RankPattern<'_>, numbered: bool) -> Result<Flow> {
        if pattern.first > pattern.last {
            let nothing = EmptyRelation {
                produce_one_row: false,
                schema: Arc::clone(pattern.filter.input.schema()),
            };
            return Ok(Flow::new(self.empty_relation(&nothing)?, true));
        }
        let input = self.flow(&pattern.window.input).await?;
        let logical = pattern.window.input.schema();
        let partition = self.physical_all(&pattern.params.partition_by, logical)?;
        let order = self.sort_keys(&pattern.params.order_by, logical, &input.stream)?;
        let looked_at = pattern.rest.iter().flat_map(|expr| expr.column_refs());
        let numbered = numbered || looked_at.into_iter().any(|reference| pattern.is_number(reference));
        let needs_number = numbered && pattern.first < pattern.last;
        let places = Places {
            first: pattern.first,
            last: pattern.last,
            number: needs_number.then(|| pattern.window.schema.field(logical.fields().len()).as_ref().clone()),
        };
        let width = input.width();
        let mut flow = self.first_rows(input, partition, order, places)?;
        if !needs_number {
            flow = self.constant_number(flow, width, &pattern)?;
        }
        for node in pattern.between.iter().rev() {
            if let LogicalPlan::Projection(projection) = node {
                flow = self.compute(projection, flow)?;
            }
        }
        self.keep_all(pattern.rest, pattern.filter.input.schema(), flow)
    }

    /// The number's column where nobody looks at it, or where it can only be 1.
    fn constant_number(&mut self, input: Flow, width: usize, pattern: &RankPattern<'_>) -> Result<Flow> {
        let number = pattern.window.schema.field(width);
        let value = ScalarValue::UInt64(Some(pattern.last as u64)).cast_to(number.data_type())?;
        let mut outputs: Vec<Physical> = (0..width).map(|index| column(index, &input.stream.schema)).collect();
        outputs.push(Arc::new(Literal::new(value)));
        self.compute_columns(&[], outputs, pattern.window.schema.as_arrow(), input)
    }

    /// Keeps rows of each partition by their place in `order`.
    pub(super) fn first_rows(
        &mut self,
        input: Flow,
        partition: Vec<Physical>,
        order: Vec<SortKey>,
        places: Places,
    ) -> Result<Flow> {
        if order.is_empty() {
            return Err(refused(
                "ROW_NUMBER() without ORDER BY",
                "say in which order the rows are numbered",
            ));
        }
        let window = input.window.filter(|window| {
            !input.is_changelog() && partition.iter().any(|key| column_index(key) == Some(window.end))
        });
        let schema = Arc::clone(&input.stream.schema);
        let by_time = column_index(&order[0].expr.expr).is_some_and(|first| {
            order.len() == 1 && (input.rowtimes.contains(&first) || input.proctimes.contains(&first))
        });
        let mut fields: Vec<Field> = without_row_kind(&schema)
            .fields()
            .iter()
            .map(|f| f.as_ref().clone())
            .collect();
        fields.extend(places.number.clone());
        let bare = Schema::new(fields);
        let keeps_first = by_time
            && places.last == 1
            && !order[0].descending
            && !input.is_changelog()
            && column_index(&order[0].expr.expr).is_some_and(|first| input.proctimes.contains(&first));
        let output = if window.is_some() || keeps_first {
            Arc::new(bare)
        } else {
            with_row_kind(&bare)
        };
        let rest: Vec<Physical> = partition
            .iter()
            .filter(|key| window.is_none_or(|window| column_index(key) != Some(window.end)))
            .cloned()
            .collect();
        let operator = OperatorSpec::Rank(RankSpec {
            partition_by: scalar_exprs(&rest, &schema),
            order_by: order,
            first: places.first,
            last: places.last,
            number: places.number.is_some(),
            window_end: window.map(|window| window.end),
            by_time,
            input_schema: SchemaSpec(Arc::clone(&schema)),
            update_before: true,
            ttl_ms: self.options.streaming.state_ttl_ms,
            schema: SchemaSpec(Arc::clone(&output)),
        });
        let mut flow = input.clone();
        flow.keys = partition_key(&partition, &places).into_iter().collect();
        flow.window = window;
        // The operator's state belongs to the key groups of what it knows partitions by, which is all but the window's end.
        let shipped = match self.options.streaming.checkpointed {
            true => rest,
            false => partition.clone(),
        };
        flow.stream = self.ship(input.stream, shipped.clone(), operator, output);
        if !shipped.is_empty() {
            flow.stream.hashed = vec![shipped];
        }
        Ok(flow)
    }

    /// `ORDER BY .. LIMIT n` as the first rows of one partition.
    pub(super) fn first_of_all(&mut self, input: Flow, order: Vec<SortKey>, skip: usize, fetch: usize) -> Result<Flow> {
        let places = Places {
            first: skip + 1,
            last: skip + fetch,
            number: None,
        };
        self.first_rows(input, Vec::new(), order, places)
    }

    /// Order keys as a job graph holds them, over the stream's batches.
    pub(super) fn order_keys(
        &self,
        order: &[SortExpr],
        logical: &datafusion::common::DFSchema,
        flow: &Flow,
    ) -> Result<Vec<SortKey>> {
        order
            .iter()
            .map(|key| {
                Ok(SortKey {
                    expr: ScalarExpr::new(self.physical(&key.expr, logical)?, Arc::clone(&flow.stream.schema)),
                    descending: !key.asc,
                    nulls_first: key.nulls_first,
                })
            })
            .collect()
    }
}

/// Which places to keep, and the field of their number, if it is wanted.
pub(super) struct Places {
    pub(super) first: usize,
    pub(super) last: usize,
    pub(super) number: Option<Field>,
}

/// One row per partition is told by the partition's columns.
fn partition_key(partition: &[Physical], places: &Places) -> Option<Vec<usize>> {
    (places.first == places.last).then(|| partition.iter().map(column_index).collect())?
}
