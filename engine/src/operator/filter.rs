//! Filter: keeps the rows for which a predicate is true.

use arrow::array::{Array, AsArray, BooleanArray};
use arrow::compute::{filter_record_batch, prep_null_mask_filter};

use crate::data::{Batch, Coalescer, EngineError, Result, Watermark};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::FilterSpec;

/// Keeps the rows for which the predicate is true, and gathers what is left into batches of the target size.
pub(super) struct Filter {
    spec: FilterSpec,
    survivors: Survivors,
}

impl Filter {
    pub(super) fn new(spec: FilterSpec) -> Self {
        Self {
            spec,
            survivors: Survivors::default(),
        }
    }
}

impl Operator for Filter {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let mask = self
            .spec
            .predicate
            .expr
            .evaluate(&batch)?
            .into_array(batch.num_rows())?;
        let mask: &BooleanArray = mask
            .as_boolean_opt()
            .ok_or_else(|| EngineError::Internal(format!("the predicate {} is not boolean", self.spec.predicate)))?;
        let batch = match &self.spec.projection {
            Some(columns) => batch.project(columns)?,
            None => batch,
        };
        self.survivors.push(batch, mask, mask.true_count(), cx, out)
    }

    fn on_watermark(&mut self, watermark: Watermark, _cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.survivors.finish(out)?;
        out.watermark(watermark)
    }

    fn on_end(&mut self, _port: Port, _cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.survivors.finish(out)
    }
}

/// Hands on what a mask leaves of batches, small remains gathered into batches of the target size, in their order.
#[derive(Default)]
pub(super) struct Survivors {
    gather: Option<Coalescer>,
}

impl Survivors {
    /// The rows of `batch` for which `mask` is true, which are `kept` many.
    ///
    /// # Errors
    /// When the consumer fails.
    pub(super) fn push(
        &mut self,
        batch: Batch,
        mask: &BooleanArray,
        kept: usize,
        cx: &Context,
        out: &mut dyn Collector,
    ) -> Result<()> {
        if kept == 0 {
            return Ok(());
        }
        if kept == batch.num_rows() {
            return self.push_all(batch, cx, out);
        }
        let gather = self.gather(cx);
        let mask = if mask.null_count() > 0 {
            prep_null_mask_filter(mask)
        } else {
            mask.clone()
        };
        if cx.streaming || (kept * 2 > cx.batch_size && gather.is_empty()) {
            return out.collect(filter_record_batch(&batch, &mask)?);
        }
        gather.push_filtered(batch, &mask)?;
        hand_on(gather, out)
    }

    /// All rows of `batch`.
    ///
    /// # Errors
    /// When the consumer fails.
    pub(super) fn push_all(&mut self, batch: Batch, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        if cx.streaming {
            return out.collect(batch);
        }
        let gather = self.gather(cx);
        let is_large = batch.num_rows() * 2 > cx.batch_size;
        if is_large {
            gather.flush()?;
            hand_on(gather, out)?;
        }
        // A large batch is cheaper to hand on as it is than to copy.
        if is_large || gather.is_empty() {
            return out.collect(batch);
        }
        gather.push(batch)?;
        hand_on(gather, out)
    }

    /// Hands on the rest.
    ///
    /// # Errors
    /// When the consumer fails.
    pub(super) fn finish(&mut self, out: &mut dyn Collector) -> Result<()> {
        let Some(mut gather) = self.gather.take() else {
            return Ok(());
        };
        gather.flush()?;
        hand_on(&mut gather, out)
    }

    fn gather(&mut self, cx: &Context) -> &mut Coalescer {
        self.gather
            .get_or_insert_with(|| Coalescer::new(cx.batch_size, cx.batch_bytes))
    }
}

