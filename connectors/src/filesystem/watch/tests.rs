use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use arrow::array::AsArray;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::catalog::TableProvider;
use datafusion::execution::SendableRecordBatchStream;
use datafusion::physical_plan::ExecutionPlanProperties;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;

use crate::create_table;

fn schema() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("a", DataType::Int64, true),
        Field::new("s", DataType::Utf8View, true),
        Field::new("p", DataType::Int64, true),
    ]))
}

async fn table(folder: &Path, partitioned: bool, more: &[(&str, &str)]) -> Arc<dyn TableProvider> {
    let mut options = BTreeMap::from([
        ("connector".to_string(), "filesystem".to_string()),
        ("path".into(), folder.display().to_string()),
        ("format".into(), "csv".into()),
        ("csv.header".into(), "false".into()),
        ("source.monitor-interval".into(), "1 ms".into()),
    ]);
    options.extend(more.iter().map(|(key, value)| (key.to_string(), value.to_string())));
    let partitions: &[String] = if partitioned { &["p".to_string()] } else { &[] };
    let state = SessionContext::new().state();
    create_table(&state, "t", schema(), partitions, &options).await.unwrap()
}

/// Writes a file and then gives it its name, so that no reader sees half of it.
fn put(folder: &Path, name: &str, text: &str, modified_seconds: u64) {
    let hidden = folder.join(".being-written");
    std::fs::write(&hidden, text).unwrap();
    let file = std::fs::File::options().write(true).open(&hidden).unwrap();
    file.set_modified(UNIX_EPOCH + Duration::from_secs(modified_seconds))
        .unwrap();
    std::fs::rename(hidden, folder.join(name)).unwrap();
}

/// The next `count` numbers of a column.
async fn numbers(stream: &mut SendableRecordBatchStream, column: usize, count: usize) -> Vec<i64> {
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let batch = stream.try_next().await.unwrap().expect("a watched folder has no end");
        numbers.extend_from_slice(batch.column(column).as_primitive::<Int64Type>().values());
    }
    numbers
}

#[tokio::test]
async fn files_that_appear_are_read_once_and_in_order() {
    let temp = tempfile::tempdir().unwrap();
    // Times before names: c is the oldest.
    put(temp.path(), "b.csv", "3,x,0\n", 2000);
    put(temp.path(), "a.csv", "2,x,0\n", 2000);
    put(temp.path(), "c.csv", "1,x,0\n", 1000);
    put(temp.path(), "other.txt", "9,x,0\n", 1000);
    put(temp.path(), "_notes.csv", "9,x,0\n", 1000);
    std::fs::write(temp.path().join("empty.csv"), "").unwrap();
    let context = SessionContext::new();
    let watched = table(temp.path(), false, &[]).await;
    let plan = watched.scan(&context.state(), None, &[], None).await.unwrap();
    assert!(plan.boundedness().is_unbounded());
    assert_eq!(plan.schema(), schema());
    let mut stream = plan.execute(0, context.task_ctx()).unwrap();
    assert_eq!(numbers(&mut stream, 0, 3).await, [1, 2, 3]);
    // Older than what was read, and still new; and one that was there, with nothing in it.
    put(temp.path(), "d.csv", "4,x,0\n5,x,0\n", 500);
    assert_eq!(numbers(&mut stream, 0, 2).await, [4, 5]);
    put(temp.path(), "empty.csv", "6,x,0\n", 400);
    assert_eq!(numbers(&mut stream, 0, 1).await, [6]);
    // Nothing is read again: the next row is the next file's.
    put(temp.path(), "e.csv", "7,x,0\n", 9000);
    assert_eq!(numbers(&mut stream, 0, 1).await, [7]);
}

#[tokio::test]
async fn partitions_projections_and_nulls_are_as_in_a_folder_that_is_listed() {
    let temp = tempfile::tempdir().unwrap();
    let context = SessionContext::new();
    let watched = table(temp.path(), true, &[("csv.null-literal", "-")]).await;
    context.register_table("t", watched).unwrap();
    let query = "SELECT p, s, a FROM t WHERE p <> 2";
    let mut stream = context.sql(query).await.unwrap().execute_stream().await.unwrap();
    for p in [1, 2, 3] {
        std::fs::create_dir(temp.path().join(format!("p={p}"))).unwrap();
        put(
            &temp.path().join(format!("p={p}")),
            "f.csv",
            &format!("-,-\n{p},text{p}\n"),
            p,
        );
    }
    let mut rows = Vec::new();
    while rows.len() < 4 {
        let batch = stream.try_next().await.unwrap().unwrap();
        for row in 0..batch.num_rows() {
            let p = batch.column(0).as_primitive::<Int64Type>().value(row);
            assert_eq!(batch.column(1).is_null(row), batch.column(2).is_null(row));
            rows.push((p, batch.column(1).is_null(row)));
        }
    }
    rows.sort_unstable();
    assert_eq!(rows, [(1, false), (1, true), (3, false), (3, true)]);
}

#[tokio::test]
async fn a_file_cannot_be_watched_and_the_interval_must_be_a_time() {
    let temp = tempfile::tempdir().unwrap();
    put(temp.path(), "a.csv", "1,x,0\n", 1);
    let state = SessionContext::new().state();
    let error = async |path: &Path, interval: &str| {
        let options = BTreeMap::from([
            ("connector".to_string(), "filesystem".to_string()),
            ("path".into(), path.display().to_string()),
            ("format".into(), "csv".into()),
            ("source.monitor-interval".into(), interval.into()),
        ]);
        let made = create_table(&state, "t", schema(), &[], &options).await;
        made.unwrap_err().to_string()
    };
    let message = error(&temp.path().join("a.csv"), "1 s").await;
    assert!(message.contains("is for folders and patterns"), "{message}");
    let message = error(temp.path(), "often").await;
    assert!(message.contains("'source.monitor-interval' = 'often'"), "{message}");
}
