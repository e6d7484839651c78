//! Scans that are stopped anywhere and go on elsewhere.

use std::collections::BTreeMap;

use arrow::array::{ArrayRef, AsArray, TimestampMillisecondArray};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimeUnit, TimestampMillisecondType};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::empty::EmptyExec;
use futures::future::BoxFuture;
use futures::stream;
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::data::Batch;
use crate::operator::harness::Harness;
use crate::operator::limit::Limit;
use crate::operator::{Positioned, Source, SplitId, SplitReader, SplitStream};
use crate::plan::{LimitSpec, PhysicalPlan, ScalarExpr, StreamScanSpec};
use crate::state::{FrozenTable, Restored, Run, Snapshot, SnapshotRequest};

type Told = Vec<(SplitId, Vec<u8>)>;
/// Ordinal, batches, and whether the split says nothing after them rather than end.
type Scripted = (u64, Vec<Vec<i64>>, bool);

/// Splits of batches of times. The position is the number of the next batch.
#[derive(Debug)]
struct Script {
    schema: SchemaRef,
    /// By name.
    splits: Mutex<BTreeMap<String, Scripted>>,
    discovery: Option<Duration>,
    at_once: usize,
    /// What has been opened, and where.
    opened: Mutex<Vec<(String, Option<u64>)>>,
    /// What readers were told of complete checkpoints.
    told: Arc<Mutex<Vec<Told>>>,
}

impl Script {
    fn new(splits: Vec<Vec<Vec<i64>>>) -> Script {
        let time = DataType::Timestamp(TimeUnit::Millisecond, None);
        let named = |(i, batches)| (format!("s{i}"), (i as u64, batches, false));
        Script {
            schema: Arc::new(Schema::new(vec![Field::new("ts", time, true)])),
            splits: Mutex::new(splits.into_iter().enumerate().map(named).collect()),
            discovery: None,
            at_once: usize::MAX,
            opened: Mutex::default(),
            told: Arc::default(),
        }
    }

    fn spec(&self) -> ScanSpec {
        let watermark = WatermarkSpec {
            expr: ScalarExpr::column(0, &self.schema),
            idle_timeout_ms: None,
            interval_ms: 0,
            max_drift_ms: None,
        };
        ScanSpec {
            stream: Some(StreamScanSpec {
                watermark: Some(watermark),
            }),
            bounded_by: vec![],
            table: "t".into(),
            plan: PhysicalPlan(Arc::new(EmptyExec::new(Arc::clone(&self.schema)))),
            limit: None,
            read_bytes: 0,
        }
    }
}

/// A script that scans share.
#[derive(Clone, Debug)]
struct Shared(Arc<Script>);

impl SplitSource for Shared {
    fn splits(&self) -> BoxFuture<'_, Result<Vec<SplitId>>> {
        let splits = self.0.splits.lock();
        let id = |(name, (ordinal, _, _)): (&String, &(u64, _, _))| SplitId {
            name: name.clone(),
            ordinal: *ordinal,
        };
        let splits = splits.iter().map(id).collect();
        Box::pin(async move { Ok(splits) })
    }

    fn discovery_interval(&self) -> Option<Duration> {
        self.0.discovery
    }

    fn open_at_once(&self) -> usize {
        self.0.at_once
    }

    fn reader(&self, _subtask: usize, _task: Arc<TaskContext>) -> Result<Box<dyn SplitReader>> {
        Ok(Box::new(Reader(Arc::clone(&self.0))))
    }
}

struct Reader(Arc<Script>);

impl SplitReader for Reader {
    fn open(&mut self, split: &SplitId, position: Option<&[u8]>) -> Result<SplitStream> {
        let position = position.map(|position| u64::from_le_bytes(position.try_into().unwrap()));
        self.0.opened.lock().push((split.name.clone(), position));
        let (_, batches, stays) = self.0.splits.lock()[&split.name].clone();
        let schema = Arc::clone(&self.0.schema);
        let numbered = batches.into_iter().zip(1_u64..).skip(position.unwrap_or(0) as usize);
        let rows = numbered.map(move |(times, next)| {
            let column: ArrayRef = Arc::new(TimestampMillisecondArray::from(times));
            Ok(Positioned {
                batch: Batch::try_new(Arc::clone(&schema), vec![column])?,
                position: next.to_le_bytes().to_vec(),
            })
        });
        Ok(match stays {
            true => stream::iter(rows).chain(stream::pending()).boxed(),
            false => stream::iter(rows).boxed(),
        })
    }

