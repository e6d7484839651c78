//! The program as it is put together, and the job graph that it becomes.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use thalweg_engine::exchange::MAX_PARALLELISM;
use thalweg_engine::plan::{
    CollectSpec, Edge, ExchangeMode, JobGraph, MergeMode, OperatorSpec, Partitioning, SchemaSpec, Vertex,
};

use super::combine::in_two_steps;
use crate::error::{Error, Result};

pub(super) type NodeId = usize;

/// Whether an operator runs in the thread of the one before it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Chaining {
    #[default]
    Always,
    /// Not with the one before it.
    Head,
    /// Neither with the one before it nor the one after it.
    Never,
}

/// Where a stream comes from.
#[derive(Clone, Debug)]
pub(super) struct Upstream {
    pub(super) node: NodeId,
    pub(super) side: Option<usize>,
    /// As asked for; `None`: forward where the parallelism allows it.
    pub(super) partitioning: Option<Partitioning>,
    pub(super) buffer_timeout_ms: Option<i64>,
}

/// One operator of the program.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) operator: OperatorSpec,
    pub(super) schema: SchemaRef,
    /// The edges in, by port.
    pub(super) inputs: Vec<(usize, Upstream)>,
    pub(super) parallelism: Option<usize>,
    /// The most subtasks that it can have.
    pub(super) parallelism_max: usize,
    pub(super) name: String,
    pub(super) uid: Option<String>,
    pub(super) chaining: Chaining,
    /// How it is done in two steps, where it can be.
    pub(super) combiner: Option<Box<Combiner>>,
}

/// An operator in two steps: one before the exchange, which makes fewer rows, and one after it.
#[derive(Clone, Debug)]
pub(super) struct Combiner {
    pub(super) before: OperatorSpec,
    /// What the first step hands on.
    pub(super) states: SchemaRef,
    /// How that is exchanged.
    pub(super) partitioning: Partitioning,
    /// In place of the operator.
    pub(super) after: OperatorSpec,
}

impl Node {
    pub(super) fn new(operator: OperatorSpec, name: impl Into<String>, schema: SchemaRef) -> Self {
        Self {
            operator,
            schema,
            inputs: Vec::new(),
            parallelism: None,
            parallelism_max: MAX_PARALLELISM as usize,
            name: name.into(),
            uid: None,
            chaining: Chaining::Always,
            combiner: None,
        }
    }

    pub(super) fn with_input(mut self, port: usize, upstream: &[Upstream]) -> Self {
        self.inputs
            .extend(upstream.iter().map(|upstream| (port, upstream.clone())));
        // The bounds of a range say how many subtasks there are.
        for (_, upstream) in &self.inputs {
            if let Some(Partitioning::Range { bounds, .. }) = &upstream.partitioning {
                self.parallelism = Some(bounds.len() + 1);
            }
        }
        self
    }

    /// All rows meet in one subtask.
    pub(super) fn single(mut self) -> Self {
        self.parallelism_max = 1;
        self
    }

    pub(super) fn is_sink(&self) -> bool {
        matches!(self.operator, OperatorSpec::Sink(_) | OperatorSpec::Collect(_))
    }
}

/// Fails when two operators have one id.
pub(super) fn check_uids(nodes: &[Node]) -> Result<()> {
    for (index, node) in nodes.iter().enumerate() {
        let Some(uid) = &node.uid else { continue };
        if let Some(other) = nodes[..index].iter().find(|other| other.uid.as_ref() == Some(uid)) {
            return Err(Error::statement(format!(
                "the operators '{}' and '{}' have the same uid '{uid}'",
                other.name, node.name
            ))
            .with_remedy("a uid tells an operator from all others of its program"));
        }
    }
    Ok(())
}

/// The program with a collector of `upstream` behind it.
pub(super) fn with_collector(nodes: &[Node], upstream: &[Upstream], schema: &SchemaRef) -> Vec<Node> {
    let mut nodes = nodes.to_vec();
    let collect = OperatorSpec::Collect(CollectSpec {
        schema: SchemaSpec(Arc::clone(schema)),
    });
    nodes.push(Node::new(collect, "Collect", Arc::clone(schema)).with_input(0, upstream));
    nodes
}

