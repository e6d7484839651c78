use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, AsArray, BooleanArray, Date32Array, Float64Array, Int64Array, StringArray,
    TimestampMicrosecondArray,
};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef};
use datafusion::logical_expr::LogicalPlan;
use datafusion::prelude::{SessionConfig, SessionContext};
use object_store::memory::InMemory;
use thalweg_engine::operator::{PreparedSink, SinkConnector, SinkJob};
use thalweg_engine::plan::{SchemaSpec, SinkSpec};
use thalweg_engine::time::SystemClock;
use thalweg_engine::{Batch, Result};
use tokio::runtime::Handle;

use super::*;
use crate::{create_table as create, sink_of};

pub(super) fn options(of: &[(&str, &str)]) -> BTreeMap<String, String> {
    of.iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

pub(super) fn spec(schema: SchemaRef, of: &[(&str, &str)]) -> SinkSpec {
    SinkSpec {
        connector: "filesystem".into(),
        options: options(of),
        schema: SchemaSpec(schema),
    }
}

fn prepare(context: &SessionContext, spec: &SinkSpec) -> Result<Arc<dyn PreparedSink>> {
    let job = SinkJob {
        job: "j1".into(),
        io: Handle::current(),
        runtime: context.runtime_env(),
        clock: Arc::new(SystemClock::new()),
        endless: false,
        checkpointed: None,
    };
    FileSinkConnector.prepare(spec, &job)
}

/// Writes each inner vector with a writer of its own, and commits.
pub(super) fn write(context: &SessionContext, spec: &SinkSpec, inputs: &[Vec<Batch>]) -> Result<()> {
    let sink = prepare(context, spec)?;
    for (subtask, batches) in inputs.iter().enumerate() {
        let mut writer = sink.writer(subtask, inputs.len())?;
        batches.iter().try_for_each(|batch| writer.write(batch))?;
        writer.finish()?;
    }
    sink.commit()
}

pub(super) async fn query(context: &SessionContext, sql: &str) -> Batch {
    let frame = context.sql(sql).await.unwrap();
    let schema = Arc::new(frame.schema().as_arrow().clone());
    let batches = frame.collect().await.unwrap();
    concat_batches(&batches.first().map_or(schema, |batch| batch.schema()), &batches).unwrap()
}

fn numbers(from: i64, to: i64) -> Batch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(from..to));
    Batch::try_from_iter([("n", column)]).unwrap()
}

fn rows() -> Batch {
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("i", Arc::new(Int64Array::from(vec![Some(1), None, Some(-3)]))),
        ("f", Arc::new(Float64Array::from(vec![Some(1.5), Some(-0.25), None]))),
        (
            "s",
            Arc::new(StringArray::from(vec![Some("a,\"b\"\nc"), Some("é"), None])),
        ),
        ("b", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        ("d", Arc::new(Date32Array::from(vec![Some(19_000), None, Some(0)]))),
        (
            "t",
            Arc::new(TimestampMicrosecondArray::from(vec![
                Some(1_700_000_000_000_001),
                None,
                Some(0),
            ])),
        ),
    ];
    let fields: Vec<Field> = columns
        .iter()
        .map(|(name, column)| Field::new(*name, column.data_type().clone(), true))
        .collect();
    let columns = columns.into_iter().map(|(_, column)| column).collect();
    Batch::try_new(Arc::new(Schema::new(fields)), columns).unwrap()
}

/// Every path below `folder`, relative.
pub(super) fn tree(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, root: &Path, found: &mut Vec<String>) {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            found.push(path.strip_prefix(root).unwrap().display().to_string());
            walk(&path, root, found);
        }
    }
    let mut found = Vec::new();
    walk(folder, folder, &mut found);
    found.sort();
    found
}