    fn checkpoint_complete(&mut self, positions: &[(SplitId, Vec<u8>)]) {
        self.0.told.lock().push(positions.to_vec());
    }
}

struct Stage {
    scan: Source,
    harness: Harness<Limit>,
}

#[derive(Debug, PartialEq)]
enum Event {
    Rows(Vec<i64>),
    Watermark(i64),
    Idle(bool),
    Pending,
    End,
}

impl Stage {
    fn with_spec(script: &Shared, spec: ScanSpec, subtask: usize, parallelism: usize) -> Self {
        let source: Arc<dyn SplitSource> = Arc::new(script.clone());
        Self {
            scan: Source::Stream(Box::new(StreamScan::new(spec, Some(source), subtask, parallelism))),
            harness: Harness::new(Limit::new(LimitSpec { skip: 0, fetch: None })),
        }
    }

    fn new(script: &Shared, subtask: usize, parallelism: usize) -> Self {
        Self::with_spec(script, script.0.spec(), subtask, parallelism)
    }

    fn waiting(&mut self, patience: Option<Duration>) -> Event {
        match self.scan.next(&mut self.harness.context, patience).unwrap() {
            SourceEvent::Batch(batch) => {
                let times = batch.column(0).as_primitive::<TimestampMillisecondType>();
                Event::Rows(times.values().to_vec())
            }
            SourceEvent::Watermark(watermark) => Event::Watermark(watermark.0),
            SourceEvent::Idle(idle) => Event::Idle(idle),
            SourceEvent::Pending => Event::Pending,
            SourceEvent::End => Event::End,
        }
    }

    fn next(&mut self) -> Event {
        self.waiting(Some(Duration::ZERO))
    }

    /// The rows up to the end.
    fn rest(&mut self) -> Vec<i64> {
        let mut rows = Vec::new();
        loop {
            match self.next() {
                Event::Rows(more) => rows.extend(more),
                Event::End => return rows,
                _ => {}
            }
        }
    }

    fn snapshot(&mut self, checkpoint: u64) -> Vec<FrozenTable> {
        let request = SnapshotRequest {
            checkpoint,
            since: None,
        };
        let mut snapshot = Snapshot::new(request);
        self.scan.snapshot(&mut snapshot, &self.harness.context).unwrap();
        snapshot.into_tables()
    }
}

/// What all subtasks stored, by table.
type Stored = BTreeMap<String, (SchemaRef, Vec<Batch>)>;

fn stored(tables: impl IntoIterator<Item = FrozenTable>) -> Stored {
    let mut stored = Stored::new();
    for table in tables {
        let rows: Vec<Batch> = table.rows.map(Result::unwrap).collect();
        assert!(rows.iter().all(|rows| rows.schema() == table.spec.schema));
        let entry = stored.entry(table.spec.name);
        entry.or_insert((table.spec.schema, Vec::new())).1.extend(rows);
    }
    stored
}

fn state_for(stored: &Stored, subtask: usize, parallelism: usize) -> Restored {
    let mut restored = Restored::new("scan", 1, subtask, parallelism);
    for (name, (schema, rows)) in stored {
        let rows = rows.clone();
        restored.add(
            name,
            Run {
                schema: Arc::clone(schema),
                version: 1,
                rows: Box::new(rows.into_iter().map(Ok)),
                deleted: None,
                is_own: false,
            },
        );
    }
    restored
}

fn restored(script: &Shared, stored: &Stored, subtask: usize, parallelism: usize) -> Stage {
    let mut stage = Stage::new(script, subtask, parallelism);
    let mut state = state_for(stored, subtask, parallelism);
    stage.scan.restore(&mut state, &stage.harness.context).unwrap();
    assert_eq!(state.left().count(), 0);
    stage
}

/// What is stored of a split: (position, watermark, ended), by name.
fn states(stored: &Stored) -> BTreeMap<String, (Option<u64>, Option<i64>, bool)> {
    let mut restored = state_for(stored, 0, 1);
    let mut scan = StreamScan::new(Script::new(vec![]).spec(), None, 0, 1);
    let harness = Harness::new(Limit::new(LimitSpec { skip: 0, fetch: None }));
    scan.restore(&mut restored, &harness.context).unwrap();
    let splits = scan.splits.restored().iter();
    let number = |bytes: &Vec<u8>| u64::from_le_bytes(bytes.as_slice().try_into().unwrap());
    splits
        .map(|split| {
            let position = split.position.as_ref().map(number);
            (split.id.name.clone(), (position, split.watermark, split.ended))
        })
        .collect()
}

