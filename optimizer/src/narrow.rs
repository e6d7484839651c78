//! Computes below a join what only is wanted of its wide columns.
//!
//! In `SELECT sum(length(a.payload)) FROM a JOIN b ON a.k = b.k` the join would carry, exchange and perhaps spill strings
//! of which only the lengths are wanted. Here a projection below the join takes their lengths, the join carries numbers,
//! and the expressions above read those.
//!
//! One walk does it. On the way down each node is told what is wanted of its columns ([`Use`]): a column of which only
//! [`Measure`]s are wanted may go. A projection or an aggregate says so first; filters, sorts, limits, aliases, projections that pass
//! the column on, and joins that do not compare it hand the word down. On the way up the lowest join that heard it puts
//! the projection under the side that has the column, and the nodes above replace the measures by the new columns.
//! Names, types and nullability of all that comes out stay as they were.

#[cfg(test)]
mod tests;
mod uses;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::common::{Column, DFSchema, DataFusionError};
use datafusion::logical_expr::expr_rewriter::NamePreserver;
use datafusion::logical_expr::{Expr, LogicalPlan, Projection};

use uses::{Measure, Use, all_whole, carried, places_in_output, uses_below};

type Result<T> = std::result::Result<T, DataFusionError>;

/// Measures of a node's columns, by the place that the column had, and the columns that hold them now.
type Given = HashMap<(usize, Measure), Column>;

