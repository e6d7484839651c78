//! Project: computes columns.

use arrow::array::RecordBatchOptions;

use crate::data::{Batch, Result};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::ProjectSpec;

/// Computes one column per expression.
pub(super) struct Project {
    spec: ProjectSpec,
}

impl Project {
    pub(super) fn new(spec: ProjectSpec) -> Self {
        Self { spec }
    }
}

impl Operator for Project {
    fn on_batch(&mut self, _port: Port, batch: Batch, _cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let rows = batch.num_rows();
        let columns = self
            .spec
            .exprs
            .iter()
            .map(|expr| Ok(expr.expr.evaluate(&batch)?.into_array(rows)?))
            .collect::<Result<Vec<_>>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(rows));
        out.collect(Batch::try_new_with_options(self.spec.schema.0.clone(), columns, &options)?)
    }

    fn on_end(&mut self, _port: Port, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }
}
