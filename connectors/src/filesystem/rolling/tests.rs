use std::path::Path;
use std::sync::Arc;

use arrow::array::{ArrayRef, AsArray, Int64Array};
use arrow::datatypes::Int64Type;
use datafusion::prelude::SessionContext;
use object_store::memory::InMemory;
use thalweg_engine::operator::{PreparedSink, SinkConnector, SinkJob};
use thalweg_engine::time::ManualClock;
use thalweg_engine::{Batch, Result};
use tokio::runtime::Handle;

use super::super::tests::{options, query, spec, tree};
use super::*;
use crate::filesystem::{FileSinkConnector, table_provider};

fn numbers(from: i64, to: i64) -> Batch {
    let column: ArrayRef = Arc::new(Int64Array::from_iter_values(from..to));
    Batch::try_from_iter([("n", column)]).unwrap()
}

/// A sink of numbers with a clock that is set by hand.
fn sink(
    context: &SessionContext,
    clock: &Arc<ManualClock>,
    endless: bool,
    of: &[(&str, &str)],
) -> Result<Arc<dyn PreparedSink>> {
    let job = SinkJob {
        job: "j1".into(),
        io: Handle::current(),
        runtime: context.runtime_env(),
        clock: Arc::clone(clock) as _,
        endless,
        checkpointed: None,
    };
    FileSinkConnector.prepare(&spec(numbers(0, 1).schema(), of), &job)
}

/// The files that readers see.
fn shown(folder: &Path) -> Vec<String> {
    let files = tree(folder).into_iter();
    files.filter(|path| !path.starts_with('.')).collect()
}