/// A node on its way through the walk, and what is wanted of its columns.
enum Step<'p> {
    Enter(&'p LogicalPlan, Vec<Use>),
    /// The last is what is wanted of its inputs.
    Leave(&'p LogicalPlan, Vec<Use>, Vec<Vec<Use>>),
}

/// A node after the walk.
#[derive(Default)]
struct Done {
    /// `None` when it is as it was.
    plan: Option<LogicalPlan>,
    /// The measures that its output holds in place of the columns that they were wanted of.
    given: Given,
}

/// `plan` with narrow columns in its joins; `None` when there is nothing to do.
///
/// # Errors
/// When DataFusion refuses a rewritten node.
pub(crate) fn narrow(plan: &LogicalPlan) -> Result<Option<LogicalPlan>> {
    let mut names = Names {
        plan,
        prefix: None,
        given_out: 0,
    };
    let mut steps = vec![Step::Enter(plan, all_whole(plan.schema()))];
    let mut done: Vec<Done> = Vec::new();
    while let Some(step) = steps.pop() {
        match step {
            Step::Enter(node, uses) => {
                let below = uses_below(node, &uses);
                steps.push(Step::Leave(node, uses, below.clone()));
                let inputs = node.inputs().into_iter().zip(below);
                steps.extend(inputs.map(|(input, uses)| Step::Enter(input, uses)));
            }
            Step::Leave(node, uses, below) => {
                // The last input was walked first.
                let mut inputs = done.split_off(done.len() - below.len());
                inputs.reverse();
                done.push(leave(node, &uses, &below, inputs, &mut names)?);
            }
        }
    }
    Ok(done.pop().and_then(|root| root.plan))
}

fn leave(
    node: &LogicalPlan,
    uses: &[Use],
    below: &[Vec<Use>],
    mut inputs: Vec<Done>,
    names: &mut Names,
) -> Result<Done> {
    if matches!(node, LogicalPlan::Join(_)) {
        for ((input, side), uses) in inputs.iter_mut().zip(node.inputs()).zip(below) {
            measure_under_join(side, uses, input, names)?;
        }
    }
    if inputs.iter().all(|input| input.plan.is_none()) {
        return Ok(Done::default());
    }
    let mut plans = Vec::with_capacity(inputs.len());
    let mut given = Vec::with_capacity(inputs.len());
    for (input, before) in inputs.into_iter().zip(node.inputs()) {
        plans.push(input.plan.unwrap_or_else(|| before.clone()));
        given.push(input.given);
    }
    if let (LogicalPlan::Projection(projection), [given]) = (node, &given[..]) {
        return project(projection, uses, given, plans.remove(0));
    }
    let rebuilt = with_inputs(node, plans)?;
    if given.iter().all(HashMap::is_empty) {
        return Ok(Done {
            plan: Some(rebuilt),
            given: Given::new(),
        });
    }
    give(node, rebuilt, given)
}

/// Puts a projection on a join's side that takes the measures wanted of it, unless a join further down did.
fn measure_under_join(side: &LogicalPlan, uses: &[Use], done: &mut Done, names: &mut Names) -> Result<()> {
    let given: HashSet<usize> = done.given.keys().map(|(column, _)| *column).collect();
    let wanted: Vec<(usize, Column, &[Measure])> = uses
        .iter()
        .enumerate()
        .filter_map(|(column, wanted)| match wanted {
            Use::Measures(measures) if !measures.is_empty() && !given.contains(&column) => Some((
                column,
                Column::from(side.schema().qualified_field(column)),
                &measures[..],
            )),
            _ => None,
        })
        .collect();
    if wanted.is_empty() {
        return Ok(());
    }
    let input = done.plan.take().unwrap_or_else(|| side.clone());
    let mut exprs: Vec<Expr> = input
        .schema()
        .columns()
        .into_iter()
        .filter(|column| wanted.iter().all(|(_, replaced, _)| replaced != column))
        .map(Expr::Column)
        .collect();
    for (index, column, measures) in wanted {
        for measure in measures {
            let name = names.next();
            exprs.push(measure.of(column.clone()).alias(&name));
            done.given
                .insert((index, measure.clone()), Column::new_unqualified(name));
        }
    }
    let projection = Projection::try_new(exprs, Arc::new(input))?;
    done.plan = Some(LogicalPlan::Projection(projection));
    Ok(())
}

/// `projection` over an input that gives measures: passes on the measures of the columns that it passed on.
fn project(projection: &Projection, uses: &[Use], given: &Given, input: LogicalPlan) -> Result<Done> {
    let schema = projection.input.schema();
    let names = NamePreserver::new_for_projection();
    let narrowed: HashSet<usize> = given.keys().map(|(column, _)| *column).collect();
    let mut exprs = Vec::with_capacity(projection.expr.len());
    let mut passed_on: Vec<Column> = Vec::new();
    let mut above = Given::new();
    for (index, (expr, wanted)) in projection.expr.iter().zip(uses).enumerate() {
        let column = carried(expr, schema).filter(|column| narrowed.contains(column));
        let (Some(column), Use::Measures(measures)) = (column, wanted) else {
            let saved = names.save(expr);
            let measured = read_measures(expr.clone(), schema, given)?;
            exprs.push(saved.restore(measured.data));
            continue;
        };
        for measure in measures {
            if let Some(holder) = given.get(&(column, measure.clone())) {
                above.insert((index, measure.clone()), holder.clone());
                if !passed_on.contains(holder) {
                    passed_on.push(holder.clone());
                }
            }
        }
    }
    exprs.extend(passed_on.into_iter().map(Expr::Column));
    let projection = Projection::try_new(exprs, Arc::new(input))?;
    Ok(Done {
        plan: Some(LogicalPlan::Projection(projection)),
        given: above,
    })
}

/// Makes `rebuilt`, which is `node` over inputs that give measures, read them; tells what it gives in turn.
fn give(node: &LogicalPlan, rebuilt: LogicalPlan, given: Vec<Given>) -> Result<Done> {
    let mut inputs = given.into_iter();
    let (first, second) = (inputs.next().unwrap_or_default(), inputs.next().unwrap_or_default());
    let (plan, given) = match node {
        LogicalPlan::Filter(_) | LogicalPlan::Sort(_) | LogicalPlan::Limit(_) => {
            (read_in(rebuilt, node.schema(), &first)?, first)
        }
        LogicalPlan::Aggregate(aggregate) => {
            let plan = read_in(rebuilt, aggregate.input.schema(), &first)?;
            (plan, Given::new())
        }
        LogicalPlan::SubqueryAlias(alias) => {
            let qualified = |column: Column| Column::new(Some(alias.alias.clone()), column.name);
            let given = first.into_iter().map(|(key, holder)| (key, qualified(holder)));
            (rebuilt, given.collect())
        }
        LogicalPlan::Join(join) => {
            let sides = [first, second].into_iter().zip(places_in_output(join));
            let given = sides.filter_map(|(given, place)| Some((given, place?)));
            let given = given.flat_map(|(given, place)| {
                let moved = given.into_iter();
                moved.map(move |((column, measure), holder)| ((column + place, measure), holder))
            });
            (rebuilt, given.collect())
        }
        other => {
            return Err(DataFusionError::Internal(format!(
                "nothing was wanted below '{}' that could be measured",
                other.display()
            )));
        }
    };
    Ok(Done {
        plan: Some(plan.recompute_schema()?),
        given,
    })
}

/// `node` whose expressions over `schema` read measures where they computed them. Names stay.
fn read_in(node: LogicalPlan, schema: &DFSchema, given: &Given) -> Result<LogicalPlan> {
    let names = NamePreserver::new(&node);
    let read = node.map_expressions(|expr| {
        let saved = names.save(&expr);
        Ok(read_measures(expr, schema, given)?.update_data(|expr| saved.restore(expr)))
    })?;
    Ok(read.data)
}

fn read_measures(expr: Expr, schema: &DFSchema, given: &Given) -> Result<Transformed<Expr>> {
    expr.transform_down(|inner| {
        let holder = Measure::find(&inner, schema).and_then(|key| given.get(&key));
        Ok(match holder {
            Some(holder) => Transformed::new(Expr::Column(holder.clone()), true, TreeNodeRecursion::Jump),
            None => Transformed::no(inner),
        })
    })
}

fn with_inputs(node: &LogicalPlan, plans: Vec<LogicalPlan>) -> Result<LogicalPlan> {
    let mut plans = plans.into_iter();
    let rebuilt = node.clone().map_children(|before| {
        Ok(match plans.next() {
            Some(plan) => Transformed::yes(plan),
            None => Transformed::no(before),
        })
    })?;
    Ok(rebuilt.data)
}

/// Names for new columns that no column of the plan has.
struct Names<'p> {
    plan: &'p LogicalPlan,
    prefix: Option<String>,
    given_out: usize,
}

impl Names<'_> {
    fn next(&mut self) -> String {
        let plan = self.plan;
        let prefix = self.prefix.get_or_insert_with(|| unused_prefix(plan));
        self.given_out += 1;
        format!("{prefix}{}", self.given_out)
    }
}

fn unused_prefix(plan: &LogicalPlan) -> String {
    let mut prefix = "__measure_".to_string();
    let mut open = vec![plan];
    while let Some(node) = open.pop() {
        let fields = node.schema().fields();
        // A longer prefix is not the beginning of a name that the shorter one was not.
        while fields.iter().any(|field| field.name().starts_with(&prefix)) {
            prefix.push('_');
        }
        open.extend(node.inputs());
    }
    prefix
}
