//! Where the values of a column come from: followed down the job graph to the scans.
//!
//! A row that a scan is followed to may be dropped without another effect on the stream above than the loss of the
//! rows that have its value in the column. That is what a runtime filter needs.

use datafusion::common::JoinType;
use thalweg_engine::plan::{ExchangeMode, JobGraph, OperatorSpec, ScalarExpr, VertexId};

use crate::properties::column_index;

/// A scan, and one of its columns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Origin {
    /// The scan's vertex.
    pub(super) vertex: VertexId,
    /// The column of the scan itself.
    pub(super) column: usize,
    /// The place in the vertex's chain behind the scan and what filters it.
    pub(super) place: usize,
    /// The column there.
    pub(super) column_at_place: usize,
}

/// Which edges are followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Reach {
    /// All.
    Everywhere,
    /// Those whose two ends run at the same time.
    Pipelined,
}

/// The scans from which column `column` of what `vertex` emits comes. A join's key comes from both of its sides.
pub(super) fn origins(graph: &JobGraph, vertex: VertexId, column: usize, reach: Reach) -> Vec<Origin> {
    let mut found = Vec::new();
    let mut open = vec![(vertex, column)];
    while let Some((vertex, column)) = open.pop() {
        let chain = &graph.vertices[vertex].chain;
        let Some(columns) = down_the_chain(chain, column) else {
            continue;
        };
        match &chain[0] {
            OperatorSpec::Scan(scan) if scan.limit.is_none() => {
                let filters = chain[1..].iter().take_while(|operator| is_filter(operator)).count();
                found.push(Origin {
                    vertex,
                    column: columns[0],
                    place: filters + 1,
                    column_at_place: columns[filters],
                });
            }
            OperatorSpec::Scan(_) => {}
            head => {
                let inputs = inputs_with(head, columns[0]);
                for edge in graph.inputs_of(vertex) {
                    let is_open = reach == Reach::Everywhere || edge.mode == ExchangeMode::Pipelined;
                    for (input, column) in inputs.iter().filter(|_| is_open) {
                        if input.is_none_or(|input| input == edge.input) {
                            open.push((edge.from, *column));
                        }
                    }
                }
            }
        }
    }
    found
}

fn is_filter(operator: &OperatorSpec) -> bool {
    matches!(operator, OperatorSpec::Filter(_) | OperatorSpec::RuntimeFilter(_))
}

/// The column in the output of each operator of a chain, given that of the last; `None` when one of them but the first
/// makes it, or does not emit the same rows when rows before it are dropped.
fn down_the_chain(chain: &[OperatorSpec], column: usize) -> Option<Vec<usize>> {
    let mut columns = vec![column; chain.len()];
    for place in (1..chain.len()).rev() {
        columns[place - 1] = input_column(&chain[place], columns[place])?;
    }
    Some(columns)
}

/// The input's column that an operator with one input hands on as its column `column`.
fn input_column(operator: &OperatorSpec, column: usize) -> Option<usize> {
    let plain = |exprs: &[ScalarExpr]| column_index(&exprs.get(column)?.expr);
    match operator {
        OperatorSpec::Filter(filter) => match &filter.projection {
            Some(projection) => projection.get(column).copied(),
            None => Some(column),
        },
        OperatorSpec::RuntimeFilter(_) => Some(column),
        // The windows of a row depend on that row only; their bounds are the last three columns.
        OperatorSpec::WindowAssign(assign) => (column + 3 < assign.schema.0.fields().len()).then_some(column),
        OperatorSpec::Project(project) => plain(&project.exprs),
        // A group loses all of its rows or none.
        OperatorSpec::Aggregate(aggregate) => plain(&aggregate.group_by),
        OperatorSpec::Sort(sort) if sort.fetch.is_none() => Some(column),
        OperatorSpec::Merge(merge) if merge.fetch.is_none() => Some(column),
        _ => None,
    }
}

