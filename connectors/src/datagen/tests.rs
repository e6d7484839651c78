use arrow::array::{Array, AsArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit, TimestampMillisecondType};
use arrow::record_batch::RecordBatch;
use datafusion::physical_plan::ExecutionPlanProperties;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;

use super::*;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("small", DataType::Int8, true),
        Field::new("price", DataType::Decimal128(10, 2), true),
        Field::new("f", DataType::Float32, true),
        Field::new("s", DataType::Utf8View, true),
        Field::new("b", DataType::Boolean, true),
        Field::new("d", DataType::Date32, true),
        Field::new("t", DataType::Timestamp(TimeUnit::Millisecond, None), true),
        Field::new("u", DataType::UInt32, true),
    ]))
}

fn options(more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let base = [
        ("connector", "datagen"),
        ("number-of-rows", "200000"),
        ("fields.id.kind", "sequence"),
        ("seed", "7"),
    ];
    base.iter()
        .chain(more)
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

async fn rows(options: &BTreeMap<String, String>, batch_size: usize, query: &str) -> RecordBatch {
    let context = SessionContext::new_with_config(SessionConfig::new().with_batch_size(batch_size));
    context
        .register_table("t", create_table(schema(), options).unwrap())
        .unwrap();
    let frame = context.sql(query).await.unwrap();
    let schema = Arc::new(frame.schema().as_arrow().clone());
    concat_batches(&schema, &frame.collect().await.unwrap()).unwrap()
}

#[tokio::test]
async fn the_same_rows_come_out_whatever_the_batch_size_and_projection() {
    let options = options(&[("fields.small.null-rate", "0.25"), ("fields.s.length", "20")]);
    let large = rows(&options, 8192, "SELECT * FROM t ORDER BY id").await;
    let small = rows(&options, 1000, "SELECT * FROM t ORDER BY id").await;
    assert_eq!(large, small);
    assert_eq!(large.num_rows(), 200_000);
    let only = rows(&options, 8192, "SELECT id, s FROM t ORDER BY id").await;
    assert_eq!(only.column(1), large.column(4));
    let nulls = large.column(1).null_count();
    assert!((45_000..55_000).contains(&nulls), "{nulls}");
    assert_eq!(large.column(4).as_string_view().value(5).len(), 20);
}

#[tokio::test]
async fn values_stay_in_their_bounds() {
    let bounds = [
        ("fields.small.min", "-3"),
        ("fields.small.max", "4"),
        ("fields.price.min", "1.50"),
        ("fields.price.max", "1.75"),
        ("fields.d.min", "2024-02-28"),
        ("fields.d.max", "2024-03-01"),
        ("fields.t.min", "2024-01-01 00:00:00"),
        ("fields.t.max", "2024-01-01 00:00:01"),
    ];
    let query = "SELECT count(DISTINCT small), count(DISTINCT price), count(DISTINCT d), count(DISTINCT t), \
                 count(*) FILTER (WHERE price NOT BETWEEN 1.50 AND 1.75 OR t >= '2024-01-01 00:00:02') FROM t";
    let counts = rows(&options(&bounds), 8192, query).await;
    let counts: Vec<i64> = counts
        .columns()
        .iter()
        .map(|c| c.as_primitive::<Int64Type>().value(0))
        .collect();
    assert_eq!(counts, [8, 26, 3, 1001, 0]);
}

#[tokio::test]
async fn a_sequence_ends_the_table() {
    let ended = rows(
        &options(&[("fields.id.start", "5"), ("fields.id.end", "8")]),
        8192,
        "SELECT id FROM t",
    )
    .await;
    assert_eq!(ended.column(0).as_primitive::<Int64Type>().values(), &[5, 6, 7, 8]);
}

#[test]
fn wrong_options_are_named() {
    let error = |more: &[(&str, &str)]| create_table(schema(), &options(more)).unwrap_err().to_string();
    assert!(error(&[("fields.nope.kind", "random")]).contains("no option 'fields.nope.kind'"));
    assert!(error(&[("fields.small.min", "abc")]).contains("'fields.small.min' = 'abc'"));
    assert!(error(&[("fields.f.kind", "zigzag")]).contains("random, sequence or event-time"));
    assert!(error(&[("fields.d.kind", "sequence")]).contains("has no sequence"));
    assert!(error(&[("fields.id.kind", "event-time")]).contains("is no timestamp"));
    assert!(error(&[("fields.t.kind", "event-time")]).contains("needs 'fields.t.rate'"));
    let time = [("fields.t.kind", "event-time"), ("fields.t.rate", "10")];
    assert!(error(&[&time[..], &[("fields.t.start", "noon")]].concat()).contains("'fields.t.start' = 'noon'"));
    assert!(error(&[&time[..], &[("fields.t.min", "0")]].concat()).contains("no option 'fields.t.min'"));
    assert!(error(&[("rows-per-second", "0")]).contains("must be above 0"));
    assert!(error(&[("splits", "0")]).contains("must be above 0"));
}

/// The options without `number-of-rows`.
fn endless(more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let mut options = options(more);
    options.remove("number-of-rows");
    options
}

async fn plan_of(options: &BTreeMap<String, String>, session: &SessionContext) -> Arc<dyn ExecutionPlan> {
    let table = create_table(schema(), options).unwrap();
    table.scan(&session.state(), None, &[], None).await.unwrap()
}

#[tokio::test]
async fn without_a_number_of_rows_a_table_has_no_end() {
    let session = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(3).with_batch_size(700));
    let plan = plan_of(&endless(&[]), &session).await;
    assert!(plan.boundedness().is_unbounded());
    let mut ids = Vec::new();
    assert_eq!(plan.properties().partitioning.partition_count(), 3);
    for split in 0..3 {
        let mut stream = plan.execute(split, session.task_ctx()).unwrap();
        while ids.len() < (split + 1) * 7000 {
            let batch = stream.try_next().await.unwrap().unwrap();
            ids.extend_from_slice(batch.column(0).as_primitive::<Int64Type>().values());
        }
    }
    // Blocks of 1024 by turns: each split's first six are the first 18 of all.
    let mut whole: Vec<i64> = ids.iter().copied().filter(|id| *id < 18 * 1024).collect();
    whole.sort_unstable();
    assert_eq!(whole, (0..18 * 1024).collect::<Vec<i64>>());
    let ended = plan_of(&endless(&[("fields.id.end", "9")]), &session).await;
    assert!(!ended.boundedness().is_unbounded(), "a sequence ends it");
}

