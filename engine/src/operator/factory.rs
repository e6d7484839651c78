//! From a spec to the operator that does it.

use std::sync::Arc;

use crate::data::{EngineError, Result};
use crate::operator::aggregate::Aggregate;
use crate::operator::assign_watermark::AssignWatermark;
use crate::operator::expand::Expand;
use crate::operator::filter::Filter;
use crate::operator::group_aggregate::GroupAggregate;
use crate::operator::hash_join::HashJoin;
use crate::operator::interval_join::IntervalJoin;
use crate::operator::limit::Limit;
use crate::operator::merge::Merge;
use crate::operator::nested_loop_join::NestedLoopJoin;
use crate::operator::normalize::Normalize;
use crate::operator::over::Over;
use crate::operator::project::Project;
use crate::operator::rank::rank;
use crate::operator::runtime_filter::RuntimeFilter;
use crate::operator::scan::{Scan, Source, Splits};
use crate::operator::session_assign::SessionAssign;
use crate::operator::sort::{SharedRuns, Sort};
use crate::operator::stream_join::StreamJoin;
use crate::operator::stream_scan::StreamScan;
use crate::operator::stream_sort::StreamSort;
use crate::operator::temporal_join::TemporalJoin;
use crate::operator::window::Window;
use crate::operator::window_aggregate::WindowAggregate;
use crate::operator::window_assign::WindowAssign;
use crate::operator::window_join::WindowJoin;
use crate::operator::wrapped::Wrapped;
use crate::operator::{Operator, SplitSource};
use crate::plan::{OperatorSpec, SortSpec};

/// Builds the operator of one subtask; `inputs` is how many ports it has.
///
/// # Errors
/// When the spec is a source or a sink (the runtime builds those) or contradicts itself.
pub fn build_operator(spec: &OperatorSpec, inputs: usize) -> Result<Box<dyn Operator>> {
    Ok(match spec {
        OperatorSpec::Filter(spec) => Box::new(Filter::new(spec.clone())),
        OperatorSpec::RuntimeFilter(spec) => Box::new(RuntimeFilter::new(spec.clone())),
        OperatorSpec::Project(spec) => Box::new(Project::new(spec.clone())),
        OperatorSpec::Expand(spec) => Box::new(Expand::new(spec.clone())),
        OperatorSpec::Aggregate(spec) => Box::new(Aggregate::new(spec.clone())?),
        OperatorSpec::HashJoin(spec) => Box::new(HashJoin::new(spec.clone())?),
        OperatorSpec::NestedLoopJoin(spec) => Box::new(NestedLoopJoin::new(spec.clone())),
        OperatorSpec::Sort(spec) => Box::new(Sort::new(spec.clone())),
        OperatorSpec::Merge(spec) => Box::new(Merge::new(spec.clone(), inputs)),
        OperatorSpec::Limit(spec) => Box::new(Limit::new(*spec)),
        OperatorSpec::Window(spec) => Box::new(Window::new(spec.clone())?),
        OperatorSpec::WindowAssign(spec) => Box::new(WindowAssign::new(spec.clone())?),
        OperatorSpec::SessionAssign(spec) => Box::new(SessionAssign::new(spec.clone())),
        OperatorSpec::Wrapped(spec) => Box::new(Wrapped::new(spec.clone())?),
        OperatorSpec::AssignWatermark(spec) => Box::new(AssignWatermark::new(spec.clone())),
        OperatorSpec::WindowAggregate(spec) => Box::new(WindowAggregate::new(spec.clone())?),
        OperatorSpec::GroupAggregate(spec) => Box::new(GroupAggregate::new(spec.clone())?),
        OperatorSpec::Rank(spec) => rank(spec)?,
        OperatorSpec::Normalize(spec) => Box::new(Normalize::new(spec.clone())?),
        OperatorSpec::Over(spec) => Box::new(Over::new(spec.clone())?),
        OperatorSpec::StreamSort(spec) => Box::new(StreamSort::new(spec)?),
        OperatorSpec::StreamJoin(spec) => Box::new(StreamJoin::new(spec)?),
        OperatorSpec::IntervalJoin(spec) => Box::new(IntervalJoin::new(spec)?),
        OperatorSpec::WindowJoin(spec) => Box::new(WindowJoin::new(spec.clone())?),
        OperatorSpec::TemporalJoin(spec) => Box::new(TemporalJoin::new(spec.clone())?),
        OperatorSpec::Custom(_) => {
            return Err(EngineError::Internal("a custom operator is made per subtask".into()));
        }
        OperatorSpec::Scan(_) | OperatorSpec::Collect(_) | OperatorSpec::Sink(_) => {
            return Err(EngineError::Internal(format!(
                "the runtime builds {} itself",
                spec.name()
            )));
        }
    })
}

/// Builds subtask `subtask` of the `subtasks` sorts that cut their rows into ranges by way of `runs`.
pub fn build_range_sort(spec: &SortSpec, runs: Arc<SharedRuns>, subtask: usize, subtasks: usize) -> Box<dyn Operator> {
    Box::new(Sort::of_range(spec.clone(), runs, subtask, subtasks))
}

/// Builds the source of one subtask. In a batch job all subtasks of the vertex share `splits`; in a streaming job it reads its
/// part of `source`, or of the plan's partitions when there is none.
///
/// # Errors
/// When the spec is no source.
pub fn build_source(
    spec: &OperatorSpec,
    splits: Arc<Splits>,
    source: Option<Arc<dyn SplitSource>>,
    subtask: usize,
    parallelism: usize,
) -> Result<Source> {
    match spec {
        OperatorSpec::Scan(spec) if spec.stream.is_some() => {
            let scan = StreamScan::new(spec.clone(), source, subtask, parallelism);
            Ok(Source::Stream(Box::new(scan)))
        }
        OperatorSpec::Scan(spec) => Ok(Source::Batch(Scan::new(spec.clone(), splits))),
        other => Err(EngineError::Internal(format!("{} is not a source", other.name()))),
    }
}
