//! Against a generator that makes one event at a time, and that against what the harness in Java printed.

use std::collections::BTreeMap;

use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Field, Int32Type, Int64Type, Schema, TimestampMillisecondType};
use arrow::record_batch::RecordBatch;
use datafusion::physical_plan::statistics::{StatisticsArgs, StatisticsContext};
use datafusion::physical_plan::{ExecutionPlan, ExecutionPlanProperties};
use datafusion::prelude::{SessionConfig, SessionContext};
use futures::TryStreamExt;

use super::*;
use crate::generate::tests::cpu_seconds;
use crate::generate::{JavaRandom, mix};

const EVENTS: u64 = 3217;

/// One event at a time, in the words of the harness.
struct Naive {
    seed: u64,
    rate: u64,
    disorder: u64,
    names: Vec<String>,
    urls: Vec<String>,
    extras: Vec<String>,
}

impl Naive {
    fn new(seed: u64, rate: u64, disorder: u64) -> Self {
        let pool = |prefix: &str, letters: usize| -> Vec<String> {
            let mut random = JavaRandom::new(3 + seed);
            let mut string = || -> String {
                (0..letters)
                    .map(|_| (b'a' + random.next_int(26) as u8) as char)
                    .collect()
            };
            (0..1024).map(|_| format!("{prefix}{}", string())).collect()
        };
        Self {
            seed,
            rate,
            disorder,
            names: pool("person-name-", 12),
            urls: pool("https://www.example.org/auction/item.htm?query=1&channel=", 12),
            extras: pool("", 48),
        }
    }

    /// The type, the fields, and the time.
    fn event(&self, n: u64) -> (&'static str, Vec<String>, i64) {
        let r = mix(n.wrapping_mul(0x9e3779b97f4a7c15).wrapping_add(1 + mix(self.seed)));
        let (epoch, off) = (n as i64 / 50, n as i64 % 50);
        let mut ts = 1_600_000_000_000 + (n * 1000 / self.rate) as i64;
        if self.disorder > 0 {
            ts -= (mix(n) % (self.disorder + 1)) as i64;
        }
        let p = (r & 1023) as usize;
        let (name, url, extra) = (self.names[p].clone(), self.urls[p].clone(), self.extras[p].clone());
        let bits = |shift: u32, modulo: u64| ((r >> shift) % modulo) as i64;
        if off == 0 {
            let cities = [
                "Phoenix",
                "Los Angeles",
                "San Francisco",
                "Boise",
                "Portland",
                "Bend",
                "Redmond",
                "Seattle",
                "Kent",
                "Cheyenne",
            ];
            let city = cities[bits(10, 10) as usize].to_string();
            let state = ["AZ", "CA", "ID", "OR", "WA", "WY"][bits(20, 6) as usize].to_string();
            let id = (1000 + epoch).to_string();
            return ("person", vec![id, name.clone(), url, name, city, state, extra], ts);
        }
        let last_auction = epoch * 3 + off.min(3) - 1;
        if off < 4 {
            let seller = if bits(10, 4) != 0 {
                epoch / 100 * 100
            } else {
                0.max(epoch - bits(20, 1000))
            };
            let live = 1 + bits(30, 2 * (100 * 50 / 3 * 1000 / self.rate).max(1));
            let numbers = [
                1 + bits(40, 1000),
                1 + bits(44, 10_000),
                ts + live,
                1000 + seller,
                10 + bits(50, 5),
            ];
            let mut fields = vec![(1000 + last_auction).to_string(), name, url];
            fields.extend(numbers.map(|number| number.to_string()));
            fields.push(extra);
            return ("auction", fields, ts);
        }
        let auction = if bits(10, 2) == 0 {
            last_auction / 100 * 100
        } else {
            0.max(last_auction - bits(20, 100))
        };
        let bidder = if bits(30, 4) != 0 {
            epoch / 100 * 100 + 1
        } else {
            0.max(epoch - bits(34, 1000))
        };
        let channel = ["Apple", "Google", "Facebook", "Baidu"][bits(12, 4) as usize].to_string();
        let mut fields: Vec<String> = [1000 + auction, 1000 + bidder, 100 + bits(40, 10_000_000)]
            .iter()
            .map(i64::to_string)
            .collect();
        fields.extend([channel, url, extra]);
        ("bid", fields, ts)
    }

