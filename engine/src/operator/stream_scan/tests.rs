use std::collections::VecDeque;

use arrow::array::{ArrayRef, AsArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMillisecondType};
use datafusion::common::ScalarValue;
use datafusion::error::Result as DataFusionResult;
use datafusion::execution::{SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::Operator;
use datafusion::physical_plan::stream::RecordBatchStreamAdapter;
use datafusion::physical_plan::streaming::{PartitionStream, StreamingTableExec};
use futures::stream;
use parking_lot::Mutex;

use super::times::delayed_column;
use super::*;
use crate::data::Batch;
use crate::operator::harness::Harness;
use crate::operator::limit::Limit;
use crate::plan::{LimitSpec, PhysicalPlan, ScalarExpr, StreamScanSpec};

/// What a split does when it is polled.
#[derive(Clone, Debug)]
enum Act {
    Rows(Vec<i64>),
    /// Says nothing until the script is told to go on.
    Wait,
}

#[derive(Debug, Clone)]
struct Script {
    schema: SchemaRef,
    acts: Arc<Mutex<VecDeque<Act>>>,
}

impl PartitionStream for Script {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    fn execute(&self, _task: Arc<TaskContext>) -> SendableRecordBatchStream {
        let (schema, acts) = (Arc::clone(&self.schema), Arc::clone(&self.acts));
        let batches = stream::poll_fn(move |_| -> Poll<Option<DataFusionResult<Batch>>> {
            let mut acts = acts.lock();
            match acts.front().cloned() {
                None => Poll::Ready(None),
                Some(Act::Wait) => Poll::Pending,
                Some(Act::Rows(rows)) => {
                    acts.pop_front();
                    let column: ArrayRef = Arc::new(TimestampMillisecondArray::from(rows));
                    Poll::Ready(Some(Ok(Batch::try_new(Arc::clone(&schema), vec![column]).unwrap())))
                }
            }
        });
        Box::pin(RecordBatchStreamAdapter::new(Arc::clone(&self.schema), batches))
    }
}

struct Stage {
    scan: StreamScan,
    splits: Vec<Script>,
    harness: Harness<Limit>,
}

fn stage(splits: Vec<Vec<Act>>, spec: impl FnOnce(&mut WatermarkSpec)) -> Stage {
    let time = DataType::Timestamp(TimeUnit::Millisecond, None);
    let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("ts", time, true)]));
    let splits: Vec<Script> = splits
        .into_iter()
        .map(|acts| Script {
            schema: Arc::clone(&schema),
            acts: Arc::new(Mutex::new(acts.into())),
        })
        .collect();
    let parts = splits
        .iter()
        .map(|split| Arc::new(split.clone()) as Arc<dyn PartitionStream>);
    let plan = StreamingTableExec::try_new(Arc::clone(&schema), parts.collect(), None, [], true, None).unwrap();
    let mut watermark = WatermarkSpec {
        expr: ScalarExpr::column(0, &schema),
        idle_timeout_ms: None,
        interval_ms: 0,
        max_drift_ms: None,
    };
    spec(&mut watermark);
    let spec = ScanSpec {
        stream: Some(StreamScanSpec {
            watermark: Some(watermark),
        }),
        bounded_by: vec![],
        table: "t".into(),
        plan: PhysicalPlan(Arc::new(plan)),
        limit: None,
        read_bytes: 0,
    };
    Stage {
        scan: StreamScan::new(spec, None, 0, 1),
        splits,
        harness: Harness::new(Limit::new(LimitSpec { skip: 0, fetch: None })),
    }
}

impl Stage {
    /// The next event as text, waiting no longer than a moment.
    fn next(&mut self) -> String {
        let event = self.scan.next(&mut self.harness.context, Some(Duration::ZERO)).unwrap();
        match event {
            SourceEvent::Batch(batch) => {
                let rows = batch
                    .column(0)
                    .as_primitive::<TimestampMillisecondType>()
                    .values()
                    .to_vec();
                format!("{rows:?}")
            }
            SourceEvent::Watermark(watermark) => format!("w{}", watermark.0),
            SourceEvent::Idle(idle) => format!("idle {idle}"),
            SourceEvent::Pending => "pending".into(),
            SourceEvent::End => "end".into(),
        }
    }