/// Splits of distinct times, in batches of random sizes, and how many rows there are.
fn random_splits(random: &mut StdRng) -> (Vec<Vec<Vec<i64>>>, i64) {
    let mut next = 0;
    let splits = (0..random.random_range(0..8))
        .map(|_| {
            let batches = 0..random.random_range(0..6);
            let mut batch = |_| {
                let rows = random.random_range(0..4);
                next += rows;
                (next - rows..next).collect()
            };
            batches.map(&mut batch).collect()
        })
        .collect();
    (splits, next)
}

/// The watermark that a subtask must begin with.
fn expected_watermark(stored: &Stored, ordinals: &BTreeMap<String, u64>, subtask: u64, of: u64) -> Option<i64> {
    let states = states(stored);
    let own = states
        .iter()
        .filter(|(name, (_, _, ended))| ordinals[*name] % of == subtask && !ended);
    own.map(|(_, (_, watermark, _))| *watermark).min()?
}

#[test]
fn each_row_is_given_once_wherever_the_scans_were_stopped() {
    for seed in 0..150 {
        let mut random = StdRng::seed_from_u64(seed);
        let (splits, rows) = random_splits(&mut random);
        let ordinals = (0..splits.len()).map(|i| (format!("s{i}"), i as u64)).collect();
        let mut script = Script::new(splits);
        script.at_once = if seed % 3 == 0 { 1 } else { usize::MAX };
        let script = Shared(Arc::new(script));
        let mut given: Vec<i64> = Vec::new();
        let mut before = Stored::new();
        for round in 0..4 {
            let parallelism = [1, 2, 3, 7][random.random_range(0..4)];
            let ended: Vec<String> = if round == 0 {
                vec![]
            } else {
                let states = states(&before).into_iter();
                states
                    .filter(|(_, (_, _, ended))| *ended)
                    .map(|(name, _)| name)
                    .collect()
            };
            script.0.opened.lock().clear();
            let mut after = Vec::new();
            for subtask in 0..parallelism {
                let mut stage = restored(&script, &before, subtask, parallelism);
                let mut steps = random.random_range(0..12);
                if round > 0 && steps > 0 {
                    let first = stage.next();
                    match expected_watermark(&before, &ordinals, subtask as u64, parallelism as u64) {
                        Some(watermark) if script.0.at_once > 1 => assert_eq!(first, Event::Watermark(watermark)),
                        _ => {}
                    }
                    if let Event::Rows(rows) = first {
                        given.extend(rows);
                    }
                    steps -= 1;
                }
                for _ in 0..steps {
                    if let Event::Rows(rows) = stage.next() {
                        given.extend(rows);
                    }
                }
                after.extend(stage.snapshot(round));
                // What comes after the barrier is lost with the process.
                for _ in 0..random.random_range(0..5) {
                    stage.next();
                }
            }
            before = stored(after);
            let opened = script.0.opened.lock();
            assert!(opened.iter().all(|(name, _)| !ended.contains(name)), "{opened:?}");
        }
        let parallelism = [1, 2, 3, 7][random.random_range(0..4)];
        for subtask in 0..parallelism {
            given.extend(restored(&script, &before, subtask, parallelism).rest());
        }
        given.sort_unstable();
        assert_eq!(given, (0..rows).collect::<Vec<_>>(), "seed {seed}");
    }
}

#[test]
fn what_is_read_ahead_is_read_again_and_what_has_ended_stays_so() {
    let script = Shared(Arc::new(Script::new(vec![
        vec![vec![10], vec![30]],
        vec![vec![20], vec![40]],
        vec![vec![5]],
    ])));
    let mut stage = Stage::new(&script, 0, 1);
    let events: Vec<Event> = (0..4).map(|_| stage.next()).collect();
    let rows = |row: i64| Event::Rows(vec![row]);
    assert_eq!(events, [rows(5), rows(10), rows(20), Event::Watermark(10)]);
    // 30 and 40 may have been read; they have not been given.
    let state = stored(stage.snapshot(1));
    assert_eq!(
        states(&state),
        BTreeMap::from([
            ("s0".to_string(), (Some(1), Some(10), false)),
            ("s1".to_string(), (Some(1), Some(20), false)),
            ("s2".to_string(), (Some(1), Some(5), true)),
        ])
    );
    let mut stage = restored(&script, &state, 1, 2);
    assert_eq!((stage.next(), stage.next()), (Event::Watermark(20), rows(40)));
    let mut stage = restored(&script, &state, 0, 2);
    assert_eq!((stage.next(), stage.next()), (Event::Watermark(10), rows(30)));
    assert_eq!(stage.rest(), Vec::<i64>::new());
    // Once more, of scans that have all ended.
    let mut all = stage.snapshot(2);
    let mut other = restored(&script, &state, 1, 2);
    assert_eq!(other.rest(), [40]);
    all.extend(other.snapshot(2));
    let mut stage = restored(&script, &stored(all), 0, 1);
    assert_eq!(stage.next(), Event::End);
}