    /// The row of an event in a table, column by column; `None` when it is none of its rows.
    fn row(&self, table: &str, n: u64) -> Option<Vec<String>> {
        let (kind, fields, ts) = self.event(n);
        if table == kind {
            return Some(fields.into_iter().chain([ts.to_string()]).collect());
        }
        (table == "all").then(|| {
            let number = ["person", "auction", "bid"]
                .iter()
                .position(|name| *name == kind)
                .unwrap();
            let mut row = vec![
                number.to_string(),
                "NULL".into(),
                "NULL".into(),
                "NULL".into(),
                ts.to_string(),
            ];
            row[1 + number] = fields.join("|");
            row
        })
    }
}

fn text(array: &dyn Array, row: usize) -> String {
    if array.is_null(row) {
        return "NULL".into();
    }
    match array.data_type() {
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).to_string(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::Utf8View => array.as_string_view().value(row).to_string(),
        DataType::Timestamp(_, _) => array.as_primitive::<TimestampMillisecondType>().value(row).to_string(),
        _ => {
            let fields = array.as_struct().columns().iter();
            fields.map(|field| text(field, row)).collect::<Vec<_>>().join("|")
        }
    }
}

fn options(more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let events = EVENTS.to_string();
    let base = [("connector", "nexmark"), ("nexmark.events", events.as_str())];
    base.iter()
        .chain(more)
        .map(|(key, value)| (key.to_string(), value.to_string()))
        .collect()
}

fn table(more: &[(&str, &str)]) -> Arc<dyn TableProvider> {
    create_table(Arc::new(Schema::empty()), &options(more)).unwrap()
}

fn session(batch_rows: usize) -> SessionContext {
    SessionContext::new_with_config(
        SessionConfig::new()
            .with_batch_size(batch_rows)
            .with_target_partitions(3),
    )
}

async fn plan(
    table: &Arc<dyn TableProvider>,
    session: &SessionContext,
    projection: Option<&Vec<usize>>,
) -> Arc<dyn ExecutionPlan> {
    table.scan(&session.state(), projection, &[], None).await.unwrap()
}

async fn read(plan: &Arc<dyn ExecutionPlan>, session: &SessionContext, split: usize) -> Vec<RecordBatch> {
    let batches: Vec<RecordBatch> = plan
        .execute(split, session.task_ctx())
        .unwrap()
        .try_collect()
        .await
        .unwrap();
    for batch in &batches {
        // What was made without checks stands up to them.
        for column in batch.columns() {
            column.to_data().validate_full().unwrap();
        }
    }
    batches
}

fn texts(batches: &[RecordBatch]) -> Vec<Vec<String>> {
    let row = |batch: &RecordBatch, row: usize| -> Vec<String> {
        batch.columns().iter().map(|column| text(column, row)).collect()
    };
    batches
        .iter()
        .flat_map(|batch| (0..batch.num_rows()).map(move |at| row(batch, at)))
        .collect()
}

#[test]
fn the_naive_generator_makes_what_the_harness_in_java_makes() {
    let naive = Naive::new(0, 100_000, 0);
    let event = |n| {
        let (_, fields, ts) = naive.event(n);
        format!("{}|{ts}", fields.join("|"))
    };
    assert_eq!(
        event(3),
        "1002|person-name-lnsmvbxwyjsf|https://www.example.org/auction/item.htm?query=1&channel=lnsmvbxwyjsf|723|8171|\
         1600000000028|1000|13|fldpuviyfcaabeolhbhlvbmxuqibsxtkcudfbsfarfsiowlk|1600000000000"
    );
    assert_eq!(
        event(7_777_750),
        "156555|person-name-jczdzevndhkr|https://www.example.org/auction/item.htm?query=1&channel=jczdzevndhkr|\
         person-name-jczdzevndhkr|Phoenix|CA|nxdhbttkphywpnvjtoqnermclfplphoxuscrpabgyepsbjta|1600000077777"
    );
    assert_eq!(
        event(7_777_777),
        "467667|156501|3145679|Google|https://www.example.org/auction/item.htm?query=1&channel=uvxzxclvithh|\
         xfxjelgcmpzqjhhhqxuwyvcacoyvivbsizusjszlbscmnlzi|1600000077777"
    );
}

