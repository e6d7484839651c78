//! Vertices and edges: chaining, redistributing, gathering.

use std::sync::Arc;

use arrow::datatypes::SchemaRef;
use thalweg_engine::plan::{
    Edge, ExchangeMode, MergeMode, OperatorSpec, Partitioning, SchemaSpec, SortKey, Vertex, VertexId,
};

use super::Lowering;
use crate::estimate::Estimate;
use crate::properties::{Physical, Stream, scalar_exprs};

impl Lowering<'_> {
    /// A new source vertex.
    pub(super) fn source(
        &mut self,
        scan: OperatorSpec,
        parallelism: usize,
        schema: SchemaRef,
        estimate: Estimate,
    ) -> Stream {
        let vertex = self.add_vertex(scan, parallelism, &schema);
        self.note_rows(vertex, &estimate);
        self.scans.insert(vertex, estimate.clone());
        Stream {
            tails: vec![vertex],
            schema,
            parallelism,
            hashed: Vec::new(),
            ordering: Vec::new(),
            estimate,
            handled_filters: Vec::new(),
        }
    }

    /// Chains `operator`, which emits `schema`, to the stream. The branches of a union meet first.
    pub(super) fn chain(&mut self, mut stream: Stream, operator: OperatorSpec, schema: SchemaRef) -> Stream {
        match stream.tails[..] {
            [tail] if !self.streaming.closed.contains(&tail) => {
                let vertex = &mut self.graph.vertices[tail];
                vertex.chain.push(operator);
                vertex.output_schema = SchemaSpec(Arc::clone(&schema));
            }
            _ => {
                let vertex = self.add_vertex(operator, stream.parallelism, &schema);
                self.connect_forward(&stream, vertex, 0);
                stream.tails = vec![vertex];
            }
        }
        stream.schema = schema;
        stream.handled_filters.clear();
        self.note_estimate(&stream);
        stream
    }

    /// Connects without redistributing, where the parallelism allows it.
    pub(super) fn connect_forward(&mut self, stream: &Stream, to: VertexId, input: usize) {
        for tail in stream.tails.clone() {
            let same = self.graph.vertices[tail].parallelism == self.graph.vertices[to].parallelism;
            let partitioning = if same {
                Partitioning::Forward
            } else {
                Partitioning::Rebalance
            };
            self.connect(tail, to, input, partitioning, MergeMode::Arrival);
        }
    }

    /// Connects every tail of `stream` to `input` of `to`.
    pub(super) fn connect_all(&mut self, stream: &Stream, to: VertexId, input: usize, partitioning: &Partitioning) {
        for tail in stream.tails.clone() {
            self.connect(tail, to, input, partitioning.clone(), MergeMode::Arrival);
        }
    }

    /// Sends rows that agree in `keys` to the same subtask of a new vertex that starts with `head`.
    pub(super) fn exchange_hash(
        &mut self,
        stream: Stream,
        keys: Vec<Physical>,
        head: OperatorSpec,
        schema: SchemaRef,
    ) -> Stream {
        let partitioning = Partitioning::Hash(scalar_exprs(&keys, &stream.schema));
        let mut redistributed = self.exchange(stream, partitioning, self.options.parallelism, head, schema);
        redistributed.hashed = vec![keys];
        redistributed
    }

    /// Sends everything to one subtask and continues there with `head`; no exchange when it is there already.
    pub(super) fn gather(&mut self, stream: Stream, head: OperatorSpec, schema: SchemaRef) -> Stream {
        if stream.is_single() {
            return self.chain(stream, head, schema);
        }
        self.exchange(stream, Partitioning::Global, 1, head, schema)
    }

    /// A new vertex behind an exchange. What was known of the distribution and the order is gone.
    pub(super) fn exchange(
        &mut self,
        stream: Stream,
        partitioning: Partitioning,
        parallelism: usize,
        head: OperatorSpec,
        schema: SchemaRef,
    ) -> Stream {
        let vertex = self.add_vertex(head, parallelism, &schema);
        self.connect_all(&stream, vertex, 0, &partitioning);
        let redistributed = Stream {
            tails: vec![vertex],
            schema,
            parallelism,
            hashed: Vec::new(),
            ordering: Vec::new(),
            handled_filters: Vec::new(),
            ..stream
        };
        self.note_estimate(&redistributed);
        redistributed
    }

    /// Merges the sorted subtasks of `stream` into one; `merge` is the operator that does it.
    pub(super) fn exchange_merge(&mut self, stream: Stream, merge: OperatorSpec, order: Vec<SortKey>) -> Stream {
        let schema = Arc::clone(&stream.schema);
        let vertex = self.add_vertex(merge, 1, &schema);
        let mut input = 0;
        for tail in stream.tails.clone() {
            self.connect(tail, vertex, input, Partitioning::Global, MergeMode::PerChannel);
            input += self.graph.vertices[tail].parallelism;
        }
        let merged = Stream {
            tails: vec![vertex],
            parallelism: 1,
            hashed: Vec::new(),
            ordering: order,
            ..stream
        };
        self.note_estimate(&merged);
        merged
    }

    /// Adds a vertex with one operator.
    pub(super) fn add_vertex(&mut self, head: OperatorSpec, parallelism: usize, schema: &SchemaRef) -> VertexId {
        self.graph.add_vertex(Vertex {
            name: String::new(),
            parallelism,
            chain: vec![head],
            output_schema: SchemaSpec(Arc::clone(schema)),
            estimated_rows: None,
            uids: Vec::new(),
        })
    }

    /// Notes the stream's size on its vertex.
    pub(super) fn note_estimate(&mut self, stream: &Stream) {
        if let [tail] = stream.tails[..] {
            self.note_rows(tail, &stream.estimate);
        }
    }

    fn note_rows(&mut self, vertex: VertexId, estimate: &Estimate) {
        self.graph.vertices[vertex].estimated_rows = estimate.rows.map(|rows| rows.round() as u64);
    }

    fn connect(&mut self, from: VertexId, to: VertexId, input: usize, partitioning: Partitioning, merge: MergeMode) {
        let redistributes = !matches!(partitioning, Partitioning::Forward | Partitioning::Global);
        let mode = if self.options.blocking_exchanges && redistributes {
            ExchangeMode::Blocking
        } else {
            ExchangeMode::Pipelined
        };
        self.graph.edges.push(Edge {
            from,
            to,
            input,
            partitioning,
            mode,
            merge,
            buffer_timeout_ms: None,
            side_output: None,
        });
    }

    /// Names every vertex after its chain.
    pub(super) fn name_vertices(&mut self) {
        for vertex in &mut self.graph.vertices {
            let names: Vec<String> = vertex
                .chain
                .iter()
                .map(|operator| match operator {
                    OperatorSpec::Scan(scan) => format!("Scan {}", scan.table),
                    OperatorSpec::Window(window) => window.label.clone(),
                    OperatorSpec::Wrapped(wrapped) => wrapped.label.clone(),
                    OperatorSpec::Sink(sink) => format!("Sink {}", sink.connector),
                    other => other.name().to_string(),
                })
                .collect();
            vertex.name = names.join(" -> ");
        }
    }
}
