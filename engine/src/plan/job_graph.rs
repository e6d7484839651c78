//! Vertices (operator chains) and edges (partitioning x exchange mode).

use serde::{Deserialize, Serialize};

use crate::plan::{Opaque, OperatorSpec, ScalarExpr, SchemaSpec, SortKey};

/// Index of a [`Vertex`] in its [`JobGraph`].
pub type VertexId = usize;

/// A dataflow: vertices and the edges between them. Plain data, see [`crate::plan::encode_job_graph`].
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct JobGraph {
    /// What the job is called in messages and metrics.
    pub name: String,
    /// The vertices; a [`VertexId`] is an index into this.
    pub vertices: Vec<Vertex>,
    /// The edges.
    pub edges: Vec<Edge>,
}

/// A chain of operators that runs in `parallelism` subtasks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Vertex {
    /// What the vertex is called, e.g. `Scan lineitem -> Filter -> PartialAggregate`.
    pub name: String,
    /// Number of subtasks, at least one.
    pub parallelism: usize,
    /// The chain: each operator hands its output to the next. The first may have several inputs or, as a
    /// source, none.
    pub chain: Vec<OperatorSpec>,
    /// The schema of what the last operator of the chain emits.
    pub output_schema: SchemaSpec,
    /// Estimated rows that leave the vertex, when known.
    pub estimated_rows: Option<u64>,
    /// What the program calls each operator of the chain, from one version of it to the next, where it does. Empty when it
    /// names none.
    pub uids: Vec<Option<String>>,
}

impl Vertex {
    /// What the program calls the operator at `place` of the chain.
    pub fn uid(&self, place: usize) -> Option<&str> {
        self.uids.get(place)?.as_deref()
    }
}

/// A stream between two vertices.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Edge {
    /// The producing vertex.
    pub from: VertexId,
    /// The consuming vertex.
    pub to: VertexId,
    /// Which input of the consuming vertex's first operator this edge is. Several edges may feed one input (a union).
    pub input: usize,
    /// Which rows go to which subtask.
    pub partitioning: Partitioning,
    /// Pipelined or blocking.
    pub mode: ExchangeMode,
    /// Whether the channels of the edge are merged by arrival or kept apart.
    pub merge: MergeMode,
    /// How long the exchange may hold rows back, in milliseconds; -1 = until a batch is full; `None` = the job's default.
    pub buffer_timeout_ms: Option<i64>,
    /// Which side output of the producing vertex this edge carries; its main output when `None`.
    pub side_output: Option<usize>,
}

/// Which subtask of the consumer gets a row (Flink paper, section 3.1).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Partitioning {
    /// Subtask `i` to subtask `i`; both sides have the same parallelism.
    Forward,
    /// By the key group of the hash of the keys.
    Hash(Vec<ScalarExpr>),
    /// By order: rows up to the first bound go to subtask 0, and so on. `bounds` holds one row of literals
    /// per boundary, one fewer than the consumer has subtasks.
    Range {
        /// The order.
        keys: Vec<SortKey>,
        /// The boundaries, ascending in that order.
        bounds: Vec<Vec<ScalarExpr>>,
    },
    /// Every row to every subtask.
    Broadcast,
    /// Batches in turn to all subtasks.
    Rebalance,
    /// Everything to subtask 0.
    Global,
    /// As a function of the program says: see `crate::exchange::CustomPartition`.
    Custom(Opaque),
}

/// How an edge holds what is under way (Flink paper, section 3.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExchangeMode {
    /// Producer and consumer run at once, bounded buffers, back-pressure.
    Pipelined,
    /// The producer finishes first; its output is kept, in memory or on disk, and can be read again.
    Blocking,
}

/// How the channels of an edge meet at the consumer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MergeMode {
    /// By arrival: one input.
    Arrival,
    /// Each upstream subtask is an input of its own, numbered from the edge's `input` on (merging sorted streams).
    PerChannel,
}

/// Why a [`JobGraph`] is not one that can run.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("job graph '{graph}' is not valid: {detail}")]
pub struct JobGraphError {
    /// The job graph's name.
    pub graph: String,
    /// What is wrong, naming the vertex.
    pub detail: String,
}

