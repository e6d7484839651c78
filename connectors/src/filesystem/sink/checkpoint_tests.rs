use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::{ArrayRef, AsArray, Int64Array, StringArray, UInt8Array};
use arrow::datatypes::Int64Type;
use datafusion::prelude::SessionContext;
use futures::TryStreamExt;
use object_store::ObjectStore;
use object_store::memory::InMemory;
use proptest::prelude::*;
use thalweg_engine::data::with_row_kind;
use thalweg_engine::operator::{Committable, PreparedSink, SinkConnector, SinkJob, SinkWriter};
use thalweg_engine::time::ManualClock;
use thalweg_engine::{Batch, Result};
use tokio::runtime::{Handle, Runtime};

use super::FileSinkConnector;
use crate::filesystem::table_provider;
use crate::filesystem::tests::{options, query, spec, tree};

/// Numbers with the last digit beside them.
fn numbers(from: i64, to: i64) -> Batch {
    let n: ArrayRef = Arc::new(Int64Array::from_iter_values(from..to));
    let d: ArrayRef = Arc::new(StringArray::from_iter_values((from..to).map(|n| (n % 3).to_string())));
    Batch::try_from_iter([("n", n), ("d", d)]).unwrap()
}

struct Case {
    context: SessionContext,
    clock: Arc<ManualClock>,
    io: Handle,
    path: String,
    more: Vec<(&'static str, &'static str)>,
}

impl Case {
    fn new(path: &str, more: &[(&'static str, &'static str)]) -> Self {
        Self {
            context: SessionContext::new(),
            clock: Arc::default(),
            io: Handle::current(),
            path: path.to_string(),
            more: more.to_vec(),
        }
    }

    fn prepare(&self, batch: &Batch, checkpointed: Option<&str>) -> Result<Arc<dyn PreparedSink>> {
        let job = SinkJob {
            job: "j1".into(),
            io: self.io.clone(),
            runtime: self.context.runtime_env(),
            clock: Arc::clone(&self.clock) as _,
            endless: true,
            checkpointed: checkpointed.map(str::to_string),
        };
        let mut of = vec![("path", self.path.as_str())];
        of.extend(&self.more);
        FileSinkConnector.prepare(&spec(batch.schema(), &of), &job)
    }

    fn sink(&self) -> Arc<dyn PreparedSink> {
        self.prepare(&numbers(0, 1), Some("job")).unwrap()
    }

    /// The numbers that readers see, in order.
    async fn read(&self, format: &str, partitions: &[String]) -> Vec<i64> {
        let schema = Some(numbers(0, 1).schema());
        let table = table_provider(
            &self.context.state(),
            &self.path,
            format,
            schema,
            partitions,
            &options(&[]),
        )
        .await;
        self.context.register_table("t", table.unwrap()).unwrap();
        let rows = query(&self.context, "SELECT n FROM t ORDER BY n").await;
        self.context.deregister_table("t").unwrap();
        rows.column(0).as_primitive::<Int64Type>().values().to_vec()
    }
}

