//! What each operator of a chain is told: plain data, one struct per operator.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::DataType;
use datafusion::common::{JoinSide, JoinType};
use datafusion::physical_plan::ExecutionPlan;
use serde::{Deserialize, Serialize};

use crate::plan::codec::InputPlaceholder;
use crate::plan::expression::{join_side_text, join_type_text};
use crate::plan::{
    Aggregates, AssignWatermarkSpec, CustomSpec, GroupAggregateSpec, IntervalJoinSpec, NormalizeSpec, OverSpec,
    PhysicalPlan, RankSpec, ScalarExpr, SchemaSpec, SessionAssignSpec, SortKey, StreamJoinSpec, StreamScanSpec,
    StreamSortSpec, TemporalJoinSpec, WindowAggregateSpec, WindowAssignSpec, WindowJoinSpec,
};

/// One operator of a vertex's chain.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum OperatorSpec {
    /// Reads splits.
    Scan(ScanSpec),
    /// Keeps the rows for which a predicate is true.
    Filter(FilterSpec),
    /// Drops the rows whose keys no build side of the joins above holds, once those sides are known.
    RuntimeFilter(RuntimeFilterSpec),
    /// Computes columns.
    Project(ProjectSpec),
    /// Emits each batch once per grouping set.
    Expand(ExpandSpec),
    /// Groups and aggregates.
    Aggregate(AggregateSpec),
    /// Joins on equal keys: input 0 is built, input 1 probes.
    HashJoin(HashJoinSpec),
    /// Joins on any predicate: input 0 is built, input 1 probes.
    NestedLoopJoin(NestedLoopJoinSpec),
    /// Sorts its input; with `fetch`, keeps the first rows only.
    Sort(SortSpec),
    /// Merges sorted inputs, one per upstream subtask.
    Merge(MergeSpec),
    /// Skips and limits.
    Limit(LimitSpec),
    /// OVER windows that look at whole partitions.
    Window(WindowSpec),
    /// Appends the session that a row is in.
    SessionAssign(SessionAssignSpec),
    /// A DataFusion operator of the long tail (unnest, OVER windows that pass over the rows, inserts into foreign tables).
    Wrapped(WrappedSpec),
    /// Appends the windows of each row.
    WindowAssign(WindowAssignSpec),
    /// Makes watermarks in the middle of a stream.
    AssignWatermark(AssignWatermarkSpec),
    /// Groups and aggregates per window.
    WindowAggregate(WindowAggregateSpec),
    /// Groups and aggregates a stream without end.
    GroupAggregate(GroupAggregateSpec),
    /// Joins two streams.
    StreamJoin(StreamJoinSpec),
    /// Joins rows whose times are near each other.
    IntervalJoin(IntervalJoinSpec),
    /// Joins rows of the same window.
    WindowJoin(WindowJoinSpec),
    /// Joins rows with the version of a table at their time.
    TemporalJoin(TemporalJoinSpec),
    /// Keeps the first rows of each partition.
    Rank(RankSpec),
    /// Aggregates over the rows before each row.
    Over(OverSpec),
    /// Makes a full changelog of upserts.
    Normalize(NormalizeSpec),
    /// Puts rows into the order of event time.
    StreamSort(StreamSortSpec),
    /// An operator that the program brings along.
    Custom(CustomSpec),
    /// Hands the result to the client.
    Collect(CollectSpec),
    /// Writes to a connector.
    Sink(SinkSpec),
}

impl OperatorSpec {
    /// Whether the operator reads splits rather than inputs.
    pub fn is_source(&self) -> bool {
        matches!(self, OperatorSpec::Scan(_))
    }

    /// Whether the operator can write what it holds to disk when memory is short.
    pub fn spills(&self) -> bool {
        matches!(
            self,
            OperatorSpec::Aggregate(_)
                | OperatorSpec::HashJoin(_)
                | OperatorSpec::NestedLoopJoin(_)
                | OperatorSpec::Sort(_)
                | OperatorSpec::Window(_)
        )
    }

