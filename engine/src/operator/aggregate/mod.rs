//! Aggregate: groups rows by keys and folds each group through aggregate functions.
//!
//! Two steps: [`group_table`] turns the keys of a batch into dense group numbers, [`accumulators`] folds the batch's
//! columns into the state of those groups. Both work on whole batches.

pub(in crate::operator) mod accumulators;
mod bytes_column;
mod column_keys;
mod distinct_count;
pub(in crate::operator) mod group_table;
mod grouped;
mod key_column;
mod key_value;
mod packed_bytes;
mod packed_keys;
mod partitions;
mod row_column;
mod slots;
#[cfg(test)]
mod tests;
mod ungrouped;

use crate::data::{Batch, EngineError, Result};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::AggregateSpec;
pub(in crate::operator) use accumulators::{Accumulators, Input, Inputs, Take, as_mask, evaluate_all, raw_arguments};
pub(in crate::operator) use group_table::{GroupTable, plain_type};
use grouped::Grouped;
use ungrouped::Ungrouped;

/// Groups and aggregates. Without functions, groups are handed on as they appear; otherwise at the end.
pub(super) struct Aggregate {
    kind: Kind,
}

enum Kind {
    Grouped(Box<Grouped>),
    Ungrouped(Ungrouped),
}

impl Aggregate {
    /// An aggregation of this spec.
    ///
    /// # Errors
    /// When the spec contradicts itself, a key's type cannot be grouped by, or a function refuses its arguments.
    pub(super) fn new(spec: AggregateSpec) -> Result<Self> {
        let (functions, filters) = (spec.aggregates.functions.len(), spec.aggregates.filters.len());
        if functions != filters {
            return Err(EngineError::Internal(format!(
                "{functions} aggregate functions have {filters} filters"
            )));
        }
        let kind = if spec.group_by.is_empty() {
            Kind::Ungrouped(Ungrouped::new(spec)?)
        } else {
            Kind::Grouped(Box::new(Grouped::new(spec)?))
        };
        Ok(Self { kind })
    }
}

impl Operator for Aggregate {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        match &mut self.kind {
            Kind::Grouped(grouped) => grouped.on_batch(&batch, cx, out),
            Kind::Ungrouped(ungrouped) => ungrouped.on_batch(&batch, cx, out),
        }
    }

    fn on_end(&mut self, _port: Port, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        match &mut self.kind {
            Kind::Grouped(grouped) => grouped.on_end(cx, out),
            Kind::Ungrouped(ungrouped) => ungrouped.on_end(cx, out),
        }
    }
}
