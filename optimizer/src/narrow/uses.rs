//! What is wanted of each column of a node's output: the column itself, or only measures of it.

use std::sync::Arc;

use arrow::datatypes::{DataType, FieldRef};
use datafusion::common::tree_node::{TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DataFusionError, JoinType};
use datafusion::functions::string::{bit_length, octet_length};
use datafusion::functions::unicode::character_length;
use datafusion::logical_expr::expr::ScalarFunction;
use datafusion::logical_expr::utils::grouping_set_to_exprlist;
use datafusion::logical_expr::{Aggregate, Cast, Expr, Join, LogicalPlan, Projection, ScalarUDF};

/// A number computed from a string: a function that never fails, that is NULL for NULL only, and that depends on
/// nothing else. It may therefore be computed for rows that a join then drops, and before a join adds NULLs.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Measure {
    function: Arc<ScalarUDF>,
    /// Casts of the column, the first to be done first.
    casts: Vec<FieldRef>,
}

impl Measure {
    /// The measure that `expr` is, and the column of `schema` that it is taken of.
    pub(super) fn find(expr: &Expr, schema: &DFSchema) -> Option<(usize, Self)> {
        let Expr::ScalarFunction(call) = expr else {
            return None;
        };
        let [argument] = &call.args[..] else {
            return None;
        };
        if ![character_length(), octet_length(), bit_length()].contains(&call.func) {
            return None;
        }
        let mut casts = Vec::new();
        let mut inner = argument;
        while let Expr::Cast(cast) = inner {
            casts.push(Arc::clone(&cast.field));
            inner = &cast.expr;
        }
        casts.reverse();
        let Expr::Column(column) = inner else {
            return None;
        };
        let index = schema.maybe_index_of_column(column)?;
        let mut data_type = schema.field(index).data_type();
        if !matches!(data_type, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View) {
            return None;
        }
        for cast in &casts {
            if !cast_always_works(data_type, cast.data_type()) {
                return None;
            }
            data_type = cast.data_type();
        }
        let function = Arc::clone(&call.func);
        Some((index, Self { function, casts }))
    }

    /// The measure of `column`.
    pub(super) fn of(&self, column: Column) -> Expr {
        let argument = self.casts.iter().fold(Expr::Column(column), |expr, field| {
            Expr::Cast(Cast {
                expr: Box::new(expr),
                field: Arc::clone(field),
            })
        });
        Expr::ScalarFunction(ScalarFunction::new_udf(Arc::clone(&self.function), vec![argument]))
    }
}

/// Whether every array of strings of the one type can be one of the other. Narrower offsets may overflow.
fn cast_always_works(from: &DataType, to: &DataType) -> bool {
    from == to
        || matches!(
            (from, to),
            (DataType::Utf8, DataType::LargeUtf8 | DataType::Utf8View) | (DataType::Utf8View, DataType::LargeUtf8)
        )
}

/// What is wanted of one column.
#[derive(Clone, Debug)]
pub(super) enum Use {
    /// The column as it is.
    Whole,
    /// Only these; nothing at all when there are none.
    Measures(Vec<Measure>),
}

/// Every column of `schema` is wanted as it is.
pub(super) fn all_whole(schema: &DFSchema) -> Vec<Use> {
    vec![Use::Whole; schema.fields().len()]
}

/// What is wanted of each input's columns when `uses` is wanted of the node's own. Empty for a node whose inputs are
/// planned as part of it.
pub(super) fn uses_below(node: &LogicalPlan, uses: &[Use]) -> Vec<Vec<Use>> {
    match node {
        node if crate::lower::is_leaf(node) => Vec::new(),
        LogicalPlan::Projection(projection) => vec![below_projection(projection, uses)],
        LogicalPlan::Aggregate(aggregate) => vec![below_aggregate(aggregate)],
        LogicalPlan::Filter(filter) => {
            let mut input = Input::new(filter.input.schema(), uses.to_vec());
            input.read(&filter.predicate);
            vec![input.uses]
        }
        LogicalPlan::Sort(sort) => {
            let mut input = Input::new(sort.input.schema(), uses.to_vec());
            sort.expr.iter().for_each(|key| input.read(&key.expr));
            vec![input.uses]
        }
        LogicalPlan::Limit(_) | LogicalPlan::SubqueryAlias(_) => vec![uses.to_vec()],
        LogicalPlan::Join(join) => below_join(join, uses),
        other => other.inputs().iter().map(|input| all_whole(input.schema())).collect(),
    }
}