fn hand_on(gather: &mut Coalescer, out: &mut dyn Collector) -> Result<()> {
    while let Some(full) = gather.next()? {
        out.collect(full)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int32Array};
    use arrow::datatypes::{DataType, Field, Int32Type, Schema, SchemaRef};
    use datafusion::logical_expr::Operator as Op;
    use datafusion::physical_expr::expressions::{binary, col, lit};

    use super::*;
    use crate::operator::harness::Harness;
    use crate::plan::ScalarExpr;

    fn schema() -> SchemaRef {
        let column = |name| Field::new(name, DataType::Int32, true);
        Arc::new(Schema::new(vec![column("a"), column("b")]))
    }

    fn batch(values: impl IntoIterator<Item = Option<i32>>) -> Batch {
        let a: ArrayRef = Arc::new(Int32Array::from_iter(values));
        Batch::try_new(schema(), vec![Arc::clone(&a), a]).unwrap()
    }

    /// `a < limit`
    fn below(limit: i32, projection: Option<Vec<usize>>) -> Filter {
        let predicate = binary(col("a", &schema()).unwrap(), Op::Lt, lit(limit), &schema()).unwrap();
        Filter::new(FilterSpec {
            predicate: ScalarExpr::new(predicate, schema()),
            projection,
        })
    }

    fn first_column(batches: &[Batch]) -> Vec<Option<i32>> {
        batches
            .iter()
            .flat_map(|batch| batch.column(0).as_primitive::<Int32Type>().iter())
            .collect()
    }

    #[test]
    fn false_and_null_are_dropped_and_the_order_stays() {
        let input = vec![
            batch([Some(5), None, Some(1)]),
            batch([Some(2), Some(9)]),
            batch([None]),
        ];
        let output = Harness::new(below(5, Some(vec![1]))).run(vec![input]).unwrap();
        assert_eq!(first_column(&output), [Some(1), Some(2)]);
        assert_eq!(
            (output.len(), output[0].num_columns()),
            (1, 1),
            "small remains are gathered"
        );
    }

    #[test]
    fn batches_keep_their_order_whatever_way_they_take() {
        // Some are passed as they are, some copied, some gathered.
        let mut harness = Harness::new(below(1000, None));
        harness.context.batch_size = 10;
        let mut expected = Vec::new();
        for turn in 0..60 {
            let values: Vec<Option<i32>> = (0..turn % 13 + 1)
                .map(|i| Some(turn * 13 + i + if i * turn % 4 == 1 { 5000 } else { 0 }))
                .collect();
            expected.extend(values.iter().filter(|value| value.unwrap() < 1000));
            harness.push(0, batch(values)).unwrap();
        }
        harness.end(0).unwrap();
        assert_eq!(first_column(&harness.output.batches), expected);
    }

    #[test]
    fn rows_without_columns_are_counted() {
        let output = Harness::new(below(3, Some(vec![])))
            .run(vec![vec![batch((0..10).map(Some))]])
            .unwrap();
        assert_eq!(output.iter().map(Batch::num_rows).sum::<usize>(), 3);
        let output = Harness::new(below(30, Some(vec![])))
            .run(vec![vec![batch((0..10).map(Some))]])
            .unwrap();
        assert_eq!(output.iter().map(Batch::num_rows).sum::<usize>(), 10);
    }

    #[test]
    fn nothing_left_is_nothing_handed_on() {
        assert!(
            Harness::new(below(0, None))
                .run(vec![vec![batch([Some(1)])]])
                .unwrap()
                .is_empty()
        );
        assert!(Harness::new(below(0, None)).run(vec![vec![]]).unwrap().is_empty());
    }

    #[test]
    fn a_predicate_that_is_no_condition_is_an_error() {
        let spec = FilterSpec {
            predicate: ScalarExpr::column(0, &schema()),
            projection: None,
        };
        let error = Harness::new(Filter::new(spec))
            .run(vec![vec![batch([Some(1)])]])
            .unwrap_err();
        assert!(error.to_string().contains("a@0 is not boolean"), "{error}");
    }
}
