//! [`JobGraph`]: the dataflow as data. No closures, no threads: what travels from the planner to the
//! runtime, and later from the client to the JobManager and to the TaskManagers.

mod codec;
mod expression;
mod job_graph;
mod operator_ids;
mod specs;
mod stream_specs;

pub(crate) use codec::InputPlaceholder;
pub use codec::{decode_job_graph, encode_job_graph};
pub use expression::{Aggregates, PhysicalPlan, ScalarExpr, SchemaSpec, SortKey};
pub use job_graph::{Edge, ExchangeMode, JobGraph, JobGraphError, MergeMode, Partitioning, Vertex, VertexId};
pub use operator_ids::{operator_ids, vertex_ids};
pub use specs::{
    AggregateMode, AggregateSpec, BuildFilterSpec, CollectSpec, ExpandSpec, FilterSpec, HashJoinSpec, JoinFilterSpec,
    LimitSpec, MergeSpec, NestedLoopJoinSpec, OperatorSpec, ProjectSpec, RuntimeCheckSpec, RuntimeFilterId,
    RuntimeFilterSpec, ScanSpec, SinkSpec, SortSpec, WindowSpec, WrappedSpec, input_placeholder,
};
pub use stream_specs::{
    AssignWatermarkSpec, CustomSpec, EmitSpec, GroupAggregateSpec, IntervalJoinSpec, JoinInputSpec, NormalizeSpec,
    Opaque, OverFrame, OverSpec, RankSpec, SessionAssignSpec, StreamJoinSpec, StreamScanSpec, StreamSortSpec,
    TemporalJoinSpec, TemporalTime, WatermarkSpec, WindowAggregateSpec, WindowAssignSpec, WindowJoinSpec, WindowKind,
    WindowProperty, WindowSource, WindowTime,
};
