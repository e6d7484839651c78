//! AssignWatermark: makes watermarks in the middle of a stream, where the source could not.
//!
//! A snapshot is how far event time has come. Who gets which rows after a restore is not known, so every subtask goes on
//! from where the last of them was: it hands that on first, as a source does.

use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array};
use arrow::datatypes::{DataType, Int64Type};

use crate::data::{Batch, Result, Watermark};
use crate::operator::stream_scan::highest;
use crate::operator::{Collector, Context, Operator, Port};
use crate::plan::{AssignWatermarkSpec, WatermarkSpec};
use crate::state::{Restored, Snapshot, TableSpec, columns};
use crate::time::Timer;

/// Hands batches on and, behind them, how far event time has come by them.
pub(super) struct AssignWatermark {
    spec: WatermarkSpec,
    highest: Option<i64>,
    emitted: Option<i64>,
    /// When the next one may leave, in processing time.
    due_ms: i64,
}

impl AssignWatermark {
    pub(super) fn new(spec: AssignWatermarkSpec) -> Self {
        Self {
            spec: spec.watermark,
            highest: None,
            emitted: None,
            due_ms: i64::MIN,
        }
    }

    fn emit(&mut self, cx: &Context, out: &mut dyn Collector) -> Result<()> {
        let now = cx.clock.now_ms();
        if now < self.due_ms || self.highest <= self.emitted {
            return Ok(());
        }
        let Some(highest) = self.highest else { return Ok(()) };
        self.emitted = self.highest;
        self.due_ms = now.saturating_add(i64::try_from(self.spec.interval_ms).unwrap_or(i64::MAX));
        out.watermark(Watermark(highest))
    }
}

/// The highest watermark of each subtask, NULL where there is none yet.
fn table() -> TableSpec {
    TableSpec::union("highest", columns([("watermark", DataType::Int64)]))
}

impl Operator for AssignWatermark {
    fn on_batch(&mut self, _port: Port, batch: Batch, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.highest = self.highest.max(highest(&self.spec.expr, &batch)?);
        out.collect(batch)?;
        self.emit(cx, out)
    }

    fn on_watermark(&mut self, watermark: Watermark, _cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        // The end of bounded input is the end, whoever made the watermarks before.
        if watermark == Watermark::MAX {
            self.emitted = Some(i64::MAX);
            return out.watermark(watermark);
        }
        Ok(())
    }

    fn on_timer(&mut self, _timer: Timer, cx: &mut Context, out: &mut dyn Collector) -> Result<()> {
        self.emit(cx, out)
    }

    fn next_timer(&self) -> Option<i64> {
        (self.highest > self.emitted).then_some(self.due_ms)
    }

    fn snapshot(&mut self, state: &mut Snapshot, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        let spec = table();
        // One whose input has ended holds nobody back.
        let highest = self.highest.max(self.emitted);
        let row = Batch::try_new(
            Arc::clone(&spec.schema),
            vec![Arc::new(Int64Array::from(vec![highest]))],
        )?;
        state.full(&spec, [Ok(row)]);
        Ok(())
    }

    fn restore(&mut self, state: &mut Restored, cx: &mut Context) -> Result<()> {
        let (mut least, mut is_known) = (i64::MAX, true);
        for rows in state.take(&table())? {
            let rows = rows?;
            let rows = rows.column(0).as_primitive::<Int64Type>();
            is_known &= rows.null_count() == 0;
            least = rows.iter().flatten().fold(least, i64::min);
        }
        self.highest = (is_known && least < i64::MAX).then_some(least);
        self.due_ms = cx.clock.now_ms();
        Ok(())
    }

    fn on_end(&mut self, _port: Port, _cx: &mut Context, _out: &mut dyn Collector) -> Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use arrow::array::{ArrayRef, TimestampSecondArray};
    use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit};

    use super::*;
    use crate::operator::harness::{Harness, rescaled};
    use crate::plan::ScalarExpr;

    fn schema() -> SchemaRef {
        let time = DataType::Timestamp(TimeUnit::Second, None);
        Arc::new(Schema::new(vec![Field::new("ts", time, true)]))
    }

    fn batch(seconds: Vec<Option<i64>>) -> Batch {
        let column: ArrayRef = Arc::new(TimestampSecondArray::from(seconds));
        Batch::try_new(schema(), vec![column]).unwrap()
    }

    fn harness(interval_ms: u64) -> Harness<AssignWatermark> {
        Harness::new(AssignWatermark::new(AssignWatermarkSpec {
            watermark: WatermarkSpec {
                expr: ScalarExpr::column(0, &schema()),
                idle_timeout_ms: None,
                interval_ms,
                max_drift_ms: None,
            },
        }))
    }

    fn marks(harness: &Harness<AssignWatermark>) -> Vec<i64> {
        harness.output.watermarks.iter().map(|mark| mark.0).collect()
    }

    #[test]
    fn the_watermark_is_the_highest_so_far_in_milliseconds_and_never_goes_back() {
        let mut harness = harness(0);
        for rows in [vec![Some(3), Some(1)], vec![None], vec![Some(2)], vec![Some(5), None]] {
            harness.push(0, batch(rows)).unwrap();
        }
        harness.watermark(99_000).unwrap();
        assert_eq!(marks(&harness), [3000, 5000]);
        harness.watermark(i64::MAX).unwrap();
        assert_eq!(marks(&harness), [3000, 5000, i64::MAX]);
    }

    #[test]
    fn with_an_interval_it_leaves_when_that_is_over_even_if_no_row_comes() {
        let mut harness = harness(200);
        harness.push(0, batch(vec![Some(1)])).unwrap();
        harness.push(0, batch(vec![Some(2)])).unwrap();
        assert_eq!(marks(&harness), [1000]);
        harness.advance(Duration::from_millis(199)).unwrap();
        assert_eq!(marks(&harness), [1000]);
        harness.advance(Duration::from_millis(1)).unwrap();
        assert_eq!(marks(&harness), [1000, 2000]);
        assert_eq!(harness.operator.next_timer(), None);
    }

    #[test]
    fn after_a_restore_the_least_of_all_goes_on() {
        let mut before = [harness(200), harness(200)];
        for (harness, time) in before.iter_mut().zip([7, 3]) {
            harness.push(0, batch(vec![Some(time)])).unwrap();
        }
        let make = || harness(200).operator;
        let mut after = rescaled(&mut before, 3, make).unwrap();
        for harness in &mut after {
            harness.advance(Duration::ZERO).unwrap();
            assert_eq!(marks(harness), [3000], "what was said before is said first");
            harness.push(0, batch(vec![Some(2)])).unwrap();
            harness.advance(Duration::from_millis(200)).unwrap();
            assert_eq!(marks(harness), [3000]);
        }
        // One without rows has said nothing yet, one that has ended has said all.
        let mut silent = [harness(200), harness(200)];
        silent[0].push(0, batch(vec![Some(7)])).unwrap();
        assert_eq!(rescaled(&mut silent, 1, make).unwrap()[0].operator.next_timer(), None);
        silent[1].watermark(i64::MAX).unwrap();
        let mut after = rescaled(&mut silent, 1, make).unwrap();
        after[0].advance(Duration::ZERO).unwrap();
        assert_eq!(marks(&after[0]), [7000]);
    }
}