/// The inputs of a vertex's first operator that hand on its column `column`, each with its column there; input `None`
/// stands for all.
fn inputs_with(head: &OperatorSpec, column: usize) -> Vec<(Option<usize>, usize)> {
    match head {
        OperatorSpec::HashJoin(join) => {
            let widths = [&join.build_schema, &join.probe_schema].map(|schema| schema.0.fields().len());
            let Some((side, column)) = side_of(join.join_type, join.projection.as_deref(), widths, column) else {
                return vec![];
            };
            let mut inputs = vec![(Some(side), column)];
            if shares_keys(join.join_type) {
                let pairs = join.build_keys.iter().zip(&join.probe_keys);
                for (build, probe) in pairs {
                    let pair = [column_index(&build.expr), column_index(&probe.expr)];
                    if let (true, Some(other)) = (pair[side] == Some(column), pair[1 - side]) {
                        inputs.push((Some(1 - side), other));
                    }
                }
            }
            inputs
        }
        OperatorSpec::NestedLoopJoin(join) => {
            let widths = [&join.build_schema, &join.probe_schema].map(|schema| schema.0.fields().len());
            side_of(join.join_type, join.projection.as_deref(), widths, column)
                .map(|(side, column)| (Some(side), column))
                .into_iter()
                .collect()
        }
        other => input_column(other, column)
            .map(|column| (None, column))
            .into_iter()
            .collect(),
    }
}

/// The side, and its column, that a join's output column comes from; `None` when the join emits rows of the other side
/// that it would not emit if that side's rows were there.
fn side_of(
    join_type: JoinType,
    projection: Option<&[usize]>,
    widths: [usize; 2],
    column: usize,
) -> Option<(usize, usize)> {
    let full = match projection {
        Some(projection) => *projection.get(column)?,
        None => column,
    };
    let (side, column) = match join_type {
        JoinType::RightSemi | JoinType::RightAnti | JoinType::RightMark => (1, full),
        JoinType::LeftSemi | JoinType::LeftAnti | JoinType::LeftMark => (0, full),
        _ if full < widths[0] => (0, full),
        _ => (1, full - widths[0]),
    };
    let pads_other = match join_type {
        JoinType::Full => true,
        JoinType::Left => side == 1,
        JoinType::Right => side == 0,
        _ => false,
    };
    // The mark of a mark join is no column of a side.
    (!pads_other && column < widths[side]).then_some((side, column))
}

/// Whether rows of the other side with the same key are of use for nothing but the rows with that key.
fn shares_keys(join_type: JoinType) -> bool {
    matches!(
        join_type,
        JoinType::Inner | JoinType::LeftSemi | JoinType::RightSemi | JoinType::Left | JoinType::Right
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_of_a_side_that_a_join_fills_up_or_marks_have_no_origin() {
        // Two columns on the left, three on the right.
        let sides = |join_type, columns: usize| -> Vec<Option<(usize, usize)>> {
            (0..columns)
                .map(|column| side_of(join_type, None, [2, 3], column))
                .collect()
        };
        let (left, right) = ([Some((0, 0)), Some((0, 1))], [Some((1, 0)), Some((1, 1)), Some((1, 2))]);
        assert_eq!(sides(JoinType::Inner, 5), [&left[..], &right].concat());
        assert_eq!(sides(JoinType::Left, 5), [&left[..], &[None; 3]].concat());
        assert_eq!(sides(JoinType::Right, 5), [&[None; 2], &right[..]].concat());
        assert_eq!(sides(JoinType::Full, 5), [None; 5]);
        assert_eq!(sides(JoinType::LeftSemi, 2), left);
        assert_eq!(sides(JoinType::LeftAnti, 2), left);
        assert_eq!(sides(JoinType::LeftMark, 3), [&left[..], &[None]].concat());
        assert_eq!(sides(JoinType::RightSemi, 3), right);
        assert_eq!(sides(JoinType::RightAnti, 3), right);
        assert_eq!(sides(JoinType::RightMark, 4), [&right[..], &[None]].concat());
        assert_eq!(side_of(JoinType::Inner, Some(&[4, 0]), [2, 3], 0), Some((1, 2)));
        assert_eq!(side_of(JoinType::Inner, Some(&[4, 0]), [2, 3], 2), None);
    }
}
