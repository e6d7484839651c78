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
        out.collect(Batch::try_new_with_options(
            self.spec.schema.0.clone(),
            columns,
            &options,
        )?)
    }

    fn on_end(&mut self, _port: Port, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{AsArray, Int32Array};
    use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
    use datafusion::logical_expr::Operator as Op;
    use datafusion::physical_expr::expressions::{binary, col, lit};

    use super::*;
    use crate::operator::harness::Harness;
    use crate::plan::{ScalarExpr, SchemaSpec};

    fn schema(names: &[&str]) -> SchemaRef {
        let fields = names.iter().map(|name| Field::new(*name, DataType::Int32, true));
        Arc::new(Schema::new(fields.collect::<Vec<_>>()))
    }

    fn batch(values: Vec<Option<i32>>) -> Batch {
        Batch::try_new(schema(&["a"]), vec![Arc::new(Int32Array::from(values))]).unwrap()
    }

    #[test]
    fn columns_and_constants_are_computed() {
        let input = schema(&["a"]);
        let twice = binary(col("a", &input).unwrap(), Op::Multiply, lit(2), &input).unwrap();
        let exprs = vec![
            ScalarExpr::new(twice, Arc::clone(&input)),
            ScalarExpr::new(lit(7), input),
        ];
        let spec = ProjectSpec {
            exprs,
            schema: SchemaSpec(schema(&["twice", "seven"])),
        };
        let output = Harness::new(Project::new(spec))
            .run(vec![vec![batch(vec![Some(4), None])]])
            .unwrap();
        assert_eq!(output[0].schema(), schema(&["twice", "seven"]));
        assert_eq!(
            output[0].column(0).as_primitive::<Int32Type>(),
            &Int32Array::from(vec![Some(8), None])
        );
        assert_eq!(
            output[0].column(1).as_primitive::<Int32Type>(),
            &Int32Array::from(vec![7, 7])
        );
    }

    #[test]
    fn a_projection_to_no_columns_keeps_the_rows() {
        let spec = ProjectSpec {
            exprs: vec![],
            schema: SchemaSpec(schema(&[])),
        };
        let output = Harness::new(Project::new(spec))
            .run(vec![vec![batch(vec![Some(1), None])]])
            .unwrap();
        assert_eq!((output[0].num_rows(), output[0].num_columns()), (2, 0));
    }

    #[test]
    fn a_failing_expression_is_an_error() {
        let input = schema(&["a"]);
        let by_zero = binary(col("a", &input).unwrap(), Op::Divide, lit(0), &input).unwrap();
        let spec = ProjectSpec {
            exprs: vec![ScalarExpr::new(by_zero, input)],
            schema: SchemaSpec(schema(&["by_zero"])),
        };
        let error = Harness::new(Project::new(spec))
            .run(vec![vec![batch(vec![Some(1)])]])
            .unwrap_err();
        assert!(error.to_string().to_lowercase().contains("divide by zero"), "{error}");
    }
}