/// The files that readers see.
fn shown(folder: &Path) -> Vec<String> {
    let files = tree(folder).into_iter();
    files.filter(|path| !path.starts_with('.')).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn rows_are_seen_when_their_checkpoint_is_published() {
    for format in ["parquet", "csv", "json", "arrow", "avro"] {
        for partitions in [vec![], vec!["d".to_string()]] {
            let folder = tempfile::tempdir().unwrap();
            let path = format!("{}/out/", folder.path().display());
            let mut more = vec![("format", format)];
            more.extend(partitions.iter().map(|_| ("partitioned-by", "d")));
            let case = Case::new(&path, &more);
            let out = folder.path().join("out");
            let sink = case.sink();
            assert!(sink.is_exactly_once());
            let mut writers = [sink.writer(0, 2).unwrap(), sink.writer(1, 2).unwrap()];
            writers[0].write(&numbers(0, 10)).unwrap();
            writers[1].write(&numbers(10, 20)).unwrap();
            let one: Vec<Committable> = writers
                .iter_mut()
                .flat_map(|writer| writer.prepare(1).unwrap())
                .collect();
            writers[0].write(&numbers(20, 30)).unwrap();
            assert!(shown(&out).is_empty(), "{format}: {:?}", shown(&out));
            sink.publish(&one).unwrap();
            assert_eq!(
                case.read(format, &partitions).await,
                (0..20).collect::<Vec<_>>(),
                "{format}"
            );
            // The process dies; the next one knows the checkpoint only.
            drop((writers, sink));
            let sink = case.sink();
            sink.publish(&one).unwrap();
            sink.recover().unwrap();
            assert_eq!(tree(&out), shown(&out), "{format}: nothing waits");
            let mut writer = sink.writer(0, 1).unwrap();
            assert!(writer.prepare(2).unwrap().is_empty(), "nothing was written");
            writer.write(&numbers(20, 30)).unwrap();
            sink.publish(&writer.prepare(3).unwrap()).unwrap();
            assert_eq!(
                case.read(format, &partitions).await,
                (0..30).collect::<Vec<_>>(),
                "{format}"
            );
            assert_eq!(tree(&out), shown(&out), "{format}: nothing waits");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_roll_between_checkpoints_and_wait() {
    let folder = tempfile::tempdir().unwrap();
    let path = format!("{}/", folder.path().display());
    let more = [
        ("format", "json"),
        ("sink.rolling-policy.file-size", "1 kb"),
        ("sink.rolling-policy.rollover-interval", "10 s"),
    ];
    let case = Case::new(&path, &more);
    let sink = case.sink();
    let mut writer = sink.writer(0, 1).unwrap();
    writer.write(&numbers(0, 100)).unwrap();
    writer.write(&numbers(100, 110)).unwrap();
    assert_eq!(writer.next_roll_ms(), Some(10_000));
    case.clock.advance(Duration::from_secs(10));
    writer.roll().unwrap();
    assert_eq!(writer.next_roll_ms(), None);
    writer.write(&numbers(110, 111)).unwrap();
    assert!(shown(folder.path()).is_empty());
    let prepared = writer.prepare(1).unwrap();
    assert_eq!(prepared.len(), 3, "by size, by time, by checkpoint");
    // Published in part, then again.
    sink.publish(&prepared[1..2]).unwrap();
    sink.publish(&prepared).unwrap();
    assert_eq!(case.read("json", &[]).await, (0..111).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn at_least_once_shows_files_when_they_are_finished() {
    let folder = tempfile::tempdir().unwrap();
    let path = format!("{}/", folder.path().display());
    let more = [
        ("format", "json"),
        ("sink.rolling-policy.file-size", "1 kb"),
        ("sink.delivery-guarantee", "at-least-once"),
    ];
    let case = Case::new(&path, &more);
    let sink = case.sink();
    assert!(!sink.is_exactly_once());
    let mut writer = sink.writer(0, 1).unwrap();
    writer.write(&numbers(0, 100)).unwrap();
    assert_eq!(shown(folder.path()).len(), 1);
    writer.write(&numbers(100, 101)).unwrap();
    assert!(writer.prepare(1).unwrap().is_empty());
    assert_eq!(case.read("json", &[]).await, (0..101).collect::<Vec<_>>());
    writer.write(&numbers(101, 102)).unwrap();
    drop((writer, sink));
    case.sink().recover().unwrap();
    assert_eq!(tree(folder.path()), shown(folder.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_left_stays() {
    let folder = tempfile::tempdir().unwrap();
    let path = format!("{}/", folder.path().display());
    let case = Case::new(&path, &[("format", "json")]);
    let other = case.prepare(&numbers(0, 1), Some("other job")).unwrap();
    let mut writer = other.writer(0, 1).unwrap();
    writer.write(&numbers(0, 3)).unwrap();
    let prepared = writer.prepare(1).unwrap();
    std::fs::write(folder.path().join(".mine"), "x").unwrap();
    let sink = case.sink();
    sink.writer(0, 1).unwrap().write(&numbers(5, 6)).unwrap();
    sink.recover().unwrap();
    other.publish(&prepared).unwrap();
    assert_eq!(case.read("json", &[]).await, [0, 1, 2]);
    assert_eq!(tree(folder.path()).len(), 2, "{:?}", tree(folder.path()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_lost_or_damaged_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = format!("{}/", folder.path().display());
    let case = Case::new(&path, &[("format", "json")]);
    let sink = case.sink();
    let mut writer = sink.writer(0, 1).unwrap();
    let mut prepare = |checkpoint| {
        writer.write(&numbers(0, 3)).unwrap();
        writer.prepare(checkpoint).unwrap()
    };
    let lost = prepare(1);
    sink.recover().unwrap();
    let error = sink.publish(&lost).unwrap_err().to_string();
    assert!(error.contains("part-j1-") && error.contains("is lost"), "{error}");
    let damaged = prepare(2);
    let waits = tree(folder.path())
        .into_iter()
        .find(|name| name.ends_with(".inprogress"))
        .unwrap();
    std::fs::write(folder.path().join(waits), "{").unwrap();
    let error = sink.publish(&damaged).unwrap_err().to_string();
    assert!(error.contains("has 1 bytes where"), "{error}");
    assert!(shown(folder.path()).is_empty());
    // Killed between the link and the removal of the old name: one file with two names.
    sink.recover().unwrap();
    let linked = prepare(3);
    let waits = tree(folder.path())
        .into_iter()
        .find(|name| name.ends_with(".inprogress"))
        .unwrap();
    let name = waits
        .rsplit('/')
        .next()
        .unwrap()
        .trim_end_matches(".inprogress")
        .to_string();
    std::fs::hard_link(folder.path().join(&waits), folder.path().join(&name)).unwrap();
    sink.publish(&linked).unwrap();
    assert_eq!(tree(folder.path()), std::slice::from_ref(&name));
    // A file of somebody else's in its place is not overwritten.
    let taken = prepare(4);
    let waits = tree(folder.path())
        .into_iter()
        .find(|name| name.ends_with(".inprogress"))
        .unwrap();
    let name = waits
        .rsplit('/')
        .next()
        .unwrap()
        .trim_end_matches(".inprogress")
        .to_string();
    std::fs::write(folder.path().join(&name), "theirs").unwrap();
    assert!(sink.publish(&taken).unwrap_err().to_string().contains(&name));
    assert_eq!(std::fs::read_to_string(folder.path().join(&name)).unwrap(), "theirs");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_checkpoints_cannot_do_is_refused_with_the_reason() {
    let folder = tempfile::tempdir().unwrap();
    let path = format!("{}/a.json", folder.path().display());
    let case = Case::new(&path, &[]);
    let error = case.prepare(&numbers(0, 1), Some("job")).unwrap_err().to_string();
    assert!(
        error.contains("a.json is one file") && error.contains("name a folder"),
        "{error}"
    );
    let path = format!("{}/", folder.path().display());
    let exactly = [("format", "json"), ("sink.delivery-guarantee", "exactly-once")];
    let error = Case::new(&path, &exactly)
        .prepare(&numbers(0, 1), None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("execution.checkpointing.interval"), "{error}");
    let wrong = [("format", "json"), ("sink.delivery-guarantee", "maybe")];
    let error = Case::new(&path, &wrong)
        .prepare(&numbers(0, 1), None)
        .unwrap_err()
        .to_string();
    assert!(error.contains("exactly-once or at-least-once"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn changelogs_wait_too() {
    let folder = tempfile::tempdir().unwrap();
    let path = format!("{}/", folder.path().display());
    let case = Case::new(&path, &[("format", "debezium-json")]);
    let kinds: ArrayRef = Arc::new(UInt8Array::from(vec![0, 3]));
    let rows = numbers(0, 2);
    let columns = rows.columns().iter().cloned().chain([kinds]).collect();
    let batch = Batch::try_new(with_row_kind(&rows.schema()), columns).unwrap();
    let sink = case.prepare(&batch, Some("job")).unwrap();
    let mut writer = sink.writer(0, 1).unwrap();
    writer.write(&batch).unwrap();
    let prepared = writer.prepare(1).unwrap();
    assert!(shown(folder.path()).is_empty());
    sink.publish(&prepared).unwrap();
    let files = shown(folder.path());
    let text = std::fs::read_to_string(folder.path().join(&files[0])).unwrap();
    assert!(text.lines().count() == 2 && text.contains(r#""op":"d""#), "{text}");
}

async fn objects(store: &InMemory) -> Vec<String> {
    let objects: Vec<_> = store.list(None).try_collect().await.unwrap();
    objects.into_iter().map(|object| object.location.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_wait_under_hidden_names() {
    let case = Case::new("memory://pending/out/", &[("format", "json"), ("partitioned-by", "d")]);
    let store = Arc::new(InMemory::new());
    let url = url::Url::parse("memory://pending/").unwrap();
    case.context.register_object_store(&url, Arc::clone(&store) as _);
    let sink = case.sink();
    let mut writer = sink.writer(0, 1).unwrap();
    writer.write(&numbers(0, 9)).unwrap();
    let one = writer.prepare(1).unwrap();
    let waiting = objects(&store).await;
    assert!(
        waiting.len() == 3 && waiting.iter().all(|name| name.starts_with("out/.thalweg-pending-job-")),
        "{waiting:?}"
    );
    assert!(case.read("json", &["d".into()]).await.is_empty());
    writer.write(&numbers(9, 12)).unwrap();
    let unpublished = writer.prepare(2).unwrap();
    sink.publish(&one[..1]).unwrap();
    drop((writer, sink));
    let sink = case.sink();
    sink.publish(&one).unwrap();
    sink.recover().unwrap();
    assert_eq!(objects(&store).await.len(), 3);
    assert_eq!(case.read("json", &["d".into()]).await, (0..9).collect::<Vec<_>>());
    assert!(sink.publish(&unpublished).unwrap_err().to_string().contains("is lost"));
    let elsewhere = Case::new("memory://elsewhere/out/", &[("format", "json")]);
    let url = url::Url::parse("memory://elsewhere/").unwrap();
    elsewhere.context.register_object_store(&url, store as _);
    assert!(
        elsewhere
            .sink()
            .publish(&one)
            .unwrap_err()
            .to_string()
            .contains("memory://pending")
    );
}

/// What happens next to a job.
#[derive(Clone, Debug)]
enum Step {
    /// So many rows to a writer.
    Write(usize, usize),
    /// A checkpoint; how many of its files are published before the process dies, all and no death when `None`.
    Checkpoint(Option<usize>),
    /// The writers prepare, and the process dies before the checkpoint is complete.
    Incomplete,
    /// The process dies.
    Kill,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0..2usize, 1..40usize).prop_map(|(writer, rows)| Step::Write(writer, rows)),
        2 => Just(Step::Checkpoint(None)),
        1 => (0..4usize).prop_map(|files| Step::Checkpoint(Some(files))),
        1 => Just(Step::Incomplete),
        1 => Just(Step::Kill),
    ]
}

/// A job of two writers that reads the numbers; what a checkpoint holds is the next number and the committables.
struct Job<'a> {
    case: &'a Case,
    sink: Arc<dyn PreparedSink>,
    writers: Vec<Box<dyn SinkWriter>>,
    next: i64,
    checkpoint: u64,
    complete: (i64, Vec<Committable>),
}

impl Job<'_> {
    fn start(case: &Case) -> Job<'_> {
        let sink = case.sink();
        sink.recover().unwrap();
        Job {
            case,
            writers: (0..2).map(|subtask| sink.writer(subtask, 2).unwrap()).collect(),
            sink,
            next: 0,
            checkpoint: 0,
            complete: (0, Vec::new()),
        }
    }

    fn die_and_go_on(&mut self) {
        self.writers.clear();
        self.sink = self.case.sink();
        self.sink.publish(&self.complete.1).unwrap();
        self.sink.recover().unwrap();
        self.writers = (0..2).map(|subtask| self.sink.writer(subtask, 2).unwrap()).collect();
        self.next = self.complete.0;
    }

    fn prepare(&mut self) -> Vec<Committable> {
        self.checkpoint += 1;
        let checkpoint = self.checkpoint;
        let writers = self.writers.iter_mut();
        writers.flat_map(|writer| writer.prepare(checkpoint).unwrap()).collect()
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Write(writer, rows) => {
                let to = self.next + rows as i64;
                self.writers[writer].write(&numbers(self.next, to)).unwrap();
                self.next = to;
            }
            Step::Checkpoint(files) => {
                let prepared = self.prepare();
                self.complete = (self.next, prepared.clone());
                match files {
                    None => self.sink.publish(&prepared).unwrap(),
                    Some(files) => {
                        self.sink.publish(&prepared[..files.min(prepared.len())]).unwrap();
                        self.die_and_go_on();
                    }
                }
            }
            Step::Incomplete => {
                self.prepare();
                self.die_and_go_on();
            }
            Step::Kill => self.die_and_go_on(),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Wherever the process dies, readers see the rows of complete checkpoints, each once.
    #[test]
    fn rows_of_complete_checkpoints_are_seen_once(steps in proptest::collection::vec(step(), 1..24), partitioned: bool) {
        let runtime = Runtime::new().unwrap();
        let folder = tempfile::tempdir().unwrap();
        let path = format!("{}/out/", folder.path().display());
        let mut more = vec![("format", "csv"), ("sink.sync", "false"), ("sink.rolling-policy.file-size", "64 b")];
        if partitioned {
            more.extend([("partitioned-by", "d"), ("sink.max-open-files", "2")]);
        }
        let _entered = runtime.enter();
        let case = Case::new(&path, &more);
        let mut job = Job::start(&case);
        for step in steps {
            job.take(step);
            let expected: Vec<i64> = (0..job.complete.0).collect();
            if !expected.is_empty() {
                let partitions = if partitioned { vec!["d".to_string()] } else { Vec::new() };
                let seen = runtime.block_on(case.read("csv", &partitions));
                prop_assert_eq!(seen, expected);
            }
        }
        job.die_and_go_on();
        let out = folder.path().join("out");
        if out.exists() {
            prop_assert_eq!(tree(&out), shown(&out), "something waits still");
        }
    }
}
