//! What tells the operators that keep state apart, from one version of a program to the next.
//!
//! The program's own name for an operator (its uid) where there is one. Else a hash of what the operator does and of the ids of the
//! operators with state that lead to it: operators without state leave no trace, so that a mended filter or a new
//! computed column changes no id, and neither does the parallelism.

use xxhash_rust::xxh3::xxh3_64;

use crate::plan::{AggregateMode, JobGraph, OperatorSpec, VertexId};

impl OperatorSpec {
    /// Whether what the operator hands on may depend on more than the batch it is handed: a checkpoint holds something of it.
    pub fn keeps_state(&self) -> bool {
        match self {
            OperatorSpec::Filter(_)
            | OperatorSpec::RuntimeFilter(_)
            | OperatorSpec::Project(_)
            | OperatorSpec::Expand(_)
            | OperatorSpec::WindowAssign(_)
            | OperatorSpec::Wrapped(_)
            | OperatorSpec::Collect(_) => false,
            // It hands on what it holds at each barrier.
            OperatorSpec::WindowAggregate(spec) => spec.mode != AggregateMode::Partial,
            _ => true,
        }
    }

    /// Whether the operator can hand over what it keeps. Those of batch jobs cannot: their rows are read again.
    pub fn has_snapshots(&self) -> bool {
        !matches!(
            self,
            OperatorSpec::Aggregate(_)
                | OperatorSpec::HashJoin(_)
                | OperatorSpec::NestedLoopJoin(_)
                | OperatorSpec::Sort(_)
                | OperatorSpec::Merge(_)
                | OperatorSpec::Window(_)
        )
    }

    /// What the operator does, as far as its id depends on it: the same for the forms that it takes at different parallelism.
    fn role(&self) -> String {
        match self {
            OperatorSpec::Scan(scan) => format!("Scan {}", scan.table),
            OperatorSpec::Sink(sink) => format!("Sink {}", sink.connector),
            OperatorSpec::Custom(custom) => format!("Custom {}", custom.label),
            OperatorSpec::WindowAggregate(_) => "WindowAggregate".into(),
            other => other.name().into(),
        }
    }
}

/// The id of each operator of each vertex's chain; `None` for those without state.
pub fn operator_ids(graph: &JobGraph) -> Vec<Vec<Option<String>>> {
    let mut ids: Vec<Vec<Option<String>>> = graph
        .vertices
        .iter()
        .map(|vertex| vec![None; vertex.chain.len()])
        .collect();
    // What leads to the end of a vertex: the last operator with state, or what leads to its inputs.
    let mut leading: Vec<Vec<String>> = vec![Vec::new(); graph.vertices.len()];
    let mut taken: Vec<String> = Vec::new();
    for vertex in in_order(graph) {
        let mut above = inputs(graph, vertex, &leading);
        for (place, operator) in graph.vertices[vertex].chain.iter().enumerate() {
            if !operator.keeps_state() {
                continue;
            }
            let id = match graph.vertices[vertex].uid(place) {
                Some(uid) => uid.to_string(),
                None => {
                    let leading: Vec<String> = above.iter().map(|(input, id)| format!("{input}: {id}")).collect();
                    let text = format!("{} <- {}", operator.role(), leading.join(", "));
                    let hash = format!("{:016x}", xxh3_64(text.as_bytes()));
                    let mut id = hash.clone();
                    let mut number = 2;
                    while taken.contains(&id) {
                        id = format!("{hash}-{number}");
                        number += 1;
                    }
                    id
                }
            };
            taken.push(id.clone());
            // As over an edge: whether two operators are chained depends on the parallelism.
            above = vec![(0, id.clone())];
            ids[vertex][place] = Some(id);
        }
        leading[vertex] = above.into_iter().map(|(_, id)| id).collect();
    }
    ids
}