    fn several(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| self.next()).collect()
    }

    /// Lets a waiting split go on.
    fn go_on(&self, split: usize) {
        let mut acts = self.splits[split].acts.lock();
        assert!(matches!(acts.pop_front(), Some(Act::Wait)));
    }

    fn later(&self, ms: u64) {
        self.harness.clock.advance(Duration::from_millis(ms));
    }
}

fn rows(times: &[i64]) -> Act {
    Act::Rows(times.to_vec())
}

#[test]
fn the_watermark_is_the_minimum_over_the_splits_and_the_slowest_is_read_first() {
    let ahead = vec![rows(&[100, 90]), rows(&[200])];
    let behind = vec![rows(&[10]), rows(&[20, 15]), rows(&[30])];
    let mut stage = stage(vec![ahead, behind], |_| {});
    // No watermark before every split has spoken; rows of the split behind come first although they are the second's.
    assert_eq!(
        stage.several(9),
        [
            "[10]",
            "[20, 15]",
            "[30]",
            "[100, 90]",
            "w100",
            "[200]",
            "w200",
            "pending",
            "end"
        ]
    );
}

#[test]
fn a_split_that_waits_holds_the_watermark_back_until_it_is_idle() {
    let mut stage = stage(
        vec![vec![rows(&[50]), rows(&[60]), Act::Wait], vec![Act::Wait, rows(&[7])]],
        |spec| spec.idle_timeout_ms = Some(1000),
    );
    assert_eq!(stage.several(3), ["[50]", "[60]", "pending"]);
    stage.later(999);
    assert_eq!(stage.next(), "pending");
    stage.later(1);
    // Both are silent for a second now: nobody holds anybody back.
    assert_eq!(stage.next(), "idle true");
    stage.go_on(1);
    assert_eq!(stage.several(2), ["[7]", "idle false"]);
    assert_eq!(
        stage.several(3),
        ["w7", "idle true", "pending"],
        "the second split has ended, the first is silent"
    );
}

#[test]
fn an_idle_split_does_not_hold_back_one_that_speaks() {
    let mut stage = stage(
        vec![
            vec![rows(&[50]), Act::Wait, rows(&[60]), Act::Wait],
            vec![Act::Wait, rows(&[55]), Act::Wait],
        ],
        |spec| spec.idle_timeout_ms = Some(1000),
    );
    assert_eq!(stage.several(2), ["[50]", "pending"]);
    stage.later(600);
    stage.go_on(0);
    assert_eq!(stage.several(2), ["[60]", "pending"]);
    stage.later(600);
    // The second one has been silent for 1,200 ms, the first for 600.
    assert_eq!(stage.next(), "w60");
    stage.go_on(1);
    // Its row is late; the watermark does not go back.
    assert_eq!(stage.several(2), ["[55]", "pending"]);
}

#[test]
fn watermarks_leave_no_more_often_than_the_interval() {
    let acts = vec![rows(&[1]), rows(&[2]), rows(&[3]), Act::Wait];
    let mut stage = stage(vec![acts], |spec| spec.interval_ms = 200);
    assert_eq!(stage.several(5), ["[1]", "w1", "[2]", "[3]", "pending"]);
    stage.later(199);
    assert_eq!(stage.next(), "pending");
    stage.later(1);
    assert_eq!(stage.next(), "w3");
}