#[test]
fn splits_that_wait_for_their_turn_hold_back_the_watermark() {
    let mut script = Script::new(vec![vec![vec![100]], vec![vec![10]], vec![vec![50]]]);
    script.at_once = 1;
    let script = Shared(Arc::new(script));
    let mut stage = Stage::new(&script, 0, 1);
    let mut events = Vec::new();
    while events.last() != Some(&Event::End) {
        let event = stage.next();
        assert!(!matches!(event, Event::Watermark(mark) if mark > 10 && !events.contains(&Event::Rows(vec![10]))));
        events.push(event);
    }
    assert_eq!(events.iter().filter(|event| matches!(event, Event::Rows(_))).count(), 3);
}

#[test]
fn new_splits_are_found_while_it_runs_and_by_their_own_subtask() {
    let mut script = Script::new(vec![]);
    script.discovery = Some(Duration::from_millis(1));
    let script = Shared(Arc::new(script));
    let mut scans = [Stage::new(&script, 0, 2), Stage::new(&script, 1, 2)];
    for scan in &mut scans {
        assert_eq!(scan.next(), Event::Idle(true), "there is nothing, and there may be");
        assert_eq!(scan.waiting(Some(Duration::from_millis(5))), Event::Pending);
    }
    script.0.splits.lock().insert("new".into(), (3, vec![vec![7]], true));
    // It may be looked at, and nothing be found yet, many times.
    let mut events = Vec::new();
    while !events.contains(&Event::Watermark(7)) {
        events.push(scans[1].waiting(Some(Duration::from_secs(10))));
    }
    events.retain(|event| *event != Event::Pending);
    assert_eq!(events, [Event::Idle(false), Event::Rows(vec![7]), Event::Watermark(7)]);
    assert_eq!(scans[0].waiting(Some(Duration::from_millis(20))), Event::Pending);
    // After a restart it is known, and goes on.
    let all = scans.iter_mut().flat_map(|scan| scan.snapshot(1));
    let state = stored(all.collect::<Vec<_>>());
    drop(scans);
    script.0.opened.lock().clear();
    let mut scan = restored(&script, &state, 0, 1);
    assert_eq!(scan.next(), Event::Watermark(7));
    assert_eq!(scan.waiting(Some(Duration::from_millis(20))), Event::Pending);
    assert_eq!(*script.0.opened.lock(), [("new".to_string(), Some(1))]);
}

#[test]
fn a_split_that_nobody_has_read_of_is_in_the_state_and_one_that_is_new_is_begun() {
    let script = Shared(Arc::new(Script::new(vec![vec![vec![1]], vec![vec![2]]])));
    // Not even begun.
    let state = stored(Stage::new(&script, 0, 1).snapshot(1));
    assert_eq!(states(&state).values().collect::<Vec<_>>(), [&(None, None, false); 2]);
    script.0.splits.lock().insert("later".into(), (9, vec![vec![3]], false));
    let mut rows: Vec<i64> = (0..2)
        .flat_map(|subtask| restored(&script, &state, subtask, 2).rest())
        .collect();
    rows.sort_unstable();
    assert_eq!(rows, [1, 2, 3]);
}

#[test]
fn a_wait_is_ended_from_another_thread() {
    let mut script = Script::new(vec![vec![]]);
    script.splits.lock().insert("silent".into(), (1, vec![], true));
    script.at_once = 8;
    let script = Shared(Arc::new(script));
    let mut stage = Stage::new(&script, 0, 1);
    let wake = Arc::new(Notify::new());
    stage.scan.wake_by(Arc::clone(&wake)).unwrap();
    // The empty split ends.
    assert_eq!(stage.next(), Event::Pending);
    let waiting = std::thread::spawn(move || (stage.waiting(None), stage));
    wake.notify_one();
    let (event, mut stage) = waiting.join().unwrap();
    assert_eq!(event, Event::Pending);
    // Also when it comes before the wait.
    wake.notify_one();
    assert_eq!(stage.waiting(None), Event::Pending);
}

