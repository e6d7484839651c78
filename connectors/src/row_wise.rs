//! [`RowWise`]: a scan below operators that look at one row at a time.

use std::sync::Arc;

use datafusion::error::Result;
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::coop::CooperativeExec;
use datafusion::physical_plan::execution_plan::{ChildrenPropertiesMode, ReplaceChildrenOptions};
use datafusion::physical_plan::filter::FilterExec;
use datafusion::physical_plan::projection::ProjectionExec;

/// A scan and the projections and filters above it: they give the same rows whichever part of the scan they are put over.
#[derive(Clone, Debug)]
pub(crate) struct RowWise {
    leaf: Arc<dyn ExecutionPlan>,
    /// The lowest first.
    above: Vec<Arc<dyn ExecutionPlan>>,
    drops_rows: bool,
}

impl RowWise {
    /// `None` when there is another operator above the scan, or several scans.
    pub(crate) fn of(plan: &Arc<dyn ExecutionPlan>) -> Option<Self> {
        let mut above = Vec::new();
        let mut drops_rows = false;
        let mut leaf = plan;
        while let [child] = leaf.children()[..] {
            match leaf.downcast_ref::<FilterExec>() {
                // Which rows come first is a matter of the parts.
                Some(filter) if filter.fetch().is_some() => return None,
                Some(_) => drops_rows = true,
                None if leaf.downcast_ref::<ProjectionExec>().is_some() => {}
                None if leaf.downcast_ref::<CooperativeExec>().is_some() => {}
                None => return None,
            }
            above.push(Arc::clone(leaf));
            leaf = child;
        }
        if !leaf.children().is_empty() {
            return None;
        }
        above.reverse();
        Some(Self {
            leaf: Arc::clone(leaf),
            above,
            drops_rows,
        })
    }

    /// The scan.
    pub(crate) fn leaf(&self) -> &dyn ExecutionPlan {
        self.leaf.as_ref()
    }

    /// The scan, to be put below the operators again.
    pub(crate) fn shared_leaf(&self) -> Arc<dyn ExecutionPlan> {
        Arc::clone(&self.leaf)
    }

    /// The scan, when there is nothing above it.
    pub(crate) fn only_leaf(&self) -> Option<&dyn ExecutionPlan> {
        self.above.is_empty().then(|| self.leaf())
    }

    /// Whether fewer rows come out than the scan gives.
    pub(crate) fn drops_rows(&self) -> bool {
        self.drops_rows
    }

    /// The same operators over another scan with the same columns.
    pub(crate) fn over(&self, leaf: Arc<dyn ExecutionPlan>) -> Result<Arc<dyn ExecutionPlan>> {
        self.above.iter().try_fold(leaf, |below, operator| {
            let anew = ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute);
            Arc::clone(operator).replace_children(vec![below], anew)
        })
    }
}
