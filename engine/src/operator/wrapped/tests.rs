//! Plans as DataFusion's planner makes them, their scan replaced by the placeholder.

use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, ListArray, UInt64Array};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, UInt64Type};
use async_trait::async_trait;
use datafusion::datasource::MemTable;
use datafusion::datasource::sink::{DataSink, DataSinkExec};
use datafusion::physical_plan::Partitioning;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::limit::GlobalLimitExec;
use datafusion::physical_plan::repartition::RepartitionExec;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt;

use super::*;
use crate::operator::harness::Harness;
use crate::plan::{PhysicalPlan, input_placeholder};

fn schema() -> SchemaRef {
    let list = DataType::List(Arc::new(Field::new_list_field(DataType::Int32, true)));
    Arc::new(Schema::new(vec![
        Field::new("g", DataType::Int64, true),
        Field::new("v", DataType::Int64, true),
        Field::new("l", list, true),
    ]))
}

fn batch(rows: &[(i64, i64)]) -> Batch {
    let g = Int64Array::from_iter_values(rows.iter().map(|row| row.0));
    let v = Int64Array::from_iter_values(rows.iter().map(|row| row.1));
    // As many elements as `g` says, each `v`.
    let l = ListArray::from_iter_primitive::<Int32Type, _, _>(
        rows.iter().map(|(g, v)| Some(vec![Some(*v as i32); *g as usize])),
    );
    Batch::try_new(schema(), vec![Arc::new(g) as ArrayRef, Arc::new(v), Arc::new(l)]).unwrap()
}

/// The plan of `sql` over table `t`.
fn plan_of(sql: &str) -> Arc<dyn ExecutionPlan> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let session = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(1));
    let table = MemTable::try_new(schema(), vec![vec![batch(&[(1, 1)])]]).unwrap();
    session.register_table("t", Arc::new(table)).unwrap();
    let plan = runtime.block_on(async { session.sql(sql).await.unwrap().create_physical_plan().await.unwrap() });
    plan.transform_down(|node| {
        if !node.children().is_empty() {
            return Ok(Transformed::no(node));
        }
        Ok(Transformed::yes(input_placeholder(node.schema(), &[]).unwrap()))
    })
    .unwrap()
    .data
}

fn wrapped(plan: Arc<dyn ExecutionPlan>) -> Wrapped {
    Wrapped::new(WrappedSpec {
        label: "Wrapped plan".into(),
        plan: PhysicalPlan(plan),
    })
    .unwrap()
}

fn run(plan: Arc<dyn ExecutionPlan>, input: Vec<Batch>) -> Vec<Batch> {
    Harness::new(wrapped(plan)).run(vec![input]).unwrap()
}

fn int_column(batches: &[Batch], column: usize) -> Vec<i64> {
    let values = batches
        .iter()
        .flat_map(|batch| batch.column(column).as_primitive::<Int64Type>().values().to_vec());
    values.collect()
}

#[test]
fn row_number_counts_over_partitions() {
    let plan = plan_of("SELECT g, v, l, row_number() OVER (PARTITION BY g ORDER BY v DESC) AS n FROM t");
    let output = run(
        plan,
        vec![batch(&[(1, 10), (2, 7), (1, 30)]), batch(&[(2, 9)]), batch(&[(1, 20)])],
    );
    let output = concat_batches(&output[0].schema(), &output).unwrap();
    let mut rows: Vec<(i64, i64, u64)> = (0..output.num_rows())
        .map(|row| {
            let n = output.column(3).as_primitive::<UInt64Type>().value(row);
            let [g, v] = [0, 1].map(|column| output.column(column).as_primitive::<Int64Type>().value(row));
            (g, v, n)
        })
        .collect();
    rows.sort_unstable();
    assert_eq!(rows, [(1, 10, 3), (1, 20, 2), (1, 30, 1), (2, 7, 2), (2, 9, 1)]);
}

#[test]
fn rows_come_out_as_soon_as_the_plan_has_them() {
    let plan = plan_of("SELECT v, sum(v) OVER (ROWS UNBOUNDED PRECEDING) AS total FROM t");
    let mut harness = Harness::new(wrapped(plan));
    for (v, totals) in [(5, &[5][..]), (6, &[5, 11]), (-1, &[5, 11, 10])] {
        harness.push(0, batch(&[(1, v)]).project(&[1]).unwrap()).unwrap();
        assert_eq!(int_column(&harness.output.batches, 1), totals);
    }
    harness.end(0).unwrap();
    assert_eq!(harness.output.batches.len(), 3);
}

#[test]
fn unnest_repeats_a_row_per_element() {
    let output = run(
        plan_of("SELECT v, CAST(unnest(l) AS BIGINT) AS e FROM t"),
        vec![batch(&[(2, 5), (0, 6)]), batch(&[(1, 7)]), batch(&[(3, 8)])],
    );
    assert_eq!(int_column(&output, 0), [5, 5, 7, 8, 8, 8]);
    assert_eq!(int_column(&output, 1), [5, 5, 7, 8, 8, 8]);
}

