use std::collections::BTreeMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int64Type, TimestampMillisecondType};
use arrow::record_batch::RecordBatch;
use datafusion::physical_plan::collect_partitioned;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;

use super::*;
use crate::generate::mix;
use crate::generate::tests::cpu_seconds;

type Create = fn(SchemaRef, &BTreeMap<String, String>) -> Result<Arc<dyn TableProvider>>;

fn made(create: Create, more: &[(&str, &str)]) -> Result<Arc<dyn TableProvider>> {
    let options = more.iter().map(|(key, value)| (key.to_string(), value.to_string()));
    create(Arc::new(Schema::empty()), &options.collect())
}

async fn rows(
    create: Create,
    more: &[(&str, &str)],
    batch_rows: usize,
    projection: Option<&Vec<usize>>,
) -> RecordBatch {
    let session = SessionContext::new_with_config(
        SessionConfig::new()
            .with_batch_size(batch_rows)
            .with_target_partitions(1),
    );
    let table = made(create, more).unwrap();
    let plan = table.scan(&session.state(), projection, &[], None).await.unwrap();
    let splits = collect_partitioned(Arc::clone(&plan), session.task_ctx())
        .await
        .unwrap();
    let batches = splits.concat();
    let all = arrow::compute::concat_batches(&plan.schema(), &batches).unwrap();
    for column in all.columns() {
        column.to_data().validate_full().unwrap();
    }
    all
}

/// As the harness in Java prints it.
const LINES: [&str; 3] = [
    r#"{"user_id":"075500b8-66c1-dcbb-752d-aada0f53babd","page_id":"7e1dfc53-1519-9602-739a-0c74cf0e3227","ad_id":4164845973610857063,"ad_type":"banner","event_type":"view","event_time":1600000000000,"ip_address":"1.2.3.4"}"#,
    r#"{"user_id":"1ffa5072-34f6-168b-984b-cd8a7a2d14a6","page_id":"cb56c47a-9d15-2b6c-85c0-6a4e1ec1cfb3","ad_id":8653451485308999421,"ad_type":"mail","event_type":"click","event_time":1600000000000,"ip_address":"1.2.3.4"}"#,
    r#"{"user_id":"b2c95aa3-eb28-6e42-636f-7889a86dbba6","page_id":"562d611c-4c9d-1f23-a405-735850608734","ad_id":9098185722829239247,"ad_type":"banner","event_type":"purchase","event_time":1600000000000,"ip_address":"1.2.3.4"}"#,
];
const LINE_123457: &str = r#"{"user_id":"52cb8d4d-46d5-4cf1-dc65-e49415393687","page_id":"74117a84-cb78-bd90-189a-a7d15fddff1f","ad_id":6140475083634056117,"ad_type":"banner","event_type":"click","event_time":1600000001234,"ip_address":"1.2.3.4"}"#;

#[tokio::test]
async fn json_lines_are_those_of_the_harness() {
    let json = rows(
        create_table,
        &[("ysb.form", "json"), ("ysb.events", "123458")],
        8192,
        None,
    )
    .await;
    let lines = json.column(0).as_string_view();
    assert_eq!(lines.len(), 123_458);
    assert_eq!([lines.value(0), lines.value(1), lines.value(2)], LINES);
    assert_eq!(lines.value(123_457), LINE_123457);
}

#[tokio::test]
async fn both_forms_are_the_same_events_at_any_batch_size() {
    let options = [
        ("ysb.events", "5000"),
        ("ysb.campaigns", "7"),
        ("seed", "3"),
        ("ysb.splits", "3"),
    ];
    let json = rows(
        create_table,
        &[&options[..], &[("ysb.form", "json")]].concat(),
        17,
        None,
    )
    .await;
    let typed = rows(create_table, &options, 1024, None).await;
    assert_eq!(typed, rows(create_table, &options, 1, None).await);
    let projected = rows(create_table, &options, 4096, Some(&vec![5, 2])).await;
    assert_eq!(projected, typed.project(&[5, 2]).unwrap());
    let text = |column: usize, row: usize| typed.column(column).as_string_view().value(row).to_string();
    for row in 0..5000 {
        let event: serde_json::Value = serde_json::from_str(json.column(0).as_string_view().value(row)).unwrap();
        for (column, name) in [
            (0, "user_id"),
            (1, "page_id"),
            (3, "ad_type"),
            (4, "event_type"),
            (6, "ip_address"),
        ] {
            assert_eq!(event[name].as_str(), Some(text(column, row).as_str()));
        }
        let ad = typed.column(2).as_primitive::<Int64Type>().value(row);
        let time = typed.column(5).as_primitive::<TimestampMillisecondType>().value(row);
        assert_eq!(
            (event["ad_id"].as_i64(), event["event_time"].as_i64()),
            (Some(ad), Some(time))
        );
    }
}