#[tokio::test]
async fn every_table_split_and_batch_size_makes_the_same_events() {
    let naive = Naive::new(0, 100_000, 0);
    for name in ["all", "person", "auction", "bid"] {
        for splits in [1, 2, 3] {
            for batch_rows in [1, 7, 64, 8192] {
                let table = table(&[("nexmark.table", name), ("nexmark.splits", &splits.to_string())]);
                let session = session(batch_rows);
                let plan = plan(&table, &session, None).await;
                for split in 0..splits {
                    let batches = read(&plan, &session, split).await;
                    let expected: Vec<Vec<String>> = (0..EVENTS)
                        .filter(|n| n / 1000 % splits as u64 == split as u64)
                        .filter_map(|n| naive.row(name, n))
                        .collect();
                    assert!(!expected.is_empty() && batches.iter().all(|batch| batch.num_rows() <= batch_rows));
                    let args = StatisticsArgs::new().with_partition(Some(split));
                    let statistics = StatisticsContext::new().compute(plan.as_ref(), &args).unwrap();
                    assert_eq!(statistics.num_rows.get_value(), Some(&expected.len()));
                    assert_eq!(
                        texts(&batches),
                        expected,
                        "{name}, split {split} of {splits}, {batch_rows} rows"
                    );
                }
            }
        }
    }
}

#[tokio::test]
async fn a_projection_is_the_same_columns_with_and_without_pushdown() {
    let naive = Naive::new(0, 100_000, 0);
    let projections: [&[usize]; 6] = [&[], &[4], &[3, 0], &[2, 4, 1], &[0, 1, 2, 3, 4], &[1]];
    for name in ["all", "person", "auction", "bid"] {
        for pushdown in ["true", "false"] {
            let table = table(&[
                ("nexmark.table", name),
                ("nexmark.splits", "1"),
                ("nexmark.pushdown", pushdown),
            ]);
            let session = session(1000);
            for projection in projections {
                let plan = plan(&table, &session, Some(&projection.to_vec())).await;
                assert_eq!(*plan.schema(), table.schema().project(projection).unwrap());
                let batches = read(&plan, &session, 0).await;
                let every = (0..EVENTS).filter_map(|n| naive.row(name, n));
                let expected: Vec<Vec<String>> = every
                    .map(|row| projection.iter().map(|column| row[*column].clone()).collect())
                    .collect();
                assert_eq!(texts(&batches), expected, "{name} {projection:?}");
            }
        }
    }
}

#[tokio::test]
async fn a_batch_that_uses_an_earlier_ones_buffers_shows_nothing_of_it() {
    let naive = Naive::new(0, 100_000, 0);
    // 64 is no multiple of 50: the rows of a type are elsewhere in each batch.
    let session = session(64);
    for name in ["all", "auction"] {
        let table = table(&[("nexmark.table", name), ("nexmark.splits", "1")]);
        let plan = plan(&table, &session, None).await;
        let mut stream = plan.execute(0, session.task_ctx()).unwrap();
        let mut expected = (0..EVENTS).filter_map(|n| naive.row(name, n));
        let mut addresses = std::collections::HashSet::new();
        let mut batches = 0;
        while let Some(batch) = stream.try_next().await.unwrap() {
            batches += 1;
            let times = batch
                .columns()
                .last()
                .unwrap()
                .as_primitive::<TimestampMillisecondType>();
            addresses.insert(times.values().as_ptr());
            for column in batch.columns() {
                column.to_data().validate_full().unwrap();
            }
            for row in texts(&[batch]) {
                assert_eq!(Some(row), expected.next());
            }
        }
        assert!(expected.next().is_none());
        assert!(addresses.len() < batches, "no buffer was used again");
    }
}

