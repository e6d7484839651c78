//! Sources that are stopped anywhere and go on: all rows come, each once.

use std::collections::BTreeMap;
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use arrow::util::display::{ArrayFormatter, FormatOptions};
use datafusion::execution::TaskContext;
use datafusion::physical_plan::coalesce_partitions::CoalescePartitionsExec;
use datafusion::physical_plan::collect;
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::StreamExt;
use thalweg_engine::operator::SplitId;

use super::*;

pub(crate) type Plan = Arc<dyn ExecutionPlan>;

/// Each row as text.
pub(crate) fn texts(batch: &RecordBatch) -> Vec<String> {
    let options = FormatOptions::default().with_null("NULL");
    let formats: Vec<ArrayFormatter<'_>> = batch
        .columns()
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options).unwrap())
        .collect();
    (0..batch.num_rows())
        .map(|row| {
            formats
                .iter()
                .map(|format| format.value(row).to_string() + "|")
                .collect()
        })
        .collect()
}

pub(crate) fn session(partitions: usize, batch_rows: usize) -> SessionContext {
    let config = SessionConfig::new()
        .with_target_partitions(partitions)
        .with_batch_size(batch_rows);
    SessionContext::new_with_config(config)
}

/// Numbers that look random and are the same each time.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    pub(crate) fn below(&mut self, end: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

/// Where the splits of a source are: position, and whether they have ended.
pub(crate) type Positions = Vec<(SplitId, Option<Vec<u8>>, bool)>;

/// Reads each split up to a number of batches.
pub(crate) async fn read_some(
    source: &dyn SplitSource,
    from: Positions,
    task: Arc<TaskContext>,
    mut batches_of: impl FnMut() -> u64,
) -> (Vec<String>, Positions) {
    let mut reader = source.reader(0, task).unwrap();
    let mut rows = Vec::new();
    let mut to = Vec::new();
    for (split, mut position, has_ended) in from {
        let count = if has_ended { 0 } else { batches_of() };
        let mut ended = has_ended;
        if count > 0 {
            let mut stream = reader.open(&split, position.as_deref()).unwrap();
            for _ in 0..count {
                match stream.next().await {
                    Some(read) => {
                        let read = read.unwrap();
                        rows.extend(texts(&read.batch));
                        position = Some(read.position);
                    }
                    None => {
                        ended = true;
                        break;
                    }
                }
            }
        }
        to.push((split, position, ended));
    }
    (rows, to)
}

/// Checks that what `make` plans goes on wherever it was stopped, and with another number of partitions and rows a batch.
pub(crate) async fn check(
    make: impl AsyncFn(&SessionContext) -> Plan,
    source_of: impl Fn(&Plan) -> Option<Arc<dyn SplitSource>>,
) {
    for seed in 0..8 {
        let mut dice = Dice::new(seed);
        let mut pick = |of: &[usize]| of[dice.below(of.len() as u64) as usize];
        let sessions: Vec<SessionContext> = (0..4)
            .map(|_| session(pick(&[1, 2, 3, 7]), pick(&[1, 10, 100, 1000])))
            .collect();
        let plan = make(&sessions[0]).await;
        let all = collect(Arc::new(CoalescePartitionsExec::new(plan)), sessions[0].task_ctx());
        let mut expected: Vec<String> = all.await.unwrap().iter().flat_map(texts).collect();
        let mut given = Vec::new();
        let mut known: Positions = Vec::new();
        for (round, session) in sessions.iter().enumerate() {
            let plan = make(session).await;
            let source = source_of(&plan).expect("no connector knows how to go on in this plan");
            let ids: Vec<SplitId> = known.iter().map(|(id, _, _)| id.clone()).collect();
            let new = source.splits_besides(&ids).await.unwrap();
            assert!(round == 0 || new.is_empty(), "{new:?} beside {ids:?}");
            known.extend(new.into_iter().map(|id| (id, None, false)));
            let is_last = round + 1 == sessions.len();
            let batches = || {
                if is_last {
                    u64::MAX
                } else {
                    [0, 1, 2, 5, 40][dice.below(5) as usize]
                }
            };
            let (rows, to) = read_some(source.as_ref(), known, session.task_ctx(), batches).await;
            given.extend(rows);
            known = to;
        }
        expected.sort_unstable();
        given.sort_unstable();
        assert!(
            given == expected,
            "seed {seed}: {} rows of {}",
            given.len(),
            expected.len()
        );
    }
}

