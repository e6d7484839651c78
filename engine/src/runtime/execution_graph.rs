//! [`ExecutionGraph`]: the stages of a job, cut at the blocking edges, and the channels of each edge.

use crate::data::{EngineError, Result};
use crate::exchange::ChannelId;
use crate::plan::{Edge, ExchangeMode, JobGraph, MergeMode, Partitioning, VertexId};

/// Vertices tied together by pipelined edges: they run at once, and are what is restarted together (a region).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// The stage's vertices.
    pub vertices: Vec<VertexId>,
}

/// The parallel form of a job graph.
#[derive(Clone, Debug)]
pub struct ExecutionGraph {
    /// The job graph.
    pub graph: JobGraph,
    /// The stages, each after those whose blocking output it reads.
    pub stages: Vec<Stage>,
}

impl ExecutionGraph {
    /// Checks and expands `graph`.
    ///
    /// # Errors
    /// When the graph is not valid, or a blocking edge lies inside a stage (its consumer would have to run before
    /// its producer has finished).
    pub fn expand(graph: JobGraph) -> Result<Self> {
        graph.validate().map_err(|e| EngineError::Plan(e.to_string()))?;
        let order = graph
            .topological_order()
            .map_err(|e| EngineError::Plan(e.to_string()))?;
        let mut stage_of: Vec<usize> = (0..graph.vertices.len()).collect();
        for edge in graph.edges.iter().filter(|edge| edge.mode == ExchangeMode::Pipelined) {
            let (keep, replace) = (stage_of[edge.from], stage_of[edge.to]);
            stage_of
                .iter_mut()
                .filter(|stage| **stage == replace)
                .for_each(|stage| *stage = keep);
        }
        for edge in graph.edges.iter().filter(|edge| edge.mode == ExchangeMode::Blocking) {
            if stage_of[edge.from] == stage_of[edge.to] {
                return Err(EngineError::Plan(format!(
                    "the blocking exchange '{}' -> '{}' is bypassed by a pipelined one, neither side could finish first",
                    graph.vertices[edge.from].name, graph.vertices[edge.to].name
                )));
            }
        }
        let stages = sort_stages(&graph, &order, &stage_of)?;
        Ok(Self { graph, stages })
    }

    /// The channels of an edge.
    pub fn channels(&self, edge: usize) -> Vec<ChannelId> {
        let Edge {
            from, to, partitioning, ..
        } = &self.graph.edges[edge];
        let (producers, consumers) = (
            self.graph.vertices[*from].parallelism,
            self.graph.vertices[*to].parallelism,
        );
        (0..producers)
            .flat_map(|from| {
                let targets = match partitioning {
                    Partitioning::Forward => from..from + 1,
                    Partitioning::Global => 0..1,
                    _ => 0..consumers,
                };
                targets.map(move |to| ChannelId { edge, from, to })
            })
            .collect()
    }

    /// The input of the consuming operator that a channel belongs to.
    pub fn port(&self, channel: ChannelId) -> usize {
        let edge = &self.graph.edges[channel.edge];
        match edge.merge {
            MergeMode::Arrival => edge.input,
            MergeMode::PerChannel => edge.input + channel.from,
        }
    }

    /// Number of inputs that the first operator of a vertex has.
    pub fn inputs(&self, vertex: VertexId) -> usize {
        self.graph
            .inputs_of(vertex)
            .map(|edge| match edge.merge {
                MergeMode::Arrival => edge.input + 1,
                MergeMode::PerChannel => edge.input + self.graph.vertices[edge.from].parallelism,
            })
            .max()
            .unwrap_or(0)
    }
}

/// Orders the stages so that each comes after those whose output it reads.
fn sort_stages(graph: &JobGraph, order: &[VertexId], stage_of: &[usize]) -> Result<Vec<Stage>> {
    let mut ids: Vec<usize> = Vec::new();
    for vertex in order {
        if !ids.contains(&stage_of[*vertex]) {
            ids.push(stage_of[*vertex]);
        }
    }
    let mut stages = Vec::new();
    let mut finished: Vec<usize> = Vec::new();
    while finished.len() < ids.len() {
        let ready = ids.iter().copied().find(|id| {
            !finished.contains(id)
                && graph
                    .edges
                    .iter()
                    .filter(|edge| edge.mode == ExchangeMode::Blocking && stage_of[edge.to] == *id)
                    .all(|edge| finished.contains(&stage_of[edge.from]))
        });
        let Some(id) = ready else {
            return Err(EngineError::Plan("the stages of the job wait for each other".into()));
        };
        finished.push(id);
        let vertices = order.iter().copied().filter(|vertex| stage_of[*vertex] == id).collect();
        stages.push(Stage { vertices });
    }
    Ok(stages)
}