#[tokio::test]
async fn larger_batches_than_the_pattern_are_made_too() {
    let table = table(&[("nexmark.events", "40000"), ("nexmark.splits", "1")]);
    let session = session(30_000);
    let plan = plan(&table, &session, Some(&vec![0, 1])).await;
    let batches = read(&plan, &session, 0).await;
    assert_eq!(
        batches.iter().map(RecordBatch::num_rows).collect::<Vec<_>>(),
        [30_000, 10_000]
    );
    let people: usize = batches
        .iter()
        .map(|batch| batch.num_rows() - batch.column(1).null_count())
        .sum();
    assert_eq!(people, 800);
}

#[tokio::test]
async fn of_fifty_events_46_are_bids_3_auctions_and_1_is_a_person() {
    let session = SessionContext::new();
    session
        .register_table("t", table(&[("nexmark.events", "100000")]))
        .unwrap();
    let query = "SELECT event_type, count(*), count(person), count(auction), count(bid), count(bid['price']) FROM t \
                 GROUP BY event_type ORDER BY event_type";
    let rows = texts(&session.sql(query).await.unwrap().collect().await.unwrap());
    let counts: Vec<String> = rows.iter().map(|row| row.join(" ")).collect();
    assert_eq!(
        counts,
        ["0 2000 2000 0 0 0", "1 6000 0 6000 0 0", "2 92000 0 0 92000 92000"]
    );
}

#[tokio::test]
async fn disorder_is_bounded_and_repeats_and_a_seed_changes_the_events() {
    let session = session(500);
    let more = [("nexmark.splits", "1"), ("nexmark.event-time-rate", "1000")];
    let disordered = [&more[..], &[("nexmark.out-of-order-ms", "40"), ("seed", "9")]].concat();
    let made = table(&disordered);
    let plan = plan(&made, &session, None).await;
    let rows = texts(&read(&plan, &session, 0).await);
    let naive = Naive::new(9, 1000, 40);
    let expected: Vec<Vec<String>> = (0..EVENTS).filter_map(|n| naive.row("all", n)).collect();
    assert_eq!(rows, expected);
    assert_eq!(
        texts(&read(&plan, &session, 0).await),
        expected,
        "a second read differs"
    );
    let behind: Vec<i64> = (0..)
        .zip(&rows)
        .map(|(n, row)| 1_600_000_000_000 + n - row[4].parse::<i64>().unwrap())
        .collect();
    assert_eq!((behind.iter().min(), behind.iter().max()), (Some(&0), Some(&40)));
    assert_ne!(expected[4][3], Naive::new(0, 1000, 0).row("all", 4).unwrap()[3]);
}

#[tokio::test]
async fn the_event_times_of_splits_advance_together() {
    let table = table(&[
        ("nexmark.events", "100000"),
        ("nexmark.event-time-rate", "1000"),
        ("nexmark.table", "bid"),
    ]);
    let session = session(920);
    let plan = plan(&table, &session, Some(&vec![6])).await;
    assert_eq!(
        plan.properties().partitioning.partition_count(),
        3,
        "as many as the session wants"
    );
    let mut streams: Vec<_> = (0..3)
        .map(|split| plan.execute(split, session.task_ctx()).unwrap())
        .collect();
    for round in 0..30 {
        for (split, stream) in streams.iter_mut().enumerate() {
            let batch = stream.try_next().await.unwrap().unwrap();
            let first = batch.column(0).as_primitive::<TimestampMillisecondType>().value(0) - 1_600_000_000_000;
            assert_eq!(first, (round * 3 + split as i64) * 1000 + 4);
        }
    }
}