/// The column of `schema` that `expr` passes on, under whatever name.
pub(super) fn carried(expr: &Expr, schema: &DFSchema) -> Option<usize> {
    match expr {
        Expr::Column(column) => schema.maybe_index_of_column(column),
        Expr::Alias(alias) if alias.metadata.is_none() => carried(&alias.expr, schema),
        _ => None,
    }
}

/// Where the columns of a join's left and right input begin in its output; `None` for a side that does not come out.
pub(super) fn places_in_output(join: &Join) -> [Option<usize>; 2] {
    match join.join_type {
        JoinType::Inner | JoinType::Left | JoinType::Right | JoinType::Full => {
            [Some(0), Some(join.left.schema().fields().len())]
        }
        JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => [Some(0), None],
        JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => [None, Some(0)],
    }
}

fn below_projection(projection: &Projection, uses: &[Use]) -> Vec<Use> {
    let mut input = Input::unused(projection.input.schema());
    for (expr, wanted) in projection.expr.iter().zip(uses) {
        match (carried(expr, input.schema), wanted) {
            (Some(column), Use::Measures(measures)) => {
                measures
                    .iter()
                    .for_each(|measure| input.measure(column, measure.clone()));
            }
            _ => input.read(expr),
        }
    }
    input.uses
}

fn below_aggregate(aggregate: &Aggregate) -> Vec<Use> {
    let mut input = Input::unused(aggregate.input.schema());
    match (
        &aggregate.group_expr[..],
        grouping_set_to_exprlist(&aggregate.group_expr),
    ) {
        // The same expression occurs in several sets and must stay the same in all.
        ([Expr::GroupingSet(_)], Ok(keys)) => keys.into_iter().for_each(|key| input.keep(key)),
        (keys, Ok(_)) => keys.iter().for_each(|key| input.read(key)),
        (_, Err(_)) => input.keep_all(),
    }
    aggregate.aggr_expr.iter().for_each(|function| input.read(function));
    input.uses
}

fn below_join(join: &Join, uses: &[Use]) -> Vec<Vec<Use>> {
    let sides = [&join.left, &join.right].into_iter().zip(places_in_output(join));
    let below = sides.map(|(side, place)| {
        let schema = side.schema();
        let mut input = match place {
            Some(first) => Input::new(schema, uses[first..first + schema.fields().len()].to_vec()),
            None => Input::unused(schema),
        };
        let keys = join.on.iter().flat_map(|(left, right)| [left, right]);
        keys.chain(&join.filter).for_each(|expr| input.keep(expr));
        input.uses
    });
    below.collect()
}

/// The columns of a node's input, and what is known to be wanted of them so far.
struct Input<'s> {
    schema: &'s DFSchema,
    uses: Vec<Use>,
}

impl<'s> Input<'s> {
    fn new(schema: &'s DFSchema, uses: Vec<Use>) -> Self {
        Self { schema, uses }
    }

    fn unused(schema: &'s DFSchema) -> Self {
        Self::new(schema, vec![Use::Measures(Vec::new()); schema.fields().len()])
    }

    fn measure(&mut self, column: usize, measure: Measure) {
        if let Use::Measures(known) = &mut self.uses[column]
            && !known.contains(&measure)
        {
            known.push(measure);
        }
    }

    /// Notes what `expr` wants: measures where it takes them, all else whole.
    fn read(&mut self, expr: &Expr) {
        self.walk(expr, true);
    }

    /// Everything that `expr` reads here is wanted whole.
    fn keep(&mut self, expr: &Expr) {
        self.walk(expr, false);
    }

    fn keep_all(&mut self) {
        self.uses.fill(Use::Whole);
    }

    fn walk(&mut self, expr: &Expr, may_measure: bool) {
        let walked = expr.apply(|inner| {
            if may_measure && let Some((column, measure)) = Measure::find(inner, self.schema) {
                self.measure(column, measure);
                return Ok(TreeNodeRecursion::Jump);
            }
            match inner {
                // The other side of a join has columns that are not found here.
                Expr::Column(column) => {
                    if let Some(index) = self.schema.maybe_index_of_column(column) {
                        self.uses[index] = Use::Whole;
                    }
                }
                // What they read of this input is hidden in their plans.
                Expr::Exists(_) | Expr::InSubquery(_) | Expr::SetComparison(_) | Expr::ScalarSubquery(_) => {
                    self.keep_all();
                }
                _ => {}
            }
            Ok::<_, DataFusionError>(TreeNodeRecursion::Continue)
        });
        debug_assert!(walked.is_ok(), "the visitor never fails");
    }
}