impl JobGraph {
    /// An empty graph.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            ..Self::default()
        }
    }

    /// Adds a vertex.
    pub fn add_vertex(&mut self, vertex: Vertex) -> VertexId {
        self.vertices.push(vertex);
        self.vertices.len() - 1
    }

    /// Adds a pipelined edge merged by arrival, with the job's buffer timeout.
    pub fn connect(&mut self, from: VertexId, to: VertexId, input: usize, partitioning: Partitioning) {
        self.edges.push(Edge {
            from,
            to,
            input,
            partitioning,
            mode: ExchangeMode::Pipelined,
            merge: MergeMode::Arrival,
            buffer_timeout_ms: None,
            side_output: None,
        });
    }

    /// Whether it is a streaming job: its scans read their splits side by side.
    pub fn is_streaming(&self) -> bool {
        let mut heads = self.vertices.iter().filter_map(|vertex| vertex.chain.first());
        heads.any(|head| matches!(head, OperatorSpec::Scan(scan) if scan.stream.is_some()))
    }

    /// Whether what reaches the end of `vertex` may never end: it reads a source without an end, and no limit ends it.
    pub fn is_endless(&self, vertex: VertexId) -> bool {
        let mut seen = vec![false; self.vertices.len()];
        let mut above = vec![vertex];
        while let Some(vertex) = above.pop() {
            let chain = &self.vertices[vertex].chain;
            let ends =
                |operator: &OperatorSpec| matches!(operator, OperatorSpec::Limit(limit) if limit.fetch.is_some());
            if std::mem::replace(&mut seen[vertex], true) || chain.iter().any(ends) {
                continue;
            }
            if let Some(OperatorSpec::Scan(scan)) = chain.first()
                && scan.limit.is_none()
                && scan.plan.0.properties().boundedness.is_unbounded()
            {
                return true;
            }
            above.extend(self.inputs_of(vertex).map(|edge| edge.from));
        }
        false
    }

    /// The edges into `vertex`.
    pub fn inputs_of(&self, vertex: VertexId) -> impl Iterator<Item = &Edge> {
        self.edges.iter().filter(move |edge| edge.to == vertex)
    }

    /// The edges out of `vertex`.
    pub fn outputs_of(&self, vertex: VertexId) -> impl Iterator<Item = &Edge> {
        self.edges.iter().filter(move |edge| edge.from == vertex)
    }

    /// The vertices in an order in which every producer comes before its consumers.
    ///
    /// # Errors
    /// When the graph has a cycle.
    pub fn topological_order(&self) -> Result<Vec<VertexId>, JobGraphError> {
        let mut missing: Vec<usize> = (0..self.vertices.len()).map(|v| self.inputs_of(v).count()).collect();
        let mut order: Vec<VertexId> = (0..missing.len()).filter(|v| missing[*v] == 0).collect();
        let mut next = 0;
        while next < order.len() {
            for edge in self.outputs_of(order[next]) {
                missing[edge.to] -= 1;
                if missing[edge.to] == 0 {
                    order.push(edge.to);
                }
            }
            next += 1;
        }
        if order.len() == self.vertices.len() {
            Ok(order)
        } else {
            Err(self.error("it has a cycle outside an iteration".into()))
        }
    }

    /// Checks everything that the runtime relies on.
    ///
    /// # Errors
    /// Names the first vertex or edge that is wrong.
    pub fn validate(&self) -> Result<(), JobGraphError> {
        for edge in &self.edges {
            let (Some(from), Some(to)) = (self.vertices.get(edge.from), self.vertices.get(edge.to)) else {
                return Err(self.error(format!(
                    "edge {} -> {} names a vertex that does not exist",
                    edge.from, edge.to
                )));
            };
            let place = format!("edge '{}' -> '{}'", from.name, to.name);
            if matches!(edge.partitioning, Partitioning::Forward) && from.parallelism != to.parallelism {
                return Err(self.error(format!(
                    "{place} is Forward between parallelism {} and {}",
                    from.parallelism, to.parallelism
                )));
            }
            if let Partitioning::Range { bounds, keys } = &edge.partitioning {
                if bounds.len() + 1 != to.parallelism {
                    return Err(self.error(format!(
                        "{place} is Range with {} bounds for {} subtasks, it needs one fewer than subtasks",
                        bounds.len(),
                        to.parallelism
                    )));
                }
                if bounds.iter().any(|bound| bound.len() != keys.len()) {
                    return Err(self.error(format!("{place}: a bound needs one literal per key")));
                }
            }
        }
        for (id, vertex) in self.vertices.iter().enumerate() {
            if vertex.parallelism == 0 {
                return Err(self.error(format!("vertex '{}' has parallelism 0", vertex.name)));
            }
            let Some(head) = vertex.chain.first() else {
                return Err(self.error(format!("vertex '{}' has no operator", vertex.name)));
            };
            if !vertex.uids.is_empty() && vertex.uids.len() != vertex.chain.len() {
                return Err(self.error(format!(
                    "vertex '{}' has {} uids for {} operators",
                    vertex.name,
                    vertex.uids.len(),
                    vertex.chain.len()
                )));
            }
            let has_inputs = self.inputs_of(id).next().is_some();
            if has_inputs == head.is_source() {
                return Err(self.error(format!(
                    "vertex '{}' {}",
                    vertex.name,
                    if has_inputs {
                        "is a source but has inputs"
                    } else {
                        "has no input and is no source"
                    }
                )));
            }
            if vertex.chain.iter().skip(1).any(OperatorSpec::is_source) {
                return Err(self.error(format!("vertex '{}' chains a source", vertex.name)));
            }
        }
        self.topological_order().map(|_| ())
    }

    fn error(&self, detail: String) -> JobGraphError {
        JobGraphError {
            graph: self.name.clone(),
            detail,
        }
    }
}