    /// The operator's name in plans, messages and metrics.
    pub fn name(&self) -> &'static str {
        match self {
            OperatorSpec::Scan(_) => "Scan",
            OperatorSpec::Filter(_) => "Filter",
            OperatorSpec::RuntimeFilter(_) => "RuntimeFilter",
            OperatorSpec::Project(_) => "Project",
            OperatorSpec::Expand(_) => "Expand",
            OperatorSpec::Aggregate(spec) => match spec.mode {
                AggregateMode::Partial => "PartialAggregate",
                AggregateMode::Final => "FinalAggregate",
                AggregateMode::Single => "Aggregate",
            },
            OperatorSpec::HashJoin(_) => "HashJoin",
            OperatorSpec::NestedLoopJoin(_) => "NestedLoopJoin",
            OperatorSpec::Sort(spec) if spec.fetch.is_some() => "TopN",
            OperatorSpec::Sort(_) => "Sort",
            OperatorSpec::Merge(_) => "Merge",
            OperatorSpec::Limit(_) => "Limit",
            OperatorSpec::Window(_) => "Window",
            OperatorSpec::SessionAssign(_) => "SessionAssign",
            OperatorSpec::Wrapped(_) => "Wrapped",
            OperatorSpec::WindowAssign(_) => "WindowAssign",
            OperatorSpec::AssignWatermark(_) => "AssignWatermark",
            OperatorSpec::WindowAggregate(spec) => match spec.mode {
                AggregateMode::Partial => "PartialWindowAggregate",
                AggregateMode::Final => "FinalWindowAggregate",
                AggregateMode::Single => "WindowAggregate",
            },
            OperatorSpec::GroupAggregate(_) => "GroupAggregate",
            OperatorSpec::StreamJoin(_) => "StreamJoin",
            OperatorSpec::IntervalJoin(_) => "IntervalJoin",
            OperatorSpec::WindowJoin(_) => "WindowJoin",
            OperatorSpec::TemporalJoin(_) => "TemporalJoin",
            OperatorSpec::Rank(_) => "Rank",
            OperatorSpec::Over(_) => "Over",
            OperatorSpec::Normalize(_) => "Normalize",
            OperatorSpec::StreamSort(_) => "StreamSort",
            OperatorSpec::Custom(_) => "Custom",
            OperatorSpec::Collect(_) => "Collect",
            OperatorSpec::Sink(_) => "Sink",
        }
    }
}

/// A source: each partition of `plan` is one split, handed to whichever subtask asks next.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScanSpec {
    /// The table's name, for messages.
    pub table: String,
    /// The scan; its partitions are the splits.
    pub plan: PhysicalPlan,
    /// Stop after this many rows per subtask.
    pub limit: Option<usize>,
    /// Bytes that reading a split holds at once (the columns of a Parquet row group), as far as known.
    pub read_bytes: usize,
    /// Runtime filters that tell between which bounds keys of the scan can match. They help to skip; who drops rows is
    /// the [`RuntimeFilterSpec`] further on.
    pub bounded_by: Vec<RuntimeCheckSpec>,
    /// In a streaming job: each subtask reads its splits side by side, rather than taking one after the other.
    pub stream: Option<StreamScanSpec>,
}

/// Keeps the rows for which `predicate` is true (not false, not NULL).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FilterSpec {
    /// A boolean expression over the input.
    pub predicate: ScalarExpr,
    /// The input columns to hand on; all when `None`.
    pub projection: Option<Vec<usize>>,
}

/// Tells a runtime filter from the others of its job.
pub type RuntimeFilterId = usize;

/// Drops rows that cannot match in a join further on. Never waits: what arrives before the join knows its build side
/// is handed on.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuntimeFilterSpec {
    /// The filters to apply; a row must pass all of them.
    pub checks: Vec<RuntimeCheckSpec>,
}