#[tokio::test]
async fn the_same_rows_come_out_whatever_the_splits() {
    let whole = rows(&options(&[]), 8192, "SELECT * FROM t ORDER BY id").await;
    for splits in ["1", "3"] {
        let split = rows(&options(&[("splits", splits)]), 900, "SELECT * FROM t ORDER BY id").await;
        assert_eq!(whole, split);
    }
}

#[tokio::test]
async fn event_time_goes_by_the_rows_number_and_disorder_is_bounded() {
    let time = [
        ("fields.t.kind", "event-time"),
        ("fields.t.start", "2024-01-01 00:00:00"),
        ("fields.t.rate", "3"),
    ];
    let start = 1_704_067_200_000;
    let query = "SELECT t FROM t ORDER BY id";
    let times = |batch: &RecordBatch| {
        let times = batch.column(0).as_primitive::<TimestampMillisecondType>();
        times.values().to_vec()
    };
    let ordered = times(&rows(&options(&time), 8192, query).await);
    let expected: Vec<i64> = (0..200_000).map(|row| start + row * 1000 / 3).collect();
    assert_eq!(ordered, expected);
    let disordered = options(&[&time[..], &[("fields.t.disorder", "2000")]].concat());
    let late = times(&rows(&disordered, 8192, query).await);
    let behind: Vec<i64> = expected.iter().zip(&late).map(|(due, time)| due - time).collect();
    assert_eq!((behind.iter().min(), behind.iter().max()), (Some(&0), Some(&2000)));
    assert_eq!(
        late,
        times(&rows(&disordered, 333, query).await),
        "disorder is not repeatable"
    );
}

#[tokio::test]
async fn a_pace_lets_each_row_out_when_it_is_due() {
    let session = SessionContext::new();
    let paced = endless(&[("rows-per-second", "5000"), ("fields.t.kind", "event-time")]);
    let plan = plan_of(&paced, &session).await;
    assert_eq!(plan.properties().partitioning.partition_count(), 1);
    let mut stream = plan.execute(0, session.task_ctx()).unwrap();
    let start = tokio::time::Instant::now();
    let mut rows = 0;
    while rows < 250 {
        let batch = stream.try_next().await.unwrap().unwrap();
        rows += batch.num_rows();
        let due = start.elapsed().as_micros() as usize * 5000 / 1_000_000 + 1;
        assert!(rows <= due, "{rows} rows came when {due} were due");
    }
}