/// The job graph of what leads to a sink.
pub(super) fn translate(name: &str, nodes: &[Node], parallelism: usize) -> Result<JobGraph> {
    let is_live = live(nodes);
    if !is_live.contains(&true) {
        return Err(Error::statement("the program has no sink")
            .with_remedy("end it with print(), sink_to_table(..) or execute_and_collect()"));
    }
    let asked_for = parallelism_of(nodes, &is_live, parallelism)?;
    let nodes = &in_two_steps(nodes, &asked_for);
    check_uids(nodes)?;
    let live = live(nodes);
    let parallelism_of = parallelism_of(nodes, &live, parallelism)?;
    let mut graph = JobGraph::new(name);
    let mut vertex_of = vec![0; nodes.len()];
    for (id, node) in nodes.iter().enumerate().filter(|(id, _)| live[*id]) {
        if let Some(producer) = chained_to(nodes, &live, &parallelism_of, id) {
            let vertex = vertex_of[producer];
            vertex_of[id] = vertex;
            let vertex = &mut graph.vertices[vertex];
            vertex.name = format!("{} -> {}", vertex.name, node.name);
            vertex.chain.push(node.operator.clone());
            vertex.uids.push(node.uid.clone());
            vertex.output_schema = SchemaSpec(Arc::clone(&node.schema));
            continue;
        }
        vertex_of[id] = graph.add_vertex(Vertex {
            name: node.name.clone(),
            parallelism: parallelism_of[id],
            chain: vec![node.operator.clone()],
            output_schema: SchemaSpec(Arc::clone(&node.schema)),
            estimated_rows: None,
            uids: vec![node.uid.clone()],
        });
        for (port, upstream) in &node.inputs {
            let same = parallelism_of[upstream.node] == parallelism_of[id];
            let partitioning = upstream.partitioning.clone().unwrap_or(if same {
                Partitioning::Forward
            } else {
                Partitioning::Rebalance
            });
            graph.edges.push(Edge {
                from: vertex_of[upstream.node],
                to: vertex_of[id],
                input: *port,
                partitioning,
                mode: ExchangeMode::Pipelined,
                merge: MergeMode::Arrival,
                buffer_timeout_ms: upstream.buffer_timeout_ms,
                side_output: upstream.side,
            });
        }
    }
    graph.validate().map_err(|error| Error::statement(error.to_string()))?;
    Ok(graph)
}

/// Which operators lead to a sink.
fn live(nodes: &[Node]) -> Vec<bool> {
    let mut live: Vec<bool> = nodes.iter().map(Node::is_sink).collect();
    // Inputs come before what reads them.
    for id in (0..nodes.len()).rev() {
        if live[id] {
            let inputs = nodes[id].inputs.iter();
            inputs.for_each(|(_, upstream)| live[upstream.node] = true);
        }
    }
    live
}

fn parallelism_of(nodes: &[Node], live: &[bool], default: usize) -> Result<Vec<usize>> {
    let mut all = Vec::with_capacity(nodes.len());
    for (id, node) in nodes.iter().enumerate() {
        let wanted = node.parallelism.unwrap_or(default.min(node.parallelism_max));
        if live[id] && wanted > node.parallelism_max {
            return Err(Error::statement(format!(
                "'{}' has {wanted} subtasks, it can have {} at most",
                node.name, node.parallelism_max
            )));
        }
        all.push(wanted);
    }
    Ok(all)
}

/// The operator in whose chain `id` goes.
fn chained_to(nodes: &[Node], live: &[bool], parallelism_of: &[usize], id: NodeId) -> Option<NodeId> {
    let [(0, upstream)] = nodes[id].inputs.as_slice() else {
        return None;
    };
    let producer = upstream.node;
    let forward = matches!(upstream.partitioning, None | Some(Partitioning::Forward));
    let readers = nodes.iter().zip(live).filter(|(_, live)| **live);
    let readers = readers.flat_map(|(node, _)| &node.inputs);
    let readers = readers.filter(|(_, other)| other.node == producer && other.side.is_none());
    let fits = forward
        && upstream.side.is_none()
        && upstream.buffer_timeout_ms.is_none()
        && parallelism_of[producer] == parallelism_of[id]
        && nodes[id].chaining == Chaining::Always
        && nodes[producer].chaining != Chaining::Never
        && readers.count() == 1;
    fits.then_some(producer)
}
