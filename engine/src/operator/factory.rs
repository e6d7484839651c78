//! From a spec to the operator that does it.

use std::sync::Arc;

use crate::data::{EngineError, Result};
use crate::operator::aggregate::Aggregate;
use crate::operator::expand::Expand;
use crate::operator::filter::Filter;
use crate::operator::limit::Limit;
use crate::operator::project::Project;
use crate::operator::scan::{Scan, Splits};
use crate::operator::Operator;
use crate::plan::OperatorSpec;

/// Builds the operator of one subtask; `inputs` is the number of its inputs.
///
/// # Errors
/// When the spec is a source or a sink (the runtime builds those) or contradicts itself.
pub fn build_operator(spec: &OperatorSpec, _inputs: usize) -> Result<Box<dyn Operator>> {
    Ok(match spec {
        OperatorSpec::Filter(spec) => Box::new(Filter::new(spec.clone())),
        OperatorSpec::Project(spec) => Box::new(Project::new(spec.clone())),
        OperatorSpec::Expand(spec) => Box::new(Expand::new(spec.clone())),
        OperatorSpec::Limit(spec) => Box::new(Limit::new(*spec)),
        OperatorSpec::Aggregate(spec) => Box::new(Aggregate::new(spec.clone())?),
        other => return Err(EngineError::Internal(format!("{} is not built here", other.name()))),
    })
}

/// Builds the source of one subtask; `splits` is shared by all subtasks of the vertex.
///
/// # Errors
/// When the spec is no source.
pub fn build_source(spec: &OperatorSpec, splits: Arc<Splits>) -> Result<Scan> {
    match spec {
        OperatorSpec::Scan(spec) => Ok(Scan::new(spec.clone(), splits)),
        other => Err(EngineError::Internal(format!("{} is not a source", other.name()))),
    }
}