/// The id of each vertex, as far as state belongs to it rather than to an operator: rows in flight.
pub fn vertex_ids(graph: &JobGraph) -> Vec<String> {
    let operators = operator_ids(graph);
    let mut ids: Vec<String> = Vec::with_capacity(operators.len());
    for (vertex, operators) in operators.iter().enumerate() {
        let own = operators.iter().flatten().next().cloned();
        let mut id = own.unwrap_or_else(|| {
            let feeding = graph
                .inputs_of(vertex)
                .filter_map(|edge| operators_of(graph, edge.from));
            let text = feeding.collect::<Vec<_>>().join(", ");
            format!("{:016x}", xxh3_64(text.as_bytes()))
        });
        while ids.contains(&id) {
            id.push('+');
        }
        ids.push(id);
    }
    ids
}

fn operators_of(graph: &JobGraph, vertex: VertexId) -> Option<String> {
    let names = graph.vertices[vertex]
        .chain
        .iter()
        .filter(|operator| operator.keeps_state());
    Some(names.map(OperatorSpec::role).collect::<Vec<_>>().join(" -> "))
}

/// The vertices, producers first, as far as possible in the order in which they were made: of operators that look the same it tells
/// which is which, and does not depend on what is chained to what.
fn in_order(graph: &JobGraph) -> Vec<VertexId> {
    if graph.edges.iter().all(|edge| edge.from < edge.to) {
        return (0..graph.vertices.len()).collect();
    }
    graph.topological_order().unwrap_or_default()
}

/// The ids that lead to the inputs of a vertex, by input.
fn inputs(graph: &JobGraph, vertex: VertexId, leading: &[Vec<String>]) -> Vec<(usize, String)> {
    let mut edges: Vec<(usize, String)> = graph
        .inputs_of(vertex)
        .flat_map(|edge| {
            let side = edge.side_output.map_or(String::new(), |tag| format!(" side {tag}"));
            leading[edge.from]
                .iter()
                .map(move |id| (edge.input, format!("{id}{side}")))
        })
        .collect();
    edges.sort();
    edges
}

#[cfg(test)]
mod tests {
    use arrow::datatypes::{DataType, Field, Schema};
    use std::sync::Arc;

    use super::*;
    use crate::plan::{CustomSpec, FilterSpec, Opaque, Partitioning, ScalarExpr, SchemaSpec, Vertex};

    fn vertex(chain: Vec<OperatorSpec>, parallelism: usize) -> Vertex {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Boolean, true)]));
        Vertex {
            name: String::new(),
            parallelism,
            uids: Vec::new(),
            chain,
            output_schema: SchemaSpec(schema),
            estimated_rows: None,
        }
    }

    fn custom(label: &str) -> OperatorSpec {
        OperatorSpec::Custom(CustomSpec {
            label: label.into(),
            factory: Opaque(Arc::new(())),
        })
    }

    fn filter() -> OperatorSpec {
        let schema = Arc::new(Schema::new(vec![Field::new("a", DataType::Boolean, true)]));
        OperatorSpec::Filter(FilterSpec {
            predicate: ScalarExpr::column(0, &schema),
            projection: None,
        })
    }

    fn graph(filtered: bool, parallelism: usize) -> JobGraph {
        let mut graph = JobGraph::new("ids");
        let mut chain = vec![custom("source")];
        chain.extend(filtered.then(filter));
        let source = graph.add_vertex(vertex(chain, parallelism));
        let left = graph.add_vertex(vertex(vec![custom("count")], parallelism));
        let right = graph.add_vertex(vertex(vec![custom("count"), custom("last")], 1));
        graph.connect(source, left, 0, Partitioning::Rebalance);
        graph.connect(source, right, 0, Partitioning::Global);
        graph
    }

    #[test]
    fn ids_differ_within_a_job_and_stay_when_stateless_operators_come_and_go() {
        let ids: Vec<String> = operator_ids(&graph(false, 1)).into_iter().flatten().flatten().collect();
        assert_eq!(ids.len(), 4);
        assert!((1..4).all(|at| !ids[..at].contains(&ids[at])), "{ids:?}");
        let other: Vec<String> = operator_ids(&graph(true, 3)).into_iter().flatten().flatten().collect();
        assert_eq!(ids, other);
        let mut named = graph(false, 1);
        named.vertices[0].uids = vec![Some("mine".into())];
        let named: Vec<String> = operator_ids(&named).into_iter().flatten().flatten().collect();
        assert_eq!(named[0], "mine");
        assert_ne!(named[1], ids[1], "what leads to an operator counts");
    }
}