/// A format's name, the extension of its files, and options.
type Case = (&'static str, &'static str, &'static [(&'static str, &'static str)]);

const FORMATS: &[Case] = &[
    ("parquet", "parquet", &[]),
    (
        "parquet",
        "parquet",
        &[("parquet.compression", "snappy"), ("parquet.row-group-size", "2")],
    ),
    ("csv", "csv", &[("csv.newlines-in-values", "true")]),
    (
        "csv",
        "csv",
        &[
            ("csv.header", "false"),
            ("csv.field-delimiter", "|"),
            ("csv.quote-character", "'"),
            ("csv.newlines-in-values", "true"),
        ],
    ),
    (
        "csv",
        "csv.gz",
        &[("compression", "gzip"), ("csv.newlines-in-values", "true")],
    ),
    (
        "csv",
        "csv",
        &[("csv.null-literal", "NIL"), ("csv.newlines-in-values", "true")],
    ),
    ("json", "json", &[]),
    (
        "json",
        "json.zst",
        &[("compression", "zstd"), ("json.encode.ignore-null-fields", "true")],
    ),
    ("json", "json.bz2", &[("compression", "bzip2")]),
    ("json", "json.xz", &[("compression", "xz")]),
    ("arrow", "arrow", &[]),
    ("arrow", "arrow", &[("arrow.compression", "none")]),
    ("avro", "avro", &[]),
    ("avro", "avro", &[("avro.codec", "zstd")]),
];

#[tokio::test(flavor = "multi_thread")]
async fn every_format_comes_back_as_it_went() {
    for (format, extension, more) in FORMATS {
        for folder in [false, true] {
            let context = SessionContext::new();
            let temp = tempfile::tempdir().unwrap();
            let end = if folder {
                "out/".to_string()
            } else {
                format!("out.{extension}")
            };
            let path = temp.path().join(end).display().to_string();
            let mut of = vec![
                ("connector", "filesystem"),
                ("path", path.as_str()),
                ("format", *format),
            ];
            of.extend_from_slice(more);
            let schema = rows().schema();
            let table = create(&context.state(), "t", Arc::clone(&schema), &[], &options(&of))
                .await
                .unwrap();
            let sink = sink_of(table.as_ref()).unwrap().unwrap();
            context.register_table("t", table).unwrap();
            let inputs = if folder {
                vec![vec![rows()], vec![rows()]]
            } else {
                vec![vec![rows(), rows()]]
            };
            write(&context, &sink, &inputs).unwrap();
            let back = query(&context, "SELECT * FROM t ORDER BY i").await;
            let order = "SELECT * FROM r ORDER BY i";
            context
                .register_batch("r", concat_batches(&schema, &[rows(), rows()]).unwrap())
                .unwrap();
            let expected = query(&context, order).await;
            let what = format!("{format} {more:?} folder: {folder}");
            assert_eq!(back.columns(), expected.columns(), "{what}");
            assert!(tree(temp.path()).iter().all(|name| !name.contains("staging")), "{what}");
            let some = query(&context, "SELECT s FROM t WHERE i = 1").await;
            assert_eq!(some.num_rows(), 2, "{what}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hive_partitions_come_back_with_nulls_and_in_the_declared_order() {
    let context = SessionContext::new();
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("h").display().to_string();
    let schema = Arc::new(Schema::new(vec![
        Field::new("p", DataType::Int64, true),
        Field::new("v", DataType::Int64, true),
        Field::new("q", DataType::Utf8, true),
    ]));
    let p: ArrayRef = Arc::new(Int64Array::from(vec![Some(1), None, Some(2), Some(1)]));
    let v: ArrayRef = Arc::new(Int64Array::from(vec![10, 20, 30, 40]));
    let q: ArrayRef = Arc::new(StringArray::from(vec![
        Some("a/b c%"),
        Some("é=?#"),
        None,
        Some("__HIVE_DEFAULT_PARTITION__"),
    ]));
    let batch = Batch::try_new(Arc::clone(&schema), vec![p, v, q]).unwrap();
    let of = options(&[
        ("connector", "filesystem"),
        ("path", &path),
        ("format", "parquet"),
        ("sink.max-open-files", "1"),
    ]);
    let by = ["p".to_string(), "q".to_string()];
    let table = create(&context.state(), "h", Arc::clone(&schema), &by, &of)
        .await
        .unwrap();
    let sink = sink_of(table.as_ref()).unwrap().unwrap();
    context.register_table("h", table).unwrap();
    write(&context, &sink, &[vec![batch.clone(), batch.clone()]]).unwrap();
    assert!(temp.path().join("h/p=__HIVE_DEFAULT_PARTITION__").is_dir());
    let back = query(&context, "SELECT DISTINCT * FROM h ORDER BY v").await;
    assert_eq!(back.columns(), batch.columns());
    assert_eq!(query(&context, "SELECT v FROM h WHERE p IS NULL").await.num_rows(), 2);
    assert_eq!(
        query(&context, "SELECT v FROM h WHERE p = 1 AND q = 'a/b c%'")
            .await
            .num_rows(),
        2
    );
    assert_eq!(
        query(&context, "SELECT v FROM h WHERE q IS NULL AND v > 5")
            .await
            .num_rows(),
        2
    );
    assert_eq!(
        query(&context, "SELECT count(*) FROM h")
            .await
            .column(0)
            .as_primitive::<Int64Type>()
            .value(0),
        8
    );
    // One file open at a time: each return to a directory begins a new part.
    assert_eq!(
        tree(temp.path())
            .iter()
            .filter(|name| name.ends_with(".parquet"))
            .count(),
        8
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_job_that_fails_leaves_nothing() {
    let context = SessionContext::new();
    for end in ["new/sub/out.csv", "new/sub/"] {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join(end).display().to_string();
        let spec = spec(numbers(0, 1).schema(), &[("path", &path), ("format", "csv")]);
        for how in ["abort", "drop", "commit"] {
            let sink = prepare(&context, &spec).unwrap();
            assert!(tree(temp.path()).is_empty(), "planning touched the disk");
            let mut writer = sink.writer(0, 1).unwrap();
            writer.write(&numbers(0, 5)).unwrap();
            assert!(
                !tree(temp.path()).iter().any(|name| name.ends_with(".csv")),
                "visible before the commit"
            );
            drop(writer);
            match how {
                "abort" => sink.abort(),
                "commit" => assert!(sink.commit().unwrap_err().to_string().contains("unfinished")),
                _ => {}
            }
            drop(sink);
            assert_eq!(tree(temp.path()), Vec::<String>::new(), "{how} of {end}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_that_fails_halfway_takes_back_what_it_published() {
    let context = SessionContext::new();
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("h/").display().to_string();
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("p", Arc::new(Int64Array::from(vec![1, 2]))),
        ("v", Arc::new(Int64Array::from(vec![1, 2]))),
    ];
    let batch = Batch::try_from_iter(columns).unwrap();
    let spec = spec(
        batch.schema(),
        &[("path", &path), ("format", "csv"), ("partitioned-by", "p")],
    );
    let sink = prepare(&context, &spec).unwrap();
    let mut writer = sink.writer(0, 1).unwrap();
    writer.write(&batch).unwrap();
    writer.finish().unwrap();
    // A file sits where the second partition's folder should be.
    std::fs::write(temp.path().join("h/p=2"), "x").unwrap();
    let error = sink.commit().unwrap_err().to_string();
    assert!(error.contains("p=2"), "{error}");
    assert_eq!(tree(temp.path()), ["h", "h/p=2"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn copy_replaces_a_file_and_insert_does_not() {
    let context = SessionContext::new();
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("a.csv").display().to_string();
    std::fs::write(&path, "old").unwrap();
    let schema = numbers(0, 1).schema();
    let error = write(
        &context,
        &spec(Arc::clone(&schema), &[("path", &path)]),
        &[vec![numbers(0, 2)]],
    )
    .unwrap_err();
    assert!(error.to_string().contains("insert into a folder"), "{error}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "old");
    let replace = spec(schema, &[("path", &path), ("sink.replace", "true")]);
    write(&context, &replace, &[vec![numbers(0, 2)]]).unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "n\n0\n1\n");
    let two = prepare(&context, &replace).unwrap();
    assert_eq!(two.max_parallelism(), Some(1));
    assert!(two.writer(0, 2).is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_insert_into_a_folder_adds_files_and_is_seen_at_once() {
    let context = SessionContext::new();
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("d").display().to_string();
    let of = options(&[("connector", "filesystem"), ("path", &path), ("format", "json")]);
    let table = create(&context.state(), "t", numbers(0, 1).schema(), &[], &of)
        .await
        .unwrap();
    let sink = sink_of(table.as_ref()).unwrap().unwrap();
    context.register_table("t", table).unwrap();
    for round in 1..=3 {
        // The same job id each time: names must not clash.
        write(&context, &sink, &[vec![numbers(0, 10)], vec![numbers(10, 20)]]).unwrap();
        let count = query(&context, "SELECT count(*) FROM t").await;
        assert_eq!(count.column(0).as_primitive::<Int64Type>().value(0), round * 20);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_rows_still_make_a_valid_file() {
    for (format, extension, more) in FORMATS {
        let context = SessionContext::new();
        let temp = tempfile::tempdir().unwrap();
        for end in [format!("out.{extension}"), "folder/".to_string()] {
            let path = temp.path().join(&end).display().to_string();
            let mut of = vec![("path", path.as_str()), ("format", *format)];
            of.extend_from_slice(more);
            write(&context, &spec(rows().schema(), &of), &[vec![]]).unwrap();
            let table = table_provider(
                &context.state(),
                &path,
                format,
                Some(rows().schema()),
                &[],
                &options(more),
            )
            .await;
            context.deregister_table("t").unwrap();
            context.register_table("t", table.unwrap()).unwrap();
            assert_eq!(
                query(&context, "SELECT * FROM t").await.num_rows(),
                0,
                "{format} {more:?}"
            );
        }
        assert_eq!(tree(temp.path()).len(), 3, "{:?}", tree(temp.path()));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_object_store_shows_files_only_after_the_commit() {
    let context = SessionContext::new();
    context.register_object_store(&url::Url::parse("mem://bucket").unwrap(), Arc::new(InMemory::new()));
    let of = options(&[
        ("connector", "filesystem"),
        ("path", "mem://bucket/t"),
        ("format", "parquet"),
    ]);
    let table = create(&context.state(), "t", numbers(0, 1).schema(), &[], &of)
        .await
        .unwrap();
    let spec = sink_of(table.as_ref()).unwrap().unwrap();
    context.register_table("t", table).unwrap();
    let count = async || query(&context, "SELECT n FROM t").await.num_rows();
    let sink = prepare(&context, &spec).unwrap();
    let mut writer = sink.writer(0, 1).unwrap();
    writer.write(&numbers(0, 100)).unwrap();
    writer.finish().unwrap();
    assert_eq!(count().await, 0);
    sink.abort();
    assert_eq!(count().await, 0);
    write(&context, &spec, &[vec![numbers(0, 100)], vec![numbers(0, 5)]]).unwrap();
    write(&context, &spec, &[vec![numbers(0, 7)]]).unwrap();
    assert_eq!(count().await, 112);
    let nowhere = self::spec(numbers(0, 1).schema(), &[("path", "s3://nobody/x.parquet")]);
    assert!(
        prepare(&context, &nowhere)
            .unwrap_err()
            .to_string()
            .contains("no object store is registered")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn datafusions_statements_become_sinks() {
    let context = SessionContext::new();
    let temp = tempfile::tempdir().unwrap();
    let folder = temp.path().display();
    let sql = format!(
        "COPY (SELECT 1 AS a, 'x' AS b) TO '{folder}/c/' STORED AS CSV PARTITIONED BY (b) \
         OPTIONS ('format.delimiter' ';', has_header false)"
    );
    let LogicalPlan::Copy(copy) = context.state().create_logical_plan(&sql).await.unwrap() else {
        panic!("no COPY")
    };
    let spec = copy_sink(&copy).unwrap();
    let parsed = FileOptions::parse(&spec.options).unwrap();
    assert_eq!(
        (parsed.csv.delimiter, parsed.csv.has_header, parsed.replace),
        (b';', Some(false), true)
    );
    assert_eq!(parsed.partition_by, ["b"]);
    let rows = query(&context, "SELECT 1 AS a, 'x' AS b").await;
    write(&context, &spec, &[vec![rows]]).unwrap();
    assert_eq!(
        std::fs::read_to_string(temp.path().join("c/b=x/part-j1-0.csv")).unwrap(),
        "1\n"
    );

    std::fs::create_dir(temp.path().join("e")).unwrap();
    let ddl = format!(
        "CREATE EXTERNAL TABLE e (n BIGINT) STORED AS CSV LOCATION '{folder}/e/' OPTIONS ('format.has_header' 'true')"
    );
    context.sql(&ddl).await.unwrap();
    let table = context.table_provider("e").await.unwrap();
    let spec = sink_of(table.as_ref()).unwrap().unwrap();
    write(&context, &spec, &[vec![numbers(0, 3)]]).unwrap();
    assert_eq!(query(&context, "SELECT * FROM e").await.num_rows(), 3);
}

async fn located(path: &Path, format: &str, schema: &SchemaRef, more: &[(&str, &str)]) -> Option<String> {
    let context = SessionContext::new_with_config(SessionConfig::new().with_target_partitions(4));
    let state = context.state();
    let path = path.display().to_string();
    let table = table_provider(&state, &path, format, Some(Arc::clone(schema)), &[], &options(more))
        .await
        .unwrap();
    let plan = table.scan(&state, None, &[], None).await.unwrap();
    let error = datafusion::physical_plan::collect(Arc::clone(&plan), context.task_ctx())
        .await
        .unwrap_err();
    locate_bad_record(&plan, &context.runtime_env(), &error).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_record_is_named_by_file_and_line() {
    let temp = tempfile::tempdir().unwrap();
    let fields = vec![
        Field::new("a", DataType::Int64, true),
        Field::new("b", DataType::Utf8, true),
    ];
    let schema = Arc::new(Schema::new(fields));
    let good: String = (0..3000).map(|i| format!("{i},x\n")).collect();
    std::fs::write(temp.path().join("1.csv"), format!("a,b\n{good}")).unwrap();
    let bad = temp.path().join("2.csv");
    let cases: &[(&[u8], &str)] = &[
        (
            b"1,\"two\nlines\"\n\nabc,y\n",
            "line 3005: cannot parse 'abc' as Int64 in column 'a'",
        ),
        (b"1,2,3\n", "line 3002: 3 fields where the table has 2"),
        (b"1\n", "line 3002: 1 fields where the table has 2"),
        (b"1,x\n2,\xff\n", "line 3003, column 'b': invalid UTF-8"),
    ];
    for (tail, expected) in cases {
        std::fs::write(&bad, [b"a,b\n", good.as_bytes(), tail].concat()).unwrap();
        let message = located(temp.path(), "csv", &schema, &[]).await.unwrap();
        assert_eq!(message, format!("{}, {expected}", bad.display()));
    }
    let json = temp.path().join("x.json");
    let cases: &[(&[u8], &str)] = &[
        (b"{\"a\": 1}\n\n{\"a\": \"abc\"}\n", "line 3"),
        (b"{\"a\": 1}\n{\"a\": \n2}\n{\"a\" 3}\n", "line 4"),
        (
            b"{\"a\": 1}\n{\"a\": ",
            "line 2: the file ends in the middle of a record",
        ),
        (b"{\"a\": 1}\n{\"b\": \"\xff\"}\n", "line 2: invalid UTF-8"),
    ];
    for (text, expected) in cases {
        std::fs::write(&json, text).unwrap();
        let message = located(&json, "json", &schema, &[]).await.unwrap();
        assert!(
            message.starts_with(&format!("{}, {expected}", json.display())),
            "{message}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_file_is_named() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("a.parquet");
    let context = SessionContext::new_with_config(SessionConfig::new().with_collect_statistics(false));
    let schema = numbers(0, 1).schema();
    let of = [("path", path.to_str().unwrap())];
    write(&context, &spec(Arc::clone(&schema), &of), &[vec![numbers(0, 1000)]]).unwrap();
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 10]).unwrap();
    let state = context.state();
    let table = table_provider(&state, of[0].1, "parquet", Some(schema), &[], &BTreeMap::new())
        .await
        .unwrap();
    let plan = table.scan(&state, None, &[], None).await.unwrap();
    let error = datafusion::physical_plan::collect(Arc::clone(&plan), context.task_ctx())
        .await
        .unwrap_err();
    let message = locate_bad_record(&plan, &context.runtime_env(), &error).await.unwrap();
    assert!(
        message.starts_with(&format!("{}: not a Parquet file, or truncated", path.display())),
        "{message}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn create_table_says_what_is_wrong() {
    let context = SessionContext::new();
    let state = context.state();
    let error = async |of: &[(&str, &str)], by: &[String]| {
        create(&state, "t", numbers(0, 1).schema(), by, &options(of))
            .await
            .unwrap_err()
            .to_string()
    };
    assert!(error(&[], &[]).await.contains("needs the option 'connector'"));
    assert!(
        error(&[("connector", "kafak")], &[])
            .await
            .contains("known are: blackhole, datagen, filesystem, kafka, nexmark, postgres, print, redis, socket")
    );
    let unknown = error(
        &[("connector", "filesystem"), ("path", "x.csv"), ("csv.hedaer", "true")],
        &[],
    )
    .await;
    assert!(
        unknown.contains("table 't'") && unknown.contains("csv.hedaer") && unknown.contains("csv.header"),
        "{unknown}"
    );
    let file = [("connector", "filesystem"), ("path", "/nowhere/x"), ("format", "csv")];
    assert!(error(&file, &["z".into()]).await.contains("PARTITIONED BY names 'z'"));
    assert!(
        error(&[("connector", "print")], &["n".into()])
            .await
            .contains("has no partitions")
    );
    let print = create(
        &state,
        "p",
        numbers(0, 1).schema(),
        &[],
        &options(&[("connector", "print")]),
    )
    .await
    .unwrap();
    context.register_table("p", print).unwrap();
    let frame = context.sql("SELECT * FROM p").await.unwrap();
    let scan = frame.collect().await.unwrap_err();
    assert!(scan.to_string().contains("is a sink"), "{scan}");
}
