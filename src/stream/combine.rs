//! Operators that are prepared for where their rows come from, so that fewer of them are exchanged.

use super::graph::{Node, Upstream};

/// The nodes with each operator that has a [`super::graph::Combiner`] made into two, unless it and what it reads are one
/// subtask each: then nothing is exchanged, and one step is all.
pub(super) fn in_two_steps(nodes: &[Node], parallelism_of: &[usize]) -> Vec<Node> {
    let mut all: Vec<Node> = Vec::with_capacity(nodes.len());
    let mut places = Vec::with_capacity(nodes.len());
    for (id, node) in nodes.iter().enumerate() {
        let mut node = node.clone();
        let producers = node.inputs.iter().map(|(_, upstream)| upstream.node);
        let widths: Vec<usize> = producers.map(|producer| parallelism_of[producer]).collect();
        for (_, upstream) in &mut node.inputs {
            upstream.node = places[upstream.node];
        }
        let is_spread = parallelism_of[id] > 1 || widths.iter().any(|width| *width > 1);
        if let Some(combiner) = node.combiner.take().filter(|_| is_spread) {
            for (number, ((_, upstream), width)) in node.inputs.iter_mut().zip(widths).enumerate() {
                let source = Upstream {
                    partitioning: None,
                    buffer_timeout_ms: None,
                    ..upstream.clone()
                };
                let name = format!("Partial {}", node.name);
                let mut partial =
                    Node::new(combiner.before.clone(), name, combiner.states.clone()).with_input(0, &[source]);
                partial.parallelism = Some(width);
                // As lasting as that of the operator itself, which the program gives.
                partial.uid = node.uid.as_ref().map(|uid| format!("{uid}/partial-{number}"));
                (upstream.node, upstream.side) = (all.len(), None);
                upstream.partitioning = Some(combiner.partitioning.clone());
                all.push(partial);
            }
            node.operator = combiner.after;
        }
        places.push(all.len());
        all.push(node);
    }
    all
}
