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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray, Int32Array};
    use arrow::datatypes::{DataType, Field, Int32Type, Schema};
    use datafusion::common::ScalarValue;
    use datafusion::physical_expr::expressions::lit;

    use super::*;
    use crate::operator::harness::Harness;
    use crate::plan::{ScalarExpr, SchemaSpec};

    #[test]
    fn each_row_comes_once_per_grouping_set() {
        let input = Arc::new(Schema::new(vec![Field::new("a", DataType::Int32, true)]));
        let output = Arc::new(Schema::new(vec![
            Field::new("a", DataType::Int32, true),
            Field::new("set", DataType::Int32, false),
        ]));
        let set = |number: i32| ScalarExpr::new(lit(number), Arc::clone(&input));
        let null = ScalarExpr::new(lit(ScalarValue::Int32(None)), Arc::clone(&input));
        let projections = vec![vec![ScalarExpr::column(0, &input), set(0)], vec![null, set(1)]];
        let batch = Batch::try_new(input, vec![Arc::new(Int32Array::from(vec![5, 6]))]).unwrap();
        let mut harness = Harness::new(Expand::new(ExpandSpec {
            projections,
            schema: SchemaSpec(Arc::clone(&output)),
        }));
        harness.push(0, batch).unwrap();
        harness.end(0).unwrap();
        let rows = harness.rows(&output);
        let column = |index: usize| {
            rows.column(index)
                .as_primitive::<Int32Type>()
                .iter()
                .collect::<Vec<_>>()
        };
        assert_eq!(column(0), [Some(5), Some(6), None, None]);
        assert_eq!(column(1), [Some(0), Some(0), Some(1), Some(1)]);
    }
}
