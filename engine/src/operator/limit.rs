//! Limit: skips and passes a number of rows.

use crate::data::{Batch, Result};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::LimitSpec;

/// Skips `skip` rows, passes `fetch` rows, then is done.
pub(super) struct Limit {
    to_skip: usize,
    to_pass: usize,
}

impl Limit {
    pub(super) fn new(spec: LimitSpec) -> Self {
        Self {
            to_skip: spec.skip,
            to_pass: spec.fetch.unwrap_or(usize::MAX),
        }
    }
}

impl Operator for Limit {
    fn on_batch(&mut self, _port: Port, batch: Batch, _cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let skipped = self.to_skip.min(batch.num_rows());
        self.to_skip -= skipped;
        let passed = (batch.num_rows() - skipped).min(self.to_pass);
        if passed == 0 {
            return Ok(());
        }
        self.to_pass -= passed;
        out.collect(batch.slice(skipped, passed))
    }

    fn on_end(&mut self, _port: Port, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.to_pass == 0
    }
}
