//! Limit: skips and passes a number of rows. What is kept is how many it has skipped and passed, so that a program may change
//! the limit.

use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, UInt64Array};
use arrow::datatypes::{DataType, UInt64Type};

use crate::data::{Batch, EngineError, Result};
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::LimitSpec;
use crate::state::{Restored, Snapshot, TableSpec, columns};

/// Skips `skip` rows, passes `fetch` rows, then is done.
pub(super) struct Limit {
    to_skip: usize,
    to_pass: usize,
    skipped: u64,
    passed: u64,
}

impl Limit {
    pub(super) fn new(spec: LimitSpec) -> Self {
        Self {
            to_skip: spec.skip,
            to_pass: spec.fetch.unwrap_or(usize::MAX),
            skipped: 0,
            passed: 0,
        }
    }

    fn table() -> TableSpec {
        let schema = columns([("skipped", DataType::UInt64), ("passed", DataType::UInt64)]);
        TableSpec::union("rows", schema)
    }

    /// Counts rows that have gone by.
    fn count(&mut self, skipped: u64, passed: u64) {
        let less = |from: usize, rows: u64| from.saturating_sub(usize::try_from(rows).unwrap_or(usize::MAX));
        (self.to_skip, self.to_pass) = (less(self.to_skip, skipped), less(self.to_pass, passed));
        self.skipped += skipped;
        self.passed += passed;
    }
}

impl Operator for Limit {
    fn on_batch(&mut self, _port: Port, batch: Batch, _cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        let skipped = self.to_skip.min(batch.num_rows());
        let passed = (batch.num_rows() - skipped).min(self.to_pass);
        self.count(skipped as u64, passed as u64);
        if passed == 0 {
            return Ok(());
        }
        out.collect(batch.slice(skipped, passed))
    }

    fn on_end(&mut self, _port: Port, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }

    fn is_done(&self) -> bool {
        self.to_pass == 0
    }

    fn snapshot(&mut self, state: &mut Snapshot, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        let table = Self::table();
        let column = |rows: u64| Arc::new(UInt64Array::from(vec![rows])) as ArrayRef;
        let rows = Batch::try_new(
            Arc::clone(&table.schema),
            vec![column(self.skipped), column(self.passed)],
        )?;
        state.full(&table, [Ok(rows)]);
        Ok(())
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        for rows in state.take(&Self::table())? {
            let rows = rows?;
            if cx.parallelism > 1 {
                return Err(EngineError::Plan(format!(
                    "the state of '{}' is of one limit over all rows, but the program has {} of them; run it at \
                     parallelism 1, or start without that state",
                    cx.operator, cx.parallelism
                )));
            }
            let sum = |column: usize| rows.column(column).as_primitive::<UInt64Type>().values().iter().sum();
            self.count(sum(0), sum(1));
        }
        Ok(())
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
    fn a_limit_goes_on_where_it_was() {
        let batch = |rows: i32| {
            let column: ArrayRef = Arc::new(Int32Array::from_iter_values(0..rows));
            Batch::try_from_iter([("a", column)]).unwrap()
        };
        let of = |skip, fetch| LimitSpec { skip, fetch };
        let mut first = Harness::new(Limit::new(of(5, Some(4))));
        first.push(0, batch(3)).unwrap();
        let at_three = [vec![first.snapshot(1, None).unwrap()]];
        first.push(0, batch(3)).unwrap();
        assert_eq!(first.output.batches.len(), 1);
        let at_six = [vec![first.snapshot(2, Some(1)).unwrap()]];
        for (stored, limit, passes) in [
            (&at_three, of(5, Some(4)), 4),
            (&at_six, of(5, Some(4)), 3),
            (&at_six, of(5, Some(1)), 0),
            (&at_six, of(5, None), 100),
        ] {
            let mut harness = Harness::new(Limit::new(limit));
            harness.restore((0, 1), stored).unwrap();
            for _ in 0..10 {
                harness.push(0, batch(10)).unwrap();
            }
            let passed: usize = harness.output.batches.iter().map(Batch::num_rows).sum();
            let skipped = if std::ptr::eq(stored, &at_three) { 2 } else { 0 };
            assert_eq!(passed, passes.min(100 - skipped));
            assert_eq!(harness.operator.is_done(), passes < 100);
        }
        let error = Harness::new(Limit::new(of(5, Some(4)))).restore((0, 2), &at_six);
        assert!(matches!(error, Err(EngineError::Plan(_))), "{error:?}");
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