/// The numbers that readers see, in order.
async fn read(context: &SessionContext, folder: &Path, format: &str) -> Vec<i64> {
    let schema = Some(numbers(0, 1).schema());
    let path = folder.to_str().unwrap();
    let table = table_provider(&context.state(), path, format, schema, &[], &options(&[])).await;
    context.register_table("t", table.unwrap()).unwrap();
    let rows = query(context, "SELECT n FROM t ORDER BY n").await;
    context.deregister_table("t").unwrap();
    rows.column(0).as_primitive::<Int64Type>().values().to_vec()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_of_the_size_is_shown_and_the_rest_at_the_end() {
    // Between the bytes of one batch and of two.
    for (format, size) in [("parquet", "6 kb"), ("csv", "6 kb"), ("json", "10 kb")] {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("out");
        let more = [
            ("path", path.to_str().unwrap()),
            ("format", format),
            ("sink.rolling-policy.file-size", size),
        ];
        let (context, clock) = (SessionContext::new(), Arc::default());
        let sink = sink(&context, &clock, false, &more).unwrap();
        let mut writers = [sink.writer(0, 2).unwrap(), sink.writer(1, 2).unwrap()];
        // Each writer gets two files full and one that is not.
        for turn in 0..5 {
            for (subtask, writer) in writers.iter_mut().enumerate() {
                let from = (turn * 2 + subtask as i64) * 600;
                writer.write(&numbers(100_000 + from, 100_000 + from + 600)).unwrap();
            }
        }
        let early = shown(&path);
        assert_eq!(early.len(), 4, "{format}: {early:?}");
        assert_eq!(
            read(&context, &path, format).await,
            (100_000..104_800).collect::<Vec<_>>(),
            "{format}"
        );
        for mut writer in writers {
            writer.finish().unwrap();
        }
        assert_eq!(shown(&path), early, "{format}: what is left waits for the commit");
        sink.commit().unwrap();
        assert_eq!(
            read(&context, &path, format).await,
            (100_000..106_000).collect::<Vec<_>>(),
            "{format}"
        );
        assert!(
            tree(&path).iter().all(|name| !name.contains("staging")),
            "{:?}",
            tree(&path)
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn time_and_silence_finish_a_file() {
    for format in ["parquet", "csv", "json"] {
        let folder = tempfile::tempdir().unwrap();
        let more = [
            ("path", folder.path().to_str().unwrap()),
            ("format", format),
            ("sink.rolling-policy.rollover-interval", "10 s"),
            ("sink.rolling-policy.inactivity-interval", "4 s"),
        ];
        let (context, clock) = (SessionContext::new(), Arc::<ManualClock>::default());
        let sink = sink(&context, &clock, true, &more).unwrap();
        let mut writer = sink.writer(0, 1).unwrap();
        assert_eq!(writer.next_roll_ms(), None, "there is no file yet");
        let seconds = |seconds| clock.advance(Duration::from_secs(seconds));
        // Written to every three seconds: its age finishes it, at 10.
        for turn in 0..4 {
            writer.write(&numbers(turn, turn + 1)).unwrap();
            seconds(3);
            if turn < 3 {
                assert_eq!(writer.next_roll_ms(), Some((turn * 3000 + 4000).min(10_000)));
                writer.roll().unwrap();
                assert!(shown(folder.path()).is_empty(), "nothing was due");
            }
        }
        assert_eq!(writer.next_roll_ms(), Some(10_000));
        writer.roll().unwrap();
        assert_eq!(read(&context, folder.path(), format).await, [0, 1, 2, 3]);
        assert_eq!(writer.next_roll_ms(), None);
        // It is 12 s: silence until 16.
        writer.write(&numbers(4, 5)).unwrap();
        assert_eq!(writer.next_roll_ms(), Some(16_000));
        seconds(4);
        writer.roll().unwrap();
        assert_eq!(shown(folder.path()).len(), 2);
        // What is not finished is lost when the job fails; what was shown stays.
        writer.write(&numbers(5, 6)).unwrap();
        drop(writer);
        sink.abort();
        assert_eq!(read(&context, folder.path(), format).await, [0, 1, 2, 3, 4]);
        assert_eq!(tree(folder.path()), shown(folder.path()), "nothing is left staged");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_policy_bounded_rows_are_shown_at_the_end_only() {
    let folder = tempfile::tempdir().unwrap();
    let more = [("path", folder.path().to_str().unwrap()), ("format", "csv")];
    let (context, clock) = (SessionContext::new(), Arc::<ManualClock>::default());
    for endless in [false, true] {
        let sink = sink(&context, &clock, endless, &more).unwrap();
        let mut writer = sink.writer(0, 1).unwrap();
        writer.write(&numbers(0, 1)).unwrap();
        clock.advance(Duration::from_secs(29 * 60));
        writer.roll().unwrap();
        assert!(shown(folder.path()).is_empty());
        clock.advance(Duration::from_secs(60));
        writer.roll().unwrap();
        assert_eq!(shown(folder.path()).len(), usize::from(endless));
        drop(writer);
        sink.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_partition_rolls_by_itself_and_files_that_are_closed_early_are_shown() {
    let folder = tempfile::tempdir().unwrap();
    let more = [
        ("path", folder.path().to_str().unwrap()),
        ("format", "json"),
        ("partitioned-by", "n"),
        ("keep-partition-by-columns", "true"),
        ("sink.max-open-files", "2"),
        ("sink.rolling-policy.rollover-interval", "1 min"),
    ];
    let (context, clock) = (SessionContext::new(), Arc::<ManualClock>::default());
    let sink = sink(&context, &clock, false, &more).unwrap();
    let mut writer = sink.writer(0, 1).unwrap();
    writer.write(&numbers(1, 2)).unwrap();
    clock.advance(Duration::from_secs(30));
    writer.write(&numbers(2, 3)).unwrap();
    clock.advance(Duration::from_secs(30));
    writer.roll().unwrap();
    assert_eq!(shown(folder.path()), ["n=1", "n=1/part-j1-0.json"]);
    writer.write(&numbers(1, 2)).unwrap();
    writer.write(&numbers(3, 4)).unwrap();
    // A third file is one too many: the one of 2 was written to least recently.
    assert_eq!(
        shown(folder.path()),
        ["n=1", "n=1/part-j1-0.json", "n=2", "n=2/part-j1-0.json"]
    );
    writer.finish().unwrap();
    sink.commit().unwrap();
    let files = shown(folder.path());
    assert!(
        files.contains(&"n=1/part-j1-0-1.json".to_string()) && files.contains(&"n=3/part-j1-0.json".to_string()),
        "{files:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_roll_too() {
    let context = SessionContext::new();
    let store = Arc::new(InMemory::new());
    let url = url::Url::parse("memory://rolling/").unwrap();
    context.register_object_store(&url, Arc::clone(&store) as _);
    let more = [
        ("path", "memory://rolling/out/"),
        ("format", "json"),
        ("sink.rolling-policy.file-size", "1 b"),
    ];
    let clock = Arc::<ManualClock>::default();
    let sink = sink(&context, &clock, false, &more).unwrap();
    let mut writer = sink.writer(0, 1).unwrap();
    for n in 0..3 {
        writer.write(&numbers(n, n + 1)).unwrap();
        let names: Vec<String> =
            futures::TryStreamExt::try_collect::<Vec<_>>(object_store::ObjectStore::list(store.as_ref(), None))
                .await
                .unwrap()
                .into_iter()
                .map(|object| object.location.to_string())
                .collect();
        assert_eq!(names.len() as i64, n + 1, "{names:?}");
    }
    writer.finish().unwrap();
    sink.commit().unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_file_cannot_roll() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.csv");
    let file = ("path", path.to_str().unwrap());
    let (context, clock) = (SessionContext::new(), Arc::default());
    let error = |endless, more: &[(&str, &str)]| {
        let all: Vec<_> = [file].iter().chain(more).copied().collect();
        sink(&context, &clock, endless, &all).unwrap_err().to_string()
    };
    let given = error(false, &[("sink.rolling-policy.file-size", "1 MB")]);
    assert!(
        given.contains("a.csv is one file") && given.contains("name a folder"),
        "{given}"
    );
    let endless = error(true, &[]);
    assert!(
        endless.contains("without end") && endless.contains("name a folder"),
        "{endless}"
    );
    let wrong = error(false, &[("sink.rolling-policy.file-size", "1 barrel")]);
    assert!(
        wrong.contains("'sink.rolling-policy.file-size' = '1 barrel'"),
        "{wrong}"
    );
    assert!(sink(&context, &clock, false, &[file]).is_ok());
}
