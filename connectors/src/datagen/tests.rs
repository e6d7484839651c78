use arrow::array::{Array, AsArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, TimeUnit};
use arrow::record_batch::RecordBatch;
use datafusion::prelude::{SessionConfig, SessionContext};

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
    assert!(error(&[("fields.f.kind", "zigzag")]).contains("random or sequence"));
    assert!(error(&[("fields.d.kind", "sequence")]).contains("has no sequence"));
    let none = BTreeMap::from([("connector".to_string(), "datagen".to_string())]);
    assert!(
        create_table(schema(), &none)
            .unwrap_err()
            .to_string()
            .contains("number-of-rows")
    );
}