#[tokio::test]
async fn every_ad_belongs_to_a_campaign() {
    let campaigns = rows(create_campaigns, &[("ysb.campaigns", "100")], 64, None).await;
    let ids = |batch: &RecordBatch, column: usize| batch.column(column).as_primitive::<Int64Type>().values().to_vec();
    let (ads, owners) = (ids(&campaigns, 0), ids(&campaigns, 1));
    assert_eq!(ads.len(), 1000);
    // As the harness in Java prints them.
    assert_eq!(
        (ads[11], owners[11]),
        (3_774_817_245_553_408_877, -7_100_606_225_728_508_381)
    );
    assert_eq!(
        (ads[999], owners[999]),
        (-8_976_005_784_113_691_640, 9_059_930_119_053_403_954)
    );
    assert_eq!(ads[0], mix(0) as i64);
    let events = rows(create_table, &[("ysb.events", "3000")], 8192, None).await;
    assert!(ids(&events, 2).iter().all(|ad| ads.contains(ad)));
}

#[test]
fn digits_are_those_of_the_standard_library() {
    let mut digits = [0; events::DIGITS_MAX];
    for number in [
        0,
        1,
        -1,
        9,
        10,
        -10,
        99,
        100,
        1_600_000_000_000,
        i64::MAX,
        i64::MIN,
        i64::MIN + 1,
    ] {
        assert_eq!(events::decimal(number, &mut digits), number.to_string().as_bytes());
    }
}

#[test]
fn wrong_options_are_named() {
    let error = |create: Create, more: &[(&str, &str)]| made(create, more).unwrap_err().to_string();
    assert!(error(create_table, &[("ysb.form", "xml")]).contains("must be typed or json"));
    assert!(error(create_table, &[("ysb.campaigns", "0")]).contains("'ysb.campaigns' = '0'"));
    assert!(error(create_table, &[("ysb.rate", "1")]).contains("no option 'ysb.rate'"));
    assert!(error(create_campaigns, &[("ysb.events", "1")]).contains("no option 'ysb.events'"));
    let declared = Arc::new(Schema::new(vec![Field::new("ad_id", DataType::Utf8, false)]));
    let message = create_campaigns(declared, &BTreeMap::new()).unwrap_err().to_string();
    assert!(message.contains("ad_id BIGINT, campaign_id BIGINT"), "{message}");
}

/// Run by hand, optimized: how fast one core makes events.
#[tokio::test]
#[ignore = "a measurement"]
async fn rates() {
    const MEASURED: u64 = 10_000_000;
    let cases: [(&str, &[usize]); 3] = [("typed", &[0, 1, 2, 3, 4, 5, 6]), ("typed", &[2, 4, 5]), ("json", &[0])];
    for (form, projection) in cases {
        let more = [
            ("ysb.form", form),
            ("ysb.events", &MEASURED.to_string()),
            ("ysb.splits", "1"),
        ];
        let session = SessionContext::new();
        let table = made(create_table, &more).unwrap();
        let plan = table
            .scan(&session.state(), Some(&projection.to_vec()), &[], None)
            .await
            .unwrap();
        let mut stream = plan.execute(0, session.task_ctx()).unwrap();
        let start = cpu_seconds();
        while let Some(batch) = stream.try_next().await.unwrap() {
            std::hint::black_box(batch);
        }
        let rate = MEASURED as f64 / (cpu_seconds() - start) / 1e6;
        println!("ysb {form} {projection:?}: {rate:.1} M events/s");
    }
}