/// One filter as it is applied.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct RuntimeCheckSpec {
    /// Which filter: a [`BuildFilterSpec`] of the same id makes it.
    pub id: RuntimeFilterId,
    /// The key over the input; its type is one that [`RuntimeFilterSpec::supports`] names.
    pub key: ScalarExpr,
}

/// One filter as a hash join makes it from its build side.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BuildFilterSpec {
    /// Which filter.
    pub id: RuntimeFilterId,
    /// Which of the join's keys.
    pub key: usize,
    /// Whether every subtask has the whole build side (it is broadcast), so that the first one speaks for all.
    pub broadcast: bool,
    /// About how many keys there will be; sizes the filter.
    pub estimated_keys: Option<u64>,
    /// Least and greatest key that the table behind the build side holds, where statistics tell. A hint: keys outside
    /// are slower, not wrong.
    pub domain: Option<(i64, i64)>,
}

impl RuntimeFilterSpec {
    /// Whether keys of this type can be filtered by: those that are equal exactly when their bits are.
    pub fn supports(data_type: &DataType) -> bool {
        match data_type {
            DataType::Dictionary(_, value) => Self::supports(value),
            DataType::Date32 | DataType::Date64 | DataType::Time32(_) | DataType::Time64(_) => true,
            DataType::Timestamp(_, _) | DataType::Duration(_) => true,
            DataType::Decimal32(_, _) | DataType::Decimal64(_, _) | DataType::Decimal128(_, _) => true,
            DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => true,
            DataType::Binary | DataType::LargeBinary | DataType::BinaryView => true,
            other => other.is_integer(),
        }
    }
}

/// Computes one column per expression.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProjectSpec {
    /// The expressions over the input.
    pub exprs: Vec<ScalarExpr>,
    /// The output's schema.
    pub schema: SchemaSpec,
}

/// Emits each input batch once per projection (GROUPING SETS, CUBE and ROLLUP become a plain grouping this way).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExpandSpec {
    /// The projections, all of one schema.
    pub projections: Vec<Vec<ScalarExpr>>,
    /// The output's schema.
    pub schema: SchemaSpec,
}

/// Which part of an aggregation an operator does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AggregateMode {
    /// Rows to group states: group columns followed by the aggregates' state columns. May pass rows on as
    /// states of one row when grouping does not shrink them.
    Partial,
    /// States (as `Partial` emits them, in that column order) to results.
    Final,
    /// Rows to results.
    Single,
}

/// Groups by `group_by` and aggregates. Without group columns, emits exactly one row in `Final` and `Single`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct AggregateSpec {
    /// Partial, final or single.
    pub mode: AggregateMode,
    /// The group expressions over the operator's own input (in `Final` these are columns `0..n`).
    pub group_by: Vec<ScalarExpr>,
    /// The aggregate functions with their filters; their argument expressions refer to the *raw* input.
    pub aggregates: Aggregates,
    /// The output's schema: group columns, then states (`Partial`) or results.
    pub schema: SchemaSpec,
}

/// A residual condition of a join over columns of both sides.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinFilterSpec {
    /// A boolean expression over `schema`.
    pub expr: ScalarExpr,
    /// Where each column of `schema` comes from: `Left` is the build side (input 0), `Right` the probe side (input 1).
    #[serde(with = "join_side_text")]
    pub columns: Vec<(JoinSide, usize)>,
    /// The schema the expression refers to.
    pub schema: SchemaSpec,
}