#[test]
fn empty_input_gives_what_the_plan_gives() {
    assert!(run(plan_of("SELECT v, row_number() OVER (ORDER BY v) AS n FROM t"), vec![]).is_empty());
    let output = run(plan_of("SELECT sum(v) AS s, count(v) AS n FROM t"), vec![]);
    assert_eq!(int_column(&output, 1), [0]);
}

#[test]
fn a_plan_that_has_enough_is_done() {
    let limit = GlobalLimitExec::new(input_placeholder(schema(), &[]).unwrap(), 0, Some(3));
    let mut harness = Harness::new(wrapped(Arc::new(limit)));
    for (v, done) in [(1, false), (2, false), (3, true), (4, true)] {
        harness.push(0, batch(&[(1, v)])).unwrap();
        assert_eq!(harness.operator.is_done(), done, "after {v}");
    }
    harness.end(0).unwrap();
    assert_eq!(int_column(&harness.output.batches, 1), [1, 2, 3]);
}

#[test]
fn a_plan_with_tasks_of_its_own_loses_nothing_and_does_not_fall_behind() {
    let leaf = input_placeholder(schema(), &[]).unwrap();
    let spread = RepartitionExec::try_new(leaf, Partitioning::RoundRobinBatch(3)).unwrap();
    let plan = Arc::new(CoalescePartitionsExec::new(Arc::new(spread)));
    let mut harness = Harness::new(wrapped(plan));
    for v in 0..500 {
        harness.push(0, batch(&[(1, v)])).unwrap();
        assert!(harness.operator.queue.lock().batches.len() < QUEUE_MAX);
    }
    harness.end(0).unwrap();
    let mut values = int_column(&harness.output.batches, 1);
    values.sort_unstable();
    assert_eq!(values, (0..500).collect::<Vec<_>>());
}

#[test]
fn two_subtasks_of_one_plan_do_not_share_input() {
    let plan = plan_of("SELECT v, row_number() OVER (ORDER BY v) AS n FROM t");
    for v in [5, 6] {
        let output = run(Arc::clone(&plan), vec![batch(&[(1, v)]).project(&[1]).unwrap()]);
        assert_eq!(int_column(&output, 0), [v]);
    }
}

#[test]
fn a_failing_plan_fails_the_operator() {
    let plan = plan_of("SELECT v, 1 / v AS inverse FROM t");
    let error = Harness::new(wrapped(plan))
        .run(vec![vec![batch(&[(1, 0)]).project(&[1]).unwrap()]])
        .unwrap_err();
    assert!(error.to_string().to_lowercase().contains("divide by zero"), "{error}");
}

#[test]
fn a_plan_without_a_placeholder_is_refused() {
    let plan = Arc::new(datafusion::physical_plan::empty::EmptyExec::new(schema()));
    let spec = WrappedSpec {
        label: "Window".into(),
        plan: PhysicalPlan(plan),
    };
    let error = Wrapped::new(spec).err().unwrap();
    assert!(error.to_string().contains("Window has 0 inputs"), "{error}");
}

/// Counts what it is given; never ends when `stuck`.
#[derive(Debug)]
struct Sink {
    schema: SchemaRef,
    stuck: bool,
}

impl DisplayAs for Sink {
    fn fmt_as(&self, _format: DisplayFormatType, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}

#[async_trait]
impl DataSink for Sink {
    fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    async fn write_all(
        &self,
        mut data: SendableRecordBatchStream,
        _context: &Arc<TaskContext>,
    ) -> DataFusionResult<u64> {
        let mut rows = 0;
        while let Some(batch) = data.next().await {
            rows += batch?.num_rows() as u64;
        }
        if self.stuck {
            std::future::pending::<()>().await;
        }
        Ok(rows)
    }
}

fn insert(stuck: bool) -> Arc<dyn ExecutionPlan> {
    let sink = Arc::new(Sink {
        schema: schema(),
        stuck,
    });
    Arc::new(DataSinkExec::new(input_placeholder(schema(), &[]).unwrap(), sink, None))
}

#[test]
fn an_insert_yields_its_count_also_when_nothing_came() {
    for (input, count) in [(vec![], 0), (vec![batch(&[(1, 1), (1, 2)]), batch(&[(1, 3)])], 3)] {
        let output = run(insert(false), input);
        assert_eq!(output.len(), 1);
        assert_eq!(
            output[0].column(0).as_primitive::<UInt64Type>(),
            &UInt64Array::from(vec![count])
        );
    }
}

#[test]
fn cancelling_ends_a_plan_that_does_not() {
    let mut harness = Harness::new(wrapped(insert(true)));
    harness.push(0, batch(&[(1, 1)])).unwrap();
    let cancel = harness.context.cancel.clone();
    harness.context.io.spawn(async move {
        tokio::time::sleep(Duration::from_millis(20)).await;
        cancel.cancel();
    });
    assert!(matches!(harness.end(0), Err(EngineError::Cancelled)));
}
