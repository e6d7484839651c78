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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{ArrayRef, AsArray, Int32Array};
    use arrow::datatypes::Int32Type;

    use super::*;
    use crate::operator::harness::Harness;

    fn run(skip: usize, fetch: Option<usize>, sizes: &[i32]) -> Vec<i32> {
        let mut next = 0;
        let batches = sizes.iter().map(|size| {
            let column: ArrayRef = Arc::new(Int32Array::from_iter_values(next..next + size));
            next += size;
            Batch::try_from_iter([("a", column)]).unwrap()
        });
        let output = Harness::new(Limit::new(LimitSpec { skip, fetch }))
            .run(vec![batches.collect()])
            .unwrap();
        output
            .iter()
            .flat_map(|batch| batch.column(0).as_primitive::<Int32Type>().values().to_vec())
            .collect()
    }

    #[test]
    fn every_skip_and_fetch_is_the_slice_of_the_whole() {
        for sizes in [&[10][..], &[3, 3, 4], &[1; 10], &[]] {
            let rows: i32 = sizes.iter().sum();
            for skip in 0..12 {
                for fetch in (0..12).map(Some).chain([None, Some(usize::MAX)]) {
                    let expected: Vec<i32> = (0..rows).skip(skip).take(fetch.unwrap_or(usize::MAX)).collect();
                    assert_eq!(
                        run(skip, fetch, sizes),
                        expected,
                        "skip {skip} fetch {fetch:?} of {sizes:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn a_limit_is_done_when_the_last_row_has_passed() {
        assert!(
            Limit::new(LimitSpec {
                skip: 0,
                fetch: Some(0)
            })
            .is_done()
        );
        assert!(
            Limit::new(LimitSpec {
                skip: 5,
                fetch: Some(0)
            })
            .is_done()
        );
        assert!(!Limit::new(LimitSpec { skip: 5, fetch: None }).is_done());
        let mut harness = Harness::new(Limit::new(LimitSpec {
            skip: 1,
            fetch: Some(2),
        }));
        for done in [false, false, true, true] {
            let column: ArrayRef = Arc::new(Int32Array::from(vec![1]));
            harness.push(0, Batch::try_from_iter([("a", column)]).unwrap()).unwrap();
            assert_eq!(harness.operator.is_done(), done);
        }
    }
}
