//! Expand: grouping sets as plain rows.

use crate::data::{Batch, Result};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::ExpandSpec;

/// Emits each batch once per projection.
pub(super) struct Expand {
    spec: ExpandSpec,
}

impl Expand {
    pub(super) fn new(spec: ExpandSpec) -> Self {
        Self { spec }
    }
}

impl Operator for Expand {
    fn on_batch(&mut self, _port: Port, batch: Batch, _cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        for projection in &self.spec.projections {
            let columns = projection
                .iter()
                .map(|expr| Ok(expr.expr.evaluate(&batch)?.into_array(batch.num_rows())?))
                .collect::<Result<Vec<_>>>()?;
            out.collect(Batch::try_new(self.spec.schema.0.clone(), columns)?)?;
        }
        Ok(())
    }

    fn on_end(&mut self, _port: Port, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }
}