/// A hash join. Input 0 is the build side and the *left* of `join_type`; input 1 probes and is the *right*.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HashJoinSpec {
    /// The join type, build side left.
    #[serde(with = "join_type_text")]
    pub join_type: JoinType,
    /// The keys over the build side.
    pub build_keys: Vec<ScalarExpr>,
    /// The keys over the probe side, of the same types.
    pub probe_keys: Vec<ScalarExpr>,
    /// Whether NULL keys match each other (set operations, IS NOT DISTINCT FROM).
    pub null_equals_null: bool,
    /// `NOT IN`: only with `RightAnti` and one key. When the build side holds a NULL key nothing is emitted; a
    /// probe row with a NULL key is emitted only when the build side is empty.
    pub null_aware: bool,
    /// The residual condition.
    pub filter: Option<JoinFilterSpec>,
    /// The columns to emit, as indices into the join's full output (build then probe columns, or one side's for
    /// semi and anti joins, or one side's and the mark); all when `None`.
    pub projection: Option<Vec<usize>>,
    /// The filters to make from the build side. Only where a probe row without a match brings no output.
    pub runtime_filters: Vec<BuildFilterSpec>,
    /// The build side's schema.
    pub build_schema: SchemaSpec,
    /// The probe side's schema.
    pub probe_schema: SchemaSpec,
    /// The output's schema, after `projection`.
    pub schema: SchemaSpec,
}

/// A join without keys. Input 0 is the build side and the *left* of `join_type`; input 1 probes and is the *right*.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct NestedLoopJoinSpec {
    /// The join type, build side left.
    #[serde(with = "join_type_text")]
    pub join_type: JoinType,
    /// The condition; `None` is a cross join.
    pub filter: Option<JoinFilterSpec>,
    /// As in [`HashJoinSpec::projection`].
    pub projection: Option<Vec<usize>>,
    /// The build side's schema.
    pub build_schema: SchemaSpec,
    /// The probe side's schema.
    pub probe_schema: SchemaSpec,
    /// The output's schema, after `projection`.
    pub schema: SchemaSpec,
}

/// Sorts all input, emits at its end.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SortSpec {
    /// The order.
    pub keys: Vec<SortKey>,
    /// Keep only so many first rows.
    pub fetch: Option<usize>,
    /// Whether the subtasks share their rows so that each emits one range of the keys: put one after the other, in the
    /// order of the subtasks, their outputs are in order. Not with `fetch`.
    pub by_range: bool,
}

/// Merges inputs that are sorted by `keys`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MergeSpec {
    /// The order of every input and of the output.
    pub keys: Vec<SortKey>,
    /// Stop after so many rows.
    pub fetch: Option<usize>,
}

/// Skips `skip` rows, then passes `fetch` rows.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct LimitSpec {
    /// Rows to skip.
    pub skip: usize,
    /// Rows to pass; all when `None`.
    pub fetch: Option<usize>,
}

/// Window functions over whole partitions of an input that is sorted by its partition keys, then by the windows' order.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WindowSpec {
    /// What it does, for plans and messages, e.g. `Window sum(x) OVER (..)`.
    pub label: String,
    /// DataFusion's `WindowAggExec`, its only child the placeholder; holds the window functions.
    pub plan: PhysicalPlan,
    /// The same functions when each is an aggregate of all rows of a partition: these need not be held at once.
    pub whole: Option<Aggregates>,
}

/// A DataFusion plan over one [`input_placeholder`], fed with the operator's input.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WrappedSpec {
    /// What it does, for plans and messages, e.g. `Window`.
    pub label: String,
    /// The plan; its only leaf is the placeholder.
    pub plan: PhysicalPlan,
}

/// Hands the result to whoever runs the job.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CollectSpec {
    /// The result's schema.
    pub schema: SchemaSpec,
}

/// Writes to a connector; emits one row per job with the count of rows written.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SinkSpec {
    /// The connector's name, e.g. `filesystem`.
    pub connector: String,
    /// Its options, as in `WITH (..)`.
    pub options: BTreeMap<String, String>,
    /// The schema of the rows.
    pub schema: SchemaSpec,
}

/// The leaf of a [`WrappedSpec`]'s plan: stands for the operator's input of this schema, sorted by `order`.
///
/// # Errors
/// When `order` does not fit the schema.
pub fn input_placeholder(
    schema: arrow::datatypes::SchemaRef,
    order: &[SortKey],
) -> crate::data::Result<Arc<dyn ExecutionPlan>> {
    Ok(Arc::new(InputPlaceholder::try_new(schema, order)?))
}