#[test]
fn a_split_that_is_far_ahead_waits_for_the_others() {
    let fast = vec![rows(&[0]), rows(&[100]), rows(&[5000]), rows(&[6000])];
    let slow = vec![rows(&[0]), Act::Wait, rows(&[4500]), Act::Wait];
    let mut stage = stage(vec![fast, slow], |spec| spec.max_drift_ms = Some(1000));
    let first = stage.several(6);
    assert_eq!(
        first.iter().filter(|event| event.starts_with('[')).count(),
        3,
        "{first:?}"
    );
    assert!(!first.contains(&"[5000]".to_string()), "{first:?}");
    assert_eq!(stage.next(), "pending", "5000 is more than 1000 ahead of 0");
    stage.go_on(1);
    assert_eq!(stage.several(3), ["[4500]", "w100", "[5000]"]);
    assert_eq!(
        stage.several(2),
        ["w4500", "pending"],
        "6000 is more than 1000 ahead of 4500"
    );
}

#[test]
fn subtasks_share_the_splits_between_them() {
    let stage = stage(vec![vec![], vec![], vec![], vec![], vec![]], |_| {});
    let plan = Arc::clone(stage.scan.plan());
    let ordinals = |subtask, parallelism| {
        let spec = ScanSpec {
            stream: Some(StreamScanSpec::default()),
            bounded_by: vec![],
            table: "t".into(),
            plan: PhysicalPlan(Arc::clone(&plan)),
            limit: None,
            read_bytes: 0,
        };
        let mut scan = StreamScan::new(spec, None, subtask, parallelism);
        scan.splits.begin(&stage.harness.context).unwrap();
        scan.splits.open(&stage.harness.context).unwrap();
        scan.splits
            .open
            .iter()
            .map(|split| split.id.ordinal)
            .collect::<Vec<_>>()
    };
    assert_eq!((ordinals(0, 2), ordinals(1, 2)), (vec![0, 2, 4], vec![1, 3]));
    assert_eq!(ordinals(6, 7), Vec::<u64>::new());
}

#[test]
fn null_times_say_nothing() {
    let mut stage = stage(vec![vec![rows(&[5])]], |_| {});
    assert_eq!(stage.several(3), ["[5]", "w5", "pending"]);
    let time = DataType::Timestamp(TimeUnit::Second, Some("+02:00".into()));
    let schema: SchemaRef = Arc::new(Schema::new(vec![Field::new("ts", time, true)]));
    let batch = |values: Vec<Option<i64>>| {
        let column = arrow::array::TimestampSecondArray::from(values).with_timezone("+02:00");
        Batch::try_new(Arc::clone(&schema), vec![Arc::new(column) as ArrayRef]).unwrap()
    };
    let expr = ScalarExpr::column(0, &schema);
    assert_eq!(
        highest(&expr, &batch(vec![None, Some(2), None, Some(1)])).unwrap(),
        Some(2000)
    );
    assert_eq!(highest(&expr, &batch(vec![None, None])).unwrap(), None);
}

#[test]
fn a_delay_is_taken_from_the_latest_row_as_from_every_row() {
    use datafusion::physical_expr::expressions::{binary, col, lit};
    let schema = stage(vec![], |_| {}).scan.plan().schema();
    let batch = |rows: Vec<Option<i64>>| {
        let column: ArrayRef = Arc::new(TimestampMillisecondArray::from(rows));
        Batch::try_new(Arc::clone(&schema), vec![column]).unwrap()
    };
    for (months, days) in [(0, 1), (1, 0), (0, 0)] {
        let delay = ScalarValue::new_interval_mdn(months, days, 5_000_000);
        let expr = binary(col("ts", &schema).unwrap(), Operator::Minus, lit(delay), &schema).unwrap();
        assert_eq!(delayed_column(&expr), (months == 0).then_some(0));
        let expr = ScalarExpr::new(expr, Arc::clone(&schema));
        let march: i64 = 1_711_839_600_000; // 2024-03-30 23:00, a day and two hours before the last of these
        let rows = vec![Some(march), None, Some(march + 7_200_000), Some(march + 3_600_000)];
        let each = rows.iter().map(|row| highest(&expr, &batch(vec![*row])).unwrap());
        let expected = each.max().flatten();
        assert_eq!(highest(&expr, &batch(rows)).unwrap(), expected, "{months} {days}");
        assert_eq!(highest(&expr, &batch(vec![None, None])).unwrap(), None);
    }
}