#[test]
fn readers_are_told_of_the_positions_at_the_checkpoint_that_is_complete() {
    let script = Shared(Arc::new(Script::new(vec![vec![vec![1], vec![2], vec![3]]])));
    let mut stage = Stage::new(&script, 0, 1);
    let mut given = 0;
    for checkpoint in 1..=3 {
        while given < checkpoint {
            given += u64::from(matches!(stage.next(), Event::Rows(_)));
        }
        stage.snapshot(checkpoint);
    }
    // The first failed; nothing is known of the third.
    stage.scan.checkpoint_complete(2);
    stage.scan.checkpoint_complete(2);
    let told = std::mem::take(&mut *script.0.told.lock());
    let id = SplitId {
        name: "s0".into(),
        ordinal: 0,
    };
    assert_eq!(told, [vec![(id, 2_u64.to_le_bytes().to_vec())]]);
}

#[test]
fn a_limit_goes_on_counting() {
    let script = Shared(Arc::new(Script::new(vec![vec![vec![1, 2], vec![3, 4], vec![5, 6]]])));
    let limited = || ScanSpec {
        limit: Some(3),
        ..script.0.spec()
    };
    let mut stage = Stage::with_spec(&script, limited(), 0, 1);
    assert_eq!(stage.next(), Event::Rows(vec![1, 2]));
    let state = stored(stage.snapshot(1));
    let mut again = Stage::with_spec(&script, limited(), 0, 1);
    again
        .scan
        .restore(&mut state_for(&state, 0, 1), &again.harness.context)
        .unwrap();
    assert_eq!(again.rest(), [3]);
    let state = stored(again.snapshot(2));
    let mut over = Stage::with_spec(&script, limited(), 0, 1);
    over.scan
        .restore(&mut state_for(&state, 0, 1), &over.harness.context)
        .unwrap();
    assert_eq!(over.rest(), Vec::<i64>::new());
}

#[test]
fn partitions_of_a_plan_go_on_by_count_and_only_when_they_are_as_many() {
    use datafusion::datasource::memory::MemorySourceConfig;
    let script = Script::new(vec![]);
    let batch = |times: &[i64]| {
        let column: ArrayRef = Arc::new(TimestampMillisecondArray::from(times.to_vec()));
        Batch::try_new(Arc::clone(&script.schema), vec![column]).unwrap()
    };
    let partitions = vec![
        vec![batch(&[1, 2]), batch(&[]), batch(&[3, 4, 5])],
        vec![],
        vec![batch(&[6])],
    ];
    let spec = |partitions: &[Vec<Batch>]| {
        let plan = MemorySourceConfig::try_new_exec(partitions, Arc::clone(&script.schema), None).unwrap();
        ScanSpec {
            plan: PhysicalPlan(plan),
            ..script.spec()
        }
    };
    let stage = |spec, subtask, parallelism| Stage {
        scan: Source::Stream(Box::new(StreamScan::new(spec, None, subtask, parallelism))),
        harness: Harness::new(Limit::new(LimitSpec { skip: 0, fetch: None })),
    };
    for cut in 0..8 {
        let mut given = Vec::new();
        let mut first = stage(spec(&partitions), 0, 1);
        for _ in 0..cut {
            if let Event::Rows(rows) = first.next() {
                given.extend(rows);
            }
        }
        let state = stored(first.snapshot(1));
        for subtask in 0..2 {
            let mut next = stage(spec(&partitions), subtask, 2);
            next.scan
                .restore(&mut state_for(&state, subtask, 2), &next.harness.context)
                .unwrap();
            given.extend(next.rest());
        }
        given.sort_unstable();
        assert_eq!(given, [1, 2, 3, 4, 5, 6], "cut at {cut}");
        let mut fewer = stage(spec(&partitions[..2]), 0, 1);
        fewer
            .scan
            .restore(&mut state_for(&state, 0, 1), &fewer.harness.context)
            .unwrap();
        let error = fewer
            .scan
            .next(&mut fewer.harness.context, None)
            .err()
            .unwrap()
            .to_string();
        assert!(
            error.contains("has 2 partitions now and the state is of 'partition"),
            "{error}"
        );
    }
}

#[test]
fn a_batch_scan_has_no_checkpoints() {
    use crate::operator::{Scan, Splits};
    let mut source = Source::Batch(Scan::new(Script::new(vec![]).spec(), Splits::new(1)));
    let harness = Harness::new(Limit::new(LimitSpec { skip: 0, fetch: None }));
    let mut snapshot = Snapshot::new(SnapshotRequest {
        checkpoint: 1,
        since: None,
    });
    let error = source
        .snapshot(&mut snapshot, &harness.context)
        .unwrap_err()
        .to_string();
    assert!(error.contains("batch job has no checkpoints"), "{error}");
}