#[tokio::test]
async fn without_a_number_of_events_it_is_endless_and_a_pace_is_kept() {
    let mut options = options(&[("rows-per-second", "20000")]);
    options.remove("nexmark.events");
    let table = create_table(Arc::new(Schema::empty()), &options).unwrap();
    let session = session(8192);
    let plan = plan(&table, &session, None).await;
    assert!(plan.boundedness().is_unbounded());
    assert_eq!(
        plan.properties().partitioning.partition_count(),
        1,
        "what keeps a pace is one split"
    );
    let start = tokio::time::Instant::now();
    let mut stream = plan.execute(0, session.task_ctx()).unwrap();
    let mut rows = 0;
    while rows < 1000 {
        rows += stream.try_next().await.unwrap().unwrap().num_rows();
        // Row n is due n / 20000 s after the start, and not before.
        let due = start.elapsed().as_micros() as usize * 20_000 / 1_000_000 + 1;
        assert!(rows <= due, "{rows} rows when {due} were due");
    }
}

#[test]
fn wrong_options_and_columns_are_named() {
    let error = |more: &[(&str, &str)]| {
        create_table(Arc::new(Schema::empty()), &options(more))
            .unwrap_err()
            .to_string()
    };
    assert!(error(&[("nexmark.table", "bids")]).contains("must be all, person, auction or bid"));
    assert!(error(&[("nexmark.event-time-rate", "0")]).contains("'nexmark.event-time-rate' = '0'"));
    assert!(error(&[("nexmark.splits", "0")]).contains("'nexmark.splits' = '0'"));
    assert!(error(&[("rows-per-second", "-1")]).contains("'rows-per-second' = '-1'"));
    assert!(error(&[("nexmark.pushdown", "perhaps")]).contains("true or false"));
    assert!(error(&[("nexmark.event", "1")]).contains("no option 'nexmark.event'"));
    let of = |fields: &Schema| create_table(Arc::new(fields.clone()), &options(&[("nexmark.table", "bid")]));
    let right = Shape::Only(schema::Kind::Bid).schema();
    assert!(of(&right).is_ok());
    let capitals: Vec<Field> = right
        .fields()
        .iter()
        .map(|field| {
            field
                .as_ref()
                .clone()
                .with_name(field.name().to_uppercase())
                .with_nullable(true)
        })
        .collect();
    let named = of(&Schema::new(capitals)).unwrap().schema();
    assert_eq!(
        (named.field(0).name().as_str(), named.field(0).is_nullable()),
        ("AUCTION", false)
    );
    let wrong = right.project(&[0, 1]).unwrap();
    let message = of(&wrong).unwrap_err().to_string();
    assert!(
        message.contains("auction BIGINT, bidder BIGINT, price BIGINT, channel STRING"),
        "{message}"
    );
    let strict = Schema::new(vec![Field::new("event_type", DataType::Int64, true)]);
    let message = create_table(Arc::new(strict), &options(&[])).unwrap_err().to_string();
    assert!(message.contains("person STRUCT<id BIGINT, name STRING"), "{message}");
}

/// Run by hand, optimized: how fast one core makes events.
#[tokio::test]
#[ignore = "a measurement"]
async fn rates() {
    const MEASURED: u64 = 20_000_000;
    let cases: [(&str, &[usize], &str); 6] = [
        ("bid", &[0, 1, 2, 6], "true"),
        ("bid", &[0, 1, 2, 3, 4, 5, 6], "true"),
        ("auction", &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9], "true"),
        ("all", &[0, 3, 4], "true"),
        ("all", &[0, 1, 2, 3, 4], "true"),
        ("all", &[0, 3, 4], "false"),
    ];
    for (name, projection, pushdown) in cases {
        let more = [
            ("nexmark.table", name),
            ("nexmark.splits", "1"),
            ("nexmark.pushdown", pushdown),
            ("nexmark.events", &MEASURED.to_string()),
        ];
        let (table, session) = (table(&more), session(8192));
        let plan = plan(&table, &session, Some(&projection.to_vec())).await;
        let mut stream = plan.execute(0, session.task_ctx()).unwrap();
        let start = cpu_seconds();
        let mut rows = 0;
        while let Some(batch) = stream.try_next().await.unwrap() {
            rows += std::hint::black_box(batch).num_rows();
        }
        let seconds = cpu_seconds() - start;
        println!(
            "{name} {projection:?} pushdown={pushdown}: {:.1} M events/s, {:.1} M rows/s",
            MEASURED as f64 / seconds / 1e6,
            rows as f64 / seconds / 1e6
        );
    }
}