fn options(more: &[(&str, &str)]) -> BTreeMap<String, String> {
    more.iter()
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

async fn check_table(columns: Schema, of: &[(&str, &str)], projection: Option<Vec<usize>>) {
    let make = async |session: &SessionContext| -> Plan {
        let state = session.state();
        let columns = Arc::new(columns.clone());
        let table = create_table(&state, "t", columns, &[], &options(of)).await.unwrap();
        table.scan(&state, projection.as_ref(), &[], None).await.unwrap()
    };
    check(make, split_source).await;
}

#[tokio::test]
async fn made_up_rows_go_on_whatever_the_parallelism() {
    let columns = Schema::new(vec![
        Field::new("id", DataType::Int64, false),
        Field::new("s", DataType::Utf8View, true),
    ]);
    let datagen = [
        ("connector", "datagen"),
        ("number-of-rows", "2500"),
        ("fields.id.kind", "sequence"),
    ];
    check_table(columns.clone(), &datagen, None).await;
    let paced = [&datagen[..], &[("rows-per-second", "1000000"), ("splits", "3")]].concat();
    check_table(columns, &paced, Some(vec![0])).await;
    for table in ["all", "person", "auction", "bid"] {
        let nexmark = [
            ("connector", "nexmark"),
            ("nexmark.table", table),
            ("nexmark.events", "6543"),
        ];
        check_table(Schema::empty(), &nexmark, None).await;
    }
    let ysb = [("connector", "ysb"), ("ysb.events", "4321"), ("ysb.form", "json")];
    check_table(Schema::empty(), &ysb, None).await;
    check_table(Schema::empty(), &[("connector", "ysb-campaigns")], Some(vec![1, 0])).await;
}

#[tokio::test]
async fn splits_of_made_up_rows_that_the_state_lacks_are_begun_and_others_are_refused() {
    let plan = async |partitions, of: &[(&str, &str)]| {
        let state = session(partitions, 100).state();
        let columns = Arc::new(Schema::empty());
        let table = create_table(&state, "t", columns, &[], &options(of)).await.unwrap();
        split_source(&table.scan(&state, None, &[], None).await.unwrap()).unwrap()
    };
    let nexmark = [("connector", "nexmark"), ("nexmark.events", "100000")];
    let mut splits = plan(3, &nexmark).await.splits().await.unwrap();
    let other = plan(2, &nexmark).await;
    let left = splits.remove(1);
    assert_eq!(other.splits_besides(&splits).await.unwrap(), [left]);
    let paced = [&nexmark[..], &[("rows-per-second", "5")]].concat();
    let error = plan(3, &paced)
        .await
        .splits_besides(&splits)
        .await
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("dealt in blocks of 50 now: its options have changed"),
        "{error}"
    );
}

/// An event that was due before a restart does not become due once more by the wall clock.
#[tokio::test]
async fn a_pace_goes_on_from_where_it_was() {
    let nexmark = [
        ("connector", "nexmark"),
        ("nexmark.table", "bid"),
        ("rows-per-second", "50"),
    ];
    let session = session(1, 1000);
    let table = create_table(
        &session.state(),
        "t",
        Arc::new(Schema::empty()),
        &[],
        &options(&nexmark),
    )
    .await
    .unwrap();
    let plan = table.scan(&session.state(), None, &[], None).await.unwrap();
    let source = split_source(&plan).unwrap();
    let splits = source.splits().await.unwrap();
    let mut reader = source.reader(0, session.task_ctx()).unwrap();
    // An hour's worth of events, of which 46 in 50 are bids.
    let position = (3600_u64 * 46).to_le_bytes();
    let mut stream = reader.open(&splits[0], Some(&position)).unwrap();
    let next = tokio::time::timeout(std::time::Duration::from_secs(60), stream.next());
    next.await.expect("the next event is due at once").unwrap().unwrap();
}
