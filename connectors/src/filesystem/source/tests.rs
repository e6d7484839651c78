use std::path::Path as FilePath;
use std::sync::Arc;

use arrow::array::{ArrayRef, Int64Array, StringArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use arrow::record_batch::RecordBatch;
use datafusion::physical_plan::filter::FilterExec;
use datafusion::prelude::SessionContext;
use futures::{StreamExt, TryStreamExt};

use super::super::progress::{FileProgress, Progress};
use super::super::tests::{options, spec, write};
use super::*;
use crate::registry::tests::{Plan, Positions, check, read_some, session};
use crate::{create_table, split_source};

fn columns() -> SchemaRef {
    Arc::new(Schema::new(vec![
        Field::new("a", DataType::Int64, true),
        Field::new("s", DataType::Utf8, true),
    ]))
}

fn rows(range: std::ops::Range<i64>) -> RecordBatch {
    let texts = range.clone().map(|i| (i % 7 != 0).then(|| format!("text {i}")));
    let texts: ArrayRef = Arc::new(texts.collect::<StringArray>());
    let numbers = range.map(|i| (i % 5 != 0).then_some(i));
    let numbers: ArrayRef = Arc::new(numbers.collect::<Int64Array>());
    RecordBatch::try_new(columns(), vec![numbers, texts]).unwrap()
}

async fn scan(session: &SessionContext, path: &FilePath, more: &[(&str, &str)]) -> Plan {
    let state = session.state();
    let mut all = options(&[("connector", "filesystem"), ("path", path.to_str().unwrap())]);
    all.extend(options(more));
    let table = create_table(&state, "t", columns(), &[], &all).await.unwrap();
    table.scan(&state, None, &[], None).await.unwrap()
}

fn in_parts(length: u64) -> impl Fn(&Plan) -> Option<Arc<dyn SplitSource>> {
    move |plan| {
        let source = FileSource::with_parts(&RowWise::of(plan)?, length)?;
        Some(Arc::new(source))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_every_format_go_on_whatever_the_parallelism() {
    let folder = tempfile::tempdir().unwrap();
    let context = SessionContext::new();
    for (format, more) in [
        ("csv", &[][..]),
        ("csv", &[("csv.null-literal", "nothing")]),
        ("csv", &[("csv.compression", "gzip")]),
        ("json", &[]),
        ("parquet", &[]),
        ("arrow", &[]),
        ("avro", &[]),
    ] {
        let path = folder.path().join(format!("{format}{}", more.len()));
        std::fs::create_dir_all(&path).unwrap();
        let mut all = vec![("path", path.to_str().unwrap()), ("format", format)];
        all.extend_from_slice(more);
        // Five files, one without rows.
        let files: Vec<Vec<RecordBatch>> = [0..300, 300..301, 301..301, 301..2000, 2000..2100]
            .map(|range| vec![rows(range)])
            .into();
        write(&context, &spec(columns(), &all), &files).unwrap();
        let more: Vec<_> = all[1..].to_vec();
        let make = async |session: &SessionContext| scan(session, &path, &more).await;
        check(&make, split_source).await;
        check(&make, in_parts(1000)).await;
        // The optimizer deals parts of files to partitions.
        let parted = async |session: &SessionContext| -> Plan {
            let plan = scan(session, &path, &more).await;
            let mut options = session.copied_config().options().as_ref().clone();
            options.optimizer.repartition_file_min_size = 0;
            let target = session.copied_config().target_partitions() * 4;
            plan.repartitioned(target, &options).unwrap().unwrap_or(plan)
        };
        check(&parted, in_parts(500)).await;
        std::fs::remove_dir_all(&path).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_filter_above_the_files_is_applied_before_rows_are_counted() {
    use datafusion::logical_expr::Operator;
    use datafusion::physical_expr::expressions::{binary, col, lit};
    let folder = tempfile::tempdir().unwrap();
    let text: String = (0..3000).map(|i| format!("{i},x{i}\n")).collect();
    std::fs::write(folder.path().join("f.csv"), format!("a,s\n{text}")).unwrap();
    let make = async |session: &SessionContext| -> Plan {
        let plan = scan(session, folder.path(), &[("format", "csv")]).await;
        let schema = plan.schema();
        let wanted = binary(col("a", &schema).unwrap(), Operator::Modulo, lit(3_i64), &schema).unwrap();
        let wanted = binary(wanted, Operator::Eq, lit(1_i64), &schema).unwrap();
        let filter: Plan = Arc::new(FilterExec::try_new(wanted, plan).unwrap());
        filter
    };
    check(&make, in_parts(5000)).await;
    // Which rows a limited filter gives is not the same in parts.
    let plan = make(&session(1, 10)).await;
    let limited = Arc::clone(&plan).with_fetch(Some(3)).unwrap();
    assert!(split_source(&plan).is_some() && split_source(&limited).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_gone_or_shorter_are_named_and_new_ones_are_begun() {
    let folder = tempfile::tempdir().unwrap();
    let text = |range: std::ops::Range<i64>| -> String { range.map(|i| format!("{i},x\n")).collect() };
    let put = |name: &str, text: String| std::fs::write(folder.path().join(name), text).unwrap();
    put("a.csv", text(0..100));
    put("b.csv", text(100..200));
    let task = session(2, 10).task_ctx();
    let csv = [("format", "csv"), ("csv.header", "false")];
    for part_bytes in [100, 1 << 20] {
        // Anew each time: a session remembers what it has listed.
        let source = async || in_parts(part_bytes)(&scan(&session(2, 10), folder.path(), &csv).await).unwrap();
        let first = source().await;
        let splits = first.splits().await.unwrap();
        let begun: Positions = splits.iter().map(|id| (id.clone(), None, false)).collect();
        let (_, begun) = read_some(first.as_ref(), begun, task.clone(), || 1).await;
        put("a.csv", text(0..3));
        put("c.csv", text(300..310));
        let shorter = source().await;
        let new = shorter.splits_besides(&splits).await.unwrap();
        assert!(
            !new.is_empty() && new.iter().all(|split| split.name.contains("c.csv")),
            "{new:?}"
        );
        let rest = async |split: usize, source: &dyn SplitSource| {
            let (id, position, _) = &begun[split];
            let mut reader = source.reader(0, task.clone())?;
            reader.open(id, position.as_deref())?.try_collect::<Vec<_>>().await
        };
        let last_of_a = begun.iter().rposition(|(id, _, _)| id.name.contains("a.csv")).unwrap();
        let error = rest(last_of_a, shorter.as_ref()).await.unwrap_err().to_string();
        assert!(error.contains("a.csv") && error.contains("shrunk"), "{error}");
        rest(begun.len() - 1, shorter.as_ref()).await.unwrap();
        std::fs::remove_file(folder.path().join("b.csv")).unwrap();
        let error = rest(begun.len() - 1, source().await.as_ref())
            .await
            .unwrap_err()
            .to_string();
        assert!(error.contains("b.csv was being read"), "{error}");
        put("a.csv", text(0..100));
        put("b.csv", text(100..200));
        std::fs::remove_file(folder.path().join("c.csv")).unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_of_records_go_on_and_bad_ones_are_counted_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut bad = 0;
    for (name, rows) in [("1.json", 700), ("2.json", 3), ("3.json", 1500)] {
        let lines = (0..rows).map(|i| match i % 11 {
            5 => "{\"a\": \"no number\"}\n".to_string(),
            _ => format!("{{\"a\": {i}, \"s\": \"{name}\"}}\n"),
        });
        std::fs::write(folder.path().join(name), lines.collect::<String>()).unwrap();
        bad += (0..rows).filter(|i| i % 11 == 5).count() as u64;
    }
    let json = [("format", "json"), ("json.ignore-parse-errors", "true")];
    let make = async |session: &SessionContext| scan(session, folder.path(), &json).await;
    check(make, split_source).await;
    // Stopped after some batches and read on with others.
    let (one, other) = (session(1, 10), session(1, 10));
    let source = split_source(&scan(&one, folder.path(), &json).await).unwrap();
    let mut counted = 0;
    let mut from: Vec<(SplitId, Option<Vec<u8>>)> = source
        .splits()
        .await
        .unwrap()
        .into_iter()
        .map(|id| (id, None))
        .collect();
    assert_eq!(from.len(), 3);
    for (task, batches) in [(one.task_ctx(), 30), (other.task_ctx(), usize::MAX)] {
        let mut reader = source.reader(0, task).unwrap();
        for (split, position) in &mut from {
            let mut stream = reader.open(split, position.as_deref()).unwrap().take(batches);
            while let Some(read) = stream.next().await {
                *position = Some(read.unwrap().position);
            }
        }
        counted += reader.bad_records();
    }
    // What was decoded and not given is decoded, and counted, again: no more than what is read at once.
    assert!(counted >= bad, "{counted} of {bad}");
    std::fs::write(folder.path().join("3.json"), "{\"a\": 1}\n").unwrap();
    let source = split_source(&scan(&other, folder.path(), &json).await).unwrap();
    let mut reader = source.reader(0, other.task_ctx()).unwrap();
    let progress = {
        let mut progress = Progress::default();
        let path = from[2].0.name.as_str().into();
        progress.current = Some(FileProgress {
            path,
            records: 40,
            rows: 0,
        });
        progress.encode()
    };
    let read = reader
        .open(&from[2].0, Some(&progress))
        .unwrap()
        .try_collect::<Vec<_>>()
        .await;
    let error = read.unwrap_err().to_string();
    assert!(error.contains("3.json has fewer records"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changelog_goes_on_in_the_order_of_its_files() {
    let folder = tempfile::tempdir().unwrap();
    for (name, range) in [("1.json", 0..900), ("2.json", 900..901), ("3.json", 901..1300)] {
        let lines: String = range
            .map(|i| match i % 3 {
                0 => format!("{{\"before\": null, \"after\": {{\"a\": {i}}}, \"op\": \"c\"}}\n"),
                _ => format!("{{\"before\": {{\"a\": {i}}}, \"after\": {{\"a\": -{i}}}, \"op\": \"u\"}}\n"),
            })
            .collect();
        std::fs::write(folder.path().join(name), lines).unwrap();
    }
    let make = async |session: &SessionContext| scan(session, folder.path(), &[("format", "debezium-json")]).await;
    check(make, split_source).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watched_folder_goes_on_after_the_files_that_it_has_read() {
    let folder = tempfile::tempdir().unwrap();
    let put = |name: &str, range: std::ops::Range<i64>| {
        let text: String = range.map(|i| format!("{i},x\n")).collect();
        let hidden = folder.path().join(".new");
        std::fs::write(&hidden, text).unwrap();
        std::fs::rename(hidden, folder.path().join(name)).unwrap();
    };
    let csv = [
        ("format", "csv"),
        ("csv.header", "false"),
        ("source.monitor-interval", "1 ms"),
    ];
    put("1.csv", 0..25);
    put("2.csv", 25..40);
    for cut in 0..=5_u64 {
        let one = session(1, 10);
        let source = split_source(&scan(&one, folder.path(), &csv).await).unwrap();
        let splits = source.splits().await.unwrap();
        let begun = vec![(splits[0].clone(), None, false)];
        let (mut rows, mut begun) = read_some(source.as_ref(), begun, one.task_ctx(), || cut).await;
        put("0.csv", 40..50);
        let other = session(1, 7);
        let source = split_source(&scan(&other, folder.path(), &csv).await).unwrap();
        // Batch by batch, as it has no end.
        while rows.len() < 50 {
            let (more, next) = read_some(source.as_ref(), begun, other.task_ctx(), || 1).await;
            rows.extend(more);
            begun = next;
        }
        rows.sort_unstable();
        let mut expected: Vec<String> = (0..50).map(|i| format!("{i}|x|")).collect();
        expected.sort_unstable();
        assert_eq!(rows, expected, "cut after {cut}");
        std::fs::remove_file(folder.path().join("0.csv")).unwrap();
    }
    let one = session(1, 10);
    let source = split_source(&scan(&one, folder.path(), &csv).await).unwrap();
    let begun = vec![(source.splits().await.unwrap().remove(0), None, false)];
    let (rows, begun) = read_some(source.as_ref(), begun, one.task_ctx(), || 1).await;
    assert!(rows.len() == 10);
    let go_on = async || {
        let mut reader = source.reader(0, one.task_ctx()).unwrap();
        let (split, position, _) = &begun[0];
        let mut stream = reader.open(split, position.as_deref()).unwrap();
        stream.next().await.unwrap().unwrap_err().to_string()
    };
    put("1.csv", 0..9);
    let error = go_on().await;
    assert!(error.contains("1.csv has fewer than the 10 rows"), "{error}");
    std::fs::remove_file(folder.path().join("1.csv")).unwrap();
    let error = go_on().await;
    assert!(error.contains("1.csv was being read"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scan_of_parts_that_are_not_whole_files_is_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("f.csv"), "1,x\n2,y\n3,z\n").unwrap();
    let plan = scan(
        &session(1, 10),
        folder.path(),
        &[("format", "csv"), ("csv.header", "false")],
    )
    .await;
    let exec = plan.downcast_ref::<DataSourceExec>().unwrap();
    let config = exec.data_source().downcast_ref::<FileScanConfig>().unwrap();
    let file = config.file_groups[0].files()[0].clone();
    let of = |ranges: &[Option<(i64, i64)>]| {
        let parts = ranges.iter().map(|range| match range {
            Some((start, end)) => file.clone().with_range(*start, *end),
            None => file.clone(),
        });
        let groups = vec![FileGroup::new(parts.collect())];
        let config = FileScanConfigBuilder::from(config.clone())
            .with_file_groups(groups)
            .build();
        let plan: Plan = DataSourceExec::from_data_source(config);
        split_source(&plan).is_some()
    };
    assert!(of(&[None]) && of(&[Some((0, 12))]) && of(&[Some((4, 12)), Some((0, 4))]));
    assert!(!of(&[Some((0, 4))]) && !of(&[Some((4, 12))]) && !of(&[Some((0, 4)), Some((5, 12))]));
    assert!(
        !of(&[None, None]) && !of(&[None, Some((0, 12))]),
        "a file that is read twice"
    );
}
