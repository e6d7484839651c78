use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{Array, AsArray, Int64Array, StringArray, UInt8Array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, UInt8Type};
use datafusion::catalog::TableProvider;
use datafusion::physical_plan::collect;
use datafusion::prelude::SessionContext;
use thalweg_engine::data::is_changelog;
use thalweg_engine::{Batch, Result};

use super::super::tests::{options, query, spec, tree, write};
use crate::filesystem::create_table;
use crate::sink_of;

fn columns() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("name", DataType::Utf8, true),
    ]))
}

async fn table(context: &SessionContext, path: &Path, more: &[(&str, &str)]) -> Result<Arc<dyn TableProvider>> {
    let mut all: BTreeMap<String, String> = options(&[("connector", "filesystem"), ("path", path.to_str().unwrap())]);
    all.extend(options(more));
    // What the connector makes, before its row kind is hidden from queries.
    create_table(&context.state(), columns(), &[], &all).await
}

fn values(batch: &Batch, column: &str) -> Vec<i64> {
    let column = batch.column_by_name(column).unwrap();
    match column.data_type() {
        DataType::UInt8 => column
            .as_primitive::<UInt8Type>()
            .values()
            .iter()
            .map(|kind| i64::from(*kind))
            .collect(),
        _ => column.as_primitive::<Int64Type>().values().to_vec(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changelog_is_read_in_the_order_of_its_files_with_its_row_kinds() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
    // More lines than a batch, and than are read at once.
    let many: String = (0..40_000)
        .map(|id| format!("{{\"before\": null, \"after\": {{\"id\": {id}, \"name\": \"n{id}\"}}, \"op\": \"c\"}}\n"))
        .collect();
    assert!(many.len() > 2 << 20);
    put("1.json", &many);
    put(
        "2.json",
        "{\"before\": {\"id\": 7, \"name\": \"n7\"}, \"after\": {\"id\": 7, \"name\": \"x\"}, \"op\": \"u\"}\r\n\n\
         {\"before\": {\"id\": 8}, \"after\": null, \"op\": \"d\"}",
    );
    put("3.json", "");
    let context = SessionContext::new();
    let table = table(&context, folder.path(), &[("format", "debezium-json")])
        .await
        .unwrap();
    assert!(is_changelog(&table.schema()));
    assert_eq!(sink_of(table.as_ref()).unwrap().unwrap().schema.0, table.schema());
    let plan = table
        .scan(&context.state(), Some(&vec![2, 0]), &[], None)
        .await
        .unwrap();
    assert_eq!(plan.properties().partitioning.partition_count(), 1);
    let batches = collect(Arc::clone(&plan), context.task_ctx()).await.unwrap();
    assert!(batches.iter().all(|batch| (1..=8192).contains(&batch.num_rows())));
    let all = arrow::compute::concat_batches(&plan.schema(), &batches).unwrap();
    let mut kinds = vec![0; 40_000];
    kinds.extend([1, 2, 3]);
    let ids: Vec<i64> = (0..40_000).chain([7, 7, 8]).collect();
    assert_eq!((values(&all, "$row_kind"), values(&all, "id")), (kinds, ids));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changelog_that_is_written_is_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let context = SessionContext::new();
    for (format, compression) in [("debezium-json", "none"), ("canal-json", "gzip")] {
        let path = folder.path().join(format);
        let key = format!("{format}.compression");
        let more = [("format", format), (key.as_str(), compression)];
        let table = table(&context, &path, &more).await.unwrap();
        let rows = Batch::try_new(
            table.schema(),
            vec![
                Arc::new(Int64Array::from(vec![1, 1, 1])),
                Arc::new(StringArray::from(vec![Some("a"), Some("a"), None])),
                Arc::new(UInt8Array::from(vec![0, 1, 2])),
            ],
        )
        .unwrap();
        let sink = sink_of(table.as_ref()).unwrap().unwrap();
        let sink_options: Vec<(&str, &str)> = sink
            .options
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
            .collect();
        write(&context, &spec(table.schema(), &sink_options), &[vec![rows]]).unwrap();
        let ending = if compression == "none" { ".json" } else { ".json.gz" };
        assert!(
            tree(&path).iter().any(|name| name.ends_with(ending)),
            "{:?}",
            tree(&path)
        );
        context.register_table("written", table).unwrap();
        let read = query(&context, "SELECT * FROM written").await;
        context.deregister_table("written").unwrap();
        assert_eq!(
            values(&read, "$row_kind"),
            [0, 3, 0],
            "an update is a deletion and an insertion"
        );
        assert!(read.column(1).is_null(2) && read.column(1).is_valid(0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn bad_records_of_files_are_set_aside_when_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let dead = folder.path().join("dead.jsonl");
    let cases = [
        ("json", "{\"id\": 1}\nbad\n{\"id\": 3}\n", "record 2"),
        ("csv", "id,name\n1,a\nbad,b\n3,c\n", "record 3"),
    ];
    let context = SessionContext::new();
    for (format, text, place) in cases {
        let file = folder.path().join(format!("in.{format}"));
        std::fs::write(&file, text).unwrap();
        let ignore = format!("{format}.ignore-parse-errors");
        let header = ("csv.header", "true");
        for option in [(ignore.as_str(), "true"), ("dead-letter.path", dead.to_str().unwrap())] {
            let more: Vec<_> = [option]
                .into_iter()
                .chain((format == "csv").then_some(header))
                .collect();
            let table = table(&context, &file, &more).await.unwrap();
            assert!(!is_changelog(&table.schema()));
            let plan = table.scan(&context.state(), None, &[], None).await.unwrap();
            let batches = collect(Arc::clone(&plan), context.task_ctx()).await.unwrap();
            assert_eq!(values(&batches[0], "id"), [1, 3]);
            let counted = plan.metrics().unwrap().sum_by_name("bad_records").unwrap().as_usize();
            assert_eq!(counted, 1);
        }
        let letters = std::fs::read_to_string(&dead).unwrap();
        std::fs::remove_file(&dead).unwrap();
        assert!(
            letters.lines().count() == 1 && letters.contains(&format!("in.{format}, {place}: ")),
            "{letters}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changelog_that_cannot_be_read_says_where() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("in.json");
    std::fs::write(
        &file,
        "{\"after\": {\"id\": 1}, \"op\": \"c\"}\n{\"after\": {\"id\": 2}}\n",
    )
    .unwrap();
    let context = SessionContext::new();
    let reads = table(&context, &file, &[("format", "debezium-json")]).await.unwrap();
    let plan = reads.scan(&context.state(), None, &[], None).await.unwrap();
    let message = collect(plan, context.task_ctx()).await.unwrap_err().to_string();
    assert!(
        message.contains("in.json, record 2 cannot be read as debezium-json"),
        "{message}"
    );
    let refused = [
        (
            vec![("format", "canal-json"), ("debezium-json.schema-include", "true")],
            "no option",
        ),
        (
            vec![("format", "csv"), ("dead-letter.path", "x"), ("csv.date-format", "%Y")],
            "formats of dates",
        ),
        (
            vec![("format", "debezium-json"), ("partitioned-by", "name")],
            "have no partitions",
        ),
    ];
    for (more, why) in refused {
        let message = table(&context, folder.path(), &more).await.err().unwrap().to_string();
        assert!(message.contains(why), "{message}");
    }
}
